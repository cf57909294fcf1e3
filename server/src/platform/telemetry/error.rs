//! Why the store cannot do it.

use super::CrashPoint;
use super::clickhouse::ClickHouseError;
use crate::platform::db::DbError;

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
    /// ClickHouse failed.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// So much waits for ClickHouse that nothing more is taken; the log keeps it.
    #[error(
        "{bytes} bytes wait for ClickHouse, telemetry.outbox_bytes_max is {max}: the event log keeps what comes"
    )]
    Behind {
        /// Bytes that wait.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The file holds blocks for ClickHouse, and there is none.
    #[error(
        "{blocks} blocks of readings and events wait for ClickHouse in telemetry.db: set telemetry.url until they are sent"
    )]
    BlocksWait {
        /// How many.
        blocks: u64,
    },
    /// A block cannot be made.
    #[error("cannot make a block for ClickHouse")]
    Pack(#[source] std::io::Error),
    /// A runtime for ClickHouse's client cannot be made.
    #[error("cannot start a runtime")]
    Runtime(#[source] std::io::Error),
    /// A test stopped the store.
    #[error("stopped by a test at {0:?}")]
    Crashed(CrashPoint),
}

impl TelemetryError {
    /// Whether it came before anything was done: the store is as it was, and what failed can be tried again.
    #[must_use]
    pub fn is_before_anything(&self) -> bool {
        matches!(self, Self::DiskReserve { .. } | Self::Behind { .. } | Self::Db(DbError::Begin(_)))
    }
}
