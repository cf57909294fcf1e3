//! A set of sequence numbers as half-open ranges.

/// Sorted, disjoint, non-adjacent half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<(u64, u64)>);

impl RangeSet {
    /// The ranges, lowest first.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// The lowest number.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|range| range.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// Whether `number` is in it.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.1 <= number);
        self.0.get(at).is_some_and(|range| range.0 <= number)
    }

    /// Adds `from..upto`.
    pub fn insert(&mut self, from: u64, upto: u64) {
        if from >= upto {
            return;
        }
        let start = self.0.partition_point(|range| range.1 < from);
        let end = self.0.partition_point(|range| range.0 <= upto);
        let merged = match self.0.get(start..end) {
            Some([first, .., last]) => (first.0.min(from), last.1.max(upto)),
            Some([only]) => (only.0.min(from), only.1.max(upto)),
            _ => (from, upto),
        };
        self.0.splice(start..end, [merged]);
    }

    /// Takes `from..upto` out.
    pub fn remove(&mut self, from: u64, upto: u64) {
        if from >= upto {
            return;
        }
        let start = self.0.partition_point(|range| range.1 <= from);
        let end = self.0.partition_point(|range| range.0 < upto);
        let Some(hit) = self.0.get(start..end).filter(|hit| !hit.is_empty()) else { return };
        let (low, high) = (hit[0].0, hit[hit.len() - 1].1);
        let rest = [(low, from), (upto, high)].into_iter().filter(|range| range.0 < range.1);
        self.0.splice(start..end, rest.collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..40), 0..40)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, from, upto) in steps {
                if add {
                    set.insert(from, upto);
                    model.extend(from..upto);
                } else {
                    set.remove(from, upto);
                    model.retain(|number| !(from..upto).contains(number));
                }
                prop_assert!(set.ranges().iter().all(|range| range.0 < range.1));
                prop_assert!(set.ranges().windows(2).all(|pair| pair[0].1 < pair[1].0));
                prop_assert_eq!(set.count(), model.len() as u64);
                prop_assert!((0..40).all(|number| set.contains(number) == model.contains(&number)));
            }
        }
    }
}
