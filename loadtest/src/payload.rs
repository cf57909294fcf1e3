//! The bytes of messages. The measured one is an envelope of 114 bytes with five readings, one of them a serial.
//!
//! Bytes are made once with `muster_wire` and patched for each message, so that making one costs nothing
//! beside sending it. Sequence numbers are written at full width, which CBOR allows, to keep places fixed.

use crate::record::Poison;
use muster_wire::{
    BoundingBox, CreditRequest, Envelope, Event, EventKind, QueueId, QueueState, Reading, State, Telemetry,
    UpClass, Value,
};

/// The size of every payload, in bytes.
pub const PAYLOAD_BYTES: usize = 114;
/// The serial's metric.
pub const SERIAL_METRIC: &str = "serial";
/// The metric whose high values open alerts.
pub const LEVEL_METRIC: &str = "probe_level";
/// The pipeline of inference results.
pub const EVENT_PIPELINE: &str = "door";
/// What a broken body holds instead of CBOR of the right shape.
const BROKEN_BODY: [u8; 8] = [0xFF; 8];

const OTHER_METRICS: [&str; 4] = ["cpu_ratio", "mem_ratio", "inlet_temp", "line_volts"];
/// Above every f32's exact range, and odd multiples of one: always eight bytes on the wire.
const SERIAL_BASE: u64 = 1 << 33;
const QUEUE_AT: usize = 1 + 1 + 1 + 1;
const SEQ_AT: usize = QUEUE_AT + 8 + 1;
const TIME_AT: usize = SEQ_AT + 4 + 1;
const SERIAL_AT: usize = TIME_AT + 8 + 2 + 3 + 1 + 1 + SERIAL_METRIC.len() + 1;

/// The template of every device's messages.
pub struct Payload {
    bytes: [u8; PAYLOAD_BYTES],
}

/// The value of the serial's reading for a device's record; distinct for each, exact in a f64.
#[must_use]
pub fn serial_value(device: u32, seq: u32) -> u64 {
    // 17 bits of device and 32 of seq stay below 2^53.
    SERIAL_BASE + 2 * (u64::from(device & 0x1_FFFF) << 32 | u64::from(seq)) + 1
}

/// The device and seq of a serial's value; none for a value that is no serial.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
pub fn serial_of(value: f64) -> Option<(u32, u32)> {
    let last = serial_value(u32::MAX, u32::MAX) as f64;
    if value.fract() != 0.0 || !((SERIAL_BASE as f64)..=last).contains(&value) || value as u64 & 1 == 0 {
        return None;
    }
    let number = (value as u64 - SERIAL_BASE) / 2;
    Some(((number >> 32) as u32, number as u32))
}

/// Which record a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordId {
    /// One opening of the device's queue; from [`queue_id`].
    pub queue_id: u64,
    /// The device's number.
    pub device: u32,
    /// Position in the queue, from 1.
    pub seq: u32,
}

/// A queue id of full width on the wire.
#[must_use]
pub fn queue_id(random: u64) -> u64 {
    random | 1 << 63
}

impl Default for Payload {
    fn default() -> Self {
        Self::new()
    }
}

impl Payload {
    /// Makes the template.
    #[must_use]
    pub fn new() -> Self {
        let serial = Reading {
            metric: SERIAL_METRIC.to_owned(),
            value: Value::Number(serial_value(0, 0) as f64),
            offset_us: None,
        };
        let other = |(at, metric): (usize, &&str)| Reading {
            metric: (*metric).to_owned(),
            value: Value::Number(0.25 + at as f64),
            offset_us: None,
        };
        let readings = std::iter::once(serial).chain(OTHER_METRICS.iter().enumerate().map(other)).collect();
        let body = Telemetry { readings }.encode();
        let sealed = Envelope {
            class: UpClass::Telemetry,
            queue_id: QueueId(queue_id(0)),
            seq: u64::from(u32::MAX),
            measured_at_us: 1 << 40,
            body: &body,
        };
        let bytes = sealed.encode().try_into().expect("the template's names fill exactly the payload");
        Self { bytes }
    }

    /// Writes the record's own numbers and answers the payload.
    pub fn record(&mut self, id: RecordId, measured_at_us: i64) -> &[u8; PAYLOAD_BYTES] {
        self.bytes[QUEUE_AT..QUEUE_AT + 8].copy_from_slice(&id.queue_id.to_be_bytes());
        self.bytes[SEQ_AT..SEQ_AT + 4].copy_from_slice(&id.seq.to_be_bytes());
        self.bytes[TIME_AT..TIME_AT + 8].copy_from_slice(&measured_at_us.to_be_bytes());
        let serial = (serial_value(id.device, id.seq) as f64).to_be_bytes();
        self.bytes[SERIAL_AT..SERIAL_AT + 8].copy_from_slice(&serial);
        &self.bytes
    }
}

fn sealed(class: UpClass, id: RecordId, measured_at_us: i64, body: &[u8]) -> Vec<u8> {
    let queue_id = QueueId(if id.seq == 0 { 0 } else { id.queue_id });
    Envelope { class, queue_id, seq: u64::from(id.seq), measured_at_us, body }.encode()
}

/// A record with its serial and a level that opens or ends an alert.
pub(crate) fn level(id: RecordId, level: f64, measured_at_us: i64) -> Vec<u8> {
    let reading = |metric: &str, value: f64| Reading {
        metric: metric.to_owned(),
        value: Value::Number(value),
        offset_us: None,
    };
    let serial = reading(SERIAL_METRIC, serial_value(id.device, id.seq) as f64);
    let level = reading(LEVEL_METRIC, level);
    sealed(UpClass::Telemetry, id, measured_at_us, &Telemetry { readings: vec![serial, level] }.encode())
}

/// An inference result of a camera: what it saw, and where.
pub(crate) fn event(id: RecordId, measured_at_us: i64) -> Vec<u8> {
    let share = |salt: u32| f64::from((id.seq.wrapping_mul(2_654_435_761) ^ salt) % 997) / 997.0;
    let found = |at: u32| BoundingBox {
        label: if at == 0 { "person" } else { "parcel" }.to_owned(),
        score: share(at) as f32,
        x: (share(at + 7) / 2.0) as f32,
        y: (share(at + 13) / 2.0) as f32,
        width: 0.25,
        height: 0.5,
    };
    let body = Event {
        pipeline: EVENT_PIPELINE.to_owned(),
        model: "person-detector".to_owned(),
        model_version: "1.2.0".to_owned(),
        kind: EventKind::Detection,
        label: "person".to_owned(),
        score: share(0),
        subject: Some(format!("serial-{}", serial_value(id.device, id.seq))),
        latency_us: 1_500,
        boxes: (0..1 + id.seq % 4).map(found).collect(),
    };
    sealed(UpClass::Event, id, measured_at_us, &body.encode())
}

/// Where a device's two queues stand: for telemetry and events the next number, and all below which is released.
pub(crate) fn state(queue_id: u64, next: [u32; 2], released: [u32; 2], measured_at_us: i64) -> Vec<u8> {
    let queue = |class: UpClass, at: usize| QueueState {
        class: class.number(),
        queue_id: QueueId(queue_id),
        first: 1,
        released: u64::from(released[at]),
        next: u64::from(next[at]),
        closed: false,
    };
    let queues = vec![queue(UpClass::Telemetry, 0), queue(UpClass::Event, 1)];
    let body = State { queues, ..State::default() }.encode();
    sealed(UpClass::State, RecordId { queue_id: 0, device: 0, seq: 0 }, measured_at_us, &body)
}

/// The request for credit of a device that holds so many records of backlog.
pub(crate) fn credit_request(backlog: u64, measured_at_us: i64) -> Vec<u8> {
    let body = CreditRequest { backlog }.encode();
    sealed(UpClass::Credit, RecordId { queue_id: 0, device: 0, seq: 0 }, measured_at_us, &body)
}

/// A broken message; one with a broken body carries the record's number.
pub(crate) fn poison(poison: Poison, id: RecordId, measured_at_us: i64) -> Vec<u8> {
    match poison {
        Poison::Garbage => b"this is no envelope".to_vec(),
        Poison::Body => sealed(UpClass::Telemetry, id, measured_at_us, &BROKEN_BODY),
        Poison::Topic => level(RecordId { seq: u32::MAX, ..id }, 0.0, measured_at_us),
        Poison::Version => {
            let mut bytes = level(RecordId { seq: u32::MAX, ..id }, 0.0, measured_at_us);
            // The head of an array of six, then the version: 23 is the largest of one byte.
            bytes[1] = 23;
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_wire::WireError;

    #[test]
    fn every_kind_of_message_is_what_it_says() {
        let id = RecordId { queue_id: queue_id(5), device: 3, seq: 9 };
        let bytes = level(id, 1.0, 77);
        let body = Telemetry::decode(Envelope::decode(&bytes).unwrap().body).unwrap();
        assert_eq!(body.readings[0].value.as_number().unwrap() as u64, serial_value(3, 9));
        assert_eq!(
            (body.readings[1].metric.as_str(), &body.readings[1].value),
            (LEVEL_METRIC, &Value::Number(1.0))
        );
        let bytes = event(id, 77);
        let envelope = Envelope::decode(&bytes).unwrap();
        assert_eq!((envelope.class, envelope.seq), (UpClass::Event, 9));
        let subject = Event::decode(envelope.body).unwrap().subject.unwrap();
        assert_eq!(subject, format!("serial-{}", serial_value(3, 9)));
        let bytes = state(queue_id(5), [9, 1], [4, 1], 77);
        let envelope = Envelope::decode(&bytes).unwrap();
        assert_eq!((envelope.seq, envelope.queue_id.0), (0, 0));
        assert_eq!(State::decode(envelope.body).unwrap().queues[0].released, 4);
        let bytes = credit_request(60, 77);
        assert_eq!(CreditRequest::decode(Envelope::decode(&bytes).unwrap().body).unwrap().backlog, 60);
    }

    #[test]
    fn every_poison_is_broken_in_its_own_way() {
        let id = RecordId { queue_id: queue_id(5), device: 3, seq: 9 };
        let of = |kind| poison(kind, id, 77);
        assert!(matches!(Envelope::decode(&of(Poison::Garbage)), Err(WireError::Malformed { .. })));
        assert!(matches!(Envelope::decode(&of(Poison::Version)), Err(WireError::Version(23))));
        assert!(Envelope::decode(&of(Poison::Topic)).is_ok(), "only its topic is wrong");
        let bytes = of(Poison::Body);
        let envelope = Envelope::decode(&bytes).unwrap();
        assert_eq!(envelope.seq, 9);
        assert!(Telemetry::decode(envelope.body).is_err());
    }

    #[test]
    fn a_patched_template_is_a_valid_message_of_the_wire() {
        let mut payload = Payload::new();
        for (device, seq, time) in
            [(0, 1, 1_700_000_000_000_000), (99_999, u32::MAX, 1 << 33), (7, 1_000, 1 << 50)]
        {
            let bytes = payload.record(RecordId { queue_id: queue_id(5), device, seq }, time);
            let envelope = Envelope::decode(bytes).unwrap();
            assert_eq!((envelope.seq, envelope.measured_at_us), (u64::from(seq), time));
            assert_eq!((envelope.class, envelope.queue_id), (UpClass::Telemetry, QueueId(5 | 1 << 63)));
            let body = Telemetry::decode(envelope.body).unwrap();
            assert_eq!(body.readings.len(), 5);
            let serial = body.readings[0].value.as_number().unwrap();
            assert_eq!(serial as u64, serial_value(device, seq));
            assert_eq!(body.readings[4].value, Value::Number(3.25));
        }
    }

    #[test]
    fn serials_are_distinct_and_exact() {
        let last = serial_value(0x1_FFFF, u32::MAX);
        assert!(last < 1 << 53);
        assert_ne!(serial_value(1, 0), serial_value(0, u32::MAX));
        assert_eq!(serial_value(3, 9) as f64 as u64, serial_value(3, 9));
    }

    #[test]
    fn a_serial_tells_its_record() {
        for record in [(0, 0), (0, 1), (7, u32::MAX), (0x1_FFFF, 0), (0x1_FFFF, u32::MAX)] {
            assert_eq!(serial_of(serial_value(record.0, record.1) as f64), Some(record));
        }
        let serial = serial_value(5, 5) as f64;
        let beyond = serial_value(u32::MAX, u32::MAX) as f64 + 2.0;
        for value in [serial + 1.0, serial + 0.5, 0.0, -serial, beyond, f64::NAN, f64::INFINITY] {
            assert_eq!(serial_of(value), None, "{value}");
        }
    }
}
