//! The model of the promise that the trials compare the journal with.

use crate::ranges;
use crate::sim::Rng;
use crate::types::{Batch, DropReason, DropRecord, Opening, Seq, SeqRange};
use std::collections::{BTreeMap, BTreeSet};

/// What was appended and became of it. Keys are (epoch, seq).
#[derive(Default)]
pub(super) struct Model {
    appended: BTreeMap<(u64, Seq), Vec<u8>>,
    /// Appended in this life, not yet known to be durable.
    waiting: BTreeMap<Seq, u64>,
    /// Position to epoch.
    accepted: BTreeMap<Seq, u64>,
    /// Handed to the pinning reader.
    delivered: BTreeSet<(u64, Seq)>,
    /// Given up by the model as the uplink would; may still be served.
    refused: BTreeSet<(u64, Seq)>,
    confirmed: Vec<DropRecord>,
    released: Seq,
    read_next: Seq,
}

pub(super) fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// A payload that names its serial and whose every byte depends on it.
pub(super) fn payload(serial: u64, size: usize) -> Vec<u8> {
    let mut rng = Rng::new(serial);
    let mut bytes = serial.to_le_bytes().to_vec();
    bytes.extend((0..size).map(|_| rng.next_u64() as u8));
    bytes
}

impl Model {
    pub(super) fn appended(&mut self, epoch: u64, seq: Seq, payload: Vec<u8>) {
        self.appended.insert((epoch, seq), payload);
        self.waiting.insert(seq, epoch);
    }

    /// The journal says that all below `next` is durable.
    pub(super) fn accept_below(&mut self, next: Seq) -> Result<(), String> {
        let still = self.waiting.split_off(&next);
        for (seq, epoch) in std::mem::replace(&mut self.waiting, still) {
            let before = self.accepted.insert(seq, epoch);
            check(before.is_none(), || format!("position {seq} was given out twice"))?;
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, next_seq: Seq) -> Result<(), String> {
        self.waiting.clear();
        let last = self.accepted.last_key_value().map_or(0, |entry| *entry.0);
        check(next_seq > last, || format!("opened at {next_seq}, but {last} was accepted"))
    }

    pub(super) fn released(&mut self, upto: Seq) {
        self.released = self.released.max(upto);
    }

    /// Some point up to which the reader has read.
    pub(super) fn release_point(&self, rng: &mut Rng) -> Seq {
        let unreleased = self.read_next.saturating_sub(self.released);
        self.released + rng.below(unreleased + 1)
    }

    pub(super) fn forget_unaccepted_reads(&mut self) {
        // The reader starts at its release mark again, which the journal may have persisted late.
        self.read_next = self.released;
    }

    pub(super) fn some_delivered(&self, rng: &mut Rng) -> Option<(u64, Seq)> {
        let at = rng.below(self.delivered.len() as u64) as usize;
        self.delivered.iter().nth(at).copied()
    }

    pub(super) fn refused(&mut self, epoch: u64, seq: Seq) {
        self.refused.insert((epoch, seq));
    }

    pub(super) fn confirmed(&mut self, drops: &[DropRecord]) {
        self.confirmed.extend_from_slice(drops);
    }

    pub(super) fn appended_count(&self) -> u64 {
        self.appended.len() as u64
    }

    pub(super) fn accepted_count(&self) -> u64 {
        self.accepted.len() as u64
    }

    pub(super) fn delivered(&mut self, got: &[(u64, Seq, Vec<u8>)], batch: &Batch) -> Result<(), String> {
        let mut at = batch.from;
        for (epoch, seq, payload) in got {
            check(*seq >= at, || format!("{seq} served after {at}"))?;
            self.check_record(*epoch, *seq, payload)?;
            self.delivered.insert((*epoch, *seq));
            at = seq + 1;
        }
        let skipped: u64 = batch.skipped.iter().map(|range| range.count()).sum();
        check(got.len() as u64 + skipped == batch.next - batch.from, || {
            format!("{} served and {skipped} skipped of {}..{}", got.len(), batch.from, batch.next)
        })?;
        self.read_next = self.read_next.max(batch.next);
        Ok(())
    }

    fn check_record(&self, epoch: u64, seq: Seq, payload: &[u8]) -> Result<(), String> {
        let known = self.appended.get(&(epoch, seq));
        check(known.is_some_and(|known| known == payload), || {
            format!("{seq} of {epoch:x} is not what was appended")
        })
    }

    /// Compares everything that the journal holds with everything that was accepted.
    pub(super) fn verify(
        &mut self,
        held: &[(u64, Seq, Vec<u8>)],
        drops: &[DropRecord],
        openings: &[Opening],
    ) -> Result<(), String> {
        let mut served = BTreeSet::new();
        let mut before = 0;
        for (epoch, seq, payload) in held {
            check(*seq > before, || format!("{seq} served after {before}"))?;
            before = *seq;
            self.check_record(*epoch, *seq, payload)?;
            served.insert((*epoch, *seq));
            // Served once, it must never vanish again, acknowledged or not.
            if self.accepted.insert(*seq, *epoch).is_some_and(|known| known != *epoch) {
                return Err(format!("position {seq} changed its epoch"));
            }
            self.waiting.remove(seq);
        }
        check(drops.iter().all(|drop| drop.reason != DropReason::CORRUPT), || format!("damage: {drops:?}"))?;
        let all: Vec<DropRecord> = drops.iter().chain(&self.confirmed).copied().collect();
        for (seq, epoch) in &self.accepted {
            let key = (*epoch, *seq);
            let dropped = all.iter().any(|drop| covers(drop, *epoch, *seq));
            let there = served.contains(&key);
            check(there || dropped || *seq < self.released, || format!("{seq} of {epoch:x} is lost"))?;
            let given_up = self.refused.contains(&key) || *seq < self.released;
            check(!there || !dropped || given_up, || format!("{seq} of {epoch:x} is served and dropped"))?;
        }
        self.check_openings(openings, drops)
    }

    fn check_openings(&self, openings: &[Opening], drops: &[DropRecord]) -> Result<(), String> {
        for (seq, epoch) in &self.accepted {
            let covered =
                openings.iter().any(|held| held.epoch == *epoch && (held.first..held.next).contains(seq));
            check(covered, || format!("no opening covers {seq} of {epoch:x}: {openings:?}"))?;
        }
        for drop in drops.iter().filter(|drop| drop.reason.0 <= DropReason::CORRUPT.0) {
            let mut left = vec![ranges::range_of(drop)];
            for held in openings.iter().filter(|held| held.epoch == drop.epoch) {
                let covered = SeqRange { first: held.first, next: held.next };
                left = left.into_iter().flat_map(|part| ranges::subtract(part, [covered])).collect();
            }
            check(left.is_empty(), || format!("{drop:?} lies outside of its opening: {openings:?}"))?;
        }
        let mut ends = openings.iter().map(|held| (held.first, held.next));
        let mut last = 0;
        check(ends.all(|(first, next)| std::mem::replace(&mut last, next) <= first), || {
            format!("openings overlap: {openings:?}")
        })
    }
}

fn covers(drop: &DropRecord, epoch: u64, seq: Seq) -> bool {
    drop.epoch == epoch && (drop.first..=drop.last).contains(&seq)
}
