//! What one answer, one batch or one row holds at most.

use super::*;

#[test]
fn a_list_gives_no_more_than_its_bound_whatever_is_asked_for() {
    let bench = Bench::new();
    let event = Event {
        pipeline: "door".into(),
        model: "m".into(),
        model_version: "1".into(),
        kind: EventKind::Anomaly,
        label: "normal".into(),
        score: 0.5,
        subject: None,
        latency_us: 3,
        boxes: Vec::new(),
    };
    let count = LIST_MAX as u64 + 1;
    let events_sent =
        (1..=count).map(|seq| Message { class: UpClass::Event, body: event.encode(), ..one(seq) });
    let bad = (1..=count).map(|seq| Message { body: vec![1], ..one(seq) });
    let mut batch = bench.batch(&events_sent.chain(bad).collect::<Vec<_>>());
    for number in 0..count {
        let [reason, class, ..] = number.to_le_bytes();
        batch.push(&LogRecord {
            position: batch.next,
            received_at_us: NOON,
            kind: Kind::Rejected { reason },
            tenant: "acme",
            device: "cam",
            class,
            qos: 1,
            origin: Origin::Direct,
            measured_at_us: 0,
            body: &[],
        });
        batch.next += 1;
    }
    batch.skipped = (0..count).map(|number| batch.next + 2 * number..batch.next + 2 * number + 1).collect();
    batch.next += 2 * count;
    bench.store.apply(batch, false).unwrap();
    let tables = ["event", "dead_letter", "rejected", "lost_range"];
    assert_eq!(tables.map(|table| bench.count(table)), [count as i64; 4]);
    let all = EventQuery { limit: usize::MAX, ..EventQuery::default() };
    assert_eq!(bench.events(&all).len(), LIST_MAX);
    assert_eq!(bench.read(|tx, scope| dead_letters(tx, scope, None, usize::MAX)).len(), LIST_MAX);
    assert_eq!(bench.read(|tx, scope| rejected(tx, scope, usize::MAX)).len(), LIST_MAX);
    let lost = |after_id| {
        let read = move |tx: &mut Tx<'_>| lost_ranges(tx, &Scope::System("test"), after_id);
        bench.store.db().read_blocking(read).unwrap()
    };
    let first = lost(0);
    assert_eq!((first.len(), lost(first[LIST_MAX - 1].id).len()), (LIST_MAX, 1));
}

#[test]
fn a_query_gives_no_more_points_than_its_bound_and_says_so() {
    let mut bench = Bench::new();
    // A message holds a thousand readings.
    let readings_of = |seq: u64, count: i64| {
        let reading = |at: i64| Reading { metric: "t".into(), value: Value::Bool(true), offset_us: Some(at) };
        let readings = (0..count).map(reading).collect();
        at(Message { body: Telemetry { readings }.encode(), ..one(seq) }, NOON + seq as i64 * 1_000)
    };
    let ask = |bench: &Bench, step| {
        let (device, metric) = ("cam".to_owned(), "t".to_owned());
        let query = ReadingsQuery { device, metric, from_us: 0, to_us: i64::MAX, step, limit: usize::MAX };
        let found = bench.readings(&query);
        (found.points.len(), found.truncated)
    };
    let each = Some((1, Aggregate::Count));
    bench.write(&(1..=10).map(|seq| readings_of(seq, 1_000)).collect::<Vec<_>>());
    assert_eq!((ask(&bench, None), ask(&bench, each)), ((POINTS_MAX, false), (POINTS_MAX, false)));
    bench.write(&[readings_of(11, 1)]);
    assert_eq!((ask(&bench, None), ask(&bench, each)), ((POINTS_MAX, true), (POINTS_MAX, true)));
}

#[test]
fn a_dead_letters_body_is_kept_to_its_bound() {
    let mut bench = Bench::new();
    let bad = |seq, bytes| Message { body: vec![1; bytes], ..one(seq) };
    bench.write(&[bad(1, DEAD_LETTER_BYTES_MAX), bad(2, DEAD_LETTER_BYTES_MAX + 1)]);
    let kept = bench.read(|tx, scope| dead_letters(tx, scope, None, 10));
    let bytes: Vec<_> = kept.iter().map(|letter| letter.body_hex.len() / 2).collect();
    assert_eq!(bytes, [DEAD_LETTER_BYTES_MAX; 2]);
}

#[test]
fn a_batch_carries_no_more_live_items_than_its_bound_and_counts_the_rest() {
    let mut bench = Bench::new();
    let names: Vec<String> = (0..LIVE_ITEMS_MAX).map(|at| format!("m{at}")).collect();
    let newest_of = |device: &'static str, names: &[String]| {
        let all: Vec<(&str, Value)> = names.iter().map(|name| (name.as_str(), Value::Bool(true))).collect();
        Message { device, ..telemetry(1, &all) }
    };
    let mut messages = vec![newest_of("a", &names[..1_000]), newest_of("b", &names[1_000..2_000])];
    messages.push(newest_of("c", &names[2_000..]));
    let stored = bench.write(&messages);
    assert_eq!((stored.items.len(), stored.items_left_out), (LIVE_ITEMS_MAX, 0));
    let stored = bench.write(&["d", "e", "f"].map(|device| newest_of(device, &names[..1_000])));
    assert_eq!((stored.items.len(), stored.items_left_out), (LIVE_ITEMS_MAX, 3_000 - LIVE_ITEMS_MAX as u64));
}

#[test]
fn counts_that_an_agent_makes_up_are_cut_before_they_overflow_a_sum() {
    let mut bench = Bench::new();
    let most = muster_wire::SEQ_MAX;
    let all: Vec<_> = (1..=20).map(|queue_id| (queue_id, 1, 1, most, false)).collect();
    bench.write(&[state(&all, &[])]);
    let cut = 1 << 40;
    assert_eq!(bench.totals().pending, 20 * cut);
    let all: Vec<_> = (1..=20).map(|queue_id| (queue_id, 1, most, most, false)).collect();
    bench.write(&[state(&all, &[])]);
    let totals = bench.totals();
    assert_eq!((totals.pending, totals.lost, totals.accepted), (0, 20 * cut, 20 * cut));
}

#[test]
fn a_devices_ledger_shows_its_newest_queues_and_the_first_ranges_of_each() {
    let mut bench = Bench::new();
    let of = |queue_id, seq| Message { origin: Origin::Queue { queue_id, seq }, ..one(1) };
    bench.write(&(1..=201).map(|queue_id| of(queue_id, 1)).collect::<Vec<_>>());
    bench.write(&(1..=200).map(|at| of(201, 1 + at * 2)).collect::<Vec<_>>());
    let ledger = bench.read(|tx, scope| device_ledger(tx, scope, "cam"));
    let shown: Vec<u64> = ledger.queues.iter().map(|queue| queue.queue_id.0).collect();
    assert_eq!(shown, (2..=201).rev().collect::<Vec<_>>());
    let newest = &ledger.queues[0];
    let firsts: Vec<u64> = newest.stored_ranges.iter().map(|range| range.first).collect();
    assert_eq!((newest.stored, firsts), (201, (0..200).map(|at| 1 + at * 2).collect()));
}

#[test]
fn a_sync_that_failed_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("telemetry.db");
    let store = TelemetryStore::open(&file, Options::default()).unwrap();
    store.begin(LogSpan { epoch: EPOCH, first: 1, next: 1 }, NOON).unwrap();
    store.sync().unwrap();
    let (wal, away) = (dir.path().join("telemetry.db-wal"), dir.path().join("away"));
    std::fs::rename(&wal, &away).unwrap();
    assert!(matches!(store.sync(), Err(TelemetryError::Sync(_))));
    std::fs::rename(&away, &wal).unwrap();
    let again = store.sync().unwrap_err();
    assert!(matches!(again, TelemetryError::SyncFailed), "{again}");
    let reopened = TelemetryStore::open(&file, Options::default()).unwrap();
    reopened.sync().unwrap();
}
