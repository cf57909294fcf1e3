//! HTTP for `object_store`: our hyper and our rustls instead of a second HTTP stack.
//!
//! Promise: one TLS provider; certificates from the authorities that are configured; a connection that does not come
//! about, a request whose body does not move and an answer that does not begin end with an error that says so; a body
//! that moves slowly goes up. Connections are kept for a while.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Uri;
use hyper::body::{Body, Frame, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Without a piece of the request's body going up, and then from the last one to the head of the answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A body goes up in pieces of so many bytes.
const PIECE_BYTES: usize = 64 << 10;
/// What the kernel takes before it is sent: a piece that was taken is soon on its way.
const SEND_BUFFER_BYTES: usize = 512 << 10;
const IDLE_CONNECTIONS_MAX: usize = 4;
const IDLE_TIME_MAX: Duration = Duration::from_secs(20);

/// Connects with our TLS.
#[derive(Clone)]
pub(super) struct Connector {
    tls: tokio_rustls::TlsConnector,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub(super) fn new(tls: rustls::ClientConfig) -> Self {
        Self { tls: Arc::new(tls).into() }
    }

    async fn dial(self, uri: Uri) -> io::Result<TokioIo<Stream>> {
        let fail = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let host = uri.host().ok_or_else(|| fail("the address has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        tcp.set_nodelay(true)?;
        socket2::SockRef::from(&tcp).set_send_buffer_size(SEND_BUFFER_BYTES)?;
        let inner: Box<dyn Io> = if is_tls {
            let name = ServerName::try_from(host).map_err(|_| fail("the host is no name of a server"))?;
            Box::new(self.tls.connect(name, tcp).await?)
        } else {
            Box::new(tcp)
        };
        Ok(TokioIo::new(Stream(Box::into_pin(inner))))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service::new(self.clone(), PATIENCE)))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialed = tokio::time::timeout(CONNECT_TIME_MAX, self.clone().dial(uri));
        Box::pin(async { dialed.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) })
    }
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// A connection with or without TLS.
pub(super) struct Stream(Pin<Box<dyn Io>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

/// A request's body that tells when it moved last.
struct Watched {
    body: HttpRequestBody,
    /// Of the body's last frame.
    rest: Bytes,
    moved: Arc<Mutex<Instant>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return other,
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let upper = hint.upper();
        hint.set_lower(hint.lower() + rest);
        if let Some(upper) = upper {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[derive(Debug)]
struct Service {
    client: Client<Connector, Watched>,
    patience: Duration,
}

impl Service {
    fn new(connector: Connector, patience: Duration) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIME_MAX)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Self { client, patience }
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let moved = Arc::new(Mutex::new(Instant::now()));
        let watched = |body| Watched { body, rest: Bytes::new(), moved: moved.clone() };
        let mut answering = self.client.request(request.map(watched));
        let answer = loop {
            let until = *moved.lock().unwrap_or_else(PoisonError::into_inner) + self.patience;
            if until <= Instant::now() {
                let why = format!("nothing moved for {:?}", self.patience);
                let late = io::Error::new(io::ErrorKind::TimedOut, why);
                return Err(HttpError::new(HttpErrorKind::Timeout, late));
            }
            tokio::select! {
                answer = &mut answering => break answer,
                () = tokio::time::sleep_until(until) => {}
            }
        };
        let answer = answer.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { kind_of(&error) };
            HttpError::new(kind, error)
        })?;
        let (head, body) = answer.into_parts();
        let body = body.map_err(|error| HttpError::new(kind_of(&error), error));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

/// What `object_store` needs to know to try again.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> HttpErrorKind {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(hyper) = error.downcast_ref::<hyper::Error>()
            && (hyper.is_closed() || hyper.is_incomplete_message() || hyper.is_body_write_aborted())
        {
            return HttpErrorKind::Request;
        }
        if error.is::<io::Error>() {
            return HttpErrorKind::Interrupted;
        }
        at = error.source();
    }
    HttpErrorKind::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    const PATIENCE: Duration = Duration::from_millis(1_500);
    const BODY_BYTES: usize = 8 << 20;

    /// A server that takes at most `upto` bytes, a piece each `every`, and answers where that was the whole body.
    async fn put(upto: usize, every: Duration) -> (Result<u16, HttpErrorKind>, Duration) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let uri = format!("http://{}/bucket/key", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut taken, mut piece) = (0, vec![0; 256 << 10]);
            while taken < upto {
                taken += stream.read(&mut piece).await.unwrap();
                tokio::time::sleep(every).await;
            }
            if taken >= BODY_BYTES && upto == BODY_BYTES {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            tokio::time::sleep(PATIENCE * 4).await;
        });
        let tls = crate::platform::authorities::client_tls(None).unwrap();
        let service = Service::new(Connector::new(tls), PATIENCE);
        let request = hyper::Request::put(uri).body(HttpRequestBody::from(vec![7; BODY_BYTES])).unwrap();
        let began = Instant::now();
        let answer = service.call(request).await;
        server.abort();
        (answer.map(|answer| answer.status().as_u16()).map_err(|error| error.kind()), began.elapsed())
    }

    #[tokio::test]
    async fn a_body_that_moves_slowly_goes_up_and_one_that_stands_still_does_not() {
        let (answer, took) = put(BODY_BYTES, Duration::from_millis(40)).await;
        assert_eq!(answer, Ok(200));
        assert!(took > PATIENCE, "{took:?}: it is no test of patience");
        for upto in [BODY_BYTES / 4, BODY_BYTES + 1] {
            let (answer, took) = put(upto, Duration::ZERO).await;
            assert_eq!(answer, Err(HttpErrorKind::Timeout), "{upto} after {took:?}");
        }
    }
}
