//! `/api/v1/auth`: login, logout, who am I, password.

use crate::platform::http_kit::{ApiError, ApiJson};
use crate::tenants::extract::{AuthState, COOKIE, Caller, origin_allowed, session_secret};
use crate::tenants::model::{Membership, Permission, Principal};
use crate::tenants::service::{Client, Tenants, TenantsError};
use axum::Json;
use axum::extract::{ConnectInfo, Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse};
use muster_wire::ErrorCode;
use std::net::SocketAddr;

/// Address and password.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginBody {
    /// The account's address.
    email: String,
    /// Its password.
    #[schema(format = Password)]
    password: String,
}

/// The old and the new password.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordBody {
    #[schema(format = Password)]
    old_password: String,
    /// 12 characters or more.
    #[schema(format = Password, min_length = 12, max_length = 254)]
    new_password: String,
}

/// Who asks.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct MeView {
    /// `user` or `token`.
    kind: &'static str,
    /// The account's or token's id.
    id: String,
    /// The account's address.
    email: Option<String>,
    /// The one-time password must be changed first.
    password_pending: bool,
    /// May create tenants.
    system_admin: bool,
    /// Role in each tenant.
    memberships: Vec<MembershipView>,
    /// A token's scopes.
    scopes: Vec<Permission>,
}

/// What somebody may in a tenant.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct MembershipView {
    tenant: String,
    /// `viewer`, `operator`, `admin`, `owner`, or the id of one of the tenant's own roles.
    role: String,
    /// What the role allows.
    permissions: Vec<Permission>,
    /// The places whose devices it reaches, `site:<id>` and `group:<id>`; null: the whole tenant.
    scope: Option<Vec<String>>,
}

impl From<Principal> for MeView {
    fn from(principal: Principal) -> Self {
        let view = |membership: Membership| MembershipView {
            tenant: membership.tenant.to_string(),
            role: membership.role.text().to_owned(),
            permissions: membership.role.permissions(),
            scope: membership.reach.places(),
        };
        match principal {
            Principal::User { user_id, email, memberships, system_admin, password_pending } => Self {
                kind: "user",
                id: user_id,
                email: Some(email),
                password_pending,
                system_admin,
                memberships: memberships.into_iter().map(view).collect(),
                scopes: Vec::new(),
            },
            Principal::Token { token_id, membership, scopes } => Self {
                kind: "token",
                id: token_id,
                email: None,
                password_pending: false,
                system_admin: scopes.contains(&Permission::PlatformAdmin),
                memberships: vec![view(membership)],
                scopes,
            },
        }
    }
}

/// How a handler learns the client's address.
pub(super) type Connection = Option<Extension<ConnectInfo<SocketAddr>>>;

/// The address that failures are counted by.
pub(super) fn peer(connection: Connection) -> String {
    connection
        .map_or_else(|| "unknown".to_owned(), |Extension(ConnectInfo(address))| address.ip().to_string())
}

fn client(connection: Connection, headers: &HeaderMap) -> Client {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    Client::new(&peer(connection), agent)
}

/// A foreign site may not log a browser in to an account of its own choice.
pub(super) fn own_origin(auth: &AuthState, headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) && !origin_allowed(headers, &auth.config.get().http.origins) {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "the request's Origin is not this server's"));
    }
    Ok(())
}

fn cookie(secret: &str, age_s: u64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{secure}")
}

/// Opens a session; the cookie is HttpOnly and SameSite=Strict.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "auth", request_body = LoginBody, security(()),
    responses((status = 200, description = "The session's cookie is set", body = MeView)))]
pub async fn login(
    State(tenants): State<Tenants>,
    Extension(auth): Extension<AuthState>,
    connection: Connection,
    headers: HeaderMap,
    ApiJson(body): ApiJson<LoginBody>,
) -> Result<impl IntoResponse, ApiError> {
    let config = auth.config.get();
    own_origin(&auth, &headers)?;
    let (secret, principal) =
        tenants.login(&body.email, &body.password, &client(connection, &headers)).await?;
    let age_s = u64::from(config.auth.session_hours) * 3600;
    let cookie = cookie(&secret, age_s, config.http.secure_cookies);
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(MeView::from(principal))))
}

/// Ends the session, if there is one.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "auth", security(()),
    responses((status = 204, description = "The session is gone")))]
pub async fn logout(
    State(tenants): State<Tenants>,
    connection: Connection,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    // SameSite=Strict keeps other sites from sending the cookie, so nobody else can log a browser out.
    if let Some(secret) = session_secret(&headers) {
        tenants.logout(&secret, &peer(connection)).await?;
    }
    Ok((StatusCode::NO_CONTENT, AppendHeaders([(header::SET_COOKIE, cookie("", 0, false))])))
}

/// Who the caller is.
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "auth",
    responses((status = 200, description = "The caller", body = MeView)))]
pub async fn me(caller: Caller) -> Json<MeView> {
    Json(caller.principal.into())
}

/// Changes the caller's password and ends their other sessions.
#[utoipa::path(post, path = "/api/v1/auth/password", tag = "auth", request_body = PasswordBody,
    responses((status = 204, description = "Changed")))]
pub async fn change_password(
    State(tenants): State<Tenants>,
    connection: Connection,
    caller: Caller,
    ApiJson(body): ApiJson<PasswordBody>,
) -> Result<StatusCode, ApiError> {
    let (Principal::User { email, .. }, Some(session)) = (&caller.principal, &caller.session) else {
        return Err(TenantsError::Denied("an API token has no password").into());
    };
    let PasswordBody { old_password, new_password } = body;
    tenants.change_password(email, session, &old_password, new_password, &peer(connection)).await?;
    Ok(StatusCode::NO_CONTENT)
}
