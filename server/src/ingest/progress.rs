//! What the store consumer did since the start, for `/metrics` and `/readyz`.

use crate::platform::condition::Condition;
use crate::platform::telemetry::StoredBatch;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start, and whether it works.
#[derive(Debug, Default)]
pub struct Progress {
    /// Working, failing, or ended.
    pub condition: Condition,
    messages: AtomicU64,
    readings: AtomicU64,
    events: AtomicU64,
    duplicates: AtomicU64,
    dead_letters: AtomicU64,
    batches: AtomicU64,
    failures: AtomicU64,
}

/// A reading of [`Progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressNow {
    /// Queue records and foreign messages stored.
    pub messages: u64,
    /// Readings stored.
    pub readings: u64,
    /// Events stored.
    pub events: u64,
    /// Copies of records that were stored before.
    pub duplicates: u64,
    /// Bodies that could not be decoded.
    pub dead_letters: u64,
    /// Batches.
    pub batches: u64,
    /// Steps that failed and were tried again.
    pub failures: u64,
}

impl Progress {
    /// The counters now.
    #[must_use]
    pub fn now(&self) -> ProgressNow {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProgressNow {
            messages: get(&self.messages),
            readings: get(&self.readings),
            events: get(&self.events),
            duplicates: get(&self.duplicates),
            dead_letters: get(&self.dead_letters),
            batches: get(&self.batches),
            failures: get(&self.failures),
        }
    }

    pub(super) fn stored(&self, batch: &StoredBatch) {
        for (counter, more) in [
            (&self.messages, batch.messages),
            (&self.readings, batch.readings),
            (&self.events, batch.events),
            (&self.duplicates, batch.duplicates),
            (&self.dead_letters, batch.dead_letters),
            (&self.batches, 1),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&self, why: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.condition.fails(why);
    }
}
