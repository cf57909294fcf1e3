//! The durable queue: one journal per class, bounded by bytes and age.
//!
//! Pipelines append, the uplink reads, releases and reports. Cast: a *class* is telemetry or event; an
//! *opening* is one run of the agent with the journal, its epoch is the wire's `queue_id`.
//!
//! Promise: what [`Queue::wait_accepted`] returned for is on the disk (fdatasync) and will be sent or listed
//! as dropped with a reason. When full: the oldest records of that class go, each range with a durable drop
//! record; the classes have bounds of their own, so telemetry never pushes an event out. On a full disk or
//! a batch that waits for it, [`Queue::append`] answers `Full` and nothing is accepted. The journal's write
//! lock keeps a second agent out of the directory. With `sync_interval_ms` telemetry gathers in memory that long before
//! it is accepted; events never do.

mod history;
mod inspect;
mod record;
mod report;
mod watch;
mod wear;

pub use inspect::{ClassInspection, DroppedRange, Inspection, OpeningRange, inspect};
pub use muster_journal::{AppendError, Seq};
pub use record::Body;
pub use report::Report;
pub use watch::QueueWatch;

use crate::clock::SharedClock;
use crate::config;
use crate::supervisor::Stop;
use history::History;
use muster_journal::{
    DropRecord, EpochPolicy, Fs, Journal, JournalError, Options, Pin, Reader, RealFs, Urgency, WhenFull,
};
use muster_wire::{DropReason, QueueId, UpClass};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes that wait in memory for the disk, per class and batch.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// The largest record: an envelope's body with its head.
pub const RECORD_BYTES_MAX: usize = muster_wire::TELEMETRY_BYTES_MAX + record::HEAD_BYTES;
/// The reader whose release mark frees segments.
const UPLINK_READER: &str = "uplink";
/// The reader of the live lane.
const LIVE_READER: &str = "uplink-live";
/// The first wait when the queue is full.
const FULL_WAIT_MIN: Duration = Duration::from_millis(1);
/// The longest wait when the queue is full.
const FULL_WAIT_MAX: Duration = Duration::from_millis(250);

/// A class of the durable queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QueueClass {
    /// Readings.
    Telemetry,
    /// Inference results.
    Event,
}

impl QueueClass {
    /// Both, in the order of [`Self::index`].
    pub const ALL: [Self; 2] = [Self::Telemetry, Self::Event];

    /// Its place in arrays.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Telemetry => 0,
            Self::Event => 1,
        }
    }

    /// The wire's class.
    #[must_use]
    pub fn up(self) -> UpClass {
        match self {
            Self::Telemetry => UpClass::Telemetry,
            Self::Event => UpClass::Event,
        }
    }
}

/// Why the queue cannot work.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The journal of a class cannot be opened, read or written.
    #[error("queue class {class}")]
    Journal {
        /// The class.
        class: &'static str,
        /// Why.
        #[source]
        source: JournalError,
    },
    /// The record was refused for good.
    #[error("queue refused a record")]
    Append(#[from] AppendError),
    /// The list of past openings cannot be kept.
    #[error("cannot keep the queue's history {}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent stops before the record could be taken.
    #[error("agent stops")]
    Stopped,
}

/// How the two journals are opened.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Options per class, telemetry first; the directory is set by [`Queue::open`].
    pub classes: [Options; 2],
    /// How soon a record of a class is written.
    pub urgency: [Urgency; 2],
}

impl Bounds {
    /// The bounds that the configuration gives.
    #[must_use]
    pub fn from_config(queue: &config::Queue) -> Self {
        let options = |bytes_max, age_s| Options {
            epoch: EpochPolicy::PerOpen,
            segment_bytes: queue.segment_bytes,
            bytes_max,
            age_max: Some(Duration::from_secs(age_s)),
            record_bytes_max: RECORD_BYTES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            when_full: WhenFull::DropOldest,
            ..Options::default()
        };
        let event = options(queue.event_bytes_max, queue.event_age_s_max);
        let mut telemetry = options(queue.telemetry_bytes_max, queue.telemetry_age_s_max);
        let mut urgency = [Urgency::Now; 2];
        if queue.sync_interval_ms > 0 {
            telemetry.linger = Duration::from_millis(queue.sync_interval_ms.into());
            urgency[QueueClass::Telemetry.index()] = Urgency::Soon;
        }
        Self { classes: [telemetry, event], urgency }
    }
}

/// The queue; a handle that is cheap to clone.
pub struct Queue<F: Fs = RealFs> {
    journals: [Journal<F>; 2],
    urgency: [Urgency; 2],
    wake: Arc<Notify>,
    history: Option<Arc<Mutex<History>>>,
}

impl<F: Fs> Clone for Queue<F> {
    fn clone(&self) -> Self {
        let (wake, history) = (Arc::clone(&self.wake), self.history.clone());
        Self { journals: self.journals.clone(), urgency: self.urgency, wake, history }
    }
}

fn class_error(class: QueueClass) -> impl FnOnce(JournalError) -> QueueError {
    move |source| QueueError::Journal { class: class.up().as_str(), source }
}

impl Queue<RealFs> {
    /// Opens the queue of an agent for writing; each opening draws a new `queue_id`.
    ///
    /// # Errors
    /// Another agent has it open, or the disk refuses.
    pub fn open_dir(dir: &Path, bounds: Bounds, clock: SharedClock) -> Result<Self, QueueError> {
        let mut queue = Self::open(RealFs, dir, bounds, clock)?;
        queue.history = Some(Arc::new(Mutex::new(History::open(dir)?)));
        Ok(queue)
    }
}

impl<F: Fs> Queue<F> {
    /// Opens the queue on any file system, without a history of past openings.
    ///
    /// # Errors
    /// As [`Self::open_dir`].
    pub fn open(fs: F, dir: &Path, bounds: Bounds, clock: SharedClock) -> Result<Self, QueueError> {
        let wake = Arc::new(Notify::new());
        let [telemetry, event] = bounds.classes;
        let open = |class: QueueClass, options: Options| -> Result<Journal<F>, QueueError> {
            let clock = Arc::clone(&clock);
            let options = Options { dir: dir.join(class.up().as_str()), ..options };
            let (journal, opened) =
                Journal::open(fs.clone(), options, move || clock.now_us()).map_err(class_error(class))?;
            let queue_id = QueueId(opened.epoch);
            let (first, next) = (opened.first_seq, opened.next_seq);
            tracing::info!(class = class.up().as_str(), %queue_id, first, next, "queue opened");
            if !opened.corrupt.is_empty() || opened.control_lost {
                tracing::error!(
                    ranges = opened.corrupt.len(),
                    "queue was damaged, the ranges are listed as dropped"
                );
            }
            // Registered before the first record, so that nothing is freed that it has not seen.
            journal.reader(UPLINK_READER, 0, Pin::Pins).map_err(class_error(class))?;
            let wake = Arc::clone(&wake);
            journal.on_durable(Box::new(move |_| wake.notify_one()));
            Ok(journal)
        };
        let journals = [open(QueueClass::Telemetry, telemetry)?, open(QueueClass::Event, event)?];
        Ok(Self { journals, urgency: bounds.urgency, wake, history: None })
    }

    fn journal(&self, class: QueueClass) -> &Journal<F> {
        &self.journals[class.index()]
    }

    /// The `queue_id` of this opening.
    #[must_use]
    pub fn queue_id(&self, class: QueueClass) -> QueueId {
        QueueId(self.journal(class).epoch())
    }

    /// Appends a body into the batch that the journal's writer makes durable; never waits for the disk.
    ///
    /// # Errors
    /// `Full`: try again later. `TooLarge`: never. `Failed`: the journal stopped.
    pub fn append(&self, class: QueueClass, measured_at_us: i64, body: &[u8]) -> Result<Seq, AppendError> {
        let bytes = record::HEAD_BYTES + body.len();
        let urgency = self.urgency[class.index()];
        self.journal(class)
            .append_with(class.up().number(), bytes, urgency, |out| record::write(out, measured_at_us, body))
    }

    /// Appends, waiting while the queue is full; for threads that may block.
    ///
    /// # Errors
    /// `Stopped` once the agent stops; else as [`Self::append`] without `Full`.
    pub fn append_waiting(
        &self,
        class: QueueClass,
        measured_at_us: i64,
        body: &[u8],
        stop: &Stop,
        on_wait: impl Fn(),
    ) -> Result<Seq, QueueError> {
        let mut wait = FULL_WAIT_MIN;
        loop {
            match self.append(class, measured_at_us, body) {
                Err(AppendError::Full { .. }) if stop.is_up() => return Err(QueueError::Stopped),
                Err(AppendError::Full { .. }) => {
                    on_wait();
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(FULL_WAIT_MAX);
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits until the record is accepted: on the disk. What gathered in memory is written for it.
    ///
    /// # Errors
    /// The journal stopped before that.
    pub fn wait_accepted(&self, class: QueueClass, seq: Seq) -> Result<(), QueueError> {
        self.journal(class).wait_durable(seq).map_err(class_error(class))
    }

    /// All below is accepted, per class.
    #[must_use]
    pub fn accepted_next(&self) -> [Seq; 2] {
        QueueClass::ALL.map(|class| self.journal(class).durable_next())
    }

    /// The number that the next record of a class gets.
    #[must_use]
    pub fn next_seq(&self, class: QueueClass) -> Seq {
        self.journal(class).stats().next_seq
    }

    /// All below was released in this or an earlier opening, per class.
    #[must_use]
    pub fn released(&self) -> [Seq; 2] {
        QueueClass::ALL.map(|class| self.mark(class))
    }

    fn mark(&self, class: QueueClass) -> Seq {
        let journal = self.journal(class);
        journal.released(UPLINK_READER).unwrap_or_else(|| journal.first_seq())
    }

    /// Why a journal stopped, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        QueueClass::ALL.into_iter().find_map(|class| self.journal(class).stats().failed)
    }

    /// Woken whenever records became durable.
    #[must_use]
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// The reader whose records stay until [`Self::release`].
    ///
    /// # Errors
    /// The journal stopped.
    pub fn reader(&self, class: QueueClass, from: Seq) -> Result<Reader<F>, QueueError> {
        self.journal(class).reader(UPLINK_READER, from, Pin::Pins).map_err(class_error(class))
    }

    /// A second reader that starts at the newest records.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn live_reader(&self, class: QueueClass, from: Seq) -> Result<Reader<F>, QueueError> {
        self.journal(class).reader(LIVE_READER, from, Pin::Follows).map_err(class_error(class))
    }

    /// All below may go.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn release(&self, class: QueueClass, upto: Seq) -> Result<(), QueueError> {
        self.journal(class).release(UPLINK_READER, upto).map_err(class_error(class))
    }

    /// Notes durably that a record will never be stored.
    ///
    /// # Errors
    /// The journal stopped, or too many drops wait for the server.
    pub fn record_drop(
        &self,
        class: QueueClass,
        queue_id: QueueId,
        seq: Seq,
        reason: DropReason,
        bytes: u64,
    ) -> Result<(), QueueError> {
        let drop = DropRecord {
            epoch: queue_id.0,
            first: seq,
            last: seq,
            class: class.up().number(),
            reason: muster_journal::DropReason(report::reason_number(reason)),
            bytes,
        };
        self.journal(class).record_drop(drop).map_err(class_error(class))
    }

    /// Makes what was appended durable and stops the writers.
    ///
    /// # Errors
    /// The disk refused.
    pub fn close(self) -> Result<(), QueueError> {
        let [telemetry, event] = self.journals;
        telemetry.close().map_err(class_error(QueueClass::Telemetry))?;
        event.close().map_err(class_error(QueueClass::Event))
    }
}

#[cfg(test)]
mod tests;
