//! Whether two runs can be held against each other at all.
//!
//! Called by `compare`, `check` and `capacity`. Two runs of other devices, rates or transports differ by what was
//! asked of the server and not by how well it did it; a busy machine and a quiet one differ by the others' work.

use super::model::{Report, Setup};
use super::units::{number, plain};
use serde::{Deserialize, Serialize};

/// Cores of other load below which a machine counts as quiet.
pub(super) const QUIET_CORES: f64 = 0.2;
/// Averages that differ by less are of the same profile.
const SAME_SHARE: f64 = 0.01;
/// Lengths that differ by less are of the same run: a busy machine ends it a little late.
const SAME_LENGTH_SHARE: f64 = 0.05;

/// What two runs must have in common for their figures to be compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// See [`Setup`], as all that follow.
    pub profile: String,
    /// As in the setup.
    pub target: String,
    /// As in the setup.
    pub devices: u32,
    /// As in the setup.
    pub tenants: u32,
    /// As in the setup.
    pub processes: u32,
    /// As in the setup.
    pub rate: f64,
    /// As in the setup.
    pub readings_per_message: f64,
    /// As in the setup.
    pub transport: String,
    /// As in the setup.
    pub mqtt: u8,
    /// As in the setup.
    pub seconds: f64,
}

/// A field in which two runs differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name in the report.
    pub field: &'static str,
    /// Of the first.
    pub a: String,
    /// Of the second.
    pub b: String,
}

impl Workload {
    pub(super) fn of(setup: &Setup) -> Self {
        Self {
            profile: setup.profile.clone(),
            target: setup.target.clone(),
            devices: setup.devices,
            tenants: setup.tenants,
            processes: setup.processes,
            rate: setup.rate,
            readings_per_message: setup.readings_per_message,
            transport: setup.transport.clone(),
            mqtt: setup.mqtt,
            seconds: setup.seconds,
        }
    }

    /// The fields in which two workloads differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<Difference> {
        let text = |field, a: &str, b: &str| (a != b).then(|| Difference { field, a: plain(a), b: plain(b) });
        let count = |field, a: u32, b: u32| text(field, &a.to_string(), &b.to_string());
        let within = |share: f64, field, a: f64, b: f64| {
            let apart = (a - b).abs() > share * a.abs().max(b.abs());
            apart.then(|| Difference { field, a: number(a), b: number(b) })
        };
        let mean = |field, a, b| within(SAME_SHARE, field, a, b);
        [
            text("profile", &self.profile, &other.profile),
            text("target", &self.target, &other.target),
            count("devices", self.devices, other.devices),
            count("tenants", self.tenants, other.tenants),
            count("processes", self.processes, other.processes),
            mean("rate", self.rate, other.rate),
            mean("readings_per_message", self.readings_per_message, other.readings_per_message),
            text("transport", &self.transport, &other.transport),
            count("mqtt", self.mqtt.into(), other.mqtt.into()),
            within(SAME_LENGTH_SHARE, "seconds", self.seconds, other.seconds),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Whether others kept less than [`QUIET_CORES`] of the machine busy.
pub(super) fn quiet(other_load_cores: f64) -> bool {
    other_load_cores < QUIET_CORES
}

/// What a reader must know before two runs are held against each other, a sentence each.
pub(super) fn notes(a: &Report, b: &Report) -> Vec<String> {
    let differences = Workload::of(&a.setup).differences(&Workload::of(&b.setup));
    let mut notes: Vec<String> = differences
        .iter()
        .map(|Difference { field, a, b }| {
            format!("not the same work: `setup.{field}` is {a} in a and {b} in b")
        })
        .collect();
    if a.setup.machine != b.setup.machine {
        let (a, b) = (plain(&a.setup.machine), plain(&b.setup.machine));
        notes.push(format!("not the same machine: a ran on {a}; b on {b}"));
    }
    let (load_a, load_b) = (a.cost.other_load_cores, b.cost.other_load_cores);
    if quiet(load_a) != quiet(load_b) {
        let busy = if quiet(load_a) { "b" } else { "a" };
        notes.push(format!(
            "{busy} ran on a busy machine: others kept {} cores busy in a and {} in b (quiet is below {QUIET_CORES})",
            number(load_a),
            number(load_b)
        ));
    }
    let kinds = |report: &Report| {
        let mut kinds: Vec<String> = report.faults.iter().map(|fault| fault.kind.clone()).collect();
        kinds.sort();
        kinds
    };
    if kinds(a) != kinds(b) {
        let (a, b) = (a.faults.len(), b.faults.len());
        notes.push(format!("not the same faults: {a} in a, {b} in b"));
    } else if !a.faults.is_empty() && a.setup.seed != b.setup.seed {
        notes.push("other seeds: the same kinds of faults at other times".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::synthetic;
    use super::*;

    #[test]
    fn runs_of_the_same_work_on_the_same_quiet_machine_need_no_note() {
        let (a, mut b) = (synthetic::report(1, 60), synthetic::report(1, 60));
        assert!(notes(&a, &b).is_empty(), "{:?}", notes(&a, &b));
        // A run that took a little longer is the same run.
        b.setup.seconds *= 1.04;
        assert!(notes(&a, &b).is_empty());
        b.setup.seconds *= 1.04;
        assert!(notes(&a, &b)[0].contains("`setup.seconds`"));
    }

    #[test]
    fn every_difference_of_the_work_is_named_with_its_field() {
        let a = synthetic::report(1, 60);
        let mut b = a.clone();
        b.setup.devices = 500;
        b.setup.rate = 10_000.0;
        b.setup.transport = "plain".to_owned();
        b.setup.machine = "another\u{1b}[31m".to_owned();
        b.cost.other_load_cores = 0.9;
        b.faults.pop();
        let notes = notes(&a, &b).join("\n");
        for part in [
            "`setup.devices`",
            "`setup.rate`",
            "`setup.transport`",
            "another?[31m",
            "b ran on a busy",
            "same faults",
        ] {
            assert!(notes.contains(part), "{part} in {notes}");
        }
        assert_eq!(notes.lines().count(), 6);
    }

    #[test]
    fn another_seed_matters_where_there_are_faults() {
        let (mut a, mut b) = (synthetic::report(1, 60), synthetic::report(1, 60));
        b.setup.seed = 2;
        assert!(notes(&a, &b)[0].starts_with("other seeds"));
        a.faults.clear();
        b.faults.clear();
        assert!(notes(&a, &b).is_empty());
    }
}
