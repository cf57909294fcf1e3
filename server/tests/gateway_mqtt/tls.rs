//! Client certificates, and TLS for those without one.

use crate::kit::{
    API_TOKEN, Authority, Client, Hello, Rig, TOKEN, config, device, socket, telemetry, tenant, wait_until,
};
use muster_server::devices::directory::{DeviceAuth, IntegrationToken, token_hash};
use muster_server::gateway::{self, TlsError};
use muster_server::platform::clock::ManualClock;
use rcgen::CertificateParams;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use std::net::TcpStream;
use std::sync::Arc;

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn client_config(
    rig: &Rig,
    certificate: Option<&(String, String)>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(rig.authority.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(gateway::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match certificate {
        None => builder.with_no_client_auth(),
        Some((pem, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    })
}

fn open(rig: &Rig, config: &Arc<ClientConfig>) -> Tls {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), socket(rig.tls()))
}

fn connect(rig: &Rig, certificate: Option<&(String, String)>) -> Client {
    Client::over(Box::new(open(rig, &client_config(rig, certificate, &rustls::version::TLS13))), 5)
}

/// Says nothing of itself but the certificate.
fn bare() -> Hello<'static> {
    Hello { user: None, password: None, ..Hello::device("") }
}

#[test]
fn a_device_is_who_its_certificate_names() {
    let rig = Rig::new();
    let pump = rig.authority.sign(Authority::device_params("muster://acme/pump"), 5);
    let mut client = connect(&rig, Some(&pump));
    // A login beside the certificate is not looked at.
    client.hello(&Hello { user: Some("acme/fan"), ..bare() });
    assert!(rig.gateway.is_connected(&tenant("acme"), &device("pump")));
    assert_eq!(client.publish_acked(1, "muster/acme/pump/up/telemetry", &telemetry(1, &[7; 100_000])), 0);
    assert_eq!(client.publish_acked(1, "muster/acme/fan/up/telemetry", &telemetry(1, b"x")), 0x87);
    assert_eq!(client.subscribe(1, "muster/acme/pump/dn/#", 1), 1);
    rig.gateway
        .deliver(&tenant("acme"), &device("pump"), muster_wire::DownClass::Twin, &[1; 100_000])
        .unwrap();
    assert_eq!(client.message().1.len(), 100_000);
    rig.directory.revoke_cert(&[5]);
    assert_eq!(client.end(), Some(0x98), "a revoked certificate is cut off at once");
    let mut again = connect(&rig, Some(&pump));
    assert_eq!(again.try_hello(&bare()), 0x87);
}

#[test]
fn a_connection_ends_when_its_certificate_or_api_token_does() {
    // 2096-10-02 07:06:40; the certificate lasts five minutes more.
    let start_us = 4_000_000_000_000_000;
    let clock = ManualClock::at(start_us);
    let rig = Rig::with_clock(config(), clock.clone(), |_| {});
    let expires_at_us = Some(start_us + 30_000_000);
    let token = IntegrationToken { tenant: tenant("acme"), token_id: "t1".into(), expires_at_us };
    rig.directory.set_integration(token_hash(API_TOKEN), token);
    let mut params = Authority::device_params("muster://acme/pump");
    params.not_after = rcgen::date_time_ymd(2096, 10, 2) + std::time::Duration::from_secs(7 * 3_600 + 700);
    let mut pump = connect(&rig, Some(&rig.authority.sign(params, 5)));
    pump.hello(&bare());
    let (mut integration, mut fan) = (rig.integration(5), rig.device(5, "acme/fan"));
    clock.advance_us(60_000_000);
    assert_eq!(integration.end(), Some(0x87));
    pump.ping();
    clock.advance_us(400_000_000);
    assert_eq!(pump.end(), Some(0x87));
    fan.ping();
    assert_eq!(rig.metric("gateway_disconnects_total", "expired"), 2);
}

#[test]
fn certificates_that_are_not_good_are_refused_and_counted() {
    let rig = Rig::new();
    let mut bystander = rig.device(5, "acme/bystander");
    let mut expired = Authority::device_params("muster://acme/pump");
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = rig.authority.sign(expired, 6);
    let untrusted = Authority::new().sign(Authority::device_params("muster://acme/pump"), 7);
    for (certificate, reason) in [(&expired, "certificate_expired"), (&untrusted, "certificate_untrusted")] {
        let mut client = connect(&rig, Some(certificate));
        client.try_send(&bare().bytes(5));
        assert_eq!(client.receive(), None, "{reason}");
        rig.wait_metric("gateway_early_ends_total", reason, 1);
        bystander.ping();
    }
    let nameless = rig.authority.sign(CertificateParams::new(vec!["pump".to_owned()]).unwrap(), 8);
    let bad_name = rig.authority.sign(Authority::device_params("muster://acme"), 9);
    let other_scheme = rig.authority.sign(Authority::device_params("https://acme/pump"), 10);
    for certificate in [&nameless, &bad_name, &other_scheme] {
        assert_eq!(connect(&rig, Some(certificate)).try_hello(&bare()), 0x87);
    }
    assert_eq!(rig.metric("gateway_connects_refused_total", "bad_certificate"), 3);
    let unknown = rig.authority.sign(Authority::device_params("muster://acme/unknown"), 11);
    assert_eq!(connect(&rig, Some(&unknown)).try_hello(&bare()), 0x87);
    assert_eq!(connect(&rig, None).try_hello(&bare()), 0x87);
    bystander.ping();
}

#[test]
fn a_token_works_over_tls_1_2_and_1_3() {
    let rig = Rig::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for mqtt in [4, 5] {
            let config = client_config(&rig, None, version);
            let mut client = Client::over(Box::new(open(&rig, &config)), mqtt);
            client.hello(&Hello { password: Some(TOKEN), ..Hello::device("acme/pump") });
            assert_eq!(client.publish_acked(1, "muster/acme/pump/up/senml", b"[]"), 0);
            client.send(&[0xE0, 0]);
            wait_until("the client is gone", || rig.gateway.connections() == 0);
        }
    }
}

#[test]
fn a_resumed_session_is_checked_as_any_other() {
    let rig = Rig::new();
    let pump = rig.authority.sign(Authority::device_params("muster://acme/pump"), 5);
    let config = client_config(&rig, Some(&pump), &rustls::version::TLS13);
    let session = |expect: HandshakeKind, code: u8| {
        let mut tls = open(&rig, &config);
        let hello = bare().bytes(5);
        std::io::Write::write_all(&mut tls, &hello).unwrap();
        let mut connack = [0; 4];
        std::io::Read::read_exact(&mut tls, &mut connack).unwrap();
        assert_eq!(tls.conn.handshake_kind(), Some(expect));
        assert_eq!(connack[3], code);
        drop(tls);
        wait_until("the client is gone", || rig.gateway.connections() == 0);
    };
    session(HandshakeKind::Full, 0);
    session(HandshakeKind::Resumed, 0);
    rig.directory.set_device(
        &tenant("acme"),
        &device("pump"),
        DeviceAuth { enabled: false, token_sha256: None },
    );
    session(HandshakeKind::Resumed, 0x87);
    rig.directory.set_device(
        &tenant("acme"),
        &device("pump"),
        DeviceAuth { enabled: true, token_sha256: None },
    );
    session(HandshakeKind::Resumed, 0);
    rig.directory.revoke_cert(&[5]);
    session(HandshakeKind::Resumed, 0x87);
}

#[test]
fn the_key_exchange_is_the_small_one() {
    let rig = Rig::new();
    let mut tls = open(&rig, &client_config(&rig, None, &rustls::version::TLS13));
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).unwrap();
    }
    let group = tls.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519);
    let groups: Vec<_> = gateway::provider().kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(groups, [rustls::NamedGroup::X25519, rustls::NamedGroup::secp256r1]);
}

#[test]
fn another_server_certificate_is_shown_from_the_next_handshake_on() {
    let rig = Rig::new();
    let mut old = connect(&rig, None);
    old.hello(&Hello { password: Some(TOKEN), ..Hello::device("acme/pump") });
    let shown = |version| {
        let mut tls = open(&rig, &client_config(&rig, None, version));
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        tls.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown(&rustls::version::TLS13);
    let (chain, key) = rig.authority.server();
    rig.certificate.replace(&chain, &key).unwrap();
    let expect = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    assert_ne!(before, expect.as_ref());
    let (_, other_key) = rig.authority.server();
    let refused = rig.certificate.replace(&chain, &other_key).unwrap_err();
    assert!(matches!(refused, TlsError::Certificate(rustls::Error::InconsistentKeys(_))), "{refused:?}");
    assert!(matches!(rig.certificate.replace("", &key), Err(TlsError::Certificate(_))));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert_eq!(shown(version), expect.as_ref());
    }
    old.ping();
}
