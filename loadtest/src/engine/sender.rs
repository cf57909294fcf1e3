//! The engine's way out: from lanes and schedules to bytes on a socket.

use super::{Alarm, Alarmed, Engine};
use crate::connection::Phase;
use crate::lanes::Next;
use crate::mqtt;
use crate::observe::provision::alarm_value;
use crate::payload::{self, RecordId};
use crate::record::{Due, InFlight, Poison, What, excursion};
use crate::tally::queue_of;

/// Bytes of publishes that are handed to the socket at once.
const BATCH_BYTES: usize = 48 * 1024;
/// How long a backlog waits for the server's first word about credit.
const CREDIT_WORD_NS: u64 = 2_000_000_000;
/// Between two requests for credit that were not answered.
const CREDIT_REQUEST_NS: u64 = 5_000_000_000;

impl Engine {
    /// Takes a message of the schedule: sends it, or lets it wait for its connection or window.
    pub(crate) fn make(&mut self, number: u32, due: Due) {
        self.tally.made += u64::from(due.what.is_stored());
        let device = &mut self.devices[number as usize];
        let is_online = device.phase == Phase::Online;
        if !device.lanes.push(due, is_online) {
            self.tally.unsent += 1;
            return;
        }
        if is_online {
            self.send_waiting(number);
        }
    }

    /// Takes messages that count as having waited, as after a long time without a connection.
    pub(crate) fn make_backlog(&mut self, number: u32, due: Due, count: u32) {
        for _ in 0..count {
            self.tally.made += u64::from(due.what.is_stored());
            if !self.devices[number as usize].lanes.push_backlog(due) {
                self.tally.unsent += 1;
            }
        }
        if self.devices[number as usize].phase == Phase::Online {
            self.send_waiting(number);
        }
    }

    /// Sends what waits, as far as connection, window, credit and the server's refusals allow.
    pub(super) fn send_waiting(&mut self, number: u32) {
        let now = self.now_ns();
        self.scratch.clear();
        while self.scratch.len() < BATCH_BYTES {
            let device = &mut self.devices[number as usize];
            let is_held = device.quirks.as_ref().is_some_and(|quirks| now < quirks.held_until_ns);
            if device.phase != Phase::Online || is_held || device.in_flight.len() >= device.window() {
                break;
            }
            match device.lanes.pop() {
                None => break,
                Some(Next::New { due, is_backlog }) => self.append_new(number, due, is_backlog),
                Some(Next::Again(message)) => self.append_again(number, message),
            }
        }
        self.ask_for_credit(number, now);
        self.send_scratch(number);
    }

    /// Tops a device's window up with new messages.
    pub(super) fn refill(&mut self, number: u32) {
        let Some(window) = self.blast_window else { return };
        self.scratch.clear();
        loop {
            let device = &self.devices[number as usize];
            let room = device.in_flight.len() < usize::from(window.min(device.window_max));
            if device.phase != Phase::Online || !room || self.scratch.len() >= BATCH_BYTES {
                break;
            }
            let due = Due { intended_ns: self.now_ns(), what: What::Telemetry };
            self.append_new(number, due, false);
        }
        self.send_scratch(number);
    }

    /// After a connect: where the queues stand, then what waits.
    pub(super) fn greet(&mut self, number: u32) {
        if self.options.credits {
            self.scratch.clear();
            self.identities.down_filter(number, &mut self.topic);
            let packet_id = self.devices[number as usize].packet_id();
            mqtt::subscribe(self.options.version, &self.topic, 0, packet_id, &mut self.scratch);
            self.send_scratch(number);
            let device = &mut self.devices[number as usize];
            device.lanes.connected();
            let generation = device.generation;
            let due = self.now_ns() + CREDIT_WORD_NS;
            self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::Unsure });
        }
        if self.options.reports {
            self.report(number);
        }
        self.send_waiting(number);
    }

    /// Tells the server where the device's queues stand.
    pub(crate) fn report(&mut self, number: u32) {
        if self.devices[number as usize].phase != Phase::Online {
            return;
        }
        self.scratch.clear();
        self.append_new(number, Due { intended_ns: self.now_ns(), what: What::State }, false);
        self.send_scratch(number);
    }

    fn ask_for_credit(&mut self, number: u32, now: u64) {
        let device = &mut self.devices[number as usize];
        let asked = device.asked_credit_ns;
        if device.phase != Phase::Online
            || !device.lanes.wants_credit()
            || (asked > 0 && now < asked + CREDIT_REQUEST_NS)
        {
            return;
        }
        device.asked_credit_ns = now;
        let (backlog, generation) = (device.lanes.backlog_len() as u64, device.generation);
        let bytes = payload::credit_request(backlog, self.epoch_us + (now / 1_000) as i64);
        self.identities.topic(number, What::CreditRequest.class(), &mut self.topic);
        mqtt::publish(self.options.version, &self.topic, None, &bytes, &mut self.scratch);
        let again = Alarmed { device: number, generation, alarm: Alarm::Resume };
        self.wheel.set(now + CREDIT_REQUEST_NS, again);
    }

    fn append_new(&mut self, number: u32, due: Due, is_backlog: bool) {
        let Due { intended_ns, what } = due;
        let device = &mut self.devices[number as usize];
        let mut seq = 0;
        if what.is_record() {
            let next = &mut device.next_seq[queue_of(what.class())];
            seq = *next;
            *next += 1;
        }
        if what == What::Copy {
            // The newest record once more; a device that has sent none has nothing to copy.
            let Some(newest) = device.next_seq[0].checked_sub(1).filter(|seq| *seq > 0) else { return };
            if device.quirks.as_ref().is_some_and(|quirks| quirks.poisoned.contains(&newest)) {
                return;
            }
            seq = newest;
        }
        if what == What::Poison(Poison::Body) {
            device.quirks().poisoned.push(seq);
        }
        let sent_ns = self.began.elapsed().as_nanos() as u64;
        let device = &mut self.devices[number as usize];
        let packet_id = device.packet_id();
        let intended_ns = intended_ns.min(sent_ns);
        let message = InFlight { packet_id, what, is_backlog, seq, intended_ns, sent_ns };
        device.in_flight.push_back(message);
        self.tally.sent(&message, true);
        if what.is_stored() {
            self.watch_sent(number, &message);
        }
        self.append(number, &message);
    }

    fn append_again(&mut self, number: u32, message: InFlight) {
        let device = &mut self.devices[number as usize];
        let packet_id = device.packet_id();
        let sent_ns = self.began.elapsed().as_nanos() as u64;
        let message = InFlight { packet_id, sent_ns, ..message };
        device.in_flight.push_back(message);
        self.tally.sent(&message, false);
        self.append(number, &message);
    }

    fn append(&mut self, number: u32, message: &InFlight) {
        let device = &self.devices[number as usize];
        let id = RecordId {
            queue_id: device.queue_id,
            device: number + self.options.first_number,
            seq: message.seq,
        };
        let offset_us = device.quirks.as_ref().map_or(0, |quirks| quirks.clock_offset_us);
        let measured_at_us = self.epoch_us + (message.intended_ns / 1_000) as i64 + offset_us;
        let next = device.next_seq;
        let class = message.what.class();
        if message.what == What::Poison(Poison::Topic) {
            let other = (number + 1) % self.count();
            self.identities.topic(other, class, &mut self.topic);
        } else {
            self.identities.topic(number, class, &mut self.topic);
        }
        let (version, packet_id) = (self.options.version, Some(message.packet_id));
        let mut put = |bytes: &[u8]| mqtt::publish(version, &self.topic, packet_id, bytes, &mut self.scratch);
        match message.what {
            What::Telemetry | What::Copy => put(self.payload.record(id, measured_at_us)),
            What::Event => put(&payload::event(id, measured_at_us)),
            What::Level => {
                let level = excursion(id.seq).map_or(0.0, alarm_value);
                put(&payload::level(id, level, measured_at_us));
            }
            What::State => {
                let released = self.devices[number as usize].released();
                put(&payload::state(id.queue_id, next, released, measured_at_us));
            }
            What::Poison(poison) => put(&payload::poison(poison, id, measured_at_us)),
            // Sent by `ask_for_credit`, at QoS 0.
            What::CreditRequest => {}
        }
    }

    pub(super) fn send_scratch(&mut self, number: u32) {
        if self.scratch.is_empty() {
            return;
        }
        // A broken socket is seen by the next read, which plans the reconnect.
        let _ = self.devices[number as usize].send(&self.scratch);
    }
}
