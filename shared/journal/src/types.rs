//! What the journal takes and gives: options, records, ranges, errors.

use crate::control::SLOT_BYTES;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A record's position in the journal, from 1; it continues over openings.
pub type Seq = u64;

/// The most pinning and following readers that one journal remembers.
pub const READERS_MAX: usize = 16;
/// The longest reader name, in bytes.
pub const READER_NAME_BYTES_MAX: usize = 64;
/// Openings remembered until [`crate::Journal::forget_opening`]; the oldest (released ones first) go beyond that.
pub const OPENINGS_MAX: usize = 256;
/// Drop records that may wait to be confirmed. At this bound nothing more is dropped: appends are refused.
pub const DROPS_MAX: usize = 1024;
/// The largest payload that any journal accepts, in bytes.
pub const RECORD_BYTES_LIMIT: usize = 16 * 1024 * 1024;

/// One record, borrowed from the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its position.
    pub seq: Seq,
    /// The opening (or the log) that took it.
    pub epoch: u64,
    /// The caller's class.
    pub class: u8,
    /// The caller's clock when it was appended, microseconds since 1970.
    pub appended_at_us: i64,
    /// The caller's bytes.
    pub payload: &'a [u8],
}

/// When a new epoch is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EpochPolicy {
    /// At each opening for writing: an agent's queue (the epoch is its `queue_id`).
    #[default]
    PerOpen,
    /// Once, when the log is made: the server's event log (`log_epoch`).
    PerLog,
}

/// What happens to new records when `bytes_max` or the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// They are refused with [`AppendError::Full`].
    #[default]
    Refuse,
    /// The oldest segment goes, with a durable drop record.
    DropOldest,
}

/// Who writes batches to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriterMode {
    /// A thread of the journal.
    #[default]
    Thread,
    /// The caller, in [`crate::Journal::commit`] and the other blocking calls: for tests that must repeat exactly.
    Caller,
}

/// Steps that a test leaves out, to show that the trials notice.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sabotage {
    /// Nothing is left out.
    #[default]
    None,
    /// Batches are not fdatasynced.
    SkipFdatasync,
    /// The directory is not synced after a segment is created.
    SkipDirSync,
    /// The control state is not fdatasynced.
    SkipControlSync,
    /// A failed fdatasync is tried again on the same file.
    RetryFdatasync,
    /// Fdatasyncs of batches fail while the counter is not at 0, on any file system.
    FailFdatasync(SyncFaults),
}

/// How many fdatasyncs are still to fail; the test that leaked the counter sets it.
#[cfg(any(test, feature = "sim"))]
#[derive(Clone, Copy, Debug)]
pub struct SyncFaults(pub &'static std::sync::atomic::AtomicU32);

#[cfg(any(test, feature = "sim"))]
impl SyncFaults {
    pub(crate) fn take(self) -> bool {
        use std::sync::atomic::Ordering::SeqCst;
        self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

#[cfg(any(test, feature = "sim"))]
impl PartialEq for SyncFaults {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

#[cfg(any(test, feature = "sim"))]
impl Eq for SyncFaults {}

/// How a journal is opened. Start from `Options { dir, ..Options::default() }`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The journal's own directory.
    pub dir: PathBuf,
    /// When a new epoch is drawn.
    pub epoch: EpochPolicy,
    /// A new segment is begun at this size; at most a quarter of `bytes_max`.
    pub segment_bytes: u64,
    /// Bound of all segment files (each counted in whole 4 KiB blocks).
    pub bytes_max: u64,
    /// Segments whose newest record is older are dropped with a record. None: never.
    pub age_max: Option<Duration>,
    /// Free bytes that the journal leaves on the disk for others: with less, the disk counts as full.
    pub disk_reserve_bytes: u64,
    /// The largest payload accepted.
    pub record_bytes_max: usize,
    /// Bound of the memory batch that waits for the disk (two of them may exist: one waits, one is written).
    pub batch_bytes_max: usize,
    /// The writer thread begins a sync no sooner than this after it began the last one: a lone record is never
    /// held up, records that come densely share a sync. Zero: as fast as the disk allows.
    pub sync_interval: Duration,
    /// How long a record that nobody waits for ([`Urgency::Soon`]) may stay in memory, so that one sync serves many;
    /// a batch that is half full is written before. Flash that wears wants it long: the release marks wait as long.
    pub linger: Duration,
    /// What happens at `bytes_max` or on a full disk.
    pub when_full: WhenFull,
    /// The caller knows that all positions below were given out (its cursors): never give them again.
    pub next_seq_min: Seq,
    /// Who writes.
    pub writer: WriterMode,
    /// What a test leaves out.
    #[cfg(any(test, feature = "sim"))]
    pub sabotage: Sabotage,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            epoch: EpochPolicy::PerOpen,
            segment_bytes: 64 * 1024 * 1024,
            bytes_max: 1024 * 1024 * 1024,
            age_max: None,
            disk_reserve_bytes: 0,
            record_bytes_max: 1024 * 1024,
            batch_bytes_max: 8 * 1024 * 1024,
            sync_interval: Duration::ZERO,
            linger: LINGER,
            when_full: WhenFull::Refuse,
            next_seq_min: 1,
            writer: WriterMode::Thread,
            #[cfg(any(test, feature = "sim"))]
            sabotage: Sabotage::None,
        }
    }
}

/// How soon an appended record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// At once: somebody waits for it.
    Now,
    /// With the next urgent record, or after [`Options::linger`] at the latest.
    Soon,
}

/// How long a record that nobody waits for may stay in memory, unless [`Options::linger`] says otherwise.
pub const LINGER: Duration = Duration::from_millis(5);

/// Seqs `first..next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqRange {
    /// The first seq.
    pub first: Seq,
    /// One past the last.
    pub next: Seq,
}

impl SeqRange {
    /// How many seqs.
    #[must_use]
    pub fn count(self) -> u64 {
        self.next.saturating_sub(self.first)
    }
}

/// What opening found and mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The epoch of records appended from now on.
    pub epoch: u64,
    /// The oldest record held.
    pub first_seq: Seq,
    /// The seq that the next record gets.
    pub next_seq: Seq,
    /// Bytes of a torn tail that were cut off; they were never accepted.
    pub tail_bytes_dropped: u64,
    /// Damaged ranges found now for the first time; each also has a drop record.
    pub corrupt: Vec<SeqRange>,
    /// The control state was unreadable and was rebuilt from the segments: unconfirmed drop records are lost.
    pub control_lost: bool,
    /// Segment files held.
    pub segments: usize,
    /// Bytes of the segment files.
    pub bytes: u64,
}

/// Why records were dropped. The journal writes the first three, callers their own; never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropReason(pub u8);

impl DropReason {
    /// The byte bound or the disk was full.
    pub const QUEUE_FULL: Self = Self(1);
    /// Older than `age_max`.
    pub const EXPIRED: Self = Self(2);
    /// Damaged on the disk.
    pub const CORRUPT: Self = Self(3);
}

/// Accepted records `first..=last` that no reader will get (or that the caller gave up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropRecord {
    /// The opening that took them.
    pub epoch: u64,
    /// The first seq.
    pub first: Seq,
    /// The last seq.
    pub last: Seq,
    /// The class of the first one; 0 where damage hides it.
    pub class: u8,
    /// Why.
    pub reason: DropReason,
    /// Bytes on the disk, about.
    pub bytes: u64,
}

/// One opening for writing (or, per log, the log itself): it took `first..next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Its epoch.
    pub epoch: u64,
    /// The first seq that it could give.
    pub first: Seq,
    /// All below was accepted (fsynced).
    pub next: Seq,
    /// It takes no more records.
    pub closed: bool,
}

/// What a reader's release mark means to retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Records stay until this reader released them (or a bound drops them, with a record).
    Pins,
    /// Records stay until this reader released them, as long as it holds up no more than half of `bytes_max`,
    /// or on a full disk half of what the journal has;
    /// a reader that lags by more is moved forward, and its next batch lists the range in [`Batch::skipped`].
    /// So it never makes an append meet `bytes_max` or a full disk. Under [`WhenFull::DropOldest`] it holds nothing against a
    /// drop, and no drop record is made for it.
    HoldsHalf,
    /// The reader only follows; records may go before it came by.
    Follows,
}

/// What one [`crate::Reader::next_batch`] delivered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Batch {
    /// Where the reader stood.
    pub from: Seq,
    /// Where it stands now; all below was delivered or is in `skipped`.
    pub next: Seq,
    /// Records delivered.
    pub records: usize,
    /// Ranges that are not there: dropped, released by others, or damaged.
    pub skipped: Vec<SeqRange>,
}

/// Which bound an append met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullOf {
    /// The memory batch waits for the disk.
    Memory,
    /// `bytes_max` is reached.
    Bytes,
    /// The disk has no space but [`Options::disk_reserve_bytes`]; records in the batch wait for it.
    Disk,
    /// [`DROPS_MAX`] drop records wait to be confirmed.
    DropRecords,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Try again later.
    #[error("journal is full ({of:?})")]
    Full {
        /// The bound.
        of: FullOf,
    },
    /// Never tried again.
    #[error("record has {bytes} bytes, more than {max}")]
    TooLarge {
        /// The payload's bytes.
        bytes: usize,
        /// The bytes allowed.
        max: usize,
    },
    /// The journal stopped: closed, or the disk failed for good.
    #[error("journal stopped")]
    Failed,
}

/// Why the journal could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A step on the disk failed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The options contradict each other.
    #[error("journal options: {0}")]
    Options(&'static str),
    /// Another process or handle has the journal open.
    #[error("journal {dir} is already open")]
    Locked {
        /// The journal's directory.
        dir: PathBuf,
    },
    /// Written by a newer build.
    #[error("{path} has format version {version}, newest known is {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
        /// This build's.
        known: u16,
    },
    /// So much is damaged that the drop records do not fit.
    #[error("journal has more damaged ranges than the {SLOT_BYTES} bytes of its control state hold")]
    TooCorrupt,
    /// The journal stopped.
    #[error("journal stopped: {0}")]
    Failed(String),
    /// No space on the disk (only told where the caller is the writer; else the call waits).
    #[error("journal's disk is full")]
    DiskFull,
    /// [`DROPS_MAX`] drop records wait to be confirmed.
    #[error("journal has too many unconfirmed drop records: expected at most {DROPS_MAX}")]
    DropsFull,
    /// No reader has this name.
    #[error("journal has no reader {0}")]
    UnknownReader(String),
    /// [`READERS_MAX`] reached, or the name is empty or longer than [`READER_NAME_BYTES_MAX`].
    #[error(
        "journal refuses the reader {0:?}: expected a name of 1 to {READER_NAME_BYTES_MAX} bytes, at most {READERS_MAX} readers"
    )]
    Reader(String),
    /// The reader's position was never given out: the log's end is lost. See [`Options::next_seq_min`].
    #[error("journal ends at {next}, before the reader's position {from}")]
    BeyondEnd {
        /// The reader's position.
        from: Seq,
        /// The journal's next seq.
        next: Seq,
    },
    /// No random bytes for the epoch.
    #[error("cannot draw an epoch")]
    Random,
}

/// What a journal gave to its disk, for those who count a flash's wear. What the file system writes of its own
/// (its journal, its inodes) is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// Bytes of records, headers and control states.
    pub bytes: u64,
    /// The 4 KiB blocks that they touched between two syncs, in bytes: what a flash writes at least.
    pub block_bytes: u64,
    /// Syncs of files and of the directory.
    pub syncs: u64,
}

/// Counters and sizes at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// The oldest record held.
    pub first_seq: Seq,
    /// All below is durable.
    pub durable_next: Seq,
    /// The seq that the next append gets.
    pub next_seq: Seq,
    /// All below is released by every pinning reader.
    pub released: Seq,
    /// Segment files.
    pub segments: usize,
    /// Their bytes in whole blocks.
    pub bytes: u64,
    /// Bytes that wait in memory.
    pub batch_bytes: usize,
    /// Records appended since the opening.
    pub appended: u64,
    /// Batches made durable since the opening.
    pub batches: u64,
    /// Appends refused since the opening because something was full.
    pub refused: u64,
    /// Syncs that failed since the opening.
    pub sync_failures: u64,
    /// What went to the disk since the opening.
    pub written: Written,
    /// Drop records not yet confirmed.
    pub drops: usize,
    /// Records dropped over the journal's life: (reason, records, bytes).
    pub dropped: Vec<(DropReason, u64, u64)>,
    /// Openings that were forgotten unconfirmed because of [`OPENINGS_MAX`].
    pub openings_evicted: u64,
    /// Which bound holds the writer up now.
    pub stalled: Option<FullOf>,
    /// Why the journal stopped.
    pub failed: Option<String>,
}
