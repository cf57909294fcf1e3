//! The one that writes: takes the batch, seals it, writes it in one call, syncs, moves the durable mark.
//!
//! Architecture invariant: only this file and `retain` create, write or remove segment files after opening.

use crate::codec::{self, RecordHeader, SegmentHeader};
use crate::control::{Control, ControlFile};
use crate::fs::{Fs, FsFile};
use crate::state::{Inner, Segment, State, block_bytes, lock, segment_name};
#[cfg(any(test, feature = "sim"))]
use crate::types::Sabotage;
use crate::types::{DropReason, FullOf, Options, Seq, WhenFull};
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What [`Stats::failed`](crate::Stats::failed) says after an orderly end.
pub(crate) const CLOSED: &str = "closed";
/// Segments that may fail to sync in a row before the journal stops.
pub(crate) const SYNC_FAILURES_MAX: u32 = 3;
/// How long a release mark or the durable mark may wait in memory before it is persisted.
pub(crate) const LAZY_PERSIST: Duration = Duration::from_secs(5);
/// How often ages are looked at.
pub(crate) const AGE_CHECK: Duration = Duration::from_secs(10);
/// A batch buffer larger than this is given back when batches are small again.
const BATCH_KEEP_BYTES: usize = 256 * 1024;
/// Room left for the headers of segments that a batch may begin.
const ROOM_SLACK_BYTES: u64 = 2 * 4096;

/// The segment that is written to.
struct Active<File> {
    file: File,
    /// Where the next batch goes: all before is durable.
    len: u64,
    /// Its directory entry is durable.
    named: bool,
    header: SegmentHeader,
}

/// Why a batch could not be made durable now.
pub(crate) enum Blocked {
    /// Nothing can be freed; try again when somebody frees space or drop records.
    Full(FullOf),
    /// The file failed: what it holds beyond the durable mark is void.
    Segment(io::Error),
    /// Over.
    Stopped(String),
}

pub(crate) struct Writer<F: Fs> {
    active: Option<Active<F::File>>,
    /// Taken from the batch, not durable yet.
    pending: Vec<u8>,
    control_file: ControlFile<F::File>,
    failures: u32,
    /// Keeps other processes out.
    lock_file: Option<F::File>,
    persisted_at_us: i64,
    aged_at_us: i64,
    recent_batch_bytes: usize,
}

impl<F: Fs> Writer<F> {
    pub(crate) fn new(control_file: ControlFile<F::File>, lock_file: F::File, now_us: i64) -> Self {
        Self {
            active: None,
            pending: Vec::new(),
            control_file,
            failures: 0,
            lock_file: Some(lock_file),
            persisted_at_us: now_us,
            aged_at_us: now_us,
            recent_batch_bytes: 0,
        }
    }

    /// Does everything that is to be done now.
    pub(crate) fn step(&mut self, inner: &Inner<F>) {
        if lock(&inner.state).failed.is_some() {
            return;
        }
        let outcome = self.work(inner);
        let stalled = match outcome {
            Ok(()) => None,
            Err(Blocked::Full(of)) => Some(of),
            Err(Blocked::Segment(error)) => return self.stop(inner, &error.to_string()),
            Err(Blocked::Stopped(why)) => return self.stop(inner, &why),
        };
        lock(&inner.batch).stalled = stalled;
        self.refresh_room(inner);
    }

    /// Tells appenders how much they may still bring.
    pub(crate) fn refresh_room(&self, inner: &Inner<F>) {
        let used = lock(&inner.state).disk_bytes() + self.pending.len() as u64 + ROOM_SLACK_BYTES;
        lock(&inner.batch).room = match inner.options.when_full {
            WhenFull::Refuse => inner.options.bytes_max.saturating_sub(used),
            WhenFull::DropOldest => u64::MAX,
        };
    }

    fn work(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        let now_us = (inner.now_us)();
        let mut outcome = self.remove_released(inner);
        if outcome.is_ok() && self.take(inner) {
            outcome = self.write_pending(inner);
        }
        if outcome.is_ok() && inner.options.age_max.is_some() && due(&mut self.aged_at_us, now_us, AGE_CHECK)
        {
            outcome = match self.expire(inner, now_us) {
                // Expiry waits until drop records are confirmed; appends need not.
                Err(Blocked::Full(FullOf::DropRecords)) => Ok(()),
                other => other,
            };
        }
        // Also where the batch is held up: a confirmation is what may set it free.
        let (wanted, lazy) = {
            let state = lock(&inner.state);
            (state.control_wanted > state.control_done, state.control_lazy)
        };
        if wanted || lazy && due(&mut self.persisted_at_us, now_us, inner.lazy_persist()) {
            self.persist(inner)?;
        }
        outcome
    }

    /// Takes the batch unless an earlier one still waits; false where there is nothing to write.
    fn take(&mut self, inner: &Inner<F>) -> bool {
        let mut batch = lock(&inner.batch);
        batch.errand = false;
        if self.pending.is_empty() {
            if self.pending.capacity() > BATCH_KEEP_BYTES && self.recent_batch_bytes < BATCH_KEEP_BYTES / 4 {
                self.pending = Vec::new();
            }
            std::mem::swap(&mut self.pending, &mut batch.buf);
            batch.urgent = false;
            batch.room = batch.room.saturating_sub(self.pending.len() as u64);
            self.recent_batch_bytes = (self.recent_batch_bytes * 7 / 8).max(self.pending.len());
        }
        !self.pending.is_empty()
    }

    fn write_pending(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        loop {
            let outcome = self.make_room(inner).and_then(|()| self.write_once(inner));
            let blocked = match outcome {
                Ok(()) => {
                    self.failures = 0;
                    self.pending.clear();
                    let next = lock(&inner.state).durable_next;
                    inner.publish_durable(next);
                    return Ok(());
                }
                Err(Blocked::Segment(error)) => match self.give_up_segment(inner, &error) {
                    Ok(()) => continue,
                    Err(blocked) => blocked,
                },
                Err(blocked) => blocked,
            };
            let frees = matches!(blocked, Blocked::Full(FullOf::Disk))
                && inner.options.when_full == WhenFull::DropOldest
                && self.drop_oldest(inner, DropReason::QUEUE_FULL)?;
            if !frees {
                return Err(blocked);
            }
        }
    }

    /// Writes and syncs the pending batch into the active segment and publishes it.
    fn write_once(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        let grown = self.active.as_ref().map_or(0, |active| active.len + self.pending.len() as u64);
        let aged = inner.options.age_max.is_some_and(|age_max| {
            let now_us = (inner.now_us)();
            let quarter_us = (age_max.as_micros() / 4) as i64;
            self.active.as_ref().is_some_and(|active| now_us - active.header.created_at_us > quarter_us)
        });
        if grown > inner.options.segment_bytes || aged {
            self.active = None;
        }
        if self.active.is_none() {
            self.active = Some(create_segment(inner)?);
        }
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        let mut segment = newest(&lock(&inner.state), &active.header);
        seal_batch(&mut self.pending, &active.header, active.len, &mut segment);
        if let Err(error) = active.file.write_all_at(&self.pending, active.len) {
            return Err(written_short(active, error));
        }
        // A fresh segment's header waits in the page cache for the same sync; its name takes another one.
        let (first, syncs) = if active.named { (active.len, 1) } else { (0, 2) };
        lock(&inner.state).written.note(first, segment.bytes, syncs);
        sync_file(&inner.options, &active.file).map_err(Blocked::Segment)?;
        if !active.named {
            sync_directory(inner).map_err(Blocked::Segment)?;
            active.named = true;
        }
        active.len = segment.bytes;
        self.publish(inner, segment);
        Ok(())
    }

    fn publish(&mut self, inner: &Inner<F>, segment: Segment) {
        let mut state = lock(&inner.state);
        state.durable_next = segment.next_seq;
        // Who is woken below may ask for the mark before the callbacks are told.
        inner.durable_next.store(segment.next_seq, Ordering::Release);
        match state.segments.back_mut() {
            Some(last) if last.id == segment.id => *last = segment,
            _ => state.segments.push_back(segment),
        }
        state.batches += 1;
        state.active = self.active_id();
        state.control_lazy = true;
        drop(state);
        inner.changed.notify_all();
    }

    /// A failed sync is not retried: the segment ends at its last durable byte, the batch goes to a fresh one.
    fn give_up_segment(&mut self, inner: &Inner<F>, error: &io::Error) -> Result<(), Blocked> {
        self.failures += 1;
        lock(&inner.state).sync_failures += 1;
        if let Some(active) = self.active.take() {
            // Best effort: a process that opens the directory after us must not take these bytes for accepted.
            // Should it fail, the next segment's first_seq still voids them.
            let _ = active.file.set_len(active.len);
            if active.len == codec::SEGMENT_HEADER_BYTES as u64 {
                let _ = inner.fs.remove(&inner.options.dir.join(segment_name(active.header.id)));
            }
        }
        // Delayed allocation finds out late that there is no space: that is no broken disk.
        if is_full(error) {
            self.failures = 0;
            return Err(Blocked::Full(FullOf::Disk));
        }
        if self.failures >= SYNC_FAILURES_MAX {
            return Err(Blocked::Stopped(format!("{} segments in a row failed: {error}", self.failures)));
        }
        Ok(())
    }

    /// Makes the control state durable.
    pub(crate) fn persist(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        let (control, wanted) = {
            let mut state = lock(&inner.state);
            state.control_lazy = false;
            (snapshot(&state, inner.epoch), state.control_wanted)
        };
        let mut tries = 0;
        let bytes = loop {
            let error = match self.control_file.save(&control, syncs_control(&inner.options)) {
                Ok(bytes) => break bytes,
                Err(error) => error,
            };
            tries += 1;
            lock(&inner.state).sync_failures += 1;
            if is_full(&error) {
                lock(&inner.state).control_lazy = true;
                return Err(Blocked::Full(FullOf::Disk));
            }
            if tries >= SYNC_FAILURES_MAX || error.kind() == io::ErrorKind::InvalidInput {
                return Err(Blocked::Stopped(format!("control state cannot be written: {error}")));
            }
        };
        let mut state = lock(&inner.state);
        state.written.note(0, bytes, 1);
        state.control_done = state.control_done.max(wanted);
        drop(state);
        inner.changed.notify_all();
        Ok(())
    }

    /// Seals the active segment, so that it can be removed like any other.
    pub(crate) fn seal_active(&mut self) {
        self.active = None;
    }

    pub(crate) fn active_id(&self) -> Option<u64> {
        self.active.as_ref().map(|active| active.header.id)
    }

    pub(crate) fn pending_bytes(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Persists the end of this opening and gives the directory free.
    pub(crate) fn finish(&mut self, inner: &Inner<F>) {
        lock(&inner.batch).stopped = true;
        // Twice: what was pending, then what waited behind it.
        self.step(inner);
        self.step(inner);
        let flushed = self.pending.is_empty() && lock(&inner.batch).buf.is_empty();
        {
            let mut state = lock(&inner.state);
            let (next, epoch) = (state.durable_next, inner.epoch);
            for opening in state.control.openings.iter_mut().filter(|opening| opening.epoch == epoch) {
                // Records that a full disk kept in memory were never accepted.
                opening.closed = true;
                opening.next = next;
            }
            state.control_wanted += 1;
        }
        if lock(&inner.state).failed.is_none() {
            match self.persist(inner) {
                Ok(()) if flushed => self.stop(inner, CLOSED),
                Ok(()) => self.stop(inner, "closed while the disk was full"),
                Err(_) => self.stop(inner, "the control state could not be written at the end"),
            }
        }
        self.active = None;
        self.lock_file = None;
    }

    fn stop(&mut self, inner: &Inner<F>, why: &str) {
        lock(&inner.batch).stopped = true;
        let mut state = lock(&inner.state);
        state.failed.get_or_insert_with(|| why.to_owned());
        drop(state);
        inner.changed.notify_all();
    }
}

/// The control state as it is to be on the disk.
pub(crate) fn snapshot(state: &State, epoch: u64) -> Control {
    let mut control = state.control.clone();
    control.durable_next = state.durable_next;
    for opening in control.openings.iter_mut().filter(|opening| opening.epoch == epoch) {
        opening.next = opening.next.max(state.durable_next);
    }
    control
}

fn due(last_us: &mut i64, now_us: i64, every: Duration) -> bool {
    // A clock that was set back counts as due, too.
    let due = now_us.abs_diff(*last_us) >= every.as_micros() as u64;
    if due {
        *last_us = now_us;
    }
    due
}

fn create_segment<F: Fs>(inner: &Inner<F>) -> Result<Active<F::File>, Blocked> {
    let header = {
        let mut state = lock(&inner.state);
        let id = state.control.next_segment_id;
        state.control.next_segment_id += 1;
        SegmentHeader {
            id,
            epoch: inner.epoch,
            first_seq: state.durable_next,
            created_at_us: (inner.now_us)(),
        }
    };
    let path = inner.options.dir.join(segment_name(header.id));
    let made = inner.fs.create(&path).and_then(|file| {
        file.write_all_at(&header.encode(), 0)?;
        Ok(file)
    });
    match made {
        Ok(file) => Ok(Active { file, len: codec::SEGMENT_HEADER_BYTES as u64, named: false, header }),
        Err(error) => {
            let _ = inner.fs.remove(&path);
            Err(full_or_failed(error))
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn full_or_failed(error: io::Error) -> Blocked {
    if is_full(&error) { Blocked::Full(FullOf::Disk) } else { Blocked::Segment(error) }
}

/// A write that found no space leaves the file usable if what it wrote can be cut off again.
fn written_short<File: FsFile>(active: &Active<File>, error: io::Error) -> Blocked {
    let blocked = full_or_failed(error);
    match (&blocked, active.file.set_len(active.len)) {
        (Blocked::Full(_), Err(error)) => Blocked::Segment(error),
        _ => blocked,
    }
}

/// The active segment as it will be when its next batch is durable, before that batch.
fn newest(state: &State, header: &SegmentHeader) -> Segment {
    match state.segments.back() {
        Some(last) if last.id == header.id => last.clone(),
        _ => Segment::new(*header),
    }
}

/// Fills in every record's lag and checksum, and takes notice of the records in `segment`.
fn seal_batch(batch: &mut [u8], header: &SegmentHeader, offset: u64, segment: &mut Segment) {
    let salt = header.salt();
    let mut at = 0;
    let mut first: Option<Seq> = None;
    while let Some(record) = RecordHeader::get(&batch[at..]) {
        let first = *first.get_or_insert(record.seq);
        debug_assert_eq!(record.seq, segment.next_seq, "a batch continues its segment");
        codec::seal(&mut batch[at..at + record.record_bytes()], salt, (record.seq - first) as u32);
        segment.note(&record, offset + at as u64);
        segment.next_seq = record.seq + 1;
        at += record.record_bytes();
    }
    assert_eq!(at, batch.len(), "a batch is made of whole records");
    segment.bytes = offset + at as u64;
}

#[cfg(any(test, feature = "sim"))]
fn sync_file<File: FsFile>(options: &Options, file: &File) -> io::Result<()> {
    match options.sabotage {
        Sabotage::SkipFdatasync => Ok(()),
        Sabotage::RetryFdatasync => file.sync_data().or_else(|_| file.sync_data()),
        Sabotage::FailFdatasync(faults) if faults.take() => Err(io::Error::other("simulated sync failure")),
        _ => file.sync_data(),
    }
}

#[cfg(not(any(test, feature = "sim")))]
fn sync_file<File: FsFile>(_options: &Options, file: &File) -> io::Result<()> {
    file.sync_data()
}

#[cfg(any(test, feature = "sim"))]
fn sync_directory<F: Fs>(inner: &Inner<F>) -> io::Result<()> {
    if inner.options.sabotage == Sabotage::SkipDirSync {
        Ok(())
    } else {
        inner.fs.sync_dir(&inner.options.dir)
    }
}

#[cfg(not(any(test, feature = "sim")))]
fn sync_directory<F: Fs>(inner: &Inner<F>) -> io::Result<()> {
    inner.fs.sync_dir(&inner.options.dir)
}

#[cfg(any(test, feature = "sim"))]
pub(crate) fn syncs_control(options: &Options) -> bool {
    options.sabotage != Sabotage::SkipControlSync
}

#[cfg(not(any(test, feature = "sim")))]
pub(crate) fn syncs_control(_options: &Options) -> bool {
    true
}

/// What a batch of these bytes takes on the disk at most.
pub(crate) fn batch_blocks(bytes: u64) -> u64 {
    block_bytes(bytes + codec::SEGMENT_HEADER_BYTES as u64)
}
