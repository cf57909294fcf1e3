//! Where the store stands in the log (promise, point 5): each mark commits with its effects.

use super::TelemetryError;
use super::memtable::{Marks, Position};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::{ToSql, Tx};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) epoch: u64,
    pub(super) received_at_us: i64,
    pub(super) marks: Marks,
}

/// Decides where to start, and what every mark is then. Pure.
pub(super) fn start(cursor: Option<&Cursor>, log: LogSpan) -> (Start, Marks) {
    let received_at_us = cursor.map_or(i64::MIN, |cursor| cursor.received_at_us);
    let same_log = cursor.filter(|cursor| cursor.epoch == log.epoch);
    // Another log, or a store that was lost: everything that the log no longer holds is lost to it.
    let (mut marks, expected) =
        same_log.map_or((Marks::all(log.first), 1), |cursor| (cursor.marks.clone(), cursor.marks.oldest()));
    // An older copy of the log came back: what it will append now was never seen, under used positions.
    marks.clamp(log.first.min(log.next), log.next);
    let from = marks.oldest();
    let lost = (expected < from).then_some(expected..from);
    (Start { from, lost, received_at_us }, marks)
}

fn read(tx: &mut Tx<'_>) -> Result<Option<Cursor>, DbError> {
    const FIND: &str = "SELECT log_epoch, position, received_at, marks FROM cursor WHERE reader = $1";
    tx.query_opt(FIND, &[&STORE_READER], |row| {
        let marks = match row.get::<Option<Vec<u8>>>(3)? {
            None => Marks::all(row.get(1)?),
            Some(bytes) => {
                Marks::from_bytes(&bytes).ok_or_else(|| DbError::Column { column: "marks".into() })?
            }
        };
        Ok(Cursor { epoch: row.get::<i64>(0)?.cast_unsigned(), received_at_us: row.get(2)?, marks })
    })
}

/// The marks as a reader's snapshot has them.
pub(super) fn marks(tx: &mut Tx<'_>) -> Result<Option<Marks>, DbError> {
    Ok(read(tx)?.map(|cursor| cursor.marks))
}

/// Finds the start, records what is lost, and puts the cursor there.
pub(super) fn begin(tx: &mut Tx<'_>, log: LogSpan, now_us: i64) -> Result<(Start, Position), TelemetryError> {
    let held = read(tx)?;
    let (start, marks) = start(held.as_ref(), log);
    let position = Position {
        epoch: log.epoch,
        applied: start.from,
        received_at_us: start.received_at_us,
        marks: marks.clone(),
    };
    if let Some(lost) = &start.lost {
        tracing::error!(
            first = lost.start,
            next = lost.end,
            "log records were deleted before they were stored"
        );
        record_lost(tx, log.epoch, lost, "deleted before it was stored", now_us)?;
    }
    // On a full disk nothing can be written, and mostly nothing has to be.
    if held.is_none_or(|held| held.epoch != log.epoch || held.marks != marks) {
        write(tx, &position, &marks)?;
    }
    Ok((start, position))
}

/// Writes the cursor's row: where the shards stand now.
pub(super) fn write(tx: &mut Tx<'_>, position: &Position, marks: &Marks) -> Result<(), DbError> {
    tx.execute(
        "INSERT INTO cursor (reader, log_epoch, position, received_at, marks) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (reader) DO UPDATE SET log_epoch = excluded.log_epoch, position = excluded.position,
         received_at = max(received_at, excluded.received_at), marks = excluded.marks",
        &[
            &STORE_READER,
            &position.epoch.cast_signed(),
            &marks.oldest().cast_signed(),
            &position.received_at_us,
            &marks.to_bytes(),
        ],
    )?;
    Ok(())
}

/// Whether a range is noted as lost.
pub(super) fn is_lost(tx: &mut Tx<'_>, epoch: u64, range: &Range<u64>) -> Result<bool, DbError> {
    const FIND: &str = "SELECT 1 FROM lost_range WHERE log_epoch = $1 AND first <= $2 AND next >= $3 LIMIT 1";
    let args: [&dyn ToSql; 3] = [&epoch.cast_signed(), &range.start.cast_signed(), &range.end.cast_signed()];
    Ok(tx.query_opt(FIND, &args, |row| row.get::<i64>(0))?.is_some())
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
            let cursor = cursor.map(|(epoch, position)| Cursor {
                epoch,
                received_at_us: 5,
                marks: Marks::all(position),
            });
            let received_at_us = cursor.as_ref().map_or(i64::MIN, |_| 5);
            let expect = (Start { from, lost, received_at_us }, Marks::all(from));
            assert_eq!(start(cursor.as_ref(), log), expect, "{cursor:?}");
        };
        check(Some((7, 15)), 15, None);
        check(Some((7, 20)), 20, None);
        check(Some((7, 4)), 10, Some(4..10));
        check(Some((7, 25)), 20, None);
        check(Some((8, 15)), 10, Some(1..10));
        check(None, 10, Some(1..10));
    }

    #[test]
    fn every_mark_is_kept_within_the_log() {
        let mut marks = Marks::all(15);
        (marks.direct, marks.shards[3], marks.shards[4]) = (30, 12, 25);
        let cursor = Cursor { epoch: 7, received_at_us: 5, marks };
        let (start, marks) = start(Some(&cursor), LogSpan { epoch: 7, first: 10, next: 20 });
        assert_eq!((start.from, start.lost), (12, None));
        assert_eq!((marks.direct, marks.shards[3], marks.shards[4], marks.shards[5]), (20, 12, 20, 15));
    }
}
