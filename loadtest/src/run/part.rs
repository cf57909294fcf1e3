//! A sending part of a run: some of the devices, on one thread, in this process or in one of their own.
//!
//! Called by `run` (a thread) or by `child` (a process). It hears [`Order`]s through a bounded channel and tells
//! [`Told`]; nothing else goes in or out but MQTT.

use super::order::{Buckets, DeviceResult, Order, PartConfig, PartResult, Second, Told};
use super::parts::Telling;
use super::profile::{Extra, Schedule, Stream};
use crate::engine::{Engine, OnSent, Options};
use crate::identity::Identities;
use crate::modes::{resolve, version};
use crate::record::{Due, What};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use mio::Waker;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;

/// Orders that wait for a part.
pub(crate) const ORDERS_MAX: usize = 256;
/// Tellings of a part that wait to be heard: ten minutes of seconds.
pub(crate) const TOLD_MAX: usize = 600;
const SECOND_NS: u64 = 1_000_000_000;
/// Paces of a slow link in a second.
const PACES_PER_S: u32 = 10;
/// How often a part that sends nothing looks for orders; the waker makes it look at once.
const LOOK_NS: u64 = 100_000_000;

/// A part that is ready to run.
pub(crate) struct Part {
    config: PartConfig,
    engine: Engine,
    orders: Receiver<Order>,
    told: (usize, SyncSender<Telling>),
    schedule: Option<Schedule>,
    /// Faults that end at a time.
    ends: Vec<(u64, End)>,
    next_second_ns: u64,
    last: (u64, u64),
    /// Since when not every device is online.
    incomplete_since_ns: Option<u64>,
}

enum End {
    Slow(Vec<u32>),
}

impl Part {
    /// Makes the devices; nothing connects yet. The waker tells it of new orders.
    ///
    /// # Errors
    /// A certificate cannot be made, or the configuration names what is not there.
    pub(crate) fn new(
        config: PartConfig,
        orders: Receiver<Order>,
        told: (usize, SyncSender<Telling>),
        on_sent: Option<OnSent>,
    ) -> Result<(Self, Arc<Waker>)> {
        let mut identities = Identities::fleet(&config.tenants, config.members.clone())?;
        if let Some(ca) = &config.ca {
            let host = config.address.rsplit_once(':').map_or(config.address.as_str(), |(host, _)| host);
            let name = config.server_name.as_deref().unwrap_or(host);
            identities = identities.with_tls(name, ca, config.ca_key.as_deref())?;
            if let Some(file) = &config.identities {
                identities = identities.with_own_keys(file)?;
            }
        }
        let options = Options {
            keep_alive_s: config.keep_alive_s,
            concurrency: config.concurrency.max(1),
            first_number: config.first_number,
            credits: config.credits,
            reports: config.reports,
            ..Options::new(resolve(&config.address)?, version(config.mqtt)?, config.seed)
        };
        let mut engine = Engine::new(options, identities)?;
        for device in config.watched.probes..config.watched.count() {
            engine.device(device).lanes.is_ordered = true;
        }
        if let Some(on_sent) = on_sent {
            engine.watch((0..config.watched.count()).collect(), on_sent);
        }
        let waker = Arc::new(engine.waker()?);
        let part = Self {
            config,
            engine,
            orders,
            told,
            schedule: None,
            ends: Vec::new(),
            next_second_ns: u64::MAX,
            last: (0, 0),
            incomplete_since_ns: None,
        };
        Ok((part, waker))
    }

    /// Runs to its end; a failure is told too.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.work() {
            // Nobody listens any more: the lead has ended, and so does this part.
            let _ = self.tell(Told::Failed { why: format!("{error:#}") });
        }
    }

    fn work(&mut self) -> Result<()> {
        let cpu = crate::meter::own_cpu_s()?;
        let took = self.engine.connect_all(Duration::from_secs_f64(self.config.connect_timeout_s))?;
        let connect_cpu_s = crate::meter::own_cpu_s()? - cpu;
        self.tell(Told::Online { seconds: took.as_secs_f64(), connect_cpu_s })?;
        loop {
            match self.orders.try_recv() {
                Ok(Order::Quit) => {
                    self.engine.disconnect_all();
                    return Ok(());
                }
                Ok(Order::Settle { timeout_s }) => self.settle(timeout_s)?,
                Ok(order) => self.obey(order)?,
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => self.step()?,
            }
        }
    }

    fn tell(&self, told: Told) -> Result<()> {
        let (number, sender) = &self.told;
        sender.send((*number, told)).ok().context("the run's lead has ended")
    }

    /// One turn: what is due, then what the network brings.
    fn step(&mut self) -> Result<()> {
        let now = self.engine.now_ns();
        let mut until = (now + LOOK_NS).min(self.next_second_ns);
        if let Some(schedule) = self.schedule.as_mut() {
            while let Some((device, due)) = schedule.pop(now) {
                self.engine.make(device, due);
            }
            until = schedule.next_ns().map_or(until, |next| until.min(next));
        }
        self.engine.turn(until)?;
        self.look()
    }

    /// Ends of faults, the second's figures, and whether everybody is back.
    fn look(&mut self) -> Result<()> {
        let now = self.engine.now_ns();
        while let Some(at) = self.ends.iter().position(|(end_ns, _)| *end_ns <= now) {
            let (_, End::Slow(devices)) = self.ends.swap_remove(at);
            for device in devices {
                self.engine.slow_down(device, 0);
            }
        }
        let all = self.engine.online() == self.engine.count();
        match self.incomplete_since_ns {
            None if !all => self.incomplete_since_ns = Some(now),
            Some(since) if all => {
                self.incomplete_since_ns = None;
                self.tell(Told::AllOnline { after_s: (now - since) as f64 / 1e9 })?;
            }
            _ => {}
        }
        if now >= self.next_second_ns {
            self.next_second_ns += SECOND_NS;
            let second = self.second();
            self.tell(Told::Second(second))?;
        }
        Ok(())
    }

    fn second(&mut self) -> Second {
        let waiting = self.engine.devices().iter().map(|device| device.lanes.len() as u64).sum();
        let online = self.engine.online();
        let tally = &mut self.engine.tally;
        let now = (tally.published + tally.resent, tally.acked);
        let second = Second {
            online,
            published: now.0 - self.last.0,
            acked: now.1 - self.last.1,
            waiting,
            live: buckets(&tally.second[0]),
            backlog: buckets(&tally.second[1]),
        };
        tally.second.iter_mut().for_each(Histogram::reset);
        self.last = now;
        second
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        let now = self.engine.now_ns();
        let ns = |seconds: f64| (seconds * 1e9) as u64;
        match order {
            Order::Go => {
                let config = &self.config;
                self.schedule = Some(Schedule::new(
                    config.profile,
                    self.engine.count(),
                    config.watched,
                    config.rate,
                    (now, ns(config.seconds)),
                    config.seed,
                ));
                self.next_second_ns = now + SECOND_NS;
            }
            Order::Cut { share, seed } => {
                for device in self.some(share, seed) {
                    self.engine.cut(device)?;
                }
            }
            Order::Away { share, for_s, seed } => {
                for device in self.some(share, seed) {
                    self.engine.device(device).stays_away_until_ns = now + ns(for_s);
                    self.engine.cut(device)?;
                }
            }
            Order::Slow { share, bytes_per_s, for_s, seed } => {
                let devices = self.some(share, seed);
                for device in &devices {
                    self.engine.slow_down(*device, (bytes_per_s / PACES_PER_S).max(1) as usize);
                }
                self.ends.push((now + ns(for_s), End::Slow(devices)));
            }
            Order::Clock { share, offset_us, seed } => {
                for device in self.some(share, seed) {
                    self.engine.device(device).quirks().clock_offset_us = offset_us;
                }
            }
            Order::More { extra, per_s, for_s, tenant } => self.more(extra, per_s, now + ns(for_s), tenant),
            Order::Backlog { records } => {
                for device in self.config.watched.count()..self.engine.count() {
                    let due = Due { intended_ns: now, what: What::Telemetry };
                    self.engine.make_backlog(device, due, records);
                }
            }
            Order::Settle { .. } | Order::Quit => {}
        }
        Ok(())
    }

    /// Devices that a fault hits; never those that are watched.
    fn some(&self, share: f64, seed: u64) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(seed ^ u64::from(self.config.first_number));
        let all = self.config.watched.count()..self.engine.count();
        all.filter(|_| random.random_bool(share.clamp(0.0, 1.0))).collect()
    }

    fn more(&mut self, extra: Extra, per_s: f64, until_ns: u64, tenant: Option<u16>) {
        let members = &self.config.members;
        let is_of = |device: &u32| tenant.is_none_or(|tenant| members[*device as usize].tenant == tenant);
        let devices: Vec<u32> = (self.config.watched.count()..self.engine.count()).filter(is_of).collect();
        let interval_ns = (1e9 / per_s.max(0.001)) as u64;
        let now = self.engine.now_ns();
        if let Some(schedule) = self.schedule.as_mut() {
            schedule.add(Stream { extra, devices, interval_ns, until_ns }, now);
        }
    }

    /// Ends the schedule and waits until everything is answered.
    fn settle(&mut self, timeout_s: f64) -> Result<()> {
        self.schedule = None;
        for (_, End::Slow(devices)) in std::mem::take(&mut self.ends) {
            for device in devices {
                self.engine.slow_down(device, 0);
            }
        }
        let deadline = self.engine.now_ns() + (timeout_s * 1e9) as u64;
        // An alarm device ends with the level that ends its alert.
        for device in self.config.watched.probes..self.config.watched.count() {
            let made =
                self.engine.device(device).next_seq[0] as usize - 1 + self.engine.device(device).lanes.len();
            let again = self.engine.device(device).lanes.again().count();
            if (made - again) % 2 == 1 {
                let intended_ns = self.engine.now_ns();
                self.engine.make(device, Due { intended_ns, what: What::Level });
            }
        }
        self.wait(deadline, |engine| engine.waiting() == 0 && engine.online() == engine.count())?;
        let unanswered = self.engine.waiting();
        if self.config.reports {
            for device in 0..self.engine.count() {
                self.engine.report(device);
            }
            self.wait(deadline, |engine| engine.waiting() == 0)?;
        }
        let result = self.result(unanswered);
        self.next_second_ns = u64::MAX;
        self.tell(Told::Settled(Box::new(result)))
    }

    fn wait(&mut self, deadline: u64, done: impl Fn(&Engine) -> bool) -> Result<()> {
        while !done(&self.engine) && self.engine.now_ns() < deadline {
            let until = (self.engine.now_ns() + LOOK_NS).min(self.next_second_ns).min(deadline);
            self.engine.turn(until)?;
            self.look()?;
        }
        Ok(())
    }

    fn result(&self, unanswered: u64) -> PartResult {
        let tally = &self.engine.tally;
        let histograms = [
            ("puback", &tally.from_intended),
            ("live", &tally.live),
            ("backlog", &tally.backlog),
            ("service", &tally.from_sent),
            ("send_late", &tally.send_late),
            ("reconnect", &tally.reconnect),
        ];
        let latency = histograms.map(|(name, histogram)| (name.to_owned(), buckets(histogram))).into();
        PartResult {
            made: tally.made,
            published: tally.published,
            resent: tally.resent,
            acked: tally.acked,
            refused: tally.refused.clone(),
            kept: tally.kept.clone(),
            copies: tally.copies,
            poisons: tally.poisons,
            poisons_taken: tally.poisons_taken,
            unsent: tally.unsent,
            unanswered,
            misdelivered: tally.misdelivered,
            stray_acks: tally.stray_acks,
            credits: tally.credits,
            connects: tally.connects,
            reconnects: tally.reconnects,
            closed: tally.closed.clone(),
            latency,
            devices: self.devices(),
        }
    }

    fn devices(&self) -> Vec<DeviceResult> {
        let result = |(number, device): (usize, &crate::connection::Device)| {
            let open = device.in_flight.iter().chain(device.lanes.again());
            let mut unanswered: Vec<u32> = open
                .filter(|message| message.what.is_stored() && message.what != What::Event)
                .map(|message| message.seq)
                .collect();
            unanswered.sort_unstable();
            let mut excepted = Vec::new();
            if let Some(quirks) = &device.quirks {
                excepted.extend_from_slice(&quirks.poisoned);
                excepted.extend(quirks.refused.iter().filter(|(queue, _)| *queue == 0).map(|(_, seq)| *seq));
            }
            excepted.sort_unstable();
            let number = number as u32 + self.config.first_number;
            DeviceResult { number, next: device.next_seq, unanswered, excepted }
        };
        self.engine.devices().iter().enumerate().map(result).collect()
    }
}

impl Engine {
    /// Messages that wait or have no answer, over all devices.
    pub(crate) fn waiting(&self) -> u64 {
        let of = |device: &crate::connection::Device| (device.in_flight.len() + device.lanes.len()) as u64;
        self.devices().iter().map(of).sum()
    }
}

/// A histogram as value and count.
fn buckets(histogram: &Histogram<u64>) -> Buckets {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
}

/// Adds what [`buckets`] took apart.
///
/// # Errors
/// A value that no histogram of ours holds.
pub(crate) fn add_buckets(histogram: &mut Histogram<u64>, buckets: &Buckets) -> Result<()> {
    for (value, count) in buckets {
        if histogram.record_n(*value, *count).is_err() {
            bail!("a latency of {value} us is beyond the longest");
        }
    }
    Ok(())
}
