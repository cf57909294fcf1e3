//! What a group's condition can read of a device: `id`, `name`, `labels`, `site` (empty without one) and `enabled`. Pure.
//!
//! A condition is compiled by the CEL kit with its limits. Where it cannot be answered (a label that the device does not
//! have), the device is no member.

use super::model::{FieldError, Labels};
use crate::platform::expr::{
    self, CelBool, CelMap, CelMapKey, CelString, CowVal, EvalError, Expression, Keys, Val, Variable,
    VariableResolver,
};
use std::collections::HashMap;

const VARIABLES: &[Variable] = &[
    Variable { name: "id", keys: Keys::Scalar },
    Variable { name: "name", keys: Keys::Scalar },
    Variable { name: "labels", keys: Keys::Any },
    Variable { name: "site", keys: Keys::Scalar },
    Variable { name: "enabled", keys: Keys::Scalar },
];

/// A device as a condition sees it.
pub struct DeviceFacts<'a> {
    id: &'a str,
    name: &'a str,
    site: &'a str,
    enabled: bool,
    labels: CelMap<'static>,
}

impl<'a> DeviceFacts<'a> {
    /// The facts of one device.
    #[must_use]
    pub fn new(id: &'a str, name: &'a str, labels: &Labels, site: Option<&'a str>, enabled: bool) -> Self {
        let entry = |(key, value): (&String, &String)| {
            let value: Box<dyn Val> = Box::new(CelString::from(value.clone()));
            (CelMapKey::from(key.clone()), value)
        };
        let labels = CelMap::from(labels.iter().map(entry).collect::<HashMap<_, _>>());
        Self { id, name, site: site.unwrap_or(""), enabled, labels }
    }
}

impl VariableResolver for DeviceFacts<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "id" => Some(CowVal::owned(CelString::from(self.id))),
            "name" => Some(CowVal::owned(CelString::from(self.name))),
            "site" => Some(CowVal::owned(CelString::from(self.site))),
            "enabled" => Some(CowVal::owned(CelBool::from(self.enabled))),
            "labels" => Some(CowVal::Borrowed(&self.labels)),
            _ => None,
        }
    }
}

/// Compiles a condition, and asks it of a device without anything: what answers no bool is refused.
///
/// # Errors
/// What is wrong, and where in the source.
pub fn compile(source: &str) -> Result<Expression, FieldError> {
    let refuse = |why: String| FieldError { field: "condition".into(), why };
    let compiled = expr::compile(source, VARIABLES).map_err(|error| refuse(error.to_string()))?;
    match compiled.eval_bool(&DeviceFacts::new("", "", &Labels::new(), None, true)) {
        Err(error @ EvalError::NotBool(_)) => Err(refuse(error.to_string())),
        _ => Ok(compiled),
    }
}

/// Whether a condition holds.
#[must_use]
pub fn matches(condition: &Expression, facts: &DeviceFacts<'_>) -> bool {
    condition.eval_bool(facts).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_reads_the_facts_of_a_device() {
        let labels = Labels::from([("kind".into(), "pump".into())]);
        let device = DeviceFacts::new("p-1", "Pump", &labels, Some("north"), true);
        let check = |source: &str, expect| {
            assert_eq!(matches(&compile(source).unwrap(), &device), expect, "{source}")
        };
        check("labels.kind == 'pump' && site == 'north'", true);
        check("id.startsWith('p-') && enabled", true);
        check("name == 'pump'", false);
        check("'floor' in labels", false);
        check("labels.floor == '3'", false);
        check("!enabled || site == ''", false);
    }

    #[test]
    fn a_condition_that_cannot_answer_is_refused_with_its_place() {
        let refused = |source: &str, why: &str| {
            let error = compile(source).err().unwrap();
            assert_eq!(error.field, "condition");
            assert!(error.why.contains(why), "{source}: {}", error.why);
        };
        refused("id", "not a bool");
        refused("", "must not be empty");
        refused("device == 'x'", "device is not known");
        refused("labels.all(k, true)", "loops");
        refused(&"!".repeat(expr::SOURCE_BYTES_MAX + 1), "at most 1024 bytes");
    }
}
