//! The consumer's thread on a real event log.

use super::*;
use crate::alerts::model::AlertFilter;
use crate::alerts::service::AlertService;
use crate::platform::clock::ManualClock;
use crate::platform::db::{Db, DbError, Fence, Scope};
use crate::platform::event_log::{EventLog, Kind, NewRecord, Options, Origin, Pin};
use crate::platform::http_kit::Precondition;
use crate::platform::live::{Filter, LiveBus, LiveKind, Subscription};
use crate::rules::consumer::{Changes, Consumer, Parts, spawn};
use crate::rules::engine::DeviceSource;
use crate::rules::service::{RuleBoard, RuleDraft, RuleService};
use crate::testing::registry;
use muster_wire::{Telemetry, UpClass};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Long enough for a slow machine; a test that passes never waits for it.
const DEADLINE: Duration = Duration::from_secs(20);
/// The log of [`Site::open`] in bytes.
const LOG_BYTES: u64 = 8 * 1024 * 1024;

struct Site {
    db: Db,
    clock: Arc<ManualClock>,
    log: EventLog,
    live: LiveBus,
    board: Arc<RuleBoard>,
    /// How many devices were deleted, and which are left.
    registered: Arc<Mutex<(u64, BTreeSet<String>)>>,
}

impl Site {
    fn open(dir: &Path) -> Self {
        let clock = ManualClock::at(START);
        let options =
            Options { bytes_max: LOG_BYTES, segment_bytes: LOG_BYTES / 16, ..Options::at(&dir.join("log")) };
        let log = EventLog::open(&options, clock.clone()).unwrap();
        let devices = ["d1", "d2"].map(str::to_owned).into();
        Self {
            db: registry(dir),
            clock,
            log,
            live: LiveBus::new(),
            board: Arc::default(),
            registered: Arc::new(Mutex::new((0, devices))),
        }
    }

    fn consumer(&self) -> Consumer {
        let (db, clock, board, live) =
            (self.db.clone(), self.clock.clone(), self.board.clone(), self.live.clone());
        let registered = self.registered.clone();
        let known: DeviceSource =
            Arc::new(move |_: &str, device: &str| registered.lock().unwrap().1.contains(device));
        let registered = self.registered.clone();
        let changes = move || Changes { deletions: registered.lock().unwrap().0, labels: 0 };
        spawn(
            self.log.clone(),
            Parts { db, clock, board, live, labels: labels(), known, fence: Fence::default() },
            changes,
        )
        .unwrap()
    }

    fn rules(&self) -> RuleService {
        RuleService::new(self.db.clone(), self.clock.clone(), self.board.clone())
    }

    fn delete(&self, device: &str) {
        let mut registered = self.registered.lock().unwrap();
        assert!(registered.1.remove(device));
        registered.0 += 1;
    }

    /// Devices of which last values are stored.
    async fn lasts(&self) -> Vec<String> {
        let sql = "SELECT DISTINCT device FROM rule_last ORDER BY device";
        self.db
            .read(move |tx| tx.query(&Scope::System("test"), sql, &[], |row| row.get::<String>(0)))
            .await
            .unwrap()
    }

    fn watch(&self) -> Subscription {
        self.live.subscribe("acme", Filter::default().kinds(&[LiveKind::Alert]), None).unwrap()
    }

    fn send(&self, device: &str, seq: u64, value: f64) -> u64 {
        let readings =
            vec![Reading { metric: "temp_c".into(), value: Value::Number(value), offset_us: None }];
        let body = Telemetry { readings }.encode();
        let record = NewRecord {
            kind: Kind::Message,
            tenant: "acme",
            device,
            class: UpClass::Telemetry.number(),
            qos: 1,
            origin: Origin::Queue { queue_id: 9, seq },
            measured_at_us: START,
            body: &body,
        };
        self.log.append(&record).unwrap()
    }
}

async fn state(watcher: &mut Subscription) -> String {
    let event = watcher.next().await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&event.json).unwrap();
    format!("{} {}", json["device"].as_str().unwrap(), json["state"].as_str().unwrap())
}

fn draft() -> RuleDraft {
    let mut json = hot_json(0);
    json["name"] = "hot".into();
    serde_json::from_value(json).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_written_while_it_runs_opens_and_clears_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path());
    let consumer = tokio::task::block_in_place(|| site.consumer());
    let mut watcher = site.watch();
    let rules = site.rules();
    let me = crate::testing::owner(&acme());
    let rule = rules.create(&me, &acme(), draft()).await.unwrap();
    // The rule is known once its health is on the board; nothing sent before that is promised to be judged.
    while site.board.health(&acme(), &rule.id).is_none() {
        tokio::task::yield_now().await;
    }
    site.send("d1", 1, 31.0);
    assert_eq!(state(&mut watcher).await, "d1 open");
    tokio::task::spawn_blocking(move || consumer.stop()).await.unwrap();
    let consumer = tokio::task::block_in_place(|| site.consumer());
    site.send("d1", 1, 31.0);
    site.send("d1", 2, 20.0);
    site.send("d2", 1, 40.0);
    let mut told = vec![state(&mut watcher).await, state(&mut watcher).await];
    told.sort();
    assert_eq!(told, ["d1 cleared", "d2 open"], "the copy sent after the restart opened nothing");
    assert_eq!(consumer.progress().now().duplicates, 1);
    rules.delete(&me, &acme(), &rule.id, Precondition::None).await.unwrap();
    assert_eq!(state(&mut watcher).await, "d2 cleared");
    let alerts = AlertService::new(site.db.clone(), site.clock.clone(), LiveBus::new());
    let all = alerts.list(&acme(), AlertFilter::default(), None, 10).await.unwrap();
    let why: Vec<_> = all.iter().map(|alert| alert.cleared_why.clone().unwrap_or_default()).collect();
    assert_eq!(all.len(), 2);
    assert!(why.contains(&"condition".to_owned()) && why.contains(&"rule_changed".to_owned()), "{why:?}");
    tokio::task::spawn_blocking(move || drop(consumer)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_one_rule_reads_that_one_anew_and_lets_the_others_run_on() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path());
    let (rules, me) = (site.rules(), crate::testing::owner(&acme()));
    let over = |name: &str, least: i64| -> RuleDraft {
        let mut json = hot_json(0);
        (json["name"], json["clear"]) = (name.into(), serde_json::Value::Null);
        json["condition"] = format!("value > {least}").into();
        serde_json::from_value(json).unwrap()
    };
    let steady = rules.create(&me, &acme(), over("steady", 30)).await.unwrap();
    let changing = rules.create(&me, &acme(), over("changing", 30)).await.unwrap();
    let consumer = tokio::task::block_in_place(|| site.consumer());
    let mut watcher = site.watch();
    site.send("d1", 1, 31.0);
    assert_eq!([state(&mut watcher).await, state(&mut watcher).await], ["d1 open", "d1 open"]);
    // What runs is not read again: it would not run any more.
    let id = steady.id.clone();
    let ruin = move |tx: &mut crate::platform::db::Tx<'_>| {
        tx.execute(&Scope::System("test"), "UPDATE rules SET spec = '{}' WHERE id = $1", &[&id])
    };
    assert_eq!(site.db.write(ruin).await.unwrap(), 1);
    rules.update(&me, &acme(), &changing.id, (None, Precondition::None), over("changing", 40)).await.unwrap();
    assert_eq!(state(&mut watcher).await, "d1 cleared", "the one that changed");
    site.send("d1", 2, 35.0);
    site.send("d1", 3, 45.0);
    assert_eq!(state(&mut watcher).await, "d1 open");
    let alerts = AlertService::new(site.db.clone(), site.clock.clone(), LiveBus::new());
    let all = alerts.list(&acme(), AlertFilter::default(), None, 10).await.unwrap();
    let mut told: Vec<_> = all
        .iter()
        .map(|alert| {
            (alert.rule_name.as_str(), alert.rule_version, alert.value.clone(), alert.cleared_why.clone())
        })
        .collect();
    told.sort_by_key(|(name, version, ..)| (*name, *version));
    let (v31, v45) = (Value::Number(31.0), Value::Number(45.0));
    let changed = Some("rule_changed".to_owned());
    assert_eq!(
        told,
        [("changing", 1, v31.clone(), changed), ("changing", 2, v45, None), ("steady", 1, v31, None)]
    );
    tokio::task::spawn_blocking(move || drop(consumer)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_device_is_forgotten_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path());
    let rules = site.rules();
    let mut json = hot_json(0);
    json["name"] = "hot".into();
    json["condition"] = "value > 30 && last.temp_c > 30".into();
    let me = crate::testing::owner(&acme());
    rules.create(&me, &acme(), serde_json::from_value(json).unwrap()).await.unwrap();
    let consumer = tokio::task::block_in_place(|| site.consumer());
    let mut watcher = site.watch();
    for device in ["d1", "d2"] {
        site.send(device, 1, 31.0);
        site.send(device, 2, 32.0);
    }
    let mut told = vec![state(&mut watcher).await, state(&mut watcher).await];
    told.sort();
    assert_eq!(told, ["d1 open", "d2 open"]);
    assert_eq!(site.lasts().await, ["d1", "d2"]);
    site.delete("d1");
    assert_eq!(state(&mut watcher).await, "d1 cleared");
    assert_eq!(site.lasts().await, ["d2"]);
    let alerts = AlertService::new(site.db.clone(), site.clock.clone(), LiveBus::new());
    let of_d1 = AlertFilter { device: Some("d1".into()), ..AlertFilter::default() };
    let all = alerts.list(&acme(), of_d1, None, 10).await.unwrap();
    assert_eq!(all[0].cleared_why.as_deref(), Some("device_removed"));

    tokio::task::spawn_blocking(move || consumer.stop()).await.unwrap();
    site.delete("d2");
    let consumer = tokio::task::block_in_place(|| site.consumer());
    assert_eq!(state(&mut watcher).await, "d2 cleared", "it was deleted while nobody watched");
    assert!(site.lasts().await.is_empty());
    tokio::task::spawn_blocking(move || drop(consumer)).await.unwrap();
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Site {
    /// Appends this much, stores it at once, and lets the log delete what it may.
    fn ingest(&self, bytes: u64) {
        let record = NewRecord { body: &[0; 128 * 1024], ..NewRecord::tick() };
        for _ in 0..bytes / (128 * 1024) {
            let position = self.log.append(&record).expect("rules never fill the log");
            self.log.wait_durable(position).unwrap();
            self.log.release("store", position + 1).unwrap();
        }
        for _ in 0..2 {
            // The second record is written by a turn that began after the last release.
            let position = self.log.append(&NewRecord::tick()).unwrap();
            self.log.wait_durable(position).unwrap();
        }
    }

    fn gaps(&self) -> Vec<(u64, u64)> {
        let rows = self.db.read_blocking(|tx| {
            tx.query(&Scope::System("test"), "SELECT first, last FROM rule_gaps ORDER BY first", &[], |row| {
                Ok::<_, DbError>((row.get::<i64>(0)?.unsigned_abs(), row.get::<i64>(1)?.unsigned_abs()))
            })
        });
        rows.unwrap()
    }
}

#[test]
fn the_log_waits_for_rules_that_lag_by_less_than_half_and_moves_others_with_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path());
    site.log.reader("store", 1, Pin::Pins).unwrap();
    site.consumer().stop();
    // The store is done with it, the rules were not there.
    site.ingest(LOG_BYTES * 2 / 5);
    assert_eq!(site.log.first(), 1, "kept for the rules");
    let end = site.log.stats().next_seq;
    let consumer = site.consumer();
    let progress = consumer.progress();
    wait_until("the rules read all", || progress.now().position == end);
    consumer.stop();
    assert_eq!((progress.now().skipped, site.gaps()), (0, vec![]));
    site.ingest(0);
    assert!(site.log.first() > 1, "released with the commit");

    site.ingest(LOG_BYTES * 3 / 2);
    let first = site.log.first();
    assert!(first > end && site.log.stats().bytes > LOG_BYTES / 4, "moved, and no further than needed");
    site.consumer().stop();
    let gaps = site.gaps();
    assert_eq!((gaps.len(), gaps[0].0), (1, end), "{gaps:?}");
    // A turn of the log's writer may have deleted one more segment meanwhile.
    assert!((first - 1..site.log.first()).contains(&gaps[0].1), "{gaps:?} {first}");
}
