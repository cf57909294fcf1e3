//! How long the oldest record that the store has yet to take in is durable already: pure.
//!
//! A time, not a number of records: half a second of a slow store and of a fast one count alike. Each turn notes where
//! the log stands; what the store took in passes those notes. Limit: [`NOTES_MAX`] notes, 12 s of turns; a store
//! that lags by more is told a lag that is too long rather than too short until it has caught up.

use std::collections::VecDeque;
use std::time::Duration;

/// Notes that are kept.
const NOTES_MAX: usize = 256;
/// A store that lags by fewer records does not lag: an idle log's ticks wait a minute for their commit.
pub(crate) const RECORDS_MIN: u64 = 1_000;

/// The log's marks of the turns that the store has not passed yet.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// When the durable mark was first seen, and the mark.
    notes: VecDeque<(Duration, u64)>,
}

impl Lag {
    /// Notes the marks of a turn and tells the lag.
    pub(crate) fn note(&mut self, now: Duration, durable_next: u64, released: u64) -> Duration {
        while self.notes.front().is_some_and(|(_, mark)| *mark <= released) {
            self.notes.pop_front();
        }
        let is_full = self.notes.len() >= NOTES_MAX;
        if durable_next > self.notes.back().map_or(released, |(_, mark)| *mark) {
            match self.notes.back_mut() {
                Some((_, mark)) if is_full => *mark = durable_next,
                _ => self.notes.push_back((now, durable_next)),
            }
        }
        if durable_next.saturating_sub(released) < RECORDS_MIN {
            return Duration::ZERO;
        }
        self.notes.front().map_or(Duration::ZERO, |(since, _)| now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(50);

    #[test]
    fn the_lag_is_the_age_of_what_is_not_released_yet() {
        let mut lag = Lag::default();
        // 1,000 records a turn, released ten turns later.
        for turn in 1..100_u32 {
            let durable = u64::from(turn) * 1_000;
            let age = lag.note(TURN * turn, durable, durable.saturating_sub(10_000));
            assert_eq!(age, TURN * 9.min(turn - 1), "{turn}");
        }
        assert_eq!(lag.note(TURN * 100, 99_000, 99_000), Duration::ZERO);
        assert!(lag.notes.is_empty());
        assert_eq!(lag.note(TURN * 101, 99_000, 99_000), Duration::ZERO, "an idle log");
        assert_eq!(lag.note(TURN * 200, 109_000, 99_000), Duration::ZERO, "just now");
        assert_eq!(lag.note(TURN * 300, 109_000, 99_000), TURN * 100, "nothing moves");
    }

    #[test]
    fn a_few_records_are_no_lag() {
        let mut lag = Lag::default();
        lag.note(TURN, 1_000, 1);
        assert_eq!(lag.note(TURN * 1_000, RECORDS_MIN, 1), Duration::ZERO);
        assert_eq!(lag.note(TURN * 1_000, RECORDS_MIN + 1, 1), TURN * 999);
    }

    #[test]
    fn notes_are_bounded_and_a_store_that_was_away_counts_as_behind_until_it_has_caught_up() {
        let mut lag = Lag::default();
        let durable = |turn: u32| u64::from(turn) * 1_000;
        for turn in 1..=10_000 {
            assert_eq!(lag.note(TURN * turn, durable(turn), 1), TURN * (turn - 1));
            assert!(lag.notes.len() <= NOTES_MAX);
        }
        let now = TURN * 10_001;
        let back = lag.note(now, durable(10_001), durable(10_000) - 1);
        assert!(back > TURN * 2, "{back:?}");
        assert_eq!(lag.note(now, durable(10_001), durable(10_001)), Duration::ZERO);
    }
}
