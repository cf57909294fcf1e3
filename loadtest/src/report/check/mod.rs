//! Whether a run is worse than the runs before it, by more than they differ among themselves.
//!
//! Called by the command `check`. Promise: the rule is [`RULE`] and is printed with each result; a broken invariant,
//! a lost or a duplicated message is never noise; a figure that the baseline has and the run has not is a failure,
//! since a measurement that went away proves nothing. What a busy machine makes meaningless is skipped and said.

mod baseline;

pub use super::setups::Difference;
pub use baseline::{BASELINE_BYTES_MAX, BASELINE_VERSION, Baseline, BaselineError, RUNS_MIN, Spread};

use super::figures::{self, Better, Figure, NEVER_NAMES, UnderLoad};
use super::model::Report;
use super::setups::{QUIET_CORES, Workload};
use super::stats;
use super::units::{Unit, plain};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Standard deviations of the baseline's runs that are noise.
const DEVIATIONS: f64 = 4.0;
/// How much a time grows by a core of other load; the gateway's benches showed 9 to 16 times the quiet P95.
const WAIT_PER_CORE: f64 = 10.0;
/// How much processor time grows by a core of other load; the same benches showed 0.4 to 0.9 of the quiet figure.
const COST_PER_CORE: f64 = 1.0;

/// How a regression is told from noise.
pub const RULE: [&str; 3] = [
    "a regression is a median of the new runs beyond the baseline's median plus the largest of: 4 standard deviations \
     of its runs (from their median absolute deviation, corrected for few runs), a share of the median (latency 25 %, \
     processor 15 %, memory 10 %), an absolute floor (0.2 ms, 0.02 cores, 8 MB)",
    "where others kept x cores busier than in the baseline the bound on processor time is widened by the factor 1 + x \
     and that on latencies by 1 + 10 x; from x = 0.2 on latencies say nothing of the server and are skipped",
    "never noise: a broken invariant, a lost or duplicated message, and a figure that is no longer measured",
];

/// What is said of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Within its bound.
    Held,
    /// Beyond its bound.
    Regressed,
    /// The baseline has it and the new runs have not.
    Missing,
    /// The machine makes it meaningless.
    Skipped,
    /// The baseline does not have it.
    New,
}

/// One figure against the baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The figure.
    pub name: String,
    /// The baseline's median.
    pub baseline: Option<f64>,
    /// The worst value that is no regression.
    pub bound: Option<f64>,
    /// The new runs' median.
    pub value: Option<f64>,
    /// What follows.
    pub outcome: Outcome,
    #[serde(skip)]
    unit: Unit,
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Whether nothing failed.
    pub held: bool,
    /// Broken invariants and lost or duplicated messages, by run.
    pub broken: Vec<String>,
    /// What limits the check.
    pub notes: Vec<String>,
    /// Cores that others kept busier than in the baseline.
    pub excess_load_cores: f64,
    /// By name.
    pub figures: Vec<Row>,
}

/// Why new runs cannot be held against a baseline.
#[derive(Debug, thiserror::Error)]
#[error("the baseline is of other work: `{field}` is {a} there and {b} in run {run}")]
pub struct OtherWork {
    run: usize,
    field: &'static str,
    a: String,
    b: String,
}

/// Whether figures of another machine are held against the baseline too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    /// No: time, processor and memory are then skipped.
    Same,
    /// Yes.
    Any,
}

/// Holds the medians of new runs against a baseline.
///
/// # Errors
/// A run did other work.
pub fn check(baseline: &Baseline, runs: &[Report], machines: Machines) -> Result<Checked, OtherWork> {
    for (run, report) in (1..).zip(runs) {
        let differences = baseline.workload.differences(&Workload::of(&report.setup));
        if let Some(Difference { field, a, b }) = differences.into_iter().next() {
            return Err(OtherWork { run, field, a, b });
        }
    }
    let loads: Vec<f64> = runs.iter().map(|run| run.cost.other_load_cores).collect();
    let excess = (stats::median(&loads).unwrap_or(0.0) - baseline.other_load_cores.median).max(0.0);
    let foreign = machines == Machines::Same && runs.iter().any(|run| run.setup.machine != baseline.machine);
    let now = medians(runs);
    let mut rows: Vec<Row> = baseline
        .figures
        .iter()
        .map(|(name, spread)| row(name, *spread, baseline.runs, now.get(name), excess, foreign))
        .collect();
    let unknown = now.values().filter(|figure| !baseline.figures.contains_key(&figure.name));
    rows.extend(unknown.filter(|figure| baseline::is_judged(figure)).map(|figure| Row {
        name: figure.name.clone(),
        baseline: None,
        bound: None,
        value: Some(figure.value),
        outcome: Outcome::New,
        unit: figure.kind.unit,
    }));
    let broken = broken(runs);
    let failed = rows.iter().any(|row| matches!(row.outcome, Outcome::Regressed | Outcome::Missing));
    Ok(Checked {
        held: !failed && broken.is_empty(),
        broken,
        notes: notes(baseline, &rows, excess, foreign),
        excess_load_cores: excess,
        figures: rows,
    })
}

/// Each figure with the median of its values, where every run has it.
fn medians(runs: &[Report]) -> BTreeMap<String, Figure> {
    let mut all: BTreeMap<String, (Figure, Vec<f64>)> = BTreeMap::new();
    for figure in runs.iter().flat_map(figures::of) {
        let value = figure.value;
        let entry = all.entry(figure.name.clone()).or_insert_with(|| (figure.clone(), Vec::new()));
        entry.0.unjudged = entry.0.unjudged.or(figure.unjudged);
        entry.1.push(value);
    }
    all.into_iter()
        .filter(|(_, (_, values))| values.len() == runs.len())
        .filter_map(|(name, (figure, values))| {
            Some((name, Figure { value: stats::median(&values)?, ..figure }))
        })
        .collect()
}

fn row(name: &str, spread: Spread, runs: usize, figure: Option<&Figure>, excess: f64, foreign: bool) -> Row {
    let mut row = Row {
        name: name.to_owned(),
        baseline: Some(spread.median),
        bound: None,
        value: None,
        outcome: Outcome::Missing,
        unit: figure.map_or(Unit::Count, |figure| figure.kind.unit),
    };
    let Some(figure) = figure.filter(|figure| baseline::is_judged(figure)) else { return row };
    row.value = Some(figure.value);
    let of_the_machine = figure.kind.under_load != UnderLoad::Same || figure.kind.unit == Unit::Bytes;
    let meaningless = figure.kind.under_load == UnderLoad::Waits && excess >= QUIET_CORES;
    if meaningless || (foreign && of_the_machine) {
        row.outcome = Outcome::Skipped;
        return row;
    }
    let bound = bound(figure, spread, runs, excess);
    row.bound = Some(bound);
    let held = match figure.kind.better {
        Better::Higher => figure.value >= bound,
        _ => figure.value <= bound,
    };
    row.outcome = if held { Outcome::Held } else { Outcome::Regressed };
    row
}

/// The worst value that is no regression.
fn bound(figure: &Figure, spread: Spread, runs: usize, excess: f64) -> f64 {
    let kind = &figure.kind;
    if NEVER_NAMES.contains(&figure.name.as_str()) {
        return 0.0;
    }
    let noise = (DEVIATIONS * stats::scaled(spread.mad, runs))
        .max(kind.floor_share * spread.median.abs())
        .max(kind.floor);
    let widened = match kind.under_load {
        UnderLoad::Same => 1.0,
        UnderLoad::CostsMore => 1.0 + COST_PER_CORE * excess,
        UnderLoad::Waits => 1.0 + WAIT_PER_CORE * excess,
    };
    match kind.better {
        Better::Higher => (spread.median - noise) / widened,
        _ => (spread.median + noise) * widened,
    }
}

fn broken(runs: &[Report]) -> Vec<String> {
    let mut broken = Vec::new();
    for (run, report) in (1..).zip(runs) {
        if report.invariants.is_empty() {
            broken.push(format!("run {run}: no invariant was checked"));
        }
        for invariant in report.invariants.iter().filter(|invariant| !invariant.held) {
            broken.push(format!("run {run}: {}: {}", plain(&invariant.name), plain(&invariant.detail)));
        }
        for figure in figures::of(report) {
            if NEVER_NAMES.contains(&figure.name.as_str()) && figure.value > 0.0 {
                broken.push(format!("run {run}: {} {}", figure.value, figure.name));
            }
        }
    }
    broken
}

fn notes(baseline: &Baseline, rows: &[Row], excess: f64, foreign: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let names = |outcome| -> Vec<&str> {
        rows.iter().filter(|row| row.outcome == outcome).map(|row| row.name.as_str()).collect()
    };
    let skipped = names(Outcome::Skipped);
    if foreign {
        notes.push(format!(
            "another machine than the baseline's ({}): skipped: {} (--any-machine checks them)",
            plain(&baseline.machine),
            skipped.join(" ")
        ));
    } else if !skipped.is_empty() {
        notes.push(format!(
            "a busy machine: others kept {excess:.2} cores busier than in the baseline: skipped: {}",
            skipped.join(" ")
        ));
    }
    let new = names(Outcome::New);
    if !new.is_empty() {
        notes.push(format!("not in the baseline, so not checked: {}", new.join(" ")));
    }
    notes
}

impl Checked {
    /// The lines for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{:<26} {:>14} {:>14} {:>14}\n", "figure", "baseline", "bound", "now");
        for row in self.figures.iter().filter(|row| row.outcome != Outcome::New) {
            let show =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| row.unit.show(value));
            let word = match row.outcome {
                Outcome::Held | Outcome::New => String::new(),
                Outcome::Regressed => format!("REGRESSED{}", by(row)),
                Outcome::Missing => "MISSING: it is no longer measured".to_owned(),
                Outcome::Skipped => "skipped".to_owned(),
            };
            let (baseline, bound, value) = (show(row.baseline), show(row.bound), show(row.value));
            let line = format!("{:<26} {baseline:>14} {bound:>14} {value:>14}  {word}", plain(&row.name));
            let _ = writeln!(out, "{}", line.trim_end());
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        for broken in &self.broken {
            let _ = writeln!(out, "BROKEN {broken}");
        }
        for rule in RULE {
            let _ = writeln!(out, "{rule}");
        }
        let count = |outcome| self.figures.iter().filter(|row| row.outcome == outcome).count();
        let _ = writeln!(
            out,
            "check: {}: {} held, {} regressed, {} missing, {} skipped, {} broken",
            if self.held { "held" } else { "FAILED" },
            count(Outcome::Held),
            count(Outcome::Regressed),
            count(Outcome::Missing),
            count(Outcome::Skipped),
            self.broken.len(),
        );
        out
    }
}

/// By how much a figure is beyond the baseline and its bound.
fn by(row: &Row) -> String {
    let (Some(baseline), Some(bound), Some(value)) = (row.baseline, row.bound, row.value) else {
        return String::new();
    };
    let ratio = if baseline == 0.0 {
        String::new()
    } else {
        format!(" ({:.2} times the baseline)", value / baseline)
    };
    format!(" by {} beyond the bound{ratio}", row.unit.show((value - bound).abs()))
}

#[cfg(test)]
mod tests;
