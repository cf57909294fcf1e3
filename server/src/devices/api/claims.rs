//! `/api/v1/tenants/{tenant}/claims`.

use crate::devices::model::{ClaimRequest, Labels};
use crate::devices::service::Devices;
use crate::devices::store::ClaimRow;
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::{DeviceId, TenantId};

/// A claim, without its secret.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct ClaimView {
    id: String,
    /// The only device that it enrols.
    device: Option<String>,
    uses: u32,
    uses_max: u32,
    labels: Labels,
    /// Of the devices that it enrols.
    profile: Option<String>,
    /// Which ids a device may ask for; `*` stands for any letters.
    id_pattern: Option<String>,
    /// A person decides on each device.
    approval: bool,
    created_by: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
}

impl From<ClaimRow> for ClaimView {
    fn from(row: ClaimRow) -> Self {
        let ClaimRow { state, .. } = row;
        Self {
            id: row.claim_id,
            device: state.device.map(|device| device.to_string()),
            uses: state.uses,
            uses_max: state.uses_max,
            labels: row.labels,
            profile: row.profile,
            id_pattern: row.id_pattern,
            approval: row.approval,
            created_by: row.created_by,
            created_at_us: row.created_at_us,
            expires_at_us: state.expires_at_us,
        }
    }
}

/// A new claim.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewClaimBody {
    /// The only device that it enrols; it may exist already and then takes the new key.
    #[schema(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device: Option<DeviceId>,
    /// How many keys it takes; 1 unless given.
    #[schema(minimum = 1, maximum = 10000)]
    uses_max: Option<u32>,
    /// Its life in seconds; as its profile says, else a day.
    #[schema(minimum = 60, maximum = 7776000)]
    life_s: Option<u32>,
    /// Labels that a new device gets, above the profile's; `{device}` in a value stands for the device's id.
    #[serde(default)]
    labels: Labels,
    /// The profile of a new device; also what of this claim is absent here comes from it.
    profile: Option<String>,
    /// Which ids a device may ask for; `*` stands for any letters. For claims that name no device.
    id_pattern: Option<String>,
    /// Whether a person decides on each device. For claims that name no device.
    approval: Option<bool>,
}

/// A new claim with the text for the device.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewClaimView {
    /// What the device is given, shown once: `muster-claim:<host>:<port>:<token>:<SHA-256 of the CA's key>`.
    claim: String,
    /// The claim without its secret.
    details: ClaimView,
}

/// The tenant's claims.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/claims", tag = "claims",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of claims", body = Items<ClaimView>)))]
pub async fn list_claims(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<ClaimView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.claims(&tenant, reach, &page).await?;
    Ok(Json(page.items(rows, |row| row.claim_id.clone(), ClaimView::from)))
}

/// Makes a claim; its string is shown once.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/claims", tag = "claims", params(("tenant" = String, Path)),
    request_body = NewClaimBody, responses((status = 201, description = "Made", body = NewClaimView)))]
pub async fn create_claim(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewClaimBody>,
) -> Result<(StatusCode, Json<NewClaimView>), ApiError> {
    // Who has a scope makes claims for devices that are within it.
    let who = match &body.device {
        Some(device) => devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, device).await?,
        None => caller.require(Permission::DevicesWrite, &tenant)?,
    };
    let NewClaimBody { device, uses_max, life_s, labels, profile, id_pattern, approval } = body;
    let request = ClaimRequest { device, uses_max, life_s, labels, profile, id_pattern, approval };
    let new = devices.create_claim(who, &tenant, request).await?;
    Ok((StatusCode::CREATED, Json(NewClaimView { claim: new.claim, details: new.row.into() })))
}

/// Deletes a claim; what it enrolled stays.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/claims/{claim}", tag = "claims",
    params(("tenant" = String, Path), ("claim" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_claim(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, claim)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    caller.require_part(Permission::DevicesWrite, &tenant)?;
    devices.delete_claim(&caller.principal, &tenant, claim).await?;
    Ok(StatusCode::NO_CONTENT)
}
