//! One connection's life: birth, records, answers, reports, and a clean end.

use super::client::{Ack, Link, LinkEvent};
use super::core::{Core, Verdict, Want, judge};
use super::lanes::{Fetch, Fetched, Lanes};
use super::{DRAIN_TIME_MAX, RELEASE_INTERVAL, STATE_INTERVAL_IDLE, STATE_INTERVAL_MIN, Uplink};
use crate::metrics::PublishEnd;
use crate::queue::{QueueClass, QueueError, Report, Seq};
use crate::supervisor::chain;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use muster_journal::{Fs, JournalError};
use muster_wire::{
    Credit, CreditRequest, DropReason, Envelope, PUBLISH_BYTES_MAX, QueueId, RECONNECT_SPREAD_MS_MAX, State,
    UpClass,
};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// MQTT's fixed header, packet id and properties around topic and payload, at most.
const PACKET_HEAD_BYTES: usize = 16;

/// How a session ended.
pub(super) enum Ended {
    /// The agent stops; DISCONNECT was sent where there was a connection.
    Stopped,
    /// No connection, for this reason; the server may have refused the device's certificate.
    Lost { reason: String, refused: bool },
}

/// What a session leaves behind.
pub(super) struct End {
    pub(super) ended: Ended,
    /// The server acknowledged something.
    pub(super) useful: bool,
    /// How far the server wants its fleet's next connects spread; zero where it said nothing.
    pub(super) spread: Duration,
}

/// What a publish was for.
enum Sent {
    Record { class: QueueClass, seq: Seq, queue_id: QueueId, bytes: usize },
    Report(Box<Report>),
}

pub(super) struct Session<'a, F: Fs> {
    uplink: &'a mut Uplink<F>,
    core: &'a mut Core,
    lanes: &'a mut Lanes<F>,
    link: Link,
    answers: FuturesUnordered<BoxFuture<'static, (Sent, Ack)>>,
    connected: bool,
    useful: bool,
    spread: Duration,
    packet_bytes_max: usize,
    reporting: bool,
    reported: Report,
    reported_at: Instant,
    /// When the next regular report is due, and when drops may be looked for again.
    report_due: Instant,
    look_due: Instant,
    look_skipped: bool,
    released: [Seq; 2],
    released_at: Instant,
    drain_until: Option<Instant>,
}

impl<'a, F: Fs> Session<'a, F> {
    pub(super) fn new(
        uplink: &'a mut Uplink<F>,
        core: &'a mut Core,
        lanes: &'a mut Lanes<F>,
        link: Link,
    ) -> Self {
        let now = Instant::now();
        let released = uplink.queue.released();
        Self {
            uplink,
            core,
            lanes,
            link,
            answers: FuturesUnordered::new(),
            connected: false,
            useful: false,
            spread: Duration::ZERO,
            packet_bytes_max: PUBLISH_BYTES_MAX,
            reporting: false,
            reported: Report::default(),
            reported_at: now,
            report_due: now,
            look_due: now,
            look_skipped: false,
            released,
            released_at: now,
            drain_until: None,
        }
    }

    /// Runs until the connection is lost or the agent stops.
    pub(super) async fn run(mut self) -> Result<End, QueueError> {
        let wake = self.uplink.queue.wake();
        let mut stop = self.uplink.stop.clone();
        loop {
            let timer = tokio::time::sleep_until(self.next_timer().into());
            tokio::select! {
                biased;
                event = self.link.next() => {
                    if let Some(ended) = self.take_event(event) {
                        self.take_ready_answers()?;
                        let unanswered = self.core.in_flight();
                        self.uplink.metrics.published(PublishEnd::Unanswered, unanswered);
                        self.release(true)?;
                        return Ok(End { ended, useful: self.useful, spread: self.spread });
                    }
                }
                Some((sent, ack)) = self.answers.next(), if !self.answers.is_empty() => {
                    self.answered(sent, ack)?;
                    self.take_ready_answers()?;
                }
                () = wake.notified() => {}
                () = stop.wait(), if self.drain_until.is_none() => {
                    self.drain_until = Some(Instant::now() + DRAIN_TIME_MAX);
                }
                () = timer => {}
            }
            if self.connected {
                self.pump()?;
                self.ask_if_due();
                self.report_if_due();
            }
            self.release(false)?;
            if self.is_finished() {
                self.release(true)?;
                if self.connected {
                    self.link.disconnect().await;
                }
                return Ok(End { ended: Ended::Stopped, useful: self.useful, spread: self.spread });
            }
        }
    }

    fn now(&self) -> Duration {
        self.uplink.started.elapsed()
    }

    fn next_timer(&self) -> Instant {
        let release = self.is_release_due().then(|| self.released_at + RELEASE_INTERVAL);
        let held = self.core.held_until().map(|until| self.uplink.started + until);
        // While a report waits for its answer no other is due; a timer in the past would spin.
        let reports = self.connected && !self.reporting;
        let report = reports.then_some(self.report_due);
        let look = (reports && self.look_skipped).then_some(self.look_due);
        let now = self.now();
        let credit = self.connected.then(|| self.core.look_at(now)).flatten();
        let credit = credit.map(|at| self.uplink.started + at);
        let timers = [release, held, report, look, credit, self.drain_until];
        timers.into_iter().flatten().fold(Instant::now() + STATE_INTERVAL_IDLE, Instant::min)
    }

    fn take_event(&mut self, event: LinkEvent) -> Option<Ended> {
        match event {
            LinkEvent::Connected { packet_bytes_max } => {
                let (host, port) = (&self.uplink.settings.host, self.uplink.settings.port);
                tracing::info!(host, port, "connected");
                self.uplink.metrics.connects.inc();
                self.uplink.metrics.connected.set(1);
                self.connected = true;
                if let Some(max) = packet_bytes_max {
                    self.packet_bytes_max = max as usize;
                }
                let now = self.now();
                self.core.connected(self.uplink.queue.accepted_next(), now);
                self.send_report(UpClass::Birth);
                None
            }
            LinkEvent::Subscribed { granted } => {
                let now = self.now();
                self.core.subscribed(granted, now);
                None
            }
            LinkEvent::Received { topic, payload } => {
                self.uplink.metrics.received.inc();
                if topic == self.uplink.topics.credit {
                    self.take_credit(&payload);
                } else {
                    let bytes = payload.len();
                    tracing::debug!(topic, bytes, "a message that no part of this agent takes yet");
                }
                None
            }
            LinkEvent::Lost { reason, refused } => Some(Ended::Lost { reason, refused }),
        }
    }

    fn take_credit(&mut self, payload: &[u8]) {
        let now = self.now();
        match Credit::decode(payload) {
            Ok(Credit { epoch, records, reconnect_spread_ms }) => {
                tracing::debug!(epoch, records, reconnect_spread_ms, "credit");
                self.core.credit(epoch, records, now);
                self.spread = Duration::from_millis(reconnect_spread_ms.min(RECONNECT_SPREAD_MS_MAX).into());
            }
            Err(error) => tracing::warn!(error = chain(&error), "credit that cannot be read"),
        }
    }

    /// Asks for credit where the backlog waits for it.
    fn ask_if_due(&mut self) {
        let now = self.now();
        let Some(backlog) = self.core.ask(now) else { return };
        let payload = self.uplink.direct(UpClass::Credit, &CreditRequest { backlog }.encode());
        // One that is lost is asked again.
        if let Err(error) = self.link.tell(&self.uplink.topics.ask, payload) {
            tracing::debug!(%error, "credit could not be asked for");
        }
    }

    /// Publishes as much as the window takes.
    fn pump(&mut self) -> Result<(), QueueError> {
        loop {
            let accepted = self.uplink.queue.accepted_next();
            let Some(want) = self.core.next(accepted, self.now()) else { return Ok(()) };
            match self.lanes.fetch(want)? {
                Fetch::Nothing => return Ok(()),
                Fetch::Gone { upto } => self.core.gone(want, upto),
                Fetch::Record(record) => self.publish(want, record)?,
            }
        }
    }

    fn publish(&mut self, want: Want, record: Fetched) -> Result<(), QueueError> {
        let Fetched { seq, queue_id, body } = record;
        if !self.core.found(want, seq) {
            return Ok(());
        }
        let class = want.class;
        let Some((measured_at_us, body)) = body else {
            return self.drop_record(class, seq, queue_id, DropReason::Malformed, 0);
        };
        let payload = Envelope { class: class.up(), queue_id, seq, measured_at_us, body: &body }.encode();
        let topic = match class {
            QueueClass::Telemetry => &self.uplink.topics.telemetry,
            QueueClass::Event => &self.uplink.topics.event,
        };
        let bytes = payload.len();
        if bytes + topic.len() + PACKET_HEAD_BYTES > self.packet_bytes_max {
            return self.drop_record(class, seq, queue_id, DropReason::RefusedPayload, bytes);
        }
        // A client that takes no request has lost its connection; its event says so next.
        if let Ok(ack) = self.link.publish(topic, payload) {
            let sent = Sent::Record { class, seq, queue_id, bytes };
            self.answers.push(ack.map(|ack| (sent, ack)).boxed());
        }
        Ok(())
    }

    /// The answers of one read arrive together.
    fn take_ready_answers(&mut self) -> Result<(), QueueError> {
        while let Some(Some((sent, ack))) = self.answers.next().now_or_never() {
            self.answered(sent, ack)?;
        }
        Ok(())
    }

    fn answered(&mut self, sent: Sent, ack: Ack) -> Result<(), QueueError> {
        // A lost answer is followed by a lost connection, which sends everything again.
        let Ack::Reason(reason) = ack else { return Ok(()) };
        let verdict = judge(reason);
        match sent {
            Sent::Report(report) => {
                self.reporting = false;
                if verdict != Verdict::Release {
                    tracing::warn!(reason, "the server refused a report");
                    return Ok(());
                }
                self.useful = true;
                match self.uplink.queue.confirm(&report) {
                    Ok(()) => self.reported = *report,
                    // A full disk: the same drops and openings come again.
                    Err(error) => tracing::warn!(error = chain(&error), "a report's end could not be kept"),
                }
                Ok(())
            }
            Sent::Record { class, seq, queue_id, bytes } => match verdict {
                Verdict::Release => {
                    self.useful = true;
                    self.uplink.metrics.published(PublishEnd::Released, 1);
                    self.core.settle(class, seq);
                    Ok(())
                }
                Verdict::Keep => {
                    self.keep(class, seq);
                    tracing::warn!(class = class.up().as_str(), seq, reason, "publish refused for now, kept");
                    Ok(())
                }
                Verdict::Drop(why) => self.drop_record(class, seq, queue_id, why, bytes),
            },
        }
    }

    fn keep(&mut self, class: QueueClass, seq: Seq) {
        self.uplink.metrics.published(PublishEnd::Kept, 1);
        let now = self.now();
        self.core.keep(class, seq, now);
    }

    /// The durable drop record first, then the advance.
    fn drop_record(
        &mut self,
        class: QueueClass,
        seq: Seq,
        queue_id: QueueId,
        reason: DropReason,
        bytes: usize,
    ) -> Result<(), QueueError> {
        match self.uplink.queue.record_drop(class, queue_id, seq, reason, bytes as u64) {
            Ok(()) => {}
            // Too many drops wait for the server: it must hear of those first.
            Err(QueueError::Journal { source: JournalError::DropsFull | JournalError::DiskFull, .. }) => {
                self.keep(class, seq);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let (class_name, reason) = (class.up().as_str(), reason.as_str());
        tracing::error!(class = class_name, seq, reason, "record dropped");
        self.uplink.metrics.published(PublishEnd::Dropped, 1);
        self.core.settle(class, seq);
        Ok(())
    }

    /// A report when the interval is over and something changed, when drops wait, and before leaving.
    fn report_if_due(&mut self) {
        if self.reporting {
            return;
        }
        let now = Instant::now();
        // Looking for drops costs a lock: at most one look in a while, and none is forgotten.
        self.look_skipped = now < self.look_due;
        let leaving = self.drain_until.is_some() && self.is_drained();
        let urgent = leaving || (!self.look_skipped && (self.reported.more || self.uplink.queue.has_drops()));
        if !self.look_skipped {
            self.look_due = now + STATE_INTERVAL_MIN;
        }
        if !urgent && now < self.report_due {
            return;
        }
        self.report_due = now + self.uplink.settings.state_interval;
        let report = self.uplink.queue.report();
        let changed = report.queues != self.reported.queues || !report.drops.is_empty() || report.more;
        if changed || now.duration_since(self.reported_at) >= STATE_INTERVAL_IDLE {
            self.send_report(UpClass::State);
        }
    }

    fn send_report(&mut self, class: UpClass) {
        // The report carries the marks that the journal holds, not yet on the disk perhaps: all below is acknowledged.
        if let Err(error) = self.release(true) {
            tracing::warn!(error = chain(&error), "the release mark could not be kept");
        }
        let report = self.uplink.queue.report();
        let (queues, drops) = (report.queues.clone(), report.drops.clone());
        let (topic, body) = if class == UpClass::Birth {
            let about = self.uplink.settings.about.clone();
            (&self.uplink.topics.birth, muster_wire::Birth { queues, drops, ..about }.encode())
        } else {
            let uptime_s = self.now().as_secs();
            let inferences = self.uplink.metrics.inferences.load(Ordering::Relaxed);
            (&self.uplink.topics.state, State { queues, drops, uptime_s, inferences }.encode())
        };
        let payload = self.uplink.direct(class, &body);
        if let Ok(ack) = self.link.publish(topic, payload) {
            self.reporting = true;
            self.reported_at = Instant::now();
            self.look_due = self.reported_at + STATE_INTERVAL_MIN;
            self.report_due = self.reported_at + self.uplink.settings.state_interval;
            let sent = Sent::Report(Box::new(report));
            self.answers.push(ack.map(|ack| (sent, ack)).boxed());
        }
    }

    fn marks(&self) -> [Seq; 2] {
        QueueClass::ALL.map(|class| self.core.released(class))
    }

    fn is_release_due(&self) -> bool {
        self.marks() != self.released
    }

    fn release(&mut self, at_once: bool) -> Result<(), QueueError> {
        if !self.is_release_due() || !(at_once || self.released_at.elapsed() >= RELEASE_INTERVAL) {
            return Ok(());
        }
        let marks = self.marks();
        for class in QueueClass::ALL {
            if marks[class.index()] > self.released[class.index()] {
                self.uplink.queue.release(class, marks[class.index()])?;
            }
        }
        self.released = marks;
        self.released_at = Instant::now();
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.core.is_drained(self.uplink.queue.accepted_next())
    }

    fn is_finished(&self) -> bool {
        let Some(until) = self.drain_until else { return false };
        !self.connected || Instant::now() >= until || (self.is_drained() && !self.reporting)
    }
}
