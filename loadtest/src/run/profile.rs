//! When which device sends what: the schedule of a run, from a seed and nothing else.
//!
//! Called by `part`. Open loop: the next time follows from the last intended one, never from what the server did.
//! Profiles are those that fleets show: sensors that report each period with some jitter, devices that are silent
//! and then send a burst, cameras that send an inference result when they see something, and a day's curve.
//! Watched devices (probes) keep a pace of their own in every profile.

use crate::record::{Due, Poison, What};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Messages of one burst, and the time between two of them.
const BURST_MESSAGES: u8 = 10;
const BURST_STEP_NS: u64 = 20_000_000;
/// A sensor's period varies by this much to either side.
const JITTER: f64 = 0.1;
/// How far a day's curve swings around its mean.
const DIURNAL_SWING: f64 = 0.8;
/// Between two messages of a stored probe.
pub(crate) const PROBE_INTERVAL_NS: u64 = 250_000_000;
/// Between two levels of an alarm device: each second one opens an alert.
pub(crate) const ALARM_INTERVAL_NS: u64 = 1_000_000_000;
/// Streams that faults add, at once.
pub(crate) const STREAMS_MAX: usize = 64;

/// What a fleet's devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Every device sends five readings each period, with a tenth of jitter.
    Sensors,
    /// Every device is silent, then sends ten messages within 200 ms.
    Bursts,
    /// Every device sends inference results with boxes, at random moments.
    Cameras,
    /// Seven sensors, two of bursts and one camera in ten.
    Mixed,
    /// Sensors whose rate follows a day's curve, pressed into the run: from a fifth to nearly twice the mean.
    Diurnal,
}

impl Profile {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sensors => "sensors",
            Self::Bursts => "bursts",
            Self::Cameras => "cameras",
            Self::Mixed => "mixed",
            Self::Diurnal => "diurnal",
        }
    }

    /// Readings in a message, on average.
    #[must_use]
    pub fn readings_per_message(self) -> f64 {
        match self {
            Self::Sensors | Self::Bursts | Self::Diurnal => 5.0,
            Self::Cameras => 0.0,
            Self::Mixed => 4.5,
        }
    }

    fn habit(self, device: u32) -> Habit {
        match self {
            Self::Sensors => Habit::Periodic,
            Self::Bursts => Habit::Bursts,
            Self::Cameras => Habit::Camera,
            Self::Diurnal => Habit::Diurnal,
            Self::Mixed => match device % 10 {
                0..=6 => Habit::Periodic,
                7 | 8 => Habit::Bursts,
                _ => Habit::Camera,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Periodic,
    Bursts,
    Camera,
    Diurnal,
    Probe,
    Alarm,
}

/// Which devices are watched: the first ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Watched {
    pub(crate) probes: u32,
    pub(crate) alarms: u32,
}

impl Watched {
    pub(crate) fn count(self) -> u32 {
        self.probes + self.alarms
    }

    pub(crate) fn is_alarm(self, device: u32) -> bool {
        (self.probes..self.count()).contains(&device)
    }

    /// Messages a second of the watched devices.
    pub(crate) fn rate(self) -> f64 {
        let per_s = |interval_ns: u64| 1e9 / interval_ns as f64;
        f64::from(self.probes) * per_s(PROBE_INTERVAL_NS) + f64::from(self.alarms) * per_s(ALARM_INTERVAL_NS)
    }
}

/// What a fault lets devices send besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Extra {
    Telemetry,
    Copies,
    Poison,
}

/// Messages of a fault: uniformly over devices, at a rate, for a time.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) extra: Extra,
    pub(crate) devices: Vec<u32>,
    pub(crate) interval_ns: u64,
    pub(crate) until_ns: u64,
}

/// The schedule.
pub(crate) struct Schedule {
    profile: Profile,
    watched: Watched,
    /// Mean time between a device's messages.
    period_ns: f64,
    start_ns: u64,
    /// The length of the diurnal profile's day.
    day_ns: f64,
    random: SmallRng,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    /// Messages that are left of a device's burst.
    bursts: Vec<u8>,
    streams: Vec<(u64, Stream)>,
}

impl Schedule {
    /// A schedule of `devices` that send `rate` messages a second together, from `start_ns` on.
    pub(crate) fn new(
        profile: Profile,
        devices: u32,
        watched: Watched,
        rate: f64,
        (start_ns, day_ns): (u64, u64),
        seed: u64,
    ) -> Self {
        let others = devices.saturating_sub(watched.count());
        let left = (rate - watched.rate()).max(rate / 1_000.0);
        let period_ns = if others == 0 { f64::INFINITY } else { f64::from(others) / left * 1e9 };
        let mut schedule = Self {
            profile,
            watched,
            period_ns,
            start_ns,
            day_ns: day_ns.max(1) as f64,
            random: SmallRng::seed_from_u64(seed),
            heap: BinaryHeap::with_capacity(devices as usize),
            bursts: vec![0; devices as usize],
            streams: Vec::new(),
        };
        for device in 0..devices {
            let interval = schedule.mean_ns(device);
            if interval.is_finite() {
                let part = schedule.random.random_range(0.0..1.0) * interval;
                // Waits without a memory begin anywhere with a whole wait.
                let phase = match schedule.habit(device) {
                    Habit::Diurnal => schedule.after_on_curve(start_ns, part),
                    Habit::Bursts | Habit::Camera => schedule.exponential(interval),
                    Habit::Periodic | Habit::Probe | Habit::Alarm => part as u64,
                };
                schedule.heap.push(Reverse((start_ns + phase, device)));
            }
        }
        schedule
    }

    fn habit(&self, device: u32) -> Habit {
        match device {
            _ if device < self.watched.probes => Habit::Probe,
            _ if self.watched.is_alarm(device) => Habit::Alarm,
            _ => self.profile.habit(device),
        }
    }

    /// The mean time from one beginning to the next of a device.
    fn mean_ns(&self, device: u32) -> f64 {
        match self.habit(device) {
            Habit::Probe => PROBE_INTERVAL_NS as f64,
            Habit::Alarm => ALARM_INTERVAL_NS as f64,
            Habit::Bursts => self.period_ns * f64::from(BURST_MESSAGES),
            Habit::Periodic | Habit::Camera | Habit::Diurnal => self.period_ns,
        }
    }

    /// When the next message is due.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let heap = self.heap.peek().map(|Reverse((due, _))| *due);
        let streams = self.streams.iter().map(|(next, _)| *next).min();
        [heap, streams].into_iter().flatten().min()
    }

    /// Adds a fault's messages, from now on.
    pub(crate) fn add(&mut self, stream: Stream, now_ns: u64) {
        if self.streams.len() < STREAMS_MAX && !stream.devices.is_empty() {
            self.streams.push((now_ns, stream));
        }
    }

    /// The next message that is due by `now_ns`.
    pub(crate) fn pop(&mut self, now_ns: u64) -> Option<(u32, Due)> {
        self.streams.retain(|(next, stream)| *next < stream.until_ns);
        if let Some(at) = self.streams.iter().position(|(next, _)| *next <= now_ns) {
            return Some(self.pop_stream(at));
        }
        let Reverse((due_ns, device)) = *self.heap.peek().filter(|Reverse((due, _))| *due <= now_ns)?;
        let (what, wait_ns) = self.step(device, due_ns);
        self.heap.pop();
        self.heap.push(Reverse((due_ns + wait_ns.max(1), device)));
        Some((device, Due { intended_ns: due_ns, what }))
    }

    fn pop_stream(&mut self, at: usize) -> (u32, Due) {
        let (next, stream) = &mut self.streams[at];
        let device = stream.devices[self.random.random_range(0..stream.devices.len())];
        let what = match stream.extra {
            Extra::Telemetry => What::Telemetry,
            Extra::Copies => What::Copy,
            Extra::Poison => What::Poison(Poison::ALL[self.random.random_range(0..Poison::ALL.len())]),
        };
        let intended_ns = *next;
        *next += stream.interval_ns.max(1);
        (device, Due { intended_ns, what })
    }

    /// What a device sends now, and how long until its next message.
    fn step(&mut self, device: u32, now_ns: u64) -> (What, u64) {
        let habit = self.habit(device);
        let mean = self.mean_ns(device);
        match habit {
            Habit::Probe => (What::Telemetry, PROBE_INTERVAL_NS),
            Habit::Alarm => (What::Level, ALARM_INTERVAL_NS),
            Habit::Periodic => (What::Telemetry, self.jittered(mean)),
            Habit::Diurnal => {
                let mean = self.jittered(mean) as f64;
                (What::Telemetry, self.after_on_curve(now_ns, mean))
            }
            Habit::Camera => (What::Event, self.exponential(mean)),
            Habit::Bursts => {
                let left = &mut self.bursts[device as usize];
                if *left == 0 {
                    *left = BURST_MESSAGES;
                }
                *left -= 1;
                if *left > 0 {
                    return (What::Telemetry, BURST_STEP_NS);
                }
                let taken = f64::from(BURST_MESSAGES - 1) * BURST_STEP_NS as f64;
                (What::Telemetry, self.exponential((mean - taken).max(1.0)))
            }
        }
    }

    /// How long until the day's curve, `1 - swing * cos`, has covered the area of so much time at its mean.
    fn after_on_curve(&self, now_ns: u64, area_ns: f64) -> u64 {
        let turn = std::f64::consts::TAU / self.day_ns;
        let area = |at: f64| at - DIURNAL_SWING / turn * (turn * at).sin();
        let now = now_ns.saturating_sub(self.start_ns) as f64;
        let wanted = area(now) + area_ns;
        let (mut low, mut high) = (now, now + area_ns / (1.0 - DIURNAL_SWING));
        while high - low > 1_000.0 {
            let middle = f64::midpoint(low, high);
            if area(middle) < wanted { low = middle } else { high = middle }
        }
        (high - now) as u64
    }

    fn jittered(&mut self, mean_ns: f64) -> u64 {
        (mean_ns * self.random.random_range(1.0 - JITTER..1.0 + JITTER)) as u64
    }

    fn exponential(&mut self, mean_ns: f64) -> u64 {
        let uniform: f64 = self.random.random_range(1e-9..1.0);
        (-uniform.ln() * mean_ns) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn run(mut schedule: Schedule, from_s: u64, until_s: u64) -> Vec<(u32, Due)> {
        let all = std::iter::from_fn(|| schedule.pop(until_s * SECOND));
        all.filter(|(_, due)| due.intended_ns >= from_s * SECOND).collect()
    }

    fn schedule(profile: Profile, watched: Watched, rate: f64) -> Schedule {
        Schedule::new(profile, 1_000, watched, rate, (0, 100 * SECOND), 7)
    }

    #[test]
    fn every_profile_keeps_the_rate_and_the_seed_repeats_it() {
        for profile in [Profile::Sensors, Profile::Bursts, Profile::Cameras, Profile::Mixed, Profile::Diurnal]
        {
            let made = run(schedule(profile, Watched::default(), 200.0), 0, 100);
            let expect = 200.0 * 100.0;
            let ratio = made.len() as f64 / expect;
            assert!((0.9..1.1).contains(&ratio), "{profile:?}: {ratio}");
            assert!(
                made.iter().map(|(device, _)| *device).collect::<std::collections::BTreeSet<_>>().len() > 800
            );
            assert_eq!(made, run(schedule(profile, Watched::default(), 200.0), 0, 100));
        }
    }

    #[test]
    fn a_day_has_its_low_at_the_ends_and_its_high_in_the_middle() {
        let count =
            |from, until| run(schedule(Profile::Diurnal, Watched::default(), 200.0), from, until).len();
        let (night, noon) = (count(0, 10), count(45, 55));
        assert!(noon > 4 * night, "{night} at night, {noon} at noon");
    }

    #[test]
    fn a_burst_is_ten_messages_in_a_row() {
        let made = run(schedule(Profile::Bursts, Watched::default(), 10.0), 0, 100);
        let one = made[0].0;
        let times: Vec<u64> =
            made.iter().filter(|(device, _)| *device == one).map(|(_, due)| due.intended_ns).collect();
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).take(9).collect();
        assert_eq!(gaps, [BURST_STEP_NS; 9]);
    }

    #[test]
    fn watched_devices_keep_their_own_pace() {
        let watched = Watched { probes: 1, alarms: 2 };
        let made = run(schedule(Profile::Mixed, watched, 100.0), 0, 10);
        let of = |device| made.iter().filter(move |(made, _)| *made == device).map(|(_, due)| due.what);
        assert!((39..=41).contains(&of(0).count()) && of(0).all(|what| what == What::Telemetry));
        assert!((9..=11).contains(&of(2).count()) && of(2).all(|what| what == What::Level));
        assert_eq!(watched.rate(), 6.0);
        assert!((900..1100).contains(&made.len()));
    }

    #[test]
    fn a_faults_messages_come_at_their_rate_until_its_end() {
        let mut schedule = schedule(Profile::Sensors, Watched::default(), 1.0);
        let stream = Stream {
            extra: Extra::Poison,
            devices: vec![5, 6],
            interval_ns: SECOND / 10,
            until_ns: 3 * SECOND,
        };
        schedule.add(stream.clone(), SECOND);
        let made = run(schedule, 0, 10);
        let poison: Vec<_> = made.iter().filter(|(_, due)| matches!(due.what, What::Poison(_))).collect();
        assert_eq!(poison.len(), 20);
        assert!(poison.iter().all(|(device, _)| [5, 6].contains(device)));
    }

    #[test]
    fn streams_are_bounded() {
        let mut schedule = schedule(Profile::Sensors, Watched::default(), 1.0);
        let stream =
            Stream { extra: Extra::Copies, devices: vec![1], interval_ns: SECOND, until_ns: 9 * SECOND };
        for _ in 0..STREAMS_MAX + 5 {
            schedule.add(stream.clone(), 0);
        }
        assert_eq!(schedule.streams.len(), STREAMS_MAX);
    }
}
