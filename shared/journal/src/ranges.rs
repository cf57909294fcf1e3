//! Arithmetic on seq ranges and drop records.

use crate::types::{DropRecord, SeqRange};

/// The parts of `range` that none of `holes` covers.
pub(crate) fn subtract(range: SeqRange, holes: impl IntoIterator<Item = SeqRange>) -> Vec<SeqRange> {
    let mut left = vec![range];
    for hole in holes {
        left = left
            .into_iter()
            .flat_map(|part| {
                let before = SeqRange { first: part.first, next: part.next.min(hole.first) };
                let after = SeqRange { first: part.first.max(hole.next), next: part.next };
                [before, after]
            })
            .filter(|part| part.first < part.next)
            .collect();
    }
    left.sort_unstable();
    left.dedup();
    left
}

/// Adds a range to a sorted list, merging what touches.
pub(crate) fn insert(ranges: &mut Vec<SeqRange>, range: SeqRange) {
    let mut merged = range;
    ranges.retain(|held| {
        let touches = held.first <= merged.next && merged.first <= held.next;
        if touches {
            merged = SeqRange { first: held.first.min(merged.first), next: held.next.max(merged.next) };
        }
        !touches
    });
    let at = ranges.partition_point(|held| held.first < merged.first);
    ranges.insert(at, merged);
}

/// A drop record's range.
pub(crate) fn range_of(record: &DropRecord) -> SeqRange {
    SeqRange { first: record.first, next: record.last.saturating_add(1) }
}

/// Adds a drop record, merging it with a touching one of the same epoch, class and reason.
pub(crate) fn insert_drop(drops: &mut Vec<DropRecord>, record: DropRecord) {
    let same = |held: &DropRecord| {
        (held.epoch, held.class, held.reason) == (record.epoch, record.class, record.reason)
    };
    let touching = drops.iter_mut().find(|held| {
        same(held)
            && held.first <= record.last.saturating_add(1)
            && record.first <= held.last.saturating_add(1)
    });
    match touching {
        Some(held) => {
            held.first = held.first.min(record.first);
            held.last = held.last.max(record.last);
            held.bytes += record.bytes;
        }
        None => drops.push(record),
    }
}

/// Removes what `confirmed` covers; a record that grew since keeps the rest.
pub(crate) fn confirm_drop(drops: &mut Vec<DropRecord>, confirmed: &DropRecord) {
    let mut kept = Vec::with_capacity(drops.len());
    for held in drops.drain(..) {
        let same =
            (held.epoch, held.class, held.reason) == (confirmed.epoch, confirmed.class, confirmed.reason);
        if !same {
            kept.push(held);
            continue;
        }
        let count = range_of(&held).count();
        for part in subtract(range_of(&held), [range_of(confirmed)]) {
            let bytes = if part.count() == count { held.bytes } else { held.bytes / count * part.count() };
            kept.push(DropRecord { first: part.first, last: part.next - 1, bytes, ..held });
        }
    }
    *drops = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DropReason;

    fn range(first: u64, next: u64) -> SeqRange {
        SeqRange { first, next }
    }

    fn drop_record(first: u64, last: u64) -> DropRecord {
        DropRecord { epoch: 1, first, last, class: 2, reason: DropReason(3), bytes: last - first + 1 }
    }

    #[test]
    fn subtract_cuts_holes_out() {
        let check = |holes: &[SeqRange], expect: &[SeqRange]| {
            assert_eq!(subtract(range(10, 20), holes.iter().copied()), expect);
        };
        check(&[], &[range(10, 20)]);
        check(&[range(0, 10), range(20, 30)], &[range(10, 20)]);
        check(&[range(12, 13), range(15, 40)], &[range(10, 12), range(13, 15)]);
        check(&[range(0, 100)], &[]);
    }

    #[test]
    fn insert_merges_what_touches() {
        let mut ranges = vec![range(1, 3), range(7, 9)];
        insert(&mut ranges, range(3, 5));
        assert_eq!(ranges, [range(1, 5), range(7, 9)]);
        insert(&mut ranges, range(4, 8));
        assert_eq!(ranges, [range(1, 9)]);
    }

    #[test]
    fn confirming_an_older_view_keeps_what_came_since() {
        let mut drops = Vec::new();
        insert_drop(&mut drops, drop_record(1, 4));
        let seen = drops[0];
        insert_drop(&mut drops, drop_record(5, 6));
        assert_eq!(drops, [drop_record(1, 6)]);
        confirm_drop(&mut drops, &seen);
        assert_eq!(drops, [drop_record(5, 6)]);
    }
}
