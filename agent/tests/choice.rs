//! The real binary and its choice of engine and form: what `bench-model` and `check` print, what is kept, what birth tells.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

mod support;

use muster_runtime::{Bundle, Candidate};
use muster_wire::{Birth, RunningModel, UpClass};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use support::Broker;

const BIN: &str = env!("CARGO_BIN_EXE_muster-agent");

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn candidates(name: &str) -> Vec<Candidate> {
    Bundle::open(model(name)).unwrap().manifest().candidates()
}

fn bench_model(arguments: &[&str]) -> (Output, Vec<serde_json::Value>) {
    let output = Command::new(BIN)
        .args(["bench-model", "--json", "--runs", "5"])
        .arg(model("motion-anomaly"))
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output, lines)
}

#[test]
fn bench_model_prints_a_line_a_candidate_and_picks_the_fastest_that_passes() {
    let (output, mut lines) = bench_model(&[]);
    assert!(output.status.success());
    let chosen = lines.pop().unwrap();
    let of = |line: &serde_json::Value| {
        ["engine", "form", "file"].map(|key| line[key].as_str().unwrap().to_owned())
    };
    let expected: Vec<_> = candidates("motion-anomaly")
        .iter()
        .map(|each| {
            [each.engine.as_str(), each.form.quantization.as_str(), &each.form.file].map(str::to_owned)
        })
        .collect();
    assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), expected);
    let passing: Vec<_> = lines.iter().filter(|line| line["error"].is_null()).collect();
    for line in &passing {
        assert_eq!(line["runs"], 5);
    }
    let median = |line: &serde_json::Value| line["median_us"].as_f64().unwrap();
    let least = passing.iter().map(|line| median(line)).fold(f64::INFINITY, f64::min);
    let chosen = of(&chosen["chosen"]);
    assert!(
        passing.iter().any(|line| of(line) == chosen && median(line) == least),
        "{chosen:?} of {lines:?}"
    );
}

#[test]
fn bench_model_says_what_is_wrong_with_its_arguments() {
    let engine = candidates("motion-anomaly")[0].engine.as_str();
    for (arguments, parts) in [
        (&["--engine", "onnxruntime"][..], &["--engine", "an engine of this build", engine][..]),
        (&["--form", "int4"], &["--form", "qdq-int8"]),
        (
            &["--form", "qdq-int8"],
            &["a form that the bundle holds", "weight-int8-per-channel", "found qdq-int8"],
        ),
        (&["--runs", "0"], &["--runs", "1..=100000"]),
        (&["--runs", "100001"], &["--runs", "1..=100000"]),
    ] {
        // An argument that is there twice would be refused for that.
        let mut command = Command::new(BIN);
        let output =
            command.arg("bench-model").arg(model("motion-anomaly")).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && parts.iter().all(|part| text.contains(part)),
            "{arguments:?}: {text}"
        );
    }
    let output = Command::new(BIN).args(["bench-model", "nowhere"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("model bundle nowhere: cannot read"), "{text}");
}

#[test]
fn bench_model_of_nothing_that_passes_fails_and_gives_each_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(model("motion-anomaly").join("model.toml"), dir.path().join("model.toml")).unwrap();
    std::fs::write(dir.path().join("model.onnx"), b"no graph").unwrap();
    let output = Command::new(BIN).args(["bench-model", "--json"]).arg(dir.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success());
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all = candidates("motion-anomaly").len();
    assert_eq!((lines.len(), lines[all]["chosen"].is_null()), (all + 1, true));
    for line in &lines[..all] {
        let expected = if line["file"] == "model.onnx" { "decoded as ONNX" } else { "cannot read" };
        assert!(line["error"].as_str().unwrap().contains(expected), "{line}");
        assert!(line["median_us"].is_null(), "{line}");
    }
}

fn write_config(dir: &Path, port: u16) {
    std::fs::write(dir.join("token"), "secret").unwrap();
    let config = format!(
        "version = 1\ndata_dir = \"data\"\n\
         [identity]\ntenant = \"acme\"\ndevice = \"press-7\"\ntoken_file = \"token\"\n\
         [uplink]\nhost = \"127.0.0.1\"\nport = {port}\ntransport = \"plain\"\n\
         [[source]]\nkind = \"csv\"\nname = \"s\"\npath = {:?}\nrate_hz = 10.0\n\
         [[pipeline]]\nname = \"plain\"\nsource = \"s\"\n\
         [[pipeline]]\nname = \"scored\"\nsource = \"s\"\nmodel = {:?}\n",
        model("motion-anomaly").join("demo/motion.csv"),
        model("motion-anomaly"),
    );
    std::fs::write(dir.join("agent.toml"), config).unwrap();
}

#[test]
fn check_tells_engine_and_form_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), 1883);
    let mut command = Command::new(BIN);
    let output = command.arg("check").arg("--config").arg(dir.path().join("agent.toml")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let is_told = |each: &Candidate| {
        let (engine, form) = (each.engine.as_str(), each.form.quantization.as_str());
        text.contains(&format!(
            "pipeline scored: model motion-anomaly 1.0.0 on {engine} with {form}, 4 golden samples"
        ))
    };
    assert_eq!(candidates("motion-anomaly").iter().filter(|each| is_told(each)).count(), 1, "{text}");
    assert!(!dir.path().join("data").exists());
}

struct Agent(Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(BIN);
        command.args(["run", "--config"]).arg(dir.join("agent.toml")).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn birth_of(dir: &Path, broker: &mut Broker) -> Birth {
    let _agent = Agent::start(dir);
    let (_, body) = broker.next_of(UpClass::Birth).await;
    Birth::decode(&body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn birth_tells_what_runs_and_the_next_start_runs_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start().await;
    write_config(dir.path(), broker.port);
    let kept = dir.path().join("data/choices.json");
    let first = birth_of(dir.path(), &mut broker).await;
    assert_eq!((first.pipelines.len(), first.models.len()), (2, 1), "one has no model");
    let RunningModel { pipeline, model, engine, form, median_us, .. } = first.models[0].clone();
    assert_eq!((pipeline.as_str(), model.as_str()), ("scored", "motion-anomaly"));
    let all = candidates("motion-anomaly");
    let of = |each: &&Candidate| each.engine.as_str() == engine && each.form.quantization.as_str() == form;
    assert_eq!(all.iter().filter(of).count(), 1);
    assert!(median_us.is_some_and(|us| us > 0));
    // What the file says is believed, since it passes: another candidate than the fastest, and a time that nobody measured.
    let text = std::fs::read_to_string(&kept).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let last = all.iter().find(|each| !of(each) && each.form.file == "model.onnx").unwrap_or(&all[1]);
    file["choices"][0]["engine"] = last.engine.as_str().into();
    file["choices"][0]["file"] = last.form.file.clone().into();
    file["choices"][0]["median_ns"] = 123_456_000.into();
    std::fs::write(&kept, file.to_string()).unwrap();
    let second = birth_of(dir.path(), &mut broker).await;
    assert_eq!(second.models[0].engine, last.engine.as_str());
    assert_eq!(second.models[0].form, last.form.quantization.as_str());
    assert_eq!(second.models[0].median_us, Some(123_456));
    // A damaged file is measured over and replaced.
    std::fs::write(&kept, &text[..text.len() / 2]).unwrap();
    let third = birth_of(dir.path(), &mut broker).await;
    assert!(third.models[0].median_us.is_some_and(|us| us != 123_456));
    let again: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
    assert_eq!(again["choices"].as_array().unwrap().len(), 1);
}
