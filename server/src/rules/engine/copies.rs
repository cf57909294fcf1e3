//! Which records of a device were judged already: ranges of seqs by class and queue. Pure.
//!
//! `fleet` keeps one [`Judged`] a device. An agent that is killed sends again what its release mark had not reached,
//! which is seconds of records: a queue's seqs are therefore kept as ranges, which a queue that is sent in order
//! holds two of (what is live and the backlog), however many records they span.
//!
//! Limits: [`QUEUES_MAX`] queues, [`RANGES_MAX`] ranges in each. Beyond, the one that was touched longest ago is
//! forgotten: a copy of what was in it is judged again, a fresh record is never taken for a copy.

/// Queues (an opening of a class) of a device that are known at once.
const QUEUES_MAX: usize = 8;
/// Ranges that are known of a queue: drops and refusals make holes.
const RANGES_MAX: usize = 32;

/// What was judged of one device, the queue that was touched last at the end.
#[derive(Debug, Default)]
pub(super) struct Judged {
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    class: u8,
    queue_id: u64,
    /// `(first, last)`, apart from each other; the one that was touched last at the end.
    ranges: Vec<(u64, u64)>,
}

impl Judged {
    /// Notes a record; says whether it was noted before.
    pub(super) fn is_copy(&mut self, class: u8, queue_id: u64, seq: u64) -> bool {
        let known = self.queues.iter().rposition(|queue| queue.class == class && queue.queue_id == queue_id);
        match known {
            Some(at) => self.queues[at..].rotate_left(1),
            None => {
                if self.queues.len() == QUEUES_MAX {
                    self.queues.remove(0);
                }
                reserve_first(&mut self.queues);
                self.queues.push(Queue { class, queue_id, ranges: Vec::new() });
            }
        }
        self.queues.last_mut().is_some_and(|queue| queue.is_copy(seq))
    }
}

impl Queue {
    fn is_copy(&mut self, seq: u64) -> bool {
        let touches =
            |(first, last): &(u64, u64)| first.saturating_sub(1) <= seq && seq <= last.saturating_add(1);
        let Some(at) = self.ranges.iter().rposition(touches) else {
            if self.ranges.len() == RANGES_MAX {
                self.ranges.remove(0);
            }
            reserve_first(&mut self.ranges);
            self.ranges.push((seq, seq));
            return false;
        };
        self.ranges[at..].rotate_left(1);
        let newest = self.ranges.len() - 1;
        let (first, last) = self.ranges[newest];
        if (first..=last).contains(&seq) {
            return true;
        }
        // The seq may close the hole between two ranges.
        let other = self.ranges[..newest].iter().position(touches).map(|at| self.ranges.remove(at));
        let (other_first, other_last) = other.unwrap_or((seq, seq));
        if let Some(range) = self.ranges.last_mut() {
            *range = (first.min(other_first).min(seq), last.max(other_last).max(seq));
        }
        false
    }
}

/// Room for one only: most devices have one queue of one range, and there are many devices.
fn reserve_first<T>(list: &mut Vec<T>) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn the_range_touched_longest_ago_is_forgotten_first() {
        let mut judged = Judged::default();
        let apart = |n: usize| n as u64 * 10;
        (0..RANGES_MAX).for_each(|n| assert!(!judged.is_copy(1, 9, apart(n))));
        assert!(judged.is_copy(1, 9, apart(0)), "touched again: the newest now");
        assert!(!judged.is_copy(1, 9, apart(RANGES_MAX)));
        assert!(judged.is_copy(1, 9, apart(0)));
        assert!(judged.is_copy(1, 9, apart(2)));
        assert!(!judged.is_copy(1, 9, apart(1)), "it gave way");
        assert_eq!(judged.queues[0].ranges.len(), RANGES_MAX);
    }

    #[test]
    fn the_queue_touched_longest_ago_is_forgotten_first() {
        let mut judged = Judged::default();
        (0..QUEUES_MAX as u64).for_each(|queue| assert!(!judged.is_copy(1, queue, 5)));
        assert!(judged.is_copy(1, 0, 5));
        assert!(!judged.is_copy(2, 0, 5), "another class");
        assert!(judged.is_copy(1, 0, 5));
        assert!(!judged.is_copy(1, 1, 5), "it gave way");
        assert_eq!(judged.queues.len(), QUEUES_MAX);
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_set_while_they_fit(seqs in prop::collection::vec(0..60u64, 0..200)) {
            let (mut judged, mut model) = (Judged::default(), HashSet::new());
            for seq in seqs {
                let seq = if seq == 59 { u64::MAX } else { seq };
                prop_assert_eq!(judged.is_copy(1, 9, seq), !model.insert(seq), "{}", seq);
                let ranges = &judged.queues[0].ranges;
                let covered: u64 = ranges.iter().map(|(first, last)| last - first + 1).sum();
                prop_assert_eq!(covered as usize, model.len());
            }
        }
    }
}
