//! Stores and services, before anything listens.

use super::AppError;
use crate::alerts::service::AlertService;
use crate::devices::Devices;
use crate::devices::directory::{Directory, IntegrationToken};
use crate::devices::pki::Pki;
use crate::http::Slices;
use crate::ingest::queries::Queries;
use crate::ingest::skipped::Skipped;
use crate::page::api::PageState;
use crate::page::feed::Feed;
use crate::page::service::PresenceService;
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live};
use crate::platform::db::{Db, DbError, GATEWAY_AND_WORKER, Lease, PostgresOptions};
use crate::platform::event_log::{self, EventLog};
use crate::platform::http_kit::health::Health;
use crate::platform::http_kit::{HttpMetrics, chain};
use crate::platform::live::LiveBus;
use crate::platform::schema;
use crate::platform::telemetry::{self, TelemetryStore};
use crate::rules;
use crate::rules::service::{RuleBoard, RuleService};
use crate::tenants::Tenants;
use std::sync::Arc;

/// Threads that read the registry.
const REGISTRY_READERS: usize = 2;

/// What [`super::App`] listens with.
pub(crate) struct Parts {
    pub(crate) slices: Slices,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pki: Arc<Pki>,
    pub(crate) log: EventLog,
    pub(crate) telemetry: TelemetryStore,
    pub(crate) rules: rules::consumer::Parts,
    pub(crate) skipped: Skipped,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: prometheus::Registry,
    /// Where the registry is one that processes share.
    pub(crate) lease: Option<Lease>,
}

/// Opens every store and fills what stands in memory.
///
/// # Errors
/// Names the part that cannot open.
pub(crate) async fn build(config: &Live, clock: &SharedClock) -> Result<Parts, AppError> {
    let now = config.get();
    let data = |name: &str| now.data_dir.join(name);
    let metrics = prometheus::Registry::new();
    let pki = Arc::new(Pki::open(&data("pki"), &now.pki.hosts, now.pki.server_days, clock.now_us())?);
    let registry = open_registry(&now).await?;
    let lease = take_lease(&registry).await?;
    // The log stops first, so the store has room to take what the log holds, and the log shrinks. What the store
    // leaves takes its last checkpoint, too.
    let disk_reserve_bytes = now.event_log.disk_reserve_bytes / 2;
    let options = telemetry::Options { disk_reserve_bytes, ..telemetry::Options::default() };
    let telemetry = TelemetryStore::open(&data("telemetry.db"), options)?;
    let log = open_log(&now, clock)?;
    let directory = Arc::new(Directory::new());
    let tenants = Tenants::open(registry.clone(), clock.clone(), config.clone()).await?;
    integrations(&tenants, &directory);
    let devices =
        Devices::open(registry.clone(), clock.clone(), config.clone(), pki.clone(), directory.clone())
            .await?;
    let health = Health::new(metrics.clone());
    database_checks(&health, &registry, &telemetry);
    log_check(&health, &log);
    let queries = Queries::new(telemetry.clone(), devices.clone(), clock.clone());
    let (live, board) = (LiveBus::new(), Arc::new(RuleBoard::default()));
    let (labels, registered) = (devices.labels().clone(), directory.clone());
    let rules = rules::consumer::Parts {
        db: registry.clone(),
        clock: clock.clone(),
        board: board.clone(),
        live: live.clone(),
        labels: Arc::new(move |tenant, device| labels.labels(tenant, device)),
        known: Arc::new(move |tenant, device| registered.lookup(tenant, device).is_some()),
        fence: lease.as_ref().map(Lease::fence).unwrap_or_default(),
    };
    let feed = Feed::new(live.clone(), log.durable_next());
    let presence = PresenceService::new(feed.clone(), telemetry.clone());
    let page = PageState { bus: live.clone(), feed, presence };
    let rule_service = RuleService::new(registry.clone(), clock.clone(), board);
    let alerts = AlertService::new(registry, clock.clone(), live);
    let skipped = Skipped::new(telemetry.clone(), alerts.clone(), tenants.clone(), clock.clone());
    let slices = Slices {
        rules: rule_service,
        alerts,
        page,
        config: config.clone(),
        tenants,
        devices,
        queries,
        metrics: HttpMetrics::register(&metrics)?,
        health,
    };
    Ok(Parts { slices, directory, pki, log, telemetry, rules, skipped, clock: clock.clone(), metrics, lease })
}

pub(super) fn open_log(config: &Config, clock: &SharedClock) -> Result<EventLog, AppError> {
    let options = event_log::Options {
        dir: config.data_dir.join("log"),
        bytes_max: config.event_log.bytes_max,
        segment_bytes: config.event_log.segment_bytes,
        disk_reserve_bytes: config.event_log.disk_reserve_bytes,
    };
    Ok(EventLog::open(&options, clock.clone())?)
}

/// Opens the registry where the configuration says: also for commands that work on it.
///
/// # Errors
/// It cannot be opened or migrated.
pub async fn open_registry(config: &Config) -> Result<Db, DbError> {
    let Some(url) = config.registry.url.clone() else {
        return Db::open(&config.data_dir.join("registry.db"), schema::registry(), REGISTRY_READERS);
    };
    let section = &config.registry;
    let mut options = PostgresOptions::at(url);
    options.ca_file.clone_from(&section.ca_file);
    options.password_file.clone_from(&section.password_file);
    let opened =
        tokio::task::spawn_blocking(move || Db::connect(&options, schema::registry_postgres())).await;
    opened.map_err(|_| DbError::Closed)?
}

/// A process that does everything is the only one that reads a log for its registry.
async fn take_lease(registry: &Db) -> Result<Option<Lease>, DbError> {
    let registry = registry.clone();
    let taken = tokio::task::spawn_blocking(move || registry.lease(GATEWAY_AND_WORKER)).await;
    taken.map_err(|_| DbError::Closed)?
}

/// API tokens that may subscribe are the gateway's integration clients.
fn integrations(tenants: &Tenants, directory: &Arc<Directory>) {
    let directory = directory.clone();
    tenants.tokens().follow(Box::new(move |sha256, token| match token.and_then(IntegrationToken::of) {
        None => directory.remove_integration(sha256),
        Some(token) => directory.set_integration(*sha256, token),
    }));
}

fn database_checks(health: &Health, registry: &Db, telemetry: &TelemetryStore) {
    let (registry, telemetry) = (registry.clone(), telemetry.db().clone());
    health.add("registry", move || {
        let db = registry.clone();
        async move { db.check().await.map_err(|error| chain(&error)) }
    });
    health.add("telemetry", move || {
        let db = telemetry.clone();
        async move { db.check().await.map_err(|error| chain(&error)) }
    });
}

pub(super) fn log_check(health: &Health, log: &EventLog) {
    let log = log.clone();
    health.add("event_log", move || {
        let stats = log.stats();
        async move {
            match (stats.failed, stats.stalled) {
                (Some(why), _) => Err(format!("stopped: {why}")),
                (None, Some(bound)) => Err(format!("full: {bound:?}")),
                (None, None) => Ok(()),
            }
        }
    });
}
