//! Holds requests against the OpenAPI document before a handler sees them: unknown or repeated query parameters are
//! 400, an `Accept` that no answer fits is 406.
//!
//! `http.rs` puts [`gate`] around the routes. An operation that the document does not know (the page) passes.

use super::ApiError;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use muster_wire::ErrorCode;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// The longest name that an error repeats, in characters.
const NAME_CHARS_MAX: usize = 80;

/// What the document says of each operation; clones share it.
#[derive(Clone, Default)]
pub struct Gate {
    operations: Arc<HashMap<(String, String), Operation>>,
}

/// What is asked of one operation's requests.
#[derive(Default)]
struct Operation {
    query: Vec<String>,
    /// Media types of its good answers; none where they have no body.
    produces: Vec<String>,
    creates: bool,
}

impl Gate {
    /// Of a document, as JSON.
    #[must_use]
    pub fn new(document: &Value) -> Self {
        let mut operations = HashMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in item.as_object().into_iter().flatten() {
                operations.insert((method.to_uppercase(), path.clone()), Operation::of(operation));
            }
        }
        Self { operations: Arc::new(operations) }
    }

    fn operation(&self, method: &Method, route: &str) -> Option<&Operation> {
        let method = if *method == Method::HEAD { Method::GET } else { method.clone() };
        self.operations.get(&(method.as_str().to_owned(), route.to_owned()))
    }

    /// Whether the operation takes an `Idempotency-Key`.
    #[must_use]
    pub fn creates(&self, method: &Method, route: &str) -> bool {
        self.operation(method, route).is_some_and(|operation| operation.creates)
    }
}

impl Operation {
    fn of(operation: &Value) -> Self {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let names = |place: &str| {
            let of_place = parameters.clone().filter(|parameter| parameter["in"] == place);
            of_place.filter_map(|parameter| parameter["name"].as_str().map(str::to_owned)).collect()
        };
        let headers: Vec<String> = names("header");
        let answers = operation["responses"].as_object().into_iter().flatten();
        let good = answers.filter(|(status, _)| status.starts_with('2'));
        let types = good.filter_map(|(_, answer)| answer["content"].as_object()).flatten();
        Self {
            query: names("query"),
            produces: types.map(|(kind, _)| kind.clone()).collect(),
            creates: headers.iter().any(|name| name == super::idempotency::HEADER),
        }
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()) else {
            return Err(ApiError::new(ErrorCode::InvalidArgument, "the query is malformed"));
        };
        for (at, (name, _)) in pairs.iter().enumerate() {
            let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
            if !self.query.contains(name) {
                let why = match self.query.as_slice() {
                    [] => "is unknown: this operation takes no parameters".to_owned(),
                    known => format!("is unknown: this operation takes {}", known.join(", ")),
                };
                return Err(ApiError::invalid(shown, why));
            }
            if pairs[..at].iter().any(|(before, _)| before == name) {
                return Err(ApiError::invalid(shown, "is given twice"));
            }
        }
        if self.produces.is_empty() || acceptable(request.headers(), &self.produces) {
            return Ok(());
        }
        let why = format!("the answer is {}", self.produces.join(" or "));
        Err(ApiError::new(ErrorCode::NotAcceptable, why))
    }
}

/// RFC 9110, 12.5.1: without the header anything goes; of a range only the type counts here, not its parameters.
fn acceptable(headers: &HeaderMap, produces: &[String]) -> bool {
    let lines: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    let mut ranges = lines.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|r| !r.is_empty());
    let plain = |kind: &str| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    lines.is_empty()
        || ranges.any(|range| {
            let refused = range.split(';').skip(1).any(|part| {
                let weight = part.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
                weight == Some(0.0)
            });
            let wanted = plain(range);
            let fits = |kind: &String| {
                let kind = plain(kind);
                let of_type = wanted.strip_suffix("/*").is_some_and(|of| kind.split('/').next() == Some(of));
                wanted == "*/*" || of_type || wanted == kind
            };
            !refused && produces.iter().any(fits)
        })
}

/// The layer.
pub async fn gate(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let operation = route.and_then(|route| gate.operation(request.method(), route.as_str()));
    match operation.map_or(Ok(()), |operation| operation.check(&request)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(accept: Option<&str>, expect: bool) {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        assert_eq!(acceptable(&headers, &["application/json".into()]), expect, "{accept:?}");
    }

    #[test]
    fn what_accept_allows() {
        check(None, true);
        check(Some("*/*"), true);
        check(Some("text/html, application/*;q=0.8"), true);
        check(Some("Application/JSON; charset=utf-8"), true);
        check(Some("text/html"), false);
        check(Some("application/json;q=0"), false);
        check(Some(""), false);
    }

    #[test]
    fn a_query_holds_what_the_document_names_once() {
        let parameters = json!([{ "name": "limit", "in": "query" }, { "name": "If-Match", "in": "header" }]);
        let document = json!({ "paths": { "/a": { "get": { "parameters": parameters }, "put": {} } } });
        let gate = Gate::new(&document);
        let ask = |method: Method, query: &str| {
            let request =
                Request::builder().uri(format!("/a?{query}")).body(axum::body::Body::empty()).unwrap();
            let operation = gate.operation(&method, "/a").unwrap();
            operation.check(&request).err().map(|error| (error.field.unwrap(), error.message.into_owned()))
        };
        assert_eq!(ask(Method::GET, ""), None);
        assert_eq!(ask(Method::HEAD, "limit=1"), None);
        let unknown = |name: &str| Some((name.into(), "is unknown: this operation takes limit".into()));
        assert_eq!(ask(Method::GET, "limit=1&lmit=2"), unknown("lmit"));
        assert_eq!(ask(Method::GET, "If-Match=1"), unknown("If-Match"));
        assert_eq!(ask(Method::GET, "limit=1&limit=1"), Some(("limit".into(), "is given twice".into())));
        let none = "is unknown: this operation takes no parameters".to_owned();
        assert_eq!(ask(Method::PUT, "limit=1"), Some(("limit".into(), none)));
        assert_eq!(ask(Method::GET, &"x".repeat(200)).unwrap().0.len(), NAME_CHARS_MAX);
    }
}
