//! What becomes of a connection's PUBLISHes: taken into the log, refused, or kept until there is room.
//!
//! Called by the connection for each one, in their order. A message is asked for at the device's rate, then at the tenant's
//! quotas, then at the log; what is not taken is given back to those that were asked before. Nothing goes into the log that
//! the quotas were not asked for, also not what is kept of a refused message.

use super::{Ack, Connection, Held, Outcome};
use crate::gateway::codec::{Publish, Version};
use crate::gateway::identity::Identity;
use crate::gateway::metrics::Taken;
use crate::gateway::publish::{self, Admitted};
use crate::gateway::reason::{CloseReason, Refusal};
use crate::platform::event_log::AppendError;
use muster_wire::UpClass;

impl Connection {
    /// A PUBLISH as it came: what ends the connection first, then the line, then the log.
    pub(super) fn publish(&mut self, publish: Publish) -> Result<(), CloseReason> {
        if publish.qos == 2 {
            return Err(CloseReason::QosTwo);
        }
        if publish.retain && self.version == Version::Five {
            return Err(CloseReason::Retain);
        }
        if publish.has_topic_alias {
            return Err(CloseReason::TopicAlias);
        }
        let unacked = self.acks.len() + self.waiting.len();
        let maximum = usize::from(self.core.config.receive_maximum);
        if publish.qos == 1 && self.version == Version::Five && unacked >= maximum {
            return Err(CloseReason::ReceiveMaximum);
        }
        if !self.waiting.is_empty() {
            self.keep_behind(publish);
            return Ok(());
        }
        match self.take_publish(&publish)? {
            Outcome::Done => {}
            // It found the log full; over a quota it was refused.
            Outcome::Wait | Outcome::Park(_) if publish.qos == 0 => self.core.metrics.taken(Taken::Dropped),
            outcome => {
                self.keep(publish);
                self.stand(&outcome);
            }
        }
        Ok(())
    }

    fn keep(&mut self, publish: Publish) {
        self.core.metrics.stalls.inc();
        self.waiting_bytes += publish.bytes();
        self.waiting.push_back(publish.detach());
    }

    /// Keeps a PUBLISH behind the one that waits and stands somewhere already; QoS 0 is dropped for the same reason.
    fn keep_behind(&mut self, publish: Publish) {
        match (publish.qos, &self.held) {
            (0, Some(held)) => {
                self.allowance.refuse(held.by.metered());
                self.core.metrics.refused(held.by, 0);
            }
            (0, None) => self.core.metrics.taken(Taken::Dropped),
            _ => self.keep(publish),
        }
    }

    /// Sees to it that the first waiting message is tried again.
    pub(super) fn stand(&self, outcome: &Outcome) {
        let is_parked = match outcome {
            Outcome::Done => return,
            Outcome::Wait => false,
            Outcome::Park(changes) => self.core.parked.wait(&self.core.quotas, &self.link, *changes),
        };
        if !is_parked {
            self.core.stalls.wait(&self.link);
        }
    }

    /// Takes a PUBLISH into the log, refuses it, or says that it must wait.
    pub(super) fn take_publish(&mut self, publish: &Publish) -> Result<Outcome, CloseReason> {
        let Identity::Device { tenant, device, .. } = &self.link.identity else {
            return self.refuse(publish, Refusal::ForeignTopic);
        };
        let tick = self.core.tick();
        if !self.bucket.take(self.core.rate(), tick) {
            return self.over(publish, Refusal::Rate, 0);
        }
        if publish.retain {
            return self.refuse(publish, Refusal::Retain);
        }
        let message = match publish::admit(&self.link.name, &publish.topic, &publish.payload) {
            Ok(Admitted::Message(message)) => message,
            Ok(Admitted::Credit(asked)) => {
                let code = self.core.credits.request(&self.core.metrics, &self.link, asked);
                self.answer(publish, self.behind_all(), code);
                return Ok(Outcome::Done);
            }
            Err(refusal) => return self.refuse(publish, refusal),
        };
        let (bytes, changes) = (message.bytes(), self.core.quotas.changes());
        if let Err(quota) = self.allowance.admit(message.class(), bytes, tick) {
            self.bucket.give_back();
            return self.over(publish, Refusal::Quota(quota), changes);
        }
        let failed = match self.core.append(&message.record(tenant, device, publish.qos)) {
            Ok(position) => {
                self.taken(publish, position, 0);
                return Ok(Outcome::Done);
            }
            Err(failed) => failed,
        };
        self.allowance.give_back(bytes);
        match failed {
            AppendError::Full => {
                self.bucket.give_back();
                Ok(Outcome::Wait)
            }
            AppendError::TooLarge => self.refuse(publish, Refusal::BadPayload),
            AppendError::Failed => self.refuse(publish, Refusal::LogFailed),
        }
    }

    /// Over a rate or quota: refused for now where the client can be told, else it waits. `changes` is the board's before
    /// the quota was asked.
    fn over(&mut self, publish: &Publish, refusal: Refusal, changes: u64) -> Result<Outcome, CloseReason> {
        if self.version == Version::Three && publish.qos > 0 {
            return Ok(self.hold(refusal, changes));
        }
        if matches!(refusal, Refusal::Quota(_)) {
            self.over_at_tick = Some(self.core.tick());
        }
        self.refuse(publish, refusal)
    }

    /// The first waiting message cannot be refused, so it waits; for the tenant it is refused, once a reason.
    fn hold(&mut self, refusal: Refusal, changes: u64) -> Outcome {
        let reason = refusal.metered();
        let held = self.held.get_or_insert(Held { by: refusal, counted: 0 });
        held.by = refusal;
        if held.counted & 1 << reason as u16 == 0 {
            held.counted |= 1 << reason as u16;
            self.allowance.refuse(reason);
        }
        match refusal {
            Refusal::Quota(quota) if !self.allowance.refills(quota) => Outcome::Park(changes),
            _ => Outcome::Wait,
        }
    }

    fn taken(&mut self, publish: &Publish, position: u64, code: u8) {
        match (publish.qos, code) {
            (0, _) => self.core.metrics.taken(Taken::AtMostOnce),
            (_, 0) => self.core.metrics.taken(Taken::AtLeastOnce),
            _ => {}
        }
        self.answer(publish, position, code);
    }

    /// Has a PUBLISH with QoS 1 acknowledged once the position is durable.
    fn answer(&mut self, publish: &Publish, position: u64, code: u8) {
        if publish.qos > 0 {
            self.acks.push_back(Ack { position, packet_id: publish.packet_id, code });
        }
    }

    /// The position of an answer that waits for nothing but those before it.
    fn behind_all(&self) -> u64 {
        self.acks.back().map_or(0, |last| last.position)
    }

    /// Refuses a PUBLISH in the way that the client's protocol has.
    fn refuse(&mut self, publish: &Publish, refusal: Refusal) -> Result<Outcome, CloseReason> {
        if publish.qos == 0 {
            self.allowance.refuse(refusal.metered());
            self.core.metrics.refused(refusal, 0);
            return Ok(Outcome::Done);
        }
        let position = match self.version {
            Version::Five => {
                self.allowance.refuse(refusal.metered());
                self.behind_all()
            }
            // The meter counts what the log holds.
            Version::Three => match self.reject(publish, refusal)? {
                Ok(position) => position,
                Err(waits) => return Ok(waits),
            },
        };
        self.core.metrics.refused(refusal, publish.qos);
        self.taken(publish, position, refusal.code());
        Ok(Outcome::Done)
    }

    /// Stores a 3.1.1 client's refused message, which will be acknowledged; it takes the log's room, so it counts against
    /// the tenant's quotas as any other. The inner error: it waits.
    fn reject(&mut self, publish: &Publish, refusal: Refusal) -> Result<Result<u64, Outcome>, CloseReason> {
        if !refusal.is_permanent() {
            self.core.metrics.refused(refusal, publish.qos);
            return Err(CloseReason::RefusedForNow);
        }
        let Identity::Device { tenant, device, .. } = &self.link.identity else {
            self.core.metrics.refused(refusal, publish.qos);
            return Err(CloseReason::NotAuthorized);
        };
        let class = publish::own_class(&self.link.name, &publish.topic);
        if class == Ok(UpClass::Credit) {
            return Ok(Ok(self.behind_all()));
        }
        let class = class.map_or(0, UpClass::number);
        let record = publish::rejected(tenant, device, class, publish, refusal);
        let (bytes, changes) = (record.body.len() as u64, self.core.quotas.changes());
        if let Err(quota) = self.allowance.take(bytes, self.core.tick()) {
            self.bucket.give_back();
            return Ok(Err(self.hold(Refusal::Quota(quota), changes)));
        }
        let failed = match self.core.append(&record) {
            Ok(position) => return Ok(Ok(position)),
            Err(failed) => failed,
        };
        self.allowance.give_back(bytes);
        match failed {
            AppendError::Full => {
                self.bucket.give_back();
                Ok(Err(Outcome::Wait))
            }
            AppendError::TooLarge | AppendError::Failed => Err(CloseReason::ServerFault),
        }
    }
}
