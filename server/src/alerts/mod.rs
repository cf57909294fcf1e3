//! Alerts: rows opened and cleared by rules, acknowledged and resolved by people.
//!
//! Who calls me: `rules` opens and clears inside its own commit; people list, acknowledge and resolve over HTTP.
//! I call `platform::db` and `platform::live`.
//!
//! Promise: an alert's id is a hash of what opened it, so opening it again changes nothing; a person's word
//! (acknowledged, resolved) is never overwritten by a rule, only completed with the time it cleared.
//! Bounds: [`model::NOTE_CHARS_MAX`] for notes, [`model::MESSAGE_CHARS_MAX`] for messages, pages as in the HTTP kit.

pub mod api;
pub mod model;
pub mod service;
mod store;

#[cfg(test)]
mod tests;
