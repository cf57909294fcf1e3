//! A listener for one kind of question, so no HTTP server is linked for it.

use super::Metrics;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// The longest request head.
const HEAD_BYTES_MAX: usize = 4096;
/// The longest a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Scrapers at one time; a loopback listener has one or two.
const CONNECTIONS_MAX: usize = 4;

/// Where the counters are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address.
    Tcp(std::net::SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

/// The listener could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for metrics on {listen:?}")]
pub struct ServeError {
    listen: Listen,
    #[source]
    source: std::io::Error,
}

impl Listen {
    /// Parses what the configuration checked.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }
}

/// Answers until the task is dropped.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(listen: Listen, metrics: Metrics) -> Result<(), ServeError> {
    let fail = |source| ServeError { listen: listen.clone(), source };
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    match &listen {
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address).await.map_err(fail)?;
            loop {
                let (stream, _) = listener.accept().await.map_err(fail)?;
                spawn_answer(stream, &metrics, &slots);
            }
        }
        Listen::Unix(path) => {
            // A socket file that an earlier run left behind refuses the bind.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(%error, "no old metrics socket removed");
            }
            let listener = UnixListener::bind(path).map_err(fail)?;
            loop {
                let (stream, _) = listener.accept().await.map_err(fail)?;
                spawn_answer(stream, &metrics, &slots);
            }
        }
    }
}

fn spawn_answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    metrics: &Metrics,
    slots: &Arc<Semaphore>,
) {
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let metrics = metrics.clone();
    tokio::spawn(async move {
        let _slot = slot;
        if let Ok(Err(error)) = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &metrics)).await {
            tracing::debug!(%error, "metrics request failed");
        }
    });
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, metrics: &Metrics) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|byte| *byte == b' ').nth(1) {
        _ if !line.starts_with(b"GET ") => ("405 Method Not Allowed", String::new()),
        Some(b"/metrics") => ("200 OK", metrics.text()),
        Some(b"/healthz") => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", String::new()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let metrics = Metrics::new();
        metrics.refuse(crate::metrics::Refusal::NotFinite);
        let task = tokio::spawn(async move { answer(server, &metrics).await });
        client.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        task.await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn shows_counters_and_refuses_the_rest() {
        let text = ask("GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(text.contains("agent_refused_total{reason=\"not_finite\"} 1"), "{text}");
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert!(ask("GET /x HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn a_head_of_the_largest_size_is_answered_and_a_longer_one_is_not() {
        let head = |bytes: usize| {
            let text = "GET /healthz HTTP/1.1\r\nX: ";
            format!("{text}{}\r\n\r\n", "x".repeat(bytes - text.len() - 4))
        };
        assert!(ask(&head(HEAD_BYTES_MAX)).await.starts_with("HTTP/1.1 200"));
        assert_eq!(ask(&head(HEAD_BYTES_MAX + 1)).await, "");
    }

    #[tokio::test]
    async fn a_fifth_scraper_is_turned_away_until_another_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let task = tokio::spawn(serve(Listen::Unix(path.clone()), Metrics::new()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let connect = || tokio::net::UnixStream::connect(&path);
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            held.push(connect().await.unwrap());
        }
        let mut text = String::new();
        connect().await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "", "closed without an answer");
        for _ in 0..3 {
            let mut done = held.remove(0);
            done.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
            let mut text = String::new();
            done.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
            held.push(connect().await.unwrap());
        }
        task.abort();
    }
}
