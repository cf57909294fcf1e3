//! Makes blocks: readings that a flush takes out of the memtable, events that wait in their table.
//!
//! Runs on the database's writer thread, inside the flush's closure.

use super::super::TelemetryError;
use super::super::partition::{Cell, DAY_US, ReadingRow};
use super::super::retention::Policy;
use super::block::Block;
use super::outbox::{self, Kind};
use super::retention;
use crate::platform::db::DbError;
use crate::platform::db::sqlite::{Row, Tx};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Events of one block.
const EVENTS_MAX: i64 = 20_000;

/// What a series' rows have in common.
struct Labels {
    tenant: Arc<str>,
    device: Arc<str>,
    metric: Box<str>,
    retention_days: u16,
}

/// Tenant, device, days kept.
type DeviceNames = (Arc<str>, Arc<str>, u16);

/// Names of one flush, read once each.
#[derive(Default)]
struct Names {
    tenants: HashSet<String>,
    devices: HashMap<i64, DeviceNames>,
    series: HashMap<i64, Labels>,
    /// By `queue.ref`: queue id, class.
    queues: HashMap<i64, (u64, u8)>,
}

impl Names {
    fn learn(&mut self, tx: &mut Tx<'_>, policy: &Policy, row: &ReadingRow) -> Result<(), DbError> {
        if let Entry::Vacant(unknown) = self.series.entry(row.series_id) {
            let (tenant, device, retention_days) = match self.devices.entry(row.device_id) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(unknown) => {
                    unknown.insert(device_of(tx, &mut self.tenants, policy, row.device_id)?).clone()
                }
            };
            const SERIES: &str = "SELECT name FROM series WHERE id = $1";
            let metric: String = tx.query_one(SERIES, &[&row.series_id], |row| row.get(0))?;
            unknown.insert(Labels { tenant, device, metric: metric.into(), retention_days });
        }
        if let Entry::Vacant(unknown) = self.queues.entry(row.queue_ref) {
            const QUEUE: &str = "SELECT queue_id, class FROM queue WHERE ref = $1";
            let queue = tx.query_opt(QUEUE, &[&row.queue_ref], |row| {
                Ok::<_, DbError>((row.get::<i64>(0)?.cast_unsigned(), row.get::<u8>(1)?))
            })?;
            // None where the device was erased meanwhile.
            unknown.insert(queue.unwrap_or_default());
        }
        Ok(())
    }
}

fn device_of(
    tx: &mut Tx<'_>,
    tenants: &mut HashSet<String>,
    policy: &Policy,
    device_id: i64,
) -> Result<DeviceNames, DbError> {
    const DEVICE: &str =
        "SELECT t.name, d.name FROM device d JOIN tenant t ON t.id = d.tenant_id WHERE d.id = $1";
    let (tenant, device): (String, String) =
        tx.query_one(DEVICE, &[&device_id], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)))?;
    let days = policy.days_kept(&tenant);
    if tenants.insert(tenant.clone()) {
        retention::note_first(tx, &tenant, days)?;
    }
    Ok((tenant.into(), device.into(), days))
}

/// The month of reception, UTC: a partition of its own in ClickHouse, and a block's rows are of one. Year and month of
/// the proleptic Gregorian calendar, by Howard Hinnant's `civil_from_days`.
fn month_of(received_at_us: i64) -> (i64, i64) {
    let days = received_at_us.div_euclid(DAY_US) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month)
}

/// Readings that were packed.
pub(in super::super) struct Packed {
    /// By batch.
    pub(in super::super) batches: Vec<(i64, Vec<ReadingRow>)>,
    /// Those that are keyed by name and time.
    pub(in super::super) named: Vec<ReadingRow>,
}

/// Puts readings, sorted by series and `ts`, into the outbox.
pub(in super::super) fn readings(
    tx: &mut Tx<'_>,
    rows: Vec<ReadingRow>,
    policy: &Policy,
    now_us: i64,
) -> Result<Packed, TelemetryError> {
    let mut names = Names::default();
    let mut months: Vec<((i64, i64), Vec<ReadingRow>)> = Vec::new();
    let mut named = Vec::new();
    for row in rows {
        names.learn(tx, policy, &row)?;
        // The queue that stands for no queue (see `writer::senml`).
        if names.queues[&row.queue_ref].0 == 0 && row.seq == 0 {
            named.push(row.clone());
        }
        let month = month_of(row.received_at);
        match months.iter_mut().find(|(known, _)| *known == month) {
            Some((_, rows)) => rows.push(row),
            None => months.push((month, vec![row])),
        }
    }
    let mut batches = Vec::new();
    for (_, rows) in months {
        let batch = outbox::next_batch(tx, now_us)?;
        let block =
            reading_block(&names, &rows, batch.cast_unsigned()).frame().map_err(TelemetryError::Pack)?;
        outbox::put(tx, batch, Kind::Readings, (rows.len(), 0), &block)?;
        batches.push((batch, rows));
    }
    Ok(Packed { batches, named })
}

fn reading_block(names: &Names, rows: &[ReadingRow], batch: u64) -> Block {
    let labels = || rows.iter().map(|row| &names.series[&row.series_id]);
    let queues = || rows.iter().map(|row| names.queues[&row.queue_ref]);
    let kind = |row: &ReadingRow| match row.value {
        Cell::Number(_) => [0],
        Cell::Flag(_) => [1],
        Cell::Text(_) => [2],
    };
    let number = |row: &ReadingRow| match row.value {
        Cell::Number(number) => number.to_le_bytes(),
        Cell::Flag(flag) => f64::from(u8::from(flag)).to_le_bytes(),
        Cell::Text(_) => 0_f64.to_le_bytes(),
    };
    Block::of(rows.len())
        .texts("tenant", labels().map(|labels| &*labels.tenant))
        .texts("device", labels().map(|labels| &*labels.device))
        .texts("metric", labels().map(|labels| &*labels.metric))
        .numbers("ts", "Int64", rows.iter().map(|row| row.ts.to_le_bytes()))
        .numbers("received_at", "Int64", rows.iter().map(|row| row.received_at.to_le_bytes()))
        .numbers("kind", "UInt8", rows.iter().map(kind))
        .numbers("number", "Float64", rows.iter().map(number))
        .texts("text", rows.iter().map(text_of))
        .numbers("queue_id", "UInt64", queues().map(|(queue_id, _)| queue_id.to_le_bytes()))
        .numbers("class", "UInt8", queues().map(|(_, class)| [class]))
        .numbers("seq", "UInt64", rows.iter().map(|row| row.seq.to_le_bytes()))
        .numbers("idx", "UInt32", rows.iter().map(|row| row.index.to_le_bytes()))
        .numbers("batch", "UInt64", rows.iter().map(|_| batch.to_le_bytes()))
        .numbers("retention_days", "UInt16", labels().map(|labels| labels.retention_days.to_le_bytes()))
}

fn text_of(row: &ReadingRow) -> &str {
    match &row.value {
        Cell::Text(text) => text,
        Cell::Flag(_) | Cell::Number(_) => "",
    }
}

/// An event as its table has it.
struct EventCells {
    id: i64,
    tenant: String,
    device: String,
    times: (i64, i64),
    texts: [String; 5],
    score: f64,
    subject: Option<String>,
    latency_us: u32,
    boxes: String,
    queue: (u64, u8, u64),
}

fn event_cells(row: &Row<'_>) -> Result<EventCells, DbError> {
    Ok(EventCells {
        id: row.get(0)?,
        tenant: row.get(1)?,
        device: row.get(2)?,
        times: (row.get(3)?, row.get(4)?),
        texts: [row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?],
        score: row.get(10)?,
        subject: row.get(11)?,
        latency_us: row.get(12)?,
        boxes: row.get::<Option<String>>(13)?.unwrap_or_default(),
        // The ledger may have summed the queue up already.
        queue: (
            row.get::<Option<i64>>(14)?.unwrap_or(0).cast_unsigned(),
            row.get::<Option<u8>>(15)?.unwrap_or(0),
            row.get::<i64>(16)?.cast_unsigned(),
        ),
    })
}

/// Puts the next events of one month into the outbox. Says whether there were any.
pub(in super::super) fn events(
    tx: &mut Tx<'_>,
    policy: &Policy,
    now_us: i64,
) -> Result<bool, TelemetryError> {
    let packed = outbox::state(tx)?.events_packed;
    let mut rows: Vec<EventCells> = tx.query(
        "SELECT e.id, t.name, d.name, e.received_at, e.measured_at, e.kind, e.pipeline, e.model, e.model_version,
         e.label, e.score, e.subject, e.latency_us, e.boxes, q.queue_id, q.class, e.seq
         FROM event e JOIN tenant t ON t.id = e.tenant_id JOIN device d ON d.id = e.device_id
         LEFT JOIN queue q ON q.ref = e.queue_ref WHERE e.id > $1 ORDER BY e.id LIMIT $2",
        &[&packed, &EVENTS_MAX],
        event_cells,
    )?;
    let Some(month) = rows.first().map(|row| month_of(row.times.0)) else { return Ok(false) };
    let end = rows.iter().position(|row| month_of(row.times.0) != month).unwrap_or(rows.len());
    rows.truncate(end);
    for tenant in rows.iter().map(|row| row.tenant.as_str()).collect::<BTreeSet<_>>() {
        retention::note_first(tx, tenant, policy.days_kept(tenant))?;
    }
    let events_to = rows.last().map_or(packed, |row| row.id);
    let batch = outbox::next_batch(tx, now_us)?;
    let block = event_block(&rows, policy, batch.cast_unsigned()).frame().map_err(TelemetryError::Pack)?;
    outbox::put(tx, batch, Kind::Events, (rows.len(), events_to), &block)?;
    tx.execute("UPDATE outbox_state SET events_packed = $1", &[&events_to])?;
    Ok(true)
}

fn event_block(rows: &[EventCells], policy: &Policy, batch: u64) -> Block {
    let text = |at: usize| rows.iter().map(move |row| row.texts[at].as_str());
    Block::of(rows.len())
        .texts("tenant", rows.iter().map(|row| row.tenant.as_str()))
        .texts("device", rows.iter().map(|row| row.device.as_str()))
        .numbers("received_at", "Int64", rows.iter().map(|row| row.times.0.to_le_bytes()))
        .numbers("id", "Int64", rows.iter().map(|row| row.id.to_le_bytes()))
        .numbers("measured_at", "Int64", rows.iter().map(|row| row.times.1.to_le_bytes()))
        .texts("kind", text(0))
        .texts("pipeline", text(1))
        .texts("model", text(2))
        .texts("model_version", text(3))
        .texts("label", text(4))
        .numbers("score", "Float64", rows.iter().map(|row| row.score.to_le_bytes()))
        .nullable_texts("subject", rows.iter().map(|row| row.subject.as_deref()))
        .numbers("latency_us", "UInt32", rows.iter().map(|row| row.latency_us.to_le_bytes()))
        .texts("boxes", rows.iter().map(|row| row.boxes.as_str()))
        .numbers("queue_id", "UInt64", rows.iter().map(|row| row.queue.0.to_le_bytes()))
        .numbers("class", "UInt8", rows.iter().map(|row| [row.queue.1]))
        .numbers("seq", "UInt64", rows.iter().map(|row| row.queue.2.to_le_bytes()))
        .numbers("batch", "UInt64", rows.iter().map(|_| batch.to_le_bytes()))
        .numbers(
            "retention_days",
            "UInt16",
            rows.iter().map(|row| policy.days_kept(&row.tenant).to_le_bytes()),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        let of = |days: i64| month_of(days * DAY_US);
        assert_eq!(of(0), (1970, 1));
        assert_eq!((of(-1), month_of(-1)), ((1969, 12), (1969, 12)));
        // 2024-02-29, 2024-03-01, 2026-11-30, 2026-12-01, 2100-02-28, 2100-03-01.
        let days = [19_782, 19_783, 20_787, 20_788, 47_540, 47_541];
        let expect = [(2024, 2), (2024, 3), (2026, 11), (2026, 12), (2100, 2), (2100, 3)];
        assert_eq!(days.map(of), expect);
    }
}
