//! Conditional requests (RFC 9110, 13): strong ETags from an object's row, `If-None-Match` and `If-Match`.
//!
//! A slice answers one object as [`Tagged`] and takes [`IfMatch`] where it changes one; its service checks the
//! [`Precondition`] inside the transaction that writes, so that nothing comes between. `http.rs` puts [`conditional`]
//! around the routes.

use super::ApiError;
use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use std::fmt::Debug;

/// The header of a change that expects a state.
pub const IF_MATCH: &str = "If-Match";

/// A strong entity tag: the row's part, and where more than the row is shown, a part for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag(String);

fn digest(value: &impl Debug) -> String {
    hex::encode(&Sha256::digest(format!("{value:?}"))[..12])
}

impl ETag {
    /// Of a row: every field of its `Debug` counts, so that no column is forgotten. A build that prints it otherwise
    /// gives other tags, which costs a client one more request.
    #[must_use]
    pub fn of(row: &impl Debug) -> Self {
        Self(digest(row))
    }

    /// With what is shown beside the row and no change of it depends on.
    #[must_use]
    pub fn beside(self, more: &impl Debug) -> Self {
        Self(format!("{}-{}", self.0, digest(more)))
    }

    fn row(&self) -> &str {
        row_part(&self.0)
    }

    fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&format!("\"{}\"", self.0)).expect("hex digits are a header's text")
    }
}

fn row_part(tag: &str) -> &str {
    tag.split('-').next().unwrap_or(tag)
}

/// A JSON answer with its tag.
#[derive(Debug)]
pub struct Tagged<T>(pub ETag, pub T);

impl<T: serde::Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        ([(header::ETAG, self.0.header())], Json(self.1)).into_response()
    }
}

/// `If-Match`, for the document of operations that change an object.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "stands for the header in the document")]
pub struct IfMatchHeader {
    /// ETags of the state that the change was made from; 412 where the object has another by now.
    #[param(rename = "If-Match")]
    if_match: Option<String>,
}

/// What a change expects of the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// That it is there.
    Exists,
    /// That it has one of these tags. Weak ones match nothing.
    OneOf(Vec<String>),
}

/// The object is another one than the change was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object was changed meanwhile: load it again")]
pub struct Changed;

impl Precondition {
    /// Checks it against the row as it is now, inside the transaction that writes.
    ///
    /// # Errors
    /// It does not hold.
    pub fn check(&self, now: &ETag) -> Result<(), Changed> {
        match self {
            Self::None | Self::Exists => Ok(()),
            Self::OneOf(tags) if tags.iter().any(|tag| row_part(tag) == now.row()) => Ok(()),
            Self::OneOf(_) => Err(Changed),
        }
    }
}

/// The request's precondition.
#[derive(Debug)]
pub struct IfMatch(pub Precondition);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(tags) = tags(&parts.headers, &header::IF_MATCH) else { return Ok(Self(Precondition::None)) };
        let bad = || ApiError::invalid(IF_MATCH, "must be `*`, or ETags in quotes with commas between");
        match tags.ok_or_else(bad)?.as_slice() {
            [(_, any)] if any == "*" => Ok(Self(Precondition::Exists)),
            tags => {
                let strong = tags.iter().filter(|(weak, _)| !weak).map(|(_, tag)| tag.clone());
                Ok(Self(Precondition::OneOf(strong.collect())))
            }
        }
    }
}

/// A tag, and whether it is a weak one.
type Tag = (bool, String);

/// The tags of a header: `None` where it is absent, `Some(None)` where it is malformed; `*` is one tag.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Option<Vec<Tag>>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let texts: Option<Vec<&str>> = lines.map(|line| line.to_str().ok()).collect();
    let tags = texts.and_then(|texts| {
        let parts =
            texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|part| !part.is_empty());
        parts.map(tag).collect::<Option<Vec<_>>>()
    });
    Some(tags.filter(|tags| !tags.is_empty() && (tags.len() == 1 || tags.iter().all(|(_, tag)| tag != "*"))))
}

fn tag(text: &str) -> Option<Tag> {
    if text == "*" {
        return Some((false, text.to_owned()));
    }
    let (weak, text) = text.strip_prefix("W/").map_or((false, text), |text| (true, text));
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    (!inner.contains('"') && inner != "*").then(|| (weak, inner.to_owned()))
}

/// Answers 304 where a copy at hand is still true.
pub async fn conditional(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let held = tags(request.headers(), &header::IF_NONE_MATCH).flatten().filter(|_| reads);
    let mut response = next.run(request).await;
    let Some(tag) = response.headers().get(header::ETAG).cloned() else { return response };
    // Whoever has a copy may keep it, and asks before using it.
    let keep = HeaderValue::from_static("private, no-cache");
    response.headers_mut().insert(header::CACHE_CONTROL, keep);
    let now = tag.to_str().unwrap_or_default().trim_matches('"');
    let is_held = held.is_some_and(|held| held.iter().any(|(_, held)| held == "*" || held == now));
    if response.status() == StatusCode::OK && is_held {
        let (mut head, _) = response.into_parts();
        head.status = StatusCode::NOT_MODIFIED;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::CONTENT_TYPE);
        return Response::from_parts(head, Body::empty());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_covers_every_field_and_a_change_depends_on_the_row_alone() {
        let row = ETag::of(&("pump", 1));
        assert_ne!(row, ETag::of(&("pump", 2)));
        let shown = row.clone().beside(&"healthy");
        assert_ne!(shown, row.clone().beside(&"ill"));
        let expects = |tag: &ETag| Precondition::OneOf(vec![tag.0.clone()]);
        assert_eq!(expects(&shown).check(&row), Ok(()));
        assert_eq!(expects(&row).check(&row), Ok(()));
        assert_eq!(expects(&ETag::of(&("pump", 2))).check(&row), Err(Changed));
        assert_eq!(Precondition::OneOf(Vec::new()).check(&row), Err(Changed));
        assert_eq!(Precondition::Exists.check(&row), Ok(()));
    }

    #[track_caller]
    fn check(text: &str, expect: Option<&[(bool, &str)]>) {
        let headers = HeaderMap::from_iter([(header::IF_MATCH, text.parse().unwrap())]);
        let found = tags(&headers, &header::IF_MATCH).unwrap();
        let expect = expect.map(|tags| tags.iter().map(|(weak, tag)| (*weak, (*tag).to_owned())).collect());
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn lists_of_tags_are_read() {
        check("*", Some(&[(false, "*")]));
        check(r#""a""#, Some(&[(false, "a")]));
        check(r#""a", W/"b" ,"#, Some(&[(false, "a"), (true, "b")]));
        check(r#""""#, Some(&[(false, "")]));
        for bad in ["a", r#""a"#, r#"*, "a""#, "", ",", r#""a" "b""#, r#""*""#] {
            check(bad, None);
        }
        assert_eq!(tags(&HeaderMap::new(), &header::IF_MATCH), None);
    }
}
