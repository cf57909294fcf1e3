//! Muster's fleet server: one process with roles; vertical slices on a thin platform.
//!
//! `app.rs` composes it, `http.rs` joins the slices' routes; ranks and rules stand in
//! `docs/ARCHITECTURE.md` and `cargo xtask tidy` checks them.

pub mod alerts;
pub mod app;
pub mod devices;
pub mod erasure;
pub mod gateway;
pub mod http;
pub mod ingest;
pub mod page;
pub mod platform;
pub mod rules;
pub mod tenants;
#[cfg(test)]
mod testing;
pub mod usage;
