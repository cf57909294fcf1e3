//! The meter's reader of the event log, `usage`: one thread with a place of its own that commits with what it counted.
//!
//! `app` starts it before the gateway listens: what the log holds of today beyond the last commit counts against today's
//! quotas before the first message is admitted (of a log that lags by more than [`CATCH_UP_RECORDS`], the rest within
//! the next seconds). It pins the log: a record is deleted only when it was counted (promise, point 5).
//! A registry that fails is tried again each [`RETRY`]; nothing is read meanwhile, so memory stays bounded, and a log that
//! fills for it withholds PUBACKs and loses nothing.

pub(in crate::usage) mod worker;

pub use worker::{COMMIT_EVERY, COMMIT_IDLE_EVERY, COMMIT_RECORDS, Parts, SAMPLE_EVERY, Worker};

use crate::platform::condition::Condition;
use crate::platform::db::DbError;
use crate::platform::event_log::{EventLog, EventLogError, LogReader, Pin};
use crate::platform::http_kit::chain;
use crate::platform::threads::{Stop, Threads};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The reader's name.
pub const READER: &str = "usage";
/// Records that are counted before the gateway starts: a second or two.
pub const CATCH_UP_RECORDS: u64 = 1_000_000;
/// Bytes read at once.
const BATCH_BYTES: usize = 1024 * 1024;
/// How long an empty log is waited for.
const WAIT: Duration = Duration::from_millis(200);
/// Between two tries of a failed commit or read.
const RETRY: Duration = Duration::from_secs(1);

/// Why the meter cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The registry failed.
    #[error("usage cannot be stored or read")]
    Db(#[from] DbError),
    /// The log failed.
    #[error("usage cannot read the event log")]
    Log(#[from] EventLogError),
    /// Another process moved the reader's place: what this one counted is counted there.
    #[error("another process counts usage for this registry")]
    Moved,
    /// The thread cannot be started.
    #[error("cannot start the meter's thread")]
    Thread(#[from] std::io::Error),
}

/// What the reader did so far.
#[derive(Debug, Default)]
pub struct Progress {
    /// Working, failing, or ended.
    pub condition: Condition,
    /// The next position to count.
    pub position: AtomicU64,
    /// Records counted since the start.
    pub records: AtomicU64,
    /// Commits since the start.
    pub commits: AtomicU64,
    /// Steps that failed and were tried again.
    pub failures: AtomicU64,
    /// Log positions that were never counted, since the start.
    pub skipped: AtomicU64,
    /// Gaps noted since the start: ranges of positions, and rests of other logs.
    pub gaps: AtomicU64,
    /// Soft and hard limits reached since the start.
    pub noticed: [AtomicU64; 2],
}

/// The running reader; dropping it stops the thread after a last commit.
pub struct Consumer {
    threads: Threads,
    progress: Arc<Progress>,
}

impl Consumer {
    /// Its counters and condition.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Stops after a last commit. Blocks.
    pub fn stop(mut self) {
        self.threads.stop();
    }
}

/// Starts the reader. Blocks while it reads its place and catches up: call it off the async runtime, before the gateway.
///
/// # Errors
/// Its place or the log cannot be read.
pub fn spawn(log: EventLog, parts: Parts) -> Result<Consumer, MeterError> {
    let worker = Worker::open(parts, log.epoch(), log.first()..log.durable_next())?;
    let reader = log.reader(READER, worker.position(), Pin::Pins)?;
    log.release(READER, worker.position())?;
    let (mut threads, progress) = (Threads::default(), worker.progress());
    let mut run = Run { log, reader, worker };
    let until = run.log.durable_next().min(run.worker.position() + CATCH_UP_RECORDS);
    while run.worker.position() < until && run.read()? {}
    threads.background("usage", move |stop| run.run(stop))?;
    Ok(Consumer { threads, progress })
}

struct Run {
    log: EventLog,
    reader: LogReader,
    worker: Worker,
}

impl Run {
    fn run(mut self, stop: &Stop) {
        let progress = self.worker.progress();
        let _ending = progress.condition.until_end();
        while !stop.is_set() {
            match self.turn() {
                Ok(()) => progress.condition.works(),
                Err(error) => {
                    let why = chain(&error);
                    progress.failures.fetch_add(1, Ordering::Relaxed);
                    progress.condition.fails(why.clone());
                    tracing::warn!(error = why, "usage is not counted now, will retry");
                    stop.wait(RETRY);
                }
            }
        }
        if let Err(error) = self.commit() {
            tracing::warn!(error = %chain(&error), "usage was not committed at the end; the log is read again");
        }
    }

    fn turn(&mut self) -> Result<(), MeterError> {
        if self.worker.is_due() {
            self.commit()?;
        }
        if !self.read()? {
            self.reader.wait(WAIT);
        }
        Ok(())
    }

    /// Counts what the log has, up to a batch; says whether there was anything.
    fn read(&mut self) -> Result<bool, MeterError> {
        let worker = &mut self.worker;
        let batch = self.reader.next_batch(BATCH_BYTES, |record| worker.observe(&record))?;
        batch.skipped.iter().for_each(|range| worker.skipped(range, "the log cannot be read there"));
        Ok(batch.next != batch.from)
    }

    /// Commits, then lets the log go up to there.
    fn commit(&mut self) -> Result<(), MeterError> {
        self.worker.commit()?;
        self.log.release(READER, self.worker.committed())?;
        Ok(())
    }
}
