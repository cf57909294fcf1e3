//! Completes the OpenAPI document: what holds for every operation is said here once, not in each slice.
//!
//! `http::openapi` calls it. A new operation gets from it: the rules of the ids in its path, the errors that it may
//! answer, the headers of conditional requests and of `Idempotency-Key`. What an operation says of itself stays.

use crate::devices::model::{LABEL_VALUE_BYTES_MAX, LABELS_MAX};
use crate::platform::http_kit::{PROBLEM_JSON, Problem, condition, idempotency};
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// Methods of an operation, as they stand in the document.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
/// The longest id of an object in a path; a longer one names nothing.
const ID_CHARS_MAX: u32 = 128;

/// Adds to every operation what holds for all of them.
pub(super) fn complete(document: &OpenApi) -> OpenApi {
    let mut json = serde_json::to_value(document).expect("a document is JSON");
    json["components"]["schemas"]["Problem"] = of::<Problem>();
    name_labels(&mut json);
    each(&mut json, &mut unsigned);
    open_joined(&mut json);
    for (path, item) in json["paths"].as_object_mut().into_iter().flatten() {
        for method in METHODS {
            if let Some(operation) = item.get_mut(method).and_then(Value::as_object_mut) {
                parameters(method, operation);
                responses(path, method, operation);
            }
        }
    }
    serde_json::from_value(json).expect("it was a document before")
}

fn of<T: utoipa::PartialSchema>() -> Value {
    serde_json::to_value(T::schema()).expect("a schema is JSON")
}

/// The one map from text to text that stands in bodies is a device's labels; utoipa names it after its type.
fn name_labels(document: &mut Value) {
    let labels = json!({
        "type": "object",
        "description": "Free-form marks of a device.",
        "maxProperties": LABELS_MAX,
        "propertyNames": { "type": "string", "pattern": "^[a-z0-9._/-]{1,63}$" },
        "additionalProperties": { "type": "string", "maxLength": LABEL_VALUE_BYTES_MAX,
                                  "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$" },
    });
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.remove("BTreeMap");
        schemas.insert("Labels".into(), labels);
    }
    each(document, &mut |object| {
        if object.get("$ref").is_some_and(|to| to == "#/components/schemas/BTreeMap") {
            object.insert("$ref".into(), "#/components/schemas/Labels".into());
        }
    });
}

/// An unsigned number of 32 bits is no `int32`, which ends at half of it.
fn unsigned(schema: &mut Map<String, Value>) {
    let is_unsigned = schema.get("minimum").is_some_and(|least| *least == 0 || least.as_f64() == Some(0.0));
    if schema.get("format").is_some_and(|format| format == "int32") && is_unsigned {
        schema.insert("format".into(), "int64".into());
        schema.entry("maximum").or_insert_with(|| u32::MAX.into());
    }
}

/// A schema that is joined with others by `allOf` cannot refuse the others' fields.
fn open_joined(document: &mut Value) {
    let mut joined = Vec::new();
    each(document, &mut |object| {
        let parts = object.get("allOf").and_then(Value::as_array).into_iter().flatten();
        joined.extend(parts.filter_map(|part| part["$ref"].as_str()?.rsplit('/').next().map(str::to_owned)));
    });
    for name in joined {
        if let Some(schema) = document["components"]["schemas"][&name].as_object_mut() {
            schema.remove("additionalProperties");
        }
    }
}

/// Calls `work` with every object of a JSON text.
fn each(value: &mut Value, work: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            work(object);
            object.values_mut().for_each(|inner| each(inner, work));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| each(inner, work)),
        _ => {}
    }
}

/// What an id in a path looks like.
fn id(name: &str) -> Value {
    match name {
        "tenant" => json!({ "type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,35}$" }),
        "device" => json!({ "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" }),
        _ => json!({ "type": "string", "minLength": 1, "maxLength": ID_CHARS_MAX }),
    }
}

fn parameters(method: &str, operation: &mut Map<String, Value>) {
    let creates = operation["responses"].get("201").is_some() && !is_public(operation);
    let tagged = has_tag(operation);
    let list = operation.entry("parameters").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for parameter in list.iter_mut() {
        let name = parameter["name"].as_str().unwrap_or_default().to_owned();
        if parameter["in"] == "path" && parameter["schema"] == json!({ "type": "string" }) {
            parameter["schema"] = id(&name);
        }
    }
    let mut header = |name: &str, schema: Value, description: &str| {
        list.push(json!({ "name": name, "in": "header", "required": false, "schema": schema,
                          "description": description }));
    };
    if method == "post" && creates {
        let schema = json!({ "type": "string", "pattern": idempotency::KEY_PATTERN });
        header(
            "Idempotency-Key",
            schema,
            "Makes the request safe to repeat: the same key gets the same answer.",
        );
    }
    if method == "get" && tagged {
        header(
            "If-None-Match",
            json!({ "type": "string" }),
            "ETags of copies at hand; 304 where one is still true.",
        );
    }
    if list.is_empty() {
        operation.remove("parameters");
    }
}

/// Whether the operation's answer has an ETag.
fn has_tag(operation: &Map<String, Value>) -> bool {
    operation["responses"].get("200").is_some_and(|answer| answer["headers"].get("ETag").is_some())
}

fn is_public(operation: &Map<String, Value>) -> bool {
    let security = operation.get("security").and_then(Value::as_array);
    security.is_some_and(|list| list.contains(&json!({})))
}

fn responses(path: &str, method: &str, operation: &mut Map<String, Value>) {
    let has = |name: &str| {
        let list = operation.get("parameters").and_then(Value::as_array).into_iter().flatten();
        list.into_iter().any(|parameter| parameter["name"] == name)
    };
    let writes = method != "get";
    let body = operation.contains_key("requestBody");
    let secured = !is_public(operation) || writes;
    let errors = [
        (400, "A field or parameter is missing, malformed, unknown or out of range", true),
        (401, "No or wrong credentials", secured),
        (403, "The role or token does not allow it", secured),
        (404, "There is no such object, or it is another tenant's", path.contains('{')),
        (406, "The answer has no media type that `Accept` allows", true),
        (409, "Already there, or not in the state that the request needs", writes),
        (412, "The object is another one than `If-Match` says", has(condition::IF_MATCH)),
        (413, "The body is over the server's limit", body),
        (415, "The body is not application/json", body),
        (422, "The `Idempotency-Key` was used with another request", has(idempotency::HEADER)),
        (429, "A rate limit or a quota is used up", true),
        (500, "A fault of the server; the request id finds it in the log", true),
        (503, "A part that the request needs is down or starting", true),
    ];
    let tagged = has_tag(operation) && method == "get";
    let Some(answers) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    if tagged {
        answers.insert("304".into(), json!({ "description": "The copy at hand is still true" }));
    }
    for (status, description, _) in errors.into_iter().filter(|(.., applies)| *applies) {
        answers.entry(status.to_string()).or_insert_with(|| json!({ "description": description }));
    }
    let problem = json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
    for (status, answer) in answers.iter_mut() {
        if status.starts_with(['4', '5']) {
            answer["content"][PROBLEM_JSON] = problem.clone();
        }
    }
}
