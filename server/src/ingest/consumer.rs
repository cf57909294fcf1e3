//! The store consumer: reads the log, stores, syncs now and then, releases what is synced.

use super::{Progress, Stop};
use crate::platform::clock::SharedClock;
use crate::platform::event_log::{EventLog, EventLogError, LogReader, Pin};
use crate::platform::telemetry::{
    CrashPoint, LogSpan, RawBatch, STORE_READER, StoredBatch, TelemetryError, TelemetryStore,
};
use muster_journal::{Fs, RealFs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Log bytes of one commit: some 15,000 small messages.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Pause after a commit that was not full. Commits share the disk with the log's fsync, which PUBACKs wait for.
pub const COMMIT_INTERVAL: Duration = Duration::from_millis(25);
/// How long a commit may wait until it is synced and the log is released up to it. What a power cut takes of the
/// store is read from the log again, so fewer syncs cost nothing but log; each of them holds up the log's own.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(500);
/// Ticks that may be read without a commit of the cursor: they have no effect but time.
pub(super) const TICKS_HELD_MAX: usize = 60;
const WAIT: Duration = Duration::from_millis(500);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// Called after each commit with what was stored. It must not block: the live bus has a bounded queue of its own
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
    Thread(#[source] std::io::Error),
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
    /// Where the cursor stands.
    cursor: u64,
    /// When the first commit was made that is not synced.
    unsynced_since: Option<Instant>,
    sync_interval: Duration,
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
        Ok(Self {
            log,
            store,
            clock,
            on_stored,
            reader,
            cursor,
            unsynced_since: None,
            sync_interval: SYNC_INTERVAL,
            ticks_held: 0,
            progress: Arc::default(),
            astray: false,
        })
    }

    /// Lets commits wait for another time than [`SYNC_INTERVAL`]: zero syncs each of them.
    #[must_use]
    pub fn with_sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
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
        // What an earlier run committed and did not sync may be in the cursor.
        store.sync()?;
        log.release(STORE_READER, start.from)?;
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
        let step = self.store_next()?;
        if self.sync_due_in().is_some_and(|wait| wait.is_zero()) {
            self.sync()?;
        }
        self.astray = false;
        if let Step::Stored { batch, .. } = &step {
            for hook in &self.on_stored {
                hook(batch);
            }
        }
        Ok(step)
    }

    /// Syncs what is committed, then lets the log go up to there.
    ///
    /// # Errors
    /// The disk or the log failed.
    pub fn sync(&mut self) -> Result<(), IngestError> {
        if self.unsynced_since.is_none() {
            return Ok(());
        }
        self.store.sync()?;
        self.log.release(STORE_READER, self.cursor)?;
        self.unsynced_since = None;
        Ok(self.store.faults().reach(CrashPoint::AfterRelease)?)
    }

    /// How long until the next sync; none while everything is synced.
    fn sync_due_in(&self) -> Option<Duration> {
        self.unsynced_since.map(|since| self.sync_interval.saturating_sub(since.elapsed()))
    }

    fn store_next(&mut self) -> Result<Step, IngestError> {
        let mut batch = RawBatch::new(self.log.epoch(), self.cursor);
        let mut bytes = 0;
        let read = self.reader.next_batch(BATCH_BYTES_MAX, |record| {
            bytes += record.body.len();
            batch.push(&record);
        })?;
        batch.next = read.next;
        batch.skipped = read.skipped;
        if batch.is_empty() && read.next == read.from {
            return Ok(Step::Idle);
        }
        self.store.faults().reach(CrashPoint::AfterRead)?;
        if batch.is_ticks_only() && self.ticks_held + batch.len() <= TICKS_HELD_MAX {
            self.ticks_held += batch.len();
            return Ok(Step::Ticks);
        }
        let stored = self.store.write_batch(batch, !self.on_stored.is_empty())?;
        self.store.faults().reach(CrashPoint::AfterCommit)?;
        self.progress.stored(&stored);
        (self.cursor, self.ticks_held) = (stored.next, 0);
        self.unsynced_since.get_or_insert_with(Instant::now);
        Ok(Step::Stored { batch: stored, is_full: bytes > BATCH_BYTES_MAX / 4 })
    }

    fn recover(&mut self) -> Result<(), IngestError> {
        (self.cursor, self.reader) = Self::find(&self.log, &self.store, &self.clock)?;
        (self.ticks_held, self.astray, self.unsynced_since) = (0, false, None);
        Ok(())
    }

    /// Stores until told to stop. Errors are tried again for ever.
    pub fn run(&mut self, stop: &Stop) {
        let _ending = self.progress.condition.until_end();
        let mut delay = RETRY_DELAY_MIN;
        while !stop.is_set() {
            let began = Instant::now();
            let step = self.step();
            if step.is_ok() {
                self.progress.condition.works();
            }
            match step {
                Ok(Step::Stored { is_full: true, .. }) => delay = RETRY_DELAY_MIN,
                Ok(Step::Stored { .. } | Step::Ticks) => {
                    delay = RETRY_DELAY_MIN;
                    stop.wait(COMMIT_INTERVAL.saturating_sub(began.elapsed()));
                }
                Ok(Step::Idle) => {
                    self.reader.wait(self.sync_due_in().map_or(WAIT, |due| due.min(WAIT)));
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
        if let Err(error) = self.sync() {
            let why = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(error = why, "the store was not synced at the end; the log is read again");
        }
    }
}
