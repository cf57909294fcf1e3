//! `/api/v1/tenants/{tenant}/devices`.

use crate::devices::model::{Labels, check_labels};
use crate::devices::service::{DeviceChange, Devices, NewDevice};
use crate::devices::store::places::PlacedDevice;
use crate::devices::store::{CertificateRow, DeviceFilter, DeviceRow, DeviceSort};
use crate::platform::http_kit::{
    ApiError, ApiJson, ApiPath, ApiQuery, IfMatch, IfMatchHeader, Items, PageQuery, Tagged,
};
use crate::tenants::reach::PlaceId;
use crate::tenants::{Caller, Permission, Reach};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use muster_wire::{DeviceId, TenantId};

/// A device.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct DeviceView {
    /// Stands in topics and certificates; never changes.
    id: String,
    name: String,
    enabled: bool,
    labels: Labels,
    /// The id of the site where it is.
    site: Option<String>,
    /// What it has in common with others of its kind.
    profile: Option<String>,
    /// It has a device token (foreign devices).
    has_token: bool,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// When it last got a certificate by a claim; microseconds since 1970 (UTC).
    enrolled_at_us: Option<i64>,
}

impl From<PlacedDevice> for DeviceView {
    fn from(placed: PlacedDevice) -> Self {
        let PlacedDevice { row, site } = placed;
        let DeviceRow { device, name, enabled, labels, profile, token_sha256, .. } = row;
        let (created_at_us, enrolled_at_us) = (row.created_at_us, row.enrolled_at_us);
        let (id, has_token) = (device.to_string(), token_sha256.is_some());
        Self { id, name, enabled, labels, site, profile, has_token, created_at_us, enrolled_at_us }
    }
}

/// A new device.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeviceBody {
    /// 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or digit.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    id: DeviceId,
    /// For people; at most 128 bytes without control characters.
    #[serde(default)]
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: String,
    /// Free-form marks, above those of the profile; `{device}` in a value stands for the id.
    #[serde(default)]
    labels: Labels,
    /// The id of the site where it is. Who has a scope makes devices within it.
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    site: Option<PlaceId>,
    /// What it has in common with others of its kind.
    profile: Option<String>,
}

/// Where a device is.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceSiteBody {
    /// The id of the site.
    #[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    site: PlaceId,
}

/// What may change of a device; absent fields stay.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeDeviceBody {
    /// For people; at most 128 bytes without control characters.
    #[schema(max_length = 128, pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$")]
    name: Option<String>,
    /// `false` closes its connection at once.
    enabled: Option<bool>,
    /// Replaces all labels.
    labels: Option<Labels>,
    /// Another profile, which counts from the next certificate on; the empty text for none. Labels stay.
    profile: Option<String>,
}

/// A device token; shown once.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct DeviceTokenView {
    /// The MQTT username.
    username: String,
    /// The MQTT password.
    token: String,
}

/// A certificate of a device.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct CertificateView {
    /// Hex of the serial number.
    serial: String,
    /// SHA-256 of the key, as hex.
    key_sha256: String,
    /// Microseconds since 1970 (UTC).
    issued_at_us: i64,
    /// Microseconds since 1970 (UTC).
    expires_at_us: i64,
    /// Microseconds since 1970 (UTC).
    revoked_at_us: Option<i64>,
}

impl From<CertificateRow> for CertificateView {
    fn from(row: CertificateRow) -> Self {
        let CertificateRow { serial, spki_sha256, issued_at_us, expires_at_us, revoked_at_us, .. } = row;
        Self { serial, key_sha256: hex::encode(spki_sha256), issued_at_us, expires_at_us, revoked_at_us }
    }
}

fn tagged(placed: PlacedDevice) -> Tagged<DeviceView> {
    Tagged(placed.row.etag().beside(&placed.site), placed.into())
}

/// Which devices to list, and how; absent means all, by id.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DevicesQuery {
    /// Only those that carry this label: `site=north`.
    #[param(pattern = "^[a-z0-9._/-]{1,63}=[^\\u0000-\\u001f\\u007f-\\u009f]{0,256}$")]
    label: Option<String>,
    /// Only those that may connect, or only the others.
    enabled: Option<bool>,
    /// Only those whose id begins so.
    #[param(max_length = 64)]
    id_prefix: Option<String>,
    /// Only those whose name begins so.
    #[param(max_length = 128)]
    name_prefix: Option<String>,
    /// Only those at this site.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    site: Option<PlaceId>,
    /// Only members of this group.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    group: Option<PlaceId>,
    /// The order; a minus turns it round.
    #[param(inline)]
    #[serde(default)]
    sort: DeviceSort,
}

impl DevicesQuery {
    fn filter(self, reach: Reach) -> Result<DeviceFilter, ApiError> {
        let Self { label, enabled, id_prefix, name_prefix, site, group, sort } = self;
        let label = label.as_deref().map(parse_label).transpose()?;
        let filter = DeviceFilter { label, enabled, id_prefix, name_prefix, site, group, reach, sort };
        filter.check().map_err(|error| ApiError::invalid(error.field, error.why))?;
        Ok(filter)
    }
}

fn parse_label(text: &str) -> Result<(String, String), ApiError> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| ApiError::invalid("label", "must be `key=value`"))?;
    let one = Labels::from([(key.to_owned(), value.to_owned())]);
    check_labels(&one).map_err(|error| ApiError::invalid("label", error.why))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The tenant's devices.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices", tag = "devices",
    params(("tenant" = String, Path), DevicesQuery, PageQuery),
    responses((status = 200, description = "A page of devices", body = Items<DeviceView>)))]
pub async fn list_devices(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<DevicesQuery>,
    ApiQuery(page): ApiQuery<PageQuery>,
) -> Result<Json<Items<DeviceView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let (filter, page) = (query.filter(reach)?, page.page()?);
    let sort = filter.sort;
    let after = page.after.as_deref().map(|text| sort.after(text)).transpose();
    let after = after.map_err(|()| ApiError::invalid("cursor", "is not a cursor that this list gave"))?;
    let rows = devices.list(&tenant, filter, after, page.fetch()).await?;
    Ok(Json(page.items(rows, |placed| sort.key(&placed.row), DeviceView::from)))
}

/// Creates a device.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/devices", tag = "devices", params(("tenant" = String, Path)),
    request_body = NewDeviceBody, responses((status = 201, description = "Created", body = DeviceView)))]
pub async fn create_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiJson(body): ApiJson<NewDeviceBody>,
) -> Result<(StatusCode, Json<DeviceView>), ApiError> {
    caller.require_part(Permission::DevicesWrite, &tenant)?;
    let NewDeviceBody { id: device, name, labels, site, profile } = body;
    let new = NewDevice { device, name, labels, profile };
    let row = devices.create_at(&caller.principal, &tenant, new, site.clone()).await?;
    let site = site.map(|site| site.as_str().to_owned());
    Ok((StatusCode::CREATED, Json(PlacedDevice { row, site }.into())))
}

/// One device.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 200, description = "The device", body = DeviceView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn get_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<Tagged<DeviceView>, ApiError> {
    devices.admit(&caller.principal, Permission::DevicesRead, &tenant, &device).await?;
    Ok(tagged(devices.placed(&tenant, &device).await?))
}

/// Changes a device; disabling closes its connection at once.
#[utoipa::path(patch, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path), IfMatchHeader), request_body = ChangeDeviceBody,
    responses((status = 200, description = "The device", body = DeviceView,
               headers(("ETag" = String, description = "The object's state, for `If-None-Match` and `If-Match`")))))]
pub async fn change_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    IfMatch(expected): IfMatch,
    ApiJson(body): ApiJson<ChangeDeviceBody>,
) -> Result<Tagged<DeviceView>, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesOperate, &tenant, &device).await?;
    let ChangeDeviceBody { name, enabled, labels, profile } = body;
    let change = DeviceChange { name, enabled, labels, profile, expected };
    devices.change(who, &tenant, &device, change).await?;
    Ok(tagged(devices.placed(&tenant, &device).await?))
}

/// Moves a device to a site, from the one where it was.
#[utoipa::path(put, path = "/api/v1/tenants/{tenant}/devices/{device}/site", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    request_body = DeviceSiteBody, responses((status = 200, description = "The device", body = DeviceView)))]
pub async fn set_device_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    ApiJson(body): ApiJson<DeviceSiteBody>,
) -> Result<Json<DeviceView>, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    Ok(Json(devices.move_device(who, &tenant, &device, Some(body.site)).await?.into()))
}

/// Takes a device away from its site.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/devices/{device}/site", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 200, description = "The device", body = DeviceView)))]
pub async fn clear_device_site(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<Json<DeviceView>, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    Ok(Json(devices.move_device(who, &tenant, &device, None).await?.into()))
}

/// Deletes a device and revokes its certificates; stored readings stay until their retention ends.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path), IfMatchHeader),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    devices.delete(who, &tenant, &device, &expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a foreign device a token, in place of the one before; the secret is shown once.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/devices/{device}/token", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 201, description = "Made", body = DeviceTokenView)))]
pub async fn create_device_token(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<(StatusCode, Json<DeviceTokenView>), ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    let token = devices.create_token(who, &tenant, &device).await?;
    Ok((StatusCode::CREATED, Json(DeviceTokenView { username: format!("{tenant}/{device}"), token })))
}

/// Takes the device's token away.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/devices/{device}/token", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 204, description = "Gone")))]
pub async fn delete_device_token(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<StatusCode, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    devices.delete_token(who, &tenant, &device).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A device's certificates.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}/certificates", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path), PageQuery),
    responses((status = 200, description = "A page of certificates", body = Items<CertificateView>)))]
pub async fn list_certificates(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<CertificateView>>, ApiError> {
    devices.admit(&caller.principal, Permission::DevicesRead, &tenant, &device).await?;
    let page = query.page()?;
    let rows = devices.certificates(&tenant, &device, &page).await?;
    Ok(Json(page.items(rows, |row| row.serial.clone(), CertificateView::from)))
}

/// Revokes a certificate; a connection that stands on it is closed.
#[utoipa::path(post, path = "/api/v1/tenants/{tenant}/devices/{device}/certificates/{serial}/revoke", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path), ("serial" = String, Path)),
    responses((status = 200, description = "The certificate", body = CertificateView)))]
pub async fn revoke_certificate(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device, serial)): ApiPath<(TenantId, DeviceId, String)>,
) -> Result<Json<CertificateView>, ApiError> {
    let who = devices.admit(&caller.principal, Permission::DevicesWrite, &tenant, &device).await?;
    Ok(Json(devices.revoke_certificate(who, &tenant, &device, serial).await?.into()))
}
