//! HTTP kit: one error shape, request ids, extractors, paging, conditional and repeated requests, limits, the
//! connection loop.
//!
//! Every slice's `api.rs` calls this; `http.rs` puts [`finish`] around the joined router. It calls nothing of ours
//! but the clock. Promise: every answer of 400 and over is `application/problem+json` with a stable `code` and the
//! request's id; the text of an internal error stays in the log. Bounds: bodies (configuration `http.body_bytes_max`),
//! time (`http.timeout_s`), lists ([`LIMIT_MAX`]), requests ([`rate`]), connections ([`serve::CONNECTIONS_MAX`]).

pub mod condition;
mod error;
mod extract;
mod finish;
mod gate;
pub mod health;
pub mod idempotency;
mod paging;
pub mod rate;
pub mod schema;
pub mod serve;
mod strict;

pub use condition::{ETag, IfMatch, IfMatchHeader, Precondition, Tagged, conditional};
pub use error::{ApiError, NotHere, Problem, chain};
pub use extract::{ApiJson, ApiPath, ApiQuery, RequestId};
pub use finish::{HttpMetrics, finish};
pub use gate::{Gate, gate};
pub use paging::{Items, LIMIT_DEFAULT, LIMIT_MAX, Page, PageQuery};
pub use schema::ReadingValue;
pub use serve::PeerCertificate;

/// The media type of an error.
pub const PROBLEM_JSON: &str = "application/problem+json";
