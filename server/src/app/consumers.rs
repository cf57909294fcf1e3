//! The event log's consumers: the store with its ledger, and the rules.

use super::{AppError, Parts};
use crate::ingest::{self, Ingest};
use crate::platform::config::{Config, Live};
use crate::platform::http_kit::health::Health;
use crate::platform::telemetry::Policy;
use crate::rules::consumer;
use std::sync::Arc;

/// The running consumers.
pub(super) struct Consumers {
    ingest: Ingest,
    rules: consumer::Consumer,
}

fn policy(config: &Config) -> Policy {
    let retention = &config.retention;
    Policy { default_days: retention.telemetry_days, tenant_days: retention.tenants.clone() }
}

impl Consumers {
    /// Starts them; each reads on from its own cursor.
    ///
    /// # Errors
    /// A cursor or the log cannot be read.
    pub(super) async fn start(config: &Live, parts: &Parts) -> Result<Self, AppError> {
        let (retention, feed) = (config.clone(), parts.slices.page.feed.clone());
        let of_ingest = ingest::Parts {
            log: parts.log.clone(),
            store: parts.telemetry.clone(),
            clock: parts.clock.clone(),
            on_stored: vec![Box::new(move |batch| feed.on_stored(batch))],
            retention: Box::new(move || policy(&retention.get())),
        };
        let labels = parts.slices.devices.labels().clone();
        let changes = move || consumer::Changes { labels: labels.changes(), deletions: labels.deletions() };
        let (log, rules) = (parts.log.clone(), parts.rules.clone());
        // They read their cursors before they return, so they start on a thread that may block.
        let start = move || -> Result<Self, AppError> {
            let ingest = Ingest::start(of_ingest)?;
            let rules = consumer::spawn(log, rules, changes)?;
            Ok(Self { ingest, rules })
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

    /// Adds what `/readyz` asks of them.
    pub(super) fn add_checks(&self, health: &Health) {
        let conditions =
            [("store", self.stored().condition.clone()), ("rules", self.ruled().condition.clone())];
        for (part, condition) in conditions {
            health.add(part, move || std::future::ready(condition.check()));
        }
    }

    /// Stops after what they hold is committed. Blocks.
    pub(super) fn stop(mut self) {
        self.ingest.stop();
        self.rules.stop();
    }
}
