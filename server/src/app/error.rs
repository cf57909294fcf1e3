//! Why the server cannot start or go on.

use crate::devices::DevicesError;
use crate::devices::pki::PkiError;
use crate::gateway::{self, GatewayError};
use crate::ingest::IngestError;
use crate::platform::blob::BlobError;
use crate::platform::db::DbError;
use crate::platform::event_log::EventLogError;
use crate::platform::telemetry::TelemetryError;
use crate::rules::consumer::ConsumerError;
use crate::tenants::TenantsError;
use crate::usage::UsageError;
use crate::usage::consumer::MeterError;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be made or read.
    #[error("cannot use data directory {path}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Another process runs on this data directory.
    #[error("data directory {path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The certificate authority cannot open.
    #[error("certificate authority")]
    Pki(#[from] PkiError),
    /// TLS cannot be set up.
    #[error("tls setup")]
    Tls(#[source] rustls::Error),
    /// A database cannot open.
    #[error("database")]
    Db(#[from] DbError),
    /// The blob store cannot open.
    #[error("blob store")]
    Blob(#[from] BlobError),
    /// The accounts cannot open.
    #[error("accounts")]
    Tenants(#[from] TenantsError),
    /// The event log cannot open.
    #[error("event log")]
    Log(#[from] EventLogError),
    /// The telemetry store cannot open.
    #[error("telemetry store")]
    Telemetry(#[from] TelemetryError),
    /// The store's consumer cannot start.
    #[error("store consumer")]
    Ingest(#[from] IngestError),
    /// The rules' consumer cannot start.
    #[error("rules")]
    Rules(#[from] ConsumerError),
    /// Quotas cannot be read.
    #[error("quotas")]
    Usage(#[from] UsageError),
    /// The meter cannot start.
    #[error("usage")]
    Meter(#[from] MeterError),
    /// The MQTT gateway cannot start.
    #[error("mqtt gateway")]
    Gateway(#[from] GatewayError),
    /// Its TLS cannot be set up.
    #[error("mqtt tls")]
    GatewayTls(#[from] gateway::TlsError),
    /// The registry cannot open.
    #[error("device registry")]
    Devices(#[from] DevicesError),
    /// A metric is registered twice.
    #[error("metrics")]
    Metrics(#[from] prometheus::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration's key.
        key: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The event log stopped after a disk fault while the server ran.
    #[error("the event log stopped: {0}")]
    LogStopped(String),
    /// Another process took over the registry while the server ran.
    #[error("this process is gateway and worker of its registry no longer: {0}")]
    LeaseLost(String),
    /// A newer build migrated the registry while this process could not be asked.
    #[error("{0}")]
    SchemaChanged(String),
    /// The registry of another server cannot be read.
    #[error("registry.dir {dir}")]
    Registry {
        /// That server's data directory.
        dir: PathBuf,
        /// The reason.
        #[source]
        source: DbError,
    },
    /// A gateway's registry is in its own data directory.
    #[error("registry.dir {path} is data_dir, must be another server's: a gateway keeps a log of its own")]
    OwnRegistry {
        /// The directory.
        path: PathBuf,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A report file cannot be written.
    #[error("cannot write {path}")]
    Report {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}
