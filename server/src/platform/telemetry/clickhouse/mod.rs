//! Readings and events in ClickHouse: the telemetry store's engine for fleets that outgrow one file (ADR 0018).
//!
//! Who calls me: [`super::TelemetryStore`] alone. I call the official client over HTTP.
//!
//! What stays in telemetry.db: the ledger, the cursor, names, last values, dead letters, and the outbox. A flush puts a
//! block of rows into the outbox, in the commit that moves ledger and marks; the sender inserts each block with its own
//! de-duplication token until it is acknowledged, and then takes it out. Whatever dies in between, the same bytes are
//! sent again and ClickHouse takes them once. Only what is synced is sent: a power cut never takes back what is sent.
//! Queries ask ClickHouse for the confirmed blocks only and take the rest from memory.
//!
//! While ClickHouse is away the outbox grows to its bound, then the memtable, then the log: nothing is lost, no PUBACK
//! waits for it, and queries of readings and events answer that it cannot be reached.

mod block;
mod erase;
mod lists;
mod outbox;
mod pack;
mod query;
mod retention;
mod schema;
mod send;
#[cfg(test)]
mod tests;
mod url;

pub use erase::Deleted;
pub(super) use erase::Whose;
pub use outbox::Outbox;
pub(super) use outbox::{held, open_blocks, state, waiting};
pub(super) use pack::{Packed, events as pack_events, readings as pack_readings};
pub use query::Reader;
pub use send::Sender;
pub use url::ClickHouseUrl;

use crate::platform::db::DbError;
use clickhouse::{Client, Compression, Row, RowOwned, RowRead};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of blocks that wait for ClickHouse; over it nothing is flushed, and the log keeps what comes.
pub const OUTBOX_BYTES_MAX: u64 = 1 << 30;
/// The longest query, as of the embedded store.
const QUERY_TIME_MAX_S: u32 = 10;
/// An answer that takes longer than any query may is no answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// ClickHouse closes idle connections after 3 s.
const IDLE_TIME_MAX: Duration = Duration::from_secs(2);

/// How ClickHouse is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub url: ClickHouseUrl,
    /// Holds the password where the URL does not; read at the start.
    pub password_file: Option<PathBuf>,
    /// The authorities that its certificate may come from, as PEM; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// As [`OUTBOX_BYTES_MAX`].
    pub outbox_bytes_max: u64,
}

impl Options {
    /// The defaults for a server.
    #[must_use]
    pub fn at(url: ClickHouseUrl) -> Self {
        Self { url, password_file: None, ca_file: None, outbox_bytes_max: OUTBOX_BYTES_MAX }
    }
}

/// Why ClickHouse did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClickHouseError {
    /// No answer, or half of one.
    #[error("ClickHouse at {url} cannot be reached: {why}")]
    Unreachable {
        /// Host and database.
        url: String,
        /// The reason.
        why: String,
    },
    /// It answered with an error of its own.
    #[error("ClickHouse at {url} refused: {why}")]
    Refused {
        /// Host and database.
        url: String,
        /// Its error's number, where it told one.
        code: Option<u32>,
        /// Its text.
        why: String,
    },
    /// The schema was made by a newer build.
    #[error(
        "the schema in ClickHouse at {url} has version {held}, this build knows {known}: use the newer build"
    )]
    Newer {
        /// Host and database.
        url: String,
        /// The version there.
        held: u32,
        /// The newest that this build knows.
        known: u32,
    },
    /// A file that the configuration names cannot be used.
    #[error("telemetry.{key} {path}: {why}")]
    File {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// TIMEOUT_EXCEEDED, QUERY_WAS_CANCELLED.
const OVERDUE: [u32; 2] = [159, 394];
/// UNKNOWN_TABLE, UNKNOWN_DATABASE: the sender makes them as soon as it gets through.
const NOT_MADE: [u32; 2] = [60, 81];

impl From<ClickHouseError> for DbError {
    fn from(error: ClickHouseError) -> Self {
        match error {
            ClickHouseError::Refused { code: Some(code), .. } if OVERDUE.contains(&code) => Self::Overdue,
            ClickHouseError::Unreachable { .. } => Self::Unreachable(error.to_string()),
            ClickHouseError::Refused { code: Some(code), .. } if NOT_MADE.contains(&code) => {
                Self::Unreachable(error.to_string())
            }
            ClickHouseError::Refused { ref url, .. } | ClickHouseError::Newer { ref url, .. } => {
                Self::Unusable { database: url.clone(), why: error.to_string() }
            }
            ClickHouseError::File { .. } => {
                Self::Unusable { database: "ClickHouse".into(), why: error.to_string() }
            }
        }
    }
}

/// A way to a ClickHouse server; clones share its connections. It belongs to the async runtime that it is used on.
#[derive(Clone)]
pub(super) struct ClickHouse {
    pub(super) options: Arc<Options>,
    client: Client,
}

impl ClickHouse {
    /// Opens nothing yet.
    pub(super) fn new(options: Arc<Options>) -> Result<Self, ClickHouseError> {
        let url = &options.url;
        let password = match &options.password_file {
            None => url.password.clone(),
            Some(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end().to_owned())
                .map_err(|error| file("password_file", path, &error))?,
        };
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT_TIME_MAX));
        http.set_keepalive(Some(Duration::from_secs(60)));
        http.set_nodelay(true);
        http.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(&options)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let http =
            HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIME_MAX).build(connector);
        let client = Client::with_http_client(http)
            .with_url(&url.endpoint)
            .with_user(&url.user)
            .with_password(password)
            .with_product_info("muster-server", env!("CARGO_PKG_VERSION"))
            .with_compression(Compression::Lz4);
        Ok(Self { options, client })
    }

    /// For statements on the database.
    pub(super) fn client(&self) -> Client {
        self.client.clone().with_database(&self.options.url.database)
    }

    /// For queries, which change nothing and take a bounded time.
    pub(super) fn reader(&self) -> Client {
        self.client()
            .with_setting("readonly", "2")
            .with_setting("max_execution_time", QUERY_TIME_MAX_S.to_string())
            .with_setting("cancel_http_readonly_queries_on_client_close", "1")
    }

    /// For mutations. They are begun, and not waited for in their request, whatever the user's profile says: who asks again
    /// after a cut connection would begin another.
    pub(super) fn mutator(&self) -> Client {
        self.client().with_setting("mutations_sync", "0")
    }

    fn without_database(&self) -> Client {
        self.client.clone()
    }

    /// Runs a statement without an answer.
    async fn tell(&self, query: clickhouse::query::Query) -> Result<(), ClickHouseError> {
        self.within(query.execute()).await
    }

    /// Runs a query of one row.
    async fn ask<T: RowOwned + RowRead>(
        &self,
        query: clickhouse::query::Query,
    ) -> Result<T, ClickHouseError> {
        self.within(query.fetch_one::<T>()).await
    }

    /// Runs a query of a bounded number of rows.
    async fn rows<T: RowOwned + RowRead + Row>(
        &self,
        query: clickhouse::query::Query,
    ) -> Result<Vec<T>, ClickHouseError> {
        self.within(query.fetch_all::<T>()).await
    }

    async fn within<T>(
        &self,
        answer: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T, ClickHouseError> {
        match tokio::time::timeout(ANSWER_TIME_MAX, answer).await {
            Ok(answer) => answer.map_err(|error| self.error(error)),
            Err(_) => Err(self.unreachable("no answer".to_owned())),
        }
    }

    fn unreachable(&self, why: String) -> ClickHouseError {
        ClickHouseError::Unreachable { url: self.options.url.to_string(), why }
    }

    fn error(&self, error: clickhouse::error::Error) -> ClickHouseError {
        use clickhouse::error::Error;
        let url = self.options.url.to_string();
        match error {
            Error::Network(_) | Error::TimedOut | Error::NotEnoughData | Error::Decompression(_) => {
                self.unreachable(crate::platform::http_kit::chain(&error))
            }
            Error::BadResponse(why) => {
                let code = why.strip_prefix("Code: ").and_then(|rest| rest.split('.').next());
                ClickHouseError::Refused { url, code: code.and_then(|code| code.parse().ok()), why }
            }
            error => ClickHouseError::Refused { url, code: None, why: error.to_string() },
        }
    }

    /// Whether it answers, and knows the password.
    pub(super) async fn check(&self) -> Result<(), ClickHouseError> {
        self.ask::<u8>(self.reader().query("SELECT toUInt8(1)")).await.map(drop)
    }
}

fn file(key: &'static str, path: &std::path::Path, error: &dyn std::fmt::Display) -> ClickHouseError {
    ClickHouseError::File { key, path: path.to_owned(), why: error.to_string() }
}

fn tls(options: &Options) -> Result<rustls::ClientConfig, ClickHouseError> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    match &options.ca_file {
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| file("ca_file", path, error);
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))? {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it holds no certificate"));
            }
        }
        None if options.url.is_tls() => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        None => {}
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(|error| ClickHouseError::Unreachable {
        url: options.url.to_string(),
        why: error.to_string(),
    })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
