//! Extractors whose refusals are [`ApiError`]s that name the field.

use super::ApiError;
use super::strict::Strict;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Json, Path, Query, Request};
use axum::http::request::Parts;
use muster_wire::ErrorCode;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The request's id, as it stands in the answer's `x-request-id` and in the log.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

/// A JSON body.
#[derive(Debug)]
pub struct ApiJson<T>(pub T);

/// The path's ids, parsed. A text that cannot be an id names nothing: 404.
#[derive(Debug)]
pub struct ApiPath<T>(pub T);

/// The query's parameters.
#[derive(Debug)]
pub struct ApiQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<Strict<T>>::from_request(request, state).await {
            Ok(Json(Strict(body))) => Ok(Self(body)),
            Err(JsonRejection::JsonDataError(error)) => Err(field_error(&error.body_text())),
            Err(JsonRejection::JsonSyntaxError(error)) => Err(field_error(&error.body_text())),
            Err(JsonRejection::MissingJsonContentType(_)) => {
                Err(ApiError::new(ErrorCode::UnsupportedMediaType, "the body must be application/json"))
            }
            Err(other) => Err(ApiError::of_status(other.status())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = Path::<T>::from_request_parts(parts, state).await;
        found.map(|Path(ids)| Self(ids)).map_err(|_| ApiError::not_found("object"))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(field_error(&error.body_text()))
            }
            Err(other) => Err(ApiError::of_status(other.status())),
        }
    }
}

/// Takes the field out of axum's text: `<preamble>: <path>: <reason>`, or a reason that quotes the field.
fn field_error(text: &str) -> ApiError {
    let reason = text.split_once(": ").map_or(text, |(_, reason)| reason);
    let quoted = || {
        let named =
            ["missing field", "unknown field", "duplicate field"].iter().any(|start| reason.contains(start));
        reason.split('`').nth(1).filter(|_| named).map(str::to_owned)
    };
    let path = reason.split_once(": ").map(|(path, _)| path).filter(|path| is_path(path));
    let field = path.map(str::to_owned).or_else(quoted);
    let message = reason.split(" at line ").next().unwrap_or(reason).to_owned();
    ApiError { field, ..ApiError::new(ErrorCode::InvalidArgument, message) }
}

fn is_path(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "_.[]-?".contains(c);
    !text.is_empty() && text != "." && text.chars().all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, field: Option<&str>) {
        assert_eq!(field_error(text).field.as_deref(), field, "{text}");
    }

    #[test]
    fn the_field_comes_out_of_the_refusal() {
        let into = "Failed to deserialize the JSON body into the target type: ";
        check(
            &format!("{into}labels.site: invalid type: integer `1`, expected a string at line 1 column 9"),
            Some("labels.site"),
        );
        check(&format!("{into}missing field `email` at line 1 column 2"), Some("email"));
        check(&format!("{into}nme: unknown field `nme`, expected `name` at line 1 column 5"), Some("nme"));
        check("Failed to parse the request body as JSON: expected value at line 1 column 1", None);
        check("Failed to deserialize query string: limit: invalid digit found in string", Some("limit"));
    }
}
