//! Follows another server's registry while a gateway runs without one of its own.
//!
//! One thread, which asks a [`Replica`] to look each [`LOOK_INTERVAL`], and to compare everything each
//! [`COMPARE_INTERVAL`]. Promise: a device that was shut out there is told to go here within a second or so. While the
//! registry cannot be read, what was known stays in force, `/readyz` says so, and it is tried again for ever.

use super::AppError;
use crate::devices::replica::{Look, Replica, Seen};
use crate::platform::condition::Condition;
use crate::platform::db::DbError;
use crate::platform::http_kit::chain;
use crate::platform::threads::{Stop, Threads};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at what was changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks at everything: a tenth of a second of one core at 100,000 devices.
const COMPARE_INTERVAL: Duration = Duration::from_secs(60);

/// What the thread did so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether it works.
    pub(super) condition: Condition,
    /// Changes that the audit chains named.
    pub(super) named: AtomicU64,
    /// Comparisons of everything.
    pub(super) compares: AtomicU64,
    /// What a comparison found that no audit chain had named.
    pub(super) unnamed: AtomicU64,
    /// Looks that failed.
    pub(super) failures: AtomicU64,
}

impl Progress {
    fn saw(&self, seen: Seen) {
        let Seen { named, compared } = seen;
        self.named.fetch_add(named.unwrap_or(0) as u64, Ordering::Relaxed);
        let Some(wrong) = compared else { return };
        self.compares.fetch_add(1, Ordering::Relaxed);
        match named {
            Some(_) if wrong > 0 => {
                self.unnamed.fetch_add(wrong as u64, Ordering::Relaxed);
                tracing::warn!(changes = wrong, "the registry was changed without a row in its audit chain");
            }
            Some(_) => {}
            None => tracing::info!(changes = wrong, "the registry was read as a whole"),
        }
    }

    fn looked(&self, outcome: Result<Seen, DbError>) {
        match outcome {
            Ok(seen) => {
                if self.condition.check().is_err() {
                    tracing::info!("the registry can be read again");
                }
                self.condition.works();
                self.saw(seen);
            }
            Err(error) => {
                let why = chain(&error);
                self.failures.fetch_add(1, Ordering::Relaxed);
                if self.condition.check().is_ok() {
                    tracing::error!(error = %why, "the registry cannot be read, what is known stays, will retry");
                }
                self.condition.fails(why);
            }
        }
    }
}

/// The running thread; dropping it stops it.
pub(super) struct Follower {
    progress: Arc<Progress>,
    _threads: Threads,
}

impl Follower {
    /// Starts to follow.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(mut replica: Replica) -> Result<Self, AppError> {
        let progress = Arc::<Progress>::default();
        let (told, mut threads) = (progress.clone(), Threads::default());
        let started = threads.start("registry", move |stop| run(&mut replica, &told, stop));
        started.map_err(AppError::Thread)?;
        Ok(Self { progress, _threads: threads })
    }

    /// Its counters and condition.
    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }
}

fn run(replica: &mut Replica, progress: &Progress, stop: &Stop) {
    let _ending = progress.condition.until_end();
    let mut compared = Instant::now();
    while !stop.wait(LOOK_INTERVAL) {
        let is_due = compared.elapsed() >= COMPARE_INTERVAL;
        let outcome = replica.look(if is_due { Look::Everything } else { Look::Changes });
        if outcome.as_ref().is_ok_and(|seen| seen.compared.is_some()) {
            compared = Instant::now();
        }
        progress.looked(outcome);
    }
}
