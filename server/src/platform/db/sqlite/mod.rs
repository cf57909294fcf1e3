//! The embedded database: one writer thread with group commit, a few reader threads, WAL.
//!
//! The telemetry store calls it as it is; slices see it through [`super::Db`]. Another process's database is read
//! through [`ReadOnlyDb`].
//! Promise: a write returned `Ok` is on disk (`synchronous=FULL`); a failed closure leaves no trace
//! (what it did is rolled back) and disturbs no other closure of the same group.
//! Bounds: [`QUEUE_MAX`] waiting closures a lane (callers wait beyond), [`GROUP_MAX`] closures a commit,
//! [`Options::read_time_max`] for a [`Db::read`]. A read whose caller went away is ended, or never begun.
//!
//! Closures are synchronous: they run on a thread of the database's own, so SQL never blocks the async
//! runtime, and nothing but SQL can be awaited inside a transaction.

mod read_only;
mod tx;
mod watch;

pub use read_only::ReadOnlyDb;
pub use rusqlite::types::{FromSql, ToSql, Value as SqlValue};
pub use tx::{Row, Statement, Tx};

use super::DbError;
use super::value::{Column, Param};
use crate::platform::priority;
use rusqlite::{Connection, OpenFlags};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
pub(super) use watch::Awaited;
use watch::Watch;

/// Closures that may wait for a lane; more make their callers wait.
pub const QUEUE_MAX: usize = 1024;
/// Closures that share one commit.
pub const GROUP_MAX: usize = 256;

/// How a database is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Reader threads.
    pub readers: usize,
    /// Page cache of each connection, KiB.
    pub cache_kib: u32,
    /// Pages in the write-ahead log before it is copied into the file.
    pub checkpoint_pages: u32,
    /// Whether a commit waits for the disk.
    pub sync: Sync,
    /// The longest [`Db::read`], from its begin on a reader; None: no bound.
    pub read_time_max: Option<Duration>,
    /// Whether what is deleted is overwritten in the file. Deleting costs more.
    pub overwrites: bool,
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// It does (`synchronous=FULL`).
    Full,
    /// It does not: the caller syncs the write-ahead log when it needs to (`synchronous=NORMAL`, and
    /// [`sync_wal`]). After a power cut the newest commits may be missing, the oldest of them last.
    ByCaller,
    /// It does not: for trials where only the process is stopped, never the machine.
    OffForTrials,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 2,
            cache_kib: 2048,
            checkpoint_pages: 1000,
            sync: Sync::Full,
            read_time_max: None,
            overwrites: true,
        }
    }
}

/// Runs inside the writer: does the work, and answers once the outcome is known. Given no transaction, it
/// answers at once with the reason. Told whether it is the first of its transaction.
type WriteJob = Box<dyn FnOnce(Result<&mut Tx<'_>, &str>, bool) -> Done + Send>;
/// Told whether the commit succeeded.
type Done = Box<dyn FnOnce(Result<(), String>) + Send>;

struct ReadJob {
    run: Box<dyn FnOnce(&mut Tx<'_>) + Send>,
    awaited: Awaited,
    time_max: Option<Duration>,
}

/// A handle to the database; clones share it. The threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

struct Inner {
    writes: mpsc::Sender<WriteJob>,
    reads: mpsc::Sender<ReadJob>,
    read_time_max: Option<Duration>,
}

impl Db {
    /// Opens or creates the file, migrates it and starts the threads.
    ///
    /// # Errors
    /// The file cannot be opened, or a migration fails.
    pub fn open(path: &Path, migrations: refinery::Runner, readers: usize) -> Result<Self, DbError> {
        Self::open_with(path, migrations, Options { readers, ..Options::default() })
    }

    /// As [`Self::open`], tuned.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: &Path, migrations: refinery::Runner, options: Options) -> Result<Self, DbError> {
        let mut writer = connect(path, options)?;
        migrate(&mut writer, migrations, path)?;
        let (writes, write_jobs) = mpsc::channel(QUEUE_MAX);
        let (reads, read_jobs) = mpsc::channel(QUEUE_MAX);
        let read_jobs = Arc::new(std::sync::Mutex::new(read_jobs));
        spawn("db-writer", move || write_loop(&writer, write_jobs));
        for _ in 0..options.readers.max(1) {
            let (mut connection, jobs) = (connect(path, options)?, read_jobs.clone());
            connection.pragma_update(None, "query_only", true)?;
            let watch = Watch::install(&mut connection)?;
            spawn("db-reader", move || read_loop(&connection, &watch, &jobs));
        }
        let read_time_max = options.read_time_max;
        Ok(Self { inner: Arc::new(Inner { writes, reads, read_time_max }) })
    }

    /// Runs a closure in a transaction and returns after its commit is on disk.
    ///
    /// # Errors
    /// The closure's own, or the database's.
    pub async fn write<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = write_job(work);
        self.inner.writes.send(job).await.map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)?
    }

    /// As [`Self::write`], for threads outside the async runtime.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_blocking<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = write_job(work);
        self.inner.writes.blocking_send(job).map_err(|_| DbError::Closed)?;
        answer.blocking_recv().map_err(|_| DbError::Closed)?
    }

    /// Runs a closure on one snapshot; it cannot write. It is ended where the future is dropped, and after
    /// [`Options::read_time_max`].
    ///
    /// # Errors
    /// The closure's own, or the database's.
    pub async fn read<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = read_job(work, self.inner.read_time_max);
        let _waiter = job.awaited.waiter();
        self.inner.reads.send(job).await.map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)?
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), DbError> {
        self.read(|tx| tx.query_one("SELECT 1", &[], |row| row.get::<i64>(0))).await.map(drop)
    }

    /// As [`Self::read`], for threads outside the async runtime, and however long it takes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_blocking<T, E>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = read_job(work, None);
        self.inner.reads.blocking_send(job).map_err(|_| DbError::Closed)?;
        answer.blocking_recv().map_err(|_| DbError::Closed)?
    }
}

fn write_job<T, E>(
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
) -> (WriteJob, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let job: WriteJob = Box::new(move |tx, is_first| {
        let outcome = match tx {
            Ok(tx) if is_first => in_transaction(tx, work),
            Ok(tx) => in_savepoint(tx, work),
            Err(why) => Err(DbError::Begin(why.to_owned()).into()),
        };
        Box::new(move |commit| {
            let outcome = match (outcome, commit) {
                (Ok(_), Err(why)) => Err(DbError::Commit(why).into()),
                (outcome, _) => outcome,
            };
            // The caller may have gone away; the row stays either way.
            let _ = reply.send(outcome);
        })
    });
    (job, answer)
}

fn read_job<T, E>(
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    time_max: Option<Duration>,
) -> (ReadJob, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let run = Box::new(move |tx: &mut Tx<'_>| {
        let outcome = tx.batch("BEGIN").map_err(E::from).and_then(|()| work(tx));
        let _ = tx.batch("ROLLBACK");
        let _ = reply.send(outcome);
    });
    (ReadJob { run, awaited: Awaited::default(), time_max }, answer)
}

/// The first of a group needs no savepoint: what it undoes is all there is. A savepoint keeps the old content of
/// every page that is changed after it, which for one batch of the store were some 200 MB.
fn in_transaction<T, E: From<DbError>>(
    tx: &mut Tx<'_>,
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let outcome = work(tx);
    if outcome.is_err() {
        begin_again(tx);
    }
    outcome
}

/// Where the new transaction cannot begin, the group ends and its commit fails.
fn begin_again(tx: &mut Tx<'_>) {
    let _ = tx.batch("ROLLBACK");
    let _ = tx.batch("BEGIN IMMEDIATE");
}

fn in_savepoint<T, E: From<DbError>>(
    tx: &mut Tx<'_>,
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    tx.batch("SAVEPOINT job")?;
    let outcome = work(tx);
    if outcome.is_err() {
        tx.batch("ROLLBACK TO job")?;
    }
    tx.batch("RELEASE job")?;
    outcome
}

fn write_loop(connection: &Connection, mut jobs: mpsc::Receiver<WriteJob>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut tx = Tx::new(connection);
        match tx.batch("BEGIN IMMEDIATE") {
            Ok(()) => run_group(connection, &mut tx, first, &mut jobs),
            Err(error) => first(Err(&error.to_string()), true)(Err(error.to_string())),
        }
    }
}

/// Runs waiting closures inside the transaction that was begun, commits, and answers all.
fn run_group(connection: &Connection, tx: &mut Tx<'_>, first: WriteJob, jobs: &mut mpsc::Receiver<WriteJob>) {
    let mut waiting = Vec::new();
    let mut next = Some(first);
    let mut is_first = true;
    while let Some(job) = next {
        // A panicking closure loses its own answer only: what it did is undone below.
        match std::panic::catch_unwind(AssertUnwindSafe(|| job(Ok(tx), is_first))) {
            Ok(done) => waiting.push(done),
            Err(_) if is_first => begin_again(tx),
            Err(_) => {
                let _ = tx.batch("ROLLBACK TO job");
                let _ = tx.batch("RELEASE job");
            }
        }
        is_first = false;
        // A full disk (and a few other faults) rolls the whole transaction back: another savepoint now would
        // be a transaction of its own. COMMIT fails below, and every closure of the group is told.
        next = if waiting.len() < GROUP_MAX && !connection.is_autocommit() {
            jobs.try_recv().ok()
        } else {
            None
        };
    }
    let commit = tx.batch("COMMIT").map_err(|error| error.to_string());
    if commit.is_err() {
        let _ = tx.batch("ROLLBACK");
    }
    for done in waiting {
        done(commit.clone());
    }
}

fn read_loop(connection: &Connection, watch: &Watch, jobs: &std::sync::Mutex<mpsc::Receiver<ReadJob>>) {
    loop {
        let job = match jobs.lock() {
            Ok(mut jobs) => jobs.blocking_recv(),
            Err(_) => return,
        };
        let Some(ReadJob { run, awaited, time_max }) = job else { return };
        if awaited.is_gone() {
            continue;
        }
        watch.begin(awaited, time_max);
        let mut tx = Tx::new(connection);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| run(&mut tx)));
        watch.end();
        if outcome.is_err() {
            let _ = tx.batch("ROLLBACK");
        }
    }
}

fn connect(path: &Path, options: Options) -> Result<Connection, DbError> {
    let open = |source| DbError::Open { path: path.to_owned(), source };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(open)?;
    // auto_vacuum only takes effect on an empty file, so it comes before journal_mode writes the header.
    connection
        .execute_batch(
            "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;
             PRAGMA busy_timeout=5000; PRAGMA temp_store=MEMORY;",
        )
        .map_err(open)?;
    let sync = match options.sync {
        Sync::Full => "FULL",
        Sync::ByCaller => "NORMAL",
        Sync::OffForTrials => "OFF",
    };
    let tuning = format!(
        "PRAGMA synchronous={sync}; PRAGMA cache_size=-{}; PRAGMA wal_autocheckpoint={}; PRAGMA secure_delete={};",
        options.cache_kib,
        options.checkpoint_pages,
        if options.overwrites { "ON" } else { "OFF" }
    );
    connection.execute_batch(&tuning).map_err(open)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

/// Makes every commit that has returned durable, for a database of [`Sync::ByCaller`]: commits stand in the
/// write-ahead log, or in the file itself once a checkpoint (which syncs both) has moved them there.
///
/// # Errors
/// The disk failed. What of the log is on it is not known any more, and a second sync would not tell.
pub fn sync_wal(path: &Path) -> std::io::Result<()> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    // It is there while the database is open: where it is missing somebody took the commits away.
    std::fs::File::open(&wal)?.sync_data()?;
    // The file's name must survive, too: SQLite made it when the database was opened.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

fn migrate(connection: &mut Connection, migrations: refinery::Runner, path: &Path) -> Result<(), DbError> {
    let fail = |why: String| DbError::Migrate { database: path.display().to_string(), why };
    let (applied, newest) = (applied_version(connection), newest_version(&migrations));
    if applied > newest {
        return Err(fail(format!(
            "its schema is version {applied}, this build knows {newest}: use a newer build"
        )));
    }
    migrations.set_abort_missing(true).run(connection).map_err(|error| fail(error.to_string()))?;
    Ok(())
}

/// The schema's version in the file; 0 where it has none.
fn applied_version(connection: &mut Connection) -> i32 {
    let last = refinery::Runner::new(&[]).get_last_applied_migration(connection);
    last.ok().flatten().map_or(0, |last| last.version())
}

/// The version that a build makes.
pub(super) fn newest_version(migrations: &refinery::Runner) -> i32 {
    migrations.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

/// A row's value, of the types that both engines have.
pub(super) fn column<'a>(row: &'a rusqlite::Row<'_>, at: usize) -> Result<Column<'a>, DbError> {
    use rusqlite::types::ValueRef;
    let unexpected = || DbError::Column { column: at.to_string() };
    Ok(match row.get_ref(at)? {
        ValueRef::Null => Column::Null,
        ValueRef::Integer(value) => Column::Int(value),
        ValueRef::Text(text) => Column::Text(std::str::from_utf8(text).map_err(|_| unexpected())?),
        ValueRef::Blob(bytes) => Column::Blob(bytes),
        ValueRef::Real(_) => return Err(unexpected()),
    })
}

impl ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        use rusqlite::types::ValueRef;
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(value) => ValueRef::Integer(*value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            priority::background();
            work();
        })
        .expect("a thread can be started at start-up");
}

#[cfg(test)]
mod tests;
