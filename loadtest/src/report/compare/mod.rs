//! Two reports side by side: which figures differ by more than noise.
//!
//! Called by the command `compare`. Two runs alone cannot tell how much runs differ, so the noise of a figure is
//! estimated from what is known before ([`figures::Kind`]'s floors) and from how it wanders during each run:
//! [`RULE`]. A difference that other load on the machine may have made is called unclear, never better or worse.

mod page;

use super::figures::{self, Better, Figure, UnderLoad};
use super::model::Report;
use super::setups;
use super::units::{Unit, number, plain};
use serde::Serialize;
use std::fmt::Write;

pub use page::page;

/// The page's file, in the directory that `--out` names.
pub const COMPARE_HTML: &str = "compare.html";
/// How many standard errors of a figure's wandering are noise.
const STANDARD_ERRORS: f64 = 3.0;

/// How noise is told from a difference.
pub const RULE: [&str; 3] = [
    "same: the difference is within the noise, the largest of an absolute floor (latency 0.2 ms, processor 0.02 \
     cores, memory 8 MB), a share of the smaller value (25 %, 15 %, 10 %), and three standard errors of the figure's \
     wandering during the two runs (from the medians of ten parts of each)",
    "unclear: beyond the noise, but the run with the worse time or processor cost also ran on a machine that others \
     kept busier by at least 0.2 cores",
    "not judged: a maximum is one sample; a percentile with fewer than three samples beyond it; figures that have no \
     good direction",
];

/// What is said of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Beyond noise, in the good direction.
    Better,
    /// Beyond noise, in the bad direction.
    Worse,
    /// Within noise.
    Same,
    /// Beyond noise, and others' load may have done it.
    Unclear,
    /// Shown only.
    Unjudged,
    /// In one of the two reports only.
    Missing,
}

/// One figure of both runs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The figure.
    pub name: String,
    /// In the first report.
    pub a: Option<f64>,
    /// In the second.
    pub b: Option<f64>,
    /// b - a.
    pub difference: Option<f64>,
    /// b / a; none where a is 0.
    pub ratio: Option<f64>,
    /// Differences up to here are noise.
    pub noise: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
    #[serde(skip)]
    unit: Unit,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What a reader must know first.
    pub notes: Vec<String>,
    /// Figures in the order of the report.
    pub figures: Vec<Row>,
    /// Invariants that broke, by run.
    pub broken: Vec<String>,
}

/// Holds `b` against `a`.
#[must_use]
pub fn compare(a: &Report, b: &Report) -> Comparison {
    let of_b = figures::of(b);
    let of_a = figures::of(a);
    let excess = b.cost.other_load_cores - a.cost.other_load_cores;
    let mut rows: Vec<Row> = of_a
        .iter()
        .map(|first| row(Some(first), of_b.iter().find(|second| second.name == first.name), excess))
        .collect();
    let only_b = of_b.iter().filter(|second| of_a.iter().all(|first| first.name != second.name));
    rows.extend(only_b.map(|second| row(None, Some(second), excess)));
    let broken = |run: &str, report: &Report| -> Vec<String> {
        let broken = report.invariants.iter().filter(|invariant| !invariant.held);
        broken.map(|one| format!("{run}: {}: {}", plain(&one.name), plain(&one.detail))).collect()
    };
    Comparison {
        notes: setups::notes(a, b),
        figures: rows,
        broken: [broken("a", a), broken("b", b)].concat(),
    }
}

fn row(a: Option<&Figure>, b: Option<&Figure>, excess_cores: f64) -> Row {
    let some = a.or(b).expect("a row is made of at least one figure");
    let (value_a, value_b) = (a.map(|figure| figure.value), b.map(|figure| figure.value));
    let mut row = Row {
        name: some.name.clone(),
        a: value_a,
        b: value_b,
        difference: None,
        ratio: None,
        noise: None,
        verdict: Verdict::Missing,
        unit: some.kind.unit,
    };
    let (Some(a), Some(b)) = (a, b) else { return row };
    let difference = b.value - a.value;
    row.difference = Some(difference);
    row.ratio = (a.value != 0.0).then(|| b.value / a.value);
    if a.kind.better == Better::Neither || a.unjudged.or(b.unjudged).is_some() {
        row.verdict = Verdict::Unjudged;
        return row;
    }
    let noise = noise(a, b);
    row.noise = Some(noise);
    row.verdict = verdict(a, difference, noise, excess_cores);
    row
}

/// The same for a against b as for b against a.
fn noise(a: &Figure, b: &Figure) -> f64 {
    let wander = a.wander.unwrap_or(0.0).hypot(b.wander.unwrap_or(0.0));
    let error = STANDARD_ERRORS * wander / (figures::PARTS as f64).sqrt();
    let smaller = a.value.abs().min(b.value.abs());
    let wandered = match a.kind.unit {
        Unit::Milliseconds => smaller * (error.exp() - 1.0),
        _ => error,
    };
    a.kind.floor.max(a.kind.floor_share * smaller).max(wandered)
}

fn verdict(a: &Figure, difference: f64, noise: f64, excess_cores: f64) -> Verdict {
    if difference.abs() <= noise {
        return Verdict::Same;
    }
    let worse = (difference > 0.0) == (a.kind.better == Better::Lower);
    let busier = if worse { excess_cores } else { -excess_cores };
    match worse {
        _ if a.kind.under_load != UnderLoad::Same && busier >= setups::QUIET_CORES => Verdict::Unclear,
        true => Verdict::Worse,
        false => Verdict::Better,
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::Unjudged => "(not judged)",
            Self::Missing => "missing",
        }
    }
}

impl Row {
    fn show(&self, value: Option<f64>) -> String {
        value.map_or_else(|| "-".to_owned(), |value| self.unit.show(value))
    }

    fn difference_text(&self) -> String {
        match self.difference {
            None => String::new(),
            Some(0.0) => "0".to_owned(),
            Some(difference) if difference > 0.0 => format!("+{}", self.unit.show(difference)),
            Some(difference) => format!("-{}", self.unit.show(-difference)),
        }
    }

    fn ratio_text(&self) -> String {
        self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
    }
}

impl Comparison {
    /// The table for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        for broken in &self.broken {
            let _ = writeln!(out, "broken invariant of {broken}");
        }
        let _ = writeln!(
            out,
            "{:<26} {:>14} {:>14} {:>14} {:>7} {:>14}",
            "figure", "a", "b", "b - a", "b / a", "noise"
        );
        for row in &self.figures {
            let _ = writeln!(
                out,
                "{:<26} {:>14} {:>14} {:>14} {:>7} {:>14}  {}",
                plain(&row.name),
                row.show(row.a),
                row.show(row.b),
                row.difference_text(),
                row.ratio_text(),
                row.noise.map_or_else(String::new, |noise| row.unit.show(noise)),
                row.verdict.word(),
            );
        }
        let told = |verdict| self.figures.iter().filter(|row| row.verdict == verdict).count() as f64;
        let _ = writeln!(
            out,
            "{} better, {} worse, {} unclear, {} the same within noise",
            number(told(Verdict::Better)),
            number(told(Verdict::Worse)),
            number(told(Verdict::Unclear)),
            number(told(Verdict::Same)),
        );
        for rule in RULE {
            let _ = writeln!(out, "{rule}");
        }
        out
    }
}

#[cfg(test)]
mod tests;
