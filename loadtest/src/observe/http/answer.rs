//! An answer of HTTP/1.1, read from bytes that nobody vouches for.
//!
//! Called by `http`, and by `enrol::exchange` behind its TLS; the bounds are theirs.

use super::super::chunked::Chunks;
use super::{HEADERS_MAX, HttpError, LINE_BYTES_MAX};
use std::io::{self, BufRead, ErrorKind, Read as _};

/// What stands before an answer's body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    length: Option<usize>,
    pub(in crate::observe) chunked: bool,
    closes: bool,
    /// The server says when to come again.
    pub(crate) retries: bool,
    pub(super) cookie: Option<String>,
}

/// Why an answer cannot be read; the caller knows whose it is.
#[derive(Debug)]
pub(crate) enum Unread {
    Io(io::Error),
    Malformed(&'static str),
}

impl Unread {
    pub(super) fn of(self, host: &str) -> HttpError {
        match self {
            Self::Io(source) => HttpError::Broken { host: host.to_owned(), source },
            Self::Malformed(why) => HttpError::Malformed(why),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(crate) fn read_head(stream: &mut impl BufRead) -> Result<Head, Unread> {
    let line = read_line(stream)?;
    let version = line.strip_prefix("HTTP/1.").ok_or(Unread::Malformed("no status line"))?;
    let status = version.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.filter(|status| (100..600).contains(status)).ok_or(Unread::Malformed("no status"))?;
    let mut head = Head { status, closes: version.starts_with('0'), ..Head::default() };
    for _ in 0..HEADERS_MAX {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line.split_once(':').ok_or(Unread::Malformed("a header without a colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                head.length = Some(value.parse().map_err(|_| Unread::Malformed("a length that is none"))?);
            }
            "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => head.closes |= value.eq_ignore_ascii_case("close"),
            "retry-after" => head.retries = true,
            "set-cookie" if head.cookie.is_none() => {
                head.cookie = value.split(';').next().map(|pair| pair.trim().to_owned());
            }
            _ => {}
        }
    }
    Err(Unread::Malformed("too many headers"))
}

fn read_line(stream: &mut impl BufRead) -> Result<String, Unread> {
    let mut line = Vec::new();
    let mut limited = stream.take(LINE_BYTES_MAX as u64);
    limited.read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => {}
        _ if line.len() >= LINE_BYTES_MAX => return Err(Unread::Malformed("a line too long")),
        _ => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
    }
    let text = String::from_utf8(line).map_err(|_| Unread::Malformed("a head that is no text"))?;
    Ok(text.trim_end().to_owned())
}

/// Reads the body, of `bytes_max` at most; tells whether the connection can be kept.
pub(crate) fn read_body(
    stream: &mut impl BufRead,
    head: &Head,
    bytes_max: usize,
) -> Result<(Vec<u8>, bool), Unread> {
    const TOO_LARGE: Unread = Unread::Malformed("a body too large");
    let mut body = Vec::new();
    if head.chunked {
        let mut chunks = Chunks::default();
        while !chunks.is_done() {
            let bytes = stream.fill_buf()?;
            if bytes.is_empty() {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
            let taken = chunks.push(bytes, &mut body).map_err(Unread::Malformed)?;
            stream.consume(taken);
            if body.len() > bytes_max {
                return Err(TOO_LARGE);
            }
        }
        return Ok((body, !head.closes));
    }
    match head.length {
        _ if head.status == 204 || head.status == 304 || head.status < 200 => Ok((body, !head.closes)),
        Some(length) if length > bytes_max => Err(TOO_LARGE),
        Some(length) => {
            body.resize(length, 0);
            stream.read_exact(&mut body)?;
            Ok((body, !head.closes))
        }
        None => {
            stream.take(bytes_max as u64 + 1).read_to_end(&mut body)?;
            if body.len() > bytes_max { Err(TOO_LARGE) } else { Ok((body, false)) }
        }
    }
}
