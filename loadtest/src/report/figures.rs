//! A report as a list of named figures, and what is known about each of them.
//!
//! Called by `compare`, `check`, `capacity` and the pages. A figure's name is the one that the benches print
//! (`puback_p95_ms`). The tables here decide what counts as noise, so that every command means the same by it.

use super::model::{Latency, Report, Sample};
use super::stats;
use super::units::Unit;

/// Parts of a run whose medians tell how much a figure wanders during it.
pub(super) const PARTS: usize = 10;
/// A percentile is judged only when at least so many samples lie beyond it.
const BEYOND_MIN: f64 = 3.0;
/// As [`BEYOND_MIN`], of P99.9: a pause of the machine delays all that was due in it, so samples that far out come by
/// the dozen, from a pause that one run met and the next did not.
const BEYOND_MIN_P999: f64 = 100.0;

/// Which way is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Lower,
    Higher,
    /// It describes the run; there is no good way.
    Neither,
}

/// What other load on the machine does to a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnderLoad {
    /// Nothing: it counts messages or bytes.
    Same,
    /// Caches and clock rates are shared: the same work takes more processor time.
    CostsMore,
    /// Threads wait for a core: times follow the others' work more than the server's.
    Waits,
}

/// What is known about a figure beforehand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) unit: Unit,
    pub(super) better: Better,
    pub(super) under_load: UnderLoad,
    /// Changes below this share of the figure are noise.
    pub(super) floor_share: f64,
    /// Changes below this are noise.
    pub(super) floor: f64,
}

/// One figure of a run.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) value: f64,
    /// By how much it wanders during the run, as a standard deviation of its parts, where the samples tell it; of a
    /// latency's natural logarithm, since latencies differ by factors.
    pub(super) wander: Option<f64>,
    /// Why it is shown and not judged, where it is not.
    pub(super) unjudged: Option<&'static str>,
}

const LATENCY: Kind = Kind {
    unit: Unit::Milliseconds,
    better: Better::Lower,
    under_load: UnderLoad::Waits,
    floor_share: 0.25,
    floor: 0.2,
};
const PROCESSOR: Kind = Kind {
    unit: Unit::Cores,
    better: Better::Lower,
    under_load: UnderLoad::CostsMore,
    floor_share: 0.15,
    floor: 0.02,
};
const MEMORY: Kind = Kind {
    unit: Unit::Bytes,
    better: Better::Lower,
    under_load: UnderLoad::Same,
    floor_share: 0.10,
    floor: 8e6,
};
/// Any change of these is one: they are promised to be 0.
const NEVER: Kind = Kind {
    unit: Unit::Count,
    better: Better::Lower,
    under_load: UnderLoad::Same,
    floor_share: 0.0,
    floor: 0.0,
};
const DESCRIBES: Kind = Kind { better: Better::Neither, ..NEVER };

/// Names of figures that no run may have above 0, whatever another run had.
pub(super) const NEVER_NAMES: [&str; 2] = ["lost", "duplicated"];

/// Latencies with what they are; in this order, before any other.
const LATENCIES: [(&str, &str); 9] = [
    ("puback", "publish to PUBACK, all"),
    ("live", "of these live"),
    ("backlog", "of these backlog"),
    ("storm_live", "live while the fleet came back with its backlog"),
    ("service", "from the actual send to PUBACK"),
    ("send_late", "the generator's own delay"),
    ("stored", "publish to stored (probes)"),
    ("alert", "publish to alert visible (probes)"),
    ("reconnect", "until a device is back"),
];

/// Name, meaning and histogram of each latency of a report.
pub(super) fn latencies_in_order(report: &Report) -> Vec<(&str, &'static str, &Latency)> {
    let place =
        |name: &str| LATENCIES.iter().position(|(known, _)| *known == name).unwrap_or(LATENCIES.len());
    let meaning = |name: &str| LATENCIES.get(place(name)).map_or("", |(_, meaning)| *meaning);
    let mut all: Vec<_> =
        report.latency.iter().map(|(name, latency)| (name.as_str(), meaning(name), latency)).collect();
    all.sort_by_key(|(name, ..)| place(name));
    all
}

/// Every figure of a report, in the order in which they are shown.
pub(super) fn of(report: &Report) -> Vec<Figure> {
    let mut figures = messages(report);
    for (name, _, latency) in latencies_in_order(report) {
        figures.extend(latencies(report, name, latency));
    }
    figures.extend(costs(report));
    figures.extend(heights(report));
    figures
}

fn figure(name: &str, kind: Kind, value: f64) -> Figure {
    Figure { name: name.to_owned(), kind, value, wander: None, unjudged: None }
}

fn messages(report: &Report) -> Vec<Figure> {
    let totals = &report.totals;
    let share = Kind { unit: Unit::Share, better: Better::Higher, floor: 1e-5, ..NEVER };
    let mut figures = vec![figure("success_ratio", share, totals.success_ratio)];
    if let Some(ledger) = &totals.ledger {
        figures.push(figure("lost", NEVER, ledger.lost as f64));
        figures.push(figure("duplicated", NEVER, ledger.duplicated as f64));
        figures.push(figure("dropped", DESCRIBES, ledger.dropped as f64));
    }
    let waits = Kind { floor_share: 0.25, floor: 10.0, ..NEVER };
    figures.push(figure("unanswered", waits, totals.unanswered as f64));
    figures.push(figure("unsent", waits, totals.unsent as f64));
    figures.push(figure("refused", DESCRIBES, totals.refused.values().sum::<u64>() as f64));
    figures.push(figure("connects", DESCRIBES, totals.connects as f64));
    figures.push(figure("reconnects", DESCRIBES, totals.reconnects as f64));
    if let Some(rate) = acked_per_s(report) {
        let kind = Kind {
            unit: Unit::PerSecond,
            better: Better::Higher,
            under_load: UnderLoad::Same,
            floor_share: 0.02,
            floor: 1.0,
        };
        figures.push(figure("acked_per_s", kind, rate));
    }
    figures
}

fn latencies(report: &Report, name: &str, latency: &Latency) -> Vec<Figure> {
    let quantiles = [
        ("p50", 0.5, latency.p50_ms, BEYOND_MIN),
        ("p95", 0.95, latency.p95_ms, BEYOND_MIN),
        ("p99", 0.99, latency.p99_ms, BEYOND_MIN),
        ("p999", 0.999, latency.p999_ms, BEYOND_MIN_P999),
    ];
    let mut figures: Vec<Figure> = quantiles
        .into_iter()
        .map(|(quantile, share, value, beyond_min)| Figure {
            wander: wander_of_latency(report, name, quantile),
            unjudged: (latency.count as f64 * (1.0 - share) < beyond_min - 1e-9).then_some("too few samples"),
            ..figure(&format!("{name}_{quantile}_ms"), LATENCY, value)
        })
        .collect();
    if name == "send_late" {
        figures.iter_mut().for_each(|figure| figure.unjudged = Some("the generator's own"));
    }
    let unjudged = Some("one sample");
    figures.push(Figure { unjudged, ..figure(&format!("{name}_max_ms"), LATENCY, latency.max_ms) });
    figures
}

fn wander_of_latency(report: &Report, name: &str, quantile: &str) -> Option<f64> {
    let of = |latency: &Latency| match quantile {
        "p50" => Some(latency.p50_ms),
        "p95" => Some(latency.p95_ms),
        "p99" => Some(latency.p99_ms),
        _ => None,
    };
    let values = report.samples.iter().map(|sample| match name {
        "puback" | "live" => sample.live.as_ref().and_then(of),
        "backlog" => sample.backlog.as_ref().and_then(of),
        "stored" => sample.stored_ms,
        "alert" => sample.alert_ms,
        _ => None,
    });
    stats::wander(&values.collect::<Vec<_>>(), PARTS, |median| median.max(LATENCY.floor).ln())
}

fn wander(report: &Report, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    stats::wander(&report.samples.iter().map(of).collect::<Vec<_>>(), PARTS, |median| median)
}

fn costs(report: &Report) -> Vec<Figure> {
    let cost = &report.cost;
    let mut figures = Vec::new();
    if let Some(cores) = cost.server_cpu_cores {
        let wander = wander(report, |sample| sample.server_cpu_cores);
        figures.push(Figure { wander, ..figure("server_cpu_cores", PROCESSOR, cores) });
        if let Some(rate) = acked_per_s(report).filter(|rate| *rate > 0.0) {
            let kind = Kind { unit: Unit::MicrosecondsEach, floor: 2.0, ..PROCESSOR };
            let each = Figure {
                wander: wander.map(|cores| cores / rate * 1e6),
                ..figure("server_cpu_us_per_message", kind, cores / rate * 1e6)
            };
            figures.push(each);
        }
    }
    if let Some(bytes) = cost.server_rss_bytes {
        figures.push(figure("server_rss_bytes", MEMORY, bytes as f64));
    }
    if let Some(files) = cost.server_files {
        figures.push(figure("server_files", Kind { unit: Unit::Count, floor: 64.0, ..MEMORY }, files as f64));
    }
    let wander = wander(report, |sample| Some(sample.generator_cpu_cores));
    figures.push(Figure { wander, ..figure("generator_cpu_cores", PROCESSOR, cost.generator_cpu_cores) });
    figures.push(figure("generator_rss_bytes", MEMORY, cost.generator_rss_bytes as f64));
    if let Some(each) = stored_bytes_per_reading(report) {
        let kind = Kind { unit: Unit::BytesEach, floor: 1.0, ..MEMORY };
        figures.push(figure("stored_bytes_per_reading", kind, each));
    }
    figures.push(figure("other_load_cores", Kind { unit: Unit::Cores, ..DESCRIBES }, cost.other_load_cores));
    figures
}

/// How far things got behind. What a fault piles up follows the fault, so these describe a run with faults.
fn heights(report: &Report) -> Vec<Figure> {
    let better = if report.faults.is_empty() { Better::Lower } else { Better::Neither };
    let kind = Kind { better, under_load: UnderLoad::Waits, floor_share: 1.0, floor: 5_000.0, ..NEVER };
    let highest = |of: fn(&Sample) -> Option<u64>| report.samples.iter().filter_map(of).max();
    let all: [(&str, Option<u64>); 3] = [
        ("waiting_max", highest(|sample| Some(sample.waiting))),
        ("log_depth_max", highest(|sample| sample.log_depth)),
        ("rules_lag_max", highest(|sample| sample.rules_lag)),
    ];
    all.into_iter().filter_map(|(name, value)| Some(figure(name, kind, value? as f64))).collect()
}

/// Messages a second that were acknowledged; none of a run that took no time.
pub(super) fn acked_per_s(report: &Report) -> Option<f64> {
    (report.setup.seconds > 0.0).then(|| report.totals.acked as f64 / report.setup.seconds)
}

/// Readings that were stored: by the ledger, or by the acknowledgements of a broker that has none.
pub(super) fn stored_readings(report: &Report) -> f64 {
    let records = report.totals.ledger.as_ref().map_or(report.totals.acked, |ledger| ledger.stored);
    records as f64 * report.setup.readings_per_message
}

fn stored_bytes_per_reading(report: &Report) -> Option<f64> {
    let readings = stored_readings(report);
    report.cost.stored_bytes.filter(|_| readings > 0.0).map(|bytes| bytes as f64 / readings)
}

#[cfg(test)]
mod tests {
    use super::super::synthetic;
    use super::*;
    use std::collections::BTreeSet;

    fn by_name(report: &Report, name: &str) -> Figure {
        of(report).into_iter().find(|figure| figure.name == name).unwrap()
    }

    #[test]
    fn names_are_those_of_the_benches_and_stand_once() {
        let names: Vec<String> =
            of(&synthetic::report(1, 60)).into_iter().map(|figure| figure.name).collect();
        for name in ["success_ratio", "lost", "duplicated", "puback_p95_ms", "stored_p95_ms", "alert_p95_ms"]
        {
            assert!(names.iter().any(|own| own == name), "{name}");
        }
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn a_percentile_of_few_samples_and_a_maximum_are_not_judged() {
        let mut report = synthetic::report(1, 60);
        let stored = report.latency.get_mut("stored").unwrap();
        stored.count = 60;
        assert_eq!(by_name(&report, "stored_p95_ms").unjudged, None);
        assert_eq!(by_name(&report, "stored_p99_ms").unjudged, Some("too few samples"));
        assert_eq!(by_name(&report, "puback_max_ms").unjudged, Some("one sample"));
        assert_eq!(by_name(&report, "send_late_p50_ms").unjudged, Some("the generator's own"));
        for (count, unjudged) in [(99_999, Some("too few samples")), (100_000, None)] {
            report.latency.get_mut("puback").unwrap().count = count;
            assert_eq!(by_name(&report, "puback_p999_ms").unjudged, unjudged, "{count}");
        }
    }

    #[test]
    fn storage_is_by_the_ledgers_readings_and_without_one_by_the_acknowledged() {
        let mut report = Report::default();
        report.setup.readings_per_message = 5.0;
        report.totals.acked = 100;
        report.cost.stored_bytes = Some(60_000);
        assert_eq!(by_name(&report, "stored_bytes_per_reading").value, 120.0);
        report.totals.ledger = Some(super::super::model::Ledger { stored: 50, ..Default::default() });
        assert_eq!(by_name(&report, "stored_bytes_per_reading").value, 240.0);
    }

    #[test]
    fn a_run_of_no_time_has_no_rates() {
        let names: Vec<String> = of(&Report::default()).into_iter().map(|figure| figure.name).collect();
        assert!(
            !names.iter().any(|name| name.contains("per_s") || name.contains("per_message")),
            "{names:?}"
        );
    }

    #[test]
    fn the_wander_comes_from_the_samples() {
        let report = synthetic::report(1, 300);
        assert!(by_name(&report, "puback_p95_ms").wander.unwrap() > 0.0);
        assert!(by_name(&report, "puback_p999_ms").wander.is_none());
        assert!(by_name(&report, "service_p95_ms").wander.is_none());
    }
}
