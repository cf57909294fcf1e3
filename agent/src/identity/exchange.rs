//! One HTTPS exchange with the server's enrolment listener: what enrolment and renewal share.

use super::enroll::EnrollError;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use muster_wire::{DeviceId, TenantId};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest that one exchange may take.
pub(super) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What of a refusal's text is shown.
const REASON_CHARS_MAX: usize = 300;
/// The shortest and the longest wait that a server may ask for.
const RETRY_AFTER_S: (u64, u64) = (1, 3_600);

/// An identity as the server tells it.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) device: DeviceId,
    pub(super) tenant: TenantId,
    pub(super) certificate_pem: String,
    pub(super) ca_pem: String,
    pub(super) mqtt_host: Option<String>,
    pub(super) mqtt_port: Option<u16>,
    pub(super) mqtt: Option<Endpoint>,
    pub(super) enroll_port: Option<u16>,
    pub(super) server_time_us: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct Endpoint {
    pub(super) host: Option<String>,
    pub(super) port: u16,
}

/// The server has taken the request down, and a person decides.
#[derive(Deserialize)]
struct Pending {
    retry_after_s: u64,
}

/// Where the enrolment listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// A name or address in the server's certificate.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Posts a question, and reads the identity in the answer.
pub(super) async fn ask(
    listener: &Listener,
    path: &str,
    question: &impl Serialize,
    config: Arc<ClientConfig>,
) -> Result<Answer, EnrollError> {
    let body = serde_json::to_vec(question).map_err(|error| EnrollError::Answer(error.to_string()))?;
    let post = post(listener, path, body, config);
    let (status, body) =
        tokio::time::timeout(EXCHANGE_TIMEOUT, post).await.map_err(|_| EnrollError::Timeout)??;
    match status {
        200 | 201 => serde_json::from_slice(&body).map_err(|error| EnrollError::Answer(error.to_string())),
        202 => {
            let pending: Pending =
                serde_json::from_slice(&body).map_err(|error| EnrollError::Answer(error.to_string()))?;
            let (min, max) = RETRY_AFTER_S;
            Err(EnrollError::Pending { retry_after_s: pending.retry_after_s.clamp(min, max) })
        }
        _ => {
            let reason = String::from_utf8_lossy(&body).chars().take(REASON_CHARS_MAX).collect();
            Err(EnrollError::Refused { status, reason })
        }
    }
}

/// An answer over the bound is not looked at, its status is.
fn too_long(status: u16) -> EnrollError {
    let reason = format!("expected an answer of at most {ANSWER_BYTES_MAX} bytes, found more");
    if (200..300).contains(&status) {
        EnrollError::Answer(reason)
    } else {
        EnrollError::Refused { status, reason }
    }
}

async fn post(
    listener: &Listener,
    path: &str,
    body: Vec<u8>,
    config: Arc<ClientConfig>,
) -> Result<(u16, Bytes), EnrollError> {
    let Listener { host, port } = listener;
    let broken = |source| EnrollError::Connect { host: host.clone(), port: *port, source };
    let name = ServerName::try_from(host.clone())
        .map_err(|error| broken(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
    let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(broken)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(broken)?;
    let http = |error: hyper::Error| EnrollError::Http(error.into());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let driver = tokio::spawn(connection);
    let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let request = Request::post(path)
        .header("host", format!("{shown}:{port}"))
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
