//! Which fault happens when: a schedule from a seed, or the one that the command line names. Pure.
//!
//! Called by `run`. No fault begins in the first tenth of a run or in its last sixth, so that each is seen to begin
//! from a working system and to end in one.

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Faults of one run.
const FAULTS_MAX: usize = 1_000;
/// The longest fault that the command line may name, in seconds.
const FAULT_S_MAX: f64 = 3_600.0;

/// Something that is done to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConnectionLoss,
    SlowLinks,
    ServerKill,
    StoreOutage,
    ClockJumps,
    DuplicateSends,
    HalfReturns,
    AllReturn,
    PoisonedPayloads,
    WildTenant,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::ConnectionLoss,
        Self::SlowLinks,
        Self::ServerKill,
        Self::StoreOutage,
        Self::ClockJumps,
        Self::DuplicateSends,
        Self::HalfReturns,
        Self::AllReturn,
        Self::PoisonedPayloads,
        Self::WildTenant,
    ];

    /// The name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ConnectionLoss => "connection-loss",
            Self::SlowLinks => "slow-links",
            Self::ServerKill => "server-kill",
            Self::StoreOutage => "store-outage",
            Self::ClockJumps => "clock-jumps",
            Self::DuplicateSends => "duplicate-sends",
            Self::HalfReturns => "half-returns",
            Self::AllReturn => "all-return",
            Self::PoisonedPayloads => "poisoned-payloads",
            Self::WildTenant => "wild-tenant",
        }
    }

    fn parse(name: &str) -> Result<Self> {
        let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == name) else {
            let names: Vec<&str> = Self::ALL.map(Self::name).to_vec();
            bail!("--faults: {name:?} is no fault; expected all, none or some of {}", names.join(", "));
        };
        Ok(kind)
    }

    /// Whether it needs a server that this program started.
    pub(crate) fn needs_own_server(self) -> bool {
        matches!(self, Self::ServerKill | Self::StoreOutage | Self::AllReturn)
    }

    /// Whether it needs a server that keeps the promise, not just any broker.
    pub(crate) fn needs_muster(self) -> bool {
        self.needs_own_server()
            || matches!(self, Self::PoisonedPayloads | Self::WildTenant | Self::DuplicateSends)
    }

    /// Once in so many seconds; how long it lasts, from and to. `AllReturn` is asked for by name only.
    fn habit(self) -> (f64, (f64, f64)) {
        match self {
            Self::ConnectionLoss => (20.0, (0.0, 0.0)),
            Self::SlowLinks => (100.0, (10.0, 20.0)),
            Self::ServerKill => (100.0, (0.5, 3.0)),
            Self::StoreOutage => (120.0, (5.0, 15.0)),
            Self::ClockJumps => (120.0, (0.0, 0.0)),
            Self::DuplicateSends => (120.0, (15.0, 25.0)),
            Self::HalfReturns => (250.0, (15.0, 25.0)),
            Self::AllReturn => (f64::INFINITY, (2.0, 2.0)),
            Self::PoisonedPayloads => (120.0, (15.0, 25.0)),
            Self::WildTenant => (200.0, (10.0, 20.0)),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Seconds after the start.
    pub(crate) at_s: f64,
    pub(crate) for_s: f64,
    /// Picks whom it hits.
    pub(crate) seed: u64,
}

/// Reads `--faults`: `none`, `all`, or a list of `kind` (as often as `all` would) and `kind@at` or `kind@at+for` in
/// seconds.
///
/// # Errors
/// Names what is no fault, or does not fit into the run.
pub(crate) fn plan(text: &str, seconds: f64, seed: u64) -> Result<Vec<Fault>> {
    let mut random = SmallRng::seed_from_u64(seed ^ 0xFA17);
    let mut faults = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "none" => {}
            "all" => {
                for kind in Kind::ALL.into_iter().filter(|kind| kind.habit().0.is_finite()) {
                    scatter(kind, seconds, &mut random, &mut faults);
                }
            }
            _ => match name.split_once('@') {
                None => scatter(Kind::parse(name)?, seconds, &mut random, &mut faults),
                Some((kind, when)) => faults.push(named(Kind::parse(kind)?, when, seconds, &mut random)?),
            },
        }
    }
    if faults.len() > FAULTS_MAX {
        bail!("--faults: {} faults, more than {FAULTS_MAX}", faults.len());
    }
    apart(&mut faults);
    Ok(faults)
}

fn named(kind: Kind, when: &str, seconds: f64, random: &mut SmallRng) -> Result<Fault> {
    let (at, length) = when.split_once('+').unwrap_or((when, ""));
    let number = |text: &str| text.trim_end_matches('s').parse::<f64>().ok().filter(|value| *value >= 0.0);
    let default_s = random.random_range(kind.habit().1.0..=kind.habit().1.1);
    let for_s = if length.is_empty() { Some(default_s) } else { number(length) };
    let (Some(at_s), Some(for_s)) = (number(at), for_s.filter(|for_s| *for_s <= FAULT_S_MAX)) else {
        bail!(
            "--faults: {}@{when}: expected seconds as in {}@60 or {}@60+5",
            kind.name(),
            kind.name(),
            kind.name()
        );
    };
    if at_s + for_s > seconds {
        bail!("--faults: {}@{when} does not end within the {seconds} s of the run", kind.name());
    }
    Ok(Fault { kind, at_s, for_s, seed: random.random() })
}

fn scatter(kind: Kind, seconds: f64, random: &mut SmallRng, faults: &mut Vec<Fault>) {
    let (every_s, (shortest, longest)) = kind.habit();
    let count = if every_s.is_finite() { (seconds / every_s).round().max(1.0) as u32 } else { 1 };
    let (first, last) = (seconds * 0.1, seconds * 5.0 / 6.0);
    // A short run has short faults.
    let scale = (seconds / 200.0).min(1.0);
    for part in 0..count {
        let slot = (last - first) / f64::from(count);
        let from = first + slot * f64::from(part);
        let at_s = random.random_range(from..from + slot);
        let for_s = (random.random_range(shortest..=longest) * scale).min(last - at_s).max(0.0);
        faults.push(Fault { kind, at_s, for_s, seed: random.random() });
    }
}

/// In order of time; a store that is held while the server is killed would be held by nobody, so the two keep apart.
fn apart(faults: &mut [Fault]) {
    faults.sort_by(|a, b| a.at_s.total_cmp(&b.at_s).then(a.kind.cmp(&b.kind)));
    let restarts = |fault: &Fault| matches!(fault.kind, Kind::ServerKill | Kind::AllReturn);
    let outages: Vec<(f64, f64)> = faults
        .iter()
        .filter(|fault| fault.kind == Kind::StoreOutage)
        .map(|fault| (fault.at_s, fault.at_s + fault.for_s))
        .collect();
    for fault in faults.iter_mut().filter(|fault| restarts(fault)) {
        for (from, until) in &outages {
            if fault.at_s <= *until && fault.at_s + fault.for_s >= *from {
                fault.at_s = *until + 0.5;
            }
        }
    }
    faults.sort_by(|a, b| a.at_s.total_cmp(&b.at_s).then(a.kind.cmp(&b.kind)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_come_at_least_once_within_the_run_and_the_seed_repeats_them() {
        for seed in 0..50 {
            for seconds in [30.0, 60.0, 300.0] {
                let faults = plan("all", seconds, seed).unwrap();
                assert_eq!(faults, plan("all", seconds, seed).unwrap());
                let kinds: std::collections::BTreeSet<_> = faults.iter().map(|fault| fault.kind).collect();
                assert_eq!(kinds.len(), Kind::ALL.len() - 1, "all but all-return");
                assert!(faults.is_sorted_by(|a, b| a.at_s <= b.at_s));
                for fault in &faults {
                    assert!(fault.at_s >= seconds * 0.1, "{fault:?} of {seconds}");
                    assert!(fault.at_s + fault.for_s <= seconds, "{fault:?} of {seconds}");
                }
            }
        }
        assert_ne!(plan("all", 300.0, 1).unwrap(), plan("all", 300.0, 2).unwrap());
        assert!(plan("none", 300.0, 1).unwrap().is_empty());
    }

    #[test]
    fn a_restart_and_a_store_outage_keep_apart() {
        for seed in 0..200 {
            let faults = plan("all", 300.0, seed).unwrap();
            let of = |kind| faults.iter().filter(move |fault: &&Fault| fault.kind == kind);
            for kill in of(Kind::ServerKill) {
                for outage in of(Kind::StoreOutage) {
                    let apart =
                        kill.at_s > outage.at_s + outage.for_s || kill.at_s + kill.for_s < outage.at_s;
                    assert!(apart, "seed {seed}: {kill:?} {outage:?}");
                }
            }
        }
    }

    #[test]
    fn faults_are_named_with_their_time() {
        let faults = plan("server-kill@10+2, half-returns@20s+5s", 60.0, 1).unwrap();
        let told: Vec<_> = faults.iter().map(|fault| (fault.kind, fault.at_s, fault.for_s)).collect();
        assert_eq!(told, [(Kind::ServerKill, 10.0, 2.0), (Kind::HalfReturns, 20.0, 5.0)]);
    }

    #[track_caller]
    fn refused(text: &str, expect: &str) {
        let error = plan(text, 60.0, 1).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn what_is_no_fault_is_named() {
        refused("meteor", "\"meteor\" is no fault; expected all, none or some of connection-loss");
        refused("server-kill@soon", "server-kill@soon: expected seconds");
        refused("server-kill@59+5", "does not end within the 60 s");
        refused("server-kill@1+3601", "expected seconds");
        refused(&"connection-loss@1,".repeat(FAULTS_MAX + 1), "1001 faults, more than 1000");
    }
}
