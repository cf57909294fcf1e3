//! Claims for a fleet: approval, patterns, profiles.

use super::{CLAIMS, DEVICES, Fleet, csr};
use crate::devices::service::{PROFILES_MAX, WAITING_MAX};
use serde_json::{Value, json};

const QUEUE: &str = "/api/v1/tenants/acme/enrollments";
const PROFILES: &str = "/api/v1/tenants/acme/profiles";
const DAY_US: i64 = 86_400_000_000;

impl Fleet {
    async fn queue(&self, state: &str) -> Vec<Value> {
        let listed = self.call("GET", &format!("{QUEUE}?state={state}"), Value::Null).await.expect(200);
        listed["items"].as_array().unwrap().clone()
    }

    async fn decide(&self, of: &Value, decision: &str) -> Value {
        let path = format!("{QUEUE}/{}/{decision}", of["id"].as_str().unwrap());
        self.call("POST", &path, json!({ "note": "seen on site" })).await.expect(200)
    }
}

#[tokio::test]
async fn a_device_waits_until_a_person_lets_it_in_or_turns_it_away() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "uses_max": 5, "approval": true })).await;
    let (good, bad) = (csr(), csr());
    for (key, name) in [(&good, "pump"), (&bad, "mole")] {
        let waits = fleet.enroll(&claim, key, Some(name)).await;
        assert_eq!(waits.headers["retry-after"], "30");
        assert_eq!(waits.expect(202), json!({ "state": "pending", "retry_after_s": 30 }));
    }
    fleet.enroll(&claim, &good, Some("pump")).await.expect(202);
    let waiting = fleet.queue("pending").await;
    assert_eq!(waiting.len(), 2, "asking again adds nothing");
    let of = |name: &str| waiting.iter().find(|row| row["device"] == name).unwrap();
    fleet.call("GET", &format!("{DEVICES}/pump"), Value::Null).await.refused("not_found", None);
    let approved = fleet.decide(of("pump"), "approve").await;
    assert_eq!((&approved["state"], &approved["note"]), (&json!("approved"), &json!("seen on site")));
    fleet.decide(of("mole"), "reject").await;
    let path = format!("{QUEUE}/{}/approve", of("mole")["id"].as_str().unwrap());
    fleet.call("POST", &path, json!({})).await.refused("conflict", None);
    let turned_away = fleet.enroll(&claim, &bad, Some("mole")).await;
    turned_away.refused("permission_denied", None);
    assert!(turned_away.text.contains("seen on site"), "{}", turned_away.text);

    // It enrols with its next question, and a lost reply is repeated.
    let enrolled = fleet.enroll(&claim, &good, Some("pump")).await.expect(201);
    assert_eq!(enrolled["device"], "pump");
    assert_eq!(fleet.enroll(&claim, &good, Some("pump")).await.expect(201), enrolled);
    assert_eq!((fleet.queue("pending").await.len(), fleet.queue("approved").await.len()), (0, 0));
    let listed = fleet.call("GET", CLAIMS, Value::Null).await.expect(200);
    assert_eq!(listed["items"][0]["uses"], 1);
}

#[tokio::test]
async fn the_queue_is_bounded_by_the_claims_uses_and_forgets_what_is_old() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "uses_max": 2, "approval": true })).await;
    let first = csr();
    fleet.enroll(&claim, &first, Some("one")).await.expect(202);
    fleet.enroll(&claim, &csr(), Some("one")).await.refused("conflict", None);
    fleet.enroll(&claim, &csr(), Some("two")).await.expect(202);
    fleet.enroll(&claim, &csr(), Some("three")).await.refused("claim_spent", None);
    // A claim that ended takes no new ones; who waits may still be let in.
    fleet.app.clock.advance_us(2 * DAY_US);
    fleet.enroll(&claim, &csr(), Some("three")).await.refused("claim_spent", None);
    let waiting = fleet.queue("pending").await;
    fleet.decide(waiting.iter().find(|row| row["device"] == "one").unwrap(), "approve").await;
    fleet.enroll(&claim, &first, Some("one")).await.expect(201);
    fleet.app.clock.advance_us(6 * DAY_US);
    assert_eq!(fleet.queue("pending").await.len(), 0, "a week is over");
    let path = format!("{QUEUE}/{}/approve", waiting[1]["id"].as_str().unwrap());
    fleet.call("POST", &path, json!({})).await.refused("not_found", None);
}

#[tokio::test]
async fn who_was_let_in_late_still_finds_the_claim() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "life_s": 3_600, "approval": true })).await;
    let key = csr();
    fleet.enroll(&claim, &key, Some("one")).await.expect(202);
    fleet.app.clock.advance_us(6 * DAY_US);
    fleet.decide(&fleet.queue("pending").await[0], "approve").await;
    fleet.app.clock.advance_us(2 * DAY_US);
    // Forgets claims that ended a week ago, but the one that somebody waits with.
    fleet.claim(json!({})).await;
    fleet.enroll(&claim, &key, Some("one")).await.expect(201);
    fleet.app.clock.advance_us(DAY_US);
    fleet.claim(json!({})).await;
    fleet.enroll(&claim, &key, Some("one")).await.refused("unauthenticated", None);
}

#[tokio::test]
async fn no_more_than_the_bound_wait_in_a_tenant() {
    let fleet = Fleet::start().await;
    let claim = fleet.claim(json!({ "uses_max": 5_000, "approval": true })).await;
    for _ in 0..WAITING_MAX {
        fleet.enroll(&claim, &csr(), None).await.expect(202);
    }
    fleet.enroll(&claim, &csr(), None).await.refused("rate_limited", None);
    let first = fleet.queue("pending").await.remove(0);
    fleet.decide(&first, "reject").await;
    fleet.enroll(&claim, &csr(), None).await.expect(202);
}

#[tokio::test]
async fn a_fleets_claim_gives_ids_that_fit_and_labels_by_template() {
    let fleet = Fleet::start().await;
    let terms = json!({ "uses_max": 9, "id_pattern": "pump-*", "labels": { "asset": "A/{device}" } });
    let claim = fleet.claim(terms).await;
    fleet.enroll(&claim, &csr(), Some("valve-1")).await.refused("invalid_argument", Some("device_name"));
    fleet.enroll(&claim, &csr(), None).await.refused("invalid_argument", Some("device_name"));
    fleet.enroll(&claim, &csr(), Some("pump-1")).await.expect(201);
    let device = fleet.call("GET", &format!("{DEVICES}/pump-1"), Value::Null).await.expect(200);
    assert_eq!(device["labels"], json!({ "asset": "A/pump-1" }));
    for (body, field) in [
        (json!({ "id_pattern": "a/b" }), "id_pattern"),
        (json!({ "device": "pump", "approval": true }), "approval"),
        (json!({ "profile": "none" }), "profile"),
    ] {
        fleet.call("POST", CLAIMS, body).await.refused("invalid_argument", Some(field));
    }
}

#[tokio::test]
async fn a_profile_gives_labels_life_and_what_its_claims_are() {
    let fleet = Fleet::start().await;
    let spec = json!({
        "labels": { "kind": "pump", "site": "none" }, "certificate_life_s": 7_200, "claim": { "uses_max": 3, "approval": true },
    });
    let put = |spec: Value| fleet.call("PUT", "/api/v1/tenants/acme/profiles/pump", spec);
    put(json!({ "certificate_life_s": 1 })).await.refused("invalid_argument", Some("certificate_life_s"));
    put(json!({ "nonsense": 1 })).await.refused("invalid_argument", Some("nonsense"));
    assert_eq!(put(spec.clone()).await.expect(200)["spec"], spec);
    let made = fleet.call(
        "POST",
        CLAIMS,
        json!({ "profile": "pump", "approval": false, "labels": { "site": "berlin" } }),
    );
    let made = made.await.expect(201);
    assert_eq!((&made["details"]["uses_max"], &made["details"]["approval"]), (&json!(3), &json!(false)));
    let claim = made["claim"].as_str().unwrap().split(':').nth(3).unwrap().to_owned();
    let enrolled = fleet.enroll(&claim, &csr(), Some("p1")).await.expect(201);
    let life_us = |answer: &Value| {
        answer["expires_at_us"].as_i64().unwrap() - answer["server_time_us"].as_i64().unwrap()
    };
    assert_eq!(life_us(&enrolled), 7_200_000_000);
    let device = fleet.call("GET", &format!("{DEVICES}/p1"), Value::Null).await.expect(200);
    assert_eq!(
        (&device["profile"], &device["labels"]),
        (&json!("pump"), &json!({ "kind": "pump", "site": "berlin" }))
    );
    // One that is named cannot go; once nothing names it, it can.
    fleet.call("DELETE", &format!("{PROFILES}/pump"), Value::Null).await.refused("conflict", None);
    let id = made["details"]["id"].as_str().unwrap();
    fleet.call("DELETE", &format!("{CLAIMS}/{id}"), Value::Null).await.expect(204);
    let unknown = fleet.call("PATCH", &format!("{DEVICES}/p1"), json!({ "profile": "none" })).await;
    unknown.refused("invalid_argument", Some("profile"));
    fleet.call("PATCH", &format!("{DEVICES}/p1"), json!({ "profile": "" })).await.expect(200);
    fleet.call("DELETE", &format!("{PROFILES}/pump"), Value::Null).await.expect(204);
    fleet.call("GET", &format!("{PROFILES}/pump"), Value::Null).await.refused("not_found", None);
}

#[tokio::test]
async fn a_tenant_has_so_many_profiles() {
    let fleet = Fleet::start().await;
    let put = |at: u32| fleet.call("PUT", format!("{PROFILES}/p{at}").leak(), json!({}));
    for at in 0..PROFILES_MAX {
        put(at).await.expect(200);
    }
    put(PROFILES_MAX).await.refused("rate_limited", None);
    put(0).await.expect(200);
}
