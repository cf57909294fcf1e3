//! `/api/v1/tenants/{tenant}/quota`.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath};
use crate::tenants::{Caller, Permission};
use crate::usage::model::{Level, Quota, QuotaSpec, day_text};
use crate::usage::service::{Standing, UsageService};
use axum::Json;
use axum::extract::State;
use muster_wire::TenantId;

/// One quota and where the tenant stands with it.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct QuotaView {
    quota: Quota,
    /// The tenant is warned, once a day, when it has used this much; null: never.
    soft: Option<u64>,
    /// What goes beyond this is refused; null: nothing is.
    hard: Option<u64>,
    /// Of `messages_per_s`: messages at once after a silence.
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
    /// Used so far: of the day, now, or the day's busiest second; of messages and bytes what was admitted. Null for
    /// `connections` where another process has the gateway.
    used: Option<u64>,
    /// What was refused today for this quota: messages (those of MQTT 3.1.1 clients had to wait), of `connections`
    /// CONNECTs.
    refused: u64,
    /// The limit that was reached today, if any: `soft` or `hard`.
    reached: Option<Level>,
    /// Whether the tenant was given this quota, or has the server's.
    own: bool,
}

/// A tenant's quotas.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct QuotasView {
    /// The day (UTC) that is counted, `2026-11-22`.
    day: String,
    quotas: Vec<QuotaView>,
    /// As they were given to the tenant: what `PUT` takes.
    own: QuotaSpec,
}

impl From<Standing> for QuotasView {
    fn from(standing: Standing) -> Self {
        let counts = &standing.today.counts;
        let view = |quota: &Quota| {
            let limit = standing.quotas.limit(*quota);
            let used = match quota {
                Quota::MessagesPerS => Some(counts.peak_per_s),
                Quota::MessagesPerDay => Some(standing.admitted.0.max(counts.messages)),
                Quota::BytesPerDay => Some(standing.admitted.1.max(counts.bytes)),
                Quota::InferenceMsPerDay => Some(counts.inference_us / 1_000),
                Quota::StorageBytes => Some(standing.today.storage_bytes),
                Quota::Devices => Some(standing.today.devices),
                Quota::Connections => standing.connections,
            };
            let is_rate = *quota == Quota::MessagesPerS && limit.hard.is_some();
            let reached = standing.notices.iter().filter(|notice| notice.quota == *quota);
            QuotaView {
                quota: *quota,
                soft: limit.soft,
                hard: limit.hard,
                burst: is_rate.then_some(standing.quotas.burst),
                used,
                refused: quota.refusal().map_or(0, |reason| counts.refused[reason as usize]),
                reached: reached.map(|notice| notice.level).max(),
                own: standing.own.limit(*quota).is_some(),
            }
        };
        let quotas = Quota::ALL.iter().map(view).collect();
        Self { day: day_text(standing.day), quotas, own: standing.own }
    }
}

/// The tenant's quotas, and where it stands with them today.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/quota", tag = "usage", params(("tenant" = String, Path)),
    responses((status = 200, description = "The quotas", body = QuotasView)))]
pub async fn get_quotas(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
) -> Result<Json<QuotasView>, ApiError> {
    caller.require(Permission::UsageRead, &tenant)?;
    Ok(Json(usage.standing(&tenant).await?.into()))
}

/// Gives the tenant quotas of its own, in place of those before (system administrators only). What the body leaves out is
/// as the server's configuration says; `{}` takes all of them away. In force at once, for connections that are up too.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/quota", tag = "usage", params(("tenant" = String, Path)),
    request_body = QuotaSpec, responses((status = 200, description = "The quotas", body = QuotasView)))]
pub async fn put_quotas(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<QuotaSpec>,
) -> Result<Json<QuotasView>, ApiError> {
    let who = caller.require_platform()?;
    Ok(Json(usage.set_quotas(who, &tenant, body).await?.into()))
}
