//! The durable segmented log: the agent's queue and the server's event log stand on it.
//!
//! # Contract
//! A record is **accepted** once [`Journal::durable_next`] is above its seq: after the fdatasync of its batch
//! and, for a segment's first batch, of the directory. An accepted record is served to every reader, unchanged
//! and in order, until each pinning reader released it, or it is listed in a durable drop record with a reason.
//! This holds over power cuts at any point, dead processes, full disks, failing syncs, and damage to the disk:
//!
//! - **Order and identity.** Seqs count from 1 and continue over openings; none that was accepted is given out again.
//!   `(epoch, seq)` names a record for ever: the epoch is new at each opening ([`EpochPolicy::PerOpen`]) or made
//!   with the log ([`EpochPolicy::PerLog`]). A log whose end was lost goes on behind [`Options::next_seq_min`].
//! - **Append never waits for the disk.** It copies into a memory batch of at most `batch_bytes_max` and says `Full`
//!   when that waits for the disk, when `bytes_max` is reached, or when the disk is full. One writer takes the batch,
//!   writes it in one call, syncs it, then moves the durable mark; what is appended meanwhile is the next batch.
//!   A record that nobody waits for ([`Urgency::Soon`]) may gather with others for [`Options::linger`].
//! - **Crash.** Only the last batch can be torn. Opening cuts a torn tail off, writes the last batch again and syncs
//!   it before it is served, so a process that died between write and sync leaves nothing half accepted.
//!   Records that were appended but never accepted may survive a crash; then they are accepted.
//! - **A failed fdatasync is never retried.** The segment ends at its last durable record, the batch goes to a fresh
//!   segment, and whatever reached the failed one beyond is void. Three in a row stop the journal: every call says
//!   `Failed`, nothing more is accepted, and opening again finds all that was.
//! - **Full.** [`WhenFull::Refuse`] refuses appends and keeps what it has; a batch that met a full disk waits in
//!   memory and is written when there is space. [`WhenFull::DropOldest`] drops the oldest segment. The control file is
//!   preallocated, so the drop record is durable before the file goes, on a full disk too. A disk counts as full while
//!   [`Options::disk_reserve_bytes`] or less are free.
//! - **Readers.** [`Pin::Pins`] keeps records until it released them; [`Pin::HoldsHalf`] too, but never more than half
//!   of `bytes_max`, or on a full disk of what there is; [`Pin::Follows`] keeps nothing. A reader that was overtaken
//!   finds the range in [`Batch::skipped`].
//! - **Damage.** Every record has a CRC32C, checked on opening and again on each read. A damaged record is skipped and
//!   listed as dropped ([`DropReason::CORRUPT`]); its neighbours are served. Where nothing proves that the
//!   damaged bytes were durable (the last batch before a crash) they count as a torn tail.
//! - **Bounds.** Segments: `bytes_max` (in whole 4 KiB blocks) and `age_max` (whole segments; not before the clock was
//!   set). Memory: two batches, 128 KiB a reader. Control state: [`DROPS_MAX`] drop records (then appends are refused
//!   rather than drops forgotten), [`OPENINGS_MAX`] openings, [`READERS_MAX`] readers.
//!
//! # Cast
//! `append` fills the batch; `writer` (one thread) owns the active segment and the control file; `retain` is its part
//! that removes segments; `reader` walks durable records; `recover` opens a directory; `scan` and `codec` know the
//! bytes; `control` is the small state beside the segments. A consumer's cursor lives with its effects, not here:
//! the journal keeps only release marks.
//!
//! # Files
//! `<id>.seg` (16 hex digits; ids grow), `control` (two slots), `lock`. Segment: a header of 128 bytes (two copies), then
//! records: CRC32C, length, seq, appended_at, lag, class, magic (32 bytes), payload. `lag` is the distance to the
//! first record of the same batch: all before that one was durable when this one was written.
//!
//! # Limits
//! A drop record may cover records that a reader holds but has not released: whoever counts takes stored before dropped.
//! A bit that flips in the very last batch before an unclean end cannot be told from a torn write. One class per
//! journal where drops are to be told by class: a drop record carries the class of its segment's first record.

mod append;
mod codec;
mod control;
pub mod fs;
mod inspect;
mod journal;
mod ranges;
mod reader;
mod recover;
mod retain;
mod scan;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod state;
mod thread;
#[cfg(any(test, feature = "sim"))]
pub mod trials;
mod types;
mod writer;

pub use fs::{Fs, FsFile, RealFs};
pub use inspect::{Inspection, inspect};
pub use journal::Journal;
pub use reader::Reader;
pub use types::*;
