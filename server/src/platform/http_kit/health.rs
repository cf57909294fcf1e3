//! `/healthz` (the process answers), `/readyz` (every part works, or names which does not), `/metrics`; the last two
//! also below `/api/v1/monitoring`, where a proxy lets only the API through.
//!
//! `app.rs` adds a check per part. A check has [`CHECK_TIME_MAX`]; one that hangs is degraded, not waited for.

use crate::platform::http_kit::ApiError;
use crate::platform::observability::metrics_text;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures_util::future::{BoxFuture, join_all};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The longest a check may take.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(2);

/// Says whether a part works; the text says what is wrong.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The checks and the metrics; clones share them.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<RwLock<Vec<(&'static str, Check)>>>,
    registry: Registry,
}

/// Whether the server is ready.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct ReadyView {
    ready: bool,
    /// Each part: `ok`, or what is wrong with it.
    parts: BTreeMap<&'static str, String>,
}

/// The process answers.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct HealthView {
    /// `ok`.
    status: &'static str,
    version: &'static str,
}

impl Health {
    /// No checks yet.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, ..Self::default() }
    }

    /// Adds a part's check.
    pub fn add<F>(&self, part: &'static str, check: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check: Check = Arc::new(move || Box::pin(check()));
        self.checks.write().unwrap_or_else(PoisonError::into_inner).push((part, check));
    }

    /// Runs every check.
    pub async fn run(&self) -> ReadyView {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner).clone();
        let runs = checks.into_iter().map(|(part, check)| async move {
            let outcome = tokio::time::timeout(CHECK_TIME_MAX, check()).await;
            (part, outcome.unwrap_or_else(|_| Err("does not answer".into())))
        });
        let outcomes = join_all(runs).await;
        let ready = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        let text = |outcome: Result<(), String>| outcome.map_or_else(|why| why, |()| "ok".to_owned());
        ReadyView {
            ready,
            parts: outcomes.into_iter().map(|(part, outcome)| (part, text(outcome))).collect(),
        }
    }
}

/// The routes.
pub fn routes() -> OpenApiRouter<Health> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(monitoring_health))
        .routes(routes!(monitoring_metrics))
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "Alive", body = HealthView)))]
pub async fn healthz() -> Json<HealthView> {
    Json(HealthView { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Every part works, or names which does not.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, description = "Ready", body = ReadyView),
              (status = 503, description = "Degraded", body = ReadyView)))]
pub async fn readyz(State(health): State<Health>) -> (StatusCode, Json<ReadyView>) {
    let view = health.run().await;
    (if view.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(view))
}

/// Metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "Text", body = String, content_type = "text/plain; version=0.0.4")))]
pub async fn metrics(State(health): State<Health>) -> Result<impl IntoResponse, ApiError> {
    // Some are read from a database.
    let gathered = tokio::task::spawn_blocking(move || metrics_text(&health.registry)).await;
    let text = gathered.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// As `/readyz`: every part works, or names which does not.
#[utoipa::path(get, path = "/api/v1/monitoring/health", tag = "health", security(()),
    responses((status = 200, description = "Ready", body = ReadyView),
              (status = 503, description = "Degraded", body = ReadyView)))]
pub async fn monitoring_health(state: State<Health>) -> (StatusCode, Json<ReadyView>) {
    readyz(state).await
}

/// As `/metrics`: metrics as Prometheus reads them.
#[utoipa::path(get, path = "/api/v1/monitoring/metrics", tag = "health", security(()),
    responses((status = 200, description = "Text", body = String, content_type = "text/plain; version=0.0.4")))]
pub async fn monitoring_metrics(state: State<Health>) -> Result<impl IntoResponse, ApiError> {
    metrics(state).await
}
