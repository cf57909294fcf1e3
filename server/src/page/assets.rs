//! The page's three files, built into the program.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// Everything from this server only, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// `/` and what it loads.
pub fn routes() -> Router {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("assets/page.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("assets/page.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("assets/page.js"))))
        .route("/icon.svg", get(|| file("image/svg+xml", include_str!("assets/icon.svg"))))
}

async fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // The files change with the program only, but a new program must be seen at once.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    (headers, text).into_response()
}
