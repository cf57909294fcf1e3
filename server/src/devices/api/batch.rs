//! `/api/v1/tenants/{tenant}/devices/batch`: many devices from a CSV file.

use crate::devices::model::Labels;
use crate::devices::model::batch::{self, LineError};
use crate::devices::service::{BatchDevice, Claims, Devices, DevicesError};
use crate::platform::http_kit::{ApiError, ApiPath, ApiQuery};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use muster_wire::{ErrorCode, TenantId};

const CSV: &str = "text/csv";

/// What to do with the file.
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BatchQuery {
    /// Only say what is off; nothing is written.
    #[serde(default)]
    dry_run: bool,
    /// Make a claim for each device, shown once in the answer.
    #[serde(default)]
    claims: bool,
}

/// A device of a batch.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct BatchDeviceView {
    id: String,
    name: String,
    profile: Option<String>,
    labels: Labels,
    /// What a technician hands to the device, where claims were asked for; shown once.
    claim: Option<String>,
}

impl From<BatchDevice> for BatchDeviceView {
    fn from(made: BatchDevice) -> Self {
        let BatchDevice { row, claim } = made;
        Self { id: row.device.to_string(), name: row.name, profile: row.profile, labels: row.labels, claim }
    }
}

/// What became of a batch.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct BatchView {
    /// Nothing was written.
    dry_run: bool,
    /// Devices that were made; empty for a dry run.
    devices: Vec<BatchDeviceView>,
    /// What is off, in the order of the lines, at most 100; empty unless it is a dry run.
    errors: Vec<LineError>,
}

/// Makes devices from a CSV file: all of them, or none. The header names the columns: `id`, perhaps `name` and `profile`;
/// each further column is a label. `Accept: text/csv` gives `id,name,profile,claim` to hand to a technician.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/devices/batch", tag = "devices",
    params(("tenant" = String, Path), BatchQuery),
    request_body(content = String, content_type = "text/csv", description = "At most 2000 rows (RFC 4180)"),
    responses((status = 200, description = "What a dry run found", body = BatchView),
        (status = 201, description = "Made", content((BatchView = "application/json"), (String = "text/csv")))))]
pub async fn create_devices(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<BatchQuery>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let is_csv =
        |name| headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|t| t.starts_with(CSV));
    if !is_csv(header::CONTENT_TYPE) {
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, "the body must be text/csv"));
    }
    let read = batch::read(&body);
    if query.dry_run {
        let errors = match read {
            Ok(rows) => devices.check_batch(&tenant, rows).await?,
            Err(errors) => errors,
        };
        return Ok(Json(BatchView { dry_run: true, devices: Vec::new(), errors }).into_response());
    }
    let claims = if query.claims { Claims::Each } else { Claims::None };
    let made = devices.create_batch(who, &tenant, read.map_err(DevicesError::Batch)?, claims).await?;
    if is_csv(header::ACCEPT) {
        return Ok((StatusCode::CREATED, [(header::CONTENT_TYPE, CSV)], text(made)?).into_response());
    }
    let devices = made.into_iter().map(BatchDeviceView::from).collect();
    Ok((StatusCode::CREATED, Json(BatchView { dry_run: false, devices, errors: Vec::new() })).into_response())
}

fn text(made: Vec<BatchDevice>) -> Result<Vec<u8>, ApiError> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["id", "name", "profile", "claim"]).map_err(ApiError::internal)?;
    for BatchDevice { row, claim } in made {
        let cells = [row.device.as_str(), &row.name, row.profile.as_deref().unwrap_or_default()];
        let cells = cells.into_iter().chain([claim.as_deref().unwrap_or_default()]);
        out.write_record(cells).map_err(ApiError::internal)?;
    }
    out.into_inner().map_err(ApiError::internal)
}

/// The lines that are off, in one sentence; the first one is the field at fault.
pub(super) fn refusal(errors: &[LineError]) -> ApiError {
    let Some(first) = errors.first() else { return ApiError::invalid("row", "is off") };
    let told: Vec<String> =
        errors.iter().map(|error| format!("line {}, {}: {}", error.line, error.field, error.why)).collect();
    ApiError::invalid(format!("line {}: {}", first.line, first.field), told.join("; "))
}
