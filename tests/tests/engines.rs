//! The server on the engines that are servers of their own: they go away, come back, and nothing is lost.

use muster_services::{ClickHouse, Postgres};
use muster_tests::agent::Load;
use muster_tests::http::Api;
use muster_tests::oracle::{self, Stored};
use muster_tests::process::{Process, binary};
use muster_tests::rig::{DEVICE, Rig};
use muster_tests::wait_for;
use serde_json::{Value, json};
use std::process::{Command, Stdio};

fn registry(server: &Postgres) -> String {
    server.database("registry").expect("a database can be made");
    format!("[registry]\nurl = {:?}\n", server.url("registry"))
}

fn wait_for_part(rig: &Rig, part: &str, says: &str) {
    wait_for(&format!("{part} to be {says:?}"), || match rig.server.part(part)? {
        now if now.contains(says) => Ok(()),
        now => Err(now),
    });
}

/// Records that the server acknowledged.
fn released(rig: &Rig) -> u64 {
    rig.agent.inspect().released
}

#[test]
fn postgres_away_in_the_middle_loses_nothing_and_is_said() {
    let mut postgres = Postgres::start().unwrap();
    let mut rig = Rig::start(&registry(&postgres), &Load::default());
    wait_for_part(&rig, "registry", "ok");
    postgres.kill().unwrap();
    wait_for_part(&rig, "registry", "cannot be reached");
    wait_for_part(&rig, "rules", "failing, will retry");
    assert_eq!(rig.server.part("store").unwrap(), "ok");
    let login = rig.server.api.call(
        "POST",
        "/api/v1/auth/login",
        Some(&json!({ "email": "a@b.c", "password": "xxxxxxxxxxxx" })),
    );
    assert_eq!(login.unwrap().status, 503);
    // Devices go on, and come back: whom the server lets in is in its memory.
    rig.proxy.cut();
    rig.proxy.restore();
    wait_for_pubacks(&rig, 100);
    postgres.start_again().unwrap();
    wait_for_part(&rig, "registry", "ok");
    wait_for_part(&rig, "rules", "ok");
    rig.wait_for_more(50);
    // A server that starts meanwhile says why it cannot; what devices keep for it is not lost.
    rig.server.kill();
    postgres.kill().unwrap();
    let why = rig.server.try_start().unwrap_err();
    assert!(why.contains("the database cannot be reached: postgres://127.0.0.1:"), "{why}");
    postgres.start_again().unwrap();
    rig.start_server();
    rig.wait_for_more(50);
    rig.assert_exactly_once(21);
}

fn wait_for_pubacks(rig: &Rig, more: u64) {
    let before = released(rig);
    wait_for(&format!("{more} more PUBACKs"), || match released(rig) {
        now if now >= before + more => Ok(()),
        now => Err(format!("{now} released, {before} before")),
    });
}

/// Counts the readings in ClickHouse, and holds both rollups against them.
fn stored_in(clickhouse: &ClickHouse) -> Stored {
    let count = |text: &str| -> u64 {
        let answer = clickhouse.sql("fleet", text).expect("ClickHouse answers");
        answer.parse().expect("it is a number")
    };
    let of = format!("device = '{DEVICE}' AND metric = 'serial'");
    let rows = count(&format!("SELECT count() FROM readings WHERE {of}"));
    for rollup in ["readings_1m", "readings_1h"] {
        assert_eq!(count(&format!("SELECT sum(readings) FROM {rollup} WHERE {of}")), rows, "{rollup}");
    }
    Stored { rows, distinct: count(&format!("SELECT uniqExact(number, text) FROM readings WHERE {of}")) }
}

#[test]
fn clickhouse_away_in_the_middle_loses_nothing_and_is_said() {
    let mut clickhouse = ClickHouse::start().unwrap();
    let config = format!("[telemetry]\nurl = {:?}\n", clickhouse.url("fleet"));
    let mut rig = Rig::start(&config, &Load::default());
    wait_for_part(&rig, "clickhouse", "ok");
    // It hangs: connections stay open and nothing answers.
    clickhouse.freeze().unwrap();
    wait_for_pubacks(&rig, 100);
    rig.wait_for_more(50);
    clickhouse.thaw().unwrap();
    clickhouse.kill().unwrap();
    wait_for_part(&rig, "clickhouse", "cannot be reached");
    assert_eq!(rig.server.part("store").unwrap(), "ok");
    let path = format!("/api/v1/tenants/default/devices/{DEVICE}/readings?metric=serial");
    let readings = rig.server.api.call("GET", &path, None).unwrap();
    assert_eq!(readings.status, 503, "{}", readings.text);
    rig.proxy.cut();
    rig.proxy.restore();
    wait_for_pubacks(&rig, 100);
    rig.wait_for_more(50);
    // A server starts without it, with what the one before it left.
    rig.restart_server();
    wait_for_part(&rig, "clickhouse", "cannot be reached");
    wait_for_pubacks(&rig, 100);
    clickhouse.start_again().unwrap();
    wait_for_part(&rig, "clickhouse", "ok");
    rig.wait_for_more(50);
    assert_eq!(rig.server.api.call("GET", &path, None).unwrap().status, 200);
    let (server, agent) = (&mut rig.server, &mut rig.agent);
    oracle::assert_exactly_once_in(server, agent, DEVICE, 23, || stored_in(&clickhouse));
}

#[test]
fn a_second_gateway_and_worker_of_a_registry_ends_with_the_reason() {
    let postgres = Postgres::start().unwrap();
    let mut rig = Rig::start(&registry(&postgres), &Load::default());
    let dir = tempfile::tempdir().unwrap();
    let url = format!("registry.url={:?}", postgres.url("registry"));
    let second = || {
        let mut command = Command::new(binary("muster-server"));
        command.arg("run").arg("--data-dir").arg(dir.path()).args(["--set", &url]);
        command.args(["--http-listen", "127.0.0.1:0", "--enroll-listen", "127.0.0.1:0"]);
        command.args(["--mqtt-tls-listen", "127.0.0.1:0"]).stdin(Stdio::null());
        let output = command.output().expect("muster-server can be started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = second();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process holds the roles gateway and worker of the registry"), "{said}");
    // The server knows at once that a killed holder is gone.
    rig.restart_server();
    rig.wait_for_more(50);
    assert_eq!(second().0, Some(1));
    rig.assert_exactly_once(22);
}

/// A process with the role `api` alone, on the registry of another.
struct ApiAlone {
    api: Api,
    process: Process,
    dir: tempfile::TempDir,
}

impl ApiAlone {
    fn start(url: &str, token: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let ready = dir.path().join("ready.json");
        let mut command = Command::new(binary("muster-server"));
        command.args([
            "run",
            "--roles",
            "api",
            "--http-listen",
            "127.0.0.1:0",
            "--set",
            &format!("registry.url={url:?}"),
        ]);
        command.arg("--data-dir").arg(dir.path().join("data")).arg("--ready-file").arg(&ready);
        let mut process = Process::start("muster-server", &mut command, &dir.path().join("server.log"));
        let addresses: Value = wait_for("the admin API to be ready", || {
            assert!(process.ended().is_none(), "{}", process.log_tail());
            let text = std::fs::read_to_string(&ready).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        });
        let addr = addresses["http"].as_str().and_then(|addr| addr.parse().ok());
        let addr = addr.expect("the ready file holds the address");
        assert_eq!((&addresses["enroll"], &addresses["mqtt_tls"]), (&Value::Null, &Value::Null));
        Self { api: Api { addr, token: token.to_owned() }, process, dir }
    }
}

#[test]
fn an_admin_api_alone_works_beside_the_holder_of_the_lease_and_without_it() {
    let postgres = Postgres::start().unwrap();
    let mut rig = Rig::start(&registry(&postgres), &Load::default());
    let mut alone = ApiAlone::start(&postgres.url("registry"), &rig.server.api.token);
    let device = format!("/api/v1/tenants/default/devices/{DEVICE}");
    assert_eq!(alone.api.get(&device)["enabled"], true);
    for worker_only in
        [&format!("{device}/ledger"), "/api/v1/tenants/default/presence", "/api/v1/tenants/default/live"]
    {
        let answer = alone.api.call("GET", worker_only, None).unwrap();
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (503, &json!("not_on_this_process")),
            "{}",
            answer.text
        );
    }
    // Disabled there, cut off here: nothing of it is acknowledged any more, until it is enabled again.
    let enable = |enabled: bool| {
        let _ = alone.api.call("PATCH", &device, Some(&json!({ "enabled": enabled }))).unwrap().ok();
    };
    let connected = |expect: bool| {
        wait_for(&format!("presence to be {expect}"), || {
            let answer = rig.server.api.call("GET", "/api/v1/tenants/default/presence", None);
            let text = answer.map_err(|error| error.to_string())?.text;
            let view: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            (view["items"][0]["connected"] == expect).then_some(()).ok_or(text)
        });
    };
    connected(true);
    enable(false);
    connected(false);
    enable(true);
    rig.wait_for_more(50);
    // Without the other process the registry is still served.
    rig.server.kill();
    assert_eq!(alone.api.get(&device)["enabled"], true);
    let claim = alone.api.post("/api/v1/tenants/default/claims", &json!({ "device": "late" }));
    assert!(claim["claim"].as_str().unwrap().starts_with("muster-claim:localhost:"), "{claim}");
    rig.start_server();
    rig.wait_for_more(50);
    assert!(alone.process.terminate().success(), "{}", alone.process.log_tail());
    assert!(!alone.dir.path().join("data").exists(), "it keeps nothing");
    rig.assert_exactly_once(23);
}
