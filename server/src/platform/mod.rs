//! Rank 1: what every slice stands on. Uses the shared crates only.

pub mod authorities;
pub mod blob;
pub mod clock;
pub mod condition;
pub mod config;
pub mod db;
pub mod ends;
pub mod event_log;
pub mod expr;
pub mod http_kit;
pub mod live;
pub mod observability;
pub mod priority;
pub mod schema;
pub mod secret;
pub mod telemetry;
pub mod threads;
