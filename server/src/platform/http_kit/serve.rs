//! The connection loop of an HTTP listener, plain or TLS.
//!
//! `app.rs` starts one a listener. A handshake runs in the connection's own task, so a silent client holds one of
//! [`CONNECTIONS_MAX`] places for [`HANDSHAKE_TIME_MAX`] at most and nothing else. Over the bound the loop stops
//! accepting and the kernel's backlog waits. On shutdown it stops accepting and lets open requests end.

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Open connections a listener.
pub const CONNECTIONS_MAX: usize = 1024;
/// The longest TLS handshake.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest wait for a request's head: a slow writer is cut off.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// The longest wait for open requests when the server stops.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// The client's certificate, where the listener's TLS asked for one and verified it; an extension of each request.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub CertificateDer<'static>);

/// Serves until `stop` turns true, then drains.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    serve_at_once(CONNECTIONS_MAX, listener, tls, router, stop).await;
}

async fn serve_at_once(
    connections_max: usize,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let stops = stop.clone();
    loop {
        let place = match places.clone().acquire_owned().await {
            Ok(place) => place,
            Err(_) => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                // Out of file handles, or the peer went away: a pause keeps the loop from spinning.
                tracing::warn!(%error, "accept failed, will retry");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, router, stops) = (tls.clone(), router.clone(), stops.clone());
        tokio::spawn(async move {
            connection(stream, peer, tls, router, stops).await;
            drop(place);
        });
    }
    drop(listener);
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    if tokio::time::timeout(DRAIN_TIME_MAX, places.acquire_many(all)).await.is_err() {
        tracing::warn!("connections are still open, closing them");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return speak(stream, peer, None, router, stop).await };
    match tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = certificate.map(|leaf| PeerCertificate(leaf.clone().into_owned()));
            speak(stream, peer, certificate, router, stop).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "tls handshake failed"),
        Err(_) => tracing::debug!(%peer, "tls handshake took too long"),
    }
}

async fn speak<S>(
    stream: S,
    peer: SocketAddr,
    certificate: Option<PeerCertificate>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = router.map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(certificate) = certificate.clone() {
            request.extensions_mut().insert(certificate);
        }
        request.map(axum::body::Body::new)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        outcome = connection.as_mut() => log_end(outcome, peer),
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            if let Ok(outcome) = tokio::time::timeout(DRAIN_TIME_MAX, connection).await {
                log_end(outcome, peer);
            }
        }
    }
}

/// Returns once the server stops. Its own function, so that the watch's guard is never held over an await.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn log_end(outcome: Result<(), hyper::Error>, peer: SocketAddr) {
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Turns of the runtime in which everything that can move has moved.
    const TURNS: usize = 500;

    async fn settle() {
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn over_the_bound_a_connection_waits_until_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let server = tokio::spawn(serve_at_once(2, listener, None, router, stopped));
        let silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        settle().await;
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        settle().await;
        let unanswered = third.try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(unanswered.kind(), std::io::ErrorKind::WouldBlock);
        drop(silent);
        let mut answer = String::new();
        third.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        stop.send(true).unwrap();
        server.await.unwrap();
    }
}
