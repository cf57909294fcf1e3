//! The store's side of ClickHouse: how far the outbox got, and its bound.

use super::clickhouse::{self, ClickHouse, ClickHouseError, Outbox};
use super::flush::{self, Sink};
use super::retention::Policy;
use super::{SHARDS_A_BLOCK, TelemetryError, TelemetryStore};
use crate::platform::db::sqlite::Db;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

/// Where readings and events go, and how far they got.
pub(super) struct Remote {
    pub(super) options: Arc<clickhouse::Options>,
    /// For queries, on the runtime that asks.
    client: ClickHouse,
    /// The newest batch that was made, and the newest that a power cut cannot take back.
    pub(super) made: AtomicI64,
    pub(super) synced: AtomicI64,
    /// Odd while nobody knows whether ClickHouse has a block; grows with each block.
    pub(super) turn: AtomicU64,
}

impl Remote {
    pub(super) fn client(&self) -> &ClickHouse {
        &self.client
    }

    /// Asks on a thread that may block. Connections live on a runtime, and this one ends with the question.
    pub(super) fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&ClickHouse) -> Result<T, ClickHouseError>,
    ) -> Result<T, TelemetryError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(TelemetryError::Runtime)?;
        let clickhouse = ClickHouse::new(self.options.clone())?;
        Ok(runtime.block_on(question(&clickhouse))?)
    }
}

impl Remote {
    pub(super) fn open(db: &Db, options: &clickhouse::Options) -> Result<Self, TelemetryError> {
        let options = Arc::new(options.clone());
        let client = ClickHouse::new(options.clone())?;
        // What a run before this one committed is synced when the store begins.
        let made = db.read_blocking(clickhouse::state)?.made;
        Ok(Self {
            options,
            client,
            made: AtomicI64::new(made),
            synced: AtomicI64::new(0),
            turn: AtomicU64::new(0),
        })
    }
}

impl TelemetryStore {
    /// Packs events for ClickHouse where nothing else waits. Says whether there were any.
    pub(super) fn flush_events(&self) -> Result<bool, TelemetryError> {
        if self.remote.is_none() || !self.memtable().events_wait {
            return Ok(false);
        }
        self.leave_reserve()?;
        self.leave_outbox_bound()?;
        let policy = self.policy();
        self.change(move |tx, memtable, _| flush::events(tx, memtable, &policy))?;
        self.note_made()?;
        Ok(self.memtable().events_wait)
    }

    /// Shards that are flushed together.
    pub(super) fn shards_at_once(&self) -> usize {
        if self.remote.is_some() { SHARDS_A_BLOCK } else { 1 }
    }

    pub(super) fn sink(&self) -> Sink {
        if self.remote.is_some() { Sink::Outbox(self.policy()) } else { Sink::Tables }
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_policy(&self, policy: &Policy) {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone_from(policy);
    }

    pub(super) fn leave_outbox_bound(&self) -> Result<(), TelemetryError> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let (bytes, max) = (self.outbox()?.bytes, remote.options.outbox_bytes_max);
        if bytes > max { Err(TelemetryError::Behind { bytes, max }) } else { Ok(()) }
    }

    /// What waits for ClickHouse.
    ///
    /// # Errors
    /// The database failed.
    pub fn outbox(&self) -> Result<Outbox, TelemetryError> {
        Ok(self.db.read_blocking(clickhouse::held)?)
    }

    pub(super) fn note_made(&self) -> Result<(), TelemetryError> {
        if let Some(remote) = &self.remote {
            remote.made.store(self.db.read_blocking(clickhouse::state)?.made, Ordering::Release);
        }
        Ok(())
    }

    /// Whether blocks wait for a sync before they may be sent.
    #[must_use]
    pub fn has_unsynced_blocks(&self) -> bool {
        self.remote
            .as_ref()
            .is_some_and(|remote| remote.made.load(Ordering::Acquire) > remote.synced.load(Ordering::Acquire))
    }
}
