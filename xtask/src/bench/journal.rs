//! `bench journal`: the journal crate's own bench binary, with the disk's raw rate beside it.

use super::{Bar, Options, Report, fresh_dir, median};
use crate::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Written for the disk's raw rate.
const RAW_BYTES: u64 = 512 * 1024 * 1024;

/// Runs the bench.
///
/// # Errors
/// The binary cannot be built or fails.
pub(crate) fn run(options: Options) -> Result<Report> {
    cargo::run(cargo::cargo().args([
        "build",
        "--locked",
        "--profile",
        "dist",
        "--package",
        "muster-journal",
        "--bin",
        "journal-bench",
        "--features",
        "bench",
    ]))?;
    let dir = fresh_dir("journal")?;
    let mut report = Report::new("journal");
    let rounds = if options.quick { 1 } else { 3 };
    let (mut appends, mut recoveries, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        raw.push(raw_bytes_per_s(&dir)?);
        let found = once(&dir.join(round.to_string()), options.quick)?;
        println!("  {found}");
        appends.push(number(&found, "append_records_per_s")?);
        recoveries.push(number(&found, "recover_1gb_s")?);
    }
    report.figure("raw_dsync_mb_per_s", median(raw) / 1e6);
    report.barred("append_records_per_s", median(appends), Bar::AtLeast, 1_000_000.0);
    report.barred("recover_1gb_s", median(recoveries), Bar::AtMost, 2.0);
    Ok(report)
}

/// Runs the binary once; its last line is JSON.
fn once(dir: &Path, quick: bool) -> Result<Value> {
    let mut command = Command::new(cargo::dist_binaries().join("journal-bench"));
    command.arg("--dir").arg(dir).stderr(Stdio::inherit());
    if quick {
        command.arg("--quick");
    }
    let output = command.output().context("cannot start journal-bench")?;
    if !output.status.success() {
        bail!("journal-bench ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("journal-bench printed nothing")?;
    // Segments of a gigabyte are of no use to the next round.
    let _ = std::fs::remove_dir_all(dir);
    serde_json::from_str(line).with_context(|| format!("the last line is no JSON: {line}"))
}

fn number(found: &Value, name: &str) -> Result<f64> {
    let found = found.get("figures").unwrap_or(found);
    found[name].as_f64().with_context(|| format!("journal-bench told no {name}"))
}

/// What `dd conv=fdatasync` of large blocks reaches here: the ceiling of any log.
fn raw_bytes_per_s(dir: &Path) -> Result<f64> {
    let file = dir.join("raw");
    let began = Instant::now();
    let status = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "conv=fdatasync"])
        .arg(format!("count={}", RAW_BYTES >> 20))
        .arg(format!("of={}", file.display()))
        .stderr(Stdio::null())
        .status()
        .context("cannot start dd")?;
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(&file).context("cannot remove what dd wrote")?;
    if !status.success() {
        bail!("dd ended with {status}");
    }
    Ok(RAW_BYTES as f64 / seconds)
}
