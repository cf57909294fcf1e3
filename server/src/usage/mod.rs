//! What tenants may use and what they used: quotas in force, meters by the day, price list, invoice drafts.
//!
//! ```text
//! gateway --admit, refused--> Board (atomics, one Allowance a tenant) <--defaults, overrides-- UsageService <- api
//!    |                          ^ refusals out, storage and inference in                          |
//!    '-> event log -> consumer -> Meter (pure counting) -> one commit: usage_days, notices, cursor-'
//! ```
//!
//! `app` starts the [`consumer`] and hands [`Board`] to the gateway; `http` joins [`api::routes`]. It calls the platform and
//! `tenants` (who asks, audit). Promise: what a tenant's gateway admits never exceeds its hard limits, to the message;
//! what is metered of an event log is what that log holds, each record once, whatever is killed in between: the
//! counts commit together with the reader's place. See docs/adr/0021.
//!
//! Limits: [`RETENTION_DAYS`] of meters; a number of a quota is at most `QUOTA_MAX`.

pub mod allowance;
pub mod api;
mod board;
mod calendar;
pub mod consumer;
mod csv;
mod gap;
mod invoice;
mod meter;
pub mod model;
mod service;
mod store;
#[cfg(test)]
mod tests;

pub use allowance::{Allowance, TICKS_PER_S};
pub use board::Board;
pub use model::{Notice, Quota, Quotas, RETENTION_DAYS, Refused};
pub use service::{UsageError, UsageService};
