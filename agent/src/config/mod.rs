//! The configuration file: strict TOML, checked before anything starts.
//!
//! Called by [`crate::app`] and by `muster-agent check`. Promise: what [`Config::load`] returns needs no
//! further check; an error names the file, the field and what was expected. Unknown keys are errors.
//! Relative paths count from the configuration file's folder. Limits: 64 sources, 64 pipelines, 1 MiB.

mod check;
mod parse;
mod source;

pub use parse::ConfigError;
pub use source::{
    CsvSource, ExecSource, HostSource, ImagesSource, Pace, PcmFormat, PcmSource, SourceConfig, Stamp, Wrap,
};

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The largest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Sources in one agent.
pub const SOURCES_MAX: usize = 64;
/// Pipelines in one agent.
pub const PIPELINES_MAX: usize = 64;
/// The lowest rate of sound, in samples a second and channel.
pub const SOUND_RATE_HZ_MIN: u32 = 1_000;
/// The highest rate of sound, in samples a second and channel.
pub const SOUND_RATE_HZ_MAX: u32 = 192_000;
/// The most channels of sound.
pub const SOUND_CHANNELS_MAX: u16 = 8;
/// The version of the file's format.
pub const CONFIG_VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always 1.
    pub version: u32,
    /// Where the identity and the queue live; made where it is missing.
    pub data_dir: PathBuf,
    /// How much is logged.
    #[serde(default)]
    pub log: Log,
    /// Who this device is, or how it finds out.
    #[serde(default)]
    pub identity: Identity,
    /// The connection to the server.
    #[serde(default)]
    pub uplink: Uplink,
    /// The bounds of the durable queue.
    #[serde(default)]
    pub queue: Queue,
    /// Care for the device itself.
    #[serde(default)]
    pub device: Device,
    /// The agent's own counters.
    #[serde(default)]
    pub metrics: Metrics,
    /// What is read.
    #[serde(default, rename = "source")]
    pub sources: Vec<SourceConfig>,
    /// What becomes of it.
    #[serde(default, rename = "pipeline")]
    pub pipelines: Vec<Pipeline>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,muster_agent::uplink=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into() }
    }
}

/// `[identity]`: a claim (the agent enrols itself), or a token.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// `muster-claim:<host>:<port>:<token>:<sha256 of the CA's key>`.
    pub claim: Option<String>,
    /// A file that holds the claim.
    pub claim_file: Option<PathBuf>,
    /// The name to ask for when enrolling; the server chooses where absent.
    pub device_name: Option<String>,
    /// With `device` and `token_file`: password login instead of a certificate.
    pub tenant: Option<String>,
    /// See `tenant`.
    pub device: Option<String>,
    /// A file that holds the device token.
    pub token_file: Option<PathBuf>,
}

/// How the uplink's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TLS 1.3, the server checked against the enrolment's CA or `ca_file`.
    Tls,
    /// No encryption; for a loopback or a test.
    Plain,
}

/// `[uplink]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// Overrides the host that the enrolment gave.
    pub host: Option<String>,
    /// Overrides the port that the enrolment gave.
    pub port: Option<u16>,
    /// `tls` or `plain`.
    pub transport: Transport,
    /// PEM file of the CA, where the identity did not come from an enrolment.
    pub ca_file: Option<PathBuf>,
    /// 10 to 3,600 seconds.
    pub keep_alive_s: u16,
    /// The first wait after a lost connection, 10 to 60,000 ms; doubled each time, with jitter.
    pub reconnect_delay_ms_min: u32,
    /// The longest wait, up to 3,600,000 ms.
    pub reconnect_delay_ms_max: u32,
    /// A state report at least this often while something changes, 1 to 3,600 seconds.
    pub state_interval_s: u32,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            host: None,
            port: None,
            transport: Transport::Tls,
            ca_file: None,
            keep_alive_s: 120,
            reconnect_delay_ms_min: 500,
            reconnect_delay_ms_max: 60_000,
            state_interval_s: 60,
        }
    }
}

/// `[queue]`: each class has bounds of its own, so telemetry never pushes an event out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Bytes of telemetry kept while the server is away, 1 MiB to 1 TiB.
    pub telemetry_bytes_max: u64,
    /// Seconds after which telemetry is dropped, from 60.
    pub telemetry_age_s_max: u64,
    /// Bytes of events kept, 1 MiB to 1 TiB.
    pub event_bytes_max: u64,
    /// Seconds after which an event is dropped, from 60.
    pub event_age_s_max: u64,
    /// Bytes of one segment file, 128 KiB to 64 MiB; space is freed a segment at a time.
    pub segment_bytes: u64,
    /// Milliseconds that telemetry may gather in memory before it is written and synced, 0 to 60,000; 0: at once.
    /// What gathers is not accepted yet: a power cut loses it. Events are always written at once.
    pub sync_interval_ms: u32,
    /// Bytes written in a day, in whole blocks, above which the log warns, 1 MiB to 1 TiB; absent: none.
    pub written_bytes_day_max: Option<u64>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            telemetry_bytes_max: 64 << 20,
            telemetry_age_s_max: 7 * 86_400,
            event_bytes_max: 16 << 20,
            event_age_s_max: 30 * 86_400,
            segment_bytes: 1 << 20,
            sync_interval_ms: 0,
            written_bytes_day_max: None,
        }
    }
}

/// `[device]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// MiB of available memory below which inferences are shed, 1 to 1,048,576; absent: they never are for that.
    pub memory_available_mib_min: Option<u64>,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// A loopback address such as `127.0.0.1:9464`, or `unix:/path`; nothing listens where absent.
    pub listen: Option<String>,
}

/// Which values of a row go out as readings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Selection {
    /// `all` or `none`.
    Word(SelectionWord),
    /// Columns by name.
    Columns(Vec<String>),
}

/// A selection in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectionWord {
    /// Every value.
    All,
    /// No value.
    None,
}

/// Which inference results become events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventPolicy {
    /// Each one.
    All,
    /// The first, and each with another label than the one before.
    Changes,
    /// None; the score still goes out as telemetry where `scores` is set.
    None,
}

/// `[[pipeline]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// 1 to 64 of letters, digits, `.`, `_`, `-`; unique.
    pub name: String,
    /// The source's name.
    pub source: String,
    /// A model bundle's folder; without one the pipeline passes readings on.
    pub model: Option<PathBuf>,
    /// The columns that feed the model, in its order; absent: the bundle's own.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Values that go out as readings; absent: `all` without a model, `none` with one.
    pub telemetry: Option<Selection>,
    /// Put before each metric's name.
    #[serde(default)]
    pub prefix: String,
    /// Absent: `all`.
    #[serde(default = "EventPolicy::default_all")]
    pub events: EventPolicy,
    /// Send `<name>.score` and `<name>.label` readings for each inference; absent: true.
    #[serde(default = "yes")]
    pub scores: bool,
    /// Adds a reading of this name to each record: text that no two records share.
    pub serial: Option<String>,
    /// Percent of one core that the pipeline may take, above 0 and up to 100; beyond it inferences are shed, telemetry
    /// never. Absent: no bound.
    pub cpu_percent_max: Option<f64>,
}

impl EventPolicy {
    fn default_all() -> Self {
        Self::All
    }
}

fn yes() -> bool {
    true
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Names the file, the field and what was expected.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = parse::read(file)?;
        Self::from_text(&text, file)
    }

    /// Checks a text as if it stood in `file`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_text(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = parse::parse(text, file)?;
        config.resolve_paths(file.parent().unwrap_or(Path::new("")));
        check::check(&config).map_err(|problem| problem.in_file(file))?;
        Ok(config)
    }

    /// The folder of the durable queue.
    #[must_use]
    pub fn queue_dir(&self) -> PathBuf {
        self.data_dir.join("queue")
    }

    /// The folder of the key and the certificate.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.data_dir.join("identity")
    }

    fn resolve_paths(&mut self, base: &Path) {
        let resolve = |path: &mut PathBuf| *path = base.join(&*path);
        resolve(&mut self.data_dir);
        let identity = &mut self.identity;
        for path in [&mut identity.claim_file, &mut identity.token_file, &mut self.uplink.ca_file] {
            path.iter_mut().for_each(resolve);
        }
        self.pipelines.iter_mut().filter_map(|pipeline| pipeline.model.as_mut()).for_each(resolve);
        for source in &mut self.sources {
            source.paths_mut().for_each(resolve);
        }
    }
}

#[cfg(test)]
mod tests;
