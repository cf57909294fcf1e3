//! Muster's load generator: many MQTT devices in one process, on one thread.
//!
//! `xtask bench` runs its binary; end-to-end tests and people may too. It speaks MQTT 3.1.1 and 5 with an encoder
//! of its own and knows the product through `muster-wire` only, so that it cannot share the server's mistakes.
//! Promise: an idle plain device costs at most 3 KB, the schedule never slows down for the server, and the
//! last line of output is one JSON object.
//! Limits: 131,072 devices a process, and the system's limit of open files.

mod arithmetic;
mod connection;
mod engine;
pub mod enrol;
mod identity;
mod lanes;
mod meter;
mod modes;
pub mod mqtt;
pub mod observe;
pub mod payload;
mod record;
pub mod report;
mod run;
pub mod simulation;
mod tally;
mod timer;
mod wheel;

pub use meter::{Cost, ServerCost};
pub use modes::{Command, Common, Outcome, run};
