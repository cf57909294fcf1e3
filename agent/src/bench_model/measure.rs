//! What the child process measures: one candidate, from its own start.

use super::Row;
use crate::choice::{RunBounds, time_runs};
use crate::supervisor::chain;
use muster_runtime::{Bundle, Candidate, LoadError, Model, sample_input};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Runs before the resident memory is read and timing begins.
const WARM_RUNS: usize = 3;
const BYTES_PER_MIB: f64 = 1_048_576.0;

/// Measures one candidate; a fault is the row's error.
pub(super) fn candidate(bundle: Bundle, candidate: &Candidate, bounds: RunBounds) -> Row {
    let mut row = Row::of(candidate);
    row.error = fill(&mut row, bundle, candidate, bounds).err();
    row
}

fn fill(row: &mut Row, bundle: Bundle, candidate: &Candidate, bounds: RunBounds) -> Result<(), String> {
    let started = Instant::now();
    let model = Model::load_candidate(&bundle, candidate).map_err(|error| {
        if let LoadError::SelfTest { difference, .. } = &error {
            row.difference_max = Some(f64::from(*difference));
        }
        chain(&error)
    })?;
    row.load_ms = Some(milliseconds(started.elapsed()));
    row.difference_max = Some(f64::from(model.self_test().difference_max));
    let input = sample_input(&bundle).map_err(|error| chain(&error))?;
    // Its bytes are no part of what a running model takes.
    drop(bundle);
    let mut session = model.session().map_err(|error| chain(&error))?;
    let mut run = || session.run(&input).map(|_| ()).map_err(|error| chain(&error));
    run()?;
    row.first_inference_cpu_ms = Some(milliseconds(cpu_time()));
    (0..WARM_RUNS).try_for_each(|_| run())?;
    row.rss_mib = resident_bytes().map(|bytes| bytes as f64 / BYTES_PER_MIB);
    let latency = time_runs(bounds, || started.elapsed(), run)?;
    row.runs = Some(latency.runs());
    let us = |time: Duration| Some(time.as_secs_f64() * 1e6);
    (row.min_us, row.median_us, row.p95_us) = (us(latency.min()), us(latency.median()), us(latency.p95()));
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What this process has used of all processors since it was started.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// None where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    resident_of(&status)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_status() {
        let status = "Name:\tagent\nVmHWM:\t   20000 kB\nVmRSS:\t   17312 kB\nThreads:\t1\n";
        assert_eq!(resident_of(status), Some(17_312 * 1_024));
        for other in ["", "VmRSS:\t17312\n", "VmRSS:\tmany kB\n", "VmRSS:\t18446744073709551615 kB"] {
            assert_eq!(resident_of(other), None, "{other:?}");
        }
        assert!(resident_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn processor_time_grows() {
        let before = cpu_time();
        let mut sum = 0u64;
        while cpu_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time() > before);
    }
}
