//! A tenant's own software follows its devices: a reader of the log and a queue for each subscriber.
//!
//! One thread, which sleeps while nobody subscribes. It reads the log as any consumer does, so a
//! subscriber sees only what is durable and the way of a PUBLISH into the log knows nothing of it. The
//! reader does not pin the log. A subscriber's queue is bounded (`link`); one that overflows is counted
//! and disconnected with 0x97.

use super::Core;
use super::identity::Identity;
use super::link::{Link, Message, lock};
use super::metrics::Sent;
use super::publish::up_topic;
use super::reason::CloseReason;
use crate::platform::event_log::{EventLogError, Kind, LogRecord, Origin, Pin};
use muster_wire::{Envelope, QueueId, UpClass};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of log read at once.
const BATCH_BYTES: usize = 256 * 1024;
/// How often the thread looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Members {
    by_tenant: HashMap<Box<str>, Vec<Arc<Link>>>,
    /// Where the first of them began to follow.
    from: u64,
    stop: bool,
}

/// Who follows.
#[derive(Default)]
pub(crate) struct Fanout {
    members: Mutex<Members>,
    changed: Condvar,
}

impl Fanout {
    /// Adds a subscriber, from a log position on.
    pub(crate) fn join(&self, link: &Arc<Link>, from: u64) {
        let mut members = lock(&self.members);
        if members.by_tenant.is_empty() {
            members.from = from;
        }
        let of_tenant = members.by_tenant.entry(link.tenant().into()).or_default();
        if !of_tenant.iter().any(|known| Arc::ptr_eq(known, link)) {
            of_tenant.push(link.clone());
        }
        self.changed.notify_one();
    }

    /// Removes a subscriber; nothing to do for devices.
    pub(crate) fn leave(&self, link: &Arc<Link>) {
        if matches!(link.identity, Identity::Device { .. }) {
            return;
        }
        let mut members = lock(&self.members);
        if let Some(of_tenant) = members.by_tenant.get_mut(link.tenant()) {
            of_tenant.retain(|known| !Arc::ptr_eq(known, link));
            if of_tenant.is_empty() {
                members.by_tenant.remove(link.tenant());
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        lock(&self.members).stop = true;
        self.changed.notify_one();
    }

    /// Waits until somebody follows, and tells from where. `None`: stop.
    fn wait_for_members(&self) -> Option<u64> {
        let mut members = lock(&self.members);
        while !members.stop && members.by_tenant.is_empty() {
            members = self.changed.wait(members).unwrap_or_else(PoisonError::into_inner);
        }
        (!members.stop).then_some(members.from)
    }

    fn is_followed(&self) -> bool {
        let members = lock(&self.members);
        !members.stop && !members.by_tenant.is_empty()
    }

    fn hand_out(&self, core: &Core, record: &LogRecord<'_>) {
        if record.kind != Kind::Message {
            return;
        }
        let Some(class) = UpClass::from_number(record.class) else { return };
        let members = lock(&self.members);
        let Some(of_tenant) = members.by_tenant.get(record.tenant) else { return };
        let Some(topic) = up_topic(record.tenant, record.device, class) else { return };
        let message = Arc::new(Message { topic: topic.into(), payload: payload(class, record).into() });
        for link in of_tenant.iter().filter(|link| link.close_asked().is_none()) {
            if !link.offer(record.device, class, &message) {
                core.metrics.sent(Sent::Overflow);
                link.close(CloseReason::SubscriberTooSlow);
            }
        }
    }

    /// Runs the thread.
    pub(crate) fn run(core: &Arc<Core>) {
        while let Some(from) = core.fanout.wait_for_members() {
            if let Err(error) = Self::follow(core, from) {
                tracing::error!(%error, "fan-out cannot read the log, will retry");
                std::thread::sleep(PATIENCE);
            }
        }
    }

    fn follow(core: &Arc<Core>, from: u64) -> Result<(), EventLogError> {
        let mut reader = core.log.reader("fanout", from, Pin::Follows)?;
        while core.fanout.is_followed() {
            if reader.wait(PATIENCE) {
                let batch = reader.next_batch(BATCH_BYTES, |record| core.fanout.hand_out(core, &record))?;
                for range in batch.skipped {
                    tracing::warn!(first = range.start, next = range.end, "subscribers miss log records");
                    core.metrics.fanout_skipped.inc_by(range.end - range.start);
                }
            }
        }
        Ok(())
    }
}

/// The PUBLISH payload that the record came as.
fn payload(class: UpClass, record: &LogRecord<'_>) -> Vec<u8> {
    if class == UpClass::Senml {
        return record.body.to_vec();
    }
    let (queue_id, seq) = match record.origin {
        Origin::Queue { queue_id, seq } => (QueueId(queue_id), seq),
        Origin::Direct => (QueueId(0), 0),
    };
    Envelope { class, queue_id, seq, measured_at_us: record.measured_at_us, body: record.body }.encode()
}
