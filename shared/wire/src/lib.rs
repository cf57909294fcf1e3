//! Topics, messages, ids and error codes of the wire between a device and the server.
//!
//! Who calls this: `muster-agent` (formats), `muster-server` (parses), `muster-loadtest` (both).
//! It calls nothing of ours. No IO, no async, no clock: callers pass bytes and times in.
//!
//! Promise: what one version formats, every later version parses (golden bytes per version in
//! `tests/golden.rs`); decoding untrusted bytes never panics and never allocates more than the
//! input's size suggests, since every decoder checks the byte limit beside its type first.

mod borrowed;
mod credit;
mod envelope;
mod error;
mod ids;
mod message;
mod running;
pub mod senml;
mod topic;
mod value;

pub use borrowed::{ReadingRef, TelemetryRef};
pub use credit::{
    CREDIT_BYTES_MAX, CREDIT_REQUEST_BYTES_MAX, Credit, CreditRequest, RECONNECT_SPREAD_MS_MAX,
};
pub use envelope::{ENVELOPE_BYTES_MAX, Envelope, PUBLISH_BYTES_MAX, SEQ_MAX, WIRE_VERSION, WireError};
pub use error::ErrorCode;
pub use ids::{DeviceId, IdError, QueueId, TenantId};
pub use message::{
    BIRTH_BYTES_MAX, BOXES_MAX, Birth, BoundingBox, DEATH_BYTES_MAX, DROPS_MAX, Death, DropRange, DropReason,
    EVENT_BYTES_MAX, Event, EventKind, METRIC_NAME_BYTES_MAX, METRICS_PER_DEVICE_MAX, NAME_BYTES_MAX,
    PIPELINES_MAX, QUEUES_MAX, QueueState, READINGS_MAX, Reading, STATE_BYTES_MAX, SUBJECT_BYTES_MAX, State,
    TELEMETRY_BYTES_MAX, Telemetry, check_metric_name,
};
pub use running::RunningModel;
pub use topic::{DownClass, Leg, Topic, TopicError, UpClass};
pub use value::{TEXT_BYTES_MAX, Value, ValueError};
