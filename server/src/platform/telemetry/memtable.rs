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
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;

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

/// Readings in a block that ClickHouse did not confirm yet.
pub(super) struct Sent {
    pub(super) batch: i64,
    /// In order of their keys.
    pub(super) rows: Vec<ReadingRow>,
}

/// Readings of blocks that are kept until they are confirmed. Over it the oldest are let go: while ClickHouse is away
/// nobody can ask for them, and once it is back they are there soon.
pub const SENT_ROWS_MAX: usize = 1_000_000;

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
    /// On their way to ClickHouse, the oldest first; empty where readings stay here.
    pub(super) sent: VecDeque<Sent>,
    /// All batches up to this one are in ClickHouse.
    confirmed: i64,
    /// Events wait to be packed.
    pub(super) events_wait: bool,
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
            sent: VecDeque::new(),
            confirmed: 0,
            events_wait: false,
        }
    }
}

impl Memtable {
    /// Throws all away but whose turn it is: a shard that cannot be flushed does not keep the others from it.
    pub(super) fn forget(&mut self) {
        *self = Self {
            turn: self.turn,
            confirmed: self.confirmed,
            events_wait: self.events_wait,
            ..Self::default()
        };
    }

    /// ClickHouse has all batches up to this one.
    pub(super) fn confirm(&mut self, batch: i64) {
        self.confirmed = self.confirmed.max(batch);
        while self.sent.front().is_some_and(|sent| sent.batch <= batch) {
            self.sent.pop_front();
        }
    }

    /// The newest batch that ClickHouse confirmed.
    pub(super) fn confirmed(&self) -> i64 {
        self.confirmed
    }

    /// Keeps readings that were packed into a block until it is confirmed.
    pub(super) fn keep_sent(&mut self, batch: i64, rows: Vec<ReadingRow>) {
        self.sent.push_back(Sent { batch, rows });
        while self.sent.iter().map(|sent| sent.rows.len()).sum::<usize>() > SENT_ROWS_MAX {
            self.sent.pop_front();
        }
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

    /// A run of neighbouring shards.
    pub(super) fn group_of(shard: usize, size: usize) -> Range<usize> {
        let first = shard / size * size;
        first..(first + size).min(SHARDS)
    }

    /// Takes out the readings of devices that are erased.
    pub(super) fn drop_rows_of(&mut self, device_ids: &[i64]) {
        for id in device_ids {
            self.shards[shard_of(*id)].rows.retain(|row| row.device_id != *id);
        }
    }

    /// The next in turn that has something.
    pub(super) fn next_in_turn(&self) -> Option<usize> {
        (1..=SHARDS).map(|step| (self.turn + step) % SHARDS).find(|shard| self.is_pending(*shard))
    }

    /// The marks as they are once `flushed` is in the tables: shards that hold nothing stand where the log was read to,
    /// or, while it is read again after a crash, where they stood before.
    pub(super) fn marks_after(&self, position: &Position, flushed: &Range<usize>) -> Marks {
        let mut marks = position.marks.clone();
        for (shard, mark) in marks.shards.iter_mut().enumerate() {
            if flushed.contains(&shard) || !self.is_pending(shard) {
                *mark = position.applied.max(*mark);
            }
        }
        marks
    }

    /// The readings of a series that are not in the tables, nor known to be in ClickHouse.
    pub(super) fn rows_of(&self, device_id: i64, series_id: i64) -> impl Iterator<Item = &ReadingRow> {
        let rows = &self.shards[shard_of(device_id)].rows;
        let sent = self.sent.iter().flat_map(move |sent| {
            let from = sent.rows.partition_point(|row| row.series_id < series_id);
            sent.rows[from..].iter().take_while(move |row| row.series_id == series_id)
        });
        sent.chain(rows.iter().filter(move |row| row.series_id == series_id))
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
    fn readings_that_are_sent_are_kept_to_their_bound_and_until_confirmed() {
        use super::super::partition::Cell;
        let row = ReadingRow {
            series_id: 1,
            device_id: 1,
            ts: 0,
            queue_ref: 1,
            seq: 1,
            received_at: 0,
            index: 0,
            value: Cell::Flag(true),
        };
        let mut memtable = Memtable::default();
        let held = |memtable: &Memtable| memtable.sent.iter().map(|sent| sent.batch).collect::<Vec<_>>();
        memtable.keep_sent(1, vec![row.clone(); SENT_ROWS_MAX / 2]);
        memtable.keep_sent(2, vec![row.clone(); SENT_ROWS_MAX / 2]);
        assert_eq!((held(&memtable), memtable.rows_of(1, 1).count()), (vec![1, 2], SENT_ROWS_MAX));
        memtable.keep_sent(3, vec![row]);
        assert_eq!(held(&memtable), [2, 3]);
        memtable.confirm(2);
        assert_eq!((held(&memtable), memtable.confirmed()), (vec![3], 2));
    }

    #[test]
    fn neighbours_share_a_shard_and_a_fleet_fills_them_all() {
        assert_eq!([shard_of(0), shard_of(15), shard_of(16), shard_of(-1)], [0, 0, 1, 63]);
        let filled: HashSet<usize> = (1..2_000).map(shard_of).collect();
        assert_eq!(filled.len(), SHARDS);
    }
}
