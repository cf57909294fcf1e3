//! A store that cannot commit: the write lock of the server's `telemetry.db`, held from outside.
//!
//! `run` holds it for the fault `store-outage`. The server's gateway must go on acknowledging into its log; its store
//! fails after its busy timeout (5 s) and tries again for ever. The lock goes with the connection, so a run that is killed leaves nothing
//! behind. Nothing is written, and nothing is copied out of the write-ahead log.
//!
//! Limit: a server that is *started* meanwhile cannot open its store either, and ends.

use anyhow::{Context, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// The longest wait for the lock: the server's commits are between.
pub const LOCK_TIME_MAX: Duration = Duration::from_secs(30);

/// A held lock; dropping it lets it go.
pub struct StoreOutage {
    connection: Connection,
}

impl StoreOutage {
    /// Takes the lock of the store below the server's data directory.
    ///
    /// # Errors
    /// There is no such store, or the lock is not to be had within [`LOCK_TIME_MAX`].
    pub fn begin(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("telemetry.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags);
        let connection = connection.with_context(|| format!("cannot open {}", path.display()))?;
        // The last connection to go copies the log into the file: that stays the server's work.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(LOCK_TIME_MAX)?;
        connection.execute_batch("BEGIN IMMEDIATE").context("cannot take the store's write lock")?;
        Ok(Self { connection })
    }

    /// Lets the lock go.
    ///
    /// # Errors
    /// The database failed; the lock is gone all the same.
    pub fn end(self) -> Result<()> {
        self.connection.execute_batch("ROLLBACK").context("cannot let the store's write lock go")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Connection {
        let connection = Connection::open(dir.join("telemetry.db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t (x)").unwrap();
        connection
    }

    #[test]
    fn nobody_commits_while_it_is_held_and_everybody_reads() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StoreOutage::begin(dir.path()).is_err(), "there is no store yet");
        assert!(!dir.path().join("telemetry.db").exists());
        let writer = store(dir.path());
        writer.busy_timeout(Duration::ZERO).unwrap();
        let insert = || writer.execute("INSERT INTO t VALUES (1)", []);
        insert().unwrap();
        for ends_by_itself in [true, false] {
            let outage = StoreOutage::begin(dir.path()).unwrap();
            let error = insert().unwrap_err();
            assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{error}");
            let count = || writer.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
            let before = count().unwrap();
            if ends_by_itself {
                outage.end().unwrap();
            } else {
                drop(outage);
            }
            insert().unwrap();
            assert_eq!(count().unwrap(), before + 1);
        }
    }
}
