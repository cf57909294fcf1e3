//! What happened: counters, latency histograms, and what a packet means for its device.

use crate::connection::{Device, InFlight, Phase};
use crate::mqtt::Incoming;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Below this a reason code is a success.
const REASON_ERROR: u8 = 0x80;
/// The longest latency that a histogram tells apart, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;

/// What the engine must do after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The device may publish.
    Online {
        keep_alive_s: Option<u16>,
    },
    /// The server does not want it.
    Ended,
}

/// Counters since the start, histograms since the last reset.
pub(crate) struct Tally {
    pub(crate) connects: u64,
    pub(crate) reconnects: u64,
    pub(crate) published: u64,
    pub(crate) acked: u64,
    /// Published and acked before the last reset.
    pub(crate) warmup: (u64, u64),
    pub(crate) refused: BTreeMap<u8, u64>,
    /// Messages that found the device's own waiting list full.
    pub(crate) unsent: u64,
    /// Failed or ended connections by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// PUBACKs that no publish waits for.
    pub(crate) stray_acks: u64,
    pub(crate) from_intended: Histogram<u64>,
    pub(crate) from_sent: Histogram<u64>,
    pub(crate) send_late: Histogram<u64>,
    pub(crate) effect: Effect,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid constants");
        Self {
            connects: 0,
            reconnects: 0,
            published: 0,
            acked: 0,
            warmup: (0, 0),
            refused: BTreeMap::new(),
            unsent: 0,
            closed: BTreeMap::new(),
            stray_acks: 0,
            from_intended: histogram(),
            from_sent: histogram(),
            send_late: histogram(),
            effect: Effect::None,
        }
    }

    /// Forgets latencies and message counts, as after a warm-up without outstanding messages.
    pub(crate) fn reset_messages(&mut self) {
        self.from_intended.reset();
        self.from_sent.reset();
        self.send_late.reset();
        self.warmup.0 += std::mem::take(&mut self.published);
        self.warmup.1 += std::mem::take(&mut self.acked);
        self.refused.clear();
    }

    pub(crate) fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Publishes without an answer.
    pub(crate) fn outstanding(&self) -> u64 {
        self.published.saturating_sub(self.acked + self.refused_total())
    }

    pub(crate) fn count_closed(&mut self, why: String) {
        *self.closed.entry(why).or_default() += 1;
    }

    pub(crate) fn sent(&mut self, message: &InFlight) {
        self.published += 1;
        self.send_late.saturating_record((message.sent_ns - message.intended_ns) / 1_000);
    }

    /// Applies a packet to its device.
    pub(crate) fn on_packet(&mut self, device: &mut Device, packet: Incoming, now_ns: u64) {
        match packet {
            Incoming::ConnAck { reason: 0, receive_maximum, server_keep_alive_s } => {
                device.phase = Phase::Online;
                device.window_max = receive_maximum.unwrap_or(u16::MAX);
                self.connects += 1;
                self.reconnects += u64::from(device.generation > 1);
                self.effect = Effect::Online { keep_alive_s: server_keep_alive_s };
            }
            Incoming::ConnAck { reason, .. } => {
                self.count_closed(format!("connack 0x{reason:02x}"));
                self.effect = Effect::Ended;
            }
            Incoming::PubAck { packet_id, reason } => self.on_ack(device, packet_id, reason, now_ns),
            Incoming::PingResp => {}
            Incoming::Disconnect { reason } => {
                self.count_closed(format!("disconnect 0x{reason:02x}"));
                self.effect = Effect::Ended;
            }
        }
    }

    fn on_ack(&mut self, device: &mut Device, packet_id: u16, reason: u8, now_ns: u64) {
        // PUBACKs come in the order of their publishes; the search is for servers that break it.
        let Some(at) = device.in_flight.iter().position(|message| message.packet_id == packet_id) else {
            self.stray_acks += 1;
            return;
        };
        let Some(message) = device.in_flight.remove(at) else { return };
        if device.in_flight.is_empty() && device.in_flight.capacity() > 8 && device.waiting.is_empty() {
            device.in_flight.shrink_to(4);
        }
        if reason >= REASON_ERROR {
            *self.refused.entry(reason).or_default() += 1;
            return;
        }
        self.acked += 1;
        self.from_intended.saturating_record((now_ns - message.intended_ns) / 1_000);
        self.from_sent.saturating_record((now_ns - message.sent_ns) / 1_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_beyond_the_longest_counts_as_the_longest() {
        let mut tally = Tally::new();
        for sent_ns in [LATENCY_US_MAX * 1_000, u64::MAX] {
            tally.sent(&InFlight { packet_id: 1, seq: 1, intended_ns: 0, sent_ns });
        }
        assert_eq!((tally.published, tally.send_late.len()), (2, 2));
        assert!((LATENCY_US_MAX..LATENCY_US_MAX * 2).contains(&tally.send_late.max()));
    }
}
