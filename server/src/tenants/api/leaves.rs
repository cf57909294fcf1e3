//! One-time leaves over HTTP: password resets and invitations. The leave in the body is the credential of its use.

use super::auth::{Connection, own_origin, peer};
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::extract::{AuthState, Caller};
use crate::tenants::model::Permission;
use crate::tenants::service::{GrantRequest, Tenants};
use crate::tenants::store::leaves::InvitationRow;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use muster_wire::TenantId;

/// A leave to set a new password.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewResetView {
    /// Whose.
    email: String,
    /// Shown once: hand it over. It goes to `POST /api/v1/auth/reset`, once.
    token: String,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
}

/// A leave and the new password.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetBody {
    /// The leave that an admin made.
    token: String,
    /// 12 characters or more.
    #[schema(format = Password, min_length = 12, max_length = 254)]
    new_password: String,
}

/// An open invitation, without its secret.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct InvitationView {
    id: String,
    /// Who is invited.
    email: String,
    /// What they will be: `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles.
    role: String,
    /// The places whose devices they will reach, `site:<id>` and `group:<id>`; null: the whole tenant.
    scope: Option<Vec<String>>,
    /// Who invited them.
    created_by: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
}

impl From<InvitationRow> for InvitationView {
    fn from(row: InvitationRow) -> Self {
        let scope = row.reach.places();
        let InvitationRow {
            invitation_id: id, email, role, created_by, created_at_us, expires_at_us, ..
        } = row;
        Self { id, email, role, scope, created_by, created_at_us, expires_at_us }
    }
}

/// A new invitation.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInvitationBody {
    /// Who is invited: `local@domain`.
    #[schema(max_length = 254, pattern = "^\\s*[^@\\s]+@[^@\\s.][^@\\s]*\\s*$")]
    email: String,
    /// What they will be: `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles.
    role: String,
    /// The places whose devices they will reach, `site:<id>` and `group:<id>`, at most 32; absent: the whole tenant.
    #[schema(min_items = 1, max_items = 32)]
    scope: Option<Vec<String>>,
    /// Its life in days: 1 to 30; 7 unless given.
    #[serde(default = "days_default")]
    #[schema(minimum = 1, maximum = 30, default = 7)]
    days: u32,
}

fn days_default() -> u32 {
    7
}

/// A new invitation with its secret.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewInvitationView {
    invitation: InvitationView,
    /// Shown once: hand it over. It goes to `POST /api/v1/auth/invitation`, once.
    token: String,
}

/// An invitation and a password.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptBody {
    /// The invitation's secret.
    token: String,
    /// The account's password; for an address without an account the new one's, of 12 characters or more.
    #[schema(format = Password)]
    password: String,
}

/// What an invitation gave.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct AcceptedView {
    /// The tenant.
    tenant: String,
    /// The account's address: log in with it.
    email: String,
    /// The account is new.
    new_account: bool,
}

/// Makes a leave for a member to set a new password, in place of the one before. It lives for a day.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/users/{user}/password-reset", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    responses((status = 201, description = "Made", body = NewResetView)))]
pub async fn create_reset(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
) -> Result<(StatusCode, Json<NewResetView>), ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let new = tenants.create_reset(who, &tenant, &user).await?;
    let (email, token, expires_at_us) = (new.email, new.token, new.expires_at_us);
    Ok((StatusCode::CREATED, Json(NewResetView { email, token, expires_at_us })))
}

/// Sets a new password with a leave, and ends every session of the account.
#[utoipa::path(post, path = "/api/v1/auth/reset", tag = "auth", request_body = ResetBody, security(()),
    responses((status = 204, description = "Set")))]
pub async fn spend_reset(
    State(tenants): State<Tenants>,
    Extension(auth): Extension<AuthState>,
    connection: Connection,
    headers: HeaderMap,
    ApiJson(body): ApiJson<ResetBody>,
) -> Result<StatusCode, ApiError> {
    own_origin(&auth, &headers)?;
    tenants.spend_reset(&body.token, body.new_password, &peer(connection)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The tenant's open invitations.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/invitations", tag = "users",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of invitations", body = Items<InvitationView>)))]
pub async fn list_invitations(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<InvitationView>>, ApiError> {
    caller.require(Permission::UsersRead, &tenant)?;
    let page = query.page()?;
    let rows = tenants.invitations(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.invitation_id.clone(), InvitationView::from)))
}

/// Invites an address to become a member; the secret is shown once. A tenant has at most 100 open ones.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/invitations", tag = "users",
    params(("tenant" = String, Path)), request_body = NewInvitationBody,
    responses((status = 201, description = "Made", body = NewInvitationView)))]
pub async fn create_invitation(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewInvitationBody>,
) -> Result<(StatusCode, Json<NewInvitationView>), ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    let NewInvitationBody { email, role, scope: places, days } = body;
    let new = tenants.invite(who, &tenant, &email, GrantRequest { role, places }, days).await?;
    Ok((StatusCode::CREATED, Json(NewInvitationView { invitation: new.row.into(), token: new.token })))
}

/// Revokes an invitation.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/invitations/{invitation}", tag = "users",
    params(("tenant" = String, Path), ("invitation" = String, Path)),
    responses((status = 204, description = "Revoked")))]
pub async fn delete_invitation(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, invitation)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    tenants.revoke_invitation(who, &tenant, invitation).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Accepts an invitation: an account joins the tenant, a new one is made where the address has none.
#[utoipa::path(post, path = "/api/v1/auth/invitation", tag = "auth", request_body = AcceptBody, security(()),
    responses((status = 200, description = "Joined", body = AcceptedView)))]
pub async fn accept_invitation(
    State(tenants): State<Tenants>,
    Extension(auth): Extension<AuthState>,
    connection: Connection,
    headers: HeaderMap,
    ApiJson(body): ApiJson<AcceptBody>,
) -> Result<Json<AcceptedView>, ApiError> {
    own_origin(&auth, &headers)?;
    let accepted = tenants.accept(&body.token, body.password, &peer(connection)).await?;
    let (tenant, email, new_account) = (accepted.tenant.to_string(), accepted.email, accepted.is_new);
    Ok(Json(AcceptedView { tenant, email, new_account }))
}
