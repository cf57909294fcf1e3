//! The reader without its thread: counts records and commits counts, notices and place together.
//!
//! A commit moves the cursor from the number of the commit before to its own, in the transaction of its rows. One whose
//! answer was lost is found by that number when it is tried again: it is not added a second time. A process that was
//! replaced finds another's number and adds nothing.
//!
//! Each log has a cursor of its own: where servers with logs of their own take turns, each goes on where it was. What the one
//! before held beyond its cursor is a gap without an end, until the reader is back there.
//!
//! The clock: a record that its log stamped days ahead of the clock (which was wrong then; a log's stamps never step back) counts
//! on the clock's day. Meters are pruned by the newest day with records. A clock that goes back by more than a day was wrong
//! before: the day's counts are read back from its rows.

use super::{MeterError, Progress, READER};
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Fence, Scope, Tx};
use crate::platform::event_log::LogRecord;
use crate::platform::secret;
use crate::usage::Board;
use crate::usage::gap::Gap;
use crate::usage::meter::{Meter, Taken};
use crate::usage::model::{DayRow, Level, Notice, RETENTION_DAYS, day_of};
use crate::usage::store::{self, Cursor};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
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
    /// Of this log; none before its first commit.
    commits_before: Option<u64>,
    cursor: Cursor,
    taken: Taken,
    is_return: bool,
    gaps: Vec<Gap>,
    prune_before: Option<i64>,
}

/// The worker.
pub struct Worker {
    parts: Parts,
    meter: Meter,
    progress: Arc<Progress>,
    /// The last commit; before this reader's first one, where it begins.
    at: Cursor,
    /// The number of this log's last commit.
    of_log: Option<u64>,
    position: u64,
    counted_us: i64,
    records: u64,
    /// Another log was counted since this one was.
    is_return: bool,
    gaps: Vec<Gap>,
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
        let is_stored = store::cursors(tx, &scope)?.contains(&batch.cursor);
        return if is_stored { Ok(false) } else { Err(MeterError::Moved) };
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
    if batch.is_return {
        store::gap_close(tx, &scope, batch.cursor.log_epoch)?;
    }
    for gap in &batch.gaps {
        store::gap_put(tx, &scope, gap)?;
    }
    if let Some(before) = batch.prune_before {
        store::prune(tx, &scope, before)?;
    }
    Ok(true)
}

/// What the registry holds of a day.
type OfDay = (Vec<DayRow>, Vec<Notice>);

fn read_day(tx: &mut Tx<'_>, scope: &Scope, day: i64) -> Result<OfDay, DbError> {
    Ok((store::days_on(tx, scope, day)?, store::notices_on(tx, scope, day)?))
}

fn restore(meter: &mut Meter, (days, notices): &OfDay) {
    days.iter().for_each(|row| meter.restore(row));
    notices.iter().for_each(|notice| meter.restore_notice(notice));
}

/// Where to begin in a log that holds these positions, and what it no longer holds.
fn begin(own: Option<&Cursor>, held: &Range<u64>) -> (u64, Range<u64>) {
    match own.map_or(held.start, |own| own.position) {
        position if position < held.start => (held.start, position..held.start),
        position if position > held.end => {
            tracing::warn!(position, "the event log is older than what was counted of it");
            (held.end, 0..0)
        }
        position => (position, 0..0),
    }
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
            Ok::<_, DbError>((store::cursors(tx, &scope)?, read_day(tx, &scope, day)?))
        };
        let (cursors, of_day) = parts.db.read_blocking(read)?;
        let mut meter = Meter::new(parts.board.clone(), held.end, day);
        restore(&mut meter, &of_day);
        let own = cursors.iter().find(|cursor| cursor.log_epoch == epoch);
        let last = cursors.iter().max_by_key(|cursor| cursor.commits);
        let other = last.filter(|last| last.log_epoch != epoch);
        let (position, lost) = begin(own, &held);
        let writer = u64::from_le_bytes(secret::random_bytes());
        let (commits, counted_us) =
            (last.map_or(0, |last| last.commits), own.map_or(0, |own| own.counted_us));
        let mut worker = Self {
            parts,
            meter,
            progress: Arc::default(),
            at: Cursor { log_epoch: epoch, position, commits, writer, counted_us },
            of_log: own.map(|own| own.commits),
            position,
            counted_us,
            records: 0,
            is_return: own.is_some() && other.is_some(),
            gaps: Vec::new(),
            committed: Instant::now(),
            sampled: None,
            pruned_day: i64::MIN,
            waiting: None,
            #[cfg(test)]
            fault: None,
        };
        worker.skipped(&lost, "the log no longer holds it");
        if let Some(other) = other {
            worker.left_behind(other);
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
        let now_us = self.parts.clock.now_us();
        self.position = record.position + 1;
        self.counted_us = self.counted_us.max(record.received_at_us.min(now_us));
        self.records += 1;
        self.meter.observe(record, day_of(now_us));
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
        self.note_gap(self.at.log_epoch, range.start, Some(range.end - 1), (self.counted_us, why));
        self.position = self.position.max(range.end);
        self.progress.skipped.fetch_add(range.end - range.start, Ordering::Relaxed);
    }

    /// Notes that another log was counted before this one, up to there; how much more it held is not known.
    fn left_behind(&mut self, other: &Cursor) {
        const WHY: &str = "another event log was counted from then on; what this one held beyond is unknown";
        let epoch = format!("{:016x}", other.log_epoch);
        tracing::error!(reader = READER, log_epoch = epoch, first = other.position, "{WHY}");
        self.note_gap(other.log_epoch, other.position, None, (other.counted_us, WHY));
    }

    fn note_gap(&mut self, log_epoch: u64, first: u64, last: Option<u64>, (since_us, why): (i64, &str)) {
        let (at_us, why) = (self.parts.clock.now_us(), why.to_owned());
        self.gaps.push(Gap { log_epoch, first, last, since_us, at_us, why });
        self.progress.gaps.fetch_add(1, Ordering::Relaxed);
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
        let day = day_of(now_us);
        if self.meter.is_ahead(day) {
            self.set_back(now_us)?;
        }
        let taken = self.meter.take(now_us);
        let is_nothing = taken.rows.is_empty() && taken.notices.is_empty() && self.gaps.is_empty();
        let moved = self.position != self.at.position;
        if is_nothing
            && (!moved || (self.records < COMMIT_RECORDS && self.committed.elapsed() < COMMIT_IDLE_EVERY))
        {
            return Ok(());
        }
        let newest = self.meter.newest_day().filter(|newest| *newest > self.pruned_day);
        let prune_before = newest.map(|newest| newest - RETENTION_DAYS + 1);
        self.pruned_day = newest.unwrap_or(self.pruned_day);
        let (position, counted_us) = (self.position, self.counted_us);
        let cursor = Cursor { position, counted_us, commits: self.at.commits + 1, ..self.at };
        let (commits_before, is_return) = (self.of_log, std::mem::take(&mut self.is_return));
        let gaps = std::mem::take(&mut self.gaps);
        let batch = Batch { commits_before, cursor, taken, is_return, gaps, prune_before };
        self.waiting = Some(Arc::new(batch));
        self.records = 0;
        self.commit_waiting()
    }

    /// The clock was wrong and is right again: takes up what the registry holds of the day that it is.
    fn set_back(&mut self, now_us: i64) -> Result<(), MeterError> {
        let day = day_of(now_us);
        let of_day = self.parts.db.read_blocking(move |tx| read_day(tx, &scope(), day))?;
        self.parts.board.at(now_us);
        self.meter.set_back(day);
        restore(&mut self.meter, &of_day);
        (self.pruned_day, self.sampled) = (i64::MIN, None);
        self.sample()
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
        (self.at, self.of_log) = (batch.cursor, Some(batch.cursor.commits));
        self.committed = Instant::now();
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

    /// Looks at what the log does not tell: devices, what earlier days left in the store, and who was erased.
    fn sample(&mut self) -> Result<(), MeterError> {
        let day = day_of(self.parts.clock.now_us());
        let (most, others) = (self.parts.kept)();
        let mut by_days: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        others.into_iter().for_each(|(tenant, days)| by_days.entry(days).or_default().push(tenant));
        let read = move |tx: &mut Tx<'_>| {
            let scope = scope();
            let sums = |tx: &mut Tx<'_>, days: i64| {
                let sums = store::stored_sums(tx, &scope, day - days + 1, day)?;
                Ok::<HashMap<_, _>, DbError>(sums.into_iter().collect())
            };
            let mut all = sums(tx, most)?;
            for (days, tenants) in by_days {
                let mut own = sums(tx, days)?;
                for tenant in tenants {
                    let counts = own.remove(&tenant).unwrap_or_default();
                    all.insert(tenant, counts);
                }
            }
            Ok::<_, DbError>((all, store::tenants_erased(tx, &scope)?))
        };
        let (mut sums, erased) = self.parts.db.read_blocking(read)?;
        let erased: HashSet<_> = erased.into_iter().collect();
        sums.retain(|tenant, _| !erased.contains(tenant));
        let stored = sums.into_iter().map(|(tenant, counts)| (tenant, counts.stored_bytes())).collect();
        self.meter.set_stored_before(day, &stored);
        self.meter.set_devices(&(self.parts.devices)());
        self.meter.set_erased(&erased);
        self.sampled = Some(Instant::now());
        Ok(())
    }
}
