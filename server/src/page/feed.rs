//! From the store's commits to the live bus.
//!
//! The store consumer calls [`Feed::on_stored`] after each commit, on its own thread: it only notes what is newest
//! and returns. A task of its own publishes every [`FLUSH_EVERY`], so a metric shows at most five times a second
//! whatever a device sends. Values are kept for watched tenants only.
//!
//! Bounds, a tenant: [`DEVICES_MAX`] devices with something to show and [`VALUES_PER_DEVICE_MAX`] values of each (more are
//! counted in [`Feed::left_out`] and shown next time they come); [`DEVICES_PER_FLUSH`] devices of a tenant a flush,
//! the longest waiting first.

use crate::platform::live::{LiveBus, LiveKind};
use crate::platform::telemetry::{StoredBatch, StoredItem, StoredWhat};
use muster_wire::Value;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Between two flushes.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// Devices of one tenant that may wait to be shown.
pub const DEVICES_MAX: usize = 10_000;
/// Values (metrics and pipelines) of one device that may wait.
pub const VALUES_PER_DEVICE_MAX: usize = 200;
/// Devices of one tenant shown in one flush: with two kinds of event each, a fraction of a subscriber's queue.
pub const DEVICES_PER_FLUSH: usize = 50;

/// The feed; clones share it.
#[derive(Clone)]
pub struct Feed {
    bus: LiveBus,
    /// What stands below it in the log is of an earlier run of the server.
    first_position: u64,
    presence: Arc<Mutex<PresenceByTenant>>,
    waiting: Arc<Mutex<HashMap<Arc<str>, Waiting>>>,
    left_out: Arc<AtomicU64>,
}

/// Whether a device is connected, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether it is there.
    pub connected: bool,
    /// The server's time of its coming or going.
    pub since_us: i64,
}

/// By tenant, then device.
type PresenceByTenant = HashMap<Arc<str>, HashMap<Arc<str>, Presence>>;

/// One tenant's devices with something to show, the longest waiting first.
#[derive(Default)]
struct Waiting {
    order: VecDeque<Arc<str>>,
    devices: HashMap<Arc<str>, News>,
}

#[derive(Default)]
struct News {
    received_at_us: i64,
    values: BTreeMap<Arc<str>, Shown>,
    results: BTreeMap<String, ResultShown>,
    ledger: bool,
}

#[derive(Serialize)]
struct Shown {
    value: Value,
    at_us: i64,
}

#[derive(Serialize)]
struct ResultShown {
    kind: muster_wire::EventKind,
    label: String,
    score: f64,
    at_us: i64,
}

#[derive(Serialize)]
struct ReadingsJson<'a> {
    device: &'a str,
    received_at_us: i64,
    values: &'a BTreeMap<Arc<str>, Shown>,
}

#[derive(Serialize)]
struct ResultsJson<'a> {
    device: &'a str,
    received_at_us: i64,
    results: &'a BTreeMap<String, ResultShown>,
}

#[derive(Serialize)]
struct PresenceJson<'a> {
    device: &'a str,
    connected: bool,
    at_us: i64,
}

#[derive(Serialize)]
struct LedgerJson<'a> {
    device: &'a str,
    at_us: i64,
}

impl Feed {
    /// A feed into a bus. A server that crashed wrote no end of its connections, so nobody is there at the start, and
    /// what the log told before `first_position`, its end when it was opened, is not believed. Times would not do:
    /// `received_at` of a log whose clock was set back is ahead of the clock.
    #[must_use]
    pub fn new(bus: LiveBus, first_position: u64) -> Self {
        Self {
            bus,
            first_position,
            presence: Arc::default(),
            waiting: Arc::default(),
            left_out: Arc::default(),
        }
    }

    /// Whether a device is connected; none where it neither came nor went since the start.
    #[must_use]
    pub fn presence_of(&self, tenant: &str, device: &str) -> Option<Presence> {
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.get(tenant)?.get(device).copied()
    }

    /// Values that were not noted since a bound was reached.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Notes what a commit stored. Never waits.
    pub fn on_stored(&self, batch: &StoredBatch) {
        let mut watched: HashMap<&str, bool> = HashMap::new();
        for item in &batch.items {
            if let StoredWhat::Presence { connected } = item.what {
                self.presence(item, connected);
                continue;
            }
            if *watched.entry(&item.tenant).or_insert_with(|| self.bus.is_watched(&item.tenant)) {
                self.note(item);
            }
        }
    }

    fn presence(&self, item: &StoredItem, connected: bool) {
        if item.position < self.first_position {
            return;
        }
        let since_us = item.received_at_us;
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = presence.entry(item.tenant.clone()).or_default();
        devices.insert(item.device.clone(), Presence { connected, since_us });
        drop(presence);
        let json = PresenceJson { device: &item.device, connected, at_us: since_us };
        self.publish(&item.tenant, LiveKind::Presence, &item.device, &json);
    }

    fn note(&self, item: &StoredItem) {
        let mut waiting = self.lock();
        let tenant = waiting.entry(item.tenant.clone()).or_default();
        if !tenant.devices.contains_key(&item.device) {
            if tenant.devices.len() >= DEVICES_MAX {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                return;
            }
            tenant.order.push_back(item.device.clone());
        }
        let news = tenant.devices.entry(item.device.clone()).or_default();
        news.received_at_us = news.received_at_us.max(item.received_at_us);
        let is_full = news.values.len() + news.results.len() >= VALUES_PER_DEVICE_MAX;
        match &item.what {
            StoredWhat::Reading { metric, ts_us, value } => {
                if is_full && !news.values.contains_key(metric) {
                    self.left_out.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                news.values.insert(metric.clone(), Shown { value: value.clone(), at_us: *ts_us });
            }
            StoredWhat::Event { measured_at_us, pipeline, kind, label, score } => {
                if is_full && !news.results.contains_key(pipeline) {
                    self.left_out.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                let shown =
                    ResultShown { kind: *kind, label: label.clone(), score: *score, at_us: *measured_at_us };
                news.results.insert(pipeline.clone(), shown);
            }
            StoredWhat::Ledger => news.ledger = true,
            StoredWhat::Presence { .. } => {}
        }
    }

    /// Publishes what waits, at most [`DEVICES_PER_FLUSH`] devices a tenant.
    pub fn flush(&self) {
        let mut ready = Vec::new();
        self.lock().retain(|tenant, waiting| {
            for _ in 0..DEVICES_PER_FLUSH {
                let Some(device) = waiting.order.pop_front() else { break };
                if let Some(news) = waiting.devices.remove(&device) {
                    ready.push((tenant.clone(), device, news));
                }
            }
            !waiting.devices.is_empty()
        });
        for (tenant, device, news) in ready {
            let received_at_us = news.received_at_us;
            if !news.values.is_empty() {
                let json = ReadingsJson { device: &device, received_at_us, values: &news.values };
                self.publish(&tenant, LiveKind::Reading, &device, &json);
            }
            if !news.results.is_empty() {
                let json = ResultsJson { device: &device, received_at_us, results: &news.results };
                self.publish(&tenant, LiveKind::Event, &device, &json);
            }
            if news.ledger {
                let json = LedgerJson { device: &device, at_us: received_at_us };
                self.publish(&tenant, LiveKind::Ledger, &device, &json);
            }
        }
    }

    /// Flushes until told to stop.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => self.flush(),
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    fn publish(&self, tenant: &str, kind: LiveKind, device: &str, json: &impl Serialize) {
        match serde_json::to_string(json) {
            Ok(json) => {
                self.bus.publish(tenant, kind, Some(device), &json);
            }
            Err(error) => tracing::error!(%error, "a live event cannot be written"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
