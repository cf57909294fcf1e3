//! Tells that the registry was changed, by this process or another: LISTEN on a connection that does nothing else.
//!
//! `app::follow` awaits [`Wakes::next`]. Each row of an audit chain notifies when it commits (a trigger of the schema); the
//! payload is the chain's name, so what was changed is read from there, under the reader's own rights.
//! Promise: after a commit, [`Wakes::next`] gives its tenant at once, or [`Woken::Everything`] after the next rescan: each
//! [`RESCAN_INTERVAL`], and whenever the connection was made anew, so a notification that was lost costs no more.
//! A connection that ends is made again after a pause that grows from [`PAUSE_MIN`] to [`PAUSE_MAX`]. Bound: beyond
//! [`NAMED_MAX`] tenants that wait it is everything.
//!
//! The connection holds the schema's lock, shared, so that no newer build migrates the schema under this process; where one
//! did while the connection was away, [`Wakes::lost`] says so and the process must end.

use super::connect::{Options, chain};
use super::session::{Failure, SCHEMA, timely};
use crate::platform::condition::Condition;
use crate::platform::db::DbError;
use muster_wire::TenantId;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Between two looks at everything.
pub const RESCAN_INTERVAL: Duration = Duration::from_secs(30);
/// Tenants that may wait by name.
pub const NAMED_MAX: usize = 1_000;
/// Before the connection is made again, at first.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Before the connection is made again, in the end.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What the trigger notifies.
const CHANNEL: &str = "muster_registry";
/// The class of the lock on the schema.
const LOCK_CLASS: i32 = 0x7363_6865;

/// What may have been changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something of these tenants.
    Tenants(BTreeSet<TenantId>),
    /// Anything.
    Everything,
}

impl Woken {
    fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Tenants(tenants), Self::Tenants(more)) if tenants.len() + more.len() <= NAMED_MAX => {
                tenants.extend(more);
            }
            _ => *self = Self::Everything,
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct WakeCounts {
    /// Notifications that came in.
    pub notifications: AtomicU64,
    /// Times that the connection was made.
    pub connects: AtomicU64,
    /// Wakes for everything.
    pub rescans: AtomicU64,
}

#[derive(Debug, Default)]
struct Board {
    waiting: Mutex<Option<Woken>>,
    news: Notify,
    counts: WakeCounts,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Option<Woken>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, woken: Woken) {
        let mut waiting = self.lock();
        match waiting.as_mut() {
            Some(waiting) => waiting.merge(woken),
            None => *waiting = Some(woken),
        }
        drop(waiting);
        self.news.notify_one();
    }

    fn notified(&self, payload: &str) {
        self.counts.notifications.fetch_add(1, Ordering::Relaxed);
        // The chain `-` names nothing that a process keeps in memory; what is no tenant is not ours.
        if let Ok(tenant) = TenantId::parse(payload) {
            self.add(Woken::Tenants(BTreeSet::from([tenant])));
        }
    }

    fn rescan(&self) {
        self.counts.rescans.fetch_add(1, Ordering::Relaxed);
        self.add(Woken::Everything);
    }
}

/// Wakes of one process. The connection ends with it.
#[derive(Debug)]
pub struct Wakes {
    board: Arc<Board>,
    condition: Condition,
    lost: watch::Receiver<Option<String>>,
    task: JoinHandle<()>,
}

impl Wakes {
    /// Listens from now on, on the runtime that this is called on; the first wake is for everything.
    pub(super) fn listen(options: Arc<Options>, schema: i32, rescan: Duration) -> Self {
        let (board, condition) = (Arc::<Board>::default(), Condition::default());
        let (tell, lost) = watch::channel(None);
        let listener =
            Listener { options, schema, rescan, board: board.clone(), condition: condition.clone() };
        let task = tokio::spawn(async move {
            let why = listener.run().await;
            tracing::error!(why, "this process must end");
            listener.condition.fails(why.clone());
            tell.send_replace(Some(why));
        });
        Self { board, condition, lost, task }
    }

    /// Waits for what may have been changed since the call before. For one caller at a time.
    pub async fn next(&self) -> Woken {
        loop {
            if let Some(woken) = self.board.lock().take() {
                return woken;
            }
            self.board.news.notified().await;
        }
    }

    /// Gives back what could not be looked at.
    pub fn again(&self, woken: Woken) {
        self.board.add(woken);
    }

    /// Whether notifications come in.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.condition.clone()
    }

    /// Counters since the start.
    pub fn counter(&self, read: fn(&WakeCounts) -> &AtomicU64) -> impl Fn() -> u64 + Send + Sync + 'static {
        let board = self.board.clone();
        move || read(&board.counts).load(Ordering::Relaxed)
    }

    /// Resolves with the reason once the schema is no longer this build's.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes the schema's lock for a migration; false where another process runs on the schema.
pub(super) async fn lock_schema(client: &Client) -> Result<bool, DbError> {
    let row = timely(client.query_one("SELECT pg_try_advisory_lock($1, 0)", &[&LOCK_CLASS])).await;
    Ok(row.map_err(Failure::into_error)?.get(0))
}

struct Listener {
    options: Arc<Options>,
    schema: i32,
    rescan: Duration,
    board: Arc<Board>,
    condition: Condition,
}

impl Listener {
    /// Listens again and again; ends with the reason where that makes no sense any more.
    async fn run(&self) -> String {
        let mut pause = PAUSE_MIN;
        loop {
            let connects = self.board.counts.connects.load(Ordering::Relaxed);
            let error = match self.session().await {
                Ok(why) => return why,
                Err(error) => chain(&error),
            };
            if self.board.counts.connects.load(Ordering::Relaxed) > connects {
                pause = PAUSE_MIN;
            }
            tracing::warn!(error, "changes of the registry are not heard of, will retry");
            self.condition.fails(error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection, to its end.
    async fn session(&self) -> Result<String, DbError> {
        let (alive, mut ended) = oneshot::channel::<()>();
        let board = self.board.clone();
        let client = self
            .options
            .connect_and(move |notification| {
                let _held_while_it_stands = &alive;
                board.notified(notification.payload());
            })
            .await?;
        if let Some(why) = self.check_schema(&client).await? {
            return Ok(why);
        }
        send(&client, &format!("RESET ROLE; LISTEN {CHANNEL}")).await?;
        self.board.counts.connects.fetch_add(1, Ordering::Relaxed);
        if self.condition.check().is_err() {
            tracing::info!("changes of the registry are heard of again");
        }
        self.condition.works();
        loop {
            self.board.rescan();
            tokio::select! {
                _ = &mut ended => return Err(DbError::Unreachable("the listening connection has ended".to_owned())),
                () = tokio::time::sleep(self.rescan) => send(&client, "").await?,
            }
        }
    }

    /// Holds the schema as it is; the reason where it is another build's.
    async fn check_schema(&self, client: &Client) -> Result<Option<String>, DbError> {
        send(client, &format!("SET search_path = {SCHEMA}; SET ROLE muster_owner")).await?;
        let held =
            timely(client.query_one("SELECT pg_try_advisory_lock_shared($1, 0)", &[&LOCK_CLASS])).await;
        if !held.map_err(Failure::into_error)?.get::<_, bool>(0) {
            return Err(DbError::unusable(&self.options.url, "its schema is being migrated"));
        }
        let sql = "SELECT coalesce(max(version), 0)::int4 FROM refinery_schema_history";
        let found: i32 = timely(client.query_one(sql, &[])).await.map_err(Failure::into_error)?.get(0);
        let ours = self.schema;
        Ok((found != ours).then(|| {
            format!(
                "the registry's schema is version {found} now, this build knows {ours}: start another build"
            )
        }))
    }
}

async fn send(client: &Client, sql: &str) -> Result<(), DbError> {
    timely(client.batch_execute(sql)).await.map_err(Failure::into_error)
}

#[cfg(test)]
mod tests;
