//! Carries the faults out: those of devices as orders to the parts, those of the server on a thread of its own.
//!
//! Called by `run`, which looks at it many times a second. Marks for the report are written when a fault begins;
//! what it did is added when it ends.

use super::faults::{Fault, Kind};
use super::order::Order;
use super::parts::Parts;
use super::profile::Extra;
use crate::observe::outage::StoreOutage;
use crate::observe::server::ManagedServer;
use crate::report::model::FaultMark;
use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The share of devices that one loss of connections hits.
const LOSS_SHARE: f64 = 0.1;
const SLOW_SHARE: f64 = 0.05;
/// A link of a bad mobile network.
const SLOW_BYTES_PER_S: u32 = 640;
const CLOCK_SHARE: f64 = 0.1;
/// Copies and broken payloads a second.
const COPIES_PER_S: f64 = 50.0;
const POISON_PER_S: f64 = 20.0;
/// A wild tenant sends so many times the whole fleet's rate.
const WILD_FACTOR: f64 = 4.0;
/// How far clocks jump: back to 1970, back a day, ahead a day, ahead ten years.
const JUMPS_US: [i64; 4] = [i64::MIN, -86_400_000_000, 86_400_000_000, 315_360_000_000_000];
/// Two faults of the server at once, and what waits behind them.
const SERVER_FAULTS_MAX: usize = 64;

/// A server that faults act on.
pub(crate) type Shared = Arc<Mutex<ManagedServer>>;

/// What the server's thread tells: which mark, and what to add.
struct Ended {
    mark: usize,
    at: Instant,
    /// The server takes connections again.
    is_back: bool,
    outcome: Result<String>,
}

/// The faults of a run.
pub(crate) struct Director {
    faults: std::iter::Peekable<std::vec::IntoIter<Fault>>,
    server: Option<Shared>,
    rate: f64,
    tenants: u16,
    backlog: u32,
    pub(crate) marks: Vec<FaultMark>,
    ended: (Sender<Ended>, Receiver<Ended>),
    running: usize,
    /// Marks of `all-return` whose fleet is not back yet: the mark and when the server was.
    returning: Vec<(usize, Instant)>,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Happened {
    /// The whole fleet was away, and the server is back: the storm begins.
    pub(crate) storm: bool,
}

impl Director {
    pub(crate) fn new(
        faults: Vec<Fault>,
        server: Option<Shared>,
        rate: f64,
        tenants: u16,
        backlog: u32,
    ) -> Self {
        Self {
            faults: faults.into_iter().peekable(),
            server,
            rate,
            tenants,
            backlog,
            marks: Vec::new(),
            ended: channel(),
            running: 0,
            returning: Vec::new(),
        }
    }

    /// Begins what is due, and notes what has ended.
    ///
    /// # Errors
    /// A fault of the server cannot be carried out, or a part has ended.
    pub(crate) fn look(&mut self, began: Instant, parts: &mut Parts) -> Result<Happened> {
        let mut happened = Happened::default();
        let now_s = began.elapsed().as_secs_f64();
        while self.running < SERVER_FAULTS_MAX
            && let Some(fault) = self.faults.next_if(|fault| fault.at_s <= now_s)
        {
            self.begin(fault, now_s, parts)?;
        }
        while let Ok(ended) = self.ended.1.try_recv() {
            self.running -= 1;
            let kind = self.marks[ended.mark].kind.clone();
            let detail = ended.outcome.with_context(|| format!("fault {kind}"))?;
            let mark = &mut self.marks[ended.mark];
            mark.until_s = ended.at.duration_since(began).as_secs_f64();
            mark.detail = format!("{}{detail}", mark.detail);
            if ended.is_back && kind == Kind::AllReturn.name() {
                self.returning.push((ended.mark, ended.at));
                happened.storm = true;
            }
        }
        Ok(happened)
    }

    /// The whole fleet is online again.
    pub(crate) fn all_online(&mut self, began: Instant) {
        for (mark, back) in self.returning.drain(..) {
            let mark = &mut self.marks[mark];
            mark.until_s = began.elapsed().as_secs_f64();
            mark.from_s = back.duration_since(began).as_secs_f64();
            let took_s = mark.until_s - mark.from_s;
            mark.detail = format!("{}; all online {took_s:.2} s after the server", mark.detail);
        }
    }

    /// Whether a fault of the server is still going on.
    pub(crate) fn is_busy(&self) -> bool {
        self.running > 0
    }

    fn begin(&mut self, fault: Fault, now_s: f64, parts: &mut Parts) -> Result<()> {
        let Fault { kind, for_s, seed, .. } = fault;
        let mut random = SmallRng::seed_from_u64(seed);
        let share_text = |share: f64| format!("{:.0} % of the devices", share * 100.0);
        let (order, until_s, detail) = match kind {
            Kind::ConnectionLoss => {
                (Some(Order::Cut { share: LOSS_SHARE, seed }), now_s, share_text(LOSS_SHARE))
            }
            Kind::SlowLinks => {
                let order = Order::Slow { share: SLOW_SHARE, bytes_per_s: SLOW_BYTES_PER_S, for_s, seed };
                (Some(order), now_s + for_s, format!("{}, {SLOW_BYTES_PER_S} B/s", share_text(SLOW_SHARE)))
            }
            Kind::ClockJumps => {
                let jump = JUMPS_US[random.random_range(0..JUMPS_US.len())];
                let offset_us = if jump == i64::MIN { -crate::engine::wall_clock_us() } else { jump };
                let order = Order::Clock { share: CLOCK_SHARE, offset_us, seed };
                (Some(order), now_s, format!("{}, by {} s", share_text(CLOCK_SHARE), offset_us / 1_000_000))
            }
            Kind::DuplicateSends => (
                Some(more(Extra::Copies, COPIES_PER_S, for_s, None)),
                now_s + for_s,
                format!("{COPIES_PER_S} a second"),
            ),
            Kind::PoisonedPayloads => (
                Some(more(Extra::Poison, POISON_PER_S, for_s, None)),
                now_s + for_s,
                format!("{POISON_PER_S} a second"),
            ),
            Kind::WildTenant => {
                // The watched devices' tenant stays as it is where there is another.
                let tenant = self.tenants - 1;
                let per_s = self.rate * WILD_FACTOR;
                let detail = format!("tenant {tenant} sends {per_s:.0} a second besides");
                (Some(more(Extra::Telemetry, per_s, for_s, Some(tenant))), now_s + for_s, detail)
            }
            Kind::HalfReturns => (
                Some(Order::Away { share: 0.5, for_s, seed }),
                now_s + for_s,
                "half of the fleet away".to_owned(),
            ),
            Kind::ServerKill => (None, now_s + for_s, format!("kill -9, down for {for_s:.1} s")),
            Kind::StoreOutage => (None, now_s + for_s, "the store's database is locked".to_owned()),
            Kind::AllReturn => {
                let detail =
                    format!("kill -9, down for {for_s:.1} s, {} records a device wait", self.backlog);
                (Some(Order::Backlog { records: self.backlog }), now_s + for_s, detail)
            }
        };
        let mark = FaultMark { kind: kind.name().to_owned(), from_s: now_s, until_s, detail };
        self.marks.push(mark);
        if kind.needs_own_server() {
            self.act_on_server(kind, for_s)?;
        }
        match order {
            Some(order) => parts.order(&order),
            None => Ok(()),
        }
    }

    /// A fault of the server, on a thread: the run goes on meanwhile.
    fn act_on_server(&mut self, kind: Kind, for_s: f64) -> Result<()> {
        let server = self.server.clone().context("this fault needs a server of the run's own (--server)")?;
        let (mark, told) = (self.marks.len() - 1, self.ended.0.clone());
        let lock = move |server: &Shared| -> Result<()> {
            let dir = server.lock().unwrap_or_else(PoisonError::into_inner).data_dir();
            let outage = StoreOutage::begin(&dir)?;
            std::thread::sleep(Duration::from_secs_f64(for_s));
            outage.end()
        };
        if kind != Kind::StoreOutage {
            // At once, so that what is ordered next finds it gone.
            server.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
        let act = move || {
            let outcome = if kind == Kind::StoreOutage {
                lock(&server).map(|()| String::new())
            } else {
                std::thread::sleep(Duration::from_secs_f64(for_s));
                let began = Instant::now();
                let started = server.lock().unwrap_or_else(PoisonError::into_inner).start_again();
                started.map(|()| format!(", started in {:.2} s", began.elapsed().as_secs_f64()))
            };
            let is_back = kind != Kind::StoreOutage && outcome.is_ok();
            // The run has ended by an error of its own.
            let _ = told.send(Ended { mark, at: Instant::now(), is_back, outcome });
        };
        self.running += 1;
        std::thread::Builder::new().name("fault".to_owned()).spawn(act).context("cannot start a thread")?;
        Ok(())
    }
}

fn more(extra: Extra, per_s: f64, for_s: f64, tenant: Option<u16>) -> Order {
    Order::More { extra, per_s, for_s, tenant }
}
