//! The enrolment listener's routes: HTTPS with the server's certificate. A claim is the credential of an enrolment, the
//! device's certificate that of a renewal; the listener verifies it, and accepts that its time is over.

use super::service::Enrolled;
use super::service::{Devices, DevicesError, RETRY_AFTER_S};
use crate::platform::http_kit::{ApiError, ApiJson, PeerCertificate};
use axum::Json;
use axum::extract::{ConnectInfo, Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use muster_wire::ErrorCode;
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
    #[schema(max_length = 8192)]
    csr_pem: String,
    /// The id that the device would like, where the claim names none.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device_name: Option<String>,
}

/// A request for the next certificate.
#[derive(serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewBody {
    /// PKCS#10 in PEM, P-256; of a new key, or of the old one. Only its key is used.
    csr_pem: String,
}

/// The device's identity.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct EnrollView {
    tenant: String,
    device: String,
    /// The client certificate.
    certificate_pem: String,
    /// Every authority that the device must trust from now on, one behind the other: those that sign the certificates of
    /// the server, now and next.
    ca_pem: String,
    /// Where the device connects; also the host of enrolment and renewal.
    mqtt_host: String,
    mqtt_port: u16,
    /// The port of enrolment and renewal.
    enroll_port: u16,
    /// The end of the certificate's time, microseconds since 1970 (UTC).
    expires_at_us: i64,
    /// The server's time, microseconds since 1970 (UTC).
    server_time_us: i64,
}

impl From<Enrolled> for EnrollView {
    fn from(enrolled: Enrolled) -> Self {
        Self {
            tenant: enrolled.tenant.to_string(),
            device: enrolled.device.to_string(),
            certificate_pem: enrolled.certificate_pem,
            ca_pem: enrolled.ca_pem,
            mqtt_host: enrolled.endpoints.host,
            mqtt_port: enrolled.endpoints.mqtt_port,
            enroll_port: enrolled.endpoints.enroll_port,
            expires_at_us: enrolled.expires_at_us,
            server_time_us: enrolled.now_us,
        }
    }
}

/// The listener's routes.
pub fn routes() -> OpenApiRouter<Devices> {
    OpenApiRouter::new().routes(routes!(enroll)).routes(routes!(renew))
}

/// The claim needs a person's approval.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct PendingView {
    /// `pending`.
    #[schema(example = "pending")]
    state: &'static str,
    /// Ask again with the same key after so many seconds.
    retry_after_s: u64,
}

/// Exchanges a claim for a client certificate. On the enrolment listener only. The same key may ask again, and does so
/// where the claim needs approval.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "enrolment", request_body = EnrollBody, security(()),
    responses((status = 201, description = "The certificate", body = EnrollView),
              (status = 202, description = "A person has to decide", body = PendingView),
              (status = 410, description = "The claim is used up or past its time")))]
pub async fn enroll(
    State(devices): State<Devices>,
    connection: Option<Extension<ConnectInfo<SocketAddr>>>,
    ApiJson(body): ApiJson<EnrollBody>,
) -> Result<Response, ApiError> {
    let peer =
        connection.map_or_else(String::new, |Extension(ConnectInfo(address))| address.ip().to_string());
    let name = body.device_name.as_deref();
    match devices.enroll(&body.claim_token, &body.csr_pem, name, &peer).await {
        Ok(enrolled) => Ok((StatusCode::CREATED, Json(EnrollView::from(enrolled))).into_response()),
        Err(DevicesError::Waits) => {
            let head = [(header::RETRY_AFTER, RETRY_AFTER_S.to_string())];
            let view = PendingView { state: "pending", retry_after_s: RETRY_AFTER_S };
            Ok((StatusCode::ACCEPTED, head, Json(view)).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

/// Exchanges the client certificate of the connection, in time or past it, for the next one. On the enrolment listener
/// only. The same key may ask again; the old certificate stays good until its own end.
#[utoipa::path(post, path = "/api/v1/renew", tag = "enrolment", request_body = RenewBody, security(()),
    responses((status = 201, description = "The certificate", body = EnrollView)))]
pub async fn renew(
    State(devices): State<Devices>,
    peer: Option<Extension<PeerCertificate>>,
    ApiJson(body): ApiJson<RenewBody>,
) -> Result<(StatusCode, Json<EnrollView>), ApiError> {
    let Some(Extension(PeerCertificate(peer))) = peer else {
        let why = "renewal needs the device's certificate as the TLS client certificate";
        return Err(ApiError::new(ErrorCode::Unauthenticated, why));
    };
    let renewed = devices.renew(&peer, &body.csr_pem).await?;
    Ok((StatusCode::CREATED, Json(renewed.into())))
}
