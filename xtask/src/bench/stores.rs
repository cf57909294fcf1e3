//! `bench stores`: what our code in front of each engine costs, beside the engine without it, and how long queries take.

use super::{Bar, Options, Report, median};
use crate::cargo;
use anyhow::{Context, Result, bail};
use muster_services::python;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Runs the bench on servers that it starts.
///
/// # Errors
/// A program cannot be built, or a server is not installed.
pub(crate) fn run(options: Options) -> Result<Report> {
    python::install().context("cannot install ClickHouse")?;
    let mut report = Report::new("stores");
    let stores: &[&str] = match options.quick {
        true => &["1", "200000", "5000000", "1000000"],
        false => &["5", "1000000", "100000000", "10000000"],
    };
    of_telemetry(&mut report, &example("store_rates", stores)?)?;
    of_registry(&mut report, &example("registry_upserts", &[if options.quick { "3" } else { "15" }])?)?;
    Ok(report)
}

/// Runs an example of the server; prints its lines as they come and gives the JSON of the last one.
fn example(name: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = cargo::cargo();
    command.args(["run", "--quiet", "--locked", "--profile", "dist", "--package", "muster-server"]);
    command.args(["--example", name, "--"]).args(arguments);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        let before = std::mem::replace(&mut last, line.context("cannot read its output")?);
        if !before.is_empty() {
            println!("{before}");
        }
    }
    let status = child.wait().context("cannot wait for it")?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    serde_json::from_str(&last).with_context(|| format!("the last line is no JSON: {last}"))
}

fn rates(found: &Value, name: &str) -> Result<Vec<f64>> {
    let list = found[name].as_array().with_context(|| format!("there is no {name}"))?;
    Ok(list.iter().filter_map(Value::as_f64).collect())
}

/// Rows a second with our code and without it, and the ratio's median over the rounds.
fn compare(
    report: &mut Report,
    found: &Value,
    [with_name, without_name, ratio_name]: [&'static str; 3],
) -> Result<()> {
    let (with, without) = (rates(found, "rows_per_s")?, rates(found, "raw_rows_per_s")?);
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    report.figure(with_name, median(with));
    report.figure(without_name, median(without));
    report.barred(ratio_name, median(ratios), Bar::AtLeast, 0.6);
    Ok(())
}

fn of_telemetry(report: &mut Report, found: &Value) -> Result<()> {
    compare(report, &found["sqlite"], ["sqlite_rows_per_s", "sqlite_raw_rows_per_s", "sqlite_ratio"])?;
    let clickhouse = ["clickhouse_rows_per_s", "clickhouse_raw_rows_per_s", "clickhouse_ratio"];
    compare(report, &found["clickhouse"], clickhouse)?;
    let per_core = median(rates(&found["sqlite"], "rows_per_core")?);
    report.barred("embedded_rows_per_core", per_core, Bar::AtLeast, 400_000.0);
    for (name, engine, query) in [
        ("sqlite_query_last_1000_devices_ms", "sqlite", "last_1000_devices"),
        ("sqlite_query_day_of_a_device_ms", "sqlite", "day_of_a_device"),
        ("sqlite_query_month_by_hour_ms", "sqlite", "month_by_hour"),
        ("clickhouse_query_last_1000_devices_ms", "clickhouse", "last_1000_devices"),
        ("clickhouse_query_day_of_a_device_ms", "clickhouse", "day_of_a_device"),
        ("clickhouse_query_month_by_hour_ms", "clickhouse", "month_by_hour"),
    ] {
        let took = found["queries_ms"][engine][query].as_f64();
        report.figure(name, took.with_context(|| format!("there is no {name}"))?);
    }
    Ok(())
}

fn of_registry(report: &mut Report, found: &Value) -> Result<()> {
    compare(
        report,
        found,
        ["postgres_upsert_rows_per_s", "postgres_upsert_raw_rows_per_s", "postgres_upsert_ratio"],
    )
}
