//! The one process that may be gateway and worker of a registry.
//!
//! A lease is an advisory lock of a connection that does nothing else, and a row that names its owner. The server gives
//! the lock back when that connection ends, so a process that was killed is followed at once; one whose network is cut is
//! given up after [`KEEPALIVE`]. Such a one may still believe that it holds the lease: whatever it commits asks
//! [`Fence::check`] inside the same transaction, which fails once the row names another.
//! Promise: no two holders' fenced commits interleave. A holder that finds another's name is told by [`Lease::lost`] and
//! must stop: what it has in memory is of before.

use super::connect::{Options, chain};
use super::session::{Failure, SCHEMA, runtime, timely};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::secret;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::Client;

/// The lease of the process that reads an event log for the registry; also needed to migrate it.
pub const GATEWAY_AND_WORKER: &str = "gateway and worker";

/// How often the holder asks whether its connection still stands.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The class of the locks; tenants have another.
const LOCK_CLASS: i32 = 0x6c65_6173;
/// When the server gives up a holder that does not answer: 10 s of silence and three probes, 5 s apart.
const KEEPALIVE: &str =
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

const OWNER: &str = "SELECT owner FROM leases WHERE name = $1";

const SCOPE: Scope = Scope::System("lease");

/// Refuses the commits of a process that is no longer the holder. On SQLite there is no other.
#[derive(Clone, Debug, Default)]
pub struct Fence(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    name: &'static str,
    owner: String,
}

impl Fence {
    /// Call it first in a transaction that only the holder may commit; it keeps another from taking the lease until then.
    ///
    /// # Errors
    /// Another process holds the lease, or the database failed.
    pub fn check(&self, tx: &mut Tx<'_>) -> Result<(), DbError> {
        let Some(held) = &self.0 else { return Ok(()) };
        let owner =
            tx.query_opt(&SCOPE, &format!("{OWNER} FOR SHARE"), &[&held.name], |row| row.get::<String>(0));
        if owner?.as_ref() == Some(&held.owner) { Ok(()) } else { Err(DbError::Fenced(held.name)) }
    }

    /// Notes what other processes have to know of the holder; on SQLite there is none that could read it.
    ///
    /// # Errors
    /// Another process holds the lease, or the database failed.
    pub fn note(&self, tx: &mut Tx<'_>, facts: &str) -> Result<(), DbError> {
        let Some(held) = &self.0 else { return Ok(()) };
        let sql = "UPDATE leases SET facts = $3 WHERE name = $1 AND owner = $2";
        match tx.execute(&SCOPE, sql, &[&held.name, &held.owner, &facts])? {
            1 => Ok(()),
            _ => Err(DbError::Fenced(held.name)),
        }
    }

    /// What the newest holder noted, whether it still runs or not. On PostgreSQL only.
    ///
    /// # Errors
    /// The database failed.
    pub fn noted(tx: &mut Tx<'_>, name: &str) -> Result<Option<String>, DbError> {
        let sql = "SELECT facts FROM leases WHERE name = $1";
        Ok(tx.query_opt(&SCOPE, sql, &[&name], |row| row.get::<Option<String>>(0))?.flatten())
    }
}

/// Held while this lives.
#[derive(Debug)]
pub struct Lease {
    held: Arc<Held>,
    lost: watch::Receiver<Option<String>>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes a lease that nobody holds. Blocks.
    ///
    /// # Errors
    /// Another process holds it, or the server cannot be reached.
    pub(super) fn take(options: &Options, name: &'static str) -> Result<Self, DbError> {
        let (taken, takes) = sync_channel(1);
        let (stop, stopped) = sync_channel(0);
        let (tell, lost) = watch::channel(None);
        let options = options.clone();
        let work = move || {
            let runtime = match runtime(&options.url) {
                Ok(runtime) => runtime,
                Err(error) => return drop(taken.send(Err(error))),
            };
            let held = Arc::new(Held { name, owner: hex::encode(secret::random_bytes::<16>()) });
            match runtime.block_on(take(&options, &held)) {
                Err(error) => drop(taken.send(Err(error))),
                Ok(None) => {
                    let database = options.url.to_string();
                    let _ = taken.send(Err(DbError::LeaseHeld { database, name }));
                }
                Ok(Some(client)) => {
                    let _ = taken.send(Ok(held.clone()));
                    if let Some(why) = keep(&runtime, &options, &held, client, &stopped) {
                        tracing::error!(lease = name, why, "the lease is lost");
                        tell.send_replace(Some(why));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("lease".to_owned()).spawn(work);
        let thread = thread.map_err(|_| DbError::Closed)?;
        let held = takes.recv().map_err(|_| DbError::Closed)??;
        Ok(Self { held, lost, stop: Some(stop), thread: Some(thread) })
    }

    /// What the holder's transactions ask.
    #[must_use]
    pub fn fence(&self) -> Fence {
        Fence(Some(self.held.clone()))
    }

    /// Resolves with the reason once another process took the lease.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The thread ended with its holder.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the lease's thread panicked");
        }
    }
}

async fn connect(options: &Options) -> Result<Client, DbError> {
    let client = options.connect().await?;
    let sql = format!("{KEEPALIVE}; SET search_path = {SCHEMA}; SET ROLE muster_worker");
    timely(client.batch_execute(&sql)).await.map_err(Failure::into_error)?;
    Ok(client)
}

pub(super) async fn lock(client: &Client, name: &str) -> Result<bool, DbError> {
    let sql = "SELECT pg_try_advisory_lock($1, hashtext($2))";
    let row = timely(client.query_one(sql, &[&LOCK_CLASS, &name])).await;
    Ok(row.map_err(Failure::into_error)?.get(0))
}

/// Gives the connection that holds it; none where another does.
async fn take(options: &Options, held: &Held) -> Result<Option<Client>, DbError> {
    let client = connect(options).await?;
    if !lock(&client, held.name).await? {
        return Ok(None);
    }
    let sql = "INSERT INTO leases (name, owner) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET owner = $2";
    timely(client.execute(sql, &[&held.name, &held.owner])).await.map_err(Failure::into_error)?;
    Ok(Some(client))
}

enum Again {
    Held(Client),
    /// The server did not notice yet that the connection before has ended.
    NotYet,
    Lost,
}

/// Takes back what an ended connection held, unless another was named meanwhile.
async fn take_again(options: &Options, held: &Held) -> Result<Again, DbError> {
    let client = connect(options).await?;
    let is_locked = lock(&client, held.name).await?;
    let row = timely(client.query_opt(OWNER, &[&held.name])).await.map_err(Failure::into_error)?;
    let is_ours = row.is_some_and(|row| row.get::<_, String>(0) == held.owner);
    Ok(match (is_ours, is_locked) {
        (true, true) => Again::Held(client),
        (true, false) => Again::NotYet,
        (false, _) => Again::Lost,
    })
}

/// Watches over the connection, and takes the lease again where that ended; gives the reason once another has it.
fn keep(
    runtime: &tokio::runtime::Runtime,
    options: &Options,
    held: &Held,
    client: Client,
    stopped: &Receiver<()>,
) -> Option<String> {
    let mut client = Some(client);
    while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if let Some(one) = &client {
            if runtime.block_on(timely(one.batch_execute(""))).is_ok() {
                continue;
            }
            client = None;
        }
        match runtime.block_on(take_again(options, held)) {
            Ok(Again::Held(again)) => {
                client = Some(again);
                tracing::info!(lease = held.name, "the lease is held again");
            }
            Ok(Again::NotYet) => {
                tracing::warn!(
                    lease = held.name,
                    "the server holds the lease for a connection that has ended"
                );
            }
            Ok(Again::Lost) => return Some("another process took it".to_owned()),
            Err(error) => {
                tracing::warn!(lease = held.name, error = chain(&error), "the lease's connection is away");
            }
        }
    }
    None
}
