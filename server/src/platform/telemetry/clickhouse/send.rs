//! Moves the outbox into ClickHouse: one block after the other, each until it is acknowledged.

use super::super::{CrashPoint, TelemetryError, TelemetryStore};
use super::outbox::{self, Kind, Waiting};
use super::{ClickHouse, ClickHouseError};
use crate::platform::db::DbError;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The longest pause between two bytes of a block on their way, and until the server has inserted it.
const SEND_TIME_MAX: Duration = Duration::from_secs(20);
const INSERT_TIME_MAX: Duration = Duration::from_secs(120);
const READING_COLUMNS: &str = "tenant, device, metric, ts, received_at, kind, number, text, queue_id, class, seq, idx, batch, retention_days";
const EVENT_COLUMNS: &str = "tenant, device, received_at, id, measured_at, kind, pipeline, model, model_version, label, \
     score, subject, latency_us, boxes, queue_id, class, seq, batch, retention_days";

/// The one that inserts; it has a runtime of its own and is used on one thread.
pub struct Sender {
    store: TelemetryStore,
    clickhouse: ClickHouse,
    runtime: tokio::runtime::Runtime,
    /// The tables are there.
    is_prepared: bool,
}

impl TelemetryStore {
    /// The sender, where readings go to ClickHouse.
    ///
    /// # Errors
    /// A file that the configuration names cannot be read, or a thread's runtime cannot be made.
    pub fn sender(&self) -> Result<Option<Sender>, TelemetryError> {
        let Some(remote) = &self.remote else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(TelemetryError::Runtime)?;
        let clickhouse = ClickHouse::new(remote.options.clone())?;
        Ok(Some(Sender { store: self.clone(), clickhouse, runtime, is_prepared: false }))
    }
}

impl Sender {
    /// Inserts the oldest block that is synced. Says whether there was one. After an error it is still there.
    ///
    /// # Errors
    /// ClickHouse cannot be reached or refused the block; telemetry.db failed.
    pub fn send_next(&mut self) -> Result<bool, TelemetryError> {
        if !self.is_prepared {
            self.runtime.block_on(self.clickhouse.prepare())?;
            self.is_prepared = true;
        }
        let synced = self.store.synced();
        let Some(waiting) = self.store.db.read_blocking(move |tx| outbox::oldest(tx, synced))? else {
            return Ok(false);
        };
        let (batch, events_to) = (waiting.batch, waiting.events_to);
        self.store.faults.reach(CrashPoint::BeforeInsert)?;
        self.store.inserting();
        let inserted = self.runtime.block_on(insert(&self.clickhouse, waiting));
        if let Err(ClickHouseError::Refused { .. }) = &inserted {
            // The tables may be gone; a server that comes back empty gets them again.
            self.is_prepared = false;
        }
        inserted?;
        self.store.faults.reach(CrashPoint::AfterInsert)?;
        self.store.confirm(batch, events_to)?;
        self.store.faults.reach(CrashPoint::AfterConfirm)?;
        Ok(true)
    }

    /// Whether ClickHouse answers, where nothing waits for it.
    ///
    /// # Errors
    /// It does not, or refuses the user.
    pub fn check(&mut self) -> Result<(), TelemetryError> {
        Ok(self.runtime.block_on(self.clickhouse.check())?)
    }

    pub(super) fn store(&self) -> &TelemetryStore {
        &self.store
    }

    pub(super) fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&ClickHouse) -> Result<T, ClickHouseError>,
    ) -> Result<T, TelemetryError> {
        Ok(self.runtime.block_on(work(&self.clickhouse))?)
    }
}

async fn insert(clickhouse: &ClickHouse, waiting: Waiting) -> Result<(), ClickHouseError> {
    let (table, columns) = match waiting.kind {
        Kind::Readings => ("readings", READING_COLUMNS),
        Kind::Events => ("events", EVENT_COLUMNS),
    };
    // The block is in its frame already.
    let client = clickhouse
        .client()
        .with_compression(clickhouse::Compression::None)
        .with_header("Content-Encoding", "lz4")
        .with_setting("insert_deduplicate", "1")
        .with_setting("insert_deduplication_token", &waiting.token)
        // A server that died between the table and its views fills the views when the block comes again.
        .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
        .with_setting("async_insert", "0")
        .with_setting("wait_end_of_query", "1");
    let mut insert = client
        .insert_formatted_with(format!("INSERT INTO {table} ({columns}) FORMAT Native"))
        .with_timeouts(Some(SEND_TIME_MAX), Some(INSERT_TIME_MAX));
    insert.send(waiting.block.into()).await.map_err(|error| clickhouse.error(error))?;
    insert.end().await.map_err(|error| clickhouse.error(error))
}

impl TelemetryStore {
    /// The newest batch that a power cut cannot take back.
    fn synced(&self) -> i64 {
        self.remote.as_ref().map_or(0, |remote| remote.synced.load(Ordering::Acquire))
    }

    /// From here to the confirmation nobody knows whether ClickHouse has the block.
    fn inserting(&self) {
        if let Some(remote) = &self.remote {
            remote.turn.fetch_or(1, Ordering::AcqRel);
        }
    }

    /// ClickHouse has a block: queries find it there.
    fn confirm(&self, batch: i64, events_to: i64) -> Result<(), DbError> {
        let memtable = self.memtable.clone();
        let confirmed = self.db.write_blocking(move |tx| {
            outbox::confirm(tx, batch, events_to)?;
            memtable.lock().unwrap_or_else(PoisonError::into_inner).confirm(batch);
            Ok::<_, DbError>(())
        });
        if let Some(remote) = self.remote.as_ref().filter(|_| confirmed.is_ok()) {
            remote.turn.fetch_add(1, Ordering::AcqRel);
        }
        confirmed
    }
}
