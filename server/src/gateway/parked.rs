//! Connections whose first waiting message is over a quota that no tick refills: a day's, storage, inference, a rate of 0.
//!
//! An MQTT 3.1.1 client cannot be told, so its message waits; tried ten times a second until midnight a fleet of them would
//! cost others their turns. A connection stands here instead, its messages untouched, until quotas changed
//! ([`Board::changes`]: a new day, other limits, room that the meter found). `live::sweep` looks each tick. Whatever was missed,
//! such as a message that was given back, is found each [`RETRY_TICKS`].

use super::TICKS_PER_S;
use super::link::{Link, lock};
use crate::usage::Board;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// Everybody tries again after this, changes or none.
const RETRY_TICKS: u32 = 60 * TICKS_PER_S;

#[derive(Default)]
struct Line {
    /// By their address.
    links: HashMap<usize, Arc<Link>>,
    changes: u64,
    woken_at_tick: u32,
}

/// Those who wait.
#[derive(Default)]
pub(crate) struct Parked {
    line: Mutex<Line>,
}

fn address(link: &Arc<Link>) -> usize {
    Arc::as_ptr(link).addr()
}

impl Parked {
    /// Parks a connection that quotas refused when the board had seen so many changes. False: there were more since, so
    /// that the refusal may hold no longer.
    pub(crate) fn wait(&self, quotas: &Board, link: &Arc<Link>, changes: u64) -> bool {
        let mut line = lock(&self.line);
        if quotas.changes() != changes {
            return false;
        }
        link.is_parked.store(true, Ordering::Release);
        line.links.insert(address(link), link.clone());
        true
    }

    /// Has all try again where quotas changed, or where it is time.
    pub(crate) fn wake(&self, changes: u64, tick: u32) {
        let mut line = lock(&self.line);
        if line.changes == changes && tick.wrapping_sub(line.woken_at_tick) < RETRY_TICKS {
            return;
        }
        (line.changes, line.woken_at_tick) = (changes, tick);
        let links = std::mem::take(&mut line.links);
        drop(line);
        for link in links.into_values() {
            link.is_parked.store(false, Ordering::Release);
            link.waker.wake();
        }
    }

    /// Forgets a connection that ended.
    pub(crate) fn leave(&self, link: &Arc<Link>) {
        if link.is_parked.load(Ordering::Acquire) {
            lock(&self.line).links.remove(&address(link));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.line).links.len()
    }
}
