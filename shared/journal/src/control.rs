//! The journal's small state beside its segments: openings, drop records, damaged ranges, release marks.
//!
//! One preallocated file of two slots, written in turn, so that a full disk or a torn write never costs the
//! last good state: a drop record can be made durable on a full disk *before* the segment that it
//! describes is removed. After a failed write or sync the same slot is written anew; the other one
//! stays the last good state.

use crate::codec::{u16_at, u32_at, u64_at};
use crate::fs::FsFile;
use crate::types::{DropReason, DropRecord, OPENINGS_MAX, Opening, Pin, Seq, SeqRange};
use std::io;

/// The file's name in the journal's directory.
pub(crate) const CONTROL_NAME: &str = "control";
/// The format that this build writes.
pub(crate) const CONTROL_VERSION: u16 = 1;
/// Bytes of one slot: about 2,000 drop records, 256 openings, 512 damaged ranges and 16 readers.
pub(crate) const SLOT_BYTES: usize = 128 * 1024;

const CONTROL_MAGIC: [u8; 8] = *b"MUSTERC\n";
const SLOT_HEADER_BYTES: usize = 24;
const CRC_BYTES: usize = 4;
/// Distinct drop reasons with a total of their own; further ones share the last.
const TOTALS_MAX: usize = 32;

/// A reader's release mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) name: String,
    pub(crate) pin: Pin,
    pub(crate) released: Seq,
}

/// The state.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Control {
    /// Segments wholly below are released or dropped, and may be removed.
    pub(crate) first_seq: Seq,
    /// All below was durable when this was written.
    pub(crate) durable_next: Seq,
    /// Ids below were used.
    pub(crate) next_segment_id: u64,
    pub(crate) openings_evicted: u64,
    pub(crate) openings: Vec<Opening>,
    pub(crate) drops: Vec<DropRecord>,
    /// Damaged or missing ranges that have their drop record already.
    pub(crate) holes: Vec<SeqRange>,
    pub(crate) readers: Vec<Mark>,
    /// Records and bytes dropped over the journal's life, by reason.
    pub(crate) totals: Vec<(DropReason, u64, u64)>,
}

impl Control {
    pub(crate) fn fresh() -> Self {
        Self { first_seq: 1, durable_next: 1, ..Self::default() }
    }

    /// All below is released by every pinning reader; without one nothing is.
    pub(crate) fn released(&self) -> Seq {
        let pins = self.readers.iter().filter(|mark| mark.pin == Pin::Pins);
        pins.map(|mark| mark.released).min().unwrap_or(0).max(self.first_seq)
    }

    /// The lowest mark of the readers that hold half.
    pub(crate) fn held(&self) -> Option<Seq> {
        let holds = self.readers.iter().filter(|mark| mark.pin == Pin::HoldsHalf);
        holds.map(|mark| mark.released).min()
    }

    /// Counts a drop in the totals.
    pub(crate) fn count_drop(&mut self, reason: DropReason, records: u64, bytes: u64) {
        let known = self.totals.iter().position(|total| total.0 == reason);
        let at = known.unwrap_or(self.totals.len()).min(TOTALS_MAX - 1);
        if at == self.totals.len() {
            self.totals.push((reason, 0, 0));
        }
        self.totals[at].1 += records;
        self.totals[at].2 += bytes;
    }

    /// Adds an opening; beyond [`OPENINGS_MAX`] the oldest goes, released ones first.
    pub(crate) fn push_opening(&mut self, opening: Opening) {
        if self.openings.len() >= OPENINGS_MAX {
            let released = self.released();
            let at = self.openings.iter().position(|held| held.closed && held.next <= released).unwrap_or(0);
            self.openings.remove(at);
            self.openings_evicted += 1;
        }
        self.openings.push(opening);
    }

    /// The parts of a range by the opening that took them; `otherwise` where none is known.
    pub(crate) fn by_opening(&self, range: SeqRange, otherwise: u64) -> Vec<(u64, SeqRange)> {
        let mut parts = Vec::new();
        for opening in &self.openings {
            let next = if opening.closed { opening.next } else { Seq::MAX };
            let part = SeqRange { first: range.first.max(opening.first), next: range.next.min(next) };
            if part.first < part.next {
                parts.push((opening.epoch, part));
            }
        }
        let covered: Vec<_> = parts.iter().map(|part| part.1).collect();
        parts.extend(crate::ranges::subtract(range, covered).into_iter().map(|part| (otherwise, part)));
        parts
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        for word in [self.first_seq, self.durable_next, self.next_segment_id, self.openings_evicted] {
            put(&mut out, word);
        }
        put(&mut out, self.openings.len() as u64);
        for opening in &self.openings {
            for word in [opening.epoch, opening.first, opening.next, u64::from(opening.closed)] {
                put(&mut out, word);
            }
        }
        put(&mut out, self.drops.len() as u64);
        for drop in &self.drops {
            let kind = u64::from(drop.class) << 8 | u64::from(drop.reason.0);
            for word in [drop.epoch, drop.first, drop.last, drop.bytes, kind] {
                put(&mut out, word);
            }
        }
        put(&mut out, self.holes.len() as u64);
        for hole in &self.holes {
            put(&mut out, hole.first);
            put(&mut out, hole.next);
        }
        put(&mut out, self.readers.len() as u64);
        for mark in &self.readers {
            put(&mut out, mark.released);
            let pin = match mark.pin {
                Pin::Follows => 0,
                Pin::Pins => 1,
                Pin::HoldsHalf => 2,
            };
            put(&mut out, pin << 8 | mark.name.len() as u64);
            out.extend_from_slice(mark.name.as_bytes());
        }
        put(&mut out, self.totals.len() as u64);
        for (reason, records, bytes) in &self.totals {
            for word in [u64::from(reason.0), *records, *bytes] {
                put(&mut out, word);
            }
        }
        out
    }

    /// None where the bytes are not what [`Control::encode`] writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take { bytes };
        let mut control = Self {
            first_seq: take.word()?,
            durable_next: take.word()?,
            next_segment_id: take.word()?,
            openings_evicted: take.word()?,
            ..Self::default()
        };
        for _ in 0..take.count()? {
            let (epoch, first, next) = (take.word()?, take.word()?, take.word()?);
            control.openings.push(Opening { epoch, first, next, closed: take.word()? != 0 });
        }
        for _ in 0..take.count()? {
            let (epoch, first, last, bytes) = (take.word()?, take.word()?, take.word()?, take.word()?);
            let kind = take.word()?;
            let (class, reason) = ((kind >> 8) as u8, DropReason(kind as u8));
            control.drops.push(DropRecord { epoch, first, last, class, reason, bytes });
        }
        for _ in 0..take.count()? {
            control.holes.push(SeqRange { first: take.word()?, next: take.word()? });
        }
        for _ in 0..take.count()? {
            let (released, kind) = (take.word()?, take.word()?);
            // A build before `HoldsHalf` takes it for `Follows` too, which every reader can live with.
            let pin = match kind >> 8 {
                1 => Pin::Pins,
                2 => Pin::HoldsHalf,
                _ => Pin::Follows,
            };
            let name = String::from_utf8(take.bytes((kind & 0xff) as usize)?.to_vec()).ok()?;
            control.readers.push(Mark { name, pin, released });
        }
        for _ in 0..take.count()? {
            control.totals.push((DropReason(take.word()? as u8), take.word()?, take.word()?));
        }
        take.bytes.is_empty().then_some(control)
    }
}

fn put(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}

struct Take<'a> {
    bytes: &'a [u8],
}

impl<'a> Take<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn word(&mut self) -> Option<u64> {
        self.bytes(8).map(|word| u64_at(word, 0))
    }

    fn count(&mut self) -> Option<u64> {
        self.word().filter(|count| *count <= SLOT_BYTES as u64 / 8)
    }
}

/// What a control file held.
#[derive(Debug)]
pub(crate) enum Loaded {
    Good(Control),
    /// Neither slot is whole: never finished, or damaged.
    None,
    /// Written by a newer build.
    Version(u16),
}

/// The open file.
pub(crate) struct ControlFile<File> {
    file: File,
    generation: u64,
    good_slot: usize,
}

impl<File: FsFile> ControlFile<File> {
    /// Reads the newer whole slot.
    pub(crate) fn load(file: File) -> io::Result<(Self, Loaded)> {
        let mut best: Option<(u64, usize, Control)> = None;
        let mut newer = None;
        for slot in 0..2 {
            match read_slot(&file, slot)? {
                Slot::Good(generation, control) => {
                    if best.as_ref().is_none_or(|held| held.0 < generation) {
                        best = Some((generation, slot, control));
                    }
                }
                Slot::Version(version) => newer = Some(version),
                Slot::Damaged => {}
            }
        }
        let this = |generation, good_slot| Self { file, generation, good_slot };
        Ok(match (best, newer) {
            (_, Some(version)) => (this(0, 1), Loaded::Version(version)),
            (Some((generation, slot, control)), None) => (this(generation, slot), Loaded::Good(control)),
            (None, None) => (this(0, 1), Loaded::None),
        })
    }

    /// Writes zeros over both slots, so that their blocks are there when the disk is full.
    pub(crate) fn preallocate(&self) -> io::Result<()> {
        self.file.write_all_at(&vec![0; 2 * SLOT_BYTES], 0)
    }

    /// Writes the last good state again where it stands. After a failed sync and a dead process the page cache
    /// shows a state that is not on the disk; whoever acts on it before this would act on nothing.
    pub(crate) fn settle(&mut self, control: &Control, sync: bool) -> io::Result<()> {
        self.generation -= 1;
        self.good_slot = 1 - self.good_slot;
        self.save(control, sync).map(|_| ())
    }

    /// Writes the state into the slot that does not hold the last good one; durable when it returns Ok, with the bytes.
    /// `TooLarge` states (`InvalidInput`) change nothing.
    pub(crate) fn save(&mut self, control: &Control, sync: bool) -> io::Result<u64> {
        let body = control.encode();
        if SLOT_HEADER_BYTES + body.len() + CRC_BYTES > SLOT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "control state is too large"));
        }
        let generation = self.generation + 1;
        let mut bytes = Vec::with_capacity(SLOT_HEADER_BYTES + body.len() + CRC_BYTES);
        bytes.extend_from_slice(&CONTROL_MAGIC);
        bytes.extend_from_slice(&u32::from(CONTROL_VERSION).to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&generation.to_le_bytes());
        bytes.extend_from_slice(&body);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let slot = 1 - self.good_slot;
        // A slot that was not synced may still be whole on the disk: never give its generation again.
        self.generation = generation;
        self.file.write_all_at(&bytes, (slot * SLOT_BYTES) as u64)?;
        if sync {
            self.file.sync_data()?;
        }
        self.good_slot = slot;
        Ok(bytes.len() as u64)
    }
}

enum Slot {
    Good(u64, Control),
    Damaged,
    Version(u16),
}

fn read_slot<File: FsFile>(file: &File, slot: usize) -> io::Result<Slot> {
    let mut bytes = vec![0; SLOT_BYTES];
    let mut held = 0;
    while held < bytes.len() {
        match file.read_at(&mut bytes[held..], (slot * SLOT_BYTES + held) as u64)? {
            0 => break,
            read => held += read,
        }
    }
    let len = u32_at(&bytes, 12) as usize;
    if bytes[..8] != CONTROL_MAGIC || SLOT_HEADER_BYTES + len + CRC_BYTES > SLOT_BYTES {
        return Ok(Slot::Damaged);
    }
    let crc_at = SLOT_HEADER_BYTES + len;
    if crc32c::crc32c(&bytes[..crc_at]) != u32_at(&bytes, crc_at) {
        return Ok(Slot::Damaged);
    }
    let version = u16_at(&bytes, 8);
    if version != CONTROL_VERSION {
        return Ok(Slot::Version(version));
    }
    Ok(match Control::decode(&bytes[SLOT_HEADER_BYTES..crc_at]) {
        Some(control) => Slot::Good(u64_at(&bytes, 16), control),
        None => Slot::Damaged,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Control {
        Control {
            first_seq: 3,
            durable_next: 9,
            next_segment_id: 4,
            openings_evicted: 1,
            openings: vec![Opening { epoch: 7, first: 1, next: 9, closed: true }],
            drops: vec![DropRecord {
                epoch: 7,
                first: 1,
                last: 2,
                class: 5,
                reason: DropReason(3),
                bytes: 64,
            }],
            holes: vec![SeqRange { first: 1, next: 3 }],
            readers: vec![
                Mark { name: "uplink".into(), pin: Pin::Pins, released: 3 },
                Mark { name: "rules".into(), pin: Pin::HoldsHalf, released: 2 },
                Mark { name: "live".into(), pin: Pin::Follows, released: 1 },
            ],
            totals: vec![(DropReason(3), 2, 64)],
        }
    }

    #[test]
    fn control_round_trips_and_refuses_every_prefix() {
        let bytes = sample().encode();
        assert_eq!(Control::decode(&bytes), Some(sample()));
        for cut in 0..bytes.len() {
            assert_eq!(Control::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn golden_control_version_1() {
        let hex: String = sample().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let word = |value: u8| format!("{value:02x}00000000000000");
        let opening = [7, 1, 9, 1].map(word).concat();
        let drop = [7, 1, 2, 64].map(word).concat() + "0305000000000000";
        let head = [3, 9, 4, 1, 1].map(word).concat();
        let pins = [3, 3].map(word).concat() + "0601000000000000" + "75706c696e6b";
        let holds = word(2) + "0502000000000000" + "72756c6573";
        let follows = word(1) + "0400000000000000" + "6c697665";
        let reader = pins + &holds + &follows;
        let totals = [1, 3, 2, 64].map(word).concat();
        assert_eq!(
            hex,
            head + &opening + &word(1) + &drop + &[1, 1, 3].map(word).concat() + &reader + &totals
        );
    }

    #[test]
    fn largest_state_fits_a_slot() {
        let mut control = sample();
        control.openings = vec![control.openings[0]; OPENINGS_MAX];
        control.drops = vec![control.drops[0]; 2 * crate::types::DROPS_MAX];
        control.holes = vec![control.holes[0]; 512];
        control.readers =
            vec![
                Mark { name: "x".repeat(crate::types::READER_NAME_BYTES_MAX), pin: Pin::Pins, released: 1 };
                crate::types::READERS_MAX
            ];
        assert!(control.encode().len() + SLOT_HEADER_BYTES + CRC_BYTES <= SLOT_BYTES);
    }
}
