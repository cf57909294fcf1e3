//! `/api/v1/tenants/{tenant}/profiles`.

use crate::devices::model::ProfileSpec;
use crate::devices::service::Devices;
use crate::devices::store::ProfileRow;
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// A profile: what devices of a kind have in common.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct ProfileView {
    /// Its name; devices and claims name it.
    id: String,
    spec: ProfileSpec,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    updated_at_us: i64,
}

impl From<ProfileRow> for ProfileView {
    fn from(row: ProfileRow) -> Self {
        let ProfileRow { profile: id, spec, created_at_us, updated_at_us } = row;
        Self { id, spec, created_at_us, updated_at_us }
    }
}

/// The tenant's profiles.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/profiles", tag = "devices",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of profiles", body = Items<ProfileView>)))]
pub async fn list_profiles(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<ProfileView>>, ApiError> {
    caller.require(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.profiles(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.profile.clone(), ProfileView::from)))
}

/// One profile.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/profiles/{profile}", tag = "devices",
    params(("tenant" = String, Path), ("profile" = String, Path)),
    responses((status = 200, description = "The profile", body = ProfileView)))]
pub async fn get_profile(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, profile)): ApiPath<(TenantId, String)>,
) -> Result<Json<ProfileView>, ApiError> {
    caller.require(Permission::DevicesRead, &tenant)?;
    Ok(Json(devices.profile(&tenant, profile).await?.into()))
}

/// Makes a profile, or gives it another specification. It counts from the next device, claim and certificate on.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/profiles/{profile}", tag = "devices",
    params(("tenant" = String, Path), ("profile" = String, Path)),
    request_body = ProfileSpec, responses((status = 200, description = "The profile", body = ProfileView)))]
pub async fn put_profile(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, profile)): ApiPath<(TenantId, String)>,
    ApiJson(spec): ApiJson<ProfileSpec>,
) -> Result<Json<ProfileView>, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    Ok(Json(devices.put_profile(who, &tenant, profile, spec).await?.into()))
}

/// Deletes a profile that no device and no claim names.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/profiles/{profile}", tag = "devices",
    params(("tenant" = String, Path), ("profile" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_profile(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, profile)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.delete_profile(who, &tenant, profile).await?;
    Ok(StatusCode::NO_CONTENT)
}
