//! Log ranges that the store never read (promise, point 5): they become an alert of every tenant and a metric.
//!
//! `app` runs it. The store writes the rows in its own database, with its cursor; here they are carried over to the
//! registry, where alerts live. Nobody knows whose the records were, so every tenant is told. Idempotent: a range has
//! one alert a tenant however often it is carried over, and none while an alert of the store waits for a person.
//!
//! After a restart the ranges of the last [`NOTICE_US`] are looked at again, so that a crash between the two databases
//! hides nothing. The rules tell of theirs in the commit that writes `rule_gaps`.

use crate::alerts::model::SkippedRange;
use crate::alerts::service::{AlertError, AlertService};
use crate::platform::clock::SharedClock;
use crate::platform::db::{DbError, Scope};
use crate::platform::http_kit::chain;
use crate::platform::telemetry::{self, STORE_READER, TelemetryStore};
use crate::tenants::{Tenants, TenantsError};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);
/// Ranges that were found longer ago than this are not told any more.
const NOTICE_US: i64 = 86_400_000_000;

/// Why a range was not told; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SkippedError {
    /// The telemetry store failed.
    #[error("lost ranges cannot be read")]
    Db(#[from] DbError),
    /// The registry failed.
    #[error("tenants cannot be read")]
    Tenants(#[from] TenantsError),
    /// The registry failed.
    #[error(transparent)]
    Alerts(#[from] AlertError),
}

/// Carries lost ranges over; clones share it.
#[derive(Clone)]
pub struct Skipped {
    store: TelemetryStore,
    alerts: AlertService,
    tenants: Tenants,
    clock: SharedClock,
    told_id: Arc<AtomicI64>,
    positions: Arc<AtomicU64>,
}

impl Skipped {
    /// On open stores.
    #[must_use]
    pub fn new(store: TelemetryStore, alerts: AlertService, tenants: Tenants, clock: SharedClock) -> Self {
        Self { store, alerts, tenants, clock, told_id: Arc::default(), positions: Arc::default() }
    }

    /// Log positions that the store never read, in all.
    #[must_use]
    pub fn positions(&self) -> u64 {
        self.positions.load(Ordering::Relaxed)
    }

    /// Tells what was found since the last pass; gives the alerts opened.
    ///
    /// # Errors
    /// A database failed; what was not told is told by the next pass.
    pub async fn pass(&self) -> Result<usize, SkippedError> {
        let mut opened = 0;
        loop {
            let after = self.told_id.load(Ordering::Relaxed);
            let scope = Scope::System("lost log ranges");
            let found = self.store.db().read(move |tx| telemetry::lost_ranges(tx, &scope, after)).await?;
            if found.is_empty() {
                return Ok(opened);
            }
            let (tenants, from_us) = (self.tenants.ids().await?, self.clock.now_us() - NOTICE_US);
            for lost in found {
                let why = format!("were never stored: {}", lost.why);
                let range = SkippedRange {
                    reader: STORE_READER,
                    log_epoch: lost.log_epoch,
                    first: lost.first,
                    next: lost.next,
                    why,
                };
                for tenant in tenants.iter().filter(|_| lost.found_at_us >= from_us) {
                    opened += usize::from(self.alerts.tell_skipped(tenant, &range).await?);
                }
                self.told_id.store(lost.id, Ordering::Relaxed);
                self.positions.fetch_add(lost.next.saturating_sub(lost.first), Ordering::Relaxed);
            }
        }
    }

    /// Runs until the server stops.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        loop {
            let passed = tokio::select! {
                passed = self.pass() => passed,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            if let Err(error) = passed {
                tracing::warn!(error = %chain(&error), "lost log ranges are not told yet, will retry");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }
}
