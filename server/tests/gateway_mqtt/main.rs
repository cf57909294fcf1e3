//! The gateway in process, on ephemeral loopback ports, against a raw-socket client of both versions and
//! against mosquitto's clients.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "tables and helpers of tests")]

mod authority;
mod bad_input;
mod credit;
mod failed_sync;
mod flow;
mod full;
mod kit;
mod mosquitto;
mod quota;
mod tls;
mod topics;
