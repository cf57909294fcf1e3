//! The one process that may be gateway and worker of a registry.
//!
//! A lease is an advisory lock of a connection that does nothing else, with an epoch that grows each time it is taken. The
//! server gives the lock back when that connection ends, so a process that was killed is followed at once; one whose
//! network is cut is given up after [`KEEPALIVE`]. Such a one may still believe that it holds the lease: whatever it
//! commits asks [`Fence::check`] inside the same transaction, which fails once the epoch has moved on.
//! Promise: no two holders' fenced commits interleave. A holder that finds that another came between is told by
//! [`Lease::lost`] and must stop: what it has in memory is of before.

use super::connect::{Options, chain};
use super::session::{ANSWER_TIME_MAX, SCHEMA, runtime};
use crate::platform::db::{DbError, Scope, Tx};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::Client;

/// How often the holder asks whether its connection still stands.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The class of the locks; tenants have another.
const LOCK_CLASS: i32 = 0x6c65_6173;
/// When the server gives up a holder that does not answer: 10 s of silence and three probes, 5 s apart.
const KEEPALIVE: &str =
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

const SCOPE: Scope = Scope::System("lease");

/// Refuses the commits of a process that is no longer the holder. On SQLite there is no other.
#[derive(Clone, Debug, Default)]
pub struct Fence(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    name: &'static str,
    epoch: AtomicI64,
}

impl Fence {
    /// Call it first in a transaction that only the holder may commit; it keeps another from taking the lease until then.
    ///
    /// # Errors
    /// Another process holds the lease, or the database failed.
    pub fn check(&self, tx: &mut Tx<'_>) -> Result<(), DbError> {
        let Some(held) = &self.0 else { return Ok(()) };
        let sql = "SELECT epoch FROM leases WHERE name = $1 FOR SHARE";
        let epoch: Option<i64> = tx.query_opt(&SCOPE, sql, &[&held.name], |row| row.get(0))?;
        if epoch == Some(held.epoch.load(Ordering::SeqCst)) {
            Ok(())
        } else {
            Err(DbError::Fenced(held.name))
        }
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
            match runtime.block_on(take(&options, name)) {
                Err(error) => drop(taken.send(Err(error))),
                Ok((client, epoch)) => {
                    let held = Arc::new(Held { name, epoch: AtomicI64::new(epoch) });
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

async fn take(options: &Options, name: &'static str) -> Result<(Client, i64), DbError> {
    let client = options.connect().await?;
    let sql = format!("{KEEPALIVE}; SET search_path = {SCHEMA}; SET ROLE muster_worker");
    client.batch_execute(&sql).await?;
    let lock = "SELECT pg_try_advisory_lock($1, hashtext($2))";
    if !client.query_one(lock, &[&LOCK_CLASS, &name]).await?.get::<_, bool>(0) {
        return Err(DbError::LeaseHeld { database: options.url.to_string(), name });
    }
    let next = "INSERT INTO leases (name, epoch) VALUES ($1, 1)
                ON CONFLICT (name) DO UPDATE SET epoch = leases.epoch + 1 RETURNING epoch";
    let epoch = client.query_one(next, &[&name]).await?.get(0);
    Ok((client, epoch))
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
            let answer = async { tokio::time::timeout(ANSWER_TIME_MAX, one.batch_execute("")).await };
            if matches!(runtime.block_on(answer), Ok(Ok(()))) {
                continue;
            }
            client = None;
        }
        match runtime.block_on(take(options, held.name)) {
            // Nobody came between: the epoch is the next one.
            Ok((again, epoch)) if held.epoch.load(Ordering::SeqCst) + 1 == epoch => {
                held.epoch.store(epoch, Ordering::SeqCst);
                client = Some(again);
                tracing::info!(lease = held.name, epoch, "the lease is held again");
            }
            Ok((_, epoch)) => return Some(format!("another process held it (epoch {epoch})")),
            Err(DbError::LeaseHeld { .. }) => return Some("another process holds it".to_owned()),
            Err(error) => {
                tracing::warn!(
                    lease = held.name,
                    error = chain(&error),
                    "the lease's connection is away, will retry"
                );
            }
        }
    }
    None
}
