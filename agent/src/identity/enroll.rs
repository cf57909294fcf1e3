//! One exchange: POST the claim's token and a signing request, get the certificate.

use super::claim::Claim;
use super::keys::{self, KeyError};
use super::pin::PinnedCa;
use super::store::{self, Identity, StoreError};
use crate::clock::SharedClock;
use crate::tls::{self, TlsError};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use muster_wire::{DeviceId, TenantId};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest an enrolment may take.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What of a refusal's text is shown.
const REASON_CHARS_MAX: usize = 300;

/// Why enrolment failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No connection, or it broke: try again.
    #[error("cannot reach {host}:{port}")]
    Connect {
        /// The claim's host.
        host: String,
        /// The claim's port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP exchange broke: try again with the same key.
    #[error("the exchange with the server broke")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// [`ENROLL_TIMEOUT`] passed.
    #[error("no answer within {} s", ENROLL_TIMEOUT.as_secs())]
    Timeout,
    /// The server refused.
    #[error("the server refused the claim ({status}): {reason}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("the server's answer is not usable: {0}")]
    Answer(String),
    /// The key or the request.
    #[error("device key")]
    Key(#[from] KeyError),
    /// TLS setup.
    #[error("TLS")]
    Tls(#[from] TlsError),
    /// The disk.
    #[error("identity store")]
    Store(#[from] StoreError),
}

impl EnrollError {
    /// Whether the same claim may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Http(_) | Self::Timeout => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Answer(_) | Self::Key(_) | Self::Tls(_) | Self::Store(_) => false,
        }
    }
}

#[derive(Serialize)]
struct Question<'a> {
    claim_token: &'a str,
    csr_pem: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_name: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    device: DeviceId,
    tenant: TenantId,
    certificate_pem: String,
    ca_pem: String,
    mqtt_host: Option<String>,
    mqtt_port: Option<u16>,
    mqtt: Option<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    host: Option<String>,
    port: u16,
}

/// The port where the answer names none.
const MQTT_PORT_DEFAULT: u16 = 8883;

/// Enrols with a claim and keeps the identity in `dir`. Repeatable: the key stays the same.
///
/// # Errors
/// See [`EnrollError::is_passing`] for those worth another try.
pub async fn enroll(
    dir: &Path,
    claim: &Claim,
    device_name: Option<&str>,
    clock: SharedClock,
) -> Result<Identity, EnrollError> {
    let key_pem = store::load_or_create_key(dir)?;
    let csr_pem = keys::signing_request(&key_pem, device_name.unwrap_or("muster-agent"))?;
    let question = Question { claim_token: &claim.token, csr_pem: &csr_pem, device_name };
    let body = serde_json::to_vec(&question).map_err(|error| EnrollError::Answer(error.to_string()))?;
    let exchange = exchange(claim, body, clock);
    let (status, body) =
        tokio::time::timeout(ENROLL_TIMEOUT, exchange).await.map_err(|_| EnrollError::Timeout)??;
    if !is_success(status) {
        let reason = String::from_utf8_lossy(&body).chars().take(REASON_CHARS_MAX).collect();
        return Err(EnrollError::Refused { status, reason });
    }
    let answer = serde_json::from_slice(&body).map_err(|error| EnrollError::Answer(error.to_string()))?;
    let identity = check(answer, claim, &key_pem)?;
    store::save(dir, &identity)?;
    Ok(identity)
}

fn is_success(status: u16) -> bool {
    status == 200 || status == 201
}

/// An answer over the bound is not looked at, its status is.
fn too_long(status: u16) -> EnrollError {
    let reason = format!("expected an answer of at most {ANSWER_BYTES_MAX} bytes, found more");
    if is_success(status) { EnrollError::Answer(reason) } else { EnrollError::Refused { status, reason } }
}

fn check(answer: Answer, claim: &Claim, key_pem: &str) -> Result<Identity, EnrollError> {
    let wrong = |why: &str| EnrollError::Answer(why.to_owned());
    let ca = tls::certificates(&answer.ca_pem, "the CA in the answer")?;
    if !ca.iter().any(|ca| keys::spki_sha256(ca).is_ok_and(|hash| hash == claim.ca_spki_sha256)) {
        return Err(wrong("its CA is not the one that the claim names"));
    }
    let chain = tls::certificates(&answer.certificate_pem, "the certificate in the answer")?;
    let own = chain.first().ok_or_else(|| wrong("it holds no certificate"))?;
    if !keys::belongs_to(own, key_pem)? {
        return Err(wrong("the certificate is for another key"));
    }
    let endpoint = answer.mqtt.unwrap_or(Endpoint { host: None, port: MQTT_PORT_DEFAULT });
    Ok(Identity {
        tenant: answer.tenant,
        device: answer.device,
        server_time_us: keys::issued_at_us(own).unwrap_or(0),
        mqtt_host: answer.mqtt_host.or(endpoint.host).unwrap_or_else(|| claim.host.clone()),
        mqtt_port: answer.mqtt_port.unwrap_or(endpoint.port),
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
    })
}

async fn exchange(claim: &Claim, body: Vec<u8>, clock: SharedClock) -> Result<(u16, Bytes), EnrollError> {
    let verifier = PinnedCa::new(claim.ca_spki_sha256, tls::provider());
    let config = tls::client_with_verifier(Arc::new(verifier), clock)?;
    let broken = |source| EnrollError::Connect { host: claim.host.clone(), port: claim.port, source };
    let name = ServerName::try_from(claim.host.clone())
        .map_err(|error| broken(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
    let stream = TcpStream::connect((claim.host.as_str(), claim.port)).await.map_err(broken)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(broken)?;
    let http = |error: hyper::Error| EnrollError::Http(error.into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let driver = tokio::spawn(connection);
    let host = if claim.host.contains(':') { format!("[{}]", claim.host) } else { claim.host.clone() };
    let request = Request::post("/api/v1/enroll")
        .header("host", format!("{host}:{}", claim.port))
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| EnrollError::Http(error.into()))?;
    let response = sender.send_request(request).await.map_err(http)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    driver.abort();
    match body {
        Ok(body) => Ok((status, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long(status)),
        Err(error) => Err(EnrollError::Http(error)),
    }
}
