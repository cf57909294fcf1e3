//! The demo bundles at work in pipelines, and what `muster-agent check` says of good and broken ones.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use muster_agent::choice::Choices;
use muster_agent::clock::AgentClock;
use muster_agent::config;
use muster_agent::metrics::Metrics;
use muster_agent::pipeline::{self, Feed, Pipeline};
use muster_agent::queue::{Body, Bounds, Queue, QueueClass};
use muster_agent::source::{Content, CsvReader, Sample};
use muster_agent::supervisor::stop_pair;
use muster_wire::{Event, EventKind, Telemetry, Value};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn bundle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

struct Bench {
    _dir: tempfile::TempDir,
    queue: Queue,
    metrics: Metrics,
    pipeline: Pipeline,
}

fn bench(name: &str, feed: Feed, more: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds::from_config(&config::Queue::default());
    let queue = Queue::open_dir(dir.path(), bounds, Arc::new(AgentClock::default())).unwrap();
    let model = bundle(name).display().to_string();
    let config: config::Pipeline =
        toml::from_str(&format!("name = \"p\"\nsource = \"s\"\nmodel = {model:?}\n{more}")).unwrap();
    let scorer = pipeline::load(&config, feed, &mut Choices::open(dir.path())).unwrap();
    let metrics = Metrics::new();
    let (_sender, stop) = stop_pair();
    let pipeline = Pipeline::new(config, scorer, queue.clone(), metrics.clone(), Arc::default(), stop);
    Bench { _dir: dir, queue, metrics, pipeline }
}

fn stored(queue: &Queue, class: QueueClass, mut take: impl FnMut(&[u8])) {
    let next = queue.next_seq(class);
    assert!(next > 1, "nothing was accepted");
    queue.wait_accepted(class, next - 1).unwrap();
    let mut reader = queue.reader(class, 1).unwrap();
    let mut at = 1;
    while at < next {
        at = reader
            .next_batch(1 << 20, |record| take(Body::read(record.payload).unwrap().bytes))
            .unwrap()
            .next;
    }
}

fn events(queue: &Queue) -> Vec<Event> {
    let mut events = Vec::new();
    stored(queue, QueueClass::Event, |body| events.push(Event::decode(body).unwrap()));
    events
}

fn demo_rows() -> CsvReader {
    let path =
        std::fs::read_dir(bundle("motion-anomaly").join("demo")).unwrap().next().unwrap().unwrap().path();
    CsvReader::open(&path, &[], None).unwrap()
}

#[test]
fn sensor_rows_become_scores_and_a_raised_and_cleared_anomaly() {
    let mut bench = bench("motion-anomaly", Feed::Rows, "events = \"changes\"");
    let mut rows = demo_rows();
    let mut number = 0;
    while let Some(row) = rows.next_row().unwrap() {
        number += 1;
        let content = Content::Row { values: row.values, number };
        bench.pipeline.take(Sample { measured_at_us: 1, content }).unwrap();
    }
    let labels: Vec<_> = events(&bench.queue).into_iter().map(|event| (event.kind, event.label)).collect();
    assert_eq!(labels[0], (EventKind::Anomaly, "normal".to_owned()));
    assert_eq!(labels[1], (EventKind::Anomaly, "anomaly".to_owned()));
    assert_eq!(labels[2], (EventKind::Anomaly, "normal".to_owned()));
    let mut scores = 0;
    stored(&bench.queue, QueueClass::Telemetry, |body| {
        let readings = Telemetry::decode(body).unwrap().readings;
        let names: Vec<_> = readings.iter().map(|reading| reading.metric.as_str()).collect();
        assert_eq!(names, ["p.score", "p.label"]);
        scores += 1;
    });
    assert_eq!(scores, bench.metrics.inferences.load(std::sync::atomic::Ordering::Relaxed));
}

#[test]
fn pictures_become_digits() {
    let mut bench = bench("meter-digits", Feed::Pictures, "scores = false");
    let mut files: Vec<_> = std::fs::read_dir(bundle("meter-digits").join("demo"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "png"));
    files.sort();
    for path in &files {
        bench
            .pipeline
            .take(Sample { measured_at_us: 1, content: Content::Image { path: path.clone() } })
            .unwrap();
    }
    let events = events(&bench.queue);
    assert_eq!(events.len(), files.len());
    let right = events.iter().filter(|event| {
        let name = event.subject.as_deref().unwrap_or_default();
        assert_eq!((event.kind, event.model.as_str()), (EventKind::Classification, "meter-digits"));
        name.contains(&format!("digit-{}", event.label))
    });
    assert!(right.count() * 100 >= files.len() * 90);
}

#[test]
fn a_row_without_the_models_columns_is_counted_and_not_scored() {
    let mut bench = bench("motion-anomaly", Feed::Rows, "");
    let values = vec![(Arc::from("accel_x"), Value::Number(1.0))];
    bench.pipeline.take(Sample { measured_at_us: 1, content: Content::Row { values, number: 1 } }).unwrap();
    assert_eq!(bench.metrics.refusals(muster_agent::metrics::Refusal::BadInput), 1);
}

#[test]
fn an_undecodable_picture_is_counted() {
    let mut bench = bench("meter-digits", Feed::Pictures, "");
    let path = bench._dir.path().join("broken.png");
    std::fs::write(&path, b"no picture").unwrap();
    bench.pipeline.take(Sample { measured_at_us: 1, content: Content::Image { path } }).unwrap();
    assert_eq!(bench.metrics.refusals(muster_agent::metrics::Refusal::Undecodable), 1);
}

fn check(dir: &Path, model: &Path, more: &str) -> (bool, String) {
    let config = format!(
        "version = 1\ndata_dir = \"data\"\n[[source]]\nkind = \"csv\"\nname = \"s\"\npath = \"rows.csv\"\nrate_hz = 1.0\n\
         [[pipeline]]\nname = \"p\"\nsource = \"s\"\nmodel = {:?}\n{more}",
        model.display().to_string()
    );
    std::fs::write(dir.join("agent.toml"), config).unwrap();
    std::fs::write(dir.join("rows.csv"), "a,b\n1,2\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = command.arg("check").arg("--config").arg(dir.join("agent.toml")).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// What `muster-agent check` says of one source.
fn check_source(dir: &Path, source: &str) -> (bool, String) {
    let config = format!("version = 1\ndata_dir = \"data\"\n[[source]]\nname = \"s\"\n{source}");
    std::fs::write(dir.join("agent.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = command.arg("check").arg("--config").arg(dir.join("agent.toml")).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn check_looks_for_the_command_and_into_the_sounds_header() {
    let dir = tempfile::tempdir().unwrap();
    let (passed, text) = check_source(dir.path(), "kind = \"exec\"\ncommand = [\"sh\"]");
    assert!(passed && text.contains("source s: the command is /"), "{text}");
    std::fs::write(dir.path().join("plain.sh"), "").unwrap();
    let (passed, text) = check_source(dir.path(), "kind = \"exec\"\ncommand = [\"./plain.sh\"]");
    assert!(
        !passed && text.contains("source \"s\": command: expected a file that this user may execute"),
        "{text}"
    );

    let wave = |tag: u8| {
        let format = [16, 0, 0, 0, tag, 0, 1, 0, 0x80, 0x3e, 0, 0, 0, 0x7d, 0, 0, 2, 0, 16, 0];
        [b"RIFF\0\0\0\0WAVEfmt ".as_slice(), &format, b"data\x02\0\0\0\0\0"].concat()
    };
    std::fs::write(dir.path().join("x.wav"), wave(1)).unwrap();
    let pcm = "kind = \"pcm\"\npath = \"x.wav\"";
    let (passed, text) = check_source(dir.path(), pcm);
    assert!(passed && text.contains("source s: 16000 samples a second, 1 channels, 16 bits"), "{text}");
    std::fs::write(dir.path().join("x.wav"), wave(7)).unwrap();
    let (passed, text) = check_source(dir.path(), pcm);
    assert!(
        !passed && text.contains("x.wav: format tag: expected 1 (integers) or 3 (floats), found 7"),
        "{text}"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn check_passes_a_good_bundle_and_refuses_broken_ones_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (passed, text) = check(dir.path(), &bundle("motion-anomaly"), "");
    assert!(passed && text.contains("golden samples pass"), "{text}");

    let (passed, text) = check(dir.path(), &dir.path().join("nothing"), "");
    assert!(!passed && text.contains("\"p\"") && text.contains("nothing"), "{text}");

    let (passed, text) = check(dir.path(), &bundle("meter-digits"), "");
    assert!(!passed && text.contains("takes pictures, expected sensor rows"), "{text}");

    let (passed, text) = check(dir.path(), &bundle("motion-anomaly"), "inputs = [\"a\", \"b\"]");
    assert!(!passed && text.contains("inputs: expected 6 columns") && text.contains("found 2"), "{text}");

    // Another mean: the model still runs, and answers differently from its golden samples.
    let bad = dir.path().join("bad");
    copy(&bundle("motion-anomaly"), &bad);
    let manifest = std::fs::read_to_string(bad.join("model.toml")).unwrap();
    std::fs::write(bad.join("model.toml"), manifest.replace("mean = [0.31403,", "mean = [3.1403,")).unwrap();
    let (passed, text) = check(dir.path(), &bad, "");
    assert!(!passed && text.contains("failed its self-test") && text.contains("difference"), "{text}");

    std::fs::write(bad.join("model.onnx"), b"no graph").unwrap();
    assert!(!check(dir.path(), &bad, "").0);
}
