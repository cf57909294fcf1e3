//! `/api/v1/tenants/{tenant}/sites` and `/groups`.

use crate::devices::service::{Devices, SiteText};
use crate::devices::store::places::{GroupRow, SiteRow};
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::reach::PlaceId;
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::{DeviceId, TenantId};

/// A site: where devices are.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct SiteView {
    /// Stands in scopes and filters; never changes.
    id: String,
    name: String,
    /// Where it is; may be empty.
    address: String,
    /// The name of its time zone, as `Europe/Berlin`; may be empty.
    time_zone: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl From<SiteRow> for SiteView {
    fn from(row: SiteRow) -> Self {
        let SiteRow { site, name, address, time_zone, created_at_us } = row;
        Self { id: site.as_str().to_owned(), name, address, time_zone, created_at_us }
    }
}

/// A new site.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSiteBody {
    /// 1 to 64 of a-z, 0-9 and '-', starting with a letter or digit.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    id: PlaceId,
    /// For people; at most 128 bytes without control characters.
    #[serde(default)]
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
    /// At most 512 bytes, without control characters but line breaks.
    #[serde(default)]
    #[schema(max_length = 512, pattern = "^[^\\u0000-\\u0009\\u000b-\\u001f\\u007f-\\u009f]*$")]
    address: String,
    /// The name of its time zone, as `Europe/Berlin`.
    #[serde(default)]
    #[schema(pattern = "^[A-Za-z0-9_+/-]{0,64}$")]
    time_zone: String,
}

/// What is written of a site.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteBody {
    /// For people; at most 128 bytes without control characters.
    #[serde(default)]
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
    /// At most 512 bytes, without control characters but line breaks.
    #[serde(default)]
    #[schema(max_length = 512, pattern = "^[^\\u0000-\\u0009\\u000b-\\u001f\\u007f-\\u009f]*$")]
    address: String,
    /// The name of its time zone, as `Europe/Berlin`.
    #[serde(default)]
    #[schema(pattern = "^[A-Za-z0-9_+/-]{0,64}$")]
    time_zone: String,
}

/// A group of devices.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct GroupView {
    /// Stands in scopes and filters; never changes.
    id: String,
    name: String,
    /// CEL over a device's `id`, `name`, `labels`, `site` and `enabled` that says who is a member; null: people say so.
    condition: Option<String>,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl From<GroupRow> for GroupView {
    fn from(row: GroupRow) -> Self {
        let GroupRow { group, name, condition, created_at_us } = row;
        Self { id: group.as_str().to_owned(), name, condition, created_at_us }
    }
}

/// A new group.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGroupBody {
    /// 1 to 64 of a-z, 0-9 and '-', starting with a letter or digit.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    id: PlaceId,
    /// For people; at most 128 bytes without control characters.
    #[serde(default)]
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
    /// CEL over a device's `id`, `name`, `labels`, `site` and `enabled`, at most 1,024 bytes:
    /// `labels.kind == "pump" && site == "north"`. Absent: people name the members.
    #[schema(max_length = 1024)]
    condition: Option<String>,
}

/// What is written of a group.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupBody {
    /// For people; at most 128 bytes without control characters.
    #[serde(default)]
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
    /// Needed where the group has a condition, refused where it has none.
    #[schema(max_length = 1024)]
    condition: Option<String>,
}

/// A member of a group.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct GroupMemberView {
    /// The device's id.
    device: String,
}

/// The tenant's sites.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/sites", tag = "sites",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of sites", body = Items<SiteView>)))]
pub async fn list_sites(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<SiteView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.sites(&tenant, reach, &page).await?;
    Ok(Json(page.items(rows, |row| row.site.as_str().to_owned(), SiteView::from)))
}

/// Makes a site; a tenant has at most 1,000.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/sites", tag = "sites",
    params(("tenant" = String, Path)), request_body = NewSiteBody,
    responses((status = 201, description = "Made", body = SiteView)))]
pub async fn create_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewSiteBody>,
) -> Result<(StatusCode, Json<SiteView>), ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let NewSiteBody { id, name, address, time_zone } = body;
    let row = devices.create_site(who, &tenant, id, SiteText { name, address, time_zone }).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// One site.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/sites/{site}", tag = "sites",
    params(("tenant" = String, Path), ("site" = String, Path)),
    responses((status = 200, description = "The site", body = SiteView)))]
pub async fn get_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, site)): ApiPath<(TenantId, PlaceId)>,
) -> Result<Json<SiteView>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    Ok(Json(devices.site(&tenant, &reach, site).await?.into()))
}

/// Replaces what is written of a site.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/sites/{site}", tag = "sites",
    params(("tenant" = String, Path), ("site" = String, Path)), request_body = SiteBody,
    responses((status = 200, description = "The site", body = SiteView)))]
pub async fn change_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, site)): ApiPath<(TenantId, PlaceId)>,
    ApiJson(body): ApiJson<SiteBody>,
) -> Result<Json<SiteView>, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let SiteBody { name, address, time_zone } = body;
    Ok(Json(devices.change_site(who, &tenant, site, SiteText { name, address, time_zone }).await?.into()))
}

/// Deletes a site where no device is, and that no scope names.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/sites/{site}", tag = "sites",
    params(("tenant" = String, Path), ("site" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, site)): ApiPath<(TenantId, PlaceId)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.delete_site(who, &tenant, site).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The tenant's groups.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/groups", tag = "groups",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of groups", body = Items<GroupView>)))]
pub async fn list_groups(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<GroupView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.groups(&tenant, reach, &page).await?;
    Ok(Json(page.items(rows, |row| row.group.as_str().to_owned(), GroupView::from)))
}

/// Makes a group; a tenant has at most 200, and 32 with a condition.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/groups", tag = "groups",
    params(("tenant" = String, Path)), request_body = NewGroupBody,
    responses((status = 201, description = "Made", body = GroupView)))]
pub async fn create_group(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewGroupBody>,
) -> Result<(StatusCode, Json<GroupView>), ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let row = devices.create_group(who, &tenant, body.id, (body.name, body.condition)).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// One group.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/groups/{group}", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path)),
    responses((status = 200, description = "The group", body = GroupView)))]
pub async fn get_group(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group)): ApiPath<(TenantId, PlaceId)>,
) -> Result<Json<GroupView>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    Ok(Json(devices.group(&tenant, &reach, group).await?.into()))
}

/// Replaces a group's name and condition; the members follow before the answer.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/groups/{group}", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path)), request_body = GroupBody,
    responses((status = 200, description = "The group", body = GroupView)))]
pub async fn change_group(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group)): ApiPath<(TenantId, PlaceId)>,
    ApiJson(body): ApiJson<GroupBody>,
) -> Result<Json<GroupView>, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    Ok(Json(devices.change_group(who, &tenant, group, (body.name, body.condition)).await?.into()))
}

/// Deletes a group that no scope names.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/groups/{group}", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_group(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group)): ApiPath<(TenantId, PlaceId)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.delete_group(who, &tenant, group).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A group's members, by id.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/groups/{group}/members", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path), PageQuery),
    responses((status = 200, description = "A page of members", body = Items<GroupMemberView>)))]
pub async fn list_members(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group)): ApiPath<(TenantId, PlaceId)>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<GroupMemberView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.members(&tenant, &reach, group, &page).await?;
    let view = |device: DeviceId| GroupMemberView { device: device.to_string() };
    Ok(Json(page.items(rows, ToString::to_string, view)))
}

/// Puts a device into a group without a condition.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/groups/{group}/members/{device}", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path), ("device" = String, Path)),
    responses((status = 204, description = "It is a member")))]
pub async fn add_member(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group, device)): ApiPath<(TenantId, PlaceId, DeviceId)>,
) -> Result<StatusCode, ApiError> {
    devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.set_member(who, &tenant, (group, device), true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a device out of a group without a condition.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/groups/{group}/members/{device}", tag = "groups",
    params(("tenant" = String, Path), ("group" = String, Path), ("device" = String, Path)),
    responses((status = 204, description = "It is no member")))]
pub async fn remove_member(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, group, device)): ApiPath<(TenantId, PlaceId, DeviceId)>,
) -> Result<StatusCode, ApiError> {
    devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.set_member(who, &tenant, (group, device), false).await?;
    Ok(StatusCode::NO_CONTENT)
}
