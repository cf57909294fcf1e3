//! The writer's thread: when it works, when it sleeps, and what its end leaves.

use crate::fs::Fs;
use crate::state::{Inner, lock};
use crate::writer::AGE_CHECK;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a full disk is tried again.
const STALL_RETRY: Duration = Duration::from_millis(200);

/// Lets nobody wait for a writer thread that panicked (in a callback, say).
struct StopOnPanic<'a, F: Fs>(&'a Inner<F>);

impl<F: Fs> Drop for StopOnPanic<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.batch).stopped = true;
            lock(&self.0.state).failed.get_or_insert_with(|| "the writer panicked".to_owned());
            self.0.changed.notify_all();
        }
    }
}

/// The writer thread.
pub(crate) fn run<F: Fs>(inner: &Inner<F>) {
    let _stop = StopOnPanic(inner);
    let mut began: Option<Instant> = None;
    loop {
        let early = began.and_then(|began| inner.options.sync_interval.checked_sub(began.elapsed()));
        if let Some(early) = early.filter(|early| !early.is_zero()) {
            std::thread::sleep(early);
        }
        began = Some(Instant::now());
        let stopping = inner.stopping.load(Ordering::Acquire);
        let mut writer = lock(&inner.writer);
        if stopping {
            return writer.finish(inner);
        }
        writer.step(inner);
        drop(writer);
        let (failed, lazy) = {
            let state = lock(&inner.state);
            (state.failed.is_some(), state.control_lazy)
        };
        if failed {
            return lock(&inner.writer).finish(inner);
        }
        wait_for_work(inner, lazy);
    }
}

/// Sleeps until there is something to do: at once where somebody waits for a record, after `linger` where
/// nobody does.
fn wait_for_work<F: Fs>(inner: &Inner<F>, lazy: bool) {
    let mut batch = lock(&inner.batch);
    loop {
        let writes = !batch.buf.is_empty() && batch.stalled.is_none();
        if batch.errand || writes && batch.urgent || inner.stopping.load(Ordering::Acquire) {
            return;
        }
        let timeout = match batch.stalled {
            Some(_) => Some(STALL_RETRY),
            None if writes => Some(inner.options.linger),
            None if lazy => Some(inner.lazy_persist()),
            None => inner.options.age_max.map(|_| AGE_CHECK),
        };
        batch.writer_sleeps = true;
        let is_over;
        (batch, is_over) = match timeout {
            Some(timeout) => {
                let woken = inner.wake.wait_timeout(batch, timeout).unwrap_or_else(PoisonError::into_inner);
                (woken.0, woken.1.timed_out())
            }
            None => (inner.wake.wait(batch).unwrap_or_else(PoisonError::into_inner), false),
        };
        batch.writer_sleeps = false;
        if is_over || batch.buf.is_empty() {
            return;
        }
    }
}
