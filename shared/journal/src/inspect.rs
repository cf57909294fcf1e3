//! Looks at a journal's directory without opening it for writing: for `queue inspect` and for oracles of tests.

use crate::codec::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::control::{CONTROL_NAME, CONTROL_VERSION, Control, ControlFile, Loaded};
use crate::fs::{Fs, FsFile};
use crate::recover::scan_region;
use crate::scan::Region;
use crate::state::{io_error, segment_id, segment_name};
use crate::types::{DropReason, DropRecord, JournalError, Opening, RECORD_BYTES_LIMIT, Seq, SeqRange};
use std::io;
use std::path::Path;

/// What a directory holds. While its journal is open elsewhere, this is a view that may be seconds old.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Inspection {
    /// One past the last record found: seqs `1..next_seq` were given out over the journal's life.
    pub next_seq: Seq,
    /// Openings not forgotten; the `next` of one that was not closed is taken from the segments.
    pub openings: Vec<Opening>,
    /// Drop records not yet confirmed.
    pub drops: Vec<DropRecord>,
    /// Records dropped over the journal's life: (reason, records, bytes).
    pub dropped: Vec<(DropReason, u64, u64)>,
    /// Records on the disk, by epoch.
    pub held: Vec<(u64, SeqRange)>,
    /// Release marks of the readers.
    pub released: Vec<(String, Seq)>,
    /// Damaged ranges on the disk.
    pub corrupt: Vec<SeqRange>,
}

/// Reads a journal's directory; changes nothing and takes no lock.
///
/// # Errors
/// A file cannot be read or was written by a newer build. A directory without a journal is an empty inspection.
pub fn inspect<F: Fs>(fs: &F, dir: &Path) -> Result<Inspection, JournalError> {
    let control = match load(fs, dir)? {
        Some(control) => control,
        None => Control::fresh(),
    };
    let mut found = Inspection {
        next_seq: control.durable_next,
        openings: control.openings.clone(),
        drops: control.drops.clone(),
        dropped: control.totals.clone(),
        released: control.readers.iter().map(|mark| (mark.name.clone(), mark.released)).collect(),
        ..Inspection::default()
    };
    let mut headers = headers(fs, dir)?;
    headers.sort_unstable_by_key(|header| header.id);
    let uppers: Vec<Seq> = headers.iter().skip(1).map(|header| header.first_seq).chain([Seq::MAX]).collect();
    for (header, upper) in headers.into_iter().zip(uppers) {
        if upper <= control.first_seq {
            continue;
        }
        look_at(fs, dir, header, upper, &control, &mut found)?;
    }
    for opening in found.openings.iter_mut().filter(|opening| !opening.closed) {
        opening.next = opening.next.max(found.next_seq);
    }
    Ok(found)
}

fn look_at<F: Fs>(
    fs: &F,
    dir: &Path,
    header: SegmentHeader,
    upper: Seq,
    control: &Control,
    found: &mut Inspection,
) -> Result<(), JournalError> {
    let path = dir.join(segment_name(header.id));
    let file = match fs.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| io_error("open", &path, source))?,
    };
    let end = file.len().map_err(|source| io_error("read", &path, source))?;
    let region = Region { file: &file, end, salt: header.salt(), record_bytes_max: RECORD_BYTES_LIMIT };
    let hint = if upper == Seq::MAX { control.durable_next } else { upper };
    let scan = scan_region(&region, header, upper, hint).map_err(|source| io_error("read", &path, source))?;
    let mut first = header.first_seq.max(control.first_seq);
    for hole in &scan.holes {
        if first < hole.first {
            found.held.push((header.epoch, SeqRange { first, next: hole.first }));
        }
        first = first.max(hole.next);
        found.corrupt.push(*hole);
    }
    if first < scan.next {
        found.held.push((header.epoch, SeqRange { first, next: scan.next }));
    }
    found.next_seq = found.next_seq.max(scan.next);
    Ok(())
}

fn load<F: Fs>(fs: &F, dir: &Path) -> Result<Option<Control>, JournalError> {
    let path = dir.join(CONTROL_NAME);
    let file = match fs.open_read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| io_error("open", &path, source))?,
    };
    match ControlFile::load(file).map_err(|source| io_error("read", &path, source))?.1 {
        Loaded::Good(control) => Ok(Some(control)),
        Loaded::None => Ok(None),
        Loaded::Version(version) => Err(JournalError::Version { path, version, known: CONTROL_VERSION }),
    }
}

fn headers<F: Fs>(fs: &F, dir: &Path) -> Result<Vec<SegmentHeader>, JournalError> {
    let names = match fs.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| io_error("list", dir, source))?,
    };
    let mut headers = Vec::new();
    for name in names.iter().filter(|name| segment_id(name).is_some()) {
        let path = dir.join(name);
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let read = fs.open_read(&path).and_then(|file| file.read_at(&mut bytes, 0));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("read", &path, source)),
            Ok(_) => headers.extend(SegmentHeader::decode(&bytes).ok()),
        }
    }
    Ok(headers)
}
