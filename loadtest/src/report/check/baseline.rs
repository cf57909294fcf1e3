//! The committed file that later runs are held against.
//!
//! Called by `check`. It is made of several runs of the same work and holds, for each judged figure, the median, the
//! median absolute deviation and the range. Promise: a line a figure, sorted, so that a diff shows what moved.
//! Limits: [`BASELINE_BYTES_MAX`], at least [`RUNS_MIN`] runs.

use crate::report::figures::{self, Better, Figure};
use crate::report::json;
use crate::report::model::Report;
use crate::report::setups::Workload;
use crate::report::stats;
use crate::report::store::{self, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The version that this program writes and reads.
pub const BASELINE_VERSION: u32 = 1;
/// The largest file that is read.
pub const BASELINE_BYTES_MAX: u64 = 1 << 20;
/// Runs that a baseline is made of at least: fewer tell nothing of how runs differ.
pub const RUNS_MIN: usize = 3;

/// What several runs had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// [`BASELINE_VERSION`].
    pub version: u32,
    /// Where they ran.
    pub machine: String,
    /// What they ran.
    pub workload: Workload,
    /// How many they were.
    pub runs: usize,
    /// Cores that others kept busy.
    pub other_load_cores: Spread,
    /// By the figure's name.
    pub figures: BTreeMap<String, Spread>,
}

/// How the runs' values of one figure lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// Median distance from the median, not scaled.
    pub mad: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

/// Why a baseline cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BaselineError {
    #[error("a baseline is made of at least {RUNS_MIN} runs, not {found}")]
    TooFewRuns { found: usize },
    #[error("the runs did not do the same work: `{field}` is {a} and {b}")]
    OtherWork { field: &'static str, a: String, b: String },
    #[error("the runs were not on the same machine: {a}; {b}")]
    OtherMachine { a: String, b: String },
    #[error("the invariant `{name}` broke in run {run}: {detail}")]
    Broken { run: usize, name: String, detail: String },
    #[error("{0}")]
    File(String, #[source] StoreError),
}

impl Baseline {
    /// Makes a baseline; figures that one of the runs does not have are left out.
    ///
    /// # Errors
    /// Too few runs, different ones, or one with a broken invariant.
    pub fn of(runs: &[Report]) -> Result<Self, BaselineError> {
        let [first, others @ ..] = runs else { return Err(BaselineError::TooFewRuns { found: 0 }) };
        if runs.len() < RUNS_MIN {
            return Err(BaselineError::TooFewRuns { found: runs.len() });
        }
        for (run, report) in (1..).zip(runs) {
            if let Some(broken) = report.invariants.iter().find(|invariant| !invariant.held) {
                let (name, detail) = (broken.name.clone(), broken.detail.clone());
                return Err(BaselineError::Broken { run, name, detail });
            }
        }
        let workload = Workload::of(&first.setup);
        for other in others {
            if let Some(difference) = workload.differences(&Workload::of(&other.setup)).into_iter().next() {
                let super::Difference { field, a, b } = difference;
                return Err(BaselineError::OtherWork { field, a, b });
            }
            if other.setup.machine != first.setup.machine {
                let (a, b) = (first.setup.machine.clone(), other.setup.machine.clone());
                return Err(BaselineError::OtherMachine { a, b });
            }
        }
        let loads: Vec<f64> = runs.iter().map(|run| run.cost.other_load_cores).collect();
        Ok(Self {
            version: BASELINE_VERSION,
            machine: first.setup.machine.clone(),
            workload,
            runs: runs.len(),
            other_load_cores: Spread::of(&loads),
            figures: by_name(runs).into_iter().map(|(name, values)| (name, Spread::of(&values))).collect(),
        })
    }

    /// Reads a baseline.
    ///
    /// # Errors
    /// The file cannot be read, is of another version, or no baseline.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let text = store::read_text(path, BASELINE_BYTES_MAX)?;
        store::check_version(path, &text, BASELINE_VERSION)?;
        serde_json::from_str(&text).map_err(|source| StoreError::Json {
            path: path.to_owned(),
            field: json::field_of(&text, &source),
            source,
        })
    }

    /// Writes a baseline.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        let field = String::new();
        let bytes =
            json::lines(self).map_err(|source| StoreError::Json { path: path.to_owned(), field, source })?;
        store::write_file(path, &bytes)
    }
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let fold = |start, of: fn(f64, f64) -> f64| values.iter().copied().fold(start, of);
        Self {
            median: rounded(stats::median(values).unwrap_or(0.0)),
            mad: rounded(stats::deviation(values).unwrap_or(0.0)),
            least: rounded(fold(f64::INFINITY, f64::min)),
            greatest: rounded(fold(f64::NEG_INFINITY, f64::max)),
        }
    }
}

/// Six significant digits: more would only make diffs longer.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// Whether a figure can regress.
pub(super) fn is_judged(figure: &Figure) -> bool {
    figure.unjudged.is_none() && figure.kind.better != Better::Neither
}

/// Values of the judged figures that every run has.
fn by_name(runs: &[Report]) -> BTreeMap<String, Vec<f64>> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for figure in runs.iter().flat_map(figures::of).filter(is_judged) {
        values.entry(figure.name).or_default().push(figure.value);
    }
    values.retain(|_, values| values.len() == runs.len());
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::synthetic;
    use tempfile::tempdir;

    fn runs(count: u64) -> Vec<Report> {
        (1..=count)
            .map(|seed| Report { setup: synthetic::report(1, 60).setup, ..synthetic::report(seed, 60) })
            .collect()
    }

    #[test]
    fn what_was_written_is_read_back_and_has_a_line_a_figure() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("baseline/quick.json");
        let baseline = Baseline::of(&runs(5)).unwrap();
        baseline.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| line.contains("{\"median\"")).count();
        assert_eq!(lines, baseline.figures.len());
        let names: Vec<_> = baseline.figures.keys().map(String::as_str).collect();
        assert!(names.contains(&"puback_p95_ms") && !names.contains(&"puback_max_ms"), "{names:?}");
        assert!(!names.contains(&"connects"));
    }

    #[test]
    fn few_different_or_broken_runs_make_no_baseline() {
        let told = |runs: &[Report], expected: &str| {
            let error = Baseline::of(runs).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        told(&[], "at least 3 runs, not 0");
        told(&runs(2), "at least 3 runs, not 2");
        let mut other = runs(3);
        other[2].setup.rate = 5.0;
        told(&other, "`rate` is 1,000 and 5");
        let mut other = runs(3);
        other[1].setup.machine = "elsewhere".to_owned();
        told(&other, "not on the same machine");
        let mut broken = runs(3);
        broken[1].invariants[0].held = false;
        told(&broken, "`stored_exactly_once` broke in run 2");
    }

    #[test]
    fn a_figure_that_a_run_lacks_is_left_out() {
        let mut runs = runs(3);
        runs[1].cost.server_rss_bytes = None;
        let baseline = Baseline::of(&runs).unwrap();
        assert!(!baseline.figures.contains_key("server_rss_bytes"));
        assert!(baseline.figures.contains_key("server_cpu_cores"));
    }

    #[test]
    fn a_broken_file_is_refused_with_its_field_and_a_large_one_unread() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("baseline.json");
        let baseline = Baseline::of(&runs(3)).unwrap();
        baseline.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let refused = |text: &str, expected: &str| {
            std::fs::write(&path, text).unwrap();
            let error = Baseline::read(&path).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refused(&text.replacen("\"mad\": ", "\"mad\": -x", 1), "is no JSON object");
        refused(&text.replacen("\"mad\": ", "\"mid\": ", 1), "field `other_load_cores.mid`");
        refused(&text.replacen("\"version\": 1", "\"version\": 9", 1), "version 9");
        refused(&" ".repeat(BASELINE_BYTES_MAX as usize + 1), "more than 1048576 bytes");
    }

    #[test]
    fn six_digits_are_kept() {
        assert_eq!([rounded(0.123_456_789), rounded(1e9 + 1.0), rounded(0.0)], [0.123_457, 1e9, 0.0]);
    }
}
