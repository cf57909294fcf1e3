use super::super::handle::ServerFacts;
use super::*;
use serde_json::json;
use std::io::BufRead as _;
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Answers each connection with the next list of texts, one a request, and tells the requests.
fn fake(connections: Vec<Vec<String>>) -> (ServerHandle, mpsc::Receiver<String>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = Some(listener.local_addr().unwrap().to_string());
    let (told, requests) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for answers in connections {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            for answer in answers {
                let Some(request) = read_request(&mut stream) else { break };
                told.send(request).unwrap();
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    (ServerHandle::new(ServerFacts { http, ..ServerFacts::default() }), requests, thread)
}

fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some(text + std::str::from_utf8(&body).unwrap())
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn one_connection_is_kept_and_a_closed_one_is_made_anew_once() {
    let (server, requests, thread) = fake(vec![vec![ok("1"), ok("2")], vec![ok("3")]]);
    let mut client = Client::new(&server, "secret");
    assert_eq!(client.get("/a").unwrap(), json!(1));
    assert_eq!(client.post("/b", &json!({ "x": 1 })).unwrap(), json!(2));
    // The server closed the first connection behind its second answer.
    assert_eq!(client.get("/c").unwrap(), json!(3));
    thread.join().unwrap();
    let requests: Vec<String> = requests.iter().collect();
    let first: Vec<&str> = requests.iter().map(|text| text.lines().next().unwrap()).collect();
    assert_eq!(first, ["GET /a HTTP/1.1", "POST /b HTTP/1.1", "GET /c HTTP/1.1"]);
    assert!(
        requests.iter().all(|text| text.contains("\r\nAuthorization: Bearer secret\r\n")),
        "{requests:?}"
    );
    assert!(requests[1].ends_with("Content-Length: 7\r\n\r\n{\"x\":1}"), "{}", requests[1]);
    // Nobody listens any more.
    let error = client.get("/d").unwrap_err();
    assert!(error.is_passing() && matches!(error, HttpError::Down(_)), "{error}");
}

#[test]
fn a_server_that_came_back_elsewhere_is_found() {
    let (server, _requests, thread) = fake(vec![vec![ok("1"), ok("never")]]);
    let mut client = Client::with(&server, Credential::Session("muster_session=s".into()));
    assert_eq!(client.get("/a").unwrap(), json!(1));
    server.change(|facts| facts.http = None);
    assert!(matches!(client.get("/a").unwrap_err(), HttpError::Down(_)));
    let (elsewhere, requests, other) = fake(vec![vec![ok("2")]]);
    server.change(|facts| *facts = elsewhere.facts());
    assert_eq!(client.get("/a").unwrap(), json!(2));
    let origin =
        format!("\r\nCookie: muster_session=s\r\nOrigin: http://{}\r\n", elsewhere.facts().http.unwrap());
    assert!(requests.recv().unwrap().contains(&origin));
    drop(client);
    thread.join().unwrap();
    other.join().unwrap();
}

#[test]
fn a_refusal_tells_its_status_and_a_call_its_limit() {
    let refusal = format!("HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n{}", "é".repeat(500));
    let (server, _requests, thread) = fake(vec![vec![refusal]]);
    let error = Client::new(&server, "t").get("/x").unwrap_err();
    thread.join().unwrap();
    assert_eq!((error.status(), error.is_passing()), (Some(404), false));
    assert_eq!(error.to_string(), format!("GET /x answered 404: {}", "é".repeat(SHOWN_BYTES_MAX / 2)));
    // A server that never accepts: the system does for it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    server.change(|facts| facts.http = Some(silent.local_addr().unwrap().to_string()));
    let mut client = Client::new(&server, "t").time_max(Duration::from_millis(50));
    let Err(HttpError::Broken { source, .. }) = client.get("/x") else { panic!("nothing was answered") };
    assert_eq!(source.kind(), ErrorKind::TimedOut);
}

#[test]
fn a_request_cannot_be_split() {
    let (server, ..) = fake(vec![]);
    for (token, path) in [("t", "/a b"), ("t", "/a\r\nX: y"), ("t\n", "/a")] {
        let error = Client::new(&server, token).get(path).unwrap_err();
        assert!(matches!(error, HttpError::Request | HttpError::Down(_)), "{error}");
    }
    let (server, ..) = fake(vec![vec![]]);
    let error = Client::new(&server, "t\r\nX: y").get("/a").unwrap_err();
    assert!(matches!(error, HttpError::Request), "{error}");
}

#[test]
fn reads_and_writes_end_at_their_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Nobody writes: only a deadline ends the read.
    let mut timed = open_stream(&address, Instant::now() + Duration::from_millis(20)).unwrap();
    assert_eq!(timed.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(timed.write(&[0]).unwrap_err().kind(), ErrorKind::TimedOut);
}

type Told = (u16, String, bool);

#[track_caller]
fn check(text: &str, expect: Result<(u16, &str, bool), &str>) {
    let read = |mut text: &[u8]| -> Result<Told, Unread> {
        let head = read_head(&mut text)?;
        let (body, keep) = read_body(&mut text, &head, BODY_BYTES_MAX)?;
        Ok((head.status, String::from_utf8(body).unwrap(), keep))
    };
    let told = read(text.as_bytes()).map_err(|error| match error {
        Unread::Malformed(why) => why.to_owned(),
        Unread::Io(error) => error.kind().to_string(),
    });
    let told =
        told.as_ref().map(|(status, body, keep)| (*status, body.as_str(), *keep)).map_err(String::as_str);
    assert_eq!(told, expect, "{}", &text[..text.len().min(200)]);
}

#[test]
fn answers_of_every_framing_are_read() {
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}rest", Ok((200, "{}", true)));
    check("HTTP/1.1 204 No Content\r\n\r\n", Ok((204, "", true)));
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", Ok((200, "{}", true)));
    check("HTTP/1.1 404 Not Found\r\nConnection: Close\r\n\r\nno", Ok((404, "no", false)));
    check("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n1", Ok((200, "1", false)));
}

#[test]
fn cut_hostile_and_endless_answers_are_errors() {
    let eof = "unexpected end of file";
    check("", Err(eof));
    check("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", Err(eof));
    check("HTTP/1.1 200 OK\r\nContent-Le", Err(eof));
    check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", Err(eof));
    check("nonsense\r\n\r\n", Err("no status line"));
    check("HTTP/1.1 99 OK\r\n\r\n", Err("no status"));
    check("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Err("a length that is none"));
    check("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", Err("a header without a colon"));
    let head = |more: &str| format!("HTTP/1.1 200 OK\r\n{more}\r\n");
    check(&head(&"A: b\r\n".repeat(HEADERS_MAX - 1)), Ok((200, "", false)));
    check(&head(&"A: b\r\n".repeat(HEADERS_MAX)), Err("too many headers"));
    // The line's own bytes and its end.
    let long = |bytes: usize| head(&format!("A:{}\r\n", "b".repeat(bytes - 4)));
    check(&long(LINE_BYTES_MAX), Ok((200, "", false)));
    check(&long(LINE_BYTES_MAX + 1), Err("a line too long"));
    let length = |bytes: usize| head(&format!("Content-Length: {bytes}\r\n"));
    check(&length(BODY_BYTES_MAX), Err(eof));
    check(&length(BODY_BYTES_MAX + 1), Err("a body too large"));
    check(&(head("") + &"b".repeat(BODY_BYTES_MAX + 1)), Err("a body too large"));
    let chunk = format!("100000\r\n{}\r\n", "b".repeat(0x10_0000));
    let chunked = head("Transfer-Encoding: chunked\r\n");
    check(&(chunked.clone() + &chunk.repeat(17)), Err("a body too large"));
}
