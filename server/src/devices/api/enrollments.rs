//! `/api/v1/tenants/{tenant}/enrollments`: devices that wait for a person's decision.

use crate::devices::model::EnrollmentState;
use crate::devices::service::Devices;
use crate::devices::store::EnrollmentRow;
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use muster_wire::TenantId;

/// A device's request to enrol by a claim that needs approval.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct EnrollmentView {
    id: String,
    state: EnrollmentState,
    /// The claim that it came with.
    claim: String,
    /// The id that it gets.
    device: String,
    /// SHA-256 of its key, as hex: compare it with what the device shows.
    key_sha256: String,
    /// The address that it asked from.
    peer: String,
    /// Microseconds since 1970 (UTC).
    requested_at_us: i64,
    /// It is forgotten then; microseconds since 1970 (UTC).
    expires_at_us: i64,
    decided_by: Option<String>,
    /// Microseconds since 1970 (UTC).
    decided_at_us: Option<i64>,
    note: Option<String>,
}

impl From<EnrollmentRow> for EnrollmentView {
    fn from(row: EnrollmentRow) -> Self {
        Self {
            id: row.enrollment_id,
            state: row.state,
            claim: row.claim_id,
            device: row.device.to_string(),
            key_sha256: hex::encode(row.spki_sha256),
            peer: row.peer,
            requested_at_us: row.requested_at_us,
            expires_at_us: row.expires_at_us,
            decided_by: row.decided_by,
            decided_at_us: row.decided_at_us,
            note: row.note,
        }
    }
}

/// Which requests.
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EnrollmentQuery {
    /// Only those in this state.
    state: Option<EnrollmentState>,
}

/// Why a request was decided so.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionBody {
    /// For the audit log; a rejected device is told it. At most 500 bytes.
    note: Option<String>,
}

/// The approval queue.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/enrollments", tag = "claims",
    params(("tenant" = String, Path), EnrollmentQuery, PageQuery),
    responses((status = 200, description = "A page of requests", body = Items<EnrollmentView>)))]
pub async fn list_enrollments(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(which): ApiQuery<EnrollmentQuery>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<EnrollmentView>>, ApiError> {
    caller.require(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.enrollments(&tenant, which.state, &page).await?;
    Ok(Json(page.items(rows, |row| row.enrollment_id.clone(), EnrollmentView::from)))
}

/// Lets a device in; it gets its certificate when it asks next.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/enrollments/{enrollment}/approve", tag = "claims",
    params(("tenant" = String, Path), ("enrollment" = String, Path)), request_body = DecisionBody,
    responses((status = 200, description = "The request", body = EnrollmentView)))]
pub async fn approve_enrollment(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, enrollment)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<DecisionBody>,
) -> Result<Json<EnrollmentView>, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let decided = devices.decide(who, &tenant, enrollment, EnrollmentState::Approved, body.note).await?;
    Ok(Json(decided.into()))
}

/// Turns a device away.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/enrollments/{enrollment}/reject", tag = "claims",
    params(("tenant" = String, Path), ("enrollment" = String, Path)), request_body = DecisionBody,
    responses((status = 200, description = "The request", body = EnrollmentView)))]
pub async fn reject_enrollment(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, enrollment)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<DecisionBody>,
) -> Result<Json<EnrollmentView>, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let decided = devices.decide(who, &tenant, enrollment, EnrollmentState::Rejected, body.note).await?;
    Ok(Json(decided.into()))
}
