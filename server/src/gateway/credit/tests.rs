//! Announcements, grants and what the controller is shown, against a core without threads.

use super::*;
use crate::gateway::codec::FilterAsked;
use crate::gateway::down;
use crate::gateway::link::OUTBOX_MESSAGES_MAX;
use crate::gateway::tests::{append_until_full, core, link};
use crate::platform::event_log::NewRecord;
use controller::BUDGET_START;

const NOW: Duration = Duration::from_secs(100);

/// A device's link that follows `dn/credit`, its announcement taken.
fn follower(core: &Core, device: &str) -> Arc<Link> {
    let link = link(device);
    let asked = FilterAsked { path: format!("muster/acme/{device}/dn/+"), qos: 1 };
    assert_eq!(down::subscribe(core, &link, &asked), 1);
    assert_eq!(told(&link).map(|credit| credit.records), Some(0), "the announcement");
    link
}

/// The next message to a link.
fn told(link: &Link) -> Option<Credit> {
    let (message, qos) = link.pop_message()?;
    assert_eq!((&*message.topic, qos), (&*format!("muster/{}/dn/credit", link.name), 0));
    Some(Credit::decode(&message.payload).expect("a credit"))
}

fn ask(core: &Core, link: &Arc<Link>, backlog: u64) {
    assert_eq!(core.credits.request(&core.metrics, link, Ok(CreditRequest { backlog })), 0);
}

/// A controller with a full bank.
fn controller() -> Controller {
    let mut controller = Controller::new(Duration::ZERO);
    assert_eq!(controller.turn(NOW, &Signals { log_bytes_max: 1, ..Signals::default() }), None);
    controller
}

#[test]
fn a_fleets_connects_are_spread_by_its_size() {
    for (connections, expect) in [
        (0, 0),
        (1, 0),
        (1_500, 1_000),
        (10_000, 6_666),
        (90_000, 60_000),
        (usize::MAX, RECONNECT_SPREAD_MS_MAX),
    ] {
        assert_eq!(spread_ms(connections), expect, "{connections}");
    }
    for (told_ms, now_ms, expect) in [
        (0, 499, false),
        (0, 500, true),
        (1_000, 1_499, false),
        (1_000, 1_500, true),
        (6_000, 8_999, false),
        (6_000, 9_000, true),
        (6_000, 3_001, false),
        (6_000, 3_000, true),
        (SPREAD_NOT_TOLD, 0, false),
    ] {
        assert_eq!(is_outdated(told_ms, now_ms), expect, "{told_ms} {now_ms}");
    }
}

#[test]
fn a_link_is_told_the_spread_again_once_it_speaks_and_the_fleet_has_changed() {
    let (core, _dir) = core();
    let (pump, silent, other) = (follower(&core, "pump"), follower(&core, "fan"), link("other"));
    let hear = |link: &Link| core.credits.heard(&core.metrics, link);
    hear(&pump);
    assert_eq!(told(&pump), None);
    core.credits.spread_ms.store(6_000, Ordering::Relaxed);
    for link in [&pump, &pump, &other] {
        hear(link);
    }
    let epoch = core.credits.epoch;
    assert_eq!(told(&pump), Some(Credit { epoch, records: 0, reconnect_spread_ms: 6_000 }));
    assert_eq!((told(&pump), told(&silent), told(&other)), (None, None, None), "once, and who follows");
    down::unsubscribe(&pump, "muster/acme/pump/dn/#");
    core.credits.spread_ms.store(0, Ordering::Relaxed);
    hear(&pump);
    assert_eq!(pump.spread_told_ms.load(Ordering::Relaxed), SPREAD_NOT_TOLD);
}

#[test]
fn each_in_line_gets_what_it_asked_for_up_to_a_grant() {
    let (core, _dir) = core();
    let links: Vec<_> = (0..4).map(|at| follower(&core, &format!("d{at}"))).collect();
    for (link, backlog) in links.iter().zip([1, 60, u64::from(GRANT_MAX) + 1, u64::MAX]) {
        ask(&core, link, backlog);
    }
    let stranger = link("stranger");
    ask(&core, &stranger, 1);
    ask(&core, &links[0], 2);
    let refused = core.credits.request(&core.metrics, &links[0], Err(Refusal::BadPayload));
    assert_eq!(refused, 0x99);
    let mut controller = controller();
    core.credits.grant(&core.metrics, &mut controller);
    let records: Vec<_> = links.iter().filter_map(|link| told(link)).map(|credit| credit.records).collect();
    assert_eq!(records, [2, 60, GRANT_MAX, GRANT_MAX]);
    assert!(links.iter().all(|link| told(link).is_none()), "once");
    assert_eq!(core.metrics.credit_granted.get(), u64::from(2 + 60 + 2 * GRANT_MAX));
    assert!(told(&stranger).is_none());
}

#[test]
fn what_a_link_cannot_be_told_is_not_spent() {
    let (core, _dir) = core();
    let (full, gone, closing) =
        (follower(&core, "full"), follower(&core, "gone"), follower(&core, "closing"));
    let message = Arc::new(Message { topic: "t".into(), payload: Box::default() });
    for _ in 0..OUTBOX_MESSAGES_MAX {
        assert_eq!(full.send_down(publish::down_bit(DownClass::Credit), &message), Some(true));
    }
    let left = follower(&core, "left");
    for link in [&full, &gone, &closing, &left] {
        ask(&core, link, 60);
    }
    down::unsubscribe(&gone, "muster/acme/gone/dn/+");
    closing.close(crate::gateway::reason::CloseReason::Disabled);
    core.credits.leave(&left);
    let mut controller = controller();
    core.credits.grant(&core.metrics, &mut controller);
    assert_eq!((core.credits.waiting(), core.metrics.credit_granted.get()), (0, 0));
    // All of the bank is left: a burst of the start's budget.
    let after: Vec<_> = (0..20).map(|at| follower(&core, &format!("d{at}"))).collect();
    after.iter().for_each(|link| ask(&core, link, 64));
    core.credits.grant(&core.metrics, &mut controller);
    let granted = core.metrics.credit_granted.get();
    assert_eq!(granted, (u64::try_from(BUDGET_START).expect("positive") / 10).div_ceil(64) * 64);
}

#[test]
fn grants_of_one_turn_are_bounded() {
    let (core, _dir) = core();
    let links: Vec<_> = (0..=GRANTS_PER_TURN_MAX).map(|at| follower(&core, &format!("d{at}"))).collect();
    let mut controller = Controller::new(Duration::ZERO);
    let well = Signals { waits: true, log_bytes_max: 1, ..Signals::default() };
    for turn in 1..100 {
        assert_eq!(controller.turn(TURN * turn, &well), None);
    }
    links.iter().for_each(|link| ask(&core, link, 1));
    core.credits.grant(&core.metrics, &mut controller);
    assert!(controller.may_grant(), "it is not the budget that ends it");
    assert_eq!((core.credits.waiting(), core.metrics.credit_waiting.get()), (1, 1));
    core.credits.grant(&core.metrics, &mut controller);
    assert_eq!(core.credits.waiting(), 0);
}

#[test]
fn the_controller_is_shown_the_log_and_how_far_the_store_is() {
    let (core, _dir) = core();
    let mut lag = Lag::default();
    let mut now = NOW;
    let mut signals = || {
        now += TURN;
        core.credits.signals(&core, &mut lag, now, Duration::ZERO)
    };
    let before = signals();
    assert_eq!(
        (before.waits, before.disk_delay, before.store_lag, before.log_is_full),
        (false, None, Duration::ZERO, false)
    );
    assert_eq!(before.log_bytes_max, 2 * 1024 * 1024);
    core.log.note_stored(core.log.first());
    // The turn above armed the probe; its record becomes durable before the core is told.
    let message = NewRecord { kind: crate::platform::event_log::Kind::Message, ..NewRecord::tick() };
    let position = core.append(&message).expect("room");
    core.log.wait_durable(position).expect("durable");
    core.credits.probe.durable(core.log.durable_next());
    assert!(signals().disk_delay.is_some());
    for _ in 0..lag::RECORDS_MIN {
        core.append(&message).expect("room");
    }
    core.log.commit().expect("durable");
    signals();
    assert!(signals().store_lag >= TURN);
    core.log.note_stored(core.log.durable_next());
    assert_eq!(signals().store_lag, Duration::ZERO);
    append_until_full(&core);
    let full = signals();
    assert!(full.log_is_full && full.log_bytes > full.log_bytes_max / 2, "{full:?}");
    ask(&core, &follower(&core, "pump"), 1);
    assert!(signals().waits);
}

#[test]
fn a_turn_sets_the_spread_and_the_budget_and_counts_a_cut() {
    let (core, _dir) = core();
    append_until_full(&core);
    let mut controller = controller();
    core.credits.spread_ms.store(7, Ordering::Relaxed);
    core.credits.turn(&core, (&mut controller, &mut Lag::default()), NOW + TURN, Duration::ZERO);
    assert_eq!(core.credits.spread_ms.load(Ordering::Relaxed), 0, "nobody is connected");
    assert_eq!(core.metrics.credit_budget.get(), BUDGET_START * 7 / 10);
}
