//! Readings of one metric over a range, aggregated by step; last values of a device.

use super::partition;
use super::{device_of, from_sql, is_suspect};
use crate::platform::db::{DbError, Scope, SqlValue, ToSql, Tx};
use muster_wire::Value;
use serde::{Deserialize, Serialize};

/// Points that one query returns at most.
pub const POINTS_MAX: usize = 10_000;
/// Day tables that one query visits at most, newest first (SQLite joins at most 500 selects).
const DAYS_MAX: usize = 400;

/// How readings of one step become one point. Text counts for `last` and `count` only; a bool is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// The mean.
    Avg,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The one with the greatest `ts`.
    Last,
    /// How many.
    Count,
    /// The sum.
    Sum,
}

/// Which readings.
#[derive(Clone, Debug)]
pub struct ReadingsQuery {
    /// The device's name.
    pub device: String,
    /// The metric's name.
    pub metric: String,
    /// From this `ts` on, microseconds.
    pub from_us: i64,
    /// Up to, not including.
    pub to_us: i64,
    /// The step and how to join what is in it; None: every reading as it is.
    pub step: Option<(i64, Aggregate)>,
    /// At most this many points, and [`POINTS_MAX`].
    pub limit: usize,
}

/// A reading, or the readings of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// When it was measured; the begin of the step.
    pub ts_us: i64,
    /// The value; None where a step holds nothing that can be aggregated so.
    pub value: Option<Value>,
    /// Readings in it.
    pub count: u64,
    /// Some reading's `ts` is more than a day off its time of reception.
    pub clock_suspect: bool,
}

/// An answer, in order of `ts`.
#[derive(Clone, Debug, PartialEq, Serialize, Default)]
pub struct Points {
    /// The points.
    pub points: Vec<Point>,
    /// There are more: ask again from the last point's `ts` on.
    pub truncated: bool,
}

/// The last value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastValue {
    /// The metric.
    pub metric: String,
    /// The unit that a foreign device told.
    pub unit: Option<String>,
    /// When it was measured.
    pub ts_us: i64,
    /// When it came.
    pub received_at_us: i64,
    /// The value.
    pub value: Value,
    /// `ts` is more than a day off `received_at`.
    pub clock_suspect: bool,
}

/// Reads a metric's points; empty where there is no such device or metric.
///
/// # Errors
/// The database failed.
pub fn readings(tx: &mut Tx<'_>, scope: &Scope, query: &ReadingsQuery) -> Result<Points, DbError> {
    let Some(device_id) = device_of(tx, scope, &query.device)? else { return Ok(Points::default()) };
    const SERIES: &str = "SELECT id FROM series WHERE device_id = $1 AND name = $2";
    let Some(series_id) = tx.query_opt(SERIES, &[&device_id, &query.metric], |row| row.get::<i64>(0))? else {
        return Ok(Points::default());
    };
    let mut days = partition::days(tx, device_id, query.from_us, query.to_us)?;
    let days_cut = days.len() > DAYS_MAX;
    days.truncate(DAYS_MAX);
    if days.is_empty() {
        return Ok(Points::default());
    }
    let limit = query.limit.min(POINTS_MAX);
    let rows = rows_of(&days);
    let fetch = limit as i64 + 1;
    let mut points = match query.step {
        None => raw(tx, &rows, &[&series_id, &query.from_us, &query.to_us, &fetch])?,
        Some((step, aggregate)) => stepped(tx, &rows, series_id, query, (step.max(1), aggregate), fetch)?,
    };
    let truncated = points.len() > limit || days_cut;
    points.truncate(limit);
    Ok(Points { points, truncated })
}

/// The rows of several days as one.
fn rows_of(days: &[i64]) -> String {
    let select = |day: &i64| {
        let table = partition::table(*day);
        format!("SELECT ts, received_at, value FROM {table} WHERE series_id = $1 AND ts >= $2 AND ts < $3")
    };
    days.iter().map(select).collect::<Vec<_>>().join(" UNION ALL ")
}

fn raw(tx: &mut Tx<'_>, rows: &str, args: &[&dyn ToSql]) -> Result<Vec<Point>, DbError> {
    let sql = format!("{rows} ORDER BY ts LIMIT $4");
    tx.query_once(&sql, args, |row| {
        let (ts_us, received_at) = (row.get::<i64>(0)?, row.get::<i64>(1)?);
        let value = Some(from_sql(row.get::<SqlValue>(2)?));
        Ok(Point { ts_us, value, count: 1, clock_suspect: is_suspect(ts_us, received_at) })
    })
}

fn stepped(
    tx: &mut Tx<'_>,
    rows: &str,
    series_id: i64,
    query: &ReadingsQuery,
    (step, aggregate): (i64, Aggregate),
    fetch: i64,
) -> Result<Vec<Point>, DbError> {
    // Steps begin at multiples of the step, so that neighbouring queries agree. `ts - base` is never negative.
    let base = query.from_us.div_euclid(step).saturating_mul(step);
    const NUMBER: &str = "CASE WHEN typeof(value) <> 'text' THEN value END";
    let value = match aggregate {
        Aggregate::Avg => format!("avg({NUMBER})"),
        Aggregate::Min => format!("CAST(min({NUMBER}) AS REAL)"),
        Aggregate::Max => format!("CAST(max({NUMBER}) AS REAL)"),
        // With one max() in the select, SQLite takes the other columns from the row that has it.
        Aggregate::Last => "value, max(ts)".to_owned(),
        Aggregate::Count => "CAST(count(*) AS REAL)".to_owned(),
        Aggregate::Sum => format!("CAST(sum({NUMBER}) AS REAL)"),
    };
    let sql = format!(
        "SELECT (ts - $4) / $5 AS step, count(*), sum(abs(ts - received_at) > $6), {value} FROM ({rows}) GROUP BY step
         ORDER BY step LIMIT $7"
    );
    let suspect = super::CLOCK_SUSPECT_US;
    let args: [&dyn ToSql; 7] = [&series_id, &query.from_us, &query.to_us, &base, &step, &suspect, &fetch];
    tx.query_once(&sql, &args, |row| {
        let value = match row.get::<SqlValue>(3)? {
            SqlValue::Null => None,
            value => Some(from_sql(value)),
        };
        let ts_us = base.saturating_add(row.get::<i64>(0)?.saturating_mul(step));
        Ok(Point { ts_us, value, count: row.get(1)?, clock_suspect: row.get::<i64>(2)? > 0 })
    })
}

/// The last value of each metric of a device, by name.
///
/// # Errors
/// The database failed.
pub fn last_values(tx: &mut Tx<'_>, scope: &Scope, device: &str) -> Result<Vec<LastValue>, DbError> {
    let Some(device_id) = device_of(tx, scope, device)? else { return Ok(Vec::new()) };
    tx.query(
        "SELECT s.name, s.unit, l.ts, l.received_at, l.value FROM last_value l JOIN series s ON s.id = l.series_id
         WHERE l.device_id = $1 ORDER BY s.name",
        &[&device_id],
        |row| {
            let (ts_us, received_at_us) = (row.get(2)?, row.get(3)?);
            Ok(LastValue {
                metric: row.get(0)?,
                unit: row.get(1)?,
                ts_us,
                received_at_us,
                value: from_sql(row.get::<SqlValue>(4)?),
                clock_suspect: is_suspect(ts_us, received_at_us),
            })
        },
    )
}
