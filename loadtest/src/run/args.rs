//! The command line of a load simulation.

use super::profile::Profile;
use std::path::PathBuf;

/// How devices speak to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// TCP with tokens: loopback only.
    Plain,
    /// TLS with tokens.
    Tls,
    /// TLS with a client certificate for each device.
    Mtls,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::Mtls => "mtls",
        }
    }
}

/// A load simulation: devices with a profile and faults, and what must hold afterwards.
///
/// Three kinds of target: `--server BINARY` starts a muster-server of its own (and may kill it); `--api ADDR
/// --bootstrap FILE --addr ADDR` runs against one that is there; `--plain-mqtt ADDR` against any MQTT broker, without
/// what only our server can be asked.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// Connections.
    #[arg(long, default_value_t = 10_000)]
    pub devices: u32,
    /// Tenants that the devices belong to, in turn.
    #[arg(long, default_value_t = 1)]
    pub tenants: u16,
    /// Messages a second, over all devices.
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// What the devices do.
    #[arg(long, value_enum, default_value_t = Profile::Sensors)]
    pub profile: Profile,
    /// Measured time.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Faults: `none`, `all`, or a list of `kind`, `kind@at` and `kind@at+for` (seconds). Kinds: connection-loss,
    /// slow-links, server-kill, store-outage, clock-jumps, duplicate-sends, half-returns, all-return,
    /// poisoned-payloads, wild-tenant.
    #[arg(long, default_value = "none")]
    pub faults: String,
    /// Repeats the schedule of messages and faults; another one each run unless given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How devices speak to the server.
    #[arg(long, value_enum, default_value_t = Transport::Plain)]
    pub transport: Transport,
    /// MQTT version: 4 (3.1.1) or 5.
    #[arg(long, default_value_t = 5)]
    pub mqtt: u8,
    /// Generator processes: more where one may not open enough files.
    #[arg(long, default_value_t = 1)]
    pub processes: u32,
    /// Keep-alive in seconds.
    #[arg(long, default_value_t = 600)]
    pub keep_alive: u16,
    /// Connections that are being made at once.
    #[arg(long, default_value_t = 256)]
    pub concurrency: u32,
    /// Longest time until all are connected, in seconds.
    #[arg(long, default_value_t = 120.0)]
    pub connect_timeout: f64,
    /// Longest wait for the last answers, and for the store, in seconds.
    #[arg(long, default_value_t = 300.0)]
    pub settle_timeout: f64,
    /// Records that every device finds in its queue when `all-return` lets it come back.
    #[arg(long, default_value_t = 60)]
    pub backlog: u32,
    /// Rules of the first tenant besides the probes' own; none of them opens an alert.
    #[arg(long, default_value_t = 0)]
    pub rules: u32,
    /// Devices that each of these rules selects.
    #[arg(long, default_value_t = 100)]
    pub rule_devices: u32,
    /// Devices ignore the server's flow control, as foreign ones do.
    #[arg(long)]
    pub no_credits: bool,
    /// Skip reading every record back from the store at the end (the ledger is asked all the same).
    #[arg(long)]
    pub no_oracle: bool,
    /// Write report.json and report.html here.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// No progress on the terminal.
    #[arg(long)]
    pub quiet: bool,

    /// A muster-server binary to start, and to kill where faults say so.
    #[arg(long, conflicts_with_all = ["api", "plain_mqtt"])]
    pub server: Option<PathBuf>,
    /// Where that server keeps its files; a temporary directory unless given.
    #[arg(long, requires = "server")]
    pub dir: Option<PathBuf>,
    /// A setting of that server: `key=value`.
    #[arg(long = "set", requires = "server")]
    pub set: Vec<String>,

    /// The admin API of a server that is there, `host:port`.
    #[arg(long, requires_all = ["bootstrap", "addr"], conflicts_with = "plain_mqtt")]
    pub api: Option<String>,
    /// That server's bootstrap file: tenant, owner and API token.
    #[arg(long)]
    pub bootstrap: Option<PathBuf>,
    /// That server's MQTT listener, `host:port`.
    #[arg(long)]
    pub addr: Option<String>,
    /// The CA of its certificate (PEM), for `tls` and `mtls`.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// The device CA's key (PEM), for `mtls`: certificates are signed here, all for one key.
    #[arg(long, requires = "ca")]
    pub ca_key: Option<PathBuf>,
    /// Each device gets key and certificate as a real one does: by a claim, at the enrolment listener. For `mtls`;
    /// `--ca` is not needed then.
    #[arg(long, conflicts_with_all = ["ca_key", "identities", "plain_mqtt"])]
    pub enrol: bool,
    /// That listener, `host:port`, where it is another than the server's claims say.
    #[arg(long, requires = "enrol")]
    pub enroll_addr: Option<String>,
    /// Keep what `--enrol` got in this file, for its owner's eyes only.
    #[arg(long, requires = "enrol")]
    pub save_identities: Option<PathBuf>,
    /// Takes devices that are enrolled already from a file: a line of JSON each with `tenant`, `device`, and
    /// `certificate_pem` and `key_pem` (for `mtls`) or `token`. Nothing is registered. Without `--api` only what the
    /// devices count is judged.
    #[arg(long, conflicts_with_all = ["ca_key", "plain_mqtt"])]
    pub identities: Option<PathBuf>,
    /// The name in the server's certificate; the address's host unless given.
    #[arg(long)]
    pub server_name: Option<String>,

    /// Any MQTT broker, `host:port`: no enrolment, no store, no rules.
    #[arg(long)]
    pub plain_mqtt: Option<String>,
    /// The server's process, to measure its processor time and memory.
    #[arg(long)]
    pub server_pid: Option<u32>,
}
