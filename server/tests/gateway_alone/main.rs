//! Real processes: a server, and gateways alone that let its devices in by its registry.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

#[allow(dead_code, reason = "the gateway's tests use the rest")]
#[path = "../gateway_mqtt/authority.rs"]
mod authority;
#[allow(dead_code, clippy::type_complexity, reason = "the gateway's tests use the rest")]
#[path = "../gateway_mqtt/kit.rs"]
mod kit;
mod processes;
mod refusals;
mod shared_registry;
