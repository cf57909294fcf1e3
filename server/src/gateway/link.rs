//! What others may touch of a connection: its name, its end, its queue of messages to send.
//!
//! The connection's own task holds the socket; `live`, `acks`, `stalls`, `parked`, `credit` and `fanout` hold this, ask for
//! something and wake the task. No channel: an idle connection's part here is about 200 bytes.
//!
//! Limits: [`OUTBOX_MESSAGES_MAX`] and [`OUTBOX_BYTES_MAX`] waiting messages.

use super::credit::SPREAD_NOT_TOLD;
use super::identity::Identity;
use super::publish::UpFilter;
use super::reason::CloseReason;
use futures_util::task::AtomicWaker;
use muster_wire::UpClass;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Messages that may wait for one client: a second of a lively tenant.
pub(crate) const OUTBOX_MESSAGES_MAX: usize = 4_096;
/// Bytes that may wait for one client.
pub(crate) const OUTBOX_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Filters of one integration client.
pub(crate) const FILTERS_MAX: usize = 32;

/// Locks without minding a poisoned mutex: what it guards is valid between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message on its way to a client, shared by all that get it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Box<[u8]>,
}

impl Message {
    fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// What a client subscribed to, and what waits for it.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: VecDeque<(Arc<Message>, u8)>,
    bytes: usize,
    /// An integration client's filters with the QoS granted.
    pub(crate) filters: Vec<(UpFilter, u8)>,
    /// A device's `dn/` classes.
    pub(crate) down: u8,
    /// Those of them with QoS 1.
    pub(crate) down_qos_one: u8,
}

impl Outbox {
    /// Puts a message at the end; says whether there was room.
    fn push(&mut self, message: &Arc<Message>, qos: u8) -> bool {
        let room = self.queue.len() < OUTBOX_MESSAGES_MAX && self.bytes + message.bytes() <= OUTBOX_BYTES_MAX;
        if room {
            self.bytes += message.bytes();
            self.queue.push_back((message.clone(), qos));
        }
        room
    }

    /// Takes the oldest message, with the QoS to send it with.
    pub(crate) fn pop(&mut self) -> Option<(Arc<Message>, u8)> {
        let (message, qos) = self.queue.pop_front()?;
        self.bytes -= message.bytes();
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        Some((message, qos))
    }
}

/// A will, until the connection says goodbye.
#[derive(Debug)]
pub(crate) struct Will {
    /// The device's clock in the will's envelope; 0 without one.
    pub(crate) measured_at_us: i64,
    pub(crate) body: Vec<u8>,
}

/// The shared part of a connection.
pub(crate) struct Link {
    /// `tenant/device`, or `api:tenant/token/client`: one live connection a name.
    pub(crate) name: Arc<str>,
    pub(crate) identity: Identity,
    pub(crate) waker: AtomicWaker,
    /// In the heap of `acks`.
    pub(crate) waits_for_ack: AtomicBool,
    /// In the queue of `stalls`.
    pub(crate) waits_for_room: AtomicBool,
    /// In `parked`: what waits is not tried.
    pub(crate) is_parked: AtomicBool,
    /// Tick of the last whole packet.
    pub(crate) heard_at_tick: AtomicU32,
    /// Ticks of silence that end it; 0 for none.
    pub(crate) silence_ticks_max: u32,
    /// Not read because of us: the keep-alive clock stands.
    pub(crate) unread: AtomicBool,
    /// Records asked for while it stands in the line of `credit`; 0 otherwise.
    pub(crate) credit_asked: AtomicU32,
    /// The newest reconnect spread it was told, or `credit::SPREAD_NOT_TOLD`.
    pub(crate) spread_told_ms: AtomicU32,
    will: Mutex<Option<Box<Will>>>,
    outbox: Mutex<Option<Box<Outbox>>>,
    close: AtomicU8,
    ended: AtomicBool,
}

impl Link {
    pub(crate) fn new(
        name: Arc<str>,
        identity: Identity,
        will: Option<Will>,
        silence_ticks_max: u32,
        tick: u32,
    ) -> Self {
        Self {
            name,
            identity,
            waker: AtomicWaker::new(),
            waits_for_ack: AtomicBool::new(false),
            waits_for_room: AtomicBool::new(false),
            is_parked: AtomicBool::new(false),
            heard_at_tick: AtomicU32::new(tick),
            silence_ticks_max,
            unread: AtomicBool::new(false),
            credit_asked: AtomicU32::new(0),
            spread_told_ms: AtomicU32::new(SPREAD_NOT_TOLD),
            will: Mutex::new(will.map(Box::new)),
            outbox: Mutex::new(None),
            close: AtomicU8::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// The tenant of either kind of client.
    pub(crate) fn tenant(&self) -> &str {
        match &self.identity {
            Identity::Device { tenant, .. } | Identity::Integration { tenant, .. } => tenant.as_str(),
        }
    }

    /// The device id, where the client is a device.
    pub(crate) fn device(&self) -> Option<&str> {
        match &self.identity {
            Identity::Device { device, .. } => Some(device.as_str()),
            Identity::Integration { .. } => None,
        }
    }

    /// Asks the connection's task to end it; the first reason stands.
    pub(crate) fn close(&self, reason: CloseReason) {
        let _first_stands = self.close.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// The reason to end it, where one was asked for.
    pub(crate) fn close_asked(&self) -> Option<CloseReason> {
        CloseReason::from_number(self.close.load(Ordering::Acquire))
    }

    /// Claims the right to write the end's records; true for the first caller only.
    pub(crate) fn claim_end(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Takes the will away.
    pub(crate) fn take_will(&self) -> Option<Box<Will>> {
        lock(&self.will).take()
    }

    /// Looks at or changes what the client subscribed to; the outbox is made at the first call.
    pub(crate) fn with_outbox<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        change(lock(&self.outbox).get_or_insert_default())
    }

    /// The oldest waiting message, with the granted QoS; none where nothing was ever subscribed.
    pub(crate) fn pop_message(&self) -> Option<(Arc<Message>, u8)> {
        lock(&self.outbox).as_mut()?.pop()
    }

    /// Queues a tenant's message where a filter follows it. False: the queue is full.
    pub(crate) fn offer(&self, device: &str, class: UpClass, message: &Arc<Message>) -> bool {
        let mut outbox = lock(&self.outbox);
        let Some(outbox) = outbox.as_mut() else { return true };
        let followed = outbox.filters.iter().filter(|(filter, _)| filter.matches(device, class));
        let Some(qos) = followed.map(|(_, qos)| *qos).max() else { return true };
        let room = outbox.push(message, qos);
        if room && outbox.queue.len() == 1 {
            self.waker.wake();
        }
        room
    }

    /// Queues a message for a device. `None`: the device did not subscribe to the class.
    pub(crate) fn send_down(&self, class_bit: u8, message: &Arc<Message>) -> Option<bool> {
        let mut outbox = lock(&self.outbox);
        let outbox = outbox.as_mut().filter(|outbox| outbox.down & class_bit != 0)?;
        let qos = u8::from(outbox.down_qos_one & class_bit != 0);
        let room = outbox.push(message, qos);
        self.waker.wake();
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Arc<Message> {
        Arc::new(Message { topic: "t".into(), payload: vec![0; bytes - 1].into() })
    }

    #[test]
    fn an_outbox_is_bounded_in_messages_and_takes_one_for_each_that_leaves() {
        let (mut outbox, small) = (Outbox::default(), message(10));
        let room =
            |outbox: &mut Outbox| (0..2 * OUTBOX_MESSAGES_MAX).take_while(|_| outbox.push(&small, 0)).count();
        assert_eq!(room(&mut outbox), OUTBOX_MESSAGES_MAX);
        assert!(outbox.pop().is_some());
        assert_eq!(room(&mut outbox), 1);
    }

    #[test]
    fn an_outbox_is_bounded_in_bytes() {
        let mut outbox = Outbox::default();
        assert!(!outbox.push(&message(OUTBOX_BYTES_MAX + 1), 0));
        assert!(outbox.push(&message(OUTBOX_BYTES_MAX - 10), 0));
        assert!(!outbox.push(&message(11), 0));
        assert!(outbox.push(&message(10), 0));
        assert_eq!(outbox.bytes, OUTBOX_BYTES_MAX);
        outbox.pop();
        outbox.pop();
        assert_eq!(outbox.bytes, 0);
    }
}
