//! Removes segments: released, too old, or to make room. Part of the writer.
//!
//! The order is always: drop record and new `first_seq` durable in the control state, out of the list,
//! file removed, directory synced. A crash in between leaves files that the next opening removes.

use crate::fs::Fs;
use crate::ranges;
use crate::state::{Inner, State, lock, segment_name};
use crate::types::{DROPS_MAX, DropReason, DropRecord, FullOf, SeqRange, WhenFull};
use crate::writer::{Blocked, Writer, batch_blocks};

/// Clocks that show an earlier time were never set (2020-01-01): such records do not expire by age.
const CLOCK_SET_MIN_US: i64 = 1_577_836_800_000_000;

impl<F: Fs> Writer<F> {
    /// Removes the segments that no reader holds any more; where the disk is full also the one that is written to,
    /// whose space may be all that there is to free.
    pub(crate) fn remove_released(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        let disk_full = lock(&inner.batch).stalled == Some(FullOf::Disk);
        // On a full disk what the journal has is all that it may have.
        let bytes_max = |state: &State| match disk_full {
            true => inner.options.bytes_max.min(state.disk_bytes()),
            false => inner.options.bytes_max,
        };
        if disk_full {
            let mut state = lock(&inner.state);
            let removable = state.removable(bytes_max(&state));
            let newest = state.segments.back();
            if newest.is_some_and(|newest| newest.next_seq <= removable && state.active == Some(newest.id)) {
                self.seal_active();
                state.active = None;
            }
        }
        let active = self.active_id();
        let count = {
            let mut state = lock(&inner.state);
            let removable = state.removable(bytes_max(&state));
            let gone = |segment: &&crate::state::Segment| {
                segment.next_seq <= removable && Some(segment.id) != active
            };
            let count = state.segments.iter().take_while(gone).count();
            if count > 0 {
                let first_seq =
                    state.segments.get(count).map_or(state.durable_next, |segment| segment.first_seq);
                state.control.first_seq = first_seq;
            }
            count
        };
        if count > 0 { self.remove_oldest(inner, count) } else { Ok(()) }
    }

    /// Under [`WhenFull::DropOldest`]: drops segments until the pending batch fits `bytes_max`. Then, under both,
    /// sees that the batch leaves the disk's reserve alone.
    pub(crate) fn make_room(&mut self, inner: &Inner<F>) -> Result<(), Blocked> {
        while inner.options.when_full == WhenFull::DropOldest
            && lock(&inner.state).disk_bytes() + batch_blocks(self.pending_bytes()) > inner.options.bytes_max
        {
            if !self.drop_oldest(inner, DropReason::QUEUE_FULL)? {
                break;
            }
        }
        let reserve = inner.options.disk_reserve_bytes;
        if reserve == 0 {
            return Ok(());
        }
        match inner.fs.free_bytes(&inner.options.dir) {
            Ok(free) if free < reserve.saturating_add(batch_blocks(self.pending_bytes())) => {
                Err(Blocked::Full(FullOf::Disk))
            }
            // A file system that cannot say what is free tells a full disk by its writes.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Drops the segments whose newest record is too old.
    pub(crate) fn expire(&mut self, inner: &Inner<F>, now_us: i64) -> Result<(), Blocked> {
        let Some(age_max) = inner.options.age_max else { return Ok(()) };
        let age_max_us = i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX);
        loop {
            let expired = lock(&inner.state).segments.front().is_some_and(|oldest| {
                oldest.last_at_us >= CLOCK_SET_MIN_US && now_us.saturating_sub(oldest.last_at_us) > age_max_us
            });
            if !expired || !self.drop_oldest(inner, DropReason::EXPIRED)? {
                return Ok(());
            }
        }
    }

    /// Drops the oldest segment with a durable drop record of what was not released; false where none is left.
    pub(crate) fn drop_oldest(&mut self, inner: &Inner<F>, reason: DropReason) -> Result<bool, Blocked> {
        {
            let mut state = lock(&inner.state);
            let Some(oldest) = state.segments.front().cloned() else { return Ok(false) };
            if Some(oldest.id) == self.active_id() {
                self.seal_active();
                state.active = None;
            }
            let first = oldest.first_seq.max(state.control.released());
            let range = SeqRange { first, next: oldest.next_seq };
            let parts = if range.first < range.next {
                ranges::subtract(range, state.known_holes(range))
            } else {
                Vec::new()
            };
            let mut drops = state.control.drops.clone();
            let record_bytes = oldest.bytes / (oldest.next_seq - oldest.first_seq).max(1);
            for part in &parts {
                let (class, epoch) = (oldest.class, oldest.epoch);
                let bytes = record_bytes * part.count();
                let record =
                    DropRecord { epoch, first: part.first, last: part.next - 1, class, reason, bytes };
                ranges::insert_drop(&mut drops, record);
            }
            if drops.len() > DROPS_MAX && drops.len() > state.control.drops.len() {
                return Err(Blocked::Full(FullOf::DropRecords));
            }
            state.control.drops = drops;
            for part in parts {
                state.control.count_drop(reason, part.count(), record_bytes * part.count());
            }
            state.control.first_seq = oldest.next_seq;
            let next = oldest.next_seq;
            state.control.holes.retain(|hole| hole.next > next);
        }
        self.remove_oldest(inner, 1)?;
        Ok(true)
    }

    fn remove_oldest(&mut self, inner: &Inner<F>, count: usize) -> Result<(), Blocked> {
        self.persist(inner)?;
        let gone: Vec<u64> = {
            let mut state = lock(&inner.state);
            state.segments.drain(..count).map(|segment| segment.id).collect()
        };
        for id in gone {
            // What cannot be removed now is removed by the next opening: it lies below first_seq.
            let _ = inner.fs.remove(&inner.options.dir.join(segment_name(id)));
        }
        let _ = inner.fs.sync_dir(&inner.options.dir);
        self.refresh_room(inner);
        inner.changed.notify_all();
        Ok(())
    }
}
