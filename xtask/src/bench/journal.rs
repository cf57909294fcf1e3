//! `bench journal`: the journal crate's own bench binary, which also writes the same bytes raw.

use super::{Bar, Options, Report, fresh_dir};
use crate::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Runs the bench.
///
/// # Errors
/// The binary cannot be built or fails.
pub(crate) fn run(options: Options) -> Result<Report> {
    if !options.no_build {
        cargo::build_dist(&["muster-journal"])?;
    }
    let dir = fresh_dir("journal")?;
    let mut report = Report::new("journal");
    let mut command = Command::new(cargo::dist_binaries().join("journal-bench"));
    command.arg("--dir").arg(&dir).stderr(Stdio::inherit());
    if options.quick {
        command.arg("--quick");
    }
    let output = command.output().context("cannot start journal-bench")?;
    if !output.status.success() {
        bail!("journal-bench ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (rounds, line) = text.trim_end().rsplit_once('\n').context("journal-bench printed too little")?;
    println!("{rounds}");
    let found: Value =
        serde_json::from_str(line).with_context(|| format!("the last line is no JSON: {line}"))?;
    let number =
        |name: &str| found["figures"][name].as_f64().with_context(|| format!("journal-bench told no {name}"));
    report.barred("append_records_per_s", number("append_records_per_s")?, Bar::AtLeast, 1_000_000.0);
    report.barred("recover_1gb_s", number("recover_1gb_s")?, Bar::AtMost, 2.0);
    Ok(report)
}
