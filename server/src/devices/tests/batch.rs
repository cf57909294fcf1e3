//! Batches of devices: all or none, each line's fault told.

use super::{CLAIMS, DEVICES, Fleet, csr};
use crate::testing::{Answer, raw};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

impl Fleet {
    async fn batch(&self, query: &str, accept: &str, csv: &str) -> Answer {
        let request = Request::post(format!("{DEVICES}/batch{query}"))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "text/csv; charset=utf-8")
            .header("accept", accept);
        raw(&self.app.admin, request.body(Body::from(csv.to_owned())).unwrap()).await
    }

    async fn devices(&self) -> usize {
        let listed = self.call("GET", DEVICES, Value::Null).await.expect(200);
        listed["items"].as_array().unwrap().len()
    }
}

#[tokio::test]
async fn a_batch_makes_all_its_devices_with_a_claim_each() {
    let fleet = Fleet::start().await;
    let profile = json!({ "labels": { "kind": "pump", "asset": "A-{device}" } });
    fleet.call("PUT", "/api/v1/tenants/acme/profiles/pump", profile).await.expect(200);
    let csv = "id,name,site,profile\r\np1,\"Pump, left\",berlin,pump\r\np2,,,\r\n";
    let dry = fleet.batch("?dry_run=true", "*/*", csv).await.expect(200);
    assert_eq!(dry, json!({ "dry_run": true, "devices": [], "errors": [] }));
    assert_eq!(fleet.devices().await, 0);
    let made = fleet.batch("?claims=true", "text/csv", csv).await;
    assert_eq!((made.status.as_u16(), made.headers["content-type"].to_str().unwrap()), (201, "text/csv"));
    let lines: Vec<&str> = made.text.lines().collect();
    assert_eq!(lines[0], "id,name,profile,claim");
    assert!(lines[1].starts_with("p1,\"Pump, left\",pump,muster-claim:localhost:8443:mcl_"), "{}", made.text);
    let p1 = fleet.call("GET", &format!("{DEVICES}/p1"), Value::Null).await.expect(200);
    assert_eq!(p1["labels"], json!({ "kind": "pump", "asset": "A-p1", "site": "berlin" }));
    assert!(fleet.app.parts.directory.lookup("acme", "p2").is_some());
    // Each claim enrols its own device.
    let token = lines[2].rsplit(',').next().unwrap().split(':').nth(3).unwrap();
    fleet.enroll(token, &csr(), Some("p1")).await.refused("invalid_argument", Some("device_name"));
    assert_eq!(fleet.enroll(token, &csr(), None).await.expect(201)["device"], "p2");
    let claims = fleet.call("GET", CLAIMS, Value::Null).await.expect(200);
    assert_eq!(claims["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_batch_with_a_fault_makes_nothing_and_names_line_and_column() {
    let fleet = Fleet::start().await;
    fleet.call("POST", DEVICES, json!({ "id": "old" })).await.expect(201);
    let csv = "id,profile\nnew,\nold,\nother,none\n";
    let dry = fleet.batch("?dry_run=true", "*/*", csv).await.expect(200);
    let told: Vec<_> =
        dry["errors"].as_array().unwrap().iter().map(|e| (e["line"].clone(), e["field"].clone())).collect();
    assert_eq!(told, [(json!(3), json!("id")), (json!(4), json!("profile"))]);
    let refused = fleet.batch("", "*/*", csv).await;
    refused.refused("invalid_argument", Some("line 3: id"));
    assert!(refused.text.contains("line 4, profile: there is no such profile"), "{}", refused.text);
    fleet.batch("", "*/*", "id\na/b\n").await.refused("invalid_argument", Some("line 2: id"));
    assert_eq!(fleet.devices().await, 1, "not even the good lines");
    fleet.call("POST", &format!("{DEVICES}/batch"), json!({})).await.refused("unsupported_media_type", None);
}

#[tokio::test]
async fn a_batch_over_the_quota_makes_nothing() {
    let fleet = Fleet::with(|config| (config.quota.devices_max, config.quota.claims_max) = (3, 2)).await;
    fleet.batch("", "*/*", "id\na\nb\nc\nd\n").await.refused("rate_limited", None);
    fleet.batch("?dry_run=true", "*/*", "id\na\nb\nc\nd\n").await.refused("rate_limited", None);
    fleet.batch("?claims=true", "*/*", "id\na\nb\nc\n").await.refused("rate_limited", None);
    assert_eq!(fleet.devices().await, 0);
    fleet.batch("?claims=true", "*/*", "id\na\nb\n").await.expect(201);
    fleet.batch("", "*/*", "id\nc\n").await.expect(201);
}
