//! A database that another process writes: opened for reading, never migrated, never written.
//!
//! The registry's followers call it, each on a thread of its own: calls block. The file is opened read-only with
//! `query_only` on top. SQLite still takes its readers' locks in the `-shm` file beside it, and makes an empty `-shm`
//! and `-wal` where there are none and it may; where it may not, both must be there (they are while the writer runs).
//! Promise: what [`ReadOnlyDb::read`] gives is one snapshot; a commit after it makes the next
//! [`ReadOnlyDb::has_changed`] say so. A file of another schema, or another file under the same name, is an error and
//! not an answer: open again. WAL needs memory that both processes share: same machine, no network file system.

use super::super::Tx;
use super::{DbError, applied_version, newest_version};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Page cache, KiB: a look reads a few rows, a full one reads everything once.
const CACHE_KIB: u32 = 256;
/// How long a reader waits while the writer repairs the log after its crash.
const BUSY_TIME_MAX: Duration = Duration::from_secs(1);

const NO_LOG: &str = "its -wal or -shm file cannot be opened, or is missing and cannot be made: \
     start the server that owns it, and let this user read them";

/// A connection that reads what another process writes.
pub struct ReadOnlyDb {
    connection: Connection,
    path: PathBuf,
    /// Device and number of the file that was opened.
    file: (u64, u64),
    schema: i64,
    /// SQLite's mark of what was committed, as of the last look.
    seen: Option<i64>,
}

impl ReadOnlyDb {
    /// Opens a file whose schema is exactly the newest of the given migrations.
    ///
    /// # Errors
    /// There is no such file, it cannot be read, or its schema is another.
    pub fn open(path: &Path, migrations: &refinery::Runner) -> Result<Self, DbError> {
        let open = |source| DbError::Open { path: path.to_owned(), source };
        let unusable = |why: String| DbError::unusable(path.display(), why);
        let file = file_of(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection.busy_timeout(BUSY_TIME_MAX).map_err(open)?;
        // No page was read so far: a file that is no database, or whose log cannot be read, shows here.
        let first = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => unusable(NO_LOG.to_owned()),
            _ => open(source),
        };
        let tuning =
            format!("PRAGMA query_only=ON; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA temp_store=MEMORY;");
        connection.execute_batch(&tuning).map_err(first)?;
        let schema = pragma(&connection, "schema_version").map_err(first)?;
        let (applied, newest) = (applied_version(&mut connection), newest_version(migrations));
        if applied != newest {
            let advice = match applied {
                0 => "it is no registry of this server, or was never started",
                older if older < newest => "start the server that owns it with this build first",
                _ => "use the build of the server that owns it",
            };
            return Err(unusable(format!(
                "its schema is version {applied}, this build reads {newest}: {advice}"
            )));
        }
        Ok(Self { connection, path: path.to_owned(), file, schema, seen: None })
    }

    /// Whether anything was committed since this was last asked; yes, the first time.
    ///
    /// # Errors
    /// The file cannot be read, or it is no longer the one that was opened.
    pub fn has_changed(&mut self) -> Result<bool, DbError> {
        let unusable = |why: &str| DbError::unusable(self.path.display(), why);
        if file_of(&self.path)? != self.file {
            return Err(unusable("another file has taken its place"));
        }
        let now = pragma(&self.connection, "data_version")?;
        if self.seen == Some(now) {
            return Ok(false);
        }
        if pragma(&self.connection, "schema_version")? != self.schema {
            return Err(unusable("its schema has changed"));
        }
        self.seen = Some(now);
        Ok(true)
    }

    /// Runs a closure on one snapshot.
    ///
    /// # Errors
    /// The closure's own, or the database's.
    pub fn read<T, E: From<DbError>>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = super::Tx::new(&self.connection);
        let outcome = tx.batch("BEGIN").map_err(E::from).and_then(|()| Tx::sqlite(&tx).run(work));
        let _ = tx.batch("ROLLBACK");
        outcome
    }
}

fn pragma(connection: &Connection, name: &str) -> Result<i64, rusqlite::Error> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn file_of(path: &Path) -> Result<(u64, u64), DbError> {
    let found = std::fs::metadata(path);
    let found = found.map_err(|error| DbError::unusable(path.display(), error.to_string()))?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::db::{Scope, sqlite::Db};

    const ALL: Scope = Scope::System("test");

    const TABLE: &str = "CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT;";

    fn migrations(versions: u32) -> refinery::Runner {
        let each = |version| {
            let sql = if version == 1 { TABLE } else { "CREATE TABLE more (a INTEGER) STRICT;" };
            refinery::Migration::unapplied(&format!("V{version}__t"), sql).unwrap()
        };
        refinery::Runner::new(&(1..=versions).map(each).collect::<Vec<_>>())
    }

    fn insert(db: &Db, value: i64) {
        db.write_blocking(move |tx| tx.execute("INSERT INTO t VALUES ($1)", &[&value])).unwrap();
    }

    fn values(db: &mut ReadOnlyDb) -> Vec<i64> {
        db.read(|tx| tx.query::<i64, DbError>(&ALL, "SELECT a FROM t ORDER BY a", &[], |row| row.get(0)))
            .unwrap()
    }

    #[test]
    fn it_sees_each_commit_of_the_writer_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let writer = Db::open(&path, migrations(1), 1).unwrap();
        insert(&writer, 1);
        let mut reader = ReadOnlyDb::open(&path, &migrations(1)).unwrap();
        assert!(reader.has_changed().unwrap(), "everything is new at first");
        assert!(!reader.has_changed().unwrap());
        assert_eq!(values(&mut reader), [1]);
        insert(&writer, 2);
        assert!(reader.has_changed().unwrap());
        assert_eq!(values(&mut reader), [1, 2]);
        assert!(!reader.has_changed().unwrap());
        let refused = reader.read(|tx| tx.execute(&ALL, "INSERT INTO t VALUES (3)", &[])).unwrap_err();
        assert!(matches!(refused, DbError::Sql(_)), "{refused:?}");
        insert(&writer, 4);
        assert!(reader.has_changed().unwrap(), "a refused write holds no lock");
        assert_eq!(values(&mut reader), [1, 2, 4]);
    }

    #[track_caller]
    fn refused(path: &Path, versions: u32) -> String {
        let error = ReadOnlyDb::open(path, &migrations(versions)).err().expect("it is refused");
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn another_schema_or_no_database_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let error = refused(&path, 1);
        assert!(error.contains("t.db") && error.contains("No such file"), "{error}");
        assert!(!path.exists(), "none is made");
        drop(Db::open(&path, migrations(2), 1).unwrap());
        let error = refused(&path, 3);
        assert!(error.contains("version 2, this build reads 3: start the server that owns it"), "{error}");
        let error = refused(&path, 1);
        assert!(error.contains("version 2, this build reads 1: use the build"), "{error}");
        let empty = dir.path().join("empty.db");
        std::fs::write(&empty, "").unwrap();
        let error = refused(&empty, 1);
        assert!(error.contains("version 0, this build reads 1: it is no registry"), "{error}");
        std::fs::write(&empty, "x".repeat(4096)).unwrap();
        assert!(refused(&empty, 1).contains("not a database"));
        let (copy, log) = (dir.path().join("copy.db"), dir.path().join("copy.db-wal"));
        let whole = Connection::open(&path).unwrap();
        whole.pragma_query(None, "wal_checkpoint", |_| Ok(())).unwrap();
        std::fs::copy(&path, &copy).unwrap();
        std::fs::create_dir(log).unwrap();
        let error = refused(&copy, 2);
        assert!(error.contains("copy.db: its -wal or -shm file cannot be opened"), "{error}");
    }

    #[test]
    fn a_migration_and_another_file_in_its_place_are_noticed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        let path = dir.join("t.db");
        std::fs::create_dir(&dir).unwrap();
        let first = Db::open(&path, migrations(1), 1).unwrap();
        let mut reader = ReadOnlyDb::open(&path, &migrations(1)).unwrap();
        assert!(reader.has_changed().unwrap());
        let second = Db::open(&path, migrations(2), 1).unwrap();
        let told = |reader: &mut ReadOnlyDb| reader.has_changed().unwrap_err().to_string();
        assert!(told(&mut reader).contains("its schema has changed"));
        assert!(told(&mut reader).contains("its schema has changed"), "until it is opened again");
        drop((first, second));
        let mut reader = ReadOnlyDb::open(&path, &migrations(2)).unwrap();
        std::fs::rename(&dir, root.path().join("old")).unwrap();
        assert!(told(&mut reader).contains("No such file"));
        std::fs::create_dir(&dir).unwrap();
        drop(Db::open(&path, migrations(2), 1).unwrap());
        assert!(told(&mut reader).contains("another file has taken its place"));
    }
}
