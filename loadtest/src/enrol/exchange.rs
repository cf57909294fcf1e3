//! One enrolment as a device does it: a key of its own, a request for a certificate, POST /api/v1/enroll over TLS with
//! the server that the claim pins, and a look at what came back.
//!
//! `enrol` calls it on its threads. Promise: no secret is sent before the server proved that its authority has the
//! pinned key; an exchange ends within [`EXCHANGE_TIME_MAX`] and holds at most [`ANSWER_BYTES_MAX`]; one that may pass
//! is tried [`TRIES_MAX`] times with the same key, so a lost answer costs no further use of the claim.

use super::claim::{Claim, key_sha256};
use crate::observe::http::{self, Unread, read_body, read_head};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConnection, StreamOwned};
use serde::Deserialize;
use serde_json::json;
use std::io::{self, BufRead, BufReader, Write};
use std::time::{Duration, Instant};

/// The longest exchange.
pub(crate) const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(30);
/// The largest answer, without its head.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How often an exchange is made before it counts as failed.
pub(crate) const TRIES_MAX: u32 = 6;
/// Before the second try; twice as long before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// What of a refusal's text is shown.
const REASON_CHARS_MAX: usize = 300;

/// Why a device got no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// Nobody listens there.
    #[error("cannot reach the enrolment listener {address}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    /// The server is another one, or somebody stands between.
    #[error(
        "{address} is not the server of the claim: its authority's key is not the one that the claim names"
    )]
    Pin { address: String },
    /// TLS cannot be agreed upon, or the certificate is not good for another reason.
    #[error("no TLS with {address}")]
    Tls {
        address: String,
        #[source]
        source: rustls::Error,
    },
    /// The connection ended, or took too long.
    #[error("the exchange with {address} broke")]
    Broken {
        address: String,
        #[source]
        source: io::Error,
    },
    /// No HTTP, or more of it than is held.
    #[error("{address} gives no answer of HTTP/1.1: {why}")]
    Malformed { address: String, why: &'static str },
    /// The server's word, and what can be done about it.
    #[error("the server refuses the claim ({status}): {reason}{advice}")]
    Refused { status: u16, reason: String, advice: &'static str },
    /// It is not what was asked for.
    #[error("the server's answer is not usable: {0}")]
    Answer(&'static str),
    /// No key or request can be made.
    #[error("cannot make a key and a request")]
    Key(#[from] rcgen::Error),
}

impl ExchangeError {
    /// Whether the same exchange may succeed a little later. A limit of the server does not pass so soon.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Pin { .. } | Self::Tls { .. } | Self::Malformed { .. } | Self::Answer(_) | Self::Key(_) => {
                false
            }
        }
    }

    /// Whether the server refuses because there is such a device already.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// A device that asks for a certificate.
pub(crate) struct Applicant<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) device: &'a str,
    key: KeyPair,
    csr_pem: String,
}

/// What it gets.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) ca_pem: String,
}

impl<'a> Applicant<'a> {
    /// Makes its key (P-256) and its request.
    ///
    /// # Errors
    /// The library cannot.
    pub(crate) fn new(tenant: &'a str, device: &'a str) -> Result<Self, ExchangeError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device);
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { tenant, device, key, csr_pem })
    }

    /// Spends a use of the claim; at `address` instead of the claim's own where one is given.
    ///
    /// # Errors
    /// As [`ExchangeError`] tells; those that may pass were tried [`TRIES_MAX`] times.
    pub(crate) fn apply(&self, claim: &Claim, address: Option<&str>) -> Result<Issued, ExchangeError> {
        let mut delay = RETRY_DELAY;
        for _ in 1..TRIES_MAX {
            match self.exchange(claim, address) {
                Err(error) if error.is_passing() => std::thread::sleep(delay),
                other => return other,
            }
            delay *= 2;
        }
        self.exchange(claim, address)
    }

    fn exchange(&self, claim: &Claim, address: Option<&str>) -> Result<Issued, ExchangeError> {
        let own = if claim.host.contains(':') { format!("[{}]", claim.host) } else { claim.host.clone() };
        let own = format!("{own}:{}", claim.port);
        let address = address.unwrap_or(&own);
        let broken = |source: io::Error| broken(address, source);
        let deadline = Instant::now() + EXCHANGE_TIME_MAX;
        let stream = http::open_stream(address, deadline)
            .map_err(|source| ExchangeError::Connect { address: address.to_owned(), source })?;
        let name = ServerName::try_from(claim.host.clone())
            .map_err(|_| ExchangeError::Answer("the claim's host is no name of a server"))?;
        let session = ClientConnection::new(claim.tls.clone(), name)
            .map_err(|source| ExchangeError::Tls { address: address.to_owned(), source })?;
        let mut stream = StreamOwned::new(session, stream);
        let body = json!({
            "claim_token": claim.token, "csr_pem": self.csr_pem, "device_name": self.device,
        })
        .to_string();
        let length = body.len();
        let request = format!(
            "POST /api/v1/enroll HTTP/1.1\r\nHost: {own}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // The handshake comes first: before it has verified the server nothing of this is sent.
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(broken)?;
        let answer = read_answer(&mut BufReader::new(stream)).map_err(|error| match error {
            Unread::Io(source) => broken(source),
            Unread::Malformed(why) => ExchangeError::Malformed { address: address.to_owned(), why },
        })?;
        self.issued(&answer, claim)
    }

    fn issued(&self, answer: &Answer, claim: &Claim) -> Result<Issued, ExchangeError> {
        if !matches!(answer.status, 200 | 201) {
            return Err(answer.refusal());
        }
        let view: View = serde_json::from_slice(&answer.body)
            .map_err(|_| ExchangeError::Answer("it is other JSON than documented"))?;
        if view.tenant != self.tenant || view.device != self.device {
            return Err(ExchangeError::Answer("it is for another device"));
        }
        if !certificates(&view.ca_pem).iter().any(|found| key_sha256(found) == Some(claim.pin)) {
            return Err(ExchangeError::Answer("its authority is not the one that the claim names"));
        }
        let chain = certificates(&view.certificate_pem);
        let own = chain.first().and_then(|own| ParsedCertificate::try_from(own).ok());
        let own = own.ok_or(ExchangeError::Answer("it holds no certificate"))?;
        if own.subject_public_key_info().as_ref() != self.key.subject_public_key_info() {
            return Err(ExchangeError::Answer("the certificate is for another key"));
        }
        let key_pem = self.key.serialize_pem();
        Ok(Issued { certificate_pem: view.certificate_pem, key_pem, ca_pem: view.ca_pem })
    }
}

#[derive(Deserialize)]
struct View {
    tenant: String,
    device: String,
    certificate_pem: String,
    ca_pem: String,
}

/// The certificates of a PEM text; none of it where one is broken.
fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap_or_default()
}

/// What a failed read or write of a connection says: what TLS found stands inside.
fn broken(address: &str, source: io::Error) -> ExchangeError {
    let address = address.to_owned();
    match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            ExchangeError::Pin { address }
        }
        Some(error) => ExchangeError::Tls { address, source: error.clone() },
        None => ExchangeError::Broken { address, source },
    }
}

struct Answer {
    status: u16,
    /// The server counts wrong claims by address, and tells when it counts no longer.
    locked: bool,
    body: Vec<u8>,
}

impl Answer {
    fn refusal(&self) -> ExchangeError {
        let text = String::from_utf8_lossy(&self.body);
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let reason = problem["detail"].as_str().unwrap_or(text.trim());
        let advice = match (self.status, self.locked) {
            (429, true) => "; raise enroll.attempts_per_minute in its configuration, or wait a minute",
            (429, false) => "; raise quota.devices_max in its configuration",
            _ => "",
        };
        let reason = reason.chars().take(REASON_CHARS_MAX).collect();
        ExchangeError::Refused { status: self.status, reason, advice }
    }
}

/// Reads an answer to its end.
fn read_answer(stream: &mut impl BufRead) -> Result<Answer, Unread> {
    let head = read_head(stream)?;
    let (body, _) = read_body(stream, &head, ANSWER_BYTES_MAX)?;
    Ok(Answer { status: head.status, locked: head.retries, body })
}

#[cfg(test)]
mod tests;
