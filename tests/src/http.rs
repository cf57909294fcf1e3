//! A small blocking HTTP/1.1 client for the plain loopback API; one request a connection.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Status and body.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body as text.
    pub text: String,
    /// Body as it came.
    pub bytes: Vec<u8>,
    /// The cookie that it sets, as the next request sends it.
    pub cookie: Option<String>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("answer is no JSON ({error}): {}", self.text))
    }

    /// The JSON body of a 2xx answer.
    ///
    /// # Panics
    /// On any other status, with the answer.
    #[must_use]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "status {}: {}", self.status, self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }
}

/// Calls of one API with one bearer token, or as a browser.
#[derive(Clone, Debug)]
pub struct Api {
    /// Where the API listens.
    pub addr: SocketAddr,
    /// Bearer token, or a session's cookie ([`Answer::cookie`]); empty for none.
    pub token: String,
}

impl Api {
    /// Sends a request with an optional JSON body.
    ///
    /// # Errors
    /// The connection failed, or the answer is not HTTP.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.addr, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let auth = match self.token.as_str() {
            "" => String::new(),
            cookie if cookie.contains('=') => {
                format!("Cookie: {cookie}\r\nOrigin: http://{}\r\n", self.addr)
            }
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{auth}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.addr,
            body.len()
        )?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        parse(&raw).ok_or_else(|| std::io::Error::other("answer is not HTTP/1.1"))
    }

    /// GET, and the JSON of a 2xx answer.
    ///
    /// # Panics
    /// When the call fails or answers otherwise.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).unwrap_or_else(|error| panic!("GET {path}: {error}")).ok()
    }

    /// POST, and the JSON of a 2xx answer.
    ///
    /// # Panics
    /// When the call fails or answers otherwise.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", path, Some(body)).unwrap_or_else(|error| panic!("POST {path}: {error}")).ok()
    }
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let split = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..split]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let bytes = if chunked { unchunk(&raw[split + 4..])? } else { raw[split + 4..].to_vec() };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let cookie = headers.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    let cookie = cookie.filter_map(|(_, value)| value.split(';').next()).next().map(str::to_owned);
    Some(Answer { status, text, bytes, cookie })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 2 + size + 2..)?;
    }
}
