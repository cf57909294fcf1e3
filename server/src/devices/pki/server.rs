//! The certificate of the TLS listeners as it lies in its files, beside the CAs': to read and to check, not to sign.
//!
//! [`super::Pki`] writes the files and reads them through this; a gateway on another server's registry reads only, and
//! needs no key but the listeners' own.

use super::authorities::{self, Held, STATE_FILE};
use super::{PkiError, content, read};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::{GeneralName, X509Certificate};

/// The server's own certificate with its key. Not `Debug`: the key stands in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerPem {
    /// The certificate and its CA, leaf first.
    pub chain_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// When a third of its life is left: it is renewed then.
    pub due_us: i64,
    /// Every CA whose device certificates are accepted.
    pub devices_pem: String,
}

/// Where the server's certificate lies, and the CAs one of which must have signed it.
pub struct ServerFiles {
    dir: PathBuf,
    state: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// What the certificate must be for, sorted; `None`: whatever it is for.
    hosts: Option<Vec<String>>,
}

impl ServerFiles {
    /// Reads the CAs' certificates in a directory of `Pki`'s; their keys stay untouched.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        Self::with_hosts(dir, None)
    }

    pub(super) fn with_hosts(dir: &Path, hosts: Option<&[String]>) -> Result<Self, PkiError> {
        authorities::held(dir)?;
        let hosts = hosts.map(|hosts| {
            let mut hosts = hosts.to_vec();
            hosts.sort();
            hosts
        });
        let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
        Ok(Self { dir: dir.to_owned(), state: dir.join(STATE_FILE), certificate, key, hosts })
    }

    /// The files of the certificate and its key, and of the CAs' state.
    #[must_use]
    pub fn paths(&self) -> [&Path; 3] {
        [&self.certificate, &self.key, &self.state]
    }

    /// Reads certificate and key from their files.
    ///
    /// # Errors
    /// A file cannot be read, or devices would not accept what it holds: not signed by the CA, past its time, for
    /// other hosts, or with another key.
    pub fn load(&self, now_us: i64) -> Result<ServerPem, PkiError> {
        let held = authorities::held(&self.dir)?;
        let (chain_pem, key_pem) = (read(&self.certificate)?, read(&self.key)?);
        let refuse = content::<String>(&self.certificate, "certificate that devices accept");
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
        let chain = chain.map_err(|error| refuse(error.to_string()))?;
        let [leaf, between @ ..] = &chain[..] else { return Err(refuse("it is empty".into())) };
        verify(&held, leaf, between, now_us).map_err(|error| refuse(error.to_string()))?;
        let (_, leaf) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| refuse(error.to_string()))?;
        let names = host_names(&leaf);
        if let Some(wanted) = self.hosts.as_ref().filter(|wanted| **wanted != names) {
            return Err(refuse(format!("it is for {}, not for {}", names.join(", "), wanted.join(", "))));
        }
        let key = KeyPair::from_pem(&key_pem).map_err(content(&self.key, "private key"))?;
        if key.subject_public_key_info() != leaf.public_key().raw {
            let refuse = content::<&str>(&self.key, "key of the server's certificate");
            return Err(refuse("the certificate has another"));
        }
        let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let due_us = (to - (to - from) / 3).saturating_mul(1_000_000);
        Ok(ServerPem { chain_pem, key_pem, due_us, devices_pem: held.pem() })
    }
}

fn verify(
    held: &Held,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now_us: i64,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for anchor in &held.trusted {
        roots.add(anchor.der.clone())?;
    }
    let now = UnixTime::since_unix_epoch(Duration::from_micros(u64::try_from(now_us).unwrap_or(0)));
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let leaf = ParsedCertificate::try_from(leaf)?;
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, between, now, algorithms)
}

/// The hosts that a certificate is for, sorted.
fn host_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for found in &extension.value.general_names {
            match found {
                GeneralName::DNSName(host) => names.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                _ => {}
            }
        }
    }
    names.sort();
    names
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|four| IpAddr::from(four).to_string()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|sixteen| IpAddr::from(sixteen).to_string()),
        _ => None,
    }
}
