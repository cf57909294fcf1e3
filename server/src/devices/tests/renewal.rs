//! Renewal in process, on the manual clock: who may, who may not, and what is kept.

use super::{CLAIMS, DEVICES, Fleet, csr};
use crate::devices::pki::check_csr;
use crate::platform::http_kit::PeerCertificate;
use crate::tenants::Permission;
use crate::testing::{Answer, As, raw, send};
use axum::body::Body;
use axum::http::Request;
use muster_wire::{DeviceId, TenantId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

const DAY_US: i64 = 86_400_000_000;

fn certificate(answer: &Value) -> PeerCertificate {
    let pem = answer["certificate_pem"].as_str().unwrap();
    PeerCertificate(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
}

impl Fleet {
    /// A device that enrols with a claim of its own.
    async fn with_certificate(&self, id: &str) -> PeerCertificate {
        let claim = self.claim(json!({ "device": id })).await;
        certificate(&self.enroll(&claim, &csr(), None).await.expect(201))
    }

    async fn renew(&self, peer: &PeerCertificate, csr: &str) -> Answer {
        let request = Request::post("/api/v1/renew").header("content-type", "application/json");
        let request = request.extension(peer.clone());
        let body = Body::from(json!({ "csr_pem": csr }).to_string());
        raw(&self.app.enroll, request.body(body).unwrap()).await
    }

    async fn certificates(&self, device: &str) -> Vec<Value> {
        let path = format!("{DEVICES}/{device}/certificates");
        let listed = self.call("GET", &path, Value::Null).await.expect(200);
        listed["items"].as_array().unwrap().clone()
    }

    /// Lets days go by; the operator's token is a new one then.
    async fn days(&mut self, days: i64) {
        self.app.clock.advance_us(days * DAY_US);
        let scopes = [Permission::DevicesRead, Permission::DevicesWrite, Permission::DevicesOperate];
        self.token = self.app.token(&TenantId::parse("acme").unwrap(), &scopes).await;
    }
}

fn serial(peer: &PeerCertificate) -> String {
    crate::devices::pki::DeviceName::read(&peer.0).unwrap().serial
}

#[tokio::test]
async fn months_past_its_end_a_certificate_renews_once_for_one_key() {
    let mut fleet = Fleet::start().await;
    let old = fleet.with_certificate("pump").await;
    fleet.days(300).await;
    let next_csr = csr();
    let answer = fleet.renew(&old, &next_csr).await.expect(201);
    assert_eq!((&answer["tenant"], &answer["device"]), (&json!("acme"), &json!("pump")));
    assert_eq!((&answer["mqtt_port"], &answer["enroll_port"]), (&json!(8883), &json!(8443)));
    let life_us = answer["expires_at_us"].as_i64().unwrap() - answer["server_time_us"].as_i64().unwrap();
    assert_eq!(life_us, 90 * DAY_US);
    let next = certificate(&answer);
    let (_, parsed) = x509_parser::parse_x509_certificate(&next.0).unwrap();
    assert_eq!(
        parsed.validity().not_after.timestamp(),
        answer["expires_at_us"].as_i64().unwrap() / 1_000_000
    );
    assert_eq!(
        fleet.renew(&old, &next_csr).await.expect(201),
        answer,
        "a lost reply is repeated word for word"
    );
    let other = fleet.renew(&old, &csr()).await;
    other.refused("permission_denied", None);
    assert!(other.text.contains("renewed for another key"), "{}", other.text);
    assert_eq!(fleet.certificates("pump").await.len(), 2);
    // The chain goes on from what followed; a repeat is good as long as that is.
    fleet.days(60).await;
    let third = certificate(&fleet.renew(&next, &csr()).await.expect(201));
    let path = format!("{DEVICES}/pump/certificates/{}/revoke", serial(&third));
    fleet.call("POST", &path, Value::Null).await.expect(200);
    fleet.renew(&next, &csr()).await.refused("permission_denied", None);
    fleet.renew(&third, &csr()).await.refused("permission_denied", None);
    fleet.renew(&old, &next_csr).await.refused("permission_denied", None);
}

#[tokio::test]
async fn a_reply_that_was_lost_for_months_is_signed_again() {
    let mut fleet = Fleet::start().await;
    let old = fleet.with_certificate("pump").await;
    fleet.days(80).await;
    let next_csr = csr();
    let lost = fleet.renew(&old, &next_csr).await.expect(201);
    for _ in 0..2 {
        fleet.days(100).await;
        let answer = fleet.renew(&old, &next_csr).await.expect(201);
        assert_ne!(answer["certificate_pem"], lost["certificate_pem"]);
        let life_us = answer["expires_at_us"].as_i64().unwrap() - answer["server_time_us"].as_i64().unwrap();
        assert_eq!(life_us, 90 * DAY_US, "good from now on");
        assert_eq!(fleet.renew(&old, &next_csr).await.expect(201), answer, "and repeated while it is good");
        assert_eq!(fleet.renew(&certificate(&lost), &next_csr).await.expect(201), answer);
        fleet.renew(&old, &csr()).await.refused("permission_denied", None);
    }
    // The device goes on from what followed: a copy of its old files gets nothing any more.
    let now = certificate(&fleet.renew(&old, &next_csr).await.expect(201));
    fleet.days(89).await;
    fleet.renew(&now, &csr()).await.expect(201);
    fleet.days(2).await;
    fleet.renew(&old, &next_csr).await.refused("permission_denied", None);
}

#[tokio::test]
async fn what_counts_no_longer_is_refused_and_says_why() {
    let mut fleet = Fleet::start().await;
    let names = ["off", "revoked", "deleted", "again", "taken"];
    let mut old = Vec::new();
    for name in names {
        old.push(fleet.with_certificate(name).await);
    }
    let path = format!("{DEVICES}/revoked/certificates/{}/revoke", serial(&old[1]));
    fleet.call("POST", &path, Value::Null).await.expect(200);
    fleet.days(300).await;
    fleet.call("PATCH", &format!("{DEVICES}/off"), json!({ "enabled": false })).await.expect(200);
    for name in ["deleted", "again"] {
        fleet.call("DELETE", &format!("{DEVICES}/{name}"), Value::Null).await.expect(204);
    }
    // Neither a new device of the same name nor a new key leaves the old certificate, expired as it is, of use.
    fleet.call("POST", DEVICES, json!({ "id": "again" })).await.expect(201);
    fleet.with_certificate("taken").await;
    let whys = ["disabled", "was revoked", "is of no device", "was revoked", "was revoked"];
    for ((name, old), why) in names.iter().zip(&old).zip(whys) {
        let answer = fleet.renew(old, &csr()).await;
        answer.refused("permission_denied", None);
        assert!(answer.text.contains(why), "{name}: {}", answer.text);
    }
    fleet.call("PATCH", &format!("{DEVICES}/off"), json!({ "enabled": true })).await.expect(200);
    fleet.renew(&old[0], &csr()).await.expect(201);
}

#[tokio::test]
async fn renewal_needs_a_registered_certificate_and_a_good_request() {
    let fleet = Fleet::start().await;
    let old = fleet.with_certificate("pump").await;
    let body = json!({ "csr_pem": csr() });
    let nobody = send(&fleet.app.enroll, As::Nobody, "POST", "/api/v1/renew", Some(body)).await;
    nobody.refused("unauthenticated", None);
    // Signed by our authority, and in no registry: a restored backup, or a key that was stolen.
    let (tenant, device) = (TenantId::parse("acme").unwrap(), DeviceId::parse("pump").unwrap());
    let (pki, now_us) = (&fleet.app.parts.pki, crate::testing::START_US);
    let signed = pki.sign_device(&check_csr(&csr()).unwrap(), &tenant, &device, 86_400, now_us).unwrap();
    let unknown = certificate(&json!({ "certificate_pem": signed.pem }));
    fleet.renew(&unknown, &csr()).await.refused("permission_denied", None);
    // Of its own device only: the serial alone is not enough.
    let authority = PeerCertificate(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap());
    fleet.renew(&authority, &csr()).await.refused("permission_denied", None);
    fleet.renew(&old, "nonsense").await.refused("invalid_argument", Some("csr_pem"));
    let young = fleet.renew(&old, &csr()).await;
    young.refused("rate_limited", None);
    assert_eq!(young.headers["retry-after"], "61");
    fleet.app.clock.advance_us(60_000_000);
    fleet.renew(&old, &csr()).await.expect(201);
    assert!(fleet.call("GET", CLAIMS, Value::Null).await.expect(200)["items"][0]["uses"] == 1);
}

#[tokio::test]
async fn certificates_of_a_deleted_device_are_forgotten_after_their_end() {
    let mut fleet = Fleet::start().await;
    for id in ["gone", "stays"] {
        fleet.with_certificate(id).await;
    }
    fleet.call("DELETE", &format!("{DEVICES}/gone"), Value::Null).await.expect(204);
    let acme = TenantId::parse("acme").unwrap();
    let devices = fleet.app.parts.slices.devices.clone();
    fleet.days(119).await;
    assert_eq!(devices.prune(&acme, 0).await.unwrap(), 0);
    fleet.days(1).await;
    assert_eq!(devices.prune(&acme, 0).await.unwrap(), 1);
    assert_eq!(fleet.certificates("stays").await.len(), 1);
}

#[tokio::test]
async fn years_of_renewals_leave_a_few_certificates() {
    let mut fleet = Fleet::start().await;
    let mut now = fleet.with_certificate("pump").await;
    for _ in 0..20 {
        fleet.days(60).await;
        now = certificate(&fleet.renew(&now, &csr()).await.expect(201));
    }
    let kept = fleet.certificates("pump").await;
    assert!(kept.len() <= 3, "of 90 days and 30 more: {}", kept.len());
    assert!(kept.iter().any(|row| row["serial"] == serial(&now).as_str()));
}
