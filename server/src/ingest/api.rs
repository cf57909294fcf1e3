//! HTTP of readings, events, the ledger, dead letters and rejected messages.

use super::queries::{Queries, QueryError, Range};
use super::views::{
    DeadLetterView, DeviceLedgerView, EventView, LastValuesView, ReadingsView, RejectedListView, TotalsView,
};
use crate::platform::http_kit::{ApiError, ApiPath, ApiQuery, Items, Page, PageQuery};
use crate::platform::telemetry::{Aggregate, EventQuery, LIST_MAX, POINTS_MAX};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use muster_wire::{DeviceId, EventKind, TenantId, check_metric_name};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Points in an answer unless asked otherwise.
const POINTS_DEFAULT: usize = 1_000;

/// The slice's routes.
pub fn routes() -> OpenApiRouter<Queries> {
    OpenApiRouter::new()
        .routes(routes!(get_readings))
        .routes(routes!(get_last))
        .routes(routes!(list_events))
        .routes(routes!(get_device_ledger))
        .routes(routes!(get_ledger))
        .routes(routes!(list_dead_letters))
        .routes(routes!(list_rejected))
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NotHere(why) => why.into(),
            QueryError::Devices(error) => error.into(),
            QueryError::Field(field) => Self::invalid(field.field, field.why),
            QueryError::Db(error) => error.into(),
        }
    }
}

/// Which readings.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadingsParams {
    /// The metric's name.
    #[param(pattern = "^[A-Za-z0-9._/:%-]{1,64}$")]
    metric: String,
    /// From this time on; microseconds since 1970 (UTC). An hour before `to` unless given.
    from: Option<i64>,
    /// Up to, not including; microseconds since 1970 (UTC). Now unless given.
    to: Option<i64>,
    /// `10s`, `5m`, `1h`, `1d` or seconds, at most 100,000 of them in the range; absent: every reading as it is.
    #[param(pattern = "^[0-9]{1,19}[smhd]?$")]
    step: Option<String>,
    /// How to join what is in a step: `avg` unless given, `min`, `max`, `last`, `count`, `sum`.
    #[param(inline, value_type = Option<Joined>)]
    agg: Option<Aggregate>,
    /// 1 to 10,000; 1,000 unless given.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

impl ReadingsParams {
    fn range(self) -> Result<Range, ApiError> {
        check_metric_name(&self.metric).map_err(|why| ApiError::invalid("metric", why))?;
        let limit = self.limit.unwrap_or(POINTS_DEFAULT);
        if !(1..=POINTS_MAX).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("must be 1 to {POINTS_MAX}")));
        }
        if self.from.zip(self.to).is_some_and(|(from, to)| from > to) {
            return Err(ApiError::invalid("from", "must not be after `to`"));
        }
        let step_us = self.step.as_deref().map(parse_step).transpose()?;
        if self.agg.is_some() && step_us.is_none() {
            return Err(ApiError::invalid("step", "is needed with `agg`"));
        }
        let step = step_us.map(|step_us| (step_us, self.agg.unwrap_or(Aggregate::Avg)));
        Ok(Range { metric: self.metric, from_us: self.from, to_us: self.to, step, limit })
    }
}

fn parse_step(text: &str) -> Result<i64, ApiError> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let unit = units.into_iter().find_map(|(unit, s)| Some((text.strip_suffix(unit)?, s)));
    let (digits, unit_s) = unit.unwrap_or((text, 1));
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = Some(digits).filter(|_| plain).and_then(|digits| digits.parse::<i64>().ok());
    let seconds = seconds.and_then(|count| count.checked_mul(unit_s));
    let seconds = seconds.filter(|seconds| (1..=366 * 86_400).contains(seconds));
    let seconds =
        seconds.ok_or_else(|| ApiError::invalid("step", "must be 1s to 366d: `10s`, `5m`, `1h`, `1d`"))?;
    Ok(seconds * 1_000_000)
}

/// How to join, for the document.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "stands for `Aggregate` in the document")]
enum Joined {
    Avg,
    Min,
    Max,
    Last,
    Count,
    Sum,
}

/// Kinds of models, for the document.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "stands for `EventKind` in the document")]
enum Kind {
    Classification,
    Anomaly,
    Detection,
}

/// Which events.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsParams {
    /// One device.
    #[param(value_type = Option<String>, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device: Option<DeviceId>,
    /// Received from this time on; microseconds since 1970 (UTC).
    from: Option<i64>,
    /// Received up to, not including; microseconds since 1970 (UTC).
    to: Option<i64>,
    /// What kind of model answered.
    #[param(inline, value_type = Option<Kind>)]
    kind: Option<EventKind>,
    /// The exact label.
    label: Option<String>,
}

fn kind_text(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Classification => "classification",
        EventKind::Anomaly => "anomaly",
        EventKind::Detection => "detection",
    }
}

/// The id that the page before ended with.
fn before(page: &Page) -> Result<Option<i64>, ApiError> {
    let parsed = page.after.as_deref().map(str::parse).transpose();
    parsed.map_err(|_| ApiError::invalid("cursor", "is not a cursor that this list gave"))
}

/// Rows to fetch: one more than the page, within the store's bound.
fn fetch(page: &Page) -> usize {
    usize::try_from(page.fetch()).unwrap_or(LIST_MAX).min(LIST_MAX)
}

/// Readings of one metric of a device: range, step, aggregation.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}/readings", tag = "telemetry",
    params(("tenant" = String, Path), ("device" = String, Path), ReadingsParams),
    responses((status = 200, description = "The series", body = ReadingsView)))]
pub async fn get_readings(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    ApiQuery(params): ApiQuery<ReadingsParams>,
) -> Result<Json<ReadingsView>, ApiError> {
    queries.devices().admit(&caller.principal, Permission::TelemetryRead, &tenant, &device).await?;
    Ok(Json(queries.readings(&tenant, &device, params.range()?).await?.into()))
}

/// The last value of each metric of a device.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}/last", tag = "telemetry",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 200, description = "The values", body = LastValuesView)))]
pub async fn get_last(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<Json<LastValuesView>, ApiError> {
    queries.devices().admit(&caller.principal, Permission::TelemetryRead, &tenant, &device).await?;
    let items = queries.last(&tenant, &device).await?.into_iter().map(Into::into).collect();
    Ok(Json(LastValuesView { items }))
}

/// Inference results, newest first.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/events", tag = "telemetry",
    params(("tenant" = String, Path), EventsParams, PageQuery),
    responses((status = 200, description = "A page of events", body = Items<EventView>)))]
pub async fn list_events(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(params): ApiQuery<EventsParams>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<EventView>>, ApiError> {
    let reach = caller.require_part(Permission::TelemetryRead, &tenant)?;
    let page = query.page()?.at_most(LIST_MAX - 1);
    let EventsParams { device, from: from_us, to: to_us, kind, label } = params;
    let (device, before, limit) = (device.map(|device| device.to_string()), before(&page)?, fetch(&page));
    let kind = kind.map(|kind| kind_text(kind).to_owned());
    let query = EventQuery { device, from_us, to_us, kind, label, before, limit };
    if reach.is_everything() {
        let rows = queries.events(&tenant, query).await?;
        return Ok(Json(page.items(rows, |row| row.id.to_string(), EventView::from)));
    }
    let (rows, next) = queries.events_within(&tenant, &reach, query).await?;
    let next = next.map(|id| id.to_string());
    Ok(Json(page.part(rows, next, |row| row.id.to_string(), EventView::from)))
}

/// What became of a device's records: per queue, accepted, stored, dropped and why, pending, lost.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}/ledger", tag = "telemetry",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 200, description = "The ledger", body = DeviceLedgerView)))]
pub async fn get_device_ledger(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<Json<DeviceLedgerView>, ApiError> {
    queries.devices().admit(&caller.principal, Permission::TelemetryRead, &tenant, &device).await?;
    Ok(Json(queries.device_ledger(&tenant, &device).await?.into()))
}

/// What became of the tenant's records.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/ledger", tag = "telemetry", params(("tenant" = String, Path)),
    responses((status = 200, description = "The sums", body = TotalsView)))]
pub async fn get_ledger(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
) -> Result<Json<TotalsView>, ApiError> {
    caller.require(Permission::TelemetryRead, &tenant)?;
    Ok(Json(queries.totals(&tenant).await?.into()))
}

/// Bodies that could not be stored, newest first.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/dead-letters", tag = "telemetry",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of dead letters", body = Items<DeadLetterView>)))]
pub async fn list_dead_letters(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<DeadLetterView>>, ApiError> {
    caller.require(Permission::TelemetryRead, &tenant)?;
    let page = query.page()?.at_most(LIST_MAX - 1);
    let rows = queries.dead_letters(&tenant, before(&page)?, fetch(&page)).await?;
    Ok(Json(page.items(rows, |row| row.id.to_string(), DeadLetterView::from)))
}

/// Messages that the gateway refused for good: device, class, reason, count; the newest 500.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/rejected", tag = "telemetry",
    params(("tenant" = String, Path)),
    responses((status = 200, description = "The newest", body = RejectedListView)))]
pub async fn list_rejected(
    State(queries): State<Queries>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
) -> Result<Json<RejectedListView>, ApiError> {
    caller.require(Permission::TelemetryRead, &tenant)?;
    let rows = queries.rejected(&tenant, LIST_MAX).await?;
    Ok(Json(RejectedListView { items: rows.into_iter().map(Into::into).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect_s: Option<i64>) {
        assert_eq!(parse_step(text).ok(), expect_s.map(|s| s * 1_000_000), "{text}");
    }

    #[test]
    fn an_answers_points_are_bounded() {
        let range = |limit: usize| {
            let metric = "m".to_owned();
            ReadingsParams { metric, from: None, to: None, step: None, agg: None, limit: Some(limit) }.range()
        };
        assert_eq!(range(POINTS_MAX).unwrap().limit, POINTS_MAX);
        for limit in [0, POINTS_MAX + 1] {
            let refused = range(limit).unwrap_err();
            assert_eq!((refused.field.as_deref(), &*refused.message), (Some("limit"), "must be 1 to 10000"));
        }
    }

    #[test]
    fn a_step_has_a_unit_and_bounds() {
        check("10", Some(10));
        check("10s", Some(10));
        check("5m", Some(300));
        check("1d", Some(86_400));
        check("0s", None);
        check("-1s", None);
        check("367d", None);
        check("9223372036854775807d", None);
        check("1w", None);
    }
}
