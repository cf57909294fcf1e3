//! `/api/v1/tenants` and a tenant's audit chain.

use crate::platform::http_kit::{
    ApiError, ApiJson, ApiPath, ApiQuery, IfMatch, IfMatchHeader, Items, PageQuery, Tagged,
};
use crate::tenants::audit::AuditRow;
use crate::tenants::audit_search::{AuditFilter, AuditSort, FILTER_CHARS_MAX};
use crate::tenants::extract::Caller;
use crate::tenants::model::Permission;
use crate::tenants::service::Tenants;
use crate::tenants::store::TenantRow;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::TenantId;

/// A tenant.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct TenantView {
    /// Stands in topics and certificates; never changes.
    id: String,
    name: String,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
}

impl From<TenantRow> for TenantView {
    fn from(row: TenantRow) -> Self {
        Self { id: row.tenant, name: row.name, created_at_us: row.created_at_us }
    }
}

/// A new tenant.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTenantBody {
    /// 1 to 36 of a-z, 0-9 and '-', starting with a letter or digit.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,35}$", example = "acme")]
    id: TenantId,
    /// For people: 1 to 128 bytes, not blank, without control characters.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
        example = "Acme"
    )]
    name: String,
    /// The owner's account; the caller's, unless given.
    #[schema(max_length = 254, pattern = "^\\s*[^@\\s]+@[^@\\s.][^@\\s]*\\s*$", example = "owner@localhost")]
    owner_email: Option<String>,
}

/// What may change of a tenant.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameTenantBody {
    /// For people: 1 to 128 bytes, not blank, without control characters.
    #[schema(min_length = 1, max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$")]
    name: String,
}

/// One row of the audit chain.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct AuditView {
    /// Position in the tenant's chain, from 1.
    seq: i64,
    /// Microseconds since 1970 (UTC).
    at_us: i64,
    /// `user:<email>`, `token:<id>`, `claim:<id>` or `server`.
    actor: String,
    action: String,
    object: String,
    #[schema(value_type = Object)]
    detail: serde_json::Value,
    /// SHA-256 over this row and the hash before it, as hex.
    hash: String,
}

impl From<AuditRow> for AuditView {
    fn from(row: AuditRow) -> Self {
        let detail = serde_json::from_str(&row.detail).unwrap_or_default();
        let AuditRow { seq, at_us, actor, action, object, hash, .. } = row;
        Self { seq, at_us, actor, action, object, detail, hash: hex::encode(hash) }
    }
}

fn tagged(row: TenantRow) -> Tagged<TenantView> {
    Tagged(row.etag(), row.into())
}

/// The caller's tenants.
#[utoipa::path(get, path = "/api/v1/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, description = "A page of tenants", body = Items<TenantView>)))]
pub async fn list_tenants(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<TenantView>>, ApiError> {
    let page = query.page()?;
    let rows = tenants.tenants_of(&caller.principal, &page).await?;
    Ok(Json(page.items(rows, |row| row.tenant.clone(), TenantView::from)))
}

/// Creates a tenant (system administrators only).
#[utoipa::path(post, path = "/api/v1/tenants", tag = "tenants", request_body = NewTenantBody,
    responses((status = 201, description = "Created", body = TenantView)))]
pub async fn create_tenant(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiJson(body): ApiJson<NewTenantBody>,
) -> Result<(StatusCode, Json<TenantView>), ApiError> {
    let who = caller.require_platform()?;
    let row = tenants.create_tenant(who, body.id, body.name, body.owner_email).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// One tenant.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, description = "The tenant", body = TenantView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn get_tenant(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
) -> Result<Tagged<TenantView>, ApiError> {
    caller.require_part(Permission::TenantRead, &tenant)?;
    Ok(tagged(tenants.tenant(&tenant).await?))
}

/// Renames a tenant.
#[utoipa::path(patch, path = "/api/v1/tenants/{tenant}", tag = "tenants",
    params(("tenant" = String, Path), IfMatchHeader), request_body = RenameTenantBody,
    responses((status = 200, description = "The tenant", body = TenantView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn rename_tenant(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    IfMatch(expected): IfMatch,
    ApiJson(body): ApiJson<RenameTenantBody>,
) -> Result<Tagged<TenantView>, ApiError> {
    let who = caller.require(Permission::TenantWrite, &tenant)?;
    Ok(tagged(tenants.rename_tenant(who, &tenant, body.name, expected).await?))
}

/// Which rows of the chain; absent means all, oldest first.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only of this actor: `user:<email>`, `token:<id>`, `claim:<id>` or `server`.
    #[param(max_length = 300)]
    actor: Option<String>,
    /// Only this action (`device.create`), or with a dot at its end all that begin so (`device.`).
    #[param(max_length = 300)]
    action: Option<String>,
    /// Only on this object's id.
    #[param(max_length = 300)]
    object: Option<String>,
    /// From this time on; microseconds since 1970 (UTC).
    from: Option<i64>,
    /// Up to, not including; microseconds since 1970 (UTC).
    to: Option<i64>,
    /// The order; a minus turns it round.
    #[param(inline)]
    #[serde(default)]
    sort: AuditSort,
}

impl AuditQuery {
    fn filter(self) -> Result<AuditFilter, ApiError> {
        let Self { actor, action, object, from, to, sort } = self;
        for (field, text) in [("actor", &actor), ("action", &action), ("object", &object)] {
            if text.as_ref().is_some_and(|text| text.chars().count() > FILTER_CHARS_MAX) {
                let why = format!("must have at most {FILTER_CHARS_MAX} characters");
                return Err(ApiError::invalid(field, why));
            }
        }
        Ok(AuditFilter { actor, action, object, from_us: from, to_us: to, sort })
    }
}

/// The tenant's audit chain, oldest first unless asked otherwise.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/audit", tag = "tenants",
    params(("tenant" = String, Path), AuditQuery, PageQuery),
    responses((status = 200, description = "A page of the chain", body = Items<AuditView>)))]
pub async fn list_audit(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<AuditQuery>,
    ApiQuery(page): ApiQuery<PageQuery>,
) -> Result<Json<Items<AuditView>>, ApiError> {
    caller.require(Permission::AuditRead, &tenant)?;
    let (filter, page) = (query.filter()?, page.page()?);
    let after = page.after.as_deref().map(str::parse).transpose();
    let after = after.map_err(|_| ApiError::invalid("cursor", "is not a cursor that this list gave"))?;
    let rows = tenants.audit_search(&tenant, filter, after, page.fetch()).await?;
    Ok(Json(page.items(rows, |row| row.seq.to_string(), AuditView::from)))
}
