//! Tenants: accounts, roles, sessions, API tokens, the audit chain.
//!
//! `http.rs` joins [`api::routes`]; every other slice's `api.rs` takes a [`Principal`] and asks
//! [`Caller::require`]; the gateway reads [`directory::TokenDirectory`]. It calls the platform only.
//! Promise: another tenant's object looks absent (404); a password is stored as argon2id, everything random as
//! SHA-256; each change and its audit row are one commit. Bounds stand beside what they bound.

pub mod api;
pub mod audit;
pub mod audit_search;
pub mod chains;
pub mod directory;
pub mod extract;
pub mod login_guard;
pub mod model;
pub mod passwords;
pub mod reach;
pub mod scan;
pub mod service;
mod store;

pub use extract::Caller;
pub use model::{Membership, Permission, Principal, Role};
pub use reach::Reach;
pub use service::{Tenants, TenantsError, hold_account};

#[cfg(test)]
mod tests;
