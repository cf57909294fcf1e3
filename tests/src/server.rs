//! A real `muster-server` on ephemeral ports; it can be killed and started again on the same files.

use crate::http::Api;
use crate::process::{Process, binary_of};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The server with its directory.
pub struct Server {
    dir: PathBuf,
    extra: String,
    process: Option<Process>,
    build: Option<PathBuf>,
    /// The API with the owner's token.
    pub api: Api,
    ready: Value,
}

impl Server {
    /// Starts a fresh server under `dir`.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// Starts a fresh server with more lines of configuration.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start_with(dir: &Path, extra: &str) -> Self {
        Self::start_build(dir, extra, None)
    }

    /// As [`Self::start_with`], with the binary of another build.
    ///
    /// # Panics
    /// As [`Self::start_with`].
    #[must_use]
    pub fn start_build(dir: &Path, extra: &str, build: Option<&Path>) -> Self {
        std::fs::create_dir_all(dir).expect("the server's directory can be made");
        let api = Api { addr: ([127, 0, 0, 1], 0).into(), token: String::new() };
        let build = build.map(Path::to_owned);
        let mut server = Self {
            dir: dir.to_owned(),
            extra: extra.to_owned(),
            process: None,
            build,
            api,
            ready: Value::Null,
        };
        server.start_again();
        let bootstrap =
            std::fs::read_to_string(dir.join("bootstrap.json")).expect("first start writes the bootstrap");
        let bootstrap: Value = serde_json::from_str(&bootstrap).expect("the bootstrap file is JSON");
        bootstrap["api_token"]
            .as_str()
            .expect("the bootstrap holds an API token")
            .clone_into(&mut server.api.token);
        server
    }

    /// From the next start on it is the binary of another build; of the workspace's own where none is given.
    pub fn use_build(&mut self, build: Option<&Path>) {
        self.build = build.map(Path::to_owned);
    }

    /// Starts the process on the files that are there, and waits until it is ready.
    ///
    /// # Panics
    /// When it ends instead.
    pub fn start_again(&mut self) {
        self.try_start().unwrap_or_else(|why| panic!("{why}"));
    }

    /// As [`Self::start_again`].
    ///
    /// # Errors
    /// It ended before it was ready: how, and the end of its log.
    ///
    /// # Panics
    /// When it neither ends nor is ready by the deadline.
    pub fn try_start(&mut self) -> Result<(), String> {
        let ready_file = self.dir.join("ready.json");
        let _ = std::fs::remove_file(&ready_file);
        let config = self.dir.join("muster-server.toml");
        std::fs::write(&config, &self.extra).expect("the configuration can be written");
        let mut command = Command::new(binary_of(self.build.as_deref(), "muster-server"));
        command.arg("run").arg("--config").arg(&config).arg("--data-dir").arg(self.dir.join("data"));
        command.args(["--mqtt-tls-listen", "127.0.0.1:0", "--mqtt-plain-listen", "127.0.0.1:0"]);
        command.args(["--http-listen", "127.0.0.1:0", "--enroll-listen", "127.0.0.1:0"]);
        command
            .arg("--ready-file")
            .arg(&ready_file)
            .arg("--bootstrap-file")
            .arg(self.dir.join("bootstrap.json"));
        let mut process = Process::start("muster-server", &mut command, &self.dir.join("server.log"));
        let started = crate::wait_for("muster-server to be ready", || {
            if let Some(status) = process.ended() {
                return Ok(Err(status));
            }
            let text = std::fs::read_to_string(&ready_file).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map(Ok).map_err(|error| error.to_string())
        });
        let ended =
            |status| format!("muster-server ended ({status}) before it was ready\n{}", process.log_tail());
        self.ready = started.map_err(ended)?;
        self.api.addr = self.address("http");
        self.process = Some(process);
        Ok(())
    }

    /// Waits until the process ends by itself; tells how, with the end of its log.
    ///
    /// # Panics
    /// When it does not run, or not end by the deadline.
    pub fn wait_for_end(&mut self) -> (ExitStatus, String) {
        let mut process = self.process.take().expect("the server runs");
        let status = crate::wait_for("muster-server to end by itself", || {
            process.ended().ok_or_else(|| "still running".to_owned())
        });
        (status, process.log_tail())
    }

    /// What the health check says of a part.
    ///
    /// # Errors
    /// The server does not tell.
    pub fn part(&self, name: &str) -> Result<String, String> {
        let answer = self.api.call("GET", "/readyz", None).map_err(|error| error.to_string())?;
        let view: Value = serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
        view["parts"][name].as_str().map(str::to_owned).ok_or(answer.text)
    }

    /// The first owner's login, as the API takes it.
    ///
    /// # Panics
    /// When the bootstrap file does not hold it.
    #[must_use]
    pub fn owner_login(&self) -> Value {
        let text = std::fs::read_to_string(self.dir.join("bootstrap.json"));
        let bootstrap: Value =
            serde_json::from_str(&text.expect("first start writes the bootstrap")).expect("it is JSON");
        json!({ "email": bootstrap["email"], "password": bootstrap["password"] })
    }

    /// An address that the server listens on: `http`, `enroll`, `mqtt_tls`, `mqtt_plain`.
    ///
    /// # Panics
    /// When the ready file does not hold it.
    #[must_use]
    pub fn address(&self, name: &str) -> SocketAddr {
        let text =
            self.ready[name].as_str().unwrap_or_else(|| panic!("ready file has no {name}: {}", self.ready));
        text.parse().expect("the ready file holds socket addresses")
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
            assert!(status.success(), "muster-server stopped with {status}\n{}", process.log_tail());
        }
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A new claim for one device of tenant `default`.
    ///
    /// # Panics
    /// When the API refuses.
    #[must_use]
    pub fn claim(&self, device: &str) -> String {
        let answer = self.api.post("/api/v1/tenants/default/claims", &json!({ "device": device }));
        answer["claim"].as_str().unwrap_or_else(|| panic!("no claim in {answer}")).to_owned()
    }
}
