//! A hundred thousand connections over six gateway-only processes: what a connection costs each of them.
//!
//! A process here may open 20,000 files, so one cannot hold them. Every gateway reads the main server's registry and
//! appends to a log of its own; every generator is a process as well. First one gateway with ten thousand, then six.

use super::simulate::Simulator;
use crate::bench::load::{Found, Target};
use crate::bench::{Bar, Report, provision};
use crate::process::{Process, wait_for};
use crate::server::Server;
use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GATEWAYS: usize = 6;
const CONNECTIONS: usize = 100_000;
/// Connections of the one gateway that the six are compared with.
const FEW: usize = 10_000;
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How much more a connection may cost among many.
const RATIO_MAX: f64 = 1.1;

/// Connects the fleet to one gateway, then to six; notes what a connection costs.
///
/// # Errors
/// A server or a generator cannot be run.
pub(super) fn run(simulator: &Simulator, report: &mut Report) -> Result<()> {
    println!("connections: making {CONNECTIONS} devices");
    let dir = simulator.out.join("connections");
    let binary = simulator.binaries.join("muster-server");
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut main = Server::start(&binary, &dir.join("main"), http, &["--set", "quota.devices_max=200000"])?;
    let tokens = dir.join("tokens.csv");
    provision::devices(&main, CONNECTIONS as u32, &tokens)?;
    let text = std::fs::read_to_string(&tokens).context("cannot read the tokens")?;
    let lines: Vec<&str> = text.lines().collect();

    let mut one = Gateway::start(&binary, &dir, 0, &main.data_dir)?;
    let few = one.connect(&main.tenant, &lines[..FEW])?;
    one.process.stop()?;
    let mut gateways = Vec::new();
    for number in 1..=GATEWAYS {
        gateways.push(Gateway::start(&binary, &dir, number, &main.data_dir)?);
    }
    let shares: Vec<&[&str]> = lines.chunks(CONNECTIONS.div_ceil(GATEWAYS)).collect();
    let found: Vec<Found> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (gateway, share) in gateways.iter().zip(&shares) {
            let (gateway, tenant) = (gateway.target_parts(), main.tenant.as_str());
            threads.push(scope.spawn(move || connect(&gateway, tenant, share)));
        }
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Found>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        threads.into_iter().map(join).collect::<Result<_>>()
    })?;
    for gateway in &mut gateways {
        gateway.process.stop()?;
    }
    main.process.stop()?;
    note(report, &few, &found);
    Ok(())
}

fn note(report: &mut Report, few: &Found, many: &[Found]) {
    let sum = |pointer: &str| many.iter().map(|found| found.number(pointer)).sum::<f64>();
    let bytes = many.iter().map(|found| found.bytes_per_connection() * found.number("/devices")).sum::<f64>();
    let each = bytes / sum("/devices");
    report.barred("connections", sum("/devices"), Bar::AtLeast, CONNECTIONS as f64);
    report.figure("connections_10k_rss_bytes", few.bytes_per_connection());
    report.figure("connections_100k_rss_bytes", each);
    let ratio = each / few.bytes_per_connection();
    report.barred("connections_rss_ratio", ratio, Bar::AtMost, RATIO_MAX);
    report.barred("connections_lost", sum("/messages/lost"), Bar::AtMost, 0.0);
    report.figure("connections_rss_mb", sum("/cost/server/rss_bytes") / 1e6);
}

/// A gateway-only process on the main server's registry.
struct Gateway {
    process: Process,
    address: SocketAddr,
    dir: PathBuf,
}

/// What a generator needs to know of it.
struct Parts {
    address: SocketAddr,
    pid: u32,
    dir: PathBuf,
}

impl Gateway {
    fn start(binary: &Path, dir: &Path, number: usize, registry: &Path) -> Result<Self> {
        let dir = dir.join(format!("gateway-{number}"));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let ready_file = dir.join("ready.json");
        let mut command = Command::new(binary);
        command.args(["run", "--roles", "gateway", "--registry-dir"]).arg(registry);
        command.arg("--data-dir").arg(dir.join("data")).arg("--ready-file").arg(&ready_file);
        command.args(["--http-listen", "127.0.0.1:0", "--mqtt-tls-listen", "127.0.0.1:0"]);
        command.args(["--mqtt-plain-listen", "127.0.0.1:0"]);
        let connections_max = format!("mqtt.connections_max={}", CONNECTIONS.div_ceil(GATEWAYS));
        command.args(["--set", &connections_max]);
        let mut process = Process::start("muster-server", &mut command, &dir.join("server.log"))?;
        let ready: Value = wait_for("a gateway to listen", START_TIMEOUT, || {
            process.expect_running()?;
            let text = std::fs::read_to_string(&ready_file).unwrap_or_default();
            Ok(serde_json::from_str(&text).ok())
        })?;
        let text = ready["mqtt_plain"].as_str().context("the ready file holds no mqtt_plain")?;
        let address = text.parse().with_context(|| format!("{text} is no address"))?;
        Ok(Self { process, address, dir })
    }

    fn target_parts(&self) -> Parts {
        Parts { address: self.address, pid: self.process.pid(), dir: self.dir.clone() }
    }

    fn connect(&self, tenant: &str, tokens: &[&str]) -> Result<Found> {
        connect(&self.target_parts(), tenant, tokens)
    }
}

/// Connects devices and lets them send a little, so that what is measured is a gateway at work.
fn connect(gateway: &Parts, tenant: &str, tokens: &[&str]) -> Result<Found> {
    let file = gateway.dir.join("tokens.csv");
    std::fs::write(&file, tokens.join("\n")).with_context(|| format!("cannot write {}", file.display()))?;
    let target = Target {
        address: gateway.address,
        server_pid: gateway.pid,
        tenant: tenant.to_owned(),
        tokens: file,
        ca: None,
    };
    let flags = ["--rate", "200", "--seconds", "20", "--concurrency", "64", "--connect-timeout", "300"];
    target.run("bench-rate", tokens.len() as u32, &flags)
}
