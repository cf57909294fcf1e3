//! A client's byte stream: plain TCP or TLS, and the way to close it so that its last packet arrives.

use bytes::BytesMut;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// How long a client may take to read our last packet and close.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that a client may still send meanwhile; closing with unread bytes would reset the connection.
const LINGER_BYTES_MAX: usize = 1024 * 1024;
/// Clients waited for at once; beyond it they are closed hard.
const LINGERING_MAX: usize = 1_024;

/// A client's stream.
pub(crate) enum Stream {
    /// Loopback, or behind a balancer that ends TLS.
    Plain(TcpStream),
    /// TLS; boxed, as it is 50 times the size.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Reads once into the buffer's spare room of at most `limit` bytes. Keeps no state between calls.
    pub(crate) fn poll_read_buffer(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        use bytes::BufMut;
        let mut limited = buffer.limit(limit);
        pin!(self.read_buf(&mut limited)).as_mut().poll(cx)
    }

    /// Whether written bytes may stay in the TLS layer until a flush.
    pub(crate) fn needs_flush(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

static LINGERING: AtomicUsize = AtomicUsize::new(0);

/// Sends the last bytes and waits a little for the client to read them, in a task of its own.
pub(crate) fn close_with(stream: Stream, last: Vec<u8>) {
    linger(&LINGERING, stream, last);
}

fn linger(lingering: &'static AtomicUsize, stream: Stream, last: Vec<u8>) {
    if lingering.fetch_add(1, Ordering::Relaxed) >= LINGERING_MAX {
        lingering.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    tokio::spawn(async move {
        // Past the time, or with the client gone, there is nobody left to tell.
        let _gone = tokio::time::timeout(LINGER, say_goodbye(stream, &last)).await;
        lingering.fetch_sub(1, Ordering::Relaxed);
    });
}

async fn say_goodbye(mut stream: Stream, last: &[u8]) -> io::Result<()> {
    stream.write_all(last).await?;
    stream.shutdown().await?;
    let (mut sink, mut total) = (vec![0; 4096], 0);
    while total < LINGER_BYTES_MAX {
        match stream.read(&mut sink).await? {
            0 => break,
            bytes => total += bytes,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::sockets;

    /// Long enough for a slow machine; a test that passes never waits for it.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// What the client reads until the end.
    async fn read(mut client: TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        tokio::time::timeout(DEADLINE, client.read_to_end(&mut all))
            .await
            .expect("it ends")
            .expect("readable");
        all
    }

    #[tokio::test]
    async fn over_their_bound_clients_are_closed_without_a_last_packet() {
        static NEARLY_FULL: AtomicUsize = AtomicUsize::new(LINGERING_MAX - 1);
        let ((one, one_client), (two, two_client)) = (sockets().await, sockets().await);
        linger(&NEARLY_FULL, Stream::Plain(one), b"bye".to_vec());
        linger(&NEARLY_FULL, Stream::Plain(two), b"bye".to_vec());
        assert_eq!(NEARLY_FULL.load(Ordering::Relaxed), LINGERING_MAX);
        assert_eq!(read(two_client).await, b"");
        assert_eq!(read(one_client).await, b"bye");
    }

    #[tokio::test]
    async fn a_client_that_goes_on_sending_is_not_read_for_ever() {
        let (server, mut client) = sockets().await;
        let flood = async {
            let bytes = vec![0; 64 * 1024];
            // Until the server resets the connection.
            while client.write_all(&bytes).await.is_ok() {}
        };
        let goodbye = say_goodbye(Stream::Plain(server), b"bye");
        let both = async { tokio::join!(flood, goodbye).1 };
        tokio::time::timeout(DEADLINE, both).await.expect("it ends").expect("said");
    }
}
