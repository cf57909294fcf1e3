//! The enrolment listener's routes: HTTPS with the server's certificate, no other credentials than the claim.

use super::service::Devices;
use crate::platform::http_kit::{ApiError, ApiJson};
use axum::Json;
use axum::extract::{ConnectInfo, Extension, State};
use axum::http::StatusCode;
use std::net::SocketAddr;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A claim and a request for a certificate.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollBody {
    /// The claim's secret: the fourth part of the claim string.
    claim_token: String,
    /// PKCS#10 in PEM, P-256. Only its key is used.
    csr_pem: String,
    /// The id that the device would like, where the claim names none.
    device_name: Option<String>,
}

/// The device's identity.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct EnrollView {
    tenant: String,
    device: String,
    /// The client certificate.
    certificate_pem: String,
    /// The CA that signed it, and the server's.
    ca_pem: String,
    mqtt_host: String,
    mqtt_port: u16,
}

/// The listener's routes.
pub fn routes() -> OpenApiRouter<Devices> {
    OpenApiRouter::new().routes(routes!(enroll))
}

/// Exchanges a claim for a client certificate. On the enrolment listener only. The same key may ask again.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "enrolment", request_body = EnrollBody, security(()),
    responses((status = 201, description = "The certificate", body = EnrollView)))]
pub async fn enroll(
    State(devices): State<Devices>,
    connection: Option<Extension<ConnectInfo<SocketAddr>>>,
    ApiJson(body): ApiJson<EnrollBody>,
) -> Result<(StatusCode, Json<EnrollView>), ApiError> {
    let peer =
        connection.map_or_else(String::new, |Extension(ConnectInfo(address))| address.ip().to_string());
    let name = body.device_name.as_deref();
    let enrolled = devices.enroll(&body.claim_token, &body.csr_pem, name, &peer).await?;
    let view = EnrollView {
        tenant: enrolled.tenant.to_string(),
        device: enrolled.device.to_string(),
        certificate_pem: enrolled.certificate_pem,
        ca_pem: enrolled.ca_pem,
        mqtt_host: enrolled.endpoints.host,
        mqtt_port: enrolled.endpoints.mqtt_port,
    };
    Ok((StatusCode::CREATED, Json(view)))
}
