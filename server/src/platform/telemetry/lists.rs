//! Events, dead letters, rejected messages and lost log ranges, as lists with a cursor.

use super::{device_of, is_suspect, tenant_of};
use crate::platform::db::sqlite::{Row, Tx};
use crate::platform::db::{DbError, Scope};
use muster_wire::QueueId;
use serde::Serialize;

/// Rows that one list returns at most.
pub const LIST_MAX: usize = 500;

/// Which events; every condition that is None lets all pass.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// One device.
    pub device: Option<String>,
    /// From this `received_at` on, microseconds.
    pub from_us: Option<i64>,
    /// Up to, not including.
    pub to_us: Option<i64>,
    /// `classification`, `anomaly` or `detection`.
    pub kind: Option<String>,
    /// The exact label.
    pub label: Option<String>,
    /// Only events before this id: the last id of the page before.
    pub before: Option<i64>,
    /// At most this many, and [`LIST_MAX`].
    pub limit: usize,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRow {
    /// Grows with `received_at_us`; the page's cursor.
    pub id: i64,
    /// The tenant.
    pub tenant: String,
    /// The device.
    pub device: String,
    /// When it came.
    pub received_at_us: i64,
    /// When it was measured.
    pub measured_at_us: i64,
    /// `measured_at` is more than a day off `received_at`.
    pub clock_suspect: bool,
    /// `classification`, `anomaly` or `detection`.
    pub kind: String,
    /// The pipeline.
    pub pipeline: String,
    /// The model.
    pub model: String,
    /// Its version.
    pub model_version: String,
    /// The label.
    pub label: String,
    /// The score.
    pub score: f64,
    /// What was scored.
    pub subject: Option<String>,
    /// How long it took, microseconds.
    pub latency_us: u32,
    /// Detected boxes.
    pub boxes: Vec<muster_wire::BoundingBox>,
}

/// Events, newest first.
///
/// # Errors
/// The database failed.
pub fn events(tx: &mut Tx<'_>, scope: &Scope, query: &EventQuery) -> Result<Vec<EventRow>, DbError> {
    const COLUMNS: &str =
        "SELECT e.id, t.name, d.name, e.received_at, e.measured_at, e.kind, e.pipeline, e.model,
        e.model_version, e.label, e.score, e.subject, e.latency_us, e.boxes FROM event e
        JOIN device d ON d.id = e.device_id JOIN tenant t ON t.id = e.tenant_id";
    const CONDITIONS: &str = "e.received_at >= $2 AND e.received_at < $3 AND ($4 IS NULL OR e.kind = $4)
        AND ($5 IS NULL OR e.label = $5) AND ($6 IS NULL OR e.id < $6)
        ORDER BY e.received_at DESC, e.id DESC LIMIT $7";
    let (owner, id) = match &query.device {
        Some(device) => match device_of(tx, scope, device)? {
            Some(id) => ("e.device_id = $1", Some(id)),
            None => return Ok(Vec::new()),
        },
        None => match tenant_of(tx, scope)?.id() {
            Some(id) => ("e.tenant_id = $1", Some(id)),
            None => ("$1 IS NULL", None),
        },
    };
    let sql = format!("{COLUMNS} WHERE {owner} AND {CONDITIONS}");
    let (from, to) = (query.from_us.unwrap_or(i64::MIN), query.to_us.unwrap_or(i64::MAX));
    let limit = query.limit.min(LIST_MAX) as i64;
    tx.query(&sql, &[&id, &from, &to, &query.kind, &query.label, &query.before, &limit], event_row)
}

fn event_row(row: &Row<'_>) -> Result<EventRow, DbError> {
    let (received_at_us, measured_at_us) = (row.get(3)?, row.get(4)?);
    let boxes = row.get::<Option<String>>(13)?;
    Ok(EventRow {
        id: row.get(0)?,
        tenant: row.get(1)?,
        device: row.get(2)?,
        received_at_us,
        measured_at_us,
        clock_suspect: is_suspect(measured_at_us, received_at_us),
        kind: row.get(5)?,
        pipeline: row.get(6)?,
        model: row.get(7)?,
        model_version: row.get(8)?,
        label: row.get(9)?,
        score: row.get(10)?,
        subject: row.get(11)?,
        latency_us: row.get(12)?,
        boxes: match boxes {
            Some(json) => {
                serde_json::from_str(&json).map_err(|_| DbError::Column { column: "boxes".into() })?
            }
            None => Vec::new(),
        },
    })
}

/// A body that could not be stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadLetter {
    /// The page's cursor.
    pub id: i64,
    /// The tenant.
    pub tenant: String,
    /// The device.
    pub device: String,
    /// Its place in the log.
    pub position: u64,
    /// When it came.
    pub received_at_us: i64,
    /// The class's number.
    pub class: u8,
    /// The queue, zero where there was none.
    pub queue_id: QueueId,
    /// The seq, zero where there was none.
    pub seq: u64,
    /// `malformed`, `too many metrics`, `too sparse` or `no consumer`.
    pub reason: String,
    /// The decoder's words.
    pub detail: String,
    /// The body in hex.
    pub body_hex: String,
}

/// Dead letters, newest first, before an id.
///
/// # Errors
/// The database failed.
pub fn dead_letters(
    tx: &mut Tx<'_>,
    scope: &Scope,
    before: Option<i64>,
    limit: usize,
) -> Result<Vec<DeadLetter>, DbError> {
    let tenant = tenant_of(tx, scope)?.id();
    tx.query(
        "SELECT l.id, t.name, d.name, l.position, l.received_at, l.class, l.queue_id, l.seq, l.reason, l.detail, l.body
         FROM dead_letter l JOIN device d ON d.id = l.device_id JOIN tenant t ON t.id = l.tenant_id
         WHERE ($1 IS NULL OR l.tenant_id = $1) AND ($2 IS NULL OR l.id < $2) ORDER BY l.id DESC LIMIT $3",
        &[&tenant, &before, &(limit.min(LIST_MAX) as i64)],
        |row| {
            Ok(DeadLetter {
                id: row.get(0)?,
                tenant: row.get(1)?,
                device: row.get(2)?,
                position: row.get(3)?,
                received_at_us: row.get(4)?,
                class: row.get(5)?,
                queue_id: QueueId(row.get::<i64>(6)?.cast_unsigned()),
                seq: row.get::<i64>(7)?.cast_unsigned(),
                reason: row.get(8)?,
                detail: row.get(9)?,
                body_hex: hex::encode(row.get::<Vec<u8>>(10)?),
            })
        },
    )
}

/// Messages that the gateway refused for good within one minute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RejectedRow {
    /// The tenant.
    pub tenant: String,
    /// The device.
    pub device: String,
    /// The class's number, 0 where the topic had none.
    pub class: u8,
    /// The MQTT 5 reason.
    pub reason: u8,
    /// How many.
    pub count: u64,
    /// The newest one's time.
    pub last_at_us: i64,
}

/// Rejected messages, newest first.
///
/// # Errors
/// The database failed.
pub fn rejected(tx: &mut Tx<'_>, scope: &Scope, limit: usize) -> Result<Vec<RejectedRow>, DbError> {
    let tenant = tenant_of(tx, scope)?.id();
    tx.query(
        "SELECT t.name, d.name, r.class, r.reason, r.count, r.last_at FROM rejected r
         JOIN device d ON d.id = r.device_id JOIN tenant t ON t.id = r.tenant_id
         WHERE ($1 IS NULL OR r.tenant_id = $1) ORDER BY r.last_at DESC LIMIT $2",
        &[&tenant, &(limit.min(LIST_MAX) as i64)],
        |row| {
            Ok(RejectedRow {
                tenant: row.get(0)?,
                device: row.get(1)?,
                class: row.get(2)?,
                reason: row.get(3)?,
                count: row.get(4)?,
                last_at_us: row.get(5)?,
            })
        },
    )
}

/// Log positions that were never read. They belong to no tenant: nobody knows whose they were.
#[derive(Clone, Debug, PartialEq)]
pub struct LostRange {
    /// Grows with each.
    pub id: i64,
    /// The log's epoch.
    pub log_epoch: u64,
    /// The first position.
    pub first: u64,
    /// One past the last.
    pub next: u64,
    /// Why.
    pub why: String,
    /// When it was noticed.
    pub found_at_us: i64,
}

/// Lost log ranges from after an id on, at most [`LIST_MAX`]; for `Scope::System` only.
///
/// # Errors
/// The database failed.
pub fn lost_ranges(tx: &mut Tx<'_>, scope: &Scope, after_id: i64) -> Result<Vec<LostRange>, DbError> {
    if matches!(scope, Scope::Tenant(_)) {
        return Ok(Vec::new());
    }
    tx.query(
        "SELECT id, log_epoch, first, next, why, found_at FROM lost_range WHERE id > $1 ORDER BY id LIMIT $2",
        &[&after_id, &(LIST_MAX as i64)],
        |row| {
            Ok(LostRange {
                id: row.get(0)?,
                log_epoch: row.get::<i64>(1)?.cast_unsigned(),
                first: row.get(2)?,
                next: row.get(3)?,
                why: row.get(4)?,
                found_at_us: row.get(5)?,
            })
        },
    )
}
