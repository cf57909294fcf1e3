use super::*;
use crate::clock::ManualClock;
use crate::supervisor::stop_pair;

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
