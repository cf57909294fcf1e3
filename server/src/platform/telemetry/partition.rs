//! Readings in one table a day of `received_at`: inserting, finding the days of a query, and names.
//!
//! Partitioned by `received_at` (promise 7), keyed by `ts` within: a retention pass drops whole tables, and
//! a wrong device clock never decides what is kept. `device_day` notes which hours of `ts` a device has in
//! which day, so that a query by `ts` visits only tables that can answer it.

use super::names::{DeviceDay, Names, Slot};
use crate::platform::db::{DbError, SqlValue, Tx};
use std::collections::HashSet;

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;

/// A row before it is inserted.
#[derive(Clone, Debug)]
pub(super) struct ReadingRow {
    pub(super) series_id: i64,
    pub(super) ts: i64,
    pub(super) queue_ref: i64,
    pub(super) seq: i64,
    pub(super) index: i64,
    pub(super) received_at: i64,
    pub(super) slot: Slot,
    pub(super) value: SqlValue,
}

impl ReadingRow {
    fn key(&self) -> (i64, i64, i64, i64, i64) {
        (self.series_id, self.ts, self.queue_ref, self.seq, self.index)
    }

    /// The time that decides which value is the last: a clock that runs ahead gains nothing.
    fn rank(&self) -> i64 {
        self.ts.min(self.received_at)
    }
}

/// The day partition of a time of reception.
pub(super) fn day_of(received_at_us: i64) -> i64 {
    received_at_us.max(0).div_euclid(DAY_US)
}

/// The table of a day.
pub(super) fn table(day: i64) -> String {
    format!("reading_{day}")
}

/// Day tables known to exist.
#[derive(Default)]
pub(super) struct Partitions {
    known: HashSet<i64>,
}

impl Partitions {
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    fn ensure(&mut self, tx: &mut Tx<'_>, day: i64) -> Result<(), DbError> {
        if self.known.contains(&day) {
            return Ok(());
        }
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {} (series_id INTEGER NOT NULL, ts INTEGER NOT NULL, queue_ref INTEGER NOT NULL,
             seq INTEGER NOT NULL, idx INTEGER NOT NULL, received_at INTEGER NOT NULL, value ANY NOT NULL,
             PRIMARY KEY (series_id, ts, queue_ref, seq, idx)) STRICT, WITHOUT ROWID",
            table(day)
        );
        tx.execute(&create, &[])?;
        tx.execute("INSERT INTO reading_day (day) VALUES ($1) ON CONFLICT DO NOTHING", &[&day])?;
        self.known.insert(day);
        Ok(())
    }

    /// Inserts rows of one day, sorted here by key so that pages are touched in order, and leaves them sorted.
    /// Calls `known` with each that was there already (only those keyed by name and time can be).
    pub(super) fn insert(
        &mut self,
        tx: &mut Tx<'_>,
        day: i64,
        rows: &mut [ReadingRow],
        mut known: impl FnMut(&ReadingRow),
    ) -> Result<(), DbError> {
        self.ensure(tx, day)?;
        rows.sort_unstable_by_key(ReadingRow::key);
        let sql = format!("INSERT OR IGNORE INTO {} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", table(day));
        let mut insert = tx.statement(&sql)?;
        for row in rows.iter() {
            insert.bind(1, row.series_id)?;
            insert.bind(2, row.ts)?;
            insert.bind(3, row.queue_ref)?;
            insert.bind(4, row.seq)?;
            insert.bind(5, row.index)?;
            insert.bind(6, row.received_at)?;
            insert.bind(7, &row.value)?;
            if insert.run()? == 0 {
                known(row);
            }
        }
        Ok(())
    }
}

/// A value received this much after the last one replaces it whatever their `ts` (a clock that was set back).
const LAST_STALE_US: i64 = 300_000_000;

/// Updates the last value of each series in sorted rows; calls `each` with the newest row of each.
pub(super) fn update_last(
    tx: &mut Tx<'_>,
    names: &Names,
    rows: &[ReadingRow],
    mut each: impl FnMut(&ReadingRow),
) -> Result<(), DbError> {
    let sql = format!(
        "INSERT INTO last_value (series_id, device_id, ts, received_at, value) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, received_at = excluded.received_at, value = excluded.value
         WHERE min(excluded.ts, excluded.received_at) >= min(last_value.ts, last_value.received_at)
         OR excluded.received_at - last_value.received_at > {LAST_STALE_US}"
    );
    let mut upsert = tx.statement(&sql)?;
    for group in rows.chunk_by(|a, b| a.series_id == b.series_id) {
        let Some(newest) = group.iter().max_by_key(|row| (row.rank(), row.received_at)) else { continue };
        upsert.bind(1, newest.series_id)?;
        upsert.bind(2, names.device(newest.slot).id)?;
        upsert.bind(3, newest.ts)?;
        upsert.bind(4, newest.received_at)?;
        upsert.bind(5, &newest.value)?;
        upsert.run()?;
        each(newest);
    }
    Ok(())
}

/// Notes that a device has readings of `ts_low..=ts_high` in a day; writes only when an hour is new.
pub(super) fn note_day(
    tx: &mut Tx<'_>,
    names: &mut Names,
    slot: Slot,
    day: i64,
    ts_low: i64,
    ts_high: i64,
) -> Result<(), DbError> {
    let version = names.days();
    let known = names.device(slot).day.filter(|known| known.day == day && known.version == version);
    if known.is_some_and(|known| known.ts_low <= ts_low && ts_high <= known.ts_high) {
        return Ok(());
    }
    let device_id = names.device(slot).id;
    let low = ts_low.div_euclid(HOUR_US).saturating_mul(HOUR_US);
    let high = ts_high.div_euclid(HOUR_US).saturating_mul(HOUR_US).saturating_add(HOUR_US - 1);
    let noted = tx.query_one(
        "INSERT INTO device_day (device_id, day, ts_low, ts_high) VALUES ($1, $2, $3, $4)
         ON CONFLICT (device_id, day) DO UPDATE SET ts_low = min(ts_low, excluded.ts_low), ts_high = max(ts_high, excluded.ts_high)
         RETURNING ts_low, ts_high",
        &[&device_id, &day, &low, &high],
        |row| Ok::<_, DbError>(DeviceDay { day, ts_low: row.get(0)?, ts_high: row.get(1)?, version }),
    )?;
    names.device_mut(slot).day = Some(noted);
    Ok(())
}

/// A day that can hold what a query asks for.
pub(super) struct HeldDay {
    pub(super) day: i64,
    /// No reading of the device in it has an earlier `ts`.
    pub(super) ts_low: i64,
}

/// The days that can hold a device's readings with `ts` in `from..to`, in order of their earliest `ts`.
pub(super) fn days(tx: &mut Tx<'_>, device_id: i64, from: i64, to: i64) -> Result<Vec<HeldDay>, DbError> {
    tx.query(
        "SELECT day, ts_low FROM device_day WHERE device_id = $1 AND ts_high >= $2 AND ts_low < $3 ORDER BY ts_low, day",
        &[&device_id, &from, &to],
        |row| Ok(HeldDay { day: row.get(0)?, ts_low: row.get(1)? }),
    )
}
