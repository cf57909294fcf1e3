//! The rules' reader of the event log: one thread, its own cursor, never in the way of ingest.
//!
//! `app.rs` calls [`spawn`]. The log keeps what the rules did not commit yet, up to half of its size limit; rules that
//! lag by more are moved forward, and a row in `rule_gaps` says from where to where. So ingest never finds the log full
//! because of the rules. A database that fails is tried again each [`RETRY`]; nothing is read meanwhile, so memory
//! stays bounded.

mod worker;

pub use worker::{
    CHECKPOINT_EFFECTS, CHECKPOINT_EVERY, CHECKPOINT_EVERY_ALERT, CHECKPOINT_RECORDS, Parts, WARM_RECORDS,
    Worker,
};

use crate::platform::condition::Condition;
use crate::platform::db::DbError;
use crate::platform::event_log::{EventLog, EventLogError, LogReader, Pin};
use crate::platform::http_kit::chain;
use crate::platform::threads::{Stop, Threads};
use muster_journal::Fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The reader's name.
pub const READER: &str = "rules";
/// Bytes read at once.
const BATCH_BYTES: usize = 1024 * 1024;
/// How long an empty log is waited for: bounds how late a changed rule is noticed.
const WAIT: Duration = Duration::from_millis(200);
/// Between two tries of a failed commit or read.
const RETRY: Duration = Duration::from_secs(1);

/// Why the consumer could not start.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The registry failed.
    #[error("rules cannot read their state")]
    Db(#[from] DbError),
    /// The log failed.
    #[error("rules cannot read the event log")]
    Log(#[from] EventLogError),
    /// The thread cannot be started.
    #[error("cannot start the rules' thread")]
    Thread(#[from] std::io::Error),
}

/// Counters of the consumer, for metrics and readiness.
#[derive(Debug, Default)]
pub struct Progress {
    /// Working, failing, or ended.
    pub condition: Condition,
    position: AtomicU64,
    records: AtomicU64,
    evaluations: AtomicU64,
    errors: AtomicU64,
    duplicates: AtomicU64,
    skipped: AtomicU64,
    quarantined: AtomicU64,
    instances_refused: AtomicU64,
    commits: AtomicU64,
    failures: AtomicU64,
}

/// A reading of [`Progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressNow {
    /// The next position to read.
    pub position: u64,
    /// Records seen.
    pub records: u64,
    /// Conditions evaluated.
    pub evaluations: u64,
    /// Evaluations that failed.
    pub errors: u64,
    /// Copies of records passed over.
    pub duplicates: u64,
    /// Log positions that could not be read.
    pub skipped: u64,
    /// Rules in quarantine.
    pub quarantined: u64,
    /// Subjects not tracked since the bound was reached.
    pub instances_refused: u64,
    /// Commits.
    pub commits: u64,
    /// Commits and reads that failed and were tried again.
    pub failures: u64,
}

impl Progress {
    /// The counters now.
    #[must_use]
    pub fn now(&self) -> ProgressNow {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProgressNow {
            position: get(&self.position),
            records: get(&self.records),
            evaluations: get(&self.evaluations),
            errors: get(&self.errors),
            duplicates: get(&self.duplicates),
            skipped: get(&self.skipped),
            quarantined: get(&self.quarantined),
            instances_refused: get(&self.instances_refused),
            commits: get(&self.commits),
            failures: get(&self.failures),
        }
    }

    fn note(&self, worker: &Worker) {
        let stats = worker.engine().stats();
        for (counter, value) in [
            (&self.position, worker.position()),
            (&self.records, stats.records),
            (&self.evaluations, stats.evaluations),
            (&self.errors, stats.errors),
            (&self.duplicates, stats.duplicates),
            (&self.skipped, worker.skipped_positions()),
            (&self.quarantined, stats.quarantined),
            (&self.instances_refused, stats.instances_refused),
        ] {
            counter.store(value, Ordering::Relaxed);
        }
    }
}

/// The running consumer; dropping it stops the thread after a last commit.
pub struct Consumer {
    threads: Threads,
    progress: Arc<Progress>,
}

impl Consumer {
    /// Its counters.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Stops after a last commit.
    pub fn stop(mut self) {
        self.threads.stop();
    }
}

/// How often what the rules know of devices changed; the registry counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changes of labels: selectors are resolved again.
    pub labels: u64,
    /// Deletions of devices: they are forgotten.
    pub deletions: u64,
}

/// Starts the consumer. Blocks while it reads its state: call it off the async runtime.
///
/// # Errors
/// State or log cannot be read.
pub fn spawn<F: Fs>(
    log: EventLog<F>,
    parts: Parts,
    changes: impl Fn() -> Changes + Send + 'static,
) -> Result<Consumer, ConsumerError> {
    let seen = changes();
    let mut worker = Worker::open(parts, log.epoch(), log.first()..log.durable_next())?;
    warm(&log, &mut worker)?;
    let reader = log.reader(READER, worker.position(), Pin::HoldsHalf)?;
    log.release(READER, worker.position())?;
    let (mut threads, progress) = (Threads::default(), Arc::new(Progress::default()));
    let run = Run { log, reader, worker, progress: progress.clone() };
    threads.background("rules", move |stop| run.run(seen, changes, stop))?;
    Ok(Consumer { threads, progress })
}

/// Reads what came just before the cursor, so that copies of it are known.
fn warm<F: Fs>(log: &EventLog<F>, worker: &mut Worker) -> Result<(), EventLogError> {
    let upto = worker.position();
    let from = upto.saturating_sub(WARM_RECORDS).max(log.first());
    let mut reader = log.reader("rules-warm", from, Pin::Follows)?;
    let mut next = from;
    while next < upto {
        let batch = reader.next_batch(BATCH_BYTES, |record| worker.warm(&record))?;
        if batch.next == next {
            break;
        }
        next = batch.next;
    }
    Ok(())
}

struct Run<F: Fs> {
    log: EventLog<F>,
    reader: LogReader<F>,
    worker: Worker,
    progress: Arc<Progress>,
}

impl<F: Fs> Run<F> {
    fn run(mut self, mut seen: Changes, changes: impl Fn() -> Changes, stop: &Stop) {
        let _ending = self.progress.condition.until_end();
        while !stop.is_set() {
            let now = changes();
            if now.labels != seen.labels {
                self.worker.forget_labels();
            }
            if now.deletions != seen.deletions {
                self.worker.forget_devices();
            }
            seen = now;
            match self.turn() {
                Ok(()) => self.progress.condition.works(),
                Err(error) => {
                    let why = chain(&error);
                    self.progress.failures.fetch_add(1, Ordering::Relaxed);
                    self.progress.condition.fails(why.clone());
                    tracing::warn!(error = why, "rules are held up, will retry");
                    stop.wait(RETRY);
                }
            }
        }
        if let Err(error) = self.checkpoint() {
            tracing::warn!(error = %chain(&error), "rules could not commit at the end; the log is read again");
        }
    }

    fn turn(&mut self) -> Result<(), ConsumerError> {
        self.worker.reload_if_changed()?;
        self.worker.forget_if_asked()?;
        if self.worker.is_due() {
            self.checkpoint()?;
            self.progress.commits.fetch_add(1, Ordering::Relaxed);
        }
        let worker = &mut self.worker;
        let batch = self.reader.next_batch(BATCH_BYTES, |record| worker.observe(&record))?;
        batch.skipped.iter().for_each(|range| worker.skipped(range));
        self.progress.note(worker);
        if batch.next == batch.from {
            self.reader.wait(self.worker.due_in().map_or(WAIT, |due| due.min(WAIT)));
        }
        Ok(())
    }

    /// Commits, then lets the log go up to there.
    fn checkpoint(&mut self) -> Result<(), ConsumerError> {
        self.worker.checkpoint()?;
        self.log.release(READER, self.worker.position())?;
        Ok(())
    }
}
