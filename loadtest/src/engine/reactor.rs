//! The engine's inner half: what a ready socket, a packet or an alarm leads to.

use super::{Alarm, Alarmed, Engine, TIMER};
use crate::connection::{InFlight, Phase};
use crate::mqtt::{self, Connect};
use crate::payload::RecordId;
use crate::tally::Effect;
use anyhow::{Context, Result};
use mio::{Events, Interest, Token};
use rand::Rng;
use std::io;
use std::time::Duration;

/// Messages that wait for a device's connection or window.
const WAITING_MAX: usize = 4_096;
/// How long a connection may take to its CONNACK.
const CONNECT_TIMEOUT_NS: u64 = 30_000_000_000;
const RETRY_DELAY_NS: u64 = 100_000_000;
/// The longest wait before a device connects again.
const RETRY_DELAY_NS_MAX: u64 = 5_000_000_000;
/// Bytes of publishes that are handed to the socket at once.
const BATCH_BYTES: usize = 48 * 1024;

impl Engine {
    /// One turn of the loop: waits for readiness until a time, then handles it.
    pub(super) fn turn(&mut self, until_ns: u64) -> Result<()> {
        let now = self.now_ns();
        let wake = self.wheel.next_ns().map_or(until_ns, |next| next.min(until_ns));
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = if wake > now {
            self.timer.set(Duration::from_nanos(wake - now)).context("cannot set the timer")?;
            self.poll.poll(&mut events, None)
        } else {
            self.poll.poll(&mut events, Some(Duration::ZERO))
        };
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other.context("cannot poll")?,
        }
        for event in &events {
            if event.token() == TIMER {
                self.timer.clear();
                continue;
            }
            let device = event.token().0 as u32;
            if event.is_writable() {
                self.on_writable(device)?;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.on_readable(device)?;
            }
        }
        self.events = events;
        self.on_alarms()
    }

    /// Opens connections up to the concurrency, while any device was never opened.
    pub(super) fn open_next(&mut self) -> Result<()> {
        while self.connecting < self.options.concurrency && self.next_to_open < self.count() {
            let device = self.next_to_open;
            self.next_to_open += 1;
            self.open(device)?;
        }
        Ok(())
    }

    fn open(&mut self, number: u32) -> Result<()> {
        let tls = self.identities.tls(number)?;
        let device = &mut self.devices[number as usize];
        device.open(number, self.options.address, tls).context("cannot open a connection")?;
        let generation = device.generation;
        let stream = device.stream().context("the connection was just made")?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(stream, Token(number as usize), both)
            .context("cannot watch a socket")?;
        self.connecting += 1;
        let due = self.now_ns() + CONNECT_TIMEOUT_NS;
        self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::ConnectTimeout });
        Ok(())
    }

    fn on_writable(&mut self, number: u32) -> Result<()> {
        let device = &mut self.devices[number as usize];
        let outcome = match device.phase {
            Phase::Offline => Ok(()),
            Phase::Connecting => self.on_connected(number),
            Phase::AwaitConnAck | Phase::Online => device.flush(),
        };
        outcome.or_else(|error| self.fail(number, &error.kind().to_string()))
    }

    /// The TCP connection is made, or refused: send CONNECT.
    fn on_connected(&mut self, number: u32) -> io::Result<()> {
        let device = &mut self.devices[number as usize];
        let Some(stream) = device.stream() else { return Ok(()) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        let identity = self.identities.device(number);
        let login = identity.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
        let keep_alive_s = self.options.keep_alive_s;
        self.scratch.clear();
        let connect = Connect { client_id: &identity.client_id, login, keep_alive_s };
        connect.encode(self.options.version, &mut self.scratch);
        device.phase = Phase::AwaitConnAck;
        device.send(&self.scratch)
    }

    fn on_readable(&mut self, number: u32) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut outcome = Ok(());
        loop {
            let device = &mut self.devices[number as usize];
            if device.phase == Phase::Offline {
                break;
            }
            let drained_by_short_read = !device.is_tls();
            match device.read(&mut buffer) {
                Ok(0) => {
                    outcome = self.fail(number, "closed by the server");
                    break;
                }
                Ok(count) => {
                    outcome = self.on_bytes(number, &buffer[..count]);
                    if outcome.is_err() || (count < buffer.len() && drained_by_short_read) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    outcome = self.fail(number, &describe(&error));
                    break;
                }
            }
        }
        self.read_buffer = buffer;
        outcome?;
        let device = &mut self.devices[number as usize];
        if device.is_tls() && device.phase != Phase::Offline {
            // A handshake that went on may have left the CONNECT to be sent.
            let flushed = device.flush();
            return flushed.or_else(|error| self.fail(number, &describe(&error)));
        }
        Ok(())
    }

    fn on_bytes(&mut self, number: u32, bytes: &[u8]) -> Result<()> {
        let now = self.now_ns();
        let tally = &mut self.tally;
        tally.effect = Effect::None;
        let consumed =
            self.devices[number as usize]
                .consume(self.options.version, bytes, |device, packet| tally.on_packet(device, packet, now));
        if let Err(error) = consumed {
            return self.fail(number, &error.to_string());
        }
        match self.tally.effect {
            Effect::None => {}
            Effect::Online { keep_alive_s } => self.on_online(number, keep_alive_s)?,
            // Counted by its reason already.
            Effect::Ended => return self.end(number),
        }
        if self.blast_window.is_some() {
            self.refill(number);
        } else if !self.devices[number as usize].waiting.is_empty() {
            self.send_waiting(number);
        }
        Ok(())
    }

    fn on_online(&mut self, number: u32, keep_alive_s: Option<u16>) -> Result<()> {
        self.connecting -= 1;
        self.online += 1;
        let keep_alive_s = keep_alive_s.unwrap_or(self.options.keep_alive_s);
        let device = &mut self.devices[number as usize];
        device.attempts = 0;
        let generation = device.generation;
        if keep_alive_s > 0 {
            self.set_keep_alive(number, generation, keep_alive_s);
        }
        self.send_again(number);
        self.open_next()
    }

    fn set_keep_alive(&mut self, number: u32, generation: u32, keep_alive_s: u16) {
        // Spread over the devices, so that pings do not come in one burst.
        let share = self.random.random_range(0.5..0.9);
        let due = self.now_ns() + (f64::from(keep_alive_s) * share * 1e9) as u64;
        self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::KeepAlive });
    }

    /// Counts why a connection failed, then ends it.
    fn fail(&mut self, number: u32, why: &str) -> Result<()> {
        self.tally.count_closed(why.to_owned());
        self.end(number)
    }

    /// Forgets a connection and plans the next one.
    fn end(&mut self, number: u32) -> Result<()> {
        let device = &mut self.devices[number as usize];
        match device.phase {
            Phase::Offline => return Ok(()),
            Phase::Connecting | Phase::AwaitConnAck => self.connecting -= 1,
            Phase::Online => self.online -= 1,
        }
        device.close();
        device.attempts = device.attempts.saturating_add(1);
        let delay = retry_delay_ns(device.attempts);
        let generation = device.generation;
        let due = self.now_ns() + self.random.random_range(delay / 2..delay);
        self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::Reconnect });
        self.open_next()
    }

    fn on_alarms(&mut self) -> Result<()> {
        let mut due = Vec::new();
        self.wheel.take_due(self.now_ns(), &mut due);
        for Alarmed { device: number, generation, alarm } in due {
            let device = &mut self.devices[number as usize];
            if device.generation != generation {
                continue;
            }
            match (alarm, device.phase) {
                (Alarm::Reconnect, Phase::Offline) => self.open(number)?,
                (Alarm::ConnectTimeout, Phase::Connecting | Phase::AwaitConnAck) => {
                    self.fail(number, "no CONNACK in time")?;
                }
                (Alarm::KeepAlive, Phase::Online) => {
                    if let Err(error) = device.send(&mqtt::PINGREQ) {
                        self.fail(number, &describe(&error))?;
                    } else {
                        self.set_keep_alive(number, generation, self.options.keep_alive_s);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Publishes a new message, or lets it wait for its connection or window.
    pub(super) fn publish(&mut self, number: u32, intended_ns: u64) {
        let device = &mut self.devices[number as usize];
        if device.waiting.len() >= WAITING_MAX {
            self.tally.unsent += 1;
            return;
        }
        device.waiting.push_back(intended_ns);
        self.send_waiting(number);
    }

    /// Sends what waits, as far as connection and window allow.
    fn send_waiting(&mut self, number: u32) {
        self.scratch.clear();
        loop {
            let device = &mut self.devices[number as usize];
            let open =
                device.phase == Phase::Online && device.in_flight.len() < usize::from(device.window_max);
            let Some(intended_ns) = (if open { device.waiting.pop_front() } else { None }) else { break };
            self.append_new(number, intended_ns);
        }
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
            self.append_new(number, self.now_ns());
        }
        self.send_scratch(number);
    }

    fn append_new(&mut self, number: u32, intended_ns: u64) {
        let device = &mut self.devices[number as usize];
        let seq = device.next_seq;
        device.next_seq += 1;
        let sent_ns = self.began.elapsed().as_nanos() as u64;
        let packet_id = device.packet_id();
        let message = InFlight { packet_id, seq, intended_ns: intended_ns.min(sent_ns), sent_ns };
        device.in_flight.push_back(message);
        self.tally.sent(&message);
        self.append(number, &message);
    }

    /// After a reconnect: what has no PUBACK goes out again, with the identity that it had.
    fn send_again(&mut self, number: u32) {
        self.scratch.clear();
        for at in 0..self.devices[number as usize].in_flight.len() {
            let device = &mut self.devices[number as usize];
            let packet_id = device.packet_id();
            device.in_flight[at].packet_id = packet_id;
            let message = device.in_flight[at];
            self.append(number, &message);
        }
        self.send_scratch(number);
        self.send_waiting(number);
    }

    fn append(&mut self, number: u32, message: &InFlight) {
        let queue_id = self.devices[number as usize].queue_id;
        let id = RecordId { queue_id, device: number, seq: message.seq };
        let measured_at_us = self.epoch_us + (message.intended_ns / 1_000) as i64;
        self.identities.topic(number, &mut self.topic);
        let payload = self.payload.record(id, measured_at_us);
        mqtt::publish(self.options.version, &self.topic, message.packet_id, payload, &mut self.scratch);
    }

    fn send_scratch(&mut self, number: u32) {
        if self.scratch.is_empty() {
            return;
        }
        // A broken socket is seen by the next read, which plans the reconnect.
        let _ = self.devices[number as usize].send(&self.scratch);
    }
}

/// The wait after so many failures in a row, before jitter.
fn retry_delay_ns(attempts: u16) -> u64 {
    (RETRY_DELAY_NS << attempts.min(6)).min(RETRY_DELAY_NS_MAX)
}

/// The system's short name of an error, or a protocol's own text.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::Other => error.to_string(),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Options;
    use crate::identity::{Identities, Tokens};
    use crate::mqtt::Version;

    #[test]
    fn messages_that_find_a_devices_waiting_list_full_are_counted_as_unsent() {
        let identities = Identities::new("bench", 2, &Tokens::None).unwrap();
        let address = ([127, 0, 0, 1], 1).into();
        let options = Options { address, version: Version::V5, keep_alive_s: 0, concurrency: 1, seed: 1 };
        // Nothing connects, so nothing leaves.
        let mut engine = Engine::new(options, identities).unwrap();
        for at in 0..WAITING_MAX as u64 {
            engine.publish(0, at);
        }
        assert_eq!(engine.tally.unsent, 0);
        engine.publish(0, 0);
        engine.publish(0, 0);
        engine.publish(1, 0);
        assert_eq!(engine.tally.unsent, 2);
        assert_eq!(engine.devices[0].waiting.len(), WAITING_MAX);
        assert_eq!(engine.unanswered(), WAITING_MAX as u64 + 1, "another device has a list of its own");
    }

    #[test]
    fn retries_wait_twice_as_long_each_time_up_to_a_bound() {
        let waits_ms = [1, 2, 3, 4, 5, 6, 7, u16::MAX].map(|attempts| retry_delay_ns(attempts) / 1_000_000);
        assert_eq!(waits_ms, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
    }
}
