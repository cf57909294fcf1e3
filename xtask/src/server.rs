//! A `muster-server` that the demo or a bench runs, with its API.

use crate::http::Client;
use crate::process::{Process, wait_for};
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The process, its addresses and its owner's login.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) http: SocketAddr,
    pub(crate) tenant: String,
    pub(crate) email: String,
    pub(crate) password: String,
    pub(crate) data_dir: PathBuf,
    token: String,
    ready: Value,
}

impl Server {
    /// Starts a server below `dir`, fresh or again on its data, and waits until it listens.
    ///
    /// # Errors
    /// It does not become ready; with the end of its log.
    pub(crate) fn start(binary: &Path, dir: &Path, http: SocketAddr, more: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (ready_file, bootstrap_file) = (dir.join("ready.json"), dir.join("bootstrap.json"));
        let data_dir = dir.join("data");
        // A file of an earlier start would look like readiness.
        let _ = std::fs::remove_file(&ready_file);
        let mut command = Command::new(binary);
        command.arg("run").arg("--data-dir").arg(&data_dir);
        command.arg("--ready-file").arg(&ready_file).arg("--bootstrap-file").arg(&bootstrap_file);
        command.arg("--http-listen").arg(http.to_string());
        command.args(["--enroll-listen", "127.0.0.1:0", "--mqtt-tls-listen", "127.0.0.1:0"]).args(more);
        let mut process = Process::start("muster-server", &mut command, &dir.join("server.log"))?;
        let ready = wait_for("the server to listen", START_TIMEOUT, || {
            process.expect_running()?;
            read_json(&ready_file)
        })?;
        // Written before the ready file, on the first start only; it stays for later ones.
        let bootstrap = read_json(&bootstrap_file)?.context("the server wrote no bootstrap file")?;
        let text = |name: &str| {
            let found = bootstrap[name].as_str().map(str::to_owned);
            found.with_context(|| format!("the bootstrap file holds no {name}"))
        };
        Ok(Self {
            http: address(&ready, "http")?,
            tenant: text("tenant")?,
            email: text("email")?,
            password: text("password")?,
            token: text("api_token")?,
            process,
            data_dir,
            ready,
        })
    }

    /// The API as the owner.
    pub(crate) fn api(&self) -> Client {
        Client::new(self.http, &self.token)
    }

    /// The API's path below the tenant.
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/api/v1/tenants/{}/{rest}", self.tenant)
    }

    /// An address of the ready file: `mqtt_tls`, `mqtt_plain`, `enroll`.
    pub(crate) fn address(&self, name: &str) -> Result<SocketAddr> {
        address(&self.ready, name)
    }
}

fn address(ready: &Value, name: &str) -> Result<SocketAddr> {
    let text = ready[name].as_str().with_context(|| format!("the ready file holds no {name}: {ready}"))?;
    text.parse().with_context(|| format!("{name} is no address: {text}"))
}

/// A file's JSON; none while it is missing.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(text) => {
            serde_json::from_str(&text).map(Some).with_context(|| format!("{} is no JSON", path.display()))
        }
    }
}
