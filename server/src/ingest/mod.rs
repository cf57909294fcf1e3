//! Consumers of the event log: the store writer with its ledger, the tick, retention.
//!
//! Who calls me: `app.rs` starts [`Ingest`] once the log and the store are open. I call `platform::event_log`
//! and `platform::telemetry`; what was stored goes to the hooks given by `app.rs` (the live bus).
//!
//! Promise: the store's marks move with their effects; the log is released only after the flush is synced. A database
//! that fails is tried again, with growing pauses, from the cursor: nothing is skipped, the log fills up and the
//! gateway holds PUBACKs back. Stopping loses nothing.
//!
//! Threads: `ingest-store`, `ingest-tick`, `ingest-retention`; `ingest-sender` where readings go to ClickHouse.

pub mod api;
pub mod bench;
mod consumer;
mod progress;
pub mod queries;
mod retention;
mod sending;
pub mod skipped;
#[cfg(test)]
mod tests;
mod tick;
#[cfg(test)]
mod trials;
mod views;
#[cfg(test)]
mod within_tests;

pub use consumer::{
    BATCH_BYTES_MAX, BATCH_INTERVAL, Consumer, FLUSH_AFTER, IngestError, OnStored, SYNC_INTERVAL, Step,
};
pub use progress::Progress;
pub use retention::PolicySource;

use crate::platform::clock::SharedClock;
use crate::platform::condition::Condition;
use crate::platform::event_log::EventLog;
use crate::platform::telemetry::TelemetryStore;
use crate::platform::threads::{Stop, Threads};
use muster_journal::{Fs, RealFs};
use std::sync::Arc;
use std::time::Duration;

/// How long the sender waits for the store's last flush.
const LAST_FLUSH_TIME_MAX: Duration = Duration::from_secs(60);

/// The running consumers; dropping it stops them.
pub struct Ingest {
    threads: Threads,
    progress: Arc<Progress>,
    sending: Option<Condition>,
}

/// What [`Ingest::start`] needs.
pub struct Parts<F: Fs = RealFs> {
    /// The event log.
    pub log: EventLog<F>,
    /// The store.
    pub store: TelemetryStore,
    /// The clock.
    pub clock: SharedClock,
    /// Called after each commit, on the store's thread: they must not block.
    pub on_stored: Vec<OnStored>,
    /// How long telemetry is kept, asked before each pass.
    pub retention: PolicySource,
}

impl Ingest {
    /// Starts the threads. The store reads on from its cursor.
    ///
    /// # Errors
    /// The cursor cannot be read, the log cannot be read there, or a thread cannot be started.
    pub fn start<F: Fs>(parts: Parts<F>) -> Result<Self, IngestError> {
        let Parts { log, store, clock, on_stored, retention } = parts;
        let mut consumer = Consumer::begin(log.clone(), store.clone(), clock.clone(), on_stored)?;
        let sender = store.sender()?;
        let sending = sender.as_ref().map(|_| Condition::default());
        let (mut threads, progress) = (Threads::default(), consumer.progress());
        let flushed = Arc::new(Stop::default());
        let last_flush = flushed.clone();
        threads.background("ingest-store", move |stop| {
            consumer.run(stop);
            flushed.set();
        })?;
        if let Some((sender, condition)) = sender.zip(sending.clone()) {
            threads.background("ingest-sender", move |stop| {
                let sender = sending::run(sender, &condition, stop);
                last_flush.wait(LAST_FLUSH_TIME_MAX);
                sending::finish(sender);
            })?;
        }
        threads.background("ingest-tick", move |stop| tick::run(&log, stop))?;
        threads
            .background("ingest-retention", move |stop| retention::run(&store, &*clock, &retention, stop))?;
        Ok(Self { threads, progress, sending })
    }

    /// The store's counters and condition.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Whether ClickHouse takes what is sent; none where readings stay here.
    #[must_use]
    pub fn sending(&self) -> Option<Condition> {
        self.sending.clone()
    }

    /// Stops the threads and waits for them. What was not stored stays in the log.
    pub fn stop(&mut self) {
        self.threads.stop();
    }
}
