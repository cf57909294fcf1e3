//! A server in process whose log is written and read by hand.

use crate::erasure::model::{File, Job, State};
use crate::erasure::store;
use crate::erasure::worker::Worker;
use crate::ingest::Consumer;
use crate::platform::clock::Clock as _;
use crate::platform::config::Config;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::event_log::{Kind, NewRecord, Origin, Pin};
use crate::platform::http_kit::Page;
use crate::platform::telemetry::{LogPlace, TelemetryStore};
use crate::rules::consumer as rules;
use crate::tenants::Permission;
use crate::testing::{Answer, As, TestApp};
use flate2::read::GzDecoder;
use muster_services::ClickHouse;
use muster_wire::{Event, EventKind, Reading, Telemetry, TenantId, UpClass, Value};
use serde_json::{Value as Json, json};
use std::io::Read as _;

/// What [`Rig::one_of_each`] comes to: 3 readings, an event, a dead letter, a refused message, 2 queues, a metric, its last
/// value and the device.
pub(super) const ROWS_OF_ONE_OF_EACH: i64 = 11;
/// Steps until an erasure must be done.
const STEPS_MAX: usize = 500;

pub(super) struct Rig {
    pub(super) app: TestApp,
    pub(super) token: String,
    pub(super) worker: Worker,
    consumer: Option<Consumer>,
    /// Where the tests run with readings and events there.
    clickhouse: Option<ClickHouse>,
    rules: Option<rules::Worker>,
    /// The rules read nothing, as if they lagged.
    pub(super) rules_are_held: bool,
}

/// As the store's own suite has it.
const TELEMETRY: &str = "MUSTER_TEST_TELEMETRY";
const DATABASE: &str = "fleet";

pub(super) fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

/// Runs what must not run on a thread of the runtime.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Sends what is flushed and synced.
fn send(store: &TelemetryStore) {
    if let Some(mut sender) = store.sender().unwrap() {
        while sender.send_next().unwrap() {}
    }
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let is_remote = std::env::var(TELEMETRY).is_ok_and(|engine| engine == "clickhouse");
        let clickhouse = is_remote.then(|| ClickHouse::start().unwrap());
        let app = TestApp::start_with(|config| {
            config.telemetry.url = clickhouse.as_ref().map(|server| server.url(DATABASE).parse().unwrap());
            // ClickHouse deletes what is past its time by its own clock.
            config.retention.telemetry_days = 30_000;
            change(config);
        })
        .await;
        let acme = app.tenant("acme").await;
        let token = app.token(&acme, Permission::ALL).await;
        let worker = app.parts.eraser(app.clock.now_us());
        let (consumer, rules) = (None, None);
        let mut rig = Self { worker, app, token, consumer, clickhouse, rules, rules_are_held: false };
        rig.begin_reading();
        rig
    }

    /// As after a crash: what the store had in memory is gone, it reads on from its cursor.
    pub(super) fn begin_reading(&mut self) {
        self.consumer = None;
        let (log, store) = (self.app.parts.log.clone(), self.app.parts.telemetry.clone());
        let clock = self.app.parts.clock.clone();
        self.consumer = Some(apart(move || Consumer::begin(log, store, clock, Vec::new()).unwrap()));
        let (log, parts) = (self.app.parts.log.clone(), self.app.parts.rules.clone());
        let held = log.first()..log.durable_next();
        self.rules = Some(apart(move || rules::Worker::open(parts, log.epoch(), held).unwrap()));
        self.worker = self.app.parts.eraser(self.app.clock.now_us());
    }

    /// The rules read all that is in the log, and commit.
    fn judge(&mut self) {
        let (log, worker) = (self.app.parts.log.clone(), self.rules.as_mut().unwrap());
        apart(move || {
            worker.reload_if_changed().unwrap();
            worker.forget_if_asked().unwrap();
            let mut reader = log.reader("rules-test", worker.position(), Pin::Follows).unwrap();
            loop {
                let batch = reader.next_batch(1 << 20, |record| worker.observe(&record)).unwrap();
                if batch.next == batch.from {
                    break;
                }
            }
            worker.checkpoint().unwrap();
        });
    }

    /// The store reads all that is in the log, the rules too where they are not held.
    pub(super) fn read_log(&mut self) {
        let (log, store) = (self.app.parts.log.clone(), self.app.parts.telemetry.clone());
        let consumer = self.consumer.as_mut().unwrap();
        apart(move || {
            let position = log.commit().unwrap();
            while !store.has_read(LogPlace { epoch: log.epoch(), position }) {
                consumer.step().unwrap();
            }
            send(&store);
        });
        if !self.rules_are_held {
            self.judge();
        }
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: Option<Json>) -> Answer {
        self.app.call(As::Token(&self.token), method, path, body).await
    }

    pub(super) async fn create(&self, tenant: &str, device: &str) {
        let path = format!("/api/v1/tenants/{tenant}/devices");
        self.call("POST", &path, Some(json!({ "id": device }))).await.expect(201);
    }

    pub(super) fn append(
        &self,
        tenant: &str,
        device: &str,
        kind: Kind,
        class: UpClass,
        seq: u64,
        body: &[u8],
    ) {
        let origin = match kind {
            Kind::Message => Origin::Queue { queue_id: 5, seq },
            _ => Origin::Direct,
        };
        let measured_at_us = self.app.clock.now_us();
        let class = class.number();
        let record = NewRecord { kind, tenant, device, class, qos: 1, origin, measured_at_us, body };
        self.app.parts.log.append(&record).unwrap();
    }

    pub(super) fn telemetry(&self, tenant: &str, device: &str, seq: u64, readings: usize) {
        let reading = |at: u64| Reading {
            metric: "serial".into(),
            value: Value::Number((seq * 1_000 + at) as f64),
            offset_us: Some(at.cast_signed()),
        };
        let body = Telemetry { readings: (0..readings as u64).map(reading).collect() }.encode();
        self.append(tenant, device, Kind::Message, UpClass::Telemetry, seq, &body);
    }

    pub(super) fn presence(&self, tenant: &str, device: &str, connected: bool) {
        let kind = if connected { Kind::Connected } else { Kind::Disconnected { reason: 0 } };
        self.append(tenant, device, kind, UpClass::Death, 0, &[]);
    }

    /// One of everything that is stored of a device: 3 readings, an event, a body that cannot be read, a refused message.
    pub(super) fn one_of_each(&self, tenant: &str, device: &str) {
        self.presence(tenant, device, true);
        for seq in 1..=3 {
            self.telemetry(tenant, device, seq, 1);
        }
        let event = Event {
            pipeline: "p".into(),
            model: "m".into(),
            model_version: "1".into(),
            kind: EventKind::Anomaly,
            label: "anomaly".into(),
            score: 2.5,
            subject: Some("frame 7".into()),
            latency_us: 9,
            boxes: Vec::new(),
        };
        self.append(tenant, device, Kind::Message, UpClass::Event, 1, &event.encode());
        self.append(tenant, device, Kind::Message, UpClass::Telemetry, 4, b"nonsense");
        self.append(tenant, device, Kind::Rejected { reason: 0x97 }, UpClass::Telemetry, 0, b"");
        self.presence(tenant, device, false);
    }

    pub(super) async fn erase_device(&self, tenant: &str, device: &str) -> String {
        let path = format!("/api/v1/tenants/{tenant}/devices/{device}/erase");
        let begun = self.call("POST", &path, Some(json!({}))).await.expect(202);
        assert_eq!((&begun["state"], &begun["device"]), (&json!("shutting_out"), &json!(device)));
        begun["id"].as_str().unwrap().to_owned()
    }

    pub(super) async fn job(&self, of: &str, id: &str) -> Job {
        self.app.parts.slices.erasures.get(&tenant(of), id).await.unwrap()
    }

    pub(super) async fn files(&self, of: &str, id: &str) -> Vec<File> {
        let page = Page { limit: 500, after: None };
        self.app.parts.slices.erasures.files(&tenant(of), id, &page).await.unwrap()
    }

    /// A step of each job, a second later.
    pub(super) async fn step(&self) -> bool {
        self.app.clock.advance_us(1_000_000);
        self.worker.step_all().await.unwrap()
    }

    /// Deletes what is past its time.
    pub(super) async fn expire(&self) {
        while self.app.parts.slices.erasures.forget_page().await.unwrap() {}
    }

    /// Writes a job's row, as if the commits since had not been.
    pub(super) async fn put_back(&self, job: &Job) {
        let (scope, job) = (Scope::Tenant(job.tenant.clone()), job.clone());
        let write = move |tx: &mut Tx<'_>| store::update(tx, &scope, &job);
        self.app.parts.slices.erasures.db.write::<_, DbError>(write).await.unwrap();
    }

    /// Rows of a table of the registry that name a device.
    pub(super) async fn registry_rows(&self, table: &'static str, device: &'static str) -> i64 {
        let read = move |tx: &mut Tx<'_>| {
            let sql = format!("SELECT count(*) FROM {table} WHERE tenant = 'acme' AND device = $1");
            tx.query_one(&Scope::Tenant(tenant("acme")), &sql, &[&device], |row| row.get::<i64>(0))
        };
        self.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap()
    }

    /// Steps until a job is in a state, or done.
    pub(super) async fn until(&mut self, of: &str, id: &str, state: State) -> Job {
        for _ in 0..STEPS_MAX {
            let job = self.job(of, id).await;
            if job.state == state {
                return job;
            }
            self.step().await;
            self.read_log();
        }
        panic!("not {state:?}: {:?}", self.job(of, id).await);
    }

    pub(super) async fn finish(&mut self, of: &str, id: &str) -> Job {
        self.until(of, id, State::Done).await
    }

    /// The lines of an export's files of one kind, by the API, as `caller`.
    pub(super) async fn lines(&self, caller: As<'_>, of: &str, id: &str, kind: &str) -> Vec<Json> {
        let mut lines = Vec::new();
        for file in self.files(of, id).await.iter().filter(|file| file.name.starts_with(kind)) {
            let path = format!("/api/v1/tenants/{of}/erasures/{id}/files/{}", file.name);
            let content = self.app.download(caller.clone(), &path).await;
            assert_eq!(content.len() as i64, file.bytes);
            let mut text = String::new();
            GzDecoder::new(&content[..]).read_to_string(&mut text).unwrap();
            let read: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(read.len() as i64, file.rows);
            lines.extend(read);
        }
        lines
    }

    /// How many rows of the store's tables belong to a device of this name, whatever its tenant.
    pub(super) fn stored_rows(&self, device: &str) -> i64 {
        let (store, name) = (self.app.parts.telemetry.clone(), device.to_owned());
        let here = apart(move || {
            store.flush_all().unwrap();
            store.sync().unwrap();
            send(&store);
            let device = name;
            store.read_blocking(move |view| {
                let days: Vec<i64> =
                    view.query("SELECT day FROM reading_day", &[], |row| row.get::<i64>(0))?;
                let mut parts = vec!["SELECT count(*) FROM device WHERE name = $1".to_owned()];
                let of = "device_id IN (SELECT id FROM device WHERE name = $1)";
                for table in ["event", "dead_letter", "rejected", "queue", "queue_merged", "last_value", "series"] {
                    parts.push(format!("SELECT count(*) FROM {table} WHERE {of}"));
                }
                for day in days {
                    parts.push(format!(
                        "SELECT count(*) FROM reading_{day} WHERE series_id IN (SELECT id FROM series WHERE {of})"
                    ));
                }
                let sql = format!("SELECT sum(n) FROM (SELECT ({}) AS n)", parts.join(") AS n UNION ALL SELECT ("));
                view.query_one(&sql, &[&device], |row| row.get::<i64>(0))
            })
        })
        .unwrap_or_else(|error: crate::platform::db::DbError| panic!("{error:?}"));
        here + self.remote_rows(device)
    }

    /// Readings and events in ClickHouse; the rollups must say the same.
    fn remote_rows(&self, device: &str) -> i64 {
        let Some(server) = &self.clickhouse else { return 0 };
        let ask = |what: &str, table: &str| -> i64 {
            let sql = format!("SELECT {what} FROM {table} WHERE device = '{device}'");
            server.sql(DATABASE, &sql).unwrap().parse().unwrap()
        };
        let readings = ask("count()", "readings");
        for rollup in ["readings_1m", "readings_1h"] {
            assert_eq!(ask("sum(readings)", rollup), readings, "{rollup}");
        }
        readings + ask("count()", "events")
    }

    /// Rows of the store's tables that belong to no device.
    pub(super) fn orphans(&self) -> i64 {
        let store = self.app.parts.telemetry.clone();
        let counted = apart(move || {
            store.read_blocking(move |view| {
                let days: Vec<i64> =
                    view.query("SELECT day FROM reading_day", &[], |row| row.get::<i64>(0))?;
                let mut sum = 0;
                for day in days {
                    let sql = format!(
                        "SELECT count(*) FROM reading_{day} WHERE series_id NOT IN (SELECT id FROM series)"
                    );
                    sum += view.query_one(&sql, &[], |row| row.get::<i64>(0))?;
                }
                for table in [
                    "event",
                    "dead_letter",
                    "rejected",
                    "queue",
                    "queue_merged",
                    "last_value",
                    "series",
                    "device_day",
                ] {
                    let sql = format!(
                        "SELECT count(*) FROM {table} WHERE device_id NOT IN (SELECT id FROM device)"
                    );
                    sum += view.query_one(&sql, &[], |row| row.get::<i64>(0))?;
                }
                let ranges = "SELECT count(*) FROM queue_range WHERE ref NOT IN (SELECT ref FROM queue)";
                sum += view.query_one(ranges, &[], |row| row.get::<i64>(0))?;
                Ok::<i64, crate::platform::db::DbError>(sum)
            })
        });
        counted.unwrap()
    }
}
