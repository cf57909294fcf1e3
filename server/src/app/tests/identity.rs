//! Device certificates on real sockets: an expired one is refused by MQTT and renewed on the enrolment listener.

use super::*;
use crate::devices::DevicesError;
use crate::devices::model::{ClaimRequest, Labels};
use crate::devices::service::{DeviceChange, NewDevice, Retire};
use crate::platform::clock::{Clock as _, SystemClock};
use crate::platform::http_kit::Precondition;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

/// A key and the certificate that a claim or a renewal gave.
pub(super) struct Own {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Own {
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        client(Some((&self.certificate, &self.key)))
    }
}

pub(super) fn request() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    (key.serialize_pem(), csr)
}

/// Enrols a device of tenant `default`.
pub(super) async fn enrol(app: &App, id: &str) -> Own {
    let device = Some(DeviceId::parse(id).unwrap());
    let claim = ClaimRequest { device, ..ClaimRequest::default() };
    let tenant = tenant();
    let made =
        app.slices.devices.create_claim(&crate::testing::owner(&tenant), &tenant, claim).await.unwrap();
    let (key, csr) = request();
    let token = made.claim.split(':').nth(3).unwrap();
    let enrolled = app.slices.devices.enroll(token, &csr, None, "test").await.unwrap();
    Own { certificate: enrolled.certificate_pem, key }
}

/// An HTTP request on a TLS stream; gives status and body.
pub(super) async fn post(stream: &mut TlsStream<TcpStream>, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _unclean_end =
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an answer");
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Connects by certificate.
pub(super) async fn hello_by_certificate(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0b0000_0010, 0, 60];
    text(&mut body, "c");
    assert_eq!(ask(stream, 0x10, &body).await, [0x20, 2, 0, 0], "CONNACK");
}

#[tokio::test]
async fn an_expired_certificate_may_renew_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    // TLS goes by the system's time: the certificate ended months before it.
    let now_us = SystemClock.now_us();
    let (app, clock) = start(config(dir.path()), now_us - 200 * DAY_US).await;
    app.slices.tenants.first_start().await.unwrap();
    let (mqtt, enroll) = (app.addresses.mqtt_tls.unwrap(), app.addresses.enroll.unwrap());
    let old = enrol(&app, "valve").await;
    clock.advance_us(200 * DAY_US);
    app.certificates.poll();

    // The handshake's refusal comes with the first read, and names the reason.
    let mut refused = tls_as(mqtt, old.client()).await;
    let error = refused.read_u8().await.unwrap_err().to_string();
    assert!(error.contains("CertificateExpired"), "{error}");

    let (key, csr) = request();
    let ask = json!({ "csr_pem": csr });
    let mut nobody = tls(enroll).await;
    assert_eq!(post(&mut nobody, "/api/v1/renew", &ask).await.0, 401);
    let (status, answer) = post(&mut tls_as(enroll, old.client()).await, "/api/v1/renew", &ask).await;
    assert_eq!(status, 201, "{answer}");
    let again = post(&mut tls_as(enroll, old.client()).await, "/api/v1/renew", &ask).await;
    assert_eq!(again, (status, answer.clone()));
    let renewed = Own { certificate: answer["certificate_pem"].as_str().unwrap().into(), key };
    let mut connected = tls_as(mqtt, renewed.client()).await;
    hello_by_certificate(&mut connected).await;
    ping(&mut connected).await;
    // A stranger's certificate does not get as far as a request.
    let stranger = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![]).unwrap().self_signed(&stranger).unwrap();
    let stranger = Own { certificate: certificate.pem(), key: stranger.serialize_pem() };
    let socket = TcpStream::connect(enroll).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    if let Ok(mut stream) = TlsConnector::from(stranger.client()).connect(name, socket).await {
        assert!(stream.read_u8().await.is_err(), "its handshake is refused");
    }
    app.stop().await;
}

/// Waits until the server closes the connection; a test that passes never waits for the deadline, and the minute's look
/// at every connection would come after it.
async fn is_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
    ended.expect("the connection is closed").map(drop).unwrap_or(());
}

#[tokio::test]
async fn who_may_connect_no_longer_is_disconnected_at_once_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (app, _) = start(config(dir.path()), SystemClock.now_us()).await;
    app.slices.tenants.first_start().await.unwrap();
    let (devices, tenant) = (&app.slices.devices, tenant());
    let me = crate::testing::owner(&tenant);
    let id = |id: &str| DeviceId::parse(id).unwrap();
    let mqtt = app.addresses.mqtt_tls.unwrap();
    let mut bystander = tls_as(mqtt, enrol(&app, "bystander").await.client()).await;
    hello_by_certificate(&mut bystander).await;

    let mut names = Vec::new();
    for name in ["disabled", "deleted", "revoked", "reenrolled"] {
        let mut stream = tls_as(mqtt, enrol(&app, name).await.client()).await;
        hello_by_certificate(&mut stream).await;
        names.push((name, stream));
    }
    for (name, mut stream) in names {
        match name {
            "disabled" => {
                let change = DeviceChange { enabled: Some(false), ..DeviceChange::default() };
                devices.change(&me, &tenant, &id(name), change).await.map(drop).unwrap();
            }
            "deleted" => devices.delete(&me, &tenant, &id(name), &Precondition::None).await.unwrap(),
            "revoked" => {
                let page = PageQuery::default().page().unwrap();
                let of = devices.certificates(&tenant, &id(name), &page).await.unwrap();
                let serial = of[0].serial.clone();
                devices.revoke_certificate(&me, &tenant, &id(name), serial).await.map(drop).unwrap();
            }
            _ => drop(enrol(&app, name).await),
        }
        is_closed(&mut stream).await;
    }
    // A token that was replaced, or taken away.
    for name in ["replaced", "taken"] {
        let new = NewDevice { device: id(name), name: String::new(), labels: Labels::new(), profile: None };
        devices.create(&me, &tenant, new).await.unwrap();
        let token = devices.create_token(&me, &tenant, &id(name)).await.unwrap();
        let mut stream = plain(&app).await;
        hello_with(&mut stream, name, &token).await;
        match name {
            "replaced" => drop(devices.create_token(&me, &tenant, &id(name)).await.unwrap()),
            _ => devices.delete_token(&me, &tenant, &id(name)).await.unwrap(),
        }
        is_closed(&mut stream).await;
    }
    ping(&mut bystander).await;
    app.stop().await;
}

/// Renews on the enrolment listener.
async fn renew(app: &App, own: &Own) -> Own {
    let (key, csr) = request();
    let mut stream = tls_as(app.addresses.enroll.unwrap(), own.client()).await;
    let (status, answer) = post(&mut stream, "/api/v1/renew", &json!({ "csr_pem": csr })).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(answer["ca_pem"].as_str().unwrap().matches("BEGIN").count(), 2, "it learns both authorities");
    Own { certificate: answer["certificate_pem"].as_str().unwrap().into(), key }
}

/// Whether a certificate gets past the handshake.
async fn is_trusted(app: &App, own: &Own) -> bool {
    let mut stream = tls_as(app.addresses.mqtt_tls.unwrap(), own.client()).await;
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 0b0000_0010, 0, 60];
    text(&mut body, "c");
    let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
    packet.extend_from_slice(&body);
    let _refused = stream.write_all(&packet).await;
    stream.read_u8().await.is_ok()
}

#[tokio::test]
async fn authorities_follow_each_other_while_connections_stay_up() {
    let dir = tempfile::tempdir().unwrap();
    let (app, clock) = start(config(dir.path()), SystemClock.now_us()).await;
    app.slices.tenants.first_start().await.unwrap();
    let (devices, mqtt) = (&app.slices.devices, app.addresses.mqtt_tls.unwrap());
    let me = crate::testing::owner(&tenant());
    let (held, old) = (enrol(&app, "held").await, enrol(&app, "old").await);
    let mut connected = vec![tls_as(mqtt, held.client()).await];
    hello_by_certificate(&mut connected[0]).await;
    let first = leaf(&connected[0]);

    let listed = devices.rotate_authority(&me).await.unwrap();
    assert_eq!((listed.len(), listed[0].devices, listed[1].devices), (2, 2, 0));
    assert!(devices.rotate_authority(&me).await.is_err(), "one at a time");
    app.certificates.poll();
    let soon = devices.retire_authority(&me, Retire::Anyway).await.unwrap_err().to_string();
    assert!(soon.contains("try again in a minute"), "{soon}");
    clock.advance_us(61_000_000);
    let (new, held_new) = (enrol(&app, "new").await, enrol(&app, "held-new").await);
    let mut stream = tls_as(mqtt, held_new.client()).await;
    assert_eq!(leaf(&stream), first, "the server's own certificate stays");
    hello_by_certificate(&mut stream).await;
    connected.push(stream);
    assert!(is_trusted(&app, &old).await);

    // The server's certificate is another one meanwhile, by a command beside it.
    let hosts = app.slices.config.get().pki.hosts.clone();
    Pki::open(&dir.path().join("pki"), &hosts, 365, clock.now_us())
        .unwrap()
        .renew_server(clock.now_us())
        .unwrap();
    assert!(app.certificates.reload().unwrap());
    let second = leaf(&tls(mqtt).await);
    assert_ne!(second, first);

    let used = devices.retire_authority(&me, Retire::Unused).await.unwrap_err();
    assert!(matches!(used, DevicesError::AuthorityInUse { devices: 2, claims: 0 }), "{used}");
    let renewed = renew(&app, &old).await;
    renew(&app, &held).await;
    let listed = devices.retire_authority(&me, Retire::Unused).await.unwrap();
    assert_eq!((listed.len(), listed[0].devices, listed[0].serves, listed[0].signs), (1, 4, true, true));
    app.certificates.poll();
    let third = leaf(&tls(mqtt).await);
    assert!(third != second && third == in_file(&app));
    assert!(!is_trusted(&app, &old).await, "the old authority's certificates come no more");
    assert!(is_trusted(&app, &renewed).await && is_trusted(&app, &new).await);
    // Nobody was disconnected by any of it, on a certificate of either authority.
    for stream in &mut connected {
        ping(stream).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn connections_outlive_rotation_retirement_and_reload_but_not_a_forced_end() {
    let dir = tempfile::tempdir().unwrap();
    let (app, clock) = start(config(dir.path()), SystemClock.now_us()).await;
    app.slices.tenants.first_start().await.unwrap();
    let (devices, mqtt) = (&app.slices.devices, app.addresses.mqtt_tls.unwrap());
    let me = crate::testing::owner(&tenant());
    let mut held = Vec::new();
    for id in ["renews", "lags"] {
        let own = enrol(&app, id).await;
        let mut stream = tls_as(mqtt, own.client()).await;
        hello_by_certificate(&mut stream).await;
        held.push((own, stream));
    }
    let (mut lags, (own, mut renews)) = (held.pop().unwrap().1, held.pop().unwrap());
    devices.rotate_authority(&me).await.unwrap();
    app.certificates.poll();
    clock.advance_us(61_000_000);
    renew(&app, &own).await;
    app.certificates.apply();
    ping(&mut renews).await;
    ping(&mut lags).await;
    let used = devices.retire_authority(&me, Retire::Unused).await.unwrap_err().to_string();
    assert!(used.starts_with("1 devices"), "{used}");
    ping(&mut lags).await;
    devices.retire_authority(&me, Retire::Anyway).await.unwrap();
    app.certificates.poll();
    is_closed(&mut lags).await;
    is_closed(&mut renews).await;
    app.stop().await;
}

#[tokio::test]
async fn presence_tells_why_a_device_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (app, _) = start(config(dir.path()), START_US).await;
    let row = async |device: &str| {
        let page = PageQuery::default().page().unwrap();
        let all = app.page.presence.list(&tenant(), &page).await.unwrap();
        let found = all.into_iter().find(|row| row.device == device);
        found.and_then(|row| Some((row.presence?.connected, row.reason)))
    };
    let mut pump = plain(&app).await;
    hello(&mut pump, "pump").await;
    wait_until("pump is connected", || async { row("pump").await == Some((true, None)) }).await;
    pump.write_all(&[0xE0, 0]).await.unwrap();
    wait_until("pump left", || async { row("pump").await == Some((false, Some("goodbye"))) }).await;
    let mut fan = plain(&app).await;
    hello(&mut fan, "fan").await;
    wait_until("fan is connected", || async { row("fan").await == Some((true, None)) }).await;
    app.directory.remove_device(&tenant(), &DeviceId::parse("fan").unwrap());
    wait_until("fan was cut off", || async { row("fan").await == Some((false, Some("disabled"))) }).await;
    app.stop().await;
}
