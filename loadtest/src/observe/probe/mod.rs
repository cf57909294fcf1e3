//! Probes: how long after its intended time a message is stored, and an alert is visible, as an API client sees it.
//!
//! `run` starts them, tells each message before it is sent, and takes what was seen. The latency is from the intended
//! time, so that a generator that is late does not flatter the server. Both survive a server that is killed,
//! frozen or restarted: they look on until [`GIVE_UP_AFTER`], and what was never seen is counted.
//!
//! A stored probe costs the server some ten small requests; one a second is not seen in its load, a hundred are.

mod alert;
mod stored;

pub use alert::{AlertProbe, AlertWatch};
pub use stored::{StoredProbe, StoredWatch};

use crate::report::model;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a message is looked for.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
/// Messages that are looked for at once; more are not watched, and counted.
pub const WATCHED_MAX: usize = 4096;
/// Observations that wait to be taken; then the oldest go, from the list only.
pub const OBSERVED_MAX: usize = 65_536;
/// The longest latency that the histogram tells apart, in microseconds.
const LATENCY_US_MAX: u64 = 600_000_000;

/// One message that was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// When.
    pub at: Instant,
    /// How long after its intended time.
    pub ms: f64,
}

/// What a probe found.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// Latencies, microseconds.
    pub histogram: Histogram<u64>,
    /// Messages that were not seen within [`GIVE_UP_AFTER`].
    pub given_up: u64,
    /// Messages that were not watched, since too many were.
    pub not_watched: u64,
    /// Messages that are still looked for.
    pub waiting: u64,
    /// Of those that were seen: not when they came, but later in a list. Their latency is an upper bound.
    pub seen_late: u64,
}

impl ProbeResult {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        let histogram = histogram.expect("the bounds are valid constants");
        Self { histogram, given_up: 0, not_watched: 0, waiting: 0, seen_late: 0 }
    }

    /// The histogram in short; none where nothing was seen.
    #[must_use]
    pub fn latency(&self) -> Option<model::Latency> {
        let of = &self.histogram;
        #[allow(clippy::cast_precision_loss, reason = "microseconds of minutes")]
        let ms = |us: u64| us as f64 / 1_000.0;
        let at = |quantile| ms(of.value_at_quantile(quantile));
        (!of.is_empty()).then(|| model::Latency {
            count: of.len(),
            p50_ms: at(0.50),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(of.max()),
        })
    }
}

/// What a probe's thread and its owner share.
struct Board {
    stop: AtomicBool,
    found: Mutex<Found>,
}

struct Found {
    result: ProbeResult,
    observed: VecDeque<Observed>,
}

impl Board {
    fn new() -> Arc<Self> {
        let found = Found { result: ProbeResult::new(), observed: VecDeque::new() };
        Arc::new(Self { stop: AtomicBool::new(false), found: Mutex::new(found) })
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn seen(&self, intended: Instant, at: Instant) {
        let after = at.saturating_duration_since(intended);
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        let mut found = self.lock();
        found.result.histogram.saturating_record(us.clamp(1, LATENCY_US_MAX));
        if found.observed.len() >= OBSERVED_MAX {
            found.observed.pop_front();
        }
        found.observed.push_back(Observed { at, ms: after.as_secs_f64() * 1_000.0 });
    }
}

/// A probe's thread, and the bounded way to it.
struct Worker<W> {
    watches: Option<SyncSender<W>>,
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl<W: Send + 'static> Worker<W> {
    fn start(name: &str, work: impl FnOnce(&Board, &Receiver<W>) + Send + 'static) -> anyhow::Result<Self> {
        let (watches, incoming) = sync_channel(WATCHED_MAX);
        let board = Board::new();
        let mine = board.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&mine, &incoming))?;
        Ok(Self { watches: Some(watches), board, thread: Some(thread) })
    }

    fn watch(&self, watch: W) {
        let sent = self.watches.as_ref().is_some_and(|watches| watches.try_send(watch).is_ok());
        if !sent {
            self.board.lock().result.not_watched += 1;
        }
    }

    fn take(&self) -> Vec<Observed> {
        self.board.lock().observed.drain(..).collect()
    }

    fn finish(self) -> ProbeResult {
        let board = self.board.clone();
        drop(self);
        let found = board.lock();
        found.result.clone()
    }
}

impl<W> Drop for Worker<W> {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::Release);
        self.watches = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
