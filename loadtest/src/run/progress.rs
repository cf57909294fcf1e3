//! What a run says on the terminal while it goes on: a line a step on standard error, and one that is written over.

use super::args::RunArgs;
use crate::report::model::Sample;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

/// Without a terminal a line of progress is printed each so many seconds.
const LINE_EVERY_S: u64 = 10;

/// The terminal, or nothing with `--quiet`.
pub(crate) struct Progress {
    is_quiet: bool,
    is_terminal: bool,
    seconds: f64,
    /// The newest of those that are not measured each second: until stored, until the alert.
    probes: Mutex<(Option<f64>, Option<f64>)>,
}

impl Progress {
    pub(crate) fn new(args: &RunArgs) -> Self {
        Self {
            is_quiet: args.quiet,
            is_terminal: std::io::stderr().is_terminal(),
            seconds: args.seconds,
            probes: Mutex::default(),
        }
    }

    /// A step begins.
    pub(crate) fn say(&self, what: &str) {
        if !self.is_quiet {
            let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
            eprintln!("{clear}{what}");
        }
    }

    /// A second is over.
    pub(crate) fn second(&self, sample: &Sample) {
        let (stored_ms, alert_ms) = {
            let mut newest = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
            *newest = (sample.stored_ms.or(newest.0), sample.alert_ms.or(newest.1));
            *newest
        };
        if self.is_quiet || (!self.is_terminal && !(sample.at_s as u64).is_multiple_of(LINE_EVERY_S)) {
            return;
        }
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        let line = format!(
            "{:5.0} of {:.0} s: {} online, {:.0} acked/s, live P95 {} ms, stored {} ms, alert {} ms, waiting {}, \
             log {}, server {} cores",
            sample.at_s,
            self.seconds,
            sample.online,
            sample.acked_per_s,
            ms(sample.live.map(|live| live.p95_ms)),
            ms(stored_ms),
            ms(alert_ms),
            sample.waiting,
            sample.log_depth.map_or_else(|| "-".to_owned(), |depth| depth.to_string()),
            ms(sample.server_cpu_cores),
        );
        self.over(&line);
    }

    /// Devices were compared with the store.
    pub(crate) fn compared(&self, done: u32, of: u32) {
        if !self.is_quiet && self.is_terminal && (done.is_multiple_of(500) || done == of) {
            self.over(&format!("{done} of {of} devices compared"));
        }
    }

    fn over(&self, line: &str) {
        let mut out = std::io::stderr().lock();
        // Progress that cannot be shown is no reason to end a run.
        let _ = if self.is_terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }
}

/// Processor, cores, memory and kernel in one line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor =
        after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = after(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processor}, {cores} cores, {memory}, Linux {}", kernel.trim())
}
