//! The slice as a whole: the reader killed between any two steps, quotas in force, and the API.

mod api;
mod kills;
mod limits;

use crate::platform::clock::ManualClock;
use crate::platform::db::{Db, Fence, Scope};
use crate::platform::event_log::{EventLog, Kind, LogRecord, NewRecord, Options, Origin, Pin};
use crate::testing::{START_US, registry};
use crate::usage::Board;
use crate::usage::consumer::{Parts, Worker};
use crate::usage::model::{Counts, DayRow, day_of};
use crate::usage::store;
use muster_wire::{Event, EventKind, Reading, Telemetry, UpClass, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

/// A registry and a log, with what a reader stands on.
struct Rig {
    dir: TempDir,
    clock: Arc<ManualClock>,
    db: Db,
    log: EventLog,
    parts: Parts,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(START_US);
        let options = Options { segment_bytes: 1 << 20, ..Options::at(&dir.path().join("log")) };
        let log = EventLog::open(&options, clock.clone()).unwrap();
        let db = registry(dir.path());
        let parts = Parts {
            db: db.clone(),
            clock: clock.clone(),
            board: Arc::new(Board::new()),
            devices: Arc::new(|| vec![("acme".to_owned(), 3)]),
            kept: Arc::new(|| (30, Vec::new())),
            fence: Fence::default(),
        };
        Self { dir, clock, db, log, parts }
    }

    /// A reader, as after a start of the process: with a board that knows nothing.
    fn open(&mut self) -> Worker {
        self.log.commit().unwrap();
        self.parts.board = Arc::new(Board::new());
        Worker::open(self.parts.clone(), self.log.epoch(), self.log.first()..self.log.durable_next()).unwrap()
    }

    /// Has the reader count so many records, or all that there are.
    fn read(&self, worker: &mut Worker, records: u64) {
        self.log.commit().unwrap();
        let until = worker.position() + records;
        let mut reader = self.log.reader("test", worker.position(), Pin::Follows).unwrap();
        let _batch = reader
            .next_batch(1 << 30, |record| {
                if record.position < until {
                    worker.observe(&record);
                }
            })
            .unwrap();
    }

    fn append(&self, tenant: &str, kind: Kind, class: UpClass, body: &[u8]) {
        let origin = Origin::Direct;
        let class = class.number();
        let record =
            NewRecord { kind, tenant, device: "pump", class, qos: 1, origin, measured_at_us: 0, body };
        self.log.append(&record).unwrap();
    }

    fn telemetry(&self, tenant: &str, readings: usize) {
        let reading = || Reading { metric: "t".into(), value: Value::Number(1.0), offset_us: None };
        let body = Telemetry { readings: (0..readings).map(|_| reading()).collect() }.encode();
        self.append(tenant, Kind::Message, UpClass::Telemetry, &body);
    }

    fn event(&self, tenant: &str, latency_us: u32) {
        let event = Event {
            pipeline: "p".into(),
            model: "m".into(),
            model_version: "1".into(),
            kind: EventKind::Classification,
            label: "ok".into(),
            score: 0.5,
            subject: None,
            latency_us,
            boxes: Vec::new(),
        };
        self.append(tenant, Kind::Message, UpClass::Event, &event.encode());
    }

    /// What is stored, by tenant and day; sampled numbers left out.
    fn stored(&self) -> BTreeMap<(String, i64), Counts> {
        let scope = Scope::System("usage: the meter counts every tenant's records");
        let rows: Vec<DayRow> = self
            .db
            .read_blocking(move |tx| {
                store::days_all(tx, &scope, &(0..=i64::from(u32::MAX)), &(-1, String::new()), 10_000)
            })
            .unwrap();
        let rows =
            rows.into_iter().map(|row| ((row.tenant, row.day), Counts { peak_per_s: 0, ..row.counts }));
        rows.filter(|(_, counts)| !counts.is_empty()).collect()
    }

    /// What the log holds, counted in the plainest way.
    fn held(&self) -> BTreeMap<(String, i64), Counts> {
        self.log.commit().unwrap();
        let mut held: BTreeMap<(String, i64), Counts> = BTreeMap::new();
        let mut reader = self.log.reader("oracle", 1, Pin::Follows).unwrap();
        let _batch = reader.next_batch(1 << 30, |record| oracle(&record, &mut held)).unwrap();
        held
    }
}

fn oracle(record: &LogRecord<'_>, held: &mut BTreeMap<(String, i64), Counts>) {
    if record.tenant.is_empty() || matches!(record.kind, Kind::Connected | Kind::Disconnected { .. }) {
        return;
    }
    let counts = held.entry((record.tenant.to_owned(), day_of(record.received_at_us))).or_default();
    if let Kind::Rejected { .. } = record.kind {
        counts.refused[crate::usage::Refused::BadPayload as usize] += 1;
        return;
    }
    counts.messages += 1;
    counts.bytes += record.body.len() as u64;
    if record.class == UpClass::Telemetry.number() {
        counts.readings += Telemetry::decode(record.body).map_or(0, |body| body.readings.len() as u64);
    }
    if let Some(event) = Event::decode(record.body).ok().filter(|_| record.class == UpClass::Event.number()) {
        counts.events += 1;
        counts.event_bytes += record.body.len() as u64;
        counts.inference_us += u64::from(event.latency_us);
    }
}
