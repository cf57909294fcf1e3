//! What happened: counters, latency histograms, and what a packet means for its device.

use crate::connection::{Device, Phase};
use crate::mqtt::Incoming;
use crate::record::{InFlight, What};
use hdrhistogram::Histogram;
use muster_wire::{Credit, UpClass};
use std::collections::BTreeMap;

/// Below this a reason code is a success.
const REASON_ERROR: u8 = 0x80;
/// Reasons after which a device keeps the record and backs off.
const REASONS_FOR_NOW: [u8; 3] = [0x80, 0x83, 0x97];
/// The longest latency that a histogram tells apart, in microseconds.
const LATENCY_US_MAX: u64 = 1_200_000_000;
/// The first pause of a device that was refused for now.
const HOLD_NS: u64 = 200_000_000;
/// Refusals that one device notes by their numbers; more are counted only.
const REFUSED_NOTED_MAX: usize = 1_000;

/// What the engine must do after some packets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    /// The device may publish; the keep-alive that the server wants instead.
    pub(crate) online: Option<Option<u16>>,
    /// The server does not want it.
    pub(crate) ended: bool,
    /// The server refused something for now.
    pub(crate) held: bool,
    /// Messages to acknowledge.
    pub(crate) to_ack: Vec<u16>,
}

/// Counters since the start, histograms since the last reset.
pub(crate) struct Tally {
    pub(crate) connects: u64,
    pub(crate) reconnects: u64,
    /// Records that the schedule made.
    pub(crate) made: u64,
    /// Records sent for the first time.
    pub(crate) published: u64,
    /// Of these, acknowledged with success.
    pub(crate) acked: u64,
    /// Records sent once more after a lost connection or a refusal for now.
    pub(crate) resent: u64,
    /// Published and acked before the last reset.
    pub(crate) warmup: (u64, u64),
    pub(crate) refused: BTreeMap<u8, u64>,
    /// Refusals for now, after which the record was kept.
    pub(crate) kept: BTreeMap<u8, u64>,
    /// No refusal makes a device wait: what was refused for now is gone too.
    pub(crate) defiant: bool,
    /// Copies sent on purpose, and those acknowledged.
    pub(crate) copies: (u64, u64),
    /// Broken messages sent on purpose, and those answered as they must be.
    pub(crate) poisons: (u64, u64),
    /// Broken messages that were answered in another way.
    pub(crate) poisons_taken: u64,
    /// Reports sent, and those acknowledged.
    pub(crate) reports: (u64, u64),
    /// Messages that found the device's own waiting list full.
    pub(crate) unsent: u64,
    /// Messages of the server's for somebody else.
    pub(crate) misdelivered: u64,
    /// Grants of credit, and the records that they allowed.
    pub(crate) credits: (u64, u64),
    /// Failed or ended connections by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// PUBACKs that no publish waits for.
    pub(crate) stray_acks: u64,
    pub(crate) from_intended: Histogram<u64>,
    pub(crate) from_sent: Histogram<u64>,
    pub(crate) send_late: Histogram<u64>,
    /// From the intended time, of what waited for no connection.
    pub(crate) live: Histogram<u64>,
    /// From the intended time, of what did.
    pub(crate) backlog: Histogram<u64>,
    /// From the loss of a connection to the next CONNACK.
    pub(crate) reconnect: Histogram<u64>,
    /// `live` and `backlog` of the second that runs.
    pub(crate) second: [Histogram<u64>; 2],
    pub(crate) effects: Effects,
}

/// An empty histogram of microseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid constants")
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            connects: 0,
            reconnects: 0,
            made: 0,
            published: 0,
            acked: 0,
            resent: 0,
            warmup: (0, 0),
            refused: BTreeMap::new(),
            kept: BTreeMap::new(),
            defiant: false,
            copies: (0, 0),
            poisons: (0, 0),
            poisons_taken: 0,
            reports: (0, 0),
            unsent: 0,
            misdelivered: 0,
            credits: (0, 0),
            closed: BTreeMap::new(),
            stray_acks: 0,
            from_intended: histogram(),
            from_sent: histogram(),
            send_late: histogram(),
            live: histogram(),
            backlog: histogram(),
            reconnect: histogram(),
            second: [histogram(), histogram()],
            effects: Effects::default(),
        }
    }

    /// Forgets latencies and message counts, as after a warm-up without outstanding messages.
    pub(crate) fn reset_messages(&mut self) {
        for histogram in [
            &mut self.from_intended,
            &mut self.from_sent,
            &mut self.send_late,
            &mut self.live,
            &mut self.backlog,
        ] {
            histogram.reset();
        }
        self.warmup.0 += std::mem::take(&mut self.published);
        self.warmup.1 += std::mem::take(&mut self.acked);
        self.made = 0;
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

    /// A message goes out, for the first time or again.
    pub(crate) fn sent(&mut self, message: &InFlight, is_first: bool) {
        match message.what {
            What::Copy => self.copies.0 += 1,
            What::Poison(_) => self.poisons.0 += 1,
            What::State | What::CreditRequest => self.reports.0 += 1,
            What::Telemetry | What::Event | What::Level if is_first => {
                self.published += 1;
                if !message.is_backlog {
                    self.send_late.saturating_record((message.sent_ns - message.intended_ns) / 1_000);
                }
            }
            What::Telemetry | What::Event | What::Level => self.resent += 1,
        }
    }

    /// Applies a packet to its device. `is_own` tells whether a topic is the device's own.
    pub(crate) fn on_packet(
        &mut self,
        device: &mut Device,
        packet: Incoming<'_>,
        now_ns: u64,
        is_own: impl FnOnce(&str) -> bool,
    ) {
        match packet {
            Incoming::ConnAck { reason: 0, receive_maximum, server_keep_alive_s } => {
                device.phase = Phase::Online;
                device.window_max = receive_maximum.unwrap_or(u16::MAX);
                self.connects += 1;
                self.reconnects += u64::from(device.generation > 1);
                if device.offline_since_ns > 0 {
                    self.reconnect.saturating_record((now_ns - device.offline_since_ns) / 1_000);
                }
                self.effects.online = Some(server_keep_alive_s);
            }
            Incoming::ConnAck { reason, .. } => {
                self.count_closed(format!("connack 0x{reason:02x}"));
                self.effects.ended = true;
            }
            Incoming::PubAck { packet_id, reason } => self.on_ack(device, packet_id, reason, now_ns),
            Incoming::Publish { topic, payload, packet_id } => {
                self.effects.to_ack.extend(packet_id);
                match Credit::decode(payload) {
                    Ok(credit) if is_own(topic) => {
                        device.lanes.granted(credit.records);
                        device.reconnect_spread_ms = credit.reconnect_spread_ms;
                        self.credits.0 += u64::from(credit.records > 0);
                        self.credits.1 += u64::from(credit.records);
                    }
                    _ => self.misdelivered += 1,
                }
            }
            Incoming::SubAck { .. } | Incoming::PingResp => {}
            Incoming::Disconnect { reason } => {
                self.count_closed(format!("disconnect 0x{reason:02x}"));
                self.effects.ended = true;
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
        if device.in_flight.is_empty() && device.in_flight.capacity() > 8 && device.lanes.len() == 0 {
            device.in_flight.shrink_to(4);
            device.lanes.shrink();
        }
        match message.what {
            What::Poison(poison) => {
                // 3.1.1 has no reasons: a refusal is acknowledged.
                let expected = reason == poison.reason() || reason == 0;
                self.poisons.1 += u64::from(expected);
                self.poisons_taken += u64::from(!expected);
            }
            What::Copy => self.copies.1 += u64::from(reason < REASON_ERROR),
            What::State | What::CreditRequest => self.reports.1 += u64::from(reason < REASON_ERROR),
            What::Telemetry | What::Event | What::Level if reason < REASON_ERROR => {
                self.acknowledged(device, &message, now_ns);
            }
            What::Telemetry | What::Event | What::Level => {
                self.refused(device, message, reason, now_ns);
            }
        }
    }

    fn acknowledged(&mut self, device: &mut Device, message: &InFlight, now_ns: u64) {
        self.acked += 1;
        if let Some(quirks) = device.quirks.as_mut() {
            quirks.holds = 0;
        }
        let latency_us = (now_ns - message.intended_ns) / 1_000;
        self.from_intended.saturating_record(latency_us);
        self.from_sent.saturating_record((now_ns - message.sent_ns) / 1_000);
        let part = if message.is_backlog { &mut self.backlog } else { &mut self.live };
        part.saturating_record(latency_us);
        self.second[usize::from(message.is_backlog)].saturating_record(latency_us);
    }

    fn refused(&mut self, device: &mut Device, message: InFlight, reason: u8, now_ns: u64) {
        let quirks = device.quirks();
        if REASONS_FOR_NOW.contains(&reason) && !self.defiant {
            quirks.held_until_ns = now_ns + (HOLD_NS << quirks.holds.min(6));
            quirks.holds = quirks.holds.saturating_add(1);
            *self.kept.entry(reason).or_default() += 1;
            device.lanes.keep(message);
            self.effects.held = true;
            return;
        }
        *self.refused.entry(reason).or_default() += 1;
        if quirks.refused.len() < REFUSED_NOTED_MAX {
            quirks.refused.push((queue_of(message.what.class()) as u8, message.seq));
        }
    }
}

/// Which of a device's two queues a class is.
pub(crate) fn queue_of(class: UpClass) -> usize {
    usize::from(class == UpClass::Event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sent_ns: u64) -> InFlight {
        InFlight { packet_id: 1, what: What::Telemetry, is_backlog: false, seq: 1, intended_ns: 0, sent_ns }
    }

    #[test]
    fn a_latency_beyond_the_longest_counts_as_the_longest() {
        let mut tally = Tally::new();
        for sent_ns in [LATENCY_US_MAX * 1_000, u64::MAX] {
            tally.sent(&message(sent_ns), true);
        }
        assert_eq!((tally.published, tally.send_late.len()), (2, 2));
        assert!((LATENCY_US_MAX..LATENCY_US_MAX * 2).contains(&tally.send_late.max()));
    }

    fn answered(tally: &mut Tally, device: &mut Device, message: InFlight, reason: u8) {
        device.in_flight.push_back(message);
        tally.on_packet(device, Incoming::PubAck { packet_id: 1, reason }, 2_000, |_| true);
    }

    #[test]
    fn a_refusal_for_now_keeps_the_record_and_one_for_good_notes_its_number() {
        let (mut tally, mut device) = (Tally::new(), Device::new(1));
        for reason in REASONS_FOR_NOW {
            answered(&mut tally, &mut device, message(1_000), reason);
        }
        assert_eq!((device.lanes.backlog_len(), tally.acked, tally.refused_total()), (3, 0, 0));
        assert!(tally.effects.held && device.quirks().held_until_ns > 2_000);
        tally.defiant = true;
        answered(&mut tally, &mut Device::new(2), message(1_000), 0x97);
        assert_eq!((device.lanes.backlog_len(), tally.refused.remove(&0x97)), (3, Some(1)));
        answered(&mut tally, &mut device, InFlight { seq: 7, ..message(1_000) }, 0x99);
        assert_eq!((tally.refused_total(), &device.quirks().refused[..]), (1, &[(0, 7)][..]));
        for _ in 0..REFUSED_NOTED_MAX {
            answered(&mut tally, &mut device, message(1_000), 0x99);
        }
        assert_eq!(device.quirks().refused.len(), REFUSED_NOTED_MAX, "the rest is counted only");
        assert_eq!(tally.refused_total(), REFUSED_NOTED_MAX as u64 + 1);
    }

    #[test]
    fn poison_that_is_taken_is_told_from_poison_that_is_refused() {
        use crate::record::Poison;
        let (mut tally, mut device) = (Tally::new(), Device::new(1));
        let of = |poison| InFlight { what: What::Poison(poison), ..message(1_000) };
        for poison in Poison::ALL {
            answered(&mut tally, &mut device, of(poison), poison.reason());
        }
        answered(&mut tally, &mut device, of(Poison::Body), 0x97);
        assert_eq!((tally.poisons.1, tally.poisons_taken, tally.acked), (4, 1, 0));
    }

    #[test]
    fn a_message_for_somebody_else_is_counted_and_gives_no_credit() {
        let (mut tally, mut device) = (Tally::new(), Device::new(1));
        let credit = Credit { epoch: 1, records: 5, reconnect_spread_ms: 9 }.encode();
        let packet = Incoming::Publish { topic: "t", payload: &credit, packet_id: Some(3) };
        tally.on_packet(&mut device, packet, 1, |_| false);
        assert_eq!((tally.misdelivered, tally.credits, device.reconnect_spread_ms), (1, (0, 0), 0));
        tally.on_packet(&mut device, packet, 1, |_| true);
        assert_eq!((tally.misdelivered, tally.credits, device.reconnect_spread_ms), (1, (1, 5), 9));
        assert_eq!(tally.effects.to_ack, [3, 3]);
    }
}
