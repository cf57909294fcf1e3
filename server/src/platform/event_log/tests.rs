use super::*;
use crate::platform::clock::ManualClock;
use proptest::prelude::*;

fn message<'a>(seq: u64, body: &'a [u8]) -> NewRecord<'a> {
    NewRecord {
        kind: Kind::Message,
        tenant: "acme",
        device: "Cam_1",
        class: 1,
        qos: 1,
        origin: Origin::Queue { queue_id: 0x0102_0304_0506_0708, seq },
        measured_at_us: 1_700_000_000_000_000,
        body,
    }
}

#[test]
fn golden_bytes_of_version_1() {
    let check = |record: NewRecord<'_>, expect: &str| {
        let mut bytes = Vec::new();
        record.encode(1_700_000_000_000_001, &mut bytes);
        assert_eq!(hex::encode(&bytes), expect);
        assert_eq!(bytes.len(), record.encoded_len());
        let back = LogRecord::decode(9, &bytes).unwrap();
        assert_eq!((back.position, back.received_at_us), (9, 1_700_000_000_000_001));
        assert_eq!((back.kind, back.tenant, back.device), (record.kind, record.tenant, record.device));
        assert_eq!((back.class, back.qos, back.origin), (record.class, record.qos, record.origin));
        assert_eq!((back.measured_at_us, back.body), (record.measured_at_us, record.body));
    };
    check(
        message(7, b"hi"),
        "01010001010101401e18240a060000401e18240a0600080706050403020107000000000000000461636d650543616d5f316869",
    );
    check(NewRecord::tick(), "01020000000001401e18240a060000000000000000000000");
    let rejected = NewRecord {
        kind: Kind::Rejected { reason: 0x99 },
        origin: Origin::Direct,
        class: 9,
        qos: 0,
        measured_at_us: 0,
        ..message(0, b"")
    };
    check(rejected, "01039909000001401e18240a060000000000000000000461636d650543616d5f31");
}

#[test]
fn a_newer_version_kind_or_origin_is_named() {
    let mut bytes = Vec::new();
    NewRecord::tick().encode(1, &mut bytes);
    let with = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        LogRecord::decode(1, &changed).unwrap_err()
    };
    assert_eq!(with(0, 2), CodecError::Version(2));
    assert_eq!(with(1, 200), CodecError::Kind(200));
    assert_eq!(with(4, 2), CodecError::Malformed("origin"));
    for cut in 0..bytes.len() {
        assert!(LogRecord::decode(1, &bytes[..cut]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn decoding_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = LogRecord::decode(1, &bytes);
    }
}

fn read_all(log: &EventLog, from: u64) -> Vec<(u64, i64, Kind)> {
    let mut reader = log.reader("test", from, Pin::Follows).unwrap();
    let mut all = Vec::new();
    while reader.next_batch(1 << 20, |r| all.push((r.position, r.received_at_us, r.kind))).unwrap().records
        > 0
    {}
    all
}

#[test]
fn received_at_never_steps_back_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(5_000_000);
    let options = Options::at(dir.path());
    let log = EventLog::open(&options, clock.clone()).unwrap();
    let epoch = log.epoch();
    log.append(&message(1, b"a")).unwrap();
    clock.set(1_000_000);
    let last = log.append(&message(2, b"b")).unwrap();
    log.wait_durable(last).unwrap();
    drop(log);
    let log = EventLog::open(&options, clock.clone()).unwrap();
    assert_eq!(log.epoch(), epoch, "one epoch a log, over restarts");
    let third = log.append(&message(3, b"c")).unwrap();
    log.stamp_at_least(8_000_000);
    let fourth = log.append(&message(4, b"d")).unwrap();
    log.wait_durable(fourth).unwrap();
    assert_eq!((third, fourth), (last + 1, last + 2), "positions continue");
    let stamps: Vec<i64> = read_all(&log, 1).into_iter().map(|(_, at, _)| at).collect();
    assert_eq!(stamps, [5_000_000, 5_000_000, 5_000_000, 8_000_000]);
}

#[test]
fn an_idle_log_ticks_once_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(10_000_000);
    let log = EventLog::open(&Options::at(dir.path()), clock.clone()).unwrap();
    assert!(log.tick_if_idle().unwrap(), "a new log tells the time at once");
    assert!(!log.tick_if_idle().unwrap());
    clock.advance_us(TICK_AFTER_US);
    assert!(log.tick_if_idle().unwrap());
    clock.advance_us(TICK_AFTER_US / 2);
    let last = log.append(&message(1, b"a")).unwrap();
    clock.advance_us(TICK_AFTER_US / 2);
    assert!(!log.tick_if_idle().unwrap(), "a message is as good as a tick");
    log.wait_durable(last).unwrap();
    let kinds: Vec<Kind> = read_all(&log, 1).into_iter().map(|(_, _, kind)| kind).collect();
    assert_eq!(kinds, [Kind::Tick, Kind::Tick, Kind::Message]);
}

#[test]
fn a_record_over_the_limit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = EventLog::open(&Options::at(dir.path()), ManualClock::at(1)).unwrap();
    let body = vec![0; RECORD_BYTES_MAX];
    let largest = RECORD_BYTES_MAX - message(1, b"").encoded_len();
    assert_eq!(log.append(&message(1, &body[..=largest])), Err(AppendError::TooLarge));
    assert_eq!(log.append(&message(1, &body[..largest])), Ok(1));
}
