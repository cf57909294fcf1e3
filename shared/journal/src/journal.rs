//! The handle: opening, appending, readers' registration, drop records, closing.

use crate::codec::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::control::{CONTROL_NAME, Mark};
use crate::fs::{Fs, FsFile, RealFs};
use crate::ranges;
use crate::reader::Reader;
use crate::recover::{Recovered, recover};
use crate::state::{Batch, Inner, State, io_error, lock};
use crate::types::{
    DROPS_MAX, DropRecord, JournalError, Opened, Opening, Options, Pin, READER_NAME_BYTES_MAX, READERS_MAX,
    RECORD_BYTES_LIMIT, Seq, Stats, WriterMode, Written,
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
            written: Written::default(),
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
        if self.durable_next() <= seq {
            self.inner().hurry();
        }
        self.inner().wait_until(|state| state.durable_next > seq)
    }

    /// Blocks until everything appended so far is fsynced.
    ///
    /// # Errors
    /// As [`Journal::wait_durable`].
    pub fn commit(&self) -> Result<Seq, JournalError> {
        let next = lock(&self.inner().batch).next_seq;
        self.inner().hurry();
        self.inner().wait_until(|state| state.durable_next >= next)?;
        Ok(next)
    }

    /// Registers the reader (durably) and starts it at `from`; 0 means its release mark, or the oldest record for
    /// a new reader. A new reader that pins or holds does so from there on.
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
    /// seconds (or [`Options::linger`]), always before a segment is removed because of it.
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
            let removable = state.removable(self.inner().options.bytes_max);
            let active = state.active;
            state
                .segments
                .front()
                .is_some_and(|oldest| oldest.next_seq <= removable && Some(oldest.id) != active)
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
            written: state.written,
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
    std::thread::Builder::new().name("journal".to_owned()).spawn(move || crate::thread::run(&inner))
}
