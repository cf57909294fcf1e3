//! The MQTT front: identify, authorise, limit, append, acknowledge after the fsync.
//!
//! Started by `app`. It calls the event log (append, durable mark, one following reader) and the devices'
//! directory; nothing calls back but the journal's writer thread, which tells the durable mark.
//!
//! ```text
//! listener -> connect -> connection -> publish (pure) -> EventLog::append
//!                         ^  ^   ^------ acks   <- EventLog::on_durable
//!                         |  |---------- stalls (log full, over a rate)
//!                         |  |---------- parked (over a quota that only time or people change)
//!                         |  '---------- credit (who may send its backlog)
//!                         '------------- fanout <- EventLog::reader      live: names, keep-alive, cut-off
//! ```
//!
//! Promise: a QoS 1 PUBLISH is acknowledged only when its record is durable, or with the reason why it is
//! not stored; acknowledgements leave in PUBLISH order. Nothing a client sends panics the gateway, disturbs
//! another client or is buffered without bound. When the log is full nothing is lost and nobody is
//! disconnected: see `connection` and `stalls`. When the process dies, what was not acknowledged is sent again.
//!
//! Architecture invariant: only `codec` touches the MQTT codec's decoder; nothing here decodes a body, but for the
//! requests of `up/credit`, which are addressed to the gateway (ADR 0013).
//!
//! Limits stand in [`Config`] and as named constants in the modules.

mod acks;
#[cfg(test)]
mod asyncapi_tests;
mod codec;
#[cfg(test)]
mod codec_tests;
mod connect;
mod connection;
#[cfg(test)]
mod connection_tests;
mod credit;
mod down;
mod encode;
mod fanout;
mod identity;
mod known;
mod link;
mod listener;
mod live;
mod metrics;
mod parked;
mod publish;
#[cfg(test)]
mod quota_tests;
mod rate;
mod reason;
mod stalls;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use known::KnownCertificates;
pub use rate::RateLimit;
pub use tls::{ServerCertificate, TlsError, provider, server_config};

use crate::devices::directory::Directory;
use crate::platform::clock::SharedClock;
use crate::platform::ends::Ends;
use crate::platform::event_log::{AppendError, EventLog, Kind, NewRecord};
use crate::usage::{Board, TICKS_PER_S};
use muster_wire::{DeviceId, DownClass, PUBLISH_BYTES_MAX, TenantId};
use reason::CloseReason;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// How long a stopping gateway waits for its connections to end.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What the gateway listens on and allows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address for MQTT over TLS.
    pub tls_listen: Option<SocketAddr>,
    /// Address for plain MQTT: loopback and benches.
    pub plain_listen: Option<SocketAddr>,
    /// Threads that serve connections.
    pub worker_threads: usize,
    /// Connections past their CONNACK.
    pub connections_max: usize,
    /// Sockets of one listener that have not yet sent their CONNECT.
    pub early_max: usize,
    /// Bytes of one MQTT packet.
    pub packet_bytes_max: usize,
    /// Unacknowledged QoS 1 PUBLISHes of an MQTT 5 client.
    pub receive_maximum: u16,
    /// The longest keep-alive that an MQTT 5 client gets.
    pub keep_alive_s_max: u16,
    /// Messages a device may send.
    pub rate: RateLimit,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for the CONNECT, after the handshake.
    pub connect_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tls_listen: None,
            plain_listen: None,
            worker_threads: 1,
            connections_max: 15_800,
            early_max: 1_024,
            packet_bytes_max: PUBLISH_BYTES_MAX,
            receive_maximum: 32,
            keep_alive_s_max: 1_200,
            rate: RateLimit { per_s: 2_000, burst: 20_000 },
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// What the gateway works with.
pub struct Dependencies {
    /// Takes the messages. The gateway sets its `on_durable`.
    pub log: EventLog,
    /// Knows who may connect.
    pub directory: Arc<Directory>,
    /// For certificates' and tokens' expiry.
    pub clock: SharedClock,
    /// What each tenant may send.
    pub quotas: Arc<Board>,
    /// From [`server_config`]; needed with `tls_listen`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Is told why devices' connections end.
    pub ends: Arc<Ends>,
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The threads cannot be started.
    #[error("gateway threads cannot be started")]
    Threads(#[source] std::io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// `tls_listen` without a certificate.
    #[error("mqtt.tls_listen needs a server certificate")]
    NoCertificate,
    /// The metrics are registered already.
    #[error("gateway metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// Why a message was not queued for a device. The caller keeps it and tries again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The device is not connected here.
    #[error("device is not connected")]
    NotConnected,
    /// The device did not subscribe to the class.
    #[error("device is not subscribed")]
    NotSubscribed,
    /// The device reads more slowly than it is sent to.
    #[error("device's queue is full")]
    QueueFull,
}

/// What all parts of the gateway share.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) log: EventLog,
    pub(crate) directory: Arc<Directory>,
    pub(crate) clock: SharedClock,
    pub(crate) ends: Arc<Ends>,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) live: live::Live,
    pub(crate) acks: acks::Acks,
    pub(crate) stalls: stalls::Stalls,
    pub(crate) parked: parked::Parked,
    pub(crate) fanout: fanout::Fanout,
    pub(crate) credits: credit::Credits,
    pub(crate) quotas: Arc<Board>,
    /// The rate limit in force: messages a second in the upper half, the burst in the lower.
    rate: AtomicU64,
    pub(crate) tick: AtomicU32,
    pub(crate) stopping: AtomicBool,
    pub(crate) next_client_number: AtomicU64,
}

impl Core {
    fn new(
        config: Config,
        dependencies: Dependencies,
        registry: &prometheus::Registry,
    ) -> Result<Self, GatewayError> {
        let metrics = metrics::Metrics::register(registry)?;
        let Dependencies { log, directory, clock, quotas, tls: _, ends } = dependencies;
        quotas.at(clock.now_us());
        Ok(Self {
            rate: AtomicU64::new(packed(config.rate)),
            config,
            log,
            directory,
            clock,
            ends,
            metrics,
            live: live::Live::default(),
            acks: acks::Acks::default(),
            stalls: stalls::Stalls::default(),
            parked: parked::Parked::default(),
            fanout: fanout::Fanout::default(),
            credits: credit::Credits::default(),
            quotas,
            tick: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            next_client_number: AtomicU64::new(1),
        })
    }

    /// The coarse clock.
    pub(crate) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// The rate limit in force.
    pub(crate) fn rate(&self) -> RateLimit {
        let both = self.rate.load(Ordering::Relaxed);
        #[allow(clippy::cast_possible_truncation, reason = "each half is a u32")]
        RateLimit { per_s: (both >> 32) as u32, burst: both as u32 }
    }

    /// Appends to the log and lets `stalls` know how it went.
    pub(crate) fn append(&self, record: &NewRecord<'_>) -> Result<u64, AppendError> {
        let appended = self.log.append(record);
        self.stalls.note(appended.map(|_| ()), self.tick());
        if let Ok(position) = appended
            && record.kind == Kind::Message
        {
            self.credits.probe.appended(position, || self.log.durable_next());
        }
        appended
    }
}

fn packed(rate: RateLimit) -> u64 {
    u64::from(rate.per_s) << 32 | u64::from(rate.burst)
}

/// Changes the rate limit of a running gateway, for connections that are up too.
#[derive(Clone, Default)]
pub struct RateSetter(std::sync::Weak<Core>);

impl RateSetter {
    /// Puts another limit in force.
    pub fn set(&self, rate: RateLimit) {
        if let Some(core) = self.0.upgrade() {
            core.rate.store(packed(rate), Ordering::Relaxed);
        }
    }
}

/// A running gateway. Dropping it stops it without goodbye; [`Gateway::stop`] says goodbye first.
pub struct Gateway {
    core: Arc<Core>,
    runtime: Option<Runtime>,
    tls_address: Option<SocketAddr>,
    plain_address: Option<SocketAddr>,
}

impl Gateway {
    /// Starts listening, on threads of its own.
    ///
    /// # Errors
    /// An address in use, no certificate for TLS, or metrics registered twice.
    pub fn start(
        config: Config,
        dependencies: Dependencies,
        registry: &prometheus::Registry,
    ) -> Result<Self, GatewayError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.worker_threads.max(1))
            .thread_name("gateway")
            .enable_all()
            .build()
            .map_err(GatewayError::Threads)?;
        let tls = dependencies.tls.clone();
        let core = Arc::new(Core::new(config, dependencies, registry)?);
        let mut gateway = Self { core, runtime: Some(runtime), tls_address: None, plain_address: None };
        gateway.listen(tls)?;
        gateway.run()?;
        Ok(gateway)
    }

    fn listen(&mut self, tls: Option<Arc<rustls::ServerConfig>>) -> Result<(), GatewayError> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let _inside = runtime.enter();
        let bind = |address: SocketAddr| {
            let listener = listener::bind(address);
            let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
            bound.map_err(|source| GatewayError::Listen { address, source })
        };
        if let Some(address) = self.core.config.plain_listen {
            let (local, listener) = bind(address)?;
            self.plain_address = Some(local);
            runtime.spawn(listener::accept(self.core.clone(), listener, None));
        }
        if let Some(address) = self.core.config.tls_listen {
            let acceptor = TlsAcceptor::from(tls.ok_or(GatewayError::NoCertificate)?);
            let (local, listener) = bind(address)?;
            self.tls_address = Some(local);
            runtime.spawn(listener::accept(self.core.clone(), listener, Some(acceptor)));
        }
        Ok(())
    }

    fn run(&self) -> Result<(), GatewayError> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let weak = Arc::downgrade(&self.core);
        self.core.log.on_durable(Box::new(move |durable_next| {
            if let Some(core) = weak.upgrade() {
                core.credits.probe.durable(durable_next);
                core.acks.tell(durable_next);
            }
        }));
        self.core.acks.tell(self.core.log.durable_next());
        runtime.spawn(acks::Acks::run(self.core.clone()));
        runtime.spawn(stalls::Stalls::run(self.core.clone()));
        runtime.spawn(credit::Credits::run(self.core.clone()));
        runtime.spawn(live::sweep(self.core.clone()));
        runtime.spawn(live::follow_directory(self.core.clone()));
        let core = self.core.clone();
        let thread = std::thread::Builder::new().name("gateway-fanout".to_owned());
        thread.spawn(move || fanout::Fanout::run(&core)).map_err(GatewayError::Threads)?;
        Ok(())
    }

    /// Changes the rate limit later.
    #[must_use]
    pub fn rate_setter(&self) -> RateSetter {
        RateSetter(Arc::downgrade(&self.core))
    }

    /// The bound address for MQTT over TLS.
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// The bound address for plain MQTT.
    #[must_use]
    pub fn plain_address(&self) -> Option<SocketAddr> {
        self.plain_address
    }

    /// Connections that are up.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.core.live.len()
    }

    /// Whether a device is connected.
    #[must_use]
    pub fn is_connected(&self, tenant: &TenantId, device: &DeviceId) -> bool {
        self.core.live.find(&live::device_name(tenant.as_str(), device.as_str())).is_some()
    }

    /// Queues a message for a device that is connected and subscribed. Queued is not received: what must
    /// arrive is a row of the caller's, sent again on the next connect.
    ///
    /// # Errors
    /// Why it was not queued.
    pub fn deliver(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        class: DownClass,
        payload: &[u8],
    ) -> Result<(), DeliverError> {
        let name = live::device_name(tenant.as_str(), device.as_str());
        let link = self.core.live.find(&name).ok_or(DeliverError::NotConnected)?;
        let topic = publish::down_topic(&name, class).into();
        let message = Arc::new(link::Message { topic, payload: payload.into() });
        match link.send_down(publish::down_bit(class), &message) {
            None => Err(DeliverError::NotSubscribed),
            Some(true) => Ok(()),
            Some(false) => {
                self.core.metrics.sent(metrics::Sent::Overflow);
                Err(DeliverError::QueueFull)
            }
        }
    }

    /// Says goodbye to every client and stops. Blocks for up to two seconds: not for async callers.
    pub fn stop(mut self) {
        self.core.stopping.store(true, Ordering::Release);
        let Some(runtime) = self.runtime.take() else { return };
        let core = self.core.clone();
        runtime.block_on(async move {
            core.live.close_all(CloseReason::ShuttingDown);
            let ended = async {
                while core.live.len() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _all_or_time_over = tokio::time::timeout(STOP_PATIENCE, ended).await;
        });
        runtime.shutdown_timeout(STOP_PATIENCE);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.core.stopping.store(true, Ordering::Release);
        self.core.fanout.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
