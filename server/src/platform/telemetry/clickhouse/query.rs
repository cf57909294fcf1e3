//! Readings from ClickHouse and memory as of one moment.
//!
//! A query takes the rows that are not confirmed from memory, and the number of the newest batch that is; ClickHouse is
//! asked for rows up to that batch. So what is on its way meanwhile is there once. Rollups know no batches: they are
//! used where no block was on its way from the look into memory to the answer, and readings else.
//!
//! Steps of whole minutes or hours are read from the rollups, but for what lies at the edges of the range.

use super::super::lists::{EventQuery, EventRow};
use super::super::memtable::Memtable;
use super::super::partition::ReadingRow;
use super::super::query::{Part, Point, Points, ReadingsQuery, Steps, point_of};
use super::super::remote::Remote;
use super::super::{CLOCK_SUSPECT_US, POINTS_MAX, TelemetryStore, device_of, is_suspect};
use super::{ClickHouse, ClickHouseError, Options, lists};
use crate::platform::db::{DbError, Scope};
use clickhouse::Row;
use muster_wire::Value;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 60 * MINUTE_US;
/// Tries to read a rollup while no block is on its way, [`PAUSE`] apart.
const ATTEMPTS_MAX: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Row, Deserialize)]
struct RawRow {
    ts: i64,
    received_at: i64,
    kind: u8,
    number: f64,
    text: String,
}

impl RawRow {
    fn point(self) -> Point {
        let clock_suspect = is_suspect(self.ts, self.received_at);
        let value = Some(value_of(self.kind, self.number, self.text));
        Point { ts_us: self.ts, value, count: 1, clock_suspect }
    }
}

#[derive(Row, Deserialize)]
struct StepRow {
    step: i64,
    readings: u64,
    suspects: u64,
    numbers: u64,
    total: f64,
    least: f64,
    greatest: f64,
    last: (u8, f64, String),
    last_ts: i64,
}

pub(super) fn value_of(kind: u8, number: f64, text: String) -> Value {
    match kind {
        0 => Value::Number(number),
        1 => Value::Bool(number != 0.0),
        _ => Value::Text(text),
    }
}

/// Whose readings: `tenant` is absent for every tenant's.
struct Series {
    tenant: Option<String>,
    device: String,
    metric: String,
}

/// What memory holds of a series, and up to which batch ClickHouse is asked.
struct Recent<T> {
    found: T,
    confirmed: i64,
}

impl TelemetryStore {
    pub(in super::super) async fn remote_readings(
        &self,
        remote: &Remote,
        scope: &Scope,
        query: &ReadingsQuery,
    ) -> Result<Points, DbError> {
        let series = Series::of(scope, query);
        let ids = self.series_ids(scope, query).await?;
        let limit = query.limit.min(POINTS_MAX);
        let mut points = match query.step {
            None => self.remote_raw(remote, &series, ids, query, limit + 1).await?,
            Some((step, aggregate)) => {
                let steps = Steps::new(query, step.max(1), aggregate, limit + 1);
                self.remote_steps(remote, &series, ids, &steps).await?
            }
        };
        let truncated = points.len() > limit;
        points.truncate(limit);
        Ok(Points { points, truncated })
    }

    /// The device's and the series' numbers in memory; none where nothing of it came here yet.
    async fn series_ids(&self, scope: &Scope, query: &ReadingsQuery) -> Result<Option<(i64, i64)>, DbError> {
        let (scope, device, metric) = (scope.clone(), query.device.clone(), query.metric.clone());
        self.db
            .read(move |tx| {
                let Some(device_id) = device_of(tx, &scope, &device)? else { return Ok(None) };
                const SERIES: &str = "SELECT id FROM series WHERE device_id = $1 AND name = $2";
                let series_id = tx.query_opt(SERIES, &[&device_id, &metric], |row| row.get::<i64>(0))?;
                Ok::<_, DbError>(series_id.map(|series_id| (device_id, series_id)))
            })
            .await
    }

    fn recent<T: Default>(&self, ids: Option<(i64, i64)>, take: impl Fn(&mut T, &ReadingRow)) -> Recent<T> {
        let memtable = self.memtable();
        let mut found = T::default();
        if let Some((device_id, series_id)) = ids {
            memtable.rows_of(device_id, series_id).for_each(|row| take(&mut found, row));
        }
        Recent { found, confirmed: Memtable::confirmed(&memtable) }
    }

    async fn remote_raw(
        &self,
        remote: &Remote,
        series: &Series,
        ids: Option<(i64, i64)>,
        query: &ReadingsQuery,
        fetch: usize,
    ) -> Result<Vec<Point>, DbError> {
        let Recent { found: recent, confirmed } = self.recent(ids, |points: &mut Vec<Point>, row| {
            if query.from_us <= row.ts && row.ts < query.to_us {
                points.push(point_of(row));
            }
        });
        let mut points = raw(remote.client(), series, query, confirmed, fetch).await?;
        points.extend(recent);
        points.sort_by_key(|point| point.ts_us);
        points.truncate(fetch);
        Ok(points)
    }

    async fn remote_steps(
        &self,
        remote: &Remote,
        series: &Series,
        ids: Option<(i64, i64)>,
        steps: &Steps,
    ) -> Result<Vec<Point>, DbError> {
        let recent = || {
            self.recent(ids, |found: &mut BTreeMap<i64, Part>, row| {
                if steps.holds(row.ts) {
                    steps.join(found, steps.at(row.ts), steps.part(row));
                }
            })
        };
        if let Some(rollup) = Rollup::of(steps) {
            for _ in 0..ATTEMPTS_MAX {
                let turn = remote.turn.load(Ordering::Acquire);
                if turn.is_multiple_of(2) {
                    let recent = recent();
                    let rows = steps_of(remote.client(), series, steps, &rollup.source(steps)).await?;
                    if remote.turn.load(Ordering::Acquire) == turn {
                        return Ok(joined(steps, recent.found, rows));
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        let recent = recent();
        let rows = steps_of(remote.client(), series, steps, &all_of(steps, recent.confirmed)).await?;
        Ok(joined(steps, recent.found, rows))
    }
}

/// Readings and events for a process that stores none: what ClickHouse has. Clones share its connections.
#[derive(Clone)]
pub struct Reader {
    clickhouse: ClickHouse,
}

impl Reader {
    /// Opens nothing yet; it belongs to the async runtime that asks.
    ///
    /// # Errors
    /// A file that the configuration names cannot be read.
    pub fn open(options: &Options) -> Result<Self, ClickHouseError> {
        Ok(Self { clickhouse: ClickHouse::new(Arc::new(options.clone()))? })
    }

    /// Readings of one metric over a range.
    ///
    /// # Errors
    /// ClickHouse cannot be reached or refused.
    pub async fn readings(&self, scope: &Scope, query: &ReadingsQuery) -> Result<Points, DbError> {
        let series = Series::of(scope, query);
        let limit = query.limit.min(POINTS_MAX);
        let mut points = match query.step {
            None => raw(&self.clickhouse, &series, query, i64::MAX, limit + 1).await?,
            Some((step, aggregate)) => {
                let steps = Steps::new(query, step.max(1), aggregate, limit + 1);
                let source = Rollup::of(&steps)
                    .map_or_else(|| all_of(&steps, i64::MAX), |rollup| rollup.source(&steps));
                let rows = steps_of(&self.clickhouse, &series, &steps, &source).await?;
                joined(&steps, BTreeMap::new(), rows)
            }
        };
        let truncated = points.len() > limit;
        points.truncate(limit);
        Ok(Points { points, truncated })
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// ClickHouse cannot be reached or refused.
    pub async fn events(&self, scope: &Scope, query: &EventQuery) -> Result<Vec<EventRow>, DbError> {
        lists::ask(&self.clickhouse, scope, query, i64::MAX).await
    }

    /// Whether ClickHouse answers.
    ///
    /// # Errors
    /// It does not, or refuses the user.
    pub async fn check(&self) -> Result<(), ClickHouseError> {
        self.clickhouse.check().await
    }
}

async fn raw(
    clickhouse: &ClickHouse,
    series: &Series,
    query: &ReadingsQuery,
    confirmed: i64,
    fetch: usize,
) -> Result<Vec<Point>, DbError> {
    let sql = format!(
        "SELECT ts, received_at, kind, number, text FROM readings WHERE {} AND ts >= ? AND ts < ? AND batch <= ?
         ORDER BY ts, queue_id, class, seq, idx LIMIT ?",
        series.condition()
    );
    let asked = series.bind(clickhouse.reader().query(&sql));
    let asked = asked.bind(query.from_us).bind(query.to_us).bind(confirmed).bind(fetch);
    let rows = clickhouse.rows::<RawRow>(asked).await?;
    Ok(rows.into_iter().map(RawRow::point).collect())
}

/// The newest reading of a step; the bytes' layout stands in the schema.
const NEWEST: &str = "max(last_of)";

/// Readings themselves, over all steps.
fn all_of(steps: &Steps, confirmed: i64) -> String {
    raw_source(&format!("ts >= {} AND ts < {}", steps.from, steps.to), Some(confirmed))
}

impl Series {
    fn of(scope: &Scope, query: &ReadingsQuery) -> Self {
        let tenant = match scope {
            Scope::Tenant(tenant) => Some(tenant.to_string()),
            Scope::System(_) => None,
        };
        Self { tenant, device: query.device.clone(), metric: query.metric.clone() }
    }

    fn condition(&self) -> &'static str {
        match self.tenant {
            Some(_) => "tenant = ? AND device = ? AND metric = ?",
            None => "device = ? AND metric = ?",
        }
    }

    fn bind(&self, query: clickhouse::query::Query) -> clickhouse::query::Query {
        let query = match &self.tenant {
            Some(tenant) => query.bind(tenant),
            None => query,
        };
        query.bind(&self.device).bind(&self.metric)
    }
}

fn joined(steps: &Steps, mut found: BTreeMap<i64, Part>, rows: Vec<StepRow>) -> Vec<Point> {
    for row in rows {
        let last = value_of(row.last.0, row.last.1, row.last.2);
        let sums = (row.total, row.least, row.greatest, row.numbers);
        let part = steps.part_of(row.readings, row.suspects > 0, sums, (last, row.last_ts));
        steps.join(&mut found, row.step, part);
    }
    while found.len() > steps.fetch {
        found.pop_last();
    }
    steps.points(found)
}

/// Parts of steps from readings themselves, where the condition holds.
fn raw_source(times: &str, confirmed: Option<i64>) -> String {
    let batches = confirmed.map_or_else(String::new, |confirmed| format!(" AND batch <= {confirmed}"));
    format!(
        "SELECT ts, toUInt64(1) AS count_of, toUInt64(abs(ts - received_at) > {CLOCK_SUSPECT_US}) AS suspects_of,
         toUInt64(kind < 2) AS numbers_of, if(kind < 2, number, 0) AS total_of,
         if(kind < 2, number, inf) AS least_of, if(kind < 2, number, -inf) AS greatest_of,
         concat(reverse(reinterpretAsFixedString(bitXor(ts, 9223372036854775808))), char(kind),
         reinterpretAsFixedString(number), text) AS last_of FROM readings WHERE SERIES AND {times}{batches}"
    )
}

/// A table with one row a minute, or an hour.
struct Rollup {
    table: &'static str,
    unit: i64,
}

impl Rollup {
    /// The coarsest that the steps are made of.
    fn of(steps: &Steps) -> Option<Self> {
        let fits = |unit: i64| steps.step % unit == 0;
        if fits(HOUR_US) {
            return Some(Self { table: "readings_1h", unit: HOUR_US });
        }
        fits(MINUTE_US).then_some(Self { table: "readings_1m", unit: MINUTE_US })
    }

    /// Whole units from the rollup, what is before and after from the readings.
    fn source(&self, steps: &Steps) -> String {
        let floor = |ts: i64| ts.div_euclid(self.unit) * self.unit;
        let low = floor(steps.from.saturating_add(self.unit - 1)).min(steps.to);
        let high = floor(steps.to).max(low);
        let whole = format!(
            "SELECT ts, sum(readings) AS count_of, sum(suspects) AS suspects_of, sum(numbers) AS numbers_of,
             sum(total) AS total_of, min(least) AS least_of, max(greatest) AS greatest_of,
             max(last) AS last_of
             FROM {} WHERE SERIES AND ts >= {low} AND ts < {high} GROUP BY ts",
            self.table
        );
        let edges = [(steps.from, low), (high, steps.to)];
        let edges = edges.into_iter().filter(|(from, to)| from < to);
        edges.fold(whole, |source, (from, to)| {
            format!("{source} UNION ALL {}", raw_source(&format!("ts >= {from} AND ts < {to}"), None))
        })
    }
}

async fn steps_of(
    clickhouse: &ClickHouse,
    series: &Series,
    steps: &Steps,
    source: &str,
) -> Result<Vec<StepRow>, DbError> {
    let (base, step, fetch) = (steps.base, steps.step, steps.fetch);
    let sources = source.matches("SERIES").count();
    let source = source.replace("SERIES", series.condition());
    // `ts - base` is never negative.
    let sql = format!(
        "SELECT intDiv(ts - {base}, {step}) AS step, sum(count_of) AS readings, sum(suspects_of) AS suspects,
         sum(numbers_of) AS numbers, sum(total_of) AS total, min(least_of) AS least,
         max(greatest_of) AS greatest, (reinterpretAsUInt8(substring({NEWEST}, 9, 1)),
         reinterpretAsFloat64(substring({NEWEST}, 10, 8)), substring({NEWEST}, 18)) AS last,
         bitXor(reinterpretAsInt64(reverse(substring({NEWEST}, 1, 8))), 9223372036854775808) AS last_ts
         FROM ({source}) GROUP BY step ORDER BY step LIMIT {fetch}"
    );
    let mut asked = clickhouse.reader().query(&sql);
    for _ in 0..sources {
        asked = series.bind(asked);
    }
    Ok(clickhouse.rows::<StepRow>(asked).await?)
}
