//! What birth and state say about the queue, and what their acknowledgement allows to forget.

use super::history::Line;
use super::{Queue, QueueClass, QueueError, Seq, class_error};
use muster_journal::{DropRecord, Fs, Opening};
use muster_wire::{DROPS_MAX, DropRange, DropReason, QUEUES_MAX, QueueId, QueueState};
use std::sync::PoisonError;

/// One report: what it says, and what its acknowledgement settles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// For the message's `queues`.
    pub queues: Vec<QueueState>,
    /// For the message's `drops`.
    pub drops: Vec<DropRange>,
    confirms: [Vec<DropRecord>; 2],
    forgets: Vec<(QueueClass, Opening)>,
    /// More waits than one report holds: send another.
    pub more: bool,
}

/// The number that the journal keeps for a reason; the journal's own three are the wire's first three.
pub(super) fn reason_number(reason: DropReason) -> u8 {
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

/// The reason of a number; an unknown one counts as damage, so that it is never hidden.
pub(super) fn reason_from_number(number: u8) -> DropReason {
    DropReason::ALL.into_iter().find(|reason| reason_number(*reason) == number).unwrap_or(DropReason::Corrupt)
}

pub(super) fn drop_range(class: QueueClass, drop: &DropRecord) -> DropRange {
    DropRange {
        class: class.up().number(),
        queue_id: QueueId(drop.epoch),
        first: drop.first,
        last: drop.last,
        reason: reason_from_number(drop.reason.0),
    }
}

fn queue_state(class: QueueClass, opening: &Opening, released: Seq) -> QueueState {
    QueueState {
        class: class.up().number(),
        queue_id: QueueId(opening.epoch),
        first: opening.first,
        released: released.clamp(opening.first, opening.next),
        next: opening.next,
        closed: opening.closed,
    }
}

impl<F: Fs> Queue<F> {
    /// Whether drops wait to be reported.
    #[must_use]
    pub fn has_drops(&self) -> bool {
        QueueClass::ALL.into_iter().any(|class| self.journal(class).stats().drops > 0)
    }

    /// What to say now. The release mark never passes a drop that the same report cannot carry, so the server
    /// sees no record as lost that a later report would explain.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = Report::default();
        for class in QueueClass::ALL {
            let journal = self.journal(class);
            // The mark before the drops: a drop is recorded before the mark passes it.
            let mut released = self.mark(class);
            let mut drops = journal.drops();
            drops.sort_unstable_by_key(|drop| drop.first);
            let room = DROPS_MAX / QueueClass::ALL.len();
            if let Some(unsaid) = drops.get(room) {
                released = released.min(unsaid.first);
                report.more = true;
            }
            drops.truncate(room);
            report.drops.extend(drops.iter().map(|drop| drop_range(class, drop)));
            report.confirms[class.index()] = drops;

            let openings: Vec<_> = journal
                .openings()
                .into_iter()
                .filter(|opening| !opening.closed || opening.first < opening.next)
                .collect();
            let room = QUEUES_MAX / QueueClass::ALL.len();
            // The oldest settle first; the open one is always said.
            let skipped = openings.len().saturating_sub(room);
            report.more |= skipped > 0;
            let kept = openings.iter().take(room - 1).chain(openings.iter().skip(room - 1).next_back());
            for opening in kept {
                let state = queue_state(class, opening, released);
                if state.closed && state.released == state.next {
                    report.forgets.push((class, *opening));
                }
                report.queues.push(state);
            }
        }
        report
    }

    /// The server has the report: its drops are confirmed, its closed and released openings forgotten.
    ///
    /// # Errors
    /// The disk refused; the same report comes again.
    pub fn confirm(&self, report: &Report) -> Result<(), QueueError> {
        let drops = QueueClass::ALL.into_iter().flat_map(|class| {
            report.confirms[class.index()].iter().map(move |drop| Line::dropped(&drop_range(class, drop)))
        });
        let openings = report.forgets.iter().map(|(class, opening)| Line::opening(*class, opening));
        let lines: Vec<_> = drops.chain(openings).collect();
        if let (Some(history), false) = (&self.history, lines.is_empty()) {
            history.lock().unwrap_or_else(PoisonError::into_inner).append(&lines)?;
        }
        for class in QueueClass::ALL {
            let confirms = &report.confirms[class.index()];
            if !confirms.is_empty() {
                self.journal(class).confirm_drops(confirms).map_err(class_error(class))?;
            }
        }
        for (class, opening) in &report.forgets {
            self.journal(*class).forget_opening(opening.epoch).map_err(class_error(*class))?;
        }
        Ok(())
    }

    /// Forgets closed openings that took nothing, so that a crash loop leaves nothing behind.
    ///
    /// # Errors
    /// The disk refused.
    pub fn forget_empty_openings(&self) -> Result<(), QueueError> {
        for class in QueueClass::ALL {
            let journal = self.journal(class);
            for opening in journal.openings() {
                if opening.closed && opening.first == opening.next {
                    journal.forget_opening(opening.epoch).map_err(class_error(class))?;
                }
            }
        }
        Ok(())
    }
}
