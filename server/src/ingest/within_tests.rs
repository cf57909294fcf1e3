//! Lists of the store that are cut to a reach, over HTTP, on a store that holds more of others than one read gives.

use super::{Ingest, OnStored, Parts};
use crate::platform::clock::{Clock as _, SharedClock};
use crate::platform::event_log::{Kind, NewRecord, Origin};
use crate::platform::telemetry::{LIST_MAX, Policy, StoredBatch};
use crate::tenants::Permission;
use crate::tenants::service::GrantRequest;
use crate::testing::{As, TestApp};
use muster_wire::{Event, EventKind, UpClass};
use serde_json::json;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

fn append(app: &TestApp, device: &str, seq: u64) {
    let event = Event {
        pipeline: "p".into(),
        model: "m".into(),
        model_version: "1".into(),
        kind: EventKind::Anomaly,
        label: format!("{device}-{seq}"),
        score: 1.0,
        subject: None,
        latency_us: 1,
        boxes: Vec::new(),
    };
    let record = NewRecord {
        kind: Kind::Message,
        tenant: "acme",
        device,
        class: UpClass::Event.number(),
        qos: 1,
        origin: Origin::Queue { queue_id: 5, seq },
        measured_at_us: app.clock.now_us(),
        body: &event.encode(),
    };
    app.parts.log.append(&record).unwrap();
}

#[tokio::test]
async fn events_and_presence_of_a_scope_are_found_behind_many_of_others() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let root = app.token(&acme, &[Permission::DevicesWrite, Permission::DevicesRead]).await;
    let make = async |path: &str, body| {
        let path = format!("/api/v1/tenants/acme/{path}");
        app.call(As::Token(&root), "POST", &path, Some(body)).await.expect(201);
    };
    make("sites", json!({ "id": "north" })).await;
    make("devices", json!({ "id": "near", "site": "north" })).await;
    make("devices", json!({ "id": "far" })).await;
    let far = LIST_MAX as u64 + 100;
    (1..=3).for_each(|seq| append(&app, "near", seq));
    (1..=far).for_each(|seq| append(&app, "far", seq));
    let (sender, stored) = sync_channel(1_000);
    let hook: OnStored = Box::new(move |batch: &StoredBatch| {
        let _ = sender.try_send(batch.messages);
    });
    // The log's own: by a later one, all of this would have expired.
    let clock: SharedClock = app.clock.clone();
    let (log, store) = (app.parts.log.clone(), app.parts.telemetry.clone());
    let parts = Parts { log, store, clock, on_stored: vec![hook], retention: Box::new(Policy::default) };
    let mut ingest = tokio::task::spawn_blocking(move || Ingest::start(parts).unwrap()).await.unwrap();
    let wait = move || {
        let mut seen = 0;
        while seen < far + 3 {
            seen += stored.recv_timeout(Duration::from_secs(30)).expect("stored in time");
        }
    };
    tokio::task::spawn_blocking(wait).await.unwrap();
    let places = Some(vec!["site:north".to_owned()]);
    let session = app.member(&acme, "a@acme", GrantRequest { role: "viewer".into(), places }).await;
    let get = async |query: &str| {
        let path = format!("/api/v1/tenants/acme/{query}");
        app.call(As::Session(&session), "GET", &path, None).await.expect(200)
    };
    let labels = |page: &serde_json::Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items.iter().map(|item| item["label"].as_str().unwrap().to_owned()).collect()
    };
    let first = get("events?limit=2").await;
    assert_eq!(labels(&first), ["near-3", "near-2"]);
    let rest = get(&format!("events?limit=2&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!((labels(&rest), &rest["next_cursor"]), (vec!["near-1".to_owned()], &serde_json::Value::Null));
    assert_eq!(labels(&get("events?device=far").await), Vec::<String>::new());
    let presence = get("presence").await;
    let heard: Vec<_> =
        presence["items"].as_array().unwrap().iter().map(|item| item["device"].clone()).collect();
    assert_eq!((heard, &presence["next_cursor"]), (vec![json!("near")], &serde_json::Value::Null));
    tokio::task::spawn_blocking(move || ingest.stop()).await.unwrap();
}
