//! Kills between any two steps: the same alerts, each exactly once.

use super::*;
use crate::alerts::model::{Alert, AlertFilter, PLATFORM};
use crate::alerts::service::AlertService;
use crate::platform::clock::ManualClock;
use crate::platform::db::{Db, DbError, Fence, Scope};
use crate::platform::event_log::{Kind, LogRecord, Origin};
use crate::platform::live::LiveBus;
use crate::rules::consumer::{CHECKPOINT_EVERY_ALERT, Parts, Worker};
use crate::rules::service::{RuleBoard, RuleDraft, RuleService};
use crate::testing::{registry, registry_by_owner};
use muster_wire::{Telemetry, UpClass};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

struct Stored {
    received_at_us: i64,
    device: &'static str,
    kind: Kind,
    measured_at_us: i64,
    seq: u64,
    body: Vec<u8>,
}

impl Stored {
    fn record(&self, position: u64) -> LogRecord<'_> {
        LogRecord {
            position,
            received_at_us: self.received_at_us,
            kind: self.kind,
            tenant: if self.kind == Kind::Tick { "" } else { "acme" },
            device: self.device,
            class: if self.kind == Kind::Tick { 0 } else { UpClass::Telemetry.number() },
            qos: 1,
            origin: if self.seq == 0 { Origin::Direct } else { Origin::Queue { queue_id: 5, seq: self.seq } },
            measured_at_us: self.measured_at_us,
            body: &self.body,
        }
    }
}

/// A log with live and old readings, copies, silences and ticks.
fn random_log(rng: &mut SmallRng, records: usize) -> Vec<Stored> {
    let (mut log, mut now_us, mut seq) = (Vec::<Stored>::new(), START, 0);
    for _ in 0..records {
        now_us += rng.random_range(0..3) * SECOND + if rng.random_ratio(1, 60) { 40 * SECOND } else { 0 };
        if rng.random_ratio(1, 5) {
            log.push(Stored {
                received_at_us: now_us,
                device: "",
                kind: Kind::Tick,
                measured_at_us: 0,
                seq: 0,
                body: vec![],
            });
            continue;
        }
        if rng.random_ratio(1, 8)
            && let Some(copied) = log.iter().rev().find(|record| record.seq > 0)
        {
            let copy = Stored { received_at_us: now_us, body: copied.body.clone(), ..*copied };
            log.push(copy);
            continue;
        }
        seq += 1;
        let age_us = if rng.random_ratio(1, 4) { (3_000 - now_us / SECOND % 1_000) * SECOND } else { 0 };
        let metrics: &[&str] = if rng.random_ratio(1, 3) { &["temp_c", "door"] } else { &["temp_c"] };
        let reading = |metric: &&str| {
            let value = if *metric == "door" {
                Value::Bool(rng.random())
            } else {
                Value::Number(f64::from(rng.random_range(15..40)))
            };
            Reading { metric: (*metric).to_owned(), value, offset_us: None }
        };
        let body = Telemetry { readings: metrics.iter().map(reading).collect() }.encode();
        let device = ["d1", "d2", "d3"][rng.random_range(0..3)];
        log.push(Stored {
            received_at_us: now_us,
            device,
            kind: Kind::Message,
            measured_at_us: now_us - age_us,
            seq,
            body,
        });
    }
    log
}

struct Site {
    db: Db,
    board: Arc<RuleBoard>,
    dir: tempfile::TempDir,
}

impl Site {
    fn new(runtime: &tokio::runtime::Runtime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        let board = Arc::new(RuleBoard::default());
        // Ids are random and part of an alert's id: rules are written with fixed ones instead.
        let drafts = [
            ("at-once", hot_json(0)),
            ("for-5", hot_json(5)),
            (
                "door",
                json!({"on": {"telemetry": {"metrics": ["temp_c"]}}, "condition": "value > 28 && last.door", "for_s": 2, "severity": "info"}),
            ),
        ];
        for (id, json) in drafts {
            let spec = serde_json::to_string(&spec(json)).unwrap();
            let insert = "INSERT INTO rules (tenant, id, name, enabled, version, spec, created_at_us, updated_at_us) VALUES ('acme', $1, $1, 1, 1, $2, 0, 0)";
            runtime
                .block_on(db.write(move |tx| tx.execute(&Scope::System("test"), insert, &[&id, &spec])))
                .unwrap();
        }
        Self { db, board, dir }
    }

    fn worker(&self) -> Worker {
        let parts = Parts {
            fence: Fence::default(),
            db: self.db.clone(),
            clock: ManualClock::at(START),
            board: self.board.clone(),
            live: LiveBus::new(),
            labels: labels(),
            known: Arc::new(|_: &str, _: &str| true),
        };
        Worker::open(parts, 7, 1..1_000_000).unwrap()
    }

    fn alerts(&self, runtime: &tokio::runtime::Runtime) -> Vec<Alert> {
        let service = AlertService::new(self.db.clone(), ManualClock::at(START), LiveBus::new());
        runtime.block_on(service.list(&acme(), AlertFilter::default(), None, 100_000)).unwrap()
    }

    fn leftovers(&self, runtime: &tokio::runtime::Runtime) -> Vec<String> {
        let sql = "SELECT rule_id || device || subject || stream || state FROM rule_state ORDER BY 1";
        runtime
            .block_on(
                self.db
                    .read(move |tx| tx.query(&Scope::System("test"), sql, &[], |row| row.get::<String>(0))),
            )
            .unwrap()
    }
}

/// Runs a log through a worker that is killed at random between steps.
fn run(
    runtime: &tokio::runtime::Runtime,
    log: &[Stored],
    mut kill: impl FnMut() -> bool,
    mut commit: impl FnMut() -> bool,
) -> (Vec<Alert>, Vec<String>) {
    let site = Site::new(runtime);
    let mut worker = site.worker();
    loop {
        let position = worker.position();
        let Some(stored) = usize::try_from(position - 1).ok().and_then(|at| log.get(at)) else { break };
        worker.observe(&stored.record(position));
        if commit() {
            worker.checkpoint().unwrap();
        }
        if kill() {
            worker = site.worker();
            let upto = usize::try_from(worker.position() - 1).unwrap();
            for (before, stored) in (1..).zip(&log[..upto]) {
                worker.warm(&stored.record(before));
            }
        }
    }
    worker.checkpoint().unwrap();
    (site.alerts(runtime), site.leftovers(runtime))
}

#[test]
fn kills_anywhere_open_the_same_alerts_exactly_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut opened = 0;
    for seed in 0..12 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let log = random_log(&mut rng, 300);
        let (expect, left) = run(&runtime, &log, || false, || false);
        opened += expect.len();
        let (mut kills, mut commits) = (SmallRng::seed_from_u64(seed ^ 1), SmallRng::seed_from_u64(seed ^ 2));
        let got = run(&runtime, &log, || kills.random_ratio(1, 40), || commits.random_ratio(1, 7));
        assert_eq!(got.0, expect, "seed {seed}");
        assert_eq!(got.1, left, "seed {seed}");
    }
    assert!(opened > 100, "the logs open alerts: {opened}");
}

#[test]
fn another_log_starts_at_its_beginning_and_a_lost_range_leaves_a_row() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new(&runtime);
    let log = random_log(&mut SmallRng::seed_from_u64(1), 20);
    let mut worker = site.worker();
    for (position, stored) in (1..).zip(&log) {
        worker.observe(&stored.record(position));
    }
    worker.checkpoint().unwrap();
    let open = |epoch, first| {
        let parts = Parts {
            fence: Fence::default(),
            db: site.db.clone(),
            clock: ManualClock::at(START),
            board: site.board.clone(),
            live: LiveBus::new(),
            labels: labels(),
            known: Arc::new(|_: &str, _: &str| true),
        };
        Worker::open(parts, epoch, first..1_000_000).unwrap()
    };
    assert_eq!(open(7, 1).position(), 21);
    assert_eq!(open(8, 1).position(), 1);
    let mut moved = open(7, 50);
    assert_eq!(moved.position(), 50);
    moved.skipped(&(50..60));
    moved.checkpoint().unwrap();
    let gaps = runtime.block_on(site.db.read(|tx| {
        tx.query(&Scope::System("test"), "SELECT first, last FROM rule_gaps ORDER BY first", &[], |row| {
            Ok::<_, DbError>((row.get::<i64>(0)?, row.get::<i64>(1)?))
        })
    }));
    assert_eq!(gaps.unwrap(), [(21, 49), (50, 59)]);
    assert_eq!(open(7, 1).position(), 60);
    let of_platform = |alerts: Vec<Alert>| -> Vec<String> {
        alerts.into_iter().filter(|alert| alert.device == PLATFORM).map(|alert| alert.message).collect()
    };
    let told = of_platform(site.alerts(&runtime));
    let expect = "29 records of the event log (positions 21 to 49) were not judged by rules: the log no longer holds it";
    assert_eq!(told, [expect], "one alert waits for a person, whatever else is skipped");
}

#[test]
fn a_commit_that_fails_is_kept_and_tried_again() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new(&runtime);
    let reading = Reading { metric: "temp_c".into(), value: Value::Number(31.0), offset_us: None };
    let body = Telemetry { readings: vec![reading] }.encode();
    let stored = Stored {
        received_at_us: START,
        device: "d1",
        kind: Kind::Message,
        measured_at_us: START,
        seq: 1,
        body,
    };
    let mut worker = site.worker();
    worker.observe(&stored.record(1));
    let rename = |from: &'static str, to: &'static str| {
        registry_by_owner(site.dir.path(), &format!("ALTER TABLE {from} RENAME TO {to}"));
    };
    rename("rule_cursor", "away");
    assert!(worker.checkpoint().is_err());
    assert!(site.alerts(&runtime).is_empty(), "all or nothing");
    assert!(worker.is_due());
    rename("away", "rule_cursor");
    worker.checkpoint().unwrap();
    assert_eq!(site.alerts(&runtime).len(), 1);
    assert_eq!(site.worker().position(), 2);
}

#[test]
fn an_alert_waits_for_its_commit_a_few_milliseconds_only() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new(&runtime);
    let mut worker = site.worker();
    worker.checkpoint().unwrap();
    assert_eq!(worker.due_in(), None, "there is nothing to commit");
    let stored = |seq, value: f64| {
        let reading = Reading { metric: "temp_c".into(), value: Value::Number(value), offset_us: None };
        let body = Telemetry { readings: vec![reading] }.encode();
        Stored { received_at_us: START, device: "d1", kind: Kind::Message, measured_at_us: START, seq, body }
    };
    worker.observe(&stored(1, 3.0).record(1));
    let calm = worker.due_in().unwrap();
    worker.observe(&stored(2, 31.0).record(2));
    let alarmed = worker.due_in().unwrap();
    assert!(alarmed <= CHECKPOINT_EVERY_ALERT && alarmed < calm, "{calm:?}, then {alarmed:?}");
    worker.checkpoint().unwrap();
    assert_eq!(site.alerts(&runtime).len(), 1);
}

#[test]
fn a_changed_rule_is_loaded_and_its_alerts_cleared() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = Site::new(&runtime);
    let service = RuleService::new(site.db.clone(), ManualClock::at(START), site.board.clone());
    let reading = Reading { metric: "temp_c".into(), value: Value::Number(31.0), offset_us: None };
    let body = Telemetry { readings: vec![reading] }.encode();
    let stored = Stored {
        received_at_us: START,
        device: "d1",
        kind: Kind::Message,
        measured_at_us: START,
        seq: 1,
        body,
    };
    let mut worker = site.worker();
    worker.observe(&stored.record(1));
    worker.checkpoint().unwrap();
    let mut json = hot_json(0);
    (json["name"], json["enabled"]) = (json!("at-once"), json!(false));
    let draft: RuleDraft = serde_json::from_value(json).unwrap();
    runtime
        .block_on(service.update(
            &crate::testing::owner(&acme()),
            &acme(),
            "at-once",
            (Some(1), Default::default()),
            draft,
        ))
        .unwrap();
    worker.reload_if_changed().unwrap();
    let alert = site.alerts(&runtime).remove(0);
    assert_eq!(alert.cleared_why.as_deref(), Some("rule_changed"));
    assert_eq!(site.board.health(&acme(), "for-5").unwrap().evaluations, 1);
    assert!(site.board.health(&acme(), "at-once").is_none());
}
