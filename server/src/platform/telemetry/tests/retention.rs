//! What a retention pass deletes, and what it leaves.

use super::*;

#[test]
fn retention_keeps_each_tenants_days() {
    let mut bench = Bench::embedded();
    bench.write(&[one(1)]);
    bench.now += 3 * DAY_US;
    bench.write(&[one(2)]);
    let policy = |default_days, acme: Option<u32>| Policy {
        default_days,
        tenant_days: acme.into_iter().map(|days| ("acme".to_owned(), days)).collect(),
    };
    bench.store.flush_all().unwrap();
    let retain = |policy| bench.store.retain(&policy, bench.now).unwrap();
    assert_eq!(retain(policy(3, None)).readings, 0, "three days are kept whole");
    let retained = retain(policy(30, Some(2)));
    assert_eq!((retained.readings, retained.days), (1, 1));
    assert_eq!(bench.values("cam", "t"), [number(2.0)]);
    assert_eq!(bench.count("reading_day"), 1);
    let free: i64 = bench.read(|tx, _| tx.query_one("PRAGMA freelist_count", &[], |row| row.get(0)));
    assert_eq!(free, 0, "pages go back to the file system");
    assert_eq!(bench.write(&[one(1), one(3)]).duplicates, 1, "the ledger outlives the readings");
}

#[test]
fn readings_that_come_after_their_day_was_emptied_are_found() {
    let mut bench = Bench::embedded();
    bench.write(&[one(1)]);
    let keep = |days| Policy { default_days: days, ..Policy::default() };
    bench.store.flush_all().unwrap();
    assert_eq!(bench.store.retain(&keep(1), NOON + 2 * DAY_US).unwrap().readings, 1);
    bench.write(&[one(2)]);
    assert_eq!(bench.values("cam", "t"), [number(2.0)]);
    assert_eq!(bench.store.retain(&keep(1), NOON + 2 * DAY_US).unwrap().readings, 1);
}

#[test]
fn a_metric_without_readings_makes_room_for_another() {
    let mut bench = Bench::new();
    let keep = Policy { default_days: 2, ..Policy::default() };
    let names: Vec<String> = (0..1000).map(|at| format!("m{at}")).collect();
    let all: Vec<(&str, Value)> = names.iter().map(|name| (name.as_str(), Value::Bool(true))).collect();
    let fresh = |seq| telemetry(seq, &[("fresh", Value::Bool(true))]);
    bench.write(&[telemetry(1, &all), fresh(2)]);
    assert_eq!(bench.totals().readings_refused, 1);
    bench.now += 4 * DAY_US;
    bench.write(&[telemetry(3, &all[..1])]);
    assert_eq!(bench.store.retain(&keep, bench.now).unwrap().series, 0, "some days beyond the readings");
    bench.now += DAY_US;
    assert_eq!(bench.store.retain(&keep, bench.now).unwrap().series, 999);
    let metrics = |bench: &Bench| {
        let values = bench.read(|tx, scope| last_values(tx, scope, "cam"));
        values.into_iter().map(|value| value.metric).collect::<Vec<_>>()
    };
    assert_eq!(metrics(&bench), ["m0"], "what came since stays");
    bench.write(&[fresh(4)]);
    assert_eq!(
        (bench.totals().readings_refused, metrics(&bench)),
        (1, vec!["fresh".to_owned(), "m0".into()])
    );
    assert_eq!(bench.values("cam", "m0").len(), 1);
    let seen = |bench: &Bench| bench.read(|tx, scope| last_seen(tx, scope, "", 9))[0].last_seen_us;
    let now = bench.now;
    assert_eq!(seen(&bench), now);
    bench.now += 30 * DAY_US;
    assert_eq!(bench.store.retain(&keep, bench.now).unwrap().series, 2);
    assert!(metrics(&bench).is_empty());
    assert_eq!(seen(&bench), now, "the device is still known to have been heard of");
}
