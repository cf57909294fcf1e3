//! The device's key pair, its signing request, and the hash that claims pin.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use sha2::{Digest, Sha256};

/// Why a key or a certificate is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key cannot be made or read.
    #[error("device key is not usable")]
    Key(#[source] rcgen::Error),
    /// The signing request cannot be made.
    #[error("cannot make a signing request")]
    Request(#[source] rcgen::Error),
    /// Not an X.509 certificate.
    #[error("{what} is not a certificate")]
    Certificate {
        /// Which one.
        what: &'static str,
    },
}

/// A fresh P-256 key as PEM.
pub(super) fn generate() -> Result<String, KeyError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Key)?;
    Ok(pair.serialize_pem())
}

/// The PEM signing request of a key. The server decides the subject; the common name is a wish.
pub(super) fn signing_request(key_pem: &str, common_name: &str) -> Result<String, KeyError> {
    let pair = KeyPair::from_pem(key_pem).map_err(KeyError::Key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let request = params.serialize_request(&pair).map_err(KeyError::Request)?;
    request.pem().map_err(KeyError::Request)
}

/// Whether a certificate (DER) is for this key.
pub(super) fn belongs_to(certificate_der: &[u8], key_pem: &str) -> Result<bool, KeyError> {
    let pair = KeyPair::from_pem(key_pem).map_err(KeyError::Key)?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(|_| KeyError::Certificate { what: "the issued certificate" })?;
    Ok(certificate.public_key().raw == pair.subject_public_key_info())
}

/// From when and until when a certificate (DER) is good, microseconds since 1970.
pub(super) fn validity_us(certificate_der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der).ok()?;
    let us = |second: i64| second.checked_mul(1_000_000);
    let validity = certificate.validity();
    Some((us(validity.not_before.timestamp())?, us(validity.not_after.timestamp())?))
}

/// SHA-256 of a certificate's (DER) SubjectPublicKeyInfo.
///
/// # Errors
/// The bytes are no certificate.
pub fn spki_sha256(certificate_der: &[u8]) -> Result<[u8; 32], KeyError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der)
        .map_err(|_| KeyError::Certificate { what: "the CA" })?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}
