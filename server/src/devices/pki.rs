//! The server's certificate authority: signs device certificates and the server's own.
//!
//! The service and `app.rs` call it. Files in `<data>/pki`: `ca.key` and `server.key` (mode 0600), `ca.pem`,
//! `server.pem` (leaf, then CA). Written to a temporary name, synced and renamed: a crash leaves the old file or the
//! new. A running server loads `server.pem` and `server.key` again when they change, and has a due one renewed.
//! Architecture invariant: a CA that cannot be read is an error, never a reason to make another, because every
//! device trusts this one. P-256 everywhere.

mod server;

pub use server::{ServerFiles, ServerPem};

use super::model::{CSR_BYTES_MAX, device_uri};
use crate::platform::secret::random_bytes;
use muster_wire::{DeviceId, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CA_DAYS: u32 = 20 * 365;
/// Certificates are valid from a little before now: a device's clock may be behind.
const BACKDATE_S: i64 = 3_600;
const DAY_S: i64 = 86_400;

/// Why the authority cannot open or sign.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold a {expected}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// The parser's reason.
        why: String,
    },
    /// One of key and certificate is missing: making a new pair would lock every device out.
    #[error("{present} is there but {missing} is not; restore it from a backup")]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// A signature failed.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

/// Why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// Over [`CSR_BYTES_MAX`].
    #[error("is larger than {CSR_BYTES_MAX} bytes")]
    TooLarge,
    /// Not PEM, not a request, or its signature does not fit its key.
    #[error("is not a PKCS#10 request in PEM with a valid signature")]
    Malformed,
    /// Another kind of key.
    #[error("must have a P-256 key")]
    Key,
}

/// A checked request: the key, and nothing else of what it asks.
pub struct CheckedCsr {
    key: rcgen::PublicKey,
    /// Identifies the key.
    pub spki_sha256: [u8; 32],
}

/// A signed device certificate.
#[derive(Clone, Debug)]
pub struct DeviceCertificate {
    /// Hex of the serial number's bytes, as they stand in the certificate.
    pub serial: String,
    /// The certificate.
    pub pem: String,
    /// From when it is valid.
    pub issued_at_us: i64,
    /// Until when.
    pub expires_at_us: i64,
}

/// The authority, and the files of the server's own certificate.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_spki_sha256: [u8; 32],
    files: ServerFiles,
    hosts: Vec<String>,
    server_days: u32,
}

impl Pki {
    /// Loads or makes the CA, and makes a server's certificate for `hosts` where there is none that is good.
    ///
    /// # Errors
    /// A file is unreadable, half there or not what it should be.
    pub fn open(dir: &Path, hosts: &[String], server_days: u32, now_us: i64) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(file(dir))?;
        let (ca_key_path, ca_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        match (ca_key_path.exists(), ca_path.exists()) {
            (false, false) => make_ca(&ca_key_path, &ca_path, now_us)?,
            (true, false) => finish_ca(&ca_key_path, &ca_path)?,
            (false, true) => finish_ca(&ca_path, &ca_key_path)?,
            (true, true) => {}
        }
        let key = KeyPair::from_pem(&read(&ca_key_path)?).map_err(content(&ca_key_path, "private key"))?;
        let ca_spki_sha256 = Sha256::digest(key.subject_public_key_info()).into();
        let files = ServerFiles::with_hosts(dir, Some(hosts))?;
        let issuer =
            Issuer::from_ca_cert_der(&files.ca_der, key).map_err(content(&ca_path, "CA certificate"))?;
        let pki = Self { issuer, ca_spki_sha256, files, hosts: hosts.to_vec(), server_days };
        match pki.server(now_us) {
            Ok(server) if now_us < server.due_us => {}
            Ok(_) => drop(pki.renew_server(now_us)?),
            Err(why) => {
                if pki.files.certificate.exists() {
                    tracing::warn!(error = %why, "server certificate is not used, another is made");
                }
                pki.renew_server(now_us)?;
            }
        }
        Ok(pki)
    }

    /// The CA's certificate in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.files.ca_pem()
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: what a claim pins.
    #[must_use]
    pub fn ca_spki_sha256(&self) -> &[u8; 32] {
        &self.ca_spki_sha256
    }

    /// The files of the server's certificate.
    #[must_use]
    pub fn files(&self) -> &ServerFiles {
        &self.files
    }

    /// Reads the server's certificate and key from their files.
    ///
    /// # Errors
    /// As [`ServerFiles::load`].
    pub fn server(&self, now_us: i64) -> Result<ServerPem, PkiError> {
        self.files.load(now_us)
    }

    /// Makes a new certificate and key for the server and writes their files.
    ///
    /// # Errors
    /// A file cannot be written, or the signature fails.
    pub fn renew_server(&self, now_us: i64) -> Result<ServerPem, PkiError> {
        let key = KeyPair::generate()?;
        let (mut params, _) = params(now_us, self.server_days);
        params.distinguished_name = name("muster-server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        for host in &self.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into()?),
            });
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&self.files.key, &key.serialize_pem(), 0o600)?;
        write(&self.files.certificate, &format!("{}{}", certificate.pem(), self.ca_pem()), 0o644)?;
        self.server(now_us)
    }

    /// Signs a checked request for a device. Only its key is taken over: names and uses are ours.
    ///
    /// # Errors
    /// The signature fails.
    pub fn sign_device(
        &self,
        csr: &CheckedCsr,
        tenant: &TenantId,
        device: &DeviceId,
        days: u32,
        now_us: i64,
    ) -> Result<DeviceCertificate, PkiError> {
        let (mut params, serial) = params(now_us, days);
        let uri = device_uri(tenant, device).try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.distinguished_name = name(device.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pem = params.signed_by(&csr.key, &self.issuer)?.pem();
        let life_us = i64::from(days) * DAY_S * 1_000_000;
        let expires_at_us = (now_us / 1_000_000) * 1_000_000 + life_us;
        Ok(DeviceCertificate { serial: hex::encode(serial), pem, issued_at_us: now_us, expires_at_us })
    }
}

/// Checks an untrusted request: size, form, signature, kind of key.
///
/// # Errors
/// Says what is off.
pub fn check_csr(pem: &str) -> Result<CheckedCsr, CsrError> {
    if pem.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLarge);
    }
    let csr = CertificateSigningRequestParams::from_pem(pem).map_err(|_| CsrError::Malformed)?;
    if *csr.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(CsrError::Key);
    }
    let spki_sha256 = Sha256::digest(csr.public_key.subject_public_key_info()).into();
    Ok(CheckedCsr { key: csr.public_key, spki_sha256 })
}

/// Lifetime and serial that every certificate gets.
fn params(now_us: i64, days: u32) -> (CertificateParams, [u8; 16]) {
    let now_s = now_us / 1_000_000;
    let at = |second: i64| {
        let since = Duration::from_secs(u64::try_from(second).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1) + since
    };
    let mut serial = random_bytes::<16>();
    // A positive integer of 16 bytes: DER then holds exactly these bytes.
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = at(now_s - BACKDATE_S);
    params.not_after = at(now_s + i64::from(days) * DAY_S);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params, serial)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Key and certificate are complete under their temporary names before either gets its own: where a crash comes
/// between, [`finish_ca`] goes on.
fn make_ca(key_path: &Path, ca_path: &Path, now_us: i64) -> Result<(), PkiError> {
    let key = KeyPair::generate()?;
    let (mut params, serial) = params(now_us, CA_DAYS);
    params.distinguished_name = name(&format!("Muster device CA {}", hex::encode(&serial[..4])));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    stage(key_path, &key.serialize_pem(), 0o600)?;
    stage(ca_path, &certificate.pem(), 0o644)?;
    publish(key_path)?;
    publish(ca_path)
}

/// Gives the missing one of key and certificate its name, where [`make_ca`] was stopped before it could.
fn finish_ca(present: &Path, missing: &Path) -> Result<(), PkiError> {
    let half = || PkiError::Half { present: present.to_owned(), missing: missing.to_owned() };
    let (Ok(one), Ok(other)) = (read(present), read(&temporary(missing))) else { return Err(half()) };
    let (key, certificate) = if one.contains("PRIVATE KEY") { (one, other) } else { (other, one) };
    let key = KeyPair::from_pem(&key).map_err(|_| half())?;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| half())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).map_err(|_| half())?;
    if key.subject_public_key_info() != certificate.public_key().raw {
        return Err(half());
    }
    publish(missing)
}

fn file(path: &Path) -> impl Fn(std::io::Error) -> PkiError {
    move |source| PkiError::File { path: path.to_owned(), source }
}

fn content<E: std::fmt::Display>(path: &Path, expected: &'static str) -> impl Fn(E) -> PkiError {
    move |error| PkiError::Content { path: path.to_owned(), expected, why: error.to_string() }
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(file(path))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    stage(path, text, mode)?;
    publish(path)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Writes a file under its temporary name, durably.
fn stage(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let (fail, temporary) = (file(path), temporary(path));
    let _ = std::fs::remove_file(&temporary);
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(mode).open(&temporary).map_err(&fail)?;
    out.write_all(text.as_bytes()).map_err(&fail)?;
    out.sync_all().map_err(&fail)?;
    sync_dir_of(path)
}

/// Gives a staged file its name, durably.
fn publish(path: &Path) -> Result<(), PkiError> {
    std::fs::rename(temporary(path), path).map_err(file(path))?;
    sync_dir_of(path)
}

fn sync_dir_of(path: &Path) -> Result<(), PkiError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(file(path))
}
