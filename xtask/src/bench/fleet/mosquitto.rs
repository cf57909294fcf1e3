//! mosquitto and our server under the same load, side by side in one run: publish to PUBACK, processor time a
//! message, memory.
//!
//! mosquitto runs with its own persistence on and no subscriber, which is its best case: it answers from memory and
//! writes its database each half hour. Ours stores, evaluates and answers after an fdatasync. Runs alternate.

use super::simulate::{Simulated, Simulator};
use crate::bench::{Report, median};
use crate::process::{Process, wait_for};
use anyhow::{Context, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const ROUNDS: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Rates a second, with the names of their figures: ours, then mosquitto's.
const RATES: [(&str, [&str; 4], [&str; 4]); 2] = [
    (
        "1000",
        ["muster_k1_puback_p50_ms", "muster_k1_puback_p95_ms", "muster_k1_cpu_us", "muster_k1_rss_mb"],
        [
            "mosquitto_k1_puback_p50_ms",
            "mosquitto_k1_puback_p95_ms",
            "mosquitto_k1_cpu_us",
            "mosquitto_k1_rss_mb",
        ],
    ),
    (
        "10000",
        ["muster_k10_puback_p50_ms", "muster_k10_puback_p95_ms", "muster_k10_cpu_us", "muster_k10_rss_mb"],
        [
            "mosquitto_k10_puback_p50_ms",
            "mosquitto_k10_puback_p95_ms",
            "mosquitto_k10_cpu_us",
            "mosquitto_k10_rss_mb",
        ],
    ),
];

/// Runs both; notes the medians.
///
/// # Errors
/// A broker cannot be run.
pub(super) fn run(simulator: &Simulator, report: &mut Report) -> Result<()> {
    let Some(program) = program() else {
        println!("mosquitto is not installed: nothing to compare with");
        return Ok(());
    };
    for (rate, ours, theirs) in RATES {
        let flags = ["--devices", "10000", "--rate", rate, "--seconds", "20", "--no-oracle"];
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            own.push(simulator.own("muster", &flags)?);
            let broker = Broker::start(&program, &simulator.out.join("mosquitto-broker"))?;
            let (address, pid) = (broker.address.to_string(), broker.process.pid().to_string());
            let target = ["--plain-mqtt", &address, "--server-pid", &pid];
            other.push(simulator.run("mosquitto", &[&flags[..], &target[..]].concat())?);
        }
        for (names, runs) in [(ours, &own), (theirs, &other)] {
            note(report, names, runs, rate);
        }
    }
    Ok(())
}

fn note(report: &mut Report, names: [&'static str; 4], runs: &[Simulated], rate: &str) {
    let rate: f64 = rate.parse().unwrap_or(f64::NAN);
    let at = |pointer: &str| median(runs.iter().map(|run| run.number(pointer)).collect());
    report.figure(names[0], at("/latency/puback/p50_ms"));
    report.figure(names[1], at("/latency/puback/p95_ms"));
    report.figure(names[2], at("/cost/server_cpu_cores") / rate * 1e6);
    report.figure(names[3], at("/cost/server_rss_bytes") / 1e6);
}

fn program() -> Option<PathBuf> {
    let places = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    places.into_iter().map(PathBuf::from).find(|path| path.is_file())
}

struct Broker {
    process: Process,
    address: SocketAddr,
}

impl Broker {
    fn start(program: &Path, dir: &Path) -> Result<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr())?;
        let config = dir.join("mosquitto.conf");
        // As root it would become another user, who may not write here.
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n\
             persistence_location {}/\nmax_inflight_messages 0\n",
            address.port(),
            dir.display()
        );
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new("sh");
        // The shell's limit of open files is far below the fleet.
        command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" -c \"$1\""]).arg(program).arg(&config);
        let mut process = Process::start("mosquitto", &mut command, &dir.join("mosquitto.log"))?;
        wait_for("mosquitto to listen", START_TIMEOUT, || {
            process.expect_running()?;
            Ok(TcpStream::connect(address).ok())
        })?;
        Ok(Self { process, address })
    }
}
