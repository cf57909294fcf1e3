//! Erasures from the request to the end, with a real log and store; the worker's steps are taken by hand.

mod device;
mod rig;
mod tenant;

use super::model::{FILE_BYTES_MAX, FILE_ROWS_MAX, File, MANIFEST_FILES_MAX, OPEN_PER_TENANT_MAX, State};
use super::worker::JOBS_AT_ONCE;
use super::{rows, store, tables};
use crate::platform::blob::WHOLE_BYTES_MAX;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::event_log::Kind;
use crate::testing::{As, on_postgres};
use muster_wire::UpClass;
use rig::{Rig, tenant as id_of};
use serde_json::{Value as Json, json};
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
    if on_postgres() {
        return; // The schemas are held against each other by a test of platform::db.
    }
    let rig = Rig::start().await;
    let all = |lists: &[&[&str]]| -> BTreeSet<String> {
        lists.iter().flat_map(|list| list.iter().map(|table| (*table).to_owned())).collect()
    };
    assert_eq!(tables_with(&rig, "tenant").await, all(&[&tables::OF_TENANT, &tables::KEPT]));
    assert_eq!(tables_with(&rig, "device").await, all(&[&tables::OF_DEVICE, &tables::KEPT_OF_DEVICE]));
}

/// As above, of columns: what is new is exported, or somebody says why not.
#[tokio::test]
async fn every_column_of_a_tenants_tables_is_exported_or_left_out_on_purpose() {
    if on_postgres() {
        return;
    }
    let rig = Rig::start().await;
    let read = |tx: &mut Tx<'_>| {
        let sql = "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
                   WHERE m.type = 'table'";
        tx.query(&Scope::System("test"), sql, &[], |row| {
            Ok::<_, DbError>((row.get::<String>(0)?, row.get::<String>(1)?))
        })
    };
    let columns = rig.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap();
    let of_tenants = tables_with(&rig, "tenant").await;
    let left_out = |name: &str| tables::NOT_EXPORTED.iter().any(|(out, _)| *out == name);
    let mut seen = BTreeSet::new();
    for (table, column) in columns.iter().filter(|(table, _)| of_tenants.contains(table)) {
        let full = format!("{table}.{column}");
        let exported = tables::EXPORTED.iter().find(|exported| exported.name == table);
        let is_exported =
            exported.is_some_and(|exported| exported.columns.iter().any(|(name, _)| name == column));
        let is_left_out = left_out(table) || left_out(&full) || column == "tenant";
        assert!(is_exported || is_left_out, "{full} is neither exported nor left out");
        assert!(!is_exported || column == "tenant" || !is_left_out, "{full} is both");
        seen.extend([table.clone(), full]);
    }
    for (name, _) in tables::NOT_EXPORTED {
        assert!(seen.contains(name), "{name} is not in the schema any more");
    }
    for table in tables::OF_TENANT.iter().chain(&tables::OF_DEVICE) {
        assert!(tables::key_of(table).is_some(), "{table} has no key to delete by");
    }
}

#[tokio::test]
async fn what_is_deleted_between_two_pieces_moves_no_other_row() {
    let rig = Rig::start().await;
    for device in ["d0", "d1", "d2", "d3", "d4"] {
        rig.create("acme", device).await;
    }
    let read = async |after: Option<String>| {
        let read = move |tx: &mut Tx<'_>| {
            let devices = tables::EXPORTED.iter().find(|table| table.name == "devices").unwrap();
            rows::read(tx, &Scope::Tenant(id_of("acme")), devices, None, (after.as_deref(), 2))
        };
        rig.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap()
    };
    let names = |rows: &[(String, Json)]| -> Vec<String> {
        rows.iter().map(|(_, row)| row["device"].as_str().unwrap().to_owned()).collect()
    };
    let first = read(None).await;
    assert_eq!(names(&first), ["d0", "d1"]);
    rig.call("DELETE", "/api/v1/tenants/acme/devices/d0", None).await;
    let second = read(first.last().map(|(place, _)| place.clone())).await;
    assert_eq!(names(&second), ["d2", "d3"]);
    let third = read(second.last().map(|(place, _)| place.clone())).await;
    assert_eq!(names(&third), ["d4"]);
}

#[tokio::test]
async fn a_step_deletes_a_bounded_number_of_rows() {
    let rig = Rig::start().await;
    let write = |tx: &mut Tx<'_>| {
        let acme = Scope::Tenant(id_of("acme"));
        for at in 0..5_i64 {
            let put =
                "INSERT INTO rule_last (tenant, device, metric, value) VALUES ('acme', 'pump', $1, '1')";
            tx.execute(&acme, put, &[&format!("m{at}")])?;
        }
        let mut steps = Vec::new();
        for _ in 0..3 {
            steps.push(tables::erase_device(tx, &acme, "pump", 2)?);
        }
        Ok::<_, DbError>(steps)
    };
    let steps = rig.app.parts.slices.erasures.db.write(write).await.unwrap();
    assert_eq!(steps, [(2, false), (2, false), (1, true)]);
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

/// A body that cannot be decoded, nor compressed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    std::iter::once(0xff).chain(next).take(bytes).collect()
}

#[tokio::test]
async fn a_file_holds_a_bounded_number_of_bytes() {
    const LETTERS: u64 = 300;
    let mut rig = Rig::start_with(|config| config.event_log.bytes_max = 64 << 20).await;
    rig.create("acme", "pump").await;
    for seq in 1..=LETTERS {
        rig.append("acme", "pump", Kind::Message, UpClass::Telemetry, seq, &noise(seq, 64_000));
        // The log takes so much before it is on disk.
        if seq % 5 == 0 {
            rig.read_log();
        }
    }
    let id = rig.erase_device("acme", "pump").await;
    rig.finish("acme", &id).await;
    let letters = rig.lines(As::Token(&rig.token), "acme", &id, "dead-letters").await;
    assert_eq!(letters.len() as u64, LETTERS);
    let places: BTreeSet<String> = letters.iter().map(|letter| letter["seq"].to_string()).collect();
    assert_eq!(places.len() as u64, LETTERS, "each once");
    let files = rig.files("acme", &id).await;
    let files: Vec<&File> = files.iter().filter(|file| file.name.starts_with("dead-")).collect();
    assert!(files.len() > 2, "{files:?}");
    // As text; a row is larger than its body in base64, and one may go beyond.
    let row_bytes = (64_000 / 3 + 1) * 4;
    assert!(files.iter().all(|file| (file.rows - 1) * row_bytes < FILE_BYTES_MAX as i64), "{files:?}");
    assert!(files.iter().all(|file| file.bytes < WHOLE_BYTES_MAX as i64), "{files:?}");
}

#[tokio::test]
async fn a_manifest_of_many_files_is_written_in_pages() {
    let mut rig = Rig::start().await;
    rig.create("acme", "pump").await;
    let id = rig.erase_device("acme", "pump").await;
    rig.until("acme", &id, State::Exporting).await;
    let job = id.clone();
    let write = move |tx: &mut Tx<'_>| {
        for at in 0..MANIFEST_FILES_MAX {
            let name = format!("aaa-{at:05}.ndjson.gz");
            let file = File { name, bytes: 1, sha256: [1; 32], rows: 1 };
            store::file_put(tx, &Scope::Tenant(id_of("acme")), &job, &file)?;
        }
        Ok::<_, DbError>(())
    };
    rig.app.parts.slices.erasures.db.write(write).await.unwrap();
    rig.finish("acme", &id).await;
    let named = async |name: &str| -> Vec<String> {
        let path = format!("/api/v1/tenants/acme/erasures/{id}/files/{name}");
        let manifest = rig.app.download(As::Token(&rig.token), &path).await;
        let manifest: Json = serde_json::from_slice(&manifest).unwrap();
        let files = manifest["files"].as_array().unwrap();
        files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
    };
    let pages = named("manifest.json").await;
    assert_eq!(pages, ["manifest-00001.json", "manifest-00002.json"]);
    let (first, second) = (named(&pages[0]).await, named(&pages[1]).await);
    assert_eq!((first.len(), first[0].as_str()), (MANIFEST_FILES_MAX, "aaa-00000.ndjson.gz"));
    assert_eq!(second, ["audit-00001.ndjson.gz", "devices-00001.ndjson.gz"]);
}
