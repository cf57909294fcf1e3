//! Enrolment: POST the claim's token and a signing request, get the certificate.

use super::claim::Claim;
use super::exchange::{Answer, EXCHANGE_TIMEOUT, Endpoint, Listener, ask};
use super::keys::{self, KeyError};
use super::pin::PinnedCa;
use super::store::{self, Identity, StoreError};
use crate::clock::SharedClock;
use crate::tls::{self, TlsError};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Why enrolment or renewal failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No connection, or it broke: try again.
    #[error("cannot reach {host}:{port}")]
    Connect {
        /// The listener's host.
        host: String,
        /// The listener's port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP exchange broke: try again with the same key.
    #[error("the exchange with the server broke")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer came in time.
    #[error("no answer within {} s", EXCHANGE_TIMEOUT.as_secs())]
    Timeout,
    /// The claim needs a person's approval: the same key asks again.
    #[error("enrolment waits for approval, the server says to ask again in {retry_after_s} s")]
    Pending {
        /// When.
        retry_after_s: u64,
    },
    /// The server refused.
    #[error("the server refused ({status}): {reason}")]
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
            Self::Connect { .. } | Self::Http(_) | Self::Timeout | Self::Pending { .. } => true,
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
    let verifier = PinnedCa::new(claim.ca_spki_sha256, tls::provider());
    let config = tls::client_with_verifier(Arc::new(verifier), clock)?;
    let listener = Listener { host: claim.host.clone(), port: claim.port };
    let answer = ask(&listener, "/api/v1/enroll", &question, config).await?;
    let ca = tls::certificates(&answer.ca_pem, "the CA in the answer")?;
    if !ca.iter().any(|ca| keys::spki_sha256(ca).is_ok_and(|hash| hash == claim.ca_spki_sha256)) {
        return Err(EnrollError::Answer("its CA is not the one that the claim names".into()));
    }
    let identity = identity_of(answer, &listener, &key_pem, store::KEY_FILE)?;
    Ok(store::put_in_force(dir, identity)?)
}

/// Checks that an answer is usable with a key. Where it says nothing of the listener, that stays what it was.
pub(super) fn identity_of(
    answer: Answer,
    listener: &Listener,
    key_pem: &str,
    key_file: &str,
) -> Result<Identity, EnrollError> {
    let wrong = |why: &str| EnrollError::Answer(why.to_owned());
    let chain = tls::certificates(&answer.certificate_pem, "the certificate in the answer")?;
    let own = chain.first().ok_or_else(|| wrong("it holds no certificate"))?;
    if !keys::belongs_to(own, key_pem)? {
        return Err(wrong("the certificate is for another key"));
    }
    let endpoint = answer.mqtt.unwrap_or(Endpoint { host: None, port: MQTT_PORT_DEFAULT });
    Ok(Identity {
        tenant: answer.tenant,
        device: answer.device,
        server_time_us: answer.server_time_us.or(keys::validity_us(own).map(|(from, _)| from)).unwrap_or(0),
        mqtt_host: answer.mqtt_host.or(endpoint.host).unwrap_or_else(|| listener.host.clone()),
        mqtt_port: answer.mqtt_port.unwrap_or(endpoint.port),
        enroll_host: Some(listener.host.clone()),
        enroll_port: Some(answer.enroll_port.unwrap_or(listener.port)),
        key_file: key_file.to_owned(),
        spent_key_sha256: None,
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
    })
}
