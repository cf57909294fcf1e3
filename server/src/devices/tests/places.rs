//! Sites, groups, and what somebody with a bounded reach sees and may, over HTTP.

use super::{CLAIMS, DEVICES, Fleet, csr};
use crate::alerts::model::{NewAlert, Severity};
use crate::alerts::service::{AlertError, open};
use crate::devices::service::{DYNAMIC_GROUPS_MAX, GROUPS_MAX, SITES_MAX};
use crate::platform::clock::Clock as _;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::live::LiveKind;
use crate::tenants::service::GrantRequest;
use crate::testing::{Answer, As};
use muster_wire::TenantId;
use serde_json::{Value, json};

const SITES: &str = "/api/v1/tenants/acme/sites";
const GROUPS: &str = "/api/v1/tenants/acme/groups";

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn ids(answer: Answer, field: &str) -> Vec<String> {
    let items = answer.expect(200)["items"].as_array().unwrap().clone();
    items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
}

impl Fleet {
    async fn device(&self, id: &str, site: Option<&str>, labels: Value) {
        let body = json!({ "id": id, "site": site, "labels": labels });
        self.call("POST", DEVICES, body).await.expect(201);
    }

    async fn site(&self, id: &str) {
        self.call("POST", SITES, json!({ "id": id })).await.expect(201);
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    async fn members(&self, group: &str) -> Vec<String> {
        ids(self.get(&format!("{GROUPS}/{group}/members")).await, "device")
    }

    /// A session of a member with a role and a scope.
    async fn scoped(&self, role: &str, places: &[&str]) -> String {
        let places = Some(places.iter().map(|place| (*place).to_owned()).collect::<Vec<_>>());
        let email = format!("{role}-{}@acme", places.as_ref().unwrap().join("-").replace(':', "-"));
        self.app.member(&acme(), &email, GrantRequest { role: role.to_owned(), places }).await
    }

    async fn as_session(&self, session: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.app.call(As::Session(session), method, path, body).await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>, &Scope) -> Result<T, DbError> + Send + 'static,
    ) -> T {
        let scope = Scope::Tenant(acme());
        self.app.parts.rules.db.write(move |tx| work(tx, &scope)).await.unwrap()
    }
}

#[tokio::test]
async fn a_site_is_made_changed_used_and_deleted() {
    let fleet = Fleet::start().await;
    let body = json!({ "id": "north", "name": "North", "address": "1 Road", "time_zone": "Europe/Berlin" });
    fleet.call("POST", SITES, body.clone()).await.expect(201);
    fleet.call("POST", SITES, body).await.refused("conflict", None);
    for (field, value) in [
        ("id", json!("North")),
        ("name", json!("x".repeat(129))),
        ("address", json!("x".repeat(513))),
        ("time_zone", json!("Europe/Bérlin")),
        ("time_zone", json!("x".repeat(65))),
    ] {
        let mut body = json!({ "id": "south" });
        body[field] = value;
        fleet.call("POST", SITES, body).await.refused("invalid_argument", Some(field));
    }
    let north = format!("{SITES}/north");
    let changed = fleet.call("PUT", &north, json!({ "name": "Far north" })).await.expect(200);
    assert_eq!((&changed["name"], &changed["address"]), (&json!("Far north"), &json!("")));
    fleet.call("PUT", &format!("{SITES}/none"), json!({})).await.refused("not_found", None);
    let nowhere = json!({ "id": "pump", "site": "none" });
    fleet.call("POST", DEVICES, nowhere).await.refused("invalid_argument", Some("site"));
    fleet.device("pump", Some("north"), json!({})).await;
    assert_eq!(fleet.get(&format!("{DEVICES}/pump")).await.expect(200)["site"], "north");
    fleet.call("DELETE", &north, Value::Null).await.refused("conflict", None);
    let site = format!("{DEVICES}/pump/site");
    assert_eq!(fleet.call("DELETE", &site, Value::Null).await.expect(200)["site"], Value::Null);
    fleet.call("PUT", &site, json!({ "site": "none" })).await.refused("invalid_argument", Some("site"));
    fleet.call("DELETE", &north, Value::Null).await.expect(204);
    fleet.get(&north).await.refused("not_found", None);
}

#[tokio::test]
async fn a_groups_condition_is_asked_whenever_a_device_or_the_group_is_written() {
    let fleet = Fleet::start().await;
    fleet.site("north").await;
    fleet.device("a", None, json!({ "kind": "pump" })).await;
    fleet.device("b", Some("north"), json!({ "kind": "valve" })).await;
    let make = async |id: &str, condition: &str| {
        fleet.call("POST", GROUPS, json!({ "id": id, "condition": condition })).await
    };
    make("pumps", "labels.kind == 'pump'").await.expect(201);
    make("wrong", "labels.kind").await.expect(201);
    make("number", "1 + 1").await.refused("invalid_argument", Some("condition"));
    make("broken", "labels.kind ==").await.refused("invalid_argument", Some("condition"));
    make("north-on", "site == 'north' && enabled").await.expect(201);
    assert_eq!(
        (fleet.members("pumps").await, fleet.members("north-on").await),
        (vec!["a".into()], vec!["b".into()])
    );
    // A new device, new labels, another site, a switch, a deletion.
    fleet.device("c", Some("north"), json!({ "kind": "pump" })).await;
    assert_eq!(fleet.members("pumps").await, ["a", "c"]);
    assert_eq!(fleet.members("north-on").await, ["b", "c"]);
    let patch = async |id: &str, body: Value| {
        fleet.call("PATCH", &format!("{DEVICES}/{id}"), body).await.expect(200);
    };
    patch("a", json!({ "labels": {} })).await;
    patch("b", json!({ "enabled": false })).await;
    assert_eq!(
        (fleet.members("pumps").await, fleet.members("north-on").await),
        (vec!["c".into()], vec!["c".into()])
    );
    let site = json!({ "site": "north" });
    fleet.call("PUT", &format!("{DEVICES}/a/site"), site).await.expect(200);
    assert_eq!(fleet.members("north-on").await, ["a", "c"]);
    fleet.call("DELETE", &format!("{DEVICES}/c"), Value::Null).await.expect(204);
    assert_eq!(fleet.members("north-on").await, ["a"]);
    let pumps = format!("{GROUPS}/pumps");
    fleet.call("PUT", &pumps, json!({ "condition": "id == 'b'" })).await.expect(200);
    assert_eq!(fleet.members("pumps").await, ["b"]);
    fleet.call("PUT", &pumps, json!({})).await.refused("conflict", None);
    fleet.call("PUT", &format!("{pumps}/members/a"), Value::Null).await.refused("conflict", None);
    fleet.call("DELETE", &pumps, Value::Null).await.expect(204);
    fleet.get(&pumps).await.refused("not_found", None);
    // An enrolment makes a device, too.
    let claim = fleet.claim(json!({ "labels": { "kind": "pump" } })).await;
    make("new", "labels.kind == 'pump'").await.expect(201);
    fleet.enroll(&claim, &super::csr(), Some("enrolled")).await.expect(201);
    assert_eq!(fleet.members("new").await, ["enrolled"]);
}

#[tokio::test]
async fn people_name_the_members_of_a_group_without_a_condition_and_lists_are_cut_to_it() {
    let fleet = Fleet::start().await;
    fleet.site("north").await;
    for (id, site) in [("a", Some("north")), ("b", None), ("c", Some("north")), ("d", None)] {
        fleet.device(id, site, json!({})).await;
    }
    fleet.call("POST", GROUPS, json!({ "id": "old", "name": "Old ones" })).await.expect(201);
    let member = |id: &str| format!("{GROUPS}/old/members/{id}");
    for id in ["d", "a", "a"] {
        fleet.call("PUT", &member(id), Value::Null).await.expect(204);
    }
    fleet.call("PUT", &member("none"), Value::Null).await.refused("not_found", None);
    let none = format!("{GROUPS}/none/members/a");
    fleet.call("PUT", &none, Value::Null).await.refused("not_found", None);
    assert_eq!(fleet.members("old").await, ["a", "d"]);
    let list = async |query: &str| ids(fleet.get(&format!("{DEVICES}?{query}")).await, "id");
    assert_eq!(list("site=north").await, ["a", "c"]);
    assert_eq!(list("group=old").await, ["a", "d"]);
    assert_eq!(list("group=old&site=north").await, ["a"]);
    assert_eq!(list("site=none").await, Vec::<String>::new());
    fleet.get(&format!("{DEVICES}?site=A")).await.refused("invalid_argument", Some("site"));
    fleet.call("DELETE", &member("a"), Value::Null).await.expect(204);
    assert_eq!(fleet.members("old").await, ["d"]);
    let page = fleet.get(&format!("{GROUPS}/old/members?limit=1")).await.expect(200);
    assert_eq!((&page["items"][0]["device"], &page["next_cursor"]), (&json!("d"), &Value::Null));
    fleet
        .call("PUT", &format!("{GROUPS}/old"), json!({ "condition": "true" }))
        .await
        .refused("conflict", None);
}

#[tokio::test]
async fn a_tenant_has_so_many_sites_and_groups() {
    let fleet = Fleet::start().await;
    let fill = |table: &'static str, id: &'static str, more: &'static str, count: u32| {
        fleet.write(move |tx, scope| {
            for at in 0..count {
                let sql = format!(
                    "INSERT INTO {table} (tenant, {id}, name, {more}, created_at_us) VALUES ($1, $2, '', {}, 0)",
                    if more == "condition" { "NULL" } else { "'', ''" }
                );
                tx.execute(scope, &sql, &[&"acme", &format!("x{at}")])?;
            }
            Ok(())
        })
    };
    fill("sites", "site", "address, time_zone", SITES_MAX - 1).await;
    fleet.site("last").await;
    let refused = fleet.call("POST", SITES, json!({ "id": "more" })).await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("quota of 1000 sites"), "{}", refused.text);
    for at in 0..DYNAMIC_GROUPS_MAX {
        let body = json!({ "id": format!("d{at}"), "condition": "enabled" });
        fleet.call("POST", GROUPS, body).await.expect(201);
    }
    let refused = fleet.call("POST", GROUPS, json!({ "id": "d", "condition": "enabled" })).await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("32 groups with a condition"), "{}", refused.text);
    fill("device_groups", "group_id", "condition", GROUPS_MAX - DYNAMIC_GROUPS_MAX - 1).await;
    fleet.call("POST", GROUPS, json!({ "id": "last" })).await.expect(201);
    let refused = fleet.call("POST", GROUPS, json!({ "id": "more" })).await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("quota of 200 groups"), "{}", refused.text);
}

#[tokio::test]
async fn who_has_a_scope_sees_full_pages_of_what_is_within_and_writes_nothing_out_of_it() {
    let fleet = Fleet::start().await;
    for site in ["north", "south"] {
        fleet.site(site).await;
    }
    fleet.call("POST", GROUPS, json!({ "id": "keys", "condition": "'key' in labels" })).await.expect(201);
    for at in 0..6 {
        let site = if at % 2 == 0 { "north" } else { "south" };
        fleet.device(&format!("d{at}"), Some(site), json!({})).await;
    }
    fleet.device("key", Some("south"), json!({ "key": "1" })).await;
    let near = fleet.scoped("admin", &["site:north", "group:keys"]).await;
    let ask = async |method: &str, path: &str, body: Value| {
        fleet.as_session(&near, method, path, (!body.is_null()).then_some(body)).await
    };
    let first = ask("GET", &format!("{DEVICES}?limit=3"), Value::Null).await.expect(200);
    let seen: Vec<_> = first["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(seen, ["d0", "d2", "d4"], "a full page, though others are between");
    let next = format!("{DEVICES}?limit=3&cursor={}", first["next_cursor"].as_str().unwrap());
    assert_eq!(ids(ask("GET", &next, Value::Null).await, "id"), ["key"]);
    assert_eq!(ids(ask("GET", &format!("{DEVICES}?site=south"), Value::Null).await, "id"), ["key"]);
    assert_eq!(ids(ask("GET", SITES, Value::Null).await, "id"), ["north"]);
    assert_eq!(ids(ask("GET", GROUPS, Value::Null).await, "id"), ["keys"]);
    ask("GET", &format!("{SITES}/south"), Value::Null).await.refused("not_found", None);
    // New devices are within, and no change takes one out.
    ask("POST", DEVICES, json!({ "id": "new" })).await.refused("permission_denied", None);
    ask("POST", DEVICES, json!({ "id": "new", "site": "south" })).await.refused("permission_denied", None);
    ask("POST", DEVICES, json!({ "id": "new", "site": "north" })).await.expect(201);
    ask("POST", DEVICES, json!({ "id": "n2", "labels": { "key": "" } })).await.expect(201);
    let key = format!("{DEVICES}/key");
    ask("PATCH", &key, json!({ "labels": {} })).await.refused("permission_denied", None);
    ask("PATCH", &key, json!({ "name": "Key" })).await.expect(200);
    let site = format!("{DEVICES}/d0/site");
    ask("PUT", &site, json!({ "site": "south" })).await.refused("permission_denied", None);
    ask("DELETE", &site, Value::Null).await.refused("permission_denied", None);
    let kept = fleet.get(&format!("{DEVICES}/d0")).await.expect(200);
    assert_eq!(kept["site"], "north", "what was refused was undone");
    fleet.get(&format!("{DEVICES}/nowhere")).await.refused("not_found", None);
    // Claims for devices that are within.
    ask("POST", CLAIMS, json!({ "device": "d1" })).await.refused("not_found", None);
    ask("POST", CLAIMS, json!({})).await.refused("permission_denied", None);
    ask("POST", CLAIMS, json!({ "device": "d0" })).await.expect(201);
    let theirs = fleet.call("POST", CLAIMS, json!({ "device": "d1" })).await.expect(201);
    let items = ask("GET", CLAIMS, Value::Null).await.expect(200)["items"].clone();
    assert_eq!((items.as_array().unwrap().len(), &items[0]["device"]), (1, &json!("d0")));
    let path = format!("{CLAIMS}/{}", theirs["details"]["id"].as_str().unwrap());
    ask("DELETE", &path, Value::Null).await.refused("not_found", None);
    let path = format!("{CLAIMS}/{}", items[0]["id"].as_str().unwrap());
    ask("DELETE", &path, Value::Null).await.expect(204);
    // A place that a scope names stays.
    fleet.call("DELETE", &format!("{GROUPS}/keys"), Value::Null).await.refused("conflict", None);
}

#[tokio::test]
async fn the_id_of_a_deleted_device_is_not_for_somebody_with_a_part_of_the_tenant() {
    let fleet = Fleet::start().await;
    for site in ["north", "south"] {
        fleet.site(site).await;
    }
    fleet.device("pump", Some("south"), json!({})).await;
    let near = fleet.scoped("admin", &["site:north"]).await;
    let new = json!({ "id": "pump", "site": "north" });
    fleet.call("DELETE", &format!("{DEVICES}/pump"), Value::Null).await.expect(204);
    let refused = fleet.as_session(&near, "POST", DEVICES, Some(new.clone())).await;
    refused.refused("conflict", None);
    assert!(refused.text.contains("a deleted device had this id"), "{}", refused.text);
    fleet.call("POST", DEVICES, new.clone()).await.expect(201);
    // Forgotten once nothing is stored of it any more.
    fleet.call("DELETE", &format!("{DEVICES}/pump"), Value::Null).await.expect(204);
    let (devices, now_us) = (&fleet.app.parts.slices.devices, fleet.app.clock.now_us());
    assert_eq!(devices.prune(&acme(), now_us - 1).await.unwrap(), 0);
    assert_eq!(devices.prune(&acme(), now_us).await.unwrap(), 1);
    fleet.as_session(&near, "POST", DEVICES, Some(new)).await.expect(201);
}

#[tokio::test]
async fn claims_that_name_a_device_end_when_it_leaves_a_place_or_is_deleted() {
    let fleet = Fleet::start().await;
    for site in ["north", "south"] {
        fleet.site(site).await;
    }
    fleet.call("POST", GROUPS, json!({ "id": "named" })).await.expect(201);
    fleet.call("POST", GROUPS, json!({ "id": "keys", "condition": "'key' in labels" })).await.expect(201);
    fleet.device("pump", None, json!({ "key": "1" })).await;
    let (pump, member) = (format!("{DEVICES}/pump"), format!("{GROUPS}/named/members/pump"));
    let site = format!("{pump}/site");
    for (method, path, body, ends) in [
        ("PUT", &site, json!({ "site": "north" }), false),
        ("PUT", &site, json!({ "site": "north" }), false),
        ("PUT", &member, Value::Null, false),
        ("PATCH", &pump, json!({ "name": "Pump" }), false),
        ("PUT", &site, json!({ "site": "south" }), true),
        ("DELETE", &site, Value::Null, true),
        ("DELETE", &member, Value::Null, true),
        ("PATCH", &pump, json!({ "labels": {} }), true),
        ("DELETE", &pump, Value::Null, true),
    ] {
        let claim = fleet.claim(json!({ "device": "pump" })).await;
        assert!(fleet.call(method, path, body).await.status.is_success(), "{method} {path}");
        let left = ids(fleet.get(CLAIMS).await, "id").len();
        assert_eq!(left, usize::from(!ends), "{method} {path}");
        let answer = fleet.enroll(&claim, &csr(), None).await;
        assert_eq!(answer.status.as_u16(), if ends { 401 } else { 201 }, "{method} {path}");
        // What was used up stays, for a lost reply.
        for used in ids(fleet.get(CLAIMS).await, "id") {
            fleet.call("DELETE", &format!("{CLAIMS}/{used}"), Value::Null).await.expect(204);
        }
    }
}

fn alert(id: &str, device: &str, opened_at_us: i64) -> NewAlert {
    NewAlert {
        tenant: acme(),
        id: id.into(),
        device: device.into(),
        rule_id: "r".into(),
        rule_version: 1,
        rule_name: "hot".into(),
        subject: "metric:t".into(),
        severity: Severity::Info,
        historical: false,
        value: muster_wire::Value::Number(1.0),
        message: String::new(),
        opened_at_us,
    }
}

#[tokio::test]
async fn alerts_and_the_live_stream_are_cut_to_the_scope() {
    let fleet = Fleet::start().await;
    fleet.site("north").await;
    fleet.device("near", Some("north"), json!({})).await;
    fleet.device("far", None, json!({})).await;
    fleet
        .write(|tx, _| {
            for at in 0..6 {
                let device = if at % 2 == 0 { "near" } else { "far" };
                open(tx, &alert(&format!("a{at}"), device, at))?;
            }
            open(tx, &alert("platform", "-", 9))
        })
        .await;
    let session = fleet.scoped("operator", &["site:north"]).await;
    let alerts = "/api/v1/tenants/acme/alerts";
    let get = async |path: &str| fleet.as_session(&session, "GET", path, None).await;
    assert_eq!(ids(get(&format!("{alerts}?limit=2")).await, "id"), ["a4", "a2"], "a full page");
    assert_eq!(get(&format!("{alerts}/counts")).await.expect(200)["open"], 3);
    get(&format!("{alerts}/a0")).await.expect(200);
    let answer = async |id: &str, step: &str| {
        fleet.as_session(&session, "POST", &format!("{alerts}/{id}/{step}"), Some(json!({}))).await
    };
    for id in ["a1", "platform", "none"] {
        get(&format!("{alerts}/{id}")).await.refused("not_found", None);
        answer(id, "ack").await.refused("not_found", None);
        answer(id, "resolve").await.refused("not_found", None);
    }
    assert_eq!(answer("a0", "ack").await.expect(200)["state"], "acked");
    let none = fleet.app.parts.slices.alerts.get(&acme(), crate::tenants::Reach::Everything, "none").await;
    assert!(matches!(none, Err(AlertError::NotFound)));
    // The live stream.
    let page = &fleet.app.parts.page;
    let reach = crate::tenants::Reach::parse(Some(&["site:north".to_owned()])).unwrap();
    let followed = page.devices.followed(&acme(), &reach).await.unwrap().unwrap();
    let filter = crate::platform::live::Filter::default().devices(followed);
    let mut stream = page.bus.subscribe("acme", filter, None).unwrap();
    for device in [Some("far"), None, Some("-"), Some("near")] {
        page.bus.publish("acme", LiveKind::Presence, device, "{}");
    }
    let first = stream.next().await.unwrap();
    assert_eq!(first.device.as_deref(), Some("near"), "and nothing before it");
}
