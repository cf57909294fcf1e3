//! The telemetry store: readings, events, ledger and the store's cursor, in one SQLite file.
//!
//! Who calls me: `ingest` applies batches of the log, flushes and runs retention; the API's slices read through the
//! query functions. I call `platform::db`.
//!
//! Promise: what was applied is seen at once. It stands in the memtable first and moves into the tables shard by shard;
//! a shard's rows, ledger, counters and mark are one commit, all or nothing (ADR 0016). A flush survives the process,
//! and a power cut once [`TelemetryStore::sync`] returned. The rest is applied again from the event log, which is
//! released behind the oldest mark that is synced (ADR 0015). A queue record is stored once however often it comes:
//! the ledger's stored ranges are the de-duplication. What is not stored is a dead letter with a reason, and `dropped(malformed)` in the ledger.
//! Readings are keyed (device, metric, ts, queue, class, seq, index), so a clock that restarts in 1970 overwrites
//! nothing. Foreign SenML is keyed by (log epoch, position), or by name and time where the pack has an absolute
//! time (then a pack that comes again within a day of `received_at` changes nothing).
//!
//! Readings and events live here, or in ClickHouse ([`clickhouse`], ADR 0018); everything else is always here.
//!
//! Architecture invariant: only `flush` inserts readings or packs them, and only with the cursor in the same closure.
//!
//! Limits: the memtable's bounds in `memtable`, 1,000 metrics a device, [`DEAD_LETTERS_PER_TENANT_MAX`] dead letters a tenant, the ledger's bounds in
//! `ledger`, [`LIVE_ITEMS_MAX`] live items a batch, [`POINTS_MAX`] points, [`STEPS_MAX`] steps and 10 s a query.

mod accounts;
mod batch;
pub mod clickhouse;
mod cursor;
mod erase;
mod error;
mod faults;
mod flush;
mod incoming;
mod ledger;
mod lists;
mod memtable;
mod names;
mod partition;
mod query;
mod ranges;
mod read_out;
mod remote;
mod retention;
mod seen;
mod tally;
#[cfg(test)]
mod tests;
mod view;
mod writer;

pub use accounts::{
    DeviceLedger, DroppedRange, MergedQueues, QueueLedger, SeqRange, Totals, device_ledger, totals,
};
pub use batch::{RawBatch, StoredBatch, StoredItem, StoredWhat};
pub use cursor::{LogSpan, STORE_READER, Start};
pub use erase::{Erased, LogPlace};
pub use error::TelemetryError;
pub use faults::{CrashPoint, Faults};
pub use ledger::{QUEUES_PER_DEVICE_MAX, RANGES_PER_QUEUE_MAX, TOMBSTONES_PER_CLASS};
pub use lists::{
    DeadLetter, EventQuery, EventRow, LIST_MAX, LostRange, RejectedRow, dead_letters, events, lost_ranges,
    rejected,
};
pub use memtable::{DIRTY_QUEUES_MAX, ENTRIES_MAX, SENT_ROWS_MAX, SHARD_ENTRIES_MAX, SHARDS};
pub use partition::DAY_US;
pub use query::{
    Aggregate, LastValue, POINTS_MAX, Point, Points, ReadingsQuery, STEPS_MAX, last_values, readings,
};
pub use read_out::{Part, ReadOut};
pub use retention::{Policy, Retained};
pub use seen::{LastSeen, last_seen};
pub use tally::{DEAD_LETTER_BYTES_MAX, DEAD_LETTERS_PER_TENANT_MAX};
pub use view::View;

use super::db::sqlite::{self, Db, SqlValue, Tx};
use super::db::{DbError, Scope};
use memtable::Memtable;
use muster_journal::{Fs as _, RealFs};
use muster_wire::{EventKind, Value};
use remote::Remote;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
/// Shards that become one block for ClickHouse: it takes few large blocks better than many small ones.
const SHARDS_A_BLOCK: usize = 8;

/// How the store is opened.
#[derive(Clone)]
pub struct Options {
    /// Whether commits wait for the disk.
    pub sync: sqlite::Sync,
    /// Free bytes of the disk that batches leave to others.
    pub disk_reserve_bytes: u64,
    /// Where readings and events go, where they do not stay in the file.
    pub clickhouse: Option<clickhouse::Options>,
    /// How long rows are kept, until [`TelemetryStore::retain`] is told.
    pub policy: Policy,
    /// Where a test stops it.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync: sqlite::Sync::ByCaller,
            disk_reserve_bytes: 0,
            clickhouse: None,
            policy: Policy::default(),
            faults: Faults::none(),
        }
    }
}

/// A handle to telemetry.db; clones share it.
#[derive(Clone)]
pub struct TelemetryStore {
    db: Db,
    memtable: Arc<Mutex<Memtable>>,
    /// What it holds, for who cannot wait for it.
    entries: Arc<AtomicUsize>,
    path: Arc<Path>,
    dir: Arc<Path>,
    sync: sqlite::Sync,
    sync_failed: Arc<AtomicBool>,
    disk_reserve_bytes: u64,
    remote: Option<Arc<Remote>>,
    /// Up to where somebody waits for the log to be applied.
    awaited: Arc<AtomicU64>,
    policy: Arc<Mutex<Policy>>,
    faults: Faults,
}

impl TelemetryStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened or migrated.
    pub fn open(path: &Path, options: Options) -> Result<Self, TelemetryError> {
        let migrations = migrations(path)?;
        let tuning = sqlite::Options {
            readers: READERS,
            cache_kib: CACHE_KIB,
            checkpoint_pages: CHECKPOINT_PAGES,
            sync: options.sync,
            read_time_max: Some(READ_TIME_MAX),
            // An erasure turns it on for what it deletes.
            overwrites: false,
        };
        let db = Db::open_with(path, refinery::Runner::new(&migrations), tuning)?;
        let remote = match &options.clickhouse {
            Some(clickhouse) => Some(Arc::new(Remote::open(&db, clickhouse)?)),
            None => match db.read_blocking(clickhouse::open_blocks)? {
                0 => None,
                blocks => return Err(TelemetryError::BlocksWait { blocks }),
            },
        };
        let Options { disk_reserve_bytes, faults, sync, policy, .. } = options;
        Ok(Self {
            db,
            memtable: Arc::default(),
            entries: Arc::default(),
            path: path.into(),
            dir: path.parent().unwrap_or(Path::new(".")).into(),
            sync,
            sync_failed: Arc::default(),
            disk_reserve_bytes,
            remote,
            awaited: Arc::default(),
            policy: Arc::new(Mutex::new(policy)),
            faults,
        })
    }

    /// The database, for the query functions.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Runs a query on one snapshot of tables and memtable. It is ended where the future is dropped, and after 10 s.
    ///
    /// # Errors
    /// The closure's own, or the database's.
    pub async fn read<T, E>(
        &self,
        work: impl FnOnce(&mut View<'_, '_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let memtable = self.memtable.clone();
        self.db.read(move |tx| work(&mut View::new(tx, &memtable))).await
    }

    /// As [`Self::read`], for threads outside the async runtime, and however long it takes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_blocking<T, E>(
        &self,
        work: impl FnOnce(&mut View<'_, '_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let memtable = self.memtable.clone();
        self.db.read_blocking(move |tx| work(&mut View::new(tx, &memtable)))
    }

    /// Readings of one metric over a range.
    ///
    /// # Errors
    /// The database or ClickHouse failed.
    pub async fn readings(&self, scope: &Scope, query: &ReadingsQuery) -> Result<Points, DbError> {
        match self.remote.clone() {
            Some(remote) => self.remote_readings(&remote, scope, query).await,
            None => {
                let (scope, query) = (scope.clone(), query.clone());
                self.read(move |view| query::readings(view, &scope, &query)).await
            }
        }
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// The database or ClickHouse failed.
    pub async fn events(&self, scope: &Scope, query: &EventQuery) -> Result<Vec<EventRow>, DbError> {
        match self.remote.clone() {
            Some(remote) => self.remote_events(&remote, scope, query).await,
            None => {
                let (scope, query) = (scope.clone(), query.clone());
                self.read(move |view| lists::events(view, &scope, &query)).await
            }
        }
    }

    /// Finds where to read on in a log, records what is lost, and puts the cursor there. What the memtable held is
    /// thrown away: the log has it.
    ///
    /// # Errors
    /// The database failed.
    pub fn begin(&self, log: LogSpan, now_us: i64) -> Result<Start, TelemetryError> {
        self.forget();
        let (start, position) = self.db.write_blocking(move |tx| cursor::begin(tx, log, now_us))?;
        let outbox = self.db.read_blocking(clickhouse::state)?;
        let mut memtable = self.memtable();
        memtable.position = Some(position);
        memtable.confirm(outbox.confirmed);
        memtable.events_wait = self.remote.is_some();
        Ok(start)
    }

    /// Stores a batch. After an error nothing of it is stored, and nothing that was not flushed: call
    /// [`Self::begin`] and read again, unless the error [`TelemetryError::is_before_anything`].
    ///
    /// # Errors
    /// The database failed, the disk is full, or the store does not stand at the batch's begin.
    pub fn apply(&self, batch: RawBatch, live: bool) -> Result<StoredBatch, TelemetryError> {
        self.leave_reserve()?;
        if self.remote.is_some() && self.memtable().overfull().is_some() {
            self.leave_outbox_bound()?;
        }
        self.change(move |tx, memtable, faults| writer::apply(tx, memtable, &batch, live, faults))
    }

    /// Flushes what is over the memtable's bounds, the fullest shards first. Says whether there was any.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn flush_overfull(&self) -> Result<bool, TelemetryError> {
        let mut any = false;
        while let Some(shard) = { self.memtable().overfull() } {
            self.flush(shard)?;
            any = true;
        }
        Ok(any)
    }

    /// Flushes the next shard in turn that holds something. Says whether there was one.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn flush_next(&self) -> Result<bool, TelemetryError> {
        let next = self.memtable().next_in_turn();
        let Some(shard) = next else { return self.flush_events() };
        self.memtable().turn = Memtable::group_of(shard, self.shards_at_once()).end - 1;
        self.flush(shard).map(|()| true)
    }

    /// Flushes all that the memtable holds.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn flush_all(&self) -> Result<(), TelemetryError> {
        while self.flush_next()? {}
        Ok(())
    }

    fn flush(&self, shard: usize) -> Result<(), TelemetryError> {
        self.leave_reserve()?;
        self.leave_outbox_bound()?;
        let (ats, sink) = (Memtable::group_of(shard, self.shards_at_once()), self.sink());
        self.change(move |tx, memtable, faults| flush::shards(tx, memtable, &ats, &sink, faults))?;
        self.note_made()?;
        self.faults.reach(CrashPoint::AfterFlush)
    }

    /// How long between two flushes, so that everything is flushed within `all`.
    #[must_use]
    pub fn flush_interval(&self, all: Duration) -> Duration {
        all * self.shards_at_once() as u32 / SHARDS as u32
    }

    /// Records and readings that the memtable holds.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether the memtable holds anything.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let memtable = self.memtable();
        memtable.next_in_turn().is_some() || (self.remote.is_some() && memtable.events_wait)
    }

    /// Moves the cursor over what needs no flush, and tells below which position everything is in the tables: where
    /// the log may be released to after the next [`Self::sync`].
    ///
    /// # Errors
    /// The database failed.
    pub fn settle(&self) -> Result<u64, TelemetryError> {
        let needed = {
            let memtable = self.memtable();
            let Some(at) = &memtable.position else { return Ok(0) };
            memtable.marks_after(at, &(0..0)).oldest() > at.marks.oldest()
        };
        if needed {
            self.change(|tx, memtable, _| flush::settle(tx, memtable))?;
        }
        Ok(self.memtable().position.as_ref().map_or(0, |at| at.marks.oldest()))
    }

    /// Runs a change of tables and memtable; where it fails the memtable goes.
    fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tx<'_>, &mut Memtable, &Faults) -> Result<T, TelemetryError> + Send + 'static,
    ) -> Result<T, TelemetryError> {
        let (memtable, faults, entries) = (self.memtable.clone(), self.faults.clone(), self.entries.clone());
        let changed = self.db.write_blocking(move |tx| {
            let mut memtable = memtable.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = change(tx, &mut memtable, &faults);
            if changed.as_ref().is_err_and(|error| !matches!(error, TelemetryError::CursorMoved { .. })) {
                // Nobody is to see what is half done.
                memtable.forget();
            }
            entries.store(memtable.entries(), Ordering::Relaxed);
            changed
        });
        match &changed {
            Ok(_) | Err(TelemetryError::CursorMoved { .. }) => {}
            Err(error) if error.is_before_anything() => {}
            Err(_) => self.forget(),
        }
        changed
    }

    fn memtable(&self) -> MutexGuard<'_, Memtable> {
        self.memtable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every flush durable. A sync that failed is never tried again: the kernel may have
    /// dropped what it could not write, and the next sync would succeed without it.
    ///
    /// # Errors
    /// The disk failed, now or before.
    pub fn sync(&self) -> Result<(), TelemetryError> {
        if self.sync_failed.load(Ordering::Relaxed) {
            return Err(TelemetryError::SyncFailed);
        }
        let made = self.remote.as_ref().map_or(0, |remote| remote.made.load(Ordering::Acquire));
        if self.sync == sqlite::Sync::ByCaller {
            sqlite::sync_wal(&self.path).map_err(|source| {
                self.sync_failed.store(true, Ordering::Relaxed);
                TelemetryError::Sync(source)
            })?;
        }
        if let Some(remote) = &self.remote {
            remote.synced.store(made, Ordering::Release);
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

    /// Throws the memtable away: it may hold what was rolled back.
    fn forget(&self) {
        self.memtable().forget();
        self.entries.store(0, Ordering::Relaxed);
    }
}

fn migrations(path: &Path) -> Result<Vec<refinery::Migration>, DbError> {
    let files = [
        ("V1__telemetry", include_str!("schema_v1.sql")),
        ("V2__marks", include_str!("schema_v2.sql")),
        ("V3__outbox", include_str!("schema_v3.sql")),
    ];
    let made = files.into_iter().map(|(name, sql)| refinery::Migration::unapplied(name, sql));
    made.collect::<Result<_, _>>()
        .map_err(|error| DbError::Migrate { database: path.display().to_string(), why: error.to_string() })
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
