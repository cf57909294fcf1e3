//! `muster-agent bench-model`: what each engine and form of a bundle costs on this device, and which one the agent picks.
//!
//! Called by `main`. Each candidate runs in a child process of its own, this program again, one after the other: so memory and
//! CPU time are a single candidate's, and one that crashes costs its own row only. Nothing is kept.

mod measure;
mod table;

use crate::choice::{Fastest, RunBounds, fastest, in_words};
use crate::supervisor::chain;
use muster_runtime::{Bundle, BundleError, Candidate, EngineKind, QuantizationForm};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Timed runs at most, and unless told otherwise.
pub const RUNS_MAX: u32 = 100_000;
const RUNS_DEFAULT: RunBounds = RunBounds { runs_max: 2_000, time_max: Duration::from_secs(2) };
/// Timing ends here, however many runs are asked for.
const TIME_MAX: Duration = Duration::from_secs(600);

/// Why nothing is measured, or nothing picked.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The bundle is broken.
    #[error("model bundle {}", bundle.display())]
    Bundle {
        /// The bundle's folder.
        bundle: PathBuf,
        /// Why.
        #[source]
        source: Box<BundleError>,
    },
    /// There is nothing to measure with.
    #[error("this build has no inference engine; expected one with the feature `tract` or `rten`")]
    NoEngine,
    /// The bundle has no such form.
    #[error("--form: expected a form that the bundle holds ({held}), found {found}")]
    Form {
        /// What it holds.
        held: String,
        /// What was asked for.
        found: String,
    },
    /// The bundle has no such model file.
    #[error("--file: expected one of {held}, found {found:?}")]
    File {
        /// Those that it has.
        held: String,
        /// What was asked for.
        found: String,
    },
    /// The program does not know itself.
    #[error("cannot find this program's own file")]
    Program(#[source] std::io::Error),
    /// Not one candidate is of use.
    #[error("no engine and form passes")]
    NonePasses,
}

/// What is asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Ask {
    /// The bundle's folder, with `model.toml`.
    pub bundle: PathBuf,
    /// Only this engine.
    #[arg(long, value_parser = engine)]
    pub engine: Option<EngineKind>,
    /// Only this form: none, weight-int8-per-channel, qoperator-int8 or qdq-int8.
    #[arg(long, value_parser = form)]
    pub form: Option<QuantizationForm>,
    /// Timed runs of each, 1 to 100000. Without it 2000, or as many as 2 s hold.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(RUNS_MAX)))]
    pub runs: Option<u32>,
    /// One line of JSON each, and a last one with what is picked.
    #[arg(long)]
    pub json: bool,
}

/// One candidate, as the parent asks its child.
#[derive(Clone, Debug, clap::Args)]
pub struct AskOne {
    bundle: PathBuf,
    #[arg(long, value_parser = engine)]
    engine: EngineKind,
    #[arg(long)]
    file: String,
    #[arg(long)]
    runs: Option<u32>,
}

/// An engine of this build by its name.
fn engine(name: &str) -> Result<EngineKind, String> {
    let found = EngineKind::ALL.iter().find(|kind| kind.as_str() == name);
    found.copied().ok_or_else(|| match EngineKind::ALL {
        [] => "this build has no inference engine".to_owned(),
        all => format!("expected an engine of this build: {}", names(all.iter().map(|kind| kind.as_str()))),
    })
}

fn form(name: &str) -> Result<QuantizationForm, String> {
    let all = QuantizationForm::ALL;
    let found = all.into_iter().find(|form| form.as_str() == name);
    found.ok_or_else(|| format!("expected one of {}", names(all.iter().map(|form| form.as_str()))))
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<Vec<_>>().join(", ")
}

/// One candidate's figures; those that were not reached are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Row {
    engine: String,
    form: String,
    file: String,
    /// Reading, planning and the self-test.
    load_ms: Option<f64>,
    /// CPU time of the process from its start to the end of the first inference behind the self-test.
    first_inference_cpu_ms: Option<f64>,
    runs: Option<usize>,
    min_us: Option<f64>,
    median_us: Option<f64>,
    p95_us: Option<f64>,
    rss_mib: Option<f64>,
    /// Of the golden samples' outputs; where the self-test fails, of the sample that it fails on.
    difference_max: Option<f64>,
    error: Option<String>,
}

impl Row {
    fn of(candidate: &Candidate) -> Self {
        let (engine, form) = (candidate.engine.as_str().into(), candidate.form.quantization.as_str().into());
        Self { engine, form, file: candidate.form.file.clone(), ..Self::default() }
    }

    /// One line, times and memory to the third digit.
    fn json(&self) -> String {
        let mut row = self.clone();
        for figure in [
            &mut row.load_ms,
            &mut row.first_inference_cpu_ms,
            &mut row.min_us,
            &mut row.median_us,
            &mut row.p95_us,
            &mut row.rss_mib,
        ] {
            *figure = figure.map(|value| (value * 1e3).round() / 1e3);
        }
        serde_json::to_string(&row).expect("text and numbers become JSON")
    }

    /// The median of a candidate that passes.
    fn median(&self) -> Result<Duration, String> {
        match (&self.error, self.median_us) {
            (None, Some(us)) => Ok(Duration::from_secs_f64(us / 1e6)),
            (error, _) => Err(error.clone().unwrap_or_default()),
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// The bundle cannot be opened, holds nothing of what is asked for, or no candidate passes.
pub fn run(ask: &Ask) -> Result<(), BenchError> {
    let bundle = open(&ask.bundle)?;
    let candidates = asked_for(&bundle, ask)?;
    let program = std::env::current_exe().map_err(BenchError::Program)?;
    if !ask.json {
        let manifest = bundle.manifest();
        println!("{}", table::head(&manifest.name, &manifest.version));
    }
    let mut rows = Vec::with_capacity(candidates.len());
    for candidate in &candidates {
        let row = in_child(&program, ask, candidate);
        if ask.json {
            println!("{}", row.json());
        } else {
            println!("{}", table::line(&row));
        }
        rows.push(row);
    }
    let picked = pick(&candidates, &rows);
    if ask.json {
        println!("{}", chosen(picked));
    }
    let Some(picked) = picked else { return Err(BenchError::NonePasses) };
    if !ask.json {
        println!("the agent picks {}: the shortest median of those that pass", in_words(picked));
    }
    Ok(())
}

/// Measures one candidate in this process and prints its row as JSON.
///
/// # Errors
/// The bundle cannot be opened or has no such file.
pub fn run_one(ask: &AskOne) -> Result<(), BenchError> {
    let bundle = open(&ask.bundle)?;
    let candidates = bundle.manifest().candidates();
    let asked = |candidate: &&Candidate| candidate.engine == ask.engine && candidate.form.file == ask.file;
    let candidate = candidates.iter().find(asked).ok_or_else(|| {
        let forms = bundle.manifest().forms();
        BenchError::File { held: names(forms.iter().map(|form| form.file.as_str())), found: ask.file.clone() }
    })?;
    println!("{}", measure::candidate(bundle, candidate, bounds(ask.runs)).json());
    Ok(())
}

fn bounds(runs: Option<u32>) -> RunBounds {
    match runs {
        None => RUNS_DEFAULT,
        Some(runs) => RunBounds { runs_max: runs.min(RUNS_MAX) as usize, time_max: TIME_MAX },
    }
}

fn open(dir: &Path) -> Result<Bundle, BenchError> {
    let broken = |source| BenchError::Bundle { bundle: dir.to_owned(), source: Box::new(source) };
    Bundle::open(dir).map_err(broken)
}

fn asked_for(bundle: &Bundle, ask: &Ask) -> Result<Vec<Candidate>, BenchError> {
    let mut candidates = bundle.manifest().candidates();
    if candidates.is_empty() {
        return Err(BenchError::NoEngine);
    }
    candidates.retain(|Candidate { engine, form }| {
        let is_form = ask.form.is_none_or(|asked| asked == form.quantization);
        is_form && ask.engine.is_none_or(|asked| asked == *engine)
    });
    if let (Some(form), []) = (ask.form, candidates.as_slice()) {
        let forms = bundle.manifest().forms();
        let held = names(forms.iter().map(|form| form.quantization.as_str()));
        return Err(BenchError::Form { held, found: form.as_str().into() });
    }
    Ok(candidates)
}

/// A child that ends without a row gives one with its end as the error.
fn in_child(program: &Path, ask: &Ask, candidate: &Candidate) -> Row {
    let failed = |error: String| Row { error: Some(error), ..Row::of(candidate) };
    let mut command = Command::new(program);
    command.arg("bench-candidate").arg(&ask.bundle).args(["--engine", candidate.engine.as_str()]);
    command.arg(format!("--file={}", candidate.form.file)).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(runs) = ask.runs {
        command.args(["--runs", &runs.to_string()]);
    }
    match command.output() {
        Ok(output) if output.status.success() => {
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| failed(error.to_string()))
        }
        Ok(output) => failed(format!("the process that measures it ended with {}", output.status)),
        Err(error) => failed(format!("no process to measure it: {}", chain(&error))),
    }
}

/// By the rule that the agent chooses by.
fn pick<'a>(candidates: &'a [Candidate], rows: &[Row]) -> Option<&'a Candidate> {
    let mut medians = rows.iter().map(Row::median);
    let Fastest { found, .. } =
        fastest(candidates, |_| Ok(((), medians.next().expect("a row a candidate")?)));
    found.map(|(at, ..)| &candidates[at])
}

fn chosen(picked: Option<&Candidate>) -> serde_json::Value {
    let chosen = picked.map(|Candidate { engine, form }| {
        serde_json::json!({"engine": engine.as_str(), "form": form.quantization.as_str(), "file": form.file})
    });
    serde_json::json!({ "chosen": chosen })
}

#[cfg(test)]
mod tests;
