//! The whole server in process, on real sockets: a crash and a start on the same data.

use super::App;
use crate::devices::directory::{DeviceAuth, token_hash};
use crate::platform::clock::ManualClock;
use crate::platform::config::{Config, Live};
use crate::platform::http_kit::PageQuery;
use crate::testing::START_US;
use muster_wire::{DeviceId, TenantId, Topic, UpClass};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Long enough for a slow machine; a test that passes never waits for it.
const DEADLINE: Duration = Duration::from_secs(30);
const DAY_US: i64 = 86_400_000_000;

fn tenant() -> TenantId {
    TenantId::parse("default").unwrap()
}

fn config(data_dir: &Path) -> Config {
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

async fn wait_until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "waited too long until {what}");
}

/// Sends an MQTT 3.1.1 packet and reads an answer of `N` bytes.
async fn ask<const N: usize>(
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
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0b1100_0010, 0, 60];
    for part in ["c", &format!("default/{device}"), "secret"] {
        text(&mut body, part);
    }
    assert_eq!(ask(stream, 0x10, &body).await, [0x20, 2, 0, 0], "CONNACK");
}

/// Publishes; once it is acknowledged, all that was logged before is on disk.
async fn publish(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), device: &str) {
    let (mut body, device) = (Vec::new(), DeviceId::parse(device).unwrap());
    text(&mut body, &Topic::up(&tenant(), &device, UpClass::Senml).to_string());
    body.extend_from_slice(&[0, 9]);
    body.extend_from_slice(br#"[{"n":"t","v":1}]"#);
    assert_eq!(ask(stream, 0x32, &body).await, [0x40, 2, 0, 9], "PUBACK");
}

async fn plain(app: &App) -> TcpStream {
    TcpStream::connect(app.addresses.mqtt_plain.unwrap()).await.unwrap()
}

/// What the API tells of a device: none until the store heard of it.
async fn connected(app: &App, device: &str) -> Option<bool> {
    let page = PageQuery::default().page().unwrap();
    let all = app.slices.page.presence.list(&tenant(), &page).await.unwrap();
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
