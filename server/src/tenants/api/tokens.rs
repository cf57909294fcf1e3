//! `/api/v1/tenants/{tenant}/api-tokens`.

use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::extract::Caller;
use crate::tenants::model::Permission;
use crate::tenants::service::{Tenants, TokenRequest};
use crate::tenants::store::TokenRow;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// An API token, without its secret.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct TokenView {
    id: String,
    name: String,
    /// What it may do.
    scopes: Vec<Permission>,
    /// The places whose devices it reaches, `site:<id>` and `group:<id>`; null: the whole tenant.
    scope: Option<Vec<String>>,
    /// Who made it.
    created_by: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
}

impl From<TokenRow> for TokenView {
    fn from(row: TokenRow) -> Self {
        let scope = row.reach.places();
        let TokenRow { token_id: id, name, scopes, created_by, created_at_us, expires_at_us, .. } = row;
        Self { id, name, scopes, scope, created_by, created_at_us, expires_at_us }
    }
}

/// A new API token.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTokenBody {
    /// For people: 1 to 128 bytes, not blank, without control characters.
    #[schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$")]
    name: String,
    /// What it may do; at most what the caller may.
    #[serde(default)]
    scopes: Vec<Permission>,
    /// In place of `scopes`: a role, or the id of one of the tenant's own; the token may what that allows now.
    role: Option<String>,
    /// The places whose devices it reaches, `site:<id>` and `group:<id>`, at most 32; absent: the whole tenant.
    #[schema(min_items = 1, max_items = 32)]
    scope: Option<Vec<String>>,
    /// Its life in days, at most `auth.token_days_max` of the configuration.
    #[serde(default = "days_default")]
    #[schema(minimum = 1, maximum = 3660, default = 90)]
    days: u32,
}

fn days_default() -> u32 {
    90
}

/// A new API token with its secret.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct NewTokenView {
    api_token: TokenView,
    /// Shown once: `Authorization: Bearer <secret>`, or the MQTT password beside the username `api`.
    secret: String,
}

/// The tenant's API tokens.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/api-tokens", tag = "api-tokens",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of tokens", body = Items<TokenView>)))]
pub async fn list_tokens(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<TokenView>>, ApiError> {
    caller.require(Permission::TokensRead, &tenant)?;
    let page = query.page()?;
    let rows = tenants.token_list(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.token_id.clone(), TokenView::from)))
}

/// Makes an API token; the secret is shown once.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/api-tokens", tag = "api-tokens",
    params(("tenant" = String, Path)), request_body = NewTokenBody,
    responses((status = 201, description = "Made", body = NewTokenView)))]
pub async fn create_token(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewTokenBody>,
) -> Result<(StatusCode, Json<NewTokenView>), ApiError> {
    let who = caller.require(Permission::TokensWrite, &tenant)?;
    let NewTokenBody { name, scopes, role, scope: places, days } = body;
    let request = TokenRequest { name, scopes, role, places, days };
    let new = tenants.create_token(who, &tenant, request).await?;
    Ok((StatusCode::CREATED, Json(NewTokenView { api_token: new.row.into(), secret: new.secret })))
}

/// Revokes an API token at once, over HTTP and MQTT.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/api-tokens/{token}", tag = "api-tokens",
    params(("tenant" = String, Path), ("token" = String, Path)),
    responses((status = 204, description = "Revoked")))]
pub async fn delete_token(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath((tenant, token)): ApiPath<(TenantId, String)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::TokensWrite, &tenant)?;
    caller.require_other(&token)?;
    tenants.delete_token(who, &tenant, token).await?;
    Ok(StatusCode::NO_CONTENT)
}
