//! The observing half of a run: everything that watches and judges the server from outside, over HTTP and `/proc`.
//!
//! `run` calls it while its engine sends. It knows the server by its documented API only, and survives what a run does
//! to the server: a call to one that is down fails or is tried again, no thread of it ends for that.
//!
//! | piece | what |
//! |---|---|
//! | [`handle`] | where the server is now, and with which token a tenant is asked |
//! | [`http`] | a blocking client of the API |
//! | [`sse`] | the live stream, with the time at which each event came |
//! | [`scrape`], [`sample`] | the server's metrics; one look a second at server, generator and machine |
//! | [`server`] | a server that is started, killed, frozen and started again on the same ports |
//! | [`provision`] | tenants, devices, tokens, rules |
//! | [`probe`] | how long until a message is stored, until an alert is visible |
//! | [`outage`] | a store that cannot commit |
//! | [`oracle`] | after the run: whether the server holds what it acknowledged |

mod chunked;
pub mod handle;
pub mod http;
pub mod oracle;
pub mod outage;
pub mod probe;
pub mod provision;
pub mod sample;
pub mod scrape;
pub mod server;
pub mod sse;
#[cfg(test)]
mod testing;

pub use handle::{Access, ServerFacts, ServerHandle};
