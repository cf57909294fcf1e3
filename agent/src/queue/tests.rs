use super::*;
use crate::clock::ManualClock;
use crate::supervisor::stop_pair;
use muster_journal::sim::SimFs;
use muster_journal::{FullOf, WriterMode};

fn open(dir: &Path) -> Queue {
    let bounds = Bounds::from_config(&config::Queue::default());
    Queue::open_dir(dir, bounds, Arc::new(ManualClock::at(1))).unwrap()
}

fn put(queue: &Queue, class: QueueClass, count: usize) -> Seq {
    let (_sender, stop) = stop_pair();
    let seqs: Vec<_> =
        (0..count).map(|_| queue.append_waiting(class, 5, b"x", &stop, || ()).unwrap()).collect();
    let last = *seqs.last().unwrap();
    queue.wait_accepted(class, last).unwrap();
    last
}

#[test]
fn a_second_agent_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _queue = open(dir.path());
    let bounds = Bounds::from_config(&config::Queue::default());
    let error = Queue::open_dir(dir.path(), bounds, Arc::new(ManualClock::at(1))).err().unwrap();
    assert!(matches!(error, QueueError::Journal { source: JournalError::Locked { .. }, .. }), "{error:?}");
}

#[test]
fn each_opening_has_a_queue_id_and_seq_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let first_id = queue.queue_id(QueueClass::Telemetry);
    assert_eq!(put(&queue, QueueClass::Telemetry, 3), 3);
    queue.close().unwrap();
    let queue = open(dir.path());
    assert_ne!(queue.queue_id(QueueClass::Telemetry), first_id);
    assert_eq!(put(&queue, QueueClass::Telemetry, 1), 4);
    let telemetry: Vec<_> = queue.report().queues.into_iter().filter(|state| state.class == 1).collect();
    assert_eq!(telemetry.len(), 2);
    assert_eq!(
        (telemetry[0].queue_id, telemetry[0].first, telemetry[0].next, telemetry[0].closed),
        (first_id, 1, 4, true)
    );
    assert_eq!(
        (telemetry[1].first, telemetry[1].released, telemetry[1].next, telemetry[1].closed),
        (4, 4, 5, false)
    );
}

#[test]
fn a_closed_opening_is_forgotten_only_once_released_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    put(&queue, QueueClass::Event, 2);
    queue.close().unwrap();
    let queue = open(dir.path());
    let openings = |queue: &Queue| queue.report().queues.iter().filter(|state| state.class == 2).count();
    queue.confirm(&queue.report()).unwrap();
    assert_eq!(openings(&queue), 2, "its records are not released");
    queue.release(QueueClass::Event, 3).unwrap();
    assert_eq!(openings(&queue), 2, "the server has not heard of it");
    queue.confirm(&queue.report()).unwrap();
    assert_eq!(openings(&queue), 1);
}

#[test]
fn a_drop_is_reported_until_it_is_confirmed_and_stays_in_the_history() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    let class = QueueClass::Telemetry;
    put(&queue, class, 3);
    let queue_id = queue.queue_id(class);
    assert!(!queue.has_drops());
    queue.record_drop(class, queue_id, 2, DropReason::RefusedPayload, 9).unwrap();
    assert!(queue.has_drops());
    queue.release(class, 4).unwrap();
    queue.close().unwrap();

    let queue = open(dir.path());
    let report = queue.report();
    let expect =
        muster_wire::DropRange { class: 1, queue_id, first: 2, last: 2, reason: DropReason::RefusedPayload };
    assert_eq!(report.drops, [expect]);
    queue.confirm(&report).unwrap();
    assert!(!queue.has_drops());
    assert!(queue.report().drops.is_empty());
    queue.close().unwrap();

    let inspection = inspect(dir.path()).unwrap();
    let telemetry = &inspection.classes[0];
    assert_eq!((telemetry.accepted, telemetry.dropped, telemetry.released, telemetry.next), (3, 1, 4, 4));
    assert_eq!(telemetry.openings, [OpeningRange { queue_id, first: 1, last: 3 }]);
    assert_eq!(telemetry.drops[0].reason, DropReason::RefusedPayload);
    assert!(!inspection.history_truncated);
}

#[test]
fn telemetry_over_its_bound_drops_the_oldest_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let limits = config::Queue {
        telemetry_bytes_max: 1 << 20,
        event_bytes_max: 1 << 20,
        segment_bytes: 128 << 10,
        ..config::Queue::default()
    };
    let queue =
        Queue::open_dir(dir.path(), Bounds::from_config(&limits), Arc::new(ManualClock::at(1))).unwrap();
    let (_sender, stop) = stop_pair();
    put(&queue, QueueClass::Event, 1);
    let metrics = crate::metrics::Metrics::new();
    let mut watch = QueueWatch::new(queue.clone());
    let body = vec![7; 10_000];
    let mut last = 0;
    for _ in 0..300 {
        last = queue.append_waiting(QueueClass::Telemetry, 5, &body, &stop, || ()).unwrap();
    }
    queue.wait_accepted(QueueClass::Telemetry, last).unwrap();
    let report = queue.report();
    assert_eq!(report.drops.len(), 1, "one range: {:?}", report.drops);
    let drop = report.drops[0];
    assert_eq!((drop.class, drop.first, drop.reason), (1, 1, DropReason::QueueFull));
    watch.count(&metrics);
    assert_eq!(metrics.dropped("queue_full"), drop.last, "a drop always counts");
    let mut reader = queue.reader(QueueClass::Telemetry, 1).unwrap();
    let mut kept = Vec::new();
    while kept.last() != Some(&last) {
        reader.next_batch(1 << 20, |record| kept.push(record.seq)).unwrap();
    }
    assert_eq!(kept[0], drop.last + 1, "what is not dropped is kept");
    assert_eq!(kept.len() as u64, last - drop.last);
}

#[test]
fn more_openings_than_a_report_holds_settle_in_several() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..40 {
        let queue = open(dir.path());
        put(&queue, QueueClass::Telemetry, 1);
        queue.close().unwrap();
    }
    let queue = open(dir.path());
    queue.release(QueueClass::Telemetry, 41).unwrap();
    let report = queue.report();
    assert!(report.more);
    assert!(report.queues.len() <= muster_wire::QUEUES_MAX);
    assert!(report.queues.iter().any(|state| state.class == 1 && !state.closed), "the open one is said");
    queue.confirm(&report).unwrap();
    let report = queue.report();
    assert!(!report.more);
    queue.confirm(&report).unwrap();
    assert_eq!(queue.report().queues.len(), 2);
}

#[test]
fn the_largest_record_is_taken_and_one_byte_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(dir.path());
    for class in QueueClass::ALL {
        let largest = vec![0; muster_wire::TELEMETRY_BYTES_MAX];
        assert_eq!(queue.append(class, 5, &largest), Ok(1));
        let refused = queue.append(class, 5, &[largest, vec![0]].concat()).unwrap_err();
        assert_eq!(refused, AppendError::TooLarge { bytes: RECORD_BYTES_MAX + 1, max: RECORD_BYTES_MAX });
    }
}

/// A counter of a class.
fn counted(metrics: &crate::metrics::Metrics, name: &str, class: QueueClass) -> u64 {
    let start = format!("{name}{{class=\"{}\"}} ", class.up().as_str());
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{start} is not in {text}")).parse().unwrap()
}

#[test]
fn telemetry_gathers_for_the_interval_events_do_not_and_what_is_written_is_counted() {
    let settings = config::Queue { sync_interval_ms: 60_000, ..config::Queue::default() };
    let (bounds, clock) = (Bounds::from_config(&settings), Arc::new(ManualClock::at(1)));
    let queue = Queue::open(SimFs::new(1), Path::new("/queue"), bounds, clock).unwrap();
    let [telemetry, event] = QueueClass::ALL;
    let metrics = crate::metrics::Metrics::new();
    let mut watch = QueueWatch::new(queue.clone());
    // Each class has its segment, and the writers sleep.
    let put_one = |class| {
        let seq = queue.append(class, 5, b"x").unwrap();
        queue.wait_accepted(class, seq).unwrap();
    };
    QueueClass::ALL.into_iter().for_each(put_one);
    watch.count(&metrics);
    let names = ["agent_disk_syncs_total", "agent_disk_written_bytes_total"];
    let before = QueueClass::ALL.map(|class| names.map(|name| counted(&metrics, name, class)));

    for seq in 2..=101 {
        assert_eq!(queue.append(telemetry, 5, b"x"), Ok(seq));
    }
    let seq = queue.append(event, 5, b"x").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while queue.accepted_next()[1] <= seq {
        assert!(std::time::Instant::now() < deadline, "nobody waits for the event, and it stays in memory");
        std::thread::yield_now();
    }
    assert_eq!(queue.accepted_next(), [2, 3], "telemetry still gathers");
    queue.wait_accepted(telemetry, 101).unwrap();
    watch.count(&metrics);
    let since = |class: QueueClass| {
        let counted = names.map(|name| counted(&metrics, name, class));
        [0, 1].map(|at| counted[at] - before[class.index()][at])
    };
    // 100 records of 42 bytes behind a header of 128 and a first record: two blocks.
    assert_eq!(since(telemetry), [1, 2 * 4096], "one sync for all");
    assert_eq!(since(event), [1, 4096]);
    let day: u64 = QueueClass::ALL.map(|class| counted(&metrics, names[1], class)).iter().sum();
    assert!(metrics.text().contains(&format!("agent_disk_written_bytes_day {day}\n")), "{}", metrics.text());
}

/// A queue whose memory is written only when somebody waits for it, on a simulated disk.
fn open_idle() -> Queue<SimFs> {
    let mut bounds = Bounds::from_config(&config::Queue::default());
    for options in &mut bounds.classes {
        options.writer = WriterMode::Caller;
    }
    Queue::open(SimFs::new(1), Path::new("/queue"), bounds, Arc::new(ManualClock::at(1))).unwrap()
}

#[test]
fn memory_that_waits_for_the_disk_is_bounded_per_class_and_whoever_appends_waits() {
    let queue = open_idle();
    let (telemetry, event) = (QueueClass::Telemetry, QueueClass::Event);
    let body = [0; 1000 - 32 - record::HEAD_BYTES];
    let fits = BATCH_BYTES_MAX as u64 / 1000;
    for seq in 1..=fits {
        assert_eq!(queue.append(telemetry, 5, &body), Ok(seq));
    }
    let full = AppendError::Full { of: FullOf::Memory };
    assert_eq!(queue.append(telemetry, 5, &body), Err(full));
    assert_eq!(queue.append(event, 5, &body), Ok(1), "the other class has memory of its own");
    let waits = std::cell::Cell::new(0);
    let on_wait = || {
        waits.set(waits.get() + 1);
        queue.wait_accepted(telemetry, fits).unwrap();
    };
    let (sender, stop) = stop_pair();
    assert_eq!(queue.append_waiting(telemetry, 5, &body, &stop, on_wait).unwrap(), fits + 1);
    assert_eq!(waits.get(), 1);
    while queue.append(telemetry, 5, &body).is_ok() {}
    sender.stop();
    let stopped = queue.append_waiting(telemetry, 5, &body, &stop, || panic!("nobody waits any more"));
    assert!(matches!(stopped, Err(QueueError::Stopped)), "{stopped:?}");
}

#[test]
fn more_drops_than_a_report_holds_are_told_in_several_and_the_mark_waits_for_them() {
    let queue = open_idle();
    let class = QueueClass::Telemetry;
    let (room, last) = (muster_wire::DROPS_MAX as u64 / 2, 400);
    (0..last).for_each(|_| assert!(queue.append(class, 5, b"x").is_ok()));
    queue.wait_accepted(class, last).unwrap();
    for at in 1..=room + 2 {
        queue.record_drop(class, queue.queue_id(class), 2 * at, DropReason::RefusedPayload, 9).unwrap();
    }
    queue.release(class, last + 1).unwrap();
    let report = queue.report();
    let told = |report: &Report| (report.drops.len() as u64, report.queues[0].released, report.more);
    assert_eq!(told(&report), (room, 2 * (room + 1), true), "nothing looks lost before its drop is told");
    queue.confirm(&report).unwrap();
    let report = queue.report();
    assert_eq!(told(&report), (2, last + 1, false));
    queue.confirm(&report).unwrap();
    assert!(!queue.has_drops());
}

#[test]
fn more_drops_than_the_journal_holds_are_refused_until_the_server_knows_some() {
    let queue = open_idle();
    let class = QueueClass::Event;
    let drop = |at: u64| queue.record_drop(class, queue.queue_id(class), 2 * at, DropReason::RefusedTopic, 9);
    for at in 1..=muster_journal::DROPS_MAX as u64 {
        drop(at).unwrap();
    }
    let refused = drop(5_000).unwrap_err();
    assert!(
        matches!(refused, QueueError::Journal { source: JournalError::DropsFull, .. }),
        "the session keeps the record then: {refused:?}"
    );
    queue.confirm(&queue.report()).unwrap();
    drop(5_000).unwrap();
}
