//! The server on the engines that are servers of their own: they go away, come back, and nothing is lost.

use muster_services::Postgres;
use muster_tests::agent::Load;
use muster_tests::process::binary;
use muster_tests::rig::Rig;
use muster_tests::wait_for;
use serde_json::json;
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
    let before = released(&rig);
    rig.proxy.cut();
    rig.proxy.restore();
    wait_for("100 more PUBACKs", || match released(&rig) {
        now if now >= before + 100 => Ok(()),
        now => Err(format!("{now} released, {before} before")),
    });
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
