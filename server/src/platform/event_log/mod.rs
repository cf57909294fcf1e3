//! The event log between the gateway and the consumers: records on `muster-journal`.
//!
//! Who calls me: `gateway` appends and answers PUBACKs from [`EventLog::on_durable`]; `ingest` (store),
//! `rules` and the live stream read with a [`LogReader`] each. I call the journal and the clock.
//!
//! Promise: a record below [`EventLog::durable_next`] survives a power cut until every pinning reader
//! released it. A reader that holds half ([`Pin::HoldsHalf`]) keeps records too, up to half of the bytes that
//! are allowed on disk (on a full disk: that it has), and never makes an append answer `Full`. `received_at_us` never steps back within a log,
//! whatever the clock does, over restarts too.
//! Positions count from 1 and continue over restarts; together with [`EventLog::epoch`] (random, made with
//! the log) they name a record for ever. Append never blocks on the disk: it answers [`AppendError::Full`].
//!
//! Architecture invariant: the log keeps no consumer's cursor. A cursor commits beside its effects, in the
//! consumer's own database; [`EventLog::release`] only tells the log what it may delete.
//!
//! Limits: [`RECORD_BYTES_MAX`] a record; [`Options`] bounds the bytes on disk.

mod codec;
#[cfg(test)]
mod tests;

pub use codec::{CODEC_VERSION, CodecError, Kind, LogRecord, NewRecord, Origin, RECORD_BYTES_MAX};
pub use muster_journal::Pin;

use super::clock::SharedClock;
use muster_journal::{EpochPolicy, Fs, Journal, RealFs, Urgency, WhenFull};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of one segment file: small enough that releasing frees space soon.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of log on disk before appends answer `Full`, unless configured otherwise.
pub const LOG_BYTES_MAX_DEFAULT: u64 = 8 * 1024 * 1024 * 1024;
/// Between the starts of two syncs. At 1,000 messages a second each still has its own; at 10,000 four share one,
/// which halves the processor time of the whole gateway for a quarter of a millisecond of latency.
const SYNC_INTERVAL: Duration = Duration::from_micros(400);
/// An idle log gets a tick record when nothing was appended for this long, so that rules see time pass.
pub const TICK_AFTER_US: i64 = 1_000_000;

/// Why the log cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum EventLogError {
    /// The journal below failed.
    #[error("event log {step}")]
    Journal {
        /// What was tried.
        step: &'static str,
        /// The journal's reason.
        #[source]
        source: muster_journal::JournalError,
    },
}

/// Why a record was not appended.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum AppendError {
    /// The log's byte bound is reached, or the disk is full: hold the PUBACK back and try again later.
    #[error("the event log is full")]
    Full,
    /// More than [`RECORD_BYTES_MAX`].
    #[error("the record is too large for the event log")]
    TooLarge,
    /// The journal stopped after a disk fault; the process should end.
    #[error("the event log stopped after a disk fault")]
    Failed,
}

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Options {
    /// The log's own directory.
    pub dir: PathBuf,
    /// Bytes on disk before appends answer `Full`.
    pub bytes_max: u64,
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Free bytes of the disk that the log leaves to the databases: with less, appends answer `Full`.
    pub disk_reserve_bytes: u64,
}

impl Options {
    /// The defaults for a directory.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            bytes_max: LOG_BYTES_MAX_DEFAULT,
            segment_bytes: SEGMENT_BYTES,
            disk_reserve_bytes: 0,
        }
    }
}

/// A handle to the log; clones share it.
pub struct EventLog<F: Fs = RealFs> {
    shared: Arc<Shared<F>>,
}

impl<F: Fs> Clone for EventLog<F> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<F: Fs> {
    journal: Journal<F>,
    clock: SharedClock,
    /// `received_at_us` of the newest record. Held while appending, so stamps grow with positions.
    stamp_us: Mutex<i64>,
    bytes_max: u64,
    /// How far the store has read; 0 where there is none.
    stored_next: AtomicU64,
}

impl EventLog<RealFs> {
    /// Opens or creates the log on the real file system.
    ///
    /// # Errors
    /// The directory cannot be used, or the journal in it cannot be repaired.
    pub fn open(options: &Options, clock: SharedClock) -> Result<Self, EventLogError> {
        Self::open_on(RealFs, options, clock)
    }
}

impl<F: Fs> EventLog<F> {
    /// Opens or creates the log on a given file system.
    ///
    /// # Errors
    /// As [`EventLog::open`].
    pub fn open_on(fs: F, options: &Options, clock: SharedClock) -> Result<Self, EventLogError> {
        let options = muster_journal::Options {
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            bytes_max: options.bytes_max,
            disk_reserve_bytes: options.disk_reserve_bytes,
            record_bytes_max: RECORD_BYTES_MAX,
            sync_interval: SYNC_INTERVAL,
            ..muster_journal::Options::default()
        };
        Self::open_journal(fs, options, clock)
    }

    /// Opens the log with options of the journal's own, for trials; what makes it an event log is set here.
    ///
    /// # Errors
    /// As [`EventLog::open`].
    pub fn open_journal(
        fs: F,
        options: muster_journal::Options,
        clock: SharedClock,
    ) -> Result<Self, EventLogError> {
        let journal_clock = clock.clone();
        let options =
            muster_journal::Options { epoch: EpochPolicy::PerLog, when_full: WhenFull::Refuse, ..options };
        let bytes_max = options.bytes_max;
        let (journal, opened) = Journal::open(fs, options, move || journal_clock.now_us())
            .map_err(|source| EventLogError::Journal { step: "cannot be opened", source })?;
        let log = Self {
            shared: Arc::new(Shared {
                journal,
                clock,
                stamp_us: Mutex::new(i64::MIN),
                bytes_max,
                stored_next: AtomicU64::new(0),
            }),
        };
        log.restore_stamp(opened.first_seq, opened.next_seq)?;
        Ok(log)
    }

    /// Reads the newest record's stamp, so that a clock set back while the server was down is not believed.
    fn restore_stamp(&self, first: u64, next: u64) -> Result<(), EventLogError> {
        if next <= first {
            return Ok(());
        }
        let mut reader = self.reader("stamp", next - 1, Pin::Follows)?;
        let mut newest = i64::MIN;
        reader.next_batch(RECORD_BYTES_MAX + 1024, |record| newest = newest.max(record.received_at_us))?;
        self.stamp_at_least(newest);
        Ok(())
    }

    /// Raises the floor of `received_at_us`: a consumer that kept a newer stamp than the log (whose released
    /// records are deleted) tells it at start.
    pub fn stamp_at_least(&self, received_at_us: i64) {
        let mut stamp = self.stamp();
        *stamp = (*stamp).max(received_at_us);
    }

    fn stamp(&self) -> MutexGuard<'_, i64> {
        self.shared.stamp_us.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a record to the memory batch and returns its position; it is accepted once
    /// [`Self::durable_next`] is above it. Never blocks on the disk.
    ///
    /// # Errors
    /// Full, too large, or the journal stopped.
    pub fn append(&self, record: &NewRecord<'_>) -> Result<u64, AppendError> {
        let mut stamp = self.stamp();
        self.append_stamped(&mut stamp, record)
    }

    fn append_stamped(&self, stamp: &mut i64, record: &NewRecord<'_>) -> Result<u64, AppendError> {
        let bytes = record.encoded_len();
        if bytes > RECORD_BYTES_MAX {
            return Err(AppendError::TooLarge);
        }
        let received_at_us = self.shared.clock.now_us().max(*stamp);
        let class = record.kind.number();
        // Nobody is told when presence and ticks are on disk; a fleet that reconnects must not pay a sync for each.
        let urgency = match record.kind {
            Kind::Message | Kind::Rejected { .. } => Urgency::Now,
            Kind::Tick | Kind::Connected | Kind::Disconnected { .. } => Urgency::Soon,
        };
        let encode = |out: &mut Vec<u8>| record.encode(received_at_us, out);
        let position =
            self.shared.journal.append_with(class, bytes, urgency, encode).map_err(|error| match error {
                muster_journal::AppendError::Full { .. } => AppendError::Full,
                muster_journal::AppendError::TooLarge { .. } => AppendError::TooLarge,
                muster_journal::AppendError::Failed => AppendError::Failed,
            })?;
        *stamp = received_at_us;
        Ok(position)
    }

    /// Appends a tick when nothing was appended for [`TICK_AFTER_US`]; says whether it did.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn tick_if_idle(&self) -> Result<bool, AppendError> {
        let mut stamp = self.stamp();
        if *stamp != i64::MIN && self.shared.clock.now_us().saturating_sub(*stamp) < TICK_AFTER_US {
            return Ok(false);
        }
        self.append_stamped(&mut stamp, &NewRecord::tick()).map(|_| true)
    }

    /// All positions below are on disk.
    #[must_use]
    pub fn durable_next(&self) -> u64 {
        self.shared.journal.durable_next()
    }

    /// Adds a callback (at most 8) that is told each new [`Self::durable_next`], from the journal's writer
    /// thread: it must not block.
    pub fn on_durable(&self, callback: Box<dyn Fn(u64) + Send + Sync>) {
        self.shared.journal.on_durable(callback);
    }

    /// Blocks until the position is on disk; for tests and tools.
    ///
    /// # Errors
    /// The journal stopped before.
    pub fn wait_durable(&self, position: u64) -> Result<(), EventLogError> {
        let waited = self.shared.journal.wait_durable(position);
        waited.map_err(|source| EventLogError::Journal { step: "did not reach the disk", source })
    }

    /// Blocks until everything appended so far is on disk, and returns the next position.
    ///
    /// # Errors
    /// The journal stopped before.
    pub fn commit(&self) -> Result<u64, EventLogError> {
        let done = self.shared.journal.commit();
        done.map_err(|source| EventLogError::Journal { step: "did not reach the disk", source })
    }

    /// Flushes, fsyncs and gives the directory free; other handles stop working.
    ///
    /// # Errors
    /// What was appended last could not be made durable.
    pub fn close(&self) -> Result<(), EventLogError> {
        let closed = self.shared.journal.clone().close();
        closed.map_err(|source| EventLogError::Journal { step: "cannot be closed", source })
    }

    /// Random bits made with the log: another epoch means another log.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.journal.epoch()
    }

    /// A named reader from a position on. A pinning reader keeps the log until it releases, one that holds half
    /// up to that much of it; a following one may be overtaken by deletion at any time.
    ///
    /// # Errors
    /// The journal cannot be read there.
    pub fn reader(&self, name: &str, from: u64, pin: Pin) -> Result<LogReader<F>, EventLogError> {
        let reader = self.shared.journal.reader(name, from, pin);
        let reader = reader.map_err(|source| EventLogError::Journal { step: "cannot be read", source })?;
        Ok(LogReader { reader })
    }

    /// A pinning or holding reader's word that its effects below `upto` are durable elsewhere.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn release(&self, name: &str, upto: u64) -> Result<(), EventLogError> {
        let released = self.shared.journal.release(name, upto);
        released.map_err(|source| EventLogError::Journal { step: "cannot be released", source })
    }

    /// The store's word that all below can be seen in it, durable or not.
    pub fn note_stored(&self, next: u64) {
        self.shared.stored_next.store(next, Ordering::Relaxed);
    }

    /// What [`Self::note_stored`] was told; none where no store reads this log.
    #[must_use]
    pub fn stored_next(&self) -> Option<u64> {
        Some(self.shared.stored_next.load(Ordering::Relaxed)).filter(|next| *next > 0)
    }

    /// A pinning or holding reader's release mark; none where there is no such reader.
    #[must_use]
    pub fn released(&self, name: &str) -> Option<u64> {
        self.shared.journal.released(name)
    }

    /// Bytes on disk before appends answer `Full`.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.shared.bytes_max
    }

    /// The oldest position held.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.shared.journal.first_seq()
    }

    /// The journal's counters: bytes on disk, first and next position.
    #[must_use]
    pub fn stats(&self) -> muster_journal::Stats {
        self.shared.journal.stats()
    }
}

/// Reads records in order of position, in batches of bounded bytes.
pub struct LogReader<F: Fs = RealFs> {
    reader: muster_journal::Reader<F>,
}

/// What one call of [`LogReader::next_batch`] read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// Where the batch began.
    pub from: u64,
    /// Where the next batch begins.
    pub next: u64,
    /// Records given to the callback.
    pub records: u64,
    /// Positions in `from..next` that hold no readable record: damaged, deleted, or of a newer codec.
    pub skipped: Vec<Range<u64>>,
}

impl<F: Fs> LogReader<F> {
    /// Reads durable records until `bytes_max` is reached or none is left; never waits.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn next_batch(
        &mut self,
        bytes_max: usize,
        mut each: impl FnMut(LogRecord<'_>),
    ) -> Result<LogBatch, EventLogError> {
        let mut records = 0;
        let mut unreadable: Vec<Range<u64>> = Vec::new();
        let batch = self
            .reader
            .next_batch(bytes_max, |record| match LogRecord::decode(record.seq, record.payload) {
                Ok(decoded) => {
                    records += 1_u64;
                    each(decoded);
                }
                Err(error) => {
                    tracing::error!(position = record.seq, %error, "log record cannot be decoded");
                    unreadable.push(record.seq..record.seq + 1);
                }
            })
            .map_err(|source| EventLogError::Journal { step: "cannot be read", source })?;
        unreadable.extend(batch.skipped.into_iter().map(|range| range.first..range.next));
        unreadable.sort_by_key(|range| range.start);
        Ok(LogBatch { from: batch.from, next: batch.next, records, skipped: unreadable })
    }

    /// Waits until a record can be read, or the time is over; says whether one can.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.reader.wait(timeout)
    }

    /// Continues at another position.
    pub fn seek(&mut self, position: u64) {
        self.reader.seek(position);
    }
}
