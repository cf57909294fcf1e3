//! One registry, several processes: what they let in, what they keep, what they leave alone.

use crate::kit::{Client, wait_until};
use crate::processes::{Access, Server, logged};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The code for a device that an operator shut out.
const ADMINISTRATIVE: Option<u8> = Some(0x98);
const NOT_AUTHORIZED: u8 = 0x87;
const BAD_LOGIN: u8 = 0x86;

fn publish(client: &mut Client, device: &str, value: u32) {
    let (topic, body) = (format!("muster/default/{device}/up/senml"), body(value));
    assert_eq!(client.publish_acked(7, &topic, body.as_bytes()), 0, "{device} {value}");
}

fn body(value: u32) -> String {
    format!(r#"[{{"n":"t","v":{value}}}]"#)
}

fn record(device: &str, value: u32) -> (String, String) {
    (device.to_owned(), body(value))
}

fn user(device: &str) -> String {
    format!("default/{device}")
}

/// Tries until the answer is the one that must come within a look at the registry.
fn until_code(expect: u8, what: &str, mut connect: impl FnMut() -> (Client, u8)) -> Client {
    let mut last = None;
    wait_until(what, || {
        let (client, code) = connect();
        last = Some(client);
        code == expect
    });
    last.unwrap()
}

#[test]
fn three_processes_on_one_registry_let_in_whom_it_lets_in_and_outlive_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let [of_full, of_one, of_two] = ["full", "one", "two"].map(|name| dir.path().join(name));
    let full = Server::full(&of_full);
    ["pump", "fan"].iter().for_each(|device| full.create(device));
    let (token, certificate) = (full.new_token("pump"), full.certificate("fan"));
    let (one, two) = (Server::gateway(&of_one, &of_full), Server::gateway(&of_two, &of_full));

    // Who is known at the start: by token and by certificate, and the tenant's own software.
    let (mut reader, code) = one.with_login("api", &full.owner());
    assert_eq!((code, reader.subscribe(1, "muster/default/+/up/#", 0)), (0, 0));
    let (mut pump, code) = one.with_login(&user("pump"), &token);
    assert_eq!(code, 0);
    publish(&mut pump, "pump", 1);
    assert_eq!(reader.message().1, body(1).into_bytes());
    let (mut fan, code) = two.with_certificate(&full, &certificate);
    assert_eq!(code, 0);
    publish(&mut fan, "fan", 2);
    assert_eq!(one.with_login(&user("pump"), "wrong").1, BAD_LOGIN);

    // Who comes and goes later.
    full.create("valve");
    let old = full.new_token("valve");
    let mut valve = until_code(0, "a new device is let in", || two.with_login(&user("valve"), &old));
    publish(&mut valve, "valve", 3);
    let new = full.new_token("valve");
    assert_eq!(valve.end(), ADMINISTRATIVE, "its token was replaced");
    assert_eq!(two.with_login(&user("valve"), &old).1, BAD_LOGIN);
    drop(until_code(0, "the new token is known", || two.with_login(&user("valve"), &new)));
    full.enable("pump", false);
    assert_eq!(pump.end(), ADMINISTRATIVE, "it was disabled");
    assert_eq!(one.with_login(&user("pump"), &token).1, NOT_AUTHORIZED);
    full.enable("pump", true);
    let mut pump = until_code(0, "it is enabled again", || one.with_login(&user("pump"), &token));

    // Without the server, whoever was known stays known.
    full.kill();
    publish(&mut pump, "pump", 4);
    publish(&mut fan, "fan", 5);
    drop(pump);
    let mut pump = until_code(0, "it comes again", || one.with_login(&user("pump"), &token));
    let full = Server::full(&of_full);
    full.devices("DELETE", "/fan", &Value::Null);
    assert_eq!(fan.end(), ADMINISTRATIVE, "it was deleted");
    assert_eq!(two.with_certificate(&full, &certificate).1, NOT_AUTHORIZED);
    publish(&mut pump, "pump", 6);

    one.end();
    two.end();
    assert_eq!(logged(&of_one), [record("pump", 1), record("pump", 4), record("pump", 6)]);
    assert_eq!(logged(&of_two), [record("fan", 2), record("valve", 3), record("fan", 5)]);
    full.end();
    assert_eq!(logged(&of_full), []);
}

#[test]
fn a_gateway_alone_opens_what_it_needs_and_answers_for_its_health_only() {
    let dir = tempfile::tempdir().unwrap();
    let of_full = dir.path().join("full");
    let full = Server::full(&of_full);
    let one = Server::gateway(&dir.path().join("one"), &of_full);
    let of_others = one.open_files(&of_full.canonicalize().unwrap().join("data"));
    assert_eq!(of_others["registry.db"], Access::Read);
    // Readers lock in the one, and SQLite opens the other for writing whoever asks.
    let names: Vec<_> = of_others.keys().map(String::as_str).collect();
    assert_eq!(names, ["registry.db", "registry.db-shm", "registry.db-wal"]);
    let own = one.open_files(&dir.path().canonicalize().unwrap().join("one").join("data"));
    assert!(own.keys().all(|name| name == "lock" || name.starts_with("log/")), "{own:?}");

    assert!(!one.has("enroll") && one.has("mqtt_tls") && one.has("mqtt_plain"));
    let (status, parts) = one.get("/readyz");
    let parts: Value = serde_json::from_str(&parts).unwrap();
    assert_eq!((status, &parts["parts"]), (200, &json!({ "event_log": "ok", "registry": "ok" })));
    assert_eq!(one.get("/healthz").0, 200);
    for path in ["/", "/docs", "/api/v1/tenants", "/api/v1/auth/me"] {
        assert_eq!(one.get(path).0, 404, "{path}");
    }
    assert_eq!((one.metric("registry_devices"), one.metric("gateway_connections")), (0, 0));
    full.create("pump");
    wait_until("the device is known", || one.metric("registry_devices") == 1);

    let registry = of_full.join("data").join("registry.db");
    std::fs::rename(&registry, registry.with_extension("gone")).unwrap();
    wait_until("the loss is told", || one.get("/readyz").0 == 503);
    assert!(one.get("/readyz").1.contains("registry.db: No such file"));
    assert_eq!(one.metric("registry_devices"), 1);
    std::fs::rename(registry.with_extension("gone"), &registry).unwrap();
    wait_until("it is found again", || one.get("/readyz").0 == 200);
    one.end();
    full.end();
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_gateway_that_may_only_read_the_servers_files_follows_them_and_starts_again_without_the_server() {
    let dir = tempfile::tempdir().unwrap();
    mode(dir.path(), 0o755);
    let (of_full, of_one) = (dir.path().join("full"), dir.path().join("one"));
    let full = Server::full(&of_full);
    let (data, pki) = (full.data(), full.data().join("pki"));
    for name in ["registry.db", "registry.db-wal", "registry.db-shm", "pki/server.key"] {
        mode(&data.join(name), 0o444);
    }
    mode(&pki, 0o555);
    mode(&data, 0o555);
    let one = Server::gateway_of_nobody(&of_one, &of_full);
    let files = one.open_files(&data.canonicalize().unwrap());
    assert_eq!(files.values().collect::<Vec<_>>(), [&Access::Read; 3], "{files:?}");
    full.create("pump");
    let token = full.new_token("pump");
    drop(until_code(0, "the device is let in", || one.with_login(&user("pump"), &token)));
    full.kill();
    one.end();
    std::fs::rename(&of_one, dir.path().join("gone")).unwrap();
    let one = Server::gateway_of_nobody(&of_one, &of_full);
    assert_eq!(one.with_login(&user("pump"), &token).1, 0);
    one.end();
    mode(&data, 0o755);
    mode(&pki, 0o755);
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.is_file());
    files.map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn the_files_of_a_server_that_is_stopped_stay_byte_for_byte_and_its_authoritys_key_is_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let of_full = dir.path().join("full");
    let (data, of_one) = (of_full.join("data"), dir.path().join("one"));
    let full = Server::full(&of_full);
    full.create("pump");
    let (token, certificate) = (full.new_token("pump"), full.certificate("pump"));
    full.end();
    // Whoever closes a registry last takes its log back into it, as after a restore from a backup.
    let registry = data.join("registry.db");
    rusqlite::Connection::open(&registry).unwrap().execute_batch("PRAGMA user_version").unwrap();
    let (key, elsewhere) = (data.join("pki").join("ca.key"), dir.path().join("ca.key"));
    std::fs::rename(&key, &elsewhere).unwrap();
    let before = (contents(&data), contents(&data.join("pki")));

    let one = Server::gateway(&of_one, &of_full);
    let (mut pump, code) = one.with_login(&user("pump"), &token);
    assert_eq!(code, 0);
    publish(&mut pump, "pump", 1);
    drop(pump);
    one.end();
    let (mut data_after, pki_after) = (contents(&data), contents(&data.join("pki")));
    // SQLite makes the files that go with a registry in use, and has written nothing into its log.
    let made = |name: &str| data.join(format!("registry.db-{name}")).display().to_string();
    assert_eq!(data_after.remove(&made("wal")).map(|bytes| bytes.len()), Some(0));
    assert!(data_after.remove(&made("shm")).is_some());
    assert!((data_after, pki_after) == before, "bytes have changed");

    std::fs::rename(elsewhere, key).unwrap();
    let full = Server::full(&of_full);
    assert_eq!(full.with_certificate(&full, &certificate).1, 0);
    full.end();

    // What a gateway left can be read by a server on its directory, into a store of that server's own.
    let alone = Server::full(&of_one);
    wait_until("the record is stored", || alone.metric("store_messages") >= 1);
    alone.end();
}
