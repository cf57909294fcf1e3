//! The agent's own counters, as Prometheus text on a loopback port or a Unix socket.
//!
//! Every module counts through [`Metrics`]; [`serve`] answers `GET /metrics` and `GET /healthz`.
//! Labels come from closed enums, or are the configuration's pipelines, at most 64. Limits: one request a connection, 4 KiB of head, 5 s, 4 at a time.

mod serve;

pub use serve::{Listen, ServeError, serve};

use muster_journal::Written;
use prometheus::{
    Counter, CounterVec, Encoder, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a value or a sample did not become a record. Closed: each is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// NaN or an infinity.
    NotFinite,
    /// Text longer than the wire allows.
    TextTooLong,
    /// A name that is no metric name.
    BadName,
    /// The device has its 1,000 metrics already.
    TooManyMetrics,
    /// A model's input is missing or is no number.
    BadInput,
    /// A picture that cannot be read or decoded.
    Undecodable,
    /// The model failed on the input.
    ModelFailed,
    /// More bytes than a record may have.
    TooLarge,
    /// A row of a file or a line of a child that is not what it should be.
    BadRow,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::NotFinite,
        Self::TextTooLong,
        Self::BadName,
        Self::TooManyMetrics,
        Self::BadInput,
        Self::Undecodable,
        Self::ModelFailed,
        Self::TooLarge,
        Self::BadRow,
    ];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::TextTooLong => "text_too_long",
            Self::BadName => "bad_name",
            Self::TooManyMetrics => "too_many_metrics",
            Self::BadInput => "bad_input",
            Self::Undecodable => "undecodable",
            Self::ModelFailed => "model_failed",
            Self::TooLarge => "too_large",
            Self::BadRow => "bad_row",
        }
    }
}

/// How a publish ended. Closed: each is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishEnd {
    /// Stored by the server.
    Released,
    /// Refused for now, kept.
    Kept,
    /// Refused for good, dropped with a record.
    Dropped,
    /// The connection ended first.
    Unanswered,
}

impl PublishEnd {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Kept => "kept",
            Self::Dropped => "dropped",
            Self::Unanswered => "unanswered",
        }
    }
}

/// How a child of an `exec` source ended. Closed: each is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// By itself, with status 0.
    Success,
    /// It did not start, or ended with another status or by a signal.
    Failure,
    /// Killed, since it took too long or was silent too long.
    Timeout,
}

impl ExecEnd {
    /// Every end.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Timeout];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
        }
    }
}

/// Why an inference was left out. Closed: each is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// The pipeline's CPU budget is spent.
    Cpu,
    /// Memory is short.
    Memory,
}

impl Shed {
    /// Every reason, in the order of [`PipelineCounters`].
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Memory];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// The counters of one pipeline.
#[derive(Clone)]
pub struct PipelineCounters {
    /// Inferences.
    pub inferences: IntCounter,
    /// CPU seconds that its thread spent on samples.
    pub cpu_seconds: Counter,
    shed: [IntCounter; 2],
}

impl PipelineCounters {
    /// Counts inferences that were due and left out.
    pub fn shed(&self, reason: Shed, inferences: u64) {
        self.shed[reason as usize].inc_by(inferences);
    }

    /// Inferences left out for a reason.
    #[must_use]
    pub fn shed_so_far(&self, reason: Shed) -> u64 {
        self.shed[reason as usize].get()
    }
}

/// The counters; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Samples that the sources read.
    pub samples: IntCounter,
    /// Readings appended to the queue.
    pub readings: IntCounter,
    /// Events appended to the queue.
    pub events: IntCounter,
    refused: IntCounterVec,
    accepted: IntCounterVec,
    released: IntCounterVec,
    dropped_records: IntCounterVec,
    dropped_bytes: IntCounterVec,
    publishes: IntCounterVec,
    exec_ends: IntCounterVec,
    /// Connections that the server accepted.
    pub connects: IntCounter,
    /// Attempts that failed, and connections that ended.
    pub disconnects: IntCounter,
    /// 1 while connected.
    pub connected: IntGauge,
    /// Waits because the queue could take no more.
    pub queue_waits: IntCounter,
    /// Tasks that were started again.
    pub restarts: IntCounter,
    /// Messages from the server.
    pub received: IntCounter,
    pipelines: IntCounterVec,
    pipeline_cpu: CounterVec,
    shed: IntCounterVec,
    disk_bytes: IntCounterVec,
    disk_blocks: IntCounterVec,
    disk_syncs: IntCounterVec,
    disk_day: IntGauge,
    disk_day_over: IntGauge,
    memory_available: IntGauge,
    memory_low: IntGauge,
    /// Inferences since the start; State carries it.
    pub inferences: Arc<AtomicU64>,
    inferences_counter: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("a constant name is valid");
    registry.register(Box::new(counter.clone())).expect("a constant name is registered once");
    counter
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    labelled(registry, name, help, &[label])
}

fn labelled(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a constant name is valid");
    registry.register(Box::new(counters.clone())).expect("a constant name is registered once");
    counters
}

fn seconds(registry: &Registry, name: &str, help: &str, label: &str) -> CounterVec {
    let counters = CounterVec::new(Opts::new(name, help), &[label]).expect("a constant name is valid");
    registry.register(Box::new(counters.clone())).expect("a constant name is registered once");
    counters
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect("a constant name is valid");
    registry.register(Box::new(gauge.clone())).expect("a constant name is registered once");
    gauge
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            samples: counter(r, "agent_source_samples_total", "samples read"),
            readings: counter(r, "agent_queue_readings_total", "readings appended to the queue"),
            events: counter(r, "agent_queue_events_total", "events appended to the queue"),
            refused: counters(r, "agent_refused_total", "values and samples refused", "reason"),
            accepted: counters(r, "agent_queue_accepted_total", "records accepted (fsynced)", "class"),
            released: counters(r, "agent_queue_released_total", "records acknowledged or dropped", "class"),
            dropped_records: counters(r, "agent_queue_dropped_total", "accepted records dropped", "reason"),
            dropped_bytes: counters(
                r,
                "agent_queue_dropped_bytes_total",
                "bytes of records dropped",
                "reason",
            ),
            publishes: counters(r, "agent_uplink_publishes_total", "records published, by their end", "end"),
            exec_ends: counters(r, "agent_exec_ends_total", "ends of exec sources' children", "end"),
            connects: counter(r, "agent_uplink_connects_total", "connections accepted by the server"),
            disconnects: counter(
                r,
                "agent_uplink_disconnects_total",
                "attempts failed and connections ended",
            ),
            connected: gauge(r, "agent_uplink_connected", "1 while connected"),
            queue_waits: counter(r, "agent_queue_full_waits_total", "waits because the queue was full"),
            restarts: counter(r, "agent_supervisor_restarts_total", "tasks started again"),
            received: counter(r, "agent_uplink_received_total", "messages from the server"),
            pipelines: counters(r, "agent_pipeline_inferences_total", "inferences", "pipeline"),
            pipeline_cpu: seconds(
                r,
                "agent_pipeline_cpu_seconds_total",
                "CPU time of a pipeline",
                "pipeline",
            ),
            shed: labelled(r, "agent_inferences_shed_total", "inferences left out", &["pipeline", "reason"]),
            disk_bytes: counters(r, "agent_disk_payload_bytes_total", "bytes given to the disk", "class"),
            disk_blocks: counters(
                r,
                "agent_disk_written_bytes_total",
                "bytes of 4 KiB blocks written",
                "class",
            ),
            disk_syncs: counters(r, "agent_disk_syncs_total", "syncs of files and folders", "class"),
            disk_day: gauge(
                r,
                "agent_disk_written_bytes_day",
                "bytes of blocks written in the last 24 hours",
            ),
            disk_day_over: gauge(
                r,
                "agent_disk_written_day_over",
                "1 while that is over queue.written_bytes_day_max",
            ),
            memory_available: gauge(r, "agent_memory_available_bytes", "memory that is still there"),
            memory_low: gauge(r, "agent_memory_low", "1 while memory is short and inferences are shed"),
            inferences: Arc::default(),
            inferences_counter: counter(r, "agent_model_inferences_total", "inferences"),
            registry,
        };
        for reason in Refusal::ALL {
            metrics.refused.with_label_values(&[reason.as_str()]);
        }
        for end in ExecEnd::ALL {
            metrics.exec_ends.with_label_values(&[end.as_str()]);
        }
        metrics
    }

    /// Counts a refusal.
    pub fn refuse(&self, reason: Refusal) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// How often `reason` was counted.
    #[must_use]
    pub fn refusals(&self, reason: Refusal) -> u64 {
        self.refused.with_label_values(&[reason.as_str()]).get()
    }

    /// Counts the end of an `exec` source's child.
    pub fn exec_ended(&self, end: ExecEnd) {
        self.exec_ends.with_label_values(&[end.as_str()]).inc();
    }

    /// How many children ended so.
    #[must_use]
    pub fn exec_ends(&self, end: ExecEnd) -> u64 {
        self.exec_ends.with_label_values(&[end.as_str()]).get()
    }

    /// Counts how far a class of the queue moved.
    pub fn queue_moved(&self, class: &'static str, accepted: u64, released: u64) {
        self.accepted.with_label_values(&[class]).inc_by(accepted);
        self.released.with_label_values(&[class]).inc_by(released);
    }

    /// Counts accepted records that were dropped.
    pub fn queue_dropped(&self, reason: &'static str, records: u64, bytes: u64) {
        self.dropped_records.with_label_values(&[reason]).inc_by(records);
        self.dropped_bytes.with_label_values(&[reason]).inc_by(bytes);
    }

    /// Records dropped so far for a reason.
    #[must_use]
    pub fn dropped(&self, reason: &'static str) -> u64 {
        self.dropped_records.with_label_values(&[reason]).get()
    }

    /// Counts the end of publishes.
    pub fn published(&self, end: PublishEnd, count: u64) {
        self.publishes.with_label_values(&[end.as_str()]).inc_by(count);
    }

    /// The counters of a pipeline; the configuration names at most 64.
    #[must_use]
    pub fn pipeline(&self, name: &str) -> PipelineCounters {
        PipelineCounters {
            inferences: self.pipelines.with_label_values(&[name]),
            cpu_seconds: self.pipeline_cpu.with_label_values(&[name]),
            shed: Shed::ALL.map(|reason| self.shed.with_label_values(&[name, reason.as_str()])),
        }
    }

    /// Counts what a class of the queue gave to the disk.
    pub fn disk_written(&self, class: &'static str, written: Written) {
        self.disk_bytes.with_label_values(&[class]).inc_by(written.bytes);
        self.disk_blocks.with_label_values(&[class]).inc_by(written.block_bytes);
        self.disk_syncs.with_label_values(&[class]).inc_by(written.syncs);
    }

    /// Shows what the last day wrote, and whether that is over the bound.
    pub fn disk_day(&self, block_bytes: u64, is_over: bool) {
        self.disk_day.set(as_gauge(block_bytes));
        self.disk_day_over.set(is_over.into());
    }

    /// Shows what memory is left, and whether that is short.
    pub fn memory(&self, available_bytes: u64, is_low: bool) {
        self.memory_available.set(as_gauge(available_bytes));
        self.memory_low.set(is_low.into());
    }

    /// Counts an inference.
    pub fn inferred(&self) {
        self.inferences.fetch_add(1, Ordering::Relaxed);
        self.inferences_counter.inc();
    }

    /// The Prometheus text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}
