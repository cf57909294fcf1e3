//! `/api/v1/tenants/{tenant}/users`.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::extract::Caller;
use crate::tenants::model::Permission;
use crate::tenants::service::{GrantRequest, MemberChange, Tenants, TenantsError};
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
    /// `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles.
    role: String,
    /// The places whose devices they reach, `site:<id>` and `group:<id>`; null: the whole tenant.
    scope: Option<Vec<String>>,
    /// The one-time password was not changed yet.
    password_pending: bool,
    /// The end of the lock after too many failed logins, where there is one; microseconds since 1970 (UTC).
    locked_until_us: Option<i64>,
    /// When they became a member; microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl UserView {
    fn of(tenants: &Tenants, row: MemberRow) -> Self {
        let locked_until_us = tenants.locked_until_us(&row.email);
        let MemberRow { user_id: id, email, role, reach, password_pending, created_at_us } = row;
        let (role, scope) = (role.text().to_owned(), reach.places());
        Self { id, email, role, scope, password_pending, locked_until_us, created_at_us }
    }
}

/// A new member.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUserBody {
    /// The new account's address. An address that has one already is a 409: invite it.
    #[schema(max_length = 254, pattern = "^\\s*[^@\\s]+@[^@\\s.][^@\\s]*\\s*$")]
    email: String,
    /// `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles.
    role: String,
    /// The places whose devices they reach, `site:<id>` and `group:<id>`, at most 32; absent: the whole tenant.
    #[schema(min_items = 1, max_items = 32)]
    scope: Option<Vec<String>>,
}

/// A new member with a new account, and its one-time password.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewUserView {
    user: UserView,
    /// Shown once.
    one_time_password: String,
}

/// What may change of a member.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUserBody {
    /// `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles; absent: it stays.
    role: Option<String>,
    /// The places whose devices they reach, `site:<id>` and `group:<id>`, at most 32; null: the whole tenant; absent: it
    /// stays.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 32)]
    scope: Option<Option<Vec<String>>>,
}

/// A field that is there, null or not.
fn given<'de, D: serde::Deserializer<'de>, T: serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
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
    Ok(Json(page.items(rows, |row| row.user_id.clone(), |row| UserView::of(&tenants, row))))
}

/// Adds a member, for whom it makes an account with a one-time password. Who has an account is invited instead.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/users", tag = "users", params(("tenant" = String, Path)),
    request_body = NewUserBody, responses((status = 201, description = "Added", body = NewUserView)))]
pub async fn add_user(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewUserBody>,
) -> Result<(StatusCode, Json<NewUserView>), ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let NewUserBody { email, role, scope: places } = body;
    let new = tenants.add_member(who, &tenant, &email, GrantRequest { role, places }).await?;
    let user = UserView::of(&tenants, new.row);
    Ok((StatusCode::CREATED, Json(NewUserView { user, one_time_password: new.password })))
}

/// Gives a member another role or scope.
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
    let change = MemberChange::Grant { role: body.role, places: body.scope };
    let row = tenants.change_member(who, &tenant, user, change).await?;
    Ok(Json(UserView::of(&tenants, row.ok_or(TenantsError::NotFound("user"))?)))
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
    caller.require_other(&user)?;
    tenants.change_member(who, &tenant, user, MemberChange::Remove).await?;
    Ok(StatusCode::NO_CONTENT)
}
