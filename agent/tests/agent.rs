//! The real binary against a server of a few packets: killed, started again, stopped; its own books must agree with
//! what the server saw.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

mod support;

use muster_wire::{Telemetry, UpClass, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Broker, Seen};

const BIN: &str = env!("CARGO_BIN_EXE_muster-agent");

fn write_config(dir: &Path, port: u16) {
    let rows: String = (0..50).map(|n| format!("{n},{}\n", n * 2)).collect();
    std::fs::write(dir.join("rows.csv"), format!("a,b\n{rows}")).unwrap();
    std::fs::write(dir.join("token"), "secret").unwrap();
    let config = format!(
        "version = 1\ndata_dir = \"data\"\n\
         [identity]\ntenant = \"acme\"\ndevice = \"press-7\"\ntoken_file = \"token\"\n\
         [uplink]\nhost = \"127.0.0.1\"\nport = {port}\ntransport = \"plain\"\nreconnect_delay_ms_min = 10\n\
         [metrics]\nlisten = \"unix:{}\"\n\
         [[source]]\nkind = \"csv\"\nname = \"rows\"\npath = \"rows.csv\"\nrate_hz = 500.0\nwrap = \"loop\"\n\
         [[pipeline]]\nname = \"rows\"\nsource = \"rows\"\nserial = \"serial\"\n",
        dir.join("metrics.sock").display()
    );
    std::fs::write(dir.join("agent.toml"), config).unwrap();
}

/// Runs the agent where nothing but `data_dir` can be written, and that only where it says so; begins with [`IS_SHUT_IN`],
/// unless the system does not let us mount.
const SHUT_IN: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t tmpfs -o size=16m none "$1/data"
mount -o remount,bind,ro "$1"
mount -o remount,bind,ro /
if touch "$1/here" 2>/dev/null; then exit 98; fi
if [ "$2" = ro ]; then mount -o remount,ro "$1/data"; fi
echo "nothing else can be written"
exec "$3" run --config "$1/agent.toml"
"#;
const IS_SHUT_IN: &str = "nothing else can be written\n";

fn shut_in(dir: &Path, data: &str) -> Command {
    std::fs::create_dir(dir.join("data")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SHUT_IN, "sh"]).arg(dir).args([data, BIN]);
    command
}

struct Agent(Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(BIN);
        command.args(["run", "--config"]).arg(dir.join("agent.toml")).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    #[allow(unsafe_code)] // The standard library sends SIGKILL only.
    fn terminate(mut self) -> bool {
        let process = i32::try_from(self.0.id()).unwrap();
        // SAFETY: the child is alive or a zombie until it is waited for, so the id is its own.
        unsafe { libc::kill(process, libc::SIGTERM) };
        self.0.wait().unwrap().success()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the server stored: (queue_id, seq) -> serial.
type Stored = BTreeMap<(u64, u64), String>;

fn store(stored: &mut Stored, seen: &Seen) {
    let Seen::Publish { class: UpClass::Telemetry, queue_id, seq, body, .. } = seen else { return };
    let readings = Telemetry::decode(body).unwrap().readings;
    let serial = readings.into_iter().find(|reading| reading.metric == "serial").unwrap();
    let Value::Text(serial) = serial.value else { panic!("a serial is text") };
    if let Some(before) = stored.insert((*queue_id, *seq), serial.clone()) {
        assert_eq!(before, serial, "a number came back with another record");
    }
}

async fn take(broker: &mut Broker, stored: &mut Stored, more: usize) {
    let goal = stored.len() + more;
    while stored.len() < goal {
        let seen = broker.next().await;
        store(stored, &seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_restart_and_stop_lose_and_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start().await;
    write_config(dir.path(), broker.port);
    let mut stored = Stored::new();
    for _ in 0..3 {
        let agent = Agent::start(dir.path());
        take(&mut broker, &mut stored, 60).await;
        // Dropping it is SIGKILL.
        drop(agent);
    }
    let agent = Agent::start(dir.path());
    take(&mut broker, &mut stored, 60).await;
    let stopped = tokio::task::spawn_blocking(move || agent.terminate());
    loop {
        let seen = broker.next().await;
        store(&mut stored, &seen);
        if seen == Seen::Disconnect {
            break;
        }
    }
    assert!(stopped.await.unwrap(), "SIGTERM ends with status 0");

    let output = Command::new(BIN)
        .args(["queue", "inspect", "--json", "--config"])
        .arg(dir.path().join("agent.toml"))
        .output()
        .unwrap();
    let books: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let telemetry = &books["classes"][0];
    assert_eq!(telemetry["class"], "telemetry");
    assert_eq!(telemetry["accepted"], stored.len(), "accepted = stored: {books}");
    assert_eq!(telemetry["dropped"], 0);
    assert_eq!(telemetry["openings"].as_array().unwrap().len(), 4);
    let serials: BTreeSet<_> = stored.values().collect();
    assert_eq!(serials.len(), stored.len(), "stored = distinct serials");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_rows_wait_in_the_queue_and_stop_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    // A port that nobody listens on: bound and let go.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    write_config(dir.path(), port);
    let agent = Agent::start(dir.path());
    let accepted = |dir: &Path| {
        let mut inspect = Command::new(BIN);
        let output = inspect
            .args(["queue", "inspect", "--json", "--config"])
            .arg(dir.join("agent.toml"))
            .output()
            .unwrap();
        let books: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        books["classes"][0]["accepted"].as_u64().unwrap_or(0)
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while accepted(dir.path()) < 50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("no row was accepted");
    let stopped = tokio::task::spawn_blocking(move || agent.terminate());
    let stopped =
        tokio::time::timeout(Duration::from_secs(10), stopped).await.expect("the agent does not stop");
    assert!(stopped.unwrap());
}

#[test]
fn a_config_with_an_error_is_refused_with_file_and_field() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("agent.toml"), "version = 1\ndata_dir = \"d\"\n[uplink]\nport = 70000\n")
        .unwrap();
    for command in ["run", "check"] {
        let output = Command::new(BIN)
            .arg(command)
            .arg("--config")
            .arg(dir.path().join("agent.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(text.contains("agent.toml:4: uplink.port") && text.contains("expected u16"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_writes_below_data_dir_only_and_says_where_it_cannot() {
    const NAME: &str = "it_writes_below_data_dir_only_and_says_where_it_cannot";
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start().await;
    write_config(dir.path(), broker.port);
    let config = dir.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("metrics.sock", "data/metrics.sock");
    std::fs::write(&config, text).unwrap();
    let refused = shut_in(dir.path(), "ro").output();
    let refused = match refused {
        Ok(output) if output.status.code() == Some(98) => panic!("the system can be written"),
        Ok(output) if String::from_utf8_lossy(&output.stdout).starts_with(IS_SHUT_IN) => output,
        other => return support::skip(NAME, &format!("a file system cannot be mounted here ({other:?})")),
    };
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("Read-only file system") && why.contains("/data/queue"), "{why}");

    std::fs::remove_dir(dir.path().join("data")).unwrap();
    let agent = Agent(shut_in(dir.path(), "rw").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let mut stored = Stored::new();
    take(&mut broker, &mut stored, 60).await;
    assert!(agent.terminate());
    assert!(
        std::fs::read_dir(dir.path().join("data")).unwrap().next().is_none(),
        "it ran in its own file system"
    );
}
