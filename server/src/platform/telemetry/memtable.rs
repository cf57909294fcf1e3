//! What is stored but not in the tables yet: readings, ledger changes and counts, by shard of devices (ADR 0016).
//!
//! The writer fills it from the log, `flush` moves one shard after another into the tables, each with its mark in the
//! cursor's row: all of the log below a shard's mark is in the tables, for the devices of that shard. What a crash
//! takes of it is read from the log again, which is released behind the oldest mark.
//!
//! Bounds: the consumer flushes over [`ENTRIES_MAX`] entries in all or [`SHARD_ENTRIES_MAX`] in one shard.

use super::ledger::Ledger;
use super::names::Names;
use super::partition::{Partitions, ReadingRow};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Parts of the fleet that are flushed one after the other: a flush is as short as its shard is small.
pub const SHARDS: usize = 64;
/// Neighbours by id share a shard: their rows in the ledger share pages. 2^4 devices.
const NEIGHBOURS_BITS: u32 = 4;
/// Readings and records held before shards are flushed ahead of their time. A reading takes 80 bytes, and its text.
pub const ENTRIES_MAX: usize = 1_000_000;
/// As [`ENTRIES_MAX`], for one shard: its flush is one transaction.
pub const SHARD_ENTRIES_MAX: usize = 65_536;
/// Queues with changes that are held.
pub const DIRTY_QUEUES_MAX: usize = 40_000;

/// The shard of a device.
pub(super) fn shard_of(device_id: i64) -> usize {
    (device_id >> NEIGHBOURS_BITS).rem_euclid(SHARDS as i64) as usize
}

/// How far the log is in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// Events, dead letters, rejected messages, presence and lost ranges, which are written with their batch.
    pub(super) direct: u64,
    /// Everything else, by shard.
    pub(super) shards: [u64; SHARDS],
}

impl Marks {
    pub(super) fn all(position: u64) -> Self {
        Self { direct: position, shards: [position; SHARDS] }
    }

    /// Below it the log is not needed any more.
    pub(super) fn oldest(&self) -> u64 {
        self.shards.iter().copied().min().unwrap_or(self.direct)
    }

    /// Moves every mark into a range of positions.
    pub(super) fn clamp(&mut self, low: u64, high: u64) {
        for mark in self.shards.iter_mut().chain([&mut self.direct]) {
            *mark = (*mark).clamp(low, high);
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [self.direct].iter().chain(&self.shards).flat_map(|mark| mark.to_le_bytes()).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (marks, []) = bytes.as_chunks::<8>() else { return None };
        let (direct, shards) = marks.split_first()?;
        let shards: &[[u8; 8]; SHARDS] = shards.try_into().ok()?;
        Some(Self { direct: u64::from_le_bytes(*direct), shards: shards.map(u64::from_le_bytes) })
    }
}

/// Where the store stands in the log.
#[derive(Clone, Debug)]
pub(super) struct Position {
    /// Of the log.
    pub(super) epoch: u64,
    /// All below is in the tables or in the memtable.
    pub(super) applied: u64,
    /// The newest stamp below.
    pub(super) received_at_us: i64,
    /// As the cursor's row has them.
    pub(super) marks: Marks,
}

/// One shard's readings and counts; its changes of the ledger are in [`Ledger`].
#[derive(Default)]
pub(super) struct Shard {
    pub(super) rows: Vec<ReadingRow>,
    /// Counters of tenants, to be added.
    pub(super) counts: BTreeMap<(i64, &'static str), u64>,
    /// Series and `ts` of what came keyed by name and time.
    pub(super) named: HashSet<(i64, i64)>,
    /// When the newest reading of each device came.
    pub(super) heard_at: HashMap<i64, i64>,
    /// Records that were accounted for, and what else takes memory.
    pub(super) records: usize,
}

impl Shard {
    pub(super) fn entries(&self) -> usize {
        self.rows.len() + self.records
    }

    pub(super) fn count(&mut self, tenant_id: i64, name: &'static str, by: u64) {
        *self.counts.entry((tenant_id, name)).or_default() += by;
    }

    /// Empties it and keeps about as much room as it needed.
    pub(super) fn clear(&mut self) {
        let room = self.rows.len();
        self.rows.clear();
        self.rows.shrink_to(room);
        (self.records, self.counts) = (0, BTreeMap::new());
        (self.named, self.heard_at) = (HashSet::new(), HashMap::new());
    }
}

/// All that the writer holds in memory. Everything in it can be had again from the tables and the log.
pub(super) struct Memtable {
    /// None: to be read from the cursor's row.
    pub(super) position: Option<Position>,
    pub(super) names: Names,
    pub(super) ledger: Ledger,
    pub(super) partitions: Partitions,
    pub(super) shards: Vec<Shard>,
    /// The shard that was flushed last in turn.
    pub(super) turn: usize,
}

impl Default for Memtable {
    fn default() -> Self {
        Self {
            position: None,
            names: Names::default(),
            ledger: Ledger::default(),
            partitions: Partitions::default(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            turn: 0,
        }
    }
}

impl Memtable {
    /// Throws all away but whose turn it is: a shard that cannot be flushed does not keep the others from it.
    pub(super) fn forget(&mut self) {
        *self = Self { turn: self.turn, ..Self::default() };
    }

    /// Keeps the caches within their bounds.
    pub(super) fn trim(&mut self) {
        self.names.trim();
        self.ledger.trim();
    }

    pub(super) fn is_pending(&self, shard: usize) -> bool {
        self.shards[shard].entries() > 0
            || !self.shards[shard].counts.is_empty()
            || self.ledger.is_dirty(shard)
    }

    pub(super) fn entries(&self) -> usize {
        self.shards.iter().map(Shard::entries).sum()
    }

    /// What to flush ahead of its time, the fullest first.
    pub(super) fn overfull(&self) -> Option<usize> {
        let entries = |shard: &usize| self.shards[*shard].entries();
        let fullest = (0..SHARDS).max_by_key(entries)?;
        if entries(&fullest) > SHARD_ENTRIES_MAX || self.entries() > ENTRIES_MAX {
            return Some(fullest);
        }
        if self.ledger.dirty_queues() > DIRTY_QUEUES_MAX {
            return (0..SHARDS).max_by_key(|shard| self.ledger.dirty_of(*shard).len());
        }
        None
    }

    /// The next in turn that has something.
    pub(super) fn next_in_turn(&self) -> Option<usize> {
        (1..=SHARDS).map(|step| (self.turn + step) % SHARDS).find(|shard| self.is_pending(*shard))
    }

    /// The marks as they are once `flushed` is in the tables: shards that hold nothing stand where the log was read to,
    /// or, while it is read again after a crash, where they stood before.
    pub(super) fn marks_after(&self, position: &Position, flushed: Option<usize>) -> Marks {
        let mut marks = position.marks.clone();
        for (shard, mark) in marks.shards.iter_mut().enumerate() {
            if Some(shard) == flushed || !self.is_pending(shard) {
                *mark = position.applied.max(*mark);
            }
        }
        marks
    }

    /// The readings of a series that are not in the tables.
    pub(super) fn rows_of(&self, device_id: i64, series_id: i64) -> impl Iterator<Item = &ReadingRow> {
        let rows = &self.shards[shard_of(device_id)].rows;
        rows.iter().filter(move |row| row.series_id == series_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written_and_nothing_else_is() {
        let mut marks = Marks::all(7);
        (marks.direct, marks.shards[63]) = (9, u64::MAX);
        let bytes = marks.to_bytes();
        assert_eq!(Marks::from_bytes(&bytes), Some(marks.clone()));
        assert_eq!(marks.oldest(), 7);
        for wrong in [&bytes[1..], &bytes[8..], &[]] {
            assert_eq!(Marks::from_bytes(wrong), None);
        }
        marks.clamp(8, 20);
        assert_eq!((marks.direct, marks.shards[0], marks.shards[63]), (9, 8, 20));
    }

    #[test]
    fn neighbours_share_a_shard_and_a_fleet_fills_them_all() {
        assert_eq!([shard_of(0), shard_of(15), shard_of(16), shard_of(-1)], [0, 0, 1, 63]);
        let filled: HashSet<usize> = (1..2_000).map(shard_of).collect();
        assert_eq!(filled.len(), SHARDS);
    }
}
