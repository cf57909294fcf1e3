//! A reading on its way into the memtable, and why a message may not get there.

use super::TelemetryError;
use super::partition::ReadingRow;
use muster_wire::Value;
use std::borrow::Cow;

/// A reading on its way to a row.
pub(super) struct Incoming<'m> {
    pub(super) metric: Cow<'m, str>,
    pub(super) unit: Option<String>,
    pub(super) ts: i64,
    /// Queue row, seq, index.
    pub(super) key: (i64, u64, usize),
    pub(super) is_named: bool,
    pub(super) value: Value,
}

impl Incoming<'_> {
    pub(super) fn row(self, series_id: i64, device_id: i64, received_at: i64) -> ReadingRow {
        let (queue_ref, seq, index) = self.key;
        ReadingRow {
            series_id,
            device_id,
            ts: self.ts,
            queue_ref,
            seq: seq.cast_signed(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            received_at,
            value: self.value.into(),
        }
    }
}

/// Why a message cannot be stored; it becomes a dead letter.
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, detail: &str) -> Self {
        Self { reason, detail: detail.to_owned() }
    }

    pub(super) fn malformed(error: muster_wire::WireError) -> Self {
        Self { reason: "malformed", detail: error.to_string() }
    }
}

pub(super) enum StoreError {
    Refused(Refusal),
    Failed(TelemetryError),
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TelemetryError> for StoreError {
    fn from(error: TelemetryError) -> Self {
        Self::Failed(error)
    }
}
