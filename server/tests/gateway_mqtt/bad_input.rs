//! What a client should not send: each gets its reason code or a closed connection and a counted metric,
//! and a bystander notices nothing.

use crate::kit::{Client, Hello, Rig, config, packet, socket, telemetry, wait_until};
use muster_server::gateway::Config;
use muster_server::platform::event_log::Kind;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const TOPIC: &str = "muster/acme/pump/up/telemetry";

/// A connection that must not notice: it publishes and is acknowledged.
struct Bystander {
    client: Client,
    seq: u64,
}

impl Bystander {
    fn new(rig: &Rig) -> Self {
        Self { client: rig.device(5, "acme/bystander"), seq: 0 }
    }

    #[track_caller]
    fn is_undisturbed(&mut self) {
        self.seq += 1;
        let code =
            self.client.publish_acked(1, "muster/acme/bystander/up/telemetry", &telemetry(self.seq, b"fine"));
        assert_eq!(code, 0);
    }
}

/// After the CONNECT: bytes, the DISCONNECT code of MQTT 5, the metric.
#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let rig = Rig::new();
    let mut bystander = Bystander::new(&rig);
    let publish = |version: u8, qos: u8, flags: u8| {
        let client = Client::over(Box::new(std::io::Cursor::new(vec![])), version);
        client.publish_bytes(qos, flags, 1, TOPIC.as_bytes(), &telemetry(1, b"x"))
    };
    let both = |bytes: &[u8]| [bytes.to_vec(), bytes.to_vec()];
    let alias = [&[0, 29][..], TOPIC.as_bytes(), &[0, 1, 3, 0x23, 0, 1, b'x']].concat();
    let table: Vec<([Vec<u8>; 2], [Option<u8>; 2], &str)> = vec![
        (both(b"\x00garbage"), [Some(0x82); 2], "protocol_error"),
        (both(&[0xF0, 0]), [Some(0x82); 2], "protocol_error"),
        (both(&[0xB2, 2, 0, 1]), [Some(0x82); 2], "protocol_error"),
        (both(&[0x20, 2, 0, 0]), [Some(0x82); 2], "protocol_error"),
        (both(&Hello::device("acme/pump").bytes(4)), [Some(0x82); 2], "protocol_error"),
        (both(&[0x62, 2, 0, 1]), [Some(0x82); 2], "protocol_error"),
        (both(&[0x80, 2, 0, 1]), [Some(0x81); 2], "malformed"),
        (both(&[0x82, 2, 0, 1]), [Some(0x81); 2], "malformed"),
        (both(&[0x32, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]), [Some(0x81); 2], "malformed"),
        (both(&[0x32, 0xFF, 0xFF, 0xFF, 0x7F]), [Some(0x95); 2], "packet_too_large"),
        ([publish(5, 2, 0), publish(4, 2, 0)], [Some(0x9B); 2], "qos_2"),
        ([publish(5, 3, 0), publish(4, 3, 0)], [Some(0x81); 2], "malformed"),
        ([publish(5, 1, 1), vec![]], [Some(0x9A); 2], "retain"),
        ([publish(5, 0, 1), vec![]], [Some(0x9A); 2], "retain"),
        ([packet(0x32, &alias), vec![]], [Some(0x94); 2], "topic_alias"),
        (
            [packet(0x82, &[0, 1, 2, 0x0B, 1, 0, 1, b'x', 0]), vec![]],
            [Some(0xA1); 2],
            "subscription_identifier",
        ),
    ];
    for (bytes, codes, reason) in table {
        for (at, version) in [(0, 5), (1, 4)] {
            if bytes[at].is_empty() {
                continue;
            }
            let before = rig.metric("gateway_disconnects_total", reason);
            let mut client = rig.device(version, "acme/pump");
            client.send(&bytes[at]);
            let expect = if version == 5 { codes[at] } else { None };
            assert_eq!(
                client.end(),
                expect,
                "{reason} {version} {:02x?}",
                &bytes[at][..bytes[at].len().min(12)]
            );
            rig.wait_metric("gateway_disconnects_total", reason, before + 1);
            wait_until("the name is free", || rig.gateway.connections() == 1);
        }
        bystander.is_undisturbed();
    }
    assert_eq!(rig.metric("gateway_codec_panics_total", ""), 0);
}

/// Refusals that leave the connection up: payload and topic, MQTT 5's code, whether 3.1.1 keeps a record.
#[test]
fn a_bad_message_is_refused_and_the_connection_lives() {
    let rig = Rig::new();
    let mut bystander = Bystander::new(&rig);
    let mut newer = telemetry(1, b"x");
    newer[1] = 9;
    let oversize = telemetry(1, &vec![0; muster_wire::ENVELOPE_BYTES_MAX - 5]);
    let good = telemetry(1, b"x");
    let table: Vec<(&str, &[u8], u8, &str)> = vec![
        (TOPIC, b"garbage", 0x99, "bad_payload"),
        (TOPIC, &[], 0x99, "bad_payload"),
        (TOPIC, &good[..good.len() - 1], 0x99, "bad_payload"),
        (TOPIC, &[0x9F, 0xFF], 0x99, "bad_payload"),
        (TOPIC, &oversize, 0x99, "bad_payload"),
        ("muster/acme/pump/up/event", &good, 0x99, "bad_payload"),
        ("muster/acme/fan/up/telemetry", &good, 0x87, "foreign_topic"),
        ("muster/acme/pump/dn/twin", &good, 0x87, "foreign_topic"),
        ("muster/acme/+/up/telemetry", &good, 0x90, "bad_topic"),
        ("muster/acme/pump/up/#", &good, 0x90, "bad_topic"),
        ("é", &good, 0x90, "bad_topic"),
        ("$share/g/x", &good, 0x90, "bad_topic"),
        ("", &good, 0x90, "bad_topic"),
    ];
    for (topic, payload, code, reason) in &table {
        for version in [5, 4] {
            let before = rig.metric("gateway_publishes_refused_total", reason);
            let before_zero = rig.metric("gateway_qos0_refused_total", reason);
            let from = rig.log.durable_next();
            let mut client = rig.device(version, "acme/pump");
            client.publish(0, 0, topic, payload);
            let told = client.publish_acked(9, topic, payload);
            assert_eq!(told, if version == 5 { *code } else { 0 }, "{topic} {version}");
            client.ping();
            assert_eq!(rig.metric("gateway_publishes_refused_total", reason), before + 1);
            assert_eq!(rig.metric("gateway_qos0_refused_total", reason), before_zero + 1);
            let mut kept = rig.stored(from);
            kept.retain(|each| each.kind == Kind::Rejected { reason: *code });
            assert_eq!(kept.len(), usize::from(version == 4), "{topic} {version}");
            let begin = &payload[..payload.len().min(4 * 1024)];
            assert!(kept.iter().all(|each| each.body == begin), "{topic}: a refused body is kept to 4 KiB");
            client.send(&[0xE0, 0]);
            wait_until("the name is free", || rig.gateway.connections() == 1);
        }
        bystander.is_undisturbed();
    }
    assert!(rig.messages().iter().all(|message| message.name == "acme/bystander"));
    // A newer version is kept by its sender: told so (5), or left unacknowledged (3.1.1).
    let mut client = rig.device(5, "acme/pump");
    assert_eq!(client.publish_acked(1, TOPIC, &newer), 0x83);
    let mut client = rig.device(4, "acme/fan");
    client.publish(1, 1, "muster/acme/fan/up/telemetry", &newer);
    assert_eq!(client.end(), None);
    rig.wait_metric("gateway_disconnects_total", "refused_for_now", 1);
    // RETAIN cannot be announced to 3.1.1: kept as rejected.
    let mut client = rig.device(4, "acme/fan");
    let bytes = client.publish_bytes(1, 1, 5, b"muster/acme/fan/up/telemetry", &good);
    client.send(&bytes);
    assert_eq!(client.puback(), (5, 0));
    assert!(rig.stored(1).iter().any(|each| each.kind == Kind::Rejected { reason: 0x9A }));
    bystander.is_undisturbed();
}

#[test]
fn an_undecodable_body_passes_sealed() {
    let rig = Rig::new();
    let mut client = rig.device(5, "acme/pump");
    assert_eq!(client.publish_acked(1, TOPIC, &telemetry(1, b"\xFFnot cbor")), 0);
    assert_eq!(rig.messages()[0].body, b"\xFFnot cbor");
}

#[test]
fn first_bytes_that_are_no_connect_close_the_socket() {
    let rig = Rig::new();
    let mut bystander = Bystander::new(&rig);
    let huge = [&[0x10, 0xFF, 0x7F][..], &[0; 100]].concat();
    let bad_flags = packet(0x10, &[0, 4, b'M', b'Q', b'T', b'T', 4, 3, 0, 60, 0, 1, b'c']);
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not_connect"),
        (&[0x16, 3, 1, 2, 0, 1], "not_connect"),
        (&[0xC0, 0], "not_connect"),
        (&[0x10, 0], "not_connect"),
        (&[0x10, 4, 0, 9, b'X', b'X'], "not_connect"),
        (&bad_flags, "not_connect"),
        (&huge, "connect_too_large"),
    ] {
        let before = rig.metric("gateway_early_ends_total", reason);
        let mut client = Client::open(rig.plain(), 5);
        client.send(bytes);
        assert_eq!(client.end(), None);
        rig.wait_metric("gateway_early_ends_total", reason, before + 1);
        bystander.is_undisturbed();
    }
    let socket = socket(rig.plain());
    drop(socket);
    rig.wait_metric("gateway_early_ends_total", "lost", 1);
    for body in
        [&[0, 4, b'M', b'Q', b'T', b'T', 6, 2, 0, 60][..], &[0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3]]
    {
        let mut client = Client::open(rig.plain(), 4);
        client.send(&packet(0x10, body));
        assert_eq!(client.receive(), Some((0x20, vec![0, 1])), "unacceptable protocol version");
        assert_eq!(client.end(), None);
    }
    bystander.is_undisturbed();
}

/// Writes a byte now and then until the other end closes.
fn drip(address: SocketAddr, bytes: &[u8]) {
    let mut socket = socket(address);
    for byte in bytes {
        if socket.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut end = Vec::new();
    let _closed_or_reset = socket.read_to_end(&mut end);
}

#[test]
fn who_is_silent_or_slow_before_the_connect_is_closed_in_time() {
    let timeout = Duration::from_millis(300);
    let rig = Rig::with(Config { connect_timeout: timeout, handshake_timeout: timeout, ..config() }, |_| {});
    let mut bystander = Bystander::new(&rig);
    let (plain, tls) = (rig.plain(), rig.tls());
    let hello = Hello::device("acme/pump").bytes(5);
    // The first flight of a handshake, cut: a ClientHello's record header and no more.
    let half_open = [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| drip(plain, &[]));
            scope.spawn(|| drip(plain, &hello));
            scope.spawn(|| drip(tls, &[]));
            scope.spawn(|| drip(tls, &half_open));
        }
        for _ in 0..10 {
            bystander.is_undisturbed();
        }
        let mut real = rig.device(5, "acme/fan");
        real.ping();
    });
    let ends = |reason| rig.metric("gateway_early_ends_total", reason);
    wait_until("all are counted", || ends("connect_timeout") == 40 && ends("handshake_timeout") == 40);
    bystander.is_undisturbed();
}

#[test]
fn a_big_packet_in_small_pieces_is_taken_whole() {
    let rig = Rig::new();
    let mut client = rig.device(5, "acme/pump");
    let body = vec![7; 200_000];
    let bytes = client.publish_bytes(1, 0, 3, TOPIC.as_bytes(), &telemetry(1, &body));
    let mut stream = bytes.chunks(1_021);
    for piece in stream.by_ref() {
        client.send(piece);
    }
    assert_eq!(client.puback(), (3, 0));
    assert_eq!(rig.messages()[0].body, body);
    // Byte by byte, two packets in one stream.
    let mut two = client.publish_bytes(1, 0, 4, TOPIC.as_bytes(), &telemetry(2, b"a"));
    two.extend(client.publish_bytes(1, 0, 5, TOPIC.as_bytes(), &telemetry(3, b"b")));
    for byte in two {
        client.send(&[byte]);
    }
    assert_eq!((client.puback(), client.puback()), ((4, 0), (5, 0)));
    assert_eq!(rig.messages().len(), 3);
}

#[test]
fn more_than_receive_maximum_unacknowledged_ends_an_mqtt_5_client_only() {
    let rig = Rig::new();
    for (version, code) in [(5, Some(0x93)), (4, None)] {
        let mut client = rig.device(version, "acme/pump");
        let mut burst = Vec::new();
        let count = if version == 5 { 400 } else { 4_000 };
        for at in 1..=count {
            let payload = telemetry(u64::from(at), &[0; 100]);
            burst.extend(client.publish_bytes(1, 0, at, TOPIC.as_bytes(), &payload));
        }
        client.try_send(&burst);
        if version == 5 {
            assert_eq!(client.end(), code);
            rig.wait_metric("gateway_disconnects_total", "receive_maximum", 1);
            wait_until("the name is free", || rig.gateway.connections() == 0);
        } else {
            for at in 1..=count {
                assert_eq!(client.puback(), (at, 0), "slowed, not ended");
            }
        }
    }
}

#[test]
fn the_oldest_silent_socket_makes_place_for_a_client() {
    let rig = Rig::with(Config { early_max: 8, connect_timeout: Duration::from_secs(3), ..config() }, |_| {});
    let mut bystander = Bystander::new(&rig);
    let silent: Vec<_> = (0..12).map(|_| socket(rig.plain())).collect();
    rig.device(5, "acme/fan").ping();
    assert!(rig.metric("gateway_early_ends_total", "evicted") >= 5);
    assert_eq!(rig.metric("gateway_early_ends_total", "connect_timeout"), 0);
    bystander.is_undisturbed();
    drop(silent);
}

#[test]
fn a_client_that_does_not_read_is_not_read() {
    const PINGS: usize = 8 << 20;
    let rig = Rig::new();
    let mut bystander = Bystander::new(&rig);
    let mut socket = socket(rig.plain());
    socket.write_all(&Hello::device("acme/pump").bytes(5)).unwrap();
    let mut reader = socket.try_clone().unwrap();
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pings = [0xC0, 0].repeat(4_096);
            for _ in 0..PINGS / 4_096 {
                socket.write_all(&pings).unwrap();
                sent.fetch_add(4_096, Ordering::Relaxed);
            }
        });
        // Until nothing moves any more: the server holds the sender up rather than the answers.
        let mut before = usize::MAX;
        wait_until("the sender is held up", || {
            bystander.is_undisturbed();
            std::thread::sleep(Duration::from_millis(100));
            let now = sent.load(Ordering::Relaxed);
            std::mem::replace(&mut before, now) == now
        });
        assert!(before < PINGS, "the server reads on though nobody reads its answers");
        let (mut buffer, mut connack) = (vec![0; 1 << 16], [0; 2]);
        reader.read_exact(&mut connack).unwrap();
        let mut left = usize::from(connack[1]) + 2 * PINGS;
        while left > 0 {
            let bytes = reader.read(&mut buffer).unwrap();
            assert_ne!(bytes, 0, "the connection lives");
            left -= bytes;
        }
    });
}
