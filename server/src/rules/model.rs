//! What a rule is. Pure; [`super::validate`] turns a [`RuleSpec`] into a [`CompiledRule`].

use super::template::Template;
use crate::alerts::model::Severity;
use crate::platform::expr::{Expression, Position};
use crate::platform::http_kit::ETag;
use crate::platform::http_kit::schema::written;
use muster_wire::{EventKind, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use utoipa::openapi::{RefOr, Schema};

/// Rules of one tenant.
pub const RULES_PER_TENANT_MAX: usize = 1_000;
/// The longest name, in characters.
pub const NAME_CHARS_MAX: usize = 100;
/// Devices that a selector may list.
pub const SELECTOR_DEVICES_MAX: usize = 1_000;
/// Labels that a selector may ask for.
pub const SELECTOR_LABELS_MAX: usize = 16;
/// Metrics, pipelines or kinds of one trigger.
pub const TRIGGER_NAMES_MAX: usize = 64;
/// The longest `for`, in seconds: a week.
pub const FOR_S_MAX: u32 = 7 * 24 * 3600;
/// The longest message template, in characters.
pub const TEMPLATE_CHARS_MAX: usize = 300;
/// Data older than this when it is received opens `historical` alerts.
pub const HISTORICAL_AGE_US: i64 = 5 * 60 * 1_000_000;

/// Which devices: all that are listed (where some are) and carry all labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Device ids; none means every device.
    #[schema(schema_with = device_ids)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Labels that a device must carry with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = wanted_labels)]
    pub labels: BTreeMap<String, String>,
}

fn device_ids() -> RefOr<Schema> {
    written(json!({
        "type": "array", "maxItems": SELECTOR_DEVICES_MAX, "description": "Device ids; none means every device.",
        "items": { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" },
    }))
}

fn wanted_labels() -> RefOr<Schema> {
    written(json!({
        "type": "object", "maxProperties": SELECTOR_LABELS_MAX,
        "description": "Labels that a device must carry with these values.",
        "propertyNames": { "type": "string", "minLength": 1, "maxLength": 128 },
        "additionalProperties": { "type": "string", "maxLength": 128 },
    }))
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Trigger {
    /// Readings.
    Telemetry {
        /// Metric names; none means every metric.
        #[serde(default)]
        metrics: Vec<String>,
    },
    /// Inference results.
    Event {
        /// Pipeline names; none means every pipeline.
        #[serde(default)]
        pipelines: Vec<String>,
        /// Kinds of result; none means every kind.
        #[serde(default)]
        kinds: Vec<EventKind>,
    },
}

/// Written out: the derived one leaves unknown fields and the kinds open.
impl utoipa::PartialSchema for Trigger {
    fn schema() -> RefOr<Schema> {
        let names = |item: serde_json::Value, what: &str| json!({ "type": "array", "maxItems": TRIGGER_NAMES_MAX, "items": item, "description": what });
        let metric = json!({ "type": "string", "pattern": "^[A-Za-z0-9._/:%-]{1,64}$" });
        let pipeline = json!({ "type": "string", "minLength": 1, "maxLength": 128 });
        let kind = json!({ "type": "string", "enum": ["classification", "anomaly", "detection"] });
        let variant = |name: &str, what: &str, fields: serde_json::Value| {
            let inner = json!({ "type": "object", "properties": fields, "additionalProperties": false });
            json!({ "type": "object", "description": what, "required": [name], "additionalProperties": false,
                    "properties": { name: inner } })
        };
        let telemetry = json!({ "metrics": names(metric, "Metric names; none means every metric.") });
        let event = json!({
            "pipelines": names(pipeline, "Pipeline names; none means every pipeline."),
            "kinds": names(kind, "Kinds of result; none means every kind."),
        });
        written(json!({ "description": "What a rule looks at.", "oneOf": [
            variant("telemetry", "Readings.", telemetry), variant("event", "Inference results.", event),
        ]}))
    }
}

impl utoipa::ToSchema for Trigger {}

/// What a rule does, without its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Which devices.
    #[serde(default)]
    pub selector: Selector,
    /// What it looks at.
    pub on: Trigger,
    /// CEL that answers a bool: `value > 30 && labels.site == "north"`.
    pub condition: String,
    /// CEL that answers when a firing alert clears; absent: when the condition no longer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear: Option<String>,
    /// How long the condition must hold, in seconds.
    #[serde(default)]
    pub for_s: u32,
    /// How bad it is.
    pub severity: Severity,
    /// Text of the alert, with `{value}`, `{metric}`, `{device}`, `{labels.<name>}`...; absent: a text of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A stored rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Rule {
    /// Its id.
    pub id: String,
    /// Unique in its tenant.
    pub name: String,
    /// A disabled rule decides nothing; its open alerts are cleared.
    pub enabled: bool,
    /// Counts its changes from 1.
    pub version: i64,
    /// What it does.
    #[serde(flatten)]
    pub spec: RuleSpec,
    /// Microseconds since 1970 (UTC).
    pub created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    pub updated_at_us: i64,
}

impl Rule {
    /// Its state, for conditional requests.
    #[must_use]
    pub fn etag(&self) -> ETag {
        ETag::of(self)
    }
}

/// A rule as the engine runs it.
#[derive(Debug)]
pub struct CompiledRule {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub id: Arc<str>,
    /// Its version.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// The devices that it lists; none means every device.
    pub devices: DeviceList,
    /// Labels that a device must carry with these values.
    pub labels: BTreeMap<String, String>,
    /// What it looks at.
    pub on: Trigger,
    /// How long the condition must hold, in seconds.
    pub for_s: u32,
    /// How bad it is.
    pub severity: Severity,
    /// The condition.
    pub condition: Expression,
    /// The clear condition, where it has one of its own.
    pub clear: Option<Expression>,
    /// The message.
    pub message: Template,
}

impl CompiledRule {
    /// The duration in microseconds.
    #[must_use]
    pub fn for_us(&self) -> i64 {
        i64::from(self.for_s) * 1_000_000
    }

    /// The metrics that it reads as `last["metric"]`.
    pub fn last_keys(&self) -> impl Iterator<Item = &str> {
        self.condition.keys().chain(self.clear.iter().flat_map(Expression::keys))
    }
}

/// Device ids in one text: a fleet's rules list a hundred thousand of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceList(Box<str>);

impl DeviceList {
    /// Between two ids, which hold no control characters.
    const BETWEEN: &str = "\n";

    /// Of ids that were checked; each is kept once.
    #[must_use]
    pub fn new(ids: &[String]) -> Self {
        let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        Self(ids.into_iter().collect::<Vec<_>>().join(Self::BETWEEN).into())
    }

    /// Whether it lists none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each id, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(Self::BETWEEN).filter(|id| !id.is_empty())
    }
}

/// What is wrong with a rule that somebody wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field, as a path.
    pub field: String,
    /// What was expected.
    pub message: String,
    /// Where in the field's text.
    pub position: Option<Position>,
}

impl FieldError {
    /// An error of a whole field.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), position: None }
    }
}

/// How a rule fares, for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RuleHealth {
    /// The version that the counters are of.
    pub version: i64,
    /// Evaluations of its conditions since the start.
    pub evaluations: u64,
    /// Those that failed (wrong types and the like).
    pub errors: u64,
    /// Those that lacked a value so far: no answer, no error.
    pub unknown: u64,
    /// The newest failure.
    pub last_error: Option<String>,
    /// Why it no longer runs; a new version is tried again.
    pub quarantined: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_devices_keeps_each_once() {
        let list = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            DeviceList::new(&ids)
        };
        let ids = |list: &DeviceList| list.iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(ids(&list(&["pump", "fan", "pump", "a.b:c"])), ["a.b:c", "fan", "pump"]);
        assert_eq!((ids(&list(&["fan"])), list(&["fan"]).is_empty()), (vec!["fan".to_owned()], false));
        assert_eq!((ids(&list(&[])), list(&[]).is_empty()), (Vec::<String>::new(), true));
    }
}
