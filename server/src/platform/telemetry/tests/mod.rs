//! The store against batches made by hand: one suite for every engine. `MUSTER_TEST_TELEMETRY=clickhouse` runs it with
//! readings and events in a ClickHouse server of the test's own; `cargo xtask test` runs both.

use super::*;

use crate::platform::event_log::{Kind, LogRecord, Origin};
use muster_wire::{
    Birth, BoundingBox, DropRange, DropReason, Event, QueueId, QueueState, Reading, State, Telemetry,
    TenantId, UpClass,
};

mod bench;
mod bounds;
mod erase;
mod memtable;
mod queries;
mod retention;

pub(super) const EPOCH: u64 = 0xabc;
pub(super) const NOON: i64 = 20_000 * DAY_US + DAY_US / 2;

pub(super) use bench::{Bench, DATABASE};

pub(super) fn of(device: &'static str, seq: u64) -> Message {
    Message { device, ..one(seq) }
}

pub(super) fn event(seq: u64) -> Message {
    let event = Event {
        pipeline: "door".into(),
        model: "m".into(),
        model_version: "1".into(),
        kind: EventKind::Anomaly,
        label: "anomaly".into(),
        score: 0.5,
        subject: None,
        latency_us: 3,
        boxes: Vec::new(),
    };
    Message { class: UpClass::Event, body: event.encode(), ..one(seq) }
}

#[derive(Clone)]
pub(super) struct Message {
    device: &'static str,
    class: UpClass,
    origin: Origin,
    measured_at: i64,
    body: Vec<u8>,
}

fn queue(seq: u64) -> Origin {
    Origin::Queue { queue_id: 0xfeed, seq }
}

pub(super) fn telemetry(seq: u64, readings: &[(&str, Value)]) -> Message {
    let readings = readings
        .iter()
        .map(|(metric, value)| Reading { metric: (*metric).into(), value: value.clone(), offset_us: None })
        .collect();
    let body = Telemetry { readings }.encode();
    Message { device: "cam", class: UpClass::Telemetry, origin: queue(seq), measured_at: NOON, body }
}

pub(super) fn one(seq: u64) -> Message {
    telemetry(seq, &[("t", Value::Number(seq as f64))])
}

pub(super) fn at(message: Message, measured_at: i64) -> Message {
    Message { measured_at, ..message }
}

fn senml(pack: &str) -> Message {
    let body = pack.as_bytes().to_vec();
    Message { device: "esp", class: UpClass::Senml, origin: Origin::Direct, measured_at: 0, body }
}

fn state(queues: &[(u64, u64, u64, u64, bool)], drops: &[(u64, u64, DropReason)]) -> Message {
    let queues = queues.iter().map(|&(queue_id, first, released, next, closed)| QueueState {
        class: 1,
        queue_id: QueueId(queue_id),
        first,
        released,
        next,
        closed,
    });
    let drops = drops.iter().map(|&(first, last, reason)| DropRange {
        class: 1,
        queue_id: QueueId(0xfeed),
        first,
        last,
        reason,
    });
    let state = State { queues: queues.collect(), drops: drops.collect(), uptime_s: 1, inferences: 0 };
    let body = state.encode();
    Message { device: "cam", class: UpClass::State, origin: Origin::Direct, measured_at: NOON, body }
}

pub(super) fn query_of(device: &str, metric: &str) -> ReadingsQuery {
    let (device, metric) = (device.into(), metric.into());
    ReadingsQuery { device, metric, from_us: i64::MIN, to_us: i64::MAX, step: None, limit: 100 }
}

pub(super) fn acme() -> Scope {
    Scope::Tenant(TenantId::parse("acme").unwrap())
}

pub(super) fn number(value: f64) -> Option<Value> {
    Some(Value::Number(value))
}

#[test]
fn a_record_is_stored_once_however_often_it_comes() {
    let mut bench = Bench::new();
    bench.write(&[one(1), one(2), one(1)]);
    let again = bench.write(&[one(2), one(3)]);
    assert_eq!((again.messages, again.duplicates, again.readings), (1, 1, 1));
    assert_eq!(bench.values("cam", "t"), [number(1.0), number(2.0), number(3.0)]);
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.duplicates, totals.readings, totals.accepted), (3, 2, 3, 3));
}

#[test]
fn a_clock_that_restarts_in_1970_overwrites_nothing_and_is_flagged() {
    let mut bench = Bench::new();
    bench.write(&[
        at(one(1), 5),
        at(one(2), 5),
        at(one(3), NOON),
        at(one(4), i64::MAX),
        at(one(5), i64::MIN),
    ]);
    assert_eq!(bench.values("cam", "t").len(), 4, "i64::MAX itself is beyond the half-open range");
    let query = ReadingsQuery {
        device: "cam".into(),
        metric: "t".into(),
        from_us: 0,
        to_us: NOON + 1,
        step: None,
        limit: 10,
    };
    let points = bench.readings(&query).points;
    let flags: Vec<(i64, bool)> = points.iter().map(|point| (point.ts_us, point.clock_suspect)).collect();
    assert_eq!(flags, [(5, true), (5, true), (NOON, false)]);
}

#[test]
fn an_undecodable_body_is_a_dead_letter_and_dropped() {
    let mut bench = Bench::new();
    let bad = Message { body: b"garbage".to_vec(), ..one(2) };
    let stored = bench.write(&[one(1), bad.clone(), one(3), bad]);
    assert_eq!((stored.messages, stored.dead_letters, stored.duplicates), (2, 1, 1));
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.dropped["malformed"], totals.lost, totals.dead_letters), (2, 1, 0, 1));
    let letters = bench.read(|tx, scope| dead_letters(tx, scope, None, 10));
    assert_eq!((letters[0].seq, letters[0].reason.as_str()), (2, "malformed"));
    assert_eq!(letters[0].body_hex, hex::encode(b"garbage"));
    let ledger = bench.read(|tx, scope| device_ledger(tx, scope, "cam"));
    let malformed = DroppedRange { first: 2, last: 2, reason: DropReason::Malformed };
    assert_eq!(ledger.queues[0].dropped_ranges, [malformed]);
}

#[test]
fn lost_and_pending_follow_the_agents_marks() {
    let mut bench = Bench::new();
    bench.write(&[one(1), one(2), one(5), one(9)]);
    assert_eq!(bench.totals().pending, 5, "3, 4, 6, 7, 8 lie below what was seen");
    bench.write(&[state(&[(0xfeed, 1, 6, 12, false)], &[(3, 3, DropReason::Expired)])]);
    let totals = bench.totals();
    assert_eq!(
        (totals.lost, totals.pending, totals.dropped["expired"]),
        (1, 5, 1),
        "4 is lost; 6-8, 10, 11 wait"
    );
    assert_eq!(totals.accepted, 11);
    bench.write(&[one(4), one(3)]);
    let totals = bench.totals();
    assert_eq!(
        (totals.lost, totals.stored, totals.dropped.get("expired")),
        (0, 6, None),
        "stored wins over dropped"
    );
}

#[test]
fn a_closed_queue_without_gaps_is_merged_and_still_known() {
    let mut bench = Bench::new();
    bench.write(&[one(1), one(2), one(4), one(2)]);
    bench.write(&[state(&[(0xfeed, 1, 5, 5, true)], &[(3, 3, DropReason::QueueFull)])]);
    assert_eq!(bench.count("queue_range"), 0);
    bench.write(&[one(4), state(&[(0xfeed, 1, 5, 5, true)], &[(3, 3, DropReason::QueueFull)])]);
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.dropped["queue_full"], totals.duplicates, totals.lost), (3, 1, 2, 0));
    assert_eq!((totals.accepted, totals.readings), (4, 3));
    let merged = bench.read(|tx, scope| device_ledger(tx, scope, "cam")).merged["telemetry"].clone();
    assert_eq!((merged.queues, merged.stored, merged.lost), (1, 3, 0));
}

#[test]
fn a_crash_looping_agent_stays_bounded() {
    let mut bench = Bench::new();
    for round in 0..20_u64 {
        let queue_id = |at: u64| 1 + round * 100 + at;
        let openings = (0..100).flat_map(|at| {
            let record =
                Message { origin: Origin::Queue { queue_id: queue_id(at), seq: queue_id(at) }, ..one(1) };
            let seq = queue_id(at);
            [record, state(&[(queue_id(at), seq, seq + 1, seq + 1, true)], &[])]
        });
        bench.write(&openings.collect::<Vec<_>>());
    }
    assert_eq!(bench.count("queue"), TOMBSTONES_PER_CLASS);
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.lost, totals.pending), (2_000, 0, 0));
}

#[test]
fn queues_beyond_the_bound_are_summed_up_with_their_losses() {
    let mut bench = Bench::new();
    let count = QUEUES_PER_DEVICE_MAX as u64 + 50;
    for at in 0..count {
        let record = Message { origin: Origin::Queue { queue_id: 1 + at, seq: 1 }, ..one(1) };
        bench.write(&[record, state(&[(1 + at, 1, 3, 4, false)], &[])]);
    }
    assert!(bench.count("queue") <= QUEUES_PER_DEVICE_MAX);
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.lost, totals.pending), (count, count, count));
}

#[test]
fn a_sparse_queue_is_refused_beyond_its_bound_and_nothing_is_hidden() {
    let mut bench = Bench::new();
    let sparse: Vec<Message> = (0..RANGES_PER_QUEUE_MAX as u64 + 2).map(|at| one(1 + at * 2)).collect();
    let mut stored = StoredBatch::default();
    for chunk in sparse.chunks(10_000) {
        stored = bench.write(chunk);
    }
    assert_eq!(stored.dead_letters, 2);
    let filled = bench.write(&[one(2)]);
    assert_eq!((filled.messages, filled.dead_letters), (1, 0), "a record that joins ranges is still stored");
    assert_eq!(bench.totals().stored, RANGES_PER_QUEUE_MAX as u64 + 1);
}

#[test]
fn more_than_a_thousand_metrics_are_refused_and_counted() {
    let mut bench = Bench::new();
    let names: Vec<String> = (0..1001).map(|at| format!("m{at}")).collect();
    let all: Vec<(&str, Value)> = names.iter().map(|name| (name.as_str(), Value::Bool(true))).collect();
    bench.write(&[telemetry(1, &all[..990]), telemetry(2, &all[980..]), telemetry(3, &all[1000..])]);
    let totals = bench.totals();
    assert_eq!((totals.readings, totals.readings_refused, totals.dead_letters), (990 + 20, 2, 2));
    assert_eq!((totals.stored, totals.dropped["malformed"]), (2, 1), "a record with nothing left is dropped");
    assert_eq!(bench.values("cam", "m999").len(), 1);
    assert_eq!(bench.values("cam", "m1000").len(), 0);
}

#[test]
fn foreign_packs_are_keyed_by_position_or_by_name_and_time() {
    let mut bench = Bench::new();
    let absolute = r#"[{"bn":"a:","bt":1728000000,"n":"t","u":"Cel","v":1},{"n":"h","t":5,"v":2}]"#;
    bench.write(&[
        senml(absolute),
        senml(absolute),
        senml(r#"[{"n":"x","v":3}]"#),
        senml(r#"[{"n":"x","v":3}]"#),
    ]);
    assert_eq!(bench.values("esp", "a:t"), [number(1.0)]);
    assert_eq!(bench.values("esp", "x"), [number(3.0), number(3.0)], "no time: each pack counts");
    bench.write(&[senml("nonsense")]);
    let totals = bench.totals();
    assert_eq!(
        (totals.stored, totals.readings, totals.dropped["malformed"], totals.dead_letters),
        (4, 4, 1, 1)
    );
    let last = bench.read(|tx, scope| last_values(tx, scope, "esp"));
    let shown: Vec<_> = last.iter().map(|last| (last.metric.as_str(), last.unit.as_deref())).collect();
    assert_eq!(shown, [("a:h", None), ("a:t", Some("Cel")), ("x", None)]);
}

#[test]
fn another_tenant_sees_nothing() {
    let mut bench = Bench::new();
    bench.write(&[one(1), Message { body: vec![], ..one(2) }]);
    let other = || Scope::Tenant(TenantId::parse("other").unwrap());
    bench.store.flush_all().unwrap();
    bench.send();
    let readings = bench.wait(bench.store.readings(&other(), &query_of("cam", "t"))).unwrap().points.len();
    let events = bench.wait(bench.store.events(&other(), &EventQuery { limit: 9, ..EventQuery::default() }));
    assert_eq!((readings, events.unwrap()), (0, vec![]));
    let seen = bench.store.read_blocking(move |tx| {
        let last = last_values(tx, &other(), "cam")?.len();
        let queues = device_ledger(tx, &other(), "cam")?.queues.len();
        let letters = dead_letters(tx, &other(), None, 9)?.len();
        Ok::<_, DbError>((last + queues + letters, totals(tx, &other())?))
    });
    assert_eq!(seen.unwrap(), (0, Totals::default()));
}

#[test]
fn a_batch_that_does_not_begin_at_the_cursor_is_refused_whole() {
    let mut bench = Bench::new();
    bench.write(&[one(1)]);
    let mut stale = bench.batch(&[one(2)]);
    stale.from = 1;
    assert!(matches!(bench.store.apply(stale, false), Err(TelemetryError::CursorMoved { from: 1 })));
    assert_eq!(bench.totals().stored, 1);
    assert_eq!(bench.write(&[one(2)]).messages, 1);
}

#[test]
fn another_log_or_a_shorter_one_is_recorded() {
    let mut bench = Bench::new();
    bench.write(&[one(1), one(2)]);
    bench.store.flush_all().unwrap();
    let begin = |epoch, first, next| bench.store.begin(LogSpan { epoch, first, next }, NOON).unwrap();
    assert_eq!(begin(EPOCH, 1, 9), Start { from: 3, lost: None, received_at_us: NOON });
    assert_eq!(begin(EPOCH, 7, 9).lost, Some(3..7));
    assert_eq!(begin(0xdef, 4, 9).lost, Some(1..4));
    let system = Scope::System("test");
    let lost = bench.store.db().read_blocking(move |tx| lost_ranges(tx, &system, 0)).unwrap();
    let ranges: Vec<_> = lost.iter().map(|lost| (lost.id, lost.log_epoch, lost.first, lost.next)).collect();
    assert_eq!(ranges, [(1, EPOCH, 3, 7), (2, 0xdef, 1, 4)]);
}

#[test]
fn birth_presence_rejects_and_live_items() {
    let mut bench = Bench::new();
    let queues = vec![QueueState {
        class: 1,
        queue_id: QueueId(0xfeed),
        first: 1,
        released: 1,
        next: 3,
        closed: false,
    }];
    let birth = Birth { queues, ..Birth::default() }.encode();
    let mut batch = bench
        .batch(&[Message { class: UpClass::Birth, origin: Origin::Direct, body: birth, ..one(1) }, one(1)]);
    let record = |kind, position| LogRecord {
        position,
        received_at_us: NOON,
        kind,
        tenant: "acme",
        device: "cam",
        class: 1,
        qos: 0,
        origin: Origin::Direct,
        measured_at_us: 0,
        body: &[],
    };
    batch.push(&record(Kind::Connected, 3));
    batch.push(&record(Kind::Rejected { reason: 0x99 }, 4));
    batch.push(&record(Kind::Rejected { reason: 0x99 }, 5));
    batch.push(&record(Kind::Tick, 6));
    batch.next = 7;
    let stored = bench.store.apply(batch, true).unwrap();
    assert_eq!(stored.items.len(), 3);
    assert!(
        stored
            .items
            .iter()
            .any(|item| matches!(&item.what, StoredWhat::Reading { metric, .. } if &**metric == "t"))
    );
    let totals = bench.totals();
    assert_eq!((totals.rejected, totals.pending, totals.accepted), (2, 1, 2));
    let rejected = bench.read(|tx, scope| rejected(tx, scope, 10));
    assert_eq!((rejected[0].count, rejected[0].reason), (2, 0x99));
    bench.next = 7;
    assert_eq!(bench.write(&[one(2)]).messages, 1);
}

#[test]
fn dead_letters_are_bounded_and_counted() {
    let mut bench = Bench::new();
    let count = DEAD_LETTERS_PER_TENANT_MAX as u64 + 10;
    let bad: Vec<Message> = (1..=count).map(|seq| Message { body: vec![1], ..one(seq) }).collect();
    bench.write(&bad);
    assert_eq!(bench.count("dead_letter"), DEAD_LETTERS_PER_TENANT_MAX);
    assert_eq!((bench.totals().dead_letters, bench.totals().dropped["malformed"]), (count, count));
}
