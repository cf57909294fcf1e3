//! The event log's consumers: the store with its ledger, and the rules.

use super::{AppError, Parts};
use crate::ingest::{self, Ingest};
use crate::platform::config::{Config, Live};
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
    pub(super) fn start(config: &Live, parts: &Parts) -> Result<Self, AppError> {
        let config = config.clone();
        let ingest = Ingest::start(ingest::Parts {
            log: parts.log.clone(),
            store: parts.telemetry.clone(),
            clock: parts.clock.clone(),
            on_stored: Vec::new(),
            retention: Box::new(move || policy(&config.get())),
        })?;
        let labels = parts.slices.devices.labels().clone();
        let rules = consumer::spawn(parts.log.clone(), parts.rules.clone(), move || labels.changes())?;
        Ok(Self { ingest, rules })
    }

    /// The rules' counters.
    pub(super) fn progress(&self) -> Arc<consumer::Progress> {
        self.rules.progress()
    }

    /// Stops after what they hold is committed. Blocks.
    pub(super) fn stop(mut self) {
        self.ingest.stop();
        self.rules.stop();
    }
}
