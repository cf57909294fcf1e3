//! A blocking HTTP/1.1 client of the admin API: JSON, one connection kept, plain TCP only.
//!
//! Everything in `observe` calls it. It asks the [`ServerHandle`] for the address at each call, so a server that came
//! back elsewhere is found. Promise: a call ends within its time limit whatever the peer sends, and holds at most
//! [`BODY_BYTES_MAX`] of it; [`LINE_BYTES_MAX`] a header line, [`HEADERS_MAX`] of them.
//! A call on a kept connection that the server had closed meanwhile is made once more, on a new one.
//!
//! `xtask` has a smaller client of its own: with this crate's library, `cargo xtask` on a fresh machine would first
//! build TLS and an embedded database.

mod answer;

use super::handle::{Access, ServerHandle};
pub(crate) use answer::{Head, Unread, read_body, read_head};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The longest call, unless asked otherwise.
pub const CALL_TIME_MAX: Duration = Duration::from_secs(40);
/// The largest answer, in bytes.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest line of an answer's head.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Header lines of an answer.
pub const HEADERS_MAX: usize = 100;
/// How much of a refusal's body an error shows.
const SHOWN_BYTES_MAX: usize = 400;
/// What calls take: the API's JSON and the metrics' text.
const ACCEPT: &str = "application/json, text/plain";

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens, as far as is known or at a try.
    #[error("the server is down: {0}")]
    Down(String),
    /// The connection ended, or took too long.
    #[error("the connection to {host} broke")]
    Broken {
        /// Whose.
        host: String,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The peer does not speak HTTP/1.1, or says more than is held.
    #[error("no answer of HTTP/1.1: {0}")]
    Malformed(&'static str),
    /// The request holds what would end its line.
    #[error("a request with a space or control character")]
    Request,
    /// The server refuses.
    #[error("{method} {path} answered {status}: {body}")]
    Refused {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
        /// The HTTP status.
        status: u16,
        /// The begin of the body.
        body: String,
    },
    /// The answer is another than was asked for.
    #[error("{path} answered other JSON")]
    Json {
        /// The path.
        path: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl HttpError {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same call may succeed later: the server was not there, or was busy.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Down(_) | Self::Broken { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Malformed(_) | Self::Request | Self::Json { .. } => false,
        }
    }
}

/// How a caller says who they are.
#[derive(Clone)]
pub enum Credential {
    /// Not at all.
    None,
    /// An API token.
    Token(String),
    /// A session's cookie, with the server's own origin.
    Session(String),
}

impl Credential {
    fn header(&self, host: &str) -> String {
        match self {
            Self::None => String::new(),
            Self::Token(token) => format!("Authorization: Bearer {token}\r\n"),
            Self::Session(cookie) => format!("Cookie: {cookie}\r\nOrigin: http://{host}\r\n"),
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::None => true,
            Self::Token(text) | Self::Session(text) => is_sound(text),
        }
    }
}

/// An answer with any status.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// The first cookie that it sets: `name=value`.
    pub cookie: Option<String>,
}

/// Calls of one server with one credential.
pub struct Client {
    server: ServerHandle,
    credential: Credential,
    time_max: Duration,
    kept: Option<Kept>,
}

struct Kept {
    host: String,
    stream: BufReader<Timed>,
}

impl Client {
    /// A client with an API token.
    #[must_use]
    pub fn new(server: &ServerHandle, token: &str) -> Self {
        Self::with(server, Credential::Token(token.to_owned()))
    }

    /// A client of a tenant.
    #[must_use]
    pub fn of(server: &ServerHandle, access: &Access) -> Self {
        Self::new(server, &access.token)
    }

    /// A client with any credential.
    #[must_use]
    pub fn with(server: &ServerHandle, credential: Credential) -> Self {
        Self { server: server.clone(), credential, time_max: CALL_TIME_MAX, kept: None }
    }

    /// The longest call.
    #[must_use]
    pub fn time_max(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// GET, and the JSON of a 2xx answer.
    ///
    /// # Errors
    /// No answer, another status, no JSON.
    pub fn get(&mut self, path: &str) -> Result<Value, HttpError> {
        self.get_as(path)
    }

    /// As [`Self::get`], into a type.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_as<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, HttpError> {
        let answer = self.accepted("GET", path, None)?;
        serde_json::from_str(&answer.body).map_err(|source| HttpError::Json { path: path.to_owned(), source })
    }

    /// POST, and the JSON of a 2xx answer (null where it has no body).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value, HttpError> {
        self.changed("POST", path, Some(body))
    }

    /// PUT, and the JSON of a 2xx answer.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put(&mut self, path: &str, body: &Value) -> Result<Value, HttpError> {
        self.changed("PUT", path, Some(body))
    }

    /// POST without a body: a server need not read one that it does not expect, and then closes the connection.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post_nothing(&mut self, path: &str) -> Result<Value, HttpError> {
        self.changed("POST", path, None)
    }

    fn changed(
        &mut self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, HttpError> {
        let answer = self.accepted(method, path, body)?;
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer.body).map_err(|source| HttpError::Json { path: path.to_owned(), source })
    }

    fn accepted(
        &mut self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, HttpError> {
        let answer = self.call(method, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let (path, mut body) = (path.to_owned(), answer.body.trim().to_owned());
        body.truncate(body.floor_char_boundary(SHOWN_BYTES_MAX));
        Err(HttpError::Refused { method, path, status: answer.status, body })
    }

    /// Any request, and whatever is answered.
    ///
    /// # Errors
    /// No answer.
    pub fn call(
        &mut self,
        method: &'static str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, HttpError> {
        let request = Request { method, path, body: body.map(Value::to_string), accept: ACCEPT };
        let deadline = Instant::now() + self.time_max;
        let host = host_of(&self.server)?;
        if let Some(mut kept) = self.kept.take().filter(|kept| kept.host == host) {
            kept.stream.get_mut().deadline = deadline;
            match self.exchange(kept, &request) {
                Err(HttpError::Broken { source, .. }) if was_closed(&source) => {}
                other => return other,
            }
        }
        let stream = BufReader::new(connect(&host, deadline)?);
        self.exchange(Kept { host, stream }, &request)
    }

    /// The status of a GET; what follows it is not read.
    ///
    /// # Errors
    /// No answer.
    pub fn status(&mut self, path: &str) -> Result<u16, HttpError> {
        let deadline = Instant::now() + self.time_max;
        Ok(open(&self.server, &self.credential, path, "", deadline)?.1.status)
    }

    fn exchange(&mut self, mut kept: Kept, request: &Request<'_>) -> Result<Answer, HttpError> {
        request.send(&mut kept, &self.credential, "")?;
        let head = read_head(&mut kept.stream).map_err(|error| error.of(&kept.host))?;
        let (body, keep) =
            read_body(&mut kept.stream, &head, BODY_BYTES_MAX).map_err(|error| error.of(&kept.host))?;
        if keep && kept.stream.buffer().is_empty() {
            self.kept = Some(kept);
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer { status: head.status, body, cookie: head.cookie })
    }
}

/// Opens a connection of its own for an answer that has no end, and reads its head. `more` are whole header lines.
pub(super) fn open(
    server: &ServerHandle,
    credential: &Credential,
    path: &str,
    more: &str,
    deadline: Instant,
) -> Result<(BufReader<Timed>, Head), HttpError> {
    let host = host_of(server)?;
    let stream = BufReader::new(connect(&host, deadline)?);
    let mut kept = Kept { host, stream };
    let request = Request { method: "GET", path, body: None, accept: "text/event-stream, */*" };
    request.send(&mut kept, credential, more)?;
    let head = read_head(&mut kept.stream).map_err(|error| error.of(&kept.host))?;
    Ok((kept.stream, head))
}

fn host_of(server: &ServerHandle) -> Result<String, HttpError> {
    server.facts().http.ok_or_else(|| HttpError::Down("it has no address".into()))
}

/// What a server that closes an idle connection does to the next request.
fn was_closed(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn is_sound(text: &str) -> bool {
    text.bytes().all(|byte| byte > b' ' && byte != 0x7F)
}

struct Request<'a> {
    method: &'static str,
    path: &'a str,
    body: Option<String>,
    accept: &'a str,
}

impl Request<'_> {
    fn send(&self, to: &mut Kept, credential: &Credential, more: &str) -> Result<(), HttpError> {
        let Self { method, path, body, accept } = self;
        let host = &to.host;
        if !is_sound(path) || !is_sound(host) || !credential.is_sound() {
            return Err(HttpError::Request);
        }
        let who = credential.header(host);
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n{who}{more}");
        match body {
            Some(body) => {
                let length = body.len();
                text.push_str(&format!(
                    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                ));
            }
            None => text.push_str("\r\n"),
        }
        let sent = to.stream.get_mut().write_all(text.as_bytes());
        sent.map_err(|source| HttpError::Broken { host: host.clone(), source })
    }
}

/// A connection whose reads and writes end at a deadline.
pub(crate) struct Timed {
    stream: TcpStream,
    /// When they end with `TimedOut`.
    pub(super) deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// Unix tells a timeout of a socket so, which would look as if it could be read later.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(out).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn connect(host: &str, deadline: Instant) -> Result<Timed, HttpError> {
    open_stream(host, deadline).map_err(|error| HttpError::Down(format!("{host}: {error}")))
}

/// Connects to `host:port`.
pub(crate) fn open_stream(host: &str, deadline: Instant) -> io::Result<Timed> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in host.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            // A port of the ephemeral range that nobody listens on may be given to the one who connects to it.
            Ok(stream) if stream.local_addr().ok() == Some(address) => {
                last = ErrorKind::ConnectionRefused.into()
            }
            Ok(stream) => return stream.set_nodelay(true).map(|()| Timed { stream, deadline }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
