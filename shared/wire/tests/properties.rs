//! Topics round-trip; decoding untrusted bytes never panics; what a version encodes it decodes.
#![allow(clippy::unwrap_used, reason = "a test")]

use muster_wire::{
    Birth, Credit, CreditRequest, Death, DeviceId, DownClass, Envelope, Event, Leg, QueueId, Reading,
    ReadingRef, State, Telemetry, TelemetryRef, TenantId, Topic, UpClass, Value,
};
use proptest::prelude::*;

fn tenant() -> impl Strategy<Value = TenantId> {
    "[a-z0-9][a-z0-9-]{0,35}".prop_map(|text| TenantId::parse(&text).unwrap())
}

fn device() -> impl Strategy<Value = DeviceId> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,63}".prop_map(|text| DeviceId::parse(&text).unwrap())
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        prop::num::f64::NORMAL.prop_map(Value::Number),
        "[ -~é]{0,80}".prop_map(Value::Text),
    ]
}

fn own(telemetry: &TelemetryRef<'_>) -> Telemetry {
    let own = |reading: &ReadingRef<'_>| Reading {
        metric: reading.metric.into(),
        value: reading.value.clone(),
        offset_us: reading.offset_us,
    };
    Telemetry { readings: telemetry.readings.iter().map(own).collect() }
}

fn decode_all(bytes: &[u8]) {
    let _ = Envelope::decode(bytes);
    match (Telemetry::decode(bytes), TelemetryRef::decode(bytes)) {
        (Ok(owned), Ok(borrowed)) => assert_eq!(owned, own(&borrowed)),
        (Err(_), Err(_)) => {}
        (owned, borrowed) => panic!("{owned:?} but {borrowed:?}"),
    }
    let _ = Event::decode(bytes);
    let _ = Birth::decode(bytes);
    let _ = State::decode(bytes);
    let _ = Death::decode(bytes);
    let _ = Credit::decode(bytes);
    let _ = CreditRequest::decode(bytes);
}

proptest! {
    #[test]
    fn a_topic_parses_to_what_was_formatted(
        tenant in tenant(), device in device(), up in prop::sample::select(&UpClass::ALL[..]),
        down in prop::sample::select(&DownClass::ALL[..])
    ) {
        for (topic, leg) in [
            (Topic::up(&tenant, &device, up), Leg::Up(up)), (Topic::down(&tenant, &device, down), Leg::Down(down)),
        ] {
            let text = topic.to_string();
            prop_assert!(text.len() <= Topic::BYTES_MAX);
            let back = Topic::parse(&text).unwrap();
            prop_assert_eq!(back, topic);
            prop_assert_eq!((back.tenant(), back.device(), back.leg()), (tenant.as_str(), device.as_str(), leg));
        }
    }

    #[test]
    fn any_text_is_a_topic_or_an_error(text in "\\PC{0,120}") {
        if let Ok(topic) = Topic::parse(&text) {
            prop_assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn topic_like_text_is_refused_with_wildcards(
        text in "(muster|Muster)(/(acme|\\+|#|é|up|dn|Cam_1|telemetry|twin|)){0,6}"
    ) {
        if let Ok(topic) = Topic::parse(&text) {
            prop_assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn decoding_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
    }

    #[test]
    fn decoding_damaged_messages_never_panics(at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>()) {
        let readings = vec![Reading { metric: "t".into(), value: Value::Text("x".into()), offset_us: Some(-1) }; 3];
        let body = Telemetry { readings }.encode();
        let envelope =
            Envelope { class: UpClass::Telemetry, queue_id: QueueId(7), seq: 9, measured_at_us: 5, body: &body };
        let credit = Credit { epoch: u64::MAX, records: 64, reconnect_spread_ms: 70_000 }.encode();
        for mut bytes in [envelope.encode(), body.clone(), credit] {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            decode_all(&bytes);
            decode_all(&bytes[..cut.index(bytes.len())]);
        }
    }

    #[test]
    fn telemetry_round_trips(
        values in prop::collection::vec(("[a-z0-9._/:%-]{1,64}", value(), prop::option::of(any::<i64>())), 1..20),
        seq in 1..=i64::MAX as u64, queue_id in 1..u64::MAX, measured_at_us in any::<i64>()
    ) {
        let reading = |(metric, value, offset_us)| Reading { metric, value, offset_us };
        let telemetry = Telemetry { readings: values.into_iter().map(reading).collect() };
        let body = telemetry.encode();
        let envelope = Envelope {
            class: UpClass::Telemetry, queue_id: QueueId(queue_id), seq, measured_at_us, body: &body,
        };
        let bytes = envelope.encode();
        let back = Envelope::decode(&bytes).unwrap();
        prop_assert_eq!(back, envelope);
        prop_assert_eq!(own(&TelemetryRef::decode(back.body).unwrap()), telemetry.clone());
        prop_assert_eq!(Telemetry::decode(back.body).unwrap(), telemetry);
    }
}

/// A few bytes that promise a huge array must not make the decoder reserve it.
#[test]
fn a_promised_length_allocates_nothing() {
    for head in [
        "a1009bffffffffffffffff",
        "a1009b7fffffffffffffff",
        "a100bf",
        "bb7fffffffffffffff",
        "9b7fffffffffffffff",
        "9b7fffffffffffffff01184005",
        "bb7fffffffffffffff00",
    ] {
        decode_all(&hex::decode(head).unwrap());
    }
}
