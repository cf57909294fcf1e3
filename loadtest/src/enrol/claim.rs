//! Claims: made and deleted through the admin API, read as a device reads them, and the TLS that they allow.
//!
//! `enrol` makes them, `exchange` spends them. `muster-claim:<host>:<port>:<token>:<SHA-256 of the CA's key>` is read
//! here by a parser of our own, as the documentation tells it: this program shares no code with server or agent.

use crate::identity::provider;
use crate::observe::Access;
use crate::observe::http::{Client, HttpError};
use anyhow::{Context, Result};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Keys that one claim takes: the most that the API allows.
pub(crate) const USES_MAX: u32 = 10_000;
/// How long a claim lives that nobody deletes.
const LIFE_S: u32 = 2 * 3_600;

/// A claim that was made.
pub(crate) struct Claim {
    id: String,
    /// Name or address in the server's certificate.
    pub(crate) host: String,
    /// The enrolment listener's.
    pub(crate) port: u16,
    /// The secret.
    pub(crate) token: String,
    /// SHA-256 of the authority's public key.
    pub(crate) pin: [u8; 32],
    /// TLS with a server whose authority has that key.
    pub(crate) tls: Arc<ClientConfig>,
}

impl Claim {
    /// Makes a claim for `uses` new devices, or for the one device that is named.
    ///
    /// # Errors
    /// The server refuses, or its claim is none.
    pub(crate) fn make(
        client: &mut Client,
        access: &Access,
        uses: u32,
        device: Option<&str>,
    ) -> Result<Self> {
        let mut body = json!({ "uses_max": uses, "life_s": LIFE_S });
        if let Some(device) = device {
            body["device"] = json!(device);
        }
        let answer = client.post(&access.path("claims"), &body).map_err(|error| {
            let hint = match &error {
                HttpError::Refused { status: 429, .. } => {
                    "; quota.claims_max of its configuration bounds them"
                }
                _ => "",
            };
            anyhow::Error::new(error)
                .context(format!("the server makes no claim for the tenant {}{hint}", access.tenant))
        })?;
        let text = answer["claim"].as_str().context("the server answered no claim")?;
        let id = answer["details"]["id"].as_str().context("the server gave the claim no id")?;
        Self::parse(text, id)
    }

    fn parse(text: &str, id: &str) -> Result<Self> {
        let malformed = "the server's claim is malformed";
        let mut parts = text.strip_prefix("muster-claim:").context(malformed)?.rsplitn(4, ':');
        let mut next = || parts.next().filter(|part| !part.is_empty()).context(malformed);
        let (hash, token, port, host) = (next()?, next()?, next()?, next()?);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let mut pin = [0; 32];
        hex::decode_to_slice(hash, &mut pin).context(malformed)?;
        Ok(Self {
            id: id.to_owned(),
            host: host.to_owned(),
            port: port.parse().context(malformed)?,
            token: token.to_owned(),
            pin,
            tls: Arc::new(pinned(pin)?),
        })
    }

    /// Takes the claim back.
    pub(crate) fn delete(&self, client: &mut Client, access: &Access) {
        // One that stays is known to nobody but this process, and ends by itself.
        let _ = client.call("DELETE", &access.path(&format!("claims/{}", self.id)), None);
    }
}

/// TLS that trusts the authority with the pinned key. Every handshake is a full one, as a device's first.
fn pinned(pin: [u8; 32]) -> Result<ClientConfig> {
    let provider = provider();
    let verifier = Arc::new(Pinned { pin, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo); none where it is no certificate.
pub(crate) fn key_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info()).into())
}

/// Verifies a server by the one certificate in its chain that has the pinned key: that is the only authority. Name,
/// time and signatures are checked as ever.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|found| key_sha256(found) == Some(self.pin));
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The claim of a server on this machine.
    pub(crate) fn claim(port: u16, pin: [u8; 32]) -> Claim {
        Claim::parse(&format!("muster-claim:localhost:{port}:mcl_token:{}", hex::encode(pin)), "c-1").unwrap()
    }

    #[test]
    fn a_claim_is_read_and_what_is_none_is_refused() {
        let hash = "ab".repeat(32);
        let claim = Claim::parse(&format!("muster-claim:[::1]:8443:mcl_t:{hash}"), "c-1").unwrap();
        assert_eq!((claim.host.as_str(), claim.port, claim.token.as_str()), ("::1", 8443, "mcl_t"));
        assert_eq!(claim.pin, [0xab; 32]);
        for bad in [
            format!("claim:h:1:t:{hash}"),
            format!("muster-claim:1:t:{hash}"),
            format!("muster-claim::1:t:{hash}"),
            format!("muster-claim:h:99999:t:{hash}"),
            format!("muster-claim:h:1::{hash}"),
            "muster-claim:h:1:t:abab".to_owned(),
        ] {
            assert!(Claim::parse(&bad, "c-1").is_err(), "{bad}");
        }
    }
}
