//! The ledger's reading side: a device's queues, a tenant's totals; the tables' and what the memtable changes of them.

use super::View;
use super::ledger::{Counts, Merged, OUTCOME_STORED, Queue, QueueKey};
use super::memtable::{Memtable, SHARDS, shard_of};
use super::ranges::{reason_number, reason_of};
use super::{device_of, tenant_of};
use crate::platform::db::sqlite::{Row, Tx};
use crate::platform::db::{DbError, Scope};
use muster_wire::{DropReason, QueueId, UpClass};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Queues of a device that are shown, newest first.
const QUEUES_SHOWN: i64 = 200;
/// Ranges of a queue that are shown.
const RANGES_SHOWN: usize = 200;

/// What became of a tenant's records. `accepted` = stored + dropped + pending + lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Records that agents' queues accepted, and messages of foreign devices.
    pub accepted: u64,
    /// Records stored.
    pub stored: u64,
    /// Records dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Accepted, not yet released by the agent and not here.
    pub pending: u64,
    /// Released by the agent, and neither stored nor dropped. Must be 0.
    pub lost: u64,
    /// Records that came again and were not stored again.
    pub duplicates: u64,
    /// Bodies kept as dead letters (some may be gone: the list is bounded).
    pub dead_letters: u64,
    /// Messages that the gateway refused for good.
    pub rejected: u64,
    /// Readings stored.
    pub readings: u64,
    /// Readings refused because their device has too many metrics.
    pub readings_refused: u64,
    /// Events stored.
    pub events: u64,
    /// Messages that came with QoS 0: best effort.
    pub qos0: u64,
}

/// A tenant's totals; every tenant's under `Scope::System`.
///
/// # Errors
/// The database failed.
pub fn totals(view: &mut View<'_, '_>, scope: &Scope) -> Result<Totals, DbError> {
    let tenant = tenant_of(view, scope)?.id();
    let unwritten = view.take(None, |memtable| Unwritten::of(memtable, tenant))?;
    let mut totals = written(view, tenant)?;
    for (name, count) in &unwritten.counters {
        totals.add_counter(name, *count);
    }
    let Unwritten { before, now, .. } = &unwritten;
    totals.stored = totals.stored + now.stored - before.stored;
    totals.duplicates = totals.duplicates + now.duplicates - before.duplicates;
    totals.pending = totals.pending + now.pending - before.pending;
    totals.lost = totals.lost + now.lost - before.lost;
    totals.drop_more(DropReason::Malformed, now.dropped, before.dropped);
    for reason in DropReason::ALL {
        let of = |counts: &Counts| counts.by_reason.get(&reason_number(reason)).copied().unwrap_or(0);
        totals.drop_more(reason, of(now), of(before));
    }
    totals.accepted = totals.stored + totals.dropped.values().sum::<u64>() + totals.pending + totals.lost;
    Ok(totals)
}

/// What the memtable holds of a tenant.
#[derive(Default)]
struct Unwritten {
    /// Of the queues with changes, as the tables have them.
    before: Counts,
    /// Of the same queues.
    now: Counts,
    counters: BTreeMap<&'static str, u64>,
}

impl Unwritten {
    fn of(memtable: &Memtable, tenant: Option<i64>) -> Self {
        let mut sums = Self::default();
        let is_theirs = |id: i64| tenant.is_none_or(|tenant| tenant == id);
        for shard in 0..SHARDS {
            for (_, queue) in
                memtable.ledger.dirty_of(shard).filter(|(_, queue)| is_theirs(queue.tenant_id()))
            {
                sums.before.add(queue.written());
                sums.now.add(&queue.counts());
            }
            for ((_, name), count) in
                memtable.shards[shard].counts.iter().filter(|((id, _), _)| is_theirs(*id))
            {
                *sums.counters.entry(name).or_default() += count;
            }
        }
        sums
    }
}

/// The totals of the tables alone.
fn written(tx: &mut Tx<'_>, tenant: Option<i64>) -> Result<Totals, DbError> {
    let mut totals = Totals::default();
    let sums: (u64, u64, u64, u64, u64) = tx.query_one(
        "SELECT ifnull(sum(q.stored), 0), ifnull(sum(q.duplicates), 0), ifnull(sum(q.pending), 0),
         ifnull(sum(q.lost), 0), ifnull(sum(q.is_foreign * q.dropped), 0)
         FROM queue q JOIN device d ON d.id = q.device_id WHERE ($1 IS NULL OR d.tenant_id = $1)",
        &[&tenant],
        |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
    )?;
    (totals.stored, totals.duplicates, totals.pending, totals.lost) = (sums.0, sums.1, sums.2, sums.3);
    if sums.4 > 0 {
        totals.dropped.insert(DropReason::Malformed.as_str().to_owned(), sums.4);
    }
    let dropped = tx.query(
        "SELECT r.reason, sum(min(r.last - r.first + 1, 1 << 40)) FROM queue q JOIN device d ON d.id = q.device_id
         JOIN queue_range r ON r.ref = q.ref
         WHERE ($1 IS NULL OR d.tenant_id = $1) AND q.dropped > 0 AND r.reason > 0 GROUP BY r.reason",
        &[&tenant],
        pair,
    )?;
    let merged = tx.query(
        "SELECT m.what, sum(m.count) FROM queue_merged m JOIN device d ON d.id = m.device_id
         WHERE ($1 IS NULL OR d.tenant_id = $1) GROUP BY m.what",
        &[&tenant],
        pair,
    )?;
    for (what, count) in dropped.into_iter().chain(merged) {
        totals.add(what, count);
    }
    const COUNTERS: &str =
        "SELECT name, sum(count) FROM counter WHERE ($1 IS NULL OR tenant_id = $1) GROUP BY name";
    let counters =
        tx.query(COUNTERS, &[&tenant], |row| Ok::<_, DbError>((row.get::<String>(0)?, row.get::<u64>(1)?)))?;
    for (name, count) in counters {
        totals.add_counter(&name, count);
    }
    Ok(totals)
}

fn pair(row: &Row<'_>) -> Result<(i64, u64), DbError> {
    Ok((row.get(0)?, row.get(1)?))
}

impl Totals {
    fn add(&mut self, what: i64, count: u64) {
        match what {
            OUTCOME_STORED => self.stored += count,
            Merged::DUPLICATES => self.duplicates += count,
            Merged::PENDING => self.pending += count,
            Merged::LOST => self.lost += count,
            _ => {
                if let Some(reason) = u8::try_from(what).ok().and_then(reason_of) {
                    *self.dropped.entry(reason.as_str().to_owned()).or_default() += count;
                }
            }
        }
    }

    /// Of `before` seqs that the tables have as dropped for a reason, there are `now`.
    fn drop_more(&mut self, reason: DropReason, now: u64, before: u64) {
        if now == before {
            return;
        }
        let name = reason.as_str();
        let count = self.dropped.get(name).copied().unwrap_or(0) + now - before;
        if count == 0 {
            self.dropped.remove(name);
        } else {
            self.dropped.insert(name.to_owned(), count);
        }
    }

    fn add_counter(&mut self, name: &str, count: u64) {
        match name {
            "readings" => self.readings += count,
            "readings_refused" => self.readings_refused += count,
            "events" => self.events += count,
            "qos0" => self.qos0 += count,
            "dead_letters" => self.dead_letters += count,
            "rejected" => self.rejected += count,
            _ => {}
        }
    }
}

/// Seqs `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SeqRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// Seqs `first..=last` that were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DroppedRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Why.
    pub reason: DropReason,
}

/// What became of one queue's records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueLedger {
    /// The opening; for a foreign device the log's epoch, or zero for readings keyed by name and time.
    pub queue_id: QueueId,
    /// `telemetry`, `event` or `senml`.
    pub class: &'static str,
    /// No agent's queue: only counts are kept.
    pub foreign: bool,
    /// The agent's own marks, once it reported.
    pub reported: Option<Marks>,
    /// Records stored.
    pub stored: u64,
    /// Records dropped.
    pub dropped: u64,
    /// Not yet released and not here.
    pub pending: u64,
    /// Released, and neither stored nor dropped.
    pub lost: u64,
    /// Came again.
    pub duplicates: u64,
    /// The first stored ranges (at most 200).
    pub stored_ranges: Vec<SeqRange>,
    /// The first dropped ranges (at most 200).
    pub dropped_ranges: Vec<DroppedRange>,
    /// Last change.
    pub updated_at_us: i64,
}

/// What the agent reported last; half-open ranges over seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// The first seq of the opening.
    pub first: u64,
    /// All below was acknowledged or dropped.
    pub released: u64,
    /// All below was accepted.
    pub next: u64,
    /// No more will come.
    pub closed: bool,
}

/// Sums of queues that ended without gaps, or were too many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MergedQueues {
    /// How many.
    pub queues: u64,
    /// Records stored.
    pub stored: u64,
    /// Records dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Pending when they were summed up.
    pub pending: u64,
    /// Lost.
    pub lost: u64,
    /// Came again.
    pub duplicates: u64,
}

/// A device's ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceLedger {
    /// The newest queues (at most 200).
    pub queues: Vec<QueueLedger>,
    /// Queues without a row of their own, by class.
    pub merged: BTreeMap<&'static str, MergedQueues>,
}

/// A device's ledger; empty where nothing was stored of it.
///
/// # Errors
/// The database failed.
pub fn device_ledger(view: &mut View<'_, '_>, scope: &Scope, device: &str) -> Result<DeviceLedger, DbError> {
    let Some(device_id) = device_of(view, scope, device)? else { return Ok(DeviceLedger::default()) };
    let mut unwritten = view.take(Some(device_id), |memtable| {
        let dirty = memtable.ledger.dirty_of(shard_of(device_id));
        let theirs = dirty.filter(|(key, _)| key.device_id == device_id);
        theirs.map(|(key, queue)| (queue.row, queue_now(key, queue))).collect::<HashMap<_, _>>()
    })?;
    let mut queues = view.query(
        "SELECT ref, queue_id, class, is_foreign, reported, first, released, next, closed, stored, dropped, pending,
         lost, duplicates, updated_at FROM queue WHERE device_id = $1 AND merged = 0 ORDER BY ref DESC LIMIT $2",
        &[&device_id, &QUEUES_SHOWN],
        queue_row,
    )?;
    for (row, queue) in &mut queues {
        if let Some(now) = unwritten.remove(row) {
            *queue = now;
            continue;
        }
        let ranges: Vec<(u64, u64, u8)> = view.query(
            "SELECT first, last, reason FROM queue_range WHERE ref = $1 ORDER BY first LIMIT $2",
            &[row, &(RANGES_SHOWN as i64)],
            |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        queue.show(ranges);
    }
    let queues = queues.into_iter().map(|(_, queue)| queue).collect();
    Ok(DeviceLedger { queues, merged: merged(view, device_id)? })
}

impl QueueLedger {
    fn show(&mut self, ranges: impl IntoIterator<Item = (u64, u64, u8)>) {
        for (first, last, outcome) in ranges {
            match reason_of(outcome) {
                Some(reason) => self.dropped_ranges.push(DroppedRange { first, last, reason }),
                None => self.stored_ranges.push(SeqRange { first, last }),
            }
        }
    }
}

/// A queue with changes that are not in the tables.
fn queue_now(key: &QueueKey, queue: &Queue) -> QueueLedger {
    let counts = queue.counts();
    let mut ledger = QueueLedger {
        queue_id: QueueId(key.queue_id),
        class: class_text(key.class),
        foreign: queue.is_foreign,
        reported: queue.marks(),
        stored: counts.stored,
        dropped: queue.dropped(),
        pending: counts.pending,
        lost: counts.lost,
        duplicates: counts.duplicates,
        stored_ranges: Vec::new(),
        dropped_ranges: Vec::new(),
        updated_at_us: queue.updated_at(),
    };
    ledger.show(queue.ranges(RANGES_SHOWN));
    ledger
}

fn queue_row(row: &Row<'_>) -> Result<(i64, QueueLedger), DbError> {
    let marks = Marks { first: row.get(5)?, released: row.get(6)?, next: row.get(7)?, closed: row.get(8)? };
    let ledger = QueueLedger {
        queue_id: QueueId(row.get::<i64>(1)?.cast_unsigned()),
        class: class_text(row.get(2)?),
        foreign: row.get(3)?,
        reported: row.get::<bool>(4)?.then_some(marks),
        stored: row.get(9)?,
        dropped: row.get(10)?,
        pending: row.get(11)?,
        lost: row.get(12)?,
        duplicates: row.get(13)?,
        stored_ranges: Vec::new(),
        dropped_ranges: Vec::new(),
        updated_at_us: row.get(14)?,
    };
    Ok((row.get(0)?, ledger))
}

fn class_text(class: u8) -> &'static str {
    UpClass::from_number(class).map_or("unknown", UpClass::as_str)
}

fn merged(tx: &mut Tx<'_>, device_id: i64) -> Result<BTreeMap<&'static str, MergedQueues>, DbError> {
    const SUMS: &str = "SELECT class, what, count FROM queue_merged WHERE device_id = $1";
    let rows: Vec<(u8, i64, u64)> =
        tx.query(SUMS, &[&device_id], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut all = BTreeMap::<&'static str, MergedQueues>::new();
    for (class, what, count) in rows {
        let sums = all.entry(class_text(class)).or_default();
        match what {
            OUTCOME_STORED => sums.stored = count,
            Merged::QUEUES => sums.queues = count,
            Merged::DUPLICATES => sums.duplicates = count,
            Merged::PENDING => sums.pending = count,
            Merged::LOST => sums.lost = count,
            _ => {
                if let Some(reason) = u8::try_from(what).ok().and_then(reason_of) {
                    sums.dropped.insert(reason.as_str().to_owned(), count);
                }
            }
        }
    }
    Ok(all)
}
