//! A real model behind a budget, on a clock of the test's own: inferences are shed, telemetry never, and windows have no
//! gap.

#![cfg(any(feature = "tract", feature = "rten"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use muster_agent::choice::Choices;
use muster_agent::clock::AgentClock;
use muster_agent::config;
use muster_agent::memory::LowMemory;
use muster_agent::metrics::{Metrics, Refusal, Shed};
use muster_agent::pipeline::{self, Feed, MeterReading, Pipeline};
use muster_agent::queue::{Body, Bounds, Queue, QueueClass};
use muster_agent::source::{Content, Sample};
use muster_agent::supervisor::stop_pair;
use muster_wire::{Telemetry, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const COLUMNS: [&str; 6] = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"];
/// The rows of the test come ten a second, as the model was trained.
const ROW_MS: u64 = 100;
const ROWS: u64 = 80;

struct Bench {
    _dir: tempfile::TempDir,
    queue: Queue,
    metrics: Metrics,
    pipeline: Pipeline,
    now_ms: Arc<AtomicU64>,
    low_memory: LowMemory,
}

/// A pipeline each of whose inferences takes `cost_ms` of CPU time, and nothing else any.
fn bench(bundle: &str, feed: Feed, cost_ms: u64, more: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds::from_config(&config::Queue::default());
    let queue = Queue::open_dir(dir.path(), bounds, Arc::new(AgentClock::default())).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(bundle);
    let text = format!("name = \"p\"\nsource = \"s\"\nmodel = {model:?}\n{more}");
    let config: config::Pipeline = toml::from_str(&text).unwrap();
    let scorer = pipeline::load(&config, feed, &mut Choices::open(dir.path())).unwrap();
    let metrics = Metrics::new();
    let (now_ms, inferences) = (Arc::new(AtomicU64::new(0)), Arc::clone(&metrics.inferences));
    let clock = Arc::clone(&now_ms);
    let meter = move || MeterReading {
        at: Duration::from_millis(clock.load(Ordering::SeqCst)),
        cpu: Duration::from_millis(inferences.load(Ordering::SeqCst) * cost_ms),
    };
    let low_memory = LowMemory::default();
    let (_sender, stop) = stop_pair();
    let pipeline = Pipeline::new(config, scorer, queue.clone(), metrics.clone(), Arc::default(), stop)
        .with_meter(Box::new(meter))
        .with_low_memory(low_memory.clone());
    Bench { _dir: dir, queue, metrics, pipeline, now_ms, low_memory }
}

/// A row that differs from all others; its number goes out as telemetry.
fn row(number: u64) -> Sample {
    let wave = |column: usize| (number as f64 * 0.37 + column as f64).sin() * 3.0;
    let column = |(at, name): (usize, &&str)| (Arc::from(*name), Value::Number(wave(at)));
    let mut values: Vec<(Arc<str>, Value)> = COLUMNS.iter().enumerate().map(column).collect();
    values.push(("row".into(), Value::Number(number as f64)));
    Sample { measured_at_us: 7, content: Content::Row { values, number } }
}

impl Bench {
    fn take(&mut self, rows: std::ops::RangeInclusive<u64>) {
        for number in rows {
            self.now_ms.store(number * ROW_MS, Ordering::SeqCst);
            self.pipeline.take(row(number)).unwrap();
        }
    }

    /// Which rows arrived, each with the score that came with it.
    fn stored(&self) -> BTreeMap<u64, Option<f64>> {
        let class = QueueClass::Telemetry;
        let next = self.queue.next_seq(class);
        self.queue.wait_accepted(class, next - 1).unwrap();
        let mut reader = self.queue.reader(class, 1).unwrap();
        let (mut at, mut rows) = (1, BTreeMap::new());
        while at < next {
            let taken = reader.next_batch(1 << 20, |record| {
                let readings = Telemetry::decode(Body::read(record.payload).unwrap().bytes).unwrap().readings;
                let number = |metric: &str| {
                    let found = readings.iter().find(|reading| reading.metric == metric);
                    found.and_then(|reading| reading.value.as_number())
                };
                rows.insert(number("row").unwrap() as u64, number("p.score"));
            });
            at = taken.unwrap().next;
        }
        rows
    }

    fn shed(&self, reason: Shed) -> u64 {
        self.metrics.pipeline("p").shed_so_far(reason)
    }
}

fn series(cost_ms: u64, more: &str) -> Bench {
    bench("motion-anomaly", Feed::Rows, cost_ms, &format!("telemetry = [\"row\"]\n{more}"))
}

fn scored(rows: &BTreeMap<u64, Option<f64>>) -> Vec<u64> {
    rows.iter().filter_map(|(row, score)| score.map(|_| *row)).collect()
}

/// What the model says where nothing is shed.
fn unshed() -> BTreeMap<u64, Option<f64>> {
    let mut bench = series(1_000, "");
    bench.take(1..=ROWS);
    assert_eq!((bench.shed(Shed::Cpu), bench.shed(Shed::Memory)), (0, 0), "no budget, no shedding");
    bench.stored()
}

#[test]
fn a_spent_budget_sheds_inferences_and_never_telemetry() {
    let whole = unshed();
    // The window of 20 rows is full at row 20 and due every 5 rows: 13 times.
    assert_eq!(scored(&whole), (20..=ROWS).step_by(5).collect::<Vec<_>>());
    // A tenth of a core: 100 ms at first, 50 ms more each 5 rows, and an inference costs 130 ms.
    // Left before row 20: 100 ms; 25: 20; 30: -60; 35: -10; 40: 40; 45: -40; 50: 10; 55: -70; 60: -20; 65: 30;
    // 70: -50; 75: 0; 80: 50.
    let mut bench = series(130, "cpu_percent_max = 10.0");
    bench.take(1..=ROWS);
    let rows = bench.stored();
    assert!(rows.keys().copied().eq(1..=ROWS), "all telemetry: {:?}", rows.keys());
    let ran = [20, 25, 40, 50, 65, 80];
    assert_eq!(scored(&rows), ran);
    assert_eq!((bench.shed(Shed::Cpu), bench.shed(Shed::Memory)), (7, 0));
    for row in ran {
        assert_eq!(rows[&row], whole[&row], "the window of row {row} has no gap");
    }
    let counters = bench.metrics.pipeline("p");
    assert_eq!(counters.inferences.get(), 6);
    assert!((counters.cpu_seconds.get() - 0.78).abs() < 1e-9, "{}", counters.cpu_seconds.get());
    let text = bench.metrics.text();
    for line in [
        "agent_inferences_shed_total{pipeline=\"p\",reason=\"cpu\"} 7",
        "agent_pipeline_inferences_total{pipeline=\"p\"} 6",
        "agent_pipeline_cpu_seconds_total{pipeline=\"p\"} 0.7",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn short_memory_sheds_every_inference_until_there_is_enough() {
    let whole = unshed();
    let mut bench = series(0, "");
    bench.take(1..=22);
    bench.low_memory.set(true);
    bench.take(23..=51);
    bench.low_memory.set(false);
    bench.take(52..=ROWS);
    let rows = bench.stored();
    assert!(rows.keys().copied().eq(1..=ROWS), "all telemetry: {:?}", rows.keys());
    assert_eq!(scored(&rows), [20, 55, 60, 65, 70, 75, 80]);
    assert_eq!((bench.shed(Shed::Cpu), bench.shed(Shed::Memory)), (0, 6));
    assert!(rows[&55].is_some() && rows[&55] == whole[&55], "its window was filled while memory was short");
}

#[test]
fn a_row_that_does_not_fit_is_refused_whether_shed_or_not() {
    let mut bench = series(0, "");
    let mut bad = row(1);
    let Content::Row { values, .. } = &mut bad.content else { panic!("a row") };
    values[0].1 = Value::Bool(true);
    bench.low_memory.set(true);
    bench.pipeline.take(bad).unwrap();
    assert_eq!(bench.metrics.refusals(Refusal::BadInput), 1);
    assert_eq!(bench.stored().len(), 1, "its telemetry goes out");
}

#[test]
fn a_picture_is_shed_before_it_is_read() {
    let mut bench = bench("meter-digits", Feed::Pictures, 0, "");
    let picture =
        || Sample { measured_at_us: 7, content: Content::Image { path: "/no/such/picture.png".into() } };
    bench.low_memory.set(true);
    bench.pipeline.take(picture()).unwrap();
    assert_eq!((bench.shed(Shed::Memory), bench.metrics.refusals(Refusal::Undecodable)), (1, 0));
    bench.low_memory.set(false);
    bench.pipeline.take(picture()).unwrap();
    assert_eq!((bench.shed(Shed::Memory), bench.metrics.refusals(Refusal::Undecodable)), (1, 1));
}
