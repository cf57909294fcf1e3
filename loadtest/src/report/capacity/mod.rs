//! What a fleet needs, from measured runs.
//!
//! Called by the command `capacity`; docs/guide/capacity.md explains it. Promise: each part of the answer says where
//! it comes from, what no run measured is unknown and not guessed, and what lies far from the measured sizes is
//! said. Limits: it knows averages only: no peaks, no time that a message takes, no thread that is full.

mod model;
mod text;

pub use model::{Basis, Line, Model, Transport};

use super::model::Report;
use super::setups;
use super::units::number;
use model::Measured;
use serde::Serialize;

/// Beyond so many times a measured size the answer is called a guess.
const EXTRAPOLATION_MAX: f64 = 10.0;
/// Cores are provided so that this share of them is busy: the rest is for peaks, reconnects and catching up.
const BUSY_SHARE: f64 = 0.6;
/// Shorter runs have not filled the caches, and what they stored is mostly the files' fixed parts.
const SECONDS_MIN: f64 = 300.0;

/// A fleet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fleet {
    /// Connections.
    pub devices: u32,
    /// Of each device.
    pub messages_per_device_per_s: f64,
    /// In a message, on average.
    pub readings_per_message: f64,
    /// How long readings are kept.
    pub retention_days: f64,
    /// How devices connect.
    pub transport: Transport,
    /// What the event log may take of the disk.
    pub event_log_bytes: u64,
    /// Rules beyond those of the measured runs.
    pub rules: Option<Rules>,
}

/// Rules, and what a bench of rules says that they cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rules {
    /// How many.
    pub count: u32,
    /// Devices that each of them selects.
    pub devices_each: u32,
    /// Evaluations a second that a core does.
    pub evaluations_per_core_s: f64,
    /// Memory of one.
    pub bytes_each: f64,
}

/// What a fleet needs; none where no run measured it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needs {
    /// Messages a second of the fleet.
    pub messages_per_s: f64,
    /// Readings a second of the fleet.
    pub readings_per_s: f64,
    /// Cores that are busy.
    pub cores: Option<f64>,
    /// Cores to provide: [`BUSY_SHARE`] of them busy, rounded up.
    pub cores_to_provide: Option<f64>,
    /// The server's memory (RSS).
    pub memory_bytes: Option<f64>,
    /// What a day of readings takes.
    pub storage_bytes_per_day: Option<f64>,
    /// Readings of the whole retention, and the event log at its largest.
    pub disk_bytes: Option<f64>,
}

/// A figure of another run as the model tells it and as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// `cores`, `memory_bytes`, `storage_bytes`.
    pub figure: &'static str,
    /// By the model.
    pub predicted: Option<f64>,
    /// By the run.
    pub measured: Option<f64>,
    /// Predicted / measured.
    pub ratio: Option<f64>,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Capacity {
    /// The lines through the runs.
    pub model: Model,
    /// Runs that it comes from.
    pub runs: usize,
    /// What was asked about.
    pub fleet: Option<Fleet>,
    /// What it needs.
    pub needs: Option<Needs>,
    /// The other run.
    pub verified: Vec<Verified>,
    /// What the answer does not know or stretches.
    pub warnings: Vec<String>,
}

/// Why runs give no model.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CapacityError {
    #[error("no report")]
    NoReport,
    #[error("{name}: field `{field}` is 0: the run measured nothing that a model could use")]
    Empty { name: String, field: &'static str },
    #[error(
        "{name}: field `setup.transport` is {found}; the first report has {expected}: give runs of one transport"
    )]
    Mixed { name: String, found: String, expected: String },
    #[error("{field} must be above 0 and at most {max}")]
    Fleet { field: &'static str, max: f64 },
}

/// Answers from reports and their names: what a fleet needs, how well another run is predicted, or both.
///
/// # Errors
/// The reports give no model, or the fleet none that exists.
pub fn capacity(
    reports: &[(String, Report)],
    fleet: Option<Fleet>,
    verify: Option<&(String, Report)>,
) -> Result<Capacity, CapacityError> {
    let runs = measured(reports)?;
    let (_, first) = reports.first().ok_or(CapacityError::NoReport)?;
    let model = Model::of(&runs, Transport::of(first));
    let mut warnings = warnings_of_runs(&runs, &model);
    let mut needs = None;
    if let Some(fleet) = &fleet {
        check(fleet)?;
        needs = Some(needs_of(&model, fleet, &runs));
        warnings.extend(warnings_of_fleet(fleet, &runs, &model));
    }
    let mut verified = Vec::new();
    if let Some((name, report)) = verify {
        let other =
            Measured::of(report).map_err(|field| CapacityError::Empty { name: name.clone(), field })?;
        verified = verify_with(&model, &other);
        let sizes = [
            ("connections", other.connections, largest(&runs, |run| run.connections)),
            ("messages a second", other.messages_per_s, largest(&runs, |run| run.messages_per_s)),
        ];
        warnings
            .extend(sizes.into_iter().filter_map(|(what, asked, measured)| stretched(what, asked, measured)));
        warnings.extend(other_transport(other.transport, &model));
    }
    Ok(Capacity { model, runs: runs.len(), fleet, needs, verified, warnings })
}

fn measured(reports: &[(String, Report)]) -> Result<Vec<Measured>, CapacityError> {
    let mut runs: Vec<Measured> = Vec::new();
    for (name, report) in reports {
        let run = Measured::of(report).map_err(|field| CapacityError::Empty { name: name.clone(), field })?;
        if let Some(first) = runs.first().filter(|first| first.transport != run.transport) {
            return Err(CapacityError::Mixed {
                name: name.clone(),
                found: word(run.transport).to_owned(),
                expected: word(first.transport).to_owned(),
            });
        }
        runs.push(run);
    }
    Ok(runs)
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Plain => "plain",
        Transport::Tls => "TLS",
    }
}

fn check(fleet: &Fleet) -> Result<(), CapacityError> {
    let within = |field, value: f64, max: f64| match value > 0.0 && value <= max {
        true => Ok(()),
        false => Err(CapacityError::Fleet { field, max }),
    };
    within("--devices", fleet.devices.into(), 1e8)?;
    within("--messages-per-device-per-s", fleet.messages_per_device_per_s, 1e6)?;
    within("--readings", fleet.readings_per_message, 1e4)?;
    within("--retention-days", fleet.retention_days, 36_500.0)?;
    let Some(rules) = &fleet.rules else { return Ok(()) };
    within("--rules", rules.count.into(), 1e6)?;
    within("--rule-devices", rules.devices_each.into(), 1e8)?;
    within("--rule-evaluations-per-core-s", rules.evaluations_per_core_s, 1e12)?;
    within("--rule-bytes", rules.bytes_each, 1e9)
}

fn needs_of(model: &Model, fleet: &Fleet, runs: &[Measured]) -> Needs {
    let messages_per_s = f64::from(fleet.devices) * fleet.messages_per_device_per_s;
    let readings_per_s = messages_per_s * fleet.readings_per_message;
    // More readings in a message than were measured: counted as so many more messages, which is too much rather
    // than too little. Fewer are counted as the measured ones.
    let fuller = (fleet.readings_per_message / largest(runs, |run| run.readings_per_message)).max(1.0);
    let fuller = if fuller.is_finite() { fuller } else { 1.0 };
    let rules = fleet.rules.map_or((0.0, 0.0), |rules| {
        let of_a_device = f64::from(rules.count) * f64::from(rules.devices_each.min(fleet.devices))
            / f64::from(fleet.devices);
        let cores = messages_per_s * of_a_device / rules.evaluations_per_core_s;
        (cores, f64::from(rules.count) * rules.bytes_each)
    });
    let cores = model.cores.map(|line| line.at(messages_per_s * fuller) + rules.0);
    let memory_bytes = model
        .memory_bytes
        .map(|line| memory_at(line, model, fleet.transport, fleet.devices.into()) + rules.1);
    let readings_a_day = readings_per_s * 86_400.0;
    let storage_bytes_per_day = model.storage_bytes.map(|line| line.each * readings_a_day);
    Needs {
        messages_per_s,
        readings_per_s,
        cores,
        cores_to_provide: cores.map(|cores| (cores / BUSY_SHARE).ceil().max(1.0)),
        memory_bytes,
        storage_bytes_per_day,
        disk_bytes: model
            .storage_bytes
            .map(|line| line.at(readings_a_day * fleet.retention_days) + fleet.event_log_bytes as f64),
    }
}

/// The memory of connections that may have another transport than the measured ones.
fn memory_at(line: Line, model: &Model, transport: Transport, connections: f64) -> f64 {
    let other = transport.connection_bytes() - model.transport.connection_bytes();
    line.fixed + (line.each + other).max(0.0) * connections
}

fn verify_with(model: &Model, other: &Measured) -> Vec<Verified> {
    let row = |figure, predicted: Option<f64>, measured: Option<f64>| Verified {
        figure,
        predicted,
        measured,
        ratio: predicted
            .zip(measured)
            .filter(|(_, measured)| *measured > 0.0)
            .map(|(one, other)| one / other),
    };
    let memory = model.memory_bytes.map(|line| memory_at(line, model, other.transport, other.connections));
    vec![
        row("cores", model.cores.map(|line| line.at(other.messages_per_s)), other.cores),
        row("memory_bytes", memory, other.memory_bytes),
        row("storage_bytes", model.storage_bytes.map(|line| line.at(other.readings)), other.storage_bytes),
    ]
}

fn largest(runs: &[Measured], of: fn(&Measured) -> f64) -> f64 {
    runs.iter().map(of).fold(0.0, f64::max)
}

fn warnings_of_runs(runs: &[Measured], model: &Model) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |when: bool, text: &str| {
        if when {
            warnings.push(text.to_owned());
        }
    };
    warn(model.cores.is_none(), "processor time is unknown: no report has `cost.server_cpu_cores`");
    warn(model.memory_bytes.is_none(), "memory is unknown: no report has `cost.server_rss_bytes`");
    warn(
        model.storage_bytes.is_none(),
        "storage is unknown: no report has `cost.stored_bytes` and stored readings",
    );
    warn(
        model.cores.is_some_and(|line| line.basis == Basis::OneSize),
        "runs of one rate: processor time that does not depend on messages is counted for them, so a larger fleet \
         looks dearer and a smaller one cheaper than it is; a second run at another rate tells the parts apart",
    );
    warn(
        model.memory_bytes.is_some_and(|line| line.basis == Basis::KnownConnection),
        "runs of one number of devices: a connection's memory is that of the gateway's bench, the rest counts as fixed",
    );
    let varies = |of: fn(&Measured) -> f64| {
        let least = runs.iter().map(of).fold(f64::INFINITY, f64::min);
        largest(runs, of) > 1.01 * least
    };
    warn(
        varies(|run| run.connections) && varies(|run| run.messages_per_s),
        "the runs differ in devices and in rate: memory is put down to the devices and processor time to the rate",
    );
    warn(runs.iter().any(|run| run.faults > 0), "a run had faults: its figures hold what they cost");
    warn(
        runs.iter().any(|run| !setups::quiet(run.other_load_cores)),
        "a run was on a busy machine: the same work takes less processor time on a quiet one",
    );
    warn(
        runs.iter().any(|run| run.seconds < SECONDS_MIN),
        "a run took less than 5 minutes: memory may still have grown, and files' fixed parts weigh in the storage",
    );
    warn(
        runs.iter().any(|run| !run.has_ledger),
        "a run has no ledger: its acknowledged records count as stored",
    );
    warnings
}

fn warnings_of_fleet(fleet: &Fleet, runs: &[Measured], model: &Model) -> Vec<String> {
    let mut warnings = Vec::new();
    let messages_per_s = f64::from(fleet.devices) * fleet.messages_per_device_per_s;
    let most = largest(runs, |run| run.messages_per_s);
    let readings = messages_per_s * fleet.readings_per_message * 86_400.0 * fleet.retention_days;
    warnings.extend(stretched("connections", fleet.devices.into(), largest(runs, |run| run.connections)));
    warnings.extend(stretched("messages a second", messages_per_s, most));
    if messages_per_s > most {
        warnings.push(format!(
            "no run reached {} messages a second: the model does not know when one thread of the server (the event \
             log's or the store's writer), the disk or the network is full",
            number(messages_per_s)
        ));
    }
    if model.storage_bytes.is_some() {
        let stored = largest(runs, |run| run.readings);
        warnings.extend(stretched("readings on disk (indexes grow slowly with them)", readings, stored));
    }
    let (per_message, measured) = (fleet.readings_per_message, largest(runs, |run| run.readings_per_message));
    if (per_message - measured).abs() > 0.1 * measured {
        warnings.push(format!(
            "the runs had {} readings a message, the fleet has {}: processor time is counted by the message, and by \
             the reading where there are more",
            number(measured),
            number(per_message)
        ));
    }
    warnings.extend(other_transport(fleet.transport, model));
    if fleet.rules.is_some() {
        warnings.push(
            "rules: counted by the figures of a bench of rules (--rule-evaluations-per-core-s, --rule-bytes), beside \
             the rules that the runs had; one evaluation a message and rule is taken for granted"
                .to_owned(),
        );
    }
    warnings
}

fn stretched(what: &str, asked: f64, measured: f64) -> Option<String> {
    let times = asked / measured;
    let apart = times.max(1.0 / times);
    (apart > EXTRAPOLATION_MAX).then(|| {
        let direction = if times > 1.0 { "more" } else { "fewer" };
        format!(
            "a guess: {} times {direction} {what} than any run measured (trusted up to 10)",
            number(apart.round())
        )
    })
}

fn other_transport(transport: Transport, model: &Model) -> Option<String> {
    (transport != model.transport).then(|| {
        format!(
            "the runs were {}, this is {}: memory is corrected by the gateway's bench, processor time for encryption \
             is not known",
            word(model.transport),
            word(transport)
        )
    })
}

#[cfg(test)]
mod tests;
