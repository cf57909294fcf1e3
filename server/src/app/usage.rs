//! Joins quotas and meters with the slices that they know nothing of: the registry's devices, alerts, retention.

use crate::alerts::model::{NewAlert, PLATFORM, Severity};
use crate::devices::DevicesMax;
use crate::devices::directory::Directory;
use crate::http::Slices;
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, Fence};
use crate::platform::http_kit::chain;
use crate::usage::consumer::Parts;
use crate::usage::model::{Level, day_text};
use crate::usage::{Board, Notice, Quota, UsageService};
use muster_wire::{TenantId, Value};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks for limits that were reached.
const INTERVAL: Duration = Duration::from_secs(2);

/// How many devices a tenant may have.
pub(super) fn devices_max(board: &Arc<Board>) -> DevicesMax {
    let board = board.clone();
    Arc::new(move |tenant| {
        let most = board.quotas(tenant).limit(Quota::Devices).hard;
        most.map_or(u32::MAX, |most| u32::try_from(most).unwrap_or(u32::MAX))
    })
}

/// What the meter stands on.
pub(super) fn meter(
    registry: &Db,
    clock: &SharedClock,
    config: &Live,
    directory: &Arc<Directory>,
    usage: &UsageService,
    fence: &Fence,
) -> Parts {
    let (directory, config) = (directory.clone(), config.clone());
    Parts {
        db: registry.clone(),
        clock: clock.clone(),
        board: usage.board().clone(),
        devices: Arc::new(move || directory.counts()),
        kept: Arc::new(move || {
            let now = config.get();
            let others =
                now.retention.tenants.iter().map(|(tenant, days)| (tenant.clone(), i64::from(*days)));
            (now.retention.telemetry_days.into(), others.collect())
        }),
        fence: fence.clone(),
    }
}

/// The alert that tells a tenant of a limit. Told again, it has the same id.
fn alert(tenant: TenantId, notice: &Notice) -> NewAlert {
    let Notice { day, quota, level, used, allowed, at_us, .. } = notice;
    let (quota, level_text, day) = (quota.as_str(), level.as_str(), day_text(*day));
    let hash = Sha256::digest(format!("quota {quota} {level_text} {day}"));
    let (severity, what) = match level {
        Level::Soft => (Severity::Warning, "more than this is only warned of once a day"),
        Level::Hard => (Severity::Critical, "more is refused; devices keep what they can and try again"),
    };
    #[allow(clippy::cast_precision_loss, reason = "a count to show")]
    let value = Value::Number(*used as f64);
    NewAlert {
        tenant,
        id: hex::encode(&hash[..16]),
        device: PLATFORM.into(),
        rule_id: PLATFORM.into(),
        rule_version: 0,
        rule_name: format!("Quota {quota}: {level_text} limit"),
        subject: format!("quota:{quota}"),
        severity,
        historical: false,
        value,
        message: format!("The {level_text} limit of {quota} ({allowed}) was reached on {day} (UTC): {what}."),
        opened_at_us: *at_us,
    }
}

/// Opens the alerts of limits that were reached, until the server stops. A notice is told again until its alert is open.
pub(super) async fn tell_notices(slices: Slices, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = pass(&slices) => {}
            _ = stop.changed() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = stop.changed() => return,
        }
    }
}

pub(crate) async fn pass(slices: &Slices) {
    let untold = match slices.usage.untold().await {
        Ok(untold) => untold,
        Err(error) => {
            return tracing::warn!(error = %chain(&error), "reached quotas are not told yet, will retry");
        }
    };
    for notice in untold {
        let Ok(tenant) = TenantId::parse(&notice.tenant) else { continue };
        if let Err(error) = slices.alerts.tell(alert(tenant, &notice)).await {
            return tracing::warn!(error = %chain(&error), "a reached quota is not told yet, will retry");
        }
        if let Err(error) = slices.usage.told(notice).await {
            return tracing::warn!(error = %chain(&error), "a reached quota may be told again");
        }
    }
}
