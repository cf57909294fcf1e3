//! Stores and services, before anything listens.

use super::{AppError, follow, usage};
use crate::alerts::service::AlertService;
use crate::devices::Devices;
use crate::devices::directory::{Directory, IntegrationToken};
use crate::devices::pki::Pki;
use crate::erasure::service::Erasures;
use crate::erasure::worker::{Memory, Worker};
use crate::http::Slices;
use crate::ingest::queries::Queries;
use crate::ingest::skipped::Skipped;
use crate::page::api::PageState;
use crate::page::feed::Feed;
use crate::page::service::PresenceService;
use crate::platform::blob::{self, BlobError, BlobUrl, Blobs};
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live};
use crate::platform::db::{Db, DbError, Fence, GATEWAY_AND_WORKER, Lease, PostgresOptions};
use crate::platform::event_log::{self, EventLog};
use crate::platform::http_kit::health::Health;
use crate::platform::http_kit::rate::RateLimiter;
use crate::platform::http_kit::{HttpMetrics, chain};
use crate::platform::live::LiveBus;
use crate::platform::schema;
use crate::platform::telemetry::{self, TelemetryStore};
use crate::rules;
use crate::rules::service::{RuleBoard, RuleService};
use crate::tenants::Tenants;
use crate::tenants::chains::Chains;
use crate::tenants::extract::credential;
use crate::usage::{Board, UsageService};
use std::sync::Arc;

/// Threads that read the registry.
const REGISTRY_READERS: usize = 2;

/// What [`super::App`] listens with.
pub(crate) struct Parts {
    pub(crate) slices: Slices,
    pub(crate) page: PageState,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pki: Arc<Pki>,
    pub(crate) log: EventLog,
    pub(crate) telemetry: TelemetryStore,
    pub(crate) rules: rules::consumer::Parts,
    pub(crate) meter: crate::usage::consumer::Parts,
    pub(crate) skipped: Skipped,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: prometheus::Registry,
    /// Where the registry is one that processes share.
    pub(crate) lease: Option<Lease>,
    /// Where the audit chains of such a one ended before anything was read from it.
    pub(crate) chains: Option<Chains>,
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
    let chains = if registry.is_shared() { Some(follow::chains(&registry).await?) } else { None };
    let telemetry = open_telemetry(&now).await?;
    let log = open_log(&now, clock)?;
    let directory = Arc::new(Directory::new());
    let tenants = Tenants::open(registry.clone(), clock.clone(), config.clone()).await?;
    integrations(&tenants, &directory);
    let devices =
        Devices::open(registry.clone(), clock.clone(), config.clone(), pki.clone(), directory.clone())
            .await?;
    let health = Health::new(metrics.clone());
    registry_check(&health, &registry);
    telemetry_check(&health, &telemetry);
    let blobs = open_blobs(&now).await?;
    blob_check(&health, &blobs);
    log_check(&health, &log);
    let usage = open_usage(&registry, clock, config, &tenants).await?;
    devices.set_devices_max(usage::devices_max(usage.board()));
    let queries = Queries::new(Some(telemetry.clone()), devices.clone(), clock.clone());
    let (live, board) = (LiveBus::new(), Arc::new(RuleBoard::default()));
    let fence = lease.as_ref().map(Lease::fence).unwrap_or_default();
    let rules = rules_parts(&registry, clock, (&board, &live), (&devices, &directory), fence);
    let meter = usage::meter(&registry, clock, config, &directory, &usage, &rules.fence);
    let feed = Feed::new(live.clone(), log.durable_next());
    let presence = PresenceService::new(feed.clone(), telemetry.clone(), Arc::default());
    let page = PageState { bus: live.clone(), feed, presence, devices: devices.clone() };
    let rule_service = RuleService::new(registry.clone(), clock.clone(), board);
    let alerts = AlertService::new(registry.clone(), clock.clone(), live);
    let erasures =
        Erasures::new(registry.clone(), clock.clone(), Some(blobs), devices.clone(), tenants.clone());
    let skipped = Skipped::new(telemetry.clone(), alerts.clone(), tenants.clone(), clock.clone());
    let slices = Slices {
        rules: rule_service,
        alerts,
        erasures,
        page: Some(page.clone()),
        config: config.clone(),
        tenants,
        devices,
        queries,
        usage,
        metrics: HttpMetrics::register(&metrics)?,
        health,
        registry,
        clock: clock.clone(),
        rate: RateLimiter::new(clock.clone(), config.clone(), credential),
    };
    Ok(Parts {
        slices,
        page,
        directory,
        pki,
        log,
        telemetry,
        rules,
        meter,
        skipped,
        clock: clock.clone(),
        metrics,
        lease,
        chains,
    })
}

async fn open_telemetry(config: &Config) -> Result<TelemetryStore, AppError> {
    let options = telemetry::Options {
        // The log stops first, so the store has room to take what the log holds, and the log shrinks. What the store
        // leaves takes its last checkpoint, too.
        disk_reserve_bytes: config.event_log.disk_reserve_bytes / 2,
        clickhouse: clickhouse(config),
        policy: super::consumers::policy(config),
        ..telemetry::Options::default()
    };
    let file = config.data_dir.join("telemetry.db");
    let opened = tokio::task::spawn_blocking(move || TelemetryStore::open(&file, options)).await;
    Ok(opened.map_err(|_| DbError::Closed)??)
}

fn rules_parts(
    registry: &Db,
    clock: &SharedClock,
    (board, live): (&Arc<RuleBoard>, &LiveBus),
    (devices, directory): (&Devices, &Arc<Directory>),
    fence: Fence,
) -> rules::consumer::Parts {
    let (labels, registered) = (devices.labels().clone(), directory.clone());
    rules::consumer::Parts {
        db: registry.clone(),
        clock: clock.clone(),
        board: board.clone(),
        live: live.clone(),
        labels: Arc::new(move |tenant, device| labels.labels(tenant, device)),
        known: Arc::new(move |tenant, device| registered.lookup(tenant, device).is_some()),
        fence,
    }
}

pub(super) async fn open_usage(
    registry: &Db,
    clock: &SharedClock,
    config: &Live,
    tenants: &Tenants,
) -> Result<UsageService, AppError> {
    let board = Arc::new(Board::new());
    Ok(UsageService::open(registry.clone(), clock.clone(), config, tenants.clone(), board).await?)
}

impl Parts {
    /// What works erasures off; no connection is left from before `started_at_us`.
    pub(crate) fn eraser(&self, started_at_us: i64) -> Worker {
        Worker {
            erasures: self.slices.erasures.clone(),
            devices: self.slices.devices.clone(),
            rules: self.slices.rules.clone(),
            telemetry: self.telemetry.clone(),
            log: self.log.clone(),
            started_at_us,
            memory: Memory::default(),
        }
    }
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
    let Some(options) = postgres(config) else {
        return Db::open(&config.data_dir.join("registry.db"), schema::registry(), REGISTRY_READERS);
    };
    let opened =
        tokio::task::spawn_blocking(move || Db::connect(&options, schema::registry_postgres())).await;
    opened.map_err(|_| DbError::Closed)?
}

/// Where the registry is, unless in a file.
pub(super) fn postgres(config: &Config) -> Option<PostgresOptions> {
    let section = &config.registry;
    let mut options = PostgresOptions::at(section.url.clone()?);
    options.ca_file.clone_from(&section.ca_file);
    options.password_file.clone_from(&section.password_file);
    Some(options)
}

/// Where readings and events go, where they do not stay in telemetry.db.
pub(super) fn clickhouse(config: &Config) -> Option<telemetry::clickhouse::Options> {
    let section = &config.telemetry;
    Some(telemetry::clickhouse::Options {
        password_file: section.password_file.clone(),
        ca_file: section.ca_file.clone(),
        outbox_bytes_max: section.outbox_bytes_max,
        ..telemetry::clickhouse::Options::at(section.url.clone()?)
    })
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

/// Opens the blob store where the configuration says; a bucket's server need not be there yet.
pub(super) async fn open_blobs(config: &Config) -> Result<Blobs, BlobError> {
    let section = &config.blob;
    let url = section.url.clone().unwrap_or_else(|| BlobUrl::Folder(config.data_dir.join("blobs")));
    let options = blob::Options {
        url,
        endpoint: section.endpoint.clone(),
        region: section.region.clone(),
        access_key_id: section.access_key_id.clone(),
        secret_key_file: section.secret_key_file.clone(),
        ca_file: section.ca_file.clone(),
        allow_http: section.allow_http,
    };
    let opened = tokio::task::spawn_blocking(move || Blobs::open(&options)).await;
    opened.map_err(|_| BlobError::Failed("its opening panicked".to_owned()))?
}

pub(super) fn blob_check(health: &Health, blobs: &Blobs) {
    let blobs = blobs.clone();
    health.add("blob", move || {
        let blobs = blobs.clone();
        async move { blobs.check().await.map_err(|error| format!("{}: {}", blobs.place(), chain(&error))) }
    });
}

pub(super) fn registry_check(health: &Health, registry: &Db) {
    let registry = registry.clone();
    health.add("registry", move || {
        let db = registry.clone();
        async move { db.check().await.map_err(|error| chain(&error)) }
    });
}

fn telemetry_check(health: &Health, telemetry: &TelemetryStore) {
    let telemetry = telemetry.db().clone();
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
