//! A process with the role `api` alone: the admin API and the page beside the gateway and worker of a shared registry.
//!
//! `run` starts it where the configuration says so. It opens the registry on PostgreSQL and nothing else: no event log, no
//! store, no rules' consumer, no certificate authority, no data directory; it takes no lease and enrols nobody. Readings and events
//! come from ClickHouse where the configuration names one. What only the other process has is answered 503 `not_on_this_process`; claims that are made here lead to that one's enrolment listener.
//!
//! Promise: what is changed through either process holds in the other within a second or so (`app::follow`). It makes no first
//! account: the process that lets devices in does. See docs/adr/0019.

use super::follow::{self, Follower, Following};
use super::limits::follow_quotas;
use super::{Addresses, AppError, listen, parts};
use crate::alerts::service::AlertService;
use crate::devices::Devices;
use crate::erasure::service::Erasures;
use crate::http::{self, Slices};
use crate::ingest::queries::Queries;
use crate::platform::blob::BlobUrl;
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::http_kit::health::Health;
use crate::platform::http_kit::rate::RateLimiter;
use crate::platform::http_kit::{HttpMetrics, chain, serve};
use crate::platform::live::LiveBus;
use crate::platform::telemetry::TelemetryError;
use crate::platform::telemetry::clickhouse::Reader;
use crate::rules::service::{RuleBoard, RuleService};
use crate::tenants::Tenants;
use crate::tenants::extract::credential;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A running admin API without a gateway.
pub struct ApiAlone {
    /// What the routes stand on.
    pub slices: Slices,
    /// The bound addresses.
    pub addresses: Addresses,
    pub(super) following: Option<Following>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl ApiAlone {
    /// Starts on a checked configuration.
    ///
    /// # Errors
    /// Names the part that cannot start.
    pub async fn start(config: Live, clock: SharedClock) -> Result<Self, AppError> {
        let now = config.get();
        let metrics = prometheus::Registry::new();
        let registry = parts::open_registry(&now).await?;
        let chains = follow::chains(&registry).await?;
        let tenants = Tenants::open(registry.clone(), clock.clone(), config.clone()).await?;
        let devices = Devices::without_gateway(registry.clone(), clock.clone(), config.clone());
        let usage = parts::open_usage(&registry, &clock, &config, &tenants).await?;
        devices.set_devices_max(super::usage::devices_max(usage.board()));
        let health = Health::new(metrics.clone());
        parts::registry_check(&health, &registry);
        let reader = parts::clickhouse(&now).map(|options| Reader::open(&options)).transpose();
        let reader = reader.map_err(TelemetryError::from)?;
        clickhouse_check(&health, reader.clone());
        // A bucket is the same from everywhere, a folder is the other process's.
        let blobs = match now.blob.url {
            Some(BlobUrl::S3 { .. }) => Some(parts::open_blobs(&now).await?),
            _ => None,
        };
        if let Some(blobs) = &blobs {
            parts::blob_check(&health, blobs);
        }
        let slices = Slices {
            queries: Queries::new(None, devices.clone(), clock.clone()).with_reader(reader),
            rules: RuleService::new(registry.clone(), clock.clone(), Arc::new(RuleBoard::default())),
            // Nobody can subscribe to this bus.
            alerts: AlertService::new(registry.clone(), clock.clone(), LiveBus::new()),
            erasures: Erasures::new(registry.clone(), clock.clone(), blobs, devices.clone(), tenants.clone()),
            page: None,
            usage: usage.clone().without_gateway(),
            registry: registry.clone(),
            rate: RateLimiter::new(clock.clone(), config.clone(), credential),
            clock,
            config: config.clone(),
            tenants: tenants.clone(),
            devices,
            metrics: HttpMetrics::register(&metrics)?,
            health: health.clone(),
        };
        let (listener, http) = listen(now.http.listen, "http.listen").await?;
        let addresses = Addresses { http, enroll: None, mqtt_tls: None, mqtt_plain: None };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_quotas(usage.board().clone(), config, stopped.clone()));
        let follower = Follower { registry, chains, tenants, usage, at_log: None };
        let following = follow::start(follower, &health, &metrics, &mut tasks, stopped.clone())?;
        tasks.spawn(serve::serve(listener, None, http::admin_router(&slices), stopped));
        tracing::info!(%addresses, "listening as an admin API alone");
        Ok(Self { slices, addresses, following, stop, tasks })
    }

    /// Stops; returns once open requests have ended.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        super::join(self.tasks).await;
        tracing::info!("stopped");
    }
}

fn clickhouse_check(health: &Health, reader: Option<Reader>) {
    let Some(reader) = reader else { return };
    health.add("clickhouse", move || {
        let reader = reader.clone();
        async move { reader.check().await.map_err(|error| chain(&error)) }
    });
}
