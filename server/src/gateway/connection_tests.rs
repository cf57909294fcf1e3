//! What a connection takes before it reads no more, against a core whose log never becomes durable by itself.

use super::Core;
use super::codec::{FilterAsked, Version};
use super::connection::{Connection, Opened, PENDING_BYTES_MAX, UNACKED_MAX_V3};
use super::down;
use super::link::Link;
use super::stream::Stream;
use super::tests::{append_until_full, core, link, set_device, sockets};
use bytes::BytesMut;
use muster_wire::{Credit, CreditRequest, Envelope, QueueId, UpClass};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Turns of the runtime in which everything that can move has moved.
const TURNS: usize = 500;
const TOPIC: &str = "muster/acme/pump/up/telemetry";

/// An MQTT 3.1.1 device's connection that runs, and the client's end of it.
async fn connected(core: &Arc<Core>) -> (Arc<Link>, TcpStream) {
    set_device(core, "pump", true);
    let (server, client) = sockets().await;
    let link = link("pump");
    core.live.admit(core, &link).expect("welcome");
    let opened = Opened {
        link: link.clone(),
        stream: Stream::Plain(server),
        version: Version::Three,
        receive_maximum: u16::MAX,
        packet_bytes_max: None,
        tail: BytesMut::new(),
        out: Vec::new(),
    };
    tokio::spawn(Connection::new(core.clone(), opened));
    (link, client)
}

/// QoS 1 PUBLISHes of one length each.
fn publishes(count: usize) -> Vec<Vec<u8>> {
    let publish = |at: usize| {
        let body = [7; 40];
        let (queue_id, seq) = (QueueId(7), 1_000 + at as u64);
        let envelope =
            Envelope { class: UpClass::Telemetry, queue_id, seq, measured_at_us: 5, body: &body }.encode();
        let packet_id = u16::try_from(at + 1).expect("few");
        let topic_bytes = u16::try_from(TOPIC.len()).expect("short");
        let rest =
            [&topic_bytes.to_be_bytes()[..], TOPIC.as_bytes(), &packet_id.to_be_bytes(), &envelope].concat();
        [&[0x32, u8::try_from(rest.len()).expect("under 128")], &rest[..]].concat()
    };
    (0..count).map(publish).collect()
}

#[tokio::test]
async fn who_speaks_is_told_how_far_a_grown_fleet_spreads_its_return() {
    let (core, _dir) = core();
    let (link, mut client) = connected(&core).await;
    let asked = FilterAsked { path: "muster/acme/pump/dn/credit".into(), qos: 0 };
    assert_eq!(down::subscribe(&core, &link, &asked), 0);
    let told = |reconnect_spread_ms| {
        let credit = Credit { epoch: core.credits.epoch, records: 0, reconnect_spread_ms }.encode();
        let topic = asked.path.as_bytes();
        let topic_bytes = u16::try_from(topic.len()).expect("short").to_be_bytes();
        let rest = [&topic_bytes[..], topic, &credit].concat();
        [&[0x30, u8::try_from(rest.len()).expect("under 128")], &rest[..]].concat()
    };
    settle().await;
    core.credits.spread_ms.store(6_000, Ordering::Relaxed);
    for _ in 0..2 {
        client.write_all(&[0xC0, 0]).await.expect("sent");
        settle().await;
    }
    let expect = [told(0), vec![0xD0, 0], told(6_000), vec![0xD0, 0]].concat();
    let mut bytes = vec![0; 1_000];
    let count = client.read(&mut bytes).await.expect("readable");
    assert_eq!(bytes[..count], expect, "once");
}

#[tokio::test]
async fn who_ends_while_it_waits_for_credit_waits_no_longer() {
    let (core, _dir) = core();
    let (link, mut client) = connected(&core).await;
    let asked = FilterAsked { path: "muster/acme/pump/dn/credit".into(), qos: 0 };
    assert_eq!(down::subscribe(&core, &link, &asked), 0);
    let body = CreditRequest { backlog: 60 }.encode();
    let envelope =
        Envelope { class: UpClass::Credit, queue_id: QueueId(0), seq: 0, measured_at_us: 5, body: &body };
    let topic = b"muster/acme/pump/up/credit";
    let topic_bytes = u16::try_from(topic.len()).expect("short").to_be_bytes();
    let rest = [&topic_bytes[..], topic, &envelope.encode()].concat();
    let ask = [&[0x30, u8::try_from(rest.len()).expect("under 128")], &rest[..]].concat();
    let before = core.log.stats().next_seq;
    client.write_all(&ask).await.expect("sent");
    settle().await;
    assert_eq!((core.credits.waiting(), core.log.stats().next_seq), (1, before), "in line, not in the log");
    drop(client);
    settle().await;
    assert_eq!((core.live.len(), core.credits.waiting()), (0, 0));
}

async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_3_1_1_client_is_not_read_beyond_its_unacknowledged_messages() {
    let (core, _dir) = core();
    let (link, mut client) = connected(&core).await;
    let before = core.log.stats().next_seq;
    let taken = || core.log.stats().next_seq - before;
    client.write_all(&publishes(UNACKED_MAX_V3 + 500).concat()).await.expect("sent");
    settle().await;
    assert_eq!(taken(), UNACKED_MAX_V3 as u64);
    assert!(link.unread.load(Ordering::Relaxed), "its keep-alive clock stands");
    // One acknowledgement makes room for one message.
    core.acks.tell(before + 1);
    link.waker.wake();
    settle().await;
    assert_eq!(taken(), UNACKED_MAX_V3 as u64 + 1);
    core.acks.tell(u64::MAX);
    link.waker.wake();
    let mut acks = vec![0; 4 * (UNACKED_MAX_V3 + 500)];
    client.read_exact(&mut acks).await.expect("acknowledged");
    assert_eq!(taken(), UNACKED_MAX_V3 as u64 + 500);
}

#[tokio::test]
async fn while_the_log_is_full_a_client_is_read_to_its_pending_bytes() {
    let (core, _dir) = core();
    let (link, mut client) = connected(&core).await;
    append_until_full(&core);
    let all = publishes(300);
    // Topic and payload count; a packet has two bytes of header, two of topic length and two of packet id besides.
    let of_each = all[0].len() - 6;
    client.write_all(&all.concat()).await.expect("sent");
    settle().await;
    assert_eq!(core.metrics.stalls.get(), PENDING_BYTES_MAX.div_ceil(of_each) as u64);
    assert!(link.unread.load(Ordering::Relaxed), "its keep-alive clock stands");
    link.waker.wake();
    settle().await;
    assert_eq!(
        core.metrics.stalls.get(),
        PENDING_BYTES_MAX.div_ceil(of_each) as u64,
        "as long as it is full"
    );
}
