//! One connection after its CONNACK: a hand-written future that owns the socket.
//!
//! Spawned by `connect`. Each turn: what became durable is acknowledged, what waited for room is tried
//! again, packets are read and answered, waiting messages are sent, and all of it is written at once.
//! Buffers for reading and writing belong to the thread; a connection keeps bytes of its own only while a
//! packet is incomplete or a write is blocked, so an idle one holds none.
//!
//! Promise: PUBACKs go out in the order of the PUBLISHes (MQTT-4.6.0-2), refusals included, each after its
//! record is durable. When the log is full the PUBLISH waits here, at most [`PENDING_BYTES_MAX`] of them
//! are read so that control packets pass, then the socket is left alone and the keep-alive clock stands.

mod intake;

use super::Core;
use super::codec::{self, FrameError, Incoming, Publish, Version};
use super::down::{self, Down};
use super::encode;
use super::link::Link;
use super::rate::Bucket;
use super::reason::{CloseReason, Refusal};
use super::stream::{Stream, close_with};
use crate::usage::Allowance;
use bytes::BytesMut;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Bytes of PUBLISHes that a connection may have waiting for room before it is no longer read.
pub(crate) const PENDING_BYTES_MAX: usize = 8 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Reads in one turn, so that one busy connection does not hold up the others.
const READS_PER_TURN: usize = 4;
/// Unwritten bytes beyond which a connection is not read: its client does not read either.
const OUT_BYTES_MAX: usize = 64 * 1024;
/// Unacknowledged PUBLISHes of an MQTT 3.1.1 client, which cannot be told a maximum.
pub(crate) const UNACKED_MAX_V3: usize = 1_024;
/// An incomplete packet of up to this size is copied to the read buffer rather than read in place.
const TAIL_COPY_MAX: usize = 4 * 1024;

struct Scratch {
    read: BytesMut,
    out: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { read: BytesMut::with_capacity(READ_BYTES), out: Vec::with_capacity(READ_BYTES) });
}

struct Ack {
    /// Sent once this is durable; 0 at once.
    position: u64,
    packet_id: u16,
    code: u8,
}

/// What became of a PUBLISH.
enum Outcome {
    Done,
    /// Keep it and try again soon: there may be room, or the rate earned something.
    Wait,
    /// Keep it until quotas change; the board's number of changes before it was asked.
    Park(u64),
}

/// Why the first waiting message is held, other than for want of room.
struct Held {
    by: Refusal,
    /// The reasons that its tenant's refusals count it under already, a bit each.
    counted: u16,
}

/// A connection past its CONNACK.
pub(crate) struct Connection {
    core: Arc<Core>,
    link: Arc<Link>,
    stream: Option<Stream>,
    version: Version,
    needs_flush: bool,
    /// Not read in this turn, though something may be there.
    paused: bool,
    /// Messages wait for room in the write buffer.
    unsent: bool,
    bucket: Bucket,
    /// The tenant's, shared by all its connections.
    allowance: Arc<Allowance>,
    /// The tick in which a quota refused a message: what was read is answered, nothing more is read until the next one.
    over_at_tick: Option<u32>,
    acks: VecDeque<Ack>,
    waiting: VecDeque<Publish>,
    waiting_bytes: usize,
    held: Option<Held>,
    /// Bytes read but not yet taken: an incomplete packet, or packets while the connection waits.
    tail: BytesMut,
    out: Vec<u8>,
    down: Down,
    ended: CloseReason,
}

/// What `connect` knows of a client.
pub(crate) struct Opened {
    pub(crate) link: Arc<Link>,
    pub(crate) stream: Stream,
    pub(crate) version: Version,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: Option<u32>,
    /// Bytes that came behind the CONNECT.
    pub(crate) tail: BytesMut,
    /// The CONNACK.
    pub(crate) out: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(core: Arc<Core>, opened: Opened) -> Self {
        let bucket = Bucket::full(core.rate(), core.tick());
        let allowance = core.quotas.of(opened.link.tenant());
        let down = Down::new(opened.receive_maximum, opened.packet_bytes_max);
        Self {
            core,
            link: opened.link,
            stream: Some(opened.stream),
            version: opened.version,
            needs_flush: false,
            paused: false,
            unsent: false,
            bucket,
            allowance,
            over_at_tick: None,
            acks: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            held: None,
            tail: opened.tail,
            out: opened.out,
            down,
            // What stands in the record if this future is dropped or panics before its end.
            ended: CloseReason::ServerFault,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        let Scratch { read, out } = scratch;
        out.clear();
        out.append(&mut std::mem::take(&mut self.out));
        let turned = self.turn(cx, read, out);
        match turned.and_then(|()| self.write(cx, out)) {
            Ok(()) => {
                // What held us up may be gone within this turn; then nobody else will call again.
                if (self.paused && self.may_take(out)) || (self.unsent && out.len() < OUT_BYTES_MAX) {
                    cx.waker().wake_by_ref();
                }
                self.out = out.as_slice().to_vec();
                Poll::Pending
            }
            Err(reason) => {
                self.end(reason, out);
                Poll::Ready(())
            }
        }
    }

    fn turn(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<(), CloseReason> {
        if let Some(reason) = self.link.close_asked() {
            return Err(reason);
        }
        self.acknowledge(out);
        self.retry_waiting()?;
        self.read(cx, read, out)?;
        self.unsent = self.down.send(&self.core.metrics, &self.link, self.version, out, OUT_BYTES_MAX);
        self.acknowledge(out);
        while let Some(first) = self.acks.front() {
            self.core.acks.wait(first.position, &self.link);
            if first.position >= self.core.acks.durable_next() {
                break;
            }
            self.acknowledge(out);
        }
        Ok(())
    }

    /// Answers what became durable.
    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        if self.acks.is_empty() {
            return;
        }
        let durable_next = self.core.acks.durable_next();
        while let Some(ack) = self.acks.front().filter(|ack| ack.position < durable_next) {
            encode::puback(out, self.version, ack.packet_id, ack.code);
            self.acks.pop_front();
        }
        if self.acks.is_empty() {
            self.acks = VecDeque::new();
        }
    }

    fn retry_waiting(&mut self) -> Result<(), CloseReason> {
        if self.link.is_parked.load(Ordering::Acquire) {
            return Ok(());
        }
        while let Some(publish) = self.waiting.pop_front() {
            match self.take_publish(&publish)? {
                Outcome::Done => {
                    self.waiting_bytes -= publish.bytes();
                    self.held = None;
                }
                outcome => {
                    self.waiting.push_front(publish);
                    self.stand(&outcome);
                    return Ok(());
                }
            }
        }
        self.waiting = VecDeque::new();
        Ok(())
    }

    /// Whether a quota refused a message in this tick. A tenant that sends on regardless costs the others one read a
    /// tick and connection, not all the turns that there are.
    fn is_over(&self) -> bool {
        self.over_at_tick == Some(self.core.tick())
    }

    /// Whether another packet may be taken; says to `live` whether it is us who does not read.
    fn may_take(&self, out: &[u8]) -> bool {
        let unacked_max = if self.version == Version::Three { UNACKED_MAX_V3 } else { usize::MAX };
        let by_us =
            self.waiting_bytes >= PENDING_BYTES_MAX || self.acks.len() + self.waiting.len() >= unacked_max;
        self.link.unread.store(by_us, Ordering::Relaxed);
        !by_us && out.len() < OUT_BYTES_MAX
    }

    fn read(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<(), CloseReason> {
        self.paused = false;
        if !self.tail.is_empty() {
            self.take_tail(out)?;
        }
        for _ in 0..READS_PER_TURN {
            if self.is_over() {
                self.core.stalls.wait(&self.link);
                return Ok(());
            }
            if !self.may_take(out) {
                self.paused = true;
                return Ok(());
            }
            let Some(stream) = self.stream.as_mut() else { return Ok(()) };
            let bytes_max = self.core.config.packet_bytes_max;
            let in_place = self.tail.len() > TAIL_COPY_MAX;
            let polled = if in_place {
                let missing = codec::bytes_missing(&self.tail, bytes_max).clamp(1, READ_BYTES);
                self.tail.reserve(missing);
                stream.poll_read_buffer(cx, &mut self.tail, missing)
            } else {
                read.clear();
                read.reserve(READ_BYTES);
                read.extend_from_slice(&self.tail);
                // While the log is full a whole read would hold much more than may wait.
                let full = self.core.stalls.is_full(self.core.tick());
                stream.poll_read_buffer(cx, read, if full { PENDING_BYTES_MAX } else { READ_BYTES })
            };
            match polled {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => return Err(CloseReason::Lost),
                Poll::Ready(Ok(_)) if in_place => self.take_tail(out)?,
                Poll::Ready(Ok(_)) => {
                    self.tail = BytesMut::new();
                    self.take_packets(read, out)?;
                    if !read.is_empty() {
                        self.tail = BytesMut::from(&read[..]);
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Takes what was read before; an empty buffer is given back.
    fn take_tail(&mut self, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        let mut tail = std::mem::take(&mut self.tail);
        self.take_packets(&mut tail, out)?;
        if !tail.is_empty() {
            self.tail = tail;
        }
        Ok(())
    }

    fn take_packets(&mut self, buffer: &mut BytesMut, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        let mut heard = false;
        while !buffer.is_empty() && self.may_take(out) {
            let next = codec::next_packet(buffer, self.version, self.core.config.packet_bytes_max);
            let packet = match next {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(error) => {
                    self.core.metrics.codec_panics.inc_by(u64::from(error == FrameError::Panicked));
                    return Err(error.into());
                }
            };
            heard = true;
            self.take_packet(packet, out)?;
        }
        if heard {
            self.link.heard_at_tick.store(self.core.tick(), Ordering::Relaxed);
            self.core.credits.heard(&self.core.metrics, &self.link);
        }
        Ok(())
    }

    fn take_packet(&mut self, packet: Incoming, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        match packet {
            Incoming::Publish(publish) => self.publish(publish),
            Incoming::PubAck { packet_id } => {
                self.down.acknowledged(packet_id);
                Ok(())
            }
            Incoming::Subscribe { has_identifier: true, .. } => Err(CloseReason::SubscriptionIdentifier),
            Incoming::Subscribe { packet_id, filters, .. } => {
                let subscribe = |filter| down::subscribe(&self.core, &self.link, filter);
                let codes: Vec<u8> = filters.iter().map(subscribe).collect();
                encode::suback(out, self.version, packet_id, &codes);
                Ok(())
            }
            Incoming::Unsubscribe { packet_id, filters } => {
                let codes: Vec<u8> =
                    filters.iter().map(|filter| down::unsubscribe(&self.link, filter)).collect();
                encode::unsuback(out, self.version, packet_id, &codes);
                Ok(())
            }
            Incoming::PingReq => {
                encode::pingresp(out);
                Ok(())
            }
            Incoming::Disconnect { with_will: true } => Err(CloseReason::GoodbyeWithWill),
            Incoming::Disconnect { with_will: false } => Err(CloseReason::Goodbye),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), CloseReason> {
        let Some(stream) = self.stream.as_mut() else { return Ok(()) };
        let mut written = 0;
        while written < out.len() {
            match Pin::new(&mut *stream).poll_write(cx, &out[written..]) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(CloseReason::Lost),
                Poll::Ready(Ok(bytes)) => written += bytes,
                Poll::Pending => break,
            }
        }
        out.drain(..written);
        self.needs_flush |= written > 0 && stream.needs_flush();
        if self.needs_flush {
            match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(_)) => return Err(CloseReason::Lost),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Says why, where the client can be told, and lets go of the socket.
    fn end(&mut self, reason: CloseReason, out: &mut Vec<u8>) {
        self.ended = reason;
        let Some(stream) = self.stream.take() else { return };
        let Some(code) = reason.code() else { return };
        if self.version == Version::Five {
            encode::disconnect(out, code);
        }
        close_with(stream, out.as_slice().to_vec());
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.get_mut();
        connection.link.waker.register(cx.waker());
        SCRATCH.with_borrow_mut(|scratch| connection.drive(cx, scratch))
    }
}

impl Drop for Connection {
    /// However it ended, even by a panic, the name is free again and the end recorded.
    fn drop(&mut self) {
        self.core.fanout.leave(&self.link);
        self.core.credits.leave(&self.link);
        self.core.parked.leave(&self.link);
        self.core.live.remove(&self.core, &self.link, self.ended);
    }
}
