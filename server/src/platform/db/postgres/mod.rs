//! PostgreSQL: the same closures on threads of their own, one connection each.
//!
//! A write is a transaction at READ COMMITTED that takes its tenant's lock (an advisory one, to the transaction's end)
//! before its first statement of that tenant: writes of a tenant are serial, over every process, and each statement sees
//! all that was committed before it. So nothing is ever retried for serialization, and an audit chain has no gap. Work
//! over tenants takes no lock, unless it asks for one ([`Session::lock`]).
//! A read is a REPEATABLE READ transaction: one snapshot.
//!
//! Who may see what is the server's business as well: each transaction takes the role `muster_app` with one tenant, or
//! `muster_worker`; the login role itself may do nothing (ADR 0017).
//! Bounds: [`QUEUE_MAX`] waiting closures a lane, a connection a thread, and a time for everything that is sent.

mod connect;
mod lease;
mod session;
mod value;
mod wake;

use connect::Schema;
pub use connect::{Options, PostgresUrl};
pub use lease::{Fence, GATEWAY_AND_WORKER, Lease};
pub(super) use session::Mode;
pub use session::Session;
pub(super) use value::column;
pub use wake::{RESCAN_INTERVAL, WakeCounts, Wakes, Woken};

use super::sqlite::{Awaited, QUEUE_MAX, newest_version};
use super::{DbError, Tx};
use crate::platform::priority;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

struct Job {
    run: Box<dyn FnOnce(&mut Session) + Send>,
    awaited: Awaited,
}

/// A handle; clones share it. The threads end when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Db {
    options: Arc<Options>,
    /// The schema's version.
    schema: i32,
    writes: mpsc::Sender<Job>,
    reads: mpsc::Sender<Job>,
}

impl Db {
    /// Checks the server and its roles, migrates, and starts the threads. Blocks.
    pub(super) fn connect(options: &Options, migrations: refinery::Runner) -> Result<Self, DbError> {
        Self::start(options, migrations, Schema::Migrated)
    }

    /// As [`Self::connect`], where the schema must be this build's already.
    pub(super) fn connect_as_it_is(options: &Options, migrations: refinery::Runner) -> Result<Self, DbError> {
        Self::start(options, migrations, Schema::AsItIs)
    }

    fn start(options: &Options, migrations: refinery::Runner, used: Schema) -> Result<Self, DbError> {
        let schema = newest_version(&migrations);
        connect::prepare(options, migrations, used)?;
        let writes = lane(options, Mode::Write, options.writers)?;
        let reads = lane(options, Mode::Read, options.readers)?;
        Ok(Self { options: Arc::new(options.clone()), schema, writes, reads })
    }

    /// Takes a lease that one process may hold. Blocks.
    pub(super) fn lease(&self, name: &'static str) -> Result<Lease, DbError> {
        Lease::take(&self.options, name)
    }

    /// Listens to what is changed.
    pub(super) fn wakes(&self, rescan: Duration) -> Wakes {
        Wakes::listen(self.options.clone(), self.schema, rescan)
    }

    fn lane(&self, mode: Mode) -> &mpsc::Sender<Job> {
        match mode {
            Mode::Write => &self.writes,
            Mode::Read => &self.reads,
        }
    }

    /// Runs a closure on a thread of the mode. A write goes on though its caller goes away, as it does on SQLite.
    pub(super) async fn run<T, E>(
        &self,
        mode: Mode,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = job(work);
        let _waiter = (mode == Mode::Read).then(|| job.awaited.waiter());
        self.lane(mode).send(job).await.map_err(|_| DbError::Closed)?;
        answer.await.map_err(|_| DbError::Closed)?
    }

    /// As [`Self::run`], for threads outside the async runtime.
    pub(super) fn run_blocking<T, E>(
        &self,
        mode: Mode,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (job, answer) = job(work);
        self.lane(mode).blocking_send(job).map_err(|_| DbError::Closed)?;
        answer.blocking_recv().map_err(|_| DbError::Closed)?
    }
}

fn job<T, E>(
    work: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let run = Box::new(move |session: &mut Session| {
        let outcome = match Tx::postgres(session).run(work) {
            Ok(done) => session.commit().map(|()| done).map_err(E::from),
            Err(error) => {
                session.roll_back();
                Err(error)
            }
        };
        let _ = reply.send(outcome);
    });
    (Job { run, awaited: Awaited::default() }, answer)
}

fn lane(options: &Options, mode: Mode, threads: usize) -> Result<mpsc::Sender<Job>, DbError> {
    let (jobs, waiting) = mpsc::channel(QUEUE_MAX);
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..threads.max(1) {
        let (mut session, waiting) = (Session::new(options.clone(), mode)?, waiting.clone());
        let work = move || {
            priority::background();
            serve(&mut session, &waiting);
        };
        let thread = std::thread::Builder::new().name("db-postgres".to_owned()).spawn(work);
        thread.map_err(|error| DbError::unusable(&options.url, format!("cannot start a thread: {error}")))?;
    }
    Ok(jobs)
}

fn serve(session: &mut Session, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = match jobs.lock() {
            Ok(mut jobs) => jobs.blocking_recv(),
            Err(_) => return,
        };
        let Some(Job { run, awaited }) = job else { return };
        if awaited.is_gone() {
            continue;
        }
        if std::panic::catch_unwind(AssertUnwindSafe(|| run(session))).is_err() {
            session.roll_back();
        }
    }
}

#[cfg(test)]
mod tests;
