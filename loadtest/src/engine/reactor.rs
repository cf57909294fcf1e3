//! The engine's inner half: what a ready socket, a packet or an alarm leads to.

use super::{Alarm, Alarmed, Engine, TIMER, WAKER};
use crate::connection::{PACE_NS, Phase};
use crate::mqtt::{self, Connect};
use crate::tally::Effects;
use anyhow::{Context, Result};
use mio::{Events, Interest, Token};
use rand::Rng;
use std::io;
use std::time::Duration;

/// How long a connection may take to its CONNACK.
const CONNECT_TIMEOUT_NS: u64 = 30_000_000_000;
const RETRY_DELAY_NS: u64 = 100_000_000;
/// The longest wait before a device connects again.
const RETRY_DELAY_NS_MAX: u64 = 5_000_000_000;
/// The longest spread of reconnects that a server may ask for.
const SPREAD_NS_MAX: u64 = 60_000_000_000;

impl Engine {
    /// One turn of the loop: waits for readiness until a time, then handles it.
    pub(crate) fn turn(&mut self, until_ns: u64) -> Result<()> {
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
            if event.token() == WAKER {
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
        match self.devices[number as usize].pace_bytes() {
            None => self.read_all(number),
            // The next pace reads.
            Some(_) if self.devices[number as usize].phase == Phase::Online => Ok(()),
            Some(_) => self.read_all(number),
        }
    }

    /// A slow link's turn.
    fn on_pace(&mut self, number: u32) -> Result<()> {
        let device = &mut self.devices[number as usize];
        let flushed = device.flush();
        if let Err(error) = flushed {
            return self.fail(number, &describe(&error));
        }
        // The last pace of a link that is fast again reads what waited.
        if self.devices[number as usize].pace_bytes().is_some() {
            self.set_pace(number);
        }
        self.read_all(number)
    }

    fn read_all(&mut self, number: u32) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut outcome = Ok(());
        loop {
            let device = &mut self.devices[number as usize];
            if device.phase == Phase::Offline {
                break;
            }
            let drained_by_short_read = !device.is_tls();
            let pace = device.pace_bytes().filter(|_| device.phase == Phase::Online);
            let room = pace.unwrap_or(buffer.len()).min(buffer.len());
            match device.read(&mut buffer[..room]) {
                Ok(0) => {
                    outcome = self.fail(number, "closed by the server");
                    break;
                }
                Ok(count) => {
                    outcome = self.on_bytes(number, &buffer[..count]);
                    let is_drained = pace.is_some() || (count < room && drained_by_short_read);
                    if outcome.is_err() || is_drained {
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
        let (tally, identities) = (&mut self.tally, &self.identities);
        tally.effects = Effects::default();
        let version = self.options.version;
        let consumed = self.devices[number as usize].consume(version, bytes, |device, packet| {
            tally.on_packet(device, packet, now, |topic| identities.is_credit_of(number, topic));
        });
        if let Err(error) = consumed {
            return self.fail(number, &error.to_string());
        }
        let effects = std::mem::take(&mut self.tally.effects);
        if effects.ended {
            // Counted by its reason already.
            return self.end(number);
        }
        if let Some(keep_alive_s) = effects.online {
            self.on_online(number, keep_alive_s)?;
        }
        if !effects.to_ack.is_empty() {
            self.scratch.clear();
            for packet_id in effects.to_ack {
                mqtt::pub_ack(packet_id, &mut self.scratch);
            }
            self.send_scratch(number);
        }
        if effects.held {
            self.set_resume(number);
        }
        if self.blast_window.is_some() {
            self.refill(number);
        } else if self.devices[number as usize].lanes.len() > 0 {
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
        device.asked_credit_ns = 0;
        let (generation, is_slow) = (device.generation, device.pace_bytes().is_some());
        if keep_alive_s > 0 {
            self.set_keep_alive(number, generation, keep_alive_s);
        }
        if is_slow {
            self.set_pace(number);
        }
        self.greet(number);
        self.open_next()
    }

    /// Looks at the device again when the server may take more from it.
    fn set_resume(&mut self, number: u32) {
        let device = &mut self.devices[number as usize];
        let (generation, due) = (device.generation, device.quirks().held_until_ns);
        self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::Resume });
    }

    /// Lets the slow link pass some bytes soon.
    pub(super) fn set_pace(&mut self, number: u32) {
        let generation = self.devices[number as usize].generation;
        let due = self.now_ns() + PACE_NS;
        self.wheel.set(due, Alarmed { device: number, generation, alarm: Alarm::Pace });
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

    /// Breaks a connection without a word, as a network does.
    pub(crate) fn cut(&mut self, number: u32) -> Result<()> {
        let device = &mut self.devices[number as usize];
        if device.phase == Phase::Offline {
            return Ok(());
        }
        device.reset_on_close();
        self.fail(number, "cut by the generator")
    }

    /// Forgets a connection and plans the next one.
    fn end(&mut self, number: u32) -> Result<()> {
        let now = self.now_ns();
        let device = &mut self.devices[number as usize];
        let was_online = device.phase == Phase::Online;
        match device.phase {
            Phase::Offline => return Ok(()),
            Phase::Connecting | Phase::AwaitConnAck => self.connecting -= 1,
            Phase::Online => self.online -= 1,
        }
        device.close();
        if was_online {
            device.offline_since_ns = now;
        }
        device.attempts = device.attempts.saturating_add(1);
        let mut delay = retry_delay_ns(device.attempts);
        let mut least = delay / 2;
        let spread = u64::from(device.reconnect_spread_ms) * 1_000_000;
        if was_online && spread > delay {
            (least, delay) = (0, spread.min(SPREAD_NS_MAX));
        }
        let generation = device.generation;
        let due = (now + self.random.random_range(least..delay)).max(device.stays_away_until_ns);
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
                (Alarm::Reconnect, Phase::Offline) => {
                    let until = device.stays_away_until_ns;
                    if self.began.elapsed().as_nanos() as u64 >= until {
                        self.open(number)?;
                    } else {
                        self.wheel.set(until, Alarmed { device: number, generation, alarm });
                    }
                }
                (Alarm::Resume, Phase::Online) => self.send_waiting(number),
                (Alarm::Unsure, Phase::Online) => {
                    device.lanes.nobody_spoke();
                    self.send_waiting(number);
                }
                (Alarm::Pace, Phase::Online) => self.on_pace(number)?,
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
    use crate::lanes::WAITING_MAX;
    use crate::mqtt::Version;
    use crate::record::{Due, What};

    #[test]
    fn messages_that_find_a_devices_waiting_list_full_are_counted_as_unsent() {
        let identities = Identities::new("bench", 2, &Tokens::None).unwrap();
        let options = Options::new(([127, 0, 0, 1], 1).into(), Version::V5, 1);
        // Nothing connects, so nothing leaves.
        let mut engine = Engine::new(options, identities).unwrap();
        let due = Due { intended_ns: 0, what: What::Telemetry };
        for _ in 0..WAITING_MAX {
            engine.make(0, due);
        }
        assert_eq!(engine.tally.unsent, 0);
        engine.make(0, due);
        engine.make_backlog(0, due, 1);
        engine.make(1, due);
        assert_eq!(engine.tally.unsent, 2);
        assert_eq!(engine.devices[0].lanes.len(), WAITING_MAX);
        assert_eq!(engine.unanswered(), WAITING_MAX as u64 + 1, "another device has a list of its own");
    }

    #[test]
    fn retries_wait_twice_as_long_each_time_up_to_a_bound() {
        let waits_ms = [1, 2, 3, 4, 5, 6, 7, u16::MAX].map(|attempts| retry_delay_ns(attempts) / 1_000_000);
        assert_eq!(waits_ms, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
    }
}
