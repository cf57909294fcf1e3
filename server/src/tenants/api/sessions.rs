//! `/api/v1/auth/sessions`, and a member's: sessions, lock.

use crate::platform::http_kit::{ApiError, ApiPath};
use crate::tenants::extract::Caller;
use crate::tenants::model::{Permission, Principal};
use crate::tenants::service::{Ending, Tenants, TenantsError, session_id};
use crate::tenants::store::sessions::SessionRow;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// An open session.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct SessionView {
    /// 16 hex digits.
    id: String,
    /// It is the one that asks.
    current: bool,
    /// The address that it was opened from; empty where it was not noted.
    peer: String,
    /// What the client that opened it called itself.
    agent: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
}

/// Open sessions, the newest first; an account has at most 20.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct SessionListView {
    items: Vec<SessionView>,
}

/// How many sessions were ended.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct EndedView {
    /// Sessions that are no more.
    ended: usize,
}

/// Whether an account was locked.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct UnlockedView {
    /// It was.
    was_locked: bool,
}

fn list(rows: Vec<SessionRow>, own: Option<&str>) -> Json<SessionListView> {
    let own = own.map(crate::platform::secret::token_sha256);
    let view = |row: SessionRow| SessionView {
        id: session_id(&row.sha256),
        current: own == Some(row.sha256),
        peer: row.peer,
        agent: row.agent,
        created_at_us: row.created_at_us,
        expires_at_us: row.expires_at_us,
    };
    Json(SessionListView { items: rows.into_iter().map(view).collect() })
}

/// The account and its session; programs have neither.
fn person(caller: &Caller) -> Result<(&str, &str), ApiError> {
    match (&caller.principal, &caller.session) {
        (Principal::User { user_id, .. }, Some(session)) => Ok((user_id, session)),
        _ => Err(TenantsError::Denied("an API token has no sessions").into()),
    }
}

/// The caller's open sessions.
#[utoipa::path(get, path = "/api/v1/auth/sessions", tag = "auth",
    responses((status = 200, description = "The sessions", body = SessionListView)))]
pub async fn list_sessions(
    State(tenants): State<Tenants>,
    caller: Caller,
) -> Result<Json<SessionListView>, ApiError> {
    let (user_id, session) = person(&caller)?;
    Ok(list(tenants.sessions(user_id).await?, Some(session)))
}

/// Ends one of the caller's sessions.
#[utoipa::path(delete, path = "/api/v1/auth/sessions/{session}", tag = "auth",
    params(("session" = String, Path)), responses((status = 204, description = "It is gone")))]
pub async fn end_session(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let (user_id, session) = person(&caller)?;
    tenants.end_sessions(user_id, session, Ending::One(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the caller's other sessions.
#[utoipa::path(delete, path = "/api/v1/auth/sessions", tag = "auth",
    responses((status = 200, description = "How many", body = EndedView)))]
pub async fn end_other_sessions(
    State(tenants): State<Tenants>,
    caller: Caller,
) -> Result<Json<EndedView>, ApiError> {
    let (user_id, session) = person(&caller)?;
    Ok(Json(EndedView { ended: tenants.end_sessions(user_id, session, Ending::Others).await? }))
}

/// A member's open sessions.
///
/// Of a member of other tenants too only those see and change the account who may in each of them.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/users/{user}/sessions", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    responses((status = 200, description = "The sessions", body = SessionListView)))]
pub async fn list_user_sessions(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
) -> Result<Json<SessionListView>, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    Ok(list(tenants.member_sessions(who, &tenant, &user).await?, None))
}

/// Ends all of a member's sessions.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/users/{user}/sessions", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    responses((status = 200, description = "How many", body = EndedView)))]
pub async fn end_user_sessions(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
) -> Result<Json<EndedView>, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    Ok(Json(EndedView { ended: tenants.end_member_sessions(who, &tenant, &user).await? }))
}

/// Takes the lock off a member's account, which too many failed logins put there.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/users/{user}/unlock", tag = "users",
    params(("tenant" = String, Path), ("user" = String, Path)),
    responses((status = 200, description = "Whether it was locked", body = UnlockedView)))]
pub async fn unlock_user(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, user)): ApiPath<(TenantId, String)>,
) -> Result<Json<UnlockedView>, ApiError> {
    let who = caller.require(Permission::UsersWrite, &tenant)?;
    Ok(Json(UnlockedView { was_locked: tenants.unlock(who, &tenant, &user).await? }))
}
