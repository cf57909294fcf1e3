//! Reading out and erasing a device and a tenant, on either engine.

use super::*;
use serde_json::{Value as Json, json};

/// Calls until ClickHouse has deleted all.
const CALLS_MAX: usize = 20;

impl Bench {
    pub(in super::super) fn place(&self) -> LogPlace {
        LogPlace { epoch: EPOCH, position: self.next }
    }

    /// All that was written is where it is read out and erased.
    pub(in super::super) fn settle(&self) {
        let batch = self.store.flush_to(self.place()).unwrap().unwrap();
        self.send();
        assert_eq!(self.store.unsent(batch).unwrap(), 0);
    }

    /// Everything of a part, in pieces of `limit` rows, in one order on both engines.
    fn lines(&self, device: &str, part: Part, limit: usize) -> Vec<Json> {
        let (mut lines, mut after) = (Vec::new(), None);
        loop {
            let piece = self.store.read_out(&acme(), device, part, after.as_deref(), limit).unwrap();
            assert!(piece.rows.len() <= limit, "{} of {limit}", piece.rows.len());
            lines.extend(piece.rows);
            after = piece.next;
            if after.is_none() {
                break;
            }
        }
        lines.sort_by_key(|line| (line["metric"].to_string(), line["ts_us"].as_i64(), line["seq"].as_u64()));
        lines
    }

    pub(in super::super) fn erase_remote(&self, scope: &Scope, device: Option<&str>) -> u64 {
        let mut rows = 0;
        for _ in 0..CALLS_MAX {
            let deleted = self.store.erase_remote(scope, device).unwrap();
            rows += deleted.rows;
            if deleted.left == 0 {
                return rows;
            }
        }
        panic!("rows are left");
    }

    fn erase(&self, scope: &Scope, device: &str) -> u64 {
        let remote = self.erase_remote(scope, Some(device));
        match self.store.erase_devices(scope, &[device.to_owned()], self.place()).unwrap() {
            Erased::Done(rows) => remote + rows,
            Erased::NotYet => panic!("the log is not read"),
        }
    }

    /// Rows of ClickHouse's tables; none where there is no ClickHouse.
    fn remote_rows(&self, condition: &str) -> Vec<String> {
        let Some((server, _)) = &self.remote else { return Vec::new() };
        let tables = ["readings", "readings_1m", "readings_1h", "events"];
        let count = |table| format!("SELECT count() FROM {table} WHERE {condition}");
        tables.map(|table| server.sql(DATABASE, &count(table)).unwrap()).into()
    }
}

fn other() -> Scope {
    Scope::Tenant(TenantId::parse("other").unwrap())
}

fn named(name: &str, at_s: u32) -> Message {
    senml(&format!(r#"[{{"n":"{name}","u":"Cel","t":{at_s},"v":1.5}}]"#))
}

/// Readings of every kind, of two metrics, one of them named with a unit, and events.
fn mixed() -> Vec<Message> {
    let mut all: Vec<Message> = (1..=7).map(one).collect();
    all.push(telemetry(
        8,
        &[("t", Value::Bool(true)), ("a", Value::Text("x".into())), ("a", Value::Bool(false))],
    ));
    all.extend((20..25).map(event));
    all
}

#[test]
fn a_device_is_read_out_whole_in_pieces_of_any_size() {
    let mut bench = Bench::new();
    bench.write(&mixed());
    bench.write(&(30..33).map(|seq| of("other", seq)).collect::<Vec<_>>());
    bench.write(&[named("warm", 1_700_000_000), named("warm", 1_700_000_001), named("warm", 1_700_000_001)]);
    bench.settle();
    let readings = bench.lines("cam", Part::Readings, 1_000);
    assert_eq!(readings.len(), 10);
    let of_record = |seq: u64| readings.iter().filter(move |line| line["seq"] == seq);
    assert_eq!(
        *of_record(3).next().unwrap(),
        json!({ "metric": "t", "unit": null, "ts_us": NOON, "received_at_us": NOON, "value": 3.0,
                "queue_id": QueueId(0xfeed), "class": 1, "seq": 3, "index": 0 })
    );
    let values: Vec<&Json> = of_record(8).map(|line| &line["value"]).collect();
    assert_eq!(values, [&json!("x"), &json!(false), &json!(true)]);
    let events = bench.lines("cam", Part::Events, 1_000);
    assert_eq!(events.len(), 5);
    assert_eq!(
        events[0],
        json!({ "received_at_us": NOON, "measured_at_us": NOON, "kind": "anomaly", "pipeline": "door",
                "model": "m", "model_version": "1", "label": "anomaly", "score": 0.5, "subject": null,
                "latency_us": 3, "boxes": null })
    );
    for limit in [1, 2, 3, 5, 10] {
        assert_eq!(bench.lines("cam", Part::Readings, limit), readings, "{limit}");
        assert_eq!(bench.lines("cam", Part::Events, limit).len(), 5, "{limit}");
    }
    let warm = bench.lines("esp", Part::Readings, 1);
    let shown: Vec<_> = warm.iter().map(|line| (&line["unit"], &line["ts_us"], &line["queue_id"])).collect();
    let unit = json!("Cel");
    let (first, second, none) =
        (json!(1_700_000_000_000_000_i64), json!(1_700_000_001_000_000_i64), json!(QueueId(0)));
    assert_eq!(shown, [(&unit, &first, &none), (&unit, &second, &none)]);
    assert!(bench.lines("none", Part::Readings, 10).is_empty());
    let ledger = &bench.lines("cam", Part::Ledger, 10)[0];
    let stored = ledger["queues"].as_array().unwrap().iter().map(|queue| queue["stored"].as_u64().unwrap());
    assert_eq!(stored.sum::<u64>(), 13, "{ledger}");
}

#[test]
fn a_device_is_erased_everywhere_and_nobody_else_is() {
    let mut bench = Bench::new();
    bench.write(&mixed());
    bench.write(&[of("other", 1), named("warm", 1_700_000_000)]);
    bench.write_of("other", &mixed());
    bench.settle();
    let rows = bench.erase(&acme(), "cam");
    // 10 readings, 5 events, and what names the device: two queues, two metrics, itself.
    assert!(rows >= 10 + 5 + 5, "{rows}");
    assert!(bench.values("cam", "t").is_empty());
    assert!(bench.lines("cam", Part::Readings, 10).is_empty());
    assert_eq!(bench.values("other", "t"), [number(1.0)]);
    assert_eq!(bench.wait(bench.store.readings(&other(), &query_of("cam", "t"))).unwrap().points.len(), 8);
    for count in bench.remote_rows("tenant = 'acme' AND device = 'cam'") {
        assert_eq!(count, "0");
    }
    // Again changes nothing, and what comes later under the name is another device's.
    assert_eq!(bench.erase(&acme(), "cam"), 0);
    bench.write(&[one(1)]);
    assert_eq!(bench.values("cam", "t"), [number(1.0)]);
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.lost, totals.duplicates), (3, 0, 0));
}

#[test]
fn what_is_read_again_after_a_crash_brings_nothing_back() {
    let mut bench = Bench::new();
    let all = [mixed(), vec![of("other", 1)]].concat();
    bench.write(&all);
    bench.settle();
    bench.erase(&acme(), "cam");
    // The memtable is gone, and the log is read from its begin on.
    let end = bench.next;
    bench.next = bench.store.begin(LogSpan { epoch: EPOCH, first: 1, next: end }, NOON).unwrap().from;
    bench.write(&all[bench.next as usize - 1..]);
    assert!(bench.values("cam", "t").is_empty());
    assert_eq!(bench.count("device"), 1);
}

#[test]
fn readings_that_only_the_memtable_has_are_not_sent_any_more() {
    let mut bench = Bench::new();
    bench.write(&[one(1), event(2), of("other", 1)]);
    assert!(matches!(
        bench.store.erase_devices(&acme(), &["cam".into()], bench.place()),
        Ok(Erased::Done(_))
    ));
    let far = LogPlace { position: bench.next + 1, ..bench.place() };
    assert_eq!(bench.store.erase_devices(&acme(), &["other".into()], far).unwrap(), Erased::NotYet);
    assert_eq!(bench.store.flush_to(far).unwrap(), None);
    assert_eq!(bench.values("other", "t"), [number(1.0)]);
    assert!(bench.remote_rows("device = 'cam'").iter().all(|count| count == "0"));
}

#[test]
fn a_tenant_goes_with_its_devices_and_another_stays() {
    let mut bench = Bench::new();
    bench.write(&[mixed(), vec![of("other", 1)]].concat());
    bench.write_of("other", &mixed());
    bench.settle();
    bench.erase_remote(&acme(), None);
    assert!(bench.remote_rows("tenant = 'acme'").iter().all(|count| count == "0"));
    let names = bench.store.stored_devices(&acme(), "", 10).unwrap();
    assert_eq!(names, ["cam", "other"]);
    assert_eq!(bench.store.erase_tenant(&acme(), bench.place()).unwrap(), Erased::NotYet, "it has devices");
    assert!(matches!(bench.store.erase_devices(&acme(), &names, bench.place()), Ok(Erased::Done(_))));
    assert!(matches!(bench.store.erase_tenant(&acme(), bench.place()), Ok(Erased::Done(_))));
    assert_eq!((bench.count("tenant"), bench.count("device")), (1, 1));
    assert!(bench.count("remote_retention") <= 1);
    assert_eq!(bench.wait(bench.store.readings(&other(), &query_of("cam", "t"))).unwrap().points.len(), 8);
    // It was never here.
    assert_eq!(bench.store.erase_tenant(&acme(), bench.place()).unwrap(), Erased::Done(0));
}
