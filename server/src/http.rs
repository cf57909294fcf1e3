//! Joins the slices' routes into one router with one OpenAPI document.
//!
//! `app.rs` calls it, and the tests with an app in process. Order of the layers, outermost first: request id, error
//! bodies and headers; panics; time; body size; rate limits; the document's rules; conditional requests; idempotency
//! keys; the routes.

mod document;
mod repeat;

use crate::alerts::{self, service::AlertService};
use crate::devices::{self, Devices};
use crate::erasure::{self, service::Erasures};
use crate::ingest;
use crate::ingest::queries::Queries;
use crate::page::{self, api::PageState};
use crate::platform::clock::SharedClock;
use crate::platform::config::{Config, Live};
use crate::platform::db::Db;
use crate::platform::http_kit::health::{self, Health};
use crate::platform::http_kit::rate::{self, RateLimiter};
use crate::platform::http_kit::{self, ApiError, Gate, HttpMetrics};
use crate::rules::{self, service::RuleService};
use crate::tenants::extract::AuthState;
use crate::tenants::{self, Tenants};
use crate::usage::{self, UsageService};
use axum::extract::DefaultBodyLimit;
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::{Extension, Json, Router, middleware};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;

/// What the routes stand on.
#[derive(Clone)]
pub struct Slices {
    /// The configuration in force.
    pub config: Live,
    /// Accounts.
    pub tenants: Tenants,
    /// The registry.
    pub devices: Devices,
    /// Readings, events, ledger.
    pub queries: Queries,
    /// Rules.
    pub rules: RuleService,
    /// Alerts.
    pub alerts: AlertService,
    /// Exporting and erasing devices and tenants.
    pub erasures: Erasures,
    /// The live stream and presence; none where another process reads the event log.
    pub page: Option<PageState>,
    /// Quotas and usage.
    pub usage: UsageService,
    /// Counters of the HTTP API itself.
    pub metrics: HttpMetrics,
    /// Health and metrics.
    pub health: Health,
    /// Where answers of idempotency keys are kept.
    pub registry: Db,
    /// Their time.
    pub clock: SharedClock,
    /// How much callers may ask.
    pub rate: RateLimiter,
}

/// The document's frame: version, how to authenticate, the error's shape.
fn frame() -> OpenApi {
    let about = "Admin API of a Muster server. Errors are `application/problem+json` with a stable `code`; \
         lists are paged with `limit` and `cursor`; times are microseconds since 1970 (UTC).";
    let info = InfoBuilder::new().title("Muster").version("v1").description(Some(about));
    let mut document = OpenApiBuilder::new().info(info).build();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API token")).build();
    let cookie = ApiKey::Cookie(ApiKeyValue::new(tenants::extract::COOKIE));
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.add_security_scheme("session", SecurityScheme::ApiKey(cookie));
    let none: [&str; 0] = [];
    document.security =
        Some(vec![SecurityRequirement::new("bearer", none), SecurityRequirement::new("session", none)]);
    document
}

/// The whole document, the enrolment listener's operation included.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = frame();
    document.merge(tenants::api::routes().into_openapi());
    document.merge(devices::api::routes().into_openapi());
    document.merge(devices::enroll::routes().into_openapi());
    document.merge(ingest::api::routes().into_openapi());
    document.merge(rules::api::routes().into_openapi());
    document.merge(alerts::api::routes().into_openapi());
    document.merge(erasure::api::routes().into_openapi());
    document.merge(page::api::routes().into_openapi());
    document.merge(usage::api::routes().into_openapi());
    document.merge(health::routes().into_openapi());
    document::complete(&document)
}

/// The admin listener's router: API, documentation, page.
pub fn admin_router(slices: &Slices) -> Router {
    let document = Arc::new(openapi());
    let served = document.clone();
    let (router, _) = OpenApiRouter::new()
        .merge(tenants::api::routes().with_state(slices.tenants.clone()))
        .merge(devices::api::routes().with_state(slices.devices.clone()))
        .merge(ingest::api::routes().with_state(slices.queries.clone()))
        .merge(rules::api::routes().with_state(slices.rules.clone()))
        .merge(alerts::api::routes().with_state(slices.alerts.clone()))
        .merge(erasure::api::routes().with_state(slices.erasures.clone()))
        .merge(page::api::routes().with_state(slices.page.clone()))
        .merge(usage::api::routes().with_state(slices.usage.clone()))
        .merge(health::routes().with_state(slices.health.clone()))
        .split_for_parts();
    let url = "/api/v1/openapi.json";
    let viewer = utoipa_swagger_ui::SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from(url));
    let router = router
        .route(url, axum::routing::get(move || async move { Json((*served).clone()) }))
        .merge(Router::from(viewer))
        .merge(page::assets::routes());
    of_slices(router, slices, &document)
}

/// The enrolment listener's router.
pub fn enroll_router(slices: &Slices) -> Router {
    let (router, _) = devices::enroll::routes().with_state(slices.devices.clone()).split_for_parts();
    of_slices(router, slices, &openapi())
}

/// The router of a process without the API: health and metrics.
pub fn health_router(health: &Health, metrics: &HttpMetrics, config: &Config) -> Router {
    let (router, _) = health::routes().with_state(health.clone()).split_for_parts();
    layered(router, metrics, config)
}

fn of_slices(router: Router, slices: &Slices, document: &OpenApi) -> Router {
    let auth = AuthState { tenants: slices.tenants.clone(), config: slices.config.clone() };
    let gate = Gate::new(&serde_json::to_value(document).expect("a document is JSON"));
    let repeat = repeat::Repeat {
        db: slices.registry.clone(),
        clock: slices.clock.clone(),
        config: slices.config.clone(),
        gate: gate.clone(),
    };
    let router = router
        .layer(middleware::from_fn_with_state(repeat, repeat::repeat))
        .layer(middleware::from_fn(http_kit::conditional))
        .layer(middleware::from_fn_with_state(gate, http_kit::gate))
        .layer(middleware::from_fn_with_state(slices.rate.clone(), rate::limit))
        .layer(Extension(auth));
    layered(router, &slices.metrics, &slices.config.get())
}

fn layered(router: Router, metrics: &HttpMetrics, config: &Config) -> Router {
    let timeout = Duration::from_secs(config.http.timeout_s);
    router
        .fallback(|| async { StatusCode::NOT_FOUND })
        .method_not_allowed_fallback(|| async { StatusCode::METHOD_NOT_ALLOWED })
        .layer(DefaultBodyLimit::max(config.http.body_bytes_max))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(metrics.clone(), http_kit::finish))
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send>) -> Response<axum::body::Body> {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    ApiError::internal(format!("panic: {text}")).into_response()
}

#[cfg(test)]
pub(crate) mod tests;
