//! `xtask bench`: the figures that the project promises, measured on the real binaries.
//!
//! Each bench prints the machine, its figures with their bars, and as its last line one JSON object
//! `{"bench": .., "figures": {name: number}, "bars": {name: [op, number]}}`. `--check` fails on a missed bar.
//! Binaries are built with the `dist` profile (fat LTO). Some bars are for a quiet machine only:
//! less than [`QUIET_CORES`] kept busy by others while the bench ran.

mod agent;
mod bundle;
pub(crate) mod fleet;
mod gateway;
mod journal;
mod load;
mod models;
mod noisy;
mod pipelines;
mod provision;
mod proxy;
mod stores;

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Below this the machine counts as quiet.
const QUIET_CORES: f64 = 0.2;

/// Command line of `xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The MQTT gateway in front of the event log, and the whole path behind it.
    Gateway(Options),
    /// Ten thousand devices as `muster-loadtest run` simulates them; half an hour.
    Fleet(fleet::Arguments),
    /// A tenant at ten times its quota beside a quiet one.
    Noisy(Options),
    /// The journal alone.
    Journal(Options),
    /// The agent's memory, size, start and idle traffic.
    Agent(Options),
    /// The agent's engines on the reference models, beside ONNX Runtime.
    Models(Options),
    /// Four pipelines on one agent for ten minutes: memory, budgets, nothing lost.
    Pipelines(pipelines::Arguments),
    /// The stores on their engines, beside the engines without our code; queries on a month of readings.
    Stores(Options),
}

/// How a bench runs.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Options {
    /// Shorter and once instead of three times: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Measure the binaries that stand below target/dist from an earlier build.
    #[arg(long)]
    no_build: bool,
    /// Fail when a bar is missed.
    #[arg(long)]
    check: bool,
}

/// Runs a bench; answers whether its bars held, or true without `--check`.
///
/// # Errors
/// A program cannot be built, started or measured.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let (options, report) = match &arguments.what {
        What::Gateway(options) => (options, gateway::run(*options)?),
        What::Fleet(fleet) => (&fleet.options, fleet::run(fleet)?),
        What::Noisy(options) => (options, noisy::run(*options)?),
        What::Journal(options) => (options, journal::run(*options)?),
        What::Agent(options) => (options, agent::run(*options)?),
        What::Models(options) => (options, models::run(*options)?),
        What::Pipelines(pipelines) => (&pipelines.options, pipelines::run(pipelines)?),
        What::Stores(options) => (options, stores::run(*options)?),
    };
    report.print();
    Ok(report.held() || !options.check)
}

/// How a figure compares with its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar {
    AtMost,
    AtLeast,
}

impl Bar {
    fn text(self) -> &'static str {
        match self {
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
        }
    }

    fn holds(self, figure: f64, bar: f64) -> bool {
        match self {
            Self::AtMost => figure <= bar,
            Self::AtLeast => figure >= bar,
        }
    }
}

/// Figures and bars of one bench.
pub(crate) struct Report {
    bench: &'static str,
    figures: BTreeMap<String, f64>,
    bars: BTreeMap<String, (Bar, f64)>,
    /// In the order of their coming.
    order: Vec<String>,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        println!("{}", machine());
        Self { bench, figures: BTreeMap::new(), bars: BTreeMap::new(), order: Vec::new() }
    }

    /// Notes a figure.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        // Six significant digits are more than any of these means.
        let digits = if value == 0.0 { 0 } else { 5 - value.abs().log10().floor() as i32 };
        let scale = 10_f64.powi(digits.clamp(0, 9));
        self.figures.insert(name.clone(), (value * scale).round() / scale);
        self.order.push(name);
    }

    /// Notes a figure with its bar.
    pub(crate) fn barred(&mut self, name: impl Into<String>, value: f64, bar: Bar, limit: f64) {
        let name = name.into();
        self.figure(name.as_str(), value);
        self.bars.insert(name, (bar, limit));
    }

    /// Whether every bar held; a figure that is no number misses its bar.
    fn held(&self) -> bool {
        self.bars.iter().all(|(name, (bar, limit))| bar.holds(self.figures[name], *limit))
    }

    fn line(&self) -> Line<'_> {
        let bars =
            self.bars.iter().map(|(name, (bar, limit))| (name.as_str(), (bar.text(), *limit))).collect();
        Line { bench: self.bench, figures: &self.figures, bars }
    }

    fn print(&self) {
        println!("\n{:<28} {:>14}  {:<14} ratio to bar", self.bench, "figure", "bar");
        for name in &self.order {
            let value = self.figures[name];
            match self.bars.get(name) {
                None => println!("{name:<28} {value:>14}"),
                Some((bar, limit)) => {
                    let verdict = if bar.holds(value, *limit) { "" } else { "  MISSED" };
                    let ratio = if *limit == 0.0 { String::new() } else { format!("{:.2}", value / limit) };
                    println!(
                        "{name:<28} {value:>14}  {:<14} {ratio}{verdict}",
                        format!("{} {limit}", bar.text())
                    );
                }
            }
        }
        println!("{}", serde_json::to_string(&self.line()).expect("a line holds texts and numbers"));
    }
}

/// The last line of a bench.
#[derive(serde::Serialize)]
struct Line<'a> {
    bench: &'a str,
    figures: &'a BTreeMap<String, f64>,
    bars: BTreeMap<&'a str, (&'static str, f64)>,
}

/// The middle of the values; the mean of the two middle ones where their number is even.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Processor, cores, memory and kernel in one line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor =
        after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = after(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("machine: {processor}, {cores} cores, {memory} memory, Linux {}", kernel.trim())
}

/// An empty directory below `target/bench`.
pub(crate) fn fresh_dir(name: &str) -> Result<PathBuf> {
    let dir = crate::cargo::target_dir().join("bench").join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_ends_as_one_object_and_knows_missed_bars() {
        let mut report = Report::new("gateway");
        report.figure("other_load_cores", 0.123_456_789);
        report.barred("lost", 0.0, Bar::AtMost, 0.0);
        report.barred("connects_per_s", 12_345.678_9, Bar::AtLeast, 12_000.0);
        assert!(report.held());
        let expect = json!({
            "bench": "gateway",
            "figures": { "other_load_cores": 0.123_457, "lost": 0.0, "connects_per_s": 12_345.7 },
            "bars": { "lost": ["<=", 0.0], "connects_per_s": [">=", 12_000.0] }
        });
        assert_eq!(serde_json::to_value(report.line()).unwrap(), expect);
        report.barred("rss_mb", 65.0, Bar::AtMost, 64.0);
        assert!(!report.held());
        report.barred("rss_mb", f64::NAN, Bar::AtMost, 64.0);
        assert!(!report.held());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
