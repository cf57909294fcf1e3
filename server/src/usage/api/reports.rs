//! `/api/v1/tenants/{tenant}/usage` and `/api/v1/usage`, as JSON and CSV.

use super::refused_view;
use crate::platform::http_kit::{ApiError, ApiPath, ApiQuery, PageQuery};
use crate::tenants::{Caller, Permission};
use crate::usage::csv;
use crate::usage::gap::GapView;
use crate::usage::model::{
    Counts, DayRow, Level, Notice, Quota, RETENTION_DAYS, day_text, month_start, parse_day,
};
use crate::usage::service::UsageService;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use muster_wire::TenantId;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How usage comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As JSON.
    Json,
    /// As CSV (RFC 4180), one line a tenant and day.
    Csv,
}

/// Which days, and how.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// The first day (UTC), `2026-11-01`; the month's first unless given.
    #[param(format = "date")]
    from: Option<String>,
    /// The last day, included; today unless given. At most 400 days.
    #[param(format = "date")]
    to: Option<String>,
    /// `json` or `csv`; as the request's `Accept` says unless given.
    format: Option<Format>,
}

/// What was used.
#[derive(Debug, Default, serde::Serialize, utoipa::ToSchema)]
pub struct CountsView {
    /// Messages that the log took, wills included; one that came twice was taken twice.
    messages: u64,
    /// Bytes of their bodies, without topic and envelope.
    bytes: u64,
    /// Readings in them.
    readings: u64,
    /// Events among them.
    events: u64,
    /// Milliseconds that devices' models ran, as the events tell.
    inference_ms: u64,
    /// The most messages in one second.
    peak_messages_per_s: u64,
    /// The most registered devices, looked at each minute.
    devices: u64,
    /// The most bytes in the store, by estimate.
    storage_bytes: u64,
    /// Messages (`connections`: CONNECTs) that were refused, by reason; reasons without any are left out. A message of an
    /// MQTT 3.1.1 client, which waits instead, counts once when it begins to.
    #[schema(value_type = Object)]
    refused: BTreeMap<&'static str, u64>,
}

fn counts_view(counts: &Counts, devices: u64, storage_bytes: u64) -> CountsView {
    CountsView {
        messages: counts.messages,
        bytes: counts.bytes,
        readings: counts.readings,
        events: counts.events,
        inference_ms: counts.inference_us / 1_000,
        peak_messages_per_s: counts.peak_per_s,
        devices,
        storage_bytes,
        refused: refused_view(&counts.refused),
    }
}

/// A tenant's day.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct DayView {
    /// The day (UTC), `2026-11-22`.
    day: String,
    /// Whose.
    tenant: String,
    #[serde(flatten)]
    used: CountsView,
}

impl From<DayRow> for DayView {
    fn from(row: DayRow) -> Self {
        let used = counts_view(&row.counts, row.devices, row.storage_bytes);
        Self { day: day_text(row.day), tenant: row.tenant, used }
    }
}

/// A limit that was reached.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct NoticeView {
    /// The day (UTC), `2026-11-22`.
    day: String,
    quota: Quota,
    /// Which of its limits.
    level: Level,
    /// Used when it was noticed.
    used: u64,
    /// The limit then.
    allowed: u64,
    /// When it was noticed; microseconds since 1970 (UTC).
    at_us: i64,
}

impl From<Notice> for NoticeView {
    fn from(notice: Notice) -> Self {
        let Notice { day, quota, level, used, allowed, at_us, .. } = notice;
        Self { day: day_text(day), quota, level, used, allowed, at_us }
    }
}

/// A tenant's usage.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct UsageView {
    /// The first day.
    from: String,
    /// The last day.
    to: String,
    /// Days with usage, oldest first.
    items: Vec<DayView>,
    /// Their sum; of peaks, devices and storage the largest.
    total: CountsView,
    /// Limits that were reached.
    notices: Vec<NoticeView>,
    /// Records of the server that were never counted and may be of these days and this tenant; the newest, at most 100.
    gaps: Vec<GapView>,
}

/// Every tenant's usage.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct AllUsageView {
    /// Days with usage, oldest first, then by tenant.
    items: Vec<DayView>,
    /// Set when there is more: pass it as `cursor`. With CSV it stands in the header `x-next-cursor`.
    next_cursor: Option<String>,
}

impl UsageQuery {
    fn days(&self, today: i64) -> Result<RangeInclusive<i64>, ApiError> {
        let day = |field: &'static str, text: &Option<String>| {
            let parsed = text.as_deref().map(|text| parse_day(text).ok_or(()));
            parsed.transpose().map_err(|()| ApiError::invalid(field, "must be a day such as 2026-11-22"))
        };
        let last = day("to", &self.to)?.unwrap_or(today);
        let first = day("from", &self.from)?.unwrap_or_else(|| month_start(last));
        if first > last {
            return Err(ApiError::invalid("from", "must not be after `to`"));
        }
        if last - first >= RETENTION_DAYS {
            return Err(ApiError::invalid(
                "from",
                format!("must be at most {RETENTION_DAYS} days before `to`"),
            ));
        }
        Ok(first..=last)
    }

    fn is_csv(&self, headers: &HeaderMap) -> bool {
        let accepts = || {
            let accept =
                headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
            accept
                .split(',')
                .any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "text/csv"))
        };
        self.format.map_or_else(accepts, |format| format == Format::Csv)
    }
}

fn csv_answer(rows: &[DayRow]) -> Response {
    ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv::text(rows)).into_response()
}

/// What the tenant used, by the day.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/usage", tag = "usage",
    params(("tenant" = String, Path), UsageQuery),
    responses((status = 200, description = "The days", content(
        (UsageView = "application/json"), (String = "text/csv")))))]
pub async fn get_usage(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<UsageQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(Permission::UsageRead, &tenant)?;
    let days = query.days(usage.today())?;
    let (rows, notices) = usage.days(&tenant, days.clone()).await?;
    if query.is_csv(&headers) {
        return Ok(csv_answer(&rows));
    }
    let mut total = (Counts::default(), 0, 0);
    for row in &rows {
        total.0.add(&row.counts);
        (total.1, total.2) = (total.1.max(row.devices), total.2.max(row.storage_bytes));
    }
    let view = UsageView {
        from: day_text(*days.start()),
        to: day_text(*days.end()),
        items: rows.into_iter().map(DayView::from).collect(),
        total: counts_view(&total.0, total.1, total.2),
        notices: notices.into_iter().map(NoticeView::from).collect(),
        gaps: usage.gaps(days).await?.0,
    };
    Ok(Json(view).into_response())
}

/// What every tenant used, by the day (system administrators only).
#[utoipa::path(get, path = "/api/v1/usage", tag = "usage", params(UsageQuery, PageQuery),
    responses((status = 200, description = "A page of days", content(
        (AllUsageView = "application/json"), (String = "text/csv")))))]
pub async fn list_usage(
    State(usage): State<UsageService>,
    caller: Caller,
    ApiQuery(query): ApiQuery<UsageQuery>,
    ApiQuery(page): ApiQuery<PageQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require_platform()?;
    let (days, page) = (query.days(usage.today())?, page.page()?);
    let after = match &page.after {
        None => (*days.start() - 1, String::new()),
        Some(text) => parse_key(text)?,
    };
    let rows = usage.all_days(days, after, page.fetch()).await?;
    let shown: Vec<_> = rows.iter().take(page.limit as usize).cloned().collect();
    let items = page.items(rows, |row| format!("{}:{}", row.day, row.tenant), DayView::from);
    if !query.is_csv(&headers) {
        let view = AllUsageView { items: items.items, next_cursor: items.next_cursor };
        return Ok(Json(view).into_response());
    }
    let mut answer = csv_answer(&shown);
    if let Some(cursor) = items.next_cursor.and_then(|cursor| HeaderValue::from_str(&cursor).ok()) {
        answer.headers_mut().insert("x-next-cursor", cursor);
    }
    Ok(answer)
}

fn parse_key(text: &str) -> Result<(i64, String), ApiError> {
    let bad = || ApiError::invalid("cursor", "is not a cursor that this list gave");
    let (day, tenant) = text.split_once(':').ok_or_else(bad)?;
    Ok((day.parse().map_err(|_| bad())?, tenant.to_owned()))
}
