//! How long a message takes from its append to the disk: one at a time is timed.
//!
//! A turn of `credit` arms it, the next message's append begins it, the journal's writer thread ends it. Costs an
//! append one relaxed load while it is not armed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NONE: u64 = u64::MAX;

/// The record that is timed.
pub(crate) struct Probe {
    started: Instant,
    armed: AtomicBool,
    /// Its position, while it is not durable.
    position: AtomicU64,
    appended_at_us: AtomicU64,
    delay_us: AtomicU64,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            armed: AtomicBool::new(false),
            position: AtomicU64::new(NONE),
            appended_at_us: AtomicU64::new(0),
            delay_us: AtomicU64::new(NONE),
        }
    }
}

impl Probe {
    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(NONE)
    }

    /// A message was appended. `durable_next` is asked for only where it is timed.
    pub(crate) fn appended(&self, position: u64, durable_next: impl FnOnce() -> u64) {
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            self.appended_at_us.store(self.now_us(), Ordering::Relaxed);
            self.position.store(position, Ordering::Release);
            // The word of it may have passed already.
            self.durable(durable_next());
        }
    }

    /// Everything below is durable.
    pub(crate) fn durable(&self, durable_next: u64) {
        let position = self.position.load(Ordering::Acquire);
        if position < durable_next
            && self.position.compare_exchange(position, NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let delay_us = self.now_us().saturating_sub(self.appended_at_us.load(Ordering::Relaxed));
            self.delay_us.store(delay_us, Ordering::Release);
        }
    }

    /// The delay measured since the last call, or how long one lasts already; arms it for the next.
    pub(crate) fn take(&self) -> Option<Duration> {
        let measured = self.delay_us.swap(NONE, Ordering::AcqRel);
        if measured == NONE && self.position.load(Ordering::Acquire) != NONE {
            let since_us = self.now_us().saturating_sub(self.appended_at_us.load(Ordering::Relaxed));
            return Some(Duration::from_micros(since_us));
        }
        self.armed.store(true, Ordering::Release);
        (measured != NONE).then(|| Duration::from_micros(measured))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_at_a_time_is_timed_until_it_is_durable() {
        let probe = Probe::default();
        let appended = |position| probe.appended(position, || 0);
        appended(1);
        assert_eq!(probe.take(), None, "not armed before the first turn");
        appended(7);
        appended(8);
        probe.durable(7);
        assert!(probe.take().is_some(), "7 is not below 7: how long it lasts already");
        assert_eq!(probe.position.load(Ordering::Relaxed), 7, "the first after the turn, and still that one");
        probe.durable(8);
        appended(9);
        assert!(probe.take().is_some(), "measured");
        assert_eq!(probe.take(), None, "once");
        appended(10);
        probe.durable(11);
        assert!(probe.take().is_some());
    }

    #[test]
    fn a_record_that_is_durable_before_it_is_noted_is_measured_all_the_same() {
        let probe = Probe::default();
        assert_eq!(probe.take(), None);
        probe.appended(5, || 6);
        assert_eq!(probe.position.load(Ordering::Relaxed), NONE);
        assert!(probe.take().is_some());
    }
}
