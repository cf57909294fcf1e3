//! A `muster-server` process, its API, and its files.

use crate::kit::{Client, Hello, socket, wait_until};
use muster_server::devices::pki::{Pki, check_csr};
use muster_server::gateway;
use muster_server::platform::clock::{Clock as _, SystemClock};
use muster_server::platform::config::Config;
use muster_server::platform::event_log::{EventLog, Kind, Options, Pin};
use muster_wire::{DeviceId, TenantId};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

const BINARY: &str = env!("CARGO_BIN_EXE_muster-server");
/// The user `nobody`, for tests that root runs.
const NOBODY: u32 = 65_534;

/// A client certificate with its key, in PEM.
pub struct Certificate(String, String);

/// A running server.
pub struct Server {
    dir: PathBuf,
    process: Process,
    ready: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {}", self.dir.display(), std::fs::read_to_string(self.dir.join("log")).unwrap());
        }
    }
}

/// `muster-server run` on ephemeral ports, its files under `dir`.
pub fn command(dir: &Path) -> Command {
    command_of(Path::new(BINARY), dir)
}

fn command_of(binary: &Path, dir: &Path) -> Command {
    std::fs::create_dir_all(dir).unwrap();
    let mut command = Command::new(binary);
    command.env_remove("MUSTER_SERVER_CONFIG").arg("run").arg("--data-dir").arg(dir.join("data"));
    for listener in ["--http-listen", "--enroll-listen", "--mqtt-tls-listen", "--mqtt-plain-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command.arg("--ready-file").arg(dir.join("ready.json"));
    command.arg("--bootstrap-file").arg(dir.join("boot.json"));
    command
}

/// The command of a gateway alone on the registry in a data directory.
pub fn gateway_command(dir: &Path, registry_dir: &Path) -> Command {
    as_gateway(command(dir), registry_dir)
}

fn as_gateway(mut command: Command, registry_dir: &Path) -> Command {
    command.args(["--roles", "gateway", "--registry-dir"]).arg(registry_dir);
    command
}

/// Runs a command that must fail; gives what it says.
#[track_caller]
pub fn refused(command: &mut Command) -> String {
    let mut process = Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    assert!(!process.wait().success());
    let mut text = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// A child that does not outlive its test.
struct Process(Child);

impl Process {
    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the process has ended", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

impl Server {
    /// A full server; started again where there are data already.
    pub fn full(dir: &Path) -> Self {
        Self::start(dir, command(dir))
    }

    /// A gateway alone on the registry of a full one.
    pub fn gateway(dir: &Path, of: &Path) -> Self {
        Self::start(dir, gateway_command(dir, &of.join("data")))
    }

    /// As [`Self::gateway`], as a user that root's files are closed to: another one where root runs the test.
    pub fn gateway_of_nobody(dir: &Path, of: &Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        let is_root = std::fs::metadata(dir).unwrap().uid() == 0;
        let binary = dir.join("muster-server");
        std::fs::copy(BINARY, &binary).unwrap();
        let mut command = as_gateway(command_of(&binary, dir), &of.join("data"));
        if is_root {
            std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        Self::start(dir, command)
    }

    fn start(dir: &Path, mut command: Command) -> Self {
        let ready_file = dir.join("ready.json");
        let _ = std::fs::remove_file(&ready_file);
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let process = Process(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let mut server = Self { dir: dir.to_owned(), process, ready: Value::Null };
        wait_until("the process is ready", || {
            assert_eq!(server.process.0.try_wait().unwrap(), None, "it ended");
            read_json(&ready_file).is_some_and(|ready| {
                server.ready = ready;
                true
            })
        });
        server
    }

    pub fn kill(mut self) {
        self.process.0.kill().unwrap();
        self.process.wait();
    }

    /// SIGTERM, and a good end.
    pub fn end(mut self) {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = self.process.wait();
        assert!(status.success(), "{status}");
    }

    fn address(&self, listener: &str) -> SocketAddr {
        self.ready[listener].as_str().unwrap().parse().unwrap()
    }

    pub fn has(&self, listener: &str) -> bool {
        !self.ready[listener].is_null()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The secret of the owner's token.
    pub fn owner(&self) -> String {
        read_json(&self.dir.join("boot.json")).unwrap()["api_token"].as_str().unwrap().to_owned()
    }

    fn http(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("http")).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.http("GET", path, "none", "")
    }

    /// What a metric counts.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// The owner's call on the devices of tenant `default`.
    #[track_caller]
    pub fn devices(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("/api/v1/tenants/default/devices{path}");
        let (status, text) = self.http(method, &path, &self.owner(), &body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub fn create(&self, device: &str) {
        self.devices("POST", "", &json!({ "id": device }));
    }

    pub fn enable(&self, device: &str, enabled: bool) {
        self.devices("PATCH", &format!("/{device}"), &json!({ "enabled": enabled }));
    }

    /// Gives a device a new token.
    pub fn new_token(&self, device: &str) -> String {
        let made = self.devices("POST", &format!("/{device}/token"), &Value::Null);
        made["token"].as_str().unwrap().to_owned()
    }

    /// A certificate for a device, as the server's authority signs it.
    pub fn certificate(&self, device: &str) -> Certificate {
        let now_us = SystemClock.now_us();
        let pki = Pki::open(&self.data().join("pki"), &Config::default().pki.hosts, 365, now_us).unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let (tenant, device) = (TenantId::parse("default").unwrap(), DeviceId::parse(device).unwrap());
        let signed = pki.sign_device(&check_csr(&csr).unwrap(), &tenant, &device, 86_400, now_us).unwrap();
        Certificate(signed.pem, key.serialize_pem())
    }

    /// Connects with user name and password; gives the CONNACK's code.
    pub fn with_login(&self, user: &str, password: &str) -> (Client, u8) {
        let mut client = Client::open(self.address("mqtt_plain"), 5);
        let hello = Hello { user: Some(user), password: Some(password), ..Hello::device("") };
        let code = client.try_hello(&hello);
        (client, code)
    }

    /// Connects over TLS with a certificate, trusting the CA of the full server; gives the CONNACK's code.
    pub fn with_certificate(&self, full: &Self, Certificate(pem, key): &Certificate) -> (Client, u8) {
        let ca = std::fs::read(full.data().join("pki").join("ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
        let config = ClientConfig::builder_with_provider(gateway::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        let session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap());
        let stream = StreamOwned::new(session.unwrap(), socket(self.address("mqtt_tls")));
        let mut client = Client::over(Box::new(stream), 5);
        let code = client.try_hello(&Hello { user: None, password: None, ..Hello::device("") });
        (client, code)
    }

    /// The files below a directory that the process holds open, with how it may use them.
    pub fn open_files(&self, below: &Path) -> BTreeMap<String, Access> {
        let of_process = PathBuf::from(format!("/proc/{}", self.process.0.id()));
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(of_process.join("fd")).unwrap() {
            let entry = entry.unwrap();
            let Ok(path) = std::fs::read_link(entry.path()) else { continue };
            let Ok(path) = path.strip_prefix(below) else { continue };
            let told = std::fs::read_to_string(of_process.join("fdinfo").join(entry.file_name())).unwrap();
            let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let access = match u32::from_str_radix(flags.trim(), 8).unwrap() & 0o3 {
                0 => Access::Read,
                _ => Access::Write,
            };
            found.insert(path.display().to_string(), access);
        }
        found
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// The bodies of the messages in the log of a process that has ended.
pub fn logged(dir: &Path) -> Vec<(String, String)> {
    let log = EventLog::open(&Options::at(&dir.join("data").join("log")), Arc::new(SystemClock)).unwrap();
    let mut reader = log.reader("test", 1, Pin::Follows).unwrap();
    let mut all = Vec::new();
    loop {
        let batch = reader.next_batch(1 << 20, |record| {
            if record.kind == Kind::Message {
                all.push((record.device.to_owned(), String::from_utf8(record.body.to_vec()).unwrap()));
            }
        });
        let batch = batch.unwrap();
        if batch.from == batch.next {
            return all;
        }
    }
}
