//! Runs of `muster-loadtest run`, and the reports that they wrote.

use crate::bench::median;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Cores that others keep busy in a quiet second.
const QUIET_SECOND_CORES: f64 = 0.05;
/// Quiet seconds that tell anything.
const QUIET_SECONDS_MIN: usize = 30;

/// A report; figures by their path.
pub(super) struct Simulated {
    report: Value,
    pub(super) dir: PathBuf,
    /// Whether every invariant held.
    pub(super) held: bool,
}

/// Where the binaries are, and where reports go.
pub(super) struct Simulator {
    pub(super) binaries: PathBuf,
    pub(super) out: PathBuf,
}

impl Simulator {
    /// A run against a server of its own.
    ///
    /// # Errors
    /// The generator cannot be started, or wrote no report.
    pub(super) fn own(&self, name: &str, flags: &[&str]) -> Result<Simulated> {
        let server = self.binaries.join("muster-server");
        let server = server.to_str().context("the path of the server is no text")?.to_owned();
        self.run(name, &[&["--server", &server], flags].concat())
    }

    /// A run against whatever the flags say.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub(super) fn run(&self, name: &str, flags: &[&str]) -> Result<Simulated> {
        let dir = self.out.join(name);
        let report = dir.join("report.json");
        // A report of an earlier run would look like this one's.
        let _ = std::fs::remove_file(&report);
        println!("{name}: run {}", flags.join(" "));
        let mut command = Command::new(self.binaries.join("muster-loadtest"));
        command.arg("run").args(flags).arg("--out").arg(&dir);
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("cannot start muster-loadtest")?;
        let text = std::fs::read_to_string(&report)
            .with_context(|| format!("{name}: muster-loadtest ended with {status} and wrote no report"))?;
        let report = serde_json::from_str(&text).context("the report is no JSON")?;
        let simulated = Simulated { report, dir, held: status.success() };
        simulated.print(name);
        Ok(simulated)
    }
}

impl Simulated {
    /// A number at a JSON pointer; not a number where it is missing.
    pub(super) fn number(&self, pointer: &str) -> f64 {
        self.report.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    pub(super) fn other_load(&self) -> f64 {
        self.number("/cost/other_load_cores")
    }

    /// The median of the P95s of those seconds in which others kept less than [`QUIET_SECOND_CORES`] busy; none where
    /// there are too few. What a shared host takes away for a while is in the others.
    pub(super) fn quiet_puback_p95_ms(&self) -> Option<f64> {
        let samples = self.report["samples"].as_array().map_or(&[][..], Vec::as_slice);
        let is_quiet = |sample: &&Value| sample["other_load_cores"].as_f64() < Some(QUIET_SECOND_CORES);
        let p95 = |sample: &Value| sample.pointer("/live/p95_ms").and_then(Value::as_f64);
        let quiet: Vec<f64> = samples.iter().filter(is_quiet).filter_map(p95).collect();
        (quiet.len() >= QUIET_SECONDS_MIN).then(|| median(quiet))
    }

    /// Memory of the generator, all of it, for each device.
    pub(super) fn generator_kb_per_device(&self) -> f64 {
        self.number("/cost/generator_rss_bytes") / 1e3 / self.number("/setup/devices")
    }

    /// Seconds from the server's return to the last device's, of the first `all-return`.
    pub(super) fn reconnect_s(&self) -> f64 {
        let faults = self.report["faults"].as_array().map_or(&[][..], Vec::as_slice);
        let found = faults.iter().find(|fault| fault["kind"] == "all-return");
        let at = |fault: &Value, name: &str| fault[name].as_f64();
        found.and_then(|fault| Some(at(fault, "until_s")? - at(fault, "from_s")?)).unwrap_or(f64::NAN)
    }

    /// # Errors
    /// An invariant broke; which, with its numbers.
    pub(super) fn expect_held(&self, name: &str) -> Result<()> {
        if self.held {
            return Ok(());
        }
        bail!("{name}: an invariant broke:\n{}", self.broken().join("\n"))
    }

    fn broken(&self) -> Vec<String> {
        let all = self.report["invariants"].as_array().map_or(&[][..], Vec::as_slice);
        let broken = all.iter().filter(|invariant| invariant["held"] != true);
        broken
            .map(|invariant| format!("  {}: {}", text(&invariant["name"]), text(&invariant["detail"])))
            .collect()
    }

    fn print(&self, name: &str) {
        let ms = |which: &str, at: &str| self.number(&format!("/latency/{which}/{at}_ms"));
        println!(
            "  {name}: success {}, PUBACK P50 {} P95 {} P99 {} ms, stored P95 {} ms, alert P95 {} ms, \
             server {:.2} cores {:.0} MB, generator {:.2} cores, other load {:.2} cores, report {}",
            self.number("/totals/success_ratio"),
            ms("puback", "p50"),
            ms("puback", "p95"),
            ms("puback", "p99"),
            ms("stored", "p95"),
            ms("alert", "p95"),
            self.number("/cost/server_cpu_cores"),
            self.number("/cost/server_rss_bytes") / 1e6,
            self.number("/cost/generator_cpu_cores"),
            self.other_load(),
            short(&self.dir),
        );
        for line in self.broken() {
            println!("  BROKEN{line}");
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// A path as it is seen from the workspace.
fn short(path: &Path) -> String {
    let root = crate::cargo::root();
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}
