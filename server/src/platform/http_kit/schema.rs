//! Schemas that no type of ours gives by itself.

use serde_json::{Value, json};
use utoipa::openapi::{RefOr, Schema};

/// A reading's value, for the document: `muster_wire` knows nothing of OpenAPI.
#[derive(Debug)]
pub struct ReadingValue;

impl utoipa::PartialSchema for ReadingValue {
    fn schema() -> RefOr<Schema> {
        written(
            json!({ "type": ["number", "boolean", "string"], "description": "A number, a bool or a text." }),
        )
    }
}

impl utoipa::ToSchema for ReadingValue {}

/// A schema written as JSON.
///
/// # Panics
/// It is none: the tests make every schema.
#[must_use]
pub fn written(json: Value) -> RefOr<Schema> {
    serde_json::from_value(json).expect("a schema")
}

/// Takes the bounds of fields away and leaves their types: of a request that is looked at, whatever it holds.
#[must_use]
pub fn without_bounds(schema: RefOr<Schema>) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(object) => {
                let bounds = ["minLength", "maxLength", "pattern", "maximum", "maxItems", "maxProperties"];
                for bound in bounds.into_iter().chain(["propertyNames"]) {
                    // A field of that name is no bound.
                    if object
                        .get(bound)
                        .is_some_and(|bound| bound.get("type").is_none() || bound.get("pattern").is_some())
                    {
                        object.remove(bound);
                    }
                }
                object.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(schema).expect("a schema is JSON");
    strip(&mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_stay_and_bounds_go() {
        let bounded = written(json!({ "type": "object", "properties": {
            "name": { "type": "string", "maxLength": 3 }, "maximum": { "type": "integer", "minimum": 0, "maximum": 9 },
        }}));
        let plain = json!({ "type": "object", "properties": {
            "name": { "type": "string" }, "maximum": { "type": "integer", "minimum": 0 },
        }});
        assert_eq!(without_bounds(bounded), plain);
    }
}
