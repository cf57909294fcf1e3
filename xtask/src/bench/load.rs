//! Runs of `muster-loadtest`, and what they found.

use crate::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Who the generated devices are and where they go.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) server_pid: u32,
    pub(crate) tenant: String,
    pub(crate) tokens: PathBuf,
    /// Certificate and key of the CA: TLS with a client certificate for each device.
    pub(crate) ca: Option<(PathBuf, PathBuf)>,
}

/// The JSON of a run; figures by their path.
pub(crate) struct Found(Value);

impl Target {
    /// Runs one mode to its end.
    ///
    /// # Errors
    /// The generator fails, or ends without its line of JSON.
    pub(crate) fn run(&self, mode: &str, devices: u32, more: &[&str]) -> Result<Found> {
        let mut command = self.command(mode, devices, more);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().context("cannot start muster-loadtest")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("muster-loadtest {mode} ended with {}", output.status);
        }
        let line = text.lines().last().context("muster-loadtest printed nothing")?;
        let found = Found(serde_json::from_str(line).context("the last line is no JSON")?);
        println!("  {mode} {} -> {}", more.join(" "), found.summary());
        Ok(found)
    }

    /// The generator with a mode's arguments, not started.
    pub(crate) fn command(&self, mode: &str, devices: u32, more: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg(mode).arg("--addr").arg(self.address.to_string());
        command.args(["--devices", &devices.to_string(), "--tenant", &self.tenant]);
        command.args(["--server-pid", &self.server_pid.to_string()]);
        match &self.ca {
            None => command.arg("--tokens").arg(&self.tokens),
            Some((ca, key)) => command.arg("--ca").arg(ca).arg("--ca-key").arg(key),
        };
        command.args(more);
        command
    }
}

/// The generator's binary, of the profile that is measured.
pub(crate) fn binary() -> PathBuf {
    Path::new(&cargo::dist_binaries()).join("muster-loadtest")
}

impl Found {
    /// A number at a JSON pointer; not a number where it is missing.
    pub(crate) fn number(&self, pointer: &str) -> f64 {
        self.0.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// The sum of an object of numbers at a JSON pointer.
    pub(crate) fn sum(&self, pointer: &str) -> Result<f64> {
        let found = self.0.pointer(pointer).and_then(Value::as_object);
        let found = found.with_context(|| format!("the generator told nothing at {pointer}"))?;
        Ok(found.values().filter_map(Value::as_f64).sum())
    }

    /// Bytes of the server's memory that each connection took.
    pub(crate) fn bytes_per_connection(&self) -> f64 {
        let after = self.number("/cost/server/rss_bytes");
        let before = self.number("/connect_cost/server/rss_before_bytes");
        (after - before) / self.number("/devices")
    }

    fn summary(&self) -> String {
        let server = format!("server {:.3} cores", self.number("/cost/server/cpu_cores"));
        let other = format!("other load {:.2} cores", self.number("/cost/other_load_cores"));
        if self.0["messages"].is_null() {
            let connects = self.number("/connects_per_s");
            return format!("{connects:.0} connects/s, {server}, {other}");
        }
        format!(
            "{:.0} acked/s, P50 {} P95 {} P99 {} ms, lost {}, {server}, {other}",
            self.number("/messages/acked_per_s"),
            self.number("/messages/puback_ms/p50"),
            self.number("/messages/puback_ms/p95"),
            self.number("/messages/puback_ms/p99"),
            self.number("/messages/lost"),
        )
    }
}
