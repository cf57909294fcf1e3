//! Configuration: file, environment and flags, in that order of growing priority.
//!
//! `main` loads it, `app` hands the sections out, [`Live`] carries what may change while the server runs.
//! Promise: an unknown key, a wrong type or a value out of range is refused with the place it came from (file and
//! line, variable, or flag), the key and what was expected; nothing starts half-configured. The one secret that may be in
//! it, the password of `registry.url`, is never shown.

mod load;
mod quota;
mod reload;
mod roles;
mod validate;

pub use load::{ConfigError, ENV_PREFIX, Sources};
pub use quota::{LimitSection, QUOTA_BURST_MAX, QUOTA_MAX, QUOTA_PER_S_MAX, QuotaRateSection};
pub use reload::{Live, RELOADABLE, changed_keys};
pub use roles::{Role, Roles};

use crate::platform::blob::BlobUrl;
use crate::platform::db::PostgresUrl;
use crate::platform::telemetry::clickhouse::{ClickHouseUrl, OUTBOX_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

/// Everything that can be configured; a section a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the server keeps everything: databases, log, keys.
    pub data_dir: PathBuf,
    /// What this process does.
    pub roles: Roles,
    /// The registry, where it is not `registry.db` in `data_dir`.
    pub registry: RegistrySection,
    /// Readings and events, where they do not stay in `telemetry.db` in `data_dir`.
    pub telemetry: TelemetrySection,
    /// Files: exports and the like.
    pub blob: BlobSection,
    /// Logging.
    pub log: LogSection,
    /// The admin API and the page.
    pub http: HttpSection,
    /// The enrolment listener.
    pub enroll: EnrollSection,
    /// The MQTT listeners.
    pub mqtt: MqttSection,
    /// The server's own certificate authority.
    pub pki: PkiSection,
    /// People's sessions and passwords.
    pub auth: AuthSection,
    /// The event log between the gateway and its consumers.
    pub event_log: EventLogSection,
    /// What a tenant may have and send.
    pub quota: QuotaSection,
    /// What a device may send.
    pub limits: LimitsSection,
    /// How long stored rows are kept.
    pub retention: RetentionSection,
}

/// The registry, where it is not `registry.db` in `data_dir`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// The data directory of the server whose registry and certificates a gateway reads; it writes nothing there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// A PostgreSQL database that holds it: `postgres://user@host/database`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<PostgresUrl>,
    /// The file with the password of that user, where it is not in the URL; read for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The authorities that the database server's certificate may come from, as PEM; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Readings and events, where they do not stay in `telemetry.db` in `data_dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// A ClickHouse server's HTTP interface: `http://user@host:8123/database`. The ledger stays in `telemetry.db`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<ClickHouseUrl>,
    /// The file with the password of that user, where it is not in the URL; read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The authorities that the server's certificate may come from, as PEM; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Bytes of rows that wait in `telemetry.db` while ClickHouse is away; then the event log keeps what comes.
    pub outbox_bytes_max: u64,
}

/// Files: exports and the like, in a folder or on an S3 server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlobSection {
    /// `file:/a/folder` or `s3://bucket/prefix`; absent: `blobs` in `data_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<BlobUrl>,
    /// The S3 server: `https://host:port`; absent: Amazon's of the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The file with its secret; read for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_file: Option<PathBuf>,
    /// The authorities that the server's certificate may come from, as PEM; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether `endpoint` may be without TLS: whoever is on the way reads and changes everything.
    pub allow_http: bool,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// A filter as `tracing` reads it: `info`, or `info,muster_server::gateway=debug`.
    pub filter: String,
}

/// The admin API and the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Origins of browsers that may change things besides the server's own: `https://fleet.example`.
    pub origins: Vec<String>,
    /// Marks the session cookie `Secure`; needed behind a TLS proxy, impossible on plain HTTP.
    pub secure_cookies: bool,
    /// The largest request body.
    pub body_bytes_max: usize,
    /// The longest time to the head of an answer.
    pub timeout_s: u64,
    /// How many requests callers may make.
    pub rate: RateSection,
}

/// Rate limits of the API: token buckets of one process. A rate of 0 lifts its limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateSection {
    /// Requests a second of one API token or session.
    pub principal_per_s: u32,
    /// Its requests at once after a pause.
    pub principal_burst: u32,
    /// Requests a second of one address (of IPv6: one /64); loopback, where a proxy stands for everybody, has no limit.
    pub address_per_s: u32,
    /// Its requests at once after a pause.
    pub address_burst: u32,
}

/// The enrolment listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnrollSection {
    /// Address and port.
    pub listen: SocketAddr,
    /// Claims that one address may try a minute.
    pub attempts_per_minute: u32,
}

/// The MQTT listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttSection {
    /// TLS for devices; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_listen: Option<SocketAddr>,
    /// Without TLS, for benches on the loopback address; absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_listen: Option<SocketAddr>,
    /// The port that devices are told, where it differs from the listener's (port mapping).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_port: Option<u16>,
    /// Open connections.
    pub connections_max: usize,
    /// Threads that serve connections.
    pub worker_threads: usize,
}

/// The server's own certificate authority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PkiSection {
    /// Names and addresses in the server's certificate; devices are told the first.
    pub hosts: Vec<String>,
    /// Life of a device's certificate.
    pub device_days: u32,
    /// Life of the server's certificate; it is renewed when a third is left.
    pub server_days: u32,
}

/// People's sessions and passwords.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthSection {
    /// Life of a session.
    pub session_hours: u32,
    /// Failed logins of one account, or four times as many of one address, until it is locked.
    pub login_failures_max: u32,
    /// How long it stays locked.
    pub lockout_minutes: u32,
    /// The longest life of an API token.
    pub token_days_max: u32,
}

/// The event log between the gateway and its consumers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventLogSection {
    /// The log's size when it is full.
    pub bytes_max: u64,
    /// Size of one segment file.
    pub segment_bytes: u64,
    /// The disk's last free bytes: with less the log takes nothing more, with half of it the store neither, so
    /// that the registry (logins, devices, alerts) goes on.
    pub disk_reserve_bytes: u64,
    /// Whether this process reads the log: the store and the rules. `false` leaves everything in the log, for
    /// maintenance of the store and for benches of the gateway; a later start with `true` reads on.
    pub consumers: bool,
}

/// What a tenant may have and send, unless it was given quotas of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaSection {
    /// Devices of a tenant.
    pub devices_max: u32,
    /// Open claims of a tenant.
    pub claims_max: u32,
    /// API tokens of a tenant.
    pub api_tokens_max: u32,
    /// Members of a tenant.
    pub users_max: u32,
    /// Devices that a tenant is warned at; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices_soft: Option<u32>,
    /// Messages a second of all devices of a tenant.
    pub messages_per_s: QuotaRateSection,
    /// Messages of a tenant between two midnights (UTC).
    pub messages_per_day: LimitSection,
    /// Bytes of their bodies between two midnights (UTC).
    pub bytes_per_day: LimitSection,
    /// Milliseconds that its devices' models ran, as its events tell, between two midnights (UTC).
    pub inference_ms_per_day: LimitSection,
    /// Bytes that a tenant's telemetry takes in the store, by estimate.
    pub storage_bytes: LimitSection,
    /// Open MQTT connections of a tenant.
    pub connections: LimitSection,
}

/// What a device may send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Messages a second of one device, in the long run.
    pub device_messages_per_s: u32,
    /// Messages that it may send at once after a silence.
    pub device_messages_burst: u32,
}

/// How long stored rows are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Readings, events, dead letters and rejected messages.
    pub telemetry_days: u32,
    /// Alerts that were resolved or cleared.
    pub alerts_days: u32,
    /// Days of telemetry by tenant, where it is not `telemetry_days`.
    pub tenants: BTreeMap<String, u32>,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
}

impl Config {
    /// The configuration as a file would hold it.
    ///
    /// # Errors
    /// Never in practice: every value has a TOML form.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/muster-server"),
            roles: Roles::default(),
            registry: RegistrySection::default(),
            telemetry: TelemetrySection::default(),
            blob: BlobSection::default(),
            log: LogSection::default(),
            http: HttpSection::default(),
            enroll: EnrollSection::default(),
            mqtt: MqttSection::default(),
            pki: PkiSection::default(),
            auth: AuthSection::default(),
            event_log: EventLogSection::default(),
            quota: QuotaSection::default(),
            limits: LimitsSection::default(),
            retention: RetentionSection::default(),
        }
    }
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self { url: None, password_file: None, ca_file: None, outbox_bytes_max: OUTBOX_BYTES_MAX }
    }
}

impl Default for BlobSection {
    fn default() -> Self {
        Self {
            url: None,
            endpoint: None,
            region: "us-east-1".into(),
            access_key_id: None,
            secret_key_file: None,
            ca_file: None,
            allow_http: false,
        }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        Self { filter: "info".into() }
    }
}

impl Default for HttpSection {
    fn default() -> Self {
        Self {
            listen: loopback(8080),
            origins: Vec::new(),
            secure_cookies: false,
            body_bytes_max: 256 * 1024,
            timeout_s: 30,
            rate: RateSection::default(),
        }
    }
}

impl Default for RateSection {
    fn default() -> Self {
        Self { principal_per_s: 2_000, principal_burst: 30_000, address_per_s: 4_000, address_burst: 60_000 }
    }
}

impl Default for EnrollSection {
    fn default() -> Self {
        Self { listen: everywhere(8443), attempts_per_minute: 60 }
    }
}

impl Default for MqttSection {
    fn default() -> Self {
        Self {
            tls_listen: Some(everywhere(8883)),
            plain_listen: None,
            advertise_port: None,
            connections_max: 15_800,
            worker_threads: 1,
        }
    }
}

impl Default for PkiSection {
    fn default() -> Self {
        Self { hosts: vec!["localhost".into(), "127.0.0.1".into()], device_days: 90, server_days: 365 }
    }
}

impl Default for AuthSection {
    fn default() -> Self {
        Self { session_hours: 12, login_failures_max: 5, lockout_minutes: 15, token_days_max: 366 }
    }
}

impl Default for EventLogSection {
    fn default() -> Self {
        Self { bytes_max: 4 << 30, segment_bytes: 64 << 20, disk_reserve_bytes: 128 << 20, consumers: true }
    }
}

impl Default for QuotaSection {
    fn default() -> Self {
        Self {
            devices_max: 100_000,
            claims_max: 10_000,
            api_tokens_max: 200,
            users_max: 1_000,
            devices_soft: None,
            messages_per_s: QuotaRateSection::default(),
            messages_per_day: LimitSection::default(),
            bytes_per_day: LimitSection::default(),
            inference_ms_per_day: LimitSection::default(),
            storage_bytes: LimitSection::default(),
            connections: LimitSection::default(),
        }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { device_messages_per_s: 2_000, device_messages_burst: 20_000 }
    }
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { telemetry_days: 30, alerts_days: 365, tenants: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests;
