//! The store consumer: reads the log into the store's memtable, flushes one shard after the other, syncs now and
//! then, releases what is synced.

use super::Progress;
use crate::platform::clock::SharedClock;
use crate::platform::event_log::{EventLog, EventLogError, LogReader, Pin};
use crate::platform::telemetry::{
    CrashPoint, LogSpan, RawBatch, STORE_READER, StoredBatch, TelemetryError, TelemetryStore,
};
use crate::platform::threads::Stop;
use muster_journal::{Fs, RealFs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Log bytes of one batch: some 15,000 small messages.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Pause after a batch that was not full: each costs a look at the log and a transaction.
pub const BATCH_INTERVAL: Duration = Duration::from_millis(25);
/// How long a reading waits in the memtable before it is in the tables. The longer, the more rows of a series go into
/// one page at a time; the longer, the more of the log is read again after a crash.
pub const FLUSH_AFTER: Duration = Duration::from_secs(30);
/// How long a flush may wait until it is synced and the log is released up to it. What a power cut takes of the
/// store is read from the log again, so fewer syncs cost nothing but log; each of them holds up the log's own.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(2);
/// The memtable is flushed ahead of its time where it holds up a release of this part of the log's bytes.
pub(super) const LOG_HELD_MAX: f64 = 0.25;
/// Ticks that may be read without a commit of the cursor: they have no effect but time.
pub(super) const TICKS_HELD_MAX: usize = 60;
const WAIT: Duration = Duration::from_millis(500);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// Called after each batch with what was stored. It must not block: the live bus has a bounded queue of its own
/// and drops what does not fit. A batch carries a bounded number of items.
pub type OnStored = Box<dyn Fn(&StoredBatch) + Send>;

/// Why the consumer stopped or paused.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] TelemetryError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[from] std::io::Error),
}

/// What one step did.
#[derive(Debug)]
pub enum Step {
    /// Nothing to read.
    Idle,
    /// Ticks only; the cursor did not move.
    Ticks,
    /// A batch was stored.
    Stored {
        /// What it did.
        batch: StoredBatch,
        /// There is more to read, likely.
        is_full: bool,
    },
}

/// Reads the log from the cursor on.
pub struct Consumer<F: Fs = RealFs> {
    log: EventLog<F>,
    store: TelemetryStore,
    clock: SharedClock,
    on_stored: Vec<OnStored>,
    reader: LogReader<F>,
    /// All below is in the store.
    cursor: u64,
    /// When the next shard is flushed; none where no time is set.
    flush_due: Option<Instant>,
    flush_interval: Duration,
    /// When something was stored or flushed first that the log is not released behind.
    unsynced_since: Option<Instant>,
    sync_interval: Duration,
    released: u64,
    /// Bytes of one batch.
    batch_bytes: usize,
    /// All below was shown to the hooks: what is read again after a failure is not shown again.
    shown: u64,
    /// The last flush failed, none succeeded since, and something waits for one: that batches go into memory is no
    /// recovery.
    flush_fails: bool,
    ticks_held: usize,
    progress: Arc<Progress>,
    /// The last step failed: the reader may stand beyond the cursor.
    astray: bool,
}

impl<F: Fs> Consumer<F> {
    /// Finds the cursor and opens the reader there.
    ///
    /// # Errors
    /// The store or the log failed.
    pub fn begin(
        log: EventLog<F>,
        store: TelemetryStore,
        clock: SharedClock,
        on_stored: Vec<OnStored>,
    ) -> Result<Self, IngestError> {
        let (cursor, reader) = Self::find(&log, &store, &clock)?;
        let flush_interval = store.flush_interval(FLUSH_AFTER);
        Ok(Self {
            log,
            store,
            clock,
            on_stored,
            reader,
            cursor,
            flush_due: None,
            flush_interval,
            unsynced_since: None,
            sync_interval: SYNC_INTERVAL,
            released: cursor,
            batch_bytes: BATCH_BYTES_MAX,
            shown: 0,
            flush_fails: false,
            ticks_held: 0,
            progress: Arc::default(),
            astray: false,
        })
    }

    /// Flushes and syncs only when told to, and reads batches of so many bytes: for trials.
    #[must_use]
    pub fn by_hand(mut self, batch_bytes: usize) -> Self {
        (self.flush_interval, self.sync_interval) = (Duration::MAX, Duration::MAX);
        self.batch_bytes = batch_bytes;
        self
    }

    /// Its counters.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    fn find(
        log: &EventLog<F>,
        store: &TelemetryStore,
        clock: &SharedClock,
    ) -> Result<(u64, LogReader<F>), IngestError> {
        let span = LogSpan { epoch: log.epoch(), first: log.first(), next: log.durable_next() };
        let start = store.begin(span, clock.now_us())?;
        log.stamp_at_least(start.received_at_us);
        let reader = log.reader(STORE_READER, start.from, Pin::Pins)?;
        // What an earlier run flushed and did not sync may be in the cursor.
        store.sync()?;
        log.release(STORE_READER, start.from)?;
        log.note_stored(start.from);
        tracing::info!(position = start.from, lost = start.lost.is_some(), "store reads the event log");
        Ok((start.from, reader))
    }

    /// Reads a batch and stores it; after an error it goes back to the cursor first. What it read and could not
    /// store would else be passed over in silence.
    ///
    /// # Errors
    /// Nothing of the batch is stored, unless a test stopped it after the commit.
    pub fn step(&mut self) -> Result<Step, IngestError> {
        if self.astray {
            self.recover()?;
        }
        self.astray = true;
        let step = self.try_step();
        self.astray = match &step {
            Ok(_) => false,
            // A full disk, a database that another holds: what was stored so far stays where it is.
            Err(IngestError::Store(error)) if error.is_before_anything() => {
                self.reader.seek(self.cursor);
                self.ticks_held = 0;
                false
            }
            Err(_) => true,
        };
        step
    }

    fn try_step(&mut self) -> Result<Step, IngestError> {
        let step = self.store_next()?;
        if let Step::Stored { batch, .. } = &step
            && batch.next > self.shown
        {
            self.shown = batch.next;
            self.progress.stored(batch);
            for hook in &self.on_stored {
                hook(batch);
            }
        }
        let flushed = self.flush_due();
        self.flush_fails = match flushed {
            Ok(flushed) => self.flush_fails && !flushed && self.store.is_pending(),
            Err(_) => true,
        };
        flushed?;
        if self.sync_due_in().is_some_and(|wait| wait.is_zero()) {
            self.sync()?;
        }
        Ok(step)
    }

    /// Flushes the next shard where its time has come, and ahead of time what takes too much memory or log. Says
    /// whether it flushed.
    fn flush_due(&mut self) -> Result<bool, IngestError> {
        let mut flushed = self.store.flush_overfull()?;
        let now = Instant::now();
        if self.holds_too_much_log() {
            self.store.flush_all()?;
            self.sync_all()?;
            flushed = true;
        } else if self.flush_due.is_some_and(|due| due <= now) {
            flushed |= self.store.flush_next()?;
            self.flush_due = None;
        }
        if self.flush_due.is_none() && self.store.is_pending() {
            self.flush_due = now.checked_add(self.flush_interval);
        }
        if flushed {
            self.unsynced_since.get_or_insert(now);
        }
        Ok(flushed)
    }

    fn holds_too_much_log(&self) -> bool {
        let log = self.log.stats();
        let (held, all) =
            (self.cursor.saturating_sub(self.released), log.next_seq.saturating_sub(log.first_seq));
        held as f64 / all.max(1) as f64 * log.bytes as f64 > LOG_HELD_MAX * self.log.bytes_max() as f64
    }

    /// Flushes the next shard in turn: for trials.
    ///
    /// # Errors
    /// The database failed.
    pub fn flush_next(&mut self) -> Result<(), IngestError> {
        self.astray = true;
        if self.store.flush_next()? {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        self.astray = false;
        Ok(())
    }

    /// Flushes and syncs all that was read, and lets the log go up to there.
    ///
    /// # Errors
    /// The disk, the database or the log failed.
    pub fn finish(&mut self) -> Result<(), IngestError> {
        self.astray = true;
        self.store.flush_all()?;
        self.sync_all()?;
        self.astray = false;
        Ok(())
    }

    /// Syncs what is flushed, then lets the log go up to there.
    ///
    /// # Errors
    /// The disk or the log failed.
    pub fn sync(&mut self) -> Result<(), IngestError> {
        if self.unsynced_since.is_none() { Ok(()) } else { self.sync_all() }
    }

    fn sync_all(&mut self) -> Result<(), IngestError> {
        let flushed = self.store.settle()?;
        self.unsynced_since = None;
        let is_behind = flushed > self.released;
        if !is_behind && !self.store.has_unsynced_blocks() {
            return Ok(());
        }
        self.store.sync()?;
        if !is_behind {
            return Ok(());
        }
        self.log.release(STORE_READER, flushed)?;
        self.released = flushed;
        Ok(self.store.faults().reach(CrashPoint::AfterRelease)?)
    }

    /// How long until the next sync; none while there is nothing to sync.
    fn sync_due_in(&self) -> Option<Duration> {
        self.unsynced_since.map(|since| self.sync_interval.saturating_sub(since.elapsed()))
    }

    /// How long until something is to be done without a record.
    fn due_in(&self) -> Option<Duration> {
        let flush = self.flush_due.map(|due| due.saturating_duration_since(Instant::now()));
        self.sync_due_in().into_iter().chain(flush).min()
    }

    fn store_next(&mut self) -> Result<Step, IngestError> {
        let mut batch = RawBatch::new(self.log.epoch(), self.cursor);
        let mut bytes = 0;
        let read = self.reader.next_batch(self.batch_bytes, |record| {
            bytes += record.body.len();
            batch.push(&record);
        })?;
        batch.next = read.next;
        batch.skipped = read.skipped;
        if batch.is_empty() && read.next == read.from {
            return Ok(Step::Idle);
        }
        self.store.faults().reach(CrashPoint::AfterRead)?;
        let may_wait = self.ticks_held + batch.len() <= TICKS_HELD_MAX && !self.store.is_awaited(self.cursor);
        if batch.is_ticks_only() && may_wait {
            self.ticks_held += batch.len();
            return Ok(Step::Ticks);
        }
        let stored = self.store.apply(batch, !self.on_stored.is_empty())?;
        self.store.faults().reach(CrashPoint::AfterCommit)?;
        (self.cursor, self.ticks_held) = (stored.next, 0);
        self.log.note_stored(self.cursor);
        self.unsynced_since.get_or_insert_with(Instant::now);
        Ok(Step::Stored { batch: stored, is_full: bytes > BATCH_BYTES_MAX / 4 })
    }

    fn recover(&mut self) -> Result<(), IngestError> {
        (self.cursor, self.reader) = Self::find(&self.log, &self.store, &self.clock)?;
        (self.ticks_held, self.astray, self.unsynced_since) = (0, false, None);
        (self.released, self.flush_due) = (self.cursor, None);
        Ok(())
    }

    /// Stores until told to stop. Errors are tried again for ever.
    pub fn run(&mut self, stop: &Stop) {
        let _ending = self.progress.condition.until_end();
        let mut delay = RETRY_DELAY_MIN;
        while !stop.is_set() {
            let began = Instant::now();
            let step = self.step();
            if step.is_ok() && !self.flush_fails {
                self.progress.condition.works();
                delay = RETRY_DELAY_MIN;
            }
            match step {
                Ok(Step::Stored { is_full: true, .. }) => {}
                Ok(Step::Stored { .. } | Step::Ticks) => {
                    stop.wait(BATCH_INTERVAL.saturating_sub(began.elapsed()));
                }
                Ok(Step::Idle) => {
                    self.reader.wait(self.due_in().map_or(WAIT, |due| due.min(WAIT)));
                }
                Err(error) => {
                    let why = format!("{:#}", anyhow::Error::from(error));
                    self.progress.failed(why.clone());
                    tracing::warn!(error = why, delay_ms = delay.as_millis(), "store failed, will retry");
                    stop.wait(delay);
                    delay = (delay * 2).min(RETRY_DELAY_MAX);
                }
            }
        }
        if let Err(error) = self.end() {
            let why = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error = why, "the store was not flushed at the end; the log is read again");
        }
    }

    /// After a failure the memtable is gone, and the log has it.
    fn end(&mut self) -> Result<(), IngestError> {
        if self.astray { Ok(()) } else { self.finish() }
    }
}
