//! `/api/v1/authorities`: the certificate authorities of the whole server.

use crate::devices::service::{AuthorityView, Devices, Retire};
use crate::platform::http_kit::{ApiError, ApiJson};
use crate::tenants::Caller;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// A trusted authority, with what depends on it.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Authority {
    /// SHA-256 of its key, as hex: what claims name.
    key_sha256: String,
    /// Its certificate.
    certificate_pem: String,
    /// The server's own certificate comes from it.
    serves: bool,
    /// It signs devices' certificates.
    signs: bool,
    /// Devices whose newest certificate it signed.
    devices: i64,
    /// Open claims that name it.
    claims: i64,
}

/// The trusted authorities: one, or two while one follows the other.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Authorities {
    authorities: Vec<Authority>,
}

impl From<Vec<AuthorityView>> for Authorities {
    fn from(views: Vec<AuthorityView>) -> Self {
        let authority = |view: AuthorityView| Authority {
            key_sha256: hex::encode(view.anchor.key_sha256),
            certificate_pem: view.anchor.pem,
            serves: view.serves,
            signs: view.signs,
            devices: view.devices,
            claims: view.claims,
        };
        Self { authorities: views.into_iter().map(authority).collect() }
    }
}

/// How to retire.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetireBody {
    /// Also while devices or claims depend on it: its certificates are revoked, and the devices need new claims.
    #[serde(default)]
    force: bool,
}

/// The trusted authorities (system administrators only).
#[utoipa::path(get, path = "/api/v1/authorities", tag = "authorities",
    responses((status = 200, description = "The authorities", body = Authorities)))]
pub async fn list_authorities(
    State(devices): State<Devices>,
    caller: Caller,
) -> Result<Json<Authorities>, ApiError> {
    caller.require_platform()?;
    Ok(Json(devices.authorities().await?.into()))
}

/// Makes a second authority (system administrators only). Both are trusted; devices get their next certificates from it.
#[utoipa::path(post, path = "/api/v1/authorities/rotate", tag = "authorities",
    responses((status = 201, description = "The authorities", body = Authorities)))]
pub async fn rotate_authority(
    State(devices): State<Devices>,
    caller: Caller,
) -> Result<(StatusCode, Json<Authorities>), ApiError> {
    let who = caller.require_platform()?;
    Ok((StatusCode::CREATED, Json(devices.rotate_authority(who).await?.into())))
}

/// Ends the old authority (system administrators only); refused while devices or open claims depend on it.
#[utoipa::path(post, path = "/api/v1/authorities/retire", tag = "authorities", request_body = RetireBody,
    responses((status = 200, description = "The authorities", body = Authorities)))]
pub async fn retire_authority(
    State(devices): State<Devices>,
    caller: Caller,
    ApiJson(body): ApiJson<RetireBody>,
) -> Result<Json<Authorities>, ApiError> {
    let who = caller.require_platform()?;
    let retire = if body.force { Retire::Anyway } else { Retire::Unused };
    Ok(Json(devices.retire_authority(who, retire).await?.into()))
}
