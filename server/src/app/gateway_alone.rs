//! A process with the role `gateway` alone: MQTT, an event log of its own, and another server's registry to read.
//!
//! `run` starts it where the configuration says so. It opens nothing else: no store, no rules, no API, no page, no
//! enrolment; over HTTP it tells its health and metrics. Promise as of the full server: a PUBACK follows the fsync of
//! this process's log. Nobody reads that log here, as with `event_log.consumers = false`.
//!
//! The other server may stop or be killed: devices that are known stay welcome. See docs/adr/0014.

use super::certificate::{Certificates, Origin};
use super::registry::Follower;
use super::{Addresses, AppError, DataDirLock, Front, listen, metrics, parts, start_gateway};
use crate::devices::directory::Directory;
use crate::devices::pki::ServerFiles;
use crate::devices::replica::Replica;
use crate::gateway::Gateway;
use crate::http;
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live};
use crate::platform::event_log::EventLog;
use crate::platform::http_kit::health::Health;
use crate::platform::http_kit::{HttpMetrics, serve};
use crate::usage::{Board, Quotas};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A running gateway without a registry of its own.
pub struct GatewayAlone {
    /// The bound addresses.
    pub addresses: Addresses,
    pub(super) certificates: Arc<Certificates>,
    pub(super) log: EventLog,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    gateway: Gateway,
    follower: Follower,
    _lock: DataDirLock,
}

/// The other server's data directory; not this process's own under another name.
fn registry_dir(config: &Config) -> Result<PathBuf, AppError> {
    let dir = config.registry.dir.clone().unwrap_or_default();
    let is_own = |real: PathBuf| std::fs::canonicalize(&config.data_dir).is_ok_and(|own| own == real);
    if std::fs::canonicalize(&dir).is_ok_and(is_own) {
        return Err(AppError::OwnRegistry { path: dir });
    }
    Ok(dir)
}

fn open_registry(dir: &Path, clock: &SharedClock) -> Result<(Replica, Arc<Directory>), AppError> {
    let (began, directory) = (Instant::now(), Arc::new(Directory::new()));
    let fail = |source| AppError::Registry { dir: dir.to_owned(), source };
    let replica = Replica::open(dir, clock.clone(), directory.clone()).map_err(fail)?;
    let (devices, ms) = (directory.device_count(), began.elapsed().as_millis());
    tracing::info!(registry = %dir.display(), devices, ms, "registry read");
    Ok((replica, directory))
}

impl GatewayAlone {
    /// Starts on a checked configuration.
    ///
    /// # Errors
    /// Names the part that cannot start.
    pub async fn start(config: Live, clock: SharedClock) -> Result<Self, AppError> {
        let now = config.get();
        let dir = registry_dir(&now)?;
        let lock = DataDirLock::take(&now.data_dir)?;
        let (replica, directory) = open_registry(&dir, &clock)?;
        let files = ServerFiles::open(&dir.join("pki"))?;
        let certificates = Arc::new(Certificates::load(Origin::Files(files), clock.clone())?);
        let registered = prometheus::Registry::new();
        let log = parts::open_log(&now, &clock)?;
        let (http_listener, http) = listen(now.http.listen, "http.listen").await?;
        metrics::of_log(&registered, &log)?;
        let health = Health::new(registered.clone());
        parts::log_check(&health, &log);
        let http_metrics = HttpMetrics::register(&registered)?;
        // What the registry gives single tenants is that server's to enforce: here the configuration's hold for all.
        let quotas = Arc::new(Board::new());
        quotas.set_defaults(Quotas::of_config(&now.quota));
        let front = Front {
            log: log.clone(),
            directory: directory.clone(),
            clock,
            quotas: quotas.clone(),
            metrics: registered.clone(),
            ends: Arc::default(),
        };
        let gateway = start_gateway(&now, front, &certificates)?;
        let follower = Follower::start(replica)?;
        let progress = follower.progress();
        metrics::of_registry(&registered, &progress, &directory)?;
        health.add("registry", move || std::future::ready(progress.condition.check()));
        let (mqtt_tls, mqtt_plain) = (gateway.tls_address(), gateway.plain_address());
        let addresses = Addresses { http, enroll: None, mqtt_tls, mqtt_plain };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let router = http::health_router(&health, &http_metrics, &now);
        tasks.spawn(serve::serve(http_listener, None, router, stopped.clone()));
        tasks.spawn(super::follow_limits(gateway.rate_setter(), quotas, config, stopped));
        tracing::info!(%addresses, "listening as a gateway alone");
        Ok(Self { addresses, certificates, log, stop, tasks, gateway, follower, _lock: lock })
    }

    /// Stops; returns once the log is synced and closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        super::join(self.tasks).await;
        let (gateway, follower, log) = (self.gateway, self.follower, self.log);
        super::close(log, move || {
            drop(follower);
            gateway.stop();
        })
        .await;
    }
}
