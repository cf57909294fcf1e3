//! The log is full: who waits for room, and what presence records wait.
//!
//! A connection whose PUBLISH found no room keeps it, stands in line here and is woken to try again. While
//! the log stays full only [`PROBES`] connections try in each [`RETRY`]; the first that succeeds calls all
//! others. Senders over a rate or a tenant's quota wait here too: MQTT 3.1.1 cannot be refused for now, and the others are
//! not read on. They try again each tick, in [`PORTIONS`]: called all at once, a noisy tenant's connections would hold up
//! everybody's messages ten times a second. Those over what no tick refills stand in `parked`. New CONNECTs are refused
//! while [`Stalls::is_full`].
//!
//! Will and presence records that found no room wait in order, at most [`PRESENCE_MAX`] with at most
//! [`PRESENCE_BODY_BYTES_MAX`] of wills; more are lost and counted, which the promise allows: they are no
//! queue records.
//!
//! Two signals, never one: whoever comes to wait ends an idle sleep only, since a connection that failed again
//! is back in line at once; what may have made room ends the pause between two tries.

use super::link::{Link, lock};
use super::reason::ConnectRefusal;
use super::{Core, TICKS_PER_S};
use crate::platform::event_log::{AppendError, Kind, NewRecord, Origin};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// How often waiting connections try again: soon enough for a window of 32 to flow on.
const RETRY: Duration = Duration::from_millis(10);
/// Those over their rate try again once in so many pauses while there is room: tokens come by the tick.
const PORTIONS: usize = 1_000 / TICKS_PER_S as usize / RETRY.as_millis() as usize;
/// Connections that try at once while the log is full, and the smallest portion of a line.
const PROBES: usize = 16;
/// Presence records that may wait: every connection's end, twice over.
pub(crate) const PRESENCE_MAX: usize = 40_000;
/// Bytes of wills that may wait: a thousand of the largest, or every connection's usual one. Records without
/// a body are bounded by their number; they take no place from wills and lose none to them.
pub(crate) const PRESENCE_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long one refusal by the log counts as full when nobody tries again.
const FULL_TICKS: u32 = TICKS_PER_S;

struct Waiting {
    kind: Kind,
    tenant: Box<str>,
    device: Box<str>,
    class: u8,
    measured_at_us: i64,
    body: Box<[u8]>,
}

impl Waiting {
    fn of(record: &NewRecord<'_>) -> Self {
        let NewRecord { kind, class, measured_at_us, .. } = *record;
        Self {
            kind,
            tenant: record.tenant.into(),
            device: record.device.into(),
            class,
            measured_at_us,
            body: record.body.into(),
        }
    }

    fn record(&self) -> NewRecord<'_> {
        NewRecord {
            kind: self.kind,
            tenant: &self.tenant,
            device: &self.device,
            class: self.class,
            qos: 1,
            origin: Origin::Direct,
            measured_at_us: self.measured_at_us,
            body: &self.body,
        }
    }
}

#[derive(Default)]
struct Presence {
    queue: VecDeque<Waiting>,
    body_bytes: usize,
}

impl Presence {
    fn has_place(&self, body: &[u8]) -> bool {
        let fits = body.is_empty() || self.body_bytes + body.len() <= PRESENCE_BODY_BYTES_MAX;
        fits && self.queue.len() < PRESENCE_MAX
    }

    fn push(&mut self, waiting: Waiting) {
        self.body_bytes += waiting.body.len();
        self.queue.push_back(waiting);
    }

    fn pop(&mut self) {
        self.body_bytes -= self.queue.pop_front().map_or(0, |first| first.body.len());
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }
}

/// The line of those who wait for room.
#[derive(Default)]
pub(crate) struct Stalls {
    line: Mutex<VecDeque<Arc<Link>>>,
    presence: Mutex<Presence>,
    full: AtomicBool,
    full_at_tick: AtomicU32,
    /// Somebody came to wait where nobody did.
    arrived: Notify,
    /// There may be room.
    room: Notify,
}

impl Stalls {
    /// Whether the log refused for want of room just now.
    pub(crate) fn is_full(&self, tick: u32) -> bool {
        self.full.load(Ordering::Relaxed)
            && tick.wrapping_sub(self.full_at_tick.load(Ordering::Relaxed)) <= FULL_TICKS
    }

    /// Notes what the log answered.
    pub(crate) fn note(&self, answer: Result<(), AppendError>, tick: u32) {
        match answer {
            Ok(()) if self.full.load(Ordering::Relaxed) => {
                self.full.store(false, Ordering::Relaxed);
                self.room.notify_one();
            }
            Err(AppendError::Full) => {
                self.full_at_tick.store(tick, Ordering::Relaxed);
                self.full.store(true, Ordering::Relaxed);
            }
            Ok(()) | Err(AppendError::TooLarge | AppendError::Failed) => {}
        }
    }

    /// Puts a connection in line; it is woken to try again.
    pub(crate) fn wait(&self, link: &Arc<Link>) {
        if !link.waits_for_room.swap(true, Ordering::AcqRel) {
            let mut line = lock(&self.line);
            line.push_back(link.clone());
            if line.len() == 1 {
                self.arrived.notify_one();
            }
        }
    }

    /// The disk moved on: there may be room now.
    pub(crate) fn nudge(&self) {
        if self.full.load(Ordering::Relaxed) {
            self.room.notify_one();
        }
    }

    /// Appends a presence or will record, behind those that wait; where there is no room it waits too.
    pub(crate) fn append_presence(&self, core: &Core, record: &NewRecord<'_>) {
        let mut presence = lock(&self.presence);
        if presence.queue.is_empty() {
            match core.append(record) {
                Err(AppendError::Full) => {}
                Ok(_) => return,
                Err(AppendError::TooLarge | AppendError::Failed) => return core.metrics.records_lost.inc(),
            }
        }
        if !presence.has_place(record.body) {
            return core.metrics.records_lost.inc();
        }
        presence.push(Waiting::of(record));
        self.arrived.notify_one();
    }

    /// Appends a `Connected` record, unless older presence records still wait.
    ///
    /// # Errors
    /// What the CONNECT is refused with.
    pub(crate) fn append_connected(&self, core: &Core, record: &NewRecord<'_>) -> Result<(), ConnectRefusal> {
        let presence = lock(&self.presence);
        if !presence.queue.is_empty() {
            return Err(ConnectRefusal::LogFull);
        }
        match core.append(record) {
            Ok(_) => Ok(()),
            Err(AppendError::Full) => Err(ConnectRefusal::LogFull),
            Err(AppendError::TooLarge | AppendError::Failed) => Err(ConnectRefusal::Unavailable),
        }
    }

    fn retry_presence(&self, core: &Core) {
        let mut presence = lock(&self.presence);
        while let Some(first) = presence.queue.front() {
            match core.append(&first.record()) {
                Err(AppendError::Full) => return,
                Ok(_) => {}
                Err(AppendError::TooLarge | AppendError::Failed) => core.metrics.records_lost.inc(),
            }
            presence.pop();
        }
    }

    fn is_idle(&self) -> bool {
        lock(&self.line).is_empty() && lock(&self.presence).queue.is_empty()
    }

    /// Wakes those in line; runs for the gateway's life.
    pub(crate) async fn run(core: Arc<Core>) {
        core.stalls.serve(|| core.stalls.retry_presence(&core), tokio::time::sleep).await;
    }

    async fn serve<Pause: Future>(&self, retry_presence: impl Fn(), pause: impl Fn(Duration) -> Pause) {
        let (mut called, mut round) = (Vec::new(), Round::default());
        loop {
            while self.is_idle() {
                self.arrived.notified().await;
            }
            let is_room = tokio::select! {
                () = self.room.notified() => true,
                _ = pause(RETRY) => false,
            };
            retry_presence();
            {
                let mut line = lock(&self.line);
                let count = match (self.full.load(Ordering::Relaxed), is_room) {
                    (true, _) => PROBES.min(line.len()),
                    (false, true) => line.len(),
                    (false, false) => round.portion(line.len()),
                };
                called.extend(line.drain(..count));
            }
            for link in called.drain(..) {
                link.waits_for_room.store(false, Ordering::Release);
                link.waker.wake();
            }
        }
    }
}

/// Who stood in line when it began is called in it, spread over its pauses.
#[derive(Default)]
struct Round {
    pauses: usize,
    size: usize,
    left: usize,
}

impl Round {
    /// How many of the line are called after this pause.
    fn portion(&mut self, line: usize) -> usize {
        if self.pauses == 0 {
            (self.pauses, self.size, self.left) = (PORTIONS, line.div_ceil(PORTIONS).max(PROBES), line);
        }
        self.pauses -= 1;
        let count = self.size.min(self.left).min(line);
        self.left -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::{append_until_full, core, link};
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;
    use tokio::sync::Semaphore;

    /// Turns of the runtime in which nothing more may happen; the fault that this is for took two for a round.
    const TURNS: usize = 200;

    /// Connections that find the log full each time they try, and how often each did.
    struct Senders {
        stalls: Arc<Stalls>,
        tries: Arc<AtomicUsize>,
        /// Each permit lets one pause end.
        pauses: Arc<Semaphore>,
    }

    impl Senders {
        fn start(count: usize, answer: Result<(), AppendError>) -> Self {
            let this =
                Self { stalls: Arc::default(), tries: Arc::default(), pauses: Arc::new(Semaphore::new(0)) };
            for at in 0..count {
                let (stalls, tries) = (this.stalls.clone(), this.tries.clone());
                let link = link(&format!("d{at}"));
                tokio::spawn(std::future::poll_fn(move |cx| {
                    link.waker.register(cx.waker());
                    if !link.waits_for_room.load(Ordering::Acquire) {
                        tries.fetch_add(1, Ordering::Relaxed);
                        stalls.note(answer, 0);
                        stalls.wait(&link);
                    }
                    Poll::<()>::Pending
                }));
            }
            let (stalls, pauses) = (this.stalls.clone(), this.pauses.clone());
            tokio::spawn(async move {
                let pause = |_| async { pauses.acquire().await.expect("open").forget() };
                stalls.serve(|| {}, pause).await;
            });
            this
        }

        /// How often the senders tried since the last call, once nothing moves any more.
        async fn tried(&self) -> usize {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            self.tries.swap(0, Ordering::Relaxed)
        }
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(test);
    }

    #[test]
    fn who_fails_again_waits_for_the_next_pause() {
        for count in [1, 5] {
            run(async {
                let senders = Senders::start(count, Err(AppendError::Full));
                assert_eq!(senders.tried().await, count, "each once when it came");
                assert_eq!(senders.tried().await, 0, "nothing while the pause lasts");
                for _ in 0..3 {
                    senders.pauses.add_permits(1);
                    assert_eq!(senders.tried().await, count, "each once a pause");
                }
            });
        }
    }

    #[test]
    fn those_over_a_rate_try_once_a_round_and_a_long_line_never_at_once() {
        for (count, portion) in [(1, PROBES), (PROBES + 1, PROBES), (30 * PORTIONS + 1, 31)] {
            run(async {
                let senders = Senders::start(count, Ok(()));
                assert_eq!(senders.tried().await, count, "each once when it came");
                for _ in 0..3 {
                    let mut tries = Vec::new();
                    for _ in 0..PORTIONS {
                        senders.pauses.add_permits(1);
                        tries.push(senders.tried().await);
                    }
                    assert_eq!(tries.iter().sum::<usize>(), count, "each once a round: {tries:?}");
                    assert!(tries.iter().all(|tries| *tries <= portion), "{tries:?}");
                }
            });
        }
    }

    #[test]
    fn while_full_only_some_try_and_room_calls_all() {
        run(async {
            let senders = Senders::start(3 * PROBES, Err(AppendError::Full));
            assert_eq!(senders.tried().await, 3 * PROBES);
            senders.pauses.add_permits(1);
            assert_eq!(senders.tried().await, PROBES);
            senders.stalls.nudge();
            assert_eq!(senders.tried().await, PROBES, "the disk moved on: no pause");
            senders.stalls.note(Ok(()), 0);
            assert_eq!(senders.tried().await, 3 * PROBES, "there was room: all try");
        });
    }

    #[test]
    fn waiting_wills_are_bounded_in_bytes_and_take_no_place_from_presence() {
        let (core, _dir) = core();
        append_until_full(&core);
        let will = NewRecord { body: &[0; 4_096], ..NewRecord::tick() };
        let wills = PRESENCE_BODY_BYTES_MAX / will.body.len();
        for _ in 0..wills {
            core.stalls.append_presence(&core, &will);
        }
        assert_eq!(core.metrics.records_lost.get(), 0);
        core.stalls.append_presence(&core, &will);
        assert_eq!(core.metrics.records_lost.get(), 1, "over the bytes");
        let end = NewRecord { kind: Kind::Disconnected { reason: 0 }, ..NewRecord::tick() };
        for _ in wills..PRESENCE_MAX {
            core.stalls.append_presence(&core, &end);
        }
        assert_eq!(core.metrics.records_lost.get(), 1);
        core.stalls.append_presence(&core, &end);
        assert_eq!(core.metrics.records_lost.get(), 2, "over the number");
        let mut presence = lock(&core.stalls.presence);
        assert_eq!(presence.body_bytes, PRESENCE_BODY_BYTES_MAX);
        while !presence.queue.is_empty() {
            presence.pop();
        }
        assert_eq!(presence.body_bytes, 0);
    }
}
