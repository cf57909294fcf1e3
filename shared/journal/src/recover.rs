//! Opens a directory: decides which bytes were accepted, mends the rest, writes down what is gone.
//!
//! Rules, from the way the writer works (one batch is written and synced before the next is begun; a
//! segment is created only after all before it is durable or given up; a segment is removed only after the
//! control state says so durably):
//! - only the newest segment can have an unsynced tail, and only its last batch can be unsynced;
//! - every segment's records end where the next segment's `first_seq` begins: what a failed segment holds
//!   beyond is void, what it lacks below is damage;
//! - in the newest segment a bad record is damage where something later proves that it was durable (a
//!   record of a later batch, or the control state's durable mark), else it is a torn tail and cut off;
//! - the last batch is written again in place and synced before it is served: after a killed process its
//!   bytes may only be in the page cache, and a failed sync leaves pages that look clean but are not on disk.

use crate::codec::{HeaderFault, RecordHeader, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader};
use crate::control::{CONTROL_NAME, CONTROL_VERSION, Control, ControlFile, Loaded};
use crate::fs::{Fs, FsFile};
use crate::ranges;
use crate::scan::{RECOVERY_CHUNK_BYTES, Region, Window};
use crate::state::{Segment, block_bytes, io_error, segment_id, segment_name};
use crate::types::{
    DropReason, DropRecord, EpochPolicy, JournalError, Opened, Opening, Options, RECORD_BYTES_LIMIT, Seq,
    SeqRange,
};
use crate::writer::syncs_control;
use std::collections::VecDeque;
use std::io;
use std::path::Path;

/// Damaged ranges told apart in one segment; at the next one the rest of the segment is given up.
const HOLES_PER_SEGMENT_MAX: usize = 16;

/// An opened directory, before the writer starts.
pub(crate) struct Recovered<F: Fs> {
    pub(crate) control: Control,
    pub(crate) control_file: ControlFile<F::File>,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) opened: Opened,
}

/// A segment file that was found.
struct Found<File> {
    file: File,
    header: SegmentHeader,
    bytes: u64,
}

/// What a scan of one segment found.
pub(crate) struct Scan {
    /// One past the last record.
    pub(crate) next: Seq,
    /// Where the next record would stand.
    pub(crate) end: u64,
    /// Where the last batch begins.
    pub(crate) batch_start: u64,
    pub(crate) holes: Vec<SeqRange>,
    pub(crate) segment: Segment,
}

/// Opens the directory for writing and persists what was found.
pub(crate) fn recover<F: Fs>(fs: &F, options: &Options, epoch: u64) -> Result<Recovered<F>, JournalError> {
    let dir = &options.dir;
    let (control_file, loaded) = open_control(fs, dir, options)?;
    let (found, mut torn_bytes, any) = open_segments(fs, dir, loaded.as_ref())?;
    let control_lost = loaded.is_none() && any;
    let fresh = loaded.is_none() && found.is_empty();
    let mut control = loaded.unwrap_or_else(|| {
        let first_seq = found.first().map_or(1, |segment| segment.header.first_seq);
        Control { first_seq, durable_next: first_seq, ..Control::fresh() }
    });
    let clean = control.openings.iter().all(|opening| opening.closed) && !control_lost;

    let walk = walk(fs, dir, &found, &control, clean)?;
    let Walk { segments, mut holes, expected, .. } = walk;
    torn_bytes += walk.torn_bytes;
    // Names that only the page cache knows become durable before their records are served.
    fs.sync_dir(dir).map_err(|source| io_error("sync", dir, source))?;

    let marks = control.readers.iter().map(|mark| mark.released).max().unwrap_or(0);
    let given = if fresh { 0 } else { options.next_seq_min };
    let next_seq = expected.max(control.durable_next).max(marks).max(given);
    if expected < next_seq {
        holes.push(SeqRange { first: expected, next: next_seq });
    }
    let ids = found.iter().map(|segment| segment.header.id + 1).max().unwrap_or(0);
    control.next_segment_id = control.next_segment_id.max(ids);
    let known_next = std::mem::replace(&mut control.durable_next, next_seq);
    close_openings(&mut control, &segments, known_next, next_seq, options.epoch);
    let corrupt = record_holes(&mut control, holes, &segments, epoch);
    let epoch = open_epoch(&mut control, options.epoch, epoch, next_seq);
    let opened = Opened {
        epoch,
        first_seq: segments.front().map_or(next_seq, |segment| segment.first_seq),
        next_seq,
        tail_bytes_dropped: torn_bytes,
        corrupt,
        control_lost,
        segments: segments.len(),
        bytes: segments.iter().map(|segment| block_bytes(segment.bytes)).sum(),
    };
    Ok(Recovered { control, control_file, segments, opened })
}

/// What the segments held.
struct Walk {
    segments: VecDeque<Segment>,
    holes: Vec<SeqRange>,
    /// One past the last record.
    expected: Seq,
    torn_bytes: u64,
}

/// Scans and mends the segments, oldest first, and removes those that hold nothing.
fn walk<F: Fs>(
    fs: &F,
    dir: &Path,
    found: &[Found<F::File>],
    control: &Control,
    clean: bool,
) -> Result<Walk, JournalError> {
    let mut walk =
        Walk { segments: VecDeque::new(), holes: Vec::new(), expected: control.first_seq, torn_bytes: 0 };
    let uppers = found.iter().skip(1).map(|segment| segment.header.first_seq).chain([Seq::MAX]);
    for (segment, upper) in found.iter().zip(uppers) {
        let header = segment.header;
        if upper <= control.first_seq {
            remove(fs, dir, header.id)?;
            continue;
        }
        if walk.expected < header.first_seq {
            walk.holes.push(SeqRange { first: walk.expected, next: header.first_seq });
        }
        let newest = upper == Seq::MAX;
        let hint = if newest { control.durable_next } else { upper };
        let path = dir.join(segment_name(header.id));
        let scan = scan(segment, upper, hint).map_err(|source| io_error("read", &path, source))?;
        walk.holes.extend(scan.holes.iter().copied());
        let torn = segment.bytes.saturating_sub(scan.end);
        if newest {
            walk.torn_bytes += torn;
        }
        mend(&segment.file, &scan, torn, newest && !clean)
            .map_err(|source| io_error("mend", &path, source))?;
        walk.expected = scan.next;
        if scan.next <= header.first_seq || scan.next <= control.first_seq {
            remove(fs, dir, header.id)?;
        } else {
            walk.segments.push_back(scan.segment);
        }
    }
    Ok(walk)
}

fn open_control<F: Fs>(
    fs: &F,
    dir: &Path,
    options: &Options,
) -> Result<(ControlFile<F::File>, Option<Control>), JournalError> {
    let path = dir.join(CONTROL_NAME);
    let (file, created) = match fs.open_write(&path) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (fs.create(&path).map_err(|source| io_error("create", &path, source))?, true)
        }
        Err(source) => return Err(io_error("open", &path, source)),
    };
    let (mut control_file, loaded) =
        ControlFile::load(file).map_err(|source| io_error("read", &path, source))?;
    match loaded {
        Loaded::Good(control) => {
            control_file
                .settle(&control, syncs_control(options))
                .map_err(|source| io_error("write", &path, source))?;
            Ok((control_file, Some(control)))
        }
        Loaded::Version(version) => Err(JournalError::Version { path, version, known: CONTROL_VERSION }),
        Loaded::None => {
            control_file.preallocate().map_err(|source| io_error("write", &path, source))?;
            if created {
                fs.sync_dir(dir).map_err(|source| io_error("sync", dir, source))?;
            }
            Ok((control_file, None))
        }
    }
}

/// Segments with a whole header, oldest first; bytes of the others, which are removed; whether any was there.
#[allow(clippy::type_complexity, reason = "used once, right above")]
fn open_segments<F: Fs>(
    fs: &F,
    dir: &Path,
    control: Option<&Control>,
) -> Result<(Vec<Found<F::File>>, u64, bool), JournalError> {
    let names = fs.list(dir).map_err(|source| io_error("list", dir, source))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment_id(name)).collect();
    ids.sort_unstable();
    let mut found: Vec<Found<F::File>> = Vec::with_capacity(ids.len());
    let mut torn_bytes = 0;
    for id in &ids {
        let path = dir.join(segment_name(*id));
        let open = || -> io::Result<(F::File, u64, [u8; SEGMENT_HEADER_BYTES])> {
            let file = fs.open_write(&path)?;
            let bytes = file.len()?;
            let mut header = [0; SEGMENT_HEADER_BYTES];
            let mut held = 0;
            while held < header.len() {
                match file.read_at(&mut header[held..], held as u64)? {
                    0 => break,
                    read => held += read,
                }
            }
            Ok((file, bytes, header))
        };
        let (file, bytes, header) = open().map_err(|source| io_error("open", &path, source))?;
        let in_order = |header: &SegmentHeader| {
            header.id == *id && found.last().is_none_or(|before| before.header.first_seq <= header.first_seq)
        };
        match SegmentHeader::decode(&header) {
            Ok(header) if in_order(&header) => found.push(Found { file, header, bytes }),
            Err(HeaderFault::Version(version)) => {
                return Err(JournalError::Version { path, version, known: SEGMENT_VERSION });
            }
            // A creation that never became durable, or damage: the gap that it leaves is recorded by the caller.
            Ok(_) | Err(HeaderFault::Damaged) => {
                torn_bytes += bytes;
                remove(fs, dir, *id)?;
            }
        }
    }
    let known = control.map_or(0, |control| control.first_seq);
    let any = ids.len() > found.len() || found.iter().any(|segment| segment.header.first_seq >= known);
    Ok((found, torn_bytes, any))
}

fn remove<F: Fs>(fs: &F, dir: &Path, id: u64) -> Result<(), JournalError> {
    let path = dir.join(segment_name(id));
    fs.remove(&path).map_err(|source| io_error("remove", &path, source))
}

fn scan<File: FsFile>(found: &Found<File>, upper: Seq, hint: Seq) -> io::Result<Scan> {
    let header = found.header;
    let region = Region {
        file: &found.file,
        end: found.bytes,
        salt: header.salt(),
        record_bytes_max: RECORD_BYTES_LIMIT,
    };
    scan_region(&region, header, upper, hint)
}

/// Walks a segment from its first record. `upper` bounds its seqs, all below `hint` is known to be durable.
pub(crate) fn scan_region<File: FsFile>(
    region: &Region<'_, File>,
    header: SegmentHeader,
    upper: Seq,
    hint: Seq,
) -> io::Result<Scan> {
    let mut window = Window::new(RECOVERY_CHUNK_BYTES);
    let mut segment = Segment::new(header);
    let mut seq = header.first_seq;
    let mut end = SEGMENT_HEADER_BYTES as u64;
    let mut batch_start = end;
    let mut holes: Vec<SeqRange> = Vec::new();
    while seq < upper {
        if let Some(record) = region.record_at(&mut window, end, seq)? {
            if record.lag == 0 {
                batch_start = end;
            }
            segment.note(&record, end);
            seq += 1;
            end += record.record_bytes() as u64;
            continue;
        }
        if holes.len() >= HOLES_PER_SEGMENT_MAX {
            break;
        }
        match find_proven(region, &mut window, end, seq, upper, hint)? {
            Some((offset, record)) => {
                holes.push(SeqRange { first: seq, next: record.seq });
                (seq, end) = (record.seq, offset);
            }
            None => break,
        }
    }
    if upper != Seq::MAX && seq < upper {
        holes.push(SeqRange { first: seq, next: upper });
        seq = upper;
    }
    segment.next_seq = seq;
    segment.bytes = end;
    Ok(Scan { next: seq, end, batch_start, holes, segment })
}

/// The first whole record after the bad one, if anything proves that the bad one was durable once.
fn find_proven<File: FsFile>(
    region: &Region<'_, File>,
    window: &mut Window,
    offset: u64,
    bad: Seq,
    upper: Seq,
    hint: Seq,
) -> io::Result<Option<(u64, RecordHeader)>> {
    let mut first = None;
    let (mut offset, mut seq_min) = (offset, bad + 1);
    let seq_max = upper.min(bad.saturating_add(region.end));
    while let Some((at, record)) = region.find_record(window, offset, seq_min, seq_max)? {
        let first = *first.get_or_insert((at, record));
        if hint > bad || record.durable_before() > bad {
            return Ok(Some(first));
        }
        offset = at + record.record_bytes() as u64;
        seq_min = record.seq + 1;
    }
    Ok(None)
}

/// Cuts the file at the end of its records and, where `unsure`, writes the last batch again; then syncs.
fn mend<File: FsFile>(file: &File, scan: &Scan, torn_bytes: u64, unsure: bool) -> io::Result<()> {
    if torn_bytes > 0 {
        file.set_len(scan.end)?;
    }
    if unsure {
        let first_batch = scan.batch_start == SEGMENT_HEADER_BYTES as u64;
        let mut at = if first_batch { 0 } else { scan.batch_start };
        let mut buf = vec![0; RECOVERY_CHUNK_BYTES];
        while at < scan.end {
            let want = usize::try_from(scan.end - at).unwrap_or(usize::MAX).min(buf.len());
            let read = file.read_at(&mut buf[..want], at)?;
            if read == 0 {
                break;
            }
            file.write_all_at(&buf[..read], at)?;
            at += read as u64;
        }
    }
    if torn_bytes > 0 || unsure { file.sync_data() } else { Ok(()) }
}

/// Closes what earlier openings left open. An opening that the control state cannot know of (it is lost, or an
/// older slot was read) is made from its segments; one that it knew and forgot stays forgotten.
fn close_openings(
    control: &mut Control,
    segments: &VecDeque<Segment>,
    known_next: Seq,
    next_seq: Seq,
    policy: EpochPolicy,
) {
    for segment in segments {
        let (epoch, first, next) = (segment.epoch, segment.first_seq, segment.next_seq);
        match control.openings.iter_mut().find(|opening| opening.epoch == epoch) {
            Some(opening) if opening.closed => opening.next = opening.next.max(next),
            Some(_) => {}
            None if first >= known_next => {
                control.push_opening(Opening { epoch, first, next, closed: true });
            }
            None => {}
        }
    }
    let any_open = control.openings.iter().any(|opening| !opening.closed);
    for opening in control.openings.iter_mut().filter(|opening| !opening.closed) {
        opening.next = opening.next.max(next_seq);
        opening.closed = true;
    }
    if !any_open
        && let Some(last) = control.openings.last_mut()
        && last.next < next_seq
    {
        last.next = next_seq;
    }
    // An opening that never took a record is nobody's business.
    control.openings.retain(|opening| opening.first < opening.next || policy == EpochPolicy::PerLog);
}

/// Writes drop records for damage that has none yet; returns the new ranges.
fn record_holes(
    control: &mut Control,
    holes: Vec<SeqRange>,
    segments: &VecDeque<Segment>,
    new_epoch: u64,
) -> Vec<SeqRange> {
    let otherwise = segments.front().map_or(new_epoch, |segment| segment.epoch);
    let first_seq = segments.front().map_or(control.durable_next, |segment| segment.first_seq);
    let floor = SeqRange { first: 0, next: control.released() };
    let mut corrupt = Vec::new();
    for hole in holes {
        let known: Vec<SeqRange> = control.holes.iter().copied().chain([floor]).collect();
        for range in ranges::subtract(hole, known) {
            for (epoch, part) in control.by_opening(range, otherwise) {
                let record = DropRecord {
                    epoch,
                    first: part.first,
                    last: part.next - 1,
                    class: 0,
                    reason: DropReason::CORRUPT,
                    bytes: 0,
                };
                ranges::insert_drop(&mut control.drops, record);
                control.count_drop(DropReason::CORRUPT, part.count(), 0);
            }
            ranges::insert(&mut control.holes, range);
            corrupt.push(range);
        }
    }
    control.first_seq = control.first_seq.max(first_seq);
    let first_seq = control.first_seq;
    control.holes.retain(|hole| hole.next > first_seq);
    corrupt
}

fn open_epoch(control: &mut Control, policy: EpochPolicy, random: u64, next_seq: Seq) -> u64 {
    if policy == EpochPolicy::PerLog
        && let Some(opening) = control.openings.last_mut()
    {
        opening.closed = false;
        return opening.epoch;
    }
    control.push_opening(Opening { epoch: random, first: next_seq, next: next_seq, closed: false });
    random
}
