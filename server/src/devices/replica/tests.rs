use super::*;
use crate::devices::service::Retire;
use crate::devices::tests::{CLAIMS, DEVICES, Fleet, csr};
use crate::platform::db::Db;
use crate::tenants::Permission;
use crate::tenants::audit::AuditEntry;
use crate::testing::{As, START_US};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

const TOKENS_PATH: &str = "/api/v1/tenants/acme/api-tokens";

/// A server, and the directory of a process that follows its registry.
struct Pair {
    fleet: Fleet,
    admin: String,
    replica: Replica,
}

impl Pair {
    async fn start() -> Self {
        let fleet = Fleet::start().await;
        let acme = TenantId::parse("acme").unwrap();
        let scopes = [Permission::TokensRead, Permission::TokensWrite, Permission::MqttSubscribe];
        let admin = fleet.app.token(&acme, &scopes).await;
        let data_dir = fleet.app.parts.slices.config.get().data_dir.clone();
        let clock: SharedClock = fleet.app.clock.clone();
        let replica = Replica::open(&data_dir, clock, Arc::default()).unwrap();
        let pair = Self { fleet, admin, replica };
        pair.assert_equal("at the start");
        pair
    }

    fn db(&self) -> &Db {
        &self.fleet.app.parts.rules.db
    }

    async fn by_hand(&self, sql: &'static str) {
        let changed = self.db().write(move |tx| tx.execute(&Scope::System("test"), sql, &[])).await;
        assert_eq!(changed.unwrap(), 1, "{sql}");
    }

    /// Looks at changes; gives how many the chains named.
    fn look(&mut self) -> usize {
        let seen = self.replica.look(Look::Changes).unwrap();
        assert_eq!(seen.compared, None);
        seen.named.unwrap()
    }

    #[track_caller]
    fn assert_equal(&self, when: &str) {
        assert_eq!(*self.replica.directory, *self.fleet.app.parts.directory, "{when}");
    }

    async fn subscriber(&self) -> Value {
        let body = json!({ "name": "x", "scopes": ["mqtt:subscribe"], "days": 1 });
        self.fleet.app.call(As::Token(&self.admin), "POST", TOKENS_PATH, Some(body)).await.expect(201)
    }

    async fn end_subscriber(&self, token: &Value) {
        let path = format!("{TOKENS_PATH}/{}", token["api_token"]["id"].as_str().unwrap());
        self.fleet.app.call(As::Token(&self.admin), "DELETE", &path, None).await.expect(204);
    }
}

#[tokio::test]
async fn each_change_that_shuts_out_or_lets_in_is_seen_by_the_next_look() {
    let mut pair = Pair::start().await;
    let call = async |pair: &Pair, method: &str, path: &str, body: Value, status: u16| {
        pair.fleet.call(method, &format!("{DEVICES}{path}"), body).await.expect(status)
    };
    assert_eq!(pair.look(), 0);
    call(&pair, "POST", "", json!({ "id": "pump" }), 201).await;
    assert_eq!(pair.replica.directory.lookup("acme", "pump"), None, "not before a look");
    assert_eq!(pair.look(), 1);
    pair.assert_equal("a new device");
    for (method, path, body, status) in [
        ("POST", "/pump/token", Value::Null, 201),
        ("POST", "/pump/token", Value::Null, 201),
        ("PATCH", "/pump", json!({ "enabled": false }), 200),
        ("PATCH", "/pump", json!({ "enabled": true, "name": "Pump" }), 200),
        ("DELETE", "/pump/token", Value::Null, 204),
        ("DELETE", "/pump", Value::Null, 204),
    ] {
        call(&pair, method, path, body, status).await;
        assert_eq!(pair.look(), 1, "{method} {path}");
        pair.assert_equal(path);
    }
    let claim = pair.fleet.claim(json!({ "device": "pump" })).await;
    pair.fleet.enroll(&claim, &csr(), None).await.expect(201);
    // The claim's row names nothing that the directory holds.
    assert_eq!(pair.look(), 2);
    pair.assert_equal("an enrolled device");
    let claim = pair.fleet.claim(json!({ "device": "pump" })).await;
    pair.fleet.enroll(&claim, &csr(), None).await.expect(201);
    pair.look();
    pair.assert_equal("another key for it");
    let listed = call(&pair, "GET", "/pump/certificates", Value::Null, 200).await;
    for found in listed["items"].as_array().unwrap() {
        let serial = found["serial"].as_str().unwrap();
        call(&pair, "POST", &format!("/pump/certificates/{serial}/revoke"), Value::Null, 200).await;
        pair.look();
        pair.assert_equal("a revoked certificate");
        assert!(pair.replica.directory.is_cert_revoked(&hex::decode(serial).unwrap()));
    }
    let token = pair.subscriber().await;
    pair.look();
    pair.assert_equal("a token that may subscribe");
    pair.end_subscriber(&token).await;
    pair.look();
    pair.assert_equal("it is gone");
    pair.fleet.app.tenant("new").await;
    pair.look();
    pair.assert_equal("another tenant");
    pair.by_hand("UPDATE tenants SET name = 'x' WHERE tenant = 'new'").await;
    assert_eq!(pair.look(), 0, "a commit that concerns nobody");
    assert_eq!(pair.replica.look(Look::Everything).unwrap(), Seen { named: Some(0), compared: Some(0) });
}

#[tokio::test]
async fn the_end_of_an_authority_is_seen_by_the_next_look() {
    let mut pair = Pair::start().await;
    let claim = pair.fleet.claim(json!({ "device": "pump" })).await;
    pair.fleet.enroll(&claim, &csr(), None).await.expect(201);
    let listed =
        pair.fleet.call("GET", &format!("{DEVICES}/pump/certificates"), Value::Null).await.expect(200);
    let serial = hex::decode(listed["items"][0]["serial"].as_str().unwrap()).unwrap();
    pair.look();
    let (devices, me) =
        (&pair.fleet.app.parts.slices.devices, crate::testing::owner(&TenantId::parse("acme").unwrap()));
    devices.rotate_authority(&me).await.unwrap();
    pair.fleet.app.clock.advance_us(61_000_000);
    devices.retire_authority(&me, Retire::Anyway).await.unwrap();
    assert!(!pair.replica.directory.is_cert_revoked(&serial));
    let seen = pair.replica.look(Look::Changes).unwrap();
    assert_eq!(seen, Seen { named: Some(1), compared: Some(1) });
    assert!(pair.replica.directory.is_cert_revoked(&serial));
    pair.assert_equal("a retired authority");
}

/// One change out of many, at random.
async fn change(pair: &Pair, rng: &mut StdRng, tokens: &mut Vec<Value>) {
    let device = format!("{DEVICES}/d{}", rng.random_range(0..12));
    let call = async |method: &str, path: &str, body: Value| {
        pair.fleet.call(method, path, body).await;
    };
    match rng.random_range(0..9) {
        0 | 1 => call("POST", DEVICES, json!({ "id": device.rsplit('/').next() })).await,
        2 => call("POST", &format!("{device}/token"), Value::Null).await,
        3 => call("DELETE", &format!("{device}/token"), Value::Null).await,
        4 => call("PATCH", &device, json!({ "enabled": rng.random_bool(0.5) })).await,
        5 => call("DELETE", &device, Value::Null).await,
        6 => {
            let claim = pair.fleet.call("POST", CLAIMS, json!({ "device": device.rsplit('/').next() })).await;
            let claim = claim.json["claim"].as_str().unwrap().split(':').nth(3).unwrap().to_owned();
            pair.fleet.enroll(&claim, &csr(), None).await;
        }
        7 => {
            let listed = pair.fleet.call("GET", &format!("{device}/certificates"), Value::Null).await;
            if let Some(serial) = listed.json["items"][0]["serial"].as_str() {
                call("POST", &format!("{device}/certificates/{serial}/revoke"), Value::Null).await;
            }
        }
        _ if tokens.len() < 3 => tokens.push(pair.subscriber().await),
        _ => pair.end_subscriber(&tokens.swap_remove(0)).await,
    }
}

#[tokio::test]
async fn after_any_changes_both_directories_let_the_same_in() {
    let seed = 14;
    let (mut rng, mut tokens) = (StdRng::seed_from_u64(seed), Vec::new());
    let mut pair = Pair::start().await;
    for step in 0..250 {
        change(&pair, &mut rng, &mut tokens).await;
        match rng.random_range(0..8) {
            0..=2 => drop(pair.look()),
            // Nothing is left for the comparison to find.
            3 => assert_eq!(pair.replica.look(Look::Everything).unwrap().compared, Some(0), "{seed} {step}"),
            _ => continue,
        }
        pair.assert_equal(&format!("seed {seed}, step {step}"));
    }
    assert!(pair.replica.directory.device_count() > 0);
}

#[tokio::test]
async fn what_was_changed_without_an_audit_row_is_found_by_the_comparison() {
    let mut pair = Pair::start().await;
    for id in ["pump", "fan", "valve"] {
        pair.fleet.call("POST", DEVICES, json!({ "id": id })).await.expect(201);
    }
    assert_eq!(pair.look(), 3);
    pair.by_hand("UPDATE devices SET enabled = 0 WHERE device = 'pump'").await;
    pair.by_hand("DELETE FROM devices WHERE device = 'fan'").await;
    assert_eq!(pair.look(), 0);
    assert!(pair.replica.directory.lookup("acme", "pump").unwrap().enabled);
    pair.fleet.call("PATCH", &format!("{DEVICES}/valve"), json!({ "enabled": false })).await.expect(200);
    let seen = pair.replica.look(Look::Everything).unwrap();
    assert_eq!(seen, Seen { named: Some(1), compared: Some(2) });
    let enabled = |id: &str| pair.replica.directory.lookup("acme", id).map(|auth| auth.enabled);
    assert_eq!((enabled("pump"), enabled("fan"), enabled("valve")), (Some(false), None, Some(false)));
}

#[tokio::test]
async fn as_many_names_as_the_bound_are_followed_and_one_more_makes_it_compare() {
    let mut pair = Pair::start().await;
    let name = async |pair: &Pair, rows: usize| {
        let write = move |tx: &mut Tx<'_>| {
            let (scope, actor) = (Scope::Tenant(TenantId::parse("acme").unwrap()), "test");
            for _ in 0..rows {
                let (action, detail) = ("device.change", json!({}));
                let entry = AuditEntry { at_us: START_US, actor, action, object: "pump", detail };
                audit::append(tx, &scope, &entry)?;
            }
            Ok::<_, DbError>(())
        };
        pair.db().write(write).await.unwrap();
    };
    name(&pair, NAMED_MAX).await;
    assert_eq!(pair.look(), NAMED_MAX);
    name(&pair, NAMED_MAX + 1).await;
    let seen = pair.replica.look(Look::Changes).unwrap();
    assert_eq!(seen, Seen { named: None, compared: Some(0) });
    assert_eq!(pair.look(), 0, "they are not read again");
}

#[tokio::test]
async fn after_an_error_what_was_known_stays_and_everything_is_read_anew() {
    let mut pair = Pair::start().await;
    pair.fleet.call("POST", DEVICES, json!({ "id": "pump" })).await.expect(201);
    assert_eq!(pair.look(), 1);
    let path = pair.replica.path.clone();
    let moved = path.with_extension("moved");
    std::fs::rename(&path, &moved).unwrap();
    for _ in 0..2 {
        let error = pair.replica.look(Look::Changes).unwrap_err().to_string();
        assert!(error.contains("registry.db: No such file"), "{error}");
        assert!(pair.replica.directory.lookup("acme", "pump").is_some());
    }
    pair.fleet.call("DELETE", &format!("{DEVICES}/pump"), Value::Null).await.expect(204);
    pair.fleet.call("POST", DEVICES, json!({ "id": "fan" })).await.expect(201);
    std::fs::rename(moved, path).unwrap();
    let seen = pair.replica.look(Look::Changes).unwrap();
    assert_eq!(seen, Seen { named: None, compared: Some(2) });
    pair.assert_equal("after the error");
    assert_eq!(pair.look(), 0);
}
