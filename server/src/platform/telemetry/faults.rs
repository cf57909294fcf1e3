//! Places where a test stops the store, between each two steps of a record's way. Free of cost otherwise:
//! one check of a `None` a batch.

use super::TelemetryError;
use std::sync::Arc;

/// Between which steps. The log's own two (appended, fsynced) need no hook: a test cuts the log there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashPoint {
    /// A batch was read from the log.
    AfterRead,
    /// Its rows are inserted, not committed.
    AfterRows,
    /// The ledger and the counters too.
    AfterLedger,
    /// The cursor too: only the commit is missing.
    AfterCursor,
    /// Committed, not synced.
    AfterCommit,
    /// Synced; the log was not told.
    AfterSync,
    /// The log was told.
    AfterRelease,
}

impl CrashPoint {
    /// Every point, in order.
    pub const ALL: [Self; 7] = [
        Self::AfterRead,
        Self::AfterRows,
        Self::AfterLedger,
        Self::AfterCursor,
        Self::AfterCommit,
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
