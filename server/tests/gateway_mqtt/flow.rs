//! The ordinary ways of a connection: acknowledgements, wills, takeover, keep-alive, cut-off, downlink,
//! fan-out, rates, stop.

use crate::kit::{
    Client, Hello, Rig, Stored, TOKEN, config, device, envelope, telemetry, tenant, wait_until,
};
use muster_server::devices::directory::{DeviceAuth, token_hash};
use muster_server::gateway::{Config, DeliverError, RateLimit};
use muster_server::platform::event_log::{Kind, Origin};
use muster_wire::{Death, DownClass, UpClass};

const TOPIC: &str = "muster/acme/pump/up/telemetry";
const DEATH: &str = "muster/acme/pump/up/death";

#[test]
fn acknowledgements_leave_in_publish_order_refusals_included() {
    let rig = Rig::new();
    for version in [5, 4] {
        let mut client = rig.device(version, "acme/pump");
        let mut burst = Vec::new();
        let mut expect = Vec::new();
        for at in 1..=30_u16 {
            let (topic, payload, code) = match at % 5 {
                0 => ("muster/acme/fan/up/telemetry", telemetry(1, b"x"), 0x87),
                2 => (TOPIC, b"garbage".to_vec(), 0x99),
                3 => ("x/y", telemetry(1, b"x"), 0x90),
                _ => (TOPIC, telemetry(u64::from(at), b"x"), 0),
            };
            burst.extend(client.publish_bytes(1, 0, at * 7, topic.as_bytes(), &payload));
            burst.extend(client.publish_bytes(
                0,
                0,
                0,
                TOPIC.as_bytes(),
                &telemetry(1_000 + u64::from(at), b"q0"),
            ));
            expect.push((at * 7, if version == 5 { code } else { 0 }));
        }
        client.send(&burst);
        let told: Vec<_> = expect.iter().map(|_| client.puback()).collect();
        assert_eq!(told, expect);
        client.send(&[0xE0, 0]);
        wait_until("the client is gone", || rig.gateway.connections() == 0);
    }
    assert_eq!(rig.metric("gateway_publishes_total", "qos_0"), 60);
    assert_eq!(rig.metric("gateway_publishes_total", "qos_1"), 24);
}

#[test]
fn what_is_acknowledged_is_durable_with_its_identity_and_duplicates_are_kept() {
    let rig = Rig::new();
    let mut client = rig.device(5, "acme/pump");
    let payload = envelope(UpClass::Telemetry, 0xABCD, 42, b"body");
    for flags in [0, 8] {
        let bytes = client.publish_bytes(1, flags, 1, TOPIC.as_bytes(), &payload);
        client.send(&bytes);
        assert_eq!(client.puback(), (1, 0));
        let expect = Stored {
            kind: Kind::Message,
            name: "acme/pump".to_owned(),
            class: UpClass::Telemetry.number(),
            qos: 1,
            origin: Origin::Queue { queue_id: 0xABCD, seq: 42 },
            body: b"body".to_vec(),
        };
        assert_eq!(rig.messages().last(), Some(&expect), "durable when acknowledged");
    }
    assert_eq!(rig.messages().len(), 2, "the store removes duplicates, not the gateway");
    assert_eq!(client.publish_acked(1, "muster/acme/pump/up/senml", b"[]"), 0);
    let senml = rig.messages().pop().unwrap();
    assert_eq!(
        (senml.class, senml.origin, &senml.body[..]),
        (UpClass::Senml.number(), Origin::Direct, &b"[]"[..])
    );
}

#[test]
fn packets_behind_the_connect_are_not_lost() {
    let rig = Rig::new();
    let mut client = Client::open(rig.plain(), 5);
    let mut bytes = Hello::device("acme/pump").bytes(5);
    bytes.extend(client.publish_bytes(1, 0, 1, TOPIC.as_bytes(), &telemetry(1, b"x")));
    client.send(&bytes);
    assert_eq!(client.receive().unwrap().0, 0x20);
    assert_eq!(client.puback(), (1, 0));
}

/// The records about presence and wills of one device, shortened.
fn history(rig: &Rig, from: u64) -> Vec<String> {
    let told = |record: Stored| match record.kind {
        Kind::Connected => "connected".to_owned(),
        Kind::Disconnected { reason } => format!("disconnected {reason:#x}"),
        Kind::Message => format!("death {}", Death::decode(&record.body).unwrap().reason),
        other => format!("{other:?}"),
    };
    rig.stored(from).into_iter().map(told).collect()
}

#[test]
fn a_will_is_stored_unless_the_client_says_goodbye() {
    let rig = Rig::new();
    let native = envelope(UpClass::Death, 0, 0, &Death { reason: "lost".to_owned() }.encode());
    let end = |version: u8, will: &[u8], goodbye: &[u8]| {
        let from = rig.log.durable_next();
        let mut client = Client::open(rig.plain(), version);
        client.hello(&Hello { will: Some((DEATH, will, 1, false)), ..Hello::device("acme/pump") });
        client.send(goodbye);
        drop(client);
        wait_until("the end is recorded", || {
            history(&rig, from).iter().any(|each| each.starts_with("disconnected"))
        });
        history(&rig, from)
    };
    assert_eq!(end(5, &native, &[]), ["connected", "death lost", "disconnected 0x80"]);
    assert_eq!(end(4, b"gone", &[]), ["connected", "death gone", "disconnected 0x80"]);
    assert_eq!(end(5, &native, &[0xE0, 0]), ["connected", "disconnected 0x0"]);
    assert_eq!(end(4, &native, &[0xE0, 0]), ["connected", "disconnected 0x0"]);
    assert_eq!(end(5, &native, &[0xE0, 1, 0]), ["connected", "disconnected 0x0"]);
    assert_eq!(end(5, &native, &[0xE0, 1, 4]), ["connected", "death lost", "disconnected 0x4"]);
    assert_eq!(end(5, &native, &[0xE0, 2, 4, 0]), ["connected", "death lost", "disconnected 0x4"]);
    let long = "é".repeat(200);
    let told = end(5, long.as_bytes(), &[0xFF, 0]);
    assert_eq!(told, ["connected", &format!("death {}", "é".repeat(64)), "disconnected 0x82"]);
}

#[test]
fn the_newer_connection_takes_over_at_most_once_in_ten_seconds() {
    for version in [5, 4] {
        let rig = Rig::new();
        let mut old = Client::open(rig.plain(), version);
        old.hello(&Hello { will: Some((DEATH, b"taken", 1, false)), ..Hello::device("acme/pump") });
        let mut new = Client::open(rig.plain(), version);
        new.hello(&Hello { client_id: "another", ..Hello::device("acme/pump") });
        assert_eq!(old.end(), (version == 5).then_some(0x8E));
        new.ping();
        let mut third = Client::open(rig.plain(), version);
        assert_eq!(third.try_hello(&Hello::device("acme/pump")), if version == 5 { 0x9F } else { 3 });
        new.ping();
        assert_eq!(rig.metric("gateway_connects_refused_total", "takeover_rate"), 1);
        assert_eq!(rig.metric("gateway_disconnects_total", "taken_over"), 1);
        wait_until("all is durable", || history(&rig, 1).len() == 4);
        assert_eq!(history(&rig, 1), ["connected", "death taken", "disconnected 0x8e", "connected"]);
        // The same id of another tenant is somebody else.
        rig.device(version, "other/pump").ping();
        new.ping();
    }
}

#[test]
fn an_api_token_may_connect_several_times_under_different_client_ids() {
    let rig = Rig::new();
    let hello =
        |id| Hello { client_id: id, user: Some("api"), password: Some("api-secret"), ..Hello::device("x") };
    let mut clients: Vec<Client> = (0..3).map(|_| Client::open(rig.plain(), 5)).collect();
    clients[0].hello(&hello("a"));
    clients[1].hello(&hello("b"));
    clients[0].ping();
    clients[2].hello(&hello("a"));
    assert_eq!(clients[0].end(), Some(0x8E));
    clients[1].ping();
    clients[2].ping();
    assert_eq!(rig.stored(1), [], "presence is of devices");
}

#[test]
fn silence_for_one_and_a_half_keep_alives_ends_a_connection() {
    let rig = Rig::new();
    let hello = Hello { keep_alive_s: 1, ..Hello::device("acme/pump") };
    let mut silent = Client::open(rig.plain(), 5);
    silent.hello(&hello);
    let mut silent_v3 = Client::open(rig.plain(), 4);
    silent_v3.hello(&Hello { user: Some("acme/fan"), ..hello });
    let mut no_limit = Client::open(rig.plain(), 4);
    no_limit.hello(&Hello { user: Some("other/pump"), keep_alive_s: 0, ..hello });
    let mut pinging = Client::open(rig.plain(), 5);
    pinging.hello(&Hello { user: Some("acme/bystander"), ..hello });
    std::thread::scope(|scope| {
        let silent = scope.spawn(|| silent.end());
        let silent_v3 = scope.spawn(|| silent_v3.end());
        while !silent.is_finished() || !silent_v3.is_finished() {
            pinging.ping();
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(silent.join().unwrap(), Some(0x8D));
        assert_eq!(silent_v3.join().unwrap(), None);
    });
    no_limit.ping();
    assert_eq!(rig.metric("gateway_disconnects_total", "keep_alive"), 2);
}

#[test]
fn a_device_is_cut_off_at_once() {
    let rig = Rig::new();
    let on = DeviceAuth { enabled: true, token_sha256: Some(token_hash(TOKEN)) };
    let mut bystander = rig.device(5, "acme/fan");
    for (at, change) in [
        Some(DeviceAuth { enabled: false, ..on }),
        Some(DeviceAuth { token_sha256: Some(token_hash("another")), ..on }),
        None,
    ]
    .into_iter()
    .enumerate()
    {
        rig.directory.set_device(&tenant("acme"), &device("pump"), on);
        let mut client = rig.device(5, "acme/pump");
        match change {
            Some(auth) => rig.directory.set_device(&tenant("acme"), &device("pump"), auth),
            None => rig.directory.remove_device(&tenant("acme"), &device("pump")),
        }
        assert_eq!(client.end(), Some(0x98), "change {at}");
        let mut again = Client::open(rig.plain(), 5);
        assert_ne!(again.try_hello(&Hello::device("acme/pump")), 0);
        wait_until("the name is free", || rig.gateway.connections() == 1);
    }
    let mut integration = rig.integration(5);
    rig.directory.remove_integration(&token_hash("api-secret"));
    assert_eq!(integration.end(), Some(0x98));
    bystander.ping();
}

#[test]
fn a_message_is_delivered_to_a_subscribed_device_within_its_window() {
    let rig = Rig::new();
    let (tenant, pump) = (tenant("acme"), device("pump"));
    let deliver = |class, payload: &[u8]| rig.gateway.deliver(&tenant, &pump, class, payload);
    assert_eq!(deliver(DownClass::Twin, b"x"), Err(DeliverError::NotConnected));
    for version in [5, 4] {
        let mut client = rig.device(version, "acme/pump");
        assert_eq!(deliver(DownClass::Twin, b"x"), Err(DeliverError::NotSubscribed));
        assert_eq!(client.subscribe(1, "muster/acme/pump/dn/twin", 1), 1);
        assert_eq!(client.subscribe(2, "muster/acme/pump/dn/credit", 0), 0);
        assert_eq!(deliver(DownClass::Command, b"x"), Err(DeliverError::NotSubscribed));
        assert_eq!(deliver(DownClass::Credit, b"zero"), Ok(()));
        assert_eq!(client.message(), ("muster/acme/pump/dn/credit".to_owned(), b"zero".to_vec(), 0));
        for at in 0..40_u8 {
            assert_eq!(deliver(DownClass::Twin, &[at]), Ok(()));
        }
        let mut waiting = Vec::new();
        for at in 0..32 {
            let (topic, payload, packet_id) = client.message();
            assert_eq!((topic.as_str(), &payload[..]), ("muster/acme/pump/dn/twin", &[at][..]));
            waiting.push(packet_id);
        }
        // The window is full: the next thing to come is the answer to a ping.
        client.ping();
        for packet_id in &waiting {
            let [high, low] = packet_id.to_be_bytes();
            client.send(&[0x40, 2, high, low]);
        }
        for at in 32..40 {
            assert_eq!(client.message().1, [at]);
        }
        client.send(&[0xE0, 0]);
        wait_until("the client is gone", || rig.gateway.connections() == 0);
    }
}

#[test]
fn a_devices_queue_is_bounded() {
    let rig = Rig::new();
    let mut client = rig.device(5, "acme/pump");
    assert_eq!(client.subscribe(1, "muster/acme/pump/dn/#", 1), 1);
    let payload = vec![0; 1_000_000];
    let send = || rig.gateway.deliver(&tenant("acme"), &device("pump"), DownClass::Command, &payload);
    let mut queued = 0;
    let refused = (0..100).find_map(|_| send().map(|()| queued += 1).err());
    assert_eq!(refused, Some(DeliverError::QueueFull));
    assert!(queued >= 4, "{queued}");
    assert!(rig.metric("gateway_sent_total", "overflow") >= 1);
    for _ in 0..queued.min(32) {
        assert_eq!(client.message().1.len(), payload.len());
    }
}

#[test]
fn an_integration_client_follows_its_tenants_durable_messages() {
    let rig = Rig::new();
    let (mut all, mut events) = (rig.integration(5), Client::open(rig.plain(), 4));
    events.hello(&Hello {
        client_id: "e",
        user: Some("api"),
        password: Some("api-secret"),
        ..Hello::device("x")
    });
    assert_eq!(all.subscribe(1, "muster/acme/+/up/#", 1), 1);
    assert_eq!(all.subscribe(2, "muster/acme/pump/up/+", 0), 0);
    assert_eq!(events.subscribe(1, "muster/acme/+/up/event", 0), 0);
    let mut pump = rig.device(5, "acme/pump");
    let mut foreign = rig.device(5, "other/pump");
    assert_eq!(foreign.publish_acked(1, "muster/other/pump/up/telemetry", &telemetry(1, b"other")), 0);
    let event = envelope(UpClass::Event, 9, 1, b"event");
    let sent = [(TOPIC, telemetry(1, b"one")), ("muster/acme/pump/up/event", event.clone())];
    for (topic, payload) in &sent {
        assert_eq!(pump.publish_acked(1, topic, payload), 0);
    }
    assert_eq!(pump.publish_acked(1, "muster/acme/pump/up/senml", b"[{}]"), 0);
    for (topic, payload) in sent.iter().cloned().chain([("muster/acme/pump/up/senml", b"[{}]".to_vec())]) {
        let (got_topic, got, packet_id) = all.message();
        assert_eq!((got_topic.as_str(), got), (topic, payload), "once, though two filters match");
        assert_ne!(packet_id, 0, "with the higher QoS");
    }
    assert_eq!(events.message(), ("muster/acme/pump/up/event".to_owned(), event, 0));
    assert!(events.unsubscribe(2, "muster/acme/+/up/event").is_empty());
    events.ping();
}

#[test]
fn a_subscriber_that_does_not_read_is_counted_and_disconnected() {
    let rig = Rig::new();
    let mut slow = rig.integration(5);
    let mut pump = rig.device(5, "acme/pump");
    assert_eq!(slow.subscribe(1, "muster/acme/+/up/#", 0), 0);
    let body = vec![0; 200_000];
    let mut seq = 0;
    while rig.metric("gateway_disconnects_total", "subscriber_too_slow") == 0 {
        seq += 1;
        assert!(seq < 1_000, "the queue must overflow");
        assert_eq!(pump.publish_acked(1, TOPIC, &telemetry(seq, &body)), 0);
    }
    assert!(rig.metric("gateway_sent_total", "overflow") >= 1);
    assert_eq!(rig.gateway.connections(), 1);
    pump.ping();
}

#[test]
fn over_its_rate_an_mqtt_5_device_is_told_and_a_3_1_1_device_slowed() {
    let rate = RateLimit { per_s: 20, burst: 10 };
    let rig = Rig::with(Config { rate, ..config() }, |_| {});
    let mut five = rig.device(5, "acme/pump");
    let codes: Vec<u8> = (1..=15).map(|at| five.publish_acked(1, TOPIC, &telemetry(at, b"x"))).collect();
    assert!(codes.iter().take(10).all(|code| *code == 0) && codes.contains(&0x97), "{codes:02x?}");
    five.publish(0, 0, TOPIC, &telemetry(99, b"x"));
    rig.wait_metric("gateway_qos0_refused_total", "rate", 1);
    let mut three = rig.device(4, "acme/fan");
    let mut burst = Vec::new();
    for at in 1..=20 {
        let payload = telemetry(u64::from(at), b"x");
        burst.extend(three.publish_bytes(1, 0, at, b"muster/acme/fan/up/telemetry", &payload));
    }
    three.send(&burst);
    for at in 1..=20 {
        assert_eq!(three.puback(), (at, 0));
    }
    let stored = rig.messages().iter().filter(|message| message.name == "acme/fan").count();
    assert_eq!(stored, 20, "nothing is lost");
}

#[test]
fn connections_are_bounded() {
    let rig = Rig::with(Config { connections_max: 2, ..config() }, |_| {});
    let (mut one, mut two) = (rig.device(5, "acme/pump"), rig.device(5, "acme/fan"));
    for (version, code) in [(5, 0x89), (4, 3)] {
        let mut client = Client::open(rig.plain(), version);
        assert_eq!(client.try_hello(&Hello::device("acme/bystander")), code);
    }
    let mut again = rig.device(5, "acme/pump");
    assert_eq!(one.end(), Some(0x8E), "a takeover needs no place");
    again.ping();
    two.ping();
}

#[test]
fn a_stopping_gateway_says_goodbye() {
    let rig = Rig::new();
    let (mut five, mut three) = (rig.device(5, "acme/pump"), rig.device(4, "acme/fan"));
    let Rig { gateway, log, .. } = rig;
    let stop = std::thread::spawn(move || gateway.stop());
    assert_eq!((five.end(), three.end()), (Some(0x8B), None));
    stop.join().unwrap();
    let mut reader = log.reader("test", 1, muster_server::platform::event_log::Pin::Follows).unwrap();
    let mut ends = 0;
    wait_until("both ends are durable", || {
        let is_end = |kind| u32::from(kind == Kind::Disconnected { reason: 0x8B });
        reader.next_batch(1 << 20, |record| ends += is_end(record.kind)).unwrap();
        ends == 2
    });
}
