//! Turns samples into readings and events, and puts them into the durable queue.
//!
//! Each pipeline runs on a thread of its own ([`crate::app`] starts it), so an inference never holds up the
//! connection. It is handed its receiver and the queue, nothing else. Promise: samples keep their order; a value
//! against the wire's rules is left out and counted by its reason, the rest of its row goes on. When the queue is
//! full the thread waits, so the source's channel fills and the source waits too. Where CPU time or memory is short
//! inferences are left out, telemetry never is. Limit: 1,000 metric names a device.

mod budget;
mod model;
mod names;

pub use budget::{BURST, DEBT_MAX, Meter, Reading as MeterReading};
pub use model::{Feed, ModelError, Scorer, load};
pub use names::MetricNames;

use crate::config::{self, EventPolicy, Selection, SelectionWord};
use crate::memory::LowMemory;
use crate::metrics::{Metrics, Refusal, Shed};
use crate::queue::{AppendError, Queue, QueueClass, QueueError};
use crate::source::{Content, Sample, levels};
use crate::supervisor::Stop;
use budget::Governor;
use muster_journal::{Fs, RealFs};
use muster_wire::{
    EVENT_BYTES_MAX, Event, READINGS_MAX, Reading, TELEMETRY_BYTES_MAX, Telemetry, Value, ValueError,
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// The samples of one pipeline; kept over restarts of its thread.
pub type Inbox = Arc<Mutex<mpsc::Receiver<Sample>>>;

/// One pipeline.
pub struct Pipeline<F: Fs = RealFs> {
    config: config::Pipeline,
    selection: Selection,
    queue: Queue<F>,
    metrics: Metrics,
    names: Arc<MetricNames>,
    stop: Stop,
    scorer: Option<Scorer>,
    governor: Governor,
    serial: Option<Serial>,
    last_label: Option<String>,
}

/// Numbers records with text that no two of them share, over restarts too.
struct Serial {
    metric: String,
    nonce: u64,
    next: u64,
}

impl Serial {
    fn new(metric: String) -> Self {
        let mut nonce = [0; 8];
        if let Err(error) = getrandom::fill(&mut nonce) {
            tracing::error!(%error, "no random bytes, serials may repeat over restarts");
        }
        Self { metric, nonce: u64::from_le_bytes(nonce), next: 0 }
    }

    fn reading(&mut self) -> Reading {
        self.next += 1;
        let text = format!("{:016x}-{}", self.nonce, self.next);
        Reading { metric: self.metric.clone(), value: Value::Text(text), offset_us: None }
    }
}

/// What one inference adds.
struct Scored {
    event: Option<Event>,
    readings: Vec<(String, Value)>,
}

impl<F: Fs> Pipeline<F> {
    /// A pipeline in front of `queue`.
    #[must_use]
    pub fn new(
        config: config::Pipeline,
        scorer: Option<Scorer>,
        queue: Queue<F>,
        metrics: Metrics,
        names: Arc<MetricNames>,
        stop: Stop,
    ) -> Self {
        let default = if scorer.is_some() { SelectionWord::None } else { SelectionWord::All };
        let selection = config.telemetry.clone().unwrap_or(Selection::Word(default));
        let serial = config.serial.clone().map(Serial::new);
        let governor = Governor::new(config.cpu_percent_max, metrics.pipeline(&config.name));
        Self { config, selection, queue, metrics, names, stop, scorer, governor, serial, last_label: None }
    }

    /// Sheds inferences while `low_memory` is up.
    #[must_use]
    pub fn with_low_memory(mut self, low_memory: LowMemory) -> Self {
        self.governor.set_low_memory(low_memory);
        self
    }

    /// Measures by another clock than the thread's own.
    #[must_use]
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.governor.set_meter(meter);
        self
    }

    /// Works until the source is gone; blocks its thread.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn run(&mut self, inbox: &Inbox) -> Result<(), QueueError> {
        let mut samples = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sample) = samples.blocking_recv() {
            match self.take(sample) {
                Err(QueueError::Stopped) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// Puts what a sample gives into the queue.
    ///
    /// # Errors
    /// The journal stopped, or the agent stops while the queue is full.
    pub fn take(&mut self, sample: Sample) -> Result<(), QueueError> {
        let shed = self.governor.begin();
        let taken = self.put(sample, shed);
        self.governor.end();
        taken
    }

    fn put(&mut self, sample: Sample, shed: Option<Shed>) -> Result<(), QueueError> {
        let at_us = sample.measured_at_us;
        if let Content::Audio { samples, rate_hz, number } = &sample.content {
            return self.put_sound(at_us, samples, *rate_hz, *number, shed);
        }
        let answer = match (self.scorer.as_mut(), shed) {
            (None, _) => None,
            (Some(scorer), None) => Some(scorer.score(&sample.content)),
            (Some(scorer), Some(reason)) => Some(self.governor.skipped(reason, scorer.skip(&sample.content))),
        };
        let scored = self.judge(answer);
        let values = if let Content::Row { values, .. } = sample.content { values } else { Vec::new() };
        self.store(at_us, values, scored)
    }

    /// Answers within the block go before its levels, each with the time of the last sample that it heard.
    fn put_sound(
        &mut self,
        end_us: i64,
        samples: &[f32],
        rate_hz: u32,
        number: u64,
        shed: Option<Shed>,
    ) -> Result<(), QueueError> {
        let mut rest = samples;
        if let (Some(scorer), Some(reason)) = (self.scorer.as_mut(), shed) {
            let answer = self.governor.skipped(reason, scorer.skip_sound(&mut rest, rate_hz));
            self.judge(Some(answer));
            rest = &[];
        }
        while let Some(scorer) = self.scorer.as_mut().filter(|_| !rest.is_empty()) {
            let answer = scorer.hear(&mut rest, rate_hz, number);
            let behind_us = rest.len() as u64 * 1_000_000 / u64::from(rate_hz.max(1));
            let scored = self.judge(Some(answer));
            self.store(end_us.saturating_sub_unsigned(behind_us), Vec::new(), scored)?;
        }
        let levels = levels(samples).map(|(name, level)| (name, Value::Number(level)));
        self.store(end_us, levels.into(), None)
    }

    fn store(
        &mut self,
        at_us: i64,
        values: Vec<(Arc<str>, Value)>,
        scored: Option<Scored>,
    ) -> Result<(), QueueError> {
        let mut readings = Vec::with_capacity(values.len() + 3);
        for (name, value) in values.into_iter().filter(|(name, _)| self.selected(name)) {
            self.push_reading(&mut readings, &name, value);
        }
        let Scored { event, readings: scores } =
            scored.unwrap_or(Scored { event: None, readings: Vec::new() });
        for (name, value) in scores {
            self.push_reading(&mut readings, &name, value);
        }
        if !readings.is_empty() {
            let serial = self.serial.as_mut().map(Serial::reading);
            readings.extend(serial);
            self.append_telemetry(at_us, readings)?;
        }
        match event {
            Some(event) => self.append_event(at_us, &event),
            None => Ok(()),
        }
    }

    fn selected(&self, name: &str) -> bool {
        match &self.selection {
            Selection::Word(SelectionWord::All) => true,
            Selection::Word(SelectionWord::None) => false,
            Selection::Columns(columns) => columns.iter().any(|column| column == name),
        }
    }

    fn push_reading(&self, readings: &mut Vec<Reading>, name: &str, value: Value) {
        let refusal = match value.check() {
            Err(ValueError::NotFinite) => Refusal::NotFinite,
            Err(ValueError::TextTooLong) => Refusal::TextTooLong,
            Ok(()) => {
                let metric = format!("{}{name}", self.config.prefix);
                match self.names.admit(&metric) {
                    Ok(()) => return readings.push(Reading { metric, value, offset_us: None }),
                    Err(refusal) => refusal,
                }
            }
        };
        self.metrics.refuse(refusal);
    }

    fn append_telemetry(&self, measured_at_us: i64, mut readings: Vec<Reading>) -> Result<(), QueueError> {
        while !readings.is_empty() {
            let rest = readings.split_off(readings.len().min(READINGS_MAX));
            let telemetry = Telemetry { readings };
            let body = telemetry.encode();
            if body.len() > TELEMETRY_BYTES_MAX {
                // Halves fit sooner or later: one reading has at most 400 bytes.
                let mut first = telemetry.readings;
                let second = first.split_off(first.len() / 2);
                self.append_telemetry(measured_at_us, first)?;
                self.append_telemetry(measured_at_us, second)?;
            } else if self.append(QueueClass::Telemetry, measured_at_us, &body)? {
                self.metrics.readings.inc_by(telemetry.readings.len() as u64);
            }
            readings = rest;
        }
        Ok(())
    }

    fn append_event(&self, measured_at_us: i64, event: &Event) -> Result<(), QueueError> {
        let body = event.encode();
        if body.len() > EVENT_BYTES_MAX || event.check().is_err() {
            self.metrics.refuse(Refusal::TooLarge);
        } else if self.append(QueueClass::Event, measured_at_us, &body)? {
            self.metrics.events.inc();
        }
        Ok(())
    }

    /// True where the queue took it, false where the record is refused for good.
    fn append(&self, class: QueueClass, measured_at_us: i64, body: &[u8]) -> Result<bool, QueueError> {
        let waits = &self.metrics.queue_waits;
        match self.queue.append_waiting(class, measured_at_us, body, &self.stop, || waits.inc()) {
            Ok(_) => Ok(true),
            Err(QueueError::Append(AppendError::TooLarge { .. })) => {
                self.metrics.refuse(Refusal::TooLarge);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What an answer adds; a failed one is counted.
    fn judge(&mut self, answer: Option<model::Answer>) -> Option<Scored> {
        let inference = match answer? {
            Ok(inference) => inference?,
            Err((refusal, reason)) => {
                tracing::debug!(pipeline = self.config.name, reason, "a sample was not scored");
                self.metrics.refuse(refusal);
                return None;
            }
        };
        self.metrics.inferred();
        self.governor.inferred();
        let mut readings = Vec::new();
        if self.config.scores {
            let name = &self.config.name;
            readings.push((format!("{name}.score"), Value::Number(inference.score)));
            readings.push((format!("{name}.label"), Value::Text(inference.label.clone())));
        }
        let changed = self.last_label.as_ref() != Some(&inference.label);
        if changed {
            self.last_label = Some(inference.label.clone());
        }
        let wanted = match self.config.events {
            EventPolicy::All => true,
            EventPolicy::Changes => changed,
            EventPolicy::None => false,
        };
        let event = Event { pipeline: self.config.name.clone(), ..inference };
        Some(Scored { event: wanted.then_some(event), readings })
    }
}

#[cfg(test)]
mod tests;
