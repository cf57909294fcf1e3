//! Places where a test stops the store, between each two steps of a record's way. Free of cost otherwise:
//! one check of a `None` a batch.

use super::TelemetryError;
use std::sync::Arc;

/// Between which steps. The log's own two (appended, fsynced) need no hook: a test cuts the log there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashPoint {
    /// A batch was read from the log.
    AfterRead,
    /// It is in the memtable, and its direct effects are written: only the commit is missing.
    AfterApply,
    /// Committed.
    AfterCommit,
    /// A shard's rows are inserted, not committed.
    AfterRows,
    /// Its ledger and counters too.
    AfterLedger,
    /// Its mark too: only the commit is missing.
    AfterCursor,
    /// The shard is in the tables, not synced.
    AfterFlush,
    /// Synced; the log was not told.
    AfterSync,
    /// The log was told.
    AfterRelease,
    /// A block of the outbox was read, to be sent to ClickHouse.
    BeforeInsert,
    /// ClickHouse acknowledged it; it is still in the outbox.
    AfterInsert,
    /// It is out of the outbox.
    AfterConfirm,
}

impl CrashPoint {
    /// The points of the way to ClickHouse, in order.
    pub const SENDING: [Self; 3] = [Self::BeforeInsert, Self::AfterInsert, Self::AfterConfirm];
    /// Every point of the way into telemetry.db, in order.
    pub const ALL: [Self; 9] = [
        Self::AfterRead,
        Self::AfterApply,
        Self::AfterCommit,
        Self::AfterRows,
        Self::AfterLedger,
        Self::AfterCursor,
        Self::AfterFlush,
        Self::AfterSync,
        Self::AfterRelease,
    ];
}

/// Decides where to stop; [`Faults::none`] outside tests.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<dyn Fn(CrashPoint) -> bool + Send + Sync>>);

impl Faults {
    /// Never stops.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Stops where the function says so.
    pub fn when(stop: impl Fn(CrashPoint) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(stop)))
    }

    /// A place was reached.
    ///
    /// # Errors
    /// The test wants to stop here.
    pub fn reach(&self, point: CrashPoint) -> Result<(), TelemetryError> {
        match &self.0 {
            Some(stop) if stop(point) => Err(TelemetryError::Crashed(point)),
            _ => Ok(()),
        }
    }
}
