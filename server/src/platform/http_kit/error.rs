//! The one error shape of the HTTP API.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_wire::ErrorCode;
use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

/// What a client is told. The body is written by [`super::finish`], which knows the request's id.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The stable code; it decides the status.
    pub code: ErrorCode,
    /// A sentence for a person.
    pub message: Cow<'static, str>,
    /// The field at fault, as a path.
    pub field: Option<String>,
    /// Seconds after which to try again.
    pub retry_after_s: Option<u64>,
    /// For the log only.
    pub(super) cause: Option<Arc<str>>,
    pub(super) is_before_work: bool,
}

/// An error as it stands in a body.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// A URI of the kind of problem: `urn:muster:error:<code>`.
    #[serde(rename = "type")]
    #[schema(pattern = "^urn:muster:error:[a-z_]+$")]
    pub kind: String,
    /// The kind of problem in a few words; the same for each code.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// The stable code.
    #[schema(value_type = String, example = "invalid_argument", pattern = "^[a-z_]+$")]
    pub code: &'static str,
    /// A sentence for a person: what is wrong this time.
    pub detail: String,
    /// The field at fault, as a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// This occurrence: `urn:muster:request:<request_id>`.
    #[schema(pattern = "^urn:muster:request:[0-9a-f]{16}$")]
    pub instance: String,
    /// Finds the request in the server's log; also in the header `x-request-id`.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    pub request_id: String,
}

/// The kind of problem in a few words: the code's own.
fn title(code: ErrorCode) -> String {
    let words = code.as_str().replace('_', " ");
    let (first, rest) = words.split_at(1);
    first.to_uppercase() + rest
}

impl ApiError {
    /// An error with a code and a sentence.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self { code, message, field: None, retry_after_s: None, cause: None, is_before_work: false }
    }

    /// A field that is missing, malformed or out of range.
    #[must_use]
    pub fn invalid(field: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorCode::InvalidArgument, message) }
    }

    /// No such object, or another tenant's: the two look the same.
    #[must_use]
    pub fn not_found(noun: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no such {noun}"))
    }

    /// A fault of ours; `cause` goes to the log, never to the client.
    #[must_use]
    pub fn internal(cause: impl Display) -> Self {
        let message = "the server failed; its log has the request id";
        Self { cause: Some(cause.to_string().into()), ..Self::new(ErrorCode::Internal, message) }
    }

    /// Too many attempts; says when to try again.
    #[must_use]
    pub fn locked(message: impl Into<Cow<'static, str>>, retry_after_s: u64) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(ErrorCode::RateLimited, message) }
    }

    /// A body over the limit.
    #[must_use]
    pub fn too_large() -> Self {
        Self::of_status(StatusCode::PAYLOAD_TOO_LARGE)
    }

    /// Names the field at fault.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says of a fault of the server's that nothing was done before it.
    #[must_use]
    pub fn before_work(self) -> Self {
        Self { is_before_work: true, ..self }
    }

    /// Whether nothing was done before it for certain, though it is a fault of the server's.
    #[must_use]
    pub fn is_before_work(&self) -> bool {
        self.is_before_work
    }

    /// The status that carries the code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The error of a status that a layer below answered by itself (404, 405, 413 ...).
    pub(super) fn of_status(status: StatusCode) -> Self {
        let (code, message) = match status {
            StatusCode::NOT_FOUND => (ErrorCode::NotFound, "there is no such path"),
            StatusCode::METHOD_NOT_ALLOWED => {
                (ErrorCode::MethodNotAllowed, "the path does not take this method")
            }
            StatusCode::NOT_ACCEPTABLE => {
                (ErrorCode::NotAcceptable, "no answer is of an accepted media type")
            }
            StatusCode::PAYLOAD_TOO_LARGE => (
                ErrorCode::TooLarge,
                "the body is over the server's limit, http.body_bytes_max of its configuration",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                (ErrorCode::UnsupportedMediaType, "the body must be application/json")
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => {
                (ErrorCode::Unavailable, "the request took too long, or the server is starting")
            }
            status if status.is_client_error() => (ErrorCode::InvalidArgument, "the request is malformed"),
            _ => (ErrorCode::Internal, "the server failed; its log has the request id"),
        };
        Self::new(code, message)
    }

    pub(super) fn body(&self, request_id: &str) -> Problem {
        Problem {
            kind: format!("urn:muster:error:{}", self.code),
            title: title(self.code),
            status: self.status().as_u16(),
            code: self.code.as_str(),
            detail: self.message.to_string(),
            field: self.field.clone(),
            instance: format!("urn:muster:request:{request_id}"),
            request_id: request_id.to_owned(),
        }
    }
}

/// What was asked for is where the event log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process has the role api alone: ask the one with the roles gateway and worker")]
pub struct NotHere;

impl From<NotHere> for ApiError {
    fn from(why: NotHere) -> Self {
        Self::new(ErrorCode::NotOnThisProcess, why.to_string()).before_work()
    }
}

/// A database fault is the server's: no slice can answer for it. A read that took too long is the request's.
impl From<crate::platform::db::DbError> for ApiError {
    fn from(error: crate::platform::db::DbError) -> Self {
        if error.is_overdue() {
            return Self::new(ErrorCode::Unavailable, "the query took too long; ask for a shorter range");
        }
        if error.is_passing() {
            let message = "the database is busy or cannot be reached; try again";
            return Self { cause: Some(chain(&error).into()), ..Self::new(ErrorCode::Unavailable, message) };
        }
        Self::internal(chain(&error))
    }
}

impl From<super::condition::Changed> for ApiError {
    fn from(changed: super::condition::Changed) -> Self {
        Self::new(ErrorCode::PreconditionFailed, changed.to_string())
    }
}

/// An error with its sources, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        if let Some(after) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, after.into());
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::db::DbError;

    #[test]
    fn a_read_that_took_too_long_is_no_fault_of_the_server() {
        let failed =
            |code| DbError::Sql(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        let status = |code| ApiError::from(failed(code)).status().as_u16();
        assert_eq!(status(rusqlite::ffi::SQLITE_INTERRUPT), 503);
        assert_eq!(status(rusqlite::ffi::SQLITE_CORRUPT), 500);
    }
}
