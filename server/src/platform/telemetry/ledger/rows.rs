//! The ledger's rows: reading, writing and summing them up. Called by the ledger only.

use super::{COUNT_MAX, Counts, Merged, Queue, QueueKey, TOMBSTONES_PER_CLASS};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::{Row, ToSql, Tx};
use crate::platform::telemetry::ranges::Ranges;

pub(super) fn load(tx: &mut Tx<'_>, key: QueueKey) -> Result<Option<Queue>, DbError> {
    const FIND: &str =
        "SELECT ref, is_foreign, reported, closed, merged, first, released, next, stored, dropped, duplicates
        FROM queue WHERE device_id = $1 AND queue_id = $2 AND class = $3";
    let args: [&dyn ToSql; 3] = [&key.device_id, &key.queue_id.cast_signed(), &key.class];
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
        tenant_id: 0,
        updated_at: 0,
        written: Counts::default(),
        is_dirty: false,
        is_used: true,
    })
}

pub(super) fn create(tx: &mut Tx<'_>, key: QueueKey, is_foreign: bool) -> Result<Queue, DbError> {
    let sql = "INSERT INTO queue (device_id, queue_id, class, is_foreign) VALUES ($1, $2, $3, $4)
        RETURNING ref, is_foreign, reported, closed, merged, first, released, next, stored, dropped, duplicates";
    tx.query_one(sql, &[&key.device_id, &key.queue_id.cast_signed(), &key.class, &is_foreign], from_row)
}

pub(super) fn write_ranges(tx: &mut Tx<'_>, queue: &mut Queue) -> Result<(), DbError> {
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

pub(super) fn write_queue(tx: &mut Tx<'_>, queue: &mut Queue) -> Result<(), DbError> {
    let counts = queue.counts();
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
            &counts.stored.cast_signed(),
            &queue.dropped.min(COUNT_MAX).cast_signed(),
            &counts.duplicates.cast_signed(),
            &counts.pending.cast_signed(),
            &counts.lost.cast_signed(),
            &queue.updated_at,
        ],
    )?;
    queue.written = counts;
    Ok(())
}

/// Sums a closed queue without gaps up and keeps its row as a tombstone.
pub(super) fn merge(tx: &mut Tx<'_>, key: QueueKey, queue: &mut Queue) -> Result<(), DbError> {
    for (outcome, seqs) in queue.ranges.sums(u64::MAX) {
        add_merged(tx, key.device_id, key.class, i64::from(outcome), seqs)?;
    }
    add_merged(tx, key.device_id, key.class, Merged::QUEUES, 1)?;
    add_merged(tx, key.device_id, key.class, Merged::DUPLICATES, queue.duplicates)?;
    tx.execute("DELETE FROM queue_range WHERE ref = $1", &[&queue.row])?;
    queue.ranges = Ranges::default();
    (queue.merged, queue.stored, queue.dropped, queue.duplicates) = (true, 0, 0, 0);
    Ok(())
}

pub(super) fn prune_tombstones(tx: &mut Tx<'_>, key: QueueKey) -> Result<(), DbError> {
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
pub(super) fn sum_up(tx: &mut Tx<'_>, device_id: i64, class: u8, row: i64) -> Result<(), DbError> {
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
