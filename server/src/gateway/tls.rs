//! TLS: the listener's settings and what a client certificate says.
//!
//! Called by `listener` and `identity`. TLS 1.3, and 1.2 for foreign devices; the key exchange groups
//! are set explicitly, since the default hybrid one costs 2.5 times the bytes of a handshake.
//! Client certificates are optional (tokens come over TLS too) and, where given, must be signed by the
//! device authority and in time: rustls refuses the others during the handshake.

use super::known::KnownCertificates;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use std::sync::{Arc, PoisonError, RwLock};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Session tickets a TLS 1.3 client gets: one is enough for its next connect.
const TICKETS: usize = 1;

/// Why the TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text without what it should hold.
    #[error("{what} is not valid PEM")]
    Pem {
        /// Which of the texts.
        what: &'static str,
        /// The parser's reason.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The device authority's certificate cannot verify anything.
    #[error("device authority cannot be used")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Certificate and key do not fit, or are not supported.
    #[error("server certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

/// The cryptography of every TLS endpoint of the server: aws-lc-rs with X25519 and P-256 only.
///
/// TLS 1.3 goes without AES-256: clients that offer it first would have every handshake hashed with
/// SHA-384, which took a tenth of its time; SHA-256 has instructions of its own.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    let mut provider = CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() };
    provider.cipher_suites.retain(|suite| suite.suite() != CipherSuite::TLS13_AES_256_GCM_SHA384);
    Arc::new(provider)
}

/// The certificate that the listeners show; another one may be put in its place while they listen. A session that
/// a client resumes shows none: it goes on with what it was begun with.
#[derive(Debug)]
pub struct ServerCertificate {
    shown: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Takes chain and key from PEM texts.
    ///
    /// # Errors
    /// Names the text at fault; they do not fit together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { shown: RwLock::new(certified(chain_pem, key_pem)?) }))
    }

    /// Shows another one from the next handshake on. Connections that are up do not notice.
    ///
    /// # Errors
    /// As [`Self::from_pem`]; the old one stays.
    pub fn replace(&self, chain_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        let next = certified(chain_pem, key_pem)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.map_err(|source| TlsError::Pem { what, source })
}

fn certified(chain_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("server certificate", chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "server key", source })?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Certificate)?;
    Ok(Arc::new(certified))
}

impl KnownCertificates {
    /// Accepts what the authorities of a PEM text signed.
    ///
    /// # Errors
    /// Names what is at fault.
    pub fn from_pem(device_authorities: &str) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self::new(verifier(device_authorities)?)))
    }

    /// Puts other authorities in force, for handshakes from now on.
    ///
    /// # Errors
    /// As [`Self::from_pem`]; the old ones stay.
    pub fn replace_pem(&self, device_authorities: &str) -> Result<(), TlsError> {
        self.replace(verifier(device_authorities)?);
        Ok(())
    }
}

fn verifier(device_authorities: &str) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("device authority", device_authorities)? {
        roots.add(certificate).map_err(|source| TlsError::Authority(source.into()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|source| TlsError::Authority(source.into()))
}

/// Builds the MQTT listener's settings: the server's certificate, and whose device certificates it lets in.
///
/// # Errors
/// Names what is at fault.
pub fn server_config(
    certificate: Arc<ServerCertificate>,
    devices: Arc<KnownCertificates>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(devices)
        .with_cert_resolver(certificate);
    // Tickets carry the client's certificate, so a resumed session is identified and checked as any.
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Certificate)?;
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

/// What the gateway reads from a verified client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerCertificate {
    /// The first SAN URI `muster://tenant/device`, without the scheme.
    pub(crate) name: Option<Box<str>>,
    /// The serial number's bytes.
    pub(crate) serial: Box<[u8]>,
    /// A resumed session is not verified again, so its owner checks this on every CONNECT.
    pub(crate) expires_at_us: i64,
}

impl PeerCertificate {
    /// Reads a certificate that rustls verified; `None` where it does not parse all the same.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let name = names.and_then(|names| {
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix("muster://").map(Into::into),
                _ => None,
            })
        });
        let expires_at_us = certificate.validity().not_after.timestamp().saturating_mul(1_000_000);
        Some(Self { name, serial: certificate.raw_serial().into(), expires_at_us })
    }
}
