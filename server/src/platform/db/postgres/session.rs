//! One thread's connection, and the transaction that is open on it.

use super::DbError;
use super::connect::{Options, PostgresUrl, chain};
use crate::platform::db::Scope;
use crate::platform::db::value::Param;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

/// The schema that everything stands in.
pub(super) const SCHEMA: &str = "muster";
pub(super) const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest statement.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a write waits for another of its tenant.
const LOCK_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a transaction may stand between two statements: shorter than others wait for its lock.
const IDLE_TIME_MAX: Duration = Duration::from_secs(15);
/// What the network may take beside: a server that is gone does not answer at all.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);
/// Texts kept prepared; lists with filters make a text for each combination.
pub(super) const STATEMENTS_MAX: usize = 256;
/// The class of advisory locks that tenants have.
const LOCK_CLASS: i32 = 0x6d75_7374;

/// What a session's transactions may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform::db) enum Mode {
    Write,
    Read,
}

/// A connection with at most one transaction.
pub struct Session {
    runtime: tokio::runtime::Runtime,
    options: Options,
    mode: Mode,
    client: Option<Client>,
    statements: HashMap<String, Statement>,
    open: Option<Open>,
}

/// An open transaction.
#[derive(Default)]
struct Open {
    /// Whose rows it sees now.
    entered: Option<Scope>,
    locked: Vec<String>,
}

pub(super) fn runtime(url: &PostgresUrl) -> Result<tokio::runtime::Runtime, DbError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| DbError::unusable(url, format!("cannot start its event loop: {error}")))
}

impl Session {
    pub(super) fn new(options: Options, mode: Mode) -> Result<Self, DbError> {
        let runtime = runtime(&options.url)?;
        Ok(Self { runtime, options, mode, client: None, statements: HashMap::new(), open: None })
    }

    /// Runs a statement; returns how many rows it changed.
    pub(in crate::platform::db) fn execute(
        &mut self,
        scope: &Scope,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<usize, DbError> {
        self.enter(scope)?;
        let statement = self.prepare(sql)?;
        let client = self.client()?;
        let rows = answer(&self.runtime, client.execute(&statement, &borrowed(params)));
        rows.map(|rows| rows as usize).map_err(|failure| self.failed(failure))
    }

    /// Hands each row over until told to stop.
    pub(in crate::platform::db) fn each(
        &mut self,
        scope: &Scope,
        sql: &str,
        params: &[Param<'_>],
        mut each: impl FnMut(&Row) -> bool,
    ) -> Result<(), DbError> {
        self.enter(scope)?;
        let statement = self.prepare(sql)?;
        let client = self.client()?;
        let done = self.runtime.block_on(async {
            let rows = timely(client.query_raw(&statement, borrowed(params))).await?;
            let mut rows = std::pin::pin!(rows);
            while let Some(row) = timely(async { rows.next().await.transpose() }).await? {
                if !each(&row) {
                    break;
                }
            }
            Ok(())
        });
        done.map_err(|failure| self.failed(failure))
    }

    /// Makes the rest of the transaction wait for others that hold the same lock, in a write.
    pub(in crate::platform::db) fn lock(&mut self, scope: &Scope, name: &str) -> Result<(), DbError> {
        self.enter(scope)?;
        let is_needed = self.mode == Mode::Write && !self.holds(name);
        if is_needed {
            self.send(&lock_sql(name))?;
            self.open.get_or_insert_default().locked.push(name.to_owned());
        }
        Ok(())
    }

    fn holds(&self, lock: &str) -> bool {
        self.open.as_ref().is_some_and(|open| open.locked.iter().any(|locked| locked == lock))
    }

    /// Begins the transaction where there is none, and sees the scope's rows and no others from here on.
    fn enter(&mut self, scope: &Scope) -> Result<(), DbError> {
        let is_there = self.open.as_ref().is_some_and(|open| match (open.entered.as_ref(), scope) {
            (Some(Scope::System(_)), Scope::System(_)) => true,
            (entered, scope) => entered == Some(scope),
        });
        if is_there {
            return Ok(());
        }
        let lock = match scope {
            Scope::Tenant(tenant) if self.mode == Mode::Write => {
                Some(tenant.as_str()).filter(|tenant| !self.holds(tenant))
            }
            _ => None,
        };
        let mut sql = match scope {
            Scope::Tenant(tenant) => format!(
                "SET LOCAL ROLE muster_app; SET LOCAL muster.tenant = '{}'",
                tenant.as_str().replace('\'', "''")
            ),
            Scope::System(_) => "SET LOCAL ROLE muster_worker; SET LOCAL muster.tenant = ''".to_owned(),
        };
        if let Some(lock) = lock {
            sql = format!("{sql}; {}", lock_sql(lock));
        }
        if self.open.is_some() {
            self.send(&sql)?;
        } else {
            self.begin(&sql)?;
        }
        let open = self.open.get_or_insert_default();
        open.entered = Some(scope.clone());
        open.locked.extend(lock.map(str::to_owned));
        Ok(())
    }

    /// Begins on the connection that is there; where that has ended meanwhile, on a new one. Nothing was done yet.
    fn begin(&mut self, then: &str) -> Result<(), DbError> {
        let begin = match self.mode {
            Mode::Write => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        let sql = format!("{begin}; {then}");
        let is_old = self.client.is_some();
        let mut outcome = self.connect().and_then(|()| self.send(&sql));
        if is_old && matches!(outcome, Err(DbError::Unreachable(_))) {
            outcome = self.connect().and_then(|()| self.send(&sql));
        }
        outcome.inspect(|()| self.open = Some(Open::default())).inspect_err(|_| self.forget_connection())
    }

    fn send(&mut self, sql: &str) -> Result<(), DbError> {
        let client = self.client()?;
        let done = answer(&self.runtime, client.batch_execute(sql));
        done.map_err(|failure| self.failed(failure))
    }

    fn connect(&mut self) -> Result<(), DbError> {
        if self.client.is_some() {
            return Ok(());
        }
        let statement = match self.mode {
            Mode::Write => STATEMENT_TIME_MAX,
            Mode::Read => self.options.read_time_max.unwrap_or(STATEMENT_TIME_MAX),
        };
        let settings = format!(
            "SET search_path = {SCHEMA}; SET statement_timeout = {}; SET lock_timeout = {};
             SET idle_in_transaction_session_timeout = {};
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
            statement.as_millis(),
            LOCK_TIME_MAX.as_millis(),
            IDLE_TIME_MAX.as_millis(),
        );
        let options = &self.options;
        let client = self.runtime.block_on(async {
            let client = options.connect().await?;
            timely(client.batch_execute(&settings)).await.map_err(Failure::into_error)?;
            Ok::<_, DbError>(client)
        })?;
        self.statements.clear();
        self.client = Some(client);
        Ok(())
    }

    fn client(&self) -> Result<&Client, DbError> {
        self.client.as_ref().ok_or_else(|| DbError::Unreachable("the connection has ended".to_owned()))
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement, DbError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let client = self.client()?;
        let prepared = answer(&self.runtime, client.prepare(sql));
        let statement = prepared.map_err(|failure| self.failed(failure))?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Commits what was begun.
    pub(super) fn commit(&mut self) -> Result<(), DbError> {
        if self.open.take().is_none() {
            return Ok(());
        }
        self.send("COMMIT").map_err(|error| match error {
            DbError::Unreachable(why) => DbError::Unreachable(format!("{why}; it may be stored or not")),
            error => DbError::Commit(chain(&error)),
        })
    }

    /// Undoes what was begun.
    pub(super) fn roll_back(&mut self) {
        if self.open.take().is_some() && self.send("ROLLBACK").is_err() {
            self.forget_connection();
        }
    }

    fn forget_connection(&mut self) {
        self.client = None;
        self.statements.clear();
    }

    fn failed(&mut self, failure: Failure) -> DbError {
        let error = failure.into_error();
        if matches!(error, DbError::Unreachable(_)) {
            self.forget_connection();
        }
        error
    }
}

/// Why something that was sent has no good answer.
pub(super) enum Failure {
    Postgres(tokio_postgres::Error),
    NoAnswer,
}

impl Failure {
    pub(super) fn into_error(self) -> DbError {
        match self {
            Self::NoAnswer => DbError::Unreachable(format!("no answer within {ANSWER_TIME_MAX:?}")),
            // The server says why it refuses a statement; what has no such reason is the connection's end, or ours.
            Self::Postgres(error) => match error.as_db_error().map(|refusal| refusal.severity()) {
                Some("FATAL" | "PANIC") => DbError::Unreachable(chain(&error)),
                None if error.is_closed() || is_io(&error) => DbError::Unreachable(chain(&error)),
                Some(_) | None => DbError::Postgres(error),
            },
        }
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<std::io::Error>())
}

pub(super) async fn timely<T>(
    sent: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failure> {
    let answered = tokio::time::timeout(ANSWER_TIME_MAX, sent).await;
    answered.map_err(|_| Failure::NoAnswer)?.map_err(Failure::Postgres)
}

fn answer<T>(
    runtime: &tokio::runtime::Runtime,
    sent: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failure> {
    runtime.block_on(timely(sent))
}

fn borrowed<'a>(params: &'a [Param<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    params.iter().map(|param| param as &(dyn ToSql + Sync)).collect()
}

/// Two names may share a lock: then one waits without need.
fn lock_sql(name: &str) -> String {
    let hash = Sha256::digest(name.as_bytes());
    let key = i32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    format!("SELECT pg_advisory_xact_lock({LOCK_CLASS}, {key})")
}
