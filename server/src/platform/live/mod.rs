//! The bounded live bus behind the event stream (SSE).
//!
//! Who calls me: `page::feed` (readings, events), `alerts`, `gateway` (presence) and `ingest` (ledger) publish;
//! `page::stream` subscribes for a browser. I call nobody.
//!
//! Promise: [`LiveBus::publish`] never waits. Every tenant has a replay ring of the newest [`RING_EVENTS_MAX`]
//! events (at most [`RING_BYTES_MAX`] bytes), so that a client that reconnects with its last id misses nothing
//! that the ring still holds, and is told [`Resume::Gap`] otherwise. A subscriber whose queue
//! ([`QUEUE_EVENTS_MAX`]) is full is cut, told why, and counted: it reconnects and replays.
//! This is a view: nothing here is durable, and nobody may build state on it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events that a tenant's replay ring holds.
pub const RING_EVENTS_MAX: usize = 1024;
/// Bytes of JSON that a tenant's replay ring holds.
pub const RING_BYTES_MAX: usize = 256 * 1024;
/// Events that may wait for one subscriber; one more cuts it.
pub const QUEUE_EVENTS_MAX: usize = 256;
/// Subscribers of one tenant.
pub const SUBSCRIBERS_PER_TENANT_MAX: usize = 64;
/// Tenants with a ring; further ones are not replayed or watched.
pub const TENANTS_MAX: usize = 4096;
/// How long a tenant counts as watched after its last subscriber left, so that a reconnect finds its events.
const WATCH_LINGER: Duration = Duration::from_secs(60);

/// What an event is about; the SSE event name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiveKind {
    /// The newest value of a metric.
    Reading,
    /// An inference result.
    Event,
    /// An alert opened or changed.
    Alert,
    /// A device connected or left.
    Presence,
    /// New totals of the ledger.
    Ledger,
}

impl LiveKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Reading, Self::Event, Self::Alert, Self::Presence, Self::Ledger];

    /// The stable text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Event => "event",
            Self::Alert => "alert",
            Self::Presence => "presence",
            Self::Ledger => "ledger",
        }
    }

    /// Parses the stable text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    fn bit(self) -> u8 {
        1 << (self as u8)
    }
}

/// An event's place on the bus; another `epoch` is another run of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// Random, made with the bus.
    pub epoch: u32,
    /// Counts from 1 over all tenants.
    pub seq: u64,
}

impl EventId {
    /// Parses what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, seq) = text.split_once('-')?;
        Some(Self { epoch: u32::from_str_radix(epoch, 16).ok()?, seq: seq.parse().ok()? })
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{}", self.epoch, self.seq)
    }
}

/// One thing that happened, as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveEvent {
    /// Its place on the bus.
    pub id: EventId,
    /// Whose.
    pub tenant: Arc<str>,
    /// About what.
    pub kind: LiveKind,
    /// Which device, where it is about one.
    pub device: Option<Arc<str>>,
    /// The body.
    pub json: Arc<str>,
}

/// What a subscriber wants to see.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    kinds: Option<u8>,
    device: Option<Box<str>>,
    devices: Option<Arc<HashSet<Box<str>>>>,
}

impl Filter {
    /// Only these kinds; none given means all.
    #[must_use]
    pub fn kinds(mut self, kinds: &[LiveKind]) -> Self {
        self.kinds = (!kinds.is_empty()).then(|| kinds.iter().fold(0, |bits, kind| bits | kind.bit()));
        self
    }

    /// Only this device's.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.device = Some(device.into());
        self
    }

    /// Only what is about one of these devices.
    #[must_use]
    pub fn devices(mut self, devices: HashSet<Box<str>>) -> Self {
        self.devices = Some(Arc::new(devices));
        self
    }

    fn wants(&self, event: &LiveEvent) -> bool {
        self.kinds.is_none_or(|bits| bits & event.kind.bit() != 0)
            && self.device.as_deref().is_none_or(|device| event.device.as_deref() == Some(device))
            && self
                .devices
                .as_ref()
                .is_none_or(|devices| event.device.as_deref().is_some_and(|device| devices.contains(device)))
    }
}

/// How a new subscription joins what was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// No last id was given.
    Fresh,
    /// Everything after the last id comes first.
    Replayed(usize),
    /// Events after the last id are gone: load the state again.
    Gap,
}

/// Why a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its queue was full.
    Slow,
    /// The bus is gone.
    Closed,
}

/// Why a subscription was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The tenant's bound is reached.
    #[error("the tenant has {SUBSCRIBERS_PER_TENANT_MAX} live streams open, which is the most")]
    Subscribers,
    /// The server's bound is reached.
    #[error("the server shows {TENANTS_MAX} other tenants live, which is the most")]
    Tenants,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveStats {
    /// Events published.
    pub published: u64,
    /// Subscribers cut since their queue was full.
    pub cut_slow: u64,
    /// Events of tenants beyond [`TENANTS_MAX`]: nobody sees them.
    pub left_out: u64,
    /// Subscribers now.
    pub subscribers: u64,
}

/// The bus; clones share it.
#[derive(Clone)]
pub struct LiveBus {
    inner: Arc<Inner>,
}

struct Inner {
    epoch: u32,
    tenants: Mutex<HashMap<Arc<str>, Channel>>,
    seq: AtomicU64,
    cut_slow: AtomicU64,
    left_out: AtomicU64,
    subscribers: AtomicU64,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Channel {
    ring: VecDeque<Arc<LiveEvent>>,
    ring_bytes: usize,
    /// The newest seq that left the ring.
    forgotten: u64,
    subscribers: Vec<Subscriber>,
    watched_until: Option<Instant>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Arc<LiveEvent>>,
    cut_slow: Arc<AtomicBool>,
}

impl Default for LiveBus {
    fn default() -> Self {
        Self::new()
    }
}

impl LiveBus {
    /// An empty bus with an epoch of its own.
    #[must_use]
    pub fn new() -> Self {
        let epoch = u32::from_le_bytes(super::secret::random_bytes());
        let (seq, cut_slow, left_out) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let (tenants, subscribers, is_closed) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { epoch, tenants, seq, cut_slow, left_out, subscribers, is_closed }) }
    }

    /// Puts an event into the tenant's ring and every fitting subscriber's queue. Never waits.
    pub fn publish(&self, tenant: &str, kind: LiveKind, device: Option<&str>, json: &str) -> EventId {
        let mut tenants = self.lock();
        let seq = self.inner.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let id = EventId { epoch: self.inner.epoch, seq };
        let Some((name, channel)) = channel(&mut tenants, tenant) else {
            self.inner.left_out.fetch_add(1, Ordering::Relaxed);
            return id;
        };
        let event =
            Arc::new(LiveEvent { id, tenant: name, kind, device: device.map(Into::into), json: json.into() });
        channel.subscribers.retain(|subscriber| self.deliver(subscriber, &event));
        channel.remember(event);
        id
    }

    /// Whether somebody watches the tenant now or did within the last minute. Publishers of much (readings)
    /// ask first, so that an unwatched fleet costs nothing.
    #[must_use]
    pub fn is_watched(&self, tenant: &str) -> bool {
        self.lock().get(tenant).is_some_and(|channel| {
            !channel.subscribers.is_empty()
                || channel.watched_until.is_some_and(|until| Instant::now() < until)
        })
    }

    /// Joins a tenant's events; those after `last` come first where the ring still holds them.
    ///
    /// # Errors
    /// The tenant has [`SUBSCRIBERS_PER_TENANT_MAX`] already, or the server [`TENANTS_MAX`] others.
    pub fn subscribe(
        &self,
        tenant: &str,
        filter: Filter,
        last: Option<EventId>,
    ) -> Result<Subscription, SubscribeError> {
        let mut tenants = self.lock();
        let (_, channel) = channel(&mut tenants, tenant).ok_or(SubscribeError::Tenants)?;
        channel.subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        if channel.subscribers.len() >= SUBSCRIBERS_PER_TENANT_MAX {
            return Err(SubscribeError::Subscribers);
        }
        let (resume, replay) = channel.replay(self.inner.epoch, last, &filter);
        let (sender, queue) = mpsc::channel(QUEUE_EVENTS_MAX);
        let cut_slow = Arc::new(AtomicBool::new(false));
        if !self.inner.is_closed.load(Ordering::Acquire) {
            channel.subscribers.push(Subscriber { filter, queue: sender, cut_slow: cut_slow.clone() });
        }
        self.inner.subscribers.fetch_add(1, Ordering::Relaxed);
        let leave = Leave { bus: self.clone(), tenant: tenant.into() };
        Ok(Subscription { resume, replay, queue, cut_slow, leave })
    }

    /// Ends every subscription, so that open streams do not hold up a stop. Later ones end at once.
    pub fn close(&self) {
        self.inner.is_closed.store(true, Ordering::Release);
        self.lock().values_mut().for_each(|channel| channel.subscribers.clear());
    }

    /// The id that the newest event has.
    #[must_use]
    pub fn newest(&self) -> EventId {
        EventId { epoch: self.inner.epoch, seq: self.inner.seq.load(Ordering::Relaxed) }
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> LiveStats {
        LiveStats {
            published: self.inner.seq.load(Ordering::Relaxed),
            cut_slow: self.inner.cut_slow.load(Ordering::Relaxed),
            left_out: self.inner.left_out.load(Ordering::Relaxed),
            subscribers: self.inner.subscribers.load(Ordering::Relaxed),
        }
    }

    fn deliver(&self, subscriber: &Subscriber, event: &Arc<LiveEvent>) -> bool {
        if !subscriber.filter.wants(event) {
            return !subscriber.queue.is_closed();
        }
        match subscriber.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                subscriber.cut_slow.store(true, Ordering::Release);
                self.inner.cut_slow.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Channel>> {
        // A panic cannot leave a channel half changed in a way that matters to a view.
        self.inner.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn channel<'a>(
    tenants: &'a mut HashMap<Arc<str>, Channel>,
    tenant: &str,
) -> Option<(Arc<str>, &'a mut Channel)> {
    let name = match tenants.get_key_value(tenant) {
        Some((name, _)) => name.clone(),
        None if tenants.len() >= TENANTS_MAX => return None,
        None => Arc::from(tenant),
    };
    Some((name.clone(), tenants.entry(name).or_default()))
}

impl Channel {
    fn remember(&mut self, event: Arc<LiveEvent>) {
        self.ring_bytes += event.json.len();
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS_MAX || self.ring_bytes > RING_BYTES_MAX {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.json.len();
            self.forgotten = oldest.id.seq;
        }
    }

    fn replay(
        &self,
        epoch: u32,
        last: Option<EventId>,
        filter: &Filter,
    ) -> (Resume, VecDeque<Arc<LiveEvent>>) {
        let Some(last) = last else { return (Resume::Fresh, VecDeque::new()) };
        if last.epoch != epoch || last.seq < self.forgotten {
            return (Resume::Gap, VecDeque::new());
        }
        let after = self.ring.iter().filter(|event| event.id.seq > last.seq && filter.wants(event));
        let replay: VecDeque<_> = after.cloned().collect();
        (Resume::Replayed(replay.len()), replay)
    }
}

/// A place in the audience; dropping it leaves.
pub struct Subscription {
    resume: Resume,
    replay: VecDeque<Arc<LiveEvent>>,
    queue: mpsc::Receiver<Arc<LiveEvent>>,
    cut_slow: Arc<AtomicBool>,
    leave: Leave,
}

struct Leave {
    bus: LiveBus,
    tenant: Arc<str>,
}

impl Subscription {
    /// How it joined what was before.
    #[must_use]
    pub fn resume(&self) -> Resume {
        self.resume
    }

    /// The next event: replay first, then as they come. Cancel safe.
    ///
    /// # Errors
    /// The subscription was cut; events that were queued before the cut still come first.
    pub async fn next(&mut self) -> Result<Arc<LiveEvent>, Cut> {
        if let Some(event) = self.replay.pop_front() {
            return Ok(event);
        }
        let slow = || if self.cut_slow.load(Ordering::Acquire) { Cut::Slow } else { Cut::Closed };
        self.queue.recv().await.ok_or_else(slow)
    }

    /// The tenant that it listens to.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.leave.tenant
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.bus.inner.subscribers.fetch_sub(1, Ordering::Relaxed);
        if let Some(channel) = self.bus.lock().get_mut(&self.tenant) {
            channel.watched_until = Some(Instant::now() + WATCH_LINGER);
        }
    }
}

#[cfg(test)]
mod tests;
