//! Flow control of backlogs: who may send how much of what it kept, and how a fleet spreads its next connects.
//!
//! A device that subscribes to `dn/credit` is told an announcement; from then on it sends its backlog against
//! credit only, which it asks for on `up/credit`. Who asks stands in a [`line`](self::line); each [`TURN`] the
//! [`controller`] decides on the fleet's budget and the first in line are granted, at most [`GRANT_MAX`] records
//! each. Live data needs no credit, so it goes first. See ADR 0013.
//!
//! Called by `connection` (requests, ends, packets heard) and `down` (subscriptions); calls `link`. Requests are the
//! one body that the gateway decodes: they are addressed to it, and never reach the log.
//!
//! Promise: every waiting link is granted in turn, whatever others ask for. Nothing here is kept: a restart, a lost
//! connection or a full outbox loses credit, and the device asks again. Devices that do not ask are not held up:
//! credit protects a fleet of fair devices from itself, `rate` protects from a wild one.
//!
//! Limits: [`line::WAITING_MAX`] links wait; [`GRANTS_PER_TURN_MAX`] grants in a turn.

mod controller;
mod lag;
mod line;
mod probe;
#[cfg(test)]
mod tests;

pub(crate) use controller::Cut;
#[cfg(test)]
pub(crate) use line::WAITING_MAX;

use super::Core;
use super::link::{Link, Message};
use super::metrics::{Metrics, Sent};
use super::publish;
use super::reason::Refusal;
use crate::platform::secret::random_bytes;
use controller::{Controller, Signals};
use lag::Lag;
use line::{Line, Stood};
use muster_wire::{Credit, CreditRequest, DownClass, RECONNECT_SPREAD_MS_MAX};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Between two decisions on the budget.
const TURN: Duration = Duration::from_millis(50);
/// Records of one grant: two windows of an agent, so that its next request overlaps with the sending.
pub(crate) const GRANT_MAX: u32 = 64;
/// Grants made at once, so that other tasks of the thread run in between.
const GRANTS_PER_TURN_MAX: usize = 1_024;
/// Connects a second, TLS handshake included, that a fleet is asked to keep to: half of what two shared cores
/// showed, so that live data has the other half.
const CONNECTS_PER_S: u64 = 1_500;
/// A spread is told again when it changed by half and by this much at least.
const SPREAD_STEP_MS: u32 = 500;
/// [`Link::spread_told_ms`] of a link that follows no `dn/credit`.
pub(crate) const SPREAD_NOT_TOLD: u32 = u32::MAX;

/// What became of a request for credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// In line.
    Queued,
    /// It stood in line already.
    Repeated,
    /// The line is full.
    LineFull,
    /// From a device that does not follow `dn/credit`.
    NotSubscribed,
    /// Not a request.
    Malformed,
}

impl Asked {
    /// Every end.
    pub(crate) const ALL: [Self; 5] =
        [Self::Queued, Self::Repeated, Self::LineFull, Self::NotSubscribed, Self::Malformed];

    /// The label of its counter.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Repeated => "repeated",
            Self::LineFull => "line_full",
            Self::NotSubscribed => "not_subscribed",
            Self::Malformed => "malformed",
        }
    }
}

/// The fleet's credit.
pub(crate) struct Credits {
    /// This start.
    pub(crate) epoch: u64,
    /// What who connects or asks now is told.
    pub(crate) spread_ms: AtomicU32,
    line: Line,
    pub(crate) probe: probe::Probe,
    /// Somebody came to an empty line.
    arrived: Notify,
}

impl Default for Credits {
    fn default() -> Self {
        Self {
            epoch: u64::from_le_bytes(random_bytes()),
            spread_ms: AtomicU32::new(0),
            line: Line::default(),
            probe: probe::Probe::default(),
            arrived: Notify::new(),
        }
    }
}

/// How far a fleet's connects should be spread.
fn spread_ms(connections: usize) -> u32 {
    let all = (connections as u64).saturating_mul(1_000) / CONNECTS_PER_S;
    u32::try_from(all).unwrap_or(u32::MAX).min(RECONNECT_SPREAD_MS_MAX)
}

/// Whether the spread that a link was told is out of date.
fn is_outdated(told_ms: u32, now_ms: u32) -> bool {
    let change = told_ms.abs_diff(now_ms);
    told_ms != SPREAD_NOT_TOLD && change >= SPREAD_STEP_MS && change >= told_ms / 2
}

impl Credits {
    /// Tells a link; says whether there was room.
    fn tell(&self, metrics: &Metrics, link: &Link, records: u32) -> bool {
        let reconnect_spread_ms = self.spread_ms.load(Ordering::Relaxed);
        link.spread_told_ms.store(reconnect_spread_ms, Ordering::Relaxed);
        let payload = Credit { epoch: self.epoch, records, reconnect_spread_ms }.encode().into();
        let topic = publish::down_topic(&link.name, DownClass::Credit).into();
        let told =
            link.send_down(publish::down_bit(DownClass::Credit), &Arc::new(Message { topic, payload }));
        if told == Some(false) {
            metrics.sent(Sent::Overflow);
        }
        told == Some(true)
    }

    /// A link began to follow `dn/credit`.
    pub(crate) fn announce(&self, metrics: &Metrics, link: &Link) {
        self.tell(metrics, link, 0);
    }

    /// A packet came: whose spread is out of date is told the new one.
    pub(crate) fn heard(&self, metrics: &Metrics, link: &Link) {
        let told_ms = link.spread_told_ms.load(Ordering::Relaxed);
        if is_outdated(told_ms, self.spread_ms.load(Ordering::Relaxed)) {
            self.tell(metrics, link, 0);
        }
    }

    /// A PUBLISH on `up/credit`. Gives the PUBACK's code.
    pub(crate) fn request(
        &self,
        metrics: &Metrics,
        link: &Arc<Link>,
        asked: Result<CreditRequest, Refusal>,
    ) -> u8 {
        let (end, code) = match asked {
            Err(refusal) => (Asked::Malformed, refusal.code()),
            Ok(_) if link.spread_told_ms.load(Ordering::Relaxed) == SPREAD_NOT_TOLD => {
                (Asked::NotSubscribed, 0)
            }
            Ok(CreditRequest { backlog }) => {
                let records = u32::try_from(backlog).unwrap_or(u32::MAX).min(GRANT_MAX);
                let end = match self.line.ask(link, records) {
                    Stood::First => {
                        self.arrived.notify_one();
                        Asked::Queued
                    }
                    Stood::Behind => Asked::Queued,
                    Stood::Already => Asked::Repeated,
                    Stood::Full => Asked::LineFull,
                };
                (end, 0)
            }
        };
        metrics.credit_asked(end);
        code
    }

    /// How many links wait.
    pub(crate) fn waiting(&self) -> usize {
        self.line.len()
    }

    /// A connection ended.
    pub(crate) fn leave(&self, link: &Link) {
        self.line.leave(link);
    }

    fn signals(&self, core: &Core, lag: &mut Lag, now: Duration, late: Duration) -> Signals {
        let log = core.log.stats();
        let stored = core.log.stored_next().unwrap_or(log.durable_next);
        Signals {
            waits: self.waiting() > 0,
            disk_delay: self.probe.take(),
            late,
            log_bytes: log.bytes,
            log_bytes_max: core.log.bytes_max(),
            log_is_full: core.stalls.is_full(core.tick()),
            store_lag: lag.note(now, log.durable_next, stored),
        }
    }

    fn turn(
        &self,
        core: &Core,
        (controller, lag): (&mut Controller, &mut Lag),
        now: Duration,
        late: Duration,
    ) {
        self.spread_ms.store(spread_ms(core.live.len()), Ordering::Relaxed);
        if let Some(cut) = controller.turn(now, &self.signals(core, lag, now, late)) {
            core.metrics.credit_cut(cut);
        }
        core.metrics.credit_budget.set(controller.budget());
    }

    fn grant(&self, metrics: &Metrics, controller: &mut Controller) {
        for _ in 0..GRANTS_PER_TURN_MAX {
            if !controller.may_grant() {
                break;
            }
            let Some((link, records)) = self.line.next() else { break };
            if self.tell(metrics, &link, records) {
                controller.spend(records);
                metrics.credit_granted.inc_by(u64::from(records));
            }
        }
        metrics.credit_waiting.set(i64::try_from(self.waiting()).unwrap_or(i64::MAX));
    }

    /// Grants; runs for the gateway's life.
    pub(crate) async fn run(core: Arc<Core>) {
        let start = Instant::now();
        let (mut controller, mut lag) = (Controller::new(Duration::ZERO), Lag::default());
        let mut turns = tokio::time::interval(TURN);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                due = turns.tick() => {
                    let state = (&mut controller, &mut lag);
                    core.credits.turn(&core, state, start.elapsed(), due.elapsed());
                }
                // Who comes while there is budget left needs not wait for the turn.
                () = core.credits.arrived.notified() => {}
            }
            core.credits.grant(&core.metrics, &mut controller);
        }
    }
}
