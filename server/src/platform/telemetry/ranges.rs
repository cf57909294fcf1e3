//! What is known about the seqs of one queue: stored, or dropped and why. Pure.
//!
//! Ranges never overlap; neighbours of one outcome are joined. A stored record wins over an agent's drop
//! of the same seq (it was sent, its PUBACK got lost, then the queue dropped it): it is stored, not dropped.

use muster_wire::DropReason;
use std::collections::BTreeMap;

/// The outcome of stored seqs; others are the number of a [`DropReason`].
pub const STORED: u8 = 0;

/// The number of a reason, as on the wire.
#[must_use]
pub fn reason_number(reason: DropReason) -> u8 {
    match reason {
        DropReason::QueueFull => 1,
        DropReason::Expired => 2,
        DropReason::Corrupt => 3,
        DropReason::RefusedNotAuthorized => 4,
        DropReason::RefusedTopic => 5,
        DropReason::RefusedPayload => 6,
        DropReason::Malformed => 7,
        DropReason::Purged => 8,
    }
}

/// The reason of a number.
#[must_use]
pub fn reason_of(number: u8) -> Option<DropReason> {
    DropReason::ALL.into_iter().find(|reason| reason_number(*reason) == number)
}

const MALFORMED: u8 = 7;

/// Outcomes by range, with the changes since they were last written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// first -> (last, outcome)
    map: BTreeMap<u64, (u64, u8)>,
    /// Firsts of ranges that were added, changed or removed.
    touched: Vec<u64>,
}

/// One range as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its first seq, the key.
    pub first: u64,
    /// Last seq and outcome; None: the range is no more.
    pub now: Option<(u64, u8)>,
}

impl Ranges {
    /// Takes ranges as they were written.
    pub fn load(ranges: impl IntoIterator<Item = (u64, u64, u8)>) -> Self {
        let map = ranges.into_iter().map(|(first, last, outcome)| (first, (last, outcome))).collect();
        Self { map, touched: Vec::new() }
    }

    /// The outcome of a seq.
    #[must_use]
    pub fn outcome(&self, seq: u64) -> Option<u8> {
        let (_, (last, outcome)) = self.map.range(..=seq).next_back()?;
        (seq <= *last).then_some(*outcome)
    }

    /// Whether a record with this seq was dealt with for good: stored, or kept as a dead letter.
    #[must_use]
    pub fn is_settled(&self, seq: u64) -> bool {
        matches!(self.outcome(seq), Some(STORED | MALFORMED))
    }

    /// Marks a seq as stored; an agent's drop of it is taken back. Says whether one was.
    pub fn store(&mut self, seq: u64) -> bool {
        let carved = self.carve(seq);
        self.join(seq, seq, STORED);
        carved
    }

    /// Marks the seqs of `first..=last` that have no outcome yet, from the lowest on, while there are less than
    /// `ranges_max` ranges; returns how many were marked.
    pub fn drop(&mut self, first: u64, last: u64, reason: DropReason, ranges_max: usize) -> u64 {
        let mut marked = 0;
        for (first, last) in self.gaps(first, last) {
            if self.len() >= ranges_max {
                break;
            }
            self.join(first, last, reason_number(reason));
            marked += last - first + 1;
        }
        marked
    }

    /// How many seqs of `first..next` have no outcome.
    #[must_use]
    pub fn open(&self, first: u64, next: u64) -> u64 {
        if next <= first {
            return 0;
        }
        self.gaps(first, next - 1).iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many more ranges there are once a seq is stored that is not: it stands alone, or splits a dropped range.
    #[must_use]
    pub fn growth(&self, seq: u64) -> usize {
        let outcome = |at: Option<u64>| at.and_then(|at| self.outcome(at));
        let neighbours = [outcome(seq.checked_sub(1)), outcome(seq.checked_add(1))];
        let count = |wanted: Option<u8>| neighbours.iter().filter(|one| **one == wanted).count();
        let made = match self.outcome(seq) {
            None => 1,
            dropped => count(dropped),
        };
        made.saturating_sub(count(Some(STORED)))
    }

    /// Ranges held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// One past the highest seq with an outcome; 0 where there is none.
    #[must_use]
    pub fn high_next(&self) -> u64 {
        self.map.values().next_back().map_or(0, |(last, _)| last + 1)
    }

    /// The lowest seq with an outcome.
    #[must_use]
    pub fn low(&self) -> Option<u64> {
        self.map.keys().next().copied()
    }

    /// How many seqs each outcome has; each range counts for at most `cut`.
    #[must_use]
    pub fn sums(&self, cut: u64) -> BTreeMap<u8, u64> {
        let mut sums = BTreeMap::new();
        for (first, last, outcome) in self.iter() {
            *sums.entry(outcome).or_default() += (last - first + 1).min(cut);
        }
        sums
    }

    /// The ranges in order: first, last, outcome.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u8)> {
        self.map.iter().map(|(first, (last, outcome))| (*first, *last, *outcome))
    }

    /// Takes the changes since the last call, each first once.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().map(|first| Change { first, now: self.map.get(&first).copied() }).collect()
    }

    fn touch(&mut self, first: u64) {
        if self.touched.last() != Some(&first) {
            self.touched.push(first);
        }
    }

    fn gaps(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = first;
        let before = self.map.range(..first).next_back().map(|(first, (last, _))| (*first, *last));
        let inside = self.map.range(first..=last).map(|(first, (last, _))| (*first, *last));
        for (range_first, range_last) in before.into_iter().chain(inside) {
            if range_first > at {
                gaps.push((at, range_first - 1));
            }
            at = at.max(range_last + 1);
        }
        if at <= last {
            gaps.push((at, last));
        }
        gaps
    }

    /// Removes one seq from the range that holds it.
    fn carve(&mut self, seq: u64) -> bool {
        let holder = self.map.range(..=seq).next_back().map(|(first, range)| (*first, *range));
        let Some((first, (last, outcome))) = holder.filter(|(_, (last, _))| seq <= *last) else {
            return false;
        };
        self.map.remove(&first);
        self.touch(first);
        if first < seq {
            self.map.insert(first, (seq - 1, outcome));
        }
        if seq < last {
            self.map.insert(seq + 1, (last, outcome));
            self.touch(seq + 1);
        }
        true
    }

    /// Adds a range where nothing is, joined with its neighbours.
    fn join(&mut self, mut first: u64, mut last: u64, outcome: u8) {
        if let Some((right_last, right_outcome)) = self.map.get(&(last + 1)).copied()
            && right_outcome == outcome
        {
            self.map.remove(&(last + 1));
            self.touch(last + 1);
            last = right_last;
        }
        if let Some((left, (left_last, left_outcome))) = self.map.range_mut(..first).next_back()
            && *left_last + 1 == first
            && *left_outcome == outcome
        {
            *left_last = last;
            first = *left;
        } else {
            self.map.insert(first, (last, outcome));
        }
        self.touch(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Action {
        Store(u64),
        Drop(u64, u64, DropReason),
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let reasons = [DropReason::QueueFull, DropReason::Expired, DropReason::Malformed];
        let drop = (1..60u64, 0..20u64, prop::sample::select(reasons.to_vec()));
        let one = prop_oneof![
            3 => (1..60u64).prop_map(Action::Store),
            1 => drop.prop_map(|(first, more, reason)| Action::Drop(first, first + more, reason)),
        ];
        prop::collection::vec(one, 0..80)
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_table_of_single_seqs(actions in actions()) {
            let mut ranges = Ranges::default();
            let mut model: BTreeMap<u64, u8> = BTreeMap::new();
            let mut written: BTreeMap<u64, (u64, u8)> = BTreeMap::new();
            for action in actions {
                match action {
                    Action::Store(seq) if ranges.is_settled(seq) => {}
                    Action::Store(seq) => {
                        let (before, growth) = (ranges.len(), ranges.growth(seq));
                        prop_assert_eq!(ranges.store(seq), model.insert(seq, STORED).is_some());
                        prop_assert_eq!(ranges.len().saturating_sub(before), growth);
                    }
                    Action::Drop(first, last, reason) => {
                        let mut fresh = 0;
                        for seq in first..=last {
                            model.entry(seq).or_insert_with(|| { fresh += 1; reason_number(reason) });
                        }
                        prop_assert_eq!(ranges.drop(first, last, reason, usize::MAX), fresh);
                    }
                }
                for change in ranges.take_changes() {
                    match change.now {
                        Some(now) => { written.insert(change.first, now); }
                        None => { written.remove(&change.first); }
                    }
                }
                prop_assert_eq!(&written, &ranges.map, "what is written follows");
                for seq in 1..90 {
                    prop_assert_eq!(ranges.outcome(seq), model.get(&seq).copied());
                }
                prop_assert_eq!(ranges.open(5, 70), (5..70).filter(|seq| !model.contains_key(seq)).count() as u64);
                let joined = ranges.map.iter().zip(ranges.map.iter().skip(1));
                prop_assert!(joined.into_iter().all(|((_, a), (first, b))| a.0 < *first && (a.0 + 1 < *first || a.1 != b.1)));
            }
        }
    }
}
