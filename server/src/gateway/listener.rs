//! The sockets: accept, TLS handshake, and the bound on who has not yet sent a CONNECT.
//!
//! Started by `mod`. Each socket gets a task at once, so a silent or slow one holds up nobody; it has
//! `handshake_timeout` for TLS and then `connect_timeout` for its CONNECT. At most `early_max` sockets may
//! be that young: beyond it the oldest is closed once it has had a third of `connect_timeout` (a real client
//! is long done), until then accepting waits and the kernel's backlog of [`BACKLOG`] holds the others.

use super::Core;
use super::connect;
use super::link::lock;
use super::reason::EarlyEnd;
use super::stream::Stream;
use super::tls::PeerCertificate;
use rustls::CertificateError;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// Connections that the kernel holds until they are accepted: a fleet's reconnect storm.
const BACKLOG: i32 = 4_096;
/// Pause after an error of accept, such as no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long accepting waits for place before it looks again.
const PLACE_PAUSE: Duration = Duration::from_millis(5);
/// A peer that vanished without a FIN is found after about this time, even without an MQTT keep-alive.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Binds a listener with the long backlog.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[derive(Default)]
struct EarlyMap {
    next: u64,
    /// The handle comes a moment after the entry.
    sockets: BTreeMap<u64, (Instant, Option<AbortHandle>)>,
}

/// The sockets before their CONNECT, oldest first.
#[derive(Default)]
struct Early(Mutex<EarlyMap>);

impl Early {
    /// Whether one more fits, after closing the oldest where that is allowed.
    fn has_place(&self, core: &Core) -> bool {
        let mut early = lock(&self.0);
        if early.sockets.len() < core.config.early_max {
            return true;
        }
        let Some(oldest) = early.sockets.first_entry() else { return true };
        if oldest.get().0.elapsed() < core.config.connect_timeout / 3 {
            return false;
        }
        if let (_, Some(task)) = oldest.remove() {
            task.abort();
        }
        core.metrics.early_end(EarlyEnd::Evicted);
        true
    }

    /// Runs a young socket's task.
    fn enter(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let number = {
            let mut early = lock(&self.0);
            let number = early.next;
            early.next += 1;
            early.sockets.insert(number, (Instant::now(), None));
            number
        };
        let place = Place { early: self.clone(), number };
        // Not under the lock: a runtime that shuts down drops the task, and its place, within `spawn`.
        let handle = tokio::spawn(async move {
            let _place = place;
            task.await;
        });
        if let Some((_, task)) = lock(&self.0).sockets.get_mut(&number) {
            *task = Some(handle.abort_handle());
        }
    }
}

struct Place {
    early: Arc<Early>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.early.0).sockets.remove(&self.number);
    }
}

/// Accepts for the gateway's life.
pub(crate) async fn accept(core: Arc<Core>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    let early = Arc::new(Early::default());
    loop {
        while !early.has_place(&core) {
            tokio::time::sleep(PLACE_PAUSE).await;
        }
        match listener.accept().await {
            Ok((socket, _)) => early.enter(greet(core.clone(), socket, tls.clone())),
            Err(error) => {
                core.metrics.accept_errors.inc();
                tracing::warn!(%error, "accept failed, will retry");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(core: Arc<Core>, socket: TcpStream, tls: Option<TlsAcceptor>) {
    // Without it acknowledgements wait for the client's next packet; a socket that refuses is gone anyway.
    let _gone = socket.set_nodelay(true);
    let Some(tls) = tls else { return connect::serve(core, Stream::Plain(socket), None).await };
    let handshake = Box::pin(tls.accept(socket));
    match tokio::time::timeout(core.config.handshake_timeout, handshake).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = certificate.map(PeerCertificate::parse);
            if let Some(None) = certificate {
                return core.metrics.early_end(EarlyEnd::Handshake);
            }
            connect::serve(core, Stream::Tls(Box::new(stream)), certificate.flatten()).await;
        }
        Ok(Err(error)) => core.metrics.early_end(handshake_end(&error)),
        Err(_) => core.metrics.early_end(EarlyEnd::HandshakeTimeout),
    }
}

fn handshake_end(error: &io::Error) -> EarlyEnd {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => EarlyEnd::CertificateExpired,
        Some(rustls::Error::InvalidCertificate(_)) => EarlyEnd::CertificateUntrusted,
        Some(_) => EarlyEnd::Handshake,
        None => EarlyEnd::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Long enough for a slow machine; a test that passes never waits for it.
    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn a_socket_accepted_while_the_runtime_stops_holds_nobody_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let handle = runtime.handle().clone();
        drop(runtime);
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let _inside = handle.enter();
            let early = Arc::new(Early::default());
            early.enter(async {});
            done.send(lock(&early.0).sockets.len()).expect("somebody waits");
        });
        assert_eq!(is_done.recv_timeout(DEADLINE), Ok(0), "its place is free");
    }
}
