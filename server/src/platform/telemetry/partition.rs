//! Readings in one table a day of `received_at`: inserting, finding the days of a query, and names.
//!
//! Partitioned by `received_at` (promise 7), keyed by `ts` within: a retention pass drops whole tables, and
//! a wrong device clock never decides what is kept. `device_day` notes which hours of `ts` a device has in
//! which day, so that a query by `ts` visits only tables that can answer it.

use crate::platform::db::DbError;
use crate::platform::db::sqlite::{SqlValue, ToSql, Tx};
use muster_wire::Value;
use rusqlite::types::{ToSqlOutput, ValueRef};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;
/// Devices whose noted hours are kept in memory.
const NOTED_DEVICES_MAX: usize = 200_000;

/// A value as the tables hold it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Flag(bool),
    Number(f64),
    Text(Box<str>),
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Bool(flag) => Self::Flag(flag),
            Value::Number(number) => Self::Number(number),
            Value::Text(text) => Self::Text(text.into()),
        }
    }
}

impl From<&Cell> for Value {
    fn from(cell: &Cell) -> Self {
        match cell {
            Cell::Flag(flag) => Self::Bool(*flag),
            Cell::Number(number) => Self::Number(*number),
            Cell::Text(text) => Self::Text(text.to_string()),
        }
    }
}

impl ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Flag(flag) => ToSqlOutput::Owned(SqlValue::Integer(i64::from(*flag))),
            Self::Number(number) => ToSqlOutput::Owned(SqlValue::Real(*number)),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

/// A row of a day's table.
#[derive(Clone, Debug)]
pub(super) struct ReadingRow {
    pub(super) series_id: i64,
    pub(super) device_id: i64,
    pub(super) ts: i64,
    pub(super) queue_ref: i64,
    pub(super) seq: i64,
    pub(super) received_at: i64,
    pub(super) index: u32,
    pub(super) value: Cell,
}

impl ReadingRow {
    pub(super) fn key(&self) -> (i64, i64, i64, i64, u32) {
        (self.series_id, self.ts, self.queue_ref, self.seq, self.index)
    }

    /// Orders rows of a series by what decides which is the last: a clock that runs ahead gains nothing.
    pub(super) fn by_rank(&self, other: &Self) -> Ordering {
        let rank = |row: &Self| (row.ts.min(row.received_at), row.received_at);
        rank(self).cmp(&rank(other))
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

/// The hours of `ts` that a device is noted to have in a day.
#[derive(Clone, Copy)]
struct Noted {
    day: i64,
    ts_low: i64,
    ts_high: i64,
}

/// Day tables known to exist, and what is known to be noted in `device_day`.
#[derive(Default)]
pub(super) struct Partitions {
    known: HashSet<i64>,
    /// Each device's day that was written last.
    noted: HashMap<i64, Noted>,
}

impl Partitions {
    /// Tables were dropped.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Rows of `device_day` were deleted.
    pub(super) fn forget_days(&mut self) {
        self.noted = HashMap::new();
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

    /// Inserts rows of one day, sorted by key so that pages are touched in order. Says how many were there already.
    pub(super) fn insert(&mut self, tx: &mut Tx<'_>, day: i64, rows: &[ReadingRow]) -> Result<u64, DbError> {
        self.ensure(tx, day)?;
        let sql = format!("INSERT OR IGNORE INTO {} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", table(day));
        let mut insert = tx.statement(&sql)?;
        let mut known = 0;
        for row in rows {
            insert.bind(1, row.series_id)?;
            insert.bind(2, row.ts)?;
            insert.bind(3, row.queue_ref)?;
            insert.bind(4, row.seq)?;
            insert.bind(5, row.index)?;
            insert.bind(6, row.received_at)?;
            insert.bind(7, &row.value)?;
            known += u64::from(insert.run()? == 0);
        }
        Ok(known)
    }

    /// Whether a day holds a reading that is keyed by name and time.
    pub(super) fn holds_named(
        &mut self,
        tx: &mut Tx<'_>,
        day: i64,
        (series_id, ts, queue_ref): (i64, i64, i64),
    ) -> Result<bool, DbError> {
        self.ensure(tx, day)?;
        let sql = format!(
            "SELECT 1 FROM {} WHERE series_id = $1 AND ts = $2 AND queue_ref = $3 AND seq = 0 AND idx = 0",
            table(day)
        );
        let found = tx.query_opt(&sql, &[&series_id, &ts, &queue_ref], |row| row.get::<i64>(0))?;
        Ok(found.is_some())
    }

    /// Notes which hours the devices of a day's rows have in it; writes only when an hour is new.
    pub(super) fn note_day(&mut self, tx: &mut Tx<'_>, day: i64, rows: &[ReadingRow]) -> Result<(), DbError> {
        let mut spans = HashMap::<i64, (i64, i64)>::new();
        for row in rows {
            let span = spans.entry(row.device_id).or_insert((row.ts, row.ts));
            *span = (span.0.min(row.ts), span.1.max(row.ts));
        }
        if self.noted.len() > NOTED_DEVICES_MAX {
            self.forget_days();
        }
        for (device_id, (ts_low, ts_high)) in spans {
            let known = self.noted.get(&device_id).filter(|known| known.day == day);
            if known.is_some_and(|known| known.ts_low <= ts_low && ts_high <= known.ts_high) {
                continue;
            }
            let low = ts_low.div_euclid(HOUR_US).saturating_mul(HOUR_US);
            let high = ts_high.div_euclid(HOUR_US).saturating_mul(HOUR_US).saturating_add(HOUR_US - 1);
            let noted = tx.query_one(
                "INSERT INTO device_day (device_id, day, ts_low, ts_high) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (device_id, day) DO UPDATE SET ts_low = min(ts_low, excluded.ts_low), ts_high = max(ts_high, excluded.ts_high)
                 RETURNING ts_low, ts_high",
                &[&device_id, &day, &low, &high],
                |row| Ok::<_, DbError>(Noted { day, ts_low: row.get(0)?, ts_high: row.get(1)? }),
            )?;
            self.noted.insert(device_id, noted);
        }
        Ok(())
    }
}

/// A value received this much after the last one replaces it whatever their `ts` (a clock that was set back).
const LAST_STALE_US: i64 = 300_000_000;

/// Whether a value replaces the last one; each is (`ts`, `received_at`). As [`update_last`] writes it.
pub(super) fn replaces(new: (i64, i64), last: (i64, i64)) -> bool {
    new.0.min(new.1) >= last.0.min(last.1) || new.1.saturating_sub(last.1) > LAST_STALE_US
}

/// Updates the last value of each series in sorted rows.
pub(super) fn update_last(tx: &mut Tx<'_>, rows: &[ReadingRow]) -> Result<(), DbError> {
    let sql = format!(
        "INSERT INTO last_value (series_id, device_id, ts, received_at, value) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, received_at = excluded.received_at, value = excluded.value
         WHERE min(excluded.ts, excluded.received_at) >= min(last_value.ts, last_value.received_at)
         OR excluded.received_at - last_value.received_at > {LAST_STALE_US}"
    );
    let mut upsert = tx.statement(&sql)?;
    for group in rows.chunk_by(|a, b| a.series_id == b.series_id) {
        let Some(newest) = group.iter().max_by(|a, b| a.by_rank(b)) else { continue };
        upsert.bind(1, newest.series_id)?;
        upsert.bind(2, newest.device_id)?;
        upsert.bind(3, newest.ts)?;
        upsert.bind(4, newest.received_at)?;
        upsert.bind(5, &newest.value)?;
        upsert.run()?;
    }
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
