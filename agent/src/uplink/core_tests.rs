use super::*;
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(100);

fn core(released: [Seq; 2], durable: [Seq; 2]) -> Core {
    let mut core = Core::new(released, 1);
    connect(&mut core, durable);
    core
}

/// A connection to a server that controls nothing.
fn connect(core: &mut Core, durable: [Seq; 2]) {
    core.connected(durable, NOW);
    core.subscribed(false, NOW);
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
    connect(&mut core, [7, 1]);
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
    connect(&mut core, [6, 1]);
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

/// A connection under control, without credit.
fn controlled(released: [Seq; 2], durable: [Seq; 2]) -> Core {
    let mut core = Core::new(released, 1);
    core.connected(durable, NOW);
    core.credit(7, 0, NOW);
    core
}

#[test]
fn until_the_server_says_whether_it_gives_credit_only_live_records_are_sent() {
    let mut core = Core::new([1, 1], 1);
    core.connected([10, 1], NOW);
    assert_eq!(core.next([10, 1], NOW), None);
    assert_eq!(send(&mut core, [11, 1]), Some((QueueClass::Telemetry, Lane::Live, 10)));
    assert_eq!(core.next([11, 1], NOW), None);
    let until = core.look_at(NOW).unwrap();
    assert!(core.next([11, 1], until).is_some());
    core.subscribed(false, NOW);
    assert!(core.next([11, 1], NOW).is_some());
}

#[test]
fn the_backlog_takes_credit_and_live_records_none() {
    let mut core = controlled([1, 1], [100, 1]);
    assert_eq!(core.next([100, 1], NOW), None);
    assert_eq!((core.ask(NOW), core.ask(NOW)), (Some(99), None));
    core.credit(7, 3, NOW);
    let sent: Vec<_> = std::iter::from_fn(|| send(&mut core, [105, 1])).collect();
    let lanes = |lane| sent.iter().filter(|each| each.1 == lane).map(|each| each.2).collect::<Vec<_>>();
    assert_eq!(lanes(Lane::Live), [100, 101, 102, 103, 104]);
    assert_eq!(lanes(Lane::Backlog), [1, 2, 3]);
    assert_eq!(core.ask(NOW), Some(96), "asks again: half of the grant is spent");
}

#[test]
fn numbers_that_are_gone_take_no_credit() {
    let mut core = controlled([1, 1], [100, 1]);
    core.credit(7, 2, NOW);
    let want = core.next([100, 1], NOW).unwrap();
    core.gone(want, 50);
    let want = core.next([100, 1], NOW).unwrap();
    assert!(core.found(want, 60));
    assert!(send(&mut core, [100, 1]).is_some());
    assert_eq!(core.next([100, 1], NOW), None);
    assert_eq!(core.ask(NOW), Some(38));
}

#[test]
fn a_record_that_is_kept_asks_for_credit_again_once_the_pause_is_over() {
    let mut core = controlled([1, 1], [2, 1]);
    core.credit(7, 1, NOW);
    assert!(send(&mut core, [2, 1]).is_some());
    core.keep(QueueClass::Telemetry, 1, NOW);
    assert_eq!((core.ask(NOW), core.look_at(NOW)), (None, None), "not while it pauses");
    let until = core.held_until().unwrap();
    assert_eq!(core.next([2, 1], until), None);
    assert_eq!(core.ask(until), Some(1));
    core.credit(7, 1, until);
    assert_eq!(core.next([2, 1], until).map(|want| want.seq), Some(1));
}

#[test]
fn credit_ends_with_its_connection() {
    let mut core = controlled([1, 1], [100, 1]);
    core.credit(7, 50, NOW);
    core.connected([100, 1], NOW);
    core.credit(7, 0, NOW);
    assert_eq!(core.next([100, 1], NOW), None);
    assert_eq!(core.ask(NOW), Some(99));
}

/// One step of a device's life, for the property below.
#[derive(Clone, Copy, Debug)]
enum Step {
    Accept { class: usize, records: u64 },
    Send,
    Settle,
    Keep,
    Tell { epoch: u64, records: u32 },
    Grant { lost: bool },
    Pass { ms: u64 },
    Reconnect { controlled: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..2_usize, 1..50_u64).prop_map(|(class, records)| Step::Accept { class, records }),
        Just(Step::Send),
        Just(Step::Send),
        Just(Step::Settle),
        Just(Step::Settle),
        Just(Step::Keep),
        (0..3_u64, 0..40_u32).prop_map(|(epoch, records)| Step::Tell { epoch, records }),
        any::<bool>().prop_map(|lost| Step::Grant { lost }),
        (1..6_000_u64).prop_map(|ms| Step::Pass { ms }),
        any::<bool>().prop_map(|controlled| Step::Reconnect { controlled }),
    ]
}

/// The device, and what the server gave it.
struct Device {
    core: Core,
    durable: [Seq; 2],
    in_flight: Vec<(QueueClass, Seq)>,
    now: Duration,
    /// Epoch and credit, where the server controls.
    credit: Option<(u64, u64)>,
}

impl Device {
    fn new() -> Self {
        let core = Core::new([1, 1], 1);
        Self { core, durable: [1, 1], in_flight: Vec::new(), now: NOW, credit: None }
    }

    fn connect(&mut self, controlled: bool) {
        self.in_flight.clear();
        self.core.connected(self.durable, self.now);
        self.core.subscribed(controlled, self.now);
        self.credit = None;
        if controlled {
            self.tell(0, 0);
        }
    }

    fn tell(&mut self, epoch: u64, records: u32) {
        self.core.credit(epoch, records, self.now);
        let left = self.credit.filter(|(known, _)| *known == epoch).map_or(0, |(_, left)| left);
        self.credit = Some((epoch, left + u64::from(records)));
    }

    /// Sends what may be sent.
    fn send(&mut self) {
        while let Some(want) = self.core.next(self.durable, self.now) {
            assert!(self.core.found(want, want.seq));
            self.in_flight.push((want.class, want.seq));
            if want.lane == Lane::Backlog
                && let Some((_, left)) = &mut self.credit
            {
                assert!(*left > 0, "a record of the backlog without credit");
                *left -= 1;
            }
        }
        let held = self.core.held_until().is_some_and(|until| self.now < until);
        if self.in_flight.len() < RECORDS_IN_FLIGHT_MAX && !held {
            for class in QueueClass::ALL {
                let live = self.core.cursors[class.index()].live;
                assert_eq!(live, self.durable[class.index()], "a live record waits");
            }
            let backlog = self.core.backlog();
            if backlog > 0 {
                assert_eq!(self.credit.map(|(_, left)| left), Some(0), "it waits for nothing else");
                let at = self.core.look_at(self.now).expect("somebody will ask");
                assert!(at <= self.now + super::super::credit::ASK_AGAIN);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept { class, records } => self.durable[class] += records,
            Step::Send => self.send(),
            Step::Settle => {
                if let Some((class, seq)) = self.in_flight.pop() {
                    self.core.settle(class, seq);
                }
            }
            Step::Keep => {
                if let Some((class, seq)) = self.in_flight.pop() {
                    self.core.keep(class, seq, self.now);
                }
            }
            Step::Tell { epoch, records } if self.credit.is_some() => self.tell(epoch, records),
            Step::Tell { .. } => {}
            Step::Grant { lost } => {
                if let Some(asked) = self.core.ask(self.now) {
                    let epoch = self.credit.expect("asks only under control").0;
                    if !lost {
                        self.tell(epoch, u32::try_from(asked.min(64)).unwrap());
                    }
                }
            }
            Step::Pass { ms } => self.now += Duration::from_millis(ms),
            Step::Reconnect { controlled } => self.connect(controlled),
        }
    }
}

proptest! {
    #[test]
    fn the_backlog_keeps_to_its_credit_live_records_never_wait_and_everything_drains(
        controlled in any::<bool>(), backlog in 0..200_u64, steps in prop::collection::vec(step(), 0..120)
    ) {
        let mut device = Device::new();
        device.durable = [1 + backlog, 1 + backlog / 3];
        device.connect(controlled);
        for each in steps {
            device.step(each);
        }
        // From now on the server answers everything.
        for _ in 0..2_000 {
            device.send();
            device.step(Step::Settle);
            device.step(Step::Grant { lost: false });
            device.now += Duration::from_secs(1);
        }
        prop_assert!(device.core.is_drained(device.durable));
    }
}
