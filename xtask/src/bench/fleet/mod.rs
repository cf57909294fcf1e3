//! `bench fleet`: ten thousand devices, as `muster-loadtest run` simulates them, and the figures that this proves.
//!
//! One generator on the same machine, embedded defaults, a PUBACK after the fsync. The full bench takes half an hour:
//! `k1` and `k10` are 1,000 and 10,000 messages a second with mTLS, `storm` a killed server to which the whole fleet
//! comes back with a backlog, `plain` the generator's own cost, `rules` a thousand rules, `connections` a hundred
//! thousand, `mosquitto` the same load side by side.
//! Every run's invariants are part of the figures: a broken one fails the bench.

mod connections;
mod mosquitto;
mod simulate;

use super::{Bar, Options, QUIET_CORES, Report, fresh_dir};
use crate::cargo;
use crate::process::catch_interrupts;
use anyhow::{Context, Result};
use clap::ValueEnum as _;
use simulate::{Simulated, Simulator};
use std::process::Stdio;

/// Devices of the full bench, and of the quick one.
const DEVICES: (&str, &str) = ("10000", "2000");

/// What `bench fleet` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(super) options: Options,
    /// Only these parts, separated by commas; all of them unless given, of `--quick` the first two.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
}

/// A part of the bench.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// 1,000 messages a second.
    K1,
    /// A killed server, and the fleet's return.
    Storm,
    /// 10,000 messages a second.
    K10,
    /// The generator without TLS, and a thousand rules.
    Rules,
    /// Evaluations alone.
    Evaluations,
    /// A hundred thousand connections.
    Connections,
    /// The same load on mosquitto.
    Mosquitto,
}

struct Bench {
    options: Options,
    simulator: Simulator,
    report: Report,
    /// Load of others in each run.
    other: Vec<f64>,
}

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run, or an invariant broke.
pub(crate) fn run(arguments: &Arguments) -> Result<Report> {
    let options = arguments.options;
    if !options.no_build {
        cargo::build_dist(&["muster-server", "muster-loadtest"])?;
    }
    catch_interrupts();
    let simulator = Simulator { binaries: cargo::dist_binaries(), out: fresh_dir("fleet")? };
    let mut bench = Bench { options, simulator, report: Report::new("fleet"), other: Vec::new() };
    let parts = match (&arguments.only[..], options.quick) {
        ([], true) => &Part::value_variants()[..2],
        ([], false) => Part::value_variants(),
        (only, _) => only,
    };
    for part in parts {
        match part {
            Part::K1 => bench.steady("k1", "1000", "600")?,
            Part::Storm => bench.storm()?,
            Part::K10 => bench.steady("k10", "10000", "120")?,
            Part::Rules => bench.plain_and_rules()?,
            Part::Evaluations => bench.rule_rates()?,
            Part::Connections => connections::run(&bench.simulator, &mut bench.report)?,
            Part::Mosquitto => mosquitto::run(&bench.simulator, &mut bench.report)?,
        }
    }
    let other = bench.other.iter().copied().fold(0.0, f64::max);
    bench.report.figure("other_load_cores", other);
    Ok(bench.report)
}

/// The quick run on the dev build, for `cargo xtask test`: asserts the invariants and prints the times.
///
/// # Errors
/// A program cannot be run.
pub(crate) fn quick_on_dev_build() -> Result<bool> {
    let simulator = Simulator { binaries: cargo::dev_binaries(), out: fresh_dir("fleet-quick")? };
    let devices = ["--devices", DEVICES.1, "--rate", "500", "--seconds", "60", "--tenants", "4"];
    let run = simulator.own("quick", &[&devices[..], &["--transport", "mtls", "--quiet"]].concat())?;
    Ok(run.held)
}

/// Every fault at once on the dev build, five minutes a seed, for `cargo xtask trials`: answers whether every
/// invariant of every seed held.
///
/// # Errors
/// A program cannot be run.
pub(crate) fn with_every_fault(seeds: u64) -> Result<bool> {
    let simulator = Simulator { binaries: cargo::dev_binaries(), out: fresh_dir("fleet-faults")? };
    let mut held = true;
    for seed in 1..=seeds {
        let (name, seed) = (format!("seed-{seed}"), seed.to_string());
        let devices = ["--devices", DEVICES.1, "--rate", "500", "--seconds", "300", "--tenants", "4"];
        let faults =
            ["--transport", "mtls", "--profile", "mixed", "--faults", "all", "--seed", &seed, "--quiet"];
        held &= simulator.own(&name, &[&devices[..], &faults].concat())?.held;
    }
    Ok(held)
}

impl Bench {
    fn devices(&self) -> &'static str {
        if self.options.quick { DEVICES.1 } else { DEVICES.0 }
    }

    fn simulate(&mut self, name: &str, flags: &[&str]) -> Result<Simulated> {
        let run = self.simulator.own(name, flags)?;
        run.expect_held(name)?;
        self.other.push(run.other_load());
        Ok(run)
    }

    /// A steady rate, whole path, mTLS.
    fn steady(&mut self, name: &str, rate: &str, seconds: &str) -> Result<()> {
        let seconds = if self.options.quick { "60" } else { seconds };
        let flags =
            ["--devices", self.devices(), "--rate", rate, "--seconds", seconds, "--transport", "mtls"];
        let run = self.simulate(name, &flags)?;
        let is_quiet = run.other_load() < QUIET_CORES;
        let is_k1 = name == "k1";
        let (names, quiet) =
            if is_k1 { (K1, "k1_puback_quiet_p95_ms") } else { (K10, "k10_puback_quiet_p95_ms") };
        let [quiet_ms, busy_ms] = if is_k1 { [2.0, 10.0] } else { [4.0, 20.0] };
        let report = &mut self.report;
        report.barred(names[0], run.number("/totals/success_ratio"), Bar::AtLeast, 1.0);
        report.barred(names[1], run.number("/totals/ledger/lost"), Bar::AtMost, 0.0);
        report.barred(names[2], run.number("/totals/ledger/duplicated"), Bar::AtMost, 0.0);
        let p95 = run.number("/latency/puback/p95_ms");
        report.barred(names[3], p95, Bar::AtMost, if is_quiet { quiet_ms } else { busy_ms });
        if let Some(p95) = run.quiet_puback_p95_ms() {
            report.barred(quiet, p95, Bar::AtMost, quiet_ms);
        }
        report.figure(names[4], run.number("/latency/stored/p95_ms"));
        let alert = run.number("/latency/alert/p95_ms");
        if is_k1 && is_quiet {
            report.barred(names[5], alert, Bar::AtMost, 50.0);
        } else {
            report.figure(names[5], alert);
        }
        let rss_mb = run.number("/cost/server_rss_bytes") / 1e6;
        let cores = run.number("/cost/generator_cpu_cores");
        if is_k1 {
            report.barred(names[6], rss_mb, Bar::AtMost, 320.0);
            report.barred(names[8], cores, Bar::AtMost, 0.3);
            report.barred("k1_generator_kb_per_device", run.generator_kb_per_device(), Bar::AtMost, 20.0);
        } else {
            report.figure(names[6], rss_mb);
            report.figure(names[8], cores);
        }
        report.figure(names[7], run.number("/cost/server_cpu_cores"));
        Ok(())
    }

    /// The server is killed; the whole fleet comes back with a backlog, and live messages go on.
    fn storm(&mut self) -> Result<()> {
        let (rate, backlog) = if self.options.quick { ("200", "30") } else { ("1000", "60") };
        let seconds = if self.options.quick { "40" } else { "120" };
        let flags = [
            "--devices",
            self.devices(),
            "--rate",
            rate,
            "--seconds",
            seconds,
            "--transport",
            "mtls",
            "--backlog",
            backlog,
            "--faults",
            "all-return@10+2",
        ];
        let run = self.simulate("storm", &flags)?;
        self.report.barred("reconnect_s", run.reconnect_s(), Bar::AtMost, 20.0);
        let live = run.number("/latency/storm_live/p99_ms");
        self.report.barred("storm_live_p99_ms", live, Bar::AtMost, 5_000.0);
        self.report.barred("storm_lost", run.number("/totals/ledger/lost"), Bar::AtMost, 0.0);
        Ok(())
    }

    /// What the generator costs without TLS; and what a thousand rules cost, side by side with none.
    fn plain_and_rules(&mut self) -> Result<()> {
        let flags = ["--devices", self.devices(), "--rate", "1000", "--seconds", "60"];
        let without = self.simulate("plain", &flags)?;
        let cores = without.number("/cost/generator_cpu_cores");
        self.report.barred("plain_generator_cpu_cores", cores, Bar::AtMost, 0.15);
        let kb = without.generator_kb_per_device();
        self.report.barred("plain_generator_kb_per_device", kb, Bar::AtMost, 3.0);
        self.report.figure("plain_puback_p95_ms", without.number("/latency/puback/p95_ms"));
        // With the probes' own rule they are a thousand, the most of one tenant.
        let rules = ["--rules", "999", "--rule-devices", "100"];
        let with = self.simulate("rules", &[&flags[..], &rules[..]].concat())?;
        let more = |pointer: &str| with.number(pointer) - without.number(pointer);
        self.report.barred("rules_cpu_cores", more("/cost/server_cpu_cores"), Bar::AtMost, 0.1);
        self.report.barred("rules_rss_mb", more("/cost/server_rss_bytes") / 1e6, Bar::AtMost, 30.0);
        Ok(())
    }

    /// Evaluations alone, on one core.
    fn rule_rates(&mut self) -> Result<()> {
        let mut command = cargo::cargo();
        command.args(["run", "--quiet", "--locked", "--profile", "dist", "--package", "muster-server"]);
        command.args(["--example", "rule_rates"]);
        let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        // The fleet that the bar is of: ten rules a device.
        let per_core = text
            .lines()
            .filter(|line| line.starts_with("1,000 rules"))
            .filter_map(|line| line.split_once(" evaluations/s per core"))
            .filter_map(|(before, _)| before.split_whitespace().last()?.parse::<f64>().ok())
            .next_back()
            .unwrap_or(f64::NAN);
        self.report.barred("rule_evaluations_per_core", per_core, Bar::AtLeast, 500_000.0);
        Ok(())
    }
}

const K1: [&str; 9] = [
    "k1_success_ratio",
    "k1_lost",
    "k1_duplicated",
    "k1_puback_p95_ms",
    "k1_stored_p95_ms",
    "k1_alert_p95_ms",
    "k1_server_rss_mb",
    "k1_server_cpu_cores",
    "k1_generator_cpu_cores",
];
const K10: [&str; 9] = [
    "k10_success_ratio",
    "k10_lost",
    "k10_duplicated",
    "k10_puback_p95_ms",
    "k10_stored_p95_ms",
    "k10_alert_p95_ms",
    "k10_server_rss_mb",
    "k10_server_cpu_cores",
    "k10_generator_cpu_cores",
];
