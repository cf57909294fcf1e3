//! What goes to a client: its subscriptions and the messages that wait for it.
//!
//! Called by `connection`. Messages come from `fanout` (a tenant's own software), from
//! `Gateway::deliver` and `credit` (devices), through the link's bounded queue. QoS 1 is sent once: no session outlives
//! its connection, so what was not acknowledged is the sender's to repeat on the next one.

use super::Core;
use super::codec::{FilterAsked, Version};
use super::credit::SPREAD_NOT_TOLD;
use super::encode;
use super::identity::Identity;
use super::link::{FILTERS_MAX, Link};
use super::metrics::{Metrics, Sent};
use super::publish::{self, SUBACK_QUOTA, UpFilter};
use muster_wire::DownClass;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Unacknowledged messages to a client, where it allows more.
pub(crate) const UNACKED_MAX: usize = 32;

/// The sending side of one connection.
pub(crate) struct Down {
    receive_maximum: usize,
    packet_bytes_max: usize,
    last_packet_id: u16,
    unacked: Vec<u16>,
}

impl Down {
    pub(crate) fn new(receive_maximum: u16, packet_bytes_max: Option<u32>) -> Self {
        Self {
            receive_maximum: usize::from(receive_maximum).min(UNACKED_MAX),
            packet_bytes_max: packet_bytes_max.map_or(usize::MAX, |bytes| bytes as usize),
            last_packet_id: 0,
            unacked: Vec::new(),
        }
    }

    /// A PUBACK came.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) {
        self.unacked.retain(|waiting| *waiting != packet_id);
    }

    /// Writes waiting messages while the client's window and the buffer have room. True: the buffer had
    /// none, and messages wait.
    pub(crate) fn send(
        &mut self,
        metrics: &Metrics,
        link: &Link,
        version: Version,
        out: &mut Vec<u8>,
        out_bytes_max: usize,
    ) -> bool {
        while self.unacked.len() < self.receive_maximum {
            if out.len() >= out_bytes_max {
                return true;
            }
            let Some((message, qos)) = link.pop_message() else { return false };
            if encode::publish_bytes(&message.topic, &message.payload) > self.packet_bytes_max {
                metrics.sent(Sent::TooLarge);
                continue;
            }
            let packet_id = (qos == 1).then(|| self.next_packet_id());
            encode::publish(out, version, packet_id, &message.topic, &message.payload);
            metrics.sent(Sent::Written);
        }
        false
    }

    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if !self.unacked.contains(&self.last_packet_id) {
                self.unacked.push(self.last_packet_id);
                return self.last_packet_id;
            }
        }
    }
}

/// Subscribes to one filter and gives its SUBACK code.
pub(crate) fn subscribe(core: &Core, link: &Arc<Link>, asked: &FilterAsked) -> u8 {
    let granted = asked.qos.min(1);
    let subscribed = match &link.identity {
        Identity::Device { .. } => publish::down_classes(&link.name, &asked.path).map(|classes| {
            // Credit that is lost is asked for again: no acknowledgement, no place in the client's window.
            let credit = publish::down_bit(DownClass::Credit);
            let before = link.with_outbox(|outbox| {
                let before = outbox.down;
                outbox.down |= classes;
                outbox.down_qos_one &= !classes;
                outbox.down_qos_one |= if granted == 1 { classes & !credit } else { 0 };
                before
            });
            if classes & !before & credit != 0 {
                core.credits.announce(&core.metrics, link);
            }
        }),
        Identity::Integration { tenant, .. } => UpFilter::parse(tenant, &asked.path).and_then(|filter| {
            let from = core.log.durable_next();
            link.with_outbox(|outbox| {
                outbox.filters.retain(|(known, _)| !known.is(&asked.path));
                if outbox.filters.len() >= FILTERS_MAX {
                    return Err(SUBACK_QUOTA);
                }
                outbox.filters.push((filter, granted));
                Ok(())
            })?;
            core.fanout.join(link, from);
            Ok(())
        }),
    };
    let code = subscribed.map_or_else(|code| code, |()| granted);
    core.metrics.subscribed(code);
    code
}

/// Unsubscribes from one filter and gives its UNSUBACK code.
pub(crate) fn unsubscribe(link: &Link, path: &str) -> u8 {
    const NO_SUBSCRIPTION: u8 = 0x11;
    let classes = match &link.identity {
        Identity::Device { .. } => publish::down_classes(&link.name, path).unwrap_or(0),
        Identity::Integration { .. } => 0,
    };
    if classes & publish::down_bit(DownClass::Credit) != 0 {
        link.spread_told_ms.store(SPREAD_NOT_TOLD, Ordering::Relaxed);
    }
    link.with_outbox(|outbox| {
        let before = (outbox.filters.len(), outbox.down);
        outbox.filters.retain(|(known, _)| !known.is(path));
        outbox.down &= !classes;
        if (outbox.filters.len(), outbox.down) == before { NO_SUBSCRIPTION } else { 0 }
    })
}
