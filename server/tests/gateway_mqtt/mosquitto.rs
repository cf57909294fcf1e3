//! mosquitto's clients as a foreign device and as a tenant's own software: 3.1.1 and 5, plain and TLS.

use crate::kit::{API_TOKEN, DEADLINE, Rig, TOKEN};
use muster_server::platform::event_log::Origin;
use muster_wire::UpClass;
use std::process::{Command, Output, Stdio};

const SENML: &str = r#"[{"bn":"urn:dev:pump","n":"temperature","u":"Cel","v":21.5}]"#;

fn mosquitto(rig: &Rig, program: &str, version: &str, tls: bool) -> Command {
    let mut command = Command::new(program);
    let address = if tls { rig.tls() } else { rig.plain() };
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "-V", version]);
    if tls {
        let ca = rig.dir.path().join("ca.pem");
        std::fs::write(&ca, &rig.authority.pem).unwrap();
        command.arg("--cafile").arg(ca);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Whether a test must be skipped for want of mosquitto's clients; noted in the file that `cargo xtask test` prints.
fn without_clients(test: &str) -> bool {
    let help =
        Command::new("mosquitto_pub").arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if help.is_ok() {
        return false;
    }
    let line = format!("{test}: mosquitto-clients is not installed\n");
    match std::env::var_os("MUSTER_SKIPS_FILE") {
        None => eprint!("skipped {line}"),
        Some(path) => {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
        }
    }
    true
}

fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let missing =
        |error| panic!("{program:?} must be installed for this test (package mosquitto-clients): {error}");
    command.output().unwrap_or_else(missing)
}

#[test]
fn mosquitto_publishes_senml_and_follows_its_tenant() {
    if without_clients("mosquitto_publishes_senml_and_follows_its_tenant") {
        return;
    }
    for (version, tls) in [("mqttv311", false), ("mqttv5", false), ("mqttv311", true), ("mqttv5", true)] {
        let rig = Rig::new();
        let wait_s = DEADLINE.as_secs().to_string();
        let follower = mosquitto(&rig, "mosquitto_sub", version, tls)
            .args(["-u", "api", "-P", API_TOKEN, "-t", "muster/acme/+/up/#", "-q", "1"])
            .args(["-C", "2", "-d", "-W", &wait_s, "-F", "%t %p"])
            .spawn()
            .unwrap_or_else(|error| {
                panic!("mosquitto_sub must be installed (package mosquitto-clients): {error}")
            });
        let start = std::time::Instant::now();
        while rig.metric("gateway_subscribes_total", "granted") == 0 {
            if start.elapsed() > DEADLINE {
                panic!("{version} {tls}: not subscribed: {:?}", follower.wait_with_output());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for qos in ["1", "0"] {
            let sent = run(mosquitto(&rig, "mosquitto_pub", version, tls)
                .args([
                    "-u",
                    "acme/pump",
                    "-P",
                    TOKEN,
                    "-t",
                    "muster/acme/pump/up/senml",
                    "-q",
                    qos,
                    "-m",
                    SENML,
                ])
                .args(["--will-topic", "muster/acme/pump/up/death", "--will-payload", "gone"]));
            assert!(sent.status.success(), "{version} tls {tls}: {sent:?}");
            if qos == "1" {
                // Taken over while its goodbye is on its way, it would leave its will.
                rig.wait_metric("gateway_disconnects_total", "goodbye", 1);
            }
        }
        let followed = follower.wait_with_output().unwrap();
        let lines = String::from_utf8_lossy(&followed.stdout);
        let messages: Vec<&str> = lines.lines().filter(|line| line.starts_with("muster/")).collect();
        assert_eq!(
            messages,
            [&format!("muster/acme/pump/up/senml {SENML}"); 2],
            "{version} {tls} {followed:?}"
        );
        let stored = rig.messages();
        assert_eq!(stored.len(), 2);
        for message in stored {
            assert_eq!((message.class, message.origin), (UpClass::Senml.number(), Origin::Direct));
            assert_eq!(message.body, SENML.as_bytes());
        }
    }
}

#[test]
fn mosquitto_is_refused_what_is_not_its_own() {
    if without_clients("mosquitto_is_refused_what_is_not_its_own") {
        return;
    }
    let rig = Rig::new();
    for version in ["mqttv311", "mqttv5"] {
        let wrong = run(mosquitto(&rig, "mosquitto_pub", version, false).args([
            "-u",
            "acme/pump",
            "-P",
            "wrong",
            "-t",
            "muster/acme/pump/up/senml",
            "-q",
            "1",
            "-m",
            SENML,
        ]));
        assert!(!wrong.status.success(), "{version} {wrong:?}");
        let two = run(mosquitto(&rig, "mosquitto_pub", version, false).args([
            "-u",
            "acme/pump",
            "-P",
            TOKEN,
            "-t",
            "muster/acme/pump/up/senml",
            "-q",
            "2",
            "-m",
            SENML,
        ]));
        assert!(!two.status.success() || rig.messages().is_empty(), "{version} {two:?}");
        let foreign = run(mosquitto(&rig, "mosquitto_sub", version, false).args([
            "-u",
            "acme/pump",
            "-P",
            TOKEN,
            "-t",
            "muster/acme/fan/up/#",
            "-W",
            "1",
        ]));
        assert!(foreign.stdout.is_empty(), "{version} {foreign:?}");
    }
    let before = rig.metric("gateway_subscribes_total", "not_authorized");
    assert_eq!(before, 2);
    assert_eq!(rig.messages(), []);
}
