//! `/api/v1/tenants/{tenant}/roles`: the tenant's own, beside viewer, operator, admin and owner.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::extract::Caller;
use crate::tenants::model::Permission;
use crate::tenants::service::Tenants;
use crate::tenants::store::roles::RoleRow;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// A role of the tenant's own.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct RoleView {
    /// Stands where a role is given: `r-<16 hex digits>`.
    id: String,
    /// Unique in the tenant.
    name: String,
    /// What it allows.
    permissions: Vec<Permission>,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl From<RoleRow> for RoleView {
    fn from(row: RoleRow) -> Self {
        let RoleRow { role_id: id, name, permissions, created_at_us } = row;
        Self { id, name, permissions, created_at_us }
    }
}

/// A role to be.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleBody {
    /// 1 to 128 bytes, not blank, without control characters; unique in the tenant.
    #[schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$")]
    name: String,
    /// What it allows: at most what the caller may.
    #[schema(min_items = 1)]
    permissions: Vec<Permission>,
}

/// The tenant's own roles.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/roles", tag = "users",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of roles", body = Items<RoleView>)))]
pub async fn list_roles(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<RoleView>>, ApiError> {
    caller.require(Permission::UsersRead, &tenant)?;
    let page = query.page()?;
    let rows = tenants.roles(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.role_id.clone(), RoleView::from)))
}

/// Makes a role of the tenant's own; a tenant has at most 50.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/roles", tag = "users",
    params(("tenant" = String, Path)), request_body = RoleBody,
    responses((status = 201, description = "Made", body = RoleView)))]
pub async fn create_role(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<RoleBody>,
) -> Result<(StatusCode, Json<RoleView>), ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let row = tenants.create_role(who, &tenant, body.name, body.permissions).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// Replaces a role's name and permissions. Members have them from their next request on; API tokens keep theirs.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/roles/{role}", tag = "users",
    params(("tenant" = String, Path), ("role" = String, Path)), request_body = RoleBody,
    responses((status = 200, description = "The role", body = RoleView)))]
pub async fn change_role(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, role)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<RoleBody>,
) -> Result<Json<RoleView>, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    Ok(Json(tenants.change_role(who, &tenant, role, (body.name, body.permissions)).await?.into()))
}

/// Deletes a role that no member and no open invitation has.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/roles/{role}", tag = "users",
    params(("tenant" = String, Path), ("role" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_role(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, role)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    tenants.delete_role(who, &tenant, role).await?;
    Ok(StatusCode::NO_CONTENT)
}
