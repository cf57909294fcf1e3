//! Where the store stands in the log (promise, point 5): the cursor commits with its effects.

use super::TelemetryError;
use super::batch::RawBatch;
use crate::platform::db::{DbError, Tx};
use std::ops::Range;

/// The reader's name in `cursor` and in the log.
pub const STORE_READER: &str = "store";

/// What a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpan {
    /// Made with the log.
    pub epoch: u64,
    /// The oldest position held.
    pub first: u64,
    /// The position of the next record.
    pub next: u64,
}

/// Where a consumer starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first position to read.
    pub from: u64,
    /// Positions that will never be read.
    pub lost: Option<Range<u64>>,
    /// The newest stamp that the store has seen, of any log.
    pub received_at_us: i64,
}

/// A stored cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) epoch: u64,
    pub(super) position: u64,
    pub(super) received_at_us: i64,
}

/// Decides where to start. Pure.
pub(super) fn start(cursor: Option<Cursor>, log: LogSpan) -> Start {
    let received_at_us = cursor.map_or(i64::MIN, |cursor| cursor.received_at_us);
    let (from, expected) = match cursor {
        // An older copy of the log came back: what it will append now was never seen, under used positions.
        Some(cursor) if cursor.epoch == log.epoch && cursor.position > log.next => (log.next, log.next),
        Some(cursor) if cursor.epoch == log.epoch => (cursor.position.max(log.first), cursor.position),
        // Another log, or a store that was lost: everything that the log no longer holds is lost to it.
        _ => (log.first, 1),
    };
    let lost = (expected < from).then_some(expected..from);
    Start { from, lost, received_at_us }
}

pub(super) fn read(tx: &mut Tx<'_>) -> Result<Option<Cursor>, DbError> {
    const FIND: &str = "SELECT log_epoch, position, received_at FROM cursor WHERE reader = $1";
    tx.query_opt(FIND, &[&STORE_READER], |row| {
        Ok(Cursor {
            epoch: row.get::<i64>(0)?.cast_unsigned(),
            position: row.get(1)?,
            received_at_us: row.get(2)?,
        })
    })
}

/// Finds the start, records what is lost, and puts the cursor there.
pub(super) fn begin(tx: &mut Tx<'_>, log: LogSpan, now_us: i64) -> Result<Start, TelemetryError> {
    let held = read(tx)?;
    let start = start(held, log);
    if let Some(lost) = &start.lost {
        tracing::error!(
            first = lost.start,
            next = lost.end,
            "log records were deleted before they were stored"
        );
        record_lost(tx, log.epoch, lost, "deleted before it was stored", now_us)?;
    }
    // On a full disk nothing can be written, and mostly nothing has to be.
    if held.is_some_and(|held| held.epoch == log.epoch && held.position == start.from) {
        return Ok(start);
    }
    tx.execute(
        "INSERT INTO cursor (reader, log_epoch, position, received_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (reader) DO UPDATE SET log_epoch = excluded.log_epoch, position = excluded.position",
        &[&STORE_READER, &log.epoch.cast_signed(), &start.from.cast_signed(), &start.received_at_us],
    )?;
    Ok(start)
}

/// Moves the cursor over a batch. Fails where it does not stand at the batch's begin: the batch was
/// written before, or another writer is at work.
pub(super) fn advance(tx: &mut Tx<'_>, batch: &RawBatch, received_at_us: i64) -> Result<(), TelemetryError> {
    let moved = tx.execute(
        "UPDATE cursor SET position = $1, received_at = max(received_at, $2)
         WHERE reader = $3 AND log_epoch = $4 AND position = $5",
        &[
            &batch.next.cast_signed(),
            &received_at_us,
            &STORE_READER,
            &batch.epoch.cast_signed(),
            &batch.from.cast_signed(),
        ],
    )?;
    if moved == 1 { Ok(()) } else { Err(TelemetryError::CursorMoved { from: batch.from }) }
}

pub(super) fn record_lost(
    tx: &mut Tx<'_>,
    epoch: u64,
    range: &Range<u64>,
    why: &str,
    now_us: i64,
) -> Result<(), DbError> {
    tx.execute(
        "INSERT INTO lost_range (log_epoch, first, next, why, found_at) VALUES ($1, $2, $3, $4, $5)",
        &[&epoch.cast_signed(), &range.start.cast_signed(), &range.end.cast_signed(), &why, &now_us],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_store_starts() {
        let log = LogSpan { epoch: 7, first: 10, next: 20 };
        let check = |cursor: Option<(u64, u64)>, from, lost| {
            let cursor = cursor.map(|(epoch, position)| Cursor { epoch, position, received_at_us: 5 });
            let received_at_us = cursor.map_or(i64::MIN, |_| 5);
            assert_eq!(start(cursor, log), Start { from, lost, received_at_us }, "{cursor:?}");
        };
        check(Some((7, 15)), 15, None);
        check(Some((7, 20)), 20, None);
        check(Some((7, 4)), 10, Some(4..10));
        check(Some((7, 25)), 20, None);
        check(Some((8, 15)), 10, Some(1..10));
        check(None, 10, Some(1..10));
    }
}
