//! Keeps named tasks running, and tells the service manager.
//!
//! Called by [`crate::app`]. A task that fails or panics is started again after a wait that doubles up to
//! a bound; a run of at least [`RUN_TIME_MIN`] resets the wait. A task that ends by itself with
//! [`Exit::Done`] stays down. A task never takes another with it.

mod notify;

pub use notify::Notifier;

use crate::metrics::Metrics;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A run at least this long counts as healthy.
pub const RUN_TIME_MIN: Duration = Duration::from_secs(30);
/// The first wait before a restart.
pub const RESTART_DELAY_MIN: Duration = Duration::from_millis(200);
/// The longest wait before a restart.
pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(60);

/// How a task's run ended.
#[derive(Debug)]
pub enum Exit {
    /// It has nothing more to do.
    Done,
    /// It failed and wants another run.
    Failed(String),
}

impl<T, E: std::error::Error> From<Result<T, E>> for Exit {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => Self::Failed(chain(&error)),
        }
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some libraries put the cause into their own words already.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Decides the wait before the next run.
#[derive(Debug, Default)]
pub struct RestartDelay {
    failures: u32,
}

impl RestartDelay {
    /// The wait after a run of `ran_for`.
    pub fn next(&mut self, ran_for: Duration) -> Duration {
        self.failures = if ran_for >= RUN_TIME_MIN { 0 } else { self.failures.saturating_add(1) };
        let doublings = self.failures.saturating_sub(1).min(16);
        RESTART_DELAY_MIN.saturating_mul(1 << doublings).min(RESTART_DELAY_MAX)
    }
}

/// Raised once, when the agent stops.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// The other end of [`Stop`].
#[derive(Debug)]
pub struct StopSender(watch::Sender<bool>);

/// A stop signal and the hand that raises it.
#[must_use]
pub fn stop_pair() -> (StopSender, Stop) {
    let (sender, receiver) = watch::channel(false);
    (StopSender(sender), Stop(receiver))
}

impl StopSender {
    /// Raises the signal.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether the signal is up; also when nobody can raise it any more.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits for the signal.
    pub async fn wait(&mut self) {
        while !self.is_up() {
            if self.0.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A run that ends with the task that watches it.
struct AbortOnDrop(tokio::task::JoinHandle<Exit>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts tasks and restarts them.
#[derive(Clone)]
pub struct Supervisor {
    metrics: Metrics,
    stop: Stop,
}

impl Supervisor {
    /// A supervisor that stops restarting once `stop` is up.
    #[must_use]
    pub fn new(metrics: Metrics, stop: Stop) -> Self {
        Self { metrics, stop }
    }

    /// Runs `task` under `name` until it is done or the agent stops.
    pub fn spawn<F, Run>(&self, name: String, mut task: F) -> tokio::task::JoinHandle<()>
    where
        F: FnMut() -> Run + Send + 'static,
        Run: Future<Output = Exit> + Send + 'static,
    {
        let mut stop = self.stop.clone();
        let restarts = self.metrics.restarts.clone();
        tokio::spawn(async move {
            let mut delay = RestartDelay::default();
            loop {
                let started = Instant::now();
                let mut run = AbortOnDrop(tokio::spawn(task()));
                let exit = match (&mut run.0).await {
                    Ok(exit) => exit,
                    Err(error) if error.is_panic() => Exit::Failed("it panicked".into()),
                    Err(_) => Exit::Done,
                };
                let Exit::Failed(reason) = exit else { return };
                if stop.is_up() {
                    return;
                }
                let wait = delay.next(started.elapsed());
                tracing::warn!(task = %name, reason, wait_ms = wait.as_millis(), "task failed, will restart");
                restarts.inc();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.wait() => return,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_a_healthy_run_resets_them() {
        let mut delay = RestartDelay::default();
        let short = Duration::from_secs(1);
        let waits: Vec<_> = (0..4).map(|_| delay.next(short).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600]);
        (0..40).for_each(|_| assert!(delay.next(short) <= RESTART_DELAY_MAX));
        assert_eq!(delay.next(short), RESTART_DELAY_MAX);
        assert_eq!(delay.next(RUN_TIME_MIN), RESTART_DELAY_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_or_panicking_task_runs_again_until_done() {
        let (_sender, stop) = stop_pair();
        let metrics = Metrics::new();
        let supervisor = Supervisor::new(metrics.clone(), stop);
        let mut runs = 0;
        supervisor
            .spawn("probe".into(), move || {
                runs += 1;
                async move {
                    match runs {
                        1 => Exit::Failed("once".into()),
                        2 => panic!("twice"),
                        _ => Exit::Done,
                    }
                }
            })
            .await
            .unwrap();
        assert_eq!(metrics.restarts.get(), 2);
    }

    #[tokio::test]
    async fn stop_ends_the_wait_for_a_restart() {
        let (sender, stop) = stop_pair();
        let supervisor = Supervisor::new(Metrics::new(), stop);
        let task = supervisor.spawn("probe".into(), || async { Exit::Failed("always".into()) });
        sender.stop();
        task.await.unwrap();
    }
}
