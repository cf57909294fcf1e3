//! Readings by step, last values, events.

use super::*;

#[test]
fn steps_aggregate_over_days() {
    let mut bench = Bench::new();
    let minute = 60_000_000;
    let base = NOON.div_euclid(minute) * minute;
    bench.write(&[at(one(1), base), at(one(2), base + 1), at(one(3), base + minute)]);
    bench.now += DAY_US;
    bench.write(&[
        at(one(10), base + minute + 5),
        at(telemetry(11, &[("t", Value::Text("x".into()))]), base + minute + 6),
    ]);
    let check = |aggregate, expect: [Option<Value>; 2]| {
        let query = ReadingsQuery {
            device: "cam".into(),
            metric: "t".into(),
            from_us: base,
            to_us: base + 2 * minute,
            step: Some((minute, aggregate)),
            limit: 10,
        };
        let points = bench.read(move |tx, scope| readings(tx, scope, &query)).points;
        let counts: Vec<_> =
            points.iter().map(|point| (point.ts_us, point.count, point.value.clone())).collect();
        let [first, second] = expect;
        assert_eq!(counts, [(base, 2, first), (base + minute, 3, second)], "{aggregate:?}");
    };
    check(Aggregate::Avg, [number(1.5), number(6.5)]);
    check(Aggregate::Min, [number(1.0), number(3.0)]);
    check(Aggregate::Max, [number(2.0), number(10.0)]);
    check(Aggregate::Sum, [number(3.0), number(13.0)]);
    check(Aggregate::Count, [number(2.0), number(3.0)]);
    check(Aggregate::Last, [number(2.0), Some(Value::Text("x".into()))]);
}

#[test]
fn the_last_value_is_the_newest_and_survives_a_clock_set_back() {
    let mut bench = Bench::new();
    let last = |bench: &Bench| bench.read(|tx, scope| last_values(tx, scope, "cam"))[0].value.clone();
    bench.write(&[at(one(5), NOON), at(one(1), NOON - 1_000)]);
    assert_eq!(last(&bench), Value::Number(5.0), "the backlog comes after the live values");
    bench.write(&[at(one(2), NOON - 500)]);
    assert_eq!(last(&bench), Value::Number(5.0));
    bench.now += 400_000_000;
    bench.write(&[at(one(6), 7)]);
    assert_eq!(last(&bench), Value::Number(6.0), "a clock set back wins once the old value is stale");
}

#[test]
fn events_are_listed_newest_first_by_kind_and_label() {
    let mut bench = Bench::new();
    let event = |seq, label: &str, kind| {
        let boxes =
            vec![BoundingBox { label: "p".into(), score: 0.5, x: 0.0, y: 0.0, width: 1.0, height: 1.0 }];
        let event = Event {
            pipeline: "door".into(),
            model: "m".into(),
            model_version: "1".into(),
            kind,
            label: label.into(),
            score: 0.5,
            subject: None,
            latency_us: 3,
            boxes,
        };
        Message { class: UpClass::Event, body: event.encode(), ..one(seq) }
    };
    let (anomaly, detection) = (EventKind::Anomaly, EventKind::Detection);
    bench.write(&[event(1, "normal", anomaly), event(2, "person", detection), event(2, "person", detection)]);
    bench.now += 1_000_000;
    bench.write(&[event(3, "anomaly", anomaly)]);
    let list = |query: EventQuery| {
        bench.read(move |tx, scope| events(tx, scope, &EventQuery { limit: 10, ..query }))
    };
    let labels = |rows: &[EventRow]| rows.iter().map(|row| row.label.clone()).collect::<Vec<_>>();
    let all = list(EventQuery::default());
    assert_eq!(labels(&all), ["anomaly", "person", "normal"]);
    assert_eq!(all[1].boxes.len(), 1);
    assert_eq!(labels(&list(EventQuery { before: Some(all[1].id), ..EventQuery::default() })), ["normal"]);
    assert_eq!(
        labels(&list(EventQuery { kind: Some("detection".into()), ..EventQuery::default() })),
        ["person"]
    );
    assert_eq!(labels(&list(EventQuery { from_us: Some(bench.now), ..EventQuery::default() })), ["anomaly"]);
    assert_eq!(labels(&list(EventQuery { device: Some("other".into()), ..EventQuery::default() })), [""; 0]);
    assert_eq!((bench.totals().events, bench.totals().duplicates), (3, 1));
}
