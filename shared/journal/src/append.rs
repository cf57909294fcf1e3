//! Appending: a lock, a copy, no disk.

use crate::codec::{RECORD_HEADER_BYTES, RecordHeader};
use crate::fs::Fs;
use crate::journal::Journal;
use crate::state::{Batch, lock};
use crate::types::{AppendError, FullOf, Options, Seq, Urgency};

impl<F: Fs> Journal<F> {
    /// Puts a record into the memory batch; never waits for the disk. It is accepted once [`Journal::durable_next`]
    /// is above its seq.
    ///
    /// # Errors
    /// Full, too large, or stopped; nothing was taken then.
    pub fn append(&self, class: u8, payload: &[u8]) -> Result<Seq, AppendError> {
        self.append_with(class, payload.len(), Urgency::Now, |buf| buf.extend_from_slice(payload))
    }

    /// As [`Journal::append`], with the payload encoded straight into the batch: `write` only pushes to the end
    /// of the buffer, and is quick, since other appenders wait. `len_hint` is the payload's length, about.
    /// A record that nobody waits for may share the sync of a later one.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_with(
        &self,
        class: u8,
        len_hint: usize,
        urgency: Urgency,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Seq, AppendError> {
        let inner = self.inner();
        let appended_at_us = (inner.now_us)();
        let mut batch = lock(&inner.batch);
        batch.check(len_hint, &inner.options)?;
        let start = batch.buf.len();
        {
            let mut undo = Undo { buf: &mut batch.buf, keep: start };
            undo.buf.resize(start + RECORD_HEADER_BYTES, 0);
            write(undo.buf);
            undo.keep = usize::MAX;
        }
        let Some(len) = batch.buf.len().checked_sub(start + RECORD_HEADER_BYTES) else {
            // The closure took away bytes that are not its own: nothing of this batch can be trusted.
            batch.stopped = true;
            batch.buf.clear();
            drop(batch);
            lock(&inner.state).failed = Some("an append_with closure shortened the batch".to_owned());
            inner.changed.notify_all();
            return Err(AppendError::Failed);
        };
        if len != len_hint {
            batch.buf.truncate(start + RECORD_HEADER_BYTES + len);
            if let Err(error) = batch.check_len(start, len, &inner.options) {
                batch.buf.truncate(start);
                return Err(error);
            }
        }
        let seq = batch.next_seq;
        let header = RecordHeader { len: len as u32, seq, appended_at_us, lag: 0, class };
        header.put(&mut batch.buf[start..]);
        batch.next_seq += 1;
        batch.appended += 1;
        let is_first = start == 0;
        // Half full: who appends next must not find it full.
        if urgency == Urgency::Now || batch.buf.len() > inner.options.batch_bytes_max / 2 {
            batch.urgent = true;
            inner.wake_writer(batch);
        } else if is_first {
            // It must learn that there is something to write before it sleeps for long.
            inner.wake_writer(batch);
        }
        Ok(seq)
    }
}

impl Batch {
    pub(crate) fn new(next_seq: Seq) -> Self {
        Self {
            buf: Vec::new(),
            next_seq,
            room: 0,
            stalled: None,
            stopped: false,
            writer_sleeps: false,
            errand: false,
            urgent: false,
            appended: 0,
            refused: 0,
        }
    }

    fn check(&mut self, len: usize, options: &Options) -> Result<(), AppendError> {
        if self.stopped {
            return Err(AppendError::Failed);
        }
        if let Some(of) = self.stalled {
            self.refused += 1;
            return Err(AppendError::Full { of });
        }
        self.check_len(self.buf.len(), len, options)
    }

    /// Whether a payload of `len` fits behind `start` bytes of batch.
    fn check_len(&mut self, start: usize, len: usize, options: &Options) -> Result<(), AppendError> {
        if len > options.record_bytes_max {
            return Err(AppendError::TooLarge { bytes: len, max: options.record_bytes_max });
        }
        let end = start + RECORD_HEADER_BYTES + len;
        let of = if end > options.batch_bytes_max {
            FullOf::Memory
        } else if end as u64 > self.room {
            FullOf::Bytes
        } else {
            return Ok(());
        };
        self.refused += 1;
        Err(AppendError::Full { of })
    }
}

/// Cuts the batch back to whole records when the caller's closure panics.
struct Undo<'a> {
    buf: &'a mut Vec<u8>,
    keep: usize,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.keep < self.buf.len() {
            self.buf.truncate(self.keep);
        }
    }
}
