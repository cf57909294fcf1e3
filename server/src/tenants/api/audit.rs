//! `/api/v1/tenants/{tenant}/audit/verify` and `/export`.

use crate::platform::http_kit::{ApiError, ApiPath, ApiQuery};
use crate::tenants::audit::export::{Format, Span};
use crate::tenants::audit::verify::{Mark, NoMark};
use crate::tenants::extract::Caller;
use crate::tenants::model::Permission;
use crate::tenants::service::{AuditPage, Tenants, TenantsError, Verified};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use muster_wire::TenantId;

/// Where to begin.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VerifyParams {
    /// `<seq>:<hash>`, as an answer's `at` was: that row must still be there, and the rows after it are verified. Absent:
    /// from the first row on.
    #[param(pattern = "^[0-9]{1,19}:[0-9a-f]{64}$")]
    from: Option<String>,
}

/// What a verification found.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct AuditVerifyView {
    /// Every row that was looked at is good.
    ok: bool,
    /// How many were good.
    rows: u64,
    /// The last good row: `<seq>:<hash>`. Note it: a later verification from here on finds whether rows are gone from the
    /// chain's end, or were written anew.
    at: String,
    /// The chain's end was reached; where it was not, go on with `from` = `at`.
    complete: bool,
    /// What is wrong.
    fault: Option<AuditFaultView>,
}

/// What is wrong with a chain.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct AuditFaultView {
    /// The row's position, from 1.
    seq: i64,
    /// In words.
    what: String,
}

impl From<Verified> for AuditVerifyView {
    fn from(found: Verified) -> Self {
        let Verified { rows, at, is_complete: complete, fault } = found;
        let fault = fault.map(|fault| AuditFaultView { seq: fault.seq(), what: fault.to_string() });
        Self { ok: fault.is_none(), rows, at: at.to_string(), complete, fault }
    }
}

/// Verifies the tenant's audit chain: at most 10,000 rows in one request.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/audit/verify", tag = "tenants",
    params(("tenant" = String, Path), VerifyParams),
    responses((status = 200, description = "What was found", body = AuditVerifyView)))]
pub async fn verify_audit(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(params): ApiQuery<VerifyParams>,
) -> Result<Json<AuditVerifyView>, ApiError> {
    caller.require(Permission::AuditRead, &tenant)?;
    let from = params.from.map(|text| text.parse::<Mark>()).transpose();
    let from = from.map_err(|error: NoMark| ApiError::invalid("from", error.to_string()))?;
    Ok(Json(tenants.verify_audit(&tenant, from).await?.into()))
}

/// Which rows, and how.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportParams {
    /// From this time on; microseconds since 1970 (UTC).
    from: Option<i64>,
    /// Up to, not including; microseconds since 1970 (UTC).
    to: Option<i64>,
    /// `ndjson` unless given.
    #[param(inline)]
    format: Option<Format>,
}

/// The tenant's audit chain as a file, oldest row first, with all that each row's hash covers.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/audit/export", tag = "tenants",
    params(("tenant" = String, Path), ExportParams),
    responses((status = 200, description = "The rows", content(
        (String = "application/x-ndjson"), (String = "text/csv")))))]
pub async fn export_audit(
    State(tenants): State<Tenants>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(params): ApiQuery<ExportParams>,
) -> Result<Response, ApiError> {
    caller.require(Permission::AuditRead, &tenant)?;
    let format = params.format.unwrap_or(Format::Ndjson);
    let span = Span { from_us: params.from.unwrap_or(i64::MIN), to_us: params.to.unwrap_or(i64::MAX) };
    // The first page is read before the answer begins, so that a database that is away is an error and not half a file.
    let first = tenants.export_audit(&tenant, span, 0).await?;
    let rest = stream::unfold(Some(first), move |rows| {
        let (tenants, tenant) = (tenants.clone(), tenant.clone());
        async move { next_page(&tenants, &tenant, span, rows?).await }
    });
    let body = stream::StreamExt::map(rest, move |rows| rows.map(|rows| format.rows(&rows)));
    let head = stream::iter([Ok::<_, TenantsError>(format.head().to_owned())]);
    let body = Body::from_stream(stream::StreamExt::chain(head, body));
    let name = match format {
        Format::Ndjson => "attachment; filename=\"audit.ndjson\"",
        Format::Csv => "attachment; filename=\"audit.csv\"",
    };
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, body).into_response())
}

/// A page that was read, and the one after it. Nothing is read before what is there was taken.
async fn next_page(
    tenants: &Tenants,
    tenant: &TenantId,
    span: Span,
    rows: AuditPage,
) -> Option<(Result<AuditPage, TenantsError>, Option<AuditPage>)> {
    let after = rows.last()?.seq;
    match tenants.export_audit(tenant, span, after).await {
        Ok(more) => Some((Ok(rows), Some(more))),
        Err(error) => {
            tracing::warn!(%error, "an export of an audit chain ends early");
            Some((Err(error), None))
        }
    }
}
