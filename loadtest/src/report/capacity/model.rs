//! What a server costs, as straight lines through measured runs.
//!
//! Called by `capacity`. Pure. Processor time is a fixed part and a part a message, memory a fixed part and a part a
//! connection, storage a fixed part and a part a reading. No part is ever below 0.

use crate::report::figures;
use crate::report::model::Report;
use serde::Serialize;

/// Memory of an idle connection, measured by `cargo xtask bench gateway`: what one run alone cannot tell.
const PLAIN_CONNECTION_BYTES: f64 = 1_400.0;
/// The same over TLS.
const TLS_CONNECTION_BYTES: f64 = 10_000.0;

/// How devices connect, as far as it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Without TLS.
    Plain,
    /// TLS with tokens or with client certificates.
    Tls,
}

impl Transport {
    pub(in crate::report) fn of(report: &Report) -> Self {
        if report.setup.transport == "plain" { Self::Plain } else { Self::Tls }
    }

    pub(super) fn connection_bytes(self) -> f64 {
        match self {
            Self::Plain => PLAIN_CONNECTION_BYTES,
            Self::Tls => TLS_CONNECTION_BYTES,
        }
    }
}

/// What one run measured.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) connections: f64,
    pub(super) messages_per_s: f64,
    pub(super) readings_per_message: f64,
    /// Readings that it stored.
    pub(super) readings: f64,
    pub(super) cores: Option<f64>,
    pub(super) memory_bytes: Option<f64>,
    pub(super) storage_bytes: Option<f64>,
    pub(super) transport: Transport,
    pub(super) seconds: f64,
    pub(super) other_load_cores: f64,
    pub(super) faults: usize,
    pub(super) has_ledger: bool,
}

impl Measured {
    /// None with the field at fault where the run says nothing.
    pub(super) fn of(report: &Report) -> Result<Self, &'static str> {
        let messages_per_s = figures::acked_per_s(report).ok_or("setup.seconds")?;
        if messages_per_s <= 0.0 {
            return Err("totals.acked");
        }
        if report.setup.devices == 0 {
            return Err("setup.devices");
        }
        Ok(Self {
            connections: f64::from(report.setup.devices),
            messages_per_s,
            readings_per_message: report.setup.readings_per_message,
            readings: figures::stored_readings(report),
            cores: report.cost.server_cpu_cores,
            memory_bytes: report.cost.server_rss_bytes.map(|bytes| bytes as f64),
            storage_bytes: report.cost.stored_bytes.map(|bytes| bytes as f64),
            transport: Transport::of(report),
            seconds: report.setup.seconds,
            other_load_cores: report.cost.other_load_cores,
            faults: report.faults.len(),
            has_ledger: report.totals.ledger.is_some(),
        })
    }
}

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// One run, or runs of one size: nothing is fixed, all of it is counted for the messages or readings.
    OneSize,
    /// One size, with the memory of a connection from the gateway's bench.
    KnownConnection,
    /// Least squares over runs of different sizes.
    Fitted,
}

/// `fixed + each * x`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Line {
    /// At x = 0.
    pub fixed: f64,
    /// By one of x.
    pub each: f64,
    /// Where it comes from.
    pub basis: Basis,
}

impl Line {
    /// The value at x.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        self.fixed + self.each * x
    }
}

/// What is known of a server's cost; none where no run measured it.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// By messages a second.
    pub cores: Option<Line>,
    /// By connections.
    pub memory_bytes: Option<Line>,
    /// By readings that are kept.
    pub storage_bytes: Option<Line>,
    /// Of the runs.
    pub transport: Transport,
}

impl Model {
    /// The model of runs that used the same transport.
    pub(super) fn of(runs: &[Measured], transport: Transport) -> Self {
        let points = |x: fn(&Measured) -> f64, y: fn(&Measured) -> Option<f64>| -> Vec<(f64, f64)> {
            runs.iter().filter_map(|run| Some((x(run), y(run)?))).collect()
        };
        let cores = points(|run| run.messages_per_s, |run| run.cores);
        let memory = points(|run| run.connections, |run| run.memory_bytes);
        let storage = points(|run| run.readings, |run| run.storage_bytes);
        let storage: Vec<_> = storage.into_iter().filter(|(readings, _)| *readings > 0.0).collect();
        Self {
            cores: fit(&cores).or_else(|| proportional(&cores)),
            memory_bytes: fit(&memory).or_else(|| with_known(&memory, transport.connection_bytes())),
            storage_bytes: fit(&storage).or_else(|| proportional(&storage)),
            transport,
        }
    }
}

/// Least squares with both parts at least 0; none where all x are the same within 1 %.
fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let (least, greatest) =
        points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), (x, _)| {
            (x.min(least), x.max(greatest))
        });
    if points.len() < 2 || greatest - least <= 0.01 * greatest {
        return None;
    }
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let joint: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let line = |fixed, each| Line { fixed, each, basis: Basis::Fitted };
    let free = line(mean_y - joint / spread * mean_x, joint / spread);
    if free.fixed >= 0.0 && free.each >= 0.0 {
        return Some(free);
    }
    // The best line with a part below 0 is none that a server can have: the best allowed one has that part at 0.
    let through_origin = line(0.0, origin_slope(points).max(0.0));
    let flat = line(mean_y.max(0.0), 0.0);
    let missed = |line: &Line| points.iter().map(|(x, y)| (line.at(*x) - y).powi(2)).sum::<f64>();
    Some(if missed(&through_origin) <= missed(&flat) { through_origin } else { flat })
}

/// Runs of one size: everything is by x.
fn proportional(points: &[(f64, f64)]) -> Option<Line> {
    let each = origin_slope(points);
    (!points.is_empty() && each.is_finite()).then_some(Line { fixed: 0.0, each, basis: Basis::OneSize })
}

fn origin_slope(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(x, y)| x * y).sum::<f64>() / points.iter().map(|(x, _)| x * x).sum::<f64>()
}

/// Runs of one size, with a part by x that is known from elsewhere.
fn with_known(points: &[(f64, f64)], each: f64) -> Option<Line> {
    let rest = points.iter().map(|(x, y)| y - each * x).sum::<f64>() / points.len() as f64;
    match points.is_empty() {
        true => None,
        // Less memory than the connections alone should have: then they are all of it.
        false if rest < 0.0 => proportional(points),
        false => Some(Line { fixed: rest, each, basis: Basis::KnownConnection }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(line: Option<Line>, fixed: f64, each: f64, basis: Basis) {
        let line = line.expect("a line");
        assert!((line.fixed - fixed).abs() < 1e-6 && (line.each - each).abs() < 1e-9, "{line:?}");
        assert_eq!(line.basis, basis);
    }

    #[test]
    fn two_sizes_give_the_fixed_and_the_variable_part() {
        near(fit(&[(1_000.0, 0.3), (10_000.0, 1.2)]), 0.2, 0.0001, Basis::Fitted);
        // Three that do not lie on one line: the one with the least squares.
        near(fit(&[(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]), 1.5, 0.5, Basis::Fitted);
    }

    #[test]
    fn no_part_is_below_0() {
        near(fit(&[(1_000.0, 0.1), (10_000.0, 1.2)]), 0.0, 12_100.0 / 101e6, Basis::Fitted);
        near(fit(&[(1_000.0, 5.0), (10_000.0, 4.0)]), 4.5, 0.0, Basis::Fitted);
    }

    #[test]
    fn runs_of_one_size_cannot_be_split() {
        assert_eq!(fit(&[(1_000.0, 0.3)]), None);
        assert_eq!(fit(&[(1_000.0, 0.3), (1_005.0, 0.9)]), None);
        assert_eq!(fit(&[]), None);
        near(proportional(&[(1_000.0, 0.3)]), 0.0, 0.0003, Basis::OneSize);
        assert_eq!(proportional(&[]), None);
        assert_eq!(proportional(&[(0.0, 0.3)]), None);
    }

    #[test]
    fn the_memory_of_a_connection_is_known_beforehand() {
        near(with_known(&[(10_000.0, 150e6)], 10_000.0), 50e6, 10_000.0, Basis::KnownConnection);
        near(with_known(&[(10_000.0, 50e6)], 10_000.0), 0.0, 5_000.0, Basis::OneSize);
        assert_eq!(with_known(&[], 10_000.0), None);
    }

    #[test]
    fn a_run_without_messages_devices_or_time_is_no_measure() {
        let mut report = Report::default();
        assert_eq!(Measured::of(&report).unwrap_err(), "setup.seconds");
        report.setup.seconds = 60.0;
        assert_eq!(Measured::of(&report).unwrap_err(), "totals.acked");
        report.totals.acked = 60;
        assert_eq!(Measured::of(&report).unwrap_err(), "setup.devices");
        report.setup.devices = 1;
        assert_eq!(Measured::of(&report).unwrap().messages_per_s, 1.0);
    }
}
