//! A tenant's own software follows its devices: a reader of the log and a queue for each subscriber.
//!
//! One thread, which sleeps while nobody subscribes. It reads the log as any consumer does, so a
//! subscriber sees only what is durable and the way of a PUBLISH into the log knows nothing of it. The
//! reader does not pin the log. A subscriber's queue is bounded (`link`); one that overflows is counted
//! and disconnected with 0x97. Where the log was deleted or damaged before the reader came by, the positions
//! are counted and every subscriber is disconnected with 0x97: none goes on with a hole it knows nothing of.

use super::Core;
use super::identity::Identity;
use super::link::{Link, Message, lock};
use super::metrics::Sent;
use super::publish::up_topic;
use super::reason::CloseReason;
use crate::platform::event_log::{EventLogError, Kind, LogReader, LogRecord, Origin, Pin};
use muster_wire::{Envelope, QueueId, UpClass};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of log read at once.
const BATCH_BYTES: usize = 256 * 1024;
/// How often the thread looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Members {
    by_tenant: HashMap<Box<str>, Vec<Arc<Link>>>,
    /// Where the first of them began to follow, then where the reader stands.
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
                Self::turn(core, &mut reader)?;
            }
        }
        Ok(())
    }

    fn turn(core: &Core, reader: &mut LogReader) -> Result<(), EventLogError> {
        let batch = reader.next_batch(BATCH_BYTES, |record| core.fanout.hand_out(core, &record))?;
        if !batch.skipped.is_empty() {
            core.fanout.close_members(core, &batch.skipped);
        }
        let mut members = lock(&core.fanout.members);
        // Whoever joined an empty group meanwhile begins where it asked to.
        members.from = members.from.max(batch.next);
        Ok(())
    }

    /// The reader was overtaken: nobody may think that it saw everything.
    fn close_members(&self, core: &Core, skipped: &[Range<u64>]) {
        let positions: u64 = skipped.iter().map(|range| range.end - range.start).sum();
        core.metrics.fanout_skipped.inc_by(positions);
        tracing::warn!(positions, "subscribers missed messages and are disconnected");
        for link in lock(&self.members).by_tenant.values().flatten() {
            link.close(CloseReason::SubscriberTooSlow);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::identity::Credential;
    use crate::gateway::tests::{append_until_full, core, link, tenant};
    use std::time::Instant;

    /// Long enough for a slow machine; a test that passes never waits for it.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn subscriber() -> Arc<Link> {
        let identity = Identity::Integration {
            tenant: tenant(),
            token_id: "t1".into(),
            credential: Credential::ApiToken(Box::new([0; 32])),
        };
        Arc::new(Link::new("api:acme/t1/c".into(), identity, None, 0, 0))
    }

    #[test]
    fn subscribers_that_missed_messages_are_told() {
        let (core, _dir) = core();
        let (early, device) = (subscriber(), link("pump"));
        core.fanout.join(&early, 1);
        let mut reader = core.log.reader("fanout", 1, Pin::Follows).expect("a reader");
        append_until_full(&core);
        core.log.release("store", core.log.durable_next()).expect("released");
        let start = Instant::now();
        while core.log.first() == 1 {
            assert!(start.elapsed() < DEADLINE, "released segments go");
            std::thread::sleep(Duration::from_millis(1));
        }
        Fanout::turn(&core, &mut reader).expect("readable");
        assert_eq!(early.close_asked(), Some(CloseReason::SubscriberTooSlow));
        assert_eq!(device.close_asked(), None);
        assert!(core.metrics.fanout_skipped.get() > 0);
    }

    #[test]
    fn subscribers_that_saw_everything_stay_and_a_retry_goes_on_behind_it() {
        let (core, _dir) = core();
        let early = subscriber();
        core.fanout.join(&early, 1);
        append_until_full(&core);
        let mut reader = core.log.reader("fanout", 1, Pin::Follows).expect("a reader");
        // A batch is at least a quarter megabyte of the log's two.
        for _ in 0..9 {
            Fanout::turn(&core, &mut reader).expect("readable");
        }
        assert_eq!(core.fanout.wait_for_members(), Some(core.log.stats().next_seq));
        assert_eq!((early.close_asked(), core.metrics.fanout_skipped.get()), (None, 0));
    }
}
