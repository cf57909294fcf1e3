//! The telemetry store: readings, events, ledger and the store's cursor, in one SQLite file.
//!
//! Who calls me: `ingest` writes batches of the log and runs retention; the API's slices read through the
//! query functions. I call `platform::db`.
//!
//! Promise: one batch is one commit: rows, dead letters, rejected, ledger, cursor; all or nothing. A commit is seen
//! at once and survives the process; it survives a power cut once [`TelemetryStore::sync`] returned. What a power
//! cut took is stored again from the event log, which is released behind the sync (ADR 0015). A queue record is stored once however often it comes: the ledger's stored ranges are
//! the de-duplication. What is not stored is a dead letter with a reason, and `dropped(malformed)` in the ledger.
//! Readings are keyed (device, metric, ts, queue, class, seq, index), so a clock that restarts in 1970 overwrites
//! nothing. Foreign SenML is keyed by (log epoch, position), or by name and time where the pack has an absolute
//! time (then a pack that comes again within a day of `received_at` changes nothing).
//!
//! Architecture invariant: only `writer` inserts readings, and only with the cursor in the same closure.
//!
//! Limits: 1,000 metrics a device, [`DEAD_LETTERS_PER_TENANT_MAX`] dead letters a tenant, the ledger's bounds in
//! `ledger`, [`LIVE_ITEMS_MAX`] live items a batch, [`POINTS_MAX`] points, [`STEPS_MAX`] steps and 10 s a query.

mod accounts;
mod batch;
mod cursor;
mod faults;
mod ledger;
mod lists;
mod names;
mod partition;
mod query;
mod ranges;
mod retention;
mod seen;
mod tally;
#[cfg(test)]
mod tests;
mod writer;

pub use accounts::{
    DeviceLedger, DroppedRange, MergedQueues, QueueLedger, SeqRange, Totals, device_ledger, totals,
};
pub use batch::{RawBatch, StoredBatch, StoredItem, StoredWhat};
pub use cursor::{LogSpan, STORE_READER, Start};
pub use faults::{CrashPoint, Faults};
pub use ledger::{QUEUES_PER_DEVICE_MAX, RANGES_PER_QUEUE_MAX, TOMBSTONES_PER_CLASS};
pub use lists::{
    DeadLetter, EventQuery, EventRow, LIST_MAX, LostRange, RejectedRow, dead_letters, events, lost_ranges,
    rejected,
};
pub use partition::DAY_US;
pub use query::{
    Aggregate, LastValue, POINTS_MAX, Point, Points, ReadingsQuery, STEPS_MAX, last_values, readings,
};
pub use retention::{Policy, Retained};
pub use seen::{LastSeen, last_seen};
pub use tally::{DEAD_LETTER_BYTES_MAX, DEAD_LETTERS_PER_TENANT_MAX};

use super::db::{self, Db, DbError, Scope, SqlValue, Tx};
use muster_journal::{Fs as _, RealFs};
use muster_wire::{EventKind, Value};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use writer::WriterState;

/// Live items that one batch may carry; the rest is counted.
pub const LIVE_ITEMS_MAX: usize = 2_048;
/// A reading whose `ts` is further than this from its `received_at` is flagged: the device's clock is wrong, or
/// the reading waited in the queue for more than a day.
pub const CLOCK_SUSPECT_US: i64 = DAY_US;

/// Page cache of each connection.
const CACHE_KIB: u32 = 8 * 1024;
/// 32 MiB of write-ahead log: pages that are written often are copied into the file once.
const CHECKPOINT_PAGES: u32 = 8 * 1024;
/// Reader threads: [`SERIES_READS_MAX`] for long queries, and one more that short ones always find.
const READERS: usize = SERIES_READS_MAX + 1;
/// Queries of readings that should run at once.
pub const SERIES_READS_MAX: usize = 2;
/// The longest query: under the HTTP timeout (30 s), so that its caller is told why.
const READ_TIME_MAX: Duration = Duration::from_secs(10);

/// Why the store cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The database failed; nothing of the batch is stored.
    #[error("telemetry store")]
    Db(#[from] DbError),
    /// The batch does not begin where the cursor stands.
    #[error("the cursor does not stand at {from}")]
    CursorMoved {
        /// Where the batch begins.
        from: u64,
    },
    /// The disk has nothing left but its reserve; nothing of the batch is stored.
    #[error("the disk is full: {free} bytes are free, {reserve} are reserved for the registry")]
    DiskReserve {
        /// Bytes that are free.
        free: u64,
        /// Bytes that the store leaves.
        reserve: u64,
    },
    /// The disk failed while it was synced: what of the commits is on it is not known before the next start.
    #[error("the store's write-ahead log could not be synced; nothing more is released until a restart")]
    Sync(#[source] std::io::Error),
    /// As [`Self::Sync`], and it happened before.
    #[error("the store's write-ahead log could not be synced earlier; restart the server")]
    SyncFailed,
    /// A test stopped the store.
    #[error("stopped by a test at {0:?}")]
    Crashed(CrashPoint),
}

/// How the store is opened.
#[derive(Clone)]
pub struct Options {
    /// Whether commits wait for the disk.
    pub sync: db::Sync,
    /// Free bytes of the disk that batches leave to others.
    pub disk_reserve_bytes: u64,
    /// Where a test stops it.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self { sync: db::Sync::ByCaller, disk_reserve_bytes: 0, faults: Faults::none() }
    }
}

/// A handle to telemetry.db; clones share it.
#[derive(Clone)]
pub struct TelemetryStore {
    db: Db,
    state: Arc<Mutex<WriterState>>,
    path: Arc<Path>,
    dir: Arc<Path>,
    sync: db::Sync,
    sync_failed: Arc<AtomicBool>,
    disk_reserve_bytes: u64,
    faults: Faults,
}

impl TelemetryStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub fn open(path: &Path, options: Options) -> Result<Self, TelemetryError> {
        let first = refinery::Migration::unapplied("V1__telemetry", include_str!("schema_v1.sql"));
        let migrations =
            first.map_err(|error| DbError::Migrate { path: path.to_owned(), why: error.to_string() })?;
        let tuning = db::Options {
            readers: READERS,
            cache_kib: CACHE_KIB,
            checkpoint_pages: CHECKPOINT_PAGES,
            sync: options.sync,
            read_time_max: Some(READ_TIME_MAX),
        };
        let db = Db::open_with(path, refinery::Runner::new(&[migrations]), tuning)?;
        let Options { disk_reserve_bytes, faults, sync } = options;
        let dir = path.parent().unwrap_or(Path::new(".")).into();
        let (state, sync_failed) = (Arc::default(), Arc::default());
        Ok(Self { db, state, path: path.into(), dir, sync, sync_failed, disk_reserve_bytes, faults })
    }

    /// The database, for the query functions.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Finds where to read on in a log, records what is lost, and puts the cursor there.
    ///
    /// # Errors
    /// The database failed.
    pub fn begin(&self, log: LogSpan, now_us: i64) -> Result<Start, TelemetryError> {
        self.forget();
        self.db.write_blocking(move |tx| cursor::begin(tx, log, now_us))
    }

    /// Stores a batch in one commit. After an error nothing of it is stored: call [`Self::begin`] and read again.
    ///
    /// # Errors
    /// The database failed, the disk is full, or the cursor does not stand at the batch's begin.
    pub fn write_batch(&self, batch: RawBatch, live: bool) -> Result<StoredBatch, TelemetryError> {
        self.leave_reserve()?;
        let (state, faults) = (self.state.clone(), self.faults.clone());
        let written = self.db.write_blocking(move |tx| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            writer::write(tx, &mut state, &batch, live, &faults)
        });
        if written.is_err() {
            self.forget();
        }
        written
    }

    /// Makes every batch that was written durable. A sync that failed is never tried again: the kernel may have
    /// dropped what it could not write, and the next sync would succeed without it.
    ///
    /// # Errors
    /// The disk failed, now or before.
    pub fn sync(&self) -> Result<(), TelemetryError> {
        if self.sync_failed.load(Ordering::Relaxed) {
            return Err(TelemetryError::SyncFailed);
        }
        if self.sync == db::Sync::ByCaller {
            db::sync_wal(&self.path).map_err(|source| {
                self.sync_failed.store(true, Ordering::Relaxed);
                TelemetryError::Sync(source)
            })?;
        }
        self.faults.reach(CrashPoint::AfterSync)
    }

    /// Retention may use the reserve, since it ends with more space than it began with.
    fn leave_reserve(&self) -> Result<(), TelemetryError> {
        let reserve = self.disk_reserve_bytes;
        match RealFs.free_bytes(&self.dir) {
            Ok(free) if free < reserve => Err(TelemetryError::DiskReserve { free, reserve }),
            // Where nobody knows what is free, the database finds out.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Where tests stop the store.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Throws the caches away: they may hold what was rolled back.
    fn forget(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = WriterState::default();
    }
}

/// A tenant's row, None for every tenant's (`Scope::System`), and an error-free way to say that it has none.
fn tenant_of(tx: &mut Tx<'_>, scope: &Scope) -> Result<TenantFilter, DbError> {
    let Scope::Tenant(tenant) = scope else { return Ok(TenantFilter::All) };
    const FIND: &str = "SELECT id FROM tenant WHERE name = $1";
    let id = tx.query_opt(FIND, &[&tenant.as_str()], |row| row.get::<i64>(0))?;
    Ok(id.map_or(TenantFilter::None, TenantFilter::One))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TenantFilter {
    /// Nothing was ever stored of this tenant.
    None,
    One(i64),
    All,
}

impl TenantFilter {
    /// For `($n IS NULL OR tenant_id = $n)`.
    fn id(self) -> Option<i64> {
        match self {
            Self::None => Some(-1),
            Self::One(id) => Some(id),
            Self::All => None,
        }
    }
}

/// A device's row. Under `Scope::System` the name must be the only one of its kind.
fn device_of(tx: &mut Tx<'_>, scope: &Scope, device: &str) -> Result<Option<i64>, DbError> {
    let tenant = tenant_of(tx, scope)?.id();
    const FIND: &str = "SELECT id FROM device WHERE ($1 IS NULL OR tenant_id = $1) AND name = $2 LIMIT 2";
    let found: Vec<i64> = tx.query(FIND, &[&tenant, &device], |row| row.get::<i64>(0))?;
    Ok(if let [id] = found[..] { Some(id) } else { None })
}

fn kind_text(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Classification => "classification",
        EventKind::Anomaly => "anomaly",
        EventKind::Detection => "detection",
    }
}

fn from_sql(value: SqlValue) -> Value {
    match value {
        SqlValue::Integer(flag) => Value::Bool(flag != 0),
        SqlValue::Real(number) => Value::Number(number),
        SqlValue::Text(text) => Value::Text(text),
        SqlValue::Null | SqlValue::Blob(_) => Value::Text(String::new()),
    }
}

fn is_suspect(ts: i64, received_at: i64) -> bool {
    ts.abs_diff(received_at) > CLOCK_SUSPECT_US.unsigned_abs()
}
