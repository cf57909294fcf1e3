//! What the lead of a run tells its sending parts, and what they tell it: values that also pass between processes.

use crate::identity::Member;
use crate::run::profile::{Extra, Profile, Watched};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How a part begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PartConfig {
    /// The server's MQTT listener.
    pub(crate) address: String,
    pub(crate) mqtt: u8,
    pub(crate) keep_alive_s: u16,
    /// Connections that are being made at once.
    pub(crate) concurrency: u32,
    pub(crate) connect_timeout_s: f64,
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    pub(crate) watched: Watched,
    /// Messages a second of this part.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    pub(crate) tenants: Vec<String>,
    /// The devices; the first ones are watched.
    pub(crate) members: Vec<Member>,
    /// The first device's number in the whole run.
    pub(crate) first_number: u32,
    /// The CA of the server's certificate, and the device CA's key.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) ca_key: Option<PathBuf>,
    /// The file with the devices' own certificates and keys.
    pub(crate) identities: Option<PathBuf>,
    /// The name in the server's certificate.
    pub(crate) server_name: Option<String>,
    /// Devices keep to the server's flow control.
    pub(crate) credits: bool,
    /// Devices report their queues.
    pub(crate) reports: bool,
}

/// What a part shall do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Begin the schedule.
    Go,
    /// Break connections of a share of the devices.
    Cut { share: f64, seed: u64 },
    /// A share of the devices disconnects and stays away, then comes back at one moment.
    Away { share: f64, for_s: f64, seed: u64 },
    /// Links of a share of the devices pass so many bytes a second.
    Slow { share: f64, bytes_per_s: u32, for_s: f64, seed: u64 },
    /// Clocks of a share of the devices jump.
    Clock { share: f64, offset_us: i64, seed: u64 },
    /// Devices (of one tenant, or all) send more.
    More { extra: Extra, per_s: f64, for_s: f64, tenant: Option<u16> },
    /// Every device gets records that count as having waited.
    Backlog { records: u32 },
    /// End the schedule, get every answer, report the queues, tell the result.
    Settle { timeout_s: f64 },
    /// Disconnect and end.
    Quit,
}

/// What a part tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// Every device is online for the first time.
    Online { seconds: f64, connect_cpu_s: f64 },
    /// One second.
    Second(Second),
    /// Every device is online again, so long after the last was not.
    AllOnline { after_s: f64 },
    /// The end.
    Settled(Box<PartResult>),
    /// It cannot go on.
    Failed { why: String },
}

/// A histogram of microseconds as value and count.
pub(crate) type Buckets = Vec<(u64, u64)>;

/// One second of a part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) online: u32,
    pub(crate) published: u64,
    pub(crate) acked: u64,
    pub(crate) waiting: u64,
    pub(crate) live: Buckets,
    pub(crate) backlog: Buckets,
}

/// What a part did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PartResult {
    pub(crate) made: u64,
    pub(crate) published: u64,
    pub(crate) resent: u64,
    pub(crate) acked: u64,
    pub(crate) refused: BTreeMap<u8, u64>,
    pub(crate) kept: BTreeMap<u8, u64>,
    pub(crate) copies: (u64, u64),
    pub(crate) poisons: (u64, u64),
    pub(crate) poisons_taken: u64,
    pub(crate) unsent: u64,
    pub(crate) unanswered: u64,
    pub(crate) misdelivered: u64,
    pub(crate) stray_acks: u64,
    pub(crate) credits: (u64, u64),
    pub(crate) connects: u64,
    pub(crate) reconnects: u64,
    pub(crate) closed: BTreeMap<String, u64>,
    /// By name.
    pub(crate) latency: BTreeMap<String, Buckets>,
    pub(crate) devices: Vec<DeviceResult>,
}

/// What a device sent: all numbers from 1, but for those that are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceResult {
    pub(crate) number: u32,
    /// The next number of telemetry and of events.
    pub(crate) next: [u32; 2],
    /// Telemetry that has no PUBACK.
    pub(crate) unanswered: Vec<u32>,
    /// Telemetry that the server refused for good, or whose body was broken on purpose.
    pub(crate) excepted: Vec<u32>,
}
