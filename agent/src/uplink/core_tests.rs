use super::*;

const NOW: Duration = Duration::from_secs(100);

fn core(released: [Seq; 2], durable: [Seq; 2]) -> Core {
    let mut core = Core::new(released, 1);
    core.connected(durable);
    core
}

fn send(core: &mut Core, durable: [Seq; 2]) -> Option<(QueueClass, Lane, Seq)> {
    let want = core.next(durable, NOW)?;
    assert!(core.found(want, want.seq));
    Some((want.class, want.lane, want.seq))
}

#[test]
fn reasons_are_judged_as_the_promise_says() {
    let cases = [
        (0x00, Verdict::Release),
        (0x10, Verdict::Release),
        (0x80, Verdict::Keep),
        (0x83, Verdict::Keep),
        (0x97, Verdict::Keep),
        (0x91, Verdict::Keep),
        (0x87, Verdict::Drop(DropReason::RefusedNotAuthorized)),
        (0x90, Verdict::Drop(DropReason::RefusedTopic)),
        (0x99, Verdict::Drop(DropReason::RefusedPayload)),
    ];
    for (reason, expect) in cases {
        assert_eq!(judge(reason), expect, "{reason:#x}");
    }
}

#[test]
fn nothing_above_the_durable_mark_is_wanted() {
    let mut core = core([1, 1], [1, 1]);
    assert_eq!(core.next([1, 1], NOW), None);
    assert_eq!(send(&mut core, [2, 1]), Some((QueueClass::Telemetry, Lane::Live, 1)));
    assert_eq!(core.next([2, 1], NOW), None);
}

#[test]
fn live_goes_before_backlog_and_neither_starves() {
    let mut core = core([1, 1], [1000, 1000]);
    let durable = [1100, 1100];
    let sent: Vec<_> = (0..8).filter_map(|_| send(&mut core, durable)).collect();
    use Lane::{Backlog, Live};
    use QueueClass::{Event, Telemetry};
    let expect = [
        (Event, Live, 1000),
        (Event, Live, 1001),
        (Telemetry, Live, 1000),
        (Event, Backlog, 1),
        (Event, Live, 1002),
        (Event, Live, 1003),
        (Telemetry, Live, 1001),
        (Telemetry, Backlog, 1),
    ];
    assert_eq!(sent, expect);
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let mut core = core([1, 1], [1000, 1]);
    let sent = std::iter::from_fn(|| send(&mut core, [1000, 1])).take(100).count();
    assert_eq!(sent, RECORDS_IN_FLIGHT_MAX);
    core.settle(QueueClass::Telemetry, 1);
    assert!(send(&mut core, [1000, 1]).is_some());
}

#[test]
fn the_mark_passes_only_what_is_done() {
    let mut core = core([1, 1], [6, 1]);
    while send(&mut core, [6, 1]).is_some() {}
    let class = QueueClass::Telemetry;
    assert!(!core.settle(class, 2));
    assert!(!core.settle(class, 4));
    assert_eq!(core.released(class), 1);
    assert!(core.settle(class, 1));
    assert_eq!(core.released(class), 3);
    assert!(core.settle(class, 3));
    assert_eq!(core.released(class), 5);
    assert!(!core.is_drained([6, 1]));
    assert!(core.settle(class, 5));
    assert!(core.is_drained([6, 1]));
}

#[test]
fn a_lost_connection_sends_again_what_is_not_done() {
    let mut core = core([1, 1], [6, 1]);
    while send(&mut core, [6, 1]).is_some() {}
    core.settle(QueueClass::Telemetry, 2);
    core.connected([7, 1]);
    assert_eq!(core.in_flight(), 0);
    let again: Vec<_> = std::iter::from_fn(|| send(&mut core, [7, 1])).map(|sent| sent.2).collect();
    assert_eq!(again, [1, 3, 4, 5, 6]);
}

#[test]
fn a_refusal_for_now_keeps_the_record_and_pauses() {
    let mut core = core([1, 1], [4, 1]);
    send(&mut core, [4, 1]);
    send(&mut core, [4, 1]);
    core.keep(QueueClass::Telemetry, 1, NOW);
    let until = core.held_until().unwrap();
    assert!(until > NOW && until <= NOW + HOLD_MIN);
    core.keep(QueueClass::Telemetry, 2, NOW);
    assert_eq!(core.held_until(), Some(until), "one window, one pause");
    assert_eq!(core.next([4, 1], NOW), None);
    let want = core.next([4, 1], until).unwrap();
    assert_eq!(want.seq, 1);
    assert!(core.found(want, 1));
    core.keep(QueueClass::Telemetry, 1, until);
    assert!(core.held_until().unwrap() > until, "the next pause is longer");
    assert_eq!(core.released(QueueClass::Telemetry), 1);
}

#[test]
fn numbers_that_the_queue_dropped_count_as_done() {
    let mut core = core([1, 1], [100, 1]);
    let want = core.next([100, 1], NOW).unwrap();
    assert_eq!((want.seq, want.lane), (1, Lane::Backlog));
    assert!(core.found(want, 50));
    assert_eq!(core.released(QueueClass::Telemetry), 50);
    core.settle(QueueClass::Telemetry, 50);
    let want = core.next([100, 1], NOW).unwrap();
    core.gone(want, 100);
    assert_eq!(core.released(QueueClass::Telemetry), 100);
    assert!(core.is_drained([100, 1]));
}

#[test]
fn a_live_lane_that_lags_gives_its_past_to_the_backlog() {
    let mut core = core([1, 1], [1, 1]);
    let durable = [LIVE_LAG_MAX + 10, 1];
    let (_, lane, seq) = send(&mut core, durable).unwrap();
    assert_eq!((lane, seq), (Lane::Live, LIVE_LAG_MAX + 10 - LIVE_KEPT));
    let mut rest: Vec<_> = std::iter::from_fn(|| {
        let sent = send(&mut core, durable)?;
        core.settle(sent.0, sent.2);
        Some(sent.2)
    })
    .collect();
    rest.sort_unstable();
    assert_eq!(rest.len() as u64, LIVE_LAG_MAX + 8);
    assert_eq!(rest.first(), Some(&1));
}

#[test]
fn a_gap_that_passes_what_is_done_sends_nothing_twice() {
    let mut core = core([1, 1], [6, 1]);
    while send(&mut core, [6, 1]).is_some() {}
    core.settle(QueueClass::Telemetry, 4);
    core.connected([6, 1]);
    let want = core.next([6, 1], NOW).unwrap();
    assert!(!core.found(want, 4), "4 is done; 1 to 3 are gone");
    assert_eq!(core.released(QueueClass::Telemetry), 5);
    assert_eq!(send(&mut core, [6, 1]).unwrap().2, 5);
}

#[test]
fn pauses_grow_with_each_refusal_for_now_up_to_a_bound() {
    let mut core = core([1, 1], [2, 1]);
    let (mut now, mut pauses) = (NOW, Vec::new());
    for _ in 0..20 {
        let want = core.next([2, 1], now).unwrap();
        assert!(core.found(want, 1));
        core.keep(QueueClass::Telemetry, 1, now);
        let until = core.held_until().unwrap();
        pauses.push(until - now);
        now = until;
    }
    assert!(pauses[0] <= HOLD_MIN);
    assert!(pauses.iter().all(|pause| *pause <= HOLD_MAX), "{pauses:?}");
    assert!(pauses[10..].iter().all(|pause| *pause >= HOLD_MAX / 2), "{pauses:?}");
}
