//! The event log's consumers: the store with its ledger, the rules, and the meter.

use super::{AppError, Parts};
use crate::ingest::{self, Ingest};
use crate::platform::config::{Config, Live};
use crate::platform::http_kit::health::Health;
use crate::platform::telemetry::Policy;
use crate::rules::consumer;
use crate::usage::consumer as meter;
use std::sync::Arc;

/// The running consumers.
pub(super) struct Consumers {
    ingest: Ingest,
    rules: consumer::Consumer,
    meter: meter::Consumer,
}

pub(super) fn policy(config: &Config) -> Policy {
    let retention = &config.retention;
    Policy { default_days: retention.telemetry_days, tenant_days: retention.tenants.clone() }
}

impl Consumers {
    /// Starts them; each reads on from its own cursor.
    ///
    /// # Errors
    /// A cursor or the log cannot be read.
    pub(super) async fn start(config: &Live, parts: &Parts) -> Result<Self, AppError> {
        let (retention, feed) = (config.clone(), parts.page.feed.clone());
        let of_ingest = ingest::Parts {
            log: parts.log.clone(),
            store: parts.telemetry.clone(),
            clock: parts.clock.clone(),
            on_stored: vec![Box::new(move |batch| feed.on_stored(batch))],
            retention: Box::new(move || policy(&retention.get())),
        };
        let labels = parts.slices.devices.labels().clone();
        let changes = move || consumer::Changes { labels: labels.changes(), deletions: labels.deletions() };
        let (log, rules, of_meter) = (parts.log.clone(), parts.rules.clone(), parts.meter.clone());
        // They read their cursors before they return, so they start on a thread that may block.
        let start = move || -> Result<Self, AppError> {
            let ingest = Ingest::start(of_ingest)?;
            let rules = consumer::spawn(log.clone(), rules, changes)?;
            let meter = meter::spawn(log, of_meter)?;
            Ok(Self { ingest, rules, meter })
        };
        tokio::task::spawn_blocking(start).await.expect("starting the consumers does not panic")
    }

    /// The store's counters.
    pub(super) fn stored(&self) -> Arc<ingest::Progress> {
        self.ingest.progress()
    }

    /// The rules' counters.
    pub(super) fn ruled(&self) -> Arc<consumer::Progress> {
        self.rules.progress()
    }

    /// The meter's counters.
    pub(super) fn metered(&self) -> Arc<meter::Progress> {
        self.meter.progress()
    }

    /// Adds what `/readyz` asks of them.
    pub(super) fn add_checks(&self, health: &Health) {
        let conditions = [
            ("store", self.stored().condition.clone()),
            ("rules", self.ruled().condition.clone()),
            ("usage", self.metered().condition.clone()),
        ];
        let clickhouse = self.ingest.sending().map(|condition| ("clickhouse", condition));
        for (part, condition) in conditions.into_iter().chain(clickhouse) {
            health.add(part, move || std::future::ready(condition.check()));
        }
    }

    /// Stops after what they hold is committed. Blocks.
    pub(super) fn stop(mut self) {
        self.ingest.stop();
        self.rules.stop();
        self.meter.stop();
    }
}
