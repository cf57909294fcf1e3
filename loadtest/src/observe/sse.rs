//! `GET /api/v1/tenants/{tenant}/live` on a thread: server-sent events with the time at which each arrived.
//!
//! `probe` reads it. It reconnects for ever, [`RECONNECT_DELAY_MIN`] to [`RECONNECT_DELAY_MAX`] after an end, with the last
//! id that it saw, so that nothing is missed where the server still knows; where it does not, an event `reset` comes
//! and the reader has to ask the API for the state. A server that says nothing for [`SILENCE_MAX`] is left: its
//! heartbeat comes every 15 s.
//!
//! Bounds: [`EVENTS_MAX`] events wait for their reader, then the stream is not read on (the server ends one that
//! lags, and the thread comes back for what was missed); [`EVENT_BYTES_MAX`] an event, more ends the connection.

use super::chunked::Chunks;
use super::handle::{Access, ServerHandle};
use super::http::{self, Credential, HttpError, Timed};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Events that wait for their reader.
pub const EVENTS_MAX: usize = 4096;
/// The largest event, its field names included.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;
/// The longest id that is sent back.
pub const ID_BYTES_MAX: usize = 256;
/// The longest silence: three of the server's heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(45);
/// The first wait after the end of a connection.
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// The longest.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);
/// The longest wait for an answer's head.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// Between two looks at whether to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// An event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveEvent {
    /// When its last byte was read.
    pub at: Instant,
    /// `alert`, `reading`...; also `hello`, `reset`, `ping` and `end`.
    pub kind: String,
    /// What it holds.
    pub data: String,
}

/// A stream that is read by a thread of its own; dropping it ends the thread.
pub struct LiveStream {
    events: Option<Receiver<LiveEvent>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
    read: AtomicU64,
}

impl LiveStream {
    /// Streams `kinds` (with commas between) of a tenant from now on, as soon as the server is there.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn open(server: &ServerHandle, access: &Access, kinds: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, events) = sync_channel(EVENTS_MAX);
        let path = access.path(&format!("live?kinds={kinds}"));
        let source =
            Source { server: server.clone(), credential: Credential::Token(access.token.clone()), path };
        let reader = Reader { source, sender, shared: shared.clone(), last_id: None };
        let thread = std::thread::Builder::new().name("live".into()).spawn(move || reader.run());
        let thread = Some(thread.context("cannot start a thread")?);
        Ok(Self { events: Some(events), shared, thread })
    }

    /// The next event; none within the time.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<LiveEvent> {
        match self.events.as_ref()?.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            // The thread ended, which only happens on the way out.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(timeout);
                None
            }
        }
    }

    /// How many times the stream was opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Acquire)
    }

    /// How many events were read from it, those that wait for their reader included.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.shared.read.load(Ordering::Acquire)
    }
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // A thread that waits for room to send is let go.
        self.events = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Source {
    server: ServerHandle,
    credential: Credential,
    path: String,
}

struct Reader {
    source: Source,
    sender: SyncSender<LiveEvent>,
    shared: Arc<Shared>,
    last_id: Option<String>,
}

/// Why a connection is over.
enum Over {
    /// Come back.
    Ended,
    /// The reader went away.
    Stopped,
}

impl Reader {
    fn run(mut self) {
        let mut delay = RECONNECT_DELAY_MIN;
        while !self.is_stopped() {
            let opened = self.shared.opened.load(Ordering::Acquire);
            if let Ok(Over::Stopped) = self.stream() {
                return;
            }
            let has_worked = self.shared.opened.load(Ordering::Acquire) > opened;
            delay = if has_worked { RECONNECT_DELAY_MIN } else { (delay * 2).min(RECONNECT_DELAY_MAX) };
            let until = Instant::now() + delay;
            while !self.is_stopped() && Instant::now() < until {
                std::thread::sleep(LOOK_INTERVAL.min(until.saturating_duration_since(Instant::now())));
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Reads one connection to its end.
    fn stream(&mut self) -> Result<Over, HttpError> {
        let Source { server, credential, path } = &self.source;
        let more = match &self.last_id {
            Some(id) => format!("Last-Event-ID: {id}\r\n"),
            None => String::new(),
        };
        let deadline = Instant::now() + HEAD_TIME_MAX;
        let (mut stream, head) = http::open(server, credential, path, &more, deadline)?;
        if head.status != 200 {
            return Err(HttpError::Malformed("no stream"));
        }
        let mut chunks = head.chunked.then(Chunks::default);
        let (mut frames, mut text) = (Frames::default(), Vec::new());
        let mut heard = Instant::now();
        loop {
            if self.is_stopped() {
                return Ok(Over::Stopped);
            }
            let taken = match fill(&mut stream)? {
                None if heard.elapsed() > SILENCE_MAX => return Ok(Over::Ended),
                None => continue,
                Some([]) => return Ok(Over::Ended),
                Some(bytes) => match &mut chunks {
                    Some(chunks) => chunks.push(bytes, &mut text).map_err(HttpError::Malformed)?,
                    None => {
                        text.extend_from_slice(bytes);
                        bytes.len()
                    }
                },
            };
            heard = Instant::now();
            stream.consume(taken);
            let found = frames.push(&text, heard).map_err(HttpError::Malformed)?;
            text.clear();
            for event in found {
                if !self.hand_on(event) {
                    return Ok(Over::Stopped);
                }
            }
            if chunks.as_ref().is_some_and(Chunks::is_done) {
                return Ok(Over::Ended);
            }
        }
    }

    /// False where nobody reads any more.
    fn hand_on(&mut self, (event, id): (LiveEvent, Option<String>)) -> bool {
        if id.is_some() {
            self.last_id = id;
        }
        if matches!(event.kind.as_str(), "hello" | "reset") {
            self.shared.opened.fetch_add(1, Ordering::AcqRel);
        }
        self.shared.read.fetch_add(1, Ordering::AcqRel);
        self.sender.send(event).is_ok()
    }
}

/// What is there to read; none where nothing came for a while.
fn fill(stream: &mut BufReader<Timed>) -> Result<Option<&[u8]>, HttpError> {
    stream.get_mut().deadline = Instant::now() + LOOK_INTERVAL;
    match stream.fill_buf() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Interrupted) => Ok(None),
        Err(source) => Err(HttpError::Broken { host: String::new(), source }),
    }
}

/// Takes a text/event-stream apart as it comes. Its `retry` is not obeyed: a probe comes back sooner than a page.
#[derive(Default)]
struct Frames {
    line: Vec<u8>,
    /// The byte before was a carriage return: a line feed belongs to it.
    after_return: bool,
    kind: String,
    data: Option<String>,
    id: Option<String>,
    bytes: usize,
}

impl Frames {
    /// Takes text, answers the events that it completes, each with the id that it sets.
    ///
    /// # Errors
    /// An event that is too large.
    fn push(&mut self, text: &[u8], at: Instant) -> Result<Vec<(LiveEvent, Option<String>)>, &'static str> {
        let mut found = Vec::new();
        for byte in text {
            let continues_break = std::mem::take(&mut self.after_return) && *byte == b'\n';
            if continues_break {
                continue;
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.bytes += 1;
                if self.bytes > EVENT_BYTES_MAX {
                    return Err("an event too large");
                }
                self.line.push(*byte);
                continue;
            }
            self.after_return = *byte == b'\r';
            let line = std::mem::take(&mut self.line);
            found.extend(self.take_line(&String::from_utf8_lossy(&line), at));
        }
        Ok(found)
    }

    fn take_line(&mut self, line: &str, at: Instant) -> Option<(LiveEvent, Option<String>)> {
        if line.is_empty() {
            self.bytes = 0;
            let (kind, id) = (std::mem::take(&mut self.kind), self.id.take());
            let kind = if kind.is_empty() { "message".to_owned() } else { kind };
            return Some((LiveEvent { at, kind, data: self.data.take()? }, id));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // It becomes a header of the next request.
            "id" if value.len() <= ID_BYTES_MAX && value.bytes().all(|byte| byte.is_ascii_graphic()) => {
                self.id = Some(value.to_owned());
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
