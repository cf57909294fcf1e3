//! `/api/v1/price-list` and `/api/v1/tenants/{tenant}/usage/invoice`.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery};
use crate::tenants::{Caller, Permission};
use crate::usage::invoice::{Invoice, PriceList};
use crate::usage::model::{month_start, parse_month};
use crate::usage::service::UsageService;
use axum::Json;
use axum::extract::State;
use muster_wire::TenantId;

/// Which month.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MonthQuery {
    /// `2026-11` (UTC); this month unless given. Usage is kept for 400 days.
    month: Option<String>,
}

/// What the tenant's month comes to by the price list as it is now. A draft: nothing is sent or stored.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/usage/invoice", tag = "usage",
    params(("tenant" = String, Path), MonthQuery),
    responses((status = 200, description = "The draft", body = Invoice)))]
pub async fn get_invoice(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<MonthQuery>,
) -> Result<Json<Invoice>, ApiError> {
    caller.require(Permission::InvoicesRead, &tenant)?;
    let first = match query.month.as_deref() {
        None => month_start(usage.today()),
        Some(text) => {
            parse_month(text).ok_or_else(|| ApiError::invalid("month", "must be a month such as 2026-11"))?
        }
    };
    Ok(Json(usage.invoice(&tenant, first).await?))
}

/// The price list (system administrators only).
#[utoipa::path(get, path = "/api/v1/price-list", tag = "usage",
    responses((status = 200, description = "The price list", body = PriceList)))]
pub async fn get_prices(
    State(usage): State<UsageService>,
    caller: Caller,
) -> Result<Json<PriceList>, ApiError> {
    caller.require_platform()?;
    Ok(Json(usage.prices().await?))
}

/// Replaces the price list (system administrators only). Invoice drafts use it from then on, for any month.
#[utoipa::path(put, path = "/api/v1/price-list", tag = "usage", request_body = PriceList,
    responses((status = 200, description = "The price list", body = PriceList)))]
pub async fn put_prices(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiJson(body): ApiJson<PriceList>,
) -> Result<Json<PriceList>, ApiError> {
    let who = caller.require_platform()?;
    Ok(Json(usage.set_prices(who, body).await?))
}
