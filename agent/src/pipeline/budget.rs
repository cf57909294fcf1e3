//! Decides for each sample of a pipeline whether its inference runs; its telemetry always does.
//!
//! [`super::Pipeline`] asks before a sample and settles after it. All that the pipeline's thread computes for a sample
//! is paid from a token bucket: `cpu_percent_max` of a core flows in, one second's worth stays at most, and while
//! nothing is left inferences are shed. One that began runs to its end, so the bucket may owe its cost. While memory is
//! short ([`crate::memory`]) inferences are shed, too. Limit: what is owed beyond [`DEBT_MAX`] is forgiven.

use super::model::{Answer, Refused};
use crate::memory::LowMemory;
use crate::metrics::{PipelineCounters, Shed};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// What an idle pipeline saves up: this long at its share of a core.
pub const BURST: Duration = Duration::from_secs(1);
/// The most CPU time that a pipeline owes.
pub const DEBT_MAX: Duration = Duration::from_secs(60);
/// A whole core, in millionths.
const CORE: i128 = 1_000_000;

/// Time as a pipeline's thread sees it; only differences count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Time that passed.
    pub at: Duration,
    /// CPU time of the calling thread.
    pub cpu: Duration,
}

/// Reads both clocks.
pub type Meter = Box<dyn FnMut() -> Reading + Send>;

fn thread_meter() -> Meter {
    let started = Instant::now();
    Box::new(move || {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
        let cpu =
            Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(cpu.tv_nsec).unwrap_or(0));
        Reading { at: started.elapsed(), cpu }
    })
}

/// CPU time to spend, in nanoseconds of a core times [`CORE`]: sums stay exact.
struct Bucket {
    share: i128,
    credit: i128,
    at: Duration,
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / CORE)
}

impl Bucket {
    /// A full bucket.
    fn new(percent: f64, at: Duration) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "the configuration allows up to 100 percent")]
        let share = ((percent * 10_000.0).round() as i128).max(1);
        Self { share, credit: nanos(BURST) * share, at }
    }

    /// True while inference may be paid.
    fn refill(&mut self, at: Duration) -> bool {
        let flowed = nanos(at.saturating_sub(self.at)) * self.share;
        self.credit = (self.credit + flowed).min(nanos(BURST) * self.share);
        self.at = at;
        self.credit > 0
    }

    fn pay(&mut self, cpu: Duration) {
        self.credit = (self.credit - nanos(cpu) * CORE).max(-nanos(DEBT_MAX) * CORE);
    }
}

/// What stands between a pipeline and its model.
pub(super) struct Governor {
    bucket: Option<Bucket>,
    meter: Meter,
    began: Reading,
    low_memory: LowMemory,
    counters: PipelineCounters,
}

impl Governor {
    pub(super) fn new(cpu_percent_max: Option<f64>, counters: PipelineCounters) -> Self {
        let bucket = cpu_percent_max.map(|percent| Bucket::new(percent, Duration::ZERO));
        let (meter, low_memory) = (thread_meter(), LowMemory::default());
        Self { bucket, meter, began: Reading::default(), low_memory, counters }
    }

    pub(super) fn set_meter(&mut self, meter: Meter) {
        self.meter = meter;
    }

    pub(super) fn set_low_memory(&mut self, low_memory: LowMemory) {
        self.low_memory = low_memory;
    }

    /// A sample begins: why its inference is to be left out, if it is.
    pub(super) fn begin(&mut self) -> Option<Shed> {
        self.began = (self.meter)();
        let may_pay = self.bucket.as_mut().is_none_or(|bucket| bucket.refill(self.began.at));
        if self.low_memory.is_low() {
            Some(Shed::Memory)
        } else if may_pay {
            None
        } else {
            Some(Shed::Cpu)
        }
    }

    pub(super) fn inferred(&self) {
        self.counters.inferences.inc();
    }

    /// Counts the inferences that were due and left out; an answer that there is none.
    pub(super) fn skipped(&self, reason: Shed, due: Result<u64, Refused>) -> Answer {
        self.counters.shed(reason, due?);
        Ok(None)
    }

    /// The sample is done with.
    pub(super) fn end(&mut self) {
        let spent = (self.meter)().cpu.saturating_sub(self.began.cpu);
        self.counters.cpu_seconds.inc_by(spent.as_secs_f64());
        if let Some(bucket) = &mut self.bucket {
            bucket.pay(spent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_bucket_holds_a_seconds_worth_and_fills_by_its_share() {
        let mut bucket = Bucket::new(25.0, Duration::ZERO);
        bucket.pay(249 * MS);
        assert!(bucket.refill(Duration::ZERO), "a millisecond is left");
        bucket.pay(MS);
        assert!(!bucket.refill(Duration::ZERO), "nothing is left");
        bucket.pay(5 * MS);
        assert!(!bucket.refill(20 * MS), "20 ms at a quarter of a core pay 5 ms");
        assert!(bucket.refill(20 * MS + Duration::from_nanos(1)));
        // However long it idles, no more than the burst.
        assert!(bucket.refill(Duration::from_secs(3_600)));
        bucket.pay(250 * MS);
        assert!(!bucket.refill(Duration::from_secs(3_600)));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_brings_nothing() {
        let mut bucket = Bucket::new(100.0, Duration::ZERO);
        assert!(bucket.refill(Duration::from_secs(9)));
        bucket.pay(BURST);
        assert!(!bucket.refill(Duration::from_secs(8)));
    }

    #[test]
    fn what_is_owed_is_bounded() {
        let mut bucket = Bucket::new(100.0, Duration::ZERO);
        bucket.pay(Duration::from_secs(1_000_000));
        bucket.pay(Duration::from_secs(1_000_000));
        assert!(!bucket.refill(DEBT_MAX));
        assert!(bucket.refill(DEBT_MAX + MS));
    }

    #[test]
    fn the_threads_own_cpu_time_is_measured() {
        let mut meter = thread_meter();
        let before = meter();
        let busy = std::thread::spawn(|| {
            let begun = Instant::now();
            while begun.elapsed() < 60 * MS {}
        });
        busy.join().unwrap();
        let after = meter();
        assert!(after.at - before.at >= 60 * MS);
        let own = after.cpu - before.cpu;
        assert!(own < 30 * MS, "another thread's work is not counted: {own:?}");
        while meter().cpu - after.cpu < MS {}
    }

    proptest! {
        /// Whatever the samples cost and however they come: what runs over any time is at most the share of it, the burst,
        /// and one inference that began with the last bit of credit.
        #[test]
        fn a_budget_is_kept_but_for_the_burst_and_one_inference(
            hundredths in 1_u32..=10_000,
            samples in prop::collection::vec((0_u64..2_000_000, 0_u64..900_000), 1..200),
        ) {
            let percent = f64::from(hundredths) / 100.0;
            let mut bucket = Bucket::new(percent, Duration::ZERO);
            let (mut at, mut spent, mut largest) = (0_u64, 0_u64, 0_u64);
            for (wait_us, cost_us) in samples {
                at += wait_us;
                if bucket.refill(Duration::from_micros(at)) {
                    bucket.pay(Duration::from_micros(cost_us));
                    spent += cost_us;
                    largest = largest.max(cost_us);
                }
                let share = (at + 1_000_000) * u64::from(hundredths) / 10_000;
                prop_assert!(spent <= share + largest + 1, "{spent} of {share} and {largest}");
            }
        }
    }
}
