//! Whether every excursion opened one alert.

use super::{Clients, EXAMPLES_MAX, ExpectedAlarms, Faults, READ_THREADS};
use crate::observe::handle::{Access, ServerHandle};
use crate::observe::http::{Client, HttpError};
use crate::observe::provision::{excursion_of, patiently};
use crate::report::model::Invariant;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pages of one device's alerts: 100,000 of them.
const PAGES_MAX: usize = 200;

#[derive(Deserialize)]
struct Page {
    items: Vec<Opened>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Opened {
    rule_version: i64,
    value: Value,
}

/// What the alerts of some devices are.
#[derive(Default)]
struct Tally {
    expected: u64,
    opened: u64,
    missing: Faults,
    again: Faults,
    unexpected: Faults,
    unread: Faults,
}

impl Tally {
    fn join(&mut self, other: Self) {
        self.expected += other.expected;
        self.opened += other.opened;
        self.missing.join(other.missing);
        self.again.join(other.again);
        self.unexpected.join(other.unexpected);
        self.unread.join(other.unread);
    }

    /// Compares a device's alerts, counted by the excursion of their value.
    fn compare(&mut self, at: usize, alarms: &ExpectedAlarms, found: &Excursions) {
        let named = |number: &u32| format!("{}/{number}", alarms.device);
        let holds =
            |ranges: &[RangeInclusive<u32>], number: &u32| ranges.iter().any(|range| range.contains(number));
        for range in super::serials::joined(&alarms.opened) {
            self.expected += u64::from(range.end() - range.start()) + 1;
            for number in range.filter(|number| !found.opened.contains_key(number)) {
                self.missing.add(at, 1, [named(&number)]);
            }
        }
        for (number, count) in &found.opened {
            self.opened += count;
            if *count > 1 {
                self.again.add(at, count - 1, [named(number)]);
            }
            if !holds(&alarms.opened, number) && !holds(&alarms.maybe, number) {
                self.unexpected.add(at, 1, [named(number)]);
            }
        }
        self.opened += found.strange.len() as u64;
        let strange =
            found.strange.iter().take(EXAMPLES_MAX).map(|value| format!("{}: {value}", alarms.device));
        self.unexpected.add(at, found.strange.len() as u64, strange);
    }

    fn invariant(&self) -> Invariant {
        let Self { expected, opened, missing, again, unexpected, unread } = self;
        let held = [missing, again, unexpected, unread].iter().all(|faults| faults.count == 0);
        let detail = format!(
            "{expected} excursions were acknowledged, {opened} alerts opened; {} without{}, {} opened again{}, \
             {} without an excursion{}, {} devices not readable{}",
            missing.count,
            missing.shown(),
            again.count,
            again.shown(),
            unexpected.count,
            unexpected.shown(),
            unread.count,
            unread.shown()
        );
        Invariant { name: "alerts_once".into(), held, detail }
    }
}

/// One device's alerts.
#[derive(Default)]
struct Excursions {
    opened: BTreeMap<u32, u64>,
    /// Values of alerts that no excursion opened.
    strange: Vec<Value>,
}

pub(super) fn invariant(server: &ServerHandle, tenants: &[Access], alarms: &[ExpectedAlarms]) -> Invariant {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut clients, mut tally) = (Clients::new(server, tenants), Tally::default());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(device) = alarms.get(at) else { return tally };
            let found = match clients.of(device.tenant) {
                Some((client, access)) => alerts(client, access, device).map_err(|error| error.to_string()),
                None => Err("its tenant is not known".to_owned()),
            };
            match found {
                Ok(found) => tally.compare(at, device, &found),
                Err(error) => tally.unread.add(at, 1, [format!("{}: {error}", device.device)]),
            }
        }
    };
    let tally = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READ_THREADS).map(|_| scope.spawn(work)).collect();
        let mut sum = Tally::default();
        threads
            .into_iter()
            .for_each(|thread| sum.join(thread.join().expect("a judging thread does not panic")));
        sum
    });
    tally.invariant()
}

fn alerts(client: &mut Client, access: &Access, alarms: &ExpectedAlarms) -> Result<Excursions, HttpError> {
    let ExpectedAlarms { device, rule, .. } = alarms;
    let first = access.path(&format!("alerts?device={device}&rule={}&limit=500", rule.id));
    let (mut path, mut found) = (first.clone(), Excursions::default());
    for _ in 0..PAGES_MAX {
        let page: Page = patiently(|| client.get_as(&path))?;
        for alert in page.items.into_iter().filter(|alert| alert.rule_version == rule.version) {
            match alert.value.as_f64().and_then(excursion_of) {
                Some(number) => *found.opened.entry(number).or_default() += 1,
                None => found.strange.push(alert.value),
            }
        }
        match page.next_cursor {
            Some(cursor) => path = format!("{first}&cursor={cursor}"),
            None => return Ok(found),
        }
    }
    Err(HttpError::Malformed("a list of alerts without an end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::provision::WrittenRule;

    #[track_caller]
    fn check(found: &[(u32, u64)], strange: &[f64], held: bool, expect: &str) {
        let alarms = ExpectedAlarms {
            tenant: 0,
            device: "pump".into(),
            rule: WrittenRule { id: "r".into(), version: 1 },
            opened: vec![1..=2, 4..=4],
            maybe: vec![3..=3],
        };
        let strange = strange.iter().map(|value| Value::from(*value)).collect();
        let mut tally = Tally::default();
        tally.compare(0, &alarms, &Excursions { opened: found.iter().copied().collect(), strange });
        let invariant = tally.invariant();
        assert_eq!((invariant.held, invariant.detail.as_str()), (held, expect));
    }

    #[test]
    fn each_excursion_opens_one_alert() {
        let good = "; 0 without, 0 opened again, 0 without an excursion, 0 devices not readable";
        let told = |opened: u32| format!("3 excursions were acknowledged, {opened} alerts opened{good}");
        check(&[(1, 1), (2, 1), (4, 1)], &[], true, &told(3));
        check(&[(1, 1), (2, 1), (3, 1), (4, 1)], &[], true, &told(4));
        check(
            &[(1, 1), (3, 2), (4, 3), (7, 1)],
            &[5.5],
            false,
            "3 excursions were acknowledged, 8 alerts opened; 1 without (pump/2), 3 opened again (pump/3, pump/4), \
             2 without an excursion (pump/7, pump: 5.5), 0 devices not readable",
        );
    }
}
