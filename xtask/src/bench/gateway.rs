//! `bench gateway`: the MQTT gateway in front of the event log, then the whole path behind it.
//!
//! One server directory goes through four starts: full (devices are made), consumers off (latency, connects,
//! memory, and a stalled consumer: the log fills while nobody reads it), full again (the log is drained: what
//! was acknowledged must be stored once; then latency with every consumer), and consumers off for the blast.

use super::load::{Found, Target};
use super::{Bar, Options, QUIET_CORES, Report, fresh_dir, median, provision};
use crate::cargo;
use crate::process::{catch_interrupts, wait_for};
use crate::server::Server;
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Connections of the steady modes; a process here may open 20,000 files.
const DEVICES: u32 = 10_000;
/// Connections with mTLS: enough for a stable mean, short enough to stay in one burst.
const TLS_DEVICES: u32 = 5_000;
/// Connections of the blast.
const BLAST_DEVICES: u32 = 100;
/// Settings that keep limits of normal operation out of the figures.
const COMMON: [&str; 8] = [
    "--mqtt-plain-listen",
    "127.0.0.1:0",
    "--set",
    "quota.devices_max=20000",
    "--set",
    "limits.device_messages_per_s=1000000",
    "--set",
    "limits.device_messages_burst=1000000",
];
/// The log must hold the stalled minute and the blast.
const BIG_LOG: [&str; 2] = ["--set", "event_log.bytes_max=17179869184"];
/// Nobody reads the log.
const CONSUMERS_OFF: [&str; 2] = ["--set", "event_log.consumers=false"];
/// The longest drain of the stalled log.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

struct Bench {
    options: Options,
    dir: PathBuf,
    tokens: PathBuf,
    report: Report,
    /// Load of others in each run.
    other: Vec<f64>,
    /// Messages that were acknowledged while consumers were off, and those sent.
    acked: u64,
    published: u64,
}

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run.
pub(crate) fn run(options: Options) -> Result<Report> {
    if !options.no_build {
        cargo::build_dist(&["muster-server", "muster-loadtest"])?;
    }
    catch_interrupts();
    let dir = fresh_dir("gateway")?;
    let tokens = dir.join("tokens.csv");
    let report = Report::new("gateway");
    let mut bench = Bench { options, dir, tokens, report, other: Vec::new(), acked: 0, published: 0 };
    bench.provision()?;
    bench.consumers_off()?;
    bench.consumers_on()?;
    bench.blast_and_tls()?;
    bench.decoded_blast()?;
    let other = bench.other.iter().copied().fold(0.0, f64::max);
    bench.report.figure("other_load_cores", other);
    Ok(bench.report)
}

impl Bench {
    fn start(&self, more: &[&str]) -> Result<Server> {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let flags: Vec<&str> = COMMON.iter().chain(&BIG_LOG).chain(more).copied().collect();
        Server::start(&cargo::dist_binaries().join("muster-server"), &self.dir.join("server"), http, &flags)
    }

    fn target(&self, server: &Server) -> Result<Target> {
        Ok(Target {
            address: server.address("mqtt_plain")?,
            server_pid: server.process.pid(),
            tenant: server.tenant.clone(),
            tokens: self.tokens.clone(),
            ca: None,
        })
    }

    /// How often a mode runs, for its median.
    fn rounds(&self) -> u32 {
        if self.options.quick { 1 } else { 3 }
    }

    fn seconds(&self, full: u32, quick: u32) -> String {
        if self.options.quick { quick } else { full }.to_string()
    }

    /// Runs a mode several times; notes the load of others.
    fn runs(&mut self, target: &Target, mode: &str, devices: u32, more: &[&str]) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for _ in 0..self.rounds() {
            let run = target.run(mode, devices, more)?;
            self.other.push(run.number("/cost/other_load_cores"));
            found.push(run);
        }
        Ok(found)
    }

    /// Whether others left the machine alone in the last runs.
    fn quiet(&self) -> bool {
        let last = self.other.iter().rev().take(self.rounds() as usize).copied();
        median(last.collect()) < QUIET_CORES
    }

    fn provision(&self) -> Result<()> {
        println!("making {DEVICES} devices");
        let mut server = self.start(&[])?;
        provision::devices(&server, DEVICES, &self.tokens)?;
        server.process.stop()
    }

    /// The gateway and the event log alone.
    fn consumers_off(&mut self) -> Result<()> {
        println!("consumers off");
        let mut server = self.start(&CONSUMERS_OFF)?;
        let target = self.target(&server)?;
        let connects = self.runs(&target, "bench-connect", DEVICES, &[])?;
        let per_s = at(&connects, "/connects_per_s");
        self.report.barred("connects_per_s", per_s, Bar::AtLeast, 12_000.0);
        self.steady(&target)?;
        self.fast(&target)?;
        self.stalled(&target)?;
        server.process.stop()?;
        // A fresh process shows what connections take; freed memory of earlier ones would hide it.
        let mut server = self.start(&CONSUMERS_OFF)?;
        let target = self.target(&server)?;
        let idle = target.run("idle", DEVICES, &["--seconds", "5"])?;
        self.report.barred("conn_rss_bytes", idle.bytes_per_connection(), Bar::AtMost, 3_072.0);
        server.process.stop()
    }

    /// 1,000 messages a second.
    fn steady(&mut self, target: &Target) -> Result<()> {
        let seconds = self.seconds(20, 8);
        let runs = self.runs(target, "bench-rate", DEVICES, &["--rate", "1000", "--seconds", &seconds])?;
        self.count(&runs);
        let success = runs.iter().map(|run| run.number("/messages/success_ratio")).fold(1.0, f64::min);
        let quiet = self.quiet();
        let report = &mut self.report;
        report.barred("success_ratio", success, Bar::AtLeast, 1.0);
        report.figure("puback_p50_ms", at(&runs, "/messages/puback_ms/p50"));
        let p95 = at(&runs, "/messages/puback_ms/p95");
        report.barred("puback_p95_ms", p95, Bar::AtMost, if quiet { 1.0 } else { 10.0 });
        quiet_bar(report, quiet, "puback_p99_ms", at(&runs, "/messages/puback_ms/p99"), 2.0);
        report.barred("cpu_cores", at(&runs, "/cost/server/cpu_cores"), Bar::AtMost, 0.25);
        report.barred("rss_mb", at(&runs, "/cost/server/rss_bytes") / 1e6, Bar::AtMost, 64.0);
        report.figure("generator_cpu_cores", at(&runs, "/cost/generator_cores"));
        Ok(())
    }

    /// 10,000 messages a second.
    fn fast(&mut self, target: &Target) -> Result<()> {
        let seconds = self.seconds(10, 5);
        let runs = self.runs(target, "bench-rate", DEVICES, &["--rate", "10000", "--seconds", &seconds])?;
        self.count(&runs);
        let quiet = self.quiet();
        quiet_bar(&mut self.report, quiet, "k10_puback_p95_ms", at(&runs, "/messages/puback_ms/p95"), 2.0);
        self.report.barred("k10_cpu_cores", at(&runs, "/cost/server/cpu_cores"), Bar::AtMost, 0.5);
        Ok(())
    }

    /// Consumers stalled for a minute under load: memory must stay flat.
    fn stalled(&mut self, target: &Target) -> Result<()> {
        let seconds = self.seconds(60, 10);
        let run = target.run("bench-rate", DEVICES, &["--rate", "10000", "--seconds", &seconds])?;
        self.count(std::slice::from_ref(&run));
        self.report.figure("stalled_rss_mb", run.number("/cost/server/rss_bytes") / 1e6);
        Ok(())
    }

    /// Counts what must be found in the store later.
    fn count(&mut self, runs: &[Found]) {
        for run in runs {
            self.acked += run.number("/messages/acked_with_warmup") as u64;
            self.published += run.number("/messages/published_with_warmup") as u64;
        }
    }

    /// The whole path: first it stores what piled up, then it serves with every consumer.
    fn consumers_on(&mut self) -> Result<()> {
        println!("consumers on: storing what piled up");
        let mut server = self.start(&[])?;
        let (acked, published) = (self.acked, self.published);
        let totals = wait_stored(&server, acked)?;
        let stored = totals["stored"].as_u64().context("the ledger holds no stored")?;
        let lost = acked.saturating_sub(stored).max(totals["lost"].as_u64().unwrap_or(0));
        self.report.barred("lost", lost as f64, Bar::AtMost, 0.0);
        self.report.barred("stalled_lost", lost as f64, Bar::AtMost, 0.0);
        self.report.barred("duplicated", stored.saturating_sub(published) as f64, Bar::AtMost, 0.0);
        let target = self.target(&server)?;
        let seconds = self.seconds(20, 8);
        let runs = self.runs(&target, "bench-rate", DEVICES, &["--rate", "1000", "--seconds", &seconds])?;
        let quiet = self.quiet();
        quiet_bar(&mut self.report, quiet, "full_puback_p95_ms", at(&runs, "/messages/puback_ms/p95"), 2.0);
        self.report.barred("full_cpu_cores", at(&runs, "/cost/server/cpu_cores"), Bar::AtMost, 0.45);
        self.report.barred("full_rss_mb", at(&runs, "/cost/server/rss_bytes") / 1e6, Bar::AtMost, 128.0);
        server.process.stop()
    }

    /// As many messages as go into the log, and as many handshakes as a core makes.
    fn blast_and_tls(&mut self) -> Result<()> {
        println!("blast and TLS");
        let mut server = self.start(&CONSUMERS_OFF)?;
        let mut target = self.target(&server)?;
        let seconds = self.seconds(10, 4);
        // 3.1.1 has no Receive Maximum, so the window may be wider than MQTT 5's 32.
        let flags = ["--mqtt", "4", "--window", "100", "--seconds", &seconds];
        let runs = self.runs(&target, "bench-blast", BLAST_DEVICES, &flags)?;
        let per_core =
            runs.iter().map(|run| run.number("/messages/acked_per_s") / run.number("/cost/server/cpu_cores"));
        self.report.barred("blast_raw_msg_per_core", median(per_core.collect()), Bar::AtLeast, 500_000.0);
        self.report.figure("blast_raw_msg_per_s", at(&runs, "/messages/acked_per_s"));
        server.process.stop()?;

        let mut server = self.start(&CONSUMERS_OFF)?;
        target.address = server.address("mqtt_tls")?;
        target.server_pid = server.process.pid();
        target.ca = Some((server.data_dir.join("pki/ca.pem"), server.data_dir.join("pki/ca.key")));
        let idle = target.run("idle", TLS_DEVICES, &["--seconds", "5", "--server-name", "localhost"])?;
        self.report.barred("mtls_conn_rss_bytes", idle.bytes_per_connection(), Bar::AtMost, 18_432.0);
        let flags = ["--server-name", "localhost", "--again"];
        let runs = self.runs(&target, "bench-connect", TLS_DEVICES, &flags)?;
        let per_cpu_s = |cost: &str| {
            let cpu_s = |run: &Found| run.number(&format!("/{cost}/server/cpu_s"));
            median(runs.iter().map(|run| f64::from(TLS_DEVICES) / cpu_s(run)).collect())
        };
        self.report.barred("handshakes_per_cpu_s", per_cpu_s("connect_cost"), Bar::AtLeast, 3_000.0);
        self.report.figure("handshakes_known_per_cpu_s", per_cpu_s("again_cost"));
        self.report.figure("handshake_arithmetic_per_cpu_s", at(&runs, "/handshake_arithmetic_per_cpu_s"));
        server.process.stop()
    }

    /// Decoding and storing, without the gateway: the store's own bench.
    fn decoded_blast(&mut self) -> Result<()> {
        let messages = if self.options.quick { "300000" } else { "1000000" };
        let mut command = cargo::cargo();
        command.args(["run", "--quiet", "--locked", "--profile", "dist", "--package", "muster-server"]);
        command.args(["--example", "decoded_blast", "--", messages]);
        let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("  decoded blast: {text}");
        let per_core = text
            .lines()
            .last()
            .and_then(|line| line.rsplit_once(" msg/s per core"))
            .and_then(|(before, _)| before.split_whitespace().last()?.parse::<f64>().ok())
            .unwrap_or(f64::NAN);
        self.report.barred("blast_decoded_msg_per_core", per_core, Bar::AtLeast, 80_000.0);
        Ok(())
    }
}

/// The median of a figure over runs.
fn at(runs: &[Found], pointer: &str) -> f64 {
    median(runs.iter().map(|run| run.number(pointer)).collect())
}

/// A bar that only a quiet machine can hold.
fn quiet_bar(report: &mut Report, quiet: bool, name: &'static str, value: f64, limit: f64) {
    if quiet {
        report.barred(name, value, Bar::AtMost, limit);
    } else {
        report.figure(name, value);
    }
}

/// Waits until the ledger has stored that many records, or stops moving.
fn wait_stored(server: &Server, records: u64) -> Result<Value> {
    let mut api = server.api();
    let (mut last, mut same) = (0, 0);
    wait_for("the log to be stored", DRAIN_TIMEOUT, || {
        let answer = api.get(&server.path("ledger"))?;
        let totals = answer.get("totals").unwrap_or(&answer).clone();
        let stored = totals["stored"].as_u64().context("the ledger holds no stored")?;
        same = if stored == last { same + 1 } else { 0 };
        last = stored;
        std::thread::sleep(Duration::from_millis(250));
        // Five seconds without progress are the end, whatever is missing.
        Ok((stored >= records || (stored > 0 && same > 20)).then_some(totals))
    })
}
