//! A made-up run with every kind of fault, for tests and for a look at the page without a server.
//!
//! Called by the tests of this folder and by the example `synthetic-report`. The same seed and length give the same
//! report; its numbers have the shape of a real run's and mean nothing.

use super::model::{
    Cost, FaultMark, Invariant, Latency, Ledger, REPORT_VERSION, Report, Sample, Setup, Totals,
};
use std::collections::BTreeMap;

const DEVICES: u32 = 2_000;
const RATE: f64 = 1_000.0;

/// A run of so many seconds.
pub fn report(seed: u64, seconds: u32) -> Report {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let faults = faults(f64::from(seconds));
    let mut course = Course { waiting: 0.0, depth: 0.0, log_bytes: 2e6 };
    let samples: Vec<Sample> =
        (1..=seconds).map(|second| course.sample(f64::from(second), &faults, &mut dice)).collect();
    let made = (RATE * f64::from(seconds)) as u64;
    Report {
        version: REPORT_VERSION,
        setup: setup(seed, seconds),
        invariants: invariants(made),
        totals: totals(made),
        latency: latencies(made, &mut dice),
        cost: Cost {
            server_cpu_cores: Some(0.41 + dice.noise(0.01)),
            server_rss_bytes: Some(212_000_000),
            server_files: Some(2_061),
            generator_cpu_cores: 0.22 + dice.noise(0.005),
            generator_rss_bytes: 48_000_000,
            other_load_cores: 0.06,
            stored_bytes: Some(made * 5 * 62),
        },
        samples,
        faults,
    }
}

/// Small and good enough for noise.
struct Dice(u64);

impl Dice {
    /// 0 up to 1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Around 0, mostly within `size`.
    fn noise(&mut self, size: f64) -> f64 {
        (self.roll() + self.roll() + self.roll() - 1.5) * size
    }
}

struct Course {
    waiting: f64,
    depth: f64,
    log_bytes: f64,
}

impl Course {
    fn sample(&mut self, at_s: f64, faults: &[FaultMark], dice: &mut Dice) -> Sample {
        let now = |kind: &str| {
            faults.iter().any(|fault| fault.kind == kind && at_s >= fault.from_s && at_s < fault.until_s)
        };
        let since = |kind: &str| {
            let ends = faults.iter().filter(|fault| fault.kind == kind && fault.until_s <= at_s);
            ends.map(|fault| at_s - fault.until_s).fold(f64::INFINITY, f64::min)
        };
        let down = now("server-kill");
        let half_gone = now("fleet-half");
        let back = since("server-kill").min(since("fleet-half"));
        let storm = if down { 0.0 } else { (-back / 6.0).exp() };
        let slow: f64 = if now("slow-links") { 120.0 } else { 1.0 };
        let online = match (down, half_gone) {
            (true, _) => 0.0,
            (_, true) => f64::from(DEVICES) / 2.0,
            _ => f64::from(DEVICES) * (1.0 - 0.35 * (-back / 2.0).exp()) - (dice.roll() * 3.0).floor(),
        };
        self.pile_up(down, half_gone, now("store-outage"), storm);
        let wild = if now("tenant-wild") { 1.6 } else { 1.0 };
        let p50 = (0.85 + dice.noise(0.1) + storm * 40.0) * slow.powf(0.3) * wild;
        let published = if down { 0.0 } else { (RATE * wild + storm * 3_000.0) * (1.0 + dice.noise(0.03)) };
        let live =
            (!down).then(|| latency(published as u64, p50, 1.6 + storm * 2.0 + dice.roll() * 0.3, slow));
        Sample {
            at_s,
            online: online as u32,
            published_per_s: published.round(),
            acked_per_s: if down { 0.0 } else { (published - dice.roll() * 5.0).max(0.0).round() },
            live,
            backlog: (storm > 0.02).then(|| latency(900, 4_000.0 * storm + 900.0, 2.0, 1.0)),
            stored_ms: (!down && self.depth < 900.0).then(|| p50 + 2.5 + dice.roll() * 3.0),
            alert_ms: (!down && dice.roll() > 0.1)
                .then(|| p50 + 9.0 + dice.roll() * 18.0 + self.depth / 400.0),
            waiting: self.waiting as u64,
            server_cpu_cores: (!down).then(|| 0.36 + storm * 0.9 + (wild - 1.0) * 0.3 + dice.noise(0.03)),
            server_rss_bytes: (!down).then(|| (150e6 + at_s.min(90.0) * 5e5 + storm * 2e7) as u64),
            server_files: (!down).then(|| online as u64 + 61),
            log_depth: (!down).then_some(self.depth as u64),
            log_bytes: (!down).then_some(self.log_bytes as u64),
            rules_lag: (!down).then(|| (dice.roll() * 30.0 + storm * 600.0) as u64),
            generator_cpu_cores: 0.2 + storm * 0.3 + dice.noise(0.01),
            other_load_cores: (0.05 + dice.noise(0.06)).max(0.0),
        }
    }

    fn pile_up(&mut self, down: bool, half_gone: bool, store_outage: bool, storm: f64) {
        self.waiting = match (down, half_gone) {
            (true, _) => self.waiting + RATE,
            (_, true) => self.waiting + RATE / 2.0,
            _ => (self.waiting - 3_000.0).max(0.0),
        };
        self.depth = match store_outage {
            true => self.depth + RATE,
            false => (self.depth - 2_500.0).max(12.0 + storm * 700.0),
        };
        self.log_bytes = 2e6 + self.depth * 130.0;
    }
}

fn latency(count: u64, p50_ms: f64, spread: f64, slow: f64) -> Latency {
    let p95_ms = p50_ms * spread * slow.powf(0.5);
    let p99_ms = p95_ms * 1.7;
    Latency { count, p50_ms, p95_ms, p99_ms, p999_ms: p99_ms * 2.1, max_ms: p99_ms * 3.0 }
}

fn faults(seconds: f64) -> Vec<FaultMark> {
    let mark = |kind: &str, from: f64, until: f64, detail: &str| FaultMark {
        kind: kind.to_owned(),
        from_s: seconds * from,
        until_s: seconds * until,
        detail: detail.to_owned(),
    };
    vec![
        mark("connection-loss", 0.08, 0.08, "137 connections reset"),
        mark("duplicates", 0.10, 0.16, "5 % of the messages sent twice"),
        mark("server-kill", 0.20, 0.22, "kill -9, started again after 6 s"),
        mark("poison", 0.30, 0.30, "40 payloads of random bytes"),
        mark("clock-jump", 0.31, 0.31, "600 devices 2 h ahead"),
        mark("poison", 0.315, 0.315, "40 payloads cut short"),
        mark("store-outage", 0.40, 0.48, "telemetry.db locked"),
        mark("slow-links", 0.56, 0.66, "200 devices at 2 kB/s"),
        mark("fleet-half", 0.70, 0.76, "1,000 devices away, then back at once"),
        mark("tenant-wild", 0.86, 0.92, "tenant <t-3> at 20 times its rate"),
    ]
}

fn setup(seed: u64, seconds: u32) -> Setup {
    let command = "muster-loadtest run --addr 127.0.0.1:18883 --ca ca.pem --ca-key ca.key --devices 2000 --profile mixed \
                   --faults all --seed";
    Setup {
        began_at_us: 1_795_305_611_000_000,
        command: command.split(' ').map(str::to_owned).chain([seed.to_string()]).collect(),
        machine: "Intel Xeon (AVX-512), 2 cores, 24 GB, Linux 6.18".to_owned(),
        seed,
        profile: "mixed".to_owned(),
        target: "muster".to_owned(),
        devices: DEVICES,
        tenants: 4,
        processes: 1,
        rate: RATE,
        readings_per_message: 5.0,
        transport: "mtls".to_owned(),
        mqtt: 5,
        seconds: f64::from(seconds),
    }
}

fn invariants(made: u64) -> Vec<Invariant> {
    let held = |name: &str, detail: String| Invariant { name: name.to_owned(), held: true, detail };
    vec![
        held("stored_exactly_once", format!("{made} stored = {made} distinct serials = accepted - dropped")),
        held("nothing_lost", "lost 0 over 4 tenants".to_owned()),
        held("tenants_apart", "0 messages reached another tenant's subscriber".to_owned()),
        held("alerts_once", "212 of 212 alerts opened, each once".to_owned()),
    ]
}

fn totals(made: u64) -> Totals {
    let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    Totals {
        made: made + 80,
        published: made + 2_613,
        acked: made,
        refused: counts(&[("0x97", 1_411), ("0x99", 80)]),
        unanswered: 0,
        unsent: 0,
        duplicates_sent: 902,
        poisoned_sent: 80,
        success_ratio: 1.0,
        ledger: Some(Ledger { accepted: made, stored: made, ..Ledger::default() }),
        connects: 6_137,
        reconnects: 4_137,
        closed: counts(&[("reset by the peer", 2_000), ("server went away", 2_000), ("cut on purpose", 137)]),
    }
}

fn latencies(made: u64, dice: &mut Dice) -> BTreeMap<String, Latency> {
    let mut all = BTreeMap::new();
    let rows = [
        ("puback", made, 0.92, 4.0),
        ("live", made - made / 20, 0.88, 1.7),
        ("backlog", made / 20, 1_900.0, 2.2),
        ("service", made, 0.71, 1.6),
        ("send_late", made, 0.05, 2.0),
        ("stored", made / 1_000, 4.9, 1.6),
        ("alert", made / 1_100, 19.0, 1.5),
        ("reconnect", 4_137, 840.0, 3.0),
    ];
    for (name, count, p50, spread) in rows {
        all.insert(name.to_owned(), latency(count, p50 * (1.0 + dice.noise(0.02)), spread, 1.0));
    }
    all
}
