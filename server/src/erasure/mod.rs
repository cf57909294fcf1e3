//! Erasure: exports what is stored of a device or of a whole tenant, and erases it.
//!
//! Who calls me: people over HTTP ([`api`]); `app.rs` runs the [`worker`] in the process that holds the store. I call
//! every slice below and the platform's telemetry and blob stores.
//!
//! Promise: a job is a row; each of its steps is done again after a crash, and does no harm then. What is erased is shut
//! out first: nothing of it enters the event log any more, and what stands there is stored, exported and erased with
//! the rest, so that nothing comes back. The export is whole before the first row goes. The audit chain and the job's
//! row stay, and a tenant's id is never given away again.
//!
//! Limits: [`model::OPEN_PER_TENANT_MAX`] jobs of a tenant at once; a file of an export holds at most
//! [`model::FILE_ROWS_MAX`] rows, ends with the row that takes it over [`model::FILE_BYTES_MAX`] bytes, and is kept for
//! [`model::EXPORT_DAYS`] days.

pub mod api;
mod expiry;
mod export;
pub mod model;
mod rows;
pub mod service;
mod store;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
pub mod worker;
