//! The one TLS setup: aws-lc-rs, TLS 1.3, key exchange X25519 or P-256, certificates checked at the agent's time.
//!
//! Called by `identity` (pinned CA) and `uplink` (the enrolment's CA and the device's certificate).

use crate::clock::{SharedClock, TlsTime};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// PEM that holds no certificate or key.
    #[error("{what} is no PEM of that kind")]
    Pem {
        /// What was read.
        what: &'static str,
    },
    /// The library refused it.
    #[error("TLS setup")]
    Rustls(#[from] rustls::Error),
}

/// The crypto provider. The default hybrid key exchange costs 2.5 times the bytes of a handshake, so the
/// groups are set here.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

/// The certificates of a PEM text.
///
/// # Errors
/// None is in it.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    parsed.ok().filter(|list| !list.is_empty()).ok_or(TlsError::Pem { what })
}

/// A client that trusts `ca_pem` and shows a certificate where it has one.
///
/// # Errors
/// The PEM texts do not hold what they should.
pub fn client(
    ca_pem: &str,
    own: Option<(&str, &str)>,
    clock: SharedClock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "the CA")? {
        roots.add(certificate)?;
    }
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate_pem, key_pem)) => {
            let chain = certificates(certificate_pem, "the device's certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes());
            let key = key.map_err(|_| TlsError::Pem { what: "the device's key" })?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    Ok(Arc::new(config))
}

/// A client whose server is checked by `verifier`, without a certificate of its own.
///
/// # Errors
/// The library refuses.
pub fn client_with_verifier(
    verifier: Arc<dyn ServerCertVerifier>,
    clock: SharedClock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
