//! How long single runs take. Pure: the clock and the run are the caller's.

use std::time::Duration;

/// What ends a series of runs, whichever comes first. One run is made in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunBounds {
    /// Runs at most.
    pub runs_max: usize,
    /// Time at most, but for the run that goes beyond it.
    pub time_max: Duration,
}

/// The times of single runs; one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency(Vec<Duration>);

impl Latency {
    /// How many runs were made.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// The shortest.
    #[must_use]
    pub fn min(&self) -> Duration {
        self.0[0]
    }

    /// As many are longer as are shorter.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.0[self.runs() / 2]
    }

    /// 95 of 100 are not longer.
    #[must_use]
    pub fn p95(&self) -> Duration {
        self.0[(self.runs() * 95).div_ceil(100) - 1]
    }
}

/// Runs and times until a bound is reached.
///
/// # Errors
/// The first run that fails.
pub fn time_runs<E>(
    bounds: RunBounds,
    mut clock: impl FnMut() -> Duration,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Latency, E> {
    let began = clock();
    let (mut before, mut took) = (began, Vec::with_capacity(bounds.runs_max));
    loop {
        run()?;
        let now = clock();
        took.push(now - before);
        if took.len() >= bounds.runs_max || now - began >= bounds.time_max {
            took.sort_unstable();
            return Ok(Latency(took));
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    /// Times runs that take these microseconds each, over and over.
    fn timed(runs_max: usize, time_max_us: u64, each_us: &[u64]) -> Latency {
        let now = Cell::new(0);
        let mut next = each_us.iter().cycle();
        let bounds = RunBounds { runs_max, time_max: Duration::from_micros(time_max_us) };
        let run = || -> Result<(), Infallible> {
            now.set(now.get() + next.next().unwrap());
            Ok(())
        };
        time_runs(bounds, || Duration::from_micros(now.get()), run).unwrap()
    }

    #[test]
    fn runs_end_at_the_first_bound_and_one_is_made_in_any_case() {
        assert_eq!(timed(200, 1_000_000, &[10]).runs(), 200);
        assert_eq!(timed(200, 95, &[10]).runs(), 10);
        assert_eq!(timed(200, 100, &[10]).runs(), 10);
        assert_eq!(timed(200, 101, &[10]).runs(), 11);
        assert_eq!(timed(0, 1_000, &[10]).runs(), 1);
        assert_eq!(timed(200, 0, &[10]).runs(), 1);
    }

    #[test]
    fn the_figures_are_those_of_the_sorted_runs() {
        let us = Duration::from_micros;
        let each: Vec<u64> = (1..=100).rev().collect();
        let latency = timed(100, 1_000_000, &each);
        assert_eq!((latency.min(), latency.median(), latency.p95()), (us(1), us(51), us(95)));
        let one = timed(1, 1_000, &[7]);
        assert_eq!((one.min(), one.median(), one.p95()), (us(7), us(7), us(7)));
        assert_eq!(timed(3, 1_000, &[9, 1, 5]).median(), us(5));
    }

    #[test]
    fn a_run_that_fails_ends_it() {
        let mut left = 3;
        let bounds = RunBounds { runs_max: 200, time_max: Duration::MAX };
        let ended = time_runs(
            bounds,
            || Duration::ZERO,
            || {
                left -= 1;
                if left == 0 { Err("broken") } else { Ok(()) }
            },
        );
        assert_eq!((ended, left), (Err("broken"), 0));
    }
}
