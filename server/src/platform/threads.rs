//! Threads that end with what started them: each looks at a flag, and is waited for.

use super::priority;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Running threads. Dropping it stops them.
#[derive(Default)]
pub struct Threads {
    stop: Arc<Stop>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts a thread that yields to the gateway and the log.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn background(
        &mut self,
        name: &str,
        work: impl FnOnce(&Stop) + Send + 'static,
    ) -> std::io::Result<()> {
        self.start(name, move |stop| {
            priority::background();
            work(stop);
        })
    }

    /// Starts a thread as important as any.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(&mut self, name: &str, work: impl FnOnce(&Stop) + Send + 'static) -> std::io::Result<()> {
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&stop))?;
        self.running.push(thread);
        Ok(())
    }

    /// Tells the threads to end and waits until they have.
    pub fn stop(&mut self) {
        self.stop.set();
        for thread in self.running.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(name, "a thread panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A flag that sleepers notice at once.
#[derive(Default)]
pub struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Raises the flag for good.
    pub fn set(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Whether it is raised.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until it is raised or the time is over; says whether it is raised.
    pub fn wait(&self, timeout: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(set, timeout, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const FOR_EVER: Duration = Duration::from_secs(3_600);

    #[test]
    fn dropping_them_wakes_sleepers_and_waits_for_all() {
        let ended = Arc::new(AtomicU32::new(0));
        let mut threads = Threads::default();
        for name in ["first", "second"] {
            let ended = ended.clone();
            let work = move |stop: &Stop| {
                assert!(stop.wait(FOR_EVER));
                ended.fetch_add(1, Ordering::Release);
            };
            threads.background(name, work).unwrap();
        }
        threads.start("panics", |_| panic!("the others are waited for nevertheless")).unwrap();
        drop(threads);
        assert_eq!(ended.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_wait_ends_with_its_time() {
        let stop = Stop::default();
        assert!(!stop.wait(Duration::ZERO) && !stop.is_set());
        stop.set();
        assert!(stop.wait(FOR_EVER) && stop.is_set());
    }
}
