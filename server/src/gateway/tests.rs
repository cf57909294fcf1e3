//! What the modules' own tests share: a core without threads or sockets, and a connection's name.

use super::identity::{Credential, Identity};
use super::link::Link;
use super::{Config, Core, Dependencies};
use crate::devices::directory::{DeviceAuth, Directory, token_hash};
use crate::platform::clock::ManualClock;
use crate::platform::event_log::{EventLog, NewRecord, Options, Pin};
use muster_wire::{DeviceId, TenantId};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// Time at the start.
pub(crate) const NOW_US: i64 = 1_700_000_000_000_000;

/// A core over a small log that nothing is released from.
pub(crate) fn core() -> (Arc<Core>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let options =
        Options { bytes_max: 2 * 1024 * 1024, segment_bytes: 512 * 1024, ..Options::at(dir.path()) };
    let clock = ManualClock::at(NOW_US);
    let log = EventLog::open(&options, clock.clone()).expect("a log");
    log.reader("store", 1, Pin::Pins).expect("a reader");
    let directory = Arc::new(Directory::new());
    let dependencies =
        Dependencies { log, directory, clock, quotas: Arc::default(), tls: None, ends: Arc::default() };
    let core = Core::new(Config::default(), dependencies, &prometheus::Registry::new());
    (Arc::new(core.expect("a core")), dir)
}

/// A device's connection, known to no directory yet.
pub(crate) fn link(device: &str) -> Arc<Link> {
    let credential = Credential::DeviceToken(Box::new(token_hash("secret")));
    let (tenant, device) = (tenant(), DeviceId::parse(device).expect("an id"));
    let name = format!("{tenant}/{device}").into();
    Arc::new(Link::new(name, Identity::Device { tenant, device, credential }, None, 0, 0))
}

/// The tenant of [`link`].
pub(crate) fn tenant() -> TenantId {
    TenantId::parse("acme").expect("an id")
}

/// Registers a device of [`link`], or disables it.
pub(crate) fn set_device(core: &Core, device: &str, enabled: bool) {
    let auth = DeviceAuth { enabled, token_sha256: Some(token_hash("secret")) };
    core.directory.set_device(&tenant(), &DeviceId::parse(device).expect("an id"), auth);
}

/// The server's end of a TCP connection, and the client's.
pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
    let server = listener.accept().await.expect("accepted").0;
    // As the listener does: small answers are not held back.
    server.set_nodelay(true).expect("it is open");
    (server, client)
}

/// Fills the log until not even a record without a body fits.
pub(crate) fn append_until_full(core: &Core) {
    let large = NewRecord { body: &[0; 100_000], ..NewRecord::tick() };
    loop {
        let before = core.log.stats().next_seq;
        while core.append(&large).is_ok() {}
        while core.append(&NewRecord::tick()).is_ok() {}
        // What waits in memory may free some room of the bound once it is written.
        core.log.wait_durable(core.log.stats().next_seq - 1).expect("durable");
        if core.log.stats().next_seq == before {
            return;
        }
    }
}
