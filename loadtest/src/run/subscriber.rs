//! A tenant's own software that reads along: subscribes to everything of its tenant, and asks for other tenants'.
//!
//! Started by `run` where there is more than one tenant. One thread each, blocking; a connection that breaks is made
//! anew until the run ends. What it counts proves that tenants are apart on the way out, too: nothing of another
//! tenant comes, and no filter of another tenant is granted.

use crate::mqtt::{self, Connect, Incoming, Version};
use crate::observe::handle::Access;
use crate::report::model::Invariant;
use anyhow::{Context, Result, bail};
use muster_wire::{DeviceId, TenantId, Topic, UpClass};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Tenants with a subscriber.
pub(crate) const SUBSCRIBERS_MAX: usize = 4;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);
/// How long a read may wait, so that an end is noticed.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes read at once, and the most that may wait for the rest of a packet.
const READ_BYTES: usize = 64 * 1024;
const PENDING_BYTES_MAX: usize = 1024 * 1024;

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    foreign: AtomicU64,
    foreign_granted: AtomicU64,
    foreign_refused: AtomicU64,
    connects: AtomicU64,
}

/// The subscribers of a run.
pub(crate) struct Subscribers {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

/// How a subscriber reaches the server.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn open(way: &Way) -> Result<Self> {
        let socket = TcpStream::connect(way.address)?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        socket.set_nodelay(true)?;
        Ok(match &way.tls {
            None => Self::Plain(socket),
            Some((config, name)) => {
                let session = ClientConnection::new(config.clone(), name.clone())?;
                Self::Tls(Box::new(StreamOwned::new(session, socket)))
            }
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }
}

impl Subscribers {
    /// Starts one for each of the first tenants.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(way: &Way, accesses: &[Access]) -> Result<Self> {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let mut threads = Vec::new();
        for (at, access) in accesses.iter().take(SUBSCRIBERS_MAX).enumerate() {
            let other = accesses[(at + 1) % accesses.len()].tenant.clone();
            let reader = Reader {
                way: way.clone(),
                access: access.clone(),
                other,
                stop: stop.clone(),
                counts: counts.clone(),
            };
            let thread =
                std::thread::Builder::new().name("subscriber".to_owned()).spawn(move || reader.run());
            threads.push(thread.context("cannot start a thread")?);
        }
        Ok(Self { stop, counts, threads })
    }

    /// Ends them; what they found.
    pub(crate) fn finish(self) -> Invariant {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A panic of a counter is a counter that stands still.
            let _ = thread.join();
        }
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let (messages, foreign) = (get(&counts.messages), get(&counts.foreign));
        let (granted, refused) = (get(&counts.foreign_granted), get(&counts.foreign_refused));
        Invariant {
            name: "subscribers_apart".to_owned(),
            held: foreign == 0 && granted == 0 && messages > 0 && refused > 0,
            detail: format!(
                "{messages} messages of the subscribers' own tenants, {foreign} of others; filters of other tenants: \
                 {refused} refused, {granted} granted; {} connects",
                get(&counts.connects)
            ),
        }
    }
}

struct Reader {
    way: Way,
    access: Access,
    other: String,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Reader {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            // The server may be down, or have cut a slow reader: both are part of a run.
            let _ = self.follow();
            std::thread::sleep(RETRY);
        }
    }

    fn follow(&self) -> Result<()> {
        let own = topics_of(&self.access.tenant)?;
        let mut stream = Stream::open(&self.way)?;
        let mut out = Vec::new();
        let client_id = format!("loadtest-{}-{}", self.access.tenant, std::process::id());
        let login = Some(("api", self.access.token.as_str()));
        Connect { client_id: &client_id, login, keep_alive_s: 600 }.encode(Version::V5, &mut out);
        mqtt::subscribe(Version::V5, &format!("{own}+/up/#"), 0, 1, &mut out);
        mqtt::subscribe(Version::V5, &format!("{}+/up/#", topics_of(&self.other)?), 0, 2, &mut out);
        stream.send(&out)?;
        let (mut buffer, mut pending) = (vec![0; READ_BYTES], Vec::new());
        let mut subscribed = 0;
        while !self.stop.load(Ordering::Relaxed) {
            match stream.read(&mut buffer) {
                Ok(0) => bail!("closed"),
                Ok(count) => pending.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error.into()),
            }
            let mut taken = 0;
            while let Some((packet, bytes)) = mqtt::decode(Version::V5, &pending[taken..])? {
                taken += bytes;
                self.take(&packet, &own, &mut subscribed)?;
            }
            pending.drain(..taken);
            if pending.len() > PENDING_BYTES_MAX {
                bail!("a packet without an end");
            }
        }
        stream.send(&mqtt::DISCONNECT).map_err(Into::into)
    }

    fn take(&self, packet: &Incoming<'_>, own: &str, subscribed: &mut u32) -> Result<()> {
        let add = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        match packet {
            Incoming::ConnAck { reason: 0, .. } => add(&self.counts.connects),
            Incoming::ConnAck { reason, .. } => bail!("connack 0x{reason:02x}"),
            Incoming::Publish { topic, .. } if topic.starts_with(own) => add(&self.counts.messages),
            Incoming::Publish { .. } => add(&self.counts.foreign),
            Incoming::SubAck { code } => {
                // The own filter was asked for first.
                *subscribed += 1;
                match (*subscribed, *code >= 0x80) {
                    (1, false) => {}
                    (1, true) => bail!("the own tenant's filter was refused with 0x{code:02x}"),
                    (_, true) => add(&self.counts.foreign_refused),
                    (_, false) => add(&self.counts.foreign_granted),
                }
            }
            Incoming::Disconnect { reason } => bail!("disconnect 0x{reason:02x}"),
            _ => {}
        }
        Ok(())
    }
}

/// What every topic of a tenant begins with.
fn topics_of(tenant: &str) -> Result<String> {
    let device = DeviceId::parse("any")?;
    let topic = Topic::up(&TenantId::parse(tenant)?, &device, UpClass::State).to_string();
    let (before, _) = topic.rsplit_once(device.as_str()).context("a topic without its device")?;
    Ok(before.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_topics_begin_with_its_name() {
        let own = topics_of("acme").unwrap();
        let (tenant, device) = (TenantId::parse("acme").unwrap(), DeviceId::parse("d1").unwrap());
        let topic = Topic::up(&tenant, &device, UpClass::Telemetry);
        assert!(topic.to_string().starts_with(&own) && own.ends_with("acme/"), "{own}");
        assert!(topics_of("company").unwrap().ends_with("/company/"), "a name that holds the device's");
        assert!(topics_of("No Tenant").is_err());
    }
}
