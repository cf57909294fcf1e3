//! Every bound of a message: what is at the bound decodes, one more is refused, and the error says of which field.
#![allow(clippy::unwrap_used, reason = "a test")]

use muster_wire::senml;
use muster_wire::{
    BIRTH_BYTES_MAX, BOXES_MAX, Birth, BoundingBox, CREDIT_BYTES_MAX, CREDIT_REQUEST_BYTES_MAX, Credit,
    CreditRequest, DEATH_BYTES_MAX, DROPS_MAX, Death, DeviceId, DropRange, DropReason, ENVELOPE_BYTES_MAX,
    EVENT_BYTES_MAX, Envelope, Event, EventKind, METRIC_NAME_BYTES_MAX, NAME_BYTES_MAX, PIPELINES_MAX,
    PUBLISH_BYTES_MAX, QUEUES_MAX, QueueId, QueueState, READINGS_MAX, Reading, RunningModel, SEQ_MAX,
    STATE_BYTES_MAX, SUBJECT_BYTES_MAX, State, TELEMETRY_BYTES_MAX, TEXT_BYTES_MAX, Telemetry, TelemetryRef,
    TenantId, Topic, UpClass, Value, WireError, check_metric_name,
};

/// Makes one of `max`, which is taken, and one of `max + 1`, whose refusal holds all `parts`.
#[track_caller]
fn check<T>(max: usize, parts: &[&str], decode: impl Fn(usize) -> Result<T, WireError>) {
    if let Err(error) = decode(max) {
        panic!("{max}: {error}");
    }
    let Err(error) = decode(max + 1) else { panic!("{} was taken", max + 1) };
    let error = error.to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn reading(metric: String, value: Value) -> Reading {
    Reading { metric, value, offset_us: None }
}

fn number(metric: String) -> Reading {
    reading(metric, Value::Number(0.0))
}

fn telemetry(readings: Vec<Reading>) -> Result<Telemetry, WireError> {
    let bytes = Telemetry { readings }.encode();
    let owned = Telemetry::decode(&bytes);
    assert_eq!(owned.is_ok(), TelemetryRef::decode(&bytes).is_ok(), "both decoders keep the same bounds");
    owned
}

fn event() -> Event {
    Event {
        pipeline: text(1),
        model: text(1),
        model_version: text(1),
        kind: EventKind::Detection,
        label: text(1),
        score: 0.5,
        subject: None,
        latency_us: 1,
        boxes: Vec::new(),
    }
}

fn found(label: usize) -> BoundingBox {
    BoundingBox { label: text(label), score: 0.6, x: 0.1, y: 0.2, width: 0.3, height: 0.4 }
}

fn queues(count: usize) -> Vec<QueueState> {
    let next = SEQ_MAX;
    vec![
        QueueState { class: 1, queue_id: QueueId(u64::MAX), first: 1, released: next, next, closed: true };
        count
    ]
}

fn drops(count: usize) -> Vec<DropRange> {
    let (first, last) = (SEQ_MAX - 1, SEQ_MAX - 1);
    vec![DropRange { class: 1, queue_id: QueueId(u64::MAX), first, last, reason: DropReason::Purged }; count]
}

fn model(bytes: usize) -> RunningModel {
    let text = text(bytes);
    RunningModel {
        pipeline: text.clone(),
        model: text.clone(),
        version: text.clone(),
        engine: text.clone(),
        form: text,
        median_us: Some(u32::MAX),
    }
}

#[test]
fn readings_names_and_texts_are_bounded() {
    check(READINGS_MAX, &["telemetry: readings", "1 to 1000"], |count| {
        telemetry((0..count).map(|at| number(format!("m{at}"))).collect())
    });
    check(METRIC_NAME_BYTES_MAX, &["readings[1].metric", "1 to 64"], |bytes| {
        telemetry(vec![number(text(1)), number(text(bytes))])
    });
    check(TEXT_BYTES_MAX, &["telemetry", "value", "text of at most 256 bytes"], |bytes| {
        telemetry(vec![reading(text(1), Value::Text(text(bytes)))])
    });
    assert!(check_metric_name(&text(METRIC_NAME_BYTES_MAX)).is_ok());
    assert!(check_metric_name(&text(METRIC_NAME_BYTES_MAX + 1)).is_err());
}

#[test]
fn an_events_texts_and_boxes_are_bounded() {
    type Set = fn(&mut Event, String);
    let fields: [(&str, Set); 4] = [
        ("event: pipeline", |event, text| event.pipeline = text),
        ("event: model", |event, text| event.model = text),
        ("event: model_version", |event, text| event.model_version = text),
        ("event: label", |event, text| event.label = text),
    ];
    for (field, set) in fields {
        check(NAME_BYTES_MAX, &[&format!("{field} "), "at most 128 bytes"], |bytes| {
            let mut event = event();
            set(&mut event, text(bytes));
            Event::decode(&event.encode())
        });
    }
    check(SUBJECT_BYTES_MAX, &["event: subject", "at most 256 bytes"], |bytes| {
        Event::decode(&Event { subject: Some(text(bytes)), ..event() }.encode())
    });
    check(BOXES_MAX, &["event: boxes", "at most 100"], |count| {
        Event::decode(&Event { boxes: vec![found(1); count], ..event() }.encode())
    });
    check(NAME_BYTES_MAX, &["event: boxes[1].label", "at most 128 bytes"], |bytes| {
        Event::decode(&Event { boxes: vec![found(1), found(bytes)], ..event() }.encode())
    });
}

#[test]
fn reports_are_bounded() {
    type Set = fn(&mut Birth, String);
    let fields: [(&str, Set); 5] = [
        ("birth: agent_version", |birth, text| birth.agent_version = text),
        ("birth: os", |birth, text| birth.os = text),
        ("birth: arch", |birth, text| birth.arch = text),
        ("birth: boot_id", |birth, text| birth.boot_id = text),
        ("birth: pipelines[0]", |birth, text| birth.pipelines = vec![text]),
    ];
    for (field, set) in fields {
        check(NAME_BYTES_MAX, &[&format!("{field} "), "at most 128 bytes"], |bytes| {
            let mut birth = Birth::default();
            set(&mut birth, text(bytes));
            Birth::decode(&birth.encode())
        });
    }
    check(PIPELINES_MAX, &["birth: pipelines", "at most 64"], |count| {
        Birth::decode(&Birth { pipelines: vec![text(1); count], ..Birth::default() }.encode())
    });
    check(PIPELINES_MAX, &["birth: models", "at most 64"], |count| {
        Birth::decode(&Birth { models: vec![model(1); count], ..Birth::default() }.encode())
    });
    type SetModel = fn(&mut RunningModel, String);
    let fields: [(&str, SetModel); 5] = [
        ("birth: models[1].pipeline", |model, text| model.pipeline = text),
        ("birth: models[1].model", |model, text| model.model = text),
        ("birth: models[1].version", |model, text| model.version = text),
        ("birth: models[1].engine", |model, text| model.engine = text),
        ("birth: models[1].form", |model, text| model.form = text),
    ];
    for (field, set) in fields {
        check(NAME_BYTES_MAX, &[&format!("{field} "), "at most 128 bytes"], |bytes| {
            let mut models = vec![model(1); 2];
            set(&mut models[1], text(bytes));
            Birth::decode(&Birth { models, ..Birth::default() }.encode())
        });
    }
    check(QUEUES_MAX, &["birth: queues", "at most 64"], |count| {
        Birth::decode(&Birth { queues: queues(count), ..Birth::default() }.encode())
    });
    check(DROPS_MAX, &["birth: drops", "at most 256"], |count| {
        Birth::decode(&Birth { drops: drops(count), ..Birth::default() }.encode())
    });
    check(QUEUES_MAX, &["state: queues", "at most 64"], |count| {
        State::decode(&State { queues: queues(count), ..State::default() }.encode())
    });
    check(DROPS_MAX, &["state: drops", "at most 256"], |count| {
        State::decode(&State { drops: drops(count), ..State::default() }.encode())
    });
    check(NAME_BYTES_MAX, &["death: reason", "at most 128 bytes"], |bytes| {
        Death::decode(&Death { reason: text(bytes) }.encode())
    });
}

#[test]
fn bodies_over_their_bytes_are_not_looked_at() {
    type Decode = fn(&[u8]) -> Result<(), WireError>;
    let bodies: [(&str, usize, Decode); 9] = [
        ("telemetry", TELEMETRY_BYTES_MAX, |bytes| Telemetry::decode(bytes).map(|_| ())),
        ("telemetry", TELEMETRY_BYTES_MAX, |bytes| TelemetryRef::decode(bytes).map(|_| ())),
        ("event", EVENT_BYTES_MAX, |bytes| Event::decode(bytes).map(|_| ())),
        ("birth", BIRTH_BYTES_MAX, |bytes| Birth::decode(bytes).map(|_| ())),
        ("state", STATE_BYTES_MAX, |bytes| State::decode(bytes).map(|_| ())),
        ("death", DEATH_BYTES_MAX, |bytes| Death::decode(bytes).map(|_| ())),
        ("credit request", CREDIT_REQUEST_BYTES_MAX, |bytes| CreditRequest::decode(bytes).map(|_| ())),
        ("credit", CREDIT_BYTES_MAX, |bytes| Credit::decode(bytes).map(|_| ())),
        ("senml", senml::SENML_BYTES_MAX, |bytes| senml::decode(bytes).map(|_| ())),
    ];
    for (what, max, decode) in bodies {
        // Zeros are no body: at the bound the decoder says so, above it nobody looks.
        let error = decode(&vec![0; max]).unwrap_err();
        assert!(matches!(error, WireError::Malformed { .. }), "{error}");
        let error = decode(&vec![0; max + 1]).unwrap_err().to_string();
        assert_eq!(error, format!("{what} has {} bytes, more than {max}", max + 1));
    }
}

#[test]
fn a_request_for_credit_is_for_one_record_at_least() {
    assert!(CreditRequest::decode(&CreditRequest { backlog: 1 }.encode()).is_ok());
    let error = CreditRequest::decode(&CreditRequest { backlog: 0 }.encode()).unwrap_err().to_string();
    assert!(error.contains("credit request: backlog") && error.contains("1 at least"), "{error}");
    assert!(CreditRequest { backlog: u64::MAX }.encode().len() <= CREDIT_REQUEST_BYTES_MAX);
    let largest = Credit { epoch: u64::MAX, records: u32::MAX, reconnect_spread_ms: u32::MAX };
    assert_eq!(Credit::decode(&largest.encode()).unwrap(), largest);
}

#[test]
fn the_largest_reports_and_events_fit_their_bytes() {
    let (name, subject) = (text(NAME_BYTES_MAX), text(SUBJECT_BYTES_MAX));
    let birth = Birth {
        agent_version: name.clone(),
        os: name.clone(),
        arch: name.clone(),
        boot_id: name.clone(),
        pipelines: vec![name.clone(); PIPELINES_MAX],
        queues: queues(QUEUES_MAX),
        drops: drops(DROPS_MAX),
        models: vec![model(NAME_BYTES_MAX); PIPELINES_MAX],
    };
    Birth::decode(&birth.encode()).unwrap();
    let (queues, drops) = (birth.queues, birth.drops);
    State::decode(&State { queues, drops, uptime_s: u64::MAX, inferences: u64::MAX }.encode()).unwrap();
    let event = Event {
        pipeline: name.clone(),
        model: name.clone(),
        model_version: name.clone(),
        label: name,
        subject: Some(subject),
        boxes: vec![found(NAME_BYTES_MAX); BOXES_MAX],
        ..event()
    };
    Event::decode(&event.encode()).unwrap();
}

fn envelope(seq: u64, body: &[u8]) -> Vec<u8> {
    let queue_id = QueueId(u64::MAX);
    Envelope { class: UpClass::Telemetry, queue_id, seq, measured_at_us: i64::MIN, body }.encode()
}

#[test]
fn envelope_seq_and_topic_are_bounded() {
    let head = envelope(SEQ_MAX, &[0; 70_000]).len() - 70_000;
    check(ENVELOPE_BYTES_MAX, &["envelope has 262145 bytes", "more than 262144"], |bytes| {
        Envelope::decode(&envelope(SEQ_MAX, &vec![0; bytes - head])).map(|_| ())
    });
    assert!(Envelope::decode(&envelope(SEQ_MAX, b"x")).is_ok());
    let error = Envelope::decode(&envelope(SEQ_MAX + 1, b"x")).unwrap_err().to_string();
    assert!(error.contains("seq in 1..=SEQ_MAX"), "{error}");
    let above = QueueState { next: SEQ_MAX + 1, ..queues(1)[0] };
    let error = State::decode(&State { queues: vec![above], ..State::default() }.encode()).unwrap_err();
    assert!(error.to_string().contains("queues[0]"), "{error}");

    let tenant = TenantId::parse(&text(TenantId::BYTES_MAX)).unwrap();
    let device = DeviceId::parse(&text(DeviceId::BYTES_MAX)).unwrap();
    let topics = UpClass::ALL.map(|class| Topic::up(&tenant, &device, class).to_string().len());
    assert_eq!(topics.into_iter().max(), Some(Topic::BYTES_MAX));
    // Fixed header, topic with its length, packet id, properties.
    const { assert!(5 + 2 + Topic::BYTES_MAX + 2 + 1 + ENVELOPE_BYTES_MAX <= PUBLISH_BYTES_MAX) };
    let error = TenantId::parse(&text(TenantId::BYTES_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("tenant id") && error.contains("1 to 36"), "{error}");
    let error = DeviceId::parse(&text(DeviceId::BYTES_MAX + 1)).unwrap_err().to_string();
    assert!(error.contains("device id") && error.contains("1 to 64"), "{error}");
}

/// A CBOR pack of `count` records, each of a value and, where asked for, a sum.
fn cbor_pack(count: usize, sums: bool) -> Vec<u8> {
    let mut out = minicbor::Encoder::new(Vec::new());
    out.array(count as u64).unwrap();
    for _ in 0..count {
        out.map(if sums { 3 } else { 2 })
            .unwrap()
            .u8(0)
            .unwrap()
            .str("a")
            .unwrap()
            .u8(2)
            .unwrap()
            .u8(1)
            .unwrap();
        if sums {
            out.u8(5).unwrap().u8(1).unwrap();
        }
    }
    out.into_writer()
}

#[test]
fn a_senml_pack_is_bounded() {
    let one = |more: &str| senml::decode(format!(r#"[{{"n":"a","v":1{more}}}]"#).as_bytes());
    check(READINGS_MAX, &["senml", "1 to 1000 records"], |count| {
        senml::decode(format!("[{}]", vec![r#"{"n":"a","v":1}"#; count].join(",")).as_bytes())
    });
    check(READINGS_MAX, &["senml", "1 to 1000 records"], |count| senml::decode(&cbor_pack(count, false)));
    check(READINGS_MAX / 2, &["senml", "1 to 1000 values"], |count| senml::decode(&cbor_pack(count, true)));
    check(senml::UNIT_BYTES_MAX, &["senml: [0].u", "at most 16 bytes"], |bytes| {
        one(&format!(r#","u":"{}""#, text(bytes)))
    });
    check(10, &["senml: [0].bver", "at most 10"], |version| one(&format!(r#","bver":{version}"#)));
    check(9_200_000_000_000, &["senml: [0].t", "out of range"], |seconds| one(&format!(r#","t":{seconds}"#)));
    check(METRIC_NAME_BYTES_MAX - 1, &["senml: [0].n", "1 to 64"], |bytes| {
        one(&format!(r#","bn":"{}""#, text(bytes)))
    });
    check(TEXT_BYTES_MAX, &["senml: [0].v", "text of at most 256 bytes"], |bytes| {
        senml::decode(format!(r#"[{{"n":"a","vs":"{}"}}]"#, text(bytes)).as_bytes())
    });
}
