//! What the engine costs, for `examples/rule_rates.rs` and the benches: processor time of one thread, no IO.

use super::engine::{Body, Engine, LabelSource, Observation};
use super::model::{CompiledRule, FieldError, RuleSpec};
use super::validate::{Written, compile};
use muster_wire::{Reading, TenantId, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Time of the first record, microseconds since 1970: a device clock that is believed.
const START_US: i64 = 1_800_000_000_000_000;
/// A record each millisecond.
const STEP_US: i64 = 1_000;

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Records seen, of one reading each.
    pub records: u64,
    /// Conditions evaluated.
    pub evaluations: u64,
    /// Alerts opened.
    pub opened: u64,
    /// Processor time of the thread.
    pub cpu_seconds: f64,
}

impl Rates {
    /// Records a second on one core.
    #[must_use]
    pub fn records_per_core(&self) -> f64 {
        self.records as f64 / self.cpu_seconds
    }

    /// Evaluations a second on one core.
    #[must_use]
    pub fn evaluations_per_core(&self) -> f64 {
        self.evaluations as f64 / self.cpu_seconds
    }
}

/// The fleet of a run.
#[derive(Clone, Copy, Debug)]
pub struct Fleet {
    /// Devices that send in turn.
    pub devices: usize,
    /// Rules.
    pub rules: usize,
    /// Devices that each rule selects, spread evenly; all where it is `devices`.
    pub devices_per_rule: usize,
}

fn rules(fleet: Fleet) -> Result<Vec<Arc<CompiledRule>>, FieldError> {
    let tenant = TenantId::parse("bench").map_err(|error| FieldError::new("tenant", error.to_string()))?;
    let rule = |n: usize| {
        let picked =
            (0..fleet.devices_per_rule).map(|d| format!("device-{}", (n * 7 + d * 97) % fleet.devices));
        let devices: Vec<String> =
            if fleet.devices_per_rule == fleet.devices { Vec::new() } else { picked.collect() };
        let json = serde_json::json!({
            "selector": {"devices": devices}, "on": {"telemetry": {"metrics": ["temp_c"]}},
            "condition": "value > 90.0 && labels.site == \"north\"", "clear": "value < 85.0", "severity": "warning",
        });
        let spec: RuleSpec =
            serde_json::from_value(json).map_err(|why| FieldError::new("spec", why.to_string()))?;
        let (id, name) = (format!("{n:08}"), format!("rule {n}"));
        compile(&Written { tenant: &tenant, id: &id, version: 1, name: &name, spec: &spec }).map(Arc::new)
    };
    (0..fleet.rules).map(rule).collect()
}

/// Runs that many records through an engine; the first round over all devices, which resolves the selectors, is
/// not measured.
///
/// # Errors
/// The bench's own rules do not compile.
pub fn rates(fleet: Fleet, records: u64) -> Result<Rates, FieldError> {
    let labels: LabelSource =
        Arc::new(|_: &str, _: &str| BTreeMap::from([("site".to_owned(), "north".to_owned())]));
    let mut engine = Engine::new(1, labels);
    engine.set_rules(rules(fleet)?);
    let names: Vec<String> = (0..fleet.devices).map(|n| format!("device-{n}")).collect();
    let mut reading = [Reading { metric: "temp_c".into(), value: Value::Number(20.0), offset_us: None }];
    let mut position = 0;
    let mut feed = |engine: &mut Engine, device: &str, number: f64| {
        position += 1;
        reading[0].value = Value::Number(number);
        let now_us = START_US + i64::try_from(position).unwrap_or(i64::MAX / 2) * STEP_US;
        engine.observe(&Observation {
            position,
            received_at_us: now_us,
            tenant: "bench",
            device,
            origin: Some((1, 1, position)),
            measured_at_us: now_us,
            body: Body::Readings(&reading),
        });
    };
    names.iter().for_each(|device| feed(&mut engine, device, 20.0));
    let (evaluated, started, mut opened) = (engine.stats().evaluations, cpu_seconds(), 0);
    for (n, device) in (0..records).zip(names.iter().cycle()) {
        // One in a thousand is hot: alerts open and clear as in a real fleet.
        feed(&mut engine, device, if n % 1_000 == 0 { 95.0 } else { 20.0 });
        if n % 10_000 == 0 {
            opened += engine.take_effects().opened.len() as u64;
        }
    }
    let evaluations = engine.stats().evaluations - evaluated;
    Ok(Rates { records, evaluations, opened, cpu_seconds: cpu_seconds() - started })
}

/// The thread's processor time as the kernel counts it; 0 where it does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos: u64 = text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0);
    nanos as f64 / 1e9
}
