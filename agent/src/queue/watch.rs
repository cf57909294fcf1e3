//! Turns the journals' marks and totals into counters, since what was counted last.

use super::report::reason_from_number;
use super::wear::Wear;
use super::{Queue, QueueClass, Seq};
use crate::metrics::Metrics;
use muster_journal::{Fs, RealFs, Written};
use std::collections::BTreeMap;
use std::time::Instant;

/// What was counted so far; starts at what the queue held when the agent started.
pub struct QueueWatch<F: Fs = RealFs> {
    queue: Queue<F>,
    accepted: [Seq; 2],
    released: [Seq; 2],
    dropped: BTreeMap<(usize, u8), (u64, u64)>,
    written: [Written; 2],
    wear: Wear,
    started: Instant,
}

impl<F: Fs> QueueWatch<F> {
    /// A watch that has counted everything up to now.
    #[must_use]
    pub fn new(queue: Queue<F>) -> Self {
        let (accepted, released) = (queue.accepted_next(), queue.released());
        let (dropped, written, wear) = (BTreeMap::new(), Default::default(), Wear::new(None));
        let mut watch = Self { queue, accepted, released, dropped, written, wear, started: Instant::now() };
        watch.dropped = watch.totals();
        watch
    }

    /// Warns when a day's writing is above a bound.
    #[must_use]
    pub fn with_written_bytes_day_max(mut self, bytes: Option<u64>) -> Self {
        self.wear = Wear::new(bytes);
        self
    }

    fn totals(&self) -> BTreeMap<(usize, u8), (u64, u64)> {
        let of_class = |class: QueueClass| {
            let dropped = self.queue.journal(class).stats().dropped;
            dropped
                .into_iter()
                .map(move |(reason, records, bytes)| ((class.index(), reason.0), (records, bytes)))
        };
        QueueClass::ALL.into_iter().flat_map(of_class).collect()
    }

    /// Counts what happened since the last call.
    pub fn count(&mut self, metrics: &Metrics) {
        let (accepted, released) = (self.queue.accepted_next(), self.queue.released());
        for class in QueueClass::ALL {
            let at = class.index();
            let moved = (
                accepted[at].saturating_sub(self.accepted[at]),
                released[at].saturating_sub(self.released[at]),
            );
            metrics.queue_moved(class.up().as_str(), moved.0, moved.1);
        }
        (self.accepted, self.released) = (accepted, released);
        let totals = self.totals();
        for (key, (records, bytes)) in &totals {
            let before = self.dropped.get(key).copied().unwrap_or_default();
            let reason = reason_from_number(key.1).as_str();
            metrics.queue_dropped(reason, records.saturating_sub(before.0), bytes.saturating_sub(before.1));
        }
        self.dropped = totals;
        self.count_written(metrics);
    }

    fn count_written(&mut self, metrics: &Metrics) {
        for class in QueueClass::ALL {
            let now = self.queue.journal(class).stats().written;
            let before = std::mem::replace(&mut self.written[class.index()], now);
            let bytes = now.bytes - before.bytes;
            let block_bytes = now.block_bytes - before.block_bytes;
            let since = Written { bytes, block_bytes, syncs: now.syncs - before.syncs };
            metrics.disk_written(class.up().as_str(), since);
            self.wear.add(self.started.elapsed(), block_bytes);
        }
        let is_over = self.wear.is_over();
        metrics.disk_day(self.wear.day(), is_over);
    }
}
