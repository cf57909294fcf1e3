use crate::devices::directory::Change;
use crate::platform::config::Config;
use crate::tenants::Permission;
use crate::testing::{Answer, As, START_US, TestApp, send};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::{Value, json};

mod approval;
mod batch;
mod renewal;

pub(super) const CLAIMS: &str = "/api/v1/tenants/acme/claims";
pub(super) const DEVICES: &str = "/api/v1/tenants/acme/devices";

pub(super) struct Fleet {
    pub(super) app: TestApp,
    token: String,
}

impl Fleet {
    pub(super) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let app = TestApp::start_with(change).await;
        let acme = app.tenant("acme").await;
        let scopes = [Permission::DevicesRead, Permission::DevicesWrite, Permission::DevicesOperate];
        let token = app.token(&acme, &scopes).await;
        Self { app, token }
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = (!body.is_null()).then_some(body);
        self.app.call(As::Token(&self.token), method, path, body).await
    }

    /// Makes a claim; gives its secret.
    pub(super) async fn claim(&self, body: Value) -> String {
        let made = self.call("POST", CLAIMS, body).await.expect(201);
        made["claim"].as_str().unwrap().split(':').nth(3).unwrap().to_owned()
    }

    pub(super) async fn enroll(&self, token: &str, csr: &str, name: Option<&str>) -> Answer {
        let body = json!({ "claim_token": token, "csr_pem": csr, "device_name": name });
        send(&self.app.enroll, As::Nobody, "POST", "/api/v1/enroll", Some(body)).await
    }

    fn enabled(&self, device: &str) -> Option<bool> {
        self.app.parts.directory.lookup("acme", device).map(|auth| auth.enabled)
    }
}

fn csr_of(key: &KeyPair) -> String {
    CertificateParams::new(vec![]).unwrap().serialize_request(key).unwrap().pem().unwrap()
}

pub(super) fn csr() -> String {
    csr_of(&KeyPair::generate().unwrap())
}

#[tokio::test]
async fn a_claim_becomes_a_certificate_of_the_device() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "labels": { "site": "berlin" } })).await;
    let got = fleet.enroll(&claim, &csr(), Some("pump-1")).await.expect(201);
    assert_eq!((&got["tenant"], &got["device"]), (&json!("acme"), &json!("pump-1")));
    assert_eq!((&got["mqtt_host"], &got["mqtt_port"]), (&json!("localhost"), &json!(8883)));
    let pem =
        x509_parser::pem::parse_x509_pem(got["certificate_pem"].as_str().unwrap().as_bytes()).unwrap().1;
    let leaf = pem.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(format!("{:?}", names.value).contains("muster://acme/pump-1"), "{names:?}");
    assert_eq!(leaf.validity().not_after.timestamp(), START_US / 1_000_000 + 90 * 86_400);
    let ca = x509_parser::pem::parse_x509_pem(got["ca_pem"].as_str().unwrap().as_bytes()).unwrap().1;
    let ca = ca.parse_x509().unwrap();
    assert_eq!(leaf.issuer(), ca.subject());
    assert!(ca.is_ca() && !leaf.is_ca());
    let device = fleet.call("GET", &format!("{DEVICES}/pump-1"), Value::Null).await.expect(200);
    assert_eq!(device["labels"], json!({ "site": "berlin" }));
    let listed = fleet.call("GET", &format!("{DEVICES}/pump-1/certificates"), Value::Null).await.expect(200);
    assert_eq!(listed["items"][0]["serial"], hex::encode(leaf.raw_serial()));
    assert_eq!(fleet.enabled("pump-1"), Some(true));
}

#[tokio::test]
async fn the_same_key_may_ask_again_and_another_may_not() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({})).await;
    let first_csr = csr();
    let first = fleet.enroll(&claim, &first_csr, None).await.expect(201);
    let again = fleet.enroll(&claim, &first_csr, None).await.expect(201);
    assert_eq!(first, again, "a lost reply is repeated word for word");
    fleet.enroll(&claim, &csr(), None).await.refused("claim_spent", None);
    let listed = fleet.call("GET", CLAIMS, Value::Null).await.expect(200);
    assert_eq!(listed["items"][0]["uses"], 1);
    // Once the device is gone, the repeat gives nothing back.
    let path = format!("{DEVICES}/{}", first["device"].as_str().unwrap());
    fleet.call("DELETE", &path, Value::Null).await.expect(204);
    fleet.enroll(&claim, &first_csr, None).await.refused("claim_spent", None);
}

#[tokio::test]
async fn wrong_late_and_malformed_enrolments_are_told_apart() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "life_s": 60, "uses_max": 9 })).await;
    fleet.enroll("mcl_wrong", &csr(), None).await.refused("unauthenticated", None);
    let bad = fleet.enroll(&claim, "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", None).await;
    bad.refused("invalid_argument", Some("csr_pem"));
    fleet.enroll(&claim, &"x".repeat(9_000), None).await.refused("invalid_argument", Some("csr_pem"));
    let other_curve = csr_of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    fleet.enroll(&claim, &other_curve, None).await.refused("invalid_argument", Some("csr_pem"));
    fleet.enroll(&claim, &csr(), Some("a/b")).await.refused("invalid_argument", Some("device_name"));
    fleet.enroll(&claim, &csr(), Some("pump")).await.expect(201);
    fleet.enroll(&claim, &csr(), Some("pump")).await.refused("conflict", None);
    fleet.app.clock.advance_us(60_000_000);
    fleet.enroll(&claim, &csr(), None).await.refused("claim_spent", None);
}

#[tokio::test]
async fn guessing_claims_is_slowed_down() {
    let fleet = Fleet::start().await;
    for _ in 0..60 {
        fleet.enroll("mcl_wrong", &csr(), None).await.refused("unauthenticated", None);
    }
    fleet.enroll("mcl_wrong", &csr(), None).await.refused("rate_limited", None);
}

#[tokio::test]
async fn a_claim_that_names_a_device_gives_it_a_new_key_and_ends_the_old() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "device": "pump" })).await;
    fleet.enroll(&claim, &csr(), Some("valve")).await.refused("invalid_argument", Some("device_name"));
    fleet.enroll(&claim, &csr(), None).await.expect(201);
    let old = fleet.call("GET", &format!("{DEVICES}/pump/certificates"), Value::Null).await.expect(200);
    let old = hex::decode(old["items"][0]["serial"].as_str().unwrap()).unwrap();
    assert!(!fleet.app.parts.directory.is_cert_revoked(&old));
    let claim = fleet.claim(json!({ "device": "pump" })).await;
    fleet.enroll(&claim, &csr(), None).await.expect(201);
    assert!(fleet.app.parts.directory.is_cert_revoked(&old));
    let twice = fleet.call("POST", CLAIMS, json!({ "device": "pump", "uses_max": 2 })).await;
    twice.refused("invalid_argument", Some("uses_max"));
}

#[tokio::test]
async fn a_disabled_device_is_out_before_the_answer() {
    let fleet = Fleet::start().await;
    fleet.call("POST", DEVICES, json!({ "id": "pump" })).await.expect(201);
    let mut changes = fleet.app.parts.directory.subscribe_changes();
    let pump = format!("{DEVICES}/pump");
    fleet.call("PATCH", &pump, json!({ "enabled": false })).await.expect(200);
    assert_eq!(fleet.enabled("pump"), Some(false));
    assert!(matches!(changes.try_recv(), Ok(Change::Device { device, .. }) if device.as_str() == "pump"));
    let claim = fleet.claim(json!({ "device": "pump" })).await;
    fleet.enroll(&claim, &csr(), None).await.refused("permission_denied", None);
    fleet.call("PATCH", &pump, json!({ "enabled": true })).await.expect(200);
    fleet.enroll(&claim, &csr(), None).await.expect(201);
    fleet.call("DELETE", &pump, Value::Null).await.expect(204);
    assert_eq!(fleet.enabled("pump"), None);
    fleet.call("GET", &pump, Value::Null).await.refused("not_found", None);
}

#[tokio::test]
async fn a_device_token_comes_and_goes_and_a_certificate_is_revoked() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({})).await;
    fleet.enroll(&claim, &csr(), Some("pump")).await.expect(201);
    let token = fleet.call("POST", &format!("{DEVICES}/pump/token"), Value::Null).await.expect(201);
    assert_eq!(token["username"], "acme/pump");
    let hash = crate::platform::secret::token_sha256(token["token"].as_str().unwrap());
    let auth = || fleet.app.parts.directory.lookup("acme", "pump").unwrap();
    assert_eq!(auth().token_sha256, Some(hash));
    fleet.call("DELETE", &format!("{DEVICES}/pump/token"), Value::Null).await.expect(204);
    assert_eq!(auth().token_sha256, None);
    let listed = fleet.call("GET", &format!("{DEVICES}/pump/certificates"), Value::Null).await.expect(200);
    let serial = listed["items"][0]["serial"].as_str().unwrap().to_owned();
    let revoke = |device: &str| format!("{DEVICES}/{device}/certificates/{serial}/revoke");
    fleet.call("POST", &revoke("other"), Value::Null).await.refused("not_found", None);
    fleet.call("POST", &revoke("pump"), Value::Null).await.expect(200);
    assert!(fleet.app.parts.directory.is_cert_revoked(&hex::decode(&serial).unwrap()));
}

#[tokio::test]
async fn a_device_has_bounds() {
    let fleet = Fleet::start().await;
    let many: serde_json::Map<_, _> = (0..33).map(|at| (format!("k{at}"), json!("v"))).collect();
    let create = |body| fleet.call("POST", DEVICES, body);
    create(json!({ "id": "pump", "labels": many })).await.refused("invalid_argument", Some("labels"));
    create(json!({ "id": "pump", "labels": { "Site": "x" } }))
        .await
        .refused("invalid_argument", Some("labels.Site"));
    create(json!({ "id": "a/b" })).await.refused("invalid_argument", Some("id"));
    create(json!({ "id": "pump", "name": "x".repeat(129) })).await.refused("invalid_argument", Some("name"));
    create(json!({ "id": "pump" })).await.expect(201);
    create(json!({ "id": "pump" })).await.refused("conflict", None);
}

#[tokio::test]
async fn a_tenant_has_quotas() {
    let app = TestApp::start_with(|config| {
        config.quota.devices_max = 1;
        config.quota.claims_max = 1;
    })
    .await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, &[Permission::DevicesRead, Permission::DevicesWrite]).await;
    let fleet = Fleet { app, token };
    let claim = fleet.claim(json!({ "uses_max": 2 })).await;
    fleet.call("POST", CLAIMS, json!({})).await.refused("rate_limited", None);
    fleet.enroll(&claim, &csr(), Some("one")).await.expect(201);
    fleet.enroll(&claim, &csr(), Some("two")).await.refused("rate_limited", None);
    fleet.call("POST", DEVICES, json!({ "id": "two" })).await.refused("rate_limited", None);
    // A deleted one leaves room for one, however it comes.
    fleet.call("DELETE", &format!("{DEVICES}/one"), Value::Null).await.expect(204);
    fleet.call("POST", DEVICES, json!({ "id": "three" })).await.expect(201);
    fleet.call("POST", DEVICES, json!({ "id": "two" })).await.refused("rate_limited", None);
    fleet.enroll(&claim, &csr(), Some("two")).await.refused("rate_limited", None);
    fleet.call("DELETE", &format!("{DEVICES}/three"), Value::Null).await.expect(204);
    fleet.enroll(&claim, &csr(), Some("two")).await.expect(201);
}

#[tokio::test]
async fn a_claim_takes_as_many_keys_as_it_says() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "uses_max": 2 })).await;
    for name in ["one", "two"] {
        fleet.enroll(&claim, &csr(), Some(name)).await.expect(201);
    }
    fleet.enroll(&claim, &csr(), Some("three")).await.refused("claim_spent", None);
    assert_eq!(fleet.enabled("three"), None);
}

mod places;

mod pki {
    use crate::devices::model::CSR_BYTES_MAX;
    use crate::devices::pki::{CsrError, Pki, PkiError, check_csr, rotate};
    use crate::testing::START_US;
    use muster_wire::{DeviceId, TenantId};
    use std::os::unix::fs::PermissionsExt as _;

    fn hosts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_request_of_the_bound_is_read_and_one_byte_more_is_not() {
        let pem = super::csr();
        let padded = |bytes: usize| format!("{pem}{}", "\n".repeat(bytes - pem.len()));
        assert!(check_csr(&padded(CSR_BYTES_MAX)).is_ok());
        let refused = check_csr(&padded(CSR_BYTES_MAX + 1)).err().unwrap();
        assert!(matches!(refused, CsrError::TooLarge), "{refused}");
        assert_eq!(refused.to_string(), "is larger than 8192 bytes");
    }

    #[test]
    fn the_ca_stays_and_the_servers_certificate_follows_its_hosts_and_age() {
        let dir = tempfile::tempdir().unwrap();
        let open = |names: &[&str], now_us| Pki::open(dir.path(), &hosts(names), 90, now_us).unwrap();
        let server = |names: &[&str], now_us| open(names, now_us).server(now_us).unwrap().chain_pem;
        let first = open(&["localhost", "127.0.0.1"], START_US);
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let of_both = first.server(START_US).unwrap();
        assert_eq!(of_both.chain_pem, server(&["127.0.0.1", "localhost"], START_US));
        let renamed = server(&["fleet.example"], START_US);
        assert_ne!(of_both.chain_pem, renamed);
        assert_eq!(first.ca_spki_sha256(), open(&["fleet.example"], START_US).ca_spki_sha256());
        let day_us = 86_400_000_000;
        assert_eq!(server(&["fleet.example"], START_US + 59 * day_us), renamed);
        assert_ne!(server(&["fleet.example"], START_US + 61 * day_us), renamed);
    }

    #[test]
    fn a_server_certificate_that_devices_would_not_accept_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US).unwrap();
        let own = dir.path().join("server.pem");
        let own_key = dir.path().join("server.key");
        let refused = |now_us, expect: &str| {
            let error = pki.server(now_us).err().expect("it is refused").to_string();
            assert!(error.contains(expect), "{expect}: {error}");
        };
        let take = |from: &std::path::Path, to: &std::path::Path| {
            std::fs::copy(from, to).unwrap();
        };
        let other = tempfile::tempdir().unwrap();
        Pki::open(other.path(), &hosts(&["localhost"]), 90, START_US).unwrap();
        take(&other.path().join("server.pem"), &own);
        refused(START_US, "UnknownIssuer");
        Pki::open(dir.path(), &hosts(&["elsewhere"]), 90, START_US).unwrap();
        refused(START_US, "it is for elsewhere, not for localhost");
        pki.renew_server(START_US).unwrap();
        refused(START_US + 91 * 86_400_000_000, "xpired");
        pki.server(START_US).unwrap();
        take(&other.path().join("server.key"), &own_key);
        refused(START_US, "server.key does not hold a key of the server's certificate");
        std::fs::write(&own_key, "nonsense").unwrap();
        refused(START_US, "server.key does not hold a private key");
        std::fs::write(&own, "nonsense").unwrap();
        refused(START_US, "it is empty");
        std::fs::remove_file(&own).unwrap();
        refused(START_US, "cannot access");
    }

    #[test]
    fn one_authority_follows_another_and_a_crash_between_leaves_both() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US).unwrap();
        let pki = open();
        let (first, first_server) = (pki.ca_spki_sha256(), pki.server(START_US).unwrap());
        let next = pki.rotate(START_US).unwrap();
        assert!(matches!(rotate(dir.path(), START_US), Err(PkiError::UnderWay)), "two at most");
        assert_eq!((pki.ca_spki_sha256(), next.trusted.len()), (first, 2), "claims name the first one still");
        assert_eq!(pki.server(START_US).unwrap().chain_pem, first_server.chain_pem);
        let (tenant, device) = (TenantId::parse("acme").unwrap(), DeviceId::parse("pump").unwrap());
        let signs = |pki: &Pki, now_us| {
            let csr = check_csr(&super::csr()).unwrap();
            pki.sign_device(&csr, &tenant, &device, 3_600, now_us).unwrap().authority
        };
        assert_eq!(signs(&pki, START_US + 59_000_000), hex::encode(first), "not before everybody trusts it");
        assert_eq!(signs(&open(), START_US + 60_000_000), hex::encode(next.signing.key_sha256));
        // As a crash within the retirement leaves it: the new one serves, both are trusted.
        let state = dir.path().join("authorities.json");
        let text = std::fs::read_to_string(&state).unwrap();
        let (old, new) = (hex::encode(first), hex::encode(next.signing.key_sha256));
        std::fs::write(&state, text.replacen(&old, &new, 1)).unwrap();
        assert_eq!(open().server(START_US).unwrap().devices_pem.matches("BEGIN").count(), 2);
        open().retire(START_US).unwrap();
        let after = open();
        assert_eq!((after.ca_spki_sha256(), after.held().trusted.len()), (next.signing.key_sha256, 1));
        assert_ne!(after.server(START_US).unwrap().chain_pem, first_server.chain_pem);
        assert!(!dir.path().join("ca.key").exists(), "the old key is gone");
        after.retire(START_US).unwrap();
        // Another one may follow, and a state that cannot be read is an error, never a new authority.
        after.rotate(START_US).unwrap();
        std::fs::write(&state, text.replace(&old, &"00".repeat(32))).unwrap();
        assert!(Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US).is_err());
        std::fs::write(&state, "nonsense").unwrap();
        let refused = Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US);
        assert!(matches!(refused, Err(PkiError::Content { .. })));
    }

    #[test]
    fn a_damaged_authority_is_an_error_never_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US);
        open().unwrap();
        let key = std::fs::read(dir.path().join("ca.key")).unwrap();
        std::fs::write(dir.path().join("ca.key"), "nonsense").unwrap();
        assert!(matches!(open(), Err(PkiError::Content { .. })));
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(open(), Err(PkiError::Half { .. })));
        std::fs::write(dir.path().join("ca.key"), key).unwrap();
        open().unwrap();
    }

    #[test]
    fn an_authority_whose_making_was_stopped_is_finished_by_the_next_start() {
        for last in ["ca.pem", "ca.key"] {
            let dir = tempfile::tempdir().unwrap();
            let open = || Pki::open(dir.path(), &hosts(&["localhost"]), 90, START_US);
            let made = open().unwrap().ca_spki_sha256();
            let staged = format!("{last}.new");
            assert!(!dir.path().join(&staged).exists());
            // As a crash between the two renames leaves it.
            std::fs::rename(dir.path().join(last), dir.path().join(&staged)).unwrap();
            assert_eq!(open().unwrap().ca_spki_sha256(), made, "{last}");
            assert!(dir.path().join(last).exists());
            // Another authority's half is not taken for it.
            let other = tempfile::tempdir().unwrap();
            Pki::open(other.path(), &hosts(&["localhost"]), 90, START_US).unwrap();
            std::fs::remove_file(dir.path().join(last)).unwrap();
            std::fs::copy(other.path().join(last), dir.path().join(&staged)).unwrap();
            assert!(matches!(open(), Err(PkiError::Half { .. })), "{last}");
        }
    }
}
