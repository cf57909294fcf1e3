//! `bench pipelines`: four pipelines on one agent for ten minutes: the machine's readings, a series with an anomaly model, a
//! camera with a classifier, and a detector whose budget is far below what it would take.
//!
//! Held: memory stays where it was after the first minutes, each pipeline keeps its CPU budget (inferences are shed),
//! and no record is lost: at the end the server has stored each that the agent's queue accepted. The detector's model is a
//! third-party one beside the workspace ([`models::Beside`]).

use super::agent::{Bench, rss_mib, sleep};
use super::{Bar, Options, Report, fresh_dir, median, models};
use crate::cargo;
use crate::process::{Process, catch_interrupts, wait_for};
use crate::server::Server;
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);
/// Between two looks at the agent's memory.
const LOOK: Duration = Duration::from_secs(5);
/// Looks that tell where memory stands: at the end of the warm-up, and at the very end.
const LOOKS: usize = 12;
const DEVICE: &str = "bench-pipelines";
/// Pipelines with their budgets, in percent of a core.
const BUDGETS: [(&str, f64); 3] = [("motion", 5.0), ("digits", 5.0), ("objects", 5.0)];
/// What a bucket holds beyond the share of the time that passed, in seconds' worth.
const BURST_S: f64 = 1.0;
/// An inference that began runs to its end: the most that one costs, in seconds.
const OVERDRAFT_S: f64 = 0.5;

/// Command line of the bench.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Another agent than the shipped profile's.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run, or the reference models are not there.
pub(crate) fn run(arguments: &Arguments) -> Result<Report> {
    let beside = models::Beside::new()?;
    if !arguments.options.no_build {
        cargo::build_programs()?;
        if arguments.agent.is_none() {
            cargo::build_agent()?;
        }
    }
    catch_interrupts();
    let dir = fresh_dir("pipelines")?;
    beside.write_bundles(&dir)?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&cargo::dev_binaries().join("muster-server"), &dir.join("server"), any, &[])?;
    let binary = arguments.agent.clone().unwrap_or_else(cargo::agent_binary);
    let mut bench = Bench { server, binary, dir };
    let mut report = Report::new("pipelines");
    let minutes = if arguments.options.quick { 3 } else { 10 };
    let metrics = bench.watch(&mut report, Duration::from_secs(60 * minutes))?;
    budgets(&mut report, &metrics, Duration::from_secs(60 * minutes))?;
    bench.nothing_lost(&mut report, &metrics)?;
    bench.server.process.stop()?;
    Ok(report)
}

impl Bench {
    /// Runs the agent and looks at its memory; its own counters just before its end.
    fn watch(&self, report: &mut Report, time: Duration) -> Result<String> {
        let socket = self.dir.join("metrics.sock");
        let config = self.enrol(DEVICE, &pipelines(&self.dir, &socket))?;
        let mut agent: Process = self.start(DEVICE, &config)?;
        wait_for("the agent's counters", WAIT, || Ok(counters(&socket).ok()))?;
        let (began, mut looks) = (Instant::now(), Vec::new());
        while began.elapsed() < time {
            sleep(LOOK)?;
            agent.expect_running()?;
            looks.push(rss_mib(agent.pid())?);
            if looks.len() % LOOKS == 0 {
                println!("  after {} s: {:.1} MiB", began.elapsed().as_secs(), looks[looks.len() - 1]);
            }
        }
        let metrics = counters(&socket)?;
        agent.stop()?;
        // The first minute warms up: models are chosen, buffers take their size.
        let settled = median(looks[LOOKS..2 * LOOKS].to_vec());
        let end = median(looks[looks.len() - LOOKS..].to_vec());
        report.figure("rss_second_minute_mib", settled);
        report.figure("rss_last_minute_mib", end);
        report.barred("rss_growth", end / settled, Bar::AtMost, 1.03);
        Ok(metrics)
    }

    /// What the server holds of the device, once it has all that the agent sent.
    fn nothing_lost(&self, report: &mut Report, metrics: &str) -> Result<()> {
        let config = self.dir.join(DEVICE).join("agent.toml");
        let output = Command::new(&self.binary)
            .args(["queue", "inspect", "--json", "--config"])
            .arg(&config)
            .output()
            .context("cannot inspect the queue")?;
        let inspection: Value =
            serde_json::from_slice(&output.stdout).context("what queue inspect printed")?;
        let classes = inspection["classes"].as_array().context("queue inspect names no classes")?;
        let sum = |name: &str| classes.iter().filter_map(|class| class[name].as_u64()).sum::<u64>();
        let ledger = self.device(DEVICE, "ledger")?;
        let total = |name: &str| ledger["totals"][name].as_u64().with_context(|| format!("no {name}"));
        report.figure("accepted", sum("accepted") as f64);
        report.barred("dropped", sum("dropped") as f64, Bar::AtMost, 0.0);
        report.figure("stored", total("stored")? as f64);
        report.barred("not_stored", sum("accepted") as f64 - total("stored")? as f64, Bar::AtMost, 0.0);
        report.barred("lost", total("lost")? as f64, Bar::AtMost, 0.0);
        report.barred("duplicated", total("duplicated")? as f64, Bar::AtMost, 0.0);
        let refused: f64 = values(metrics, "agent_refused_total").map(|(_, value)| value).sum();
        report.barred("refused", refused, Bar::AtMost, 0.0);
        Ok(())
    }
}

/// CPU time of each pipeline beside its budget, its inferences and those that were shed.
fn budgets(report: &mut Report, metrics: &str, time: Duration) -> Result<()> {
    for (pipeline, percent) in BUDGETS {
        let of = |name: &str| -> f64 {
            let label = format!("pipeline=\"{pipeline}\"");
            values(metrics, name).filter(|(labels, _)| labels.contains(&label)).map(|(_, value)| value).sum()
        };
        let allowed = (time.as_secs_f64() + BURST_S) * percent / 100.0 + OVERDRAFT_S;
        report.barred(
            format!("{pipeline}_cpu_s"),
            of("agent_pipeline_cpu_seconds_total"),
            Bar::AtMost,
            allowed,
        );
        let (inferences, shed) = (of("agent_pipeline_inferences_total"), of("agent_inferences_shed_total"));
        report.barred(format!("{pipeline}_inferences"), inferences, Bar::AtLeast, 1.0);
        if pipeline == "objects" {
            report.barred("objects_shed", shed, Bar::AtLeast, 1.0);
        } else {
            report.figure(format!("{pipeline}_shed"), shed);
        }
    }
    Ok(())
}

/// Labels and value of each line of a metric.
fn values<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        Some((labels, value.parse().ok()?))
    })
}

/// The agent's counters as Prometheus text.
fn counters(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("the agent shows no metrics")?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn pipelines(dir: &Path, socket: &Path) -> String {
    let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
    let own = cargo::root().join("agent/models");
    let budget = |pipeline: &str| {
        let percent =
            BUDGETS.iter().find(|(name, _)| *name == pipeline).map_or(100.0, |(_, percent)| *percent);
        format!("cpu_percent_max = {percent:.1}\n")
    };
    let images = |name: &str, folder: PathBuf, model: PathBuf| {
        format!(
            "[[source]]\nkind = \"images\"\nname = \"{name}\"\nfolder = {}\ninterval_ms = 100\nwrap = \"loop\"\n\n\
             [[pipeline]]\nname = \"{name}\"\nsource = \"{name}\"\nmodel = {}\nserial = \"{name}.serial\"\n{}\n",
            quoted(folder),
            quoted(model),
            budget(name)
        )
    };
    let mut text = format!("[metrics]\nlisten = \"unix:{}\"\n\n", socket.display());
    text += "[[source]]\nkind = \"host\"\nname = \"host\"\ninterval_ms = 500\n\n\
             [[pipeline]]\nname = \"host\"\nsource = \"host\"\nserial = \"host.serial\"\n\n";
    text += &format!(
        "[[source]]\nkind = \"csv\"\nname = \"motion\"\npath = {}\n\
         columns = [\"accel_x\", \"accel_y\", \"accel_z\", \"gyro_x\", \"gyro_y\", \"gyro_z\"]\n\
         rate_hz = 10.0\nspeed = 10.0\nwrap = \"loop\"\n\n\
         [[pipeline]]\nname = \"motion\"\nsource = \"motion\"\nmodel = {}\ntelemetry = \"all\"\n\
         serial = \"motion.serial\"\n{}\n",
        quoted(own.join("motion-anomaly/demo/motion.csv")),
        quoted(own.join("motion-anomaly")),
        budget("motion")
    );
    text += &images("digits", own.join("meter-digits/demo"), own.join("meter-digits"));
    text + &images("objects", dir.join("pictures"), dir.join("fdet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_lines_are_told_apart_by_name_and_label() {
        let text = "# HELP a b\na{pipeline=\"x\",reason=\"cpu\"} 3\na{pipeline=\"y\"} 0.5\nab{pipeline=\"x\"} 9\na 7\n";
        let found: Vec<_> = values(text, "a").collect();
        assert_eq!(found, [("pipeline=\"x\",reason=\"cpu\"", 3.0), ("pipeline=\"y\"", 0.5)]);
    }
}
