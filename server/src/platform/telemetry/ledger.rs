//! The ledger's writing side: what became of each seq of each queue (promise, point 8).
//!
//! The writer changes queues in memory, `flush` writes those of one shard, `accounts` reads both. The truth is in
//! `queue`, `queue_range` and the log behind them; a failed transaction throws this away.
//!
//! Bounds: [`RANGES_PER_QUEUE_MAX`] ranges a queue (a record that would need one more becomes a dead letter, a drop
//! that would is not noted: its seqs stay pending, then lost);
//! [`QUEUES_PER_DEVICE_MAX`] queues a device, beyond which the oldest are summed up; closed queues without
//! gaps are summed up at once, the newest [`TOMBSTONES_PER_CLASS`] of them still recognise duplicates.

use super::accounts::Marks;
use super::memtable::{SHARDS, shard_of};
use super::ranges::{Ranges, STORED};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use muster_wire::{DropReason, QueueState};
use std::collections::{BTreeMap, HashMap, HashSet};

mod rows;

/// Ranges of one queue: an agent makes one for each reconnect with a backlog.
pub const RANGES_PER_QUEUE_MAX: usize = 65_536;
/// Queues of one device that have rows of their own.
pub const QUEUES_PER_DEVICE_MAX: i64 = 1_000;
/// Queues summed up together when there are more.
const QUEUES_FOLDED: i64 = 100;
/// Merged queues of one device and class that are still known by their id.
pub const TOMBSTONES_PER_CLASS: i64 = 256;
/// Queues kept in memory.
const QUEUES_CACHED_MAX: usize = 50_000;
/// Ranges kept in memory, over all queues.
const RANGES_CACHED_MAX: usize = 1_000_000;
/// Counts are cut here, so that a device that reports 2^62 records cannot overflow a sum.
const COUNT_MAX: u64 = 1 << 40;

/// What a row of `queue_merged` counts; smaller numbers are outcomes of [`Ranges`].
pub(super) struct Merged;

impl Merged {
    pub(super) const QUEUES: i64 = 100;
    pub(super) const DUPLICATES: i64 = 101;
    pub(super) const PENDING: i64 = 102;
    pub(super) const LOST: i64 = 103;
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) struct QueueKey {
    pub(super) device_id: i64,
    pub(super) queue_id: u64,
    pub(super) class: u8,
}

/// A queue's part of a tenant's totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) stored: u64,
    pub(super) duplicates: u64,
    pub(super) pending: u64,
    pub(super) lost: u64,
    /// Dropped of a foreign device, which has no ranges.
    pub(super) dropped: u64,
    /// Dropped, by reason; empty in nearly all queues.
    pub(super) by_reason: BTreeMap<u8, u64>,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.pending += other.pending;
        self.lost += other.lost;
        self.dropped += other.dropped;
        for (reason, count) in &other.by_reason {
            *self.by_reason.entry(*reason).or_default() += count;
        }
    }
}

pub(super) struct Queue {
    pub(super) row: i64,
    tenant_id: i64,
    pub(super) is_foreign: bool,
    reported: bool,
    closed: bool,
    merged: bool,
    first: u64,
    released: u64,
    next: u64,
    stored: u64,
    dropped: u64,
    duplicates: u64,
    ranges: Ranges,
    updated_at: i64,
    /// As the tables have them.
    written: Counts,
    is_dirty: bool,
    /// Written since the cache was last trimmed.
    is_used: bool,
}

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    New,
    Duplicate,
    /// The queue has too many ranges: the record cannot be accounted for.
    TooSparse,
}

impl Queue {
    pub(super) fn verdict(&self, seq: u64) -> Verdict {
        if self.is_foreign {
            return Verdict::New;
        }
        if self.ranges.is_settled(seq) || (self.merged && (self.first..self.next).contains(&seq)) {
            return Verdict::Duplicate;
        }
        // A seq within a dropped range splits it in three: the most that one record can add is two.
        let ranges = self.ranges.len();
        if ranges + 2 > RANGES_PER_QUEUE_MAX && ranges + self.ranges.growth(seq) > RANGES_PER_QUEUE_MAX {
            return Verdict::TooSparse;
        }
        Verdict::New
    }

    pub(super) fn store(&mut self, seq: u64) {
        self.stored += 1;
        if !self.is_foreign && self.ranges.store(seq) {
            self.dropped = self.dropped.saturating_sub(1);
        }
    }

    pub(super) fn count_duplicate(&mut self) {
        self.duplicates += 1;
    }

    pub(super) fn drop(&mut self, first: u64, last: u64, reason: DropReason) {
        if self.is_foreign {
            self.dropped += last - first + 1;
        } else if !self.merged {
            self.dropped += self.ranges.drop(first, last, reason, RANGES_PER_QUEUE_MAX);
        }
    }

    /// Takes the agent's word. Marks only move forward: a state that was sent twice may come late.
    pub(super) fn report(&mut self, state: &QueueState) {
        if self.merged || self.is_foreign {
            return;
        }
        self.first = state.first;
        self.released = self.released.max(state.released);
        self.next = self.next.max(state.next);
        self.closed |= state.closed;
        self.reported = true;
    }

    fn first(&self) -> u64 {
        if self.reported { self.first } else { self.ranges.low().unwrap_or(0) }
    }

    fn lost(&self) -> u64 {
        self.ranges.open(self.first(), self.released)
    }

    fn pending(&self) -> u64 {
        self.ranges.open(self.first().max(self.released), self.next.max(self.ranges.high_next()))
    }

    /// What the totals count of it.
    pub(super) fn counts(&self) -> Counts {
        let cut = |count: u64| count.min(COUNT_MAX);
        let (pending, lost) = if self.merged { (0, 0) } else { (self.pending(), self.lost()) };
        let mut by_reason = BTreeMap::new();
        if self.dropped > 0 && !self.is_foreign {
            by_reason = self.ranges.sums(COUNT_MAX);
            by_reason.remove(&STORED);
        }
        Counts {
            stored: cut(self.stored),
            duplicates: cut(self.duplicates),
            pending: cut(pending),
            lost: cut(lost),
            dropped: if self.is_foreign { cut(self.dropped) } else { 0 },
            by_reason,
        }
    }

    /// As the tables have them.
    pub(super) fn written(&self) -> &Counts {
        &self.written
    }

    pub(super) fn tenant_id(&self) -> i64 {
        self.tenant_id
    }

    /// The agent's own marks, once it reported.
    pub(super) fn marks(&self) -> Option<Marks> {
        let (first, released, next, closed) = (self.first, self.released, self.next, self.closed);
        self.reported.then_some(Marks { first, released, next, closed })
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn updated_at(&self) -> i64 {
        self.updated_at
    }

    /// Its first ranges: first, last, outcome.
    pub(super) fn ranges(&self, limit: usize) -> impl Iterator<Item = (u64, u64, u8)> {
        self.ranges.iter().take(limit)
    }

    fn is_complete(&self) -> bool {
        let ended = self.closed && self.released >= self.next && self.ranges.high_next() <= self.next;
        ended && !self.merged && self.ranges.open(self.first, self.next) == 0
    }
}

pub(super) struct Ledger {
    queues: HashMap<QueueKey, Queue>,
    /// Queues with changes that are not written, by shard.
    dirty: [Vec<QueueKey>; SHARDS],
    /// Devices that got a new queue since their shard was written.
    grown: HashSet<i64>,
    checks: u8,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            dirty: std::array::from_fn(|_| Vec::new()),
            grown: HashSet::new(),
            checks: 0,
        }
    }
}

impl Ledger {
    /// Over its bounds, forgets the queues that were not written since the last time (of agents that started
    /// again, mostly), or all that hold no changes where that is not enough. Called before each batch; ranges are
    /// counted each 256th time.
    pub(super) fn trim(&mut self) {
        self.checks = self.checks.wrapping_add(1);
        let counts = self.checks == 0;
        if !self.is_over_bounds(counts) {
            return;
        }
        self.queues.retain(|_, queue| std::mem::take(&mut queue.is_used) || queue.is_dirty);
        self.queues.shrink_to_fit();
        if self.is_over_bounds(true) {
            self.queues.retain(|_, queue| queue.is_dirty);
            self.queues.shrink_to_fit();
        }
    }

    fn is_over_bounds(&self, counts_ranges: bool) -> bool {
        let ranges = || self.queues.values().map(|queue| queue.ranges.len()).sum::<usize>();
        self.queues.len() > QUEUES_CACHED_MAX || (counts_ranges && ranges() > RANGES_CACHED_MAX)
    }

    pub(super) fn is_dirty(&self, shard: usize) -> bool {
        !self.dirty[shard].is_empty()
    }

    /// Queues with changes, over all shards.
    pub(super) fn dirty_queues(&self) -> usize {
        self.dirty.iter().map(Vec::len).sum()
    }

    /// A shard's queues with changes, in no order.
    pub(super) fn dirty_of(&self, shard: usize) -> impl ExactSizeIterator<Item = (&QueueKey, &Queue)> {
        self.dirty[shard].iter().map(|key| (key, &self.queues[key]))
    }

    /// Finds or makes a queue of a tenant's device, for a change at a time.
    pub(super) fn queue(
        &mut self,
        tx: &mut Tx<'_>,
        key: QueueKey,
        tenant_id: i64,
        is_foreign: bool,
        now_us: i64,
    ) -> Result<&mut Queue, DbError> {
        if !self.queues.contains_key(&key) {
            let mut queue = match rows::load(tx, key)? {
                Some(queue) => queue,
                None => {
                    self.grown.insert(key.device_id);
                    rows::create(tx, key, is_foreign)?
                }
            };
            (queue.tenant_id, queue.written) = (tenant_id, queue.counts());
            self.queues.insert(key, queue);
        }
        let queue = self.queues.get_mut(&key).expect("inserted above");
        (queue.is_used, queue.updated_at) = (true, now_us);
        if !queue.is_dirty {
            queue.is_dirty = true;
            self.dirty[shard_of(key.device_id)].push(key);
        }
        Ok(queue)
    }

    /// Writes what changed in a shard, merges what is complete, folds what is too much.
    pub(super) fn flush(&mut self, tx: &mut Tx<'_>, shard: usize) -> Result<(), DbError> {
        let mut dirty = std::mem::take(&mut self.dirty[shard]);
        dirty.sort_unstable();
        for key in dirty {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            queue.is_dirty = false;
            let is_complete = queue.is_complete();
            if is_complete {
                rows::merge(tx, key, queue)?;
            }
            rows::write_ranges(tx, queue)?;
            rows::write_queue(tx, queue)?;
            if is_complete {
                rows::prune_tombstones(tx, key)?;
            }
        }
        let grown: Vec<i64> = self.grown.extract_if(|device_id| shard_of(*device_id) == shard).collect();
        for device_id in grown {
            self.fold(tx, device_id)?;
        }
        Ok(())
    }

    fn fold(&mut self, tx: &mut Tx<'_>, device_id: i64) -> Result<(), DbError> {
        const COUNT: &str =
            "SELECT count(*) FROM queue WHERE device_id = $1 AND merged = 0 AND is_foreign = 0";
        let mut over = tx.query_one(COUNT, &[&device_id], |row| row.get::<i64>(0))? - QUEUES_PER_DEVICE_MAX;
        while over > 0 {
            let oldest: Vec<(i64, i64, i64)> = tx.query(
                "SELECT ref, queue_id, class FROM queue WHERE device_id = $1 AND merged = 0 AND is_foreign = 0
                 ORDER BY closed DESC, ref LIMIT $2",
                &[&device_id, &QUEUES_FOLDED],
                |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            over -= QUEUES_FOLDED;
            for (row, queue_id, class) in oldest {
                let class = u8::try_from(class).unwrap_or(0);
                rows::sum_up(tx, device_id, class, row)?;
                tx.execute("DELETE FROM queue_range WHERE ref = $1", &[&row])?;
                tx.execute("DELETE FROM queue WHERE ref = $1", &[&row])?;
                self.queues.remove(&QueueKey { device_id, queue_id: queue_id.cast_unsigned(), class });
            }
        }
        Ok(())
    }
}

/// The outcome number of stored records, for queries.
pub(super) const OUTCOME_STORED: i64 = STORED as i64;

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(is_used: bool) -> Queue {
        Queue {
            row: 0,
            is_foreign: false,
            reported: false,
            closed: false,
            merged: false,
            first: 0,
            released: 0,
            next: 0,
            stored: 0,
            dropped: 0,
            duplicates: 0,
            ranges: Ranges::default(),
            tenant_id: 1,
            updated_at: 0,
            written: Counts::default(),
            is_dirty: false,
            is_used,
        }
    }

    #[test]
    fn over_its_bound_the_cache_keeps_what_was_written_lately_or_nothing() {
        let key = |device_id: usize| QueueKey { device_id: device_id as i64, queue_id: 1, class: 1 };
        let mut ledger = Ledger::default();
        ledger.queues.extend((0..QUEUES_CACHED_MAX).map(|device| (key(device), queue(device < 100))));
        ledger.trim();
        assert_eq!(ledger.queues.len(), QUEUES_CACHED_MAX);
        ledger.queues.insert(key(QUEUES_CACHED_MAX), queue(true));
        ledger.trim();
        assert_eq!(ledger.queues.len(), 101);
        ledger.queues.extend((0..=QUEUES_CACHED_MAX).map(|device| (key(device), queue(true))));
        ledger.queues.insert(key(1), Queue { is_dirty: true, ..queue(true) });
        ledger.trim();
        assert_eq!(ledger.queues.keys().collect::<Vec<_>>(), [&key(1)], "changes that are not written stay");
    }

    /// Stored seqs from 1 on, every second one: as many ranges.
    fn sparse(count: usize) -> Queue {
        let ranges = (0..count as u64).map(|at| (1 + at * 2, 1 + at * 2, STORED));
        Queue { ranges: Ranges::load(ranges), ..queue(true) }
    }

    #[test]
    fn the_cache_is_bounded_in_ranges_too() {
        let key = |device_id| QueueKey { device_id, queue_id: 1, class: 1 };
        let mut ledger = Ledger::default();
        ledger.queues.insert(key(1), sparse(RANGES_CACHED_MAX - 1));
        ledger.queues.insert(key(2), Queue { is_used: false, ..sparse(1) });
        let trim_until_counted = |ledger: &mut Ledger| (0..=u8::MAX).for_each(|_| ledger.trim());
        trim_until_counted(&mut ledger);
        assert_eq!(ledger.queues.len(), 2);
        ledger.queues.insert(key(3), Queue { is_used: false, ..sparse(1) });
        trim_until_counted(&mut ledger);
        assert_eq!(ledger.queues.keys().collect::<Vec<_>>(), [&key(1)], "what was written lately stays");
    }

    #[test]
    fn records_that_split_a_dropped_range_are_refused_beyond_the_bound() {
        let mut queue = sparse(RANGES_PER_QUEUE_MAX - 3);
        let dropped = 1_000_000;
        queue.drop(dropped, dropped + 100, DropReason::QueueFull);
        assert_eq!((queue.ranges.len(), queue.dropped), (RANGES_PER_QUEUE_MAX - 2, 101));
        let mut verdict_then_store = |seq| {
            let verdict = queue.verdict(seq);
            if verdict == Verdict::New {
                queue.store(seq);
            }
            (verdict, queue.ranges.len())
        };
        assert_eq!(verdict_then_store(dropped + 50), (Verdict::New, RANGES_PER_QUEUE_MAX));
        assert_eq!(verdict_then_store(dropped + 70), (Verdict::TooSparse, RANGES_PER_QUEUE_MAX));
        assert_eq!(verdict_then_store(dropped), (Verdict::TooSparse, RANGES_PER_QUEUE_MAX), "at its edge");
        assert_eq!(verdict_then_store(dropped + 51), (Verdict::New, RANGES_PER_QUEUE_MAX), "it joins");
    }

    #[test]
    fn a_drop_over_many_gaps_stops_at_the_bound() {
        let mut queue = sparse(RANGES_PER_QUEUE_MAX - 2);
        queue.drop(1, 1_000_000, DropReason::QueueFull);
        assert_eq!((queue.ranges.len(), queue.dropped), (RANGES_PER_QUEUE_MAX, 2));
        assert_eq!((queue.ranges.outcome(4), queue.ranges.outcome(6)), (Some(1), None), "from the lowest on");
        queue.drop(6, 6, DropReason::QueueFull);
        assert_eq!((queue.ranges.len(), queue.dropped), (RANGES_PER_QUEUE_MAX, 2));
    }
}
