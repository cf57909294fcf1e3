//! The registry's database: SQLite in this process, or a PostgreSQL server; one SQL text for both.
//!
//! Every slice's `store.rs` calls [`Tx`] inside [`Db::write`] or [`Db::read`]; `api` never sees this. The telemetry store
//! has a file of its own and uses [`sqlite`] as it is.
//! Promise, on either engine: a write returned `Ok` is on disk; a failed closure leaves no trace and disturbs no other;
//! writes of one tenant happen one after the other, each seeing those before it; a read sees one moment.
//! Every statement is given its [`Scope`]: on PostgreSQL it decides whose rows there are at all.
//!
//! SQL that both run: `$n` arguments, `RETURNING`, `ON CONFLICT`, times as integer microseconds, booleans as 0 and 1, ids as
//! text. Closures are synchronous: they run on threads of the database's own, and nothing but SQL can be awaited
//! inside a transaction (ADR 0001).

mod error;
mod postgres;
mod scope;
pub mod sqlite;
mod tx;
mod value;

pub use error::DbError;
pub use postgres::{
    Fence, GATEWAY_AND_WORKER, Lease, Options as PostgresOptions, PostgresUrl, RESCAN_INTERVAL, WakeCounts,
    Wakes, Woken,
};
pub use scope::Scope;
pub use tx::{Row, Tx};
pub use value::{Column, FromSql, Param, ToSql};

use postgres::Mode;
use std::path::Path;
use std::time::Duration;

/// A handle to the database; clones share it. Its threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Db(Engine);

#[derive(Clone)]
enum Engine {
    Sqlite(sqlite::Db),
    Postgres(postgres::Db),
}

impl Db {
    /// Opens or creates a SQLite file, migrates it and starts the threads.
    ///
    /// # Errors
    /// The file cannot be opened, or a migration fails.
    pub fn open(path: &Path, migrations: refinery::Runner, readers: usize) -> Result<Self, DbError> {
        Ok(Self(Engine::Sqlite(sqlite::Db::open(path, migrations, readers)?)))
    }

    /// Connects to a PostgreSQL server, migrates the database and starts the threads. Blocks.
    ///
    /// # Errors
    /// The server cannot be reached, its roles are not as they must be, or a migration fails.
    pub fn connect(options: &PostgresOptions, migrations: refinery::Runner) -> Result<Self, DbError> {
        Ok(Self(Engine::Postgres(postgres::Db::connect(options, migrations)?)))
    }

    /// As [`Self::connect`], and migrates nothing: for commands that look at what a server has. Blocks.
    ///
    /// # Errors
    /// As there; the schema is another build's.
    pub fn connect_as_it_is(
        options: &PostgresOptions,
        migrations: refinery::Runner,
    ) -> Result<Self, DbError> {
        Ok(Self(Engine::Postgres(postgres::Db::connect_as_it_is(options, migrations)?)))
    }

    /// Takes what only one process may hold; none on SQLite, whose file one process has by its directory's lock. Blocks.
    ///
    /// # Errors
    /// Another process holds it, or the server cannot be reached.
    pub fn lease(&self, name: &'static str) -> Result<Option<Lease>, DbError> {
        match &self.0 {
            Engine::Sqlite(_) => Ok(None),
            Engine::Postgres(db) => db.lease(name).map(Some),
        }
    }

    /// Listens to what is changed in the registry, by this process or another; none on SQLite, which one process writes.
    /// Everything is looked at anew each `rescan`. To be called on the async runtime.
    #[must_use]
    pub fn wakes(&self, rescan: Duration) -> Option<Wakes> {
        match &self.0 {
            Engine::Sqlite(_) => None,
            Engine::Postgres(db) => Some(db.wakes(rescan)),
        }
    }

    /// Whether other processes may write to it as well.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Engine::Postgres(_))
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
        match &self.0 {
            Engine::Sqlite(db) => db.write(|tx| Tx::sqlite(tx).run(work)).await,
            Engine::Postgres(db) => db.run(Mode::Write, work).await,
        }
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
        match &self.0 {
            Engine::Sqlite(db) => db.write_blocking(|tx| Tx::sqlite(tx).run(work)),
            Engine::Postgres(db) => db.run_blocking(Mode::Write, work),
        }
    }

    /// Runs a closure on one snapshot; it cannot write.
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
        match &self.0 {
            Engine::Sqlite(db) => db.read(|tx| Tx::sqlite(tx).run(work)).await,
            Engine::Postgres(db) => db.run(Mode::Read, work).await,
        }
    }

    /// As [`Self::read`], for threads outside the async runtime.
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
        match &self.0 {
            Engine::Sqlite(db) => db.read_blocking(|tx| Tx::sqlite(tx).run(work)),
            Engine::Postgres(db) => db.run_blocking(Mode::Read, work),
        }
    }
}

impl Db {
    /// Whether it answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), DbError> {
        let one = |tx: &mut Tx<'_>| {
            tx.query_one(&Scope::System("health"), "SELECT 1", &[], |row| row.get::<i64>(0))
        };
        self.read(one).await.map(drop)
    }
}

#[cfg(test)]
mod contract;
