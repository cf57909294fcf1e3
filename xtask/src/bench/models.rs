//! `bench models`: the agent's engines on the reference models, ONNX Runtime beside them in the same run, and what an
//! engine costs in bytes, memory and time to the first inference.
//!
//! Latencies are the medians of [`ROUNDS`] rounds in which everything takes its turn, one thread, batch 1; a ratio is the
//! median of the rounds' ratios. Each measurement is a process of its own: `muster-agent bench-model` of the shipped profile,
//! `beside.py` for ONNX Runtime. The third-party models lie beside the workspace ([`shared`]), never in it.
//! Names in the figures: `<model>_<engine>_<form>_us`; forms are f32, wq8 (weight-only int8), qop (static int8).

use super::agent::{Bench, csv_pipeline};
use super::{Bar, Options, Report, fresh_dir, median};
use crate::process::catch_interrupts;
use crate::server::Server;
use crate::{cargo, recipe};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

const ROUNDS: usize = 5;
const MODELS: [&str; 4] = ["vww", "ad01", "nab_ae", "fdet"];
/// Runs of one measurement; the detector takes a hundred times as long as the others.
const RUNS: [usize; 4] = [400, 2_000, 4_000, 20];
/// Interleaved rounds of one form are compared by these: a figure's name, its two sides, the bar.
const RATIOS: [(&str, Series, Series, Bar, f64); 7] = [
    ("vww_wq8_over_f32", ("vww", "tract", "wq8"), ("vww", "tract", "f32"), Bar::AtMost, 1.05),
    ("ad01_wq8_over_f32", ("ad01", "tract", "wq8"), ("ad01", "tract", "f32"), Bar::AtMost, 1.05),
    ("ad01_f32_over_onnxruntime", ("ad01", "tract", "f32"), ("ad01", "onnxruntime", "f32"), Bar::AtMost, 1.0),
    (
        "nab_ae_f32_over_onnxruntime",
        ("nab_ae", "tract", "f32"),
        ("nab_ae", "onnxruntime", "f32"),
        Bar::AtMost,
        1.0,
    ),
    ("vww_f32_over_qop", ("vww", "tract", "f32"), ("vww", "tract", "qop"), Bar::AtLeast, 1.5),
    ("vww_qop_over_onnxruntime", ("vww", "tract", "qop"), ("vww", "onnxruntime", "int8"), Bar::AtMost, 2.0),
    ("vww_f32_over_opt3", ("vww", "tract", "f32"), ("vww", OPT3, "f32"), Bar::AtMost, 1.4),
];

/// tract's agent without the shipped profile's small code, to compare with.
const OPT3: &str = "opt3";

/// Model, engine, form.
type Series = (&'static str, &'static str, &'static str);

/// An agent as it is built for one engine.
struct Build {
    engine: &'static str,
    features: &'static str,
    binary_mb_max: f64,
    rss_mib_max: f64,
}

const BUILDS: [Build; 3] = [
    Build { engine: "tract", features: "tract", binary_mb_max: 18.0, rss_mib_max: 20.0 },
    Build { engine: "rten", features: "rten", binary_mb_max: 9.0, rss_mib_max: 14.0 },
    Build { engine: "none", features: "", binary_mb_max: 5.0, rss_mib_max: 8.0 },
];

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run, or the reference models are not there.
pub(crate) fn run(options: Options) -> Result<Report> {
    let beside = Beside::new()?;
    let binaries = cargo::target_dir().join("bench-agents");
    if !options.no_build {
        cargo::build_programs()?;
        build(&binaries)?;
    }
    catch_interrupts();
    let dir = fresh_dir("models")?;
    beside.write_bundles(&dir)?;
    let mut report = Report::new("models");
    latencies(&mut report, &beside, &binaries, &dir, if options.quick { 1 } else { ROUNDS })?;
    footprint(&mut report, &binaries, &dir)?;
    Ok(report)
}

/// The folder of the reference models: `MUSTER_SHARED`, or `shared` beside the workspace or above.
fn shared() -> Result<PathBuf> {
    let given = std::env::var_os("MUSTER_SHARED").map(PathBuf::from);
    let root = cargo::root();
    let found = given.or_else(|| {
        root.ancestors().map(|dir| dir.join("shared")).find(|dir| dir.join("models/ad01_f32.onnx").is_file())
    });
    found.context("no reference models: set MUSTER_SHARED to the folder that holds `models` and `data`")
}

/// Each engine's agent as it is shipped, and tract's at opt-level 3.
fn build(binaries: &Path) -> Result<()> {
    std::fs::create_dir_all(binaries).with_context(|| format!("cannot make {}", binaries.display()))?;
    let keep = |built: PathBuf, name: &str| {
        std::fs::copy(&built, binaries.join(name)).with_context(|| format!("cannot copy {}", built.display()))
    };
    for Build { engine, features, .. } in &BUILDS {
        keep(cargo::build_agent_with(features)?, engine)?;
    }
    cargo::build_dist(&["muster-agent"])?;
    keep(cargo::dist_binaries().join("muster-agent"), OPT3)?;
    Ok(())
}

/// ONNX Runtime in Python, and the reference models.
pub(super) struct Beside {
    python: PathBuf,
    script: PathBuf,
    shared: PathBuf,
}

impl Beside {
    /// Installs what is missing.
    pub(super) fn new() -> Result<Self> {
        let script = cargo::root().join("xtask/src/bench/models/beside.py");
        Ok(Self { shared: shared()?, python: recipe::python()?, script })
    }

    /// A bundle of each model with all its forms, and pictures as a small camera gives them.
    pub(super) fn write_bundles(&self, dir: &Path) -> Result<()> {
        self.run(&["bundles"], &[&dir.display().to_string()]).map(|_| ())
    }

    fn run(&self, what: &[&str], arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.python);
        command.arg("-B").arg(&self.script).args(what).arg(&self.shared).args(arguments);
        let output = command.output().with_context(|| format!("cannot start {}", self.python.display()))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// What the rounds saw of each series, in microseconds.
type Rounds = BTreeMap<(&'static str, &'static str, String), Vec<f64>>;

fn latencies(report: &mut Report, beside: &Beside, binaries: &Path, dir: &Path, rounds: usize) -> Result<()> {
    let mut seen = Rounds::new();
    let mut first = BTreeMap::<(&str, &str), Vec<f64>>::new();
    for round in 1..=rounds {
        for (model, runs) in MODELS.into_iter().zip(RUNS) {
            println!("  round {round} of {rounds}: {model}");
            for engine in ["tract", "rten", OPT3].into_iter().filter(|engine| binaries.join(engine).is_file())
            {
                let (lines, chosen) = bench_model(&binaries.join(engine), &dir.join(model), runs)?;
                for line in &lines {
                    let form = form(line["form"].as_str().unwrap_or_default())?;
                    if let Some(error) = line["error"].as_str() {
                        println!("    {engine} {form}: {error}");
                        continue;
                    }
                    let median = line["median_us"].as_f64().context("no median_us")?;
                    seen.entry((model, engine, form.to_owned())).or_default().push(median);
                    if line["form"] == chosen["form"] && line["engine"] == chosen["engine"] {
                        let cpu = line["first_inference_cpu_ms"].as_f64().context("no CPU time")?;
                        first.entry((model, engine)).or_default().push(cpu);
                    }
                }
            }
            let answer = beside.run(&["measure"], &[model, &runs.to_string()])?;
            let forms: BTreeMap<String, f64> =
                serde_json::from_str(answer.trim()).context("what beside.py printed")?;
            let int8 = forms.iter().filter(|(form, _)| *form != "f32").map(|(_, median)| *median);
            let best = int8.fold(f64::NAN, f64::min);
            for (form, median) in
                forms.iter().map(|(form, us)| (form.replace("_s8s8", "").replace("ort_", ""), *us))
            {
                seen.entry((model, "onnxruntime", form)).or_default().push(median);
            }
            if best.is_finite() {
                seen.entry((model, "onnxruntime", "int8".into())).or_default().push(best);
            }
        }
    }
    for ((model, engine, form), values) in &seen {
        // The best of its int8 files round by round is for the ratio alone.
        if form != "int8" {
            report.figure(format!("{model}_{engine}_{form}_us"), median(values.clone()));
        }
    }
    let was_run = |(_, engine, _): Series| engine != OPT3 || binaries.join(OPT3).is_file();
    for (name, above, below, bar, limit) in RATIOS {
        if !was_run(above) || !was_run(below) {
            println!("  {name} is left out: no build at opt-level 3 is there (run without --no-build)");
            continue;
        }
        let series = |(model, engine, form): Series| seen.get(&(model, engine, form.to_owned()));
        let (above, below) =
            series(above).zip(series(below)).with_context(|| format!("nothing to compare for {name}"))?;
        report.barred(name, median(above.iter().zip(below).map(|(a, b)| a / b).collect()), bar, limit);
    }
    for ((model, engine), values) in first.into_iter().filter(|((_, engine), _)| *engine != OPT3) {
        let value = median(values);
        match model {
            "vww" => report.barred(format!("first_inference_{engine}_ms"), value, Bar::AtMost, 30.0),
            "ad01" => {
                report.barred(format!("first_inference_autoencoder_{engine}_ms"), value, Bar::AtMost, 10.0)
            }
            _ => {}
        }
    }
    Ok(())
}

fn form(form: &str) -> Result<&'static str> {
    match form {
        "none" => Ok("f32"),
        "weight-int8-per-channel" => Ok("wq8"),
        "qoperator-int8" => Ok("qop"),
        other => bail!("the agent named a form {other:?}"),
    }
}

/// What `bench-model` said of each engine and form, and its choice.
fn bench_model(agent: &Path, bundle: &Path, runs: usize) -> Result<(Vec<Value>, Value)> {
    let mut command = Command::new(agent);
    command.arg("bench-model").arg(bundle).args(["--json", "--runs", &runs.to_string()]);
    let output = command.output().with_context(|| format!("cannot start {}", agent.display()))?;
    ensure!(
        output.status.success(),
        "bench-model {}: {}",
        bundle.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let mut lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let chosen = lines.pop().context("bench-model printed nothing")?["chosen"].clone();
    Ok((lines, chosen))
}

/// Bytes of the file, and memory of the agent while it is connected and scores a camera's pictures.
fn footprint(report: &mut Report, binaries: &Path, dir: &Path) -> Result<()> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&cargo::dev_binaries().join("muster-server"), &dir.join("server"), any, &[])?;
    let mut bench = Bench { server, binary: PathBuf::new(), dir: dir.to_owned() };
    let one_row = dir.join("one.csv");
    std::fs::write(&one_row, "level\n1\n")?;
    let camera = format!(
        "[[source]]\nkind = \"images\"\nname = \"camera\"\nfolder = {:?}\ninterval_ms = 500\nwrap = \"loop\"\n\n\
         [[pipeline]]\nname = \"person\"\nsource = \"camera\"\nmodel = {:?}\n",
        dir.join("pictures").display().to_string(),
        dir.join("vww").display().to_string()
    );
    for Build { engine, binary_mb_max, rss_mib_max, .. } in &BUILDS {
        bench.binary = binaries.join(engine);
        let size = std::fs::metadata(&bench.binary).context("the agent was not built")?.len();
        report.barred(format!("binary_{engine}_mb"), size as f64 / 1e6, Bar::AtMost, *binary_mb_max);
        let device = format!("bench-{engine}");
        let pipelines = if *engine == "none" { csv_pipeline(&one_row, "loop", None) } else { camera.clone() };
        let config = bench.enrol(&device, &pipelines)?;
        // The first start chooses among the forms; the second is what a device then runs.
        bench.rss_when_settled(&device, &config)?;
        let rss = bench.rss_when_settled(&device, &config)?;
        report.barred(format!("rss_{engine}_mib"), rss, Bar::AtMost, *rss_mib_max);
    }
    bench.server.process.stop()
}
