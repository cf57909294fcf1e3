//! Many devices on one thread: a readiness loop over their connections.
//!
//! Called by `modes`. Promise: the schedule is open-loop, so a slow server does not slow it down, and a latency
//! counts from the time that the schedule intended, not from the time that the generator managed to send.
//! A message whose connection broke is sent again after the reconnect, with the same identity.
//! Bounds: `lanes::WAITING_MAX` messages wait a device; more are counted as unsent.

use crate::connection::{Device, Phase};
use crate::identity::Identities;
use crate::mqtt::{self, Version};
use crate::payload::{Payload, queue_id};
use crate::record::{Due, InFlight, What};
use crate::tally::Tally;
use crate::timer::Timer;
use crate::wheel::Wheel;
use anyhow::{Context, Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1_024;
/// One read from a socket.
const READ_BYTES: usize = 64 * 1024;
const TIMER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

mod reactor;
mod sender;

/// How the devices connect.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) address: SocketAddr,
    pub(crate) version: Version,
    pub(crate) keep_alive_s: u16,
    /// Connections that are being made at once.
    pub(crate) concurrency: u32,
    pub(crate) seed: u64,
    /// The first device's number: serials tell devices of several engines apart.
    pub(crate) first_number: u32,
    /// Devices subscribe to flow control and keep to it.
    pub(crate) credits: bool,
    /// Devices tell on each connect where their queues stand.
    pub(crate) reports: bool,
}

impl Options {
    /// A plain publisher's options: no flow control, no reports.
    pub(crate) fn new(address: SocketAddr, version: Version, seed: u64) -> Self {
        Self {
            address,
            version,
            keep_alive_s: 600,
            concurrency: 256,
            seed,
            first_number: 0,
            credits: false,
            reports: false,
        }
    }
}

/// A record of a watched device that goes out for the first time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentRecord {
    pub(crate) number: u32,
    pub(crate) what: What,
    pub(crate) seq: u32,
    pub(crate) measured_at_us: i64,
    pub(crate) intended: Instant,
}

/// Told of every record of a watched device.
pub(crate) type OnSent = Box<dyn FnMut(SentRecord) + Send>;

#[derive(Clone, Copy)]
enum Alarm {
    Reconnect,
    ConnectTimeout,
    KeepAlive,
    /// Something may be sent again.
    Resume,
    /// The server may have said nothing about flow control.
    Unsure,
    /// A slow link passes some bytes.
    Pace,
}

struct Alarmed {
    device: u32,
    generation: u32,
    alarm: Alarm,
}

/// The devices and the loop that drives them.
pub(crate) struct Engine {
    options: Options,
    identities: Identities,
    devices: Vec<Device>,
    pub(crate) tally: Tally,
    poll: Poll,
    timer: Timer,
    events: Events,
    began: Instant,
    epoch_us: i64,
    wheel: Wheel<Alarmed>,
    random: SmallRng,
    payload: Payload,
    scratch: Vec<u8>,
    topic: String,
    read_buffer: Vec<u8>,
    next_to_open: u32,
    connecting: u32,
    online: u32,
    /// Unacknowledged publishes that each device keeps up, while a blast runs.
    blast_window: Option<u16>,
    /// Devices that are watched, and who watches.
    watched: Vec<u32>,
    on_sent: Option<OnSent>,
}

impl Engine {
    pub(crate) fn new(options: Options, identities: Identities) -> Result<Self> {
        let poll = Poll::new().context("cannot make a poll")?;
        let timer = Timer::new().context("cannot make a timer")?;
        poll.registry().register(&mut SourceFd(&timer.fd()), TIMER, Interest::READABLE)?;
        let mut random = SmallRng::seed_from_u64(options.seed);
        let devices = (0..identities.count()).map(|_| Device::new(queue_id(random.random()))).collect();
        Ok(Self {
            options,
            identities,
            devices,
            tally: Tally::new(),
            poll,
            timer,
            events: Events::with_capacity(EVENTS_MAX),
            began: Instant::now(),
            epoch_us: wall_clock_us(),
            wheel: Wheel::new(),
            random,
            payload: Payload::new(),
            scratch: Vec::new(),
            topic: String::new(),
            read_buffer: vec![0; READ_BYTES],
            next_to_open: 0,
            connecting: 0,
            online: 0,
            blast_window: None,
            watched: Vec::new(),
            on_sent: None,
        })
    }

    /// Nanoseconds since the engine was made.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.devices.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn online(&self) -> u32 {
        self.online
    }

    /// Wakes the loop from another thread.
    pub(crate) fn waker(&self) -> Result<Waker> {
        Waker::new(self.poll.registry(), WAKER).context("cannot make a waker")
    }

    pub(crate) fn device(&mut self, number: u32) -> &mut Device {
        &mut self.devices[number as usize]
    }

    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Tells `on_sent` of each record of these devices that goes out for the first time.
    pub(crate) fn watch(&mut self, devices: Vec<u32>, on_sent: OnSent) {
        self.watched = devices;
        self.on_sent = Some(on_sent);
    }

    fn watch_sent(&mut self, number: u32, message: &InFlight) {
        if let Some(on_sent) = self.on_sent.as_mut()
            && self.watched.contains(&number)
        {
            on_sent(SentRecord {
                number,
                what: message.what,
                seq: message.seq,
                measured_at_us: self.epoch_us + (message.intended_ns / 1_000) as i64,
                intended: self.began + Duration::from_nanos(message.intended_ns),
            });
        }
    }

    /// Lets a device's link pass so many bytes each `connection::PACE_NS`; 0: all.
    pub(crate) fn slow_down(&mut self, number: u32, bytes_per_pace: usize) {
        let device = &mut self.devices[number as usize];
        let was_slow = device.pace_bytes().is_some();
        device.quirks().bytes_per_pace = bytes_per_pace;
        if !was_slow && bytes_per_pace > 0 && device.phase == Phase::Online {
            self.set_pace(number);
        }
    }

    /// Connects every device; answers how long it took until the last was online.
    ///
    /// # Errors
    /// Not all are online in time; the counts say why.
    pub(crate) fn connect_all(&mut self, timeout: Duration) -> Result<Duration> {
        let began = self.now_ns();
        let deadline = began + timeout.as_nanos() as u64;
        while self.online < self.count() {
            self.open_next()?;
            if self.now_ns() >= deadline {
                let (online, all) = (self.online, self.devices.len());
                bail!(
                    "{online} of {all} devices are online after {timeout:?}; closed: {:?}",
                    self.tally.closed
                );
            }
            self.turn(deadline)?;
        }
        Ok(Duration::from_nanos(self.now_ns() - began))
    }

    /// Keeps the connections for a while without a message.
    pub(crate) fn hold(&mut self, time: Duration) -> Result<()> {
        let end = self.now_ns() + time.as_nanos() as u64;
        while self.now_ns() < end {
            self.turn(end)?;
        }
        Ok(())
    }

    /// Sends `rate` messages a second, devices in turn, for `time`.
    pub(crate) fn run_rate(&mut self, rate: f64, time: Duration) -> Result<()> {
        let messages = (rate * time.as_secs_f64()).round() as u64;
        let interval_ns = 1e9 / rate;
        let start = self.now_ns() + 1_000_000;
        let intended = |message: u64| start + (message as f64 * interval_ns) as u64;
        let mut message = 0;
        while message < messages {
            let now = self.now_ns();
            while message < messages && intended(message) <= now {
                let device = message % self.devices.len() as u64;
                let due = Due { intended_ns: intended(message), what: What::Telemetry };
                self.make(device as u32, due);
                message += 1;
            }
            if message < messages {
                self.turn(intended(message))?;
            }
        }
        Ok(())
    }

    /// Keeps `window` messages of each device unacknowledged for `time`.
    pub(crate) fn run_blast(&mut self, window: u16, time: Duration) -> Result<()> {
        let end = self.now_ns() + time.as_nanos() as u64;
        self.blast_window = Some(window);
        for device in 0..self.count() {
            self.refill(device);
        }
        while self.now_ns() < end {
            self.turn(end)?;
        }
        self.blast_window = None;
        Ok(())
    }

    /// Waits until every publish is answered; answers how many are not.
    pub(crate) fn drain(&mut self, timeout: Duration) -> Result<u64> {
        let end = self.now_ns() + timeout.as_nanos() as u64;
        while self.unanswered() > 0 && self.now_ns() < end {
            let step = end.min(self.now_ns() + 100_000_000);
            self.turn(step)?;
        }
        Ok(self.unanswered())
    }

    /// Publishes without an answer, and messages that still wait to be sent.
    pub(crate) fn unanswered(&self) -> u64 {
        // Counting every device is slow, so first the cheap half.
        let outstanding = self.tally.outstanding();
        if outstanding > 0 {
            return outstanding;
        }
        self.devices.iter().map(|device| device.lanes.len() as u64).sum()
    }

    /// Ends every connection politely; all may connect again.
    pub(crate) fn disconnect_all(&mut self) {
        for device in &mut self.devices {
            if device.phase == Phase::Online {
                // The connection ends either way.
                let _ = device.send(&mqtt::DISCONNECT);
            }
            device.close();
        }
        (self.online, self.connecting, self.next_to_open) = (0, 0, 0);
    }
}

/// The wall clock, read once: messages carry it, latencies do not use it.
#[allow(clippy::disallowed_methods, reason = "the generator plays devices, which have clocks of their own")]
pub(crate) fn wall_clock_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
