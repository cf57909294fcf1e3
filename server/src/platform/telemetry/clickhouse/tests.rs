//! What only the way to ClickHouse has: kills between each two steps, repetitions, outages, bounds. That both engines
//! answer alike is the store's own suite, which runs on either (`MUSTER_TEST_TELEMETRY=clickhouse`).

use super::super::query::{Aggregate, ReadingsQuery};
use super::super::tests::{
    Bench, DATABASE, EPOCH, NOON, acme, at, event, number, of, one, query_of, telemetry,
};
use super::super::{
    CrashPoint, DAY_US, ENTRIES_MAX, EventQuery, Faults, LogSpan, POINTS_MAX, Point, Policy, TelemetryError,
    TelemetryStore, clickhouse::Outbox, last_values, sqlite, totals,
};
use super::{ClickHouseError, Options};
use crate::platform::db::{DbError, Scope};
use muster_wire::Value;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

impl Bench {
    fn clickhouse() -> Self {
        Self::on_clickhouse(Faults::none())
    }

    /// What ClickHouse itself prints.
    fn remote_sql(&self, text: &str) -> String {
        self.server().sql(DATABASE, text).unwrap()
    }

    fn server(&self) -> &muster_services::ClickHouse {
        &self.remote.as_ref().unwrap().0
    }

    fn server_mut(&mut self) -> &mut muster_services::ClickHouse {
        &mut self.remote.as_mut().unwrap().0
    }

    /// Rows, different rows, and what the rollups count.
    fn stored(&self) -> [String; 4] {
        [
            "SELECT count() FROM readings",
            "SELECT uniqExact(tenant, device, metric, ts, queue_id, class, seq, idx) FROM readings",
            "SELECT sum(readings) FROM readings_1m",
            "SELECT sum(readings) FROM readings_1h",
        ]
        .map(|text| self.remote_sql(text))
    }

    fn options(&self, change: impl FnOnce(&mut Options)) -> super::super::Options {
        let mut clickhouse = Options::at(self.server().url(DATABASE).parse().unwrap());
        change(&mut clickhouse);
        super::super::Options {
            sync: sqlite::Sync::OffForTrials,
            clickhouse: Some(clickhouse),
            policy: Policy { default_days: 30_000, ..Policy::default() },
            ..super::super::Options::default()
        }
    }

    /// The process is killed and starts again, on the same file.
    fn restart(&mut self, change: impl FnOnce(&mut Options)) {
        let options = self.options(change);
        let file = self.dir.path().join("telemetry.db");
        self.store = TelemetryStore::open(&file, options).unwrap();
        let next = self.next;
        self.next = self.store.begin(LogSpan { epoch: EPOCH, first: 1, next }, NOON).unwrap().from;
        self.store.sync().unwrap();
        self.remote.as_mut().unwrap().1 = Mutex::new(self.store.sender().unwrap().unwrap());
    }
}

/// Stops at a point, once after it was armed.
fn once_at(point: CrashPoint) -> (Faults, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let trap = armed.clone();
    (Faults::when(move |at| at == point && trap.swap(false, Ordering::AcqRel)), armed)
}

#[test]
fn killed_between_each_two_steps_every_row_is_there_once() {
    let flushing = [
        CrashPoint::AfterApply,
        CrashPoint::AfterRows,
        CrashPoint::AfterLedger,
        CrashPoint::AfterCursor,
        CrashPoint::AfterFlush,
        CrashPoint::AfterSync,
    ];
    for point in flushing.into_iter().chain(CrashPoint::SENDING) {
        let (faults, armed) = once_at(point);
        let mut bench = Bench::on_clickhouse(faults);
        armed.store(true, Ordering::Release);
        let messages = [one(1), one(2), event(3), of("other", 1), one(4)];
        let batch = bench.batch(&messages);
        let end = batch.next;
        let step = |bench: &Bench| {
            bench.store.apply(bench.batch(&messages), true)?;
            bench.store.flush_all()?;
            bench.store.sync()?;
            while bench.sender().send_next()? {}
            Ok::<_, TelemetryError>(())
        };
        let stopped = step(&bench);
        assert!(matches!(stopped, Err(TelemetryError::Crashed(_))), "{point:?}: {stopped:?}");
        bench.next = end;
        bench.restart(|_| {});
        // What the cursor does not have yet comes from the log again.
        let from = bench.next as usize - 1;
        bench.write(&messages[from..]);
        bench.store.flush_all().unwrap();
        bench.send();
        assert_eq!(bench.stored(), ["4"; 4], "{point:?}");
        assert_eq!(bench.remote_sql("SELECT count(), uniqExact(id) FROM events"), "1\t1", "{point:?}");
        let totals = bench.store.read_blocking(|view| totals(view, &acme())).unwrap();
        assert_eq!((totals.stored, totals.readings, totals.events, totals.lost), (5, 4, 1, 0), "{point:?}");
    }
}

#[test]
fn a_block_that_may_be_in_clickhouse_is_not_seen_twice() {
    let (faults, armed) = once_at(CrashPoint::AfterInsert);
    let mut bench = Bench::on_clickhouse(faults);
    armed.store(true, Ordering::Release);
    let minute = 60_000_000;
    let begin = NOON.div_euclid(minute) * minute;
    bench.write(&[at(one(1), begin), at(one(2), begin + 1), event(3)]);
    bench.store.flush_all().unwrap();
    bench.store.sync().unwrap();
    assert!(matches!(bench.sender().send_next(), Err(TelemetryError::Crashed(_))));
    assert_eq!(bench.stored()[0], "2", "it is there, and nobody was told");
    let ask = |step| {
        let query = ReadingsQuery { step, from_us: begin, to_us: begin + minute, ..query_of("cam", "t") };
        bench.wait(bench.store.readings(&acme(), &query)).unwrap().points
    };
    let values = |points: Vec<Point>| points.into_iter().map(|point| point.value).collect::<Vec<_>>();
    for _ in 0..2 {
        assert_eq!(values(ask(None)), [number(1.0), number(2.0)]);
        assert_eq!(values(ask(Some((minute, Aggregate::Count)))), [number(2.0)]);
        let events =
            bench.wait(bench.store.events(&acme(), &EventQuery { limit: 9, ..EventQuery::default() }));
        assert_eq!(events.unwrap().len(), 1);
        bench.send();
    }
    assert_eq!(bench.stored(), ["2"; 4]);
}

#[test]
fn a_view_that_missed_a_block_gets_it_when_the_block_comes_again() {
    let (faults, armed) = once_at(CrashPoint::AfterInsert);
    let mut bench = Bench::on_clickhouse(faults);
    armed.store(true, Ordering::Release);
    // As if the server had died between the table and its view.
    bench.remote_sql("DETACH TABLE readings_to_1m");
    bench.write(&[one(1), one(2)]);
    bench.store.flush_all().unwrap();
    bench.store.sync().unwrap();
    assert!(matches!(bench.sender().send_next(), Err(TelemetryError::Crashed(_))));
    bench.remote_sql("ATTACH TABLE readings_to_1m");
    assert_eq!(bench.stored(), ["2", "2", "0", "2"]);
    bench.send();
    assert_eq!(bench.stored(), ["2"; 4]);
}

#[test]
fn only_what_a_power_cut_cannot_take_back_is_sent() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1)]);
    bench.store.flush_all().unwrap();
    assert!(bench.store.has_unsynced_blocks());
    assert!(!bench.sender().send_next().unwrap(), "it is committed, and not synced");
    bench.store.sync().unwrap();
    assert!(!bench.store.has_unsynced_blocks());
    assert!(bench.sender().send_next().unwrap());
    assert_eq!(bench.stored(), ["1"; 4]);
}

#[test]
fn while_clickhouse_is_away_everything_waits_and_then_arrives_once() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1)]);
    bench.store.flush_all().unwrap();
    bench.send();
    bench.server_mut().kill().unwrap();
    for seq in 2..=5 {
        bench.write(&[one(seq)]);
        bench.store.flush_all().unwrap();
        bench.store.sync().unwrap();
        let sent = bench.sender().send_next();
        let is_away = matches!(sent, Err(TelemetryError::ClickHouse(ClickHouseError::Unreachable { .. })));
        assert!(is_away, "{sent:?}");
    }
    assert_eq!(bench.store.outbox().unwrap().blocks, 4);
    let asked = bench.wait(bench.store.readings(&acme(), &query_of("cam", "t")));
    assert!(matches!(asked, Err(DbError::Unreachable(_))), "{asked:?}");
    assert_eq!(bench.store.read_blocking(|view| last_values(view, &acme(), "cam")).unwrap().len(), 1);
    bench.restart(|_| {});
    bench.server_mut().start_again().unwrap();
    bench.send();
    assert_eq!(bench.stored(), ["5"; 4]);
    assert_eq!(bench.values("cam", "t"), [1.0, 2.0, 3.0, 4.0, 5.0].map(number));
}

#[test]
fn a_server_that_comes_back_empty_gets_its_tables_again() {
    let mut bench = Bench::clickhouse();
    bench.send();
    bench.remote_sql("DROP DATABASE fleet");
    bench.write(&[one(1)]);
    bench.store.flush_all().unwrap();
    bench.store.sync().unwrap();
    let refused = bench.sender().send_next();
    let is_refused = matches!(refused, Err(TelemetryError::ClickHouse(ClickHouseError::Refused { .. })));
    assert!(is_refused, "{refused:?}");
    bench.send();
    assert_eq!(bench.stored(), ["1"; 4]);
}

#[test]
fn the_outbox_has_a_bound_and_the_log_keeps_the_rest() {
    let mut bench = Bench::clickhouse();
    bench.restart(|options| options.outbox_bytes_max = 1);
    bench.write(&[one(1)]);
    bench.store.flush_all().unwrap();
    bench.write(&[one(2)]);
    let behind = bench.store.flush_all().unwrap_err();
    assert!(matches!(behind, TelemetryError::Behind { max: 1, .. }) && behind.is_before_anything());
    // The memtable takes what it may, then nothing.
    bench.store.memtable().shards[0].records = ENTRIES_MAX + 1;
    let refused = bench.store.apply(bench.batch(&[one(3)]), false);
    assert!(matches!(refused, Err(TelemetryError::Behind { .. })), "{refused:?}");
    bench.store.memtable().shards[0].records = 1;
    bench.send();
    bench.write(&[one(3)]);
    bench.store.flush_all().unwrap();
    bench.send();
    assert_eq!(bench.stored(), ["3"; 4]);
}

#[test]
fn blocks_that_wait_are_not_left_behind_by_a_change_of_engine() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1)]);
    bench.store.flush_all().unwrap();
    let open = || {
        let options = super::super::Options { sync: sqlite::Sync::OffForTrials, ..Default::default() };
        TelemetryStore::open(&bench.dir.path().join("telemetry.db"), options).map(drop)
    };
    assert!(matches!(open(), Err(TelemetryError::BlocksWait { blocks: 1 })));
    bench.send();
    open().unwrap();
}

#[test]
fn steps_of_minutes_and_hours_are_read_from_rollups_and_the_edges_from_readings() {
    let mut bench = Bench::clickhouse();
    let (second, minute, hour) = (1_000_000, 60_000_000, 3_600_000_000_i64);
    let begin = NOON.div_euclid(hour) * hour;
    let messages: Vec<_> = (0..400).map(|seq| at(one(seq + 1), begin + seq as i64 * 30 * second)).collect();
    bench.write(&messages);
    let ask = |bench: &Bench, step| {
        // Both ends are within a minute.
        let (from_us, to_us) = (begin + 15 * second, begin + 3 * hour + 15 * second);
        let query = ReadingsQuery {
            from_us,
            to_us,
            step: Some((step, Aggregate::Sum)),
            limit: POINTS_MAX,
            ..query_of("cam", "t")
        };
        let sum = |points: Vec<Point>| -> (u64, f64) {
            let value = |point: &Point| match point.value {
                Some(Value::Number(number)) => number,
                _ => f64::NAN,
            };
            (points.iter().map(|point| point.count).sum(), points.iter().map(value).sum())
        };
        sum(bench.readings(&query).points)
    };
    let all = (360, f64::from((2..=361).sum::<u32>()));
    assert_eq!([second, minute, hour, 7 * minute].map(|step| ask(&bench, step)), [all; 4]);
    bench.remote_sql("TRUNCATE TABLE readings_1m");
    // In 00:00:15-00:01:00 one reading, in 03:00:00-03:00:15 one.
    assert_eq!([second, minute, hour].map(|step| ask(&bench, step).0), [360, 2, 360]);
    bench.remote_sql("TRUNCATE TABLE readings_1h");
    assert_eq!(ask(&bench, hour).0, 119 + 1);
}

#[test]
fn the_newest_of_a_step_is_the_newest_measured_wherever_it_stands() {
    let mut bench = Bench::clickhouse();
    let (minute, hour) = (60_000_000, 3_600_000_000_i64);
    let begin = NOON.div_euclid(hour) * hour;
    let ask = |bench: &Bench, step| {
        let (from_us, to_us) = (begin, begin + hour);
        let query =
            ReadingsQuery { from_us, to_us, step: Some((step, Aggregate::Last)), ..query_of("cam", "t") };
        bench.readings(&query).points.pop().unwrap().value
    };
    // Out of order, and in two blocks.
    bench.write(&[at(one(1), begin + 59 * minute + 2), at(one(2), begin + 59 * minute + 1)]);
    bench.store.flush_all().unwrap();
    bench.send();
    bench.write(&[at(one(3), begin + 30 * minute)]);
    bench.store.flush_all().unwrap();
    bench.send();
    let newest = [hour, 20 * minute, minute, 1_000_000].map(|step| ask(&bench, step));
    assert_eq!(newest, [(); 4].map(|()| number(1.0)));
    // An older one that only memory has.
    bench.write(&[at(one(4), begin + 59 * minute)]);
    let newest = [hour, 20 * minute, minute, 1_000_000].map(|step| ask(&bench, step));
    assert_eq!(newest, [(); 4].map(|()| number(1.0)));
}

#[test]
fn a_process_without_a_store_reads_what_clickhouse_has() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1), one(2), event(3)]);
    bench.store.flush_all().unwrap();
    bench.send();
    bench.write(&[one(4)]);
    let url = bench.server().url(DATABASE).parse().unwrap();
    let reader = super::Reader::open(&Options::at(url)).unwrap();
    let query = query_of("cam", "t");
    assert_eq!(bench.wait(reader.readings(&acme(), &query)).unwrap().points.len(), 2);
    let by_minute = ReadingsQuery { step: Some((60_000_000, Aggregate::Sum)), ..query };
    let points = bench.wait(reader.readings(&acme(), &by_minute)).unwrap().points;
    assert_eq!(points.iter().map(|point| point.value.clone()).collect::<Vec<_>>(), [number(3.0)]);
    let list = EventQuery { limit: 9, ..EventQuery::default() };
    assert_eq!(bench.wait(reader.events(&acme(), &list)).unwrap().len(), 1);
    let other = Scope::Tenant(muster_wire::TenantId::parse("other").unwrap());
    assert!(bench.wait(reader.events(&other, &list)).unwrap().is_empty());
    assert!(bench.wait(reader.readings(&other, &by_minute)).unwrap().points.is_empty());
}

#[test]
fn values_of_every_kind_come_back_as_they_were() {
    let mut bench = Bench::clickhouse();
    let text = "it's \\ a \"text\"\n\t\u{1f980}".to_owned();
    let values = [
        Value::Number(-0.1),
        Value::Number(f64::MAX),
        Value::Bool(true),
        Value::Bool(false),
        Value::Text(text.clone()),
        Value::Text(String::new()),
    ];
    let named: Vec<_> = values.iter().map(|value| ("t", value.clone())).collect();
    bench.write(&[telemetry(1, &named)]);
    let expect: Vec<_> = values.into_iter().map(Some).collect();
    assert_eq!(bench.values("cam", "t"), expect);
}

#[test]
fn rows_carry_how_long_they_are_kept_and_are_told_when_that_changes() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1), event(2)]);
    bench.store.flush_all().unwrap();
    bench.send();
    bench.now += DAY_US;
    let days = |bench: &Bench| {
        ["readings", "readings_1m", "readings_1h", "events"]
            .map(|table| bench.remote_sql(&format!("SELECT groupUniqArray(retention_days) FROM {table}")))
    };
    assert_eq!(days(&bench), ["[30000]"; 4]);
    assert_eq!(bench.sender().retain().unwrap(), 0);
    let acme = |days| Policy { default_days: 7, tenant_days: [("acme".to_owned(), days)].into() };
    bench.store.retain(&acme(20_000), NOON).unwrap();
    assert_eq!(bench.sender().retain().unwrap(), 1);
    let until = |what: [&str; 4]| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while days(&bench) != what && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(days(&bench), what);
    };
    until(["[20000]"; 4]);
    assert_eq!(bench.sender().retain().unwrap(), 0, "once");
    // NOON is years ago by ClickHouse's clock: a hundred days later everything is past its time.
    bench.store.retain(&acme(100), NOON).unwrap();
    assert_eq!(bench.sender().retain().unwrap(), 1);
    // The mutation itself leaves out what is past its time.
    until(["[]"; 4]);
}

#[test]
fn one_flush_packs_more_events_than_a_block_holds() {
    let mut bench = Bench::clickhouse();
    for first in (1..=45_000).step_by(5_000) {
        bench.write(&(first..first + 5_000).map(event).collect::<Vec<_>>());
    }
    assert!(bench.store.flush_next().unwrap());
    let outbox = bench.store.outbox().unwrap();
    assert_eq!((outbox.blocks, outbox.rows), (3, 45_000));
    bench.send();
    assert_eq!(bench.remote_sql("SELECT count() FROM events"), "45000");
}

#[test]
fn a_block_is_of_one_month() {
    let mut bench = Bench::clickhouse();
    for seq in 1..=3 {
        bench.write(&[one(seq), event(100 + seq)]);
        bench.now += 31 * DAY_US;
    }
    bench.store.flush_all().unwrap();
    assert_eq!(bench.store.outbox().unwrap(), Outbox { blocks: 6, rows: 6, ..bench.store.outbox().unwrap() });
    bench.send();
    let partitions =
        "SELECT uniqExact(partition) FROM system.parts WHERE active AND database = 'fleet' AND table = ";
    assert_eq!(bench.remote_sql(&format!("{partitions}'readings'")), "3");
    assert_eq!(bench.remote_sql(&format!("{partitions}'events'")), "3");
}

#[test]
fn an_erasure_waits_for_clickhouse_and_goes_on_where_it_died() {
    let mut bench = Bench::clickhouse();
    bench.write(&[one(1), one(2), event(3), of("other", 1)]);
    bench.server_mut().kill().unwrap();
    let place = bench.place();
    let batch = bench.store.flush_to(place).unwrap().unwrap();
    let is_away = |asked: Result<u64, TelemetryError>| {
        assert!(
            matches!(asked, Err(TelemetryError::ClickHouse(ClickHouseError::Unreachable { .. }))),
            "{asked:?}"
        );
    };
    is_away(bench.store.unsent(batch));
    is_away(bench.store.erase_remote(&acme(), Some("cam")).map(|deleted| deleted.left));
    bench.server_mut().start_again().unwrap();
    assert_eq!(bench.store.unsent(batch).unwrap(), 2);
    // Its connection was the killed server's.
    bench.store.sync().unwrap();
    while bench.sender().send_next().is_err() {}
    bench.send();
    assert_eq!(bench.store.unsent(batch).unwrap(), 0);
    // It was told, and dies before it is done.
    bench.remote_sql("SYSTEM STOP MERGES");
    let begun = bench.store.erase_remote(&acme(), Some("cam")).unwrap();
    assert_eq!((begun.rows, begun.left), (3, 5));
    let mutations = "SELECT count() FROM system.mutations WHERE database = 'fleet'";
    assert_eq!(bench.remote_sql(mutations), "4");
    let again = bench.store.erase_remote(&acme(), Some("cam")).unwrap();
    assert_eq!((again.rows, again.left, bench.remote_sql(mutations).as_str()), (0, 5, "4"));
    bench.server_mut().kill().unwrap();
    bench.server_mut().start_again().unwrap();
    // What it was told just before may be lost with it: it is told again, and the rows count twice.
    bench.erase_remote(&acme(), Some("cam"));
    assert_eq!(bench.stored(), ["1"; 4]);
}

#[test]
fn a_block_that_comes_again_after_the_erasure_brings_nothing_back() {
    let (faults, armed) = once_at(CrashPoint::AfterInsert);
    let mut bench = Bench::on_clickhouse(faults);
    armed.store(true, Ordering::Release);
    bench.write(&[one(1), of("other", 1)]);
    bench.store.flush_all().unwrap();
    bench.store.sync().unwrap();
    assert!(matches!(bench.sender().send_next(), Err(TelemetryError::Crashed(_))));
    // It is there, and comes once more before it counts as sent.
    let batch = bench.store.flush_to(bench.place()).unwrap().unwrap();
    assert_eq!(bench.store.unsent(batch).unwrap(), 1);
    bench.send();
    bench.erase_remote(&acme(), Some("cam"));
    bench.send();
    assert_eq!(bench.stored(), ["1"; 4]);
}

#[test]
fn a_newer_schema_and_a_missing_password_are_refused() {
    let bench = Bench::clickhouse();
    bench.send();
    bench.remote_sql("INSERT INTO muster_schema (version) VALUES (9)");
    let newer = bench.store.sender().unwrap().unwrap().send_next().unwrap_err();
    assert!(newer.to_string().contains("has version 9, this build knows 1"), "{newer}");
    let options = bench.options(|options| options.password_file = Some("/nowhere/secret".into()));
    let missing = TelemetryStore::open(&bench.dir.path().join("other.db"), options).map(drop).unwrap_err();
    assert!(missing.to_string().contains("telemetry.password_file /nowhere/secret"), "{missing}");
}
