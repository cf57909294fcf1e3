//! What goes into the store (a range of the log) and what comes out once it is committed.

use crate::platform::event_log::{Kind, LogRecord, Origin};
use muster_wire::{EventKind, Value};
use std::ops::Range;
use std::sync::Arc;

/// Log records in one piece of memory, ready to move to the database's thread.
#[derive(Debug, Default)]
pub struct RawBatch {
    /// The log's epoch.
    pub epoch: u64,
    /// Where the cursor must stand.
    pub from: u64,
    /// Where the cursor will stand.
    pub next: u64,
    /// Positions that hold no readable record.
    pub skipped: Vec<Range<u64>>,
    bytes: Vec<u8>,
    records: Vec<Packed>,
}

#[derive(Debug)]
struct Packed {
    position: u64,
    received_at_us: i64,
    measured_at_us: i64,
    kind: Kind,
    origin: Origin,
    class: u8,
    qos: u8,
    tenant_bytes: u8,
    device_bytes: u8,
    /// Where names and body begin in `bytes`; they end where the next record's begin.
    at: usize,
}

impl RawBatch {
    /// An empty batch that begins where the cursor stands.
    #[must_use]
    pub fn new(epoch: u64, from: u64) -> Self {
        Self { epoch, from, next: from, ..Self::default() }
    }

    /// Copies a record in.
    pub fn push(&mut self, record: &LogRecord<'_>) {
        let bytes_of =
            |name: &str| u8::try_from(name.len()).expect("the log's codec holds names of at most 255 bytes");
        self.records.push(Packed {
            position: record.position,
            received_at_us: record.received_at_us,
            measured_at_us: record.measured_at_us,
            kind: record.kind,
            origin: record.origin,
            class: record.class,
            qos: record.qos,
            tenant_bytes: bytes_of(record.tenant),
            device_bytes: bytes_of(record.device),
            at: self.bytes.len(),
        });
        self.bytes.extend_from_slice(record.tenant.as_bytes());
        self.bytes.extend_from_slice(record.device.as_bytes());
        self.bytes.extend_from_slice(record.body);
    }

    /// Records held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was read, not even damage.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.skipped.is_empty()
    }

    /// Whether it tells nothing but time.
    #[must_use]
    pub fn is_ticks_only(&self) -> bool {
        self.skipped.is_empty() && self.records.iter().all(|record| record.kind == Kind::Tick)
    }

    /// The newest stamp; positions and stamps grow together.
    #[must_use]
    pub fn received_at_us(&self) -> Option<i64> {
        self.records.last().map(|record| record.received_at_us)
    }

    /// The records in order.
    pub fn records(&self) -> impl Iterator<Item = LogRecord<'_>> {
        let ends = self.records.iter().skip(1).map(|next| next.at).chain([self.bytes.len()]);
        self.records.iter().zip(ends).map(|(packed, end)| {
            let (tenant, rest) = self.bytes[packed.at..end].split_at(usize::from(packed.tenant_bytes));
            let (device, body) = rest.split_at(usize::from(packed.device_bytes));
            let text = |bytes| std::str::from_utf8(bytes).expect("copied from text");
            LogRecord {
                position: packed.position,
                received_at_us: packed.received_at_us,
                kind: packed.kind,
                tenant: text(tenant),
                device: text(device),
                class: packed.class,
                qos: packed.qos,
                origin: packed.origin,
                measured_at_us: packed.measured_at_us,
                body,
            }
        })
    }
}

/// What a committed batch did.
#[derive(Clone, Debug, Default)]
pub struct StoredBatch {
    /// The log's epoch.
    pub epoch: u64,
    /// First position of the batch.
    pub from: u64,
    /// One past its last.
    pub next: u64,
    /// Queue records and foreign messages stored.
    pub messages: u64,
    /// Readings stored.
    pub readings: u64,
    /// Events stored.
    pub events: u64,
    /// Queue records that were stored before.
    pub duplicates: u64,
    /// Bodies that became dead letters.
    pub dead_letters: u64,
    /// What is worth showing live, oldest first; at most [`super::LIVE_ITEMS_MAX`].
    pub items: Vec<StoredItem>,
    /// Items beyond that bound.
    pub items_left_out: u64,
}

/// One thing that was stored, for the live stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredItem {
    /// Its log position (of the batch's end where several became one).
    pub position: u64,
    /// The tenant.
    pub tenant: Arc<str>,
    /// The device.
    pub device: Arc<str>,
    /// The server's time of it.
    pub received_at_us: i64,
    /// What it is.
    pub what: StoredWhat,
}

/// The kinds of live items.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredWhat {
    /// The newest reading of a metric in the batch.
    Reading {
        /// The metric.
        metric: Arc<str>,
        /// When it was measured.
        ts_us: i64,
        /// Its value.
        value: Value,
    },
    /// An inference result.
    Event {
        /// When it was measured.
        measured_at_us: i64,
        /// The pipeline.
        pipeline: String,
        /// The kind.
        kind: EventKind,
        /// The label.
        label: String,
        /// The score.
        score: f64,
    },
    /// The device's connection came or went.
    Presence {
        /// Whether it is there.
        connected: bool,
    },
    /// The device reported its queues.
    Ledger,
}
