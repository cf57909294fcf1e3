//! A named reader: walks the durable records in order, checks each, reports what is not there.

use crate::codec::{RecordHeader, SegmentHeader};
use crate::fs::{Fs, RealFs};
use crate::journal::Journal;
use crate::ranges;
use crate::scan::{Region, Window};
use crate::state::{Inner, State, io_error, lock, segment_name};
use crate::types::{
    Batch, DROPS_MAX, DropReason, DropRecord, JournalError, RECORD_BYTES_LIMIT, Record, Seq, SeqRange,
};
use std::io;
use std::time::Duration;

/// Bytes read from a segment at a time.
const READ_CHUNK_BYTES: usize = 128 * 1024;
/// A read buffer that one large record made larger than this is given back.
const READ_KEEP_BYTES: usize = 1024 * 1024;

/// Reads records below the durable mark. It keeps the journal open, and one segment file.
pub struct Reader<F: Fs = RealFs> {
    journal: Journal<F>,
    name: String,
    /// The next record to deliver.
    position: Seq,
    open: Option<OpenSegment<F::File>>,
    window: Window,
}

struct OpenSegment<File> {
    file: File,
    header: SegmentHeader,
    /// The seq and place of the record that is looked at next.
    seq: Seq,
    offset: u64,
}

/// Where a position lies.
enum Place {
    End,
    Gap(Seq),
    In { header: SegmentHeader, next: Seq, bytes: u64, nearest: (Seq, u64) },
}

impl<F: Fs> Reader<F> {
    pub(crate) fn new(journal: Journal<F>, name: &str, from: Seq) -> Self {
        let window = Window::new(READ_CHUNK_BYTES);
        Self { journal, name: name.to_owned(), position: from.max(1), open: None, window }
    }

    /// The reader's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The seq that is delivered next.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// Goes to another position, forward or back; what lies between is the caller's to report.
    pub fn seek(&mut self, seq: Seq) {
        self.position = seq.max(1);
        let ahead = |open: &OpenSegment<F::File>| open.seq > self.position;
        if self.open.as_ref().is_some_and(ahead) {
            self.open = None;
        }
    }

    /// Waits until a record is there to read; false after `timeout` or when the journal stopped.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let position = self.position;
        self.journal.inner().wait_for(timeout, |state| state.durable_next > position)
    }

    /// Hands durable records to `f` until their payloads reach `bytes_max` or none is left; at least one if any is.
    ///
    /// Ranges that were dropped, released by others or damaged are in [`Batch::skipped`]; damage found here has a
    /// durable drop record before this returns.
    ///
    /// # Errors
    /// A segment cannot be read, or there are too many unconfirmed drop records for new damage. The reader then
    /// stands behind the last record delivered.
    pub fn next_batch(
        &mut self,
        bytes_max: usize,
        mut f: impl FnMut(Record<'_>),
    ) -> Result<Batch, JournalError> {
        let journal = self.journal.clone();
        let mut batch = Batch { from: self.position, ..Batch::default() };
        let mut bytes = 0;
        while bytes < bytes_max.max(1) {
            let place = find(&lock(&journal.inner().state), self.position);
            match place {
                Place::End => break,
                Place::Gap(next) => {
                    batch.skipped.push(SeqRange { first: self.position, next });
                    self.position = next;
                }
                Place::In { header, next, bytes: end, nearest } => {
                    if !self.enter(journal.inner(), header, nearest)? {
                        continue;
                    }
                    let until = Until { next, end, bytes_max: bytes_max.max(1) };
                    self.read_segment(journal.inner(), &until, &mut bytes, &mut batch, &mut f)?;
                }
            }
        }
        if self.window.bytes_held() > READ_KEEP_BYTES {
            self.window.shrink();
        }
        batch.next = self.position;
        Ok(batch)
    }

    /// Makes the segment the open one, at or before the position; false where it was removed meanwhile.
    fn enter(
        &mut self,
        inner: &Inner<F>,
        header: SegmentHeader,
        nearest: (Seq, u64),
    ) -> Result<bool, JournalError> {
        if let Some(open) = self.open.as_mut().filter(|open| open.header.id == header.id) {
            if nearest.0 > open.seq {
                (open.seq, open.offset) = nearest;
            }
            return Ok(true);
        }
        self.open = None;
        let path = inner.options.dir.join(segment_name(header.id));
        match inner.fs.open_read(&path) {
            Ok(file) => {
                self.window.clear();
                self.open = Some(OpenSegment { file, header, seq: nearest.0, offset: nearest.1 });
                Ok(true)
            }
            // Retention took it out of the list before it removed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_listed(inner, header.id) => {
                Ok(false)
            }
            Err(source) => Err(io_error("open", &path, source)),
        }
    }

    fn read_segment(
        &mut self,
        inner: &Inner<F>,
        until: &Until,
        bytes: &mut usize,
        batch: &mut Batch,
        f: &mut impl FnMut(Record<'_>),
    ) -> Result<(), JournalError> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let read_error = |header: &SegmentHeader, source| {
            io_error("read", &inner.options.dir.join(segment_name(header.id)), source)
        };
        let region = Region {
            file: &open.file,
            end: until.end,
            salt: open.header.salt(),
            record_bytes_max: RECORD_BYTES_LIMIT,
        };
        while *bytes < until.bytes_max && open.seq < until.next {
            let whole = region
                .record_at(&mut self.window, open.offset, open.seq)
                .map_err(|source| read_error(&open.header, source))?;
            let Some(record) = whole else {
                let found = region
                    .find_record(&mut self.window, open.offset + 1, open.seq + 1, until.next)
                    .map_err(|source| read_error(&open.header, source))?;
                let (offset, next) = found.map_or((until.end, until.next), |(at, record)| (at, record.seq));
                let lost = SeqRange { first: open.seq.max(self.position), next };
                if lost.first < lost.next {
                    note_damage(inner, open.header.epoch, lost)?;
                    batch.skipped.push(lost);
                    self.position = next;
                }
                (open.seq, open.offset) = (next, offset);
                continue;
            };
            if open.seq >= self.position {
                let stored = self
                    .window
                    .at(&open.file, open.offset, record.record_bytes(), until.end)
                    .map_err(|source| read_error(&open.header, source))?;
                f(view(&record, open.header.epoch, stored));
                *bytes += record.record_bytes();
                batch.records += 1;
                self.position = open.seq + 1;
            }
            open.seq += 1;
            open.offset += record.record_bytes() as u64;
        }
        Ok(())
    }
}

/// How far one segment may be read.
struct Until {
    next: Seq,
    end: u64,
    bytes_max: usize,
}

fn view<'a>(record: &RecordHeader, epoch: u64, stored: &'a [u8]) -> Record<'a> {
    Record {
        seq: record.seq,
        epoch,
        class: record.class,
        appended_at_us: record.appended_at_us,
        payload: &stored[crate::codec::RECORD_HEADER_BYTES..record.record_bytes()],
    }
}

fn find(state: &State, position: Seq) -> Place {
    let first_seq = state.first_seq();
    if position >= state.durable_next {
        return Place::End;
    }
    if position < first_seq {
        return Place::Gap(first_seq);
    }
    let after = state.segments.partition_point(|segment| segment.first_seq <= position);
    match after.checked_sub(1).and_then(|at| state.segments.get(at)) {
        Some(segment) if position < segment.next_seq => Place::In {
            header: segment.header(),
            next: segment.next_seq,
            bytes: segment.bytes,
            nearest: segment.nearest(position),
        },
        _ => Place::Gap(state.segments.get(after).map_or(state.durable_next, |segment| segment.first_seq)),
    }
}

fn is_listed<F: Fs>(inner: &Inner<F>, id: u64) -> bool {
    lock(&inner.state).segments.iter().any(|segment| segment.id == id)
}

/// Writes a durable drop record for damage that was not known yet.
fn note_damage<F: Fs>(inner: &Inner<F>, epoch: u64, lost: SeqRange) -> Result<(), JournalError> {
    let unknown = {
        let state = lock(&inner.state);
        let released = SeqRange { first: 0, next: state.control.released() };
        let mut known = state.known_holes(lost);
        known.push(released);
        ranges::subtract(lost, known)
    };
    if unknown.is_empty() {
        return Ok(());
    }
    inner.change_control(|state| {
        if state.control.drops.len() + unknown.len() > DROPS_MAX {
            return Err(JournalError::DropsFull);
        }
        for part in &unknown {
            let (first, last) = (part.first, part.next - 1);
            let record = DropRecord { epoch, first, last, class: 0, reason: DropReason::CORRUPT, bytes: 0 };
            ranges::insert_drop(&mut state.control.drops, record);
            ranges::insert(&mut state.control.holes, *part);
            state.control.count_drop(DropReason::CORRUPT, part.count(), 0);
        }
        Ok(())
    })
}
