//! A small HTTP server on the loopback address that the tests of this tree answer from.

use super::handle::{Access, ServerFacts, ServerHandle};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as a test looks at it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without its query.
    pub(super) path: String,
    pub(super) query: HashMap<String, String>,
    /// Header names are in small letters.
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Request {
    pub(super) fn number(&self, name: &str) -> i64 {
        self.query[name].parse().unwrap()
    }

    pub(super) fn token(&self) -> &str {
        self.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("")
    }
}

/// A status and a body; `Err` is sent as it is, and the connection ends.
pub(super) type Reply = Result<(u16, String), Vec<u8>>;

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// The server: a thread a connection; they end with the test's process.
pub(super) struct Fake {
    pub(super) handle: ServerHandle,
    pub(super) requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub(super) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let http = Some(address.to_string());
        let handle = ServerHandle::new(ServerFacts { http, ..ServerFacts::default() });
        let (requests, answer) =
            (Arc::<Mutex<Vec<Request>>>::default(), Arc::<Answer>::from(Box::new(answer) as Box<Answer>));
        let told = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (told, answer) = (told.clone(), answer.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &told, &*answer));
            }
        });
        Self { handle, requests }
    }

    pub(super) fn access(&self, tenant: &str) -> Access {
        Access { tenant: tenant.into(), token: format!("token-of-{tenant}") }
    }
}

fn serve(stream: TcpStream, told: &Mutex<Vec<Request>>, answer: &Answer) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        told.lock().unwrap().push(request.clone());
        match answer(&request) {
            Ok((status, body)) => {
                let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                if stream.get_mut().write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
            Err(raw) => {
                let _ = stream.get_mut().write_all(&raw);
                return;
            }
        }
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let query = query.split('&').filter_map(pair).collect();
    let (path, mut headers) = (path.to_owned(), HashMap::new());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, path, query, headers, body: String::from_utf8(body).unwrap() })
}
