//! What stands in the API's answers; the store's rows may change without it.

use crate::platform::http_kit::ReadingValue;
use crate::platform::telemetry::{
    DeadLetter, DeviceLedger, EventRow, LastValue, MergedQueues, Point, Points, QueueLedger, RejectedRow,
    Totals,
};
use muster_wire::{DropReason, UpClass, Value};
use std::collections::BTreeMap;

/// A point of a series.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct PointView {
    /// When it was measured, or the begin of the step; microseconds since 1970 (UTC).
    ts_us: i64,
    /// A number, a bool or a text; null where the step holds nothing that can be aggregated so.
    #[schema(value_type = Option<ReadingValue>)]
    value: Option<Value>,
    /// Readings in it.
    count: u64,
    /// Measured more than a day off its time of reception.
    clock_suspect: bool,
}

/// A series.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct ReadingsView {
    /// In order of time.
    points: Vec<PointView>,
    /// There is more: ask again from the last point's time on.
    truncated: bool,
}

impl From<Points> for ReadingsView {
    fn from(found: Points) -> Self {
        let view =
            |Point { ts_us, value, count, clock_suspect }| PointView { ts_us, value, count, clock_suspect };
        Self { points: found.points.into_iter().map(view).collect(), truncated: found.truncated }
    }
}

/// The last value of a metric.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct LastView {
    metric: String,
    unit: Option<String>,
    /// Microseconds since 1970 (UTC).
    ts_us: i64,
    /// Microseconds since 1970 (UTC).
    received_at_us: i64,
    /// A number, a bool or a text.
    #[schema(value_type = ReadingValue)]
    value: Value,
    /// Measured more than a day off its time of reception.
    clock_suspect: bool,
}

/// The last values of a device.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct LastValuesView {
    /// One a metric, by name.
    pub items: Vec<LastView>,
}

impl From<LastValue> for LastView {
    fn from(row: LastValue) -> Self {
        let LastValue { metric, unit, ts_us, received_at_us, value, clock_suspect } = row;
        Self { metric, unit, ts_us, received_at_us, value, clock_suspect }
    }
}

/// A box that a detector found; fractions of the frame.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct BoxView {
    label: String,
    score: f32,
    x: f32,
    y: f32,
    width: f32,
    height: f32,
}

/// An inference result.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct EventView {
    id: i64,
    device: String,
    /// Microseconds since 1970 (UTC).
    received_at_us: i64,
    /// Microseconds since 1970 (UTC).
    measured_at_us: i64,
    /// Measured more than a day off its time of reception.
    clock_suspect: bool,
    /// `classification`, `anomaly` or `detection`.
    kind: String,
    pipeline: String,
    model: String,
    model_version: String,
    label: String,
    score: f64,
    /// What was scored.
    subject: Option<String>,
    /// How long the model took.
    latency_us: u32,
    boxes: Vec<BoxView>,
}

impl From<EventRow> for EventView {
    fn from(row: EventRow) -> Self {
        let boxes = row.boxes.into_iter().map(|found| BoxView {
            label: found.label,
            score: found.score,
            x: found.x,
            y: found.y,
            width: found.width,
            height: found.height,
        });
        Self {
            id: row.id,
            device: row.device,
            received_at_us: row.received_at_us,
            measured_at_us: row.measured_at_us,
            clock_suspect: row.clock_suspect,
            kind: row.kind,
            pipeline: row.pipeline,
            model: row.model,
            model_version: row.model_version,
            label: row.label,
            score: row.score,
            subject: row.subject,
            latency_us: row.latency_us,
            boxes: boxes.collect(),
        }
    }
}

/// What became of a tenant's records: `accepted = stored + dropped + pending + lost`.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct TotalsView {
    /// Records that agents' queues accepted, and messages of foreign devices.
    accepted: u64,
    stored: u64,
    /// By reason.
    dropped: BTreeMap<String, u64>,
    /// Accepted and not yet here.
    pending: u64,
    /// Released by the agent, and neither stored nor dropped. Must be 0.
    lost: u64,
    /// Came again and were not stored again.
    duplicated: u64,
    dead_letters: u64,
    /// Messages that the gateway refused for good.
    rejected: u64,
    readings: u64,
    readings_refused: u64,
    events: u64,
    /// Messages that came with QoS 0: best effort.
    qos0: u64,
}

impl From<Totals> for TotalsView {
    fn from(sums: Totals) -> Self {
        Self {
            accepted: sums.accepted,
            stored: sums.stored,
            dropped: sums.dropped,
            pending: sums.pending,
            lost: sums.lost,
            duplicated: sums.duplicates,
            dead_letters: sums.dead_letters,
            rejected: sums.rejected,
            readings: sums.readings,
            readings_refused: sums.readings_refused,
            events: sums.events,
            qos0: sums.qos0,
        }
    }
}

/// Sequence numbers `first` to `last`, both included.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct RangeView {
    first: u64,
    last: u64,
    /// Why, for what was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What the agent reported of a queue; half-open.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct MarksView {
    first: u64,
    /// All below was acknowledged or dropped.
    released: u64,
    /// All below was accepted.
    next: u64,
    /// No more will come.
    closed: bool,
}

/// What became of one queue's records.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct QueueView {
    /// The agent's opening of its queue, as 16 hex digits.
    queue_id: String,
    class: String,
    /// No agent's queue: only counts are kept.
    foreign: bool,
    reported: Option<MarksView>,
    stored: u64,
    dropped: u64,
    pending: u64,
    lost: u64,
    duplicated: u64,
    /// The first 200.
    stored_ranges: Vec<RangeView>,
    /// The first 200.
    dropped_ranges: Vec<RangeView>,
    /// Microseconds since 1970 (UTC).
    updated_at_us: i64,
}

impl From<QueueLedger> for QueueView {
    fn from(queue: QueueLedger) -> Self {
        let range = |first, last, reason: Option<DropReason>| RangeView {
            first,
            last,
            reason: reason.map(|reason| reason.as_str().to_owned()),
        };
        Self {
            queue_id: queue.queue_id.to_string(),
            class: queue.class.to_owned(),
            foreign: queue.foreign,
            reported: queue.reported.map(|marks| MarksView {
                first: marks.first,
                released: marks.released,
                next: marks.next,
                closed: marks.closed,
            }),
            stored: queue.stored,
            dropped: queue.dropped,
            pending: queue.pending,
            lost: queue.lost,
            duplicated: queue.duplicates,
            stored_ranges: queue
                .stored_ranges
                .into_iter()
                .map(|held| range(held.first, held.last, None))
                .collect(),
            dropped_ranges: queue
                .dropped_ranges
                .into_iter()
                .map(|gone| range(gone.first, gone.last, Some(gone.reason)))
                .collect(),
            updated_at_us: queue.updated_at_us,
        }
    }
}

/// Sums of queues that ended without gaps, or were too many.
#[derive(Default, serde::Serialize, utoipa::ToSchema)]
pub struct MergedView {
    queues: u64,
    stored: u64,
    /// By reason.
    dropped: BTreeMap<String, u64>,
    pending: u64,
    lost: u64,
    duplicated: u64,
}

impl From<MergedQueues> for MergedView {
    fn from(merged: MergedQueues) -> Self {
        let MergedQueues { queues, stored, dropped, pending, lost, duplicates } = merged;
        Self { queues, stored, dropped, pending, lost, duplicated: duplicates }
    }
}

/// Sums over all queues of a device.
#[derive(Default, serde::Serialize, utoipa::ToSchema)]
pub struct DeviceTotalsView {
    /// `stored + dropped + pending + lost`.
    accepted: u64,
    stored: u64,
    dropped: u64,
    pending: u64,
    /// Must be 0.
    lost: u64,
    duplicated: u64,
}

/// A device's ledger.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct DeviceLedgerView {
    totals: DeviceTotalsView,
    /// The newest 200.
    queues: Vec<QueueView>,
    /// By class.
    merged: BTreeMap<String, MergedView>,
}

impl From<DeviceLedger> for DeviceLedgerView {
    fn from(ledger: DeviceLedger) -> Self {
        let mut totals = DeviceTotalsView::default();
        for queue in &ledger.queues {
            totals.stored += queue.stored;
            totals.dropped += queue.dropped;
            totals.pending += queue.pending;
            totals.lost += queue.lost;
            totals.duplicated += queue.duplicates;
        }
        for merged in ledger.merged.values() {
            totals.stored += merged.stored;
            totals.dropped += merged.dropped.values().sum::<u64>();
            totals.pending += merged.pending;
            totals.lost += merged.lost;
            totals.duplicated += merged.duplicates;
        }
        totals.accepted = totals.stored + totals.dropped + totals.pending + totals.lost;
        let merged = ledger.merged.into_iter().map(|(class, merged)| (class.to_owned(), merged.into()));
        Self {
            totals,
            queues: ledger.queues.into_iter().map(QueueView::from).collect(),
            merged: merged.collect(),
        }
    }
}

fn class_name(number: u8) -> Option<String> {
    UpClass::from_number(number).map(|class| class.as_str().to_owned())
}

/// A body that could not be stored.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct DeadLetterView {
    id: i64,
    device: String,
    /// Microseconds since 1970 (UTC).
    received_at_us: i64,
    class: Option<String>,
    /// 16 hex digits; zeros where there was none.
    queue_id: String,
    seq: u64,
    reason: String,
    detail: String,
    body_hex: String,
}

impl From<DeadLetter> for DeadLetterView {
    fn from(row: DeadLetter) -> Self {
        Self {
            id: row.id,
            device: row.device,
            received_at_us: row.received_at_us,
            class: class_name(row.class),
            queue_id: row.queue_id.to_string(),
            seq: row.seq,
            reason: row.reason,
            detail: row.detail,
            body_hex: row.body_hex,
        }
    }
}

/// Messages that the gateway refused for good within one minute.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct RejectedView {
    device: String,
    class: Option<String>,
    /// The MQTT 5 reason code.
    reason: u8,
    count: u64,
    /// Microseconds since 1970 (UTC).
    last_at_us: i64,
}

/// Refused messages.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct RejectedListView {
    /// Newest first.
    pub items: Vec<RejectedView>,
}

impl From<RejectedRow> for RejectedView {
    fn from(row: RejectedRow) -> Self {
        let RejectedRow { device, class, reason, count, last_at_us, .. } = row;
        Self { device, class: class_name(class), reason, count, last_at_us }
    }
}
