//! Two processes on one PostgreSQL database: everything, and the admin API alone. Real sockets, real notifications.

use super::tests::{DEADLINE, config, hello_with, plain, publish, tenant, wait_until};
use super::{ApiAlone, App, AppError, follow};
use crate::devices::service::Retire;
use crate::http::tests::{Needs, filled, table};
use crate::http::{admin_router, enroll_router};
use crate::platform::clock::ManualClock;
use crate::platform::config::{Config, Live, Role, Roles, Sources};
use crate::platform::live::{Filter, LiveKind};
use crate::tenants::Permission;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::service::TokenRequest;
use crate::testing::{As, START_US, owner, raw, send};
use crate::usage::Quota;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use muster_services::Postgres;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::AsyncReadExt as _;

const DEVICES: &str = "/api/v1/tenants/default/devices";
const RULES: &str = "/api/v1/tenants/default/rules";
const ALERTS: &str = "/api/v1/tenants/default/alerts";
const TOKENS: &str = "/api/v1/tenants/default/api-tokens";

/// The two, with a token of every scope that was made in the full one before the other started.
struct Pair {
    full: App,
    alone: ApiAlone,
    at_full: Router,
    at_alone: Router,
    admin: String,
    server: Postgres,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With another configuration of the one with the API alone.
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let server = Postgres::start().unwrap();
        let url = server.database("registry").unwrap().url;
        let dir = tempfile::tempdir().unwrap();
        let mut of_full = config(&dir.path().join("full"));
        of_full.registry.url = Some(url.parse().unwrap());
        let mut of_alone = config(&dir.path().join("alone"));
        of_alone.registry.url.clone_from(&of_full.registry.url);
        of_alone.roles = Roles::of([Role::Api]);
        change(&mut of_alone);
        let clock = ManualClock::at(START_US);
        let full = App::start(Live::new(of_full), clock.clone()).await.unwrap();
        full.slices.tenants.first_start().await.unwrap().unwrap();
        let admin = token(&full).await;
        let alone = ApiAlone::start(Live::new(of_alone), clock.clone()).await.unwrap();
        let (at_full, at_alone) = (admin_router(&full.slices), admin_router(&alone.slices));
        Self { full, alone, at_full, at_alone, admin, server, clock, dir }
    }

    async fn alone(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let body = (!body.is_null()).then_some(body);
        send(&self.at_alone, As::Token(&self.admin), method, path, body).await.expect(status)
    }

    async fn full(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let body = (!body.is_null()).then_some(body);
        send(&self.at_full, As::Token(&self.admin), method, path, body).await.expect(status)
    }

    fn is_enabled(&self, device: &str) -> Option<bool> {
        self.full.directory.lookup("default", device).map(|auth| auth.enabled)
    }

    fn sql(&self, sql: &str) -> String {
        self.server.sql("registry", &format!("SET search_path = muster; {sql}")).unwrap().replace("SET\n", "")
    }

    async fn stop(self) {
        self.alone.stop().await;
        self.full.stop().await;
    }
}

async fn token(full: &App) -> String {
    let scopes = Permission::ALL.to_vec();
    let request = TokenRequest { name: "test".into(), scopes, days: 30, ..TokenRequest::default() };
    let made = full.slices.tenants.create_token(&owner(&tenant()), &tenant(), request).await;
    made.unwrap().secret
}

/// Makes a device through the process without a gateway; gives its token.
async fn device(pair: &Pair, id: &str) -> String {
    pair.alone("POST", DEVICES, json!({ "id": id, "labels": { "site": "berlin" } }), 201).await;
    let made = pair.alone("POST", &format!("{DEVICES}/{id}/token"), Value::Null, 201).await;
    made["token"].as_str().unwrap().to_owned()
}

async fn has_token(pair: &Pair, id: &str) {
    let known =
        async || pair.full.directory.lookup("default", id).is_some_and(|auth| auth.token_sha256.is_some());
    wait_until("the gateway knows the device's token", known).await;
}

#[tokio::test]
async fn a_device_that_is_made_and_disabled_elsewhere_connects_and_is_cut_off() {
    let pair = Pair::start().await;
    let secret = device(&pair, "pump").await;
    has_token(&pair, "pump").await;
    assert_eq!(pair.full.slices.devices.labels().labels("default", "pump")["site"], "berlin");
    let mut client = plain(&pair.full).await;
    hello_with(&mut client, "pump", &secret).await;
    publish(&mut client, "pump").await;
    pair.alone("PATCH", &format!("{DEVICES}/pump"), json!({ "enabled": false, "labels": {} }), 200).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, client.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "its connection is closed");
    assert_eq!(pair.is_enabled("pump"), Some(false));
    wait_until("the labels are gone", async || {
        pair.full.slices.devices.labels().labels("default", "pump").is_empty()
    })
    .await;
    let deletions = pair.full.slices.devices.labels().deletions();
    pair.alone("DELETE", &format!("{DEVICES}/pump"), Value::Null, 204).await;
    wait_until("it is gone", async || pair.is_enabled("pump").is_none()).await;
    assert_eq!(pair.full.slices.devices.labels().deletions(), deletions + 1, "rules forget it");
    assert_eq!(pair.alone.slices.devices.labels().changes(), 0, "no devices in the memory of the other");
    pair.stop().await;
}

#[tokio::test]
async fn what_a_request_answered_here_stays_so_while_others_change_the_same_device() {
    let pair = Pair::start().await;
    device(&pair, "pump").await;
    has_token(&pair, "pump").await;
    let path = format!("{DEVICES}/pump");
    let others = async {
        for n in 0.. {
            pair.alone("PATCH", &path, json!({ "name": format!("{n}") }), 200).await;
        }
    };
    let ours = async {
        for n in 0..100 {
            let enabled = n % 2 == 1;
            pair.full("PATCH", &path, json!({ "enabled": enabled }), 200).await;
            for _ in 0..10 {
                assert_eq!(pair.is_enabled("pump"), Some(enabled), "{n}");
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::select! {
        () = others => {}
        () = ours => {}
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_claim_made_elsewhere_leads_to_the_gateway_and_its_certificate_can_be_revoked_elsewhere() {
    let pair = Pair::start().await;
    let claim = pair.alone("POST", "/api/v1/tenants/default/claims", json!({ "device": "pump" }), 201).await;
    let parts: Vec<_> = claim["claim"].as_str().unwrap().split(':').map(str::to_owned).collect();
    let ours = pair.full("POST", "/api/v1/tenants/default/claims", json!({}), 201).await;
    let ours: Vec<_> = ours["claim"].as_str().unwrap().split(':').map(str::to_owned).collect();
    assert_eq!((&parts[1..3], &parts[4]), (&ours[1..3], &ours[4]), "the same door and the same authority");
    assert_eq!(parts[2], pair.full.addresses.enroll.unwrap().port().to_string());
    assert_eq!((pair.alone.addresses.enroll, pair.alone.addresses.mqtt_tls), (None, None));
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap().pem().unwrap();
    let body = json!({ "claim_token": parts[3], "csr_pem": csr });
    let enrol = async |slices| {
        let router = enroll_router(slices);
        send(&router, As::Nobody, "POST", "/api/v1/enroll", Some(body.clone())).await
    };
    enrol(&pair.alone.slices).await.refused("not_on_this_process", None);
    enrol(&pair.full.slices).await.expect(201);
    let path = format!("{DEVICES}/pump/certificates");
    let listed = pair.alone("GET", &path, Value::Null, 200).await;
    let serial = listed["items"][0]["serial"].as_str().unwrap().to_owned();
    let bytes = hex::decode(&serial).unwrap();
    assert!(!pair.full.directory.is_cert_revoked(&bytes));
    pair.alone("POST", &format!("{path}/{serial}/revoke"), Value::Null, 200).await;
    wait_until("the gateway knows that it is revoked", async || pair.full.directory.is_cert_revoked(&bytes))
        .await;
    pair.stop().await;
}

#[tokio::test]
async fn a_rule_made_elsewhere_is_judged_and_an_answer_given_elsewhere_is_seen_live() {
    let pair = Pair::start().await;
    let secret = device(&pair, "pump").await;
    has_token(&pair, "pump").await;
    let mut client = plain(&pair.full).await;
    hello_with(&mut client, "pump", &secret).await;
    let rule =
        json!({ "name": "hot", "on": { "telemetry": {} }, "condition": "value > 0", "severity": "info" });
    let rule = pair.alone("POST", RULES, rule, 201).await;
    let alerts =
        async || pair.alone("GET", ALERTS, Value::Null, 200).await["items"].as_array().unwrap().clone();
    let mut opened = Vec::new();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while opened.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "no alert");
        publish(&mut client, "pump").await;
        opened = alerts().await;
    }
    assert_eq!(opened[0]["rule_name"], "hot");
    let mut watcher =
        pair.full.page.bus.subscribe("default", Filter::default().kinds(&[LiveKind::Alert]), None).unwrap();
    let id = opened[0]["id"].as_str().unwrap();
    pair.alone("POST", &format!("{ALERTS}/{id}/ack"), json!({}), 200).await;
    // That it opened may be told after it was committed, and seen here, too.
    loop {
        let told = tokio::time::timeout(DEADLINE, watcher.next()).await.expect("it is told").unwrap();
        assert!(told.json.contains(id), "{}", told.json);
        if told.json.contains("\"state\":\"acked\"") {
            break;
        }
    }
    pair.alone("DELETE", &format!("{RULES}/{}", rule["id"].as_str().unwrap()), Value::Null, 204).await;
    wait_until("the alert of a deleted rule is cleared", async || {
        alerts().await[0]["cleared_at_us"].is_i64()
    })
    .await;
    pair.stop().await;
}

#[tokio::test]
async fn a_quota_given_elsewhere_holds_at_the_gateway() {
    let pair = Pair::start().await;
    let own = || pair.full.slices.usage.board().own("default");
    assert_eq!(own(), None);
    let quota = "/api/v1/tenants/default/quota";
    let given = json!({ "messages_per_day": { "soft": 8, "hard": 10 } });
    pair.alone("PUT", quota, given.clone(), 200).await;
    wait_until("the gateway has it", async || own().is_some_and(|own| json!(own) == given)).await;
    pair.full("PUT", quota, json!({}), 200).await;
    let elsewhere = pair.alone.slices.usage.board();
    wait_until("and it is taken away there", async || elsewhere.own("default").is_none()).await;
    pair.stop().await;
}

async fn status(router: &Router, token: &str) -> u16 {
    send(router, As::Token(token), "GET", DEVICES, None).await.status.as_u16()
}

#[tokio::test]
async fn a_token_made_or_revoked_in_one_process_is_so_in_the_other() {
    let pair = Pair::start().await;
    for (here, there) in [(&pair.at_full, &pair.at_alone), (&pair.at_alone, &pair.at_full)] {
        let body = json!({ "name": "x", "scopes": ["devices:read", "mqtt:subscribe"], "days": 1 });
        let made = send(here, As::Token(&pair.admin), "POST", TOKENS, Some(body)).await.expect(201);
        let secret = made["secret"].as_str().unwrap();
        wait_until("it is taken", async || status(there, secret).await == 200).await;
        let hash = crate::platform::secret::token_sha256(secret);
        wait_until("it may subscribe", async || pair.full.directory.integration(&hash).is_some()).await;
        let path = format!("{TOKENS}/{}", made["api_token"]["id"].as_str().unwrap());
        send(here, As::Token(&pair.admin), "DELETE", &path, None).await.expect(204);
        wait_until("it is refused", async || status(there, secret).await == 401).await;
        wait_until("it may not subscribe", async || pair.full.directory.integration(&hash).is_none()).await;
    }
    // People's sessions are read each time: at once.
    let tenants = &pair.full.slices.tenants;
    let made = tenants.add_member(&owner(&tenant()), &tenant(), "a@b", crate::tenants::Role::Viewer).await;
    let (session, _) = tenants
        .login("a@b", &made.unwrap().password, &crate::tenants::service::Client::new("test", ""))
        .await
        .unwrap();
    let me = async || send(&pair.at_alone, As::Session(&session), "GET", "/api/v1/auth/me", None).await;
    me().await.expect(200);
    tenants.logout(&session, "").await.unwrap();
    me().await.expect(401);
    pair.stop().await;
}

#[tokio::test]
async fn claims_made_elsewhere_name_the_authority_that_follows() {
    let pair = Pair::start().await;
    let me = owner(&tenant());
    let pin = async || {
        let made = pair.alone("POST", "/api/v1/tenants/default/claims", json!({}), 201).await;
        made["claim"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    };
    let first = pin().await;
    let devices = &pair.full.slices.devices;
    let listed = devices.rotate_authority(&me).await.unwrap();
    pair.clock.advance_us(61_000_000);
    assert_eq!(pin().await, first, "the server's certificate still comes from it");
    devices.retire_authority(&me, Retire::Anyway).await.unwrap();
    assert_eq!(pin().await, hex::encode(listed[1].anchor.key_sha256));
    pair.stop().await;
}

#[tokio::test]
async fn a_reloaded_configuration_gives_its_quotas_and_nobody_counts_connections_there() {
    let pair = Pair::start().await;
    let devices = || pair.alone.slices.usage.board().quotas("default").limit(Quota::Devices).hard;
    let dir = pair.dir.path().display().to_string();
    let flags = [("data_dir", dir.as_str()), ("quota.devices_max", "7")];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    pair.alone.slices.config.reload(&Sources { file: None, env: BTreeMap::new(), flags }).unwrap();
    wait_until("the quota is in force", async || devices() == Some(7)).await;
    let used = async |alone: bool| {
        let path = "/api/v1/tenants/default/quota";
        let shown = if alone {
            pair.alone("GET", path, Value::Null, 200).await
        } else {
            pair.full("GET", path, Value::Null, 200).await
        };
        let quotas = shown["quotas"].as_array().unwrap().clone();
        quotas.into_iter().find(|quota| quota["quota"] == "connections").unwrap()["used"].clone()
    };
    assert_eq!((used(true).await, used(false).await), (Value::Null, json!(0)));
    pair.stop().await;
}

/// What only the process that reads the event log can answer.
const AT_LOG: [&str; 9] = [
    "/readings",
    "/last",
    "/ledger",
    "/ledger",
    "/events",
    "/dead-letters",
    "/rejected",
    "/live",
    "/presence",
];

#[tokio::test]
async fn what_only_the_worker_has_is_named_so_by_the_other_and_everything_else_is_answered() {
    let pair = Pair::start().await;
    pair.full("POST", DEVICES, json!({ "id": "pump" }), 201).await;
    let body = json!({ "name": "weak", "scopes": ["devices:read"], "days": 1 });
    let weak = pair.full("POST", TOKENS, body, 201).await;
    let weak = weak["secret"].as_str().unwrap();
    wait_until("it is taken", async || status(&pair.at_alone, weak).await == 200).await;
    let mut named = Vec::new();
    for (method, path, needs, body) in table() {
        let url = filled(path).replace("/acme", "/default");
        if url == "/api/v1/enroll" || matches!(needs, Needs::Platform) {
            continue;
        }
        let ask = async |caller| send(&pair.at_alone, caller, method, &url, body.clone()).await;
        if method == "GET" && needs != Needs::Nothing {
            assert_eq!(ask(As::Nobody).await.status, 401, "{method} {path}");
        }
        let answer = ask(As::Token(&pair.admin)).await;
        if answer.status == 503 {
            answer.refused("not_on_this_process", None);
            assert!(answer.text.contains("ask the one with the roles gateway and worker"), "{}", answer.text);
            named.push(url.split('?').next().unwrap().to_owned());
            let refused = ask(As::Token(weak)).await.status.as_u16();
            assert_eq!(refused == 403, !url.contains("presence"), "{path}: {refused}");
        }
        assert_ne!(answer.status, 500, "{method} {path}");
    }
    assert_eq!(named.len(), AT_LOG.len(), "{named:?}");
    assert!(named.iter().zip(AT_LOG).all(|(path, end)| path.ends_with(end)), "{named:?}");
    let ready = send(&pair.at_alone, As::Nobody, "GET", "/readyz", None).await.expect(200);
    assert_eq!(ready["parts"], json!({ "registry": "ok", "registry_changes": "ok" }));
    let page =
        raw(&pair.at_alone, Request::get("/").header(header::HOST, "x").body(Body::empty()).unwrap()).await;
    assert_eq!(page.status, 200);
    assert!(!pair.dir.path().join("alone").exists(), "it has no data directory");
    pair.stop().await;
}

#[tokio::test]
async fn notifications_that_were_lost_are_made_good_once_the_connection_is_made_again() {
    let pair = Pair::start().await;
    device(&pair, "pump").await;
    let progress = &pair.full.following.as_ref().unwrap().progress;
    let followed = async |rows: u64| {
        wait_until("they are followed", async || progress.named.load(Ordering::Relaxed) == rows).await;
    };
    // The first tenant and its token, and two of the device.
    followed(4).await;
    pair.sql("ALTER TABLE audit DISABLE TRIGGER audit_wakes");
    pair.alone("PATCH", &format!("{DEVICES}/pump"), json!({ "enabled": false }), 200).await;
    // One that is heard of does not bring the other with it: it is another tenant's.
    pair.sql("ALTER TABLE audit ENABLE TRIGGER audit_wakes");
    let other = muster_wire::TenantId::parse("other").unwrap();
    let tenants = &pair.full.slices.tenants;
    let email = Some("owner@localhost".to_owned());
    tenants.create_tenant(&owner(&tenant()), other, "x".into(), email).await.unwrap();
    followed(5).await;
    assert_eq!(pair.is_enabled("pump"), Some(true), "nobody was told");
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid()";
    assert_eq!(pair.sql(cut), "2");
    wait_until("everything is looked at", async || pair.is_enabled("pump") == Some(false)).await;
    // It listens again.
    pair.alone("PATCH", &format!("{DEVICES}/pump"), json!({ "enabled": true }), 200).await;
    wait_until("it is heard of", async || pair.is_enabled("pump") == Some(true)).await;
    assert_eq!(progress.compares.load(Ordering::Relaxed), 0, "the chains were enough");
    pair.stop().await;
}

/// Rows of the audit chain that name a device, in one commit.
async fn name(pair: &Pair, object: &'static str, rows: usize) {
    let registry = super::parts::open_registry(&pair.alone.slices.config.get()).await.unwrap();
    let written = registry.write(move |tx| {
        for _ in 0..rows {
            let (action, detail) = ("device.change", json!({}));
            let entry = AuditEntry { at_us: START_US, actor: "test", action, object, detail };
            audit::append(tx, &crate::platform::db::Scope::Tenant(tenant()), &entry)?;
        }
        Ok::<_, crate::platform::db::DbError>(())
    });
    written.await.unwrap();
}

#[tokio::test]
async fn as_many_changes_as_the_bound_are_followed_and_one_more_makes_it_compare() {
    let pair = Pair::start().await;
    for id in ["pump", "fan", "valve"] {
        device(&pair, id).await;
        has_token(&pair, id).await;
    }
    let progress = &pair.full.following.as_ref().unwrap().progress;
    // The first tenant and its token, and two rows a device.
    wait_until("all that is followed", async || progress.named.load(Ordering::Relaxed) == 8).await;
    // By hand, without a row that names them.
    pair.sql("UPDATE devices SET enabled = 0 WHERE device = 'fan'");
    pair.sql("DELETE FROM devices WHERE device = 'valve'");
    name(&pair, "pump", follow::NAMED_MAX).await;
    let followed = 8 + follow::NAMED_MAX as u64;
    wait_until("they are followed", async || progress.named.load(Ordering::Relaxed) == followed).await;
    assert_eq!((pair.is_enabled("fan"), pair.is_enabled("valve")), (Some(true), Some(true)));
    assert_eq!(progress.compares.load(Ordering::Relaxed), 0);
    name(&pair, "pump", follow::NAMED_MAX + 1).await;
    wait_until("everything is compared", async || progress.compares.load(Ordering::Relaxed) == 1).await;
    assert_eq!((pair.is_enabled("fan"), pair.is_enabled("valve")), (Some(false), None));
    assert_eq!(progress.named.load(Ordering::Relaxed), followed);
    // A row that cannot be read is passed over; what comes with it is followed.
    pair.sql("UPDATE devices SET labels = 'no JSON' WHERE device = 'pump'");
    pair.sql("UPDATE devices SET enabled = 1 WHERE device = 'fan'");
    name(&pair, "pump", 1).await;
    name(&pair, "fan", 1).await;
    wait_until("the other is followed", async || pair.is_enabled("fan") == Some(true)).await;
    assert_eq!(progress.failures.load(Ordering::Relaxed), 0);
    pair.stop().await;
}

#[tokio::test]
async fn a_database_that_goes_away_is_said_and_changes_meanwhile_are_followed_afterwards() {
    let mut pair = Pair::start().await;
    device(&pair, "pump").await;
    has_token(&pair, "pump").await;
    pair.server.kill().unwrap();
    let ready = async |router: &Router| send(router, As::Nobody, "GET", "/readyz", None).await;
    for router in [&pair.at_full, &pair.at_alone] {
        wait_until("it is said", async || ready(router).await.json["parts"]["registry_changes"] != "ok")
            .await;
    }
    pair.server.start_again().unwrap();
    pair.sql("UPDATE devices SET enabled = 0 WHERE device = 'pump'");
    name(&pair, "pump", 1).await;
    wait_until("it is followed", async || pair.is_enabled("pump") == Some(false)).await;
    for router in [&pair.at_full, &pair.at_alone] {
        wait_until("all is well", async || ready(router).await.json["parts"]["registry_changes"] == "ok")
            .await;
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_schema_that_was_migrated_meanwhile_ends_the_process() {
    let pair = Pair::start().await;
    pair.sql("INSERT INTO refinery_schema_history VALUES (1000, 'more', '', '0')");
    pair.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LISTEN%' AND pid <> pg_backend_pid()");
    let lost = follow::lost(pair.alone.following.as_ref());
    let lost = tokio::time::timeout(DEADLINE, lost).await.expect("it ends");
    assert!(matches!(&lost, AppError::SchemaChanged(why) if why.contains("version 1000")), "{lost}");
    pair.stop().await;
}
