//! `run` as a command: simulate, write the report, say what broke.

use crate::report::model::Report;
use crate::report::store;
use crate::run::run_part;
pub use crate::run::{Profile, RunArgs, Transport, simulate};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// Simulates and reports; answers whether every invariant held.
///
/// # Errors
/// The run could not be made, or the report cannot be written.
pub fn run(args: &RunArgs) -> Result<bool> {
    let report = simulate(args)?;
    let mut held = true;
    for invariant in &report.invariants {
        held &= invariant.held;
        let mark = if invariant.held { "held" } else { "BROKEN" };
        eprintln!("{mark:>7}  {}: {}", invariant.name, invariant.detail);
    }
    println!("{}", figures(&report, held));
    if let Some(dir) = &args.out {
        eprintln!("{}", store::save(dir, &report)?.html.display());
    }
    Ok(held)
}

/// One sending process of a run.
///
/// # Errors
/// The lead that started it has ended, or its devices cannot be made.
pub fn part() -> Result<()> {
    run_part()
}

/// The run in one line of JSON.
fn figures(report: &Report, held: bool) -> Value {
    let mut line = Map::new();
    let mut put = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            line.insert(name.to_owned(), json!(value));
        }
    };
    let p95 = |name: &str| report.latency.get(name).map(|latency| latency.p95_ms);
    let ledger = report.totals.ledger.as_ref();
    put("success_ratio", Some(report.totals.success_ratio));
    put("lost", ledger.map(|ledger| ledger.lost as f64));
    put("duplicated", ledger.map(|ledger| ledger.duplicated as f64));
    put("puback_p95_ms", p95("puback"));
    put("stored_p95_ms", p95("stored"));
    put("alert_p95_ms", p95("alert"));
    put("server_rss_mb", report.cost.server_rss_bytes.map(|bytes| bytes as f64 / 1e6));
    put("server_cpu_cores", report.cost.server_cpu_cores);
    put("generator_cpu_cores", Some(report.cost.generator_cpu_cores));
    put("other_load_cores", Some(report.cost.other_load_cores));
    put("seed", Some(report.setup.seed as f64));
    json!({ "held": held, "figures": line })
}
