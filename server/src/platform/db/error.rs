//! Why a database call failed, whichever engine it was.

use std::path::PathBuf;

/// Why a database call failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file cannot be opened.
    #[error("cannot open database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The engine's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// A migration failed, or the schema is newer than this build.
    #[error("cannot migrate database {database}: {why}")]
    Migrate {
        /// The file, or the server's host and database.
        database: String,
        /// The reason.
        why: String,
    },
    /// The database is not what is needed.
    #[error("cannot use database {database}: {why}")]
    Unusable {
        /// The file, or the server's host and database.
        database: String,
        /// The reason, and what to do.
        why: String,
    },
    /// A statement failed.
    #[error("statement failed")]
    Sql(#[from] rusqlite::Error),
    /// A statement failed on PostgreSQL.
    #[error("statement failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// The database's server cannot be reached, or hung up. Nothing is stored, unless it was the commit that got no
    /// answer.
    #[error("the database cannot be reached: {0}")]
    Unreachable(String),
    /// The transaction could not begin; nothing was done.
    #[error("cannot write: {0}")]
    Begin(String),
    /// The group's commit failed; nothing of it is stored.
    #[error("commit failed: {0}")]
    Commit(String),
    /// What a reader asked for was written faster than it could be read.
    #[error("the database is busy; try again")]
    Busy,
    /// A query of ClickHouse took longer than its bound.
    #[error("the query took too long")]
    Overdue,
    /// The database is shut down, or the closure panicked.
    #[error("the database is closed")]
    Closed,
    /// A closure went on after a statement of its had failed: its transaction is undone.
    #[error("a statement had failed before")]
    Failed,
    /// Another process holds what only one may hold.
    #[error("another process holds the roles {name} of the registry {database}: only one may")]
    LeaseHeld {
        /// The server's host and database.
        database: String,
        /// The lease.
        name: &'static str,
    },
    /// Another process runs on the schema as it is.
    #[error("other processes run on the schema of {database}: stop them before this newer build migrates it")]
    SchemaInUse {
        /// The server's host and database.
        database: String,
    },
    /// Another process took over what this one held.
    #[error("another process has taken over the roles {0}")]
    Fenced(&'static str),
    /// A statement of one tenant was given a system scope.
    #[error("scope {0:?} names no tenant")]
    Scope(&'static str),
    /// A row holds what its type cannot be.
    #[error("column {column} holds an unexpected value")]
    Column {
        /// The column.
        column: String,
    },
}

impl DbError {
    /// Whether a UNIQUE or PRIMARY KEY constraint refused the row.
    #[must_use]
    pub fn is_unique_violation(&self) -> bool {
        use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
        match self {
            Self::Sql(rusqlite::Error::SqliteFailure(failure, _)) => {
                matches!(failure.extended_code, SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY)
            }
            Self::Postgres(error) => error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION),
            _ => false,
        }
    }

    /// Whether a read took longer than its bound.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        match self {
            Self::Sql(rusqlite::Error::SqliteFailure(failure, _)) => {
                failure.code == rusqlite::ErrorCode::OperationInterrupted
            }
            Self::Postgres(error) => error.code() == Some(&tokio_postgres::error::SqlState::QUERY_CANCELED),
            Self::Overdue => true,
            _ => false,
        }
    }

    /// Whether it may be tried again later as it is: nothing is wrong with what was asked.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        use tokio_postgres::error::SqlState;
        match self {
            Self::Busy | Self::Unreachable(_) => true,
            Self::Postgres(error) => matches!(
                error.code(),
                Some(
                    &SqlState::T_R_DEADLOCK_DETECTED
                        | &SqlState::T_R_SERIALIZATION_FAILURE
                        | &SqlState::LOCK_NOT_AVAILABLE
                        | &SqlState::ADMIN_SHUTDOWN
                        | &SqlState::CRASH_SHUTDOWN
                        | &SqlState::CANNOT_CONNECT_NOW
                        | &SqlState::TOO_MANY_CONNECTIONS
                )
            ),
            _ => false,
        }
    }

    pub(super) fn unusable(database: impl ToString, why: impl Into<String>) -> Self {
        Self::Unusable { database: database.to_string(), why: why.into() }
    }
}
