//! Waits that double up to a bound, each with jitter so that a fleet does not return at one moment.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// The state of one series of waits.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    rng: SmallRng,
}

impl Backoff {
    /// Waits from `min` to `max`; `seed` makes the jitter repeatable.
    #[must_use]
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, failures: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    /// The wait after one more failure: between half and all of the doubled time.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.min.saturating_mul(1 << self.failures.min(24)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// The wait after one more failure; the first one at any time within `spread`, where that is longer: a fleet
    /// that lost its server at one moment comes back over that time.
    pub fn first_wait_within(&mut self, spread: Duration) -> Duration {
        let is_first = self.failures == 0;
        let own = self.next_wait();
        if is_first && spread > own { spread.mul_f64(self.rng.random_range(0.0..=1.0)) } else { own }
    }

    /// A success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_up_to_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3), 7);
        for expect_ms in [100, 200, 400, 800, 1600, 3000, 3000, 3000] {
            let wait = backoff.next_wait().as_millis();
            assert!((expect_ms / 2..=expect_ms).contains(&wait), "{wait} for {expect_ms}");
        }
        backoff.reset();
        assert!(backoff.next_wait().as_millis() <= 100);
    }

    #[test]
    fn the_first_wait_alone_is_spread_and_only_by_more_than_its_own() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(3));
        let mut backoff = Backoff::new(min, max, 7);
        let spread = Duration::from_secs(10);
        let mut tenths = [0; 10];
        for _ in 0..1_000 {
            let wait = backoff.first_wait_within(spread);
            assert!(wait <= spread);
            tenths[usize::try_from(wait.as_millis()).unwrap().min(9_999) / 1_000] += 1;
            assert!(backoff.first_wait_within(spread) <= 2 * min, "the second is its own");
            backoff.reset();
        }
        assert!(tenths.iter().all(|count| *count > 50), "{tenths:?}");
        for spread in [Duration::ZERO, min / 2] {
            let wait = backoff.first_wait_within(spread);
            assert!((min / 2..=min).contains(&wait), "{wait:?}");
            backoff.reset();
        }
    }
}
