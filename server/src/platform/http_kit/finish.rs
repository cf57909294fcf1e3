//! The outermost layer: request id, error bodies, security headers, metrics and the log line.

use super::{ApiError, PROBLEM_JSON, RequestId};
use crate::platform::secret::random_bytes;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use std::time::Instant;

/// Scripts from this server only. The page and Swagger UI bring their own styles inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
     object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// What is counted of the HTTP API.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

impl HttpMetrics {
    /// Makes and registers the metrics.
    ///
    /// # Errors
    /// They are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = Opts::new("http_requests_total", "HTTP requests by method and status");
        let requests = IntCounterVec::new(requests, &["method", "status"])?;
        let seconds = HistogramOpts::new("http_request_seconds", "Time to the head of the answer, by route");
        let seconds = HistogramVec::new(seconds, &["route"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { requests, seconds })
    }
}

/// Gives the request an id, and the answer its body (for errors) and headers.
pub async fn finish(State(metrics): State<HttpMetrics>, mut request: Request, next: Next) -> Response {
    let id = RequestId(hex::encode(random_bytes::<8>()).into());
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    // The route's pattern, never the path: a closed set of labels.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let started = Instant::now();
    let response = next.run(request).await;
    let mut response = if response.status().is_client_error() || response.status().is_server_error() {
        error_body(response, &id, method.as_str(), &route)
    } else {
        response
    };
    metrics.requests.with_label_values(&[method_label(method.as_str()), response.status().as_str()]).inc();
    metrics.seconds.with_label_values(&[&route]).observe(started.elapsed().as_secs_f64());
    headers(&mut response, &id, &route);
    response
}

fn method_label(method: &str) -> &'static str {
    ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

fn error_body(mut response: Response, id: &RequestId, method: &str, route: &str) -> Response {
    let own = response.extensions_mut().remove::<ApiError>();
    // A part that answered an error of its own in JSON (readiness) has said all there is to say.
    let json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().ends_with(b"json"));
    if own.is_none() && json {
        return response;
    }
    let error = own.unwrap_or_else(|| ApiError::of_status(response.status()));
    match &error.cause {
        Some(cause) => tracing::error!(request_id = %id.0, method, route, %cause, "request failed"),
        None => tracing::debug!(request_id = %id.0, method, route, code = %error.code, "request refused"),
    }
    let bytes = serde_json::to_vec(&error.body(&id.0)).unwrap_or_default();
    let (mut parts, _) = response.into_parts();
    parts.status = error.status();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    Response::from_parts(parts, Body::from(bytes))
}

fn headers(response: &mut Response, id: &RequestId, route: &str) {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        headers.insert("x-request-id", value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let policy = headers.entry(header::CONTENT_SECURITY_POLICY);
    policy.or_insert(HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    if route.starts_with("/api/") {
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
}
