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
        let points = bench.readings(&query).points;
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

/// More day tables than one select joins; `day` counts from the first.
fn a_reading_a_day(days: u64) -> Bench {
    let mut bench = Bench::new();
    for day in 0..days {
        let now = bench.now;
        bench.write(&[at(one(day + 1), now)]);
        bench.now += DAY_US;
    }
    // The backlog of an agent that was offline: measured first, received last.
    bench.write(&[at(one(1_000), NOON - DAY_US)]);
    bench
}

#[test]
fn a_range_over_many_days_begins_with_its_oldest_reading() {
    let bench = a_reading_a_day(450);
    let ask = |from_us, limit, step| {
        let (device, metric) = ("cam".to_owned(), "t".to_owned());
        let query = ReadingsQuery { device, metric, from_us, to_us: i64::MAX, step, limit };
        let found = bench.readings(&query);
        let day = |point: &Point| (point.ts_us - NOON).div_euclid(DAY_US);
        (found.points.iter().map(day).collect::<Vec<_>>(), found.truncated)
    };
    let all: Vec<i64> = (-1..450).collect();
    for step in [None, Some((DAY_US, Aggregate::Avg)), Some((DAY_US, Aggregate::Last))] {
        // Steps begin at midnight.
        let shift = |days: &[i64]| days.iter().map(|day| day - i64::from(step.is_some())).collect::<Vec<_>>();
        assert_eq!(ask(i64::MIN, 1_000, step), (shift(&all), false), "{step:?}");
        assert_eq!(ask(i64::MIN, 100, step), (shift(&all[..100]), true), "{step:?}");
        let from = NOON + 98 * DAY_US;
        assert_eq!(
            ask(from, 1_000, step),
            (shift(&all[99..]), false),
            "{step:?}: goes on from its last point"
        );
    }
}

#[test]
fn steps_that_several_visits_share_are_merged() {
    let bench = a_reading_a_day(450);
    let check = |aggregate, expect: f64| {
        let (device, metric) = ("cam".to_owned(), "t".to_owned());
        let step = Some((10_000 * DAY_US, aggregate));
        let query = ReadingsQuery { device, metric, from_us: i64::MIN, to_us: i64::MAX, step, limit: 10 };
        let points = bench.readings(&query).points;
        let newest = points.last().unwrap();
        assert_eq!((newest.count, newest.value.clone()), (450, number(expect)), "{aggregate:?}");
    };
    check(Aggregate::Avg, 225.5);
    check(Aggregate::Min, 1.0);
    check(Aggregate::Max, 450.0);
    check(Aggregate::Sum, 450.0 * 451.0 / 2.0);
    check(Aggregate::Count, 450.0);
    check(Aggregate::Last, 450.0);
}

#[test]
fn steps_from_the_beginning_of_time_do_not_overflow() {
    let mut bench = Bench::new();
    bench.write(&[at(one(1), NOON), at(one(2), i64::MAX), at(one(3), i64::MIN)]);
    let (device, metric) = ("cam".to_owned(), "t".to_owned());
    let step = Some((10_000_000, Aggregate::Count));
    let query = ReadingsQuery { device, metric, from_us: i64::MIN, to_us: i64::MAX, step, limit: 10 };
    let points = bench.readings(&query).points;
    assert_eq!(points.len(), 1);
    assert_eq!(points[0].ts_us, NOON.div_euclid(10_000_000) * 10_000_000);
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
        let query = EventQuery { limit: 10, ..query };
        bench.events(&query)
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
