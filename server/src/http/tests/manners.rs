//! Manners that every operation has: the document, unknown parameters, conditional and repeated requests, limits.

use crate::tenants::{Permission as P, Role};
use crate::testing::{Answer, As, TestApp, on_postgres, raw};
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const DEVICES: &str = "/api/v1/tenants/acme/devices";
const TOKENS: &str = "/api/v1/tenants/acme/api-tokens";

fn request(token: &str, line: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Request<Body> {
    let (method, path) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("authorization", format!("Bearer {token}"));
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string()))).unwrap()
}

async fn ask(
    app: &TestApp,
    token: &str,
    line: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Answer {
    raw(&app.admin, request(token, line, headers, body.as_ref())).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn every_operation_documents_its_errors_and_ids() {
    let document = serde_json::to_value(crate::http::openapi()).unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let what = format!("{method} {path}");
            let answers = operation["responses"].as_object().unwrap();
            let documented = |status: &str| {
                let schema = &answers[status]["content"]["application/problem+json"]["schema"]["$ref"];
                schema == "#/components/schemas/Problem"
            };
            assert!(!answers.contains_key("default"), "{what}");
            let every = answers.keys().filter(|status| status.starts_with(['4', '5']));
            assert!(
                every.clone().count() >= 4 && every.into_iter().all(|status| documented(status)),
                "{what}"
            );
            let public = operation["security"].as_array().is_some_and(|list| list.contains(&json!({})));
            assert!(public || documented("401") && documented("403"), "{what}");
            assert_eq!(path.contains('{'), answers.contains_key("404"), "{what}");
            assert_eq!(operation.get("requestBody").is_some(), answers.contains_key("415"), "{what}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let schema = &parameter["schema"];
                let bounded = schema.get("pattern").is_some() || schema.get("maxLength").is_some();
                assert!(parameter["in"] != "path" || bounded, "{what}: {parameter}");
            }
        }
    }
    assert_eq!(operations, super::table().len());
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Permission"]["enum"][0], "tenant:read", "scopes are what the API takes");
    assert_eq!(schemas["Labels"]["maxProperties"], 32);
    assert_eq!(schemas["RuleToCheck"]["properties"]["name"]["maxLength"], Value::Null);
    assert_eq!(schemas["RuleDraft"]["properties"]["name"]["maxLength"], 100);
}

#[tokio::test]
async fn an_error_is_a_problem_of_rfc_9457() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    let answer = ask(&app, &token, &format!("GET {DEVICES}?lmit=1"), &[], None).await;
    answer.refused("invalid_argument", Some("lmit"));
    let problem = &answer.json;
    let request_id = problem["request_id"].as_str().unwrap();
    assert_eq!(problem["type"], "urn:muster:error:invalid_argument");
    assert_eq!(problem["title"], "Invalid argument");
    assert_eq!(problem["instance"], format!("urn:muster:request:{request_id}"));
    let known = "label, enabled, id_prefix, name_prefix, site, group, sort, limit, cursor";
    assert_eq!(problem["detail"], format!("is unknown: this operation takes {known}"));
    let html = ask(&app, &token, &format!("GET {DEVICES}"), &[("accept", "text/html")], None).await;
    html.refused("not_acceptable", None);
    assert_eq!(html.status, 406);
}

#[tokio::test]
async fn a_change_of_a_state_that_is_gone_is_refused() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    ask(&app, &token, &format!("POST {DEVICES}"), &[], Some(json!({ "id": "pump" }))).await.expect(201);
    let rules = "/api/v1/tenants/acme/rules";
    let rule = ask(&app, &token, &format!("POST {rules}"), &[], Some(super::rule())).await.expect(201);
    let rule_path = format!("{rules}/{}", rule["id"].as_str().unwrap());
    let mut warmer = super::rule();
    warmer["condition"] = json!("value > 40");
    let objects = [
        (format!("{DEVICES}/pump"), "PATCH", json!({ "name": "Pump" }), true),
        (rule_path, "PUT", warmer, true),
        ("/api/v1/tenants/acme".to_owned(), "PATCH", json!({ "name": "ACME" }), false),
    ];
    for (path, method, change, may_delete) in objects {
        let get = format!("GET {path}");
        let before = ask(&app, &token, &get, &[], None).await;
        let tag = header(&before, "etag").unwrap().to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        let held = ask(&app, &token, &get, &[("if-none-match", &tag)], None).await;
        assert_eq!((held.status.as_u16(), held.text.as_str()), (304, ""), "{path}");
        assert_eq!(header(&held, "etag"), Some(tag.as_str()));
        let line = format!("{method} {path}");
        let changed = ask(&app, &token, &line, &[("if-match", &tag)], Some(change.clone())).await;
        let newer = header(&changed, "etag").unwrap().to_owned();
        changed.expect(200);
        assert_ne!(newer, tag);
        let stale = ask(&app, &token, &line, &[("if-match", &tag)], Some(change.clone())).await;
        stale.refused("precondition_failed", None);
        assert_eq!(stale.status, 412, "{path}");
        let now = ask(&app, &token, &get, &[("if-none-match", &tag)], None).await;
        assert_eq!((now.status.as_u16(), header(&now, "etag")), (200, Some(newer.as_str())));
        let bare = ask(&app, &token, &line, &[("if-match", "pump")], Some(change.clone())).await;
        bare.refused("invalid_argument", Some("If-Match"));
        let weak = format!("W/{newer}");
        ask(&app, &token, &line, &[("if-match", &weak)], Some(change))
            .await
            .refused("precondition_failed", None);
        if may_delete {
            let delete = format!("DELETE {path}");
            ask(&app, &token, &delete, &[("if-match", &tag)], None)
                .await
                .refused("precondition_failed", None);
            let list = format!("{tag}, {newer}");
            ask(&app, &token, &delete, &[("if-match", &list)], None).await.expect(204);
        }
    }
}

#[tokio::test]
async fn a_repeated_request_gets_the_answer_it_got() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let (one, two) = (app.token(&acme, P::ALL).await, app.token(&acme, P::ALL).await);
    let (line, key) = (format!("POST {TOKENS}"), [("idempotency-key", "\"k-1\"")]);
    let new = json!({ "name": "reader", "scopes": [] });
    let first = ask(&app, &one, &line, &key, Some(new.clone())).await;
    let again = ask(&app, &one, &line, &key, Some(new.clone())).await;
    assert_eq!(
        (header(&first, "idempotency-replayed"), header(&again, "idempotency-replayed")),
        (None, Some("true"))
    );
    assert_eq!(header(&again, "content-type"), Some("application/json"));
    let secret = first.expect(201)["secret"].as_str().unwrap().to_owned();
    assert_eq!(again.expect(201)["secret"], secret.as_str());
    let other = ask(&app, &one, &line, &key, Some(json!({ "name": "other", "scopes": [] }))).await;
    other.refused("idempotency_mismatch", Some("Idempotency-Key"));
    assert_eq!(other.status, 422);
    ask(&app, &one, &format!("POST {DEVICES}"), &key, Some(json!({ "id": "a" })))
        .await
        .refused("idempotency_mismatch", Some("Idempotency-Key"));
    let theirs = ask(&app, &two, &line, &key, Some(new)).await.expect(201);
    assert_ne!(theirs["secret"], secret.as_str(), "a key is its caller's");
    let list = ask(&app, &one, &format!("GET {TOKENS}"), &[], None).await.expect(200);
    let made = list["items"].as_array().unwrap().iter().filter(|token| token["name"] == "reader").count();
    assert_eq!(made, 2);
    for bad in ["", "\"", "a b"] {
        let refused = ask(&app, &one, &line, &[("idempotency-key", bad)], Some(json!({}))).await;
        refused.refused("invalid_argument", Some("Idempotency-Key"));
    }
}

#[tokio::test]
async fn a_refused_request_leaves_its_key_free_and_a_stranger_takes_none() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let (token, stranger) = (app.token(&acme, P::ALL).await, app.token(&other, P::ALL).await);
    let (line, key) = (format!("POST {DEVICES}"), [("idempotency-key", "k")]);
    let labels = |labels: Value| Some(json!({ "id": "pump", "labels": labels }));
    ask(&app, &token, &line, &key, labels(json!({ "Bad": "" })))
        .await
        .refused("invalid_argument", Some("labels.Bad"));
    ask(&app, &token, &line, &key, labels(json!({}))).await.expect(201);
    ask(&app, &stranger, &line, &key, labels(json!({}))).await.refused("not_found", None);
    ask(&app, "mst_wrong", &line, &key, labels(json!({}))).await.refused("unauthenticated", None);
    ask(&app, &token, &line, &key, labels(json!({}))).await.expect(201);
    ask(&app, &token, &line, &[], labels(json!({}))).await.refused("conflict", None);
}

#[tokio::test]
async fn a_client_that_goes_away_finds_its_answer() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    let (line, key) = (format!("POST {DEVICES}"), [("idempotency-key", "gone")]);
    let new = json!({ "id": "pump" });
    // Polled once, then dropped: as when the connection is cut while the request runs.
    let cut = raw(&app.admin, request(&token, &line, &key, Some(&new)));
    assert!(tokio::time::timeout(Duration::ZERO, cut).await.is_err(), "it was done at once");
    // Each try is a commit of its own, so the first request's two are soon behind it.
    for _ in 0..1_000 {
        let again = ask(&app, &token, &line, &key, Some(new.clone())).await;
        if again.status != 409 {
            // On PostgreSQL, where writes have several connections, the second request may be ahead of the first.
            let is_ahead = header(&again, "idempotency-replayed").is_none();
            assert!(!is_ahead || on_postgres(), "the first request ended with its client");
            assert_eq!(again.expect(201)["id"], "pump");
            let again = ask(&app, &token, &line, &key, Some(new)).await;
            return assert_eq!(header(&again, "idempotency-replayed"), Some("true"));
        }
        again.refused("conflict", Some("Idempotency-Key"));
    }
    panic!("the request ended with its client");
}

#[tokio::test]
async fn a_caller_has_a_rate_and_is_told_when_to_come_again() {
    let app = TestApp::start_with(|config| {
        let rate = &mut config.http.rate;
        (rate.principal_per_s, rate.principal_burst) = (1, 3);
        (rate.address_per_s, rate.address_burst) = (1, 1);
    })
    .await;
    let acme = app.tenant("acme").await;
    let (one, two) = (app.token(&acme, P::ALL).await, app.token(&acme, P::ALL).await);
    let line = format!("GET {DEVICES}");
    let left = [2, 1, 0].map(|left| format!("\"principal\";r={left};t=0"));
    for left in left {
        let answer = ask(&app, &one, &line, &[], None).await;
        assert_eq!(header(&answer, "ratelimit"), Some(left.as_str()));
        assert_eq!(header(&answer, "ratelimit-policy"), Some("\"principal\";q=3;w=3"));
        answer.expect(200);
    }
    let refused = ask(&app, &one, &line, &[], None).await;
    refused.refused("rate_limited", None);
    assert_eq!((refused.status.as_u16(), header(&refused, "retry-after")), (429, Some("1")));
    ask(&app, &two, &line, &[], None).await.expect(200);
    app.clock.advance_us(1_000_000);
    ask(&app, &one, &line, &[], None).await.expect(200);
    let from = async |address: &str| {
        let mut request = Request::get("/healthz").body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo::<SocketAddr>(address.parse().unwrap()));
        raw(&app.admin, request).await.status.as_u16()
    };
    assert_eq!(
        [from("192.0.2.1:5").await, from("192.0.2.1:6").await, from("192.0.2.2:5").await],
        [200, 429, 200]
    );
    assert_eq!(
        [from("127.0.0.1:5").await, from("127.0.0.1:6").await],
        [200, 200],
        "a proxy stands for everybody"
    );
}

#[tokio::test]
async fn nobody_takes_away_what_they_call_with() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let session = app.member(&acme, "admin@acme", Role::Admin).await;
    let me = app.call(As::Session(&session), "GET", "/api/v1/auth/me", None).await.expect(200);
    let own = format!("/api/v1/tenants/acme/users/{}", me["id"].as_str().unwrap());
    let refused = app.call(As::Session(&session), "DELETE", &own, None).await;
    refused.refused("conflict", None);
    assert_eq!(refused.status, 409);
    let token = app.token(&acme, P::ALL).await;
    let me = app.call(As::Token(&token), "GET", "/api/v1/auth/me", None).await.expect(200);
    let path = format!("{TOKENS}/{}", me["id"].as_str().unwrap());
    app.call(As::Token(&token), "DELETE", &path, None).await.refused("conflict", None);
    app.call(As::Session(&session), "DELETE", &path, None).await.expect(204);
    app.call(As::Token(&token), "GET", DEVICES, None).await.refused("unauthenticated", None);
}

#[tokio::test]
async fn devices_are_filtered_and_sorted() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    let new = [
        json!({ "id": "pump-2", "name": "Ölpumpe", "labels": { "site": "north", "a\\u0022": "x" } }),
        json!({ "id": "fan-1", "name": "Fan", "labels": { "site": "south" } }),
        json!({ "id": "pump-1", "name": "Pump", "labels": { "site": "north", "line": "\"site\":\"south\"" } }),
    ];
    for mut device in new {
        device["labels"].as_object_mut().unwrap().retain(|key, _| key.is_ascii() && !key.contains('\\'));
        app.clock.advance_us(1);
        app.call(As::Token(&token), "POST", DEVICES, Some(device)).await.expect(201);
    }
    let off = json!({ "enabled": false });
    app.call(As::Token(&token), "PATCH", &format!("{DEVICES}/fan-1"), Some(off)).await.expect(200);
    let list = async |query: &str| {
        let page = app.call(As::Token(&token), "GET", &format!("{DEVICES}?{query}"), None).await.expect(200);
        let ids = page["items"].as_array().unwrap().iter().map(|device| device["id"].as_str().unwrap());
        (ids.collect::<Vec<_>>().join(" "), page["next_cursor"].as_str().unwrap_or_default().to_owned())
    };
    for (query, expect) in [
        ("", "fan-1 pump-1 pump-2"),
        ("sort=-id", "pump-2 pump-1 fan-1"),
        ("sort=created_at", "pump-2 fan-1 pump-1"),
        ("sort=-created_at&label=site%3Dnorth", "pump-1 pump-2"),
        ("label=site=south", "fan-1"),
        ("label=site=sout", ""),
        ("enabled=false", "fan-1"),
        ("id_prefix=pump-&enabled=true", "pump-1 pump-2"),
        ("name_prefix=%C3%96l", "pump-2"),
        ("name_prefix=pump", ""),
    ] {
        assert_eq!(list(query).await.0, expect, "{query}");
    }
    for sort in ["-id", "created_at", "-created_at"] {
        let (first, cursor) = list(&format!("sort={sort}&limit=2")).await;
        let (last, end) = list(&format!("sort={sort}&limit=2&cursor={cursor}")).await;
        assert_eq!(format!("{first} {last}"), list(&format!("sort={sort}")).await.0);
        assert_eq!(end, "");
    }
    for (query, field) in [("label=site", "label"), ("label=A=b", "label"), ("sort=age", "sort")] {
        let refused = app.call(As::Token(&token), "GET", &format!("{DEVICES}?{query}"), None).await;
        refused.refused("invalid_argument", Some(field));
    }
    let (_, of_ids) = list("limit=1").await;
    let path = format!("{DEVICES}?sort=created_at&cursor={of_ids}");
    app.call(As::Token(&token), "GET", &path, None).await.refused("invalid_argument", Some("cursor"));
    let long = format!("{DEVICES}?id_prefix={}", "x".repeat(65));
    app.call(As::Token(&token), "GET", &long, None).await.refused("invalid_argument", Some("id_prefix"));
}

#[tokio::test]
async fn the_chain_is_asked_by_who_what_and_when() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    for id in ["a", "b"] {
        app.clock.advance_us(10);
        app.call(As::Token(&token), "POST", DEVICES, Some(json!({ "id": id }))).await.expect(201);
    }
    app.call(As::Token(&token), "DELETE", &format!("{DEVICES}/a"), None).await.expect(204);
    let me = app.call(As::Token(&token), "GET", "/api/v1/auth/me", None).await.expect(200);
    let actor = format!("token:{}", me["id"].as_str().unwrap());
    let list = async |query: &str| {
        let path = format!("/api/v1/tenants/acme/audit?{query}");
        app.call(As::Token(&token), "GET", &path, None).await
    };
    let seqs = async |query: &str| {
        let page = list(query).await.expect(200);
        let seqs: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|row| row["seq"].as_i64().unwrap()).collect();
        (seqs, page["next_cursor"].as_str().unwrap_or_default().to_owned())
    };
    let at_us = crate::testing::START_US + 20;
    for (query, expect) in [
        ("".to_owned(), vec![1, 2, 3, 4, 5]),
        ("sort=-seq&action=device.".to_owned(), vec![5, 4, 3]),
        ("action=device.create".to_owned(), vec![3, 4]),
        ("action=device".to_owned(), vec![]),
        (format!("actor={actor}&object=a"), vec![3, 5]),
        (format!("from={at_us}"), vec![4, 5]),
        (format!("to={at_us}&actor={actor}"), vec![3]),
    ] {
        assert_eq!(seqs(&query).await.0, expect, "{query}");
    }
    let (first, cursor) = seqs("sort=-seq&limit=2").await;
    assert_eq!(
        (first, seqs(&format!("sort=-seq&limit=3&cursor={cursor}")).await.0),
        (vec![5, 4], vec![3, 2, 1])
    );
    list(&format!("actor={}", "x".repeat(301))).await.refused("invalid_argument", Some("actor"));
}

#[tokio::test]
async fn health_and_metrics_stand_below_the_api_too() {
    let app = TestApp::start().await;
    let health = "/api/v1/monitoring/health";
    assert_eq!(app.call(As::Nobody, "GET", health, None).await.expect(200)["parts"]["registry"], "ok");
    app.parts.slices.health.add("broken", || async { Err("out of order".to_owned()) });
    let degraded = app.call(As::Nobody, "GET", health, None).await.expect(503);
    assert_eq!(degraded["parts"]["broken"], "out of order");
    let metrics = app.call(As::Nobody, "GET", "/api/v1/monitoring/metrics", None).await;
    assert!(
        metrics.text.contains("http_requests_total{method=\"GET\",status=\"503\"} 1"),
        "{}",
        metrics.text
    );
}
