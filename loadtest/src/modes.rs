//! What the generator can measure: connects, a steady rate, a blast, idle connections.

use crate::arithmetic;
use crate::engine::{Engine, Options};
use crate::identity::{Identities, Tokens};
use crate::meter::{Cost, Meter};
use crate::mqtt::Version;
use crate::timer;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Descriptors beside the connections.
const OTHER_FILES: u64 = 64;
/// The most devices that serials tell apart.
const DEVICES_MAX: u32 = 1 << 17;

/// One measurement.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Connects per second, from the first SYN to the last CONNACK (full TLS handshakes with --ca).
    BenchConnect {
        /// How to connect.
        #[command(flatten)]
        common: Common,
        /// Let the whole fleet leave and come back with the same certificates, and measure that too.
        #[arg(long)]
        again: bool,
    },
    /// A steady open-loop rate: latency from intended send to PUBACK.
    BenchRate {
        /// How to connect.
        #[command(flatten)]
        common: Common,
        /// Messages a second, over all devices.
        #[arg(long, default_value_t = 1_000.0)]
        rate: f64,
        /// Seconds at the same rate that are not measured.
        #[arg(long, default_value_t = 3.0)]
        warmup: f64,
        /// Send on when the server refuses for now, as no good device does; what it refuses is gone.
        #[arg(long)]
        defiant: bool,
    },
    /// As many messages as go: every device keeps a window of unacknowledged messages.
    BenchBlast {
        /// How to connect.
        #[command(flatten)]
        common: Common,
        /// Unacknowledged messages a device.
        #[arg(long, default_value_t = 100)]
        window: u16,
    },
    /// Holds connections without messages.
    Idle(#[command(flatten)] Common),
}

/// How devices connect.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// The server's MQTT listener, `host:port`.
    #[arg(long)]
    pub addr: String,
    /// Connections.
    #[arg(long, default_value_t = 10_000)]
    pub devices: u32,
    /// Measured time.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// The devices' tenant.
    #[arg(long, default_value = "bench")]
    pub tenant: String,
    /// A device's token is this prefix and its name.
    #[arg(long, conflicts_with = "tokens")]
    pub token_prefix: Option<String>,
    /// A file of `device,token` lines.
    #[arg(long)]
    pub tokens: Option<PathBuf>,
    /// The CA of the server's certificate (PEM): speak TLS.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// The device CA's key (PEM): sign a client certificate for each device.
    #[arg(long, requires = "ca")]
    pub ca_key: Option<PathBuf>,
    /// The name in the server's certificate; the address's host unless given.
    #[arg(long)]
    pub server_name: Option<String>,
    /// MQTT version: 4 (3.1.1) or 5.
    #[arg(long, default_value_t = 5)]
    pub mqtt: u8,
    /// Keep-alive in seconds.
    #[arg(long, default_value_t = 600)]
    pub keep_alive: u16,
    /// Connections that are being made at once.
    #[arg(long, default_value_t = 256)]
    pub concurrency: u32,
    /// Longest time until all are connected.
    #[arg(long, default_value_t = 120.0)]
    pub connect_timeout: f64,
    /// Longest wait for the last PUBACKs.
    #[arg(long, default_value_t = 30.0)]
    pub drain_timeout: f64,
    /// The server's process, to measure its CPU and memory.
    #[arg(long)]
    pub server_pid: Option<u32>,
    /// Queue ids and delays follow from it; another one each run unless given.
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What a measurement found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The command's name.
    pub mode: &'static str,
    /// Connections.
    pub devices: u32,
    /// MQTT level.
    pub mqtt: u8,
    /// Repeats the run's queue ids and delays.
    pub seed: u64,
    /// Time from the first SYN to the last CONNACK.
    pub connect_s: f64,
    /// Devices by that time.
    pub connects_per_s: f64,
    /// The cost of connecting; the server's memory is that of its connections.
    pub connect_cost: Cost,
    /// The cost of connecting all of them once more (`--again`), with the same certificates.
    pub again_cost: Option<Cost>,
    /// With `--again` over TLS: handshakes a core could answer by arithmetic alone, measured right after.
    pub handshake_arithmetic_per_cpu_s: Option<f64>,
    /// Successful connects after a device's first.
    pub reconnects: u64,
    /// Failed or ended connections by reason.
    pub closed: BTreeMap<String, u64>,
    /// The messages, where any were sent.
    pub messages: Option<Messages>,
    /// The cost of the measured interval.
    pub cost: Cost,
}

/// What became of the messages of the measured interval.
#[derive(Clone, Debug, Serialize)]
pub struct Messages {
    /// Handed to a socket.
    pub published: u64,
    /// Answered with success.
    pub acked: u64,
    /// `published`, and what the warm-up published.
    pub published_with_warmup: u64,
    /// `acked`, and what the warm-up got acknowledged.
    pub acked_with_warmup: u64,
    /// Answered with a reason of 0x80 and above and not sent again, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Refused for now by reason, warm-up included: kept, and sent again after a pause.
    pub refused_for_now: BTreeMap<String, u64>,
    /// Without an answer at the end, or never sent.
    pub lost: u64,
    /// Acked by published, refused and lost.
    pub success_ratio: f64,
    /// Acked a second.
    pub acked_per_s: f64,
    /// PUBACKs that no publish waited for.
    pub stray_acks: u64,
    /// From the intended send to the PUBACK.
    pub puback_ms: Percentiles,
    /// From the actual send to the PUBACK.
    pub service_ms: Percentiles,
    /// From the intended to the actual send: the generator's own delay.
    pub send_late_ms: Percentiles,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Outcome {
    /// The one line that a script reads.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the outcome holds numbers and texts only")
    }
}

/// Runs one measurement.
///
/// # Errors
/// The devices cannot connect, or the machine refuses what is needed.
pub fn run(command: &Command) -> Result<Outcome> {
    match command {
        Command::BenchConnect { common, again } => {
            connect_only("bench-connect", common, Duration::ZERO, *again)
        }
        Command::Idle(common) => connect_only("idle", common, Duration::from_secs_f64(common.seconds), false),
        Command::BenchRate { common, rate, warmup, defiant } => {
            if !(*rate > 0.0 && *rate <= 1e6) {
                bail!("--rate must be above 0 and at most 1,000,000");
            }
            with_messages("bench-rate", common, |engine, measure| {
                engine.tally.defiant = *defiant;
                if *warmup > 0.0 {
                    engine.run_rate(*rate, Duration::from_secs_f64(*warmup))?;
                    engine.drain(Duration::from_secs_f64(common.drain_timeout))?;
                    engine.tally.reset_messages();
                }
                measure.start()?;
                engine.run_rate(*rate, Duration::from_secs_f64(common.seconds))
            })
        }
        Command::BenchBlast { common, window } => with_messages("bench-blast", common, |engine, measure| {
            measure.start()?;
            engine.run_blast(*window, Duration::from_secs_f64(common.seconds))
        }),
    }
}

/// The measured interval, started by a mode when its warm-up is over.
struct Measure {
    server_pid: Option<u32>,
    meter: Option<Meter>,
}

impl Measure {
    fn start(&mut self) -> Result<()> {
        self.meter = Some(Meter::start(self.server_pid)?);
        Ok(())
    }
}

fn connect_only(mode: &'static str, common: &Common, hold: Duration, again: bool) -> Result<Outcome> {
    let (mut engine, mut outcome) = connected(mode, common)?;
    if !hold.is_zero() {
        let meter = Meter::start(common.server_pid)?;
        engine.hold(hold)?;
        outcome.cost = meter.finish()?;
        if engine.online() < engine.count() {
            eprintln!(
                "{} of {} devices are offline at the end",
                engine.count() - engine.online(),
                engine.count()
            );
        }
    }
    if again {
        engine.disconnect_all();
        let meter = Meter::start(common.server_pid)?;
        engine.connect_all(Duration::from_secs_f64(common.connect_timeout))?;
        outcome.again_cost = Some(meter.finish()?);
        if common.ca.is_some() {
            outcome.handshake_arithmetic_per_cpu_s = Some(arithmetic::handshakes_per_cpu_s()?);
        }
    }
    close(&mut engine, &mut outcome);
    Ok(outcome)
}

fn with_messages(
    mode: &'static str,
    common: &Common,
    send: impl FnOnce(&mut Engine, &mut Measure) -> Result<()>,
) -> Result<Outcome> {
    let (mut engine, mut outcome) = connected(mode, common)?;
    let mut measure = Measure { server_pid: common.server_pid, meter: None };
    send(&mut engine, &mut measure)?;
    let meter = measure.meter.context("the mode started no measurement")?;
    outcome.cost = meter.finish()?;
    let acked_in_time = engine.tally.acked;
    let unanswered = engine.drain(Duration::from_secs_f64(common.drain_timeout))?;
    outcome.messages = Some(messages(&engine, unanswered, acked_in_time, outcome.cost.seconds));
    close(&mut engine, &mut outcome);
    Ok(outcome)
}

fn connected(mode: &'static str, common: &Common) -> Result<(Engine, Outcome)> {
    check_devices(common.devices)?;
    let files = timer::raise_open_files().context("cannot read the limit of open files")?;
    if u64::from(common.devices) + OTHER_FILES > files {
        bail!("{} devices need more than the {files} files that this process may open", common.devices);
    }
    let version = version(common.mqtt)?;
    let seed = common.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let options = Options {
        keep_alive_s: common.keep_alive,
        concurrency: common.concurrency.max(1),
        ..Options::new(resolve(&common.addr)?, version, seed)
    };
    let mut engine = Engine::new(options, identities(common)?)?;
    let meter = Meter::start(common.server_pid)?;
    let took = engine.connect_all(Duration::from_secs_f64(common.connect_timeout))?;
    let connect_cost = meter.finish()?;
    let outcome = Outcome {
        mode,
        devices: common.devices,
        mqtt: common.mqtt,
        seed,
        connect_s: took.as_secs_f64(),
        connects_per_s: f64::from(common.devices) / took.as_secs_f64(),
        cost: connect_cost.clone(),
        connect_cost,
        again_cost: None,
        handshake_arithmetic_per_cpu_s: None,
        reconnects: 0,
        closed: BTreeMap::new(),
        messages: None,
    };
    eprintln!("{mode}: {} devices online, {:.0} connects/s", common.devices, outcome.connects_per_s);
    Ok((engine, outcome))
}

pub(crate) fn version(mqtt: u8) -> Result<Version> {
    match mqtt {
        4 => Ok(Version::V311),
        5 => Ok(Version::V5),
        other => bail!("--mqtt must be 4 or 5, not {other}"),
    }
}

fn check_devices(devices: u32) -> Result<()> {
    if !(1..=DEVICES_MAX).contains(&devices) {
        bail!("--devices must be 1 to {DEVICES_MAX}, not {devices}");
    }
    Ok(())
}

fn identities(common: &Common) -> Result<Identities> {
    let tokens = match (&common.token_prefix, &common.tokens) {
        (Some(prefix), _) => Tokens::Prefix(prefix),
        (None, Some(path)) => Tokens::File(path),
        (None, None) => Tokens::None,
    };
    let identities = Identities::new(&common.tenant, common.devices, &tokens)?;
    let Some(ca) = &common.ca else { return Ok(identities) };
    let host = common.addr.rsplit_once(':').map_or(common.addr.as_str(), |(host, _)| host);
    let name = common.server_name.as_deref().unwrap_or(host);
    identities.with_tls(name, ca, common.ca_key.as_deref())
}

pub(crate) fn resolve(address: &str) -> Result<SocketAddr> {
    let mut found = address.to_socket_addrs().with_context(|| format!("{address} is no host:port"))?;
    found.next().with_context(|| format!("{address} has no address"))
}

fn messages(engine: &Engine, unanswered: u64, acked_in_time: u64, seconds: f64) -> Messages {
    let tally = &engine.tally;
    let lost = unanswered + tally.unsent;
    let all = tally.acked + tally.refused_total() + lost;
    Messages {
        published: tally.published,
        acked: tally.acked,
        published_with_warmup: tally.warmup.0 + tally.published,
        acked_with_warmup: tally.warmup.1 + tally.acked,
        refused: by_reason(&tally.refused),
        refused_for_now: by_reason(&tally.kept),
        lost,
        success_ratio: if all == 0 { 0.0 } else { tally.acked as f64 / all as f64 },
        acked_per_s: acked_in_time as f64 / seconds,
        stray_acks: tally.stray_acks,
        puback_ms: percentiles(&tally.from_intended),
        service_ms: percentiles(&tally.from_sent),
        send_late_ms: percentiles(&tally.send_late),
    }
}

fn by_reason(counts: &BTreeMap<u8, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(reason, count)| (format!("0x{reason:02x}"), *count)).collect()
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    Percentiles { p50: at(0.50), p95: at(0.95), p99: at(0.99), max: histogram.max() as f64 / 1_000.0 }
}

fn close(engine: &mut Engine, outcome: &mut Outcome) {
    outcome.reconnects = engine.tally.reconnects;
    outcome.closed = engine.tally.closed.clone();
    engine.disconnect_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[track_caller]
    fn refused(line: &str, expect: &str) {
        let error = run(&Line::parse_from(line.split(' ')).command).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn more_devices_or_messages_than_a_run_can_tell_apart_are_refused() {
        assert!(check_devices(1).is_ok() && check_devices(DEVICES_MAX).is_ok());
        refused(
            "loadtest idle --addr 127.0.0.1:1 --devices 131073",
            "--devices must be 1 to 131072, not 131073",
        );
        refused("loadtest idle --addr 127.0.0.1:1 --devices 0", "--devices must be 1 to 131072, not 0");
        let rate = |rate| format!("loadtest bench-rate --addr 127.0.0.1:1 --devices 1 --rate {rate}");
        refused(&rate("1000001"), "--rate must be above 0 and at most 1,000,000");
        refused(&rate("0"), "--rate must be above 0 and at most 1,000,000");
    }
}
