//! The API as a whole: every operation's credentials, the document, bounds and error bodies.

use crate::tenants::service::GrantRequest;
use crate::tenants::{Permission, Role};
use crate::testing::{As, TestApp, raw};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod manners;

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A role or scope in the path's tenant.
    Tenant(Permission),
    /// The whole server's administrator.
    Platform,
    /// Any caller who is somebody.
    Anybody,
    /// No credentials. This list only shrinks.
    Nothing,
}

use Needs::{Anybody, Nothing, Platform, Tenant};
use Permission as P;

/// Every operation of the document. A new operation fails the test until it stands here.
pub(crate) fn table() -> Vec<(&'static str, &'static str, Needs, Option<Value>)> {
    vec![
        ("POST", "/api/v1/auth/login", Nothing, Some(json!({ "email": "a@b", "password": "x" }))),
        ("POST", "/api/v1/auth/logout", Nothing, None),
        ("GET", "/api/v1/auth/me", Anybody, None),
        ("POST", "/api/v1/auth/password", Anybody, Some(json!({ "old_password": "x", "new_password": "y" }))),
        ("GET", "/api/v1/auth/sessions", Anybody, None),
        ("DELETE", "/api/v1/auth/sessions", Anybody, None),
        ("DELETE", "/api/v1/auth/sessions/{session}", Anybody, None),
        // The leave in the body is the credential.
        ("POST", "/api/v1/auth/reset", Nothing, Some(json!({ "token": "x", "new_password": "y" }))),
        ("POST", "/api/v1/auth/invitation", Nothing, Some(json!({ "token": "x", "password": "y" }))),
        ("GET", "/api/v1/tenants", Anybody, None),
        ("POST", "/api/v1/tenants", Platform, Some(json!({ "id": "new", "name": "New" }))),
        ("GET", "/api/v1/authorities", Platform, None),
        ("POST", "/api/v1/authorities/rotate", Platform, None),
        ("POST", "/api/v1/authorities/retire", Platform, Some(json!({}))),
        ("GET", "/api/v1/tenants/{tenant}", Tenant(P::TenantRead), None),
        ("PATCH", "/api/v1/tenants/{tenant}", Tenant(P::TenantWrite), Some(json!({ "name": "x" }))),
        ("GET", "/api/v1/tenants/{tenant}/audit", Tenant(P::AuditRead), None),
        ("GET", "/api/v1/tenants/{tenant}/audit/verify", Tenant(P::AuditRead), None),
        ("GET", "/api/v1/tenants/{tenant}/audit/export", Tenant(P::AuditRead), None),
        ("GET", "/api/v1/tenants/{tenant}/users", Tenant(P::UsersRead), None),
        (
            "POST",
            "/api/v1/tenants/{tenant}/users",
            Tenant(P::UsersWrite),
            Some(json!({ "email": "c@d", "role": "viewer" })),
        ),
        (
            "PATCH",
            "/api/v1/tenants/{tenant}/users/{user}",
            Tenant(P::UsersWrite),
            Some(json!({ "role": "viewer" })),
        ),
        ("DELETE", "/api/v1/tenants/{tenant}/users/{user}", Tenant(P::UsersWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/users/{user}/sessions", Tenant(P::UsersWrite), None),
        ("DELETE", "/api/v1/tenants/{tenant}/users/{user}/sessions", Tenant(P::UsersWrite), None),
        ("POST", "/api/v1/tenants/{tenant}/users/{user}/unlock", Tenant(P::UsersWrite), None),
        ("POST", "/api/v1/tenants/{tenant}/users/{user}/password-reset", Tenant(P::UsersWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/roles", Tenant(P::UsersRead), None),
        ("POST", "/api/v1/tenants/{tenant}/roles", Tenant(P::UsersWrite), Some(role())),
        ("PUT", "/api/v1/tenants/{tenant}/roles/{role}", Tenant(P::UsersWrite), Some(role())),
        ("DELETE", "/api/v1/tenants/{tenant}/roles/{role}", Tenant(P::UsersWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/invitations", Tenant(P::UsersRead), None),
        (
            "POST",
            "/api/v1/tenants/{tenant}/invitations",
            Tenant(P::UsersWrite),
            Some(json!({ "email": "c@d", "role": "viewer" })),
        ),
        ("DELETE", "/api/v1/tenants/{tenant}/invitations/{invitation}", Tenant(P::UsersWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/api-tokens", Tenant(P::TokensRead), None),
        (
            "POST",
            "/api/v1/tenants/{tenant}/api-tokens",
            Tenant(P::TokensWrite),
            Some(json!({ "name": "x", "scopes": [] })),
        ),
        ("DELETE", "/api/v1/tenants/{tenant}/api-tokens/{token}", Tenant(P::TokensWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/devices", Tenant(P::DevicesRead), None),
        ("POST", "/api/v1/tenants/{tenant}/devices", Tenant(P::DevicesWrite), Some(json!({ "id": "valve" }))),
        ("GET", "/api/v1/tenants/{tenant}/devices/{device}", Tenant(P::DevicesRead), None),
        (
            "PATCH",
            "/api/v1/tenants/{tenant}/devices/{device}",
            Tenant(P::DevicesOperate),
            Some(json!({ "enabled": true })),
        ),
        ("DELETE", "/api/v1/tenants/{tenant}/devices/{device}", Tenant(P::DevicesWrite), None),
        ("POST", "/api/v1/tenants/{tenant}/devices/{device}/token", Tenant(P::DevicesWrite), None),
        ("DELETE", "/api/v1/tenants/{tenant}/devices/{device}/token", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/devices/{device}/certificates", Tenant(P::DevicesRead), None),
        (
            "POST",
            "/api/v1/tenants/{tenant}/devices/{device}/certificates/{serial}/revoke",
            Tenant(P::DevicesWrite),
            None,
        ),
        (
            "PUT",
            "/api/v1/tenants/{tenant}/devices/{device}/site",
            Tenant(P::DevicesWrite),
            Some(json!({ "site": "north" })),
        ),
        ("DELETE", "/api/v1/tenants/{tenant}/devices/{device}/site", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/sites", Tenant(P::DevicesRead), None),
        ("POST", "/api/v1/tenants/{tenant}/sites", Tenant(P::DevicesWrite), Some(json!({ "id": "east" }))),
        ("GET", "/api/v1/tenants/{tenant}/sites/{site}", Tenant(P::DevicesRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/sites/{site}", Tenant(P::DevicesWrite), Some(json!({}))),
        ("DELETE", "/api/v1/tenants/{tenant}/sites/{site}", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/groups", Tenant(P::DevicesRead), None),
        ("POST", "/api/v1/tenants/{tenant}/groups", Tenant(P::DevicesWrite), Some(json!({ "id": "new" }))),
        ("GET", "/api/v1/tenants/{tenant}/groups/{group}", Tenant(P::DevicesRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/groups/{group}", Tenant(P::DevicesWrite), Some(json!({}))),
        ("DELETE", "/api/v1/tenants/{tenant}/groups/{group}", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/groups/{group}/members", Tenant(P::DevicesRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/groups/{group}/members/{device}", Tenant(P::DevicesWrite), None),
        ("DELETE", "/api/v1/tenants/{tenant}/groups/{group}/members/{device}", Tenant(P::DevicesWrite), None),
        ("POST", "/api/v1/tenants/{tenant}/devices/batch", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/profiles", Tenant(P::DevicesRead), None),
        ("GET", "/api/v1/tenants/{tenant}/profiles/{profile}", Tenant(P::DevicesRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/profiles/{profile}", Tenant(P::DevicesWrite), Some(json!({}))),
        ("DELETE", "/api/v1/tenants/{tenant}/profiles/{profile}", Tenant(P::DevicesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/enrollments", Tenant(P::DevicesRead), None),
        (
            "POST",
            "/api/v1/tenants/{tenant}/enrollments/{enrollment}/approve",
            Tenant(P::DevicesWrite),
            Some(json!({})),
        ),
        (
            "POST",
            "/api/v1/tenants/{tenant}/enrollments/{enrollment}/reject",
            Tenant(P::DevicesWrite),
            Some(json!({})),
        ),
        ("GET", "/api/v1/tenants/{tenant}/claims", Tenant(P::DevicesRead), None),
        ("POST", "/api/v1/tenants/{tenant}/claims", Tenant(P::DevicesWrite), Some(json!({}))),
        ("DELETE", "/api/v1/tenants/{tenant}/claims/{claim}", Tenant(P::DevicesWrite), None),
        (
            "GET",
            "/api/v1/tenants/{tenant}/devices/{device}/readings?metric=m",
            Tenant(P::TelemetryRead),
            None,
        ),
        ("GET", "/api/v1/tenants/{tenant}/devices/{device}/last", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/devices/{device}/ledger", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/ledger", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/events", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/dead-letters", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/rejected", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/rules", Tenant(P::RulesRead), None),
        ("POST", "/api/v1/tenants/{tenant}/rules", Tenant(P::RulesWrite), Some(rule())),
        ("POST", "/api/v1/tenants/{tenant}/rules/validate", Tenant(P::RulesRead), Some(rule())),
        ("GET", "/api/v1/tenants/{tenant}/rules/{rule}", Tenant(P::RulesRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/rules/{rule}", Tenant(P::RulesWrite), Some(rule())),
        ("DELETE", "/api/v1/tenants/{tenant}/rules/{rule}", Tenant(P::RulesWrite), None),
        ("GET", "/api/v1/tenants/{tenant}/alerts", Tenant(P::AlertsRead), None),
        ("GET", "/api/v1/tenants/{tenant}/alerts/counts", Tenant(P::AlertsRead), None),
        ("GET", "/api/v1/tenants/{tenant}/alerts/{alert}", Tenant(P::AlertsRead), None),
        ("POST", "/api/v1/tenants/{tenant}/alerts/{alert}/ack", Tenant(P::AlertsWrite), Some(json!({}))),
        ("POST", "/api/v1/tenants/{tenant}/alerts/{alert}/resolve", Tenant(P::AlertsWrite), Some(json!({}))),
        ("POST", "/api/v1/tenants/{tenant}/devices/{device}/erase", Tenant(P::DataErase), Some(json!({}))),
        (
            "POST",
            "/api/v1/tenants/{tenant}/erase",
            Tenant(P::TenantErase),
            Some(json!({ "confirm": "acme" })),
        ),
        ("POST", "/api/v1/erasures", Platform, Some(json!({ "tenant": "acme", "confirm": "acme" }))),
        ("GET", "/api/v1/tenants/{tenant}/erasures", Tenant(P::DataExport), None),
        ("GET", "/api/v1/tenants/{tenant}/erasures/{erasure}", Tenant(P::DataExport), None),
        ("GET", "/api/v1/tenants/{tenant}/erasures/{erasure}/files", Tenant(P::DataExport), None),
        ("GET", "/api/v1/tenants/{tenant}/erasures/{erasure}/files/{file}", Tenant(P::DataExport), None),
        ("GET", "/api/v1/tenants/{tenant}/live", Tenant(P::TelemetryRead), None),
        ("GET", "/api/v1/tenants/{tenant}/presence", Tenant(P::DevicesRead), None),
        ("GET", "/api/v1/tenants/{tenant}/quota", Tenant(P::UsageRead), None),
        ("PUT", "/api/v1/tenants/{tenant}/quota", Platform, Some(json!({}))),
        ("GET", "/api/v1/tenants/{tenant}/usage", Tenant(P::UsageRead), None),
        ("GET", "/api/v1/tenants/{tenant}/usage/invoice", Tenant(P::InvoicesRead), None),
        ("GET", "/api/v1/usage", Platform, None),
        ("GET", "/api/v1/price-list", Platform, None),
        ("PUT", "/api/v1/price-list", Platform, Some(json!({ "currency": "EUR", "prices": [] }))),
        // On the enrolment listener; the claim in the body is the credential.
        ("POST", "/api/v1/enroll", Nothing, None),
        // There too; the credential is the client certificate of the TLS connection.
        ("POST", "/api/v1/renew", Nothing, None),
        ("GET", "/healthz", Nothing, None),
        ("GET", "/readyz", Nothing, None),
        ("GET", "/metrics", Nothing, None),
        ("GET", "/api/v1/monitoring/health", Nothing, None),
        ("GET", "/api/v1/monitoring/metrics", Nothing, None),
    ]
}

/// Operations without a device in their path that are cut to the caller's reach. All others of a tenant are of the whole
/// tenant, and refuse who reaches a part of it.
const CUT_TO_REACH: &[(&str, &str)] = &[
    ("GET", "/api/v1/tenants/{tenant}"),
    ("GET", "/api/v1/tenants/{tenant}/devices"),
    // Makes devices within the reach.
    ("POST", "/api/v1/tenants/{tenant}/devices"),
    ("GET", "/api/v1/tenants/{tenant}/sites"),
    ("GET", "/api/v1/tenants/{tenant}/sites/{site}"),
    ("GET", "/api/v1/tenants/{tenant}/groups"),
    ("GET", "/api/v1/tenants/{tenant}/groups/{group}"),
    ("GET", "/api/v1/tenants/{tenant}/groups/{group}/members"),
    ("GET", "/api/v1/tenants/{tenant}/claims"),
    ("DELETE", "/api/v1/tenants/{tenant}/claims/{claim}"),
    ("GET", "/api/v1/tenants/{tenant}/events"),
    ("GET", "/api/v1/tenants/{tenant}/alerts"),
    ("GET", "/api/v1/tenants/{tenant}/alerts/counts"),
    ("GET", "/api/v1/tenants/{tenant}/alerts/{alert}"),
    ("POST", "/api/v1/tenants/{tenant}/alerts/{alert}/ack"),
    ("POST", "/api/v1/tenants/{tenant}/alerts/{alert}/resolve"),
    ("GET", "/api/v1/tenants/{tenant}/live"),
    ("GET", "/api/v1/tenants/{tenant}/presence"),
];

/// The path without the query that a call needs.
fn route(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

fn rule() -> Value {
    json!({ "name": "hot", "on": { "telemetry": {} }, "condition": "value > 30", "severity": "info" })
}

fn role() -> Value {
    json!({ "name": "reader", "permissions": ["devices:read"] })
}

pub(crate) fn filled(path: &str) -> String {
    path.replace("{tenant}", "acme").replace("{device}", "pump").replace(['{', '}'], "")
}

#[test]
fn every_operation_stands_in_the_table() {
    let document = serde_json::to_value(super::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let listed =
        table().into_iter().map(|(method, path, ..)| (method.to_owned(), route(path).to_owned())).collect();
    assert_eq!(operations, listed);
    // Logins and enrolments bring what proves who they are in their body.
    assert_eq!(table().iter().filter(|row| row.2 == Nothing).count(), 11, "the exception list only shrinks");
    // What is not public in the table is not public in the document, and the other way round.
    for (method, path, needs, _) in table() {
        let security = &paths[route(path)][method.to_lowercase()]["security"];
        let public = security.as_array().is_some_and(|list| list.contains(&json!({})));
        assert_eq!(public, needs == Nothing, "{method} {path}");
    }
}

#[tokio::test]
async fn every_operation_refuses_nobody_strangers_and_weak_roles() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let stranger = app.token(&other, Permission::ALL).await;
    let viewer = app.member(&acme, "viewer@acme", Role::Viewer).await;
    for (method, path, needs, body) in table() {
        let url = filled(path);
        let ask = |caller| app.call(caller, method, &url, body.clone());
        if needs == Nothing {
            continue;
        }
        ask(As::Nobody).await.refused("unauthenticated", None);
        ask(As::Token("mst_wrong")).await.refused("unauthenticated", None);
        ask(As::Session("mss_wrong")).await.refused("unauthenticated", None);
        match needs {
            Tenant(permission) => {
                ask(As::Token(&stranger)).await.refused("not_found", None);
                let rest: Vec<_> =
                    Permission::ALL.iter().copied().filter(|other| *other != permission).collect();
                let weak = app.token(&acme, &rest).await;
                ask(As::Token(&weak)).await.refused("permission_denied", None);
                if permission.least_role() > Role::Viewer {
                    ask(As::Session(&viewer)).await.refused("permission_denied", None);
                }
            }
            Platform => {
                ask(As::Session(&viewer)).await.refused("permission_denied", None);
                let weak = app.token(&acme, &[Permission::TenantRead]).await;
                ask(As::Token(&weak)).await.refused("permission_denied", None);
            }
            Anybody | Nothing => {}
        }
    }
}

#[tokio::test]
async fn every_operation_keeps_to_the_reach_of_who_asks() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let all = app.token(&acme, Permission::ALL).await;
    let make = async |path: &str, body: Value| {
        let path = format!("/api/v1/tenants/acme/{path}");
        app.call(As::Token(&all), "POST", &path, Some(body)).await.expect(201);
    };
    for site in ["north", "south"] {
        make("sites", json!({ "id": site })).await;
    }
    make("devices", json!({ "id": "pump", "site": "north" })).await;
    let admin_of = async |site: &str| {
        let grant = GrantRequest { role: "admin".into(), places: Some(vec![format!("site:{site}")]) };
        app.member(&acme, &format!("{site}@acme"), grant).await
    };
    let (near, far) = (admin_of("north").await, admin_of("south").await);
    // Whatever is in the document and has a device in its path, though somebody forgot it in the table.
    let document = serde_json::to_value(super::openapi()).unwrap();
    let with_device: BTreeSet<_> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|path| path.contains("{device}"))
        .cloned()
        .collect();
    let listed: BTreeSet<_> = table()
        .iter()
        .map(|(_, path, ..)| route(path).to_owned())
        .filter(|path| path.contains("{device}"))
        .collect();
    assert_eq!(with_device, listed);
    let mut asked = 0;
    // What deletes the device comes last.
    let mut rows = table();
    rows.sort_by_key(|(method, path, ..)| *method == "DELETE" && path.ends_with("{device}"));
    for (method, path, needs, body) in rows {
        let Tenant(_) = needs else { continue };
        let url = filled(path);
        let ask = async |session: &str| app.call(As::Session(session), method, &url, body.clone()).await;
        let is_cut = CUT_TO_REACH.contains(&(method, route(path)));
        if path.contains("{device}") {
            asked += 1;
            let answer = ask(&far).await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
            assert_eq!(answer.json["detail"], "there is no such device", "{method} {path}");
            let answer = ask(&near).await;
            assert_ne!(answer.json["detail"], "there is no such device", "{method} {path}");
        } else if !is_cut {
            let answer = ask(&near).await;
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text);
        } else if !path.ends_with("/live") {
            let answer = ask(&far).await;
            assert!(!answer.text.contains("pump"), "{method} {path}: {}", answer.text);
            assert!(path.contains("/devices") || answer.status != 403, "{method} {path}: {}", answer.text);
        }
    }
    assert!(asked >= 15, "{asked} operations on a device");
}

#[test]
fn the_committed_document_is_the_codes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api/openapi.json");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let code = super::openapi().to_pretty_json().unwrap();
    assert!(
        committed.trim() == code.trim(),
        "run: cargo run -p muster-server -- openapi > docs/api/openapi.json"
    );
}

#[tokio::test]
async fn an_unknown_path_method_or_type_is_a_problem_too() {
    let app = TestApp::start().await;
    app.call(As::Nobody, "GET", "/api/v1/nothing", None).await.refused("not_found", None);
    app.call(As::Nobody, "PUT", "/api/v1/auth/login", None).await.refused("method_not_allowed", None);
    let request = Request::post("/api/v1/auth/login").body(Body::from("{}")).unwrap();
    raw(&app.admin, request).await.refused("unsupported_media_type", None);
    let login = |body: Value| app.call(As::Nobody, "POST", "/api/v1/auth/login", Some(body));
    login(json!({ "email": "a@b" })).await.refused("invalid_argument", Some("password"));
    login(json!({ "email": 1, "password": "x" })).await.refused("invalid_argument", Some("email"));
    login(json!({ "email": "a@b", "password": "x", "nme": 1 }))
        .await
        .refused("invalid_argument", Some("nme"));
}

#[tokio::test]
async fn a_body_of_the_bound_is_read_and_one_byte_more_is_not() {
    let app = TestApp::start_with(|config| config.http.body_bytes_max = 4_096).await;
    for (router, path, token) in
        [(&app.admin, "/api/v1/auth/login", "password"), (&app.enroll, "/api/v1/enroll", "claim_token")]
    {
        let ask = async |bytes: usize| {
            let begin = format!("{{\"{token}\":\"");
            let body = format!("{begin}{}\"}}", "x".repeat(bytes - begin.len() - 2));
            assert_eq!(body.len(), bytes);
            let request = Request::post(path).header("content-type", "application/json");
            raw(router, request.body(Body::from(body)).unwrap()).await
        };
        let missing = ask(4_096).await;
        assert_eq!(missing.json["code"], "invalid_argument", "it was read: {}", missing.text);
        let refused = ask(4_097).await;
        refused.refused("too_large", None);
        assert!(refused.text.contains("http.body_bytes_max"), "{}", refused.text);
    }
}

#[tokio::test]
async fn lists_have_bounds_and_go_on_where_they_ended() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, &[Permission::DevicesRead, Permission::DevicesWrite]).await;
    let devices = "/api/v1/tenants/acme/devices";
    for id in ["c", "a", "b"] {
        app.call(As::Token(&token), "POST", devices, Some(json!({ "id": id }))).await.expect(201);
    }
    let list =
        async |query: &str| app.call(As::Token(&token), "GET", &format!("{devices}?{query}"), None).await;
    list("limit=501").await.refused("invalid_argument", Some("limit"));
    list("limit=x").await.refused("invalid_argument", Some("limit"));
    list("cursor=*").await.refused("invalid_argument", Some("cursor"));
    let first = list("limit=2").await.expect(200);
    assert_eq!((&first["items"][0]["id"], &first["items"][1]["id"]), (&json!("a"), &json!("b")));
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = list(&format!("limit=2&cursor={cursor}")).await.expect(200);
    assert_eq!((&second["items"][0]["id"], &second["next_cursor"]), (&json!("c"), &Value::Null));
}

#[tokio::test]
async fn a_range_of_too_many_steps_names_the_step() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, &[Permission::DevicesWrite, Permission::TelemetryRead]).await;
    let devices = "/api/v1/tenants/acme/devices";
    app.call(As::Token(&token), "POST", devices, Some(json!({ "id": "a" }))).await.expect(201);
    let ask = async |query: &str| {
        let path = format!("{devices}/a/readings?metric=m&{query}");
        app.call(As::Token(&token), "GET", &path, None).await
    };
    ask("from=0&to=100000000000&step=1s").await.expect(200);
    ask("from=0&to=100000000001&step=1s").await.refused("invalid_argument", Some("step"));
    ask("from=-9223372036854775808&step=10s").await.refused("invalid_argument", Some("step"));
}

#[tokio::test]
async fn health_documentation_and_metrics_answer_without_credentials() {
    let app = TestApp::start().await;
    assert_eq!(app.call(As::Nobody, "GET", "/healthz", None).await.expect(200)["status"], "ok");
    let ready = app.call(As::Nobody, "GET", "/readyz", None).await.expect(200);
    assert_eq!((&ready["ready"], &ready["parts"]["registry"]), (&json!(true), &json!("ok")));
    app.parts.slices.health.add("broken", || async { Err("out of order".to_owned()) });
    let degraded = app.call(As::Nobody, "GET", "/readyz", None).await.expect(503);
    assert_eq!(degraded["parts"]["broken"], "out of order");
    let metrics = app.call(As::Nobody, "GET", "/metrics", None).await;
    assert!(
        metrics.text.contains("http_requests_total{method=\"GET\",status=\"503\"} 1"),
        "{}",
        metrics.text
    );
    let document = app.call(As::Nobody, "GET", "/api/v1/openapi.json", None).await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    let viewer = app.call(As::Nobody, "GET", "/docs/", None).await;
    assert!(viewer.status.is_success() && viewer.text.contains("swagger"), "{}", viewer.text);
    assert_eq!(viewer.headers["x-content-type-options"], "nosniff");
}
