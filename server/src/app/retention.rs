//! Deletes closed alerts and idempotency keys that are past their time, hourly. Telemetry has a retention of its own in `ingest`.

use crate::http::Slices;
use crate::platform::clock::SharedClock;
use crate::platform::http_kit::{chain, idempotency};
use std::time::Duration;
use tokio::sync::watch;

const INTERVAL: Duration = Duration::from_secs(3600);
const DAY_US: i64 = 86_400_000_000;

/// Runs until the server stops. Idempotent: what one pass leaves, the next takes.
pub(super) async fn run(slices: Slices, clock: SharedClock, mut stop: watch::Receiver<bool>) {
    loop {
        // A pass that is given up goes on where it was: a database that does not answer holds no stop up.
        tokio::select! {
            () = pass(&slices, &clock) => {}
            _ = stop.changed() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = stop.changed() => return,
        }
    }
}

async fn pass(slices: &Slices, clock: &SharedClock) {
    if let Err(error) = idempotency::prune(&slices.registry, clock.now_us()).await {
        tracing::warn!(error = %chain(&error), "idempotency keys were not pruned, will retry");
    }
    let days = i64::from(slices.config.get().retention.alerts_days);
    let before_us = clock.now_us().saturating_sub(days * DAY_US);
    let tenants = match slices.tenants.ids().await {
        Ok(tenants) => tenants,
        Err(error) => return tracing::warn!(error = %chain(&error), "alert retention failed, will retry"),
    };
    for tenant in tenants {
        match slices.alerts.prune(&tenant, before_us).await {
            Ok(0) => {}
            Ok(alerts) => tracing::info!(%tenant, alerts, "expired alerts deleted"),
            Err(error) => {
                tracing::warn!(%tenant, error = %chain(&error), "alert retention failed, will retry")
            }
        }
    }
}
