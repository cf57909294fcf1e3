//! The composition root: builds every part from the configuration, runs it, stops it in order.
//!
//! `main` calls [`run`]; tests call [`App::start`] with a clock of their own. A process with the role `gateway` alone is
//! a [`GatewayAlone`], one with the role `api` alone an [`ApiAlone`]. Start up or refuse: a part that cannot
//! start ends the start, nothing runs half. Stop: no new requests, open ones end, MQTT clients are told, consumers
//! finish what they hold, the log is synced and closed.

mod api_alone;
pub mod audit;
mod certificate;
mod consumers;
mod enroll_tls;
mod error;
mod files;
mod follow;
mod front;
mod gateway_alone;
mod limits;
mod lock;
mod metrics;
mod parts;
mod registry;
mod reload;
mod report;
mod retention;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
mod usage;

pub use api_alone::ApiAlone;
use certificate::{Certificates, Origin};
use consumers::Consumers;
use enroll_tls::enroll_tls;
pub use error::AppError;
use follow::{AtLog, Follower, Following};
use front::{Front, start_gateway};
pub use gateway_alone::GatewayAlone;
use limits::follow_limits;
pub use lock::DataDirLock;
pub(crate) use parts::Parts;
#[cfg(test)]
pub(crate) use parts::build;
pub use parts::open_registry;
pub use report::{Addresses, Bootstrap};
#[cfg(test)]
pub(crate) use usage::pass as tell_notices_once;

use crate::devices::Endpoints;
use crate::devices::directory::Directory;
use crate::gateway::Gateway;
use crate::http::{self, Slices};
use crate::page::api::PageState;
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live, Sources};
use crate::platform::db::Lease;
use crate::platform::event_log::EventLog;
use crate::platform::http_kit::{chain, serve};
use crate::platform::observability::LogControl;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often the event log is asked whether it still works.
const LOG_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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
    page: PageState,
    /// Where the registry is one that processes share.
    following: Option<Following>,
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

impl App {
    /// Starts every part on a checked configuration.
    ///
    /// # Errors
    /// Names the part that cannot start.
    pub async fn start(config: Live, clock: SharedClock) -> Result<Self, AppError> {
        let now = config.get();
        let lock = DataDirLock::take(&now.data_dir)?;
        let started_at_us = clock.now_us();
        let mut parts = parts::build(&config, &clock).await?;
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
                metrics::of_usage(&parts.metrics, &consumers.metered())?;
                Some(consumers)
            }
            false => None,
        };
        let origin = Origin::Authority(parts.pki.clone());
        let certificates = Arc::new(Certificates::load(origin, clock.clone())?);
        let gateway = start_gateway(&now, Front::of(&parts), &certificates)?;
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
        let board = parts.slices.usage.board().clone();
        tasks.spawn(follow_limits(gateway.rate_setter(), board, config, stopped.clone()));
        tasks.spawn(parts.page.feed.clone().run(stopped.clone()));
        tasks.spawn(parts.skipped.clone().run(stopped.clone()));
        tasks.spawn(usage::tell_notices(parts.slices.clone(), stopped.clone()));
        tasks.spawn(parts.eraser(started_at_us).run(stopped.clone()));
        tasks.spawn(parts.slices.erasures.clone().forget_exports(stopped.clone()));
        tasks.spawn(retention::run(parts.slices.clone(), clock, stopped.clone()));
        let following = share(&mut parts, &mut tasks, stopped).await?;
        tracing::info!(%addresses, "listening");
        let Parts { slices, page, directory, log, lease, .. } = parts;
        Ok(Self {
            slices,
            addresses,
            directory,
            certificates,
            stop,
            tasks,
            gateway,
            consumers,
            page,
            following,
            log,
            lease,
            _lock: lock,
        })
    }

    /// Stops every part; returns once the log is synced and closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.page.bus.close();
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

/// Where processes share the registry: tells them where devices are let in, and follows what they change.
async fn share(
    parts: &mut Parts,
    tasks: &mut JoinSet<()>,
    stopped: watch::Receiver<bool>,
) -> Result<Option<Following>, AppError> {
    let (Some(chains), Some(lease)) = (parts.chains.take(), &parts.lease) else { return Ok(None) };
    let slices = &parts.slices;
    slices.devices.tell_door(lease.fence()).await?;
    tasks.spawn(slices.devices.clone().keep_door_told(stopped.clone()));
    let at_log = AtLog {
        devices: slices.devices.clone(),
        rules: parts.rules.board.clone(),
        alerts: slices.alerts.clone(),
    };
    let (registry, tenants, usage) = (parts.rules.db.clone(), slices.tenants.clone(), slices.usage.clone());
    let follower = Follower { registry, chains, tenants, usage, at_log: Some(at_log) };
    follow::start(follower, &slices.health, &parts.metrics, tasks, stopped)
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
        let ended = until.end(live, &app.addresses, Some(&app.certificates), log_stopped(&app.log)).await;
        app.stop().await;
        return ended;
    }
    if live.get().roles.is_api_alone() {
        let app = ApiAlone::start(live.clone(), clock).await?;
        let ended = until.end(live, &app.addresses, None, follow::lost(app.following.as_ref())).await;
        app.stop().await;
        return ended;
    }
    let app = App::start(live.clone(), clock).await?;
    first_start(&app, options.bootstrap_file.as_deref()).await?;
    let fault = async {
        tokio::select! {
            fault = log_stopped(&app.log) => fault,
            fault = lease_lost(app.lease.as_ref()) => fault,
            fault = follow::lost(app.following.as_ref()) => fault,
        }
    };
    let ended = until.end(live, &app.addresses, Some(&app.certificates), fault).await;
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
        certificates: Option<&Arc<Certificates>>,
        fault: impl Future<Output = AppError>,
    ) -> Result<(), AppError> {
        // Before the ready file: whoever reads it may end the server at once.
        let stop = reload::until_stop_signal();
        if let Some(path) = &self.ready_file {
            addresses.write(path)?;
        }
        let reloader = tokio::spawn(reload::follow(live, self.sources, self.log, certificates.cloned()));
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
