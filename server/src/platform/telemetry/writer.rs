//! Applies one batch of the log: readings, ledger and counts go into the memtable; events, dead letters, rejected
//! messages and presence into their tables, in one commit with the mark that says so.
//!
//! Runs on the database's writer thread, inside one closure. Whatever fails, nothing of the batch stays and the
//! memtable is thrown away; it is read again from the cursor. Then each record meets the marks: what a mark has behind
//! it is in the tables and is passed over. The rest comes to what it came to before, since each device's ledger
//! stands where it stood.

use super::batch::{RawBatch, StoredBatch, StoredItem, StoredWhat};
use super::faults::{CrashPoint, Faults};
use super::incoming::{Incoming, Refusal, StoreError};
use super::ledger::{Queue, QueueKey, Verdict};
use super::memtable::{Marks, Memtable, Position, Shard, shard_of};
use super::names::{Series, Slot};
use super::partition::{self, ReadingRow};
use super::tally::Tally;
use super::{LIVE_ITEMS_MAX, TelemetryError, cursor};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use crate::platform::event_log::{Kind, LogRecord, Origin};
use muster_wire::senml::Moment;
use muster_wire::{
    Birth, DropRange, DropReason, Event, QueueId, QueueState, State, TelemetryRef, UpClass, Value,
};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Applies the batch; the caller commits.
pub(super) fn apply(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    batch: &RawBatch,
    live: bool,
    faults: &Faults,
) -> Result<StoredBatch, TelemetryError> {
    let stands = memtable.position.clone();
    let Some(position) = stands.filter(|at| at.epoch == batch.epoch && at.applied == batch.from) else {
        return Err(TelemetryError::CursorMoved { from: batch.from });
    };
    memtable.trim();
    let stored =
        StoredBatch { epoch: batch.epoch, from: batch.from, next: batch.next, ..StoredBatch::default() };
    let marks = position.marks.clone();
    let mut writer = Writer {
        tx,
        memtable,
        live,
        marks,
        tally: Tally::default(),
        newest: BTreeMap::new(),
        is_direct: false,
        stored,
    };
    for record in batch.records() {
        writer.record(&record)?;
    }
    let received_at_us = batch.received_at_us().unwrap_or(i64::MIN).max(position.received_at_us);
    for range in &batch.skipped {
        // Read again after a crash, it is noted already; but what was readable then may not be now.
        if !cursor::is_lost(writer.tx, batch.epoch, range)? {
            cursor::record_lost(writer.tx, batch.epoch, range, "unreadable", received_at_us)?;
            writer.is_direct = true;
        }
    }
    writer.show_newest();
    let Writer { mut tally, is_direct, mut marks, stored, .. } = writer;
    let position = Position { applied: batch.next, received_at_us, ..position };
    if is_direct {
        tally.flush(tx)?;
        marks.direct = batch.next;
        cursor::write(tx, &position, &marks)?;
    }
    faults.reach(CrashPoint::AfterApply)?;
    memtable.position = Some(Position { marks, ..position });
    Ok(stored)
}

struct Writer<'a, 'tx> {
    tx: &'a mut Tx<'tx>,
    memtable: &'a mut Memtable,
    live: bool,
    /// What is in the tables already.
    marks: Marks,
    tally: Tally,
    /// The newest reading of each series of this batch: whose it is, and where it stands in its shard.
    newest: BTreeMap<i64, (Slot, usize)>,
    /// Something was written beside the memtable.
    is_direct: bool,
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
        let slot = self.memtable.names.slot(self.tx, record.tenant, record.device)?;
        let device = self.memtable.names.device(slot);
        // What a shard has behind it was applied before that shard was flushed, so its direct effects are older still.
        if record.position < self.marks.shards[shard_of(device.id)] {
            return Ok(());
        }
        match record.kind {
            Kind::Tick => Ok(()),
            Kind::Rejected { .. } if !self.is_due(record) => Ok(()),
            Kind::Rejected { reason } => {
                self.tally.reject(device.tenant_id, device.id, record, reason);
                self.is_direct = true;
                Ok(())
            }
            Kind::Connected => self.presence(slot, record, true),
            Kind::Disconnected { .. } => self.presence(slot, record, false),
            Kind::Message => self.message(slot, record),
        }
    }

    /// Whether a record's direct effects are to be written: not where a run before this one did.
    fn is_due(&self, record: &LogRecord<'_>) -> bool {
        record.position >= self.marks.direct
    }

    fn shard(&mut self, slot: Slot) -> (&mut Shard, i64) {
        let device = self.memtable.names.device(slot);
        (&mut self.memtable.shards[shard_of(device.id)], device.tenant_id)
    }

    fn count(&mut self, slot: Slot, name: &'static str, by: u64) {
        let (shard, tenant_id) = self.shard(slot);
        shard.count(tenant_id, name, by);
    }

    fn presence(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        connected: bool,
    ) -> Result<(), TelemetryError> {
        if !self.is_due(record) {
            return Ok(());
        }
        let id = self.memtable.names.device(slot).id;
        const UPDATE: &str = "UPDATE device SET connected = $2, presence_at = $3 WHERE id = $1";
        self.tx.execute(UPDATE, &[&id, &connected, &record.received_at_us])?;
        self.is_direct = true;
        self.show(slot, record.position, record.received_at_us, || StoredWhat::Presence { connected });
        Ok(())
    }

    fn message(&mut self, slot: Slot, record: &LogRecord<'_>) -> Result<(), TelemetryError> {
        if record.qos == 0 {
            self.count(slot, "qos0", 1);
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
        let device_id = self.memtable.names.device(slot).id;
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
        let now_us = record.received_at_us;
        self.shard(slot).0.records += 1;
        let queue = self.queue(slot, account, now_us)?;
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
                self.queue(slot, account, now_us)?.store(account.seq);
                self.stored.messages += 1;
                Ok(())
            }
            Err(StoreError::Refused(refusal)) => {
                self.queue(slot, account, now_us)?.drop(account.seq, account.seq, DropReason::Malformed);
                self.dead_letter(slot, record, refusal.reason, &refusal.detail)
            }
            Err(StoreError::Failed(error)) => Err(error),
        }
    }

    fn queue(&mut self, slot: Slot, account: Account, now_us: i64) -> Result<&mut Queue, DbError> {
        let tenant_id = self.memtable.names.device(slot).tenant_id;
        self.memtable.ledger.queue(self.tx, account.key, tenant_id, account.is_foreign, now_us)
    }

    fn telemetry(&mut self, slot: Slot, record: &LogRecord<'_>, queue_ref: i64) -> Result<(), StoreError> {
        let telemetry = TelemetryRef::decode(record.body).map_err(Refusal::malformed)?;
        let seq = self.account(slot, record).seq;
        let readings = telemetry.readings.into_iter().enumerate().map(|(index, reading)| Incoming {
            ts: record.measured_at_us.saturating_add(reading.offset_us.unwrap_or(0)),
            key: (queue_ref, seq, index),
            is_named: false,
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
            self.queue(slot, named, record.received_at_us).map_err(TelemetryError::from)?.row
        } else {
            0
        };
        let readings = pack.into_iter().enumerate().map(|(index, reading)| Incoming {
            ts: match reading.moment {
                Moment::Absolute(us) => us,
                Moment::Relative(us) => record.received_at_us.saturating_add(us),
            },
            key: if is_named(reading.moment) { (named_ref, 0, 0) } else { (queue_ref, account.seq, index) },
            is_named: is_named(reading.moment),
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
        let (mut refused, mut seen, mut taken) = (0, 0_u64, 0);
        for (at, reading) in readings.enumerate() {
            let found =
                self.memtable.names.series(self.tx, slot, (at, &reading.metric), reading.unit.as_deref());
            let Series::Id(series_id) = found.map_err(TelemetryError::from)? else {
                refused += 1;
                continue;
            };
            seen += 1;
            if reading.is_named && self.is_known(slot, record, series_id, &reading)? {
                continue;
            }
            taken += 1;
            self.take(
                slot,
                reading.row(series_id, self.memtable.names.device(slot).id, record.received_at_us),
            );
        }
        if taken > 0 {
            self.stored.readings += taken;
            self.count(slot, "readings", taken);
            let device_id = self.memtable.names.device(slot).id;
            self.shard(slot).0.heard_at.insert(device_id, record.received_at_us);
        }
        if refused > 0 {
            self.count(slot, "readings_refused", refused);
            let why = format!(
                "{refused} readings of metrics beyond the device's {}",
                muster_wire::METRICS_PER_DEVICE_MAX
            );
            if seen == 0 {
                return Err(Refusal { reason: "too many metrics", detail: why }.into());
            }
            self.dead_letter(slot, record, "too many metrics", &why)?;
        }
        Ok(())
    }

    /// Whether a reading that is keyed by name and time is there already, of the same day of reception.
    fn is_known(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        series_id: i64,
        reading: &Incoming<'_>,
    ) -> Result<bool, TelemetryError> {
        let shard = self.shard(slot).0;
        if !shard.named.insert((series_id, reading.ts)) {
            return Ok(true);
        }
        shard.records += 1;
        let key = (series_id, reading.ts, reading.key.0);
        let day = partition::day_of(record.received_at_us);
        Ok(self.memtable.partitions.holds_named(self.tx, day, key)?)
    }

    fn take(&mut self, slot: Slot, row: ReadingRow) {
        let rows = &mut self.shard(slot).0.rows;
        let (at, series_id) = (rows.len(), row.series_id);
        rows.push(row);
        if !self.live {
            return;
        }
        let rows = &self.memtable.shards[shard_of(self.memtable.names.device(slot).id)].rows;
        let newest = self.newest.entry(series_id).or_insert((slot, at));
        if rows[at].by_rank(&rows[newest.1]).is_ge() {
            *newest = (slot, at);
        }
    }

    fn event(&mut self, slot: Slot, record: &LogRecord<'_>, queue_ref: i64) -> Result<(), StoreError> {
        let event = Event::decode(record.body).map_err(Refusal::malformed)?;
        if !self.is_due(record) {
            return Ok(());
        }
        let seq = self.account(slot, record).seq;
        let (device_id, tenant_id) =
            (self.memtable.names.device(slot).id, self.memtable.names.device(slot).tenant_id);
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
        self.memtable.events_wait = true;
        self.tally.count(tenant_id, "events", 1);
        self.is_direct = true;
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
        self.shard(slot).0.records += drops.len();
        for range in drops {
            if let Some(account) = self.reported(slot, range.class, range.queue_id) {
                self.queue(slot, account, record.received_at_us)?.drop(range.first, range.last, range.reason);
            }
        }
        for state in queues {
            if let Some(account) = self.reported(slot, state.class, state.queue_id) {
                self.queue(slot, account, record.received_at_us)?.report(state);
            }
        }
        self.show(slot, record.position, record.received_at_us, || StoredWhat::Ledger);
        Ok(())
    }

    fn reported(&self, slot: Slot, class: u8, queue_id: QueueId) -> Option<Account> {
        UpClass::from_number(class)?;
        let key = QueueKey { device_id: self.memtable.names.device(slot).id, queue_id: queue_id.0, class };
        Some(Account { key, seq: 0, is_foreign: false })
    }

    fn dead_letter(
        &mut self,
        slot: Slot,
        record: &LogRecord<'_>,
        reason: &str,
        detail: &str,
    ) -> Result<(), TelemetryError> {
        if !self.is_due(record) {
            return Ok(());
        }
        let device = self.memtable.names.device(slot);
        self.stored.dead_letters += 1;
        self.is_direct = true;
        Ok(self.tally.dead_letter(
            self.tx,
            (device.tenant_id, device.id),
            self.stored.epoch,
            record,
            reason,
            detail,
        )?)
    }

    /// Shows the newest reading of each series.
    fn show_newest(&mut self) {
        let position = self.stored.next.saturating_sub(1);
        for (series_id, (slot, at)) in std::mem::take(&mut self.newest) {
            if self.stored.items.len() >= LIVE_ITEMS_MAX {
                self.stored.items_left_out += 1;
                continue;
            }
            let names = &self.memtable.names;
            let row = &self.memtable.shards[shard_of(names.device(slot).id)].rows[at];
            let Some(metric) = names.series_name(slot, series_id) else { continue };
            let (ts_us, received_at, value) = (row.ts, row.received_at, Value::from(&row.value));
            self.show(slot, position, received_at, || StoredWhat::Reading { metric, ts_us, value });
        }
    }

    fn show(&mut self, slot: Slot, position: u64, received_at_us: i64, what: impl FnOnce() -> StoredWhat) {
        if !self.live {
            return;
        }
        if self.stored.items.len() >= LIVE_ITEMS_MAX {
            self.stored.items_left_out += 1;
            return;
        }
        let device = self.memtable.names.device(slot);
        let (tenant, device) = (device.tenant.clone(), device.name.clone());
        self.stored.items.push(StoredItem { position, tenant, device, received_at_us, what: what() });
    }
}
