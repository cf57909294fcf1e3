//! Erasures from the request to the end, with a real log and store; the worker's steps are taken by hand.

mod device;
mod rig;
mod tenant;

use super::model::{FILE_ROWS_MAX, OPEN_PER_TENANT_MAX, State};
use super::tables;
use crate::platform::db::{DbError, Scope, Tx};
use rig::Rig;
use serde_json::json;
use std::collections::BTreeSet;

/// Tables with a column of this name.
async fn tables_with(rig: &Rig, column: &'static str) -> BTreeSet<String> {
    let read = move |tx: &mut Tx<'_>| {
        let sql = "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
                   WHERE m.type = 'table' AND c.name = $1";
        tx.query(&Scope::System("test"), sql, &[&column], |row| row.get::<String>(0))
    };
    rig.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap().into_iter().collect()
}

/// A table that is new in the schema fails this until somebody says what becomes of its rows.
#[tokio::test]
async fn every_table_of_the_registry_is_erased_or_kept_on_purpose() {
    if std::env::var("MUSTER_TEST_REGISTRY").is_ok_and(|engine| engine == "postgres") {
        return; // The schemas are held against each other by a test of platform::db.
    }
    let rig = Rig::start().await;
    let all = |lists: &[&[&str]]| -> BTreeSet<String> {
        lists.iter().flat_map(|list| list.iter().map(|table| (*table).to_owned())).collect()
    };
    assert_eq!(tables_with(&rig, "tenant").await, all(&[&tables::OF_TENANT, &tables::KEPT]));
    assert_eq!(tables_with(&rig, "device").await, all(&[&tables::OF_DEVICE, &tables::KEPT_OF_DEVICE]));
}

#[tokio::test]
async fn a_tenant_has_a_bounded_number_of_open_erasures() {
    let rig = Rig::start().await;
    for at in 0..=OPEN_PER_TENANT_MAX {
        rig.create("acme", &format!("d{at}")).await;
    }
    let ask = async |at: i64| {
        rig.call("POST", &format!("/api/v1/tenants/acme/devices/d{at}/erase"), Some(json!({}))).await
    };
    for at in 0..OPEN_PER_TENANT_MAX {
        ask(at).await.expect(202);
    }
    ask(OPEN_PER_TENANT_MAX).await.refused("rate_limited", None);
    let all = rig.call("GET", "/api/v1/tenants/acme/erasures?limit=500", None).await.expect(200);
    assert_eq!(all["items"].as_array().unwrap().len() as i64, OPEN_PER_TENANT_MAX);
}

#[tokio::test]
async fn a_file_holds_a_bounded_number_of_rows() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    // Pieces of 2,000 fill a file exactly; one more row begins the next.
    let messages = FILE_ROWS_MAX as u64 / 1_000;
    for seq in 1..=messages {
        rig.telemetry("acme", "pump", seq, 1_000);
    }
    rig.telemetry("acme", "pump", messages + 1, 1);
    rig.read_log();
    let id = rig.erase_device("acme", "pump").await;
    rig.finish("acme", &id).await;
    let files = rig.files("acme", &id).await;
    let readings: Vec<i64> =
        files.iter().filter(|file| file.name.starts_with("readings-")).map(|file| file.rows).collect();
    assert_eq!(readings, [FILE_ROWS_MAX as i64, 1]);
    assert_eq!(rig.job("acme", &id).await.state, State::Done);
}
