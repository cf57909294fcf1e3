//! What version 1 writes, byte for byte. A change here breaks every device in the field.
#![allow(clippy::unwrap_used, reason = "a test")]

use muster_wire::{
    Birth, BoundingBox, Credit, CreditRequest, Death, DropRange, DropReason, Envelope, Event, EventKind,
    QueueId, QueueState, Reading, RunningModel, State, Telemetry, UpClass, Value, WireError,
};

macro_rules! check {
    ($message:expr, $type:ty, $expect:literal) => {
        let message: $type = $message;
        assert_eq!(hex::encode(message.encode()), $expect);
        assert_eq!(<$type>::decode(&hex::decode($expect).unwrap()).unwrap(), message);
    };
}

fn queue() -> QueueState {
    QueueState { class: 1, queue_id: QueueId(0xfeed), first: 1, released: 24, next: 1000, closed: true }
}

fn drops() -> DropRange {
    DropRange { class: 2, queue_id: QueueId(0xfeed), first: 3, last: 300, reason: DropReason::Expired }
}

#[test]
fn envelope() {
    let envelope = Envelope {
        class: UpClass::Telemetry,
        queue_id: QueueId(u64::MAX),
        seq: 500,
        measured_at_us: -1,
        body: &[0xa0],
    };
    let bytes = "8601011bffffffffffffffff1901f42041a0";
    assert_eq!(hex::encode(envelope.encode()), bytes);
    assert_eq!(Envelope::decode(&hex::decode(bytes).unwrap()).unwrap(), envelope);
}

#[test]
fn telemetry() {
    let reading = |metric: &str, value, offset_us| Reading { metric: metric.into(), value, offset_us };
    check!(
        Telemetry {
            readings: vec![
                reading("t_c", Value::Number(21.5), None),
                reading("p", Value::Number(0.1), Some(-7)),
                reading("on", Value::Bool(true), None),
                reading("s", Value::Text("ok".into()), None),
            ]
        },
        Telemetry,
        "a100848263745f63fa41ac0000836170fb3fb999999999999a2682626f6ef5826173626f6b"
    );
}

#[test]
fn event() {
    check!(
        Event {
            pipeline: "door".into(),
            model: "person".into(),
            model_version: "1.0".into(),
            kind: EventKind::Detection,
            label: "person".into(),
            score: 0.5,
            subject: Some("f.jpg".into()),
            latency_us: 900,
            boxes: vec![BoundingBox {
                label: "person".into(),
                score: 0.5,
                x: 0.0,
                y: 0.25,
                width: 0.5,
                height: 1.0
            }],
        },
        Event,
        "a90064646f6f720166706572736f6e0263312e3003030466706572736f6e05fb3fe00000000000000665662e6a70670719038408818666706572736f6efa3f000000fa00000000fa3e800000fa3f000000fa3f800000"
    );
    check!(
        Event {
            pipeline: "p".into(),
            model: "m".into(),
            model_version: "2".into(),
            kind: EventKind::Anomaly,
            label: "normal".into(),
            score: 2.0,
            subject: None,
            latency_us: 1,
            boxes: vec![],
        },
        Event,
        "a800617001616d026132030204666e6f726d616c05fb400000000000000007010880"
    );
}

#[test]
fn birth() {
    let birth = || Birth {
        agent_version: "0.1.0".into(),
        os: "Linux".into(),
        arch: "x86_64".into(),
        boot_id: "b".into(),
        pipelines: vec!["door".into()],
        queues: vec![queue()],
        drops: vec![drops()],
        models: vec![],
    };
    // Without models it is what agents wrote before there were any.
    check!(
        birth(),
        Birth,
        "a70065302e312e3001654c696e757802667838365f3634036162048164646f6f720581a600010119feed0201031818041903e805f50681a500020119feed02030319012c0402"
    );
    let model = |median_us| RunningModel {
        pipeline: "door".into(),
        model: "person".into(),
        version: "1.0".into(),
        engine: "tract".into(),
        form: "none".into(),
        median_us,
    };
    check!(
        Birth { models: vec![model(Some(320)), model(None)], ..birth() },
        Birth,
        "a80065302e312e3001654c696e757802667838365f3634036162048164646f6f720581a600010119feed0201031818041903e805f50681a500020119feed02030319012c04020782a60064646f6f720166706572736f6e0263312e300365747261637404646e6f6e6505190140a50064646f6f720166706572736f6e0263312e300365747261637404646e6f6e65"
    );
}

#[test]
fn state() {
    check!(
        State { queues: vec![queue()], drops: vec![drops()], uptime_s: 60, inferences: 70_000 },
        State,
        "a40081a600010119feed0201031818041903e805f50181a500020119feed02030319012c040202183c031a00011170"
    );
}

#[test]
fn death() {
    check!(Death { reason: "connection lost".into() }, Death, "a1006f636f6e6e656374696f6e206c6f7374");
}

#[test]
fn credit_request() {
    check!(CreditRequest { backlog: 60 }, CreditRequest, "a100183c");
    check!(CreditRequest { backlog: u64::MAX }, CreditRequest, "a1001bffffffffffffffff");
}

#[test]
fn credit() {
    check!(Credit { epoch: 7, records: 0, reconnect_spread_ms: 0 }, Credit, "8401070000");
    check!(
        Credit { epoch: 0x0123_4567_89ab_cdef, records: 64, reconnect_spread_ms: 6_667 },
        Credit,
        "84011b0123456789abcdef1840191a0b"
    );
    check!(
        Credit { epoch: u64::MAX, records: u32::MAX, reconnect_spread_ms: u32::MAX },
        Credit,
        "84011bffffffffffffffff1affffffff1affffffff"
    );
}

/// What a server of a later day may send to a device of today, and what it may not.
#[test]
fn a_credit_with_later_fields_is_taken_and_another_version_is_told() {
    let decode = |bytes: &str| Credit::decode(&hex::decode(bytes).unwrap());
    let credit = Credit { epoch: 7, records: 64, reconnect_spread_ms: 5 };
    assert_eq!(decode("840107184005").unwrap(), credit);
    assert_eq!(decode("860107184005a10102f6").unwrap(), credit);
    assert!(matches!(decode("840207184005"), Err(WireError::Version(2))));
    for bad in [
        "",
        "80",
        "83010718",
        "8301071840",
        "840107184005ff",
        "850107184005",
        "9f0107184005ff",
        "a0",
        "840120184005",
    ] {
        assert!(matches!(decode(bad), Err(WireError::Malformed { .. })), "{bad}");
    }
}

#[test]
fn numbers_of_classes_kinds_and_reasons_never_change() {
    let classes: Vec<(u8, &str)> =
        UpClass::ALL.iter().map(|class| (class.number(), class.as_str())).collect();
    let expect = [
        (1, "telemetry"),
        (2, "event"),
        (3, "state"),
        (4, "result"),
        (5, "ota"),
        (6, "log"),
        (7, "birth"),
        (8, "death"),
        (9, "senml"),
        (10, "credit"),
    ];
    assert_eq!(classes, expect);
    for (at, reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(minicbor::to_vec(reason).unwrap(), [u8::try_from(at + 1).unwrap()]);
    }
}
