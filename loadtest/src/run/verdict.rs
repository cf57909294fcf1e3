//! What must hold after a run, from what the devices counted; `observe::oracle` adds what the server holds.

use super::order::{DeviceResult, PartResult};
use super::profile::Watched;
use crate::identity::Member;
use crate::observe::oracle::{Expected, ExpectedAlarms, ExpectedDevice};
use crate::observe::probe::ProbeResult;
use crate::observe::provision::WrittenRule;
use crate::record::excursion;
use crate::report::model::{Invariant, Totals};
use std::ops::RangeInclusive;

/// Sums what all parts did.
pub(crate) fn sum(parts: &[PartResult]) -> PartResult {
    let mut all = PartResult::default();
    let pair = |into: &mut (u64, u64), of: (u64, u64)| *into = (into.0 + of.0, into.1 + of.1);
    for part in parts {
        all.made += part.made;
        all.published += part.published;
        all.resent += part.resent;
        all.acked += part.acked;
        all.poisons_taken += part.poisons_taken;
        all.unsent += part.unsent;
        all.unanswered += part.unanswered;
        all.misdelivered += part.misdelivered;
        all.stray_acks += part.stray_acks;
        all.connects += part.connects;
        all.reconnects += part.reconnects;
        pair(&mut all.copies, part.copies);
        pair(&mut all.poisons, part.poisons);
        pair(&mut all.credits, part.credits);
        for (into, of) in [(&mut all.refused, &part.refused), (&mut all.kept, &part.kept)] {
            for (reason, count) in of {
                *into.entry(*reason).or_default() += count;
            }
        }
        for (why, count) in &part.closed {
            *all.closed.entry(why.clone()).or_default() += count;
        }
        all.devices.extend(part.devices.iter().cloned());
    }
    all
}

/// The report's counts.
pub(crate) fn totals(all: &PartResult) -> Totals {
    let reason = |(reason, count): (&u8, &u64)| (format!("0x{reason:02x}"), *count);
    let mut refused: std::collections::BTreeMap<_, _> = all.refused.iter().map(reason).collect();
    for (reason, count) in &all.kept {
        *refused.entry(format!("0x{reason:02x} for now")).or_default() += count;
    }
    Totals {
        made: all.made,
        published: all.published + all.resent + all.copies.0 + all.poisons.0,
        acked: all.acked,
        refused,
        unanswered: all.unanswered,
        unsent: all.unsent,
        duplicates_sent: all.copies.0,
        poisoned_sent: all.poisons.0,
        success_ratio: if all.made == 0 { 0.0 } else { all.acked as f64 / all.made as f64 },
        ledger: None,
        connects: all.connects,
        reconnects: all.reconnects,
        closed: all.closed.clone(),
    }
}

fn invariant(name: &str, held: bool, detail: String) -> Invariant {
    Invariant { name: name.to_owned(), held, detail }
}

/// What the devices' own counts must say. Without faults nobody may have lost a connection.
pub(crate) fn of_devices(all: &PartResult, has_faults: bool) -> Vec<Invariant> {
    let refused: u64 = all.refused.values().sum();
    let mut found = vec![
        invariant(
            "every_record_acknowledged",
            all.unanswered == 0 && all.unsent == 0 && refused == 0 && all.acked == all.made,
            format!(
                "made {}, acknowledged {}, refused {refused}, without an answer {}, unsent {}",
                all.made, all.acked, all.unanswered, all.unsent
            ),
        ),
        invariant(
            "acknowledged_once",
            all.stray_acks == 0,
            format!("{} PUBACKs that nobody waited for", all.stray_acks),
        ),
        invariant(
            "poison_refused",
            all.poisons_taken == 0,
            format!("{} sent, {} answered as they must be", all.poisons.0, all.poisons.1),
        ),
        invariant(
            "nothing_misdelivered",
            all.misdelivered == 0,
            format!("{} messages that were not the device's own", all.misdelivered),
        ),
    ];
    if !has_faults {
        found.push(invariant(
            "nobody_disconnected",
            all.closed.is_empty(),
            if all.closed.is_empty() {
                "no connection was lost".to_owned()
            } else {
                format!("{:?}", all.closed)
            },
        ));
    }
    found
}

/// Everything that was watched must have been seen.
pub(crate) fn of_probes(name: &str, result: &ProbeResult) -> Invariant {
    let ProbeResult { histogram, given_up, waiting, .. } = result;
    let detail = format!("{} seen, {given_up} given up, {waiting} not seen at the end", histogram.len());
    invariant(&format!("{name}_probes_answered"), *given_up == 0 && *waiting == 0, detail)
}

/// What the store must hold of a run.
pub(crate) fn expected(
    all: &PartResult,
    members: &[Member],
    watched: Watched,
    alarm_rule: Option<&WrittenRule>,
) -> Expected {
    let device = |result: &DeviceResult| {
        let member = &members[result.number as usize];
        ExpectedDevice {
            number: result.number,
            tenant: usize::from(member.tenant),
            name: member.name.clone(),
            accepted: ranges(1..result.next[0], &[&result.unanswered, &result.excepted]),
            maybe: result.unanswered.iter().map(|seq| *seq..=*seq).collect(),
        }
    };
    let alarms = |rule: &WrittenRule| {
        let one = |result: &DeviceResult| {
            let member = &members[result.number as usize];
            let openings = |seqs: &mut dyn Iterator<Item = u32>| -> Vec<RangeInclusive<u32>> {
                seqs.filter_map(excursion).map(|opening| opening..=opening).collect()
            };
            let known = |seq: &u32| !result.unanswered.contains(seq);
            ExpectedAlarms {
                tenant: usize::from(member.tenant),
                device: member.name.clone(),
                rule: rule.clone(),
                opened: openings(&mut (1..result.next[0]).filter(known)),
                maybe: openings(&mut result.unanswered.iter().copied()),
            }
        };
        all.devices.iter().filter(|result| watched.is_alarm(result.number)).map(one).collect()
    };
    Expected {
        devices: all.devices.iter().map(device).collect(),
        alarms: alarm_rule.map(alarms).unwrap_or_default(),
    }
}

/// The numbers of `all` without the exceptions (sorted lists), as ranges.
fn ranges(all: std::ops::Range<u32>, exceptions: &[&[u32]]) -> Vec<RangeInclusive<u32>> {
    let mut without: Vec<u32> = exceptions.concat();
    without.sort_unstable();
    without.dedup();
    let (mut found, mut first) = (Vec::new(), all.start);
    for seq in without.into_iter().filter(|seq| all.contains(seq)) {
        if first < seq {
            found.push(first..=seq - 1);
        }
        first = seq + 1;
    }
    if first < all.end {
        found.push(first..=all.end - 1);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_exceptions_are_ranges() {
        assert_eq!(ranges(1..10, &[&[3], &[4, 9]]), [1..=2, 5..=8]);
        assert_eq!(ranges(1..4, &[&[1, 2, 3]]), []);
        assert_eq!(ranges(1..4, &[&[], &[7]]), [1..=3]);
        assert_eq!(ranges(1..1, &[]), []);
    }

    fn held(all: &PartResult, has_faults: bool) -> Vec<String> {
        let broken = of_devices(all, has_faults).into_iter().filter(|invariant| !invariant.held);
        broken.map(|invariant| invariant.name).collect()
    }

    #[test]
    fn each_count_breaks_its_invariant() {
        let good = PartResult { made: 5, acked: 5, ..PartResult::default() };
        assert!(held(&good, false).is_empty());
        assert_eq!(
            held(&PartResult { acked: 4, unanswered: 1, ..good.clone() }, true),
            ["every_record_acknowledged"]
        );
        assert_eq!(held(&PartResult { unsent: 1, ..good.clone() }, true), ["every_record_acknowledged"]);
        assert_eq!(held(&PartResult { stray_acks: 1, ..good.clone() }, true), ["acknowledged_once"]);
        assert_eq!(held(&PartResult { poisons_taken: 1, ..good.clone() }, true), ["poison_refused"]);
        assert_eq!(held(&PartResult { misdelivered: 1, ..good.clone() }, true), ["nothing_misdelivered"]);
        let lost = PartResult { closed: [("reset".to_owned(), 1)].into(), ..good };
        assert_eq!(held(&lost, false), ["nobody_disconnected"]);
        assert!(held(&lost, true).is_empty(), "a run with faults loses connections");
    }

    #[test]
    fn the_store_must_hold_what_was_acknowledged_and_may_hold_what_was_not() {
        let member = |tenant, name: &str| Member { tenant, name: name.to_owned(), token: None };
        let members = [member(0, "a"), member(1, "b")];
        let result = |number, next| DeviceResult { number, next: [next, 1], ..DeviceResult::default() };
        let mut second = result(1, 6);
        (second.unanswered, second.excepted) = (vec![5], vec![2]);
        let all = PartResult { devices: vec![result(0, 5), second], ..PartResult::default() };
        let rule = WrittenRule { id: "rule".into(), version: 3 };
        let expected = expected(&all, &members, Watched { probes: 0, alarms: 1 }, Some(&rule));
        assert_eq!(expected.devices[1].accepted, [1..=1, 3..=4]);
        assert_eq!((&expected.devices[1].maybe[..], expected.devices[1].tenant), (&[5..=5][..], 1));
        assert_eq!((expected.alarms.len(), &expected.alarms[0].opened[..]), (1, &[1..=1, 2..=2][..]));
        assert_eq!(expected.alarms[0].rule, rule);
    }
}
