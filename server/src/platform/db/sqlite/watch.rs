//! Ends reads that take too long, or whose answer nobody waits for any more.
//!
//! A reader thread owns one [`Watch`]: SQLite asks it every [`LOOK_EVERY`] instructions whether to go on. So a query
//! that is as long as its range cannot hold a reader after its HTTP request was given up.

use rusqlite::Connection;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Instructions of SQLite's machine between two looks: well under a millisecond.
const LOOK_EVERY: c_int = 10_000;

/// Whether somebody waits for a read's answer.
#[derive(Clone, Debug, Default)]
pub(in crate::platform::db) struct Awaited {
    gone: Arc<AtomicBool>,
}

impl Awaited {
    pub(in crate::platform::db) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The caller's end: once it is dropped, nobody waits.
    pub(in crate::platform::db) fn waiter(&self) -> Waiter {
        Waiter(self.gone.clone())
    }
}

/// Held by the caller while it waits.
pub(in crate::platform::db) struct Waiter(Arc<AtomicBool>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The read that runs now on a connection.
#[derive(Clone, Default)]
pub(super) struct Watch {
    now: Arc<Mutex<Option<Running>>>,
}

struct Running {
    awaited: Awaited,
    until: Option<Instant>,
}

impl Running {
    fn must_end(&self) -> bool {
        self.awaited.is_gone() || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

impl Watch {
    /// Watches a connection.
    pub(super) fn install(connection: &mut Connection) -> Result<Self, rusqlite::Error> {
        let watch = Self::default();
        let asked = watch.clone();
        let must_end = move || asked.now().as_ref().is_some_and(Running::must_end);
        connection.progress_handler(LOOK_EVERY, Some(must_end))?;
        Ok(watch)
    }

    pub(super) fn begin(&self, awaited: Awaited, time_max: Option<Duration>) {
        *self.now() = Some(Running { awaited, until: time_max.map(|time| Instant::now() + time) });
    }

    pub(super) fn end(&self) {
        *self.now() = None;
    }

    fn now(&self) -> MutexGuard<'_, Option<Running>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
