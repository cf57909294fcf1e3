//! `muster-loadtest run`: a fleet with profiles and faults against a server, and what must hold afterwards.
//!
//! ```text
//! target   starts or finds the server, makes the fleet at it      profile  what is sent when (from the seed)
//! parts    the sending threads and processes <-> part             faults   what is done when (from the seed)
//! direct   carries faults out                                     gather   seconds of all into samples
//! verdict  what the devices' counts must say     observe::oracle  what the server must hold
//! ```
//!
//! Promise: the run's outcome is its invariants, never a time; each broken one is named with its numbers, and the
//! command fails. The last line on standard output is the report's figures as one JSON object. The schedule is open
//! loop, so latencies are free of coordinated omission.

mod args;
mod direct;
mod faults;
mod gather;
mod order;
mod part;
mod parts;
mod profile;
mod progress;
mod subscriber;
mod target;
mod verdict;

pub use args::{RunArgs, Transport};
pub(crate) use parts::run_part;
pub use profile::Profile;

use crate::engine::{OnSent, SentRecord, wall_clock_us};
use crate::observe::oracle;
use crate::observe::probe::{AlertProbe, AlertWatch, ProbeResult, StoredProbe, StoredWatch};
use crate::observe::sample::Sampler;
use crate::payload::{SERIAL_METRIC, serial_value};
use crate::record::{What, excursion};
use crate::report::model::{Cost, Latency, REPORT_VERSION, Report, Setup};
use crate::tally::histogram;
use anyhow::{Context, Result, bail};
use direct::Director;
use gather::Gather;
use order::{Order, PartResult, Told};
use part::add_buckets;
use parts::Parts;
use progress::Progress;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use subscriber::Subscribers;
use target::Target;

/// How often faults are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The most generator processes.
const PROCESSES_MAX: u32 = 64;
/// The most tenants: the server shows 4,096.
const TENANTS_MAX: u16 = 1_000;
/// Rules of a tenant, without the probes' own.
const RULES_MAX: u32 = 999;
/// The longest run.
const SECONDS_MAX: f64 = 7.0 * 86_400.0;
/// Invariants of single records, which say nothing where they were not looked at.
const OF_EACH_RECORD: [&str; 2] = ["stored_exactly_once", "nothing_unexpected"];
/// The most devices that serials tell apart.
const DEVICES_MAX: u32 = 1 << 17;

/// Runs a simulation to its end.
///
/// # Errors
/// The arguments do not fit together, the server cannot be reached, or a part of the generator fails. A broken
/// invariant is no error: it stands in the report.
pub fn simulate(args: &RunArgs) -> Result<Report> {
    check(args)?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let faults = faults::plan(&args.faults, args.seconds, seed)?;
    if let Some(fault) = faults.iter().find(|fault| fault.kind.needs_own_server() && args.server.is_none()) {
        bail!("--faults: {} needs a server of the run's own (--server)", fault.kind.name());
    }
    if let Some(fault) = faults.iter().find(|fault| fault.kind.needs_muster() && args.plain_mqtt.is_some()) {
        bail!("--faults: {} is for a muster-server only", fault.kind.name());
    }
    let work_dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut progress = Progress::new(args);
    progress.say(&format!("seed {seed}"));
    let target = Target::open(args, work_dir.path())?;
    let mut run = Run::start(args, seed, target, &mut progress)?;
    run.measure(faults, &mut progress)?;
    run.finish(&mut progress)
}

fn check(args: &RunArgs) -> Result<()> {
    let within = |name: &str, value: f64, least: f64, most: f64| {
        if value >= least && value <= most {
            return Ok(());
        }
        bail!("--{name} must be {least} to {most}, not {value}")
    };
    within("devices", f64::from(args.devices), 10.0, f64::from(DEVICES_MAX))?;
    within("tenants", f64::from(args.tenants), 1.0, f64::from(TENANTS_MAX))?;
    within("rate", args.rate, 0.01, 1e6)?;
    within("seconds", args.seconds, 1.0, SECONDS_MAX)?;
    within("processes", f64::from(args.processes), 1.0, f64::from(PROCESSES_MAX))?;
    within("rules", f64::from(args.rules), 0.0, f64::from(RULES_MAX))?;
    within("rule-devices", f64::from(args.rule_devices), 1.0, 1_000.0)?;
    within("backlog", f64::from(args.backlog), 1.0, crate::lanes::WAITING_MAX as f64)?;
    crate::modes::version(args.mqtt).map(drop)
}

/// A run that goes on.
struct Run<'a> {
    args: &'a RunArgs,
    seed: u64,
    target: Target,
    server: Option<direct::Shared>,
    parts: Parts,
    sampler: Sampler,
    probes: Option<Arc<Probes>>,
    subscribers: Option<Subscribers>,
    gather: Gather,
    began: Instant,
    began_at_us: i64,
    marks: Vec<crate::report::model::FaultMark>,
    has_faults: bool,
    settled: Vec<PartResult>,
    cost: Cost,
    measured_s: f64,
    data_bytes: Option<u64>,
}

/// What watches the watched devices.
struct Probes {
    stored: StoredProbe,
    alerts: AlertProbe,
}

impl Probes {
    /// Hears of every record that a watched device sends.
    fn on_sent(self: &Arc<Self>, target: &Target) -> OnSent {
        let probes = self.clone();
        let watched = target.watched;
        let names: Vec<String> =
            target.members[..watched.count() as usize].iter().map(|member| member.name.clone()).collect();
        Box::new(move |sent: SentRecord| {
            let SentRecord { number, what, seq, measured_at_us, intended } = sent;
            let device = names[number as usize].clone();
            match (what, excursion(seq)) {
                (What::Level, Some(excursion)) => {
                    probes.alerts.watch(AlertWatch { device, excursion, intended });
                }
                (What::Telemetry, _) => probes.stored.watch(StoredWatch {
                    device,
                    metric: SERIAL_METRIC.to_owned(),
                    value: serial_value(number, seq) as f64,
                    measured_at_us,
                    intended,
                }),
                _ => {}
            }
        })
    }
}

impl<'a> Run<'a> {
    /// Connects the fleet.
    fn start(args: &'a RunArgs, seed: u64, mut target: Target, progress: &mut Progress) -> Result<Self> {
        let probes = match (target.accesses.first(), &target.alarm_rule) {
            (Some(access), Some(rule)) => Some(Arc::new(Probes {
                stored: StoredProbe::start(&target.handle, access)?,
                alerts: AlertProbe::start(&target.handle, access, rule)?,
            })),
            _ => None,
        };
        let on_sent = probes.as_ref().map(|probes| probes.on_sent(&target));
        let configs = target.parts(args, seed)?;
        progress.say(&format!("connecting {} devices to {}", args.devices, configs[0].address));
        let parts = Parts::start(configs, on_sent)?;
        let mut online = 0;
        while online < parts.count() {
            if let Some((number, Told::Online { seconds, .. })) = parts.hear(Duration::from_secs(1))? {
                online += 1;
                progress.say(&format!("generator {number}: all online after {seconds:.2} s"));
            }
        }
        let subscribers = match target.accesses.len() {
            0 | 1 => None,
            _ => Some(Subscribers::start(&target.way()?, &target.accesses)?),
        };
        let sampler = Sampler::start(&target.handle, parts.pids())?;
        let server = target.own.take().map(|server| Arc::new(Mutex::new(server)));
        Ok(Self {
            gather: Gather::new(parts.count(), args.seconds),
            args,
            seed,
            target,
            server,
            parts,
            sampler,
            probes,
            subscribers,
            began: Instant::now(),
            began_at_us: 0,
            marks: Vec::new(),
            has_faults: false,
            settled: Vec::new(),
            cost: Cost::default(),
            measured_s: 0.0,
            data_bytes: None,
        })
    }

    /// The measured interval, with its faults, and the wait for the last answers.
    fn measure(&mut self, faults: Vec<faults::Fault>, progress: &mut Progress) -> Result<()> {
        let args = self.args;
        self.has_faults = !faults.is_empty();
        let mut director = Director::new(faults, self.server.clone(), args.rate, args.tenants, args.backlog);
        let before = self.disk_bytes();
        self.sampler.begin_cost()?;
        (self.began, self.began_at_us) = (Instant::now(), wall_clock_us());
        self.parts.order(&Order::Go)?;
        let mut returned = 0;
        while self.began.elapsed().as_secs_f64() < args.seconds || director.is_busy() {
            let happened = director.look(self.began, &mut self.parts)?;
            if happened.storm {
                returned = 0;
                self.gather.storm_begins();
            }
            match self.parts.hear(LOOK)? {
                Some((part, Told::Second(second))) => self.second(part, &second, progress)?,
                Some((_, Told::AllOnline { .. })) => {
                    returned += 1;
                    if returned >= self.parts.count() {
                        returned = 0;
                        director.all_online(self.began);
                    }
                }
                _ => {}
            }
        }
        self.cost = self.sampler.cost()?;
        self.measured_s = self.began.elapsed().as_secs_f64();
        self.settle(&mut director, progress)?;
        self.data_bytes = self.disk_bytes().zip(before).map(|(after, before)| after.saturating_sub(before));
        self.marks = director.marks;
        Ok(())
    }

    fn second(&mut self, part: usize, second: &order::Second, progress: &mut Progress) -> Result<()> {
        self.gather.server(self.sampler.take());
        if let Some(probes) = &self.probes {
            self.gather.probes(&probes.stored.take(), &probes.alerts.take());
        }
        if self.gather.second(part, second)?
            && let Some(sample) = self.gather.samples.last()
        {
            progress.second(sample);
        }
        Ok(())
    }

    /// Ends the schedule and waits for the last answers.
    fn settle(&mut self, director: &mut Director, progress: &mut Progress) -> Result<()> {
        progress.say("waiting for the last answers");
        self.parts.order(&Order::Settle { timeout_s: self.args.settle_timeout })?;
        let deadline = Instant::now() + Duration::from_secs_f64(self.args.settle_timeout + 60.0);
        while self.settled.len() < self.parts.count() {
            match self.parts.hear(LOOK)? {
                Some((_, Told::Settled(result))) => self.settled.push(*result),
                Some((part, Told::Second(second))) => self.second(part, &second, progress)?,
                Some((_, Told::AllOnline { .. })) => director.all_online(self.began),
                _ => {}
            }
            if Instant::now() > deadline {
                bail!("the generators did not settle in {} s", self.args.settle_timeout);
            }
        }
        Ok(())
    }

    /// Asks the server what it holds, and writes it all down.
    fn finish(mut self, progress: &mut Progress) -> Result<Report> {
        let all = verdict::sum(&self.settled);
        let mut totals = verdict::totals(&all);
        let mut invariants = verdict::of_devices(&all, self.has_faults);
        let mut latency = self.latencies()?;
        self.parts.quit();
        invariants.extend(self.subscribers.take().map(Subscribers::finish));
        if !self.target.accesses.is_empty() {
            progress.say("comparing with what the server holds");
            let rule = self.target.alarm_rule.as_ref();
            let mut expected = verdict::expected(&all, &self.target.members, self.target.watched, rule);
            if self.args.no_oracle || self.target.has_past {
                expected.devices.clear();
            }
            if self.target.has_past {
                progress
                    .say("devices have readings of an earlier run: the ledger is judged, no single record");
            }
            let (accesses, of) = (&self.target.accesses, expected.devices.len() as u32);
            let drain = Duration::from_secs_f64(self.args.settle_timeout);
            let told = |done: u32| progress.compared(done, of);
            let mut found = oracle::judge(&self.target.handle, accesses, &expected, drain, &told)?;
            if self.target.has_past {
                found.invariants.retain(|invariant| !OF_EACH_RECORD.contains(&invariant.name.as_str()));
            }
            invariants.extend(found.invariants);
            totals.ledger = Some(found.ledger);
        }
        // After the drain, so that the last ones were stored.
        for (name, result) in self.take_probes()? {
            invariants.push(verdict::of_probes(name, &result));
            latency.extend(result.latency().map(|found| (name.to_owned(), found)));
        }
        if let Some(server) = &self.server {
            server.lock().unwrap_or_else(PoisonError::into_inner).stop()?;
        }
        let setup = self.setup();
        let mut cost = self.cost;
        cost.stored_bytes = self.data_bytes;
        Ok(Report {
            version: REPORT_VERSION,
            setup,
            invariants,
            totals,
            latency,
            cost,
            samples: self.gather.samples,
            faults: self.marks,
        })
    }

    fn take_probes(&mut self) -> Result<Vec<(&'static str, ProbeResult)>> {
        let Some(probes) = self.probes.take() else { return Ok(Vec::new()) };
        let probes = Arc::into_inner(probes).context("a probe is still in use")?;
        Ok(vec![("stored", probes.stored.finish()), ("alert", probes.alerts.finish())])
    }

    fn latencies(&self) -> Result<BTreeMap<String, Latency>> {
        let mut merged = BTreeMap::new();
        for part in &self.settled {
            for (name, buckets) in &part.latency {
                add_buckets(merged.entry(name.clone()).or_insert_with(histogram), buckets)?;
            }
        }
        let mut found: BTreeMap<String, Latency> = merged
            .iter()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(name, histogram)| (name.clone(), gather::latency(histogram)))
            .collect();
        if let Some(storm) = self.gather.storm.as_ref().filter(|storm| !storm.is_empty()) {
            found.insert("storm_live".to_owned(), gather::latency(storm));
        }
        Ok(found)
    }

    fn setup(&self) -> Setup {
        let args = self.args;
        Setup {
            began_at_us: self.began_at_us,
            command: std::env::args().collect(),
            machine: progress::machine(),
            seed: self.seed,
            profile: args.profile.name().to_owned(),
            target: if self.target.is_muster() { "muster" } else { "mqtt" }.to_owned(),
            devices: args.devices,
            tenants: u32::from(args.tenants),
            processes: args.processes,
            rate: args.rate,
            readings_per_message: args.profile.readings_per_message(),
            transport: args.transport.name().to_owned(),
            mqtt: args.mqtt,
            seconds: self.measured_s,
        }
    }

    /// Bytes of the server's data directory, where it is this program's own.
    fn disk_bytes(&self) -> Option<u64> {
        let dir = self.target.handle.facts().data_dir?;
        let of = |path: &std::path::Path| std::fs::metadata(path).map(|found| found.len()).unwrap_or(0);
        let files = ["telemetry.db", "telemetry.db-wal", "registry.db"];
        Some(files.iter().map(|name| of(&dir.join(name))).sum())
    }
}
