//! The noisy tenant, by a clock that the test moves: what is admitted equals the quota to the message, whatever MQTT
//! version and quality of service its devices send with, and nobody else notices.

use super::Core;
use super::codec::Version;
use super::connection::{Connection, Opened};
use super::identity::{Credential, Identity};
use super::link::Link;
use super::reason::{CloseReason, ConnectRefusal, Refusal};
use super::stream::Stream;
use super::tests::{core, sockets};
use crate::devices::directory::{DeviceAuth, token_hash};
use crate::platform::config::{LimitSection, QuotaRateSection};
use crate::platform::event_log::{Kind, Pin};
use crate::usage::Refused;
use crate::usage::model::QuotaSpec;
use bytes::BytesMut;
use muster_wire::{DeviceId, Envelope, QueueId, TenantId, UpClass};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Turns of the runtime in which everything that can move has moved.
const TURNS: usize = 300;
/// What an MQTT 5 client may have unacknowledged.
const WINDOW: usize = 32;

/// What is wrong with a message for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Retain,
    ForeignTopic,
    BadTopic,
    BadPayload,
}

/// A device's connection that runs, and the client's end of it.
struct Device {
    name: String,
    fault: Fault,
    version: Version,
    qos: u8,
    link: Arc<Link>,
    socket: TcpStream,
    sent: usize,
    /// PUBACKs by code.
    answers: HashMap<u8, usize>,
    unread: Vec<u8>,
}

fn identity(core: &Core, tenant: &str, device: &str) -> Identity {
    let (tenant, device) = (TenantId::parse(tenant).expect("an id"), DeviceId::parse(device).expect("an id"));
    let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash("secret")) };
    core.directory.set_device(&tenant, &device, auth);
    Identity::Device { tenant, device, credential: Credential::DeviceToken(Box::new(token_hash("secret"))) }
}

impl Device {
    async fn connect(core: &Arc<Core>, tenant: &str, device: &str, version: Version, qos: u8) -> Self {
        let (server, socket) = sockets().await;
        let name = format!("{tenant}/{device}");
        let link = Arc::new(Link::new(name.as_str().into(), identity(core, tenant, device), None, 0, 0));
        core.live.admit(core, &link).expect("welcome");
        let opened = Opened {
            link: link.clone(),
            stream: Stream::Plain(server),
            version,
            receive_maximum: u16::MAX,
            packet_bytes_max: None,
            tail: BytesMut::new(),
            out: Vec::new(),
        };
        tokio::spawn(Connection::new(core.clone(), opened));
        let (fault, answers, unread) = (Fault::None, HashMap::new(), Vec::new());
        Self { name, fault, version, qos, link, socket, sent: 0, answers, unread }
    }

    fn publish(&self) -> Vec<u8> {
        let seq = 1 + self.sent as u64;
        let (queue_id, body) = (QueueId(7), [7; 20]);
        let envelope =
            Envelope { class: UpClass::Telemetry, queue_id, seq, measured_at_us: 5, body: &body }.encode();
        let topic = match self.fault {
            Fault::ForeignTopic => "muster/quiet/d0/up/telemetry".to_owned(),
            Fault::BadTopic => "nothing".to_owned(),
            Fault::None | Fault::Retain | Fault::BadPayload => format!("muster/{}/up/telemetry", self.name),
        };
        let mut rest = u16::try_from(topic.len()).expect("short").to_be_bytes().to_vec();
        rest.extend_from_slice(topic.as_bytes());
        if self.qos > 0 {
            let packet_id = u16::try_from(self.sent % 60_000 + 1).expect("a packet id");
            rest.extend_from_slice(&packet_id.to_be_bytes());
        }
        if self.version == Version::Five {
            rest.push(0);
        }
        let payload = if self.fault == Fault::BadPayload { &b"no envelope"[..] } else { &envelope[..] };
        rest.extend_from_slice(payload);
        let retain = u8::from(self.fault == Fault::Retain);
        [&[0x30 | self.qos << 1 | retain, u8::try_from(rest.len()).expect("under 128")], &rest[..]].concat()
    }

    fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// Sends up to so many in all, within the window where the protocol has one.
    async fn send(&mut self, upto: usize) {
        let window = if self.version == Version::Five && self.qos > 0 { WINDOW } else { usize::MAX };
        let mut bytes = Vec::new();
        while self.sent < upto && (window == usize::MAX || self.sent - self.answered() < window) {
            bytes.extend(self.publish());
            self.sent += 1;
        }
        self.socket.write_all(&bytes).await.expect("sent");
    }

    /// Takes what was answered.
    fn receive(&mut self) {
        let mut buffer = [0; 4_096];
        while let Ok(count @ 1..) = self.socket.try_read(&mut buffer) {
            self.unread.extend_from_slice(&buffer[..count]);
        }
        let mut rest = &self.unread[..];
        while rest.len() >= 2 && rest.len() >= 2 + usize::from(rest[1]) {
            let (packet, after) = rest.split_at(2 + usize::from(rest[1]));
            assert_eq!(packet[0], 0x40, "PUBACK");
            *self.answers.entry(packet.get(4).copied().unwrap_or(0)).or_default() += 1;
            rest = after;
        }
        self.unread = rest.to_vec();
    }
}

async fn settle() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// Messages in the log by tenant.
fn logged(core: &Core) -> HashMap<String, usize> {
    records(core, |kind| kind == Kind::Message)
}

fn records(core: &Core, is_counted: impl Fn(Kind) -> bool) -> HashMap<String, usize> {
    core.log.commit().expect("durable");
    let mut by_tenant = HashMap::new();
    let mut reader = core.log.reader("test", 1, Pin::Follows).expect("a reader");
    while {
        let count = |record: crate::platform::event_log::LogRecord<'_>| {
            if is_counted(record.kind) {
                *by_tenant.entry(record.tenant.to_owned()).or_default() += 1;
            }
        };
        let batch = reader.next_batch(1 << 20, count).expect("readable");
        batch.next != batch.from
    } {}
    by_tenant
}

#[tokio::test]
async fn a_tenant_at_ten_times_its_quota_is_admitted_its_quota_and_the_other_is_refused_nothing() {
    const TICKS: u32 = 20;
    /// The burst, and two seconds of the rate.
    const QUOTA: usize = 45 + 2 * 100;
    const QUIET: usize = 400;
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let rate = QuotaRateSection { soft: None, hard: Some(100), burst: Some(45) };
    core.quotas.set_own("noisy", Some(QuotaSpec { messages_per_s: Some(rate), ..QuotaSpec::default() }));
    let mut noisy = Vec::new();
    for at in 0..10 {
        let (version, qos) = [(Version::Five, 1), (Version::Three, 1), (Version::Five, 0)][at % 3];
        noisy.push(Device::connect(&core, "noisy", &format!("d{at}"), version, qos).await);
    }
    let mut quiet = Device::connect(&core, "quiet", "d0", Version::Five, 1).await;
    for tick in 0..=TICKS {
        core.tick.store(tick, Ordering::Relaxed);
        for device in &mut noisy {
            device.link.waker.wake();
            // Ten devices that send a quota each.
            device.send(QUOTA).await;
        }
        quiet.send(QUIET * (tick as usize + 1) / (TICKS as usize + 1)).await;
        settle().await;
        noisy.iter_mut().chain([&mut quiet]).for_each(Device::receive);
    }
    while quiet.sent < QUIET {
        quiet.send(QUIET).await;
        settle().await;
        quiet.receive();
    }
    let logged = logged(&core);
    assert_eq!((logged["noisy"], logged["quiet"]), (QUOTA, QUIET));
    assert_eq!(quiet.answers, HashMap::from([(0, QUIET)]), "0 refused");
    assert_eq!(core.quotas.of("quiet").take_refused_for_test(), [0; 13]);
    // QoS 0 cannot be told, but it is counted; MQTT 3.1.1 waits; MQTT 5 is told to keep its record.
    let refused = core.quotas.of("noisy").take_refused_for_test();
    let told: usize = noisy.iter().map(|device| device.answers.get(&0x97).copied().unwrap_or(0)).sum();
    let of_zero = noisy.iter().filter(|device| device.qos == 0).map(|device| device.sent).sum::<usize>();
    assert!(
        told > 0 && refused[Refused::MessagesPerS as usize] > told as u64,
        "{refused:?} {told} {of_zero}"
    );
    assert_eq!(refused.iter().sum::<u64>(), refused[Refused::MessagesPerS as usize], "for nothing else");
    assert!(noisy.iter().all(|device| device.link.close_asked().is_none()), "nobody is disconnected");
    let three = noisy.iter().filter(|device| device.version == Version::Three);
    assert!(
        three.clone().all(|device| device.answers.keys().all(|code| *code == 0)),
        "3.1.1 knows no refusal"
    );
}

#[tokio::test]
async fn what_the_log_keeps_of_refused_messages_is_within_the_quota_too() {
    const TICKS: u32 = 20;
    const QUOTA: usize = 45 + 2 * 100;
    const QUIET: usize = 210;
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let rate = QuotaRateSection { soft: None, hard: Some(100), burst: Some(45) };
    core.quotas.set_own("noisy", Some(QuotaSpec { messages_per_s: Some(rate), ..QuotaSpec::default() }));
    let mut noisy = Vec::new();
    for fault in [Fault::None, Fault::Retain, Fault::ForeignTopic, Fault::BadTopic, Fault::BadPayload] {
        for at in 0..2 {
            let name = format!("{fault:?}{at}").to_lowercase();
            let device = Device::connect(&core, "noisy", &name, Version::Three, 1).await;
            noisy.push(Device { fault, ..device });
        }
    }
    let mut quiet = Device::connect(&core, "quiet", "d0", Version::Five, 1).await;
    for tick in 0..=TICKS {
        core.tick.store(tick, Ordering::Relaxed);
        // Whoever comes first takes what there is.
        noisy.rotate_left(1);
        for device in &mut noisy {
            device.link.waker.wake();
            device.send(QUOTA).await;
        }
        quiet.send(10 * (tick as usize + 1)).await;
        settle().await;
        noisy.iter_mut().chain([&mut quiet]).for_each(Device::receive);
    }
    let is_kept = |kind| matches!(kind, Kind::Message | Kind::Rejected { .. });
    let (kept, taken) = (records(&core, is_kept), logged(&core));
    assert_eq!((kept["noisy"], kept["quiet"]), (QUOTA, QUIET));
    assert!(taken["noisy"] < QUOTA, "the quota is one for both");
    assert_eq!(quiet.answers, HashMap::from([(0, QUIET)]), "0 refused");
    assert_eq!(core.quotas.of("noisy").used().0, QUOTA as u64);
    assert!(noisy.iter().all(|device| device.link.close_asked().is_none()), "nobody is disconnected");
}

#[tokio::test]
async fn of_a_tenant_that_may_send_nothing_the_log_keeps_nothing() {
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let none = Some(LimitSection { soft: None, hard: Some(0) });
    for spec in [
        QuotaSpec { messages_per_day: none, ..QuotaSpec::default() },
        QuotaSpec { bytes_per_day: none, ..QuotaSpec::default() },
        QuotaSpec {
            messages_per_s: Some(QuotaRateSection { hard: Some(0), ..QuotaRateSection::default() }),
            ..QuotaSpec::default()
        },
    ] {
        core.quotas.set_own("noisy", Some(spec));
        for fault in [Fault::Retain, Fault::ForeignTopic, Fault::BadTopic, Fault::BadPayload] {
            let mut device = Device::connect(&core, "noisy", "d0", Version::Three, 1).await;
            device.fault = fault;
            device.send(3).await;
            settle().await;
            device.receive();
            assert_eq!((device.answered(), core.parked.len()), (0, 1), "{spec:?} {fault:?}");
            drop(device);
            settle().await;
            assert_eq!(core.parked.len(), 0, "who ended waits no longer");
        }
    }
    assert_eq!(records(&core, |kind| matches!(kind, Kind::Rejected { .. })), HashMap::new());
}

#[tokio::test]
async fn a_message_that_waits_is_refused_once_and_qos_0_behind_it_too() {
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let rate = QuotaRateSection { soft: None, hard: Some(10), burst: Some(1) };
    core.quotas.set_own("noisy", Some(QuotaSpec { messages_per_s: Some(rate), ..QuotaSpec::default() }));
    let refused = || core.quotas.of("noisy").take_refused_for_test()[Refused::MessagesPerS as usize];
    let mut three = Device::connect(&core, "noisy", "d0", Version::Three, 1).await;
    three.send(3).await;
    for _ in 0..5 {
        three.link.waker.wake();
        settle().await;
    }
    assert_eq!((refused(), core.parked.len()), (1, 0), "the second of three, however often it was tried");
    three.qos = 0;
    three.send(4).await;
    settle().await;
    assert_eq!(refused(), 1, "QoS 0 is dropped and counted");
    let mut seen = Vec::new();
    for tick in 1..=3 {
        core.tick.store(tick, Ordering::Relaxed);
        three.link.waker.wake();
        settle().await;
        three.receive();
        seen.push((three.answered(), refused()));
    }
    assert_eq!(seen, [(2, 1), (3, 0), (3, 0)], "the third waited once more");
}

#[tokio::test]
async fn who_is_over_a_days_quota_is_not_tried_until_quotas_change() {
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let limit = |hard| QuotaSpec {
        messages_per_day: Some(LimitSection { soft: None, hard: Some(hard) }),
        ..QuotaSpec::default()
    };
    core.quotas.set_own("noisy", Some(limit(1)));
    core.parked.wake(core.quotas.changes(), 0);
    let mut three = Device::connect(&core, "noisy", "d0", Version::Three, 1).await;
    let answered = async |three: &mut Device| {
        three.link.waker.wake();
        settle().await;
        three.receive();
        three.answered()
    };
    three.send(3).await;
    assert_eq!((answered(&mut three).await, core.parked.len()), (1, 1));
    core.quotas.of("noisy").give_back(0);
    core.parked.wake(core.quotas.changes(), 599);
    assert_eq!(answered(&mut three).await, 1, "nothing changed, and it is not time");
    core.parked.wake(core.quotas.changes(), 600);
    assert_eq!((answered(&mut three).await, core.parked.len()), (2, 1), "each minute");
    let before = core.quotas.changes();
    core.quotas.set_own("noisy", Some(limit(3)));
    assert_eq!(answered(&mut three).await, 2, "the sweep was not there yet");
    core.parked.wake(core.quotas.changes(), 601);
    assert_eq!((answered(&mut three).await, core.parked.len()), (3, 0));
    assert!(!core.parked.wait(&core.quotas, &three.link, before), "it changed since it was refused");
}

#[tokio::test]
async fn what_waited_for_a_quota_is_taken_when_there_is_room_again() {
    let (core, _dir) = core();
    core.acks.tell(u64::MAX);
    let limit = |hard| QuotaSpec {
        messages_per_day: Some(LimitSection { soft: None, hard: Some(hard) }),
        ..QuotaSpec::default()
    };
    core.quotas.set_own("noisy", Some(limit(5)));
    let mut three = Device::connect(&core, "noisy", "d0", Version::Three, 1).await;
    let mut five = Device::connect(&core, "noisy", "d1", Version::Five, 1).await;
    three.send(8).await;
    settle().await;
    five.send(2).await;
    settle().await;
    three.receive();
    five.receive();
    assert_eq!((&three.answers, &five.answers), (&HashMap::from([(0, 5)]), &HashMap::from([(0x97, 2)])));
    assert_eq!(core.metrics.refused_for_test(Refusal::Quota(Refused::MessagesPerDay)), 2);
    core.quotas.set_own("noisy", Some(limit(100)));
    core.tick.store(1, Ordering::Relaxed);
    core.parked.wake(core.quotas.changes(), 1);
    five.link.waker.wake();
    five.send(4).await;
    settle().await;
    three.receive();
    five.receive();
    assert_eq!(
        (&three.answers, &five.answers),
        (&HashMap::from([(0, 8)]), &HashMap::from([(0x97, 2), (0, 2)]))
    );
    assert_eq!((logged(&core)["noisy"], core.quotas.of("noisy").used().0), (10, 10));
}

#[tokio::test]
async fn a_tenants_connections_are_bounded_and_a_takeover_needs_no_place() {
    let (core, _dir) = core();
    let limit = Some(LimitSection { soft: None, hard: Some(2) });
    core.quotas.set_own("noisy", Some(QuotaSpec { connections: limit, ..QuotaSpec::default() }));
    let new = |device: &str| {
        let name = format!("noisy/{device}");
        Arc::new(Link::new(name.as_str().into(), identity(&core, "noisy", device), None, 0, 0))
    };
    let (one, two, three) = (new("d1"), new("d2"), new("d3"));
    assert_eq!((core.live.admit(&core, &one), core.live.admit(&core, &two)), (Ok(()), Ok(())));
    assert_eq!(core.live.admit(&core, &three), Err(ConnectRefusal::Quota));
    assert_eq!((ConnectRefusal::Quota.code(), ConnectRefusal::Quota.code_v3()), (0x97, 3));
    let again = new("d1");
    assert_eq!(core.live.admit(&core, &again), Ok(()), "a takeover needs no place");
    assert_eq!(core.quotas.of("noisy").connections(), 2);
    core.live.remove(&core, &one, CloseReason::Lost);
    assert_eq!(core.quotas.of("noisy").connections(), 2, "its end was counted at the takeover");
    core.live.remove(&core, &two, CloseReason::Lost);
    assert_eq!(core.live.admit(&core, &three), Ok(()));
    let other = Link::new("quiet/d1".into(), identity(&core, "quiet", "d1"), None, 0, 0);
    assert_eq!(core.live.admit(&core, &Arc::new(other)), Ok(()), "another tenant has its own places");
}
