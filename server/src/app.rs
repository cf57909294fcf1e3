//! The composition root: builds every part from the configuration, runs it, stops it in order.
//!
//! `main` calls [`run`]; tests call [`App::start`] with a clock of their own. Start up or refuse: a part that cannot
//! start ends the start, nothing runs half. Stop: no new requests, open ones end, MQTT clients are told, consumers
//! finish what they hold, the log is synced and closed.

mod lock;
mod reload;
mod report;

pub use lock::DataDirLock;
pub use report::{Addresses, Bootstrap};

use crate::devices::directory::Directory;
use crate::devices::pki::{Pki, PkiError};
use crate::devices::{Devices, DevicesError, Endpoints};
use crate::http::{self, Slices};
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live, Sources};
use crate::platform::db::{Db, DbError};
use crate::platform::http_kit::health::Health;
use crate::platform::http_kit::{HttpMetrics, serve};
use crate::platform::observability::LogControl;
use crate::platform::schema;
use crate::tenants::{Tenants, TenantsError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Threads that read the registry.
const REGISTRY_READERS: usize = 2;

/// Why the server cannot start.
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
    /// The accounts cannot open.
    #[error("accounts")]
    Tenants(#[from] TenantsError),
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

/// What `run` is told on the command line.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Where the configuration comes from.
    pub sources: Sources,
    /// Written once everything listens: the real addresses, as JSON.
    pub ready_file: Option<PathBuf>,
    /// Written on the first start: address, password and an API token of the owner, mode 0600.
    pub bootstrap_file: Option<PathBuf>,
}

/// A running server.
pub struct App {
    /// What the routes stand on.
    pub slices: Slices,
    /// The bound addresses.
    pub addresses: Addresses,
    /// Who may speak MQTT.
    pub directory: Arc<Directory>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    _lock: DataDirLock,
}

/// The stores and services, before anything listens.
pub(crate) struct Parts {
    pub(crate) slices: Slices,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pki: Arc<Pki>,
    metrics: prometheus::Registry,
}

fn subdirectory(config: &Config, name: &str) -> PathBuf {
    config.data_dir.join(name)
}

pub(crate) async fn build(config: &Live, clock: &SharedClock) -> Result<Parts, AppError> {
    let now = config.get();
    let metrics = prometheus::Registry::new();
    let pki_dir = subdirectory(&now, "pki");
    let pki = Arc::new(Pki::open(&pki_dir, &now.pki.hosts, now.pki.server_days, clock.now_us())?);
    let registry = Db::open(&subdirectory(&now, "registry.db"), schema::registry(), REGISTRY_READERS)?;
    let directory = Arc::new(Directory::new());
    let tenants = Tenants::open(registry.clone(), clock.clone(), config.clone()).await?;
    let devices =
        Devices::open(registry.clone(), clock.clone(), config.clone(), pki.clone(), directory.clone())
            .await?;
    let health = Health::new(metrics.clone());
    health.add("registry", move || {
        let registry = registry.clone();
        async move {
            let one = registry.read(|tx| tx.query_opt("SELECT 1", &[], |row| row.get::<i64>(0))).await;
            one.map(drop).map_err(|error: DbError| error.to_string())
        }
    });
    let metrics_of_http = HttpMetrics::register(&metrics)?;
    let slices = Slices { config: config.clone(), tenants, devices, metrics: metrics_of_http, health };
    Ok(Parts { slices, directory, pki, metrics })
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), AppError> {
    let fail = |source| AppError::Listen { address, key, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

/// TLS of the enrolment listener: the server's certificate, no client certificate.
fn enroll_tls(pki: &Pki) -> Result<TlsAcceptor, AppError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(AppError::Tls)?
        .with_no_client_auth()
        .with_single_cert(pki.server_chain(), pki.server_key())
        .map_err(AppError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl App {
    /// Starts every part on a checked configuration.
    ///
    /// # Errors
    /// Names the part that cannot start.
    pub async fn start(config: Live, clock: SharedClock) -> Result<Self, AppError> {
        let now = config.get();
        let lock = DataDirLock::take(&now.data_dir)?;
        let parts = build(&config, &clock).await?;
        let (http_listener, http) = listen(now.http.listen, "http.listen").await?;
        let (enroll_listener, enroll) = listen(now.enroll.listen, "enroll.listen").await?;
        let addresses = Addresses { http, enroll, mqtt_tls: None, mqtt_plain: None };
        parts.slices.devices.set_endpoints(Endpoints {
            host: now.pki.hosts.first().cloned().unwrap_or_default(),
            enroll_port: enroll.port(),
            mqtt_port: now.mqtt.advertise_port.or(addresses.mqtt_port()).unwrap_or(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(http_listener, None, http::admin_router(&parts.slices), stopped.clone()));
        let tls = enroll_tls(&parts.pki)?;
        tasks.spawn(serve::serve(enroll_listener, Some(tls), http::enroll_router(&parts.slices), stopped));
        tracing::info!(%addresses, "listening");
        let Parts { slices, directory, .. } = parts;
        Ok(Self { slices, addresses, directory, stop, tasks, _lock: lock })
    }

    /// Stops every part; returns once the log is synced and closed.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task failed");
            }
        }
        tracing::info!("stopped");
    }
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// Names the part that cannot start.
pub async fn run(
    options: RunOptions,
    config: Config,
    clock: SharedClock,
    log: LogControl,
) -> Result<(), AppError> {
    let live = Live::new(config);
    let app = App::start(live.clone(), clock).await?;
    first_start(&app, options.bootstrap_file.as_deref()).await?;
    if let Some(path) = &options.ready_file {
        app.addresses.write(path)?;
    }
    let reloader = tokio::spawn(reload::follow(live, options.sources, log));
    reload::until_stop_signal().await;
    tracing::info!("stopping");
    reloader.abort();
    app.stop().await;
    Ok(())
}

/// Makes the first tenant and owner; prints the one-time password once.
async fn first_start(app: &App, bootstrap_file: Option<&Path>) -> Result<(), AppError> {
    let Some(first) = app.slices.tenants.first_start().await? else { return Ok(()) };
    let mut bootstrap = Bootstrap {
        tenant: first.tenant.to_string(),
        email: first.email,
        password: first.password,
        api_token: None,
    };
    bootstrap.print();
    if let Some(path) = bootstrap_file {
        let token =
            app.slices.tenants.create_bootstrap_token(&first.tenant, report::BOOTSTRAP_TOKEN_DAYS).await?;
        bootstrap.api_token = Some(token.secret);
        bootstrap.write(path)?;
    }
    Ok(())
}
