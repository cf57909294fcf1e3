//! The load simulation with the real binaries: it holds where the server keeps its promise, and fails where not.

use muster_tests::process::binary;
use muster_tests::server::Server;
use rusqlite::Connection;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `muster-loadtest run` to its end.
fn simulate(flags: &[&str]) -> Output {
    let mut command = Command::new(binary("muster-loadtest"));
    command.arg("run").args(flags).args(["--quiet", "--seed", "7"]).stdin(Stdio::null());
    command.output().expect("muster-loadtest can be started")
}

/// The last line of its output, with everything it said where that is no JSON.
fn figures(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().last().unwrap_or_else(|| panic!("no output; {said}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}; {said}"))
}

fn report(dir: &Path) -> Value {
    let text = std::fs::read_to_string(dir.join("report.json")).expect("a report was written");
    serde_json::from_str(&text).expect("the report is JSON")
}

#[test]
fn two_processes_with_faults_hold_every_invariant() {
    let out = tempfile::tempdir().unwrap();
    let server = binary("muster-server");
    let faults = "server-kill@3+0.3,connection-loss@5,half-returns@5+1,duplicate-sends@1+3,\
                  poisoned-payloads@1+3,slow-links@2+2,clock-jumps@4,store-outage@7+1,wild-tenant@6+1";
    let output = simulate(&[
        "--server",
        server.to_str().unwrap(),
        "--out",
        out.path().to_str().unwrap(),
        "--devices",
        "60",
        "--processes",
        "2",
        "--tenants",
        "2",
        "--rate",
        "100",
        "--seconds",
        "10",
        "--transport",
        "mtls",
        "--profile",
        "mixed",
        "--faults",
        faults,
    ]);
    let figures = figures(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(figures["held"], true, "{said}");
    assert_eq!(
        (&figures["figures"]["lost"], &figures["figures"]["success_ratio"]),
        (&Value::from(0.0), &Value::from(1.0)),
        "{said}"
    );
    let report = report(out.path());
    assert_eq!(report["faults"].as_array().unwrap().len(), 9, "{}", report["faults"]);
    assert_eq!(report["setup"]["processes"], 2);
    assert!(report["totals"]["made"].as_u64() > Some(500), "{}", report["totals"]);
    assert!(report["totals"]["duplicates_sent"].as_u64() > Some(0), "{}", report["totals"]);
    assert!(report["totals"]["poisoned_sent"].as_u64() > Some(0), "{}", report["totals"]);
    assert!(report["totals"]["reconnects"].as_u64() > Some(60), "{}", report["totals"]);
    assert!(report["samples"].as_array().unwrap().len() >= 10);
    let names: Vec<&str> =
        report["invariants"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    for name in
        ["every_record_acknowledged", "stored_exactly_once", "nothing_lost", "tenants_apart", "alerts_once"]
    {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
}

#[test]
fn rows_that_vanish_from_the_store_break_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("server"));
    let (api, addr) = (server.address("http").to_string(), server.address("mqtt_plain").to_string());
    let bootstrap = dir.path().join("server/bootstrap.json");
    let bootstrap = bootstrap.to_str().unwrap();
    let flags = ["--api", &api, "--addr", &addr, "--bootstrap", bootstrap, "--devices", "20"];
    let output = std::thread::scope(|scope| {
        let run = scope.spawn(|| simulate(&[&flags[..], &["--rate", "40", "--seconds", "6"]].concat()));
        let file = server.data_dir().join("telemetry.db");
        muster_tests::wait_for("rows to vanish", || {
            let db = Connection::open(&file).map_err(|error| error.to_string())?;
            db.busy_timeout(std::time::Duration::from_secs(5)).map_err(|error| error.to_string())?;
            let day = "SELECT max(day) FROM reading_day";
            let day: i64 = db.query_row(day, [], |row| row.get(0)).map_err(|error| error.to_string())?;
            let sql = format!("DELETE FROM reading_{day}");
            match db.execute(&sql, []).map_err(|error| error.to_string())? {
                0 => Err("there are none".to_owned()),
                _ => Ok(()),
            }
        });
        run.join().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert_eq!(figures(&output)["held"], false);
    assert!(said.contains("BROKEN  stored_exactly_once"), "{said}");
}

#[test]
fn arguments_that_do_not_fit_together_are_named() {
    let refused = |flags: &[&str], expect: &str| {
        let output = simulate(flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expect), "{flags:?}: {said}");
    };
    refused(
        &["--devices", "20"],
        "give one of: --server BINARY; --api with --bootstrap and --addr; --plain-mqtt",
    );
    refused(&["--plain-mqtt", "127.0.0.1:1", "--devices", "5"], "--devices must be 10 to 131072, not 5");
    refused(
        &["--plain-mqtt", "127.0.0.1:1", "--faults", "server-kill"],
        "server-kill needs a server of the run's own (--server)",
    );
    refused(
        &["--plain-mqtt", "127.0.0.1:1", "--faults", "poisoned-payloads"],
        "poisoned-payloads is for a muster-server only",
    );
    refused(&["--plain-mqtt", "127.0.0.1:1", "--transport", "mtls"], "--plain-mqtt speaks plain TCP only");
    refused(
        &["--plain-mqtt", "127.0.0.1:1", "--devices", "20", "--connect-timeout", "1"],
        "0 of 20 devices are online",
    );
}
