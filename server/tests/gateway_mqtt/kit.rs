//! A gateway with its log and directory, and a client that speaks MQTT byte by byte.

pub use crate::authority::Authority;

use muster_server::devices::directory::{DeviceAuth, Directory, IntegrationToken, token_hash};
use muster_server::gateway::{self, Config, Dependencies, Gateway, ServerCertificate};
use muster_server::platform::clock::{SharedClock, SystemClock};
use muster_server::platform::event_log::{EventLog, Kind, Options, Origin, Pin};
use muster_server::usage::Board;
use muster_wire::{Credit, DeviceId, Envelope, QueueId, TenantId, UpClass};
use prometheus::Registry;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough for a slow machine; a test that passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(20);
pub const TOKEN: &str = "device-secret";
pub const API_TOKEN: &str = "api-secret";

pub fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

pub fn device(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

/// Waits until an observable state holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A record of the log, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub kind: Kind,
    pub name: String,
    pub class: u8,
    pub qos: u8,
    pub origin: Origin,
    pub body: Vec<u8>,
}

/// A running gateway.
pub struct Rig {
    pub gateway: Gateway,
    pub log: EventLog,
    pub directory: Arc<Directory>,
    pub quotas: Arc<Board>,
    pub registry: Registry,
    pub authority: Authority,
    pub certificate: Arc<ServerCertificate>,
    pub dir: tempfile::TempDir,
}

/// Plain and TLS listeners on ports of their own.
pub fn config() -> Config {
    let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    Config { plain_listen: any, tls_listen: any, ..Config::default() }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(config(), |_| {})
    }

    pub fn with(config: Config, edit: impl FnOnce(&mut Options)) -> Self {
        Self::with_clock(config, Arc::new(SystemClock), edit)
    }

    pub fn with_clock(config: Config, clock: SharedClock, edit: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::at(&dir.path().join("log"));
        edit(&mut options);
        let log = EventLog::open(&options, clock.clone()).unwrap();
        Self::on(config, clock, dir, log)
    }

    /// A gateway on a log that is open already.
    pub fn on(config: Config, clock: SharedClock, dir: tempfile::TempDir, log: EventLog) -> Self {
        let directory = Arc::new(Directory::new());
        let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash(TOKEN)) };
        for id in ["pump", "fan", "bystander"] {
            directory.set_device(&tenant("acme"), &device(id), auth);
        }
        directory.set_device(&tenant("other"), &device("pump"), auth);
        let token = IntegrationToken { tenant: tenant("acme"), token_id: "t1".into(), expires_at_us: None };
        directory.set_integration(token_hash(API_TOKEN), token);
        let (registry, authority) = (Registry::new(), Authority::new());
        let (chain, key) = authority.server();
        let certificate = ServerCertificate::from_pem(&chain, &key).unwrap();
        let devices = gateway::KnownCertificates::from_pem(&authority.pem).unwrap();
        let tls = gateway::server_config(certificate.clone(), devices).unwrap();
        let quotas = Arc::new(Board::new());
        let dependencies = Dependencies {
            log: log.clone(),
            directory: directory.clone(),
            clock,
            quotas: quotas.clone(),
            tls: Some(tls),
            ends: Arc::default(),
        };
        let gateway = Gateway::start(config, dependencies, &registry).unwrap();
        Self { gateway, log, directory, quotas, registry, authority, certificate, dir }
    }

    pub fn plain(&self) -> SocketAddr {
        self.gateway.plain_address().unwrap()
    }

    pub fn tls(&self) -> SocketAddr {
        self.gateway.tls_address().unwrap()
    }

    /// A device's plain connection, past its CONNACK.
    pub fn device(&self, version: u8, name: &str) -> Client {
        let mut client = Client::open(self.plain(), version);
        client.hello(&Hello::device(name));
        client
    }

    /// An integration client's plain connection, past its CONNACK.
    pub fn integration(&self, version: u8) -> Client {
        let mut client = Client::open(self.plain(), version);
        client.hello(&Hello { user: Some("api"), password: Some(API_TOKEN), ..Hello::device("acme/pump") });
        client
    }

    /// All durable records from a position on.
    pub fn stored(&self, from: u64) -> Vec<Stored> {
        let mut all = Vec::new();
        let mut reader = self.log.reader("test", from, Pin::Follows).unwrap();
        loop {
            let batch = reader
                .next_batch(1 << 20, |record| {
                    all.push(Stored {
                        kind: record.kind,
                        name: format!("{}/{}", record.tenant, record.device),
                        class: record.class,
                        qos: record.qos,
                        origin: record.origin,
                        body: record.body.to_vec(),
                    });
                })
                .unwrap();
            if batch.from == batch.next {
                return all;
            }
        }
    }

    /// The messages among them.
    pub fn messages(&self) -> Vec<Stored> {
        self.stored(1).into_iter().filter(|record| record.kind == Kind::Message).collect()
    }

    /// A counter's value; without a reason, that of the family's only one.
    pub fn metric(&self, name: &str, reason: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let family = family.unwrap_or_else(|| panic!("no metric {name}"));
        let found = family.get_metric().iter().find(|metric| {
            reason.is_empty() || metric.get_label().iter().any(|label| label.value() == reason)
        });
        let found = found.unwrap_or_else(|| panic!("no {name} with {reason}"));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let value = found.get_counter().get_value() as u64;
        value
    }

    #[track_caller]
    pub fn wait_metric(&self, name: &str, reason: &str, value: u64) {
        wait_until(&format!("{name} {reason} is {value}"), || self.metric(name, reason) == value);
    }
}

/// A queue record's envelope.
pub fn telemetry(seq: u64, body: &[u8]) -> Vec<u8> {
    envelope(UpClass::Telemetry, 7, seq, body)
}

pub fn envelope(class: UpClass, queue_id: u64, seq: u64, body: &[u8]) -> Vec<u8> {
    Envelope { class, queue_id: QueueId(queue_id), seq, measured_at_us: 5, body }.encode()
}

/// The parts of a CONNECT.
#[derive(Clone, Copy)]
pub struct Hello<'a> {
    pub client_id: &'a str,
    pub clean: bool,
    pub keep_alive_s: u16,
    pub user: Option<&'a str>,
    pub password: Option<&'a str>,
    /// Topic, payload, QoS, retain.
    pub will: Option<(&'a str, &'a [u8], u8, bool)>,
    pub properties: &'a [u8],
}

impl<'a> Hello<'a> {
    pub fn device(name: &'a str) -> Self {
        Self {
            client_id: "c",
            clean: true,
            keep_alive_s: 60,
            user: Some(name),
            password: Some(TOKEN),
            will: None,
            properties: &[],
        }
    }

    pub fn bytes(&self, version: u8) -> Vec<u8> {
        let mut flags = u8::from(self.clean) << 1;
        let mut body = vec![];
        text(&mut body, b"MQTT");
        let mut payload = Vec::new();
        text(&mut payload, self.client_id.as_bytes());
        if let Some((topic, message, qos, retain)) = self.will {
            flags |= 0x04 | qos << 3 | u8::from(retain) << 5;
            if version == 5 {
                payload.push(0);
            }
            text(&mut payload, topic.as_bytes());
            text(&mut payload, message);
        }
        if let Some(user) = self.user {
            flags |= 0x80;
            text(&mut payload, user.as_bytes());
        }
        if let Some(password) = self.password {
            flags |= 0x40;
            text(&mut payload, password.as_bytes());
        }
        body.extend_from_slice(&[version, flags]);
        body.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        if version == 5 {
            body.push(u8::try_from(self.properties.len()).unwrap());
            body.extend_from_slice(self.properties);
        }
        body.extend_from_slice(&payload);
        packet(0x10, &body)
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        if length == 0 {
            out.push(low);
            break;
        }
        out.push(low | 0x80);
    }
    out.extend_from_slice(body);
    out
}

fn covers_credit(path: &str) -> bool {
    ["/dn/credit", "/dn/+", "/dn/#"].iter().any(|end| path.ends_with(end))
}

/// A byte stream to the gateway.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client that speaks MQTT byte by byte.
pub struct Client {
    stream: Box<dyn Stream>,
    pub version: u8,
    /// The body of the CONNACK.
    pub connack: Vec<u8>,
    /// The announcement, while a subscription covers `dn/credit`.
    pub credit: Option<Credit>,
}

pub fn socket(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

impl Client {
    pub fn open(address: SocketAddr, version: u8) -> Self {
        Self::over(Box::new(socket(address)), version)
    }

    pub fn over(stream: Box<dyn Stream>, version: u8) -> Self {
        Self { stream, version, connack: Vec::new(), credit: None }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Sends where the other end may be gone already.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _gone = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// Connects and gives the CONNACK's code.
    #[track_caller]
    pub fn try_hello(&mut self, hello: &Hello<'_>) -> u8 {
        self.send(&hello.bytes(self.version));
        let (first, body) = self.receive().expect("a CONNACK");
        assert_eq!(first, 0x20, "CONNACK");
        assert_eq!(body[0], 0, "session present is always 0");
        self.connack = body;
        self.connack[1]
    }

    #[track_caller]
    pub fn hello(&mut self, hello: &Hello<'_>) {
        assert_eq!(self.try_hello(hello), 0, "CONNECT accepted");
    }

    /// The next packet; `None` when the other end closed.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut byte = [0];
        if !matches!(self.stream.read(&mut byte), Ok(1)) {
            return None;
        }
        let first = byte[0];
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            self.stream.read_exact(&mut byte).ok()?;
            length |= usize::from(byte[0] & 0x7F) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        Some((first, body))
    }

    pub fn publish_bytes(&self, qos: u8, flags: u8, packet_id: u16, topic: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        text(&mut body, topic);
        if qos > 0 {
            body.extend_from_slice(&packet_id.to_be_bytes());
        }
        if self.version == 5 {
            body.push(0);
        }
        body.extend_from_slice(payload);
        packet(0x30 | qos << 1 | flags, &body)
    }

    #[track_caller]
    pub fn publish(&mut self, qos: u8, packet_id: u16, topic: &str, payload: &[u8]) {
        let bytes = self.publish_bytes(qos, 0, packet_id, topic.as_bytes(), payload);
        self.send(&bytes);
    }

    /// The next PUBACK: packet id and code (0 for 3.1.1).
    #[track_caller]
    pub fn puback(&mut self) -> (u16, u8) {
        let (first, body) = self.receive().expect("a PUBACK, not the end");
        assert_eq!(first, 0x40, "PUBACK, not {first:#x} {body:02x?}");
        (u16::from_be_bytes([body[0], body[1]]), body.get(2).copied().unwrap_or(0))
    }

    /// Publishes with QoS 1 and gives the PUBACK's code.
    #[track_caller]
    pub fn publish_acked(&mut self, packet_id: u16, topic: &str, payload: &[u8]) -> u8 {
        self.publish(1, packet_id, topic, payload);
        let (id, code) = self.puback();
        assert_eq!(id, packet_id);
        code
    }

    #[track_caller]
    pub fn subscribe(&mut self, packet_id: u16, path: &str, qos: u8) -> u8 {
        let mut body = packet_id.to_be_bytes().to_vec();
        if self.version == 5 {
            body.push(0);
        }
        text(&mut body, path.as_bytes());
        body.push(qos);
        self.send(&packet(0x82, &body));
        let (first, body) = self.receive().expect("a SUBACK");
        assert_eq!((first, &body[..2]), (0x90, &packet_id.to_be_bytes()[..]), "SUBACK");
        let code = *body.last().unwrap();
        if code <= 1 && covers_credit(path) && self.credit.is_none() {
            self.credit = Some(self.next_credit());
        }
        code
    }

    /// The next message, which is about credit.
    #[track_caller]
    pub fn next_credit(&mut self) -> Credit {
        let (topic, payload, packet_id) = self.message();
        assert!(topic.ends_with("/dn/credit"), "{topic}");
        assert_eq!(packet_id, 0, "credit is not acknowledged");
        Credit::decode(&payload).unwrap()
    }

    #[track_caller]
    pub fn unsubscribe(&mut self, packet_id: u16, path: &str) -> Vec<u8> {
        let mut body = packet_id.to_be_bytes().to_vec();
        if self.version == 5 {
            body.push(0);
        }
        text(&mut body, path.as_bytes());
        self.send(&packet(0xA2, &body));
        let (first, body) = self.receive().expect("an UNSUBACK");
        assert_eq!((first, &body[..2]), (0xB0, &packet_id.to_be_bytes()[..]), "UNSUBACK");
        self.credit = self.credit.filter(|_| !covers_credit(path));
        body[2..].to_vec()
    }

    /// The next message: topic, payload, packet id (0 for QoS 0).
    #[track_caller]
    pub fn message(&mut self) -> (String, Vec<u8>, u16) {
        let (first, body) = self.receive().expect("a PUBLISH, not the end");
        assert_eq!(first >> 4, 3, "PUBLISH, not {first:#x}");
        let topic_bytes = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + topic_bytes].to_vec()).unwrap();
        let mut at = 2 + topic_bytes;
        let mut packet_id = 0;
        if first & 0b0110 != 0 {
            packet_id = u16::from_be_bytes([body[at], body[at + 1]]);
            at += 2;
        }
        if self.version == 5 {
            at += 1 + usize::from(body[at]);
        }
        (topic, body[at..].to_vec(), packet_id)
    }

    /// Shows that the connection is up and answers.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&[0xC0, 0]);
        assert_eq!(self.receive(), Some((0xD0, vec![])), "PINGRESP");
    }

    /// Reads to the end; gives the DISCONNECT's code, where there was one.
    #[track_caller]
    pub fn end(&mut self) -> Option<u8> {
        let mut code = None;
        while let Some((first, body)) = self.receive() {
            match first {
                0xE0 => code = Some(body.first().copied().unwrap_or(0)),
                0x40 | 0x90 | 0xD0 => {}
                _ => panic!("unexpected packet {first:#x}"),
            }
        }
        code
    }
}
