//! `/api/v1/tenants/{tenant}/alerts`.

use super::model::{Alert, AlertFilter, AlertSort, AlertState, Severity};
use super::service::{AlertError, AlertService};
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, ETag, Items, PageQuery, Tagged};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use muster_wire::{ErrorCode, TenantId};
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<AlertService> {
    OpenApiRouter::new()
        .routes(routes!(list_alerts))
        .routes(routes!(count_alerts))
        .routes(routes!(get_alert))
        .routes(routes!(ack_alert))
        .routes(routes!(resolve_alert))
}

impl From<AlertError> for ApiError {
    fn from(error: AlertError) -> Self {
        let text = error.to_string();
        match error {
            AlertError::NotFound => Self::not_found("alert"),
            AlertError::Illegal(_) => Self::new(ErrorCode::Conflict, text),
            AlertError::NoteTooLong => Self::invalid("note", text),
            AlertError::Db(cause) => cause.into(),
        }
    }
}

/// Which alerts to list; absent means all.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AlertQuery {
    /// Only in this state.
    #[param(inline)]
    state: Option<AlertState>,
    /// Only of this device.
    device: Option<String>,
    /// Only of this rule.
    rule: Option<String>,
    /// Only at least this bad.
    #[param(inline)]
    severity_min: Option<Severity>,
    /// Only those opened by old data, or only the others.
    historical: Option<bool>,
    /// Opened from this time on; microseconds since 1970 (UTC).
    from: Option<i64>,
    /// Opened up to, not including; microseconds since 1970 (UTC).
    to: Option<i64>,
    /// The order; a minus turns it round.
    #[param(inline)]
    #[serde(default)]
    sort: AlertSort,
}

/// A person's words.
#[derive(Debug, Default, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerBody {
    /// At most 1000 characters.
    #[schema(max_length = 1000)]
    note: Option<String>,
}

fn key(alert: &Alert) -> String {
    format!("{}:{}", alert.opened_at_us, alert.id)
}

fn parse_key(text: &str) -> Result<(i64, String), ApiError> {
    let bad = || ApiError::invalid("cursor", "is not a cursor that this list gave");
    let (opened_at_us, id) = text.split_once(':').ok_or_else(bad)?;
    Ok((opened_at_us.parse().map_err(|_| bad())?, id.to_owned()))
}

/// The tenant's alerts, the newest first unless asked otherwise.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/alerts", tag = "alerts",
    params(("tenant" = String, Path), AlertQuery, PageQuery),
    responses((status = 200, description = "A page of alerts", body = Items<Alert>)))]
pub async fn list_alerts(
    State(alerts): State<AlertService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<AlertQuery>,
    ApiQuery(page): ApiQuery<PageQuery>,
) -> Result<Json<Items<Alert>>, ApiError> {
    let reach = caller.require_part(Permission::AlertsRead, &tenant)?;
    let page = page.page()?;
    let after = page.after.as_deref().map(parse_key).transpose()?;
    let AlertQuery { state, device, rule: rule_id, severity_min, historical, from, to, sort } = query;
    let (from_us, to_us) = (from, to);
    let filter =
        AlertFilter { reach, state, device, rule_id, severity_min, historical, from_us, to_us, sort };
    let rows = alerts.list(&tenant, filter, after, page.fetch()).await?;
    Ok(Json(page.items(rows, key, |alert| alert)))
}

/// How many alerts are in each state.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/alerts/counts", tag = "alerts",
    params(("tenant" = String, Path)),
    responses((status = 200, description = "By state", body = BTreeMap<String, i64>)))]
pub async fn count_alerts(
    State(alerts): State<AlertService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
) -> Result<Json<BTreeMap<&'static str, i64>>, ApiError> {
    let reach = caller.require_part(Permission::AlertsRead, &tenant)?;
    Ok(Json(alerts.counts(&tenant, reach).await?))
}

/// One alert.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/alerts/{alert}", tag = "alerts",
    params(("tenant" = String, Path), ("alert" = String, Path)),
    responses((status = 200, description = "The alert", body = Alert,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn get_alert(
    State(alerts): State<AlertService>,
    caller: Caller,
    ApiPath((tenant, alert)): ApiPath<(TenantId, String)>,
) -> Result<Tagged<Alert>, ApiError> {
    let reach = caller.require_part(Permission::AlertsRead, &tenant)?;
    let alert = alerts.get(&tenant, reach, &alert).await?;
    Ok(Tagged(ETag::of(&alert), alert))
}

/// Takes notice of an open alert.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/alerts/{alert}/ack", tag = "alerts",
    params(("tenant" = String, Path), ("alert" = String, Path)),
    request_body = AnswerBody, responses((status = 200, description = "The alert", body = Alert)))]
pub async fn ack_alert(
    State(alerts): State<AlertService>,
    caller: Caller,
    ApiPath((tenant, alert)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<AnswerBody>,
) -> Result<Json<Alert>, ApiError> {
    caller.require_part(Permission::AlertsWrite, &tenant)?;
    Ok(Json(alerts.ack(&caller.principal, &tenant, &alert, body.note).await?))
}

/// Closes an alert, whether or not its condition has cleared.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/alerts/{alert}/resolve", tag = "alerts",
    params(("tenant" = String, Path), ("alert" = String, Path)),
    request_body = AnswerBody, responses((status = 200, description = "The alert", body = Alert)))]
pub async fn resolve_alert(
    State(alerts): State<AlertService>,
    caller: Caller,
    ApiPath((tenant, alert)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<AnswerBody>,
) -> Result<Json<Alert>, ApiError> {
    caller.require_part(Permission::AlertsWrite, &tenant)?;
    Ok(Json(alerts.resolve(&caller.principal, &tenant, &alert, body.note).await?))
}
