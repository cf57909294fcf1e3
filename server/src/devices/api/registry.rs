//! `/api/v1/tenants/{tenant}/devices`.

use crate::devices::model::Labels;
use crate::devices::service::{DeviceChange, Devices, NewDevice};
use crate::devices::store::{CertificateRow, DeviceRow};
use crate::platform::http_kit::{ApiError, ApiJson, ApiPath, ApiQuery, Items, PageQuery};
use crate::tenants::{Caller, Permission};
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
    /// It has a device token (foreign devices).
    has_token: bool,
    /// Microseconds since 1970 (UTC).
    created_at_us: i64,
    /// When it last got a certificate by a claim; microseconds since 1970 (UTC).
    enrolled_at_us: Option<i64>,
}

impl From<DeviceRow> for DeviceView {
    fn from(row: DeviceRow) -> Self {
        let DeviceRow { device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us } = row;
        let (id, has_token) = (device.to_string(), token_sha256.is_some());
        Self { id, name, enabled, labels, has_token, created_at_us, enrolled_at_us }
    }
}

/// A new device.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeviceBody {
    /// 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or digit.
    #[schema(value_type = String)]
    id: DeviceId,
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: Labels,
}

/// What may change of a device; absent fields stay.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeDeviceBody {
    name: Option<String>,
    /// `false` closes its connection at once.
    enabled: Option<bool>,
    /// Replaces all labels.
    labels: Option<Labels>,
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

/// The tenant's devices.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices", tag = "devices",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of devices", body = Items<DeviceView>)))]
pub async fn list_devices(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<DeviceView>>, ApiError> {
    caller.require(Permission::DevicesRead, &tenant)?;
    let page = query.page()?;
    let rows = devices.list(&tenant, &page).await?;
    Ok(Json(page.items(rows, |row| row.device.to_string(), DeviceView::from)))
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
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    let NewDeviceBody { id: device, name, labels } = body;
    let row = devices.create(who, &tenant, NewDevice { device, name, labels }).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// One device.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 200, description = "The device", body = DeviceView)))]
pub async fn get_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<Json<DeviceView>, ApiError> {
    caller.require(Permission::DevicesRead, &tenant)?;
    Ok(Json(devices.get(&tenant, &device).await?.into()))
}

/// Changes a device; disabling closes its connection at once.
#[utoipa::path(patch, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    request_body = ChangeDeviceBody, responses((status = 200, description = "The device", body = DeviceView)))]
pub async fn change_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
    ApiJson(body): ApiJson<ChangeDeviceBody>,
) -> Result<Json<DeviceView>, ApiError> {
    let who = caller.require(Permission::DevicesOperate, &tenant)?;
    let ChangeDeviceBody { name, enabled, labels } = body;
    Ok(Json(devices.change(who, &tenant, &device, DeviceChange { name, enabled, labels }).await?.into()))
}

/// Deletes a device and revokes its certificates; stored readings stay until their retention ends.
#[utoipa::path(delete, path = "/api/v1/tenants/{tenant}/devices/{device}", tag = "devices",
    params(("tenant" = String, Path), ("device" = String, Path)),
    responses((status = 204, description = "Deleted")))]
pub async fn delete_device(
    State(devices): State<Devices>,
    caller: Caller,
    ApiPath((tenant, device)): ApiPath<(TenantId, DeviceId)>,
) -> Result<StatusCode, ApiError> {
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    devices.delete(who, &tenant, &device).await?;
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
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
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
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
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
    caller.require(Permission::DevicesRead, &tenant)?;
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
    let who = caller.require(Permission::DevicesWrite, &tenant)?;
    Ok(Json(devices.revoke_certificate(who, &tenant, &device, serial).await?.into()))
}
