//! One device: export, erasure, and that nothing comes back.

use super::rig::{ROWS_OF_ONE_OF_EACH, Rig, tenant};
use crate::erasure::model::{EXPORT_DAYS, State};
use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::Permission;
use crate::testing::As;
use serde_json::{Value as Json, json};

async fn alert(rig: &Rig, device: &'static str) {
    let write = move |tx: &mut Tx<'_>| {
        tx.execute(
            &Scope::Tenant(tenant("acme")),
            "INSERT INTO alerts (tenant, id, device, rule_id, rule_version, rule_name, subject, severity, state,
                 historical, value, message, opened_at_us)
             VALUES ('acme', $1, $1, 'r', 1, 'hot', '', 'info', 'open', $2, '1', 'hot', 5)",
            &[&device, &false],
        )
    };
    rig.app.parts.slices.erasures.db.write::<_, DbError>(write).await.unwrap();
}

fn serials(lines: &[Json]) -> Vec<f64> {
    lines.iter().map(|line| line["value"].as_f64().unwrap()).collect()
}

async fn it_waits_for_the_store(rig: &Rig, path: &str) {
    for _ in 0..4 {
        rig.step().await;
    }
    let waiting = rig.call("GET", path, None).await.expect(200);
    assert_eq!(waiting["state"], "draining");
    assert!(waiting["waiting_for"].as_str().unwrap().contains("read the event log up to"), "{waiting}");
}

#[tokio::test]
async fn a_device_is_exported_and_erased_and_nothing_comes_back() {
    let mut rig = Rig::start().await;
    for device in ["pump", "valve"] {
        rig.create("acme", device).await;
        rig.one_of_each("acme", device);
        alert(&rig, device).await;
    }
    rig.read_log();
    // Not read by the store yet when the erasure begins.
    rig.telemetry("acme", "pump", 5, 1);

    let id = rig.erase_device("acme", "pump").await;
    let pump = "/api/v1/tenants/acme/devices/pump";
    assert!(rig.step().await);
    assert_eq!(rig.call("GET", pump, None).await.expect(200)["enabled"], false);
    rig.call("PATCH", pump, Some(json!({ "enabled": true }))).await.refused("conflict", None);
    rig.call("DELETE", pump, None).await.refused("conflict", None);
    rig.call("POST", &format!("{pump}/erase"), Some(json!({}))).await.refused("conflict", None);
    rig.call("POST", "/api/v1/tenants/acme/devices/none/erase", Some(json!({})))
        .await
        .refused("not_found", None);
    let path = format!("/api/v1/tenants/acme/erasures/{id}");
    it_waits_for_the_store(&rig, &path).await;
    rig.read_log();

    let job = rig.finish("acme", &id).await;
    assert!(job.rows_erased > 10 && job.export_until_us.is_some(), "{job:?}");
    let lines = async |kind| rig.lines(As::Token(&rig.token), "acme", &id, kind).await;
    assert_eq!(serials(&lines("readings").await), [1_000.0, 2_000.0, 3_000.0, 5_000.0]);
    assert_eq!(lines("readings").await[0]["device"], "pump");
    assert_eq!(lines("events").await[0]["subject"], "frame 7");
    assert_eq!(lines("dead-letters").await[0]["body_base64"], "bm9uc2Vuc2U=");
    assert_eq!(lines("rejected").await[0]["reason"], 0x97);
    let ledger = lines("ledger").await;
    let queues = ledger[0]["queues"].as_array().unwrap();
    let stored: u64 = queues.iter().map(|queue| queue["stored"].as_u64().unwrap()).sum();
    assert_eq!((queues.len(), stored), (2, 5), "{ledger:?}");
    assert_eq!(lines("devices").await[0]["device"], "pump");
    assert_eq!((lines("alerts").await.len(), lines("rules").await.len()), (1, 0));
    assert_eq!(lines("audit").await[0]["action"], "device.create");
    let manifest = rig.app.download(As::Token(&rig.token), &format!("{path}/files/manifest.json")).await;
    let manifest: Json = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["files"].as_array().unwrap().len() + 1, rig.files("acme", &id).await.len());
    assert_eq!(manifest["rows"].as_i64(), Some(job.rows_exported));

    rig.call("GET", pump, None).await.refused("not_found", None);
    let alerts = rig.call("GET", "/api/v1/tenants/acme/alerts", None).await.expect(200);
    assert_eq!(alerts["items"].as_array().unwrap().len(), 1, "the other device's");
    // As after a crash: the log is read again from where the store stood.
    rig.begin_reading();
    rig.read_log();
    assert_eq!(
        (rig.stored_rows("pump"), rig.stored_rows("valve"), rig.orphans()),
        (0, ROWS_OF_ONE_OF_EACH, 0)
    );
    // The name is free again, and what comes under it stays.
    rig.create("acme", "pump").await;
    rig.telemetry("acme", "pump", 1, 1);
    rig.read_log();
    rig.step().await;
    let ledger = rig.call("GET", &format!("{pump}/ledger"), None).await.expect(200);
    assert_eq!(ledger["queues"][0]["stored"], 1, "{ledger}");
    let audit = rig.call("GET", "/api/v1/tenants/acme/audit?limit=500", None).await.expect(200);
    let actions: Vec<&str> =
        audit["items"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    for action in ["erasure.device", "device.erase", "erasure.done", "erasure.download"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
}

#[tokio::test]
async fn an_erasure_whose_steps_are_cut_off_and_taken_twice_ends_the_same() {
    let mut rig = Rig::start().await;
    for device in ["pump", "valve"] {
        rig.create("acme", device).await;
        rig.one_of_each("acme", device);
    }
    rig.read_log();
    let id = rig.erase_device("acme", "pump").await;
    let mut seen = Vec::new();
    for _ in 0..200 {
        let job = rig.job("acme", &id).await;
        if seen.last() != Some(&job.state) {
            seen.push(job.state);
        }
        if job.state == State::Done {
            break;
        }
        rig.step().await;
        // The step's effects are there, its end is not: as if the process died before the commit.
        rig.put_back(&job).await;
        rig.begin_reading();
        rig.read_log();
        rig.step().await;
        rig.read_log();
        rig.step().await;
        rig.begin_reading();
        rig.read_log();
    }
    let path = [State::ShuttingOut, State::Draining, State::Exporting, State::Erasing, State::Sweeping];
    assert_eq!(seen, [&path[..], &[State::Done]].concat());
    assert_eq!(
        (rig.stored_rows("pump"), rig.stored_rows("valve"), rig.orphans()),
        (0, ROWS_OF_ONE_OF_EACH, 0)
    );
    let readings = rig.lines(As::Token(&rig.token), "acme", &id, "readings").await;
    assert_eq!(serials(&readings), [1_000.0, 2_000.0, 3_000.0]);
    rig.call("GET", "/api/v1/tenants/acme/devices/pump", None).await.refused("not_found", None);
}

#[tokio::test]
async fn nothing_is_erased_before_its_export_is_written_and_exports_have_an_end() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    rig.one_of_each("acme", "pump");
    rig.read_log();
    // The blob store cannot take anything: a file is in the folder's place.
    let blobs = rig.app.parts.slices.config.get().data_dir.join("blobs");
    std::fs::write(blobs.join("acme"), "").unwrap();
    let id = rig.erase_device("acme", "pump").await;
    rig.until("acme", &id, State::Exporting).await;
    for _ in 0..3 {
        rig.step().await;
    }
    let job = rig.job("acme", &id).await;
    assert_eq!((job.state, job.rows_exported), (State::Exporting, 0));
    assert!(job.waiting_for.unwrap().starts_with("exporting fails: "));
    assert_eq!(rig.stored_rows("pump"), ROWS_OF_ONE_OF_EACH);
    std::fs::remove_file(blobs.join("acme")).unwrap();
    rig.finish("acme", &id).await;
    assert_eq!((rig.stored_rows("pump"), rig.orphans()), (0, 0));

    let file = format!("/api/v1/tenants/acme/erasures/{id}/files/manifest.json");
    assert!(!rig.app.download(As::Token(&rig.token), &file).await.is_empty());
    rig.app.clock.advance_us(EXPORT_DAYS * 86_400_000_000 - 10_000_000);
    rig.expire().await;
    assert!(!rig.files("acme", &id).await.is_empty());
    rig.app.clock.advance_us(10_000_000);
    rig.expire().await;
    assert!(rig.files("acme", &id).await.is_empty());
    assert!(!blobs.join("acme/exports").join(&id).exists());
    rig.token = rig.app.token(&tenant("acme"), Permission::ALL).await;
    rig.call("GET", &file, None).await.refused("not_found", None);
    assert_eq!(rig.job("acme", &id).await.export_until_us, None);
}

#[tokio::test]
async fn a_device_that_is_connected_is_waited_for() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    rig.presence("acme", "pump", true);
    rig.read_log();
    let id = rig.erase_device("acme", "pump").await;
    for _ in 0..5 {
        rig.step().await;
    }
    let job = rig.job("acme", &id).await;
    assert_eq!(
        (job.state, job.waiting_for.as_deref()),
        (State::Draining, Some("a device is still connected"))
    );
    // A server that starts has no connection of before.
    rig.app.clock.advance_us(1);
    rig.begin_reading();
    rig.finish("acme", &id).await;
    assert_eq!((rig.stored_rows("pump"), rig.orphans()), (0, 0));
}

#[tokio::test]
async fn a_devices_export_has_its_own_audit_rows_and_is_for_who_may_export() {
    let mut rig = Rig::start().await;
    // The tenant has the same name, and its chain has rows about itself.
    rig.create("acme", "acme").await;
    rig.call("PATCH", "/api/v1/tenants/acme", Some(json!({ "name": "Acme" }))).await.expect(200);
    let eraser = rig.app.token(&tenant("acme"), &[Permission::DataErase]).await;
    let erase = "/api/v1/tenants/acme/devices/acme/erase";
    let begun = rig.app.call(As::Token(&eraser), "POST", erase, Some(json!({}))).await.expect(202);
    let id = begun["id"].as_str().unwrap();
    rig.finish("acme", id).await;
    let audit = rig.lines(As::Token(&rig.token), "acme", id, "audit").await;
    let actions: Vec<_> = audit.iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["device.create", "erasure.device", "device.change"]);
    // Who may erase and asked for it, and may not export.
    let path = format!("/api/v1/tenants/acme/erasures/{id}");
    for path in [path.clone(), format!("{path}/files"), format!("{path}/files/manifest.json")] {
        rig.app.call(As::Token(&eraser), "GET", &path, None).await.refused("permission_denied", None);
    }
}

#[tokio::test]
async fn a_name_is_given_to_another_device_only_once_the_erasure_is_done() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    let id = rig.erase_device("acme", "pump").await;
    let sweeping = rig.until("acme", &id, State::Sweeping).await;
    rig.finish("acme", &id).await;
    // The device is gone, and the process died before the job was done.
    rig.put_back(&sweeping).await;
    let devices = "/api/v1/tenants/acme/devices";
    let create = async || rig.call("POST", devices, Some(json!({ "id": "pump" }))).await;
    create().await.refused("conflict", None);
    let batch = json!({ "devices": [{ "id": "pump" }] });
    let answer = rig.call("POST", "/api/v1/tenants/acme/devices/batch", Some(batch)).await;
    assert!(answer.status.is_client_error(), "{}", answer.text);
    rig.begin_reading();
    rig.finish("acme", &id).await;
    rig.create("acme", "pump").await;
    rig.step().await;
    rig.call("GET", "/api/v1/tenants/acme/devices/pump", None).await.expect(200);
}

#[tokio::test]
async fn rules_that_lag_are_waited_for_and_leave_nothing_behind() {
    let mut rig = Rig::start().await;
    for device in ["pump", "valve"] {
        rig.create("acme", device).await;
    }
    let rule = json!({ "name": "hot", "on": { "telemetry": {} }, "severity": "info", "for_s": 30,
                       "condition": "value > 30 && last[\"serial\"] >= 0" });
    rig.call("POST", "/api/v1/tenants/acme/rules", Some(rule)).await.expect(201);
    rig.read_log();
    rig.rules_are_held = true;
    rig.one_of_each("acme", "pump");
    rig.read_log();
    let id = rig.erase_device("acme", "pump").await;
    rig.until("acme", &id, State::Sweeping).await;
    for _ in 0..20 {
        rig.step().await;
    }
    let job = rig.job("acme", &id).await;
    assert!(
        job.waiting_for.as_deref().is_some_and(|why| why.starts_with("the rules to read the event log")),
        "{job:?}"
    );
    rig.rules_are_held = false;
    rig.read_log();
    for table in ["rule_state", "rule_last"] {
        assert!(rig.registry_rows(table, "pump").await > 0, "it is no test of lagging rules: {table}");
    }
    rig.finish("acme", &id).await;
    // What was pending would open an alert now.
    rig.app.clock.advance_us(60_000_000);
    rig.telemetry("acme", "valve", 1, 1);
    rig.read_log();
    for table in ["alerts", "rule_state", "rule_last"] {
        assert_eq!(rig.registry_rows(table, "pump").await, 0, "{table}");
    }
}

#[tokio::test]
async fn a_log_that_was_put_in_place_of_another_holds_up_no_sweep() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    rig.one_of_each("acme", "pump");
    rig.read_log();
    let id = rig.erase_device("acme", "pump").await;
    let mut job = rig.until("acme", &id, State::Sweeping).await;
    job.log = Some((rig.app.parts.log.epoch() ^ 1, u64::MAX >> 1));
    rig.put_back(&job).await;
    rig.finish("acme", &id).await;
    assert_eq!((rig.stored_rows("pump"), rig.orphans()), (0, 0));
}
