//! What is drawn over time: which lines of the samples stand in which plot.

use crate::report::model::{Latency, Report, Sample};
use crate::report::svg::{Line, Spread};
use crate::report::units::Unit;

/// One plot's content.
pub(in crate::report) struct Course {
    pub(in crate::report) id: &'static str,
    pub(in crate::report) title: &'static str,
    pub(in crate::report) unit: Unit,
    pub(in crate::report) spread: Spread,
    pub(in crate::report) lines: &'static [Value],
}

/// One line's content.
pub(in crate::report) struct Value {
    pub(in crate::report) name: &'static str,
    dots: bool,
    /// Whether a comparison of two runs draws it.
    pub(in crate::report) compared: bool,
    of: fn(&Sample) -> Option<f64>,
}

impl Value {
    const fn line(name: &'static str, of: fn(&Sample) -> Option<f64>) -> Self {
        Self { name, dots: false, compared: true, of }
    }

    const fn dots(name: &'static str, of: fn(&Sample) -> Option<f64>) -> Self {
        Self { name, dots: true, compared: true, of }
    }

    /// Of one run only: in a comparison it would say what another line says.
    const fn alone(self) -> Self {
        Self { compared: false, ..self }
    }

    pub(in crate::report) fn drawn(&self, report: &Report, name: String, look: usize) -> Line {
        let points = report.samples.iter().map(|sample| (sample.at_s, (self.of)(sample))).collect();
        Line { name, look, dots: self.dots, points }
    }
}

fn live(sample: &Sample, of: fn(&Latency) -> f64) -> Option<f64> {
    sample.live.as_ref().map(of)
}

fn whole(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// Every plot, in the order of the page.
pub(in crate::report) static COURSES: [Course; 10] = [
    Course {
        id: "latency",
        title: "Publish to PUBACK",
        unit: Unit::Milliseconds,
        spread: Spread::Logarithmic,
        lines: &[
            Value::line("live P50", |sample| live(sample, |latency| latency.p50_ms)),
            Value::line("live P95", |sample| live(sample, |latency| latency.p95_ms)),
            Value::line("live P99", |sample| live(sample, |latency| latency.p99_ms)),
            Value::line("backlog P95", |sample| sample.backlog.as_ref().map(|latency| latency.p95_ms)),
        ],
    },
    Course {
        id: "probes",
        title: "Probes: publish to stored, to alert visible",
        unit: Unit::Milliseconds,
        spread: Spread::Logarithmic,
        lines: &[
            Value::dots("stored", |sample| sample.stored_ms),
            Value::dots("alert visible", |sample| sample.alert_ms),
        ],
    },
    Course {
        id: "throughput",
        title: "Messages",
        unit: Unit::PerSecond,
        spread: Spread::Linear,
        lines: &[
            Value::line("published", |sample| Some(sample.published_per_s)).alone(),
            Value::line("acknowledged", |sample| Some(sample.acked_per_s)),
        ],
    },
    Course {
        id: "online",
        title: "Connections online",
        unit: Unit::Count,
        spread: Spread::Linear,
        lines: &[Value::line("connections", |sample| Some(f64::from(sample.online)))],
    },
    Course {
        id: "waiting",
        title: "Records waiting in devices",
        unit: Unit::Count,
        spread: Spread::Linear,
        lines: &[Value::line("waiting records", |sample| Some(sample.waiting as f64))],
    },
    Course {
        id: "lag",
        title: "Records in the event log that are still to be read",
        unit: Unit::Count,
        spread: Spread::Linear,
        lines: &[
            Value::line("by the store", |sample| whole(sample.log_depth)),
            Value::line("by the rules", |sample| whole(sample.rules_lag)),
        ],
    },
    Course {
        id: "log",
        title: "Event log on disk",
        unit: Unit::Bytes,
        spread: Spread::Linear,
        lines: &[Value::line("event log", |sample| whole(sample.log_bytes)).alone()],
    },
    Course {
        id: "cores",
        title: "Processor time",
        unit: Unit::Cores,
        spread: Spread::Linear,
        lines: &[
            Value::line("server", |sample| sample.server_cpu_cores),
            Value::line("generator", |sample| Some(sample.generator_cpu_cores)).alone(),
            Value::line("everything else", |sample| Some(sample.other_load_cores)),
        ],
    },
    Course {
        id: "memory",
        title: "Memory of the server (RSS)",
        unit: Unit::Bytes,
        spread: Spread::Linear,
        lines: &[Value::line("RSS", |sample| whole(sample.server_rss_bytes))],
    },
    Course {
        id: "files",
        title: "Open files of the server",
        unit: Unit::Count,
        spread: Spread::Linear,
        lines: &[Value::line("open files", |sample| whole(sample.server_files)).alone()],
    },
];

/// First and last second of a run: its interval, and samples and faults around it.
pub(in crate::report) fn span(report: &Report) -> (f64, f64) {
    let seconds =
        report.samples.iter().map(|sample| sample.at_s).chain(report.faults.iter().map(|fault| fault.from_s));
    let ends = (0.0, report.setup.seconds);
    seconds.fold(ends, |(from, until), at_s| (at_s.min(from), at_s.max(until)))
}
