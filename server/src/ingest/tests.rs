//! The consumers as threads, on a real directory; each test waits on what can be observed.

use super::consumer::{LOG_HELD_MAX, TICKS_HELD_MAX};
use super::*;
use crate::platform::clock::{Clock as _, SystemClock};
use crate::platform::db::sqlite::{Sync, Tx};
use crate::platform::db::{DbError, Scope};
use crate::platform::event_log::{Kind, NewRecord, Options as LogOptions, Origin};
use crate::platform::telemetry::{
    self, CrashPoint, Faults, LogPlace, Policy, StoredBatch, StoredWhat, TelemetryError, Totals,
};
use muster_wire::{Reading, Telemetry, UpClass, Value};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

const DEADLINE: Duration = Duration::from_secs(30);

struct Server {
    log: EventLog,
    store: TelemetryStore,
    stored: Receiver<StoredBatch>,
    ingest: Ingest,
}

fn start(dir: &Path, faults: Faults) -> Server {
    let clock: SharedClock = Arc::new(SystemClock);
    let log = EventLog::open(&LogOptions::at(&dir.join("log")), clock.clone()).unwrap();
    let options = telemetry::Options { sync: Sync::OffForTrials, faults, ..telemetry::Options::default() };
    let store = TelemetryStore::open(&dir.join("telemetry.db"), options).unwrap();
    let (sender, stored) = sync_channel(1_000);
    let hook: OnStored = Box::new(move |batch: &StoredBatch| {
        let _ = sender.try_send(batch.clone());
    });
    let parts = Parts {
        log: log.clone(),
        store: store.clone(),
        clock,
        on_stored: vec![hook],
        retention: Box::new(Policy::default),
    };
    Server { log, store, stored, ingest: Ingest::start(parts).unwrap() }
}

fn send(log: &EventLog, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        let readings =
            vec![Reading { metric: "t".into(), value: Value::Number(seq as f64), offset_us: None }];
        append(log, seq, &Telemetry { readings }.encode());
    }
}

fn append(log: &EventLog, seq: u64, body: &[u8]) {
    let record = NewRecord {
        kind: Kind::Message,
        tenant: "acme",
        device: "cam",
        class: UpClass::Telemetry.number(),
        qos: 1,
        origin: Origin::Queue { queue_id: 5, seq },
        measured_at_us: SystemClock.now_us(),
        body,
    };
    log.append(&record).unwrap();
}

impl Server {
    /// Waits until this many messages were told to the hook.
    fn wait_stored(&self, messages: u64) -> Vec<StoredBatch> {
        let (mut seen, mut batches) = (0, Vec::new());
        while seen < messages {
            let batch = self.stored.recv_timeout(DEADLINE).expect("stored in time");
            seen += batch.messages;
            batches.push(batch);
        }
        batches
    }

    fn totals(&self) -> Totals {
        self.store.read_blocking(|view| telemetry::totals(view, &Scope::System("test"))).unwrap()
    }
}

#[test]
fn what_is_appended_is_stored_told_and_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), Faults::none());
    send(&server.log, 1..101);
    let batches = server.wait_stored(100);
    let last = batches.last().unwrap();
    let is_newest = |what: &StoredWhat| matches!(what, StoredWhat::Reading { value: Value::Number(n), .. } if *n == 100.0);
    assert!(last.items.iter().any(|item| is_newest(&item.what)));
    server.ingest.stop();
    assert!(server.log.stats().released >= last.next, "the log may delete what is stored");
    let (log, store) = (server.log.clone(), server.store.clone());
    drop(server);
    log.close().unwrap();
    drop((log, store));
    let server = start(dir.path(), Faults::none());
    send(&server.log, 90..201);
    let again = server.wait_stored(100);
    assert_eq!(again.iter().map(|batch| batch.duplicates).sum::<u64>(), 11);
    assert_eq!((server.totals().stored, server.totals().readings), (200, 200));
}

#[test]
fn a_store_that_fails_is_tried_again_from_its_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let failures = Arc::new(AtomicU32::new(0));
    let counted = failures.clone();
    let faults = Faults::when(move |point| {
        point == CrashPoint::AfterApply && counted.fetch_add(1, Ordering::SeqCst) < 3
    });
    let server = start(dir.path(), faults);
    send(&server.log, 1..11);
    server.wait_stored(10);
    assert!(failures.load(Ordering::SeqCst) >= 4);
    let totals = server.totals();
    assert_eq!((totals.stored, totals.duplicates, totals.readings), (10, 0, 10));
}

#[test]
fn what_was_read_and_not_stored_is_read_again_though_the_cursor_could_not_be_asked_first() {
    let dir = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SystemClock);
    let log = EventLog::open(&LogOptions::at(&dir.path().join("log")), clock.clone()).unwrap();
    let path = dir.path().join("telemetry.db");
    let options = telemetry::Options { sync: Sync::OffForTrials, ..telemetry::Options::default() };
    let store = TelemetryStore::open(&path, options).unwrap();
    let at_once = |tx: &mut Tx<'_>| tx.query_once("PRAGMA busy_timeout = 0", &[], |_| Ok::<_, DbError>(()));
    store.db().write_blocking(at_once).unwrap();
    let mut consumer = Consumer::begin(log.clone(), store.clone(), clock, Vec::new()).unwrap();
    send(&log, 1..11);
    log.commit().unwrap();
    // Another writer has the database: neither the batch nor the cursor after it can be had.
    let other = TelemetryStore::open(&path, telemetry::Options::default()).unwrap();
    let ((begun, begins), (end, ends)) = (sync_channel(0), sync_channel::<()>(0));
    let writing = std::thread::spawn(move || {
        other.db().write_blocking(move |_| {
            begun.send(()).unwrap();
            assert!(ends.recv().is_err(), "the sender is dropped");
            Ok::<_, DbError>(())
        })
    });
    begins.recv().unwrap();
    assert!(consumer.step().is_err());
    assert!(consumer.step().is_err());
    drop(end);
    writing.join().unwrap().unwrap();
    send(&log, 11..21);
    log.commit().unwrap();
    assert!(matches!(consumer.step().unwrap(), Step::Stored { .. }));
    let totals = store.read_blocking(|view| telemetry::totals(view, &Scope::System("test"))).unwrap();
    assert_eq!((totals.stored, totals.readings), (20, 20));
}

#[test]
fn a_batch_leaves_the_disks_reserve_alone_and_waits() {
    let dir = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SystemClock);
    let log = EventLog::open(&LogOptions::at(&dir.path().join("log")), clock.clone()).unwrap();
    let path = dir.path().join("telemetry.db");
    // No disk has as much: it is always full.
    let options = telemetry::Options { disk_reserve_bytes: u64::MAX, ..telemetry::Options::default() };
    let store = TelemetryStore::open(&path, options).unwrap();
    let mut consumer = Consumer::begin(log.clone(), store.clone(), clock.clone(), Vec::new()).unwrap();
    send(&log, 1..11);
    log.commit().unwrap();
    for _ in 0..2 {
        let refused = consumer.step();
        assert!(
            matches!(refused, Err(IngestError::Store(TelemetryError::DiskReserve { .. }))),
            "{refused:?}"
        );
    }
    assert!(log.stats().released <= 1, "what is not stored stays in the log");
    drop((consumer, store));
    let store = TelemetryStore::open(&path, telemetry::Options::default()).unwrap();
    let mut consumer = Consumer::begin(log, store, clock, Vec::new()).unwrap();
    assert!(matches!(consumer.step().unwrap(), Step::Stored { batch, .. } if batch.readings == 10));
}

#[test]
fn an_idle_log_ticks_and_ticks_alone_commit_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), Faults::none());
    let deadline = std::time::Instant::now() + DEADLINE;
    while server.log.durable_next() < 3 {
        assert!(std::time::Instant::now() < deadline, "no tick in time");
        std::thread::yield_now();
    }
    assert!(server.stored.try_recv().is_err());
    send(&server.log, 1..2);
    assert_eq!(server.wait_stored(1)[0].from, 1, "the batch begins at the cursor, before the ticks");
}

/// A consumer that is stepped by hand, on a log of its own.
fn by_hand(dir: &Path) -> (EventLog, Consumer) {
    let (log, _, consumer) = with_store(dir);
    (log, consumer)
}

fn with_store(dir: &Path) -> (EventLog, TelemetryStore, Consumer) {
    let clock: SharedClock = Arc::new(SystemClock);
    let log = EventLog::open(&LogOptions::at(&dir.join("log")), clock.clone()).unwrap();
    let options = telemetry::Options { sync: Sync::OffForTrials, ..telemetry::Options::default() };
    let store = TelemetryStore::open(&dir.join("telemetry.db"), options).unwrap();
    let consumer = Consumer::begin(log.clone(), store.clone(), clock, Vec::new()).unwrap();
    (log, store, consumer)
}

#[test]
fn a_commit_takes_no_more_of_the_log_than_its_bound_and_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut consumer) = by_hand(dir.path());
    let body = vec![0; 128 * 1024];
    let record = NewRecord { kind: Kind::Rejected { reason: 0x99 }, body: &body, ..NewRecord::tick() };
    let record = NewRecord { tenant: "acme", device: "cam", ..record };
    let count = 3 * BATCH_BYTES_MAX / body.len();
    for _ in 0..count {
        log.append(&record).unwrap();
    }
    log.commit().unwrap();
    let (mut next, mut steps) = (log.first(), 0);
    while let Step::Stored { batch, .. } = consumer.step().unwrap() {
        assert_eq!(batch.from, next, "nothing is passed over");
        assert!((batch.next - batch.from) as usize <= BATCH_BYTES_MAX / body.len() + 1);
        (next, steps) = (batch.next, steps + 1);
    }
    assert_eq!((next, steps), (log.durable_next(), 3));
}

#[test]
fn the_cursor_stays_behind_ticks_to_their_bound_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut consumer) = by_hand(dir.path());
    let mut tick = |count: usize| {
        for _ in 0..count {
            log.append(&NewRecord::tick()).unwrap();
        }
        log.commit().unwrap();
        consumer.step().unwrap()
    };
    assert!(matches!(tick(TICKS_HELD_MAX - 1), Step::Ticks));
    assert!(matches!(tick(1), Step::Ticks));
    assert!(
        matches!(tick(1), Step::Stored { batch, .. } if batch.next - batch.from == TICKS_HELD_MAX as u64 + 1)
    );
    assert!(matches!(tick(TICKS_HELD_MAX), Step::Ticks), "it counts anew");
}

/// An erasure on a server to which nobody sends: it would wait a minute for ticks to add up.
#[test]
fn ticks_are_not_held_where_somebody_waits_for_the_log_to_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (log, store, mut consumer) = with_store(dir.path());
    let mut tick = || {
        log.append(&NewRecord::tick()).unwrap();
        log.commit().unwrap();
        consumer.step().unwrap()
    };
    assert!(matches!(tick(), Step::Ticks));
    let place = LogPlace { epoch: log.epoch(), position: log.durable_next() };
    assert!(!store.has_read(place));
    assert!(matches!(tick(), Step::Stored { .. }));
    assert!(store.has_read(place));
    assert!(matches!(tick(), Step::Ticks), "nobody waits any more");
}

const RECORD: usize = 64 * 1024;

/// A log that a few large records fill, and a consumer that reads two of them a step and flushes only for the log's
/// sake.
fn small_log(dir: &Path, faults: Faults) -> (EventLog, TelemetryStore, Consumer) {
    let clock: SharedClock = Arc::new(SystemClock);
    let segment_bytes = 8 * RECORD as u64;
    let options =
        LogOptions { bytes_max: 64 * RECORD as u64, segment_bytes, ..LogOptions::at(&dir.join("log")) };
    let log = EventLog::open(&options, clock.clone()).unwrap();
    let options = telemetry::Options { sync: Sync::OffForTrials, faults, ..telemetry::Options::default() };
    let store = TelemetryStore::open(&dir.join("telemetry.db"), options).unwrap();
    let consumer = Consumer::begin(log.clone(), store.clone(), clock, Vec::new()).unwrap();
    (log, store, consumer.by_hand(2 * RECORD))
}

/// Appends so many records of nearly [`RECORD`] bytes; `first` counts on from call to call.
fn fill(log: &EventLog, first: u64, records: u64) {
    let reading = |at: usize| Reading {
        metric: format!("m{at}"),
        value: Value::Text("x".repeat(250)),
        offset_us: None,
    };
    let body = Telemetry { readings: (0..RECORD / 270).map(reading).collect() }.encode();
    for seq in first..first + records {
        append(log, seq, &body);
        log.commit().unwrap();
    }
}

#[test]
fn the_memtable_holds_its_part_of_the_log_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (log, store, mut consumer) = small_log(dir.path(), Faults::none());
    let bound = (LOG_HELD_MAX * 64.0) as u64;
    fill(&log, 1, bound - 2);
    while !matches!(consumer.step().unwrap(), Step::Idle) {}
    assert!(store.is_pending() && log.stats().released <= log.first(), "within the bound nothing is flushed");
    fill(&log, bound - 1, 4);
    while !matches!(consumer.step().unwrap(), Step::Idle) {}
    assert!(log.stats().released > bound, "beyond it all is that was read");
    // The log is more than its bound all told: the release let it go on.
    for round in 1..9 {
        fill(&log, 100 * round, bound);
        while !matches!(consumer.step().unwrap(), Step::Idle) {}
    }
}

#[test]
fn while_flushes_fail_the_store_says_so_though_batches_go_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let progress: Arc<std::sync::OnceLock<Arc<Progress>>> = Arc::default();
    let (asked, failures) = (progress.clone(), AtomicU32::new(0));
    let (told, tells) = sync_channel(10_000);
    let faults = Faults::when(move |point| match point {
        CrashPoint::AfterRead if failures.load(Ordering::SeqCst) > 0 => {
            let condition = &asked.get().expect("set before it runs").condition;
            told.send((failures.load(Ordering::SeqCst), condition.check().is_err())).unwrap();
            false
        }
        CrashPoint::AfterRows => failures.fetch_add(1, Ordering::SeqCst) < 3,
        _ => false,
    });
    let (log, _store, mut consumer) = small_log(dir.path(), faults);
    fill(&log, 1, 20);
    progress.set(consumer.progress()).unwrap();
    let progress = consumer.progress();
    let stop = Arc::new(Stop::default());
    let stopped = stop.clone();
    let running = std::thread::spawn(move || consumer.run(&stopped));
    until("it is flushed", || log.stats().released > 10);
    until("it works", || progress.condition.check().is_ok());
    assert_eq!(progress.now().failures, 3);
    stop.set();
    running.join().unwrap();
    let seen: Vec<(u32, bool)> = tells.try_iter().collect();
    let steps = |failures| seen.iter().filter(|(count, _)| *count == failures).count();
    assert!((1..=3).all(|failures| steps(failures) > 1), "steps between the failures: {seen:?}");
    let failing = |(count, failing): &(u32, bool)| *failing || *count > 3;
    assert!(seen.iter().all(failing), "it recovered by nothing but memory: {seen:?}");
}

#[test]
fn after_a_failure_with_nothing_left_to_flush_the_store_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = AtomicU32::new(0);
    // The first is of the consumer's begin.
    let faults = Faults::when(move |point| {
        point == CrashPoint::AfterSync && syncs.fetch_add(1, Ordering::SeqCst) == 1
    });
    let (log, store, mut consumer) = small_log(dir.path(), faults);
    // One at a time: the record that brings the flush is the last.
    let is_flushed = |seq| {
        fill(&log, seq, 1);
        consumer.step().is_err()
    };
    assert!((1..64).any(is_flushed));
    assert!(!store.is_pending());
    let progress = consumer.progress();
    progress.condition.fails("as the thread would have said".to_owned());
    let stop = Arc::new(Stop::default());
    let stopped = stop.clone();
    let running = std::thread::spawn(move || consumer.run(&stopped));
    until("it works", || progress.condition.check().is_ok());
    stop.set();
    running.join().unwrap();
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
