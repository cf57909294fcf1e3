//! The stored probe: asks for a reading until it is there.
//!
//! One thread, one connection. First look [`FIRST_LOOK`] after the intended time, then each [`LOOK_INTERVAL`] up to
//! [`CLOSE_LOOKS`] after it, then less and less often, up to [`LOOK_INTERVAL_MAX`], and once more when the run ends.

use super::{Board, GIVE_UP_AFTER, Observed, ProbeResult, WATCHED_MAX, Worker};
use crate::observe::handle::{Access, ServerHandle};
use crate::observe::http::{Client, HttpError};
use anyhow::{Context, Result};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// The first look, after the intended time.
const FIRST_LOOK: Duration = Duration::from_millis(3);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long it looks that often.
const CLOSE_LOOKS: Duration = Duration::from_millis(100);
/// Between two looks at one that is late.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(250);
/// The longest wait for one answer: a frozen server is asked again.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// For the last looks at all that are late when it ends.
const LAST_LOOKS_MAX: Duration = Duration::from_secs(5);
/// Between two looks at whether to stop.
const IDLE: Duration = Duration::from_millis(50);

/// A message to look for.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWatch {
    /// The device that sends it.
    pub device: String,
    /// A metric of it...
    pub metric: String,
    /// ... with a value of its own: the serial.
    pub value: f64,
    /// Its time.
    pub measured_at_us: i64,
    /// When it should be sent.
    pub intended: Instant,
}

/// A running probe; dropping it ends it.
pub struct StoredProbe(pub(super) Worker<StoredWatch>);

impl StoredProbe {
    /// Starts it for one tenant.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(server: &ServerHandle, access: &Access) -> Result<Self> {
        let client = Client::of(server, access).time_max(ANSWER_TIME_MAX);
        let access = access.clone();
        let work = move |board: &Board, incoming: &Receiver<StoredWatch>| {
            Looker { access, client, late: Vec::new() }.run(board, incoming);
        };
        Ok(Self(Worker::start("stored-probe", work).context("cannot start a thread")?))
    }

    /// Looks for a message from now on. Never waits.
    pub fn watch(&self, watch: StoredWatch) {
        self.0.watch(watch);
    }

    /// What was seen since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Observed> {
        self.0.take()
    }

    /// Ends it.
    #[must_use]
    pub fn finish(self) -> ProbeResult {
        self.0.finish()
    }
}

struct Late {
    watch: StoredWatch,
    next: Instant,
    interval: Duration,
}

impl Late {
    fn of(watch: StoredWatch) -> Self {
        let next = watch.intended + FIRST_LOOK;
        Self { watch, next, interval: LOOK_INTERVAL }
    }
}

struct Looker {
    access: Access,
    client: Client,
    late: Vec<Late>,
}

impl Looker {
    fn run(mut self, board: &Board, incoming: &Receiver<StoredWatch>) {
        while !board.is_stopped() {
            self.receive(board, incoming);
            board.lock().result.waiting = self.late.len() as u64;
            let now = Instant::now();
            let mut at = 0;
            while at < self.late.len() && !board.is_stopped() {
                if self.late[at].next > now || !self.look(board, at) {
                    at += 1;
                }
            }
        }
        self.late.extend(incoming.try_iter().map(Late::of));
        self.look_once_more(board);
        board.lock().result.waiting = self.late.len() as u64;
    }

    /// What was stored since the last look at it is seen, though the next one was not due.
    fn look_once_more(&mut self, board: &Board) {
        let (now, mut at) = (Instant::now(), 0);
        while at < self.late.len() && now.elapsed() < LAST_LOOKS_MAX {
            let is_sent = self.late[at].watch.intended <= now;
            if !is_sent || !self.look(board, at) {
                at += 1;
            }
        }
    }

    /// Takes what came, and waits until something is due.
    fn receive(&mut self, board: &Board, incoming: &Receiver<StoredWatch>) {
        loop {
            let due = self.late.iter().map(|late| late.next).min();
            let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()).min(IDLE));
            let got = if wait.is_zero() {
                incoming.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else {
                incoming.recv_timeout(wait)
            };
            match got {
                Ok(_) if self.late.len() >= WATCHED_MAX => board.lock().result.not_watched += 1,
                Ok(watch) => self.late.push(Late::of(watch)),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => return std::thread::sleep(wait),
            }
        }
    }

    /// Looks for one; true where it is done with it.
    fn look(&mut self, board: &Board, at: usize) -> bool {
        let is_there = self.is_there(at).unwrap_or(false);
        let now = Instant::now();
        let late = &mut self.late[at];
        let age = now.saturating_duration_since(late.watch.intended);
        if is_there {
            board.seen(late.watch.intended, now);
        } else if age > GIVE_UP_AFTER {
            board.lock().result.given_up += 1;
        } else {
            if age > CLOSE_LOOKS {
                late.interval = (late.interval * 2).min(LOOK_INTERVAL_MAX);
            }
            late.next = now + late.interval;
            return false;
        }
        self.late.swap_remove(at);
        true
    }

    fn is_there(&mut self, at: usize) -> Result<bool, HttpError> {
        let StoredWatch { device, metric, value, measured_at_us: from, .. } = &self.late[at].watch;
        let to = from.saturating_add(1);
        let path = format!("devices/{device}/readings?metric={metric}&from={from}&to={to}&limit=100");
        let found = self.client.get(&self.access.path(&path))?;
        let mut points = found["points"].as_array().into_iter().flatten();
        Ok(points
            .any(|point| point["value"].as_f64().is_some_and(|found| found.to_bits() == value.to_bits())))
    }
}
