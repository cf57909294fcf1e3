use super::super::handle::ServerFacts;
use super::*;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

/// Pieces of every size give the same events: `kind|data|id`.
#[track_caller]
fn check(text: &str, expect: &[&str]) {
    for piece in 1..=text.len() {
        let mut frames = Frames::default();
        let mut told = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            for (event, id) in frames.push(bytes, Instant::now()).unwrap() {
                told.push(format!("{}|{}|{}", event.kind, event.data, id.unwrap_or_default()));
            }
        }
        assert_eq!(told, expect, "in pieces of {piece}: {text:?}");
    }
}

#[test]
fn frames_are_read_however_they_are_cut() {
    check(
        "event: alert\nid: 1-2\ndata: {\"a\":1}\n\nevent: ping\ndata:\n\n",
        &["alert|{\"a\":1}|1-2", "ping||"],
    );
    check(
        "data: one\r\ndata:two\r\n\r\n\r\n: comment\r\n\r\ndata\r\n\r\n",
        &["message|one\ntwo|", "message||"],
    );
    check("event: a\rdata: 1\r\revent: b\n\ndata: 2\n\nevent: cut\ndata: 3\n", &["a|1|", "message|2|"]);
    check("id: a b\ndata: x\n\nid:ok\nother: y\nretry: 5\ndata: x\n\n", &["message|x|", "message|x|ok"]);
    check(&format!("id:{}\ndata: x\n\n", "i".repeat(ID_BYTES_MAX + 1)), &["message|x|"]);
}

#[test]
fn an_event_is_bounded() {
    let take = |bytes: usize| {
        let text = format!("data:{}\n\n", "x".repeat(bytes - "data:".len()));
        let mut frames = Frames::default();
        frames.push(text.as_bytes(), Instant::now()).map(|found| found.len())
    };
    assert_eq!(take(EVENT_BYTES_MAX), Ok(1));
    assert_eq!(take(EVENT_BYTES_MAX + 1), Err("an event too large"));
    // Many small lines are as large as one; a dispatched event is no longer counted.
    let mut frames = Frames::default();
    let half = format!("data:{}\n", "x".repeat(EVENT_BYTES_MAX / 2));
    assert!(frames.push(half.as_bytes(), Instant::now()).is_ok());
    assert!(frames.push(half.as_bytes(), Instant::now()).is_err());
    let mut frames = Frames::default();
    for _ in 0..3 {
        assert_eq!(frames.push((half.clone() + "\n").as_bytes(), Instant::now()).unwrap().len(), 1);
    }
}

struct Fake {
    listener: TcpListener,
    handle: ServerHandle,
}

impl Fake {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = Some(listener.local_addr().unwrap().to_string());
        Self { listener, handle: ServerHandle::new(ServerFacts { http, ..ServerFacts::default() }) }
    }

    fn live(&self) -> LiveStream {
        let access = Access { tenant: "acme".into(), token: "t".into() };
        LiveStream::open(&self.handle, &access, "alert").unwrap()
    }

    /// The next connection's first line and last id.
    fn accept(&self) -> (TcpStream, String, Option<String>) {
        let mut stream = BufReader::new(self.listener.accept().unwrap().0);
        let (mut first, mut id) = (String::new(), None);
        stream.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            if let Some(text) = line.strip_prefix("Last-Event-ID: ") {
                id = Some(text.trim().to_owned());
            }
            if line == "\r\n" {
                return (stream.into_inner(), first.trim().to_owned(), id);
            }
        }
    }
}

fn head(stream: &mut TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
}

fn chunk(stream: &mut TcpStream, text: &str) {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).unwrap();
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn it_comes_back_with_the_last_id_after_ends_and_refusals() {
    let fake = Fake::new();
    let live = fake.live();
    let (mut stream, first, id) = fake.accept();
    assert_eq!((first.as_str(), id), ("GET /api/v1/tenants/acme/live?kinds=alert HTTP/1.1", None));
    head(&mut stream);
    chunk(&mut stream, "event: hello\nid: e-1\ndata: fresh\n\n");
    assert_eq!(live.next(LONG).unwrap().data, "fresh");
    chunk(&mut stream, "event: alert\nid: e-2\nda");
    chunk(&mut stream, "ta: one\n\n");
    assert_eq!(live.next(LONG).unwrap().data, "one");
    // Killed in the middle of an event.
    chunk(&mut stream, "event: alert\nid: e-3\nda");
    drop(stream);
    let (mut stream, _, id) = fake.accept();
    assert_eq!(id.as_deref(), Some("e-2"));
    stream.write_all(b"HTTP/1.1 503 Not Yet\r\nContent-Length: 0\r\n\r\n").unwrap();
    drop(stream);
    let (mut stream, _, id) = fake.accept();
    assert_eq!(id.as_deref(), Some("e-2"));
    head(&mut stream);
    chunk(&mut stream, "event: reset\nid: f-1\ndata: events were missed\n\n");
    // The server ends the stream in order.
    stream.write_all(b"0\r\n\r\n").unwrap();
    let reset = live.next(LONG).unwrap();
    assert_eq!((reset.kind.as_str(), live.opened()), ("reset", 2));
    let (_stream, _, id) = fake.accept();
    assert_eq!(id.as_deref(), Some("f-1"));
}

#[test]
fn events_wait_for_their_reader_up_to_the_bound_and_none_is_lost() {
    let fake = Fake::new();
    let live = fake.live();
    let (mut stream, ..) = fake.accept();
    head(&mut stream);
    let count = EVENTS_MAX as u64 + 500;
    let fill = |stream: &mut TcpStream, read: u64| {
        for number in 0..count {
            chunk(stream, &format!("event: alert\ndata: {number}\n\n"));
        }
        // The thread stands with one more before a full channel.
        let began = Instant::now();
        while live.read() <= read + EVENTS_MAX as u64 {
            assert!(began.elapsed() < LONG, "{} were read", live.read());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    fill(&mut stream, 0);
    for number in 0..count {
        assert_eq!(live.next(LONG).unwrap().data, number.to_string());
    }
    fill(&mut stream, count);
    // A thread that waits for room ends, too.
    drop(live);
}
