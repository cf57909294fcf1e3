//! Who waits for the disk: wakes connections when their oldest unacknowledged record is durable.
//!
//! A connection that has something to acknowledge puts one entry here, for its oldest position; the
//! journal's writer thread tells the new mark after each fsync, and [`Acks::run`] wakes every connection
//! at or below it. So 10,000 idle connections cost nothing and a busy one costs one entry a commit, not
//! one a message. A heap, not a FIFO: a connection that asks again may wait for an older position than
//! one that asked before it.

use super::Core;
use super::link::{Link, lock};
use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

struct Waiting {
    position: u64,
    link: Arc<Link>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.position == other.position
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The lowest position is the greatest, so that it leaves the heap first.
    fn cmp(&self, other: &Self) -> Order {
        other.position.cmp(&self.position)
    }
}

/// The durable mark and those who wait for it.
#[derive(Default)]
pub(crate) struct Acks {
    durable_next: AtomicU64,
    waiting: Mutex<BinaryHeap<Waiting>>,
    told: Notify,
}

impl Acks {
    /// Everything below is durable.
    pub(crate) fn durable_next(&self) -> u64 {
        self.durable_next.load(Ordering::Acquire)
    }

    /// Called by the journal's writer thread after each fsync; does not block.
    pub(crate) fn tell(&self, durable_next: u64) {
        self.durable_next.fetch_max(durable_next, Ordering::AcqRel);
        self.told.notify_one();
    }

    /// Has the connection woken once its record at `position` is durable. It must look at
    /// [`Self::durable_next`] once more afterwards: the mark may have passed in between.
    pub(crate) fn wait(&self, position: u64, link: &Arc<Link>) {
        if !link.waits_for_ack.swap(true, Ordering::AcqRel) {
            lock(&self.waiting).push(Waiting { position, link: link.clone() });
        }
    }

    fn take_durable(&self, ready: &mut Vec<Arc<Link>>) {
        let durable_next = self.durable_next();
        let mut waiting = lock(&self.waiting);
        while waiting.peek().is_some_and(|first| first.position < durable_next) {
            let Some(Waiting { link, .. }) = waiting.pop() else { break };
            link.waits_for_ack.store(false, Ordering::Release);
            ready.push(link);
        }
    }

    /// Wakes connections; runs for the gateway's life.
    pub(crate) async fn run(core: Arc<Core>) {
        let mut ready = Vec::new();
        loop {
            core.acks.told.notified().await;
            core.acks.take_durable(&mut ready);
            for link in ready.drain(..) {
                link.waker.wake();
            }
            core.stalls.nudge();
        }
    }
}
