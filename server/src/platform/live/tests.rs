use super::*;

fn bus_with(events: usize) -> (LiveBus, Vec<EventId>) {
    let bus = LiveBus::new();
    let ids =
        (0..events).map(|n| bus.publish("acme", LiveKind::Reading, Some("d1"), &format!("{n}"))).collect();
    (bus, ids)
}

async fn drain(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(subscription.next().await.unwrap().json.to_string());
    }
    all
}

#[test]
fn an_id_survives_its_text() {
    let id = EventId { epoch: 0xab, seq: 7 };
    assert_eq!(id.to_string(), "000000ab-7");
    assert_eq!(EventId::parse(&id.to_string()), Some(id));
    for bad in ["", "7", "x-7", "1-", "1-2-3", "-", "1-99999999999999999999999"] {
        assert_eq!(EventId::parse(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn a_reconnect_replays_what_it_missed_and_then_follows() {
    let (bus, ids) = bus_with(5);
    let mut late = bus.subscribe("acme", Filter::default(), Some(ids[2])).unwrap();
    assert_eq!(late.resume(), Resume::Replayed(2));
    bus.publish("acme", LiveKind::Alert, None, "new");
    bus.publish("other", LiveKind::Alert, None, "not ours");
    bus.publish("acme", LiveKind::Alert, None, "newer");
    assert_eq!(drain(&mut late, 4).await, ["3", "4", "new", "newer"]);
}

#[test]
fn a_forgotten_or_foreign_id_is_a_gap() {
    let (bus, ids) = bus_with(RING_EVENTS_MAX + 2);
    let resume = |last| bus.subscribe("acme", Filter::default(), last).unwrap().resume();
    assert_eq!(resume(None), Resume::Fresh);
    assert_eq!(resume(Some(ids[0])), Resume::Gap);
    assert_eq!(resume(Some(ids[1])), Resume::Replayed(RING_EVENTS_MAX));
    assert_eq!(resume(Some(EventId { epoch: ids[1].epoch ^ 1, seq: ids[1].seq })), Resume::Gap);
}

#[test]
fn the_ring_is_bounded_by_bytes_too() {
    let bus = LiveBus::new();
    let big = "x".repeat(RING_BYTES_MAX / 2);
    let first = bus.publish("acme", LiveKind::Event, None, &big);
    bus.publish("acme", LiveKind::Event, None, &big);
    assert_eq!(bus.subscribe("acme", Filter::default(), Some(first)).unwrap().resume(), Resume::Replayed(1));
    bus.publish("acme", LiveKind::Event, None, &big);
    bus.publish("acme", LiveKind::Event, None, &big);
    assert_eq!(bus.subscribe("acme", Filter::default(), Some(first)).unwrap().resume(), Resume::Gap);
}

#[tokio::test]
async fn a_slow_subscriber_is_cut_and_counted_and_disturbs_nobody() {
    let bus = LiveBus::new();
    let mut slow = bus.subscribe("acme", Filter::default(), None).unwrap();
    let mut quick = bus.subscribe("acme", Filter::default().kinds(&[LiveKind::Alert]), None).unwrap();
    for n in 0..=QUEUE_EVENTS_MAX {
        bus.publish("acme", LiveKind::Reading, None, &n.to_string());
    }
    bus.publish("acme", LiveKind::Alert, None, "alert");
    assert_eq!(quick.next().await.unwrap().json.as_ref(), "alert");
    assert_eq!(drain(&mut slow, QUEUE_EVENTS_MAX).await.len(), QUEUE_EVENTS_MAX);
    assert_eq!(slow.next().await, Err(Cut::Slow));
    assert_eq!(bus.stats().cut_slow, 1);
}

#[tokio::test]
async fn a_filter_keeps_to_its_device_and_kinds() {
    let bus = LiveBus::new();
    let filter = Filter::default().device("d1").kinds(&[LiveKind::Reading, LiveKind::Alert]);
    let mut some = bus.subscribe("acme", filter, None).unwrap();
    bus.publish("acme", LiveKind::Reading, Some("d2"), "other device");
    bus.publish("acme", LiveKind::Event, Some("d1"), "other kind");
    bus.publish("acme", LiveKind::Ledger, None, "no device");
    bus.publish("acme", LiveKind::Alert, Some("d1"), "ours");
    assert_eq!(drain(&mut some, 1).await, ["ours"]);
}

#[test]
fn subscribers_are_bounded_and_their_places_come_free() {
    let bus = LiveBus::new();
    assert!(!bus.is_watched("acme"));
    let mut all: Vec<_> = (0..SUBSCRIBERS_PER_TENANT_MAX)
        .map(|_| bus.subscribe("acme", Filter::default(), None).unwrap())
        .collect();
    let refused = bus.subscribe("acme", Filter::default(), None).err().unwrap();
    assert_eq!(refused.to_string(), "the tenant has 64 live streams open, which is the most");
    assert!(bus.subscribe("other", Filter::default(), None).is_ok());
    all.pop();
    assert!(bus.subscribe("acme", Filter::default(), None).is_ok());
    drop(all);
    assert_eq!(bus.stats().subscribers, 0);
    assert!(bus.is_watched("acme"), "a reconnect within a minute finds its events");
}

#[tokio::test]
async fn closing_ends_streams_that_are_open_and_that_come_later() {
    let bus = LiveBus::new();
    let mut open = bus.subscribe("acme", Filter::default(), None).unwrap();
    bus.publish("acme", LiveKind::Alert, None, "last");
    bus.close();
    assert_eq!(drain(&mut open, 1).await, ["last"]);
    assert_eq!(open.next().await, Err(Cut::Closed));
    assert_eq!(bus.subscribe("acme", Filter::default(), None).unwrap().next().await, Err(Cut::Closed));
}

#[test]
fn tenants_are_bounded_and_what_is_left_out_is_counted() {
    let bus = LiveBus::new();
    let publish = |number: usize| bus.publish(&format!("t{number}"), LiveKind::Alert, None, "alert");
    let first = publish(0);
    for number in 1..TENANTS_MAX {
        publish(number);
    }
    assert_eq!((bus.lock().len(), bus.stats().left_out), (TENANTS_MAX, 0));
    publish(TENANTS_MAX);
    assert_eq!((bus.lock().len(), bus.stats().left_out), (TENANTS_MAX, 1));
    let one_more = format!("t{TENANTS_MAX}");
    let refused = bus.subscribe(&one_more, Filter::default(), None).err().unwrap();
    assert_eq!(refused.to_string(), "the server shows 4096 other tenants live, which is the most");
    assert!(!bus.is_watched(&one_more));
    publish(0);
    assert_eq!(bus.subscribe("t0", Filter::default(), Some(first)).unwrap().resume(), Resume::Replayed(1));
}
