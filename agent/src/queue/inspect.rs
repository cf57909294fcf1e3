//! `muster-agent queue inspect --json`: accepted and dropped ranges per class and queue_id, the oracle of the
//! promise. It counts from the journals and the history, never from what was sent.

use super::history::{self, Line};
use super::report::drop_range;
use super::{QueueClass, QueueError, UPLINK_READER, class_error};
use crate::uplink::ranges::RangeSet;
use muster_journal::RealFs;
use muster_wire::{DropReason, QueueId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Seqs `first..=last` of one opening, accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, PartialOrd, Ord)]
pub struct OpeningRange {
    /// The opening.
    pub queue_id: QueueId,
    /// The first seq.
    pub first: u64,
    /// The last seq.
    pub last: u64,
}

/// Seqs `first..=last` of one opening, dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DroppedRange {
    /// The opening.
    pub queue_id: QueueId,
    /// The first seq.
    pub first: u64,
    /// The last seq.
    pub last: u64,
    /// Why.
    pub reason: DropReason,
}

/// One class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassInspection {
    /// `telemetry` or `event`.
    pub class: &'static str,
    /// Records accepted over all openings known.
    pub accepted: u64,
    /// Records dropped over all openings known.
    pub dropped: u64,
    /// All below is acknowledged or dropped.
    pub released: u64,
    /// All below is accepted.
    pub next: u64,
    /// Accepted ranges.
    pub openings: Vec<OpeningRange>,
    /// Dropped ranges.
    pub drops: Vec<DroppedRange>,
}

/// Both classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The history was cut: the sums miss the oldest openings.
    pub history_truncated: bool,
    /// Telemetry and event.
    pub classes: Vec<ClassInspection>,
}

/// Looks at a queue's files; changes nothing. Of a running agent it is a view that may be seconds old.
///
/// # Errors
/// A file cannot be read.
pub fn inspect(dir: &Path) -> Result<Inspection, QueueError> {
    let lines = history::read(dir)?;
    let classes = QueueClass::ALL
        .into_iter()
        .map(|class| inspect_class(dir, class, &lines))
        .collect::<Result<_, _>>()?;
    Ok(Inspection { history_truncated: lines.contains(&Line::Truncated), classes })
}

fn inspect_class(dir: &Path, class: QueueClass, lines: &[Line]) -> Result<ClassInspection, QueueError> {
    let number = class.up().number();
    let found =
        muster_journal::inspect(&RealFs, &dir.join(class.up().as_str())).map_err(class_error(class))?;
    let mut openings = BTreeSet::new();
    for opening in found.openings.iter().filter(|opening| opening.first < opening.next) {
        let queue_id = QueueId(opening.epoch);
        openings.insert(OpeningRange { queue_id, first: opening.first, last: opening.next - 1 });
    }
    let mut drops: Vec<_> = found.drops.iter().map(|drop| drop_range(class, drop)).collect();
    for line in lines {
        match *line {
            Line::Opening { class, queue_id, first, next } if class == number => {
                openings.insert(OpeningRange { queue_id, first, last: next.saturating_sub(1) });
            }
            Line::Drop { class, queue_id, first, last, reason } if class == number => {
                drops.push(muster_wire::DropRange { class, queue_id, first, last, reason });
            }
            _ => {}
        }
    }
    drops.sort_unstable_by_key(|drop| (drop.first, drop.last));
    drops.dedup();
    let released = found.released.iter().find(|(name, _)| name == UPLINK_READER).map_or(1, |(_, mark)| *mark);
    Ok(ClassInspection {
        class: class.up().as_str(),
        accepted: openings.iter().map(|range| range.last - range.first + 1).sum(),
        dropped: count_dropped(&drops),
        released,
        next: found.next_seq,
        openings: sorted(openings),
        drops: drops
            .into_iter()
            .map(|drop| DroppedRange {
                queue_id: drop.queue_id,
                first: drop.first,
                last: drop.last,
                reason: drop.reason,
            })
            .collect(),
    })
}

/// Ranges of one opening may overlap where a crash repeated a line of the history: each seq counts once.
fn count_dropped(drops: &[muster_wire::DropRange]) -> u64 {
    let mut openings: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
    for drop in drops {
        openings.entry(drop.queue_id).or_default().insert(drop.first, drop.last + 1);
    }
    openings.values().map(RangeSet::count).sum()
}

fn sorted(openings: BTreeSet<OpeningRange>) -> Vec<OpeningRange> {
    let mut openings: Vec<_> = openings.into_iter().collect();
    openings.sort_unstable_by_key(|range| range.first);
    openings
}
