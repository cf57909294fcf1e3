//! The demo's three agents: this machine, a motion sensor, a camera on a meter.

use crate::cargo;
use crate::process::Process;
use crate::server::Server;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The series is replayed this much faster than it was recorded.
const MOTION_SPEED: u32 = 2;
/// Rows a second of the recording.
const MOTION_RATE_HZ: u32 = 10;
const PICTURE_INTERVAL_MS: u32 = 500;
const HOST_INTERVAL_MS: u32 = 1_000;

/// What an agent does in the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Measures this machine.
    Host,
    /// Scores a recorded motion.
    Motion,
    /// Reads digits from pictures.
    Camera,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Host, Self::Motion, Self::Camera];

    /// The device's id.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Host => "demo-host",
            Self::Motion => "demo-motion",
            Self::Camera => "demo-camera",
        }
    }

    /// The model that it runs.
    pub(crate) fn model(self) -> Option<&'static str> {
        match self {
            Self::Host => None,
            Self::Motion => Some("motion-anomaly"),
            Self::Camera => Some("meter-digits"),
        }
    }

    /// Sources and pipelines of its configuration.
    pub(crate) fn pipelines(self, models: &Path) -> String {
        let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
        match self {
            Self::Host => format!(
                "[[source]]\nkind = \"host\"\nname = \"host\"\ninterval_ms = {HOST_INTERVAL_MS}\n\n\
                 [[pipeline]]\nname = \"host\"\nsource = \"host\"\n"
            ),
            Self::Motion => format!(
                "[[source]]\nkind = \"csv\"\nname = \"watch\"\npath = {}\n\
                 columns = [\"accel_x\", \"accel_y\", \"accel_z\", \"gyro_x\", \"gyro_y\", \"gyro_z\"]\n\
                 rate_hz = {MOTION_RATE_HZ}.0\nspeed = {MOTION_SPEED}.0\nwrap = \"loop\"\n\n\
                 [[pipeline]]\nname = \"motion\"\nsource = \"watch\"\nmodel = {}\ntelemetry = \"all\"\n",
                quoted(models.join("motion-anomaly/demo/motion.csv")),
                quoted(models.join("motion-anomaly")),
            ),
            Self::Camera => format!(
                "[[source]]\nkind = \"images\"\nname = \"meter\"\nfolder = {}\n\
                 interval_ms = {PICTURE_INTERVAL_MS}\nwrap = \"loop\"\n\n\
                 [[pipeline]]\nname = \"digits\"\nsource = \"meter\"\nmodel = {}\n",
                quoted(models.join("meter-digits/demo")),
                quoted(models.join("meter-digits")),
            ),
        }
    }
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) role: Role,
    pub(crate) process: Process,
}

impl Agent {
    /// Claims, writes the configuration, checks it, enrols and starts the agent.
    ///
    /// # Errors
    /// The server gives no claim, or the agent refuses its configuration or cannot enrol.
    pub(crate) fn start(role: Role, binary: &Path, dir: &Path, server: &Server) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let claims = server.path("claims");
        let answer =
            server.api().post(&claims, &json!({ "device": role.device(), "labels": { "demo": "true" } }))?;
        let claim = answer["claim"].as_str().context("the server gave no claim")?;
        let config = dir.join("agent.toml");
        let text = format!(
            "version = 1\ndata_dir = \"data\"\n\n[identity]\nclaim_file = \"claim\"\n\n\
             [uplink]\nstate_interval_s = 2\n\n{}",
            role.pipelines(&cargo::root().join("agent/models"))
        );
        std::fs::write(dir.join("claim"), claim).context("cannot write the claim")?;
        std::fs::write(&config, text).context("cannot write the configuration")?;
        // What a person would type: check the configuration and its model, enrol, run.
        once(Command::new(binary).arg("check").arg("--config").arg(&config))?;
        once(Command::new(binary).arg("enroll").arg("--config").arg(&config).arg(claim))?;
        let mut command = Command::new(binary);
        command.arg("run").arg("--config").arg(&config);
        let process = Process::start(role.device(), &mut command, &dir.join("agent.log"))?;
        Ok(Self { role, process })
    }
}

/// Runs a command that ends by itself; its output is shown only where it fails.
fn once(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        // The claim stands among the arguments, so they are not printed.
        let program = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("muster-agent {program} ended with {}:\n{text}", output.status);
    }
    Ok(())
}
