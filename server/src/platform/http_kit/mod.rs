//! HTTP kit: one error shape, request ids, extractors, paging, limits, the connection loop.
//!
//! Every slice's `api.rs` calls this; `http.rs` puts [`finish`] around the joined router. It calls nothing of ours
//! but the clock. Promise: every answer of 400 and over is `application/problem+json` with a stable `code` and the
//! request's id; the text of an internal error stays in the log. Bounds: bodies (configuration `http.body_bytes_max`),
//! time (`http.timeout_s`), lists ([`LIMIT_MAX`]), connections ([`serve::CONNECTIONS_MAX`]).

mod error;
mod extract;
mod finish;
pub mod health;
mod paging;
pub mod serve;

pub use error::{ApiError, Problem, chain};
pub use extract::{ApiJson, ApiPath, ApiQuery, RequestId};
pub use finish::{HttpMetrics, finish};
pub use paging::{Items, LIMIT_DEFAULT, LIMIT_MAX, Page, PageQuery};

/// The media type of an error.
pub const PROBLEM_JSON: &str = "application/problem+json";
