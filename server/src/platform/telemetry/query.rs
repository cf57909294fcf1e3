//! Readings of one metric over a range, aggregated by step; last values of a device.
//!
//! A range may touch more day tables than SQLite joins in one select: they are visited [`DAYS_AT_ONCE`] at a time, in
//! order of their earliest `ts`, and what each visit finds is merged. The visits end where nothing that is left can
//! come before what was found. The memtable's readings are found first, as if it were one more day.

use super::View;
use super::memtable::{Memtable, shard_of};
use super::partition::{self, Cell, HeldDay, ReadingRow};
use super::{device_of, from_sql, is_suspect};
use crate::platform::db::sqlite::{SqlValue, ToSql, Tx};
use crate::platform::db::{DbError, Scope};
use muster_wire::Value;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Points that one query returns at most.
pub const POINTS_MAX: usize = 10_000;
/// Steps that a range should have at most, with readings in them or not: the caller's to refuse.
pub const STEPS_MAX: i64 = 100_000;
/// Day tables in one select (SQLite joins at most 500).
const DAYS_AT_ONCE: usize = 400;
/// Steps are counted within 73,000 years of 1970, so that differences of times never overflow.
const STEPPED_TS_MAX: i64 = i64::MAX / 4;

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
pub fn readings(view: &mut View<'_, '_>, scope: &Scope, query: &ReadingsQuery) -> Result<Points, DbError> {
    let Some(device_id) = device_of(view, scope, &query.device)? else { return Ok(Points::default()) };
    const SERIES: &str = "SELECT id FROM series WHERE device_id = $1 AND name = $2";
    let Some(series_id) = view.query_opt(SERIES, &[&device_id, &query.metric], |row| row.get::<i64>(0))?
    else {
        return Ok(Points::default());
    };
    let limit = query.limit.min(POINTS_MAX);
    let fetch = limit + 1;
    let mut points = match query.step {
        None => {
            let recent = view.take(Some(device_id), |memtable| {
                let rows = memtable.rows_of(device_id, series_id);
                rows.filter(|row| query.from_us <= row.ts && row.ts < query.to_us).map(point_of).collect()
            })?;
            raw(view, (device_id, series_id), query, fetch, recent)?
        }
        Some((step, aggregate)) => {
            let steps = Steps::new(query, step.max(1), aggregate, fetch);
            let recent = view.take(Some(device_id), |memtable| {
                let mut found = BTreeMap::new();
                let rows = memtable.rows_of(device_id, series_id);
                for row in rows.filter(|row| steps.holds(row.ts)) {
                    steps.join(&mut found, steps.at(row.ts), steps.part(row));
                }
                found
            })?;
            stepped(view, (device_id, series_id), &steps, recent)?
        }
    };
    let truncated = points.len() > limit;
    points.truncate(limit);
    Ok(Points { points, truncated })
}

pub(super) fn point_of(row: &ReadingRow) -> Point {
    let clock_suspect = is_suspect(row.ts, row.received_at);
    Point { ts_us: row.ts, value: Some(Value::from(&row.value)), count: 1, clock_suspect }
}

/// The rows of several days as one.
fn rows_of(days: &[HeldDay]) -> String {
    let select = |held: &HeldDay| {
        let table = partition::table(held.day);
        format!("SELECT ts, received_at, value FROM {table} WHERE series_id = $1 AND ts >= $2 AND ts < $3")
    };
    days.iter().map(select).collect::<Vec<_>>().join(" UNION ALL ")
}

/// `ids` is the device's and the series'.
fn raw(
    tx: &mut Tx<'_>,
    (device_id, series_id): (i64, i64),
    query: &ReadingsQuery,
    fetch: usize,
    recent: Vec<Point>,
) -> Result<Vec<Point>, DbError> {
    let days = partition::days(tx, device_id, query.from_us, query.to_us)?;
    let mut points = recent;
    points.sort_by_key(|point| point.ts_us);
    points.truncate(fetch);
    for days in days.chunks(DAYS_AT_ONCE) {
        if points.get(fetch - 1).is_some_and(|last| last.ts_us <= days[0].ts_low) {
            break;
        }
        let sql = format!("{} ORDER BY ts LIMIT $4", rows_of(days));
        let args: [&dyn ToSql; 4] = [&series_id, &query.from_us, &query.to_us, &(fetch as i64)];
        points.extend(tx.query_once(&sql, &args, |row| {
            let (ts_us, received_at) = (row.get::<i64>(0)?, row.get::<i64>(1)?);
            let value = Some(from_sql(row.get::<SqlValue>(2)?));
            let clock_suspect = is_suspect(ts_us, received_at);
            Ok::<_, DbError>(Point { ts_us, value, count: 1, clock_suspect })
        })?);
        points.sort_by_key(|point| point.ts_us);
        points.truncate(fetch);
    }
    Ok(points)
}

/// How a range is cut into steps.
pub(super) struct Steps {
    pub(super) from: i64,
    pub(super) to: i64,
    /// Where step 0 begins: a multiple of the step, so that neighbouring queries agree.
    pub(super) base: i64,
    pub(super) step: i64,
    aggregate: Aggregate,
    /// At most this many, the first.
    pub(super) fetch: usize,
}

impl Steps {
    pub(super) fn new(query: &ReadingsQuery, step: i64, aggregate: Aggregate, fetch: usize) -> Self {
        let from = query.from_us.clamp(-STEPPED_TS_MAX, STEPPED_TS_MAX);
        let to = query.to_us.clamp(-STEPPED_TS_MAX, STEPPED_TS_MAX);
        Self { from, to, base: from.div_euclid(step).saturating_mul(step), step, aggregate, fetch }
    }

    /// Two columns of a step: its value, and the value's weight in a merge.
    fn columns(&self) -> String {
        const NUMBER: &str = "CASE WHEN typeof(value) <> 'text' THEN value END";
        match self.aggregate {
            Aggregate::Avg | Aggregate::Sum => format!("CAST(sum({NUMBER}) AS REAL), count({NUMBER})"),
            Aggregate::Min => format!("CAST(min({NUMBER}) AS REAL), 0"),
            Aggregate::Max => format!("CAST(max({NUMBER}) AS REAL), 0"),
            // With one max() in the select, SQLite takes the other columns from the row that has it.
            Aggregate::Last => "value, max(ts)".to_owned(),
            Aggregate::Count => "NULL, 0".to_owned(),
        }
    }

    /// A reading that is alone in its step.
    pub(super) fn part(&self, row: &ReadingRow) -> Part {
        let number = match row.value {
            Cell::Flag(flag) => Some(f64::from(u8::from(flag))),
            Cell::Number(number) => Some(number),
            Cell::Text(_) => None,
        };
        let (value, weight) = match self.aggregate {
            Aggregate::Last => (Some(Value::from(&row.value)), row.ts),
            Aggregate::Count => (None, 0),
            Aggregate::Avg | Aggregate::Sum => (number.map(Value::Number), i64::from(number.is_some())),
            Aggregate::Min | Aggregate::Max => (number.map(Value::Number), 0),
        };
        Part { count: 1, clock_suspect: is_suspect(row.ts, row.received_at), value, weight }
    }

    pub(super) fn join(&self, found: &mut BTreeMap<i64, Part>, step: i64, part: Part) {
        match found.get_mut(&step) {
            Some(known) => known.join(part, self.aggregate),
            None => drop(found.insert(step, part)),
        }
    }

    /// Readings that were summed up: how many, whether a clock is suspect; sum, least and greatest of the numbers and how
    /// many of them; the newest value and its `ts`.
    #[allow(clippy::cast_possible_wrap, reason = "no step holds 2^63 readings")]
    pub(super) fn part_of(
        &self,
        count: u64,
        clock_suspect: bool,
        (total, least, greatest, numbers): (f64, f64, f64, u64),
        (last, last_ts): (Value, i64),
    ) -> Part {
        let of_numbers = |number: f64| (numbers > 0).then_some(Value::Number(number));
        let (value, weight) = match self.aggregate {
            Aggregate::Last => (Some(last), last_ts),
            Aggregate::Count => (None, 0),
            Aggregate::Avg | Aggregate::Sum => (of_numbers(total), numbers as i64),
            Aggregate::Min => (of_numbers(least), 0),
            Aggregate::Max => (of_numbers(greatest), 0),
        };
        Part { count, clock_suspect, value, weight }
    }

    /// Whether a time is in the range.
    pub(super) fn holds(&self, ts: i64) -> bool {
        self.from <= ts && ts < self.to
    }

    /// The points of the steps that were found.
    pub(super) fn points(&self, found: BTreeMap<i64, Part>) -> Vec<Point> {
        let ts_of = |step: i64| self.base.saturating_add(step.saturating_mul(self.step));
        found.into_iter().map(|(step, part)| part.point(ts_of(step), self.aggregate)).collect()
    }

    /// The step that a time is in.
    pub(super) fn at(&self, ts: i64) -> i64 {
        ts.saturating_sub(self.base).div_euclid(self.step)
    }
}

/// What some days hold of a step.
pub(super) struct Part {
    count: u64,
    clock_suspect: bool,
    value: Option<Value>,
    /// Numbers in a sum, `ts` of a last value.
    weight: i64,
}

impl Part {
    fn join(&mut self, other: Self, aggregate: Aggregate) {
        self.count += other.count;
        self.clock_suspect |= other.clock_suspect;
        let numbers = match (&self.value, &other.value) {
            (Some(Value::Number(a)), Some(Value::Number(b))) => Some((*a, *b)),
            _ => None,
        };
        match (aggregate, numbers) {
            (Aggregate::Last, _) if other.weight >= self.weight => {
                (self.value, self.weight) = (other.value, other.weight);
            }
            (Aggregate::Min, Some((a, b))) => self.value = Some(Value::Number(a.min(b))),
            (Aggregate::Max, Some((a, b))) => self.value = Some(Value::Number(a.max(b))),
            (Aggregate::Avg | Aggregate::Sum, Some((a, b))) => {
                self.value = Some(Value::Number(a + b));
                self.weight += other.weight;
            }
            (_, _) if self.value.is_none() => (self.value, self.weight) = (other.value, other.weight),
            _ => {}
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "no step holds 2^52 readings")]
    fn point(self, ts_us: i64, aggregate: Aggregate) -> Point {
        let value = match (aggregate, self.value) {
            (Aggregate::Count, _) => Some(Value::Number(self.count as f64)),
            (Aggregate::Avg, Some(Value::Number(sum))) => Some(Value::Number(sum / self.weight as f64)),
            (_, value) => value,
        };
        Point { ts_us, value, count: self.count, clock_suspect: self.clock_suspect }
    }
}

/// `ids` is the device's and the series'.
fn stepped(
    tx: &mut Tx<'_>,
    (device_id, series_id): (i64, i64),
    steps: &Steps,
    recent: BTreeMap<i64, Part>,
) -> Result<Vec<Point>, DbError> {
    let days = partition::days(tx, device_id, steps.from, steps.to)?;
    let mut found = recent;
    for days in days.chunks(DAYS_AT_ONCE) {
        let is_full = found.len() >= steps.fetch;
        if is_full && found.keys().next_back().is_some_and(|last| *last < steps.at(days[0].ts_low)) {
            break;
        }
        for (step, part) in parts(tx, series_id, steps, days)? {
            steps.join(&mut found, step, part);
        }
        while found.len() > steps.fetch {
            found.pop_last();
        }
    }
    Ok(steps.points(found))
}

fn parts(
    tx: &mut Tx<'_>,
    series_id: i64,
    steps: &Steps,
    days: &[HeldDay],
) -> Result<Vec<(i64, Part)>, DbError> {
    let (columns, rows) = (steps.columns(), rows_of(days));
    // `ts - base` is never negative.
    let sql = format!(
        "SELECT (ts - $4) / $5 AS step, count(*), sum(abs(ts - received_at) > $6), {columns} FROM ({rows})
         GROUP BY step ORDER BY step LIMIT $7"
    );
    let Steps { from, to, base, step, .. } = steps;
    let (suspect, fetch) = (super::CLOCK_SUSPECT_US, steps.fetch as i64);
    let args: [&dyn ToSql; 7] = [&series_id, from, to, base, step, &suspect, &fetch];
    tx.query_once(&sql, &args, |row| {
        let value = match row.get::<SqlValue>(3)? {
            SqlValue::Null => None,
            value => Some(from_sql(value)),
        };
        let (clock_suspect, weight) = (row.get::<i64>(2)? > 0, row.get(4)?);
        Ok((row.get(0)?, Part { count: row.get(1)?, clock_suspect, value, weight }))
    })
}

/// The last value of each metric of a device, by name.
///
/// # Errors
/// The database failed.
pub fn last_values(view: &mut View<'_, '_>, scope: &Scope, device: &str) -> Result<Vec<LastValue>, DbError> {
    let Some(device_id) = device_of(view, scope, device)? else { return Ok(Vec::new()) };
    let recent = view.take(Some(device_id), |memtable| newest_of(memtable, device_id))?;
    let rows: Vec<(i64, LastValue)> = view.query(
        "SELECT s.name, s.unit, l.ts, l.received_at, l.value, s.id FROM series s
         LEFT JOIN last_value l ON l.series_id = s.id WHERE s.device_id = $1 ORDER BY s.name",
        &[&device_id],
        |row| {
            let (ts_us, received_at_us) = (row.get::<Option<i64>>(2)?, row.get::<Option<i64>>(3)?);
            let last = LastValue {
                metric: row.get(0)?,
                unit: row.get(1)?,
                ts_us: ts_us.unwrap_or(NEVER_US),
                received_at_us: received_at_us.unwrap_or(NEVER_US),
                value: from_sql(row.get::<SqlValue>(4)?),
                clock_suspect: false,
            };
            Ok::<_, DbError>((row.get(5)?, last))
        },
    )?;
    let join = |(series_id, mut last): (i64, LastValue)| {
        if let Some(newest) = recent.get(&series_id)
            && partition::replaces((newest.ts, newest.received_at), (last.ts_us, last.received_at_us))
        {
            (last.ts_us, last.received_at_us) = (newest.ts, newest.received_at);
            last.value = Value::from(&newest.value);
        }
        last.clock_suspect = is_suspect(last.ts_us, last.received_at_us);
        (last.received_at_us != NEVER_US).then_some(last)
    };
    Ok(rows.into_iter().filter_map(join).collect())
}

/// Stands for a metric that has no last value in the tables: older than any.
const NEVER_US: i64 = i64::MIN;

fn newest_of(memtable: &Memtable, device_id: i64) -> HashMap<i64, ReadingRow> {
    let mut newest = HashMap::<i64, &ReadingRow>::new();
    for row in memtable.shards[shard_of(device_id)].rows.iter().filter(|row| row.device_id == device_id) {
        let known = newest.entry(row.series_id).or_insert(row);
        if row.by_rank(known).is_ge() {
            *known = row;
        }
    }
    newest.into_iter().map(|(series_id, row)| (series_id, row.clone())).collect()
}
