//! Consumers of the event log: store writer, ledger, rules, live stream, retention.

pub mod api;
pub mod queries;
mod views;
