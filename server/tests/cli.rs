//! The real binary: configuration errors, one process a directory, ready and bootstrap files, a clean end.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

use muster_server::devices::pki::Pki;
use muster_server::platform::clock::{Clock as _, SystemClock};
use muster_server::platform::config::Config;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(60);

fn server() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-server"));
    command.env_remove("MUSTER_SERVER_CONFIG");
    command
}

/// The `run` command on ephemeral ports under `dir`.
fn run(dir: &Path) -> Command {
    let mut command = server();
    command
        .arg("run")
        .arg("--config")
        .arg(dir.join("muster-server.toml"))
        .arg("--data-dir")
        .arg(dir.join("data"));
    for listener in ["--http-listen", "--enroll-listen", "--mqtt-tls-listen", "--mqtt-plain-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command
        .arg("--ready-file")
        .arg(dir.join("ready.json"))
        .arg("--bootstrap-file")
        .arg(dir.join("boot.json"));
    command.stdout(Stdio::piped()).stderr(std::fs::File::create(dir.join("log")).unwrap());
    command
}

#[track_caller]
fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn read_json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A server that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server under `dir` and waits until it is ready; gives what it says of its listeners.
fn start(dir: &Path) -> (Running, serde_json::Value) {
    let mut running = Running(run(dir).spawn().unwrap());
    let ready = until("the ready file", || {
        if let Some(status) = running.0.try_wait().unwrap() {
            panic!("ended with {status}: {}", std::fs::read_to_string(dir.join("log")).unwrap());
        }
        read_json(&dir.join("ready.json"))
    });
    (running, ready)
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn end(mut server: Running) -> String {
    signal(&server.0, "-TERM");
    let status = until("the end", || server.0.try_wait().unwrap());
    let mut text = String::new();
    server.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(status.success(), "{status}");
    text
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("muster-server.toml");
    std::fs::write(&file, "[http]\nlissen = 1").unwrap();
    let check = |command: &mut Command| command.arg("--config").arg(&file).output().unwrap();
    for command in
        [server().arg("check-config"), server().args(["run", "--check-config"]), server().arg("run")]
    {
        let refused = check(command);
        assert!(!refused.status.success());
        let text = text(&refused);
        assert!(text.contains("muster-server.toml") && text.contains("lissen"), "{text}");
    }
    std::fs::write(&file, "[http]\ntimeout_s = 7").unwrap();
    let shown = check(server().arg("check-config").args(["--set", "quota.users_max=9"]));
    assert!(shown.status.success(), "{}", text(&shown));
    assert!(
        text(&shown).contains("timeout_s = 7") && text(&shown).contains("users_max = 9"),
        "{}",
        text(&shown)
    );
}

#[test]
fn the_server_starts_reloads_and_ends_and_its_owner_gets_back_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("muster-server.toml");
    std::fs::write(&file, "").unwrap();
    let (child, ready) = start(dir.path());
    let address = ready["http"].as_str().unwrap();
    assert!(get(address, "/readyz").contains("\"ready\":true"));
    assert!(get(address, "/api/v1/tenants").starts_with("HTTP/1.1 401"));
    let boot = dir.path().join("boot.json");
    assert_eq!(std::fs::metadata(&boot).unwrap().permissions().mode() & 0o777, 0o600);
    let first = read_json(&boot).unwrap();

    let second = run(dir.path()).stderr(Stdio::piped()).output().unwrap();
    assert!(!second.status.success() && text(&second).contains("in use"), "{}", text(&second));

    std::fs::write(&file, "[log]\nfilter = \"debug\"\n[mqtt]\nworker_threads = 2").unwrap();
    signal(&child.0, "-HUP");
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    until("the reload", || {
        (log().contains("log.filter") && log().contains("mqtt.worker_threads")).then_some(())
    });

    let printed = end(child);
    let password = first["password"].as_str().unwrap();
    assert!(printed.contains(password), "{printed}");
    assert!(!log().contains(password), "a password stands in no log");

    let mut reset = server();
    reset
        .args(["admin", "reset-password"])
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .arg("owner@localhost");
    let reset = reset.output().unwrap();
    assert!(reset.status.success() && text(&reset).contains("one-time password"), "{}", text(&reset));

    std::fs::remove_file(&boot).unwrap();
    std::fs::remove_file(dir.path().join("ready.json")).unwrap();
    let (child, _) = start(dir.path());
    assert!(!end(child).contains("one-time"), "only the first start makes an owner");
    assert!(!boot.exists());
}

#[test]
fn audit_chains_are_verified_and_exported_beside_a_running_server() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("muster-server.toml"), "").unwrap();
    let (running, _) = start(dir.path());
    let audit = |args: &[&str]| {
        let command = &mut server();
        command.arg("audit").args(args).arg("--data-dir").arg(dir.path().join("data")).output().unwrap()
    };
    let good = audit(&["verify"]);
    assert!(good.status.success(), "{}", text(&good));
    let lines = text(&good);
    let line = lines.lines().find(|line| line.starts_with("default: ")).unwrap();
    let (seq, hash) = line.rsplit_once(' ').unwrap().1.split_once(':').unwrap();
    assert!(line.contains(&format!("default: {seq} rows are good")), "{line}");
    let noted = |mark: &str| audit(&["verify", "--tenant", "default", "--noted", mark]);
    assert_eq!(noted(&format!("{seq}:{hash}")).status.code(), Some(0));
    let gone = noted(&format!("9{seq}:{hash}"));
    assert_eq!(gone.status.code(), Some(2), "{}", text(&gone));
    assert!(text(&gone).contains("BROKEN"), "{}", text(&gone));
    let replaced = noted(&format!("{seq}:{}", "0".repeat(64)));
    assert!(text(&replaced).contains("is not the one that was noted"), "{}", text(&replaced));
    let rows = audit(&["export", "--tenant", "default"]);
    let rows = String::from_utf8(rows.stdout).unwrap();
    assert_eq!(rows.lines().count().to_string(), seq);
    let last: serde_json::Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
    assert_eq!(last["hash"], hash);
    let own = audit(&["export", "--tenant", "-", "--format", "csv"]);
    assert!(own.status.success() && text(&own).starts_with("seq,at_us,"), "{}", text(&own));
    for (what, tenant) in [("export", "a/b"), ("export", "nobody"), ("verify", "nobody")] {
        let none = audit(&[what, "--tenant", tenant]);
        assert_eq!(none.status.code(), Some(1), "{what} {tenant}: {}", text(&none));
    }
    end(running);
}

#[test]
fn a_changed_server_certificate_is_taken_up_by_a_hangup_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("muster-server.toml"), "").unwrap();
    let (child, _) = start(dir.path());
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    let files = dir.path().join("data").join("pki");
    let good = std::fs::read(files.join("server.pem")).unwrap();
    std::fs::write(files.join("server.pem"), "nonsense").unwrap();
    signal(&child.0, "-HUP");
    until("the refusal", || {
        let line = log().lines().find(|line| line.contains("server certificate is refused"))?.to_owned();
        assert!(line.contains("server.pem") && line.contains("the old one stays"), "{line}");
        Some(())
    });
    std::fs::write(files.join("server.pem"), good).unwrap();
    let hosts = Config::default().pki.hosts;
    Pki::open(&files, &hosts, 365, SystemClock.now_us()).unwrap().renew_server(SystemClock.now_us()).unwrap();
    signal(&child.0, "-HUP");
    until("the new certificate", || log().contains("authorities that are trusted, replaced").then_some(()));
    end(child);
}
