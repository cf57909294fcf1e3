//! docs/api/asyncapi.yaml against the types: topics, keys, versions and limits, in both directions.
#![allow(clippy::unwrap_used, reason = "a test")]

use muster_wire::{
    BIRTH_BYTES_MAX, BOXES_MAX, Birth, BoundingBox, CREDIT_BYTES_MAX, CREDIT_REQUEST_BYTES_MAX, Credit,
    CreditRequest, DEATH_BYTES_MAX, DROPS_MAX, Death, DeviceId, DownClass, DropRange, DropReason,
    ENVELOPE_BYTES_MAX, EVENT_BYTES_MAX, Envelope, Event, EventKind, METRIC_NAME_BYTES_MAX, NAME_BYTES_MAX,
    PIPELINES_MAX, QUEUES_MAX, QueueId, QueueState, READINGS_MAX, RECONNECT_SPREAD_MS_MAX, Reading,
    RunningModel, SEQ_MAX, STATE_BYTES_MAX, SUBJECT_BYTES_MAX, State, TELEMETRY_BYTES_MAX, TEXT_BYTES_MAX,
    Telemetry, TenantId, Topic, UpClass, Value, WIRE_VERSION, senml,
};
use serde_cbor::Value as Cbor;
use std::collections::{BTreeMap, BTreeSet};
use yaml_rust2::{Yaml, YamlLoader};

fn document() -> Yaml {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api/asyncapi.yaml");
    YamlLoader::load_from_str(&std::fs::read_to_string(path).unwrap()).unwrap().remove(0)
}

/// Follows `$ref`, alone or as the only item of `allOf`.
fn resolve<'y>(document: &'y Yaml, node: &'y Yaml) -> &'y Yaml {
    let reference = node["$ref"].as_str().or_else(|| node["allOf"][0]["$ref"].as_str());
    let Some(reference) = reference else { return node };
    let found = reference.strip_prefix("#/").unwrap().split('/').fold(document, |at, name| &at[name]);
    assert!(!found.is_badvalue(), "{reference} is not there");
    resolve(document, found)
}

fn names(node: &Yaml) -> BTreeSet<String> {
    node.as_hash().unwrap().keys().map(|key| key.as_str().unwrap().to_owned()).collect()
}

fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap()
}

#[test]
fn every_class_has_its_channel_and_operations_and_there_are_no_others() {
    let document = document();
    let (mut channels, mut operations) = (BTreeSet::new(), BTreeSet::new());
    let mut legs = Vec::new();
    for class in UpClass::ALL {
        let name = class.as_str();
        legs.push(("up", name));
        operations.insert((format!("receive-{name}"), "receive", format!("up-{name}")));
        // A request for credit ends at the gateway: no integration client follows it.
        if class != UpClass::Credit {
            operations.insert((format!("forward-{name}"), "send", format!("up-{name}")));
        }
        let channel = &document["channels"][format!("up-{name}").as_str()];
        assert_eq!(channel["x-number"].as_i64(), Some(i64::from(class.number())), "{name}");
        assert_eq!(names(&channel["messages"]), BTreeSet::from([name.to_owned()]));
    }
    for class in DownClass::ALL {
        legs.push(("dn", class.as_str()));
        let name = class.as_str();
        operations.insert((format!("send-{name}"), "send", format!("dn-{name}")));
    }
    for (way, class) in legs {
        let name = format!("{way}-{class}");
        let address = document["channels"][name.as_str()]["address"].as_str().expect("a channel a class");
        assert_eq!(address, format!("muster/{{tenant}}/{{device}}/{way}/{class}"));
        assert!(Topic::parse(&address.replace(['{', '}'], "")).is_ok(), "{address}");
        channels.insert(name);
    }
    assert_eq!(names(&document["channels"]), channels);
    let expected: BTreeSet<_> = operations.iter().map(|(name, ..)| name.clone()).collect();
    assert_eq!(names(&document["operations"]), expected);
    for (name, action, channel) in operations {
        let operation = &document["operations"][name.as_str()];
        assert_eq!(operation["action"].as_str(), Some(action), "{name}");
        assert_eq!(operation["channel"]["$ref"].as_str(), Some(format!("#/channels/{channel}").as_str()));
    }
}

/// Every limit of the document with the constant that it must equal.
fn limits() -> BTreeMap<&'static str, i64> {
    let all = [
        ("parameters/tenant/x-bytes-max", TenantId::BYTES_MAX),
        ("parameters/device/x-bytes-max", DeviceId::BYTES_MAX),
        ("messages/telemetry/x-body-bytes-max", TELEMETRY_BYTES_MAX),
        ("messages/event/x-body-bytes-max", EVENT_BYTES_MAX),
        ("messages/state/x-body-bytes-max", STATE_BYTES_MAX),
        ("messages/birth/x-body-bytes-max", BIRTH_BYTES_MAX),
        ("messages/death/x-body-bytes-max", DEATH_BYTES_MAX),
        ("messages/senml/x-body-bytes-max", senml::SENML_BYTES_MAX),
        ("messages/credit/x-body-bytes-max", CREDIT_REQUEST_BYTES_MAX),
        ("schemas/Envelope/x-bytes-max", ENVELOPE_BYTES_MAX),
        ("schemas/Envelope/items/seq/maximum", usize::try_from(SEQ_MAX).unwrap()),
        ("schemas/Telemetry/properties/readings/minItems", 1),
        ("schemas/Telemetry/properties/readings/maxItems", READINGS_MAX),
        ("schemas/Reading/minItems", 2),
        ("schemas/Reading/items/metric/x-bytes-max", METRIC_NAME_BYTES_MAX),
        ("schemas/Value/oneOf/string/x-bytes-max", TEXT_BYTES_MAX),
        ("schemas/Event/properties/pipeline/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Event/properties/model/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Event/properties/model_version/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Event/properties/label/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Event/properties/subject/x-bytes-max", SUBJECT_BYTES_MAX),
        ("schemas/Event/properties/boxes/maxItems", BOXES_MAX),
        ("schemas/BoundingBox/items/label/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/agent_version/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/os/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/arch/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/boot_id/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/pipelines/maxItems", PIPELINES_MAX),
        ("schemas/Birth/properties/pipelines/items/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/Birth/properties/queues/maxItems", QUEUES_MAX),
        ("schemas/Birth/properties/drops/maxItems", DROPS_MAX),
        ("schemas/Birth/properties/models/maxItems", PIPELINES_MAX),
        ("schemas/RunningModel/properties/pipeline/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/RunningModel/properties/model/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/RunningModel/properties/version/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/RunningModel/properties/engine/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/RunningModel/properties/form/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/State/properties/queues/maxItems", QUEUES_MAX),
        ("schemas/State/properties/drops/maxItems", DROPS_MAX),
        ("schemas/Death/properties/reason/x-bytes-max", NAME_BYTES_MAX),
        ("schemas/CreditRequest/properties/backlog/minimum", 1),
        ("schemas/Credit/x-bytes-max", CREDIT_BYTES_MAX),
        ("schemas/Credit/minItems", 4),
        (
            "schemas/Credit/items/reconnect_spread_ms/maximum",
            usize::try_from(RECONNECT_SPREAD_MS_MAX).unwrap(),
        ),
        ("schemas/Senml/minItems", 1),
        ("schemas/Senml/maxItems", READINGS_MAX),
        ("schemas/Senml/items/properties/bver/maximum", 10),
        ("schemas/Senml/items/properties/u/x-bytes-max", senml::UNIT_BYTES_MAX),
        ("schemas/Senml/items/properties/vs/x-bytes-max", TEXT_BYTES_MAX),
    ];
    all.into_iter().map(|(path, limit)| (path, integer(limit))).collect()
}

/// Collects every limit below a node; items of a list go by title or type.
fn collect(node: &Yaml, path: &str, found: &mut BTreeMap<String, i64>) {
    for (key, child) in node.as_hash().into_iter().flatten() {
        let key = key.as_str().unwrap_or("");
        let path = format!("{path}/{key}");
        if ["minItems", "maxItems", "minimum", "maximum", "maxLength", "x-bytes-max", "x-body-bytes-max"]
            .contains(&key)
        {
            found.insert(path[1..].to_owned(), child.as_i64().unwrap());
        }
        collect(child, &path, found);
        for item in child.as_vec().into_iter().flatten() {
            let name = item["title"].as_str().or_else(|| item["type"].as_str()).unwrap_or("");
            collect(item, &format!("{path}/{name}"), found);
        }
    }
}

#[test]
fn every_limit_is_the_codes_and_every_limit_of_the_code_is_told() {
    let mut found = BTreeMap::new();
    collect(&document()["components"], "", &mut found);
    let found: BTreeMap<&str, i64> = found.iter().map(|(path, limit)| (path.as_str(), *limit)).collect();
    assert_eq!(found, limits());
}

fn enumeration(document: &Yaml, name: &str) -> Vec<(i64, String)> {
    let schema = &document["components"]["schemas"][name];
    let numbers = schema["enum"].as_vec().unwrap().iter().map(|number| number.as_i64().unwrap());
    let names = schema["x-enum-varnames"].as_vec().unwrap().iter();
    let names: Vec<_> = names.map(|name| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(numbers.len(), names.len());
    numbers.zip(names).collect()
}

#[test]
fn kinds_and_reasons_have_the_codes_numbers_and_names() {
    let document = document();
    let number = |bytes: Vec<u8>| i64::from(minicbor::decode::<u8>(&bytes).unwrap());
    let reasons =
        DropReason::ALL.map(|reason| (number(minicbor::to_vec(reason).unwrap()), reason.as_str().to_owned()));
    assert_eq!(enumeration(&document, "DropReason"), reasons);
    let kinds = EventKind::ALL.map(|kind| {
        let name = serde_json::to_value(kind).unwrap().as_str().unwrap().to_owned();
        (number(minicbor::to_vec(kind).unwrap()), name)
    });
    assert_eq!(enumeration(&document, "EventKind"), kinds);
}

/// Holds a CBOR value against a schema: exactly its keys, all of them, with values of their types.
fn conforms(document: &Yaml, schema: &Yaml, value: &Cbor, path: &str) {
    let schema = resolve(document, schema);
    match (schema["type"].as_str(), value) {
        (Some("object"), Cbor::Map(map)) => {
            let mut keys = BTreeSet::new();
            for (name, field) in schema["properties"].as_hash().unwrap() {
                let name = name.as_str().unwrap();
                let key = Cbor::Integer(i128::from(field["x-cbor-key"].as_i64().unwrap()));
                let value = map.get(&key).unwrap_or_else(|| panic!("{path}.{name} is not in the message"));
                conforms(document, field, value, &format!("{path}.{name}"));
                assert!(keys.insert(key), "{path}.{name}: two fields of one key");
            }
            assert_eq!(map.keys().cloned().collect::<BTreeSet<_>>(), keys, "{path}");
        }
        (Some("array"), Cbor::Array(items)) => match schema["items"].as_vec() {
            Some(fields) => {
                assert_eq!(items.len(), fields.len(), "{path}");
                for (field, item) in fields.iter().zip(items) {
                    let title = field["title"].as_str().unwrap();
                    conforms(document, field, item, &format!("{path}.{title}"));
                }
            }
            None => {
                assert!(!items.is_empty(), "{path} shows nothing");
                items.iter().for_each(|item| conforms(document, &schema["items"], item, path));
            }
        },
        (Some("integer"), Cbor::Integer(_))
        | (Some("number"), Cbor::Integer(_) | Cbor::Float(_))
        | (Some("boolean"), Cbor::Bool(_))
        | (Some("string"), Cbor::Text(_)) => {}
        (None, Cbor::Bytes(_)) if schema["x-cbor"].as_str() == Some("bytes") => {}
        (None, Cbor::Float(_) | Cbor::Bool(_) | Cbor::Text(_)) if !schema["oneOf"].is_badvalue() => {}
        (kind, value) => panic!("{path}: {kind:?} is not what {value:?} is"),
    }
}

/// A body's class, the bytes of one with all its fields, and whether bytes decode.
type Body = (UpClass, Vec<u8>, fn(&[u8]) -> bool);

fn bodies() -> Vec<Body> {
    let text = || "x".to_owned();
    let queue = QueueState { class: 1, queue_id: QueueId(7), first: 1, released: 2, next: 3, closed: true };
    let drops =
        DropRange { class: 2, queue_id: QueueId(7), first: 3, last: 300, reason: DropReason::Expired };
    let reading = |value| Reading { metric: text(), value, offset_us: Some(-7) };
    let values = [Value::Number(0.1), Value::Bool(true), Value::Text(text())];
    let boxed = BoundingBox { label: text(), score: 0.6, x: 0.1, y: 0.2, width: 0.3, height: 0.4 };
    let event = Event {
        pipeline: text(),
        model: text(),
        model_version: text(),
        kind: EventKind::Detection,
        label: text(),
        // Stays a float of 64 bits when it is encoded again as short as possible.
        score: 0.1,
        subject: Some(text()),
        latency_us: 9,
        boxes: vec![boxed],
    };
    let birth = Birth {
        agent_version: text(),
        os: text(),
        arch: text(),
        boot_id: text(),
        pipelines: vec![text()],
        queues: vec![queue],
        drops: vec![drops],
        models: vec![RunningModel {
            pipeline: text(),
            model: text(),
            version: text(),
            engine: text(),
            form: text(),
            median_us: Some(9),
        }],
    };
    let state = State { queues: vec![queue], drops: vec![drops], uptime_s: 60, inferences: 70 };
    vec![
        (Telemetry::CLASS, Telemetry { readings: values.map(reading).into() }.encode(), |bytes| {
            Telemetry::decode(bytes).is_ok()
        }),
        (Event::CLASS, event.encode(), |bytes| Event::decode(bytes).is_ok()),
        (Birth::CLASS, birth.encode(), |bytes| Birth::decode(bytes).is_ok()),
        (State::CLASS, state.encode(), |bytes| State::decode(bytes).is_ok()),
        (Death::CLASS, Death { reason: text() }.encode(), |bytes| Death::decode(bytes).is_ok()),
        (CreditRequest::CLASS, CreditRequest { backlog: 60 }.encode(), |bytes| {
            CreditRequest::decode(bytes).is_ok()
        }),
    ]
}

#[test]
fn every_body_is_what_its_schema_says_and_needs_what_it_requires() {
    let document = document();
    let mut told = BTreeSet::new();
    for (class, bytes, decodes) in bodies() {
        let name = class.as_str();
        let schema = resolve(&document, &document["components"]["messages"][name]["x-body"]);
        let whole: Cbor = serde_cbor::from_slice(&bytes).unwrap();
        conforms(&document, schema, &whole, name);
        assert!(decodes(&serde_cbor::to_vec(&whole).unwrap()), "{name} as another encoder writes it");
        let Cbor::Map(map) = &whole else { panic!("{name} is a map") };
        let required: BTreeSet<&str> =
            schema["required"].as_vec().unwrap().iter().map(|field| field.as_str().unwrap()).collect();
        for (field, shape) in schema["properties"].as_hash().unwrap() {
            let field = field.as_str().unwrap();
            let mut without = map.clone();
            without.remove(&Cbor::Integer(i128::from(shape["x-cbor-key"].as_i64().unwrap())));
            let bytes = serde_cbor::to_vec(&Cbor::Map(without)).unwrap();
            assert_eq!(!decodes(&bytes), required.contains(field), "{name}.{field}");
        }
        told.insert(name.to_owned());
    }
    let messages = document["components"]["messages"].as_hash().unwrap();
    let with_body = messages.iter().filter(|(_, message)| !message["x-body"].is_badvalue());
    let with_body: BTreeSet<_> = with_body.map(|(name, _)| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(with_body, told, "messages with a body are those that the code has");
}

#[test]
fn the_envelope_is_what_its_schema_says() {
    let document = document();
    let schema = &document["components"]["schemas"]["Envelope"];
    for class in UpClass::ALL {
        let envelope = Envelope { class, queue_id: QueueId(7), seq: 1, measured_at_us: 5, body: &[0xA0] };
        let whole: Cbor = serde_cbor::from_slice(&envelope.encode()).unwrap();
        conforms(&document, schema, &whole, "envelope");
        let Cbor::Array(fields) = &whole else { panic!("an array") };
        assert_eq!(fields[1], Cbor::Integer(i128::from(class.number())));
    }
    assert_eq!(schema["items"][0]["const"].as_i64(), Some(i64::from(WIRE_VERSION)));
}

#[test]
fn the_credit_is_what_its_schema_says() {
    let document = document();
    let message = resolve(&document, &document["channels"]["dn-credit"]["messages"]["grant"]);
    let schema = resolve(&document, &message["payload"]);
    let credit = Credit { epoch: u64::MAX, records: 64, reconnect_spread_ms: 6_667 };
    let whole: Cbor = serde_cbor::from_slice(&credit.encode()).unwrap();
    conforms(&document, schema, &whole, "credit");
    assert_eq!(schema["items"][0]["const"].as_i64(), Some(i64::from(WIRE_VERSION)));
    let Cbor::Array(mut fields) = whole else { panic!("an array") };
    fields.push(Cbor::Text("of a later server".into()));
    assert_eq!(schema["additionalItems"].as_bool(), Some(true));
    assert_eq!(Credit::decode(&serde_cbor::to_vec(&Cbor::Array(fields)).unwrap()).unwrap(), credit);
}

/// A pack of one record with a value for each field named, in both forms; they decode alike.
fn senml_pack(fields: &Yaml, names: &[(&str, serde_json::Value)]) -> Result<Vec<senml::Resolved>, String> {
    let (mut map, mut json) = (BTreeMap::new(), serde_json::Map::new());
    for (name, value) in names {
        let cbor = match (fields[*name]["type"].as_str().expect("a field"), value) {
            ("number", serde_json::Value::Number(number)) => Cbor::Integer(number.as_i64().unwrap().into()),
            ("string", serde_json::Value::String(text)) => Cbor::Text(text.clone()),
            ("boolean", serde_json::Value::Bool(flag)) => Cbor::Bool(*flag),
            other => panic!("{name}: {other:?}"),
        };
        map.insert(Cbor::Integer(fields[*name]["x-cbor-key"].as_i64().unwrap().into()), cbor);
        json.insert((*name).to_owned(), value.clone());
    }
    let cbor = senml::decode(&serde_cbor::to_vec(&Cbor::Array(vec![Cbor::Map(map)])).unwrap());
    let json = senml::decode(serde_json::json!([json]).to_string().as_bytes());
    let (cbor, json) = (cbor.map_err(|error| error.to_string()), json.map_err(|error| error.to_string()));
    assert_eq!(cbor, json, "{names:?}");
    cbor
}

#[test]
fn every_field_of_a_senml_pack_is_read_and_no_other_is_told() {
    let document = document();
    let fields = &document["components"]["schemas"]["Senml"]["items"]["properties"];
    let text = |text: &str| serde_json::Value::from(text);
    let base = [
        ("bn", text("x")),
        ("bt", 3.into()),
        ("bu", text("m")),
        ("bv", 3.into()),
        ("bs", 3.into()),
        ("n", text("y")),
        ("v", 3.into()),
        ("s", 3.into()),
        ("t", 3.into()),
    ];
    let whole = senml_pack(fields, &base).unwrap();
    let values: Vec<_> = whole.iter().map(|each| (each.metric.as_str(), each.value.clone())).collect();
    assert_eq!(values, [("xy", Value::Number(6.0)), ("xy:sum", Value::Number(6.0))]);
    let mut told: BTreeSet<String> = ["u", "vs", "vb", "bver"].map(str::to_owned).into();
    for at in 0..base.len() {
        let mut without = base.to_vec();
        let (name, _) = without.remove(at);
        assert_ne!(senml_pack(fields, &without).as_ref(), Ok(&whole), "{name} is read");
        told.insert(name.to_owned());
    }
    let with = |name, value| senml_pack(fields, &[&base[..], &[(name, value)]].concat());
    assert_ne!(with("u", text("s")).as_ref(), Ok(&whole));
    assert_eq!(with("bver", 10.into()).as_ref(), Ok(&whole));
    assert!(with("bver", 11.into()).is_err());
    for (name, value) in [("vs", text("on")), ("vb", true.into())] {
        assert_eq!(senml_pack(fields, &[("n", text("x")), (name, value)]).unwrap().len(), 1, "{name}");
    }
    assert_eq!(names(fields), told);
}
