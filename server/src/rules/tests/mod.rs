mod consumer;
mod engine;
mod kills;
mod people;

use super::engine::{Body, Engine, LabelSource, Observation};
use super::model::{CompiledRule, FieldError, RuleSpec};
use super::validate::{Written, compile};
use crate::alerts::model::NewAlert;
use muster_wire::{Event, EventKind, Reading, TenantId, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The engine's second, and a time at which device clocks are believed.
const SECOND: i64 = 1_000_000;
const START: i64 = 1_800_000_000 * SECOND;

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn spec(json: serde_json::Value) -> RuleSpec {
    serde_json::from_value(json).unwrap()
}

fn try_rule(id: &str, version: i64, json: serde_json::Value) -> Result<Arc<CompiledRule>, FieldError> {
    let spec = spec(json);
    compile(&Written { tenant: &acme(), id, version, name: &format!("rule {id}"), spec: &spec }).map(Arc::new)
}

fn rule(id: &str, json: serde_json::Value) -> Arc<CompiledRule> {
    try_rule(id, 1, json).unwrap()
}

/// A rule on `temp_c` over 30 that clears below 25.
fn hot(id: &str, for_s: u32) -> Arc<CompiledRule> {
    rule(id, hot_json(for_s))
}

fn hot_json(for_s: u32) -> serde_json::Value {
    serde_json::json!({
        "on": {"telemetry": {"metrics": ["temp_c"]}}, "condition": "value > 30", "clear": "value < 25",
        "for_s": for_s, "severity": "warning", "message": "{device} at {value}"
    })
}

fn labels() -> LabelSource {
    Arc::new(|_: &str, device: &str| {
        let site = if device.ends_with('1') { "north" } else { "south" };
        BTreeMap::from([("site".to_owned(), site.to_owned())])
    })
}

/// An engine with a log of its own.
struct Bench {
    engine: Engine,
    position: u64,
    now_us: i64,
}

impl Bench {
    fn new(rules: &[Arc<CompiledRule>]) -> Self {
        let mut engine = Engine::new(7, labels());
        engine.set_rules(rules.to_vec());
        Self { engine, position: 0, now_us: START }
    }

    fn feed(&mut self, device: &str, age_us: i64, origin: Option<(u8, u64, u64)>, body: Body<'_>) {
        self.position += 1;
        self.engine.observe(&Observation {
            position: self.position,
            received_at_us: self.now_us,
            tenant: "acme",
            device,
            origin,
            measured_at_us: self.now_us - age_us,
            body,
        });
    }

    /// A reading now.
    fn reading(&mut self, device: &str, metric: &str, value: impl Into<Given>) {
        self.old_reading(device, metric, value, 0);
    }

    fn old_reading(&mut self, device: &str, metric: &str, value: impl Into<Given>, age_us: i64) {
        let reading = Reading { metric: metric.into(), value: value.into().0, offset_us: None };
        self.feed(device, age_us, None, Body::Readings(&[reading]));
    }

    fn event(&mut self, device: &str, pipeline: &str, label: &str, score: f64) {
        let event = Event {
            pipeline: pipeline.into(),
            model: "vibration".into(),
            model_version: "1".into(),
            kind: EventKind::Anomaly,
            label: label.into(),
            score,
            subject: Some("row 7".into()),
            latency_us: 5,
            boxes: Vec::new(),
        };
        self.feed(device, 0, None, Body::Event(&event));
    }

    /// Seconds pass, each with a tick.
    fn ticks(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now_us += SECOND;
            self.feed("", 0, None, Body::Time);
        }
    }

    /// What was decided since the last call: `+` opened, `-` cleared, with the device and seconds since the start.
    fn decided(&mut self) -> Vec<String> {
        let effects = self.engine.take_effects();
        let at = |at_us: i64| (at_us - START) / SECOND;
        let opened = effects.opened.iter().map(|alert| {
            let old = if alert.historical { " old" } else { "" };
            format!("+{} {} {}{old} @{}", alert.rule_id, alert.device, alert.subject, at(alert.opened_at_us))
        });
        let cleared = effects.cleared.iter().map(|alert| format!("-{} @{}", alert.why, at(alert.at_us)));
        opened.chain(cleared).collect()
    }

    fn opened(&mut self) -> Vec<NewAlert> {
        self.engine.take_effects().opened
    }
}

/// A value in tests.
struct Given(Value);

impl From<f64> for Given {
    fn from(number: f64) -> Self {
        Self(Value::Number(number))
    }
}

impl From<&str> for Given {
    fn from(text: &str) -> Self {
        Self(Value::Text(text.into()))
    }
}
