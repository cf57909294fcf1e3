//! Turns a written rule into a runnable one, or says which field is wrong and where in its text. Pure.

use super::facts::{EVENT_VARIABLES, Facts, Subject, TELEMETRY_VARIABLES, remember, text_map};
use super::model::{
    CompiledRule, DeviceList, FOR_S_MAX, FieldError, NAME_CHARS_MAX, RuleSpec, SELECTOR_DEVICES_MAX,
    SELECTOR_LABELS_MAX, Selector, TEMPLATE_CHARS_MAX, TRIGGER_NAMES_MAX, Trigger,
};
use super::template::{EVENT_HOLES, TELEMETRY_HOLES, Template};
use crate::platform::expr::{self, CelMap, EvalError, Expression, Variable};
use muster_wire::{DeviceId, Event, EventKind, TenantId, Value, check_metric_name};

/// The message of a telemetry rule that has none.
const TELEMETRY_MESSAGE: &str = "{rule}: {metric} of {device} is {value}";
/// The message of an event rule that has none.
const EVENT_MESSAGE: &str = "{rule}: {pipeline} of {device} saw {label} ({score})";

/// A rule before it is compiled.
pub(super) struct Written<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: &'a str,
    pub(super) version: i64,
    pub(super) name: &'a str,
    pub(super) spec: &'a RuleSpec,
}

/// Checks every field and compiles the expressions.
///
/// # Errors
/// The first field at fault.
pub(super) fn compile(written: &Written<'_>) -> Result<CompiledRule, FieldError> {
    let spec = written.spec;
    check_name(written.name)?;
    check_selector(&spec.selector)?;
    check_trigger(&spec.on)?;
    if spec.for_s > FOR_S_MAX {
        return Err(FieldError::new("for_s", format!("must be at most {FOR_S_MAX} (a week)")));
    }
    let (variables, holes, default) = match spec.on {
        Trigger::Telemetry { .. } => (TELEMETRY_VARIABLES, TELEMETRY_HOLES, TELEMETRY_MESSAGE),
        Trigger::Event { .. } => (EVENT_VARIABLES, EVENT_HOLES, EVENT_MESSAGE),
    };
    let condition = expression("condition", &spec.condition, variables, &spec.on)?;
    let clear =
        spec.clear.as_deref().map(|source| expression("clear", source, variables, &spec.on)).transpose()?;
    let text = spec.message.as_deref().unwrap_or(default);
    if text.chars().count() > TEMPLATE_CHARS_MAX {
        return Err(FieldError::new("message", format!("must be at most {TEMPLATE_CHARS_MAX} characters")));
    }
    let message = Template::parse(text, holes).map_err(|(at, message)| FieldError {
        field: "message".into(),
        message,
        position: Some(at),
    })?;
    Ok(CompiledRule {
        tenant: written.tenant.clone(),
        id: written.id.into(),
        version: written.version,
        name: written.name.to_owned(),
        devices: DeviceList::new(&spec.selector.devices),
        labels: spec.selector.labels.clone(),
        on: spec.on.clone(),
        for_s: spec.for_s,
        severity: spec.severity,
        condition,
        clear,
        message,
    })
}

fn check_name(name: &str) -> Result<(), FieldError> {
    let chars = name.chars().count();
    if name.trim() != name || !(1..=NAME_CHARS_MAX).contains(&chars) || name.chars().any(char::is_control) {
        let why = format!("must be 1 to {NAME_CHARS_MAX} characters without spaces around them");
        return Err(FieldError::new("name", why));
    }
    Ok(())
}

fn bounded(field: &str, count: usize, max: usize) -> Result<(), FieldError> {
    if count > max {
        return Err(FieldError::new(field, format!("must hold at most {max}")));
    }
    Ok(())
}

fn check_selector(selector: &Selector) -> Result<(), FieldError> {
    bounded("selector.devices", selector.devices.len(), SELECTOR_DEVICES_MAX)?;
    bounded("selector.labels", selector.labels.len(), SELECTOR_LABELS_MAX)?;
    for (at, device) in selector.devices.iter().enumerate() {
        DeviceId::check(device)
            .map_err(|why| FieldError::new(format!("selector.devices[{at}]"), why.to_string()))?;
    }
    for (key, value) in &selector.labels {
        if key.is_empty() || key.len() > 128 || value.len() > 128 {
            let why = "must have a name of 1 to 128 bytes and a value of at most 128";
            return Err(FieldError::new(format!("selector.labels.{key}"), why));
        }
    }
    Ok(())
}

fn check_trigger(on: &Trigger) -> Result<(), FieldError> {
    match on {
        Trigger::Telemetry { metrics } => {
            bounded("on.telemetry.metrics", metrics.len(), TRIGGER_NAMES_MAX)?;
            metrics.iter().enumerate().try_for_each(|(at, metric)| {
                check_metric_name(metric)
                    .map_err(|why| FieldError::new(format!("on.telemetry.metrics[{at}]"), why))
            })
        }
        Trigger::Event { pipelines, kinds } => {
            bounded("on.event.pipelines", pipelines.len(), TRIGGER_NAMES_MAX)?;
            bounded("on.event.kinds", kinds.len(), TRIGGER_NAMES_MAX)?;
            match pipelines.iter().position(|name| name.is_empty() || name.len() > 128) {
                Some(at) => {
                    Err(FieldError::new(format!("on.event.pipelines[{at}]"), "must be 1 to 128 bytes"))
                }
                None => Ok(()),
            }
        }
    }
}

fn expression(
    field: &str,
    source: &str,
    variables: &[Variable],
    on: &Trigger,
) -> Result<Expression, FieldError> {
    let compiled = expr::compile(source, variables).map_err(|error| FieldError {
        field: field.into(),
        message: error.message,
        position: Some(error.at),
    })?;
    match trial(&compiled, on) {
        Some(why) => Err(FieldError::new(field, why)),
        None => Ok(compiled),
    }
}

/// Tries the expression on samples: what fails for a number, a bool and a text alike will never answer.
fn trial(expression: &Expression, on: &Trigger) -> Option<String> {
    let labels = text_map(std::iter::empty());
    let samples = [Value::Number(1.5), Value::Bool(true), Value::Text("text".into())];
    let mut why = None;
    for sample in &samples {
        let mut last = CelMap::default();
        expression.keys().for_each(|key| remember(&mut last, key, sample));
        let event = sample_event();
        let subject = match on {
            Trigger::Telemetry { .. } => Subject::Reading { metric: "metric", value: sample },
            Trigger::Event { .. } => Subject::Event(&event),
        };
        let facts = Facts { subject, device: "device", labels: &labels, last: &last };
        match expression.eval_bool(&facts) {
            Ok(_) | Err(EvalError::MissingKey(_)) => return None,
            Err(error) => why = why.or(Some(format!("never answers: {error}"))),
        }
    }
    why
}

fn sample_event() -> Event {
    Event {
        pipeline: "pipeline".into(),
        model: "model".into(),
        model_version: "1".into(),
        kind: EventKind::Anomaly,
        label: "label".into(),
        score: 0.5,
        subject: Some("subject".into()),
        latency_us: 0,
        boxes: Vec::new(),
    }
}
