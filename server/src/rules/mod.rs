//! Rules: conditions in CEL over the event log, with durations and hysteresis, that open and clear alerts.
//!
//! Who calls me: people over HTTP ([`service`]); `app.rs` starts [`consumer`], which reads the event log behind a
//! cursor of its own. I call `alerts`, `platform::expr`, `platform::db`, `platform::event_log`.
//!
//! Promise: rules never hold up ingest (the reader follows, it does not pin). What a rule decides depends on the log
//! alone: time is the log's, and state, cursor and alerts commit together each second or 10,000 records, so a crash
//! anywhere opens every alert exactly once. A rule that only fails, or is too slow, is quarantined and shown.
//!
//! Architecture invariant: [`engine`] and [`machine`] do no IO and read no clock but to measure a rule's own cost.

pub mod api;
pub mod bench;
pub mod consumer;
pub mod engine;
mod facts;
pub mod machine;
pub mod model;
pub mod service;
mod snapshot;
mod store;
pub mod template;
mod validate;

#[cfg(test)]
mod tests;
