//! What the last day wrote to the disk, for those who count a flash's wear.

use std::time::Duration;

/// One slot.
const SLOT: Duration = Duration::from_secs(900);
/// A day of slots.
const SLOTS: u64 = 96;

/// Bytes by quarters of an hour, the last 24 hours (23 and three quarters just after a quarter began).
pub(super) struct Wear {
    slots: [u64; SLOTS as usize],
    slot: u64,
    day_max: Option<u64>,
    is_over: bool,
}

impl Wear {
    pub(super) fn new(day_max: Option<u64>) -> Self {
        Self { slots: [0; SLOTS as usize], slot: 0, day_max, is_over: false }
    }

    /// Counts bytes at a time since the start.
    pub(super) fn add(&mut self, at: Duration, bytes: u64) {
        let now = at.as_secs() / SLOT.as_secs();
        for slot in (self.slot + 1..=now).take(self.slots.len()) {
            self.slots[Self::index(slot)] = 0;
        }
        self.slot = self.slot.max(now);
        self.slots[Self::index(self.slot)] += bytes;
    }

    #[allow(clippy::cast_possible_truncation, reason = "below 96")]
    fn index(slot: u64) -> usize {
        (slot % SLOTS) as usize
    }

    /// Bytes of the last day.
    pub(super) fn day(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Whether that is over the bound; the log hears of it once each time it goes over.
    pub(super) fn is_over(&mut self) -> bool {
        let bytes = self.day();
        let is_over = self.day_max.is_some_and(|day_max| bytes > day_max);
        if is_over && !self.is_over {
            tracing::warn!(
                bytes,
                day_max = self.day_max,
                "more was written in a day than queue.written_bytes_day_max"
            );
        }
        self.is_over = is_over;
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_slides_by_quarters_of_an_hour() {
        let mut wear = Wear::new(Some(100));
        let at = |quarters: u32| SLOT * quarters;
        wear.add(at(0), 60);
        wear.add(at(1), 40);
        assert_eq!((wear.day(), wear.is_over()), (100, false), "at the bound");
        wear.add(at(95), 1);
        assert_eq!((wear.day(), wear.is_over()), (101, true));
        wear.add(at(96), 0);
        assert_eq!((wear.day(), wear.is_over()), (41, false), "the first quarter is a day ago");
        wear.add(at(97), 5);
        assert_eq!(wear.day(), 6);
        wear.add(at(1_000_000), 7);
        assert_eq!(wear.day(), 7, "after a long sleep only what was written now");
        wear.add(at(3), 1);
        assert_eq!(wear.day(), 8, "a clock that goes back takes nothing away");
    }
}
