//! Puts the seconds of all parts, the server's and the probes' together into the samples of a report.
//!
//! Called by `run` with everything that is told while a run goes on. A second is complete when every part told it.

use super::order::{Buckets, Second};
use super::part::add_buckets;
use crate::observe::probe::Observed;
use crate::observe::sample;
use crate::report::model::{Latency, SAMPLES_MAX, Sample};
use crate::tally::histogram;
use anyhow::Result;
use hdrhistogram::Histogram;

/// The samples so far, and the second that is being put together.
pub(crate) struct Gather {
    parts: usize,
    pub(crate) samples: Vec<Sample>,
    /// How many seconds each part told.
    told: Vec<usize>,
    /// Seconds that not every part has told: the first is `samples.len()`.
    open: Vec<Open>,
    server: Option<sample::Second>,
    stored_ms: Option<f64>,
    alert_ms: Option<f64>,
    /// Live latencies while a storm lasts.
    pub(crate) storm: Option<Histogram<u64>>,
    is_storm: bool,
    /// A long run keeps each n-th second.
    every: usize,
    complete: usize,
}

struct Open {
    parts: usize,
    online: u32,
    published: u64,
    acked: u64,
    waiting: u64,
    live: Histogram<u64>,
    backlog: Histogram<u64>,
}

/// A histogram of microseconds in short.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Latency {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    Latency {
        count: histogram.len(),
        p50_ms: at(0.50),
        p95_ms: at(0.95),
        p99_ms: at(0.99),
        p999_ms: at(0.999),
        max_ms: histogram.max() as f64 / 1_000.0,
    }
}

fn some(histogram: &Histogram<u64>) -> Option<Latency> {
    (!histogram.is_empty()).then(|| latency(histogram))
}

impl Gather {
    /// For so many parts and a run of so many seconds.
    pub(crate) fn new(parts: usize, seconds: f64) -> Self {
        Self {
            parts,
            samples: Vec::new(),
            told: vec![0; parts],
            open: Vec::new(),
            server: None,
            stored_ms: None,
            alert_ms: None,
            storm: None,
            is_storm: false,
            every: (seconds / SAMPLES_MAX as f64).ceil().max(1.0) as usize,
            complete: 0,
        }
    }

    /// What the sampler saw; the newest counts.
    pub(crate) fn server(&mut self, seen: Vec<sample::Second>) {
        if let Some(newest) = seen.into_iter().next_back() {
            self.server = Some(newest);
        }
    }

    /// What the probes saw; the slowest of a second counts.
    pub(crate) fn probes(&mut self, stored: &[Observed], alerts: &[Observed]) {
        let slowest = |kept: &mut Option<f64>, seen: &[Observed]| {
            for observed in seen {
                *kept = Some(kept.map_or(observed.ms, |ms| ms.max(observed.ms)));
            }
        };
        slowest(&mut self.stored_ms, stored);
        slowest(&mut self.alert_ms, alerts);
    }

    /// The server is back and the fleet returns: live latencies are kept apart until nothing waits.
    pub(crate) fn storm_begins(&mut self) {
        self.storm.get_or_insert_with(histogram);
        self.is_storm = true;
    }

    /// A part's second; true where it completed one of the run.
    ///
    /// # Errors
    /// A latency beyond the longest.
    pub(crate) fn second(&mut self, part: usize, second: &Second) -> Result<bool> {
        let at = self.told[part] - self.complete;
        self.told[part] += 1;
        while self.open.len() <= at {
            self.open.push(Open {
                parts: 0,
                online: 0,
                published: 0,
                acked: 0,
                waiting: 0,
                live: histogram(),
                backlog: histogram(),
            });
        }
        let open = &mut self.open[at];
        open.parts += 1;
        open.online += second.online;
        open.published += second.published;
        open.acked += second.acked;
        open.waiting += second.waiting;
        add_buckets(&mut open.live, &second.live)?;
        add_buckets(&mut open.backlog, &second.backlog)?;
        self.storm_second(&second.live)?;
        if self.open[0].parts < self.parts {
            return Ok(false);
        }
        let whole = self.open.remove(0);
        self.close(&whole);
        Ok(true)
    }

    fn storm_second(&mut self, live: &Buckets) -> Result<()> {
        match self.storm.as_mut().filter(|_| self.is_storm) {
            Some(storm) => add_buckets(storm, live),
            None => Ok(()),
        }
    }

    fn close(&mut self, whole: &Open) {
        self.complete += 1;
        let mut sample = Sample {
            at_s: self.complete as f64,
            online: whole.online,
            published_per_s: whole.published as f64,
            acked_per_s: whole.acked as f64,
            live: some(&whole.live),
            backlog: some(&whole.backlog),
            stored_ms: self.stored_ms.take(),
            alert_ms: self.alert_ms.take(),
            waiting: whole.waiting,
            ..Sample::default()
        };
        if let Some(server) = &self.server {
            server.fill(&mut sample);
        }
        // It is over when the fleet is back and hardly anything waits.
        if self.is_storm && whole.backlog.is_empty() && !whole.live.is_empty() && whole.waiting < 100 {
            self.is_storm = false;
        }
        if self.complete.is_multiple_of(self.every) {
            self.samples.push(sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(online: u32, live_us: u64) -> Second {
        Second { online, published: 10, acked: 9, waiting: 1, live: vec![(live_us, 2)], backlog: Vec::new() }
    }

    #[test]
    fn a_second_is_whole_when_every_part_told_it() {
        let mut gather = Gather::new(2, 10.0);
        assert!(!gather.second(0, &second(3, 1_000)).unwrap());
        assert!(!gather.second(0, &second(3, 1_000)).unwrap(), "the other one is a second late");
        gather.probes(&[Observed { at: std::time::Instant::now(), ms: 7.0 }], &[]);
        assert!(gather.second(1, &second(4, 9_000)).unwrap());
        let sample = &gather.samples[0];
        assert_eq!((sample.at_s, sample.online, sample.published_per_s, sample.waiting), (1.0, 7, 20.0, 2));
        assert_eq!((sample.live.unwrap().count, sample.backlog, sample.stored_ms), (4, None, Some(7.0)));
        assert!((8.9..9.1).contains(&sample.live.unwrap().max_ms));
        assert!(gather.second(1, &second(4, 1_000)).unwrap());
        assert_eq!((gather.samples.len(), gather.samples[1].stored_ms), (2, None));
    }

    #[test]
    fn a_storm_keeps_live_latencies_apart_until_nothing_waits() {
        let mut gather = Gather::new(1, 10.0);
        gather.second(0, &second(1, 1_000)).unwrap();
        gather.storm_begins();
        let draining = Second { backlog: vec![(5_000, 1)], ..second(1, 2_000) };
        gather.second(0, &draining).unwrap();
        gather.second(0, &second(1, 3_000)).unwrap();
        gather.second(0, &second(1, 4_000)).unwrap();
        assert_eq!(
            gather.storm.unwrap().len(),
            4,
            "of the second that drained and the one that found it drained"
        );
    }

    #[test]
    fn a_run_longer_than_a_reports_samples_keeps_each_nth() {
        let seconds = SAMPLES_MAX as f64 * 2.5;
        let mut gather = Gather::new(1, seconds);
        for _ in 0..9 {
            gather.second(0, &second(1, 1_000)).unwrap();
        }
        assert_eq!(gather.samples.iter().map(|sample| sample.at_s).collect::<Vec<_>>(), [3.0, 6.0, 9.0]);
    }
}
