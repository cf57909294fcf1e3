//! What appenders, readers and the writer share.
//!
//! Lock order: `writer`, then `state`, then `batch`. No lock but `writer` is held during I/O, and nobody but
//! the writer takes `writer` (in [`WriterMode::Caller`] the caller is the writer).

use crate::codec::{RecordHeader, SegmentHeader};
use crate::control::Control;
use crate::fs::Fs;
use crate::types::{FullOf, JournalError, Options, Seq, SeqRange, WriterMode, Written};
use crate::writer::{LAZY_PERSIST, Writer};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Space in bytes that a file takes at least; sizes are counted in such blocks.
const BLOCK_BYTES: u64 = 4096;
/// Distance of two entries of a segment's sparse index.
const INDEX_STEP_BYTES: u64 = 256 * 1024;

impl Written {
    /// Counts bytes that go to `first..end` of a file before `syncs` syncs.
    pub(crate) fn note(&mut self, first: u64, end: u64, syncs: u64) {
        self.bytes += end - first;
        self.block_bytes += (end.div_ceil(BLOCK_BYTES) - first / BLOCK_BYTES) * BLOCK_BYTES;
        self.syncs += syncs;
    }
}

/// Counts bytes in whole blocks.
pub(crate) fn block_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES).max(1) * BLOCK_BYTES
}

pub(crate) fn segment_name(id: u64) -> String {
    format!("{id:016x}.seg")
}

pub(crate) fn segment_id(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".seg")?;
    if hex.len() == 16 { u64::from_str_radix(hex, 16).ok() } else { None }
}

pub(crate) fn io_error(step: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { step, path: path.to_owned(), source }
}

/// Takes a lock whose holder may have panicked: every holder leaves the value consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A segment file's durable part.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) first_seq: Seq,
    /// One past the last durable record.
    pub(crate) next_seq: Seq,
    /// Where the last durable record ends.
    pub(crate) bytes: u64,
    /// The first record's class.
    pub(crate) class: u8,
    pub(crate) created_at_us: i64,
    pub(crate) last_at_us: i64,
    index: Vec<(Seq, u64)>,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader) -> Self {
        Self {
            id: header.id,
            epoch: header.epoch,
            first_seq: header.first_seq,
            next_seq: header.first_seq,
            bytes: crate::codec::SEGMENT_HEADER_BYTES as u64,
            class: 0,
            created_at_us: header.created_at_us,
            last_at_us: i64::MIN,
            index: Vec::new(),
        }
    }

    pub(crate) fn header(&self) -> SegmentHeader {
        SegmentHeader {
            id: self.id,
            epoch: self.epoch,
            first_seq: self.first_seq,
            created_at_us: self.created_at_us,
        }
    }

    /// Takes notice of a record at an offset.
    pub(crate) fn note(&mut self, record: &RecordHeader, offset: u64) {
        if record.seq == self.first_seq {
            self.class = record.class;
        }
        self.last_at_us = self.last_at_us.max(record.appended_at_us);
        if self.index.last().is_none_or(|last| offset >= last.1 + INDEX_STEP_BYTES) {
            self.index.push((record.seq, offset));
        }
    }

    /// The nearest indexed record at or before `seq`.
    pub(crate) fn nearest(&self, seq: Seq) -> (Seq, u64) {
        let after = self.index.partition_point(|entry| entry.0 <= seq);
        let first = (self.first_seq, crate::codec::SEGMENT_HEADER_BYTES as u64);
        after.checked_sub(1).map_or(first, |at| self.index[at])
    }
}

/// The memory batch: the only thing that an append touches.
pub(crate) struct Batch {
    /// Records whose checksum and lag are not filled in yet.
    pub(crate) buf: Vec<u8>,
    pub(crate) next_seq: Seq,
    /// Bytes that the segments may still grow by before `bytes_max`, not counting `buf`.
    pub(crate) room: u64,
    pub(crate) stalled: Option<FullOf>,
    pub(crate) stopped: bool,
    /// The writer sleeps; whoever gives it work wakes it.
    pub(crate) writer_sleeps: bool,
    /// Something other than `buf` waits for the writer.
    pub(crate) errand: bool,
    /// Somebody waits for a record of it.
    pub(crate) urgent: bool,
    pub(crate) appended: u64,
    pub(crate) refused: u64,
}

/// Everything but the batch.
pub(crate) struct State {
    pub(crate) segments: VecDeque<Segment>,
    /// The segment that is written to; it is not removed when released.
    pub(crate) active: Option<u64>,
    pub(crate) control: Control,
    /// Counts changes of `control` that somebody waits for, and those that are durable.
    pub(crate) control_wanted: u64,
    pub(crate) control_done: u64,
    /// Changes of `control` that nobody waits for.
    pub(crate) control_lazy: bool,
    pub(crate) durable_next: Seq,
    pub(crate) failed: Option<String>,
    pub(crate) batches: u64,
    pub(crate) sync_failures: u64,
    pub(crate) written: Written,
}

impl State {
    /// The oldest seq that a reader may see.
    pub(crate) fn first_seq(&self) -> Seq {
        self.segments
            .front()
            .map_or(self.durable_next, |segment| segment.first_seq)
            .max(self.control.first_seq)
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| block_bytes(segment.bytes)).sum()
    }

    /// All below may be removed: every pinning reader released it, and so did those that hold half, or it lies
    /// before the half that they may hold.
    pub(crate) fn removable(&self, bytes_max: u64) -> Seq {
        let released = self.control.released();
        match self.control.held() {
            Some(held) if held < released => released.min(held.max(self.newest_from(bytes_max / 2))),
            _ => released,
        }
    }

    /// Where the newest segments begin that together take at most `bytes`.
    fn newest_from(&self, bytes: u64) -> Seq {
        let mut held = self.disk_bytes();
        for segment in &self.segments {
            if held <= bytes {
                return segment.first_seq;
            }
            held -= block_bytes(segment.bytes);
        }
        self.durable_next
    }

    /// Damaged ranges within `range` that already have a drop record.
    pub(crate) fn known_holes(&self, range: SeqRange) -> Vec<SeqRange> {
        self.control
            .holes
            .iter()
            .filter(|hole| hole.first < range.next && range.first < hole.next)
            .copied()
            .collect()
    }
}

/// What the writer calls after each sync.
pub(crate) type OnDurable = Box<dyn Fn(Seq) + Send + Sync>;

pub(crate) struct Inner<F: Fs> {
    pub(crate) fs: F,
    pub(crate) options: Options,
    pub(crate) epoch: u64,
    pub(crate) now_us: Box<dyn Fn() -> i64 + Send + Sync>,
    pub(crate) batch: Mutex<Batch>,
    pub(crate) wake: Condvar,
    pub(crate) state: Mutex<State>,
    /// Durable mark moved, control state persisted, or the journal stopped.
    pub(crate) changed: Condvar,
    pub(crate) durable_next: AtomicU64,
    pub(crate) on_durable: RwLock<Vec<OnDurable>>,
    pub(crate) writer: Mutex<Writer<F>>,
    pub(crate) stopping: AtomicBool,
}

impl<F: Fs> Inner<F> {
    /// Tells the writer that something waits.
    pub(crate) fn nudge(&self) {
        let mut batch = lock(&self.batch);
        batch.errand = true;
        self.wake_writer(batch);
    }

    pub(crate) fn wake_writer(&self, mut batch: MutexGuard<'_, Batch>) {
        let sleeps = std::mem::take(&mut batch.writer_sleeps);
        drop(batch);
        if sleeps {
            self.wake.notify_one();
        }
    }

    /// How long the release marks and the durable mark may wait in memory.
    pub(crate) fn lazy_persist(&self) -> Duration {
        LAZY_PERSIST.max(self.options.linger)
    }

    /// Somebody waits for what is in the batch.
    pub(crate) fn hurry(&self) {
        let mut batch = lock(&self.batch);
        if !batch.buf.is_empty() {
            batch.urgent = true;
            self.wake_writer(batch);
        }
    }

    /// Waits until `done` says so (or the journal stopped); in caller mode it works until then.
    pub(crate) fn wait_until(&self, done: impl Fn(&State) -> bool) -> Result<(), JournalError> {
        if self.options.writer == WriterMode::Caller {
            return self.work_until(done);
        }
        let mut state = lock(&self.state);
        loop {
            if done(&state) {
                return Ok(());
            }
            if let Some(why) = &state.failed {
                return Err(JournalError::Failed(why.clone()));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work_until(&self, done: impl Fn(&State) -> bool) -> Result<(), JournalError> {
        loop {
            lock(&self.writer).step(self);
            let state = lock(&self.state);
            if done(&state) {
                return Ok(());
            }
            if let Some(why) = &state.failed {
                return Err(JournalError::Failed(why.clone()));
            }
            drop(state);
            match lock(&self.batch).stalled {
                None => {}
                Some(FullOf::DropRecords) => return Err(JournalError::DropsFull),
                Some(_) => return Err(JournalError::DiskFull),
            }
        }
    }

    /// As [`Inner::wait_until`], but gives up at the deadline; false then.
    pub(crate) fn wait_for(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.state);
        loop {
            if done(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.failed.is_some() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Changes the control state and waits until it is durable.
    pub(crate) fn change_control<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let (outcome, wanted) = {
            let mut state = lock(&self.state);
            if let Some(why) = &state.failed {
                return Err(JournalError::Failed(why.clone()));
            }
            let outcome = change(&mut state)?;
            state.control_wanted += 1;
            (outcome, state.control_wanted)
        };
        self.nudge();
        self.wait_until(|state| state.control_done >= wanted)?;
        Ok(outcome)
    }

    pub(crate) fn publish_durable(&self, next: Seq) {
        self.durable_next.store(next, Ordering::Release);
        for callback in self.on_durable.read().unwrap_or_else(PoisonError::into_inner).iter() {
            callback(next);
        }
    }
}
