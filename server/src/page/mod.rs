//! The embedded read-only page at `/`, and the live stream behind it, until the console comes.
//!
//! Who calls me: `http.rs` joins [`api::routes`] and [`assets::routes`]; `app.rs` hands [`feed::Feed`] to the store
//! consumer, which tells it of every commit. I call `platform::live` and, over the browser, the API like any client.
//!
//! Promise: the page needs nothing from outside the server and no build step; it only reads. The stream shows what is
//! stored, never more: a value appears after its commit. Limits stand with [`feed`] and [`api`].

pub mod api;
pub mod assets;
pub mod feed;
pub mod service;

#[cfg(test)]
mod tests;
