//! What a rule's expressions can read, borrowed from the record and the device. Nothing is copied on the way in.

use super::template::{label_of, shown};
use crate::platform::expr::{
    CelBool, CelDouble, CelMap, CelMapKey, CelString, CowVal, Keys, Val, Variable, VariableResolver,
};
use muster_wire::{Event, EventKind, Value};
use std::collections::HashMap;

const EVENT_FIELDS: &[&str] = &["label", "score", "kind", "pipeline", "model", "subject"];

/// Variables of a telemetry rule.
pub const TELEMETRY_VARIABLES: &[Variable] = &[
    Variable { name: "value", keys: Keys::Scalar },
    Variable { name: "metric", keys: Keys::Scalar },
    Variable { name: "device", keys: Keys::Scalar },
    Variable { name: "labels", keys: Keys::Any },
    Variable { name: "last", keys: Keys::Named },
];
/// Variables of an event rule.
pub const EVENT_VARIABLES: &[Variable] = &[
    Variable { name: "event", keys: Keys::Fields(EVENT_FIELDS) },
    Variable { name: "device", keys: Keys::Scalar },
    Variable { name: "labels", keys: Keys::Any },
    Variable { name: "last", keys: Keys::Named },
];

/// What is looked at: one reading or one event.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// A metric's value.
    Reading {
        /// The metric.
        metric: &'a str,
        /// Its value.
        value: &'a Value,
    },
    /// An inference result.
    Event(&'a Event),
}

/// All that one evaluation can read.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// What came.
    pub subject: Subject<'a>,
    /// Which device sent it.
    pub device: &'a str,
    /// The device's labels.
    pub labels: &'a CelMap<'static>,
    /// Last values of the metrics that some rule reads.
    pub last: &'a CelMap<'static>,
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match (variable, self.subject) {
            ("value", Subject::Reading { value, .. }) => Some(match value {
                Value::Number(number) => CowVal::owned(CelDouble::from(*number)),
                Value::Bool(flag) => CowVal::owned(CelBool::from(*flag)),
                Value::Text(text) => CowVal::owned(CelString::from(text.as_str())),
            }),
            ("metric", Subject::Reading { metric, .. }) => Some(CowVal::owned(CelString::from(metric))),
            ("device", _) => Some(CowVal::owned(CelString::from(self.device))),
            ("labels", _) => Some(CowVal::Borrowed(self.labels)),
            ("last", _) => Some(CowVal::Borrowed(self.last)),
            ("event", Subject::Event(event)) => Some(CowVal::owned(event_map(event))),
            // A qualified name is asked for as a whole first: no map is built for `event.score`.
            (name, Subject::Event(event)) => {
                event_field(event, name.strip_prefix("event.")?).map(CowVal::Owned)
            }
            _ => None,
        }
    }
}

fn event_field<'b>(event: &'b Event, field: &str) -> Option<Box<dyn Val + 'b>> {
    let text = |text: &'b str| -> Box<dyn Val + 'b> { Box::new(CelString::from(text)) };
    Some(match field {
        "label" => text(&event.label),
        "score" => Box::new(CelDouble::from(event.score)),
        "kind" => text(kind_text(event.kind)),
        "pipeline" => text(&event.pipeline),
        "model" => text(&event.model),
        "subject" => text(event.subject.as_deref()?),
        _ => return None,
    })
}

fn event_map(event: &Event) -> CelMap<'_> {
    let fields =
        EVENT_FIELDS.iter().filter_map(|name| Some((CelMapKey::from(*name), event_field(event, name)?)));
    CelMap::from(fields.collect::<HashMap<_, _>>())
}

/// The stable text of a kind of result.
#[must_use]
pub fn kind_text(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Classification => "classification",
        EventKind::Anomaly => "anomaly",
        EventKind::Detection => "detection",
    }
}

impl Facts<'_> {
    /// The text for a hole of a message, except `rule` and `severity`.
    #[must_use]
    pub fn hole(&self, name: &str) -> Option<String> {
        if let Some(label) = label_of(name) {
            return text_of(self.labels, label);
        }
        match (name, self.subject) {
            ("device", _) => Some(self.device.to_owned()),
            ("value", Subject::Reading { value, .. }) => Some(shown(value)),
            ("metric", Subject::Reading { metric, .. }) => Some(metric.to_owned()),
            ("score", Subject::Event(event)) => Some(shown(&Value::Number(event.score))),
            (field, Subject::Event(event)) => {
                event_field(event, field)?.downcast_ref::<CelString<'_>>().map(|text| text.inner().to_owned())
            }
            _ => None,
        }
    }

    /// What an alert keeps as its value: the reading's, or the event's score.
    #[must_use]
    pub fn value(&self) -> Value {
        match self.subject {
            Subject::Reading { value, .. } => value.clone(),
            Subject::Event(event) => Value::Number(event.score),
        }
    }
}

fn text_of(map: &CelMap<'static>, key: &str) -> Option<String> {
    let value = map.inner().get(&CelMapKey::from(key.to_owned()))?;
    value.downcast_ref::<CelString<'_>>().map(|text| text.inner().to_owned())
}

/// A map of texts, for labels.
#[must_use]
pub fn text_map<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> CelMap<'static> {
    let entry = |(key, value): (&str, &str)| {
        let value: Box<dyn Val> = Box::new(CelString::from(value.to_owned()));
        (CelMapKey::from(key.to_owned()), value)
    };
    CelMap::from(entries.map(entry).collect::<HashMap<_, _>>())
}

/// Puts a value into a map of last values.
pub fn remember(last: &mut CelMap<'static>, metric: &str, value: &Value) {
    let value: Box<dyn Val> = match value {
        Value::Number(number) => Box::new(CelDouble::from(*number)),
        Value::Bool(flag) => Box::new(CelBool::from(*flag)),
        Value::Text(text) => Box::new(CelString::from(text.clone())),
    };
    let mut entries = std::mem::take(last).into_inner();
    entries.insert(CelMapKey::from(metric.to_owned()), value);
    *last = CelMap::from(entries);
}
