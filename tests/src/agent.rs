//! A real `muster-agent` with its directory; it can be killed and started again on the same files.

use crate::process::{Process, binary_of};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An agent whose one pipeline gives each record a serial.
pub struct Agent {
    dir: PathBuf,
    process: Option<Process>,
    build: Option<PathBuf>,
}

/// What an agent reads and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// Rows a second; each row is one record.
    pub rows_per_s: u32,
    /// Bytes that the telemetry queue may hold.
    pub queue_bytes_max: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { rows_per_s: 500, queue_bytes_max: 64 << 20 }
    }
}

impl Agent {
    /// Writes the configuration of an agent that enrols by `claim` and reaches the server at `uplink`.
    ///
    /// # Panics
    /// When its directory cannot be written.
    #[must_use]
    pub fn new(dir: &Path, claim: &str, uplink: SocketAddr, load: &Load) -> Self {
        std::fs::create_dir_all(dir).expect("the agent's directory can be made");
        let rows: String = (0..50).map(|row| format!("{row},{}\n", f64::from(row) / 4.0)).collect();
        std::fs::write(dir.join("rows.csv"), format!("step,level\n{rows}")).expect("the rows can be written");
        let config = format!(
            r#"version = 1
data_dir = "data"

[identity]
claim = "{claim}"

[uplink]
host = "{}"
port = {}
reconnect_delay_ms_min = 50
reconnect_delay_ms_max = 500
state_interval_s = 1

[queue]
telemetry_bytes_max = {}
segment_bytes = 131072

[[source]]
kind = "csv"
name = "rows"
path = "rows.csv"
rate_hz = {}
wrap = "loop"

[[pipeline]]
name = "rows"
source = "rows"
serial = "serial"
"#,
            uplink.ip(),
            uplink.port(),
            load.queue_bytes_max,
            load.rows_per_s,
        );
        std::fs::write(dir.join("agent.toml"), config).expect("the configuration can be written");
        Self { dir: dir.to_owned(), process: None, build: None }
    }

    /// From the next start on it is the binary of another build; of the workspace's own where none is given.
    pub fn use_build(&mut self, build: Option<&Path>) {
        self.build = build.map(Path::to_owned);
    }

    /// Starts the process, and waits until its queue is open.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn start(&mut self) {
        let before = self.log_count("queue opened");
        let mut command = Command::new(binary_of(self.build.as_deref(), "muster-agent"));
        command.arg("run").arg("--config").arg(self.dir.join("agent.toml"));
        let mut process = Process::start("muster-agent", &mut command, &self.dir.join("agent.log"));
        crate::wait_for("the agent to open its queue", || {
            if let Some(status) = process.ended() {
                panic!("muster-agent ended ({status})\n{}", process.log_tail());
            }
            if self.log_count("queue opened") > before { Ok(()) } else { Err("not open".to_owned()) }
        });
        self.process = Some(process);
    }

    /// Keeps the connection but reads nothing more: the backlog can drain.
    ///
    /// # Panics
    /// When the configuration cannot be changed.
    pub fn stop_reading(&mut self) {
        self.stop();
        let file = self.dir.join("agent.toml");
        let config = std::fs::read_to_string(&file).expect("the configuration was written");
        let idle = config.split("[[source]]").next().unwrap_or_default();
        std::fs::write(file, idle).expect("the configuration can be written");
        let before = self.connections();
        self.start();
        crate::wait_for("the agent to connect", || match self.connections() {
            now if now > before => Ok(()),
            now => Err(format!("connected {now} times")),
        });
    }

    /// Connections to the server so far, over all runs.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.log_count("connected host=")
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// How often a text stands in the agent's log.
    #[must_use]
    pub fn log_count(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and the end.
    ///
    /// # Panics
    /// When it fails.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let status = process.terminate();
            assert!(status.success(), "muster-agent stopped with {status}\n{}", process.log_tail());
        }
    }

    /// The agent's own count, from its journal; the agent must be stopped.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn inspect(&self) -> Inspection {
        let mut command = Command::new(binary_of(self.build.as_deref(), "muster-agent"));
        command.args(["queue", "inspect", "--json", "--config"]).arg(self.dir.join("agent.toml"));
        let output = command.output().expect("muster-agent can be run");
        assert!(output.status.success(), "queue inspect: {}", String::from_utf8_lossy(&output.stderr));
        let all: Value = serde_json::from_slice(&output.stdout).expect("queue inspect prints JSON");
        assert_eq!(all["history_truncated"], false, "the history misses openings: {all}");
        let class =
            all["classes"].as_array().into_iter().flatten().find(|class| class["class"] == "telemetry");
        let class = class.unwrap_or_else(|| panic!("no telemetry in {all}"));
        let number = |field: &str| class[field].as_u64().unwrap_or_else(|| panic!("no {field} in {class}"));
        Inspection {
            accepted: number("accepted"),
            dropped: number("dropped"),
            released: number("released"),
            next: number("next"),
        }
    }
}

/// The telemetry queue by the agent's own journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Records accepted: append returned after its fdatasync.
    pub accepted: u64,
    /// Accepted records dropped with a reason.
    pub dropped: u64,
    /// All below is acknowledged or dropped.
    pub released: u64,
    /// All below is accepted.
    pub next: u64,
}
