//! The reader without its thread: counts records and commits counts, notices and place together.
//!
//! A commit moves the cursor from the number of the commit before to its own, in the transaction of its rows. One whose
//! answer was lost is found by that number when it is tried again: it is not added a second time. A process that was
//! replaced finds another's number and adds nothing.

use super::{MeterError, Progress, READER};
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Fence, Scope, Tx};
use crate::platform::event_log::LogRecord;
use crate::platform::secret;
use crate::usage::allowance::Board;
use crate::usage::meter::{Meter, Taken};
use crate::usage::model::{Level, RETENTION_DAYS, day_of};
use crate::usage::store::{self, Cursor};
use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two commits of counts.
pub const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// Between two commits of the place alone: the log is released behind it.
pub const COMMIT_IDLE_EVERY: Duration = Duration::from_secs(10);
/// Records between two commits.
pub const COMMIT_RECORDS: u64 = 50_000;
/// Between two looks at devices, stored bytes and what is past its time.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(60);

/// Gives how many devices each tenant has.
pub type DeviceCounts = Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;
/// Gives for how many days telemetry is kept: of most tenants, and of those where it differs.
pub type KeptDays = Arc<dyn Fn() -> (i64, Vec<(String, i64)>) + Send + Sync>;

/// What the worker stands on.
#[derive(Clone)]
pub struct Parts {
    /// The registry.
    pub db: Db,
    /// Tells the day, and stamps commits.
    pub clock: SharedClock,
    /// What the gateway asks.
    pub board: Arc<Board>,
    /// Registered devices.
    pub devices: DeviceCounts,
    /// How long the store keeps telemetry.
    pub kept: KeptDays,
    /// Refuses commits once another process reads the log for this registry.
    pub fence: Fence,
}

/// What one commit writes.
#[derive(Debug)]
struct Batch {
    commits_before: u64,
    cursor: Cursor,
    taken: Taken,
    gaps: Vec<(RangeInclusive<u64>, &'static str)>,
    prune_before: Option<i64>,
}

/// The worker.
pub struct Worker {
    parts: Parts,
    meter: Meter,
    progress: Arc<Progress>,
    /// The last commit.
    at: Cursor,
    position: u64,
    records: u64,
    gaps: Vec<(RangeInclusive<u64>, &'static str)>,
    committed: Instant,
    sampled: Option<Instant>,
    pruned_day: i64,
    /// A commit that failed, or whose answer was lost.
    waiting: Option<Arc<Batch>>,
    /// Ends the next commit before this step, for tests.
    #[cfg(test)]
    pub(in crate::usage) fault: Option<Step>,
}

/// The steps of a commit, for tests that end it between two of them.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::usage) enum Step {
    /// The cursor is moved, nothing else.
    CursorMoved,
    /// The rows are written too.
    RowsWritten,
    /// It is on disk, but nobody was told.
    Answered,
}

fn scope() -> Scope {
    Scope::System("usage: the meter counts every tenant's records")
}

fn write(
    tx: &mut Tx<'_>,
    batch: &Batch,
    now_us: i64,
    #[cfg(test)] fault: Option<Step>,
) -> Result<bool, MeterError> {
    let scope = scope();
    if !store::cursor_move(tx, &scope, batch.commits_before, &batch.cursor, now_us)? {
        // The commit before got no answer, or another process counts: its number and writer tell.
        let now = store::cursor(tx, &scope)?;
        return if now == Some(batch.cursor) { Ok(false) } else { Err(MeterError::Moved) };
    }
    #[cfg(test)]
    if fault == Some(Step::CursorMoved) {
        return Err(DbError::Closed.into());
    }
    for row in &batch.taken.rows {
        store::day_add(tx, &scope, row)?;
    }
    #[cfg(test)]
    if fault == Some(Step::RowsWritten) {
        return Err(DbError::Closed.into());
    }
    for notice in &batch.taken.notices {
        store::notice_put(tx, &scope, notice)?;
    }
    for (range, why) in &batch.gaps {
        store::gap_put(tx, &scope, batch.cursor.log_epoch, range, why, now_us)?;
    }
    if let Some(before) = batch.prune_before {
        store::prune(tx, &scope, before)?;
    }
    Ok(true)
}

impl Worker {
    /// Reads its place and today's counts back. `epoch` names the log, `held` is the range of positions that it holds;
    /// what this process admits comes behind that.
    ///
    /// # Errors
    /// The registry failed.
    pub fn open(parts: Parts, epoch: u64, held: Range<u64>) -> Result<Self, MeterError> {
        let now_us = parts.clock.now_us();
        parts.board.at(now_us);
        let day = day_of(now_us);
        let read = move |tx: &mut Tx<'_>| {
            let scope = scope();
            let days = store::days_on(tx, &scope, day)?;
            Ok::<_, DbError>((store::cursor(tx, &scope)?, days, store::notices_on(tx, &scope, day)?))
        };
        let (cursor, days, notices) = parts.db.read_blocking(read)?;
        let mut meter = Meter::new(parts.board.clone(), held.end, day);
        days.iter().for_each(|row| meter.restore(row));
        notices.iter().for_each(|notice| meter.restore_notice(notice));
        let mut lost = None;
        let position = match cursor {
            // Another log: from its beginning. What the lost one held beyond the cursor was never counted.
            Some(cursor) if cursor.log_epoch != epoch => held.start,
            Some(cursor) if cursor.position < held.start => {
                lost = Some(cursor.position..held.start);
                held.start
            }
            Some(cursor) if cursor.position > held.end => {
                tracing::warn!(
                    position = cursor.position,
                    "the event log is older than what was counted of it"
                );
                held.end
            }
            Some(cursor) => cursor.position,
            None => held.start,
        };
        let commits = cursor.map_or(0, |cursor| cursor.commits);
        let writer = u64::from_le_bytes(secret::random_bytes());
        let at = Cursor { log_epoch: epoch, position, commits, writer };
        let mut worker = Self {
            parts,
            meter,
            progress: Arc::default(),
            at,
            position,
            records: 0,
            gaps: Vec::new(),
            committed: Instant::now(),
            sampled: None,
            pruned_day: i64::MIN,
            waiting: None,
            #[cfg(test)]
            fault: None,
        };
        if let Some(range) = lost {
            worker.skipped(&range, "the log no longer holds it");
        }
        worker.sample()?;
        Ok(worker)
    }

    /// Its counters and condition.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The next position to read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// All below is committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.at.position
    }

    /// Counts the next record.
    pub fn observe(&mut self, record: &LogRecord<'_>) {
        self.position = record.position + 1;
        self.records += 1;
        self.meter.observe(record);
        self.progress.records.fetch_add(1, Ordering::Relaxed);
        self.progress.position.store(self.position, Ordering::Relaxed);
    }

    /// Notes positions that could not be read.
    pub fn skipped(&mut self, range: &Range<u64>, why: &'static str) {
        if range.is_empty() {
            return;
        }
        tracing::error!(
            reader = READER,
            first = range.start,
            next = range.end,
            why,
            "log positions were not counted"
        );
        self.gaps.push((range.start..=range.end - 1, why));
        self.position = self.position.max(range.end);
        self.progress.skipped.fetch_add(range.end - range.start, Ordering::Relaxed);
    }

    /// Whether it is time to commit.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waiting.is_some()
            || !self.gaps.is_empty()
            || self.records >= COMMIT_RECORDS
            || self.committed.elapsed() >= COMMIT_EVERY
    }

    /// Commits what was counted since the last commit. Where it fails, call it again before anything else.
    ///
    /// # Errors
    /// The registry failed, or another process counts.
    pub fn commit(&mut self) -> Result<(), MeterError> {
        self.commit_waiting()?;
        if self.sampled.is_none_or(|at| at.elapsed() >= SAMPLE_EVERY) {
            self.sample()?;
        }
        let now_us = self.parts.clock.now_us();
        let taken = self.meter.take(now_us);
        let is_nothing = taken.rows.is_empty() && taken.notices.is_empty() && self.gaps.is_empty();
        let moved = self.position != self.at.position;
        if is_nothing
            && (!moved || (self.records < COMMIT_RECORDS && self.committed.elapsed() < COMMIT_IDLE_EVERY))
        {
            return Ok(());
        }
        let day = day_of(now_us);
        let prune_before = (day > self.pruned_day).then_some(day - RETENTION_DAYS + 1);
        self.pruned_day = day;
        let cursor = Cursor { position: self.position, commits: self.at.commits + 1, ..self.at };
        let (commits_before, gaps) = (self.at.commits, std::mem::take(&mut self.gaps));
        self.waiting = Some(Arc::new(Batch { commits_before, cursor, taken, gaps, prune_before }));
        self.records = 0;
        self.commit_waiting()
    }

    fn commit_waiting(&mut self) -> Result<(), MeterError> {
        let Some(batch) = self.waiting.clone() else { return Ok(()) };
        let (now_us, fence, of_tx) = (self.parts.clock.now_us(), self.parts.fence.clone(), batch.clone());
        #[cfg(test)]
        let fault = self.fault.take();
        let is_new = self.parts.db.write_blocking(move |tx| {
            fence.check(tx)?;
            write(
                tx,
                &of_tx,
                now_us,
                #[cfg(test)]
                fault,
            )
        })?;
        #[cfg(test)]
        if fault == Some(Step::Answered) {
            return Err(DbError::Closed.into());
        }
        if !is_new {
            tracing::info!(
                commit = batch.cursor.commits,
                "a commit of usage whose answer was lost is stored"
            );
        }
        self.waiting = None;
        (self.at, self.committed) = (batch.cursor, Instant::now());
        self.progress.commits.fetch_add(1, Ordering::Relaxed);
        for notice in &batch.taken.notices {
            let (tenant, quota, level) = (&notice.tenant, notice.quota.as_str(), notice.level.as_str());
            tracing::warn!(
                tenant,
                quota,
                level,
                used = notice.used,
                allowed = notice.allowed,
                "a quota's limit is reached"
            );
            self.progress.noticed[usize::from(notice.level == Level::Hard)].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Looks at what the log does not tell: devices, and what earlier days left in the store.
    fn sample(&mut self) -> Result<(), MeterError> {
        let day = day_of(self.parts.clock.now_us());
        let (most, others) = (self.parts.kept)();
        let read = move |tx: &mut Tx<'_>| {
            let scope = scope();
            let mut sums =
                store::stored_sums(tx, &scope, day - most + 1, day)?.into_iter().collect::<HashMap<_, _>>();
            for (tenant, days) in others {
                let own = store::stored_sums(tx, &scope, day - days + 1, day)?;
                let own = own.into_iter().find(|(of, _)| *of == tenant).map(|(_, counts)| counts);
                sums.insert(tenant, own.unwrap_or_default());
            }
            Ok::<_, DbError>(sums)
        };
        let sums = self.parts.db.read_blocking(read)?;
        let stored = sums.into_iter().map(|(tenant, counts)| (tenant, counts.stored_bytes())).collect();
        self.meter.set_stored_before(day, &stored);
        self.meter.set_devices(&(self.parts.devices)());
        self.sampled = Some(Instant::now());
        Ok(())
    }
}
