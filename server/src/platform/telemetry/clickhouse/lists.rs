//! Events from ClickHouse and from their table here, where they wait until they are confirmed.

use super::super::lists::{EventQuery, EventRow, LIST_MAX, events};
use super::super::memtable::Memtable;
use super::super::remote::Remote;
use super::super::{TelemetryStore, is_suspect};
use super::ClickHouse;
use crate::platform::db::{DbError, Scope};
use clickhouse::Row;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Row, Deserialize)]
struct RemoteEvent {
    id: i64,
    tenant: String,
    device: String,
    received_at: i64,
    measured_at: i64,
    kind: String,
    pipeline: String,
    model: String,
    model_version: String,
    label: String,
    score: f64,
    subject: Option<String>,
    latency_us: u32,
    boxes: String,
}

impl TelemetryStore {
    pub(in super::super) async fn remote_events(
        &self,
        remote: &Remote,
        scope: &Scope,
        query: &EventQuery,
    ) -> Result<Vec<EventRow>, DbError> {
        let (here, asked) = (scope.clone(), query.clone());
        // First what is here, then what is confirmed: an event that is on its way is found twice, never not at all.
        let waiting = self.db.read(move |tx| events(tx, &here, &asked)).await?;
        let confirmed = Memtable::confirmed(&self.memtable());
        let confirmed = ask(remote.client(), scope, query, confirmed).await?;
        let all = confirmed.into_iter().chain(waiting);
        let found: BTreeMap<_, _> = all.map(|row| ((row.received_at_us, row.id), row)).collect();
        Ok(found.into_values().rev().take(query.limit.min(LIST_MAX)).collect())
    }
}

pub(super) async fn ask(
    clickhouse: &ClickHouse,
    scope: &Scope,
    query: &EventQuery,
    confirmed: i64,
) -> Result<Vec<EventRow>, DbError> {
    let tenant = match scope {
        Scope::Tenant(tenant) => Some(tenant.to_string()),
        Scope::System(_) => None,
    };
    let texts = [
        ("tenant = ?", tenant.as_ref()),
        ("device = ?", query.device.as_ref()),
        ("kind = ?", query.kind.as_ref()),
        ("label = ?", query.label.as_ref()),
    ];
    let given = || texts.iter().filter_map(|(condition, value)| value.map(|value| (condition, value)));
    let conditions: String = given().map(|(condition, _)| format!(" AND {condition}")).collect();
    let sql = format!(
        "SELECT id, toString(tenant) AS tenant, device, received_at, measured_at, toString(kind) AS kind,
         toString(pipeline) AS pipeline, toString(model) AS model, toString(model_version) AS model_version,
         toString(label) AS label, score, subject, latency_us, boxes FROM events
         WHERE received_at >= ? AND received_at < ? AND id < ? AND batch <= ?{conditions}
         ORDER BY received_at DESC, id DESC LIMIT ?"
    );
    let mut asked = clickhouse.reader().query(&sql);
    asked = asked.bind(query.from_us.unwrap_or(i64::MIN)).bind(query.to_us.unwrap_or(i64::MAX));
    asked = asked.bind(query.before.unwrap_or(i64::MAX)).bind(confirmed);
    for (_, value) in given() {
        asked = asked.bind(value);
    }
    let rows = clickhouse.rows::<RemoteEvent>(asked.bind(query.limit.min(LIST_MAX))).await?;
    rows.into_iter().map(RemoteEvent::row).collect()
}

impl RemoteEvent {
    fn row(self) -> Result<EventRow, DbError> {
        let boxes = match self.boxes.as_str() {
            "" => Vec::new(),
            json => serde_json::from_str(json).map_err(|_| DbError::Column { column: "boxes".into() })?,
        };
        Ok(EventRow {
            id: self.id,
            tenant: self.tenant,
            device: self.device,
            received_at_us: self.received_at,
            measured_at_us: self.measured_at,
            clock_suspect: is_suspect(self.measured_at, self.received_at),
            kind: self.kind,
            pipeline: self.pipeline,
            model: self.model,
            model_version: self.model_version,
            label: self.label,
            score: self.score,
            subject: self.subject,
            latency_us: self.latency_us,
            boxes,
        })
    }
}
