//! One device's serials against what it was acknowledged. Pure.

use crate::payload::serial_of;
use serde_json::Value;
use std::ops::RangeInclusive;

/// Faults of a device that are listed, of each kind.
pub(super) const LISTED_MAX: usize = super::EXAMPLES_MAX;

/// What the store holds of a device.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Seqs of its own, as they came.
    pub(super) own: Vec<u32>,
    /// Records of other devices.
    pub(super) foreign: Vec<(u32, u32)>,
    /// Of these, those that are not listed.
    pub(super) foreign_more: u64,
    /// Values that no device of this program sends.
    pub(super) strange: Vec<String>,
    pub(super) strange_more: u64,
}

impl Found {
    /// Takes a reading of the metric `serial` of device `number`.
    pub(super) fn add(&mut self, number: u32, value: &Value) {
        match value.as_f64().and_then(serial_of) {
            Some((device, seq)) if device == number => self.own.push(seq),
            Some(record) if self.foreign.len() < LISTED_MAX => self.foreign.push(record),
            Some(_) => self.foreign_more += 1,
            None if self.strange.len() < LISTED_MAX => {
                self.strange.push(value.to_string().chars().take(40).collect());
            }
            None => self.strange_more += 1,
        }
    }
}

/// Seqs that are amiss: how many, and the first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Amiss {
    pub(super) count: u64,
    pub(super) first: Vec<u32>,
}

impl Amiss {
    fn add(&mut self, seq: u32) {
        self.count += 1;
        if self.first.len() < LISTED_MAX {
            self.first.push(seq);
        }
    }
}

/// What a comparison finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// Acknowledged and there.
    pub(super) found: u64,
    /// Never acknowledged and there.
    pub(super) maybe_found: u64,
    /// Acknowledged and not there.
    pub(super) missing: Amiss,
    /// There more than once: one for each copy too many.
    pub(super) duplicated: Amiss,
    /// There and never sent.
    pub(super) unexpected: Amiss,
}

/// Sorts ranges and joins those that touch.
pub(super) fn joined(ranges: &[RangeInclusive<u32>]) -> Vec<RangeInclusive<u32>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u32>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if u64::from(*range.start()) <= u64::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// How many numbers joined ranges hold.
pub(super) fn count(ranges: &[RangeInclusive<u32>]) -> u64 {
    ranges.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
}

/// Compares the seqs that are there with those that were acknowledged and those that were only sent.
pub(super) fn compare(
    mut own: Vec<u32>,
    accepted: &[RangeInclusive<u32>],
    maybe: &[RangeInclusive<u32>],
) -> Compared {
    let (accepted, maybe) = (joined(accepted), joined(maybe));
    let mut compared = Compared::default();
    own.sort_unstable();
    for pair in own.windows(2).filter(|pair| pair[0] == pair[1]) {
        compared.duplicated.add(pair[0]);
    }
    own.dedup();
    let mut rest = own.as_slice();
    for range in &accepted {
        let (before, from) = rest.split_at(rest.partition_point(|seq| seq < range.start()));
        note_unacknowledged(&mut compared, before, &maybe);
        let (inside, after) = from.split_at(from.partition_point(|seq| seq <= range.end()));
        compared.found += inside.len() as u64;
        note_missing(&mut compared.missing, range, inside);
        rest = after;
    }
    note_unacknowledged(&mut compared, rest, &maybe);
    compared
}

fn note_unacknowledged(compared: &mut Compared, seqs: &[u32], maybe: &[RangeInclusive<u32>]) {
    for seq in seqs {
        let at = maybe.partition_point(|range| range.end() < seq);
        if maybe.get(at).is_some_and(|range| range.contains(seq)) {
            compared.maybe_found += 1;
        } else {
            compared.unexpected.add(*seq);
        }
    }
}

/// `inside` is sorted, without copies, and within the range.
fn note_missing(missing: &mut Amiss, range: &RangeInclusive<u32>, inside: &[u32]) {
    let count = u64::from(range.end() - range.start()) + 1 - inside.len() as u64;
    if count == 0 {
        return;
    }
    let listed = missing.first.len();
    let absent = range.clone().filter(|seq| inside.binary_search(seq).is_err());
    // The walk ends with the last that is listed, or with the range.
    missing.first.extend(absent.take(LISTED_MAX.saturating_sub(listed)));
    missing.count += count;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::serial_value;
    use serde_json::json;

    /// `found maybe | missing | duplicated | unexpected`
    #[track_caller]
    fn check(own: &[u32], accepted: &[RangeInclusive<u32>], maybe: &[RangeInclusive<u32>], expect: &str) {
        let told = compare(own.to_vec(), accepted, maybe);
        let list = |amiss: &Amiss| {
            assert_eq!(amiss.count, amiss.first.len() as u64);
            amiss.first.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
        };
        let (missing, duplicated) = (list(&told.missing), list(&told.duplicated));
        let told =
            format!("{} {}|{missing}|{duplicated}|{}", told.found, told.maybe_found, list(&told.unexpected));
        assert_eq!(told, expect);
    }

    #[test]
    fn each_fault_is_told_apart() {
        check(&[3, 1, 2], &[1..=3], &[], "3 0|||");
        check(&[], &[], &[], "0 0|||");
        check(&[1, 3], &[1..=4], &[], "2 0|2,4||");
        check(&[1, 2, 2, 2, 3, 3], &[1..=3], &[], "3 0||2,2,3|");
        check(&[0, 1, 4, 9], &[1..=1], &[4..=5], "1 1|||0,9");
        // Unacknowledged twice is a fault, too.
        check(&[4, 4], &[], &[4..=5], "0 1||4|");
        // Acknowledged wins over unacknowledged; ranges come in any order.
        check(&[1, 2, 3, 4, 5], &[4..=5, 1..=2], &[1..=3], "4 1|||");
        check(&[u32::MAX, 0], &[0..=0, u32::MAX..=u32::MAX], &[], "2 0|||");
        #[allow(clippy::reversed_empty_ranges, reason = "an empty range is what is tested")]
        check(&[7], &[5..=4], &[], "0 0|||7");
    }

    #[test]
    fn faults_are_counted_and_the_first_are_listed() {
        let all = 0..=999_999;
        let told = compare(vec![1, 1, 1], std::slice::from_ref(&all), &[]);
        assert_eq!((told.missing.count, told.missing.first.len()), (999_999, LISTED_MAX));
        assert_eq!(&told.missing.first[..3], [0, 2, 3]);
        let told = compare(vec![5; 100], &[], &[]);
        assert_eq!((told.duplicated.count, told.duplicated.first.len()), (99, LISTED_MAX));
        assert_eq!(told.unexpected, Amiss { count: 1, first: vec![5] });
        assert_eq!(count(&joined(&[5..=9, 0..=4, 7..=20, 30..=30])), 22);
        assert_eq!(joined(&[5..=9, 0..=4, 7..=20, 30..=30]), [0..=20, 30..=30]);
    }

    #[test]
    fn values_are_sorted_into_own_foreign_and_strange() {
        let mut found = Found::default();
        let serial = |device, seq| json!(serial_value(device, seq) as f64);
        for value in [serial(4, 1), serial(5, 2), json!(1.5), json!("x"), json!(null), serial(4, 0)] {
            found.add(4, &value);
        }
        assert_eq!((found.own, found.foreign), (vec![1, 0], vec![(5, 2)]));
        assert_eq!(found.strange, ["1.5", "\"x\"", "null"]);
        let mut found = Found::default();
        for seq in 0..100 {
            found.add(4, &serial(5, seq));
            found.add(4, &json!("x".repeat(1_000)));
        }
        assert_eq!((found.foreign.len(), found.foreign_more), (LISTED_MAX, 100 - LISTED_MAX as u64));
        assert_eq!((found.strange.len(), found.strange_more), (LISTED_MAX, 100 - LISTED_MAX as u64));
        assert_eq!(found.strange[0].len(), 40);
    }
}
