//! Where the server is, what it must be, and its schema.

use super::session::{CONNECT_TIME_MAX, SCHEMA, runtime};
use super::{DbError, lease, wake};
use crate::platform::db::sqlite::newest_version;
use futures_util::StreamExt as _;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{AsyncMessage, Client, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

/// `server_version_num` of the oldest server that this is tried on.
const VERSION_MIN: i32 = 150_000;
/// Held while the schema is migrated.
const MIGRATION_LOCK: i64 = 0x6d75_7374_6572;
/// How long a server waits for another one that migrates.
const MIGRATION_WAIT_MAX: &str = "300s";
const ROLES: [&str; 3] = ["muster_owner", "muster_app", "muster_worker"];

/// `postgres://user:password@host:port/database?sslmode=...`; shown without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    text: String,
    config: tokio_postgres::Config,
}

impl FromStr for PostgresUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected postgres://user:password@host:port/database";
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(expected.to_owned());
        }
        let mut config: tokio_postgres::Config =
            text.parse().map_err(|error| format!("{expected}: {}", chain(&error)))?;
        if config.get_hosts().is_empty() || config.get_dbname().is_none() || config.get_user().is_none() {
            return Err(format!("{expected}: user, host and database must be there"));
        }
        if config.get_password().is_some() && !text.contains('@') || text.contains("password=") {
            return Err(format!("{expected}: a password stands before the @, or in registry.password_file"));
        }
        if !text.contains("sslmode=") {
            let is_far = config.get_hosts().iter().any(|host| match host {
                Host::Tcp(name) => {
                    name != "localhost" && !name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
                }
                Host::Unix(_) => false,
            });
            config.ssl_mode(if is_far { SslMode::Require } else { SslMode::Disable });
        }
        config.connect_timeout(CONNECT_TIME_MAX).keepalives_idle(Duration::from_secs(60));
        config.tcp_user_timeout(Duration::from_secs(30)).application_name("muster-server");
        Ok(Self { text: text.to_owned(), config })
    }
}

impl PostgresUrl {
    /// As it was given, but for the password.
    fn masked(&self) -> String {
        let (scheme, rest) = self.text.split_once("://").unwrap_or_default();
        match rest.rsplit_once('@').map(|(who, at)| (who.split_once(':'), at)) {
            Some((Some((user, _)), at)) => format!("{scheme}://{user}:***@{at}"),
            _ => self.text.clone(),
        }
    }
}

#[cfg(test)]
impl PostgresUrl {
    pub(super) fn ssl_mode(&self) -> SslMode {
        self.config.get_ssl_mode()
    }
}

impl serde::Serialize for PostgresUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl<'de> serde::Deserialize<'de> for PostgresUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match host {
                Host::Tcp(name) => write!(f, "{comma}{name}")?,
                Host::Unix(path) => write!(f, "{comma}{}", path.display())?,
            }
            if let Some(port) = self.config.get_ports().get(at).or(self.config.get_ports().first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a server is used.
#[derive(Clone)]
pub struct Options {
    /// Where it is.
    pub url: PostgresUrl,
    /// The authorities that its certificate may come from, as PEM; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Holds the password where the URL does not.
    pub password_file: Option<PathBuf>,
    /// Connections that write.
    pub writers: usize,
    /// Connections that read.
    pub readers: usize,
    /// The longest statement of a read; none: the longest of any statement.
    pub read_time_max: Option<Duration>,
    /// Read once; clones share it.
    pub(super) tls: Arc<OnceLock<MakeRustlsConnect>>,
}

impl Options {
    /// The defaults for a server.
    #[must_use]
    pub fn at(url: PostgresUrl) -> Self {
        Self {
            url,
            ca_file: None,
            password_file: None,
            writers: 4,
            readers: 4,
            read_time_max: None,
            tls: Arc::default(),
        }
    }

    /// A connection, driven by the runtime that this is awaited on.
    pub(super) async fn connect(&self) -> Result<Client, DbError> {
        self.connect_and(|_| {}).await
    }

    /// As [`Self::connect`]; `notified` is given what comes in, and dropped when the connection has ended.
    pub(super) async fn connect_and(
        &self,
        notified: impl Fn(Notification) + Send + 'static,
    ) -> Result<Client, DbError> {
        let unreachable = |why: String| DbError::Unreachable(format!("{}: {why}", self.url));
        // Once: reading the system's authorities takes longer than a refused connection.
        let tls = match self.tls.get() {
            Some(tls) => tls.clone(),
            None => {
                let tls = self.load_tls()?;
                self.tls.get_or_init(|| tls).clone()
            }
        };
        let mut config = self.url.config.clone();
        if self.ca_file.is_some() {
            config.ssl_mode(SslMode::Require);
        }
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|error| {
                DbError::unusable(&self.url, format!("registry.password_file {}: {error}", path.display()))
            })?;
            config.password(text.trim_end());
        }
        let connecting = config.connect(tls);
        let connected = tokio::time::timeout(CONNECT_TIME_MAX * 2, connecting).await;
        let (client, mut connection) = connected
            .map_err(|_| unreachable("no answer".to_owned()))?
            .map_err(|error| unreachable(chain(&error)))?;
        tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notification(notification)) => notified(notification),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(error = chain(&error), "a connection to PostgreSQL ended");
                        return;
                    }
                }
            }
        });
        Ok(client)
    }

    fn load_tls(&self) -> Result<MakeRustlsConnect, DbError> {
        let tls = crate::platform::authorities::client_tls(self.ca_file.as_deref());
        let tls = tls.map_err(|why| DbError::unusable(&self.url, format!("registry.ca_file {why}")))?;
        Ok(MakeRustlsConnect::new(tls))
    }
}

/// What becomes of a schema that is not this build's.
#[derive(Clone, Copy)]
pub(super) enum Schema {
    /// It is brought up to it.
    Migrated,
    /// It is refused.
    AsItIs,
}

/// Checks server, roles and schema.
pub(super) fn prepare(
    options: &Options,
    migrations: refinery::Runner,
    schema: Schema,
) -> Result<(), DbError> {
    let work = || {
        runtime(&options.url)?.block_on(async {
            let mut client = options.connect().await?;
            check(options, &client).await?;
            match schema {
                Schema::Migrated => migrate(options, &mut client, migrations).await,
                Schema::AsItIs => compare(options, &mut client, &migrations).await,
            }
        })
    };
    // The caller may be on a thread that drives another event loop.
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|_| Err(DbError::unusable(&options.url, "its migration panicked")))
}

async fn check(options: &Options, client: &Client) -> Result<(), DbError> {
    let unusable = |why: String| DbError::unusable(&options.url, why);
    let server = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'),
                    rolsuper OR rolbypassrls, session_user::text FROM pg_roles WHERE rolname = session_user",
            &[],
        )
        .await?;
    let (version, encoding): (i32, String) = (server.get(0), server.get(1));
    if version < VERSION_MIN {
        return Err(unusable(format!(
            "it is version {}, PostgreSQL 15 or newer is needed",
            version / 10_000
        )));
    }
    if encoding != "UTF8" {
        return Err(unusable(format!("its encoding is {encoding}, UTF8 is needed")));
    }
    let (bypasses, user): (bool, String) = (server.get(2), server.get(3));
    if bypasses {
        return Err(unusable(format!(
            "{user} is a superuser or has BYPASSRLS, so that row-level security would not hold: \
             connect as a role made by deploy/postgres/roles.sql"
        )));
    }
    let member =
        "SELECT coalesce((SELECT pg_has_role(session_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = $1),
                                  false)";
    for role in ROLES {
        if !client.query_one(member, &[&role]).await?.get::<_, bool>(0) {
            return Err(unusable(format!(
                "{user} is no member of the role {role}: run deploy/postgres/roles.sql there first"
            )));
        }
    }
    Ok(())
}

/// The schema's version in the database; 0 where it has none.
async fn applied_version(client: &mut Client) -> i32 {
    let last = refinery::Runner::new(&[]).get_last_applied_migration_async(client).await;
    last.ok().flatten().map_or(0, |last| last.version())
}

async fn compare(
    options: &Options,
    client: &mut Client,
    migrations: &refinery::Runner,
) -> Result<(), DbError> {
    client.batch_execute(&format!("SET ROLE muster_owner; SET search_path = {SCHEMA}")).await?;
    let (applied, newest) = (applied_version(client).await, newest_version(migrations));
    if applied == newest {
        return Ok(());
    }
    let why = format!("its schema is version {applied}, this build reads {newest}: use the server's build");
    Err(DbError::unusable(&options.url, why))
}

async fn migrate(
    options: &Options,
    client: &mut Client,
    migrations: refinery::Runner,
) -> Result<(), DbError> {
    let fail = |why: String| DbError::Migrate { database: options.url.to_string(), why };
    let begin = format!(
        "SET lock_timeout = '{MIGRATION_WAIT_MAX}'; SET ROLE muster_owner; SET search_path = {SCHEMA};
         SELECT pg_advisory_lock({MIGRATION_LOCK})"
    );
    client.batch_execute(&begin).await.map_err(|error| fail(chain(&error)))?;
    let (applied, newest) = (applied_version(client).await, newest_version(&migrations));
    if applied > newest {
        return Err(fail(format!(
            "its schema is version {applied}, this build knows {newest}: use a newer build"
        )));
    }
    // A server that runs on the schema as it is would not know the new one.
    let lease = (applied > 0 && applied < newest).then_some(lease::GATEWAY_AND_WORKER);
    if let Some(name) = lease
        && !lease::lock(client, name).await?
    {
        return Err(DbError::LeaseHeld { database: options.url.to_string(), name });
    }
    if lease.is_some() && !wake::lock_schema(client).await? {
        return Err(DbError::SchemaInUse { database: options.url.to_string() });
    }
    let done = migrations.set_abort_missing(true).run_async(client).await;
    done.map_err(|error| fail(chain(&error)))?;
    // Said, not left to the connection's end, which the server may see after the lease is asked for.
    client.batch_execute("SELECT pg_advisory_unlock_all()").await.map_err(|error| fail(chain(&error)))
}

/// An error with its sources, on one line: tokio-postgres keeps the reason in them.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    crate::platform::http_kit::chain(error)
}
