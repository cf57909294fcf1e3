//! Sends the queue to the server and frees what the server has.
//!
//! Started by [`crate::app`]; reads the queue, talks MQTT 5 over TLS through `client` (the only file that imports the
//! client library), decides through the pure `core`. Promise: QoS 1, at most 32 publishes in flight, live records
//! before the backlog, a birth after each connect, a state while something changes and whenever drops wait; a
//! record is released by its PUBACK or by a durable drop record, never otherwise. The backlog is sent as the server
//! gives credit for it (`credit`). Offline: waits with jitter, at first as far as the server said that its fleet
//! should be spread, and tries again for ever. The journal is told the release mark at most [`RELEASE_INTERVAL`] late and writes it within
//! 5 s more: a crash repeats what was acknowledged in that time, and the server knows it by queue_id and seq.

mod backoff;
mod client;
pub mod core;
pub mod credit;
mod lanes;
pub mod ranges;
mod session;

use self::core::Core;
use crate::clock::SharedClock;
use crate::metrics::Metrics;
use crate::queue::{Queue, QueueError};
use crate::supervisor::Stop;
pub use backoff::Backoff;
use client::LinkOptions;
use muster_journal::{Fs, RealFs};
use muster_wire::{Birth, Death, DeviceId, DownClass, Envelope, QueueId, TenantId, Topic, UpClass};
use rustls::ClientConfig;
use session::{End, Ended, Session};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How late the journal may be told the release mark; it persists the mark lazily, at most 5 s later.
pub const RELEASE_INTERVAL: Duration = Duration::from_millis(200);
/// A state report at least this often, also when nothing changed.
pub const STATE_INTERVAL_IDLE: Duration = Duration::from_secs(900);
/// The shortest time between two state reports.
pub const STATE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How long a stopping agent sends on what is accepted.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Where and as whom the uplink connects.
pub struct Settings {
    /// The server's host.
    pub host: String,
    /// The server's MQTT port.
    pub port: u16,
    /// What secures the connection.
    pub security: Security,
    /// The topics' tenant.
    pub tenant: TenantId,
    /// The topics' device.
    pub device: DeviceId,
    /// A device token, where no certificate tells who this is.
    pub token: Option<String>,
    /// Seconds.
    pub keep_alive_s: u16,
    /// The first and the longest wait between attempts.
    pub reconnect_delay: (Duration, Duration),
    /// A state report this often while something changes.
    pub state_interval: Duration,
    /// What birth says; its queues and drops are filled in.
    pub about: Birth,
}

/// What secures the connection; renewed while the uplink runs, for the next connection.
pub struct Security {
    /// None: plain TCP.
    pub tls: watch::Receiver<Option<Arc<ClientConfig>>>,
    /// Told when the server refused this device's certificate.
    pub refused: Arc<Notify>,
}

impl Security {
    /// One that nobody renews.
    #[must_use]
    pub fn fixed(tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls: watch::channel(tls).1, refused: Arc::default() }
    }
}

/// Waits until another certificate is there.
async fn renewed(tls: &mut watch::Receiver<Option<Arc<ClientConfig>>>) {
    if tls.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The uplink's task.
pub struct Uplink<F: Fs = RealFs> {
    queue: Queue<F>,
    clock: SharedClock,
    metrics: Metrics,
    stop: Stop,
    settings: Arc<Settings>,
    options: LinkOptions,
    topics: Topics,
    started: Instant,
}

/// The topics, formatted once.
struct Topics {
    telemetry: String,
    event: String,
    birth: String,
    state: String,
    /// Requests for credit, and what the server says to them.
    ask: String,
    credit: String,
}

/// A seed for jitter.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    if let Err(error) = getrandom::fill(&mut bytes) {
        tracing::warn!(%error, "no random bytes, retries keep time with the fleet");
    }
    u64::from_le_bytes(bytes)
}

/// The filter of everything that the server sends to a device: any class.
fn down_filter(tenant: &TenantId, device: &DeviceId) -> String {
    let topic = Topic::down(tenant, device, DownClass::Twin).to_string();
    topic.strip_suffix(DownClass::Twin.as_str()).map_or_else(|| topic.clone(), |prefix| format!("{prefix}+"))
}

impl<F: Fs> Uplink<F> {
    /// An uplink of `queue`; `stop` is raised once the pipelines are done.
    #[must_use]
    pub fn new(
        queue: Queue<F>,
        clock: SharedClock,
        metrics: Metrics,
        stop: Stop,
        settings: Arc<Settings>,
    ) -> Self {
        let (tenant, device) = (&settings.tenant, &settings.device);
        let topic = |class| Topic::up(tenant, device, class).to_string();
        let identity = format!("{tenant}/{device}");
        let options = LinkOptions {
            host: settings.host.clone(),
            port: settings.port,
            client_id: identity.clone(),
            keep_alive_s: settings.keep_alive_s,
            tls: settings.security.tls.borrow().clone(),
            credentials: settings.token.clone().map(|token| (identity, token)),
            will_topic: topic(UpClass::Death),
            subscription: down_filter(tenant, device),
        };
        let topics = Topics {
            telemetry: topic(UpClass::Telemetry),
            event: topic(UpClass::Event),
            birth: topic(UpClass::Birth),
            state: topic(UpClass::State),
            ask: topic(UpClass::Credit),
            credit: Topic::down(tenant, device, DownClass::Credit).to_string(),
        };
        Self { queue, clock, metrics, stop, settings, options, topics, started: Instant::now() }
    }

    /// Connects, sends, and connects again until the agent stops.
    ///
    /// # Errors
    /// The queue cannot be read or written.
    pub async fn run(mut self) -> Result<(), QueueError> {
        let seed = random_u64();
        let (delay_min, delay_max) = self.settings.reconnect_delay;
        let mut delay = Backoff::new(delay_min, delay_max, seed);
        let mut core = Core::new(self.queue.released(), !seed);
        let mut lanes = lanes::Lanes::open(&self.queue)?;
        let mut tls = self.settings.security.tls.clone();
        loop {
            self.options.tls = tls.borrow_and_update().clone();
            let death = Death { reason: "connection lost".into() }.encode();
            let will = self.direct(UpClass::Death, &death);
            let link = client::Link::open(&self.options, will);
            let End { ended, useful, spread } =
                Session::new(&mut self, &mut core, &mut lanes, link).run().await?;
            self.metrics.connected.set(0);
            let Ended::Lost { reason, refused } = ended else { return Ok(()) };
            if refused {
                self.settings.security.refused.notify_one();
            }
            self.metrics.disconnects.inc();
            if useful {
                delay.reset();
            }
            let wait = delay.first_wait_within(spread);
            tracing::warn!(reason, wait_ms = wait.as_millis(), "not connected, will try again");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = renewed(&mut tls) => {}
                () = self.stop.wait() => return Ok(()),
            }
        }
    }

    /// A message that is no record of the queue.
    fn direct(&self, class: UpClass, body: &[u8]) -> Vec<u8> {
        let measured_at_us = self.clock.now_us();
        Envelope { class, queue_id: QueueId::default(), seq: 0, measured_at_us, body }.encode()
    }
}

#[cfg(test)]
mod trials;
