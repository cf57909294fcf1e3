//! `bench agent`: memory, size, start and idle traffic of the shipped agent.
//!
//! The agent is the build of the profile `agent` over TLS with a certificate from a claim; the server is the dev build, since
//! only the agent is measured.

use super::proxy::Proxy;
use super::{Bar, Options, Report, bundle, fresh_dir, median};
use crate::cargo;
use crate::process::{Process, catch_interrupts, interrupted, wait_for};
use crate::server::Server;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const WAIT: Duration = Duration::from_secs(60);
/// Before memory is read and idle traffic is counted.
const SETTLE: Duration = Duration::from_secs(15);
/// The shortest keep-alive that the idle bar allows.
const KEEP_ALIVE_S: u64 = 120;

pub(super) struct Bench {
    pub(super) server: Server,
    /// The agent's.
    pub(super) binary: PathBuf,
    pub(super) dir: PathBuf,
}

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run.
pub(crate) fn run(options: Options) -> Result<Report> {
    if !options.no_build {
        cargo::build_programs()?;
        cargo::build_agent()?;
    }
    catch_interrupts();
    let dir = fresh_dir("agent")?;
    let mut report = Report::new("agent");
    let binary = cargo::agent_binary();
    let size = std::fs::metadata(&binary).context("the agent was not built")?.len();
    report.barred("binary_mb", size as f64 / 1e6, Bar::AtMost, 18.0);

    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&cargo::dev_binaries().join("muster-server"), &dir.join("server"), http, &[])?;
    let mut bench = Bench { server, binary, dir };
    bench.memory(&mut report)?;
    bench.first_reading(&mut report, if options.quick { 3 } else { 7 })?;
    bench.idle_traffic(&mut report, options)?;
    bench.server.process.stop()?;
    Ok(report)
}

impl Bench {
    /// Writes a configuration and enrols; a later start uses the identity that it got.
    pub(super) fn enrol(&self, device: &str, more: &str) -> Result<PathBuf> {
        let dir = self.dir.join(device);
        std::fs::create_dir_all(&dir)?;
        let answer = self.server.api().post(&self.server.path("claims"), &json!({ "device": device }))?;
        let claim = answer["claim"].as_str().context("the server gave no claim")?;
        let config = dir.join("agent.toml");
        std::fs::write(&config, format!("version = 1\ndata_dir = \"data\"\n\n{more}"))?;
        let output =
            Command::new(&self.binary).arg("enroll").arg("--config").arg(&config).arg(claim).output()?;
        if !output.status.success() {
            bail!("{device} cannot enrol:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(config)
    }

    pub(super) fn start(&self, device: &str, config: &Path) -> Result<Process> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(config);
        Process::start(device, &mut command, &config.with_file_name("agent.log"))
    }

    pub(super) fn device(&self, device: &str, rest: &str) -> Result<Value> {
        self.server.api().get(&self.server.path(&format!("devices/{device}/{rest}")))
    }

    fn memory(&self, report: &mut Report) -> Result<()> {
        // One reading proves that it is connected; then it only keeps its connection.
        let one_row = self.dir.join("one.csv");
        std::fs::write(&one_row, "level\n1\n")?;
        let idle = self.enrol("bench-idle", &csv_pipeline(&one_row, "once", None))?;
        report.barred("rss_idle_mib", self.rss_when_settled("bench-idle", &idle)?, Bar::AtMost, 12.0);

        let model = self.dir.join("model");
        bundle::write(&model)?;
        let config = csv_pipeline(&model.join("series.csv"), "loop", Some(&model));
        let loaded = self.enrol("bench-model", &config)?;
        report.barred("rss_model_mib", self.rss_when_settled("bench-model", &loaded)?, Bar::AtMost, 24.0);
        Ok(())
    }

    /// Memory of a running agent, some time after the server has its first record.
    pub(super) fn rss_when_settled(&self, device: &str, config: &Path) -> Result<f64> {
        let mut agent = self.start(device, config)?;
        wait_for("the agent's first record", WAIT, || {
            agent.expect_running()?;
            Ok(self.device(device, "ledger")?["totals"]["stored"].as_u64().filter(|count| *count > 0))
        })?;
        sleep(SETTLE)?;
        let rss = rss_mib(agent.pid())?;
        agent.stop()?;
        Ok(rss)
    }

    /// From the start of the process to the time when the gateway received its first reading.
    fn first_reading(&self, report: &mut Report, rounds: usize) -> Result<()> {
        let one_row = self.dir.join("one.csv");
        let config = self.enrol("bench-start", &csv_pipeline(&one_row, "once", None))?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            let before = now_us()?;
            let mut agent = self.start("bench-start", &config)?;
            let received = wait_for("the first reading", WAIT, || {
                agent.expect_running()?;
                let last = received_at_us(&self.device("bench-start", "last")?);
                Ok(last.filter(|received| *received >= before))
            })?;
            agent.stop()?;
            times.push((received - before) as f64 / 1_000.0);
        }
        println!("  first readings after {times:.0?} ms");
        report.barred("first_reading_ms", median(times), Bar::AtMost, 300.0);
        Ok(())
    }

    /// Bytes on the line of a connected agent without sources.
    fn idle_traffic(&self, report: &mut Report, options: Options) -> Result<()> {
        let proxy = Proxy::start(self.server.address("mqtt_tls")?)?;
        let (host, port) = (proxy.address.ip(), proxy.address.port());
        let uplink = format!("[uplink]\nhost = \"{host}\"\nport = {port}\nkeep_alive_s = {KEEP_ALIVE_S}\n");
        let config = self.enrol("bench-quiet", &uplink)?;
        let mut agent = self.start("bench-quiet", &config)?;
        wait_for("the agent's connection", WAIT, || Ok((proxy.bytes() > 0).then_some(())))?;
        sleep(SETTLE)?;
        // Whole keep-alive intervals, so that the pings are counted fairly.
        let seconds = KEEP_ALIVE_S * if options.quick { 1 } else { 5 };
        println!("  counting idle bytes for {seconds} s");
        let (began, before) = (Instant::now(), proxy.bytes());
        sleep(Duration::from_secs(seconds))?;
        let bytes = proxy.bytes() - before;
        let per_day = bytes as f64 / began.elapsed().as_secs_f64() * 86_400.0 / 1_024.0;
        agent.expect_running()?;
        agent.stop()?;
        report.barred("idle_kib_per_day", per_day, Bar::AtMost, 200.0);
        Ok(())
    }
}

/// A source of rows and its pipeline.
pub(super) fn csv_pipeline(rows: &Path, wrap: &str, model: Option<&Path>) -> String {
    let model = model.map(|model| format!("model = {:?}\n", model.display().to_string())).unwrap_or_default();
    format!(
        "[[source]]\nkind = \"csv\"\nname = \"rows\"\npath = {:?}\nrate_hz = 10.0\nwrap = \"{wrap}\"\n\n\
         [[pipeline]]\nname = \"rows\"\nsource = \"rows\"\n{model}",
        rows.display().to_string()
    )
}

/// The newest time among a device's last values.
fn received_at_us(last: &Value) -> Option<i64> {
    let items = last.get("items").unwrap_or(last).as_array()?;
    items.iter().filter_map(|item| item["received_at_us"].as_i64()).max()
}

pub(super) fn rss_mib(pid: u32) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")?;
    Ok(kilobytes / 1_024.0)
}

#[allow(clippy::disallowed_methods, reason = "compared with the server's wall clock on this machine")]
fn now_us() -> Result<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    i64::try_from(since.as_micros()).context("the clock stands far ahead")
}

/// Waits; ends early with an error when the user interrupts.
pub(super) fn sleep(time: Duration) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < time {
        if interrupted() {
            bail!("interrupted");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
