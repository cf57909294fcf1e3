//! Writes one batch of the log: readings, events, dead letters, rejected, ledger and cursor in one commit.
//!
//! Runs on the database's writer thread, inside one closure. Whatever fails, nothing of the batch stays
//! and the caches are thrown away; the batch is read again from the cursor.

use super::batch::{RawBatch, StoredBatch, StoredItem, StoredWhat};
use super::faults::{CrashPoint, Faults};
use super::ledger::{Ledger, Queue, QueueKey, Verdict};
use super::names::{Names, Series, Slot};
use super::partition::{self, Partitions, ReadingRow};
use super::tally::Tally;
use super::{LIVE_ITEMS_MAX, TelemetryError, cursor};
use crate::platform::db::{DbError, SqlValue, Tx};
use crate::platform::event_log::{Kind, LogRecord, Origin};
use muster_wire::senml::Moment;
use muster_wire::{
    Birth, DropRange, DropReason, Event, QueueId, QueueState, State, TelemetryRef, UpClass, Value,
};
use std::borrow::Cow;

/// Readings sorted and inserted together.
const ROWS_BUFFERED_MAX: usize = 65_536;

/// What is remembered between batches. Everything in it can be read again from the tables.
#[derive(Default)]
pub(super) struct WriterState {
    pub(super) names: Names,
    pub(super) ledger: Ledger,
    pub(super) partitions: Partitions,
}

impl WriterState {
    fn trim(&mut self) {
        self.names.trim();
        self.ledger.trim();
    }
}

/// Writes the batch; the caller commits.
pub(super) fn write(
    tx: &mut Tx<'_>,
    state: &mut WriterState,
    batch: &RawBatch,
    live: bool,
    faults: &Faults,
) -> Result<StoredBatch, TelemetryError> {
    state.trim();
    let stored =
        StoredBatch { epoch: batch.epoch, from: batch.from, next: batch.next, ..StoredBatch::default() };
    let mut writer = Writer { tx, state, live, rows: Vec::new(), day: 0, tally: Tally::default(), stored };
    for record in batch.records() {
        writer.record(&record)?;
    }
    writer.flush_rows()?;
    faults.reach(CrashPoint::AfterRows)?;
    let now_us = batch.received_at_us().unwrap_or(0);
    writer.state.ledger.flush(writer.tx, now_us)?;
    writer.tally.flush(writer.tx)?;
    faults.reach(CrashPoint::AfterLedger)?;
    for range in &batch.skipped {
        cursor::record_lost(writer.tx, batch.epoch, range, "unreadable", now_us)?;
    }
    cursor::advance(writer.tx, batch, now_us)?;
    faults.reach(CrashPoint::AfterCursor)?;
    Ok(writer.stored)
}

struct Writer<'a, 'tx> {
    tx: &'a mut Tx<'tx>,
    state: &'a mut WriterState,
    live: bool,
    rows: Vec<ReadingRow>,
    /// The day that `rows` belong to.
    day: i64,
    tally: Tally,
    stored: StoredBatch,
}

/// The queue that a record is accounted in, and its number there.
#[derive(Clone, Copy)]
struct Account {
    key: QueueKey,
    seq: u64,
    is_foreign: bool,
}

impl Writer<'_, '_> {
    fn record(&mut self, record: &LogRecord<'_>) -> Result<(), TelemetryError> {
        if record.kind == Kind::Tick {
            return Ok(());
        }
        let slot = self.state.names.slot(self.tx, record.tenant, record.device)?;
        match record.kind {
            Kind::Tick => Ok(()),
            Kind::Rejected { reason } => {
                let device = self.state.names.device(slot);
                self.tally.reject(device.tenant_id, device.id, record, reason);
                Ok(())
            }
            Kind::Connected => self.presence(slot, record, true),
            Kind::Disconnected { .. } => self.presence(slot, record, false),
            Kind::Message => self.message(slot, record),
        }
    }

    fn presence(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        connected: bool,
    ) -> Result<(), TelemetryError> {
        let id = self.state.names.device(slot).id;
        const UPDATE: &str = "UPDATE device SET connected = $2, presence_at = $3 WHERE id = $1";
        self.tx.execute(UPDATE, &[&id, &connected, &record.received_at_us])?;
        self.show(slot, record.position, record.received_at_us, || StoredWhat::Presence { connected });
        Ok(())
    }

    fn message(&mut self, slot: Slot, record: &LogRecord<'_>) -> Result<(), TelemetryError> {
        if record.qos == 0 {
            self.tally.count(self.state.names.device(slot).tenant_id, "qos0", 1);
        }
        match UpClass::from_number(record.class) {
            Some(UpClass::Telemetry) => self.accounted(slot, record, Self::telemetry),
            Some(UpClass::Event) => self.accounted(slot, record, Self::event),
            Some(UpClass::Senml) => self.accounted(slot, record, Self::senml),
            Some(UpClass::Birth) => match Birth::decode(record.body) {
                Ok(birth) => self.report(slot, record, &birth.queues, &birth.drops),
                Err(error) => self.dead_letter(slot, record, "malformed", &error.to_string()),
            },
            Some(UpClass::State) => match State::decode(record.body) {
                Ok(state) => self.report(slot, record, &state.queues, &state.drops),
                Err(error) => self.dead_letter(slot, record, "malformed", &error.to_string()),
            },
            // The gateway writes a Disconnected record too; the will itself tells the store nothing more.
            Some(UpClass::Death) => Ok(()),
            Some(UpClass::Result | UpClass::Ota | UpClass::Log | UpClass::Credit) | None => {
                self.accounted(slot, record, |_, _, _, _| {
                    Err(Refusal::new("no consumer", "class is not stored").into())
                })
            }
        }
    }

    fn account(&self, slot: Slot, record: &LogRecord<'_>) -> Account {
        let device_id = self.state.names.device(slot).id;
        let key = |queue_id| QueueKey { device_id, queue_id, class: record.class };
        match record.origin {
            Origin::Queue { queue_id, seq } => Account { key: key(queue_id), seq, is_foreign: false },
            Origin::Direct => Account { key: key(self.stored.epoch), seq: record.position, is_foreign: true },
        }
    }

    /// Stores a record once: a known one is counted, one that cannot be stored becomes a dead letter.
    fn accounted(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        store: impl FnOnce(&mut Self, Slot, &LogRecord<'_>, i64) -> Result<(), StoreError>,
    ) -> Result<(), TelemetryError> {
        let account = self.account(slot, record);
        let queue = self.queue(account)?;
        match queue.verdict(account.seq) {
            Verdict::Duplicate => {
                queue.count_duplicate();
                self.stored.duplicates += 1;
                return Ok(());
            }
            Verdict::TooSparse => {
                return self.dead_letter(
                    slot,
                    record,
                    "too sparse",
                    "the queue has more gaps than the ledger holds",
                );
            }
            Verdict::New => {}
        }
        let row = queue.row;
        match store(self, slot, record, row) {
            Ok(()) => {
                self.queue(account)?.store(account.seq);
                self.stored.messages += 1;
                Ok(())
            }
            Err(StoreError::Refused(refusal)) => {
                self.queue(account)?.drop(account.seq, account.seq, DropReason::Malformed);
                self.dead_letter(slot, record, refusal.reason, &refusal.detail)
            }
            Err(StoreError::Failed(error)) => Err(error),
        }
    }

    fn queue(&mut self, account: Account) -> Result<&mut Queue, DbError> {
        self.state.ledger.queue(self.tx, account.key, account.is_foreign)
    }

    fn telemetry(&mut self, slot: Slot, record: &LogRecord<'_>, queue_ref: i64) -> Result<(), StoreError> {
        let telemetry = TelemetryRef::decode(record.body).map_err(Refusal::malformed)?;
        let seq = self.account(slot, record).seq;
        let readings = telemetry.readings.into_iter().enumerate().map(|(index, reading)| Incoming {
            ts: record.measured_at_us.saturating_add(reading.offset_us.unwrap_or(0)),
            key: (queue_ref, seq, index),
            metric: Cow::Borrowed(reading.metric),
            unit: None,
            value: reading.value,
        });
        self.readings(slot, record, readings)
    }

    fn senml(&mut self, slot: Slot, record: &LogRecord<'_>, queue_ref: i64) -> Result<(), StoreError> {
        let pack = muster_wire::senml::decode(record.body).map_err(Refusal::malformed)?;
        let account = self.account(slot, record);
        // Readings with an absolute time are keyed by name and time: a pack that is sent again changes nothing.
        let named = Account { key: QueueKey { queue_id: 0, ..account.key }, seq: 0, is_foreign: true };
        let is_named = |moment| matches!(moment, Moment::Absolute(_)) && account.is_foreign;
        let named_ref = if pack.iter().any(|reading| is_named(reading.moment)) {
            self.queue(named).map_err(TelemetryError::from)?.row
        } else {
            0
        };
        let readings = pack.into_iter().enumerate().map(|(index, reading)| Incoming {
            ts: match reading.moment {
                Moment::Absolute(us) => us,
                Moment::Relative(us) => record.received_at_us.saturating_add(us),
            },
            key: if is_named(reading.moment) { (named_ref, 0, 0) } else { (queue_ref, account.seq, index) },
            metric: Cow::Owned(reading.metric),
            unit: reading.unit,
            value: reading.value,
        });
        self.readings(slot, record, readings)
    }

    /// Takes the readings of one message. Surplus metrics are refused; where nothing is left, so is the message.
    fn readings<'m>(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        readings: impl Iterator<Item = Incoming<'m>>,
    ) -> Result<(), StoreError> {
        let day = partition::day_of(record.received_at_us);
        if day != self.day || self.rows.len() >= ROWS_BUFFERED_MAX {
            self.flush_rows()?;
            self.day = day;
        }
        let (mut refused, mut span) = (0, None::<(i64, i64)>);
        let before = self.rows.len();
        for (at, reading) in readings.enumerate() {
            let found =
                self.state.names.series(self.tx, slot, (at, &reading.metric), reading.unit.as_deref());
            let Series::Id(series_id) = found.map_err(TelemetryError::from)? else {
                refused += 1;
                continue;
            };
            span =
                Some(span.map_or((reading.ts, reading.ts), |(low, high)| {
                    (low.min(reading.ts), high.max(reading.ts))
                }));
            self.rows.push(reading.row(series_id, slot, record.received_at_us));
        }
        let taken = (self.rows.len() - before) as u64;
        let tenant_id = self.state.names.device(slot).tenant_id;
        self.stored.readings += taken;
        if let Some((low, high)) = span {
            partition::note_day(self.tx, &mut self.state.names, slot, day, low, high)
                .map_err(TelemetryError::from)?;
        }
        if refused > 0 {
            self.tally.count(tenant_id, "readings_refused", refused);
            let why = format!(
                "{refused} readings of metrics beyond the device's {}",
                muster_wire::METRICS_PER_DEVICE_MAX
            );
            if taken == 0 {
                return Err(Refusal { reason: "too many metrics", detail: why }.into());
            }
            self.dead_letter(slot, record, "too many metrics", &why)?;
        }
        Ok(())
    }

    fn event(&mut self, slot: Slot, record: &LogRecord<'_>, queue_ref: i64) -> Result<(), StoreError> {
        let event = Event::decode(record.body).map_err(Refusal::malformed)?;
        let seq = self.account(slot, record).seq;
        let (device_id, tenant_id) =
            (self.state.names.device(slot).id, self.state.names.device(slot).tenant_id);
        let boxes =
            (!event.boxes.is_empty()).then(|| serde_json::to_string(&event.boxes).unwrap_or_default());
        let inserted = self.tx.execute(
            "INSERT INTO event (tenant_id, device_id, queue_ref, seq, received_at, measured_at, kind, pipeline, model,
             model_version, label, score, subject, latency_us, boxes)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            &[
                &tenant_id, &device_id, &queue_ref, &seq.cast_signed(), &record.received_at_us, &record.measured_at_us,
                &super::kind_text(event.kind), &event.pipeline, &event.model, &event.model_version, &event.label,
                &event.score, &event.subject, &event.latency_us, &boxes,
            ],
        );
        inserted.map_err(TelemetryError::from)?;
        self.tally.count(tenant_id, "events", 1);
        self.stored.events += 1;
        let (kind, score, measured_at_us) = (event.kind, event.score, record.measured_at_us);
        self.show(slot, record.position, record.received_at_us, || StoredWhat::Event {
            measured_at_us,
            pipeline: event.pipeline,
            kind,
            label: event.label,
            score,
        });
        Ok(())
    }

    /// Takes the agent's report: drops first, so that a mark that moved over them shows no loss.
    fn report(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        queues: &[QueueState],
        drops: &[DropRange],
    ) -> Result<(), TelemetryError> {
        for range in drops {
            if let Some(account) = self.reported(slot, range.class, range.queue_id) {
                self.queue(account)?.drop(range.first, range.last, range.reason);
            }
        }
        for state in queues {
            if let Some(account) = self.reported(slot, state.class, state.queue_id) {
                self.queue(account)?.report(state);
            }
        }
        self.show(slot, record.position, record.received_at_us, || StoredWhat::Ledger);
        Ok(())
    }

    fn reported(&self, slot: Slot, class: u8, queue_id: QueueId) -> Option<Account> {
        UpClass::from_number(class)?;
        let key = QueueKey { device_id: self.state.names.device(slot).id, queue_id: queue_id.0, class };
        Some(Account { key, seq: 0, is_foreign: false })
    }

    fn dead_letter(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        reason: &str,
        detail: &str,
    ) -> Result<(), TelemetryError> {
        let device = self.state.names.device(slot);
        self.stored.dead_letters += 1;
        Ok(self.tally.dead_letter(
            self.tx,
            (device.tenant_id, device.id),
            self.stored.epoch,
            record,
            reason,
            detail,
        )?)
    }

    fn flush_rows(&mut self) -> Result<(), TelemetryError> {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let WriterState { names, partitions, .. } = &mut *self.state;
        let (tally, stored) = (&mut self.tally, &mut self.stored);
        for group in rows.chunk_by(|a, b| a.slot == b.slot) {
            tally.count(names.device(group[0].slot).tenant_id, "readings", group.len() as u64);
        }
        partitions.insert(self.tx, self.day, &mut rows, |known| {
            tally.uncount(names.device(known.slot).tenant_id, "readings");
            stored.readings -= 1;
        })?;
        let mut newest = Vec::new();
        partition::update_last(self.tx, names, &rows, |row| {
            if self.live && newest.len() < LIVE_ITEMS_MAX {
                newest.push(row.clone());
            } else {
                stored.items_left_out += u64::from(self.live);
            }
        })?;
        for row in newest {
            let Some(metric) = self.state.names.series_name(row.slot, row.series_id) else { continue };
            let position = self.stored.next - 1;
            self.show(row.slot, position, row.received_at, || StoredWhat::Reading {
                metric,
                ts_us: row.ts,
                value: super::from_sql(row.value),
            });
        }
        rows.clear();
        self.rows = rows;
        Ok(())
    }

    fn show(&mut self, slot: Slot, position: u64, received_at_us: i64, what: impl FnOnce() -> StoredWhat) {
        if !self.live {
            return;
        }
        if self.stored.items.len() >= LIVE_ITEMS_MAX {
            self.stored.items_left_out += 1;
            return;
        }
        let device = self.state.names.device(slot);
        let (tenant, device) = (device.tenant.clone(), device.name.clone());
        self.stored.items.push(StoredItem { position, tenant, device, received_at_us, what: what() });
    }
}

/// A reading on its way to a row.
struct Incoming<'m> {
    metric: Cow<'m, str>,
    unit: Option<String>,
    ts: i64,
    /// Queue row, seq, index.
    key: (i64, u64, usize),
    value: Value,
}

impl Incoming<'_> {
    fn row(self, series_id: i64, slot: Slot, received_at: i64) -> ReadingRow {
        let (queue_ref, seq, index) = self.key;
        ReadingRow {
            series_id,
            ts: self.ts,
            queue_ref,
            seq: seq.cast_signed(),
            index: index as i64,
            received_at,
            slot,
            value: match self.value {
                Value::Bool(flag) => SqlValue::Integer(i64::from(flag)),
                Value::Number(number) => SqlValue::Real(number),
                Value::Text(text) => SqlValue::Text(text),
            },
        }
    }
}

/// Why a message cannot be stored; it becomes a dead letter.
struct Refusal {
    reason: &'static str,
    detail: String,
}

impl Refusal {
    fn new(reason: &'static str, detail: &str) -> Self {
        Self { reason, detail: detail.to_owned() }
    }

    fn malformed(error: muster_wire::WireError) -> Self {
        Self { reason: "malformed", detail: error.to_string() }
    }
}

enum StoreError {
    Refused(Refusal),
    Failed(TelemetryError),
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TelemetryError> for StoreError {
    fn from(error: TelemetryError) -> Self {
        Self::Failed(error)
    }
}
