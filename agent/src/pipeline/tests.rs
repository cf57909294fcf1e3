use super::*;
use crate::clock::AgentClock;
use crate::queue::{Body, Bounds};
use crate::supervisor::stop_pair;

struct Bench {
    _dir: tempfile::TempDir,
    queue: Queue,
    metrics: Metrics,
    pipeline: Pipeline,
}

fn bench(more: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds::from_config(&config::Queue::default());
    let queue = Queue::open(RealFs, dir.path(), bounds, Arc::new(AgentClock::default())).unwrap();
    let config = toml::from_str(&format!("name = \"p\"\nsource = \"s\"\n{more}")).unwrap();
    let metrics = Metrics::new();
    let (_sender, stop) = stop_pair();
    let pipeline = Pipeline::new(config, None, queue.clone(), metrics.clone(), Arc::default(), stop);
    Bench { _dir: dir, queue, metrics, pipeline }
}

fn row(values: &[(&str, Value)]) -> Sample {
    let values = values.iter().map(|(name, value)| (Arc::from(*name), value.clone())).collect();
    Sample { measured_at_us: 7, content: Content::Row { values, number: 1 } }
}

fn stored(bench: &Bench) -> Vec<Telemetry> {
    let next = bench.queue.next_seq(QueueClass::Telemetry);
    if next > 1 {
        bench.queue.wait_accepted(QueueClass::Telemetry, next - 1).unwrap();
    }
    let mut reader = bench.queue.reader(QueueClass::Telemetry, 1).unwrap();
    let mut bodies = Vec::new();
    while bodies.len() as u64 + 1 < next {
        reader
            .next_batch(1 << 20, |record| {
                let body = Body::read(record.payload).unwrap();
                assert_eq!(body.measured_at_us, 7);
                bodies.push(Telemetry::decode(body.bytes).unwrap());
            })
            .unwrap();
    }
    bodies
}

#[test]
fn a_row_becomes_one_record_and_bad_values_are_counted_and_left_out() {
    let mut bench = bench("prefix = \"line1.\"");
    let number = Value::Number;
    let values = [
        ("a", number(1.5)),
        ("nan", number(f64::NAN)),
        ("inf", number(f64::INFINITY)),
        ("text", Value::Text("x".repeat(300))),
        ("b c", number(1.0)),
        ("ok", Value::Bool(true)),
    ];
    bench.pipeline.take(row(&values)).unwrap();
    let stored = stored(&bench);
    assert_eq!(stored.len(), 1);
    let names: Vec<_> = stored[0].readings.iter().map(|reading| reading.metric.as_str()).collect();
    assert_eq!(names, ["line1.a", "line1.ok"]);
    assert_eq!(bench.metrics.refusals(Refusal::NotFinite), 2);
    assert_eq!(bench.metrics.refusals(Refusal::TextTooLong), 1);
    assert_eq!(bench.metrics.refusals(Refusal::BadName), 1);
}

#[test]
fn columns_are_selected_and_serials_never_repeat() {
    let mut bench = bench("telemetry = [\"a\"]\nserial = \"serial\"");
    for _ in 0..3 {
        bench.pipeline.take(row(&[("a", Value::Number(1.0)), ("b", Value::Number(2.0))])).unwrap();
    }
    let stored = stored(&bench);
    let serials: std::collections::HashSet<_> = stored
        .iter()
        .map(|telemetry| {
            assert_eq!(telemetry.readings.len(), 2);
            format!("{:?}", telemetry.readings[1].value)
        })
        .collect();
    assert_eq!(serials.len(), 3);
}

#[test]
fn a_wide_row_is_split_into_records_that_fit() {
    let mut bench = bench("");
    let names: Vec<_> = (0..900).map(|n| format!("m{n}")).collect();
    let text = Value::Text("x".repeat(200));
    let values: Vec<_> = names.iter().map(|name| (name.as_str(), text.clone())).collect();
    bench.pipeline.take(row(&values)).unwrap();
    let stored = stored(&bench);
    assert!(stored.len() > 1);
    assert_eq!(stored.iter().map(|telemetry| telemetry.readings.len()).sum::<usize>(), 900);
}

#[test]
fn a_row_without_readings_makes_no_record() {
    let mut bench = bench("telemetry = \"none\"");
    bench.pipeline.take(row(&[("a", Value::Number(1.0))])).unwrap();
    assert_eq!(bench.queue.next_seq(QueueClass::Telemetry), 1);
}

#[test]
fn more_readings_than_a_record_may_hold_make_two() {
    let mut bench = bench("serial = \"serial\"");
    let names: Vec<_> = (0..READINGS_MAX).map(|n| format!("m{n}")).collect();
    let values: Vec<_> = names.iter().map(|name| (name.as_str(), Value::Bool(true))).collect();
    bench.pipeline.take(row(&values[1..])).unwrap();
    bench.pipeline.take(row(&values)).unwrap();
    let sizes: Vec<_> = stored(&bench).iter().map(|telemetry| telemetry.readings.len()).collect();
    assert_eq!(sizes, [READINGS_MAX, READINGS_MAX, 1], "the serial is one reading more");
}

#[test]
fn the_thousand_and_first_metric_is_counted_and_the_others_go_on() {
    let mut bench = bench("");
    let names: Vec<_> = (0..1_001).map(|n| format!("m{n}")).collect();
    let values: Vec<_> = names.iter().map(|name| (name.as_str(), Value::Bool(true))).collect();
    bench.pipeline.take(row(&values)).unwrap();
    assert_eq!(stored(&bench)[0].readings.len(), 1_000);
    assert_eq!(bench.metrics.refusals(Refusal::TooManyMetrics), 1);
}

#[test]
fn an_event_that_the_wire_would_refuse_is_counted_and_not_kept() {
    let bench = bench("");
    let event = |label: usize, boxes: usize| {
        let label = "l".repeat(label);
        let found = muster_wire::BoundingBox {
            label: "b".into(),
            score: 0.5,
            x: 0.1,
            y: 0.1,
            width: 0.1,
            height: 0.1,
        };
        Event {
            pipeline: "p".into(),
            model: "m".into(),
            model_version: "1".into(),
            kind: muster_wire::EventKind::Detection,
            label,
            score: 0.5,
            subject: None,
            latency_us: 1,
            boxes: vec![found; boxes],
        }
    };
    bench.pipeline.append_event(7, &event(128, 100)).unwrap();
    assert_eq!((bench.queue.next_seq(QueueClass::Event), bench.metrics.events.get()), (2, 1));
    for over in [event(129, 100), event(128, 101)] {
        bench.pipeline.append_event(7, &over).unwrap();
    }
    assert_eq!((bench.queue.next_seq(QueueClass::Event), bench.metrics.events.get()), (2, 1));
    assert_eq!(bench.metrics.refusals(Refusal::TooLarge), 2);
}
