//! What to publish next and what an answer means: a pure state machine, no IO, no clock.
//!
//! Called by the uplink's task, which reads records and talks to the client. Cast: a *cursor* per queue
//! class; its *live* lane holds what became durable since the connection began, its *backlog* what was
//! there before (and what the server refused for now).
//!
//! Promise: every durable record is wanted again until [`Core::settle`] said it is done; the release mark
//! only passes records that are done; the newest telemetry waits for no backlog, and no backlog starves. Where the
//! server controls the fleet, the backlog is sent against [`credit`](super::credit) only, and live records without.
//! Limits: [`WINDOW`] records in flight; a live lane that falls [`LIVE_LAG_MAX`] behind gives its oldest
//! part to the backlog.

use super::backoff::Backoff;
use super::credit::Allowance;
use super::ranges::RangeSet;
use crate::queue::{QueueClass, Seq};
use muster_wire::DropReason;
use std::time::Duration;

/// Publishes in flight, reports included: what the server's Receive Maximum allows.
pub const WINDOW: usize = 32;
/// Records in flight; the rest of the window is kept for birth and state.
pub const RECORDS_IN_FLIGHT_MAX: usize = WINDOW - 2;
/// A live lane longer than this is no longer live.
pub const LIVE_LAG_MAX: u64 = 1024;
/// What stays in the live lane when its older part goes to the backlog.
pub const LIVE_KEPT: u64 = 64;
/// The first pause after a refusal for now.
pub const HOLD_MIN: Duration = Duration::from_millis(200);
/// The longest pause after refusals for now.
pub const HOLD_MAX: Duration = Duration::from_secs(60);

/// Which end of a class is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What was accepted since the connection began.
    Live,
    /// What was there before.
    Backlog,
}

/// The record to publish next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its class.
    pub class: QueueClass,
    /// Its lane.
    pub lane: Lane,
    /// Its number, or the next that still exists.
    pub seq: Seq,
}

/// What a PUBACK's reason means for the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server has it.
    Release,
    /// Keep it and back off.
    Keep,
    /// It will never be taken: drop it with a durable record.
    Drop(DropReason),
}

/// Reads a PUBACK reason as the promise, point 2, says; an unknown one keeps the record.
#[must_use]
pub fn judge(reason: u8) -> Verdict {
    match reason {
        0x00 | 0x10 => Verdict::Release,
        0x87 => Verdict::Drop(DropReason::RefusedNotAuthorized),
        0x90 => Verdict::Drop(DropReason::RefusedTopic),
        0x99 => Verdict::Drop(DropReason::RefusedPayload),
        _ => Verdict::Keep,
    }
}

#[derive(Debug)]
struct Cursor {
    released: Seq,
    done: RangeSet,
    in_flight: RangeSet,
    backlog: RangeSet,
    live: Seq,
}

impl Cursor {
    fn new(released: Seq) -> Self {
        Self {
            released,
            done: RangeSet::default(),
            in_flight: RangeSet::default(),
            backlog: RangeSet::default(),
            live: released,
        }
    }

    fn restart(&mut self, durable: Seq) {
        self.in_flight = RangeSet::default();
        self.backlog = RangeSet::default();
        self.backlog.insert(self.released, durable);
        for (from, upto) in self.done.ranges() {
            self.backlog.remove(*from, *upto);
        }
        self.live = durable.max(self.released);
    }

    fn next(&mut self, lane: Lane, durable: Seq) -> Option<Seq> {
        if lane == Lane::Backlog {
            return self.backlog.first();
        }
        if durable.saturating_sub(self.live) > LIVE_LAG_MAX {
            let from = self.live;
            self.live = durable - LIVE_KEPT;
            self.backlog.insert(from, self.live);
        }
        (self.live < durable).then_some(self.live)
    }

    fn take(&mut self, lane: Lane, from: Seq, upto: Seq) {
        match lane {
            Lane::Live => self.live = self.live.max(upto),
            Lane::Backlog => self.backlog.remove(from, upto),
        }
    }

    fn settle(&mut self, from: Seq, upto: Seq) -> bool {
        self.in_flight.remove(from, upto);
        self.backlog.remove(from, upto);
        self.done.insert(from.max(self.released), upto);
        let Some((first, end)) = self.done.ranges().first().copied() else { return false };
        if first > self.released {
            return false;
        }
        self.released = end;
        self.done.remove(0, end);
        true
    }
}

/// The uplink's decisions over both classes.
#[derive(Debug)]
pub struct Core {
    cursors: [Cursor; 2],
    turn: u64,
    hold: Backoff,
    held_until: Option<Duration>,
    allowance: Allowance,
}

/// The order of the lanes for one turn. Events before telemetry and live before backlog, but each third
/// turn begins with telemetry's head and each fourth with a backlog, so no lane starves behind another.
fn order(turn: u64) -> [(QueueClass, Lane); 4] {
    use Lane::{Backlog, Live};
    use QueueClass::{Event, Telemetry};
    match turn % 8 {
        2 | 6 => [(Telemetry, Live), (Event, Live), (Event, Backlog), (Telemetry, Backlog)],
        3 => [(Event, Backlog), (Telemetry, Backlog), (Event, Live), (Telemetry, Live)],
        7 => [(Telemetry, Backlog), (Event, Backlog), (Event, Live), (Telemetry, Live)],
        _ => [(Event, Live), (Telemetry, Live), (Event, Backlog), (Telemetry, Backlog)],
    }
}

impl Core {
    /// A core that has nothing below `released` (by class) to send.
    #[must_use]
    pub fn new(released: [Seq; 2], seed: u64) -> Self {
        Self {
            cursors: released.map(Cursor::new),
            turn: 0,
            hold: Backoff::new(HOLD_MIN, HOLD_MAX, seed),
            held_until: None,
            allowance: Allowance::default(),
        }
    }

    /// A connection begins: what was in flight is to be sent again, as backlog.
    pub fn connected(&mut self, durable: [Seq; 2], now: Duration) {
        self.allowance.connected(now);
        for (cursor, durable) in self.cursors.iter_mut().zip(durable) {
            cursor.restart(durable);
        }
        self.held_until = None;
    }

    /// The server answered the subscription, on which credit would come.
    pub fn subscribed(&mut self, granted: bool, now: Duration) {
        self.allowance.subscribed(granted, now);
    }

    /// The server told about credit: its start, and how many more records of the backlog may be sent.
    pub fn credit(&mut self, epoch: u64, records: u32, now: Duration) {
        self.allowance.heard(epoch, records, now);
    }

    /// How many records to ask credit for now; counts as asked.
    pub fn ask(&mut self, now: Duration) -> Option<u64> {
        if self.is_held(now) {
            return None;
        }
        self.allowance.ask(self.backlog(), now)
    }

    /// When credit is to be asked for next, or no longer waited for.
    #[must_use]
    pub fn look_at(&self, now: Duration) -> Option<Duration> {
        if self.is_held(now) {
            return None;
        }
        self.allowance.look_at(self.backlog(), now)
    }

    /// Records that wait in the backlog.
    fn backlog(&self) -> u64 {
        self.cursors.iter().map(|cursor| cursor.backlog.count()).sum()
    }

    fn is_held(&self, now: Duration) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// Records in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.cursors.iter().map(|cursor| cursor.in_flight.count()).sum()
    }

    /// All below is acknowledged or dropped.
    #[must_use]
    pub fn released(&self, class: QueueClass) -> Seq {
        self.cursors[class.index()].released
    }

    /// Whether nothing below the durable marks waits or is in flight.
    #[must_use]
    pub fn is_drained(&self, durable: [Seq; 2]) -> bool {
        self.cursors.iter().zip(durable).all(|(cursor, durable)| cursor.released >= durable)
    }

    /// Until when nothing is sent, since the server refused for now.
    #[must_use]
    pub fn held_until(&self) -> Option<Duration> {
        self.held_until
    }

    /// The record to publish next, if the window, the pause, the queue and for the backlog the server allow one.
    pub fn next(&mut self, durable: [Seq; 2], now: Duration) -> Option<Want> {
        if self.in_flight() >= RECORDS_IN_FLIGHT_MAX as u64 || self.is_held(now) {
            return None;
        }
        self.held_until = None;
        let backlog_may = self.allowance.may_send(now);
        order(self.turn).into_iter().find_map(|(class, lane)| {
            if lane == Lane::Backlog && !backlog_may {
                return None;
            }
            let seq = self.cursors[class.index()].next(lane, durable[class.index()])?;
            Some(Want { class, lane, seq })
        })
    }

    /// The queue gave record `seq` for `want`; numbers between the two are gone. True: publish it, it
    /// counts as in flight. False: it is not this lane's to send, ask again.
    #[must_use]
    pub fn found(&mut self, want: Want, seq: Seq) -> bool {
        debug_assert!(seq >= want.seq, "the queue reads forward");
        self.gone(want, seq);
        let cursor = &mut self.cursors[want.class.index()];
        if want.lane == Lane::Backlog && !cursor.backlog.contains(seq) {
            return false;
        }
        cursor.take(want.lane, seq, seq + 1);
        cursor.in_flight.insert(seq, seq + 1);
        if want.lane == Lane::Backlog {
            self.allowance.spend();
        }
        self.turn += 1;
        true
    }

    /// The queue has nothing from `want` up to `upto`: dropped with records of its own.
    pub fn gone(&mut self, want: Want, upto: Seq) {
        if want.seq < upto {
            let cursor = &mut self.cursors[want.class.index()];
            // A gap that reaches past the backlog takes the live lane's start with it.
            cursor.live = cursor.live.max(upto);
            cursor.settle(want.seq, upto);
        }
    }

    /// The record is done: acknowledged, or dropped with a durable record. True where the mark moved.
    pub fn settle(&mut self, class: QueueClass, seq: Seq) -> bool {
        self.hold.reset();
        self.cursors[class.index()].settle(seq, seq + 1)
    }

    /// The server refused the record for now: it goes to the backlog, and everything pauses.
    pub fn keep(&mut self, class: QueueClass, seq: Seq, now: Duration) {
        let cursor = &mut self.cursors[class.index()];
        cursor.in_flight.remove(seq, seq + 1);
        cursor.backlog.insert(seq, seq + 1);
        // The other refusals of one window belong to the same pause.
        if self.held_until.is_none() {
            self.held_until = Some(now + self.hold.next_wait());
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
