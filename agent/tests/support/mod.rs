//! A server of a few packets: enough MQTT 5 to see what the agent sends and to answer it.

// Each test file uses a part of it.
#![allow(dead_code)]

use muster_wire::{Envelope, UpClass};
use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

/// Notes for `cargo xtask test` that a test cannot run here.
pub fn skip(test: &str, why: &str) {
    let line = format!("{test}: {why}\n");
    match std::env::var_os("MUSTER_SKIPS_FILE") {
        None => eprint!("skipped {line}"),
        Some(path) => {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
    }
}

/// What the server saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Connect { will: bool },
    Subscribe { filter: String },
    Publish { topic: String, class: UpClass, queue_id: u64, seq: u64, body: Vec<u8> },
    Disconnect,
    Lost,
}

/// What the server does with one record; after the list is used up it answers 0x00.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Reason(u8),
    Hang,
    Close,
}

pub struct Broker {
    pub port: u16,
    pub seen: mpsc::UnboundedReceiver<Seen>,
    /// For records of the queue only; reports are always taken.
    pub answers: Arc<Mutex<VecDeque<Answer>>>,
    /// One permit is used for each answer to a record.
    pub gate: Arc<Semaphore>,
    /// What follows the next SUBACKs.
    pub after_suback: Arc<Mutex<VecDeque<Vec<u8>>>>,
    /// The newest connection's way out, while it is up.
    out: Arc<Mutex<Option<WeakOut>>>,
}

/// Packets on their way out, and whether they wait for the gate.
type Out = mpsc::UnboundedSender<(bool, Vec<u8>)>;
type WeakOut = mpsc::WeakUnboundedSender<(bool, Vec<u8>)>;

/// Permits that no test uses up.
const OPEN: usize = 1_000_000;

impl Broker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = mpsc::unbounded_channel();
        let answers: Arc<Mutex<VecDeque<Answer>>> = Arc::default();
        let (plan, gate) = (Arc::clone(&answers), Arc::new(Semaphore::new(OPEN)));
        let after_suback: Arc<Mutex<VecDeque<_>>> = Arc::default();
        let out: Arc<Mutex<Option<WeakOut>>> = Arc::default();
        let newest = Arc::clone(&out);
        let broker = Self {
            port,
            seen,
            answers,
            gate: Arc::clone(&gate),
            after_suback: Arc::clone(&after_suback),
            out,
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (plan, gate, after) = (Arc::clone(&plan), Arc::clone(&gate), Arc::clone(&after_suback));
                let (replies, waiting) = mpsc::unbounded_channel();
                *newest.lock().unwrap() = Some(replies.downgrade());
                tokio::spawn(serve(stream, sender.clone(), plan, gate, after, (replies, waiting)));
            }
        });
        broker
    }

    /// Sends a packet on the newest connection.
    pub fn send(&self, packet: Vec<u8>) {
        let out = self.out.lock().unwrap();
        let out = out.as_ref().and_then(WeakOut::upgrade).expect("a connection that is up");
        out.send((false, packet)).expect("it is up");
    }

    pub fn close_gate(&self) {
        self.gate.forget_permits(OPEN);
    }

    pub fn open_gate(&self) {
        self.gate.add_permits(OPEN);
    }

    pub fn plan(&self, answers: &[Answer]) {
        self.answers.lock().unwrap().extend(answers);
    }

    pub async fn next(&mut self) -> Seen {
        let deadline = std::time::Duration::from_secs(30);
        tokio::time::timeout(deadline, self.seen.recv()).await.expect("the agent is silent").unwrap()
    }

    /// The next publish of a class, with its seq.
    pub async fn next_of(&mut self, wanted: UpClass) -> (u64, Vec<u8>) {
        loop {
            if let Seen::Publish { class, seq, body, .. } = self.next().await
                && class == wanted
            {
                return (seq, body);
            }
        }
    }
}

async fn packet(stream: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((kind, body))
}

fn text(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).unwrap(), &bytes[2 + length..])
}

/// What is seen of a PUBLISH, its seq, and its packet id where it has one.
fn publish(kind: u8, body: &[u8]) -> (Seen, u64, Option<[u8; 2]>) {
    let (topic, rest) = text(body);
    let (id, payload) =
        if kind & 0b0110 == 0 { (None, &rest[1..]) } else { (Some([rest[0], rest[1]]), &rest[3..]) };
    let envelope = Envelope::decode(payload).unwrap();
    let (class, queue_id, seq) = (envelope.class, envelope.queue_id.0, envelope.seq);
    (Seen::Publish { topic, class, queue_id, seq, body: envelope.body.to_vec() }, seq, id)
}

async fn serve(
    stream: TcpStream,
    seen: mpsc::UnboundedSender<Seen>,
    plan: Arc<Mutex<VecDeque<Answer>>>,
    gate: Arc<Semaphore>,
    after_suback: Arc<Mutex<VecDeque<Vec<u8>>>>,
    (replies, mut waiting): (Out, mpsc::UnboundedReceiver<(bool, Vec<u8>)>),
) {
    let (mut stream, mut out) = stream.into_split();
    // Answers wait for the gate without holding up what is read.
    tokio::spawn(async move {
        while let Some((gated, reply)) = waiting.recv().await {
            if gated && let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
            if out.write_all(&reply).await.is_err() {
                return;
            }
        }
    });
    loop {
        let Ok((kind, body)) = packet(&mut stream).await else {
            let _ = seen.send(Seen::Lost);
            return;
        };
        let mut gated = false;
        let reply: Vec<u8> = match kind >> 4 {
            1 => {
                let _ = seen.send(Seen::Connect { will: body[7] & 4 != 0 });
                // Session not present, success, Receive Maximum 32.
                vec![0x20, 6, 0, 0, 3, 0x21, 0, 32]
            }
            3 => {
                let (publish, seq, id) = publish(kind, &body);
                let _ = seen.send(publish);
                let Some(id) = id else { continue };
                gated = seq != 0;
                let answer = if seq == 0 { None } else { plan.lock().unwrap().pop_front() };
                match answer.unwrap_or(Answer::Reason(0)) {
                    Answer::Reason(reason) => vec![0x40, 3, id[0], id[1], reason],
                    Answer::Hang => continue,
                    Answer::Close => {
                        let _ = seen.send(Seen::Lost);
                        return;
                    }
                }
            }
            8 => {
                let (filter, _) = text(&body[3..]);
                let _ = seen.send(Seen::Subscribe { filter });
                let after = after_suback.lock().unwrap().pop_front().unwrap_or_default();
                [vec![0x90, 4, body[0], body[1], 0, 1], after].concat()
            }
            12 => vec![0xd0, 0],
            14 => {
                let _ = seen.send(Seen::Disconnect);
                return;
            }
            _ => continue,
        };
        if replies.send((gated, reply)).is_err() {
            return;
        }
    }
}
