//! `/api/v1/tenants/{tenant}/erasures`, and what begins one.

use super::model::{File, Job, State as JobState};
use super::service::{ErasureError, Erasures, asked_for};
use crate::platform::blob::BlobError;
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery, chain};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use muster_wire::{DeviceId, ErrorCode, TenantId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<Erasures> {
    OpenApiRouter::new()
        .routes(routes!(erase_device))
        .routes(routes!(erase_tenant))
        .routes(routes!(erase_any_tenant))
        .routes(routes!(list_erasures))
        .routes(routes!(get_erasure))
        .routes(routes!(list_erasure_files))
        .routes(routes!(get_erasure_file))
}

impl From<ErasureError> for ApiError {
    fn from(error: ErasureError) -> Self {
        let text = error.to_string();
        match error {
            ErasureError::NotFound(noun) => Self::not_found(noun),
            ErasureError::Conflict(_) => Self::new(ErrorCode::Conflict, text),
            ErasureError::TooMany => Self::new(ErrorCode::RateLimited, text),
            ErasureError::NotConfirmed => Self::invalid("confirm", text),
            ErasureError::Devices(cause) => cause.into(),
            ErasureError::Db(cause) => cause.into(),
            ErasureError::NotHere(why) => why.into(),
            ErasureError::Blob(BlobError::Missing { .. }) => Self::not_found("file"),
            ErasureError::Blob(cause @ (BlobError::Unreachable(_) | BlobError::Refused(_))) => {
                tracing::warn!(error = %chain(&cause), "an export cannot be read");
                Self::new(ErrorCode::Unavailable, "the blob store cannot be read; try again later")
            }
            ErasureError::Blob(cause) => Self::internal(chain(&cause)),
            ErasureError::Telemetry(cause) => Self::internal(chain(&cause)),
        }
    }
}

fn yes() -> bool {
    true
}

/// How a device is erased.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseDeviceBody {
    /// Whether everything is written into files first; true unless given.
    #[serde(default = "yes")]
    #[schema(default = true)]
    export: bool,
}

/// How a tenant is erased.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseTenantBody {
    /// The tenant's id once more: this cannot be undone.
    confirm: String,
    /// Whether everything is written into files first; true unless given.
    #[serde(default = "yes")]
    #[schema(default = true)]
    export: bool,
}

/// Which tenant is erased, and how.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseAnyTenantBody {
    /// The tenant.
    #[schema(value_type = String)]
    tenant: TenantId,
    /// The tenant's id once more: this cannot be undone.
    confirm: String,
    /// Whether everything is written into files first; true unless given.
    #[serde(default = "yes")]
    #[schema(default = true)]
    export: bool,
}

/// An erasure and how far it is.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ErasureView {
    id: String,
    /// The device; null: the whole tenant.
    device: Option<String>,
    /// `shutting_out`, `draining`, `exporting`, `erasing`, `sweeping` or `done`.
    state: JobState,
    /// Whether files are written first.
    export: bool,
    /// `user:<email>` or `token:<id>`.
    requested_by: String,
    /// Microseconds since 1970 (UTC).
    requested_at_us: i64,
    /// Rows in files so far.
    rows_exported: i64,
    /// Rows deleted so far.
    rows_erased: i64,
    /// What it waits for, where it cannot go on; tried again after a second, later after up to a minute.
    waiting_for: Option<String>,
    /// Microseconds since 1970 (UTC).
    done_at_us: Option<i64>,
    /// Until when the files are kept; null before it is done, without an export, and after that time. Microseconds
    /// since 1970 (UTC).
    export_until_us: Option<i64>,
}

impl From<Job> for ErasureView {
    fn from(job: Job) -> Self {
        Self {
            id: job.id,
            device: job.device.map(|device| device.to_string()),
            state: job.state,
            export: job.with_export,
            requested_by: job.requested_by,
            requested_at_us: job.requested_at_us,
            rows_exported: job.rows_exported,
            rows_erased: job.rows_erased,
            waiting_for: job.waiting_for,
            done_at_us: job.done_at_us,
            export_until_us: job.export_until_us,
        }
    }
}

/// A file of an export.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct ErasureFileView {
    /// `<what>-<number>.ndjson.gz`: one JSON object a line, gzip; or `manifest.json`.
    name: String,
    /// Its size as it is fetched, in bytes.
    bytes: i64,
    /// SHA-256 of its content as it is fetched, as hex.
    sha256: String,
    /// Its lines.
    rows: i64,
}

impl From<File> for ErasureFileView {
    fn from(file: File) -> Self {
        Self { name: file.name, bytes: file.bytes, sha256: hex::encode(file.sha256), rows: file.rows }
    }
}

/// Exports everything that is stored of a device and erases it. The device is shut out and stays disabled; the answer
/// comes at once, `GET .../erasures/{erasure}` tells how far it is.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/devices/{device}/erase", tag = "erasures",
    params(("tenant" = String, Path), ("device" = String, Path)), request_body = EraseDeviceBody,
    responses((status = 202, description = "It has begun", body = ErasureView)))]
pub async fn erase_device(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    ApiJson(body): ApiJson<EraseDeviceBody>,
) -> Result<(StatusCode, Json<ErasureView>), ApiError> {
    let who = erasures.admit(&caller.principal, Permission::DataErase, &tenant, &device).await?;
    let job = erasures.erase_device(who, &tenant, device, body.export).await?;
    Ok((StatusCode::ACCEPTED, Json(job.into())))
}

/// Exports everything of a tenant and erases it. Members, API tokens and claims are taken away at once; who asked still
/// sees the erasure and fetches the export, so an API token of the tenant asks without one. The id is never given away
/// again, and exports of before go too.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/erase", tag = "erasures",
    params(("tenant" = String, Path)), request_body = EraseTenantBody,
    responses((status = 202, description = "It has begun", body = ErasureView)))]
pub async fn erase_tenant(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<EraseTenantBody>,
) -> Result<(StatusCode, Json<ErasureView>), ApiError> {
    let who = caller.require(Permission::TenantErase, &tenant)?;
    let job = erasures.erase_tenant(who, &tenant, &body.confirm, body.export).await?;
    Ok((StatusCode::ACCEPTED, Json(job.into())))
}

/// As `POST /api/v1/tenants/{tenant}/erase`, by a system administrator who is no member of the tenant.
#[utoipa::path(post, path = "/api/v1/erasures", tag = "erasures", request_body = EraseAnyTenantBody,
    responses((status = 202, description = "It has begun", body = ErasureView)))]
pub async fn erase_any_tenant(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiJson(body): ApiJson<EraseAnyTenantBody>,
) -> Result<(StatusCode, Json<ErasureView>), ApiError> {
    let who = caller.require_platform()?;
    let job = erasures.erase_tenant(who, &body.tenant, &body.confirm, body.export).await?;
    Ok((StatusCode::ACCEPTED, Json(job.into())))
}

/// A job that the caller may see: by right, or because it asked for it.
async fn visible(erasures: &Erasures, caller: &Caller, tenant: &TenantId, id: &str) -> Result<Job, ApiError> {
    let may = caller.require(Permission::DataExport, tenant).map(drop);
    match erasures.get(tenant, id).await {
        Ok(job) if may.is_ok() || asked_for(&caller.principal, &job) => Ok(job),
        Ok(_) => Err(may.err().unwrap_or_else(|| ApiError::not_found("erasure"))),
        Err(error) => Err(may.err().unwrap_or_else(|| error.into())),
    }
}

/// The tenant's erasures, the oldest first.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/erasures", tag = "erasures",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of erasures", body = Items<ErasureView>)))]
pub async fn list_erasures(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<ErasureView>>, ApiError> {
    caller.require(Permission::DataExport, &tenant)?;
    let page = query.page()?;
    let rows = erasures.list(&tenant, &page).await?;
    Ok(Json(page.items(rows, |job| job.id.clone(), ErasureView::from)))
}

/// One erasure.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/erasures/{erasure}", tag = "erasures",
    params(("tenant" = String, Path), ("erasure" = String, Path)),
    responses((status = 200, description = "The erasure", body = ErasureView)))]
pub async fn get_erasure(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath((tenant, id)): ApiPath<(TenantId, String)>,
) -> Result<Json<ErasureView>, ApiError> {
    Ok(Json(visible(&erasures, &caller, &tenant, &id).await?.into()))
}

/// The files of an erasure's export, by name. They are whole once the state is past `exporting`.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/erasures/{erasure}/files", tag = "erasures",
    params(("tenant" = String, Path), ("erasure" = String, Path), PageQuery),
    responses((status = 200, description = "A page of files", body = Items<ErasureFileView>)))]
pub async fn list_erasure_files(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath((tenant, id)): ApiPath<(TenantId, String)>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<ErasureFileView>>, ApiError> {
    visible(&erasures, &caller, &tenant, &id).await?;
    let page = query.page()?;
    let rows = erasures.files(&tenant, &id, &page).await?;
    Ok(Json(page.items(rows, |file| file.name.clone(), ErasureFileView::from)))
}

/// One file of an export. That it was read stands in the audit chain.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/erasures/{erasure}/files/{file}", tag = "erasures",
    params(("tenant" = String, Path), ("erasure" = String, Path), ("file" = String, Path)),
    responses((status = 200, description = "The file's content", body = Vec<u8>,
               content_type = "application/octet-stream")))]
pub async fn get_erasure_file(
    State(erasures): State<Erasures>,
    caller: Caller,
    ApiPath((tenant, id, name)): ApiPath<(TenantId, String, String)>,
) -> Result<impl IntoResponse, ApiError> {
    visible(&erasures, &caller, &tenant, &id).await?;
    let content = erasures.download(&caller.principal, &tenant, &id, &name).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], content))
}
