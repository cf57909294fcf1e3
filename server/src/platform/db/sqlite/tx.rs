//! Statements inside a transaction, with `$1` parameters as PostgreSQL writes them.

use super::super::value::Param;
use super::{DbError, FromSql, ToSql};
use rusqlite::Connection;
use std::borrow::Cow;

/// An open transaction.
pub struct Tx<'a> {
    connection: &'a Connection,
}

/// One row of an answer; columns by position, from 0.
pub struct Row<'a>(&'a rusqlite::Row<'a>);

impl Row<'_> {
    /// The column's value.
    ///
    /// # Errors
    /// The column is of another type, or absent.
    pub fn get<T: FromSql>(&self, column: usize) -> Result<T, DbError> {
        Ok(self.0.get(column)?)
    }
}

impl<'a> Tx<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection }
    }

    /// The same transaction.
    pub(in crate::platform::db) fn again(&self) -> Self {
        Self { connection: self.connection }
    }

    /// As [`Self::execute`], with values of either engine.
    pub(in crate::platform::db) fn execute_with(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<usize, DbError> {
        let mut statement = self.connection.prepare_cached(&numbered(sql))?;
        Ok(statement.execute(rusqlite::params_from_iter(params))?)
    }

    /// Hands each row over until told to stop.
    pub(in crate::platform::db) fn each(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        mut each: impl FnMut(&rusqlite::Row<'_>) -> bool,
    ) -> Result<(), DbError> {
        let mut statement = self.connection.prepare_cached(&numbered(sql))?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        while let Some(row) = rows.next()? {
            if !each(row) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn batch(&mut self, sql: &str) -> Result<(), DbError> {
        Ok(self.connection.execute_batch(sql)?)
    }

    /// Gives a reader a new snapshot. A writer's transaction would be undone by it.
    ///
    /// # Errors
    /// The database failed.
    pub(in crate::platform) fn renew(&mut self) -> Result<(), DbError> {
        self.batch("ROLLBACK; BEGIN")
    }

    /// Runs a statement; returns how many rows it changed.
    ///
    /// # Errors
    /// The statement's.
    pub fn execute(&mut self, sql: &str, args: &[&dyn ToSql]) -> Result<usize, DbError> {
        Ok(self.connection.prepare_cached(&numbered(sql))?.execute(args)?)
    }

    /// Prepares a statement for a loop.
    ///
    /// # Errors
    /// The text is not SQL.
    pub fn statement(&mut self, sql: &str) -> Result<Statement<'a>, DbError> {
        Ok(Statement(self.connection.prepare_cached(sql)?))
    }

    /// Runs a query and maps its only row.
    ///
    /// # Errors
    /// The statement's, or the mapping's; no row is an error too.
    pub fn query_one<T, E: From<DbError>>(
        &mut self,
        sql: &str,
        args: &[&dyn ToSql],
        map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let row = self.query(sql, args, map)?.into_iter().next();
        row.ok_or_else(|| DbError::from(rusqlite::Error::QueryReturnedNoRows).into())
    }

    /// As [`Self::query`], for a text that is made for this call: it is not kept prepared.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub fn query_once<T, E: From<DbError>>(
        &mut self,
        sql: &str,
        args: &[&dyn ToSql],
        mut map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut statement = self.connection.prepare(&numbered(sql)).map_err(DbError::from)?;
        let mut rows = statement.query(args).map_err(DbError::from)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(DbError::from)? {
            all.push(map(&Row(row))?);
        }
        Ok(all)
    }

    /// Gives free pages at the file's end back to the file system; returns how many are left.
    ///
    /// # Errors
    /// The statement's.
    pub fn give_pages_back(&mut self, pages: u32) -> Result<u64, DbError> {
        self.batch(&format!("PRAGMA incremental_vacuum({pages})"))?;
        self.query_one("PRAGMA freelist_count", &[], |row| row.get(0))
    }

    /// Runs a query and maps every row.
    ///
    /// # Errors
    /// The statement's, or the mapping's.
    pub fn query<T, E: From<DbError>>(
        &mut self,
        sql: &str,
        args: &[&dyn ToSql],
        mut map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        let mut all = Vec::new();
        self.for_each(sql, args, |row| {
            all.push(map(row)?);
            Ok::<_, E>(())
        })?;
        Ok(all)
    }

    /// Runs a query and hands each row over as it comes: for answers that are too many to hold.
    ///
    /// # Errors
    /// The statement's, or the closure's, which ends it.
    pub fn for_each<E: From<DbError>>(
        &mut self,
        sql: &str,
        args: &[&dyn ToSql],
        mut each: impl FnMut(&Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self.connection.prepare_cached(&numbered(sql)).map_err(DbError::from)?;
        let mut rows = statement.query(args).map_err(DbError::from)?;
        while let Some(row) = rows.next().map_err(DbError::from)? {
            each(&Row(row))?;
        }
        Ok(())
    }

    /// Runs a query and maps its first row.
    ///
    /// # Errors
    /// The statement's, or the mapping's.
    pub fn query_opt<T, E: From<DbError>>(
        &mut self,
        sql: &str,
        args: &[&dyn ToSql],
        map: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        Ok(self.query(sql, args, map)?.into_iter().next())
    }
}

/// A prepared statement for loops: bind each parameter, run, again. Parameters are written `?n`.
pub struct Statement<'a>(rusqlite::CachedStatement<'a>);

impl Statement<'_> {
    /// Sets a parameter, from 1. It keeps its value over runs.
    ///
    /// # Errors
    /// There is no such parameter.
    pub fn bind(&mut self, at: usize, value: impl ToSql) -> Result<(), DbError> {
        Ok(self.0.raw_bind_parameter(at, value)?)
    }

    /// Runs it; returns how many rows it changed.
    ///
    /// # Errors
    /// The statement's.
    pub fn run(&mut self) -> Result<u64, DbError> {
        Ok(self.0.raw_execute()? as u64)
    }
}

/// SQLite numbers `$n` by first appearance, so arguments would change places in silence: `$n` becomes `?n`.
/// Text in quotes stays as it is.
pub(super) fn numbered(sql: &str) -> Cow<'_, str> {
    if !sql.contains('$') {
        return Cow::Borrowed(sql);
    }
    let mut out = String::with_capacity(sql.len());
    let mut quote = None;
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '$' && rest.peek().is_some_and(char::is_ascii_digit) => {
                out.push('?');
                continue;
            }
            _ => {}
        }
        out.push(c);
    }
    Cow::Owned(out)
}
