//! The judge: after a run, compares what the server holds with what it acknowledged.
//!
//! `run` calls it once everything is sent and answered. It asks the API as any client would, device by device, so that
//! it holds one device's serials a thread and no more: six million serials of ten thousand devices take minutes and
//! megabytes. Devices must be the run's own: serials of an earlier run with the same names count as copies.
//!
//! Bounds: [`READ_THREADS`] requests at once (the server reads two series at once), [`EXAMPLES_MAX`] examples of a
//! fault, the caller's time for the drain.

mod alerts;
mod apart;
mod readings;
mod serials;

use super::handle::{Access, ServerHandle};
use super::http::Client;
use super::provision::{WrittenRule, patiently};
use super::scrape::LogMarks;
use crate::report::model::{Invariant, Ledger};
use anyhow::{Context, Result};
use serde_json::Value;
use serials::{Found, compare};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests at once.
pub const READ_THREADS: usize = 4;
/// Examples of each kind of fault.
pub const EXAMPLES_MAX: usize = 20;
/// Records of an idle server's log that its store reads without moving its mark: a tick a second for a minute.
const TICKS_HELD: u64 = 64;
/// How long the log must stay that short until it counts as drained.
const SETTLED: Duration = Duration::from_secs(1);
/// Between two looks at the log.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What must be there.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Every device of the run's tenants.
    pub devices: Vec<ExpectedDevice>,
    /// Those that open alerts.
    pub alarms: Vec<ExpectedAlarms>,
}

/// What must be there of a device's serials: `payload::serial_value(number, seq)`.
#[derive(Clone, Debug)]
pub struct ExpectedDevice {
    /// Its number, its own over all tenants.
    pub number: u32,
    /// Index of its tenant.
    pub tenant: usize,
    /// Its name.
    pub name: String,
    /// Seqs that were acknowledged with success: there exactly once.
    pub accepted: Vec<RangeInclusive<u32>>,
    /// Seqs that were sent and never answered: there at most once.
    pub maybe: Vec<RangeInclusive<u32>>,
}

/// What must be there of a device's alerts, by the number of the excursion that `provision::alarm_value` made.
#[derive(Clone, Debug)]
pub struct ExpectedAlarms {
    /// Index of its tenant.
    pub tenant: usize,
    /// Its name.
    pub device: String,
    /// The run's rule: alerts of its earlier versions are of earlier runs.
    pub rule: WrittenRule,
    /// Excursions that were acknowledged: one alert each.
    pub opened: Vec<RangeInclusive<u32>>,
    /// Excursions of which that is not known: one alert at most.
    pub maybe: Vec<RangeInclusive<u32>>,
}

/// The judge's word.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What had to hold, and whether it did.
    pub invariants: Vec<Invariant>,
    /// The server's ledger over all tenants.
    pub ledger: Ledger,
    /// The counts behind the invariants.
    pub counts: Counts,
}

impl Verdict {
    /// Whether every invariant held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.invariants.iter().all(|invariant| invariant.held)
    }
}

/// A kind of fault: how many, and the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How many.
    pub count: u64,
    /// The first [`EXAMPLES_MAX`], by device.
    pub examples: Vec<String>,
    order: Vec<usize>,
}

impl Faults {
    fn add(&mut self, at: usize, count: u64, examples: impl IntoIterator<Item = String>) {
        self.count += count;
        for example in examples.into_iter().take(EXAMPLES_MAX.saturating_sub(self.examples.len())) {
            self.examples.push(example);
            self.order.push(at);
        }
    }

    /// Each thread goes through its devices in order, so the first of all are among the first of each.
    fn join(&mut self, other: Self) {
        self.count += other.count;
        let mut all: Vec<(usize, String)> =
            std::mem::take(&mut self.order).into_iter().zip(std::mem::take(&mut self.examples)).collect();
        all.extend(other.order.into_iter().zip(other.examples));
        all.sort_by_key(|(at, _)| *at);
        all.truncate(EXAMPLES_MAX);
        (self.order, self.examples) = all.into_iter().unzip();
    }

    fn shown(&self) -> String {
        if self.examples.is_empty() { String::new() } else { format!(" ({})", self.examples.join(", ")) }
    }
}

/// What was found over all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Serials that had to be there.
    pub accepted: u64,
    /// Of these, found.
    pub found: u64,
    /// Serials that might be there.
    pub maybe: u64,
    /// Of these, found.
    pub maybe_found: u64,
    /// Acknowledged and not there.
    pub missing: Faults,
    /// There again.
    pub duplicated: Faults,
    /// There, under a device of the same tenant that did not send it.
    pub misplaced: Faults,
    /// There, under another tenant.
    pub foreign: Faults,
    /// There, and never sent.
    pub unexpected: Faults,
    /// Devices whose readings cannot be read.
    pub unread: Faults,
}

impl Counts {
    fn join(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.found += other.found;
        self.maybe += other.maybe;
        self.maybe_found += other.maybe_found;
        self.missing.join(other.missing);
        self.duplicated.join(other.duplicated);
        self.misplaced.join(other.misplaced);
        self.foreign.join(other.foreign);
        self.unexpected.join(other.unexpected);
        self.unread.join(other.unread);
    }
}

/// Waits until the server's log is drained, at most `drain_time_max`, and judges. `progress` is told how many
/// devices are done, from several threads.
///
/// # Errors
/// The server's ledger cannot be read; every other failure is a broken invariant.
pub fn judge(
    server: &ServerHandle,
    tenants: &[Access],
    expected: &Expected,
    drain_time_max: Duration,
    progress: &(dyn Fn(u32) + Sync),
) -> Result<Verdict> {
    let began = Instant::now();
    let mut drain = Drain::begin(server, began + drain_time_max);
    let drained = drain.wait(Proof::Short);
    let owners = expected.devices.iter().enumerate().map(|(at, device)| (device.number, at)).collect();
    let judge = Judge { server, tenants, expected, owners, progress, done: AtomicU32::new(0) };
    let all: Vec<usize> = (0..expected.devices.len()).collect();
    let (mut counts, again) = judge.read(&all, Missing::LookAgain);
    let mut is_past = again.is_empty() || drain.wait(Proof::Past);
    counts.join(judge.read(&again, Missing::Count).0);
    let mut alerts = alerts::invariant(server, tenants, &expected.alarms);
    if !alerts.held {
        is_past &= drain.wait(Proof::Past);
        alerts = alerts::invariant(server, tenants, &expected.alarms);
    }
    let mut ledger = ledger(server, tenants)?;
    ledger.duplicated = counts.duplicated.count;
    let mut invariants = vec![drain.invariant(drained && is_past, began.elapsed())];
    invariants.extend(of_serials(&counts, &ledger));
    invariants.push(apart::invariant(server, tenants, expected, &counts.foreign));
    if !expected.alarms.is_empty() {
        invariants.push(alerts);
    }
    Ok(Verdict { invariants, ledger, counts })
}

/// When the log counts as drained.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It is as short as an idle server leaves it, for [`SETTLED`].
    Short,
    /// Both came to the end that it had: on an idle server with the ticks of a minute later.
    Past,
}

/// Waits for the consumers of the server's log.
struct Drain {
    client: Client,
    deadline: Instant,
    /// The log's end when everything was sent.
    end: Option<u64>,
}

impl Drain {
    fn begin(server: &ServerHandle, deadline: Instant) -> Self {
        let mut client = Client::new(server, "");
        let end = patiently(|| LogMarks::of(&mut client)).ok().and_then(|marks| marks.durable);
        Self { client, deadline, end }
    }

    /// Whether store and rules came to the end in time.
    fn wait(&mut self, proof: Proof) -> bool {
        let mut short_since: Option<Instant> = None;
        loop {
            let marks = LogMarks::of(&mut self.client).unwrap_or_default();
            let is_past = |mark: Option<u64>| mark.zip(self.end).is_some_and(|(mark, end)| mark >= end);
            if is_past(marks.stored) && is_past(marks.judged) {
                return true;
            }
            let is_short = |lag: Option<u64>| lag.is_some_and(|lag| lag <= TICKS_HELD);
            let is_short = is_short(marks.depth()) && is_short(marks.rules_lag());
            let now = Instant::now();
            short_since = if is_short { short_since.or(Some(now)) } else { None };
            if proof == Proof::Short && short_since.is_some_and(|since| now.duration_since(since) >= SETTLED)
            {
                return true;
            }
            if now >= self.deadline {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn invariant(&mut self, held: bool, took: Duration) -> Invariant {
        let marks = LogMarks::of(&mut self.client).unwrap_or_default();
        let number = |count: Option<u64>| count.map_or("unknown".to_owned(), |count| count.to_string());
        let detail = format!(
            "{} records not stored, {} not judged, {:.1} s after the last was sent",
            number(marks.depth()),
            number(marks.rules_lag()),
            took.as_secs_f64()
        );
        Invariant { name: "log_drained".into(), held, detail }
    }
}

/// What to do with a device that lacks a serial.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It may be on its way: say which device, count nothing.
    LookAgain,
    Count,
}

struct Judge<'a> {
    server: &'a ServerHandle,
    tenants: &'a [Access],
    expected: &'a Expected,
    /// Index of each device by its number.
    owners: HashMap<u32, usize>,
    progress: &'a (dyn Fn(u32) + Sync),
    done: AtomicU32,
}

impl Judge<'_> {
    /// Reads devices by their index; tells which to look at again.
    fn read(&self, which: &[usize], missing: Missing) -> (Counts, Vec<usize>) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut clients = Clients::new(self.server, self.tenants);
            let (mut counts, mut again) = (Counts::default(), Vec::new());
            while let Some(at) = which.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.device(&mut clients, *at, missing, &mut counts) {
                    (self.progress)(self.done.fetch_add(1, Ordering::Relaxed) + 1);
                } else {
                    again.push(*at);
                }
            }
            (counts, again)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..READ_THREADS).map(|_| scope.spawn(work)).collect();
            let mut sum = (Counts::default(), Vec::new());
            for thread in threads {
                let (counts, again) = thread.join().expect("a judging thread does not panic");
                sum.0.join(counts);
                sum.1.extend(again);
            }
            sum.1.sort_unstable();
            sum
        })
    }

    /// False where it is to be looked at again.
    fn device(&self, clients: &mut Clients<'_>, at: usize, missing: Missing, counts: &mut Counts) -> bool {
        let device = &self.expected.devices[at];
        let name = &device.name;
        let mut found = Found::default();
        let read = match clients.of(device.tenant) {
            Some((client, access)) => {
                readings::serials(client, access, name, |value| found.add(device.number, value))
                    .map_err(|error| error.to_string())
            }
            None => Err("its tenant is not known".to_owned()),
        };
        if let Err(error) = read {
            counts.unread.add(at, 1, [format!("{name}: {error}")]);
            return true;
        }
        let compared = compare(std::mem::take(&mut found.own), &device.accepted, &device.maybe);
        if compared.missing.count > 0 && missing == Missing::LookAgain {
            return false;
        }
        counts.accepted += compared.found + compared.missing.count;
        counts.found += compared.found;
        counts.maybe += serials::count(&serials::joined(&device.maybe));
        counts.maybe_found += compared.maybe_found;
        let named = |seqs: Vec<u32>| seqs.into_iter().map(move |seq| format!("{name}/{seq}"));
        counts.missing.add(at, compared.missing.count, named(compared.missing.first));
        counts.duplicated.add(at, compared.duplicated.count, named(compared.duplicated.first));
        counts.unexpected.add(at, compared.unexpected.count, named(compared.unexpected.first));
        let strange = found.strange.iter().map(|value| format!("{name}: {value}"));
        counts.unexpected.add(at, found.strange.len() as u64 + found.strange_more, strange);
        self.foreign(at, &found, counts);
        true
    }

    fn foreign(&self, at: usize, found: &Found, counts: &mut Counts) {
        let device = &self.expected.devices[at];
        for (number, seq) in &found.foreign {
            let owner = self.owners.get(number).map(|owner| &self.expected.devices[*owner]);
            let text = match owner {
                Some(owner) => format!("{} has {}/{seq}", device.name, owner.name),
                None => format!("{} has device {number}/{seq}", device.name),
            };
            let is_own_tenant = owner.is_some_and(|owner| owner.tenant == device.tenant);
            let kind = if is_own_tenant { &mut counts.misplaced } else { &mut counts.foreign };
            kind.add(at, 1, [text]);
        }
        // Those that were not looked up are counted as the worse kind.
        counts.foreign.add(at, found.foreign_more, []);
    }
}

/// A thread's connections, one a tenant.
struct Clients<'a> {
    server: &'a ServerHandle,
    tenants: &'a [Access],
    open: Vec<Option<Client>>,
}

impl<'a> Clients<'a> {
    fn new(server: &'a ServerHandle, tenants: &'a [Access]) -> Self {
        Self { server, tenants, open: tenants.iter().map(|_| None).collect() }
    }

    fn of(&mut self, tenant: usize) -> Option<(&mut Client, &'a Access)> {
        let access = self.tenants.get(tenant)?;
        let client = self.open[tenant].get_or_insert_with(|| Client::of(self.server, access));
        Some((client, access))
    }
}

/// The sums of the tenants' ledgers.
fn ledger(server: &ServerHandle, tenants: &[Access]) -> Result<Ledger> {
    let mut sum = Ledger::default();
    for access in tenants {
        let mut client = Client::of(server, access);
        let totals = patiently(|| client.get(&access.path("ledger")));
        let totals = totals.with_context(|| format!("cannot read the ledger of {}", access.tenant))?;
        let number = |name: &str| totals[name].as_u64().unwrap_or(0);
        sum.accepted += number("accepted");
        sum.stored += number("stored");
        sum.pending += number("pending");
        sum.lost += number("lost");
        let dropped = totals["dropped"].as_object().into_iter().flatten();
        sum.dropped += dropped.filter_map(|(_, count)| Value::as_u64(count)).sum::<u64>();
    }
    Ok(sum)
}

fn of_serials(counts: &Counts, ledger: &Ledger) -> Vec<Invariant> {
    let Counts {
        accepted,
        found,
        maybe,
        maybe_found,
        missing,
        duplicated,
        misplaced,
        unexpected,
        unread,
        ..
    } = counts;
    let invariant =
        |name: &str, held: bool, detail: String| Invariant { name: name.to_owned(), held, detail };
    let clean = |faults: &[&Faults]| faults.iter().all(|faults| faults.count == 0);
    vec![
        invariant(
            "stored_exactly_once",
            clean(&[missing, duplicated, unread]),
            format!(
                "{found} of {accepted} acknowledged serials found, and {maybe_found} of {maybe} unanswered; \
                 {} missing{}, {} duplicated{}, {} devices not readable{}",
                missing.count,
                missing.shown(),
                duplicated.count,
                duplicated.shown(),
                unread.count,
                unread.shown()
            ),
        ),
        invariant(
            "nothing_lost",
            ledger.lost == 0,
            format!(
                "the ledger: {} accepted = {} stored + {} dropped + {} pending + {} lost",
                ledger.accepted, ledger.stored, ledger.dropped, ledger.pending, ledger.lost
            ),
        ),
        invariant(
            "nothing_unexpected",
            clean(&[unexpected, misplaced]),
            format!(
                "{} serials that were never sent{}, {} of another device{}",
                unexpected.count,
                unexpected.shown(),
                misplaced.count,
                misplaced.shown()
            ),
        ),
    ]
}

#[cfg(test)]
mod tests;
