//! `/api/v1/tenants/{tenant}/users`.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::extract::Caller;
use crate::tenants::model::{Permission, Role};
use crate::tenants::service::{MemberChange, Tenants, TenantsError};
use crate::tenants::store::MemberRow;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// A member of a tenant.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct UserView {
    id: String,
    email: String,
    role: Role,
    /// The one-time password was not changed yet.
    password_pending: bool,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl From<MemberRow> for UserView {
    fn from(row: MemberRow) -> Self {
        let MemberRow { user_id: id, email, role, password_pending, created_at_us } = row;
        Self { id, email, role, password_pending, created_at_us }
    }
}

/// A new member.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUserBody {
    email: String,
    role: Role,
}

/// A new member, with a one-time password when the account is new.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewUserView {
    user: UserView,
    /// Shown once.
    one_time_password: Option<String>,
}

/// What may change of a member.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUserBody {
    role: Role,
}

/// The tenant's members.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/users", tag = "users",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of members", body = Items<UserView>)))]
pub async fn list_users(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<UserView>>, ApiError> {
    caller.require(Permission::UsersRead, &tenant)?;
    let page = query.page()?;
    let rows = tenants.members(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.user_id.clone(), UserView::from)))
}

/// Adds a member; a new address gets an account with a one-time password.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/users", tag = "users", params(("tenant" = String, Path)),
    request_body = NewUserBody, responses((status = 201, description = "Added", body = NewUserView)))]
pub async fn add_user(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewUserBody>,
) -> Result<(StatusCode, Json<NewUserView>), ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let new = tenants.add_member(who, &tenant, &body.email, body.role).await?;
    Ok((StatusCode::CREATED, Json(NewUserView { user: new.row.into(), one_time_password: new.password })))
}

/// Gives a member another role.
#[utoipa::path(patch, path = "/api/v1/tenants/{tenant}/users/{user}", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    request_body = ChangeUserBody, responses((status = 200, description = "The member", body = UserView)))]
pub async fn change_user(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
    ApiJson(body): ApiJson<ChangeUserBody>,
) -> Result<Json<UserView>, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let row = tenants.change_member(who, &tenant, user, MemberChange::Role(body.role)).await?;
    Ok(Json(row.ok_or(TenantsError::NotFound("user"))?.into()))
}

/// Takes a membership away; the account stays.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/users/{user}", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    responses((status = 204, description = "Removed")))]
pub async fn remove_user(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    tenants.change_member(who, &tenant, user, MemberChange::Remove).await?;
    Ok(StatusCode::NO_CONTENT)
}
