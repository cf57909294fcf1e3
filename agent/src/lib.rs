//! Muster's device agent: sources -> pipelines -> durable queue -> MQTT.
//!
//! [`app`] is the composition root: it alone makes the channels and hands each stage its next stage's
//! sender. `source` reads the world, `pipeline` turns samples into readings and events, `queue` makes
//! them durable, `uplink` (the only module that imports the MQTT client) sends them and frees them
//! when the server said so. `choice` finds the engine and form that a model runs with on this device, and
//! `bench_model` shows what each costs. `identity` enrols, `supervisor` restarts what fails, `metrics` counts.
//!
//! Promise: a record that [`queue::Queue`] accepted (its fdatasync returned) is sent until the server
//! acknowledges it, or is listed as dropped with a reason.

pub mod app;
pub mod bench_model;
pub mod choice;
pub mod clock;
pub mod config;
mod files;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod pipeline;
pub mod queue;
pub mod source;
pub mod supervisor;
pub mod tls;
pub mod uplink;
