use super::feed::{DEVICES_MAX, DEVICES_PER_FLUSH, Feed, VALUES_PER_DEVICE_MAX};
use crate::devices::service::FOLLOWED_MAX;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::live::{Filter, LiveBus, LiveKind, Subscription};
use crate::platform::telemetry::{StoredBatch, StoredItem, StoredWhat};
use crate::tenants::Permission;
use crate::tenants::service::TokenRequest;
use crate::testing::{As, TestApp, owner};
use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use muster_wire::Value;
use serde_json::json;
use tower::ServiceExt as _;

const NOW_US: i64 = 1_000_000;
/// Where the feed of a test begins to believe.
const FIRST: u64 = 7;

fn item(device: &str, what: StoredWhat) -> StoredItem {
    StoredItem { position: FIRST, tenant: "acme".into(), device: device.into(), received_at_us: NOW_US, what }
}

fn reading(device: &str, metric: &str, value: f64) -> StoredItem {
    item(device, StoredWhat::Reading { metric: metric.into(), ts_us: 5, value: Value::Number(value) })
}

fn stored(feed: &Feed, items: Vec<StoredItem>) {
    feed.on_stored(&StoredBatch { items, ..StoredBatch::default() });
}

fn watched() -> (Feed, Subscription) {
    let bus = LiveBus::new();
    let subscription = bus.subscribe("acme", Filter::default(), None).unwrap();
    (Feed::new(bus, FIRST), subscription)
}

async fn next(subscription: &mut Subscription) -> (LiveKind, serde_json::Value) {
    let event = subscription.next().await.unwrap();
    (event.kind, serde_json::from_str(&event.json).unwrap())
}

#[tokio::test]
async fn a_flush_shows_the_newest_value_of_each_metric_once() {
    let (feed, mut watcher) = watched();
    for value in [1.0, 2.0, 3.0] {
        stored(&feed, vec![reading("d1", "a", value), reading("d1", "b", -value)]);
    }
    let result = StoredWhat::Event {
        measured_at_us: 6,
        pipeline: "vib".into(),
        kind: muster_wire::EventKind::Anomaly,
        label: "normal".into(),
        score: 0.25,
    };
    stored(&feed, vec![item("d1", result), item("d1", StoredWhat::Ledger)]);
    feed.flush();
    feed.flush();
    let values = json!({"a": {"value": 3.0, "at_us": 5}, "b": {"value": -3.0, "at_us": 5}});
    let expect = json!({"device": "d1", "received_at_us": NOW_US, "values": values});
    assert_eq!(next(&mut watcher).await, (LiveKind::Reading, expect));
    let results = json!({"vib": {"kind": "anomaly", "label": "normal", "score": 0.25, "at_us": 6}});
    assert_eq!(next(&mut watcher).await.1["results"], results);
    assert_eq!(next(&mut watcher).await, (LiveKind::Ledger, json!({"device": "d1", "at_us": NOW_US})));
    stored(&feed, vec![item("d1", StoredWhat::Presence { connected: true })]);
    assert_eq!(next(&mut watcher).await.0, LiveKind::Presence, "nothing came between");
}

#[tokio::test]
async fn presence_is_told_at_once_and_not_from_before_the_start() {
    let (feed, mut watcher) = watched();
    let mut before = item("d1", StoredWhat::Presence { connected: true });
    (before.position, before.received_at_us) = (FIRST - 1, NOW_US + 1);
    stored(&feed, vec![before]);
    assert_eq!(feed.presence_of("acme", "d1"), None);
    stored(&feed, vec![item("d1", StoredWhat::Presence { connected: true })]);
    assert!(feed.presence_of("acme", "d1").unwrap().connected);
    let expect = json!({"device": "d1", "connected": true, "at_us": NOW_US});
    assert_eq!(next(&mut watcher).await, (LiveKind::Presence, expect));
}

#[tokio::test]
async fn much_news_is_spread_over_flushes() {
    let (feed, mut watcher) = watched();
    for device in 0..=DEVICES_PER_FLUSH {
        stored(&feed, vec![reading(&format!("d{device}"), "a", 1.0)]);
    }
    feed.flush();
    for device in 0..DEVICES_PER_FLUSH {
        assert_eq!(next(&mut watcher).await.1["device"], format!("d{device}"), "the longest waiting first");
    }
    feed.flush();
    assert_eq!(next(&mut watcher).await.1["device"], format!("d{DEVICES_PER_FLUSH}"));
}

fn result(device: &str, pipeline: &str) -> StoredItem {
    let kind = muster_wire::EventKind::Anomaly;
    let (pipeline, label) = (pipeline.to_owned(), "normal".to_owned());
    item(device, StoredWhat::Event { measured_at_us: 6, pipeline, kind, label, score: 0.25 })
}

#[tokio::test]
async fn a_devices_waiting_values_are_bounded_and_known_ones_follow() {
    let (feed, mut watcher) = watched();
    stored(&feed, vec![result("d1", "vib")]);
    for metric in 1..VALUES_PER_DEVICE_MAX {
        stored(&feed, vec![reading("d1", &format!("m{metric}"), 1.0)]);
    }
    stored(&feed, vec![reading("d1", "m1", 2.0), result("d1", "vib")]);
    assert_eq!(feed.left_out(), 0);
    stored(&feed, vec![reading("d1", "one more", 1.0), result("d1", "one more")]);
    assert_eq!(feed.left_out(), 2);
    feed.flush();
    let values = next(&mut watcher).await.1["values"].clone();
    let shown = values.as_object().unwrap();
    assert_eq!((shown.len(), &shown["m1"]["value"]), (VALUES_PER_DEVICE_MAX - 1, &json!(2.0)));
    assert_eq!(next(&mut watcher).await.1["results"].as_object().unwrap().len(), 1);
}

#[test]
fn waiting_devices_are_bounded_and_left_out_ones_come_next_time() {
    let (feed, _watcher) = watched();
    let all = |from: usize, count: usize| {
        (from..from + count).map(|device| reading(&format!("d{device}"), "a", 1.0)).collect::<Vec<_>>()
    };
    stored(&feed, all(0, DEVICES_MAX));
    assert_eq!(feed.left_out(), 0);
    stored(&feed, all(DEVICES_MAX - 1, 3));
    assert_eq!(feed.left_out(), 2, "one was waiting");
    feed.flush();
    stored(&feed, all(DEVICES_MAX, 2));
    assert_eq!(feed.left_out(), 2, "a flush makes room");
}

#[test]
fn an_unwatched_tenant_costs_nothing() {
    let bus = LiveBus::new();
    let feed = Feed::new(bus.clone(), 0);
    stored(&feed, vec![reading("d1", "a", 1.0)]);
    feed.flush();
    assert_eq!(bus.stats().published, 0);
}

async fn frames(app: &TestApp, token: &str, path: &str, last: Option<&str>, count: usize) -> Vec<String> {
    let mut request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = app.admin.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let (mut body, mut text) = (response.into_body(), String::new());
    while text.matches("\n\n").count() < count {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn the_stream_has_ids_and_resumes() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, Permission::ALL).await;
    let path = "/api/v1/tenants/acme/live";
    let bus = &app.parts.page.bus;
    let first = bus.publish("acme", LiveKind::Reading, Some("d1"), "{\"n\":1}");
    bus.publish("acme", LiveKind::Alert, Some("d1"), "{\"n\":2}");
    bus.publish("acme", LiveKind::Reading, Some("d2"), "{\"n\":3}");
    let fresh = frames(&app, &token, path, None, 1).await;
    assert!(
        fresh[0].contains("event: hello") && fresh[0].contains(&format!("id: {}", bus.newest())),
        "{fresh:?}"
    );
    let resumed = frames(&app, &token, path, Some(&first.to_string()), 3).await;
    assert!(resumed[0].contains("replays 2") && resumed[1].contains("event: alert"), "{resumed:?}");
    assert!(resumed[1].contains("data: {\"n\":2}") && resumed[2].contains("data: {\"n\":3}"), "{resumed:?}");
    let some =
        frames(&app, &token, &format!("{path}?device=d2&kinds=reading,event"), Some(&first.to_string()), 2)
            .await;
    assert!(some[0].contains("replays 1") && some[1].contains("{\"n\":3}"), "{some:?}");
    for unknown in ["00000000-1", "nonsense"] {
        let reset = frames(&app, &token, path, Some(unknown), 1).await;
        assert!(reset[0].contains("event: reset"), "{reset:?}");
    }
    app.call(As::Token(&token), "GET", &format!("{path}?kinds=nope"), None)
        .await
        .refused("invalid_argument", Some("kinds"));
}

/// A tenant whose site `north` and group `old` have a device each, and one device that is nowhere; gives a token that reaches
/// the two places.
async fn scoped(app: &TestApp) -> String {
    let acme = app.tenant("acme").await;
    let all = app.token(&acme, Permission::ALL).await;
    let send = async |method: &str, path: &str, body: serde_json::Value| {
        let path = format!("/api/v1/tenants/acme/{path}");
        let answer = app.call(As::Token(&all), method, &path, Some(body)).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
    };
    send("POST", "sites", json!({ "id": "north" })).await;
    send("POST", "groups", json!({ "id": "old" })).await;
    send("POST", "devices", json!({ "id": "pump", "site": "north" })).await;
    for device in ["valve", "far"] {
        send("POST", "devices", json!({ "id": device })).await;
    }
    send("PUT", "groups/old/members/valve", json!({})).await;
    let request = TokenRequest {
        name: "scoped".into(),
        scopes: vec![Permission::TelemetryRead, Permission::AlertsRead],
        places: Some(vec!["site:north".into(), "group:old".into()]),
        days: 30,
        ..TokenRequest::default()
    };
    app.parts.slices.tenants.create_token(&owner(&acme), &acme, request).await.unwrap().secret
}

#[tokio::test]
async fn the_stream_of_a_scope_tells_of_its_devices_alone() {
    let app = TestApp::start().await;
    let token = scoped(&app).await;
    let (path, bus) = ("/api/v1/tenants/acme/live", &app.parts.page.bus);
    let first = bus.publish("acme", LiveKind::Reading, Some("pump"), "{}").to_string();
    for device in [Some("far"), Some("pump"), None, Some("valve"), Some("far"), Some("none")] {
        let text = json!({ "of": device });
        bus.publish("acme", LiveKind::Alert, device, &text.to_string());
    }
    let told = frames(&app, &token, path, Some(&first), 3).await;
    assert!(told[0].contains("replays 2"), "{told:?}");
    assert!(told[1].contains("{\"of\":\"pump\"}") && told[2].contains("{\"of\":\"valve\"}"), "{told:?}");
    for device in ["far", "none"] {
        let told = frames(&app, &token, &format!("{path}?device={device}"), Some(&first), 1).await;
        assert!(told[0].contains("replays 0"), "{told:?}");
    }
}

#[tokio::test]
async fn a_stream_follows_a_bounded_number_of_devices() {
    let app = TestApp::start().await;
    let token = scoped(&app).await;
    let add = async |from: usize, to: usize| {
        // Both engines know it; a request a device would take minutes.
        let numbers =
            format!("WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {to})");
        let devices = format!(
            "{numbers} INSERT INTO devices (tenant, device, name, enabled, labels, created_at_us)
             SELECT 'acme', 'd' || i, '', 1, '{{}}', 1 FROM n"
        );
        let sites = format!(
            "{numbers} INSERT INTO device_sites (tenant, device, site) SELECT 'acme', 'd' || i, 'north' FROM n"
        );
        let write = move |tx: &mut Tx<'_>| {
            tx.execute(&Scope::System("test"), &devices, &[])?;
            tx.execute(&Scope::System("test"), &sites, &[])
        };
        app.parts.rules.db.write::<_, DbError>(write).await.unwrap();
    };
    // Beside the two that are there.
    add(3, FOLLOWED_MAX).await;
    let path = "/api/v1/tenants/acme/live";
    frames(&app, &token, path, None, 1).await;
    add(FOLLOWED_MAX + 1, FOLLOWED_MAX + 1).await;
    let refused = app.call(As::Token(&token), "GET", path, None).await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("more than 20000 devices"), "{}", refused.text);
}

#[tokio::test]
async fn rules_and_alerts_speak_http() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, Permission::ALL).await;
    let call = |method: &'static str, path: &str, body: Option<serde_json::Value>| {
        let (app, token, path) = (&app, &token, format!("/api/v1/tenants/acme/{path}"));
        async move { app.call(As::Token(token), method, &path, body).await }
    };
    let draft = |condition: &str| json!({"name": "hot", "on": {"telemetry": {"metrics": ["temp_c"]}}, "condition": condition, "severity": "warning"});
    let refused = call("POST", "rules", Some(draft("valeu > 30"))).await;
    refused.refused("invalid_argument", Some("condition"));
    assert!(refused.text.contains("line 1 column 1"), "{}", refused.text);
    let checked = call("POST", "rules/validate", Some(draft("value >"))).await.expect(200);
    assert_eq!((&checked["valid"], &checked["column"]), (&json!(false), &json!(8)));
    assert_eq!(call("POST", "rules/validate", Some(draft("value > 3"))).await.expect(200)["valid"], true);
    let made = call("POST", "rules", Some(draft("value > 30"))).await.expect(201);
    let rule = format!("rules/{}", made["id"].as_str().unwrap());
    call("POST", "rules", Some(draft("value > 30"))).await.refused("conflict", Some("name"));
    let changed = call("PUT", &format!("{rule}?version=1"), Some(draft("value > 31"))).await.expect(200);
    assert_eq!((&changed["version"], &changed["condition"]), (&json!(2), &json!("value > 31")));
    call("PUT", &format!("{rule}?version=1"), Some(draft("value > 32")))
        .await
        .refused("precondition_failed", None);
    assert_eq!(call("GET", "rules", None).await.expect(200)["items"][0]["name"], "hot");
    call("DELETE", &rule, None).await.expect(204);
    call("GET", &rule, None).await.refused("not_found", None);
    assert_eq!(call("GET", "alerts/counts", None).await.expect(200)["open"], 0);
    assert_eq!(
        call("GET", "alerts?state=open&severity_min=warning", None).await.expect(200)["items"],
        json!([])
    );
    call("GET", "alerts?state=nope", None).await.refused("invalid_argument", Some("state"));
    call("POST", "alerts/none/ack", Some(json!({}))).await.refused("not_found", None);
    assert_eq!(call("GET", "presence", None).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn the_page_needs_nothing_from_outside_and_no_inline_code() {
    let app = TestApp::start().await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let answer = app.call(As::Nobody, "GET", path, None).await;
        assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with(kind), "{path}");
        let policy = answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let foreign = answer.text.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{path}");
        assert!(!answer.text.contains("innerHTML") && !answer.text.contains(" style=\""), "{path}");
    }
}
