//! The ledger's writing side: what became of each seq of each queue (promise, point 8).
//!
//! Called by the writer inside its transaction. The truth is in `queue` and `queue_range`; this keeps the
//! queues that are being written in memory, and a failed transaction throws them away.
//!
//! Bounds: [`RANGES_PER_QUEUE_MAX`] ranges a queue (a record that would need one more becomes a dead letter, a drop
//! that would is not noted: its seqs stay pending, then lost);
//! [`QUEUES_PER_DEVICE_MAX`] queues a device, beyond which the oldest are summed up; closed queues without
//! gaps are summed up at once, the newest [`TOMBSTONES_PER_CLASS`] of them still recognise duplicates.

use super::ranges::{Ranges, STORED};
use crate::platform::db::{DbError, Row, Tx};
use muster_wire::{DropReason, QueueState};
use std::collections::{HashMap, HashSet};

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

pub(super) struct Queue {
    pub(super) row: i64,
    is_foreign: bool,
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

    fn is_complete(&self) -> bool {
        let ended = self.closed && self.released >= self.next && self.ranges.high_next() <= self.next;
        ended && !self.merged && self.ranges.open(self.first, self.next) == 0
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    queues: HashMap<QueueKey, Queue>,
    dirty: Vec<QueueKey>,
    /// Devices that got a new queue in this batch.
    grown: HashSet<i64>,
    checks: u8,
}

impl Ledger {
    /// Over its bounds, forgets the queues that were not written since the last time (of agents that started
    /// again, mostly), or all where that is not enough. Called after each batch; ranges are counted each 256th time.
    pub(super) fn trim(&mut self) {
        self.checks = self.checks.wrapping_add(1);
        let counts = self.checks == 0;
        if !self.is_over_bounds(counts) {
            return;
        }
        self.queues.retain(|_, queue| std::mem::take(&mut queue.is_used));
        self.queues.shrink_to_fit();
        if self.is_over_bounds(true) {
            self.queues = HashMap::new();
        }
    }

    fn is_over_bounds(&self, counts_ranges: bool) -> bool {
        let ranges = || self.queues.values().map(|queue| queue.ranges.len()).sum::<usize>();
        self.queues.len() > QUEUES_CACHED_MAX || (counts_ranges && ranges() > RANGES_CACHED_MAX)
    }

    /// Finds or makes a queue; it is written with the batch.
    pub(super) fn queue(
        &mut self,
        tx: &mut Tx<'_>,
        key: QueueKey,
        is_foreign: bool,
    ) -> Result<&mut Queue, DbError> {
        if !self.queues.contains_key(&key) {
            let queue = match load(tx, key)? {
                Some(queue) => queue,
                None => {
                    self.grown.insert(key.device_id);
                    create(tx, key, is_foreign)?
                }
            };
            self.queues.insert(key, queue);
        }
        let queue = self.queues.get_mut(&key).expect("inserted above");
        queue.is_used = true;
        if !queue.is_dirty {
            queue.is_dirty = true;
            self.dirty.push(key);
        }
        Ok(queue)
    }

    /// Writes what changed, merges what is complete, folds what is too much.
    pub(super) fn flush(&mut self, tx: &mut Tx<'_>, now_us: i64) -> Result<(), DbError> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for key in dirty {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            queue.is_dirty = false;
            let is_complete = queue.is_complete();
            if is_complete {
                merge(tx, key, queue)?;
            }
            write_ranges(tx, queue)?;
            write_queue(tx, queue, now_us)?;
            if is_complete {
                prune_tombstones(tx, key)?;
            }
        }
        for device_id in std::mem::take(&mut self.grown) {
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
                sum_up(tx, device_id, class, row)?;
                tx.execute("DELETE FROM queue_range WHERE ref = $1", &[&row])?;
                tx.execute("DELETE FROM queue WHERE ref = $1", &[&row])?;
                self.queues.remove(&QueueKey { device_id, queue_id: queue_id.cast_unsigned(), class });
            }
        }
        Ok(())
    }
}

fn load(tx: &mut Tx<'_>, key: QueueKey) -> Result<Option<Queue>, DbError> {
    const FIND: &str =
        "SELECT ref, is_foreign, reported, closed, merged, first, released, next, stored, dropped, duplicates
        FROM queue WHERE device_id = $1 AND queue_id = $2 AND class = $3";
    let args: [&dyn crate::platform::db::ToSql; 3] =
        [&key.device_id, &key.queue_id.cast_signed(), &key.class];
    let Some(mut queue) = tx.query_opt(FIND, &args, from_row)? else { return Ok(None) };
    const RANGES: &str = "SELECT first, last, reason FROM queue_range WHERE ref = $1";
    let ranges = tx.query(RANGES, &[&queue.row], |row| {
        Ok::<_, DbError>((row.get::<u64>(0)?, row.get::<u64>(1)?, row.get::<u8>(2)?))
    })?;
    queue.ranges = Ranges::load(ranges);
    Ok(Some(queue))
}

fn from_row(row: &Row<'_>) -> Result<Queue, DbError> {
    Ok(Queue {
        row: row.get(0)?,
        is_foreign: row.get(1)?,
        reported: row.get(2)?,
        closed: row.get(3)?,
        merged: row.get(4)?,
        first: row.get(5)?,
        released: row.get(6)?,
        next: row.get(7)?,
        stored: row.get(8)?,
        dropped: row.get(9)?,
        duplicates: row.get(10)?,
        ranges: Ranges::default(),
        is_dirty: false,
        is_used: true,
    })
}

fn create(tx: &mut Tx<'_>, key: QueueKey, is_foreign: bool) -> Result<Queue, DbError> {
    let sql = "INSERT INTO queue (device_id, queue_id, class, is_foreign) VALUES ($1, $2, $3, $4)
        RETURNING ref, is_foreign, reported, closed, merged, first, released, next, stored, dropped, duplicates";
    tx.query_one(sql, &[&key.device_id, &key.queue_id.cast_signed(), &key.class, &is_foreign], from_row)
}

fn write_ranges(tx: &mut Tx<'_>, queue: &mut Queue) -> Result<(), DbError> {
    for change in queue.ranges.take_changes() {
        match change.now {
            Some((last, outcome)) => tx.execute(
                "INSERT INTO queue_range (ref, first, last, reason) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (ref, first) DO UPDATE SET last = excluded.last, reason = excluded.reason",
                &[&queue.row, &change.first.cast_signed(), &last.cast_signed(), &outcome],
            )?,
            None => tx.execute(
                "DELETE FROM queue_range WHERE ref = $1 AND first = $2",
                &[&queue.row, &change.first.cast_signed()],
            )?,
        };
    }
    Ok(())
}

fn write_queue(tx: &mut Tx<'_>, queue: &Queue, now_us: i64) -> Result<(), DbError> {
    let count = |count: u64| count.min(COUNT_MAX).cast_signed();
    let (pending, lost) = if queue.merged { (0, 0) } else { (queue.pending(), queue.lost()) };
    tx.execute(
        "UPDATE queue SET reported = $2, closed = $3, merged = $4, first = $5, released = $6, next = $7, stored = $8,
         dropped = $9, duplicates = $10, pending = $11, lost = $12, updated_at = $13 WHERE ref = $1",
        &[
            &queue.row,
            &queue.reported,
            &queue.closed,
            &queue.merged,
            &queue.first.cast_signed(),
            &queue.released.cast_signed(),
            &queue.next.cast_signed(),
            &count(queue.stored),
            &count(queue.dropped),
            &count(queue.duplicates),
            &count(pending),
            &count(lost),
            &now_us,
        ],
    )?;
    Ok(())
}

/// Sums a closed queue without gaps up and keeps its row as a tombstone.
fn merge(tx: &mut Tx<'_>, key: QueueKey, queue: &mut Queue) -> Result<(), DbError> {
    for (outcome, seqs) in queue.ranges.sums() {
        add_merged(tx, key.device_id, key.class, i64::from(outcome), seqs)?;
    }
    add_merged(tx, key.device_id, key.class, Merged::QUEUES, 1)?;
    add_merged(tx, key.device_id, key.class, Merged::DUPLICATES, queue.duplicates)?;
    tx.execute("DELETE FROM queue_range WHERE ref = $1", &[&queue.row])?;
    queue.ranges = Ranges::default();
    (queue.merged, queue.stored, queue.dropped, queue.duplicates) = (true, 0, 0, 0);
    Ok(())
}

fn prune_tombstones(tx: &mut Tx<'_>, key: QueueKey) -> Result<(), DbError> {
    const OLD: &str = "SELECT ref, duplicates FROM queue WHERE device_id = $1 AND class = $2 AND merged = 1
        ORDER BY ref DESC LIMIT -1 OFFSET $3";
    let old: Vec<(i64, u64)> =
        tx.query(OLD, &[&key.device_id, &key.class, &TOMBSTONES_PER_CLASS], |row| {
            Ok::<_, DbError>((row.get(0)?, row.get(1)?))
        })?;
    for (row, duplicates) in old {
        add_merged(tx, key.device_id, key.class, Merged::DUPLICATES, duplicates)?;
        tx.execute("DELETE FROM queue WHERE ref = $1", &[&row])?;
    }
    Ok(())
}

/// Adds a queue's written counts to its device's sums, gaps included: folding hides no loss.
fn sum_up(tx: &mut Tx<'_>, device_id: i64, class: u8, row: i64) -> Result<(), DbError> {
    const SUMS: &str =
        "SELECT reason, sum(min(last - first + 1, 1 << 40)) FROM queue_range WHERE ref = $1 GROUP BY reason";
    let sums: Vec<(i64, u64)> =
        tx.query(SUMS, &[&row], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)))?;
    for (outcome, seqs) in sums {
        add_merged(tx, device_id, class, outcome, seqs)?;
    }
    let counts: (u64, u64, u64) =
        tx.query_one("SELECT duplicates, pending, lost FROM queue WHERE ref = $1", &[&row], |row| {
            Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    add_merged(tx, device_id, class, Merged::QUEUES, 1)?;
    add_merged(tx, device_id, class, Merged::DUPLICATES, counts.0)?;
    add_merged(tx, device_id, class, Merged::PENDING, counts.1)?;
    add_merged(tx, device_id, class, Merged::LOST, counts.2)
}

fn add_merged(tx: &mut Tx<'_>, device_id: i64, class: u8, what: i64, count: u64) -> Result<(), DbError> {
    if count == 0 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO queue_merged (device_id, class, what, count) VALUES ($1, $2, $3, $4)
         ON CONFLICT (device_id, class, what) DO UPDATE SET count = min(count + excluded.count, 1 << 50)",
        &[&device_id, &class, &what, &count.min(COUNT_MAX).cast_signed()],
    )?;
    Ok(())
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
        ledger.trim();
        assert!(ledger.queues.is_empty());
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
