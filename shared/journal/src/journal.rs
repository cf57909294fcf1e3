//! The handle: opening, appending, readers' registration, drop records, closing.

use crate::codec::{RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES};
use crate::control::{CONTROL_NAME, Mark};
use crate::fs::{Fs, FsFile, RealFs};
use crate::ranges;
use crate::reader::Reader;
use crate::recover::{Recovered, recover};
use crate::state::{Batch, Inner, State, io_error, lock};
use crate::types::{
    AppendError, DROPS_MAX, DropRecord, FullOf, JournalError, Opened, Opening, Options, Pin,
    READER_NAME_BYTES_MAX, READERS_MAX, RECORD_BYTES_LIMIT, Seq, Stats, WriterMode,
};
use crate::writer::{self, Writer};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

const LOCK_NAME: &str = "lock";
/// The smallest segment that makes sense.
const SEGMENT_BYTES_MIN: u64 = 4096;
/// Callbacks of [`Journal::on_durable`].
const CALLBACKS_MAX: usize = 8;

/// A journal that is open for writing. Clones share it; the last one to go closes it.
pub struct Journal<F: Fs = RealFs> {
    shared: Arc<Shared<F>>,
}

impl<F: Fs> Clone for Journal<F> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<F: Fs> {
    inner: Arc<Inner<F>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<F: Fs> Shared<F> {
    fn shut_down(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        if self.inner.options.writer == WriterMode::Caller {
            lock(&self.inner.writer).finish(&self.inner);
            return;
        }
        self.inner.nudge();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A writer that panicked has left the journal stopped; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl<F: Fs> Drop for Shared<F> {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl<F: Fs> Journal<F> {
    /// Opens a directory for writing, creating it where needed; truncates a torn tail and records damage.
    /// `now_us` is the caller's clock, microseconds since 1970.
    ///
    /// # Errors
    /// The options contradict each other, the directory is open elsewhere, was written by a newer build, or
    /// the disk fails.
    pub fn open(
        fs: F,
        options: Options,
        now_us: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<(Self, Opened), JournalError> {
        let options = checked(options)?;
        let dir = options.dir.clone();
        fs.create_dir_all(&dir).map_err(|source| io_error("create", &dir, source))?;
        let lock_file = take_lock(&fs, &options)?;
        let Recovered { control, mut control_file, segments, opened } =
            recover(&fs, &options, random_epoch()?)?;
        let state = State {
            segments,
            active: None,
            control,
            control_wanted: 0,
            control_done: 0,
            control_lazy: false,
            durable_next: opened.next_seq,
            failed: None,
            batches: 0,
            sync_failures: 0,
        };
        let snapshot = writer::snapshot(&state, opened.epoch);
        control_file.save(&snapshot, true).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => JournalError::TooCorrupt,
            _ => io_error("write", &dir.join(CONTROL_NAME), source),
        })?;
        let now = now_us();
        let inner = Arc::new(Inner {
            epoch: opened.epoch,
            batch: Mutex::new(Batch::new(opened.next_seq)),
            wake: Condvar::new(),
            durable_next: AtomicU64::new(opened.next_seq),
            state: Mutex::new(state),
            changed: Condvar::new(),
            on_durable: RwLock::new(Vec::new()),
            writer: Mutex::new(Writer::new(control_file, lock_file, now)),
            stopping: AtomicBool::new(false),
            now_us: Box::new(now_us),
            fs,
            options,
        });
        // The first step knows how much room there is.
        lock(&inner.writer).step(&inner);
        let thread = match inner.options.writer {
            WriterMode::Caller => None,
            WriterMode::Thread => {
                Some(spawn(&inner).map_err(|source| io_error("start a writer for", &dir, source))?)
            }
        };
        Ok((Self { shared: Arc::new(Shared { inner, thread: Mutex::new(thread) }) }, opened))
    }

    pub(crate) fn inner(&self) -> &Inner<F> {
        &self.shared.inner
    }

    /// The epoch of records appended now.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner().epoch
    }

    /// Puts a record into the memory batch; never waits for the disk. It is accepted once [`Journal::durable_next`]
    /// is above its seq.
    ///
    /// # Errors
    /// Full, too large, or stopped; nothing was taken then.
    pub fn append(&self, class: u8, payload: &[u8]) -> Result<Seq, AppendError> {
        self.append_with(class, payload.len(), |buf| buf.extend_from_slice(payload))
    }

    /// As [`Journal::append`], with the payload encoded straight into the batch: `write` only pushes to the end
    /// of the buffer, and is quick, since other appenders wait. `len_hint` is the payload's length, about.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_with(
        &self,
        class: u8,
        len_hint: usize,
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
        inner.wake_writer(batch);
        Ok(seq)
    }

    /// All below is fsynced.
    #[must_use]
    pub fn durable_next(&self) -> Seq {
        self.inner().durable_next.load(Ordering::Acquire)
    }

    /// The oldest record held, or [`Journal::durable_next`] where none is.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        lock(&self.inner().state).first_seq()
    }

    /// Adds a callback (at most 8) that the writer calls with the durable mark after each fsync. It must be quick
    /// and must not call the journal's blocking methods.
    pub fn on_durable(&self, callback: Box<dyn Fn(Seq) + Send + Sync>) {
        let mut callbacks = self.inner().on_durable.write().unwrap_or_else(PoisonError::into_inner);
        debug_assert!(callbacks.len() < CALLBACKS_MAX, "too many callbacks");
        if callbacks.len() < CALLBACKS_MAX {
            callbacks.push(callback);
        }
    }

    /// Blocks until the record is fsynced: accepted. On a full disk it waits for space.
    ///
    /// # Errors
    /// The journal stopped before. Where the caller is the writer: the disk is full.
    pub fn wait_durable(&self, seq: Seq) -> Result<(), JournalError> {
        self.inner().wait_until(|state| state.durable_next > seq)
    }

    /// Blocks until everything appended so far is fsynced.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn commit(&self) -> Result<Seq, JournalError> {
        let next = lock(&self.inner().batch).next_seq;
        self.inner().wait_until(|state| state.durable_next >= next)?;
        Ok(next)
    }

    /// Registers the reader (durably) and starts it at `from`; 0 means its release mark, or the oldest record for
    /// a new reader. A new pinning reader pins from there on.
    ///
    /// # Errors
    /// A position never given out, a bad name, too many readers, or the journal stopped.
    pub fn reader(&self, name: &str, from: Seq, pin: Pin) -> Result<Reader<F>, JournalError> {
        if name.is_empty() || name.len() > READER_NAME_BYTES_MAX {
            return Err(JournalError::Reader(name.to_owned()));
        }
        let start = |state: &State, mark: Option<&Mark>| match (from, mark) {
            (0, Some(mark)) => mark.released.max(state.first_seq()),
            (0, None) => state.first_seq(),
            (from, _) => from,
        };
        let known = {
            let state = lock(&self.inner().state);
            let next = state.durable_next;
            if from > next {
                return Err(JournalError::BeyondEnd { from, next });
            }
            let mark = state.control.readers.iter().find(|mark| mark.name == name);
            mark.filter(|mark| mark.pin == pin).map(|mark| start(&state, Some(mark)))
        };
        if let Some(from) = known {
            return Ok(Reader::new(self.clone(), name, from));
        }
        let from = self.inner().change_control(|state| {
            let at = state.control.readers.iter().position(|mark| mark.name == name);
            let from = start(state, at.map(|at| &state.control.readers[at]));
            match at {
                Some(at) => state.control.readers[at].pin = pin,
                None if state.control.readers.len() >= READERS_MAX => {
                    return Err(JournalError::Reader(name.to_owned()));
                }
                None => state.control.readers.push(Mark { name: name.to_owned(), pin, released: from }),
            }
            Ok(from)
        })?;
        Ok(Reader::new(self.clone(), name, from))
    }

    /// Forgets a reader for good: it no longer pins.
    ///
    /// # Errors
    /// No such reader, or the journal stopped.
    pub fn forget_reader(&self, name: &str) -> Result<(), JournalError> {
        self.inner().change_control(|state| {
            let at = state.control.readers.iter().position(|mark| mark.name == name);
            let at = at.ok_or_else(|| JournalError::UnknownReader(name.to_owned()))?;
            state.control.readers.remove(at);
            Ok(())
        })
    }

    /// The reader's release mark.
    #[must_use]
    pub fn released(&self, name: &str) -> Option<Seq> {
        let state = lock(&self.inner().state);
        state.control.readers.iter().find(|mark| mark.name == name).map(|mark| mark.released)
    }

    /// The reader needs nothing below `upto` any more. The mark moves forward only, and is persisted within
    /// seconds, always before a segment is removed because of it.
    ///
    /// # Errors
    /// No such reader.
    pub fn release(&self, name: &str, upto: Seq) -> Result<(), JournalError> {
        let removable = {
            let mut state = lock(&self.inner().state);
            let upto = upto.min(state.durable_next);
            let mark = state.control.readers.iter_mut().find(|mark| mark.name == name);
            let mark = mark.ok_or_else(|| JournalError::UnknownReader(name.to_owned()))?;
            if upto <= mark.released {
                return Ok(());
            }
            mark.released = upto;
            state.control_lazy = true;
            let released = state.control.released();
            let active = state.active;
            state
                .segments
                .front()
                .is_some_and(|oldest| oldest.next_seq <= released && Some(oldest.id) != active)
        };
        if removable {
            self.inner().nudge();
        }
        Ok(())
    }

    /// Drop records not yet confirmed.
    #[must_use]
    pub fn drops(&self) -> Vec<DropRecord> {
        lock(&self.inner().state).control.drops.clone()
    }

    /// Writes a drop record of the caller's own (a record that the server refused for good); durable on return.
    ///
    /// # Errors
    /// [`DROPS_MAX`] records wait already, or the journal stopped.
    pub fn record_drop(&self, record: DropRecord) -> Result<(), JournalError> {
        self.inner().change_control(|state| {
            let mut drops = state.control.drops.clone();
            ranges::insert_drop(&mut drops, record);
            if drops.len() > DROPS_MAX && drops.len() > state.control.drops.len() {
                return Err(JournalError::DropsFull);
            }
            state.control.drops = drops;
            state.control.count_drop(record.reason, ranges::range_of(&record).count(), record.bytes);
            Ok(())
        })
    }

    /// Forgets drop records that were reported; durable on return.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn confirm_drops(&self, confirmed: &[DropRecord]) -> Result<(), JournalError> {
        self.inner().change_control(|state| {
            for record in confirmed {
                ranges::confirm_drop(&mut state.control.drops, record);
            }
            Ok(())
        })
    }

    /// Openings that were not forgotten, oldest first; the last one is this one.
    #[must_use]
    pub fn openings(&self) -> Vec<Opening> {
        let state = lock(&self.inner().state);
        writer::snapshot(&state, self.epoch()).openings
    }

    /// Forgets an earlier opening that was reported as closed and released. The current one stays.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn forget_opening(&self, epoch: u64) -> Result<(), JournalError> {
        self.inner().change_control(|state| {
            state.control.openings.retain(|opening| opening.epoch != epoch || !opening.closed);
            Ok(())
        })
    }

    /// Sizes and counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = lock(&self.inner().state);
        let batch = lock(&self.inner().batch);
        Stats {
            first_seq: state.first_seq(),
            durable_next: state.durable_next,
            next_seq: batch.next_seq,
            released: state.control.released(),
            segments: state.segments.len(),
            bytes: state.disk_bytes(),
            batch_bytes: batch.buf.len(),
            appended: batch.appended,
            batches: state.batches,
            refused: batch.refused,
            sync_failures: state.sync_failures,
            drops: state.control.drops.len(),
            dropped: state.control.totals.clone(),
            openings_evicted: state.control.openings_evicted,
            stalled: batch.stalled,
            failed: state.failed.clone(),
        }
    }

    /// Flushes, fsyncs, writes down the opening's end and gives the directory free; other clones stop working.
    ///
    /// # Errors
    /// The journal had stopped, or what was appended last could not be made durable.
    pub fn close(self) -> Result<(), JournalError> {
        self.shared.shut_down();
        match &lock(&self.inner().state).failed {
            Some(why) if why != writer::CLOSED => Err(JournalError::Failed(why.clone())),
            _ => Ok(()),
        }
    }
}

impl Batch {
    fn new(next_seq: Seq) -> Self {
        Self {
            buf: Vec::new(),
            next_seq,
            room: 0,
            stalled: None,
            stopped: false,
            writer_sleeps: false,
            errand: false,
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

/// Fits sizes to each other: a batch fits a segment, four segments fit the bound, a record fits a batch.
fn checked(mut options: Options) -> Result<Options, JournalError> {
    if options.dir.as_os_str().is_empty() {
        return Err(JournalError::Options("dir is empty"));
    }
    options.segment_bytes = options.segment_bytes.min(options.bytes_max / 4);
    if options.segment_bytes < SEGMENT_BYTES_MIN {
        return Err(JournalError::Options("segment_bytes must be at least 4096, bytes_max four times that"));
    }
    let batch_max = usize::try_from(options.segment_bytes).unwrap_or(usize::MAX) - SEGMENT_HEADER_BYTES;
    options.batch_bytes_max = options.batch_bytes_max.min(batch_max);
    if options.record_bytes_max > RECORD_BYTES_LIMIT {
        return Err(JournalError::Options("record_bytes_max must be at most 16 MiB"));
    }
    if options.record_bytes_max + RECORD_HEADER_BYTES > options.batch_bytes_max {
        return Err(JournalError::Options("record_bytes_max must fit batch_bytes_max and segment_bytes"));
    }
    Ok(options)
}

fn take_lock<F: Fs>(fs: &F, options: &Options) -> Result<F::File, JournalError> {
    let path = options.dir.join(LOCK_NAME);
    let opened = match fs.open_write(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs.open_write(&path),
            other => other,
        },
        other => other,
    };
    let file = opened.map_err(|source| io_error("open", &path, source))?;
    match file.try_lock() {
        Ok(true) => Ok(file),
        Ok(false) => Err(JournalError::Locked { dir: options.dir.clone() }),
        Err(source) => Err(io_error("lock", &path, source)),
    }
}

fn random_epoch() -> Result<u64, JournalError> {
    let mut bytes = [0; 8];
    loop {
        getrandom::fill(&mut bytes).map_err(|_| JournalError::Random)?;
        let epoch = u64::from_le_bytes(bytes);
        if epoch != 0 {
            return Ok(epoch);
        }
    }
}

fn spawn<F: Fs>(inner: &Arc<Inner<F>>) -> io::Result<JoinHandle<()>> {
    let inner = Arc::clone(inner);
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer::run(&inner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WhenFull;
    use std::path::Path;

    fn options(dir: &Path) -> Options {
        Options {
            dir: dir.to_owned(),
            segment_bytes: 4096,
            bytes_max: 64 * 1024,
            record_bytes_max: 1024,
            ..Options::default()
        }
    }

    fn open(options: &Options) -> (Journal, Opened) {
        Journal::open(RealFs, options.clone(), || 1_700_000_000_000_000).expect("opens")
    }

    fn read_all(journal: &Journal, from: Seq) -> (Vec<(Seq, u64, Vec<u8>)>, crate::types::Batch) {
        let mut reader = journal.reader("test", from, Pin::Follows).expect("reader");
        let mut records = Vec::new();
        let batch = reader
            .next_batch(usize::MAX, |record| {
                records.push((record.seq, record.epoch, record.payload.to_vec()))
            })
            .expect("reads");
        (records, batch)
    }

    #[test]
    fn records_survive_reopening_and_seq_continues_under_a_new_epoch() {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = options(dir.path());
        let (journal, opened) = open(&options);
        assert_eq!((opened.first_seq, opened.next_seq), (1, 1));
        let first_epoch = journal.epoch();
        for at in 0..200u32 {
            journal.append(1, &at.to_le_bytes()).expect("appends");
            if at % 50 == 0 {
                journal.commit().expect("commits");
            }
        }
        assert_eq!(journal.commit().expect("commits"), 201);
        journal.close().expect("closes");

        let (journal, opened) = open(&options);
        assert_eq!((opened.first_seq, opened.next_seq, opened.tail_bytes_dropped), (1, 201, 0));
        assert_ne!(journal.epoch(), first_epoch);
        assert_eq!(journal.append(1, b"later").expect("appends"), 201);
        journal.wait_durable(201).expect("durable");
        let (records, batch) = read_all(&journal, 1);
        assert_eq!((records.len(), batch.next, batch.skipped.len()), (201, 202, 0));
        assert!(records.iter().take(200).all(|record| record.1 == first_epoch));
        assert_eq!(records[200], (201, journal.epoch(), b"later".to_vec()));
        let openings = journal.openings();
        assert_eq!(openings.len(), 2);
        assert_eq!((openings[0].first, openings[0].next, openings[0].closed), (1, 201, true));
        assert_eq!((openings[1].first, openings[1].next, openings[1].closed), (201, 202, false));
    }

    #[test]
    fn second_handle_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (journal, _) = open(&options(dir.path()));
        let again = Journal::open(RealFs, options(dir.path()), || 0);
        assert!(matches!(again, Err(JournalError::Locked { .. })));
        drop(journal);
        open(&options(dir.path()));
    }

    #[test]
    fn refuse_keeps_everything_until_released_and_drop_oldest_lists_what_goes() {
        for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
            let dir = tempfile::tempdir().expect("tempdir");
            let options = Options { when_full, ..options(dir.path()) };
            let (journal, _) = open(&options);
            journal.reader("uplink", 0, Pin::Pins).expect("registers");
            let mut accepted = 0;
            for _ in 0..200 {
                match journal.append(3, &[7; 1000]) {
                    Ok(seq) => accepted = seq,
                    Err(error) => assert_eq!(error, AppendError::Full { of: FullOf::Bytes }),
                }
                journal.commit().expect("commits");
            }
            assert!(journal.stats().bytes <= 64 * 1024);
            let (records, _) = read_all(&journal, journal.first_seq());
            let dropped: u64 = journal.drops().iter().map(|drop| drop.last - drop.first + 1).sum();
            assert_eq!(records.len() as u64 + dropped, accepted);
            match when_full {
                WhenFull::Refuse => {
                    assert!(accepted < 200 && dropped == 0);
                    journal.release("uplink", accepted + 1).expect("releases");
                    // The second call returns after the step that removed segments for the first.
                    journal.confirm_drops(&[]).expect("a step of the writer");
                    journal.confirm_drops(&[]).expect("a step of the writer");
                    assert!(journal.append(3, &[7; 1000]).is_ok());
                }
                WhenFull::DropOldest => {
                    assert!(accepted == 200 && dropped > 0);
                    let drops = journal.drops();
                    assert_eq!((drops.len(), drops[0].first, drops[0].class), (1, 1, 3));
                }
            }
        }
    }

    #[test]
    fn encoding_closure_that_panics_leaves_the_batch_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (journal, _) = open(&options(dir.path()));
        journal.append(1, b"before").expect("appends");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = journal.append_with(1, 4, |buf| {
                buf.extend_from_slice(b"ab");
                panic!("on purpose");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(journal.append_with(1, 99, |buf| buf.extend_from_slice(b"after")), Ok(2));
        assert!(matches!(journal.append(1, &[0; 1025]), Err(AppendError::TooLarge { .. })));
        journal.commit().expect("commits");
        let payloads: Vec<_> = read_all(&journal, 1).0.into_iter().map(|record| record.2).collect();
        assert_eq!(payloads, [b"before".to_vec(), b"after".to_vec()]);
    }
}
