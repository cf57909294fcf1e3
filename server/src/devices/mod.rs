//! Devices: registry, claims, certificates, tokens, the in-memory directory.
//!
//! `http.rs` joins [`api::routes`]; `app.rs` serves [`enroll::routes`] on a listener of its own; the gateway reads
//! [`directory::Directory`], which the service fills at the start and after each commit, and [`replica::Replica`] in a
//! process that reads another's registry. Calls the tenants slice
//! (who asks, audit) and the platform. Promise: a disabled or deleted device is out of the directory before its
//! request is answered; a private key never arrives here. Bounds stand in [`model`] and in `quota`.

pub mod api;
pub mod directory;
pub mod enroll;
pub mod facts;
pub mod labels;
pub mod model;
pub mod pki;
pub mod replica;
pub mod service;
mod store;

pub use service::{Devices, DevicesError, DevicesMax, Endpoints};

#[cfg(test)]
mod tests;
