//! The alert probe: waits on the live stream for the alert that an excursion opens.
//!
//! An excursion is known by the value that opened it ([`excursion_of`]), so an alert is matched to the right one whatever
//! came in between. What the stream missed (the server was restarted, the reader lagged) is looked up in the list of
//! alerts: at once where the stream says so, and each [`LIST_INTERVAL`] for what is overdue.

use super::{Board, GIVE_UP_AFTER, Observed, ProbeResult, WATCHED_MAX, Worker};
use crate::observe::handle::{Access, ServerHandle};
use crate::observe::http::{Client, HttpError};
use crate::observe::provision::{WrittenRule, excursion_of};
use crate::observe::sse::{LiveEvent, LiveStream};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// The longest wait for the stream to be open, at the start.
const OPEN_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two looks into the list of alerts, and the age of an excursion that is looked up there.
pub(super) const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// Pages of that list in one look, the newest alerts first.
const LIST_PAGES_MAX: usize = 20;
/// Alerts that came before their excursion was told of.
pub(super) const EARLY_MAX: usize = 4096;
/// The longest wait for one answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks at what is to be watched.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// An excursion whose alert to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertWatch {
    /// The device.
    pub device: String,
    /// Which excursion of it.
    pub excursion: u32,
    /// When its first message should be sent.
    pub intended: Instant,
}

/// A running probe; dropping it ends it.
pub struct AlertProbe(Worker<AlertWatch>);

impl AlertProbe {
    /// Starts it for one rule, and waits until the live stream is open.
    ///
    /// # Errors
    /// The stream does not open, or no thread can be started.
    pub fn start(server: &ServerHandle, access: &Access, rule: &WrittenRule) -> Result<Self> {
        let live = LiveStream::open(server, access, "alert")?;
        let began = Instant::now();
        while live.opened() == 0 {
            if began.elapsed() > OPEN_TIME_MAX {
                bail!("the live stream of {} did not open within {OPEN_TIME_MAX:?}", access.tenant);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        let client = Client::of(server, access).time_max(ANSWER_TIME_MAX);
        let path = access.path(&format!("alerts?rule={}&limit=500", rule.id));
        let matcher = Matcher::of(rule);
        let watcher = Watcher { live, client, path, matcher, listed: None };
        let work = move |board: &Board, incoming: &Receiver<AlertWatch>| watcher.run(board, incoming);
        Ok(Self(Worker::start("alert-probe", work).context("cannot start a thread")?))
    }

    /// Waits for an excursion's alert from now on. Never waits itself.
    pub fn watch(&self, watch: AlertWatch) {
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

/// What counts of an alert.
#[derive(Debug, Deserialize)]
pub(super) struct AlertView {
    device: String,
    rule_id: String,
    pub(super) rule_version: i64,
    value: Value,
}

/// A device's excursion.
type Key = (String, u32);

/// Who waits for what; pure.
pub(super) struct Matcher {
    rule: WrittenRule,
    waiting: HashMap<Key, Instant>,
    early: HashMap<Key, Instant>,
    early_order: VecDeque<Key>,
}

impl Matcher {
    pub(super) fn of(rule: &WrittenRule) -> Self {
        let (waiting, early, early_order) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self { rule: rule.clone(), waiting, early, early_order }
    }

    /// Takes a watch; tells its intended time and when its alert came, where it has. Too many wait: it comes back.
    pub(super) fn watch(&mut self, watch: AlertWatch) -> Result<Option<(Instant, Instant)>, AlertWatch> {
        let key = (watch.device.clone(), watch.excursion);
        // One that came before it was intended was opened by somebody else.
        if let Some(at) = self.early.remove(&key).filter(|at| *at >= watch.intended) {
            return Ok(Some((watch.intended, at)));
        }
        if self.waiting.len() >= WATCHED_MAX {
            return Err(watch);
        }
        self.waiting.insert(key, watch.intended);
        Ok(None)
    }

    /// Takes an alert; tells the intended time of the excursion that waited for it. One of another version of the
    /// rule is of an earlier run.
    pub(super) fn seen(&mut self, alert: AlertView, at: Instant) -> Option<Instant> {
        if alert.rule_id != self.rule.id || alert.rule_version != self.rule.version {
            return None;
        }
        let key = (alert.device, alert.value.as_f64().and_then(excursion_of)?);
        if let Some(intended) = self.waiting.remove(&key) {
            return Some(intended);
        }
        if self.early_order.len() >= EARLY_MAX {
            self.early_order.pop_front().and_then(|oldest| self.early.remove(&oldest));
        }
        // Its clearing comes on the stream, too: what counts is when it was seen first.
        if !self.early.contains_key(&key) {
            self.early_order.push_back(key.clone());
            self.early.insert(key, at);
        }
        None
    }

    /// Gives up what waits since before then; tells how many.
    pub(super) fn give_up(&mut self, before: Instant) -> u64 {
        let count = self.waiting.len();
        self.waiting.retain(|_, intended| *intended > before);
        (count - self.waiting.len()) as u64
    }

    fn oldest(&self) -> Option<Instant> {
        self.waiting.values().min().copied()
    }
}

struct Watcher {
    live: LiveStream,
    client: Client,
    path: String,
    matcher: Matcher,
    /// When the list was looked at.
    listed: Option<Instant>,
}

impl Watcher {
    fn run(mut self, board: &Board, incoming: &Receiver<AlertWatch>) {
        while !board.is_stopped() {
            self.receive(board, incoming);
            let event = self.live.next(LOOK_INTERVAL);
            // An alert that came at once may be of an excursion that was told of meanwhile.
            self.receive(board, incoming);
            if let Some(event) = event {
                self.take(board, &event);
            }
            let now = Instant::now();
            let is_long_ago = |then: Instant| now.saturating_duration_since(then) > LIST_INTERVAL;
            if self.listed.is_none_or(is_long_ago) && self.matcher.oldest().is_some_and(is_long_ago) {
                self.list(board);
            }
            if let Some(before) = now.checked_sub(GIVE_UP_AFTER) {
                board.lock().result.given_up += self.matcher.give_up(before);
            }
        }
        board.lock().result.waiting = (self.matcher.waiting.len() + incoming.try_iter().count()) as u64;
    }

    fn receive(&mut self, board: &Board, incoming: &Receiver<AlertWatch>) {
        for watch in incoming.try_iter() {
            match self.matcher.watch(watch) {
                Ok(None) => {}
                Ok(Some((intended, at))) => board.seen(intended, at),
                Err(_) => board.lock().result.not_watched += 1,
            }
        }
    }

    fn take(&mut self, board: &Board, event: &LiveEvent) {
        match event.kind.as_str() {
            "alert" => {
                let alert = serde_json::from_str(&event.data);
                if let Some(intended) = alert.ok().and_then(|alert| self.matcher.seen(alert, event.at)) {
                    board.seen(intended, event.at);
                }
            }
            "reset" => self.list(board),
            _ => {}
        }
    }

    /// Looks for what waits in the list of alerts.
    fn list(&mut self, board: &Board) {
        self.listed = Some(Instant::now());
        if self.matcher.waiting.is_empty() {
            return;
        }
        // What fails is looked up again when it is overdue.
        let _ = self.list_pages(board);
    }

    fn list_pages(&mut self, board: &Board) -> Result<(), HttpError> {
        let mut path = self.path.clone();
        for _ in 0..LIST_PAGES_MAX {
            let page: Page = self.client.get_as(&path)?;
            let at = Instant::now();
            for alert in page.items {
                let key =
                    alert.value.as_f64().and_then(excursion_of).map(|number| (alert.device.clone(), number));
                let is_waited_for = key.is_some_and(|key| self.matcher.waiting.contains_key(&key));
                if let Some(intended) = is_waited_for.then(|| self.matcher.seen(alert, at)).flatten() {
                    board.seen(intended, at);
                    board.lock().result.seen_late += 1;
                }
            }
            match page.next_cursor {
                Some(cursor) if !self.matcher.waiting.is_empty() => {
                    path = format!("{}&cursor={cursor}", self.path)
                }
                _ => break,
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<AlertView>,
    next_cursor: Option<String>,
}
