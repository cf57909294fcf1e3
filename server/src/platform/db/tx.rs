//! Statements inside a transaction of either engine, with `$1` parameters as PostgreSQL writes them.

use super::postgres::Session;
use super::value::{self, FromSql, Param, ToSql};
use super::{DbError, Scope, postgres, sqlite};

/// An open transaction.
pub struct Tx<'a> {
    engine: Engine<'a>,
    /// A statement failed: PostgreSQL takes no other one, so the transaction is undone on either engine.
    failed: bool,
}

enum Engine<'a> {
    Sqlite(sqlite::Tx<'a>),
    Postgres(&'a mut Session),
}

/// One row of an answer; columns by position, from 0.
pub struct Row<'a>(RowOf<'a>);

enum RowOf<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a tokio_postgres::Row),
}

impl Row<'_> {
    /// The column's value.
    ///
    /// # Errors
    /// The column is of another type, or absent.
    pub fn get<T: FromSql>(&self, column: usize) -> Result<T, DbError> {
        match self.0 {
            RowOf::Sqlite(row) => value::read(sqlite::column(row, column)?, column),
            RowOf::Postgres(row) => value::read(postgres::column(row, column)?, column),
        }
    }
}

impl<'a> Tx<'a> {
    pub(super) fn sqlite(tx: &sqlite::Tx<'a>) -> Self {
        Self { engine: Engine::Sqlite(tx.again()), failed: false }
    }

    pub(super) fn postgres(session: &'a mut Session) -> Self {
        Self { engine: Engine::Postgres(session), failed: false }
    }

    /// Runs a whole transaction's closure: one that went on after a statement failed has failed.
    pub(super) fn run<T, E: From<DbError>>(
        mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let done = work(&mut self)?;
        if self.failed { Err(DbError::Failed.into()) } else { Ok(done) }
    }

    fn note<T>(&mut self, outcome: Result<T, DbError>) -> Result<T, DbError> {
        self.failed |= outcome.is_err();
        outcome
    }

    /// Makes this write wait for others that took the same lock, from here to its end; a tenant's own lock is taken
    /// before its first statement. SQLite has one writer at a time.
    ///
    /// # Errors
    /// Another held it for too long, or the server cannot be reached.
    pub fn lock(&mut self, scope: &Scope, name: &str) -> Result<(), DbError> {
        let outcome = match &mut self.engine {
            Engine::Sqlite(_) => Ok(()),
            Engine::Postgres(session) => session.lock(scope, name),
        };
        self.note(outcome)
    }

    /// Runs a statement; returns how many rows it changed.
    ///
    /// # Errors
    /// The statement's.
    pub fn execute(&mut self, scope: &Scope, sql: &str, args: &[&dyn ToSql]) -> Result<usize, DbError> {
        let params = params(args);
        let outcome = match &mut self.engine {
            Engine::Sqlite(tx) => tx.execute_with(sql, &params),
            Engine::Postgres(session) => session.execute(scope, sql, &params),
        };
        self.note(outcome)
    }

    /// Runs a query and hands each row over as it comes: for answers that are too many to hold.
    ///
    /// # Errors
    /// The statement's, or the closure's, which ends it.
    pub fn for_each<E: From<DbError>>(
        &mut self,
        scope: &Scope,
        sql: &str,
        args: &[&dyn ToSql],
        mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let params = params(args);
        let mut refused = None;
        let outcome = match &mut self.engine {
            Engine::Sqlite(tx) => tx.each(sql, &params, |row| {
                refused = each(&Row(RowOf::Sqlite(row))).err();
                refused.is_none()
            }),
            Engine::Postgres(session) => session.each(scope, sql, &params, |row| {
                refused = each(&Row(RowOf::Postgres(row))).err();
                refused.is_none()
            }),
        };
        self.note(outcome)?;
        refused.map_or(Ok(()), Err)
    }

    /// Runs a query and maps every row.
    ///
    /// # Errors
    /// The statement's, or the mapping's.
    pub fn query<T, E: From<DbError>>(
        &mut self,
        scope: &Scope,
        sql: &str,
        args: &[&dyn ToSql],
        mut map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut all = Vec::new();
        self.for_each(scope, sql, args, |row| {
            all.push(map(row)?);
            Ok::<_, E>(())
        })?;
        Ok(all)
    }

    /// Runs a query and maps its first row.
    ///
    /// # Errors
    /// The statement's, or the mapping's.
    pub fn query_opt<T, E: From<DbError>>(
        &mut self,
        scope: &Scope,
        sql: &str,
        args: &[&dyn ToSql],
        map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        Ok(self.query(scope, sql, args, map)?.into_iter().next())
    }

    /// Runs a query and maps its only row.
    ///
    /// # Errors
    /// The statement's, or the mapping's; no row is an error too.
    pub fn query_one<T, E: From<DbError>>(
        &mut self,
        scope: &Scope,
        sql: &str,
        args: &[&dyn ToSql],
        map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let row = self.query_opt(scope, sql, args, map)?;
        row.ok_or_else(|| DbError::from(rusqlite::Error::QueryReturnedNoRows).into())
    }
}

fn params<'a>(args: &'a [&'a dyn ToSql]) -> Vec<Param<'a>> {
    args.iter().map(|arg| arg.param()).collect()
}
