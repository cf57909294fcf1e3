//! Reads out and deletes what ClickHouse has of a device or of a tenant.
//!
//! Only the store calls me, once the blocks that hold something of it were confirmed: nothing more of it arrives.
//!
//! Promise: a deletion is a mutation, which rewrites the parts that hold such rows, of readings, rollups and events alike.
//! Whether it is done tells a count of rows alone, so whoever asks again after a crash of either side goes on where it
//! stood: a table gets a mutation only where rows are left and none is under way that deletes. Rollups are not read out:
//! they are made of the readings and expire with them.
//!
//! Limits: a call waits [`DELETE_TIME_MAX`] for the rows to be gone.

use super::super::read_out::ReadOut;
use super::query::value_of;
use super::schema::TABLES;
use super::{ClickHouse, ClickHouseError};
use crate::platform::db::{DbError, Scope};
use clickhouse::Row;
use clickhouse::query::Query;
use muster_wire::QueueId;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a call waits for mutations.
const DELETE_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two looks at them.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What is left, and what was done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Readings and events that this call told ClickHouse to delete.
    pub rows: u64,
    /// Rows of every table that are still there.
    pub left: u64,
}

/// Whose rows.
pub(in super::super) struct Whose {
    tenant: String,
    /// None: the whole tenant.
    device: Option<String>,
}

impl Whose {
    /// # Errors
    /// The scope is no tenant's.
    pub(in super::super) fn of(scope: &Scope, device: Option<&str>) -> Result<Self, DbError> {
        Ok(Self { tenant: scope.tenant()?.to_owned(), device: device.map(str::to_owned) })
    }

    fn condition(&self) -> &'static str {
        match self.device {
            Some(_) => "tenant = ? AND device = ?",
            None => "tenant = ?",
        }
    }

    fn bind(&self, query: Query) -> Query {
        let query = query.bind(&self.tenant);
        match &self.device {
            Some(device) => query.bind(device),
            None => query,
        }
    }
}

/// Mutations of a table that delete and are not done, and why one of them fails.
#[derive(Row, Deserialize)]
struct Mutations {
    open: u64,
    failure: String,
}

impl ClickHouse {
    /// Deletes rows; see the module.
    pub(in super::super) async fn erase(&self, whose: &Whose) -> Result<Deleted, ClickHouseError> {
        let mut deleted = Deleted::default();
        for table in TABLES {
            let rows = self.count(table, whose).await?;
            if rows > 0 && !self.is_deleting(table).await? {
                let sql = format!("ALTER TABLE {table} DELETE WHERE {}", whose.condition());
                self.tell(whose.bind(self.mutator().query(&sql))).await?;
                // A rollup's rows are not counted: they are readings, too.
                deleted.rows += if table == "readings" || table == "events" { rows } else { 0 };
            }
        }
        let began = Instant::now();
        loop {
            deleted.left = 0;
            for table in TABLES {
                deleted.left += self.count(table, whose).await?;
            }
            if deleted.left == 0 || began.elapsed() > DELETE_TIME_MAX {
                return Ok(deleted);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn count(&self, table: &str, whose: &Whose) -> Result<u64, ClickHouseError> {
        let sql = format!("SELECT count() FROM {table} WHERE {}", whose.condition());
        self.ask(whose.bind(self.reader().query(&sql))).await
    }

    async fn is_deleting(&self, table: &str) -> Result<bool, ClickHouseError> {
        let asked = self.reader().query(
            "SELECT count() AS open, anyIf(latest_fail_reason, latest_fail_reason != '') AS failure
             FROM system.mutations
             WHERE database = ? AND table = ? AND NOT is_done AND position(command, 'DELETE') > 0",
        );
        let found: Mutations = self.ask(asked.bind(&self.options.url.database).bind(table)).await?;
        if !found.failure.is_empty() {
            let why = format!("deleting from {table} fails: {}", found.failure);
            return Err(ClickHouseError::Refused { url: self.options.url.to_string(), code: None, why });
        }
        Ok(found.open > 0)
    }

    /// The next readings behind a place. Rows of the same key are never split.
    pub(in super::super) async fn read_readings(
        &self,
        whose: &Whose,
        units: &HashMap<String, String>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ReadOut, ClickHouseError> {
        let after: Option<ReadingPlace> = after.map(|after| self.place(after)).transpose()?;
        let behind = match &after {
            // The first two conditions say to the index what the third says exactly.
            Some(_) => {
                "AND metric >= ? AND (metric > ? OR ts >= ?) AND
                 (metric > ? OR (ts, queue_id, class, seq, idx, received_at) > (?, ?, ?, ?, ?, ?))"
            }
            None => "",
        };
        let sql = format!(
            "SELECT toString(metric) AS name, ts, received_at, kind, number, text, queue_id, class, seq, idx
             FROM readings WHERE {} {behind}
             ORDER BY metric, ts, queue_id, class, seq, idx, received_at LIMIT ? WITH TIES",
            whose.condition()
        );
        let mut asked = whose.bind(self.reader().query(&sql));
        if let Some(ReadingPlace(metric, ts, queue_id, class, seq, idx, received_at)) = &after {
            asked = asked.bind(metric).bind(metric).bind(ts).bind(metric);
            asked = asked.bind(ts).bind(queue_id).bind(class).bind(seq).bind(idx).bind(received_at);
        }
        let rows = self.rows::<Reading>(asked.bind(limit)).await?;
        let next = rows.last().filter(|_| rows.len() >= limit).map(Reading::place);
        Ok(ReadOut { rows: rows.into_iter().map(|row| row.line(units)).collect(), next })
    }

    /// The next events behind a place.
    pub(in super::super) async fn read_events(
        &self,
        whose: &Whose,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ReadOut, ClickHouseError> {
        let EventPlace(received_at, id) = match after {
            Some(after) => self.place(after)?,
            None => EventPlace(i64::MIN, i64::MIN),
        };
        let sql = format!(
            "SELECT id, received_at, measured_at, toString(kind) AS kind_text, toString(pipeline) AS pipeline_text,
             toString(model) AS model_text, toString(model_version) AS version_text, toString(label) AS label_text,
             score, subject, latency_us, boxes
             FROM events WHERE {} AND received_at >= ? AND (received_at, id) > (?, ?)
             ORDER BY received_at, id LIMIT ? WITH TIES",
            whose.condition()
        );
        let asked = whose.bind(self.reader().query(&sql));
        let asked = asked.bind(received_at).bind(received_at).bind(id).bind(limit);
        let rows = self.rows::<Event>(asked).await?;
        let next = rows.last().filter(|_| rows.len() >= limit);
        let next = next.map(|row| json!(EventPlace(row.received_at, row.id)).to_string());
        Ok(ReadOut { rows: rows.into_iter().map(Event::line).collect(), next })
    }

    fn place<'p, T: Deserialize<'p>>(&self, text: &'p str) -> Result<T, ClickHouseError> {
        serde_json::from_str(text).map_err(|_| ClickHouseError::Refused {
            url: self.options.url.to_string(),
            code: None,
            why: format!("{text:?} is no place in an export"),
        })
    }
}

/// Metric, `ts`, queue, class, seq, index, `received_at`: what two readings share only where one came twice by name and
/// time within a block.
#[derive(Serialize, Deserialize)]
struct ReadingPlace(String, i64, u64, u8, u64, u32, i64);

#[derive(Serialize, Deserialize)]
struct EventPlace(i64, i64);

#[derive(Row, Deserialize)]
struct Reading {
    name: String,
    ts: i64,
    received_at: i64,
    kind: u8,
    number: f64,
    text: String,
    queue_id: u64,
    class: u8,
    seq: u64,
    idx: u32,
}

impl Reading {
    fn place(&self) -> String {
        let metric = self.name.clone();
        let place =
            ReadingPlace(metric, self.ts, self.queue_id, self.class, self.seq, self.idx, self.received_at);
        json!(place).to_string()
    }

    /// As the embedded engine writes it.
    fn line(self, units: &HashMap<String, String>) -> Json {
        // No class has the number 0: the ledger had summed the queue up when the reading was packed.
        let queue = (self.class != 0).then_some((QueueId(self.queue_id), self.class));
        let (queue_id, class) = queue.unzip();
        let value = serde_json::to_value(value_of(self.kind, self.number, self.text));
        json!({
            "metric": self.name, "unit": units.get(&self.name), "ts_us": self.ts,
            "received_at_us": self.received_at, "value": value.unwrap_or(Json::Null), "queue_id": queue_id,
            "class": class, "seq": self.seq, "index": self.idx,
        })
    }
}

#[derive(Row, Deserialize)]
struct Event {
    id: i64,
    received_at: i64,
    measured_at: i64,
    kind_text: String,
    pipeline_text: String,
    model_text: String,
    version_text: String,
    label_text: String,
    score: f64,
    subject: Option<String>,
    latency_us: u32,
    boxes: String,
}

impl Event {
    /// As the embedded engine writes it.
    fn line(self) -> Json {
        json!({
            "received_at_us": self.received_at, "measured_at_us": self.measured_at, "kind": self.kind_text,
            "pipeline": self.pipeline_text, "model": self.model_text, "model_version": self.version_text,
            "label": self.label_text, "score": self.score, "subject": self.subject,
            "latency_us": self.latency_us, "boxes": serde_json::from_str(&self.boxes).unwrap_or(Json::Null),
        })
    }
}
