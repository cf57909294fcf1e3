//! The smallest HTTP/1.1 client that talks to the admin API on loopback: blocking, JSON, one connection kept.
//!
//! Called by `demo` and `bench`. The load generator has a larger one (`observe::http`), whose crate would make every
//! `cargo xtask` build TLS and an embedded database first. No TLS: the API's listener is plain and on this machine.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Header lines of one answer.
const HEADERS_MAX: usize = 100;

/// An API with its bearer token.
pub(crate) struct Client {
    address: SocketAddr,
    /// Header lines that say who asks.
    credentials: String,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer's status and body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As text, with what is none replaced.
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
    /// The cookie that it sets, as the next request sends it.
    pub(crate) session: Option<String>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, token: &str) -> Self {
        Self { address, credentials: format!("Authorization: Bearer {token}\r\n"), stream: None }
    }

    /// As a browser with a session's cookie.
    pub(crate) fn with_session(address: SocketAddr, cookie: &str) -> Self {
        let credentials = format!("Cookie: {cookie}\r\nOrigin: http://{address}\r\n");
        Self { address, credentials, stream: None }
    }

    /// GET, and the JSON of a 2xx answer.
    pub(crate) fn get(&mut self, path: &str) -> Result<Value> {
        self.json("GET", path, None)
    }

    /// POST, and the JSON of a 2xx answer (null where it has no body).
    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.json("POST", path, Some(body))
    }

    /// POST without a body: a server need not read one that it does not expect, and then closes the connection.
    pub(crate) fn post_nothing(&mut self, path: &str) -> Result<Value> {
        self.json("POST", path, None)
    }

    /// PUT, and the JSON of a 2xx answer.
    pub(crate) fn put(&mut self, path: &str, body: &Value) -> Result<Value> {
        self.json("PUT", path, Some(body))
    }

    /// GET, and the bytes of a 2xx answer.
    pub(crate) fn download(&mut self, path: &str) -> Result<Vec<u8>> {
        let answer = self.call("GET", path, None)?;
        if !(200..300).contains(&answer.status) {
            bail!("GET {path} answered {}: {}", answer.status, answer.body.trim());
        }
        Ok(answer.bytes)
    }

    fn json(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.call(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path} answered {}: {}", answer.status, answer.body.trim());
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer.body).with_context(|| format!("{method} {path} answered no JSON"))
    }

    /// Any request. A kept connection that the server closed meanwhile is made anew, once.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let kept = self.stream.is_some();
        match self.exchange(method, path, body) {
            Err(_) if kept => {
                self.stream = None;
                self.exchange(method, path, body)
            }
            other => other,
        }
        .inspect_err(|_| self.stream = None)
        .with_context(|| format!("{method} {path} at {}", self.address))
    }

    fn exchange(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        if self.stream.is_none() {
            let stream =
                TcpStream::connect_timeout(&self.address, ANSWER_TIMEOUT).context("cannot connect")?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_nodelay(true)?;
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut().context("the connection was just made")?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{}", self.address, self.credentials);
        if !body.is_empty() {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        stream.get_mut().write_all(format!("{head}\r\n{body}").as_bytes()).context("cannot send")?;
        let (answer, keep) = read_answer(stream)?;
        if !keep {
            self.stream = None;
        }
        Ok(answer)
    }
}

/// Reads one answer; tells whether the connection can be kept.
fn read_answer(stream: &mut impl BufRead) -> Result<(Answer, bool)> {
    let line = read_line(stream)?;
    let status: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    let (mut length, mut chunked, mut keep, mut session) = (None, false, true, None);
    for _ in 0..HEADERS_MAX {
        let line = read_line(stream)?;
        let Some((name, value)) = line.split_once(':') else { break };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => length = Some(value.parse::<usize>().context("bad Content-Length")?),
            ("transfer-encoding", "chunked") => chunked = true,
            ("connection", "close") => keep = false,
            ("set-cookie", value) => session = value.split(';').next().map(str::to_owned),
            _ => {}
        }
    }
    let body = if chunked {
        read_chunks(stream)?
    } else {
        match length {
            _ if status == 204 || status == 304 => Vec::new(),
            Some(length) => read_exactly(stream, length)?,
            None => {
                keep = false;
                let mut body = Vec::new();
                stream.take(BODY_BYTES_MAX as u64).read_to_end(&mut body)?;
                body
            }
        }
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    Ok((Answer { status, body: text, bytes: body, session }, keep))
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).context("no answer")? == 0 {
        bail!("the connection was closed");
    }
    Ok(line.trim_end().to_owned())
}

fn read_exactly(stream: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    if length > BODY_BYTES_MAX {
        bail!("an answer of {length} bytes");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("the answer was cut")?;
    Ok(body)
}

fn read_chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(size, 16).context("bad chunk")?;
        if body.len() + length > BODY_BYTES_MAX {
            bail!("an answer of more than {BODY_BYTES_MAX} bytes");
        }
        body.extend(read_exactly(stream, length)?);
        // The empty line behind a chunk, and behind the last one.
        read_line(stream)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, status: u16, body: &str, keep: bool) {
        let (answer, kept) = read_answer(&mut text.as_bytes()).unwrap();
        assert_eq!((answer.status, answer.body.as_str(), kept), (status, body, keep), "{text}");
    }

    #[test]
    fn answers_of_every_framing_are_read() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest", 200, "{}", true);
        check("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true);
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200, "{}", true);
        check("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nno", 404, "no", false);
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        for text in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "nonsense\r\n\r\n"] {
            assert!(read_answer(&mut text.as_bytes()).is_err(), "{text}");
        }
    }
}
