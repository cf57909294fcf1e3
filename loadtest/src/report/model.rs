//! What a run found: the JSON report, its version and its shapes.
//!
//! `run` fills it, `html` draws it, `compare`, `baseline` and `capacity` read it. Times are seconds from the start
//! of the measured interval unless a name says otherwise; memory is bytes, processor time is cores (CPU seconds a
//! second). A report of another version is refused, never guessed at.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version that this program writes and reads.
pub const REPORT_VERSION: u32 = 1;
/// Samples of one report: a day at one a second. A longer run keeps every n-th.
pub const SAMPLES_MAX: usize = 86_400;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What was run.
    pub setup: Setup,
    /// What must hold, and whether it did.
    pub invariants: Vec<Invariant>,
    /// What became of the messages.
    pub totals: Totals,
    /// Latencies over the whole interval, by name: `puback` (all), `live` and `backlog` (its two parts), `service`
    /// (from the actual send), `send_late` (the generator's own delay), `stored`, `alert`, `reconnect`.
    pub latency: BTreeMap<String, Latency>,
    /// What it cost.
    pub cost: Cost,
    /// One a second.
    pub samples: Vec<Sample>,
    /// What was done to the system, in the order of its beginning.
    pub faults: Vec<FaultMark>,
}

/// What was run, where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// Wall clock at the start, microseconds since 1970 (UTC).
    pub began_at_us: i64,
    /// The command line, without secrets.
    pub command: Vec<String>,
    /// Processor, cores, memory, kernel.
    pub machine: String,
    /// Repeats the run's schedule of messages and faults.
    pub seed: u64,
    /// The profile's name.
    pub profile: String,
    /// `muster`, or `mqtt` for any other broker.
    pub target: String,
    /// Connections.
    pub devices: u32,
    /// Tenants that they belong to.
    pub tenants: u32,
    /// Generator processes.
    pub processes: u32,
    /// Messages a second that the profile intends, on average.
    pub rate: f64,
    /// Readings in a message, on average.
    pub readings_per_message: f64,
    /// `plain`, `tls` with tokens, or `mtls`.
    pub transport: String,
    /// 4 (3.1.1) or 5.
    pub mqtt: u8,
    /// The measured interval.
    pub seconds: f64,
}

/// One thing that must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invariant {
    /// `stored_exactly_once`, `nothing_lost`, `tenants_apart`, `alerts_once`, ...
    pub name: String,
    /// Whether it held.
    pub held: bool,
    /// The numbers behind it, in one line.
    pub detail: String,
}

/// Counts over the whole interval, drained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Records that the schedule made.
    pub made: u64,
    /// PUBLISHes handed to a socket, copies and repeats included.
    pub published: u64,
    /// Records acknowledged with success.
    pub acked: u64,
    /// PUBACKs of 0x80 and above, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Records without an answer at the end.
    pub unanswered: u64,
    /// Records that found their device's own list full.
    pub unsent: u64,
    /// Copies sent on purpose.
    pub duplicates_sent: u64,
    /// Broken payloads sent on purpose.
    pub poisoned_sent: u64,
    /// Acknowledged / (made - poisoned).
    pub success_ratio: f64,
    /// What the server's ledger says.
    pub ledger: Option<Ledger>,
    /// Connections that were made.
    pub connects: u64,
    /// Of these, by a device that had been connected before.
    pub reconnects: u64,
    /// Failed or ended connections by reason.
    pub closed: BTreeMap<String, u64>,
}

/// The server's ledger over all tenants of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the ledger's own")]
pub struct Ledger {
    pub accepted: u64,
    pub stored: u64,
    pub dropped: u64,
    pub pending: u64,
    pub lost: u64,
    /// Rows that are there twice; copies that were recognised are not among them.
    pub duplicated: u64,
}

/// A histogram in short, milliseconds, corrected for coordinated omission: from the intended time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// What the interval cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Cores that the server kept busy; none where it is not on this machine.
    pub server_cpu_cores: Option<f64>,
    /// Its largest memory.
    pub server_rss_bytes: Option<u64>,
    /// Its most open files.
    pub server_files: Option<u64>,
    /// Cores that the generator's processes kept busy.
    pub generator_cpu_cores: f64,
    /// Their memory at the end.
    pub generator_rss_bytes: u64,
    /// Cores that everything else kept busy, time taken by the host included.
    pub other_load_cores: f64,
    /// Bytes that the server's data directory grew by, where it is known.
    pub stored_bytes: Option<u64>,
}

/// One second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Its end.
    pub at_s: f64,
    /// Connections that are up.
    pub online: u32,
    /// Messages a second handed to sockets.
    pub published_per_s: f64,
    /// Messages a second acknowledged.
    pub acked_per_s: f64,
    /// Publish to PUBACK of live messages that were acknowledged in this second.
    pub live: Option<Latency>,
    /// The same of backlog.
    pub backlog: Option<Latency>,
    /// Publish to stored, of probes that were answered in this second.
    pub stored_ms: Option<f64>,
    /// Publish to alert visible, likewise.
    pub alert_ms: Option<f64>,
    /// Records that wait in devices.
    pub waiting: u64,
    /// Cores.
    pub server_cpu_cores: Option<f64>,
    /// Bytes.
    pub server_rss_bytes: Option<u64>,
    /// Open files.
    pub server_files: Option<u64>,
    /// Records in the event log that the store has not stored.
    pub log_depth: Option<u64>,
    /// Bytes of the event log on disk.
    pub log_bytes: Option<u64>,
    /// How far the rules are behind the event log's end, records.
    pub rules_lag: Option<u64>,
    /// Cores.
    pub generator_cpu_cores: f64,
    /// Cores.
    pub other_load_cores: f64,
}

/// One fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultMark {
    /// Its name as on the command line: `server-kill`, `connection-loss`, ...
    pub kind: String,
    /// When it began.
    pub from_s: f64,
    /// When it ended; the same for one that takes no time.
    pub until_s: f64,
    /// What it hit, in a few words.
    pub detail: String,
}
