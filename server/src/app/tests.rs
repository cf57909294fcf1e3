//! The whole server in process, on real sockets: a crash and a start on the same data, a certificate that changes.

use super::{App, GatewayAlone};
use crate::alerts::model::{AlertFilter, Severity};
use crate::devices::directory::{DeviceAuth, token_hash};
use crate::devices::pki::Pki;
use crate::gateway;
use crate::ingest::skipped::Skipped;
use crate::platform::clock::ManualClock;
use crate::platform::config::{Config, Live, Role, Roles};
use crate::platform::http_kit::PageQuery;
use crate::platform::telemetry::LogSpan;
use crate::testing::{START_US, TestApp};
use muster_wire::{DeviceId, TenantId, Topic, UpClass};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod identity;

/// Long enough for a slow machine; a test that passes never waits for it.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
const DAY_US: i64 = 86_400_000_000;

pub(super) fn tenant() -> TenantId {
    TenantId::parse("default").unwrap()
}

pub(super) fn config(data_dir: &Path) -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config { data_dir: data_dir.to_owned(), ..Config::default() };
    (config.http.listen, config.enroll.listen) = (any, any);
    (config.mqtt.tls_listen, config.mqtt.plain_listen) = (Some(any), Some(any));
    config.event_log.segment_bytes = 1 << 20;
    config.event_log.bytes_max = 16 << 20;
    config
}

/// A server that lets `default/pump` and `default/fan` in with the token `secret`.
async fn start(config: Config, now_us: i64) -> (App, Arc<ManualClock>) {
    let clock = ManualClock::at(now_us);
    let app = App::start(Live::new(config), clock.clone()).await.unwrap();
    let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash("secret")) };
    for id in ["pump", "fan"] {
        app.directory.set_device(&tenant(), &DeviceId::parse(id).unwrap(), auth);
    }
    (app, clock)
}

pub(super) async fn wait_until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "waited too long until {what}");
}

/// Sends an MQTT 3.1.1 packet and reads an answer of `N` bytes.
pub(super) async fn ask<const N: usize>(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    first: u8,
    body: &[u8],
) -> [u8; N] {
    let mut packet = vec![first, u8::try_from(body.len()).unwrap()];
    packet.extend_from_slice(body);
    stream.write_all(&packet).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; N];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    answer
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Connects as a device.
async fn hello(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), device: &str) {
    hello_with(stream, device, "secret").await;
}

pub(super) async fn hello_with(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    device: &str,
    password: &str,
) {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0b1100_0010, 0, 60];
    for part in ["c", &format!("default/{device}"), password] {
        text(&mut body, part);
    }
    assert_eq!(ask(stream, 0x10, &body).await, [0x20, 2, 0, 0], "CONNACK");
}

/// Publishes; once it is acknowledged, all that was logged before is on disk.
pub(super) async fn publish(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), device: &str) {
    let (mut body, device) = (Vec::new(), DeviceId::parse(device).unwrap());
    text(&mut body, &Topic::up(&tenant(), &device, UpClass::Senml).to_string());
    body.extend_from_slice(&[0, 9]);
    body.extend_from_slice(br#"[{"n":"t","v":1}]"#);
    assert_eq!(ask(stream, 0x32, &body).await, [0x40, 2, 0, 9], "PUBACK");
}

async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    assert_eq!(ask(stream, 0xC0, &[]).await, [0xD0, 0], "PINGRESP");
}

pub(super) async fn plain(app: &App) -> TcpStream {
    TcpStream::connect(app.addresses.mqtt_plain.unwrap()).await.unwrap()
}

/// What the API tells of a device: none until the store heard of it.
async fn connected(app: &App, device: &str) -> Option<bool> {
    let page = PageQuery::default().page().unwrap();
    let all = app.page.presence.list(&tenant(), &page).await.unwrap();
    let found = all.into_iter().find(|row| row.device == device);
    found.map(|row| row.presence.is_some_and(|presence| presence.connected))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_device_whose_connection_died_with_the_server_is_not_connected_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    // Unread, so that the crashed server's records are the next one's to store.
    let mut unread = config(&before);
    unread.event_log.consumers = false;
    let (crashed, _) = start(unread, START_US).await;
    let mut client = plain(&crashed).await;
    hello(&mut client, "pump").await;
    publish(&mut client, "pump").await;
    // What a crash leaves: the device connected, and no word of its end.
    copy(&before, &after);
    crashed.stop().await;

    // The clock was set back meanwhile: the old records' times are ahead of it.
    let (app, _) = start(config(&after), START_US - DAY_US).await;
    wait_until("pump is stored", || async { connected(&app, "pump").await.is_some() }).await;
    // A commit is visible a moment before the feed hears of it; of the commits before it, it has heard.
    let mut fan = plain(&app).await;
    hello(&mut fan, "fan").await;
    wait_until("fan is stored", || async { connected(&app, "fan").await.is_some() }).await;
    assert_eq!(connected(&app, "pump").await, Some(false), "its connection died with the server");
    let mut client = plain(&app).await;
    hello(&mut client, "pump").await;
    wait_until("pump is connected", || async { connected(&app, "pump").await == Some(true) }).await;
    drop(client);
    wait_until("pump is gone", || async { connected(&app, "pump").await == Some(false) }).await;
    app.stop().await;
}

/// Accepts any certificate whose key the server holds: the tests look at it themselves, on their own time.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = gateway::provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = gateway::provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        gateway::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client that trusts any server; `own` is its certificate and key, in PEM.
fn client(own: Option<(&str, &str)>) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(gateway::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate));
    let Some((certificate, key)) = own else { return Arc::new(config.with_no_client_auth()) };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(config.with_client_auth_cert(chain, key).unwrap())
}

/// A new session with a listener.
async fn tls(address: SocketAddr) -> TlsStream<TcpStream> {
    tls_as(address, client(None)).await
}

async fn tls_as(address: SocketAddr, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, socket).await.unwrap()
}

fn leaf(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn file(app: &App, name: &str) -> std::path::PathBuf {
    app.slices.config.get().data_dir.join("pki").join(name)
}

fn in_file(app: &App) -> Vec<u8> {
    CertificateDer::from_pem_slice(&std::fs::read(file(app, "server.pem")).unwrap()).unwrap().to_vec()
}

#[tokio::test]
async fn another_server_certificate_is_shown_to_new_clients_while_old_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (app, clock) = start(config(dir.path()), START_US).await;
    let (mqtt, enroll) = (app.addresses.mqtt_tls.unwrap(), app.addresses.enroll.unwrap());
    let mut old = tls(mqtt).await;
    hello(&mut old, "pump").await;
    let first = leaf(&old);
    assert_eq!(leaf(&tls(enroll).await), first);
    assert!(!app.certificates.reload().unwrap(), "nothing changed");

    let hosts = app.slices.config.get().pki.hosts.clone();
    let pki = Pki::open(&dir.path().join("pki"), &hosts, 365, START_US).unwrap();
    pki.renew_server(START_US).unwrap();
    assert!(app.certificates.reload().unwrap());
    let second = in_file(&app);
    assert_ne!(second, first);
    assert_eq!((leaf(&tls(mqtt).await), leaf(&tls(enroll).await)), (second.clone(), second.clone()));
    ping(&mut old).await;

    let good_key = std::fs::read(file(&app, "server.key")).unwrap();
    for (name, bad, expect) in [
        ("server.key", &b"nonsense"[..], "server.key does not hold a private key"),
        ("server.pem", &b"nonsense"[..], "server.pem does not hold a certificate"),
    ] {
        std::fs::write(file(&app, name), bad).unwrap();
        let error = anyhow::Error::from(app.certificates.reload().unwrap_err());
        assert!(format!("{error:#}").contains(expect), "{error:#}");
        assert_eq!(leaf(&tls(mqtt).await), second, "the old one stays");
    }
    std::fs::write(file(&app, "server.key"), good_key).unwrap();

    // Eight of twelve months later less than a third of its life is left, whatever stands in the file.
    clock.advance_us(245 * DAY_US);
    app.certificates.poll();
    let third = in_file(&app);
    assert_ne!(third, second);
    let mut new = tls(mqtt).await;
    assert_eq!(leaf(&new), third);
    hello(&mut new, "fan").await;
    ping(&mut new).await;
    app.stop().await;
}

#[tokio::test]
async fn a_gateway_alone_shows_the_certificate_that_its_owner_renews_and_renews_none() {
    let dir = tempfile::tempdir().unwrap();
    let (full, clock) = start(config(&dir.path().join("full")), START_US).await;
    let mut alone = config(&dir.path().join("alone"));
    (alone.roles, alone.registry.dir) = (Roles::of([Role::Gateway]), Some(dir.path().join("full")));
    let alone = GatewayAlone::start(Live::new(alone), clock.clone()).await.unwrap();
    let mqtt = alone.addresses.mqtt_tls.unwrap();
    let first = in_file(&full);
    assert_eq!(leaf(&tls(mqtt).await), first);
    alone.certificates.poll();
    assert_eq!(leaf(&tls(mqtt).await), first);

    // It has less than a third of its life left: its owner renews it, nobody else.
    clock.advance_us(245 * DAY_US);
    assert!(!alone.certificates.reload().unwrap());
    assert_eq!((in_file(&full), leaf(&tls(mqtt).await)), (first.clone(), first.clone()));
    full.certificates.poll();
    let second = in_file(&full);
    assert_ne!(second, first);
    alone.certificates.poll();
    assert_eq!(leaf(&tls(mqtt).await), second);

    std::fs::write(file(&full, "server.pem"), "nonsense").unwrap();
    alone.certificates.poll();
    assert_eq!(leaf(&tls(mqtt).await), second, "what devices would not accept is not shown");
    alone.stop().await;
    full.stop().await;
}

#[tokio::test]
async fn a_log_range_that_the_store_never_read_is_told_to_every_tenant_once() {
    let app = TestApp::start().await;
    for id in ["acme", "other"] {
        app.tenant(id).await;
    }
    let (skipped, alerts) = (&app.parts.skipped, &app.parts.slices.alerts);
    assert_eq!((skipped.pass().await.unwrap(), skipped.positions()), (0, 0));
    let begin = |first| {
        let (store, span) = (app.parts.telemetry.clone(), LogSpan { epoch: 7, first, next: 90 });
        tokio::task::spawn_blocking(move || store.begin(span, START_US).unwrap())
    };
    begin(5).await.unwrap();
    assert_eq!(
        (skipped.pass().await.unwrap(), skipped.positions()),
        (3, 4),
        "the first tenant and these two"
    );
    let acme = TenantId::parse("acme").unwrap();
    let list = async || alerts.list(&acme, AlertFilter::default(), None, 10).await.unwrap();
    let told = list().await;
    assert_eq!((told[0].device.as_str(), told[0].severity, told.len()), ("-", Severity::Critical, 1));
    let expect =
        "4 records of the event log (positions 1 to 4) were never stored: deleted before it was stored";
    assert_eq!(told[0].message, expect);
    begin(9).await.unwrap();
    assert_eq!(
        (skipped.pass().await.unwrap(), skipped.positions()),
        (0, 8),
        "one waits for a person already"
    );
    // After a start it looks again, and what was resolved stays so.
    let me = crate::testing::owner(&acme);
    alerts.resolve(&me, &acme, &told[0].id, None).await.unwrap();
    let (store, slices) = (app.parts.telemetry.clone(), &app.parts.slices);
    let again = Skipped::new(store, slices.alerts.clone(), slices.tenants.clone(), app.clock.clone());
    assert_eq!((again.pass().await.unwrap(), again.positions()), (1, 8), "the second range, to acme");
    assert_eq!(list().await.len(), 2);
}
