//! The composition root: builds every part from the configuration, runs it, stops it in order.
//!
//! `main` calls [`run`]; tests call [`App::start`] with a clock of their own. A process with the role `gateway` alone is
//! a [`GatewayAlone`]. Start up or refuse: a part that cannot
//! start ends the start, nothing runs half. Stop: no new requests, open ones end, MQTT clients are told, consumers
//! finish what they hold, the log is synced and closed.

mod certificate;
mod consumers;
mod files;
mod gateway_alone;
mod lock;
mod metrics;
mod parts;
mod registry;
mod reload;
mod report;
mod retention;
#[cfg(test)]
mod tests;

use certificate::{Certificates, Origin};
use consumers::Consumers;
pub use gateway_alone::GatewayAlone;
pub use lock::DataDirLock;
pub(crate) use parts::Parts;
#[cfg(test)]
pub(crate) use parts::build;
pub use parts::open_registry;
pub use report::{Addresses, Bootstrap};

use crate::devices::directory::Directory;
use crate::devices::pki::PkiError;
use crate::devices::{DevicesError, Endpoints};
use crate::gateway::{self, Gateway, GatewayError};
use crate::http::{self, Slices};
use crate::ingest::IngestError;
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live, Sources};
use crate::platform::db::{DbError, Lease};
use crate::platform::event_log::{EventLog, EventLogError};
use crate::platform::http_kit::{chain, serve};
use crate::platform::observability::LogControl;
use crate::platform::telemetry::TelemetryError;
use crate::rules::consumer::ConsumerError;
use crate::tenants::TenantsError;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// How often the event log is asked whether it still works.
const LOG_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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
    certificates: Arc<Certificates>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    gateway: Gateway,
    /// None where the configuration leaves the log unread.
    consumers: Option<Consumers>,
    log: EventLog,
    lease: Option<Lease>,
    _lock: DataDirLock,
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), AppError> {
    let fail = |source| AppError::Listen { address, key, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

/// TLS of the enrolment listener: the server's certificate, no client certificate.
fn enroll_tls(certificates: &Certificates) -> Result<TlsAcceptor, AppError> {
    let mut config = rustls::ServerConfig::builder_with_provider(gateway::provider())
        .with_safe_default_protocol_versions()
        .map_err(AppError::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(certificates.listeners());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn rate(config: &Config) -> gateway::RateLimit {
    let limits = &config.limits;
    gateway::RateLimit { per_s: limits.device_messages_per_s, burst: limits.device_messages_burst }
}

/// Hands reloaded limits to the gateway until the server stops.
async fn follow_limits(set: gateway::RateSetter, config: Live, mut stop: watch::Receiver<bool>) {
    let mut changes = config.subscribe();
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => set.set(rate(&config.get())),
                Err(_) => return,
            },
            _ = stop.changed() => return,
        }
    }
}

/// What a gateway works with, besides its configuration and certificates.
struct Front {
    log: EventLog,
    directory: Arc<Directory>,
    clock: SharedClock,
    metrics: prometheus::Registry,
}

fn start_gateway(config: &Config, front: Front, certificates: &Certificates) -> Result<Gateway, AppError> {
    let server_config = |_| gateway::server_config(certificates.listeners(), certificates.device_ca_pem());
    let tls = config.mqtt.tls_listen.map(server_config);
    let settings = gateway::Config {
        tls_listen: config.mqtt.tls_listen,
        plain_listen: config.mqtt.plain_listen,
        worker_threads: config.mqtt.worker_threads,
        connections_max: config.mqtt.connections_max,
        rate: rate(config),
        ..gateway::Config::default()
    };
    let Front { log, directory, clock, metrics } = front;
    let dependencies = gateway::Dependencies { log, directory, clock, tls: tls.transpose()? };
    Ok(Gateway::start(settings, dependencies, &metrics)?)
}

impl App {
    /// Starts every part on a checked configuration.
    ///
    /// # Errors
    /// Names the part that cannot start.
    pub async fn start(config: Live, clock: SharedClock) -> Result<Self, AppError> {
        let now = config.get();
        let lock = DataDirLock::take(&now.data_dir)?;
        let parts = parts::build(&config, &clock).await?;
        // Bound before the gateway starts: a taken port refuses the start before any device was let in.
        let (http_listener, http) = listen(now.http.listen, "http.listen").await?;
        let (enroll_listener, enroll) = listen(now.enroll.listen, "enroll.listen").await?;
        metrics::of_log(&parts.metrics, &parts.log)?;
        let consumers = match now.event_log.consumers {
            true => {
                let consumers = Consumers::start(&config, &parts).await?;
                consumers.add_checks(&parts.slices.health);
                metrics::of_store(&parts.metrics, &consumers.stored(), &parts.telemetry, &parts.skipped)?;
                metrics::of_rules(&parts.metrics, &consumers.ruled(), &parts.rules.live)?;
                Some(consumers)
            }
            false => None,
        };
        let origin = Origin::Authority(parts.pki.clone());
        let certificates = Arc::new(Certificates::load(origin, clock.clone())?);
        let front = Front {
            log: parts.log.clone(),
            directory: parts.directory.clone(),
            clock: clock.clone(),
            metrics: parts.metrics.clone(),
        };
        let gateway = start_gateway(&now, front, &certificates)?;
        let (mqtt_tls, mqtt_plain) = (gateway.tls_address(), gateway.plain_address());
        let addresses = Addresses { http, enroll: Some(enroll), mqtt_tls, mqtt_plain };
        parts.slices.devices.set_endpoints(Endpoints {
            host: now.pki.hosts.first().cloned().unwrap_or_default(),
            enroll_port: enroll.port(),
            mqtt_port: now.mqtt.advertise_port.or(addresses.mqtt_port()).unwrap_or(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(http_listener, None, http::admin_router(&parts.slices), stopped.clone()));
        let tls = enroll_tls(&certificates)?;
        tasks.spawn(serve::serve(
            enroll_listener,
            Some(tls),
            http::enroll_router(&parts.slices),
            stopped.clone(),
        ));
        tasks.spawn(follow_limits(gateway.rate_setter(), config, stopped.clone()));
        tasks.spawn(parts.slices.page.feed.clone().run(stopped.clone()));
        tasks.spawn(parts.skipped.clone().run(stopped.clone()));
        tasks.spawn(retention::run(parts.slices.clone(), clock, stopped));
        tracing::info!(%addresses, "listening");
        let Parts { slices, directory, log, lease, .. } = parts;
        Ok(Self {
            slices,
            addresses,
            directory,
            certificates,
            stop,
            tasks,
            gateway,
            consumers,
            log,
            lease,
            _lock: lock,
        })
    }

    /// Stops every part; returns once the log is synced and closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.slices.page.bus.close();
        join(self.tasks).await;
        let (gateway, consumers, lease) = (self.gateway, self.consumers, self.lease);
        close(self.log, move || {
            gateway.stop();
            if let Some(consumers) = consumers {
                consumers.stop();
            }
            // After the rules' last commit.
            drop(lease);
        })
        .await;
    }
}

/// Waits until every task has ended.
async fn join(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task failed");
        }
    }
}

/// Stops who uses the log, which may block, and closes it.
async fn close(log: EventLog, stop_users: impl FnOnce() + Send + 'static) {
    let closed = tokio::task::spawn_blocking(move || {
        stop_users();
        log.close()
    });
    match closed.await {
        Ok(Ok(())) => tracing::info!("stopped"),
        Ok(Err(error)) => tracing::error!(error = %chain(&error), "the event log did not close"),
        Err(error) => tracing::error!(%error, "the gateway did not stop"),
    }
}

/// Waits until the event log stopped by itself, and tells why. Nothing can be acknowledged from then on, and only
/// a new process can know which bytes of the log are on the disk.
async fn log_stopped(log: &EventLog) -> AppError {
    loop {
        if let Some(why) = log.stats().failed {
            return AppError::LogStopped(why);
        }
        tokio::time::sleep(LOG_CHECK_INTERVAL).await;
    }
}

async fn lease_lost(lease: Option<&Lease>) -> AppError {
    match lease {
        Some(lease) => AppError::LeaseLost(lease.lost().await),
        None => std::future::pending().await,
    }
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// Names the part that cannot start, or the event log's fault that ended it.
pub async fn run(
    options: RunOptions,
    config: Config,
    clock: SharedClock,
    log: LogControl,
) -> Result<(), AppError> {
    let files = files::raise_limit();
    let needed = files::needed(&config);
    if files < needed {
        tracing::warn!(
            files,
            needed,
            connections_max = config.mqtt.connections_max,
            "fewer files may be open than all connections need: raise the limit, or lower mqtt.connections_max"
        );
    }
    let until = Until { ready_file: options.ready_file, sources: options.sources, log };
    let live = Live::new(config);
    if live.get().roles.is_gateway_alone() {
        let app = GatewayAlone::start(live.clone(), clock).await?;
        let ended = until.end(live, &app.addresses, &app.certificates, log_stopped(&app.log)).await;
        app.stop().await;
        return ended;
    }
    let app = App::start(live.clone(), clock).await?;
    first_start(&app, options.bootstrap_file.as_deref()).await?;
    let fault = async {
        tokio::select! {
            fault = log_stopped(&app.log) => fault,
            fault = lease_lost(app.lease.as_ref()) => fault,
        }
    };
    let ended = until.end(live, &app.addresses, &app.certificates, fault).await;
    app.stop().await;
    ended
}

/// What goes on while a server runs.
struct Until {
    ready_file: Option<PathBuf>,
    sources: Sources,
    log: LogControl,
}

impl Until {
    /// Tells that the server is ready and waits for its end; an error where that was no signal.
    async fn end(
        self,
        live: Live,
        addresses: &Addresses,
        certificates: &Arc<Certificates>,
        fault: impl Future<Output = AppError>,
    ) -> Result<(), AppError> {
        // Before the ready file: whoever reads it may end the server at once.
        let stop = reload::until_stop_signal();
        if let Some(path) = &self.ready_file {
            addresses.write(path)?;
        }
        let reloader = tokio::spawn(reload::follow(live, self.sources, self.log, certificates.clone()));
        let ended = tokio::select! {
            () = stop => Ok(()),
            why = fault => Err(why),
        };
        tracing::info!("stopping");
        reloader.abort();
        ended
    }
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
