//! Deletes closed alerts, idempotency keys and what is left of deleted devices, once past their time, hourly. Telemetry has a retention of its own in `ingest`.

use crate::http::Slices;
use crate::platform::clock::SharedClock;
use crate::platform::db::DbError;
use crate::platform::http_kit::chain;
use crate::platform::http_kit::idempotency::{self, KEYS_MAX, PRUNED_MAX};
use muster_wire::TenantId;
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
    let days = i64::from(slices.config.get().retention.alerts_days);
    let before_us = clock.now_us().saturating_sub(days * DAY_US);
    let tenants = match slices.tenants.ids().await {
        Ok(tenants) => tenants,
        Err(error) => return tracing::warn!(error = %chain(&error), "retention failed, will retry"),
    };
    let whose = std::iter::once(None).chain(tenants.iter().map(Some));
    for tenant in whose {
        if let Err(error) = prune_keys(slices, tenant, clock.now_us()).await {
            tracing::warn!(error = %chain(&error), "idempotency keys were not pruned, will retry");
        }
    }
    for tenant in tenants {
        let retention = &slices.config.get().retention;
        let telemetry_days = retention.tenants.get(tenant.as_str()).unwrap_or(&retention.telemetry_days);
        let stored = i64::from(*telemetry_days).max(days);
        let stored_us = clock.now_us().saturating_sub(stored.saturating_mul(DAY_US));
        if let Err(error) = slices.devices.prune(&tenant, stored_us).await {
            tracing::warn!(%tenant, error = %chain(&error), "deleted devices were not forgotten, will retry");
        }
        match slices.alerts.prune(&tenant, before_us).await {
            Ok(0) => {}
            Ok(alerts) => tracing::info!(%tenant, alerts, "expired alerts deleted"),
            Err(error) => {
                tracing::warn!(%tenant, error = %chain(&error), "alert retention failed, will retry")
            }
        }
    }
}

/// A transaction a turn; a tenant that has more to forget goes on in the next pass.
async fn prune_keys(slices: &Slices, tenant: Option<&TenantId>, now_us: i64) -> Result<(), DbError> {
    for _ in 0..KEYS_MAX / PRUNED_MAX {
        let pruned = idempotency::prune(&slices.registry, tenant, now_us).await?;
        if i64::try_from(pruned).is_ok_and(|pruned| pruned < PRUNED_MAX) {
            break;
        }
    }
    Ok(())
}
