//! The log is full: who waits for room, and what presence records wait.
//!
//! A connection whose PUBLISH found no room keeps it, stands in line here and is woken to try again. While
//! the log stays full only [`PROBES`] connections try in each [`RETRY`]; the first that succeeds calls all
//! others. MQTT 3.1.1 senders over their rate wait here too, since they cannot be refused for now.
//! New CONNECTs are refused while [`Stalls::is_full`].
//!
//! Will and presence records that found no room wait in order, at most [`PRESENCE_MAX`]; more are lost and
//! counted, which the promise allows: they are no queue records.

use super::link::{Link, lock};
use super::reason::ConnectRefusal;
use super::{Core, TICKS_PER_S};
use crate::platform::event_log::{AppendError, Kind, NewRecord, Origin};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// How often waiting connections try again: soon enough for a window of 32 to flow on.
const RETRY: Duration = Duration::from_millis(10);
/// Connections that try at once while the log is full.
const PROBES: usize = 16;
/// Presence records that may wait: every connection's end, twice over.
pub(crate) const PRESENCE_MAX: usize = 40_000;
/// How long one refusal by the log counts as full when nobody tries again.
const FULL_TICKS: u32 = TICKS_PER_S;

struct Waiting {
    kind: Kind,
    tenant: Box<str>,
    device: Box<str>,
    class: u8,
    measured_at_us: i64,
    body: Box<[u8]>,
}

impl Waiting {
    fn of(record: &NewRecord<'_>) -> Self {
        let NewRecord { kind, class, measured_at_us, .. } = *record;
        Self {
            kind,
            tenant: record.tenant.into(),
            device: record.device.into(),
            class,
            measured_at_us,
            body: record.body.into(),
        }
    }

    fn record(&self) -> NewRecord<'_> {
        NewRecord {
            kind: self.kind,
            tenant: &self.tenant,
            device: &self.device,
            class: self.class,
            qos: 1,
            origin: Origin::Direct,
            measured_at_us: self.measured_at_us,
            body: &self.body,
        }
    }
}

/// The line of those who wait for room.
#[derive(Default)]
pub(crate) struct Stalls {
    line: Mutex<VecDeque<Arc<Link>>>,
    presence: Mutex<VecDeque<Waiting>>,
    full: AtomicBool,
    full_at_tick: AtomicU32,
    woken: Notify,
}

impl Stalls {
    /// Whether the log refused for want of room just now.
    pub(crate) fn is_full(&self, tick: u32) -> bool {
        self.full.load(Ordering::Relaxed)
            && tick.wrapping_sub(self.full_at_tick.load(Ordering::Relaxed)) <= FULL_TICKS
    }

    /// Notes what the log answered.
    pub(crate) fn note(&self, answer: Result<(), AppendError>, tick: u32) {
        match answer {
            Ok(()) if self.full.load(Ordering::Relaxed) => {
                self.full.store(false, Ordering::Relaxed);
                self.woken.notify_one();
            }
            Err(AppendError::Full) => {
                self.full_at_tick.store(tick, Ordering::Relaxed);
                self.full.store(true, Ordering::Relaxed);
            }
            Ok(()) | Err(AppendError::TooLarge | AppendError::Failed) => {}
        }
    }

    /// Puts a connection in line; it is woken to try again.
    pub(crate) fn wait(&self, link: &Arc<Link>) {
        if !link.waits_for_room.swap(true, Ordering::AcqRel) {
            let mut line = lock(&self.line);
            line.push_back(link.clone());
            if line.len() == 1 {
                self.woken.notify_one();
            }
        }
    }

    /// The disk moved on: there may be room now.
    pub(crate) fn nudge(&self) {
        if self.full.load(Ordering::Relaxed) {
            self.woken.notify_one();
        }
    }

    /// Appends a presence or will record, behind those that wait; where there is no room it waits too.
    pub(crate) fn append_presence(&self, core: &Core, record: &NewRecord<'_>) {
        let mut presence = lock(&self.presence);
        if presence.is_empty() {
            match core.append(record) {
                Err(AppendError::Full) => {}
                Ok(_) => return,
                Err(AppendError::TooLarge | AppendError::Failed) => return core.metrics.records_lost.inc(),
            }
        }
        if presence.len() >= PRESENCE_MAX {
            return core.metrics.records_lost.inc();
        }
        presence.push_back(Waiting::of(record));
        self.woken.notify_one();
    }

    /// Appends a `Connected` record, unless older presence records still wait.
    ///
    /// # Errors
    /// What the CONNECT is refused with.
    pub(crate) fn append_connected(&self, core: &Core, record: &NewRecord<'_>) -> Result<(), ConnectRefusal> {
        let presence = lock(&self.presence);
        if !presence.is_empty() {
            return Err(ConnectRefusal::LogFull);
        }
        match core.append(record) {
            Ok(_) => Ok(()),
            Err(AppendError::Full) => Err(ConnectRefusal::LogFull),
            Err(AppendError::TooLarge | AppendError::Failed) => Err(ConnectRefusal::Unavailable),
        }
    }

    fn retry_presence(&self, core: &Core) {
        let mut presence = lock(&self.presence);
        while let Some(first) = presence.front() {
            match core.append(&first.record()) {
                Err(AppendError::Full) => return,
                Ok(_) => {}
                Err(AppendError::TooLarge | AppendError::Failed) => core.metrics.records_lost.inc(),
            }
            presence.pop_front();
        }
    }

    fn is_idle(&self) -> bool {
        lock(&self.line).is_empty() && lock(&self.presence).is_empty()
    }

    /// Wakes those in line; runs for the gateway's life.
    pub(crate) async fn run(core: Arc<Core>) {
        let stalls = &core.stalls;
        let mut called = Vec::new();
        loop {
            if stalls.is_idle() {
                stalls.woken.notified().await;
            } else {
                let _woken_or_time_over = tokio::time::timeout(RETRY, stalls.woken.notified()).await;
            }
            stalls.retry_presence(&core);
            {
                let mut line = lock(&stalls.line);
                let count =
                    if stalls.full.load(Ordering::Relaxed) { PROBES.min(line.len()) } else { line.len() };
                called.extend(line.drain(..count));
            }
            for link in called.drain(..) {
                link.waits_for_room.store(false, Ordering::Release);
                link.waker.wake();
            }
        }
    }
}
