//! The bodies inside envelopes, each with its byte limit. Integer keys; a number is never reused.
//!
//! `Telemetry` and `Event` are records of the agent's queue (envelope `seq` from 1). `Birth`, `State`
//! and `Death` describe the queue and are no records of it (envelope `seq` 0).

use crate::envelope::malformed;
use crate::{QueueId, RunningModel, SEQ_MAX, UpClass, Value, WireError};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The largest telemetry body, in bytes.
pub const TELEMETRY_BYTES_MAX: usize = 64 * 1024;
/// The largest event body, in bytes.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// The largest birth body, in bytes.
pub const BIRTH_BYTES_MAX: usize = 64 * 1024;
/// The largest state body, in bytes.
pub const STATE_BYTES_MAX: usize = 32 * 1024;
/// The largest death body, in bytes.
pub const DEATH_BYTES_MAX: usize = 1024;
/// Readings in one telemetry body.
pub const READINGS_MAX: usize = 1_000;
/// Distinct metric names of one device, unless its tenant says otherwise.
pub const METRICS_PER_DEVICE_MAX: usize = 1_000;
/// The longest metric name, in bytes.
pub const METRIC_NAME_BYTES_MAX: usize = 64;
/// Boxes in one event.
pub const BOXES_MAX: usize = 100;
/// Queue states in one birth or state.
pub const QUEUES_MAX: usize = 64;
/// Drop ranges in one state; the agent sends the rest in the next one.
pub const DROPS_MAX: usize = 256;
/// The longest short text (labels, names, versions), in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// The longest subject of an event, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 256;
/// Pipelines named in one birth, and models told of.
pub const PIPELINES_MAX: usize = 64;

/// Readings that were taken together.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Default)]
#[cbor(map)]
pub struct Telemetry {
    /// 1 to [`READINGS_MAX`] readings.
    #[n(0)]
    pub readings: Vec<Reading>,
}

/// One value of one metric.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(array)]
pub struct Reading {
    /// `a-z A-Z 0-9 . _ - / : %`, at most [`METRIC_NAME_BYTES_MAX`]; the unit comes last in the name.
    #[n(0)]
    pub metric: String,
    /// The value.
    #[n(1)]
    pub value: Value,
    /// Added to the envelope's `measured_at_us`; absent where it is 0.
    #[n(2)]
    pub offset_us: Option<i64>,
}

/// What kind of model answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A label with its probability.
    #[n(1)]
    Classification,
    /// A score against a threshold.
    #[n(2)]
    Anomaly,
    /// Boxes.
    #[n(3)]
    Detection,
}

/// One inference result.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Event {
    /// The pipeline's name in the agent's configuration.
    #[n(0)]
    pub pipeline: String,
    /// The bundle's name.
    #[n(1)]
    pub model: String,
    /// The bundle's version.
    #[n(2)]
    pub model_version: String,
    /// Decides how `label` and `score` read.
    #[n(3)]
    pub kind: EventKind,
    /// The best class, `normal` or `anomaly`, or the label of the best box.
    #[n(4)]
    pub label: String,
    /// Probability (classification, detection) in 0..=1, or the anomaly score (unbounded).
    #[n(5)]
    pub score: f64,
    /// The frame, row or window that was scored: a file name or an index.
    #[n(6)]
    pub subject: Option<String>,
    /// Time in preprocess, model and postprocess, microseconds.
    #[n(7)]
    pub latency_us: u32,
    /// At most [`BOXES_MAX`]; empty unless a detection.
    #[n(8)]
    pub boxes: Vec<BoundingBox>,
}

/// One detected object; coordinates are fractions of the frame, 0..=1, origin top left.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
pub struct BoundingBox {
    /// Class name.
    #[n(0)]
    pub label: String,
    /// Probability, 0..=1.
    #[n(1)]
    pub score: f32,
    /// Left edge.
    #[n(2)]
    pub x: f32,
    /// Top edge.
    #[n(3)]
    pub y: f32,
    /// Width.
    #[n(4)]
    pub width: f32,
    /// Height.
    #[n(5)]
    pub height: f32,
}

/// Where one opening of one class's journal stands. Half-open ranges over `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct QueueState {
    /// The class's number.
    #[n(0)]
    pub class: u8,
    /// The opening.
    #[n(1)]
    pub queue_id: QueueId,
    /// The first seq that this opening may give.
    #[n(2)]
    pub first: u64,
    /// All below was acknowledged by the server or dropped with a record.
    #[n(3)]
    pub released: u64,
    /// All below was accepted (fsynced); the next record takes this seq.
    #[n(4)]
    pub next: u64,
    /// No more records will come under this queue_id.
    #[n(5)]
    pub closed: bool,
}

/// Why accepted records were dropped, or why the server will never store one. Never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The queue's byte bound was reached.
    #[n(1)]
    QueueFull,
    /// Older than the queue's age bound.
    #[n(2)]
    Expired,
    /// The journal's bytes were damaged.
    #[n(3)]
    Corrupt,
    /// The server refused it for good: not authorised (0x87).
    #[n(4)]
    RefusedNotAuthorized,
    /// The server refused it for good: topic name (0x90).
    #[n(5)]
    RefusedTopic,
    /// The server refused it for good: payload format (0x99).
    #[n(6)]
    RefusedPayload,
    /// Stored nowhere since its body could not be decoded; kept as a dead letter.
    #[n(7)]
    Malformed,
    /// An operator emptied the queue.
    #[n(8)]
    Purged,
}

impl EventKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 3] = [Self::Classification, Self::Anomaly, Self::Detection];
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::QueueFull,
        Self::Expired,
        Self::Corrupt,
        Self::RefusedNotAuthorized,
        Self::RefusedTopic,
        Self::RefusedPayload,
        Self::Malformed,
        Self::Purged,
    ];

    /// The stable text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Corrupt => "corrupt",
            Self::RefusedNotAuthorized => "refused_not_authorized",
            Self::RefusedTopic => "refused_topic",
            Self::RefusedPayload => "refused_payload",
            Self::Malformed => "malformed",
            Self::Purged => "purged",
        }
    }
}

/// Accepted records that will never be sent: seq `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DropRange {
    /// The class's number.
    #[n(0)]
    pub class: u8,
    /// The opening that gave the seqs.
    #[n(1)]
    pub queue_id: QueueId,
    /// First seq dropped.
    #[n(2)]
    pub first: u64,
    /// Last seq dropped.
    #[n(3)]
    pub last: u64,
    /// Why.
    #[n(4)]
    pub reason: DropReason,
}

/// Sent once after each connect.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Default)]
#[cbor(map)]
pub struct Birth {
    /// The agent's version.
    #[n(0)]
    pub agent_version: String,
    /// Operating system and its version.
    #[n(1)]
    pub os: String,
    /// Processor architecture.
    #[n(2)]
    pub arch: String,
    /// The kernel's boot id.
    #[n(3)]
    pub boot_id: String,
    /// Names of the pipelines that run.
    #[n(4)]
    pub pipelines: Vec<String>,
    /// One entry a class and opening that is not yet released and reported as closed.
    #[n(5)]
    pub queues: Vec<QueueState>,
    /// Drops that the server has not acknowledged yet.
    #[n(6)]
    pub drops: Vec<DropRange>,
    /// One entry a pipeline that has a model; older agents tell none.
    #[n(7)]
    #[cbor(skip_if = "Vec::is_empty")]
    pub models: Vec<RunningModel>,
}

/// Sent every minute, and whenever drops wait to be reported.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Default)]
#[cbor(map)]
pub struct State {
    /// As in [`Birth`].
    #[n(0)]
    pub queues: Vec<QueueState>,
    /// As in [`Birth`].
    #[n(1)]
    pub drops: Vec<DropRange>,
    /// Seconds since the agent started.
    #[n(2)]
    pub uptime_s: u64,
    /// Inferences since the agent started.
    #[n(3)]
    pub inferences: u64,
}

/// The will: the connection ended without a DISCONNECT. Its envelope's time is the connect's.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Default)]
#[cbor(map)]
pub struct Death {
    /// `connection lost`, or what the agent could say.
    #[n(0)]
    pub reason: String,
}

/// Checks a metric name.
///
/// # Errors
/// Says what was expected.
pub fn check_metric_name(name: &str) -> Result<(), &'static str> {
    let ok = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:%".contains(&b));
    if ok && (1..=METRIC_NAME_BYTES_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err("must be 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', '/', ':' and '%'")
    }
}

fn rule(what: &'static str, field: impl Into<String>, rule: &'static str) -> WireError {
    WireError::Rule { what, field: field.into(), rule }
}

pub(crate) fn name_ok(what: &'static str, field: &str, text: &str) -> Result<(), WireError> {
    if text.len() <= NAME_BYTES_MAX { Ok(()) } else { Err(rule(what, field, "must be at most 128 bytes")) }
}

macro_rules! body {
    ($type:ident, $class:expr, $what:literal, $max:expr) => {
        impl $type {
            /// The class of the topic and envelope that carry it.
            pub const CLASS: UpClass = $class;

            /// Encodes the body.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                minicbor::to_vec(self).expect("writing to a Vec cannot fail")
            }

            /// Decodes and checks an untrusted body.
            ///
            /// # Errors
            /// Too large, malformed, or against a rule of the type.
            pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
                if bytes.len() > $max {
                    return Err(WireError::TooLarge { what: $what, bytes: bytes.len(), max: $max });
                }
                let mut d = minicbor::Decoder::new(bytes);
                let body: Self = d.decode().map_err(|error| malformed($what, &error))?;
                if d.position() != bytes.len() {
                    return Err(WireError::Malformed { what: $what, why: "bytes after the body".into() });
                }
                body.check()?;
                Ok(body)
            }
        }
    };
}

body!(Telemetry, UpClass::Telemetry, "telemetry", TELEMETRY_BYTES_MAX);
body!(Event, UpClass::Event, "event", EVENT_BYTES_MAX);
body!(Birth, UpClass::Birth, "birth", BIRTH_BYTES_MAX);
body!(State, UpClass::State, "state", STATE_BYTES_MAX);
body!(Death, UpClass::Death, "death", DEATH_BYTES_MAX);

impl Telemetry {
    /// Checks the body's rules.
    ///
    /// # Errors
    /// Names the reading at fault.
    pub fn check(&self) -> Result<(), WireError> {
        check_readings(self.readings.iter().map(|reading| (reading.metric.as_str(), &reading.value)))
    }
}

pub(crate) fn check_readings<'a>(
    readings: impl ExactSizeIterator<Item = (&'a str, &'a Value)>,
) -> Result<(), WireError> {
    if !(1..=READINGS_MAX).contains(&readings.len()) {
        return Err(rule("telemetry", "readings", "must hold 1 to 1000"));
    }
    for (at, (metric, value)) in readings.enumerate() {
        check_metric_name(metric).map_err(|why| rule("telemetry", format!("readings[{at}].metric"), why))?;
        value.check().map_err(|_| {
            rule("telemetry", format!("readings[{at}].value"), "must be finite, or text of at most 256 bytes")
        })?;
    }
    Ok(())
}

impl Event {
    /// Checks the body's rules.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn check(&self) -> Result<(), WireError> {
        for (field, text) in [
            ("pipeline", &self.pipeline),
            ("model", &self.model),
            ("model_version", &self.model_version),
            ("label", &self.label),
        ] {
            name_ok("event", field, text)?;
        }
        if self.subject.as_ref().is_some_and(|subject| subject.len() > SUBJECT_BYTES_MAX) {
            return Err(rule("event", "subject", "must be at most 256 bytes"));
        }
        if !self.score.is_finite() {
            return Err(rule("event", "score", "must be finite"));
        }
        if self.boxes.len() > BOXES_MAX {
            return Err(rule("event", "boxes", "must hold at most 100"));
        }
        for (at, found) in self.boxes.iter().enumerate() {
            name_ok("event", &format!("boxes[{at}].label"), &found.label)?;
            if ![found.score, found.x, found.y, found.width, found.height].iter().all(|part| part.is_finite())
            {
                return Err(rule("event", format!("boxes[{at}]"), "must be finite"));
            }
        }
        Ok(())
    }
}

fn check_queues(what: &'static str, queues: &[QueueState], drops: &[DropRange]) -> Result<(), WireError> {
    if queues.len() > QUEUES_MAX {
        return Err(rule(what, "queues", "must hold at most 64"));
    }
    if drops.len() > DROPS_MAX {
        return Err(rule(what, "drops", "must hold at most 256"));
    }
    for (at, queue) in queues.iter().enumerate() {
        let ordered = 1 <= queue.first && queue.first <= queue.released && queue.released <= queue.next;
        if !ordered || queue.next > SEQ_MAX || queue.queue_id.0 == 0 {
            let rules = "must have 1 <= first <= released <= next and a queue_id";
            return Err(rule(what, format!("queues[{at}]"), rules));
        }
    }
    for (at, range) in drops.iter().enumerate() {
        if range.first == 0 || range.first > range.last || range.last >= SEQ_MAX || range.queue_id.0 == 0 {
            return Err(rule(what, format!("drops[{at}]"), "must have 1 <= first <= last and a queue_id"));
        }
    }
    Ok(())
}

impl Birth {
    /// Checks the body's rules.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn check(&self) -> Result<(), WireError> {
        for (field, text) in [
            ("agent_version", &self.agent_version),
            ("os", &self.os),
            ("arch", &self.arch),
            ("boot_id", &self.boot_id),
        ] {
            name_ok("birth", field, text)?;
        }
        if self.pipelines.len() > PIPELINES_MAX {
            return Err(rule("birth", "pipelines", "must hold at most 64"));
        }
        for (at, name) in self.pipelines.iter().enumerate() {
            name_ok("birth", &format!("pipelines[{at}]"), name)?;
        }
        if self.models.len() > PIPELINES_MAX {
            return Err(rule("birth", "models", "must hold at most 64"));
        }
        for (at, model) in self.models.iter().enumerate() {
            model.check("birth", &format!("models[{at}]"))?;
        }
        check_queues("birth", &self.queues, &self.drops)
    }
}

impl State {
    /// Checks the body's rules.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn check(&self) -> Result<(), WireError> {
        check_queues("state", &self.queues, &self.drops)
    }
}

impl Death {
    /// Checks the body's rules.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn check(&self) -> Result<(), WireError> {
        name_ok("death", "reason", &self.reason)
    }
}
