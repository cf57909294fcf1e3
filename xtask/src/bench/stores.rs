//! `bench stores`: what our code in front of each engine costs, beside the engine without it.

use super::{Bar, Options, Report, median};
use crate::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Stdio;

/// Runs the bench on servers that it starts.
///
/// # Errors
/// A program cannot be built, or a server is not installed.
pub(crate) fn run(options: Options) -> Result<Report> {
    let mut report = Report::new("stores");
    let pairs = if options.quick { "3" } else { "15" };
    let mut command = cargo::cargo();
    command.args(["run", "--quiet", "--locked", "--profile", "dist", "--package", "muster-server"]);
    command.args(["--example", "registry_upserts", "--", pairs]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("registry_upserts ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (rounds, line) = text.trim_end().rsplit_once('\n').context("registry_upserts printed too little")?;
    println!("{rounds}");
    let found: Value =
        serde_json::from_str(line).with_context(|| format!("the last line is no JSON: {line}"))?;
    let rates = |name: &str| -> Result<Vec<f64>> {
        let list = found[name].as_array().with_context(|| format!("registry_upserts told no {name}"))?;
        Ok(list.iter().filter_map(Value::as_f64).collect())
    };
    let (with, without) = (rates("rows_per_s")?, rates("raw_rows_per_s")?);
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    report.figure("postgres_upsert_rows_per_s", median(with));
    report.figure("postgres_upsert_raw_rows_per_s", median(without));
    report.barred("postgres_upsert_ratio", median(ratios), Bar::AtLeast, 0.6);
    Ok(report)
}
