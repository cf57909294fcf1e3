//! A `muster-server` that a run starts, kills, freezes and starts again, on the same ports each time.
//!
//! Ports are taken below the range that the system gives to outgoing connections: while the server is down, ten
//! thousand devices that try to reach one of that range would sooner or later be given it themselves, and the server
//! could not come back. Promise: the [`ServerHandle`] always tells the process that runs; the process ends with this.

use super::handle::{Access, ServerFacts, ServerHandle};
use super::provision::Owner;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest start: a log that was cut is recovered first.
const START_TIME_MAX: Duration = Duration::from_secs(120);
/// The longest stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a state.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How often other ports are tried where somebody was faster.
const PORT_TRIES: u32 = 5;
/// The lowest port that is taken.
const PORT_MIN: u16 = 15_000;
/// Lines of the log that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// What to start.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The program.
    pub binary: PathBuf,
    /// Where its data and files are; made where it is missing.
    pub dir: PathBuf,
    /// Configuration: `("event_log.bytes_max", "1000000000")`.
    pub set: Vec<(String, String)>,
    /// Whether it listens without TLS, too.
    pub plain: bool,
}

/// Where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// API, page, metrics.
    pub http: SocketAddr,
    /// Enrolment.
    pub enroll: SocketAddr,
    /// MQTT over TLS.
    pub mqtt_tls: SocketAddr,
    /// MQTT without.
    pub mqtt_plain: Option<SocketAddr>,
}

impl Addresses {
    /// Free ones, as far as anybody can tell.
    fn pick(plain: bool, tried: u32) -> Result<Self> {
        let mut ports = free_ports(tried);
        let mut next = || -> Result<SocketAddr> {
            let port = ports.next().context("no port is free below those of outgoing connections")?;
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        };
        let (http, enroll, mqtt_tls) = (next()?, next()?, next()?);
        Ok(Self { http, enroll, mqtt_tls, mqtt_plain: plain.then(next).transpose()? })
    }
}

/// Ports below the range of outgoing connections that can be bound now; another begin for each process and try.
fn free_ports(tried: u32) -> impl Iterator<Item = u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing = range.split_whitespace().next().and_then(|low| low.parse::<u16>().ok()).unwrap_or(32_768);
    let count = outgoing.saturating_sub(PORT_MIN);
    let first = std::process::id().wrapping_mul(61).wrapping_add(tried.wrapping_mul(4_099));
    let port = move |at: u16| {
        let offset = first.wrapping_add(u32::from(at)) % u32::from(count.max(1));
        PORT_MIN + u16::try_from(offset).expect("the offset is below a u16")
    };
    (0..count).map(port).filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}

/// The running, or killed, server.
pub struct ManagedServer {
    options: ServerOptions,
    addresses: Addresses,
    owner: Owner,
    access: Access,
    handle: ServerHandle,
    child: Option<Child>,
}

impl ManagedServer {
    /// Starts it on its directory and waits until it listens.
    ///
    /// # Errors
    /// It does not become ready; with the end of its log.
    pub fn start(options: ServerOptions) -> Result<Self> {
        std::fs::create_dir_all(&options.dir)
            .with_context(|| format!("cannot make {}", options.dir.display()))?;
        let mut tried = 0;
        let (mut child, addresses) = loop {
            let addresses = Addresses::pick(options.plain, tried)?;
            match launch(&options, addresses, |_| {}) {
                Ok(child) => break (child, addresses),
                Err(error) if tried < PORT_TRIES && is_port_taken(&error) => tried += 1,
                Err(error) => return Err(error),
            }
        };
        let (owner, access) = read_bootstrap(&options.dir).inspect_err(|_| end(&mut child))?;
        let data_dir = Some(options.dir.join("data"));
        let facts = ServerFacts { http: Some(addresses.http.to_string()), pid: Some(child.id()), data_dir };
        Ok(Self { options, addresses, owner, access, handle: ServerHandle::new(facts), child: Some(child) })
    }

    /// Where it is, for everybody who watches it.
    #[must_use]
    pub fn handle(&self) -> &ServerHandle {
        &self.handle
    }

    /// Its first tenant, with a token of every scope.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The login that its first start made.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where it listens, now and after every start.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.options.dir.join("data")
    }

    /// The certificate that its devices trust, and that signs theirs.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data_dir().join("pki/ca.pem")
    }

    /// That certificate's key.
    #[must_use]
    pub fn ca_key(&self) -> PathBuf {
        self.data_dir().join("pki/ca.key")
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, where it did so by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.options.dir)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.handle.change(|facts| facts.pid = None);
            end(&mut child);
        }
    }

    /// Starts it again on what is there, and waits until it listens. One that runs is killed first.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        let handle = self.handle.clone();
        // Its recovery is part of its cost.
        let running = |pid| handle.change(|facts| facts.pid = pid);
        self.child = Some(launch(&self.options, self.addresses, running)?);
        Ok(())
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    /// It ended with another status than 0, or not in time and was killed.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(libc::SIGCONT)?;
        self.signal(libc::SIGTERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = wait(STOP_TIME_MAX, || Ok(child.try_wait()?));
        self.handle.change(|facts| facts.pid = None);
        match status {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => bail!("muster-server stopped with {status}:\n{}", self.log_tail()),
            Ok(None) | Err(_) => {
                end(&mut child);
                bail!("muster-server did not stop within {STOP_TIME_MAX:?}")
            }
        }
    }

    /// Halts it as it is, until [`Self::thaw`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    #[allow(unsafe_code, reason = "the standard library can only kill")]
    fn signal(&self, signal: libc::c_int) -> Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        // SAFETY: plain numbers; the child was not waited for, so its id is still its own.
        let answer = unsafe { libc::kill(child.id().cast_signed(), signal) };
        if answer != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot signal muster-server");
        }
        Ok(())
    }
}

impl Drop for ManagedServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the process and waits until it listens; `running` is told its id, and none where it ended.
fn launch(options: &ServerOptions, at: Addresses, running: impl Fn(Option<u32>)) -> Result<Child> {
    let ready_file = options.dir.join("ready.json");
    // A file of an earlier start would look like readiness.
    let _ = std::fs::remove_file(&ready_file);
    let log_path = options.dir.join("server.log");
    let log = File::options().create(true).append(true).open(&log_path);
    let log = log.with_context(|| format!("cannot write {}", log_path.display()))?;
    let errors = log.try_clone().context("cannot share the log")?;
    let mut command = Command::new(&options.binary);
    command.arg("run").arg("--data-dir").arg(options.dir.join("data"));
    command.arg("--ready-file").arg(&ready_file);
    command.arg("--bootstrap-file").arg(options.dir.join("bootstrap.json"));
    command.args(["--http-listen", &at.http.to_string(), "--enroll-listen", &at.enroll.to_string()]);
    command.args(["--mqtt-tls-listen", &at.mqtt_tls.to_string()]);
    if let Some(plain) = at.mqtt_plain {
        command.args(["--mqtt-plain-listen", &plain.to_string()]);
    }
    for (key, value) in &options.set {
        command.args(["--set", &format!("{key}={value}")]);
    }
    // A group of its own keeps a terminal's Ctrl-C away from it.
    command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", options.binary.display()))?;
    running(Some(child.id()));
    let ready = wait(START_TIME_MAX, || match child.try_wait()? {
        Some(status) => Ok(Some(Err(status))),
        None => Ok(read_json(&ready_file)?.map(Ok)),
    });
    let why = match ready {
        Ok(Some(Ok(_))) => return Ok(child),
        Ok(Some(Err(status))) => format!("muster-server ended with {status}"),
        Ok(None) => format!("muster-server was not ready within {START_TIME_MAX:?}"),
        Err(error) => format!("muster-server cannot be watched: {error:#}"),
    };
    end(&mut child);
    running(None);
    bail!("{why}:\n{}", log_tail(&options.dir))
}

/// What the first start wrote; it stays for later ones.
fn read_bootstrap(dir: &Path) -> Result<(Owner, Access)> {
    let bootstrap = read_json(&dir.join("bootstrap.json"))?.context("the server wrote no bootstrap file")?;
    let text = |name: &str| -> Result<String> {
        let found = bootstrap[name].as_str().map(str::to_owned);
        found.with_context(|| format!("the bootstrap file holds no {name}"))
    };
    let owner = Owner { email: text("email")?, password: text("password")? };
    Ok((owner, Access { tenant: text("tenant")?, token: text("api_token")? }))
}

fn is_port_taken(error: &anyhow::Error) -> bool {
    error.to_string().contains("in use")
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Looks until something is there; none where the time is over.
fn wait<T>(time_max: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let began = Instant::now();
    loop {
        match look()? {
            Some(found) => return Ok(Some(found)),
            None if began.elapsed() > time_max => return Ok(None),
            None => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

/// A file's JSON; none while it is missing or only half written.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(text) => Ok(serde_json::from_str(&text).ok()),
    }
}

fn log_tail(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_below_those_of_outgoing_connections() {
        let addresses = Addresses::pick(true, 0).unwrap();
        let plain = addresses.mqtt_plain.unwrap();
        let ports = [addresses.http, addresses.enroll, addresses.mqtt_tls, plain].map(|at| at.port());
        let distinct: std::collections::BTreeSet<u16> = ports.into_iter().collect();
        let outgoing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(distinct.len() == 4 && ports.iter().all(|port| *port >= PORT_MIN), "{ports:?}");
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let low: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(outgoing >= low && ports.iter().all(|port| *port < low), "{ports:?}");
        // A port that somebody holds is passed over.
        let _held = TcpListener::bind(addresses.http).unwrap();
        assert_ne!(Addresses::pick(true, 0).unwrap().http, addresses.http);
    }

    #[test]
    fn a_program_that_ends_at_once_is_told_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let set = vec![("a.b".to_owned(), "1".to_owned())];
        let dir_path = dir.path().to_owned();
        let mut options = ServerOptions { binary: "/bin/sh".into(), dir: dir_path, set, plain: false };
        let error = ManagedServer::start(options.clone()).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.starts_with("muster-server ended with exit status: ") && error.contains("run"),
            "{error}"
        );
        options.binary = "/no/such/program".into();
        let error = ManagedServer::start(options).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "cannot start /no/such/program");
    }
}
