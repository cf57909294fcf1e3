//! The server's certificate authorities: sign device certificates and the server's own.
//!
//! The service and `app.rs` call it. Files in `<data>/pki`: `ca.key` and `server.key` (mode 0600), `ca.pem`,
//! `server.pem` (leaf, then CA), and those of further authorities with [`authorities`]' state. Written to a temporary name, synced and renamed: a crash leaves the old file or the
//! new; changes within a process come one after the other. A running server loads `server.pem` and `server.key` again when they change, and has a due one renewed.
//! Architecture invariant: a CA that cannot be read is an error, never a reason to make another, because every
//! device trusts this one. P-256 everywhere.

mod authorities;
mod client;
mod server;

pub use authorities::{Anchor, Held, rotate};

pub use client::{DeviceName, ExpiredToo};
pub use server::{ServerFiles, ServerPem};

use super::model::{CSR_BYTES_MAX, device_uri};
use crate::platform::secret::random_bytes;
use authorities::STATE_FILE;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

const CA_DAYS: i64 = 20 * 365;
/// Certificates are valid from a little before now: a device's clock may be behind.
const BACKDATE_S: i64 = 3_600;
/// Seconds of a day.
pub const DAY_S: i64 = 86_400;

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
    /// There are two authorities already.
    #[error("a new authority follows the old one already: retire that first")]
    UnderWay,
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
    /// Which authority signed it: SHA-256 of its key, as hex.
    pub authority: String,
    /// From when it is valid.
    pub issued_at_us: i64,
    /// Until when.
    pub expires_at_us: i64,
}

/// The authority, and the files of the server's own certificate.
pub struct Pki {
    dir: PathBuf,
    authorities: RwLock<Arc<Authorities>>,
    files: ServerFiles,
    hosts: Vec<String>,
    server_days: u32,
    /// Held over whatever reads and then writes the files.
    changing: Mutex<()>,
}

/// The authorities with the keys that sign.
struct Authorities {
    held: Held,
    serving: Issuer<'static, KeyPair>,
    signing: Issuer<'static, KeyPair>,
}

impl Authorities {
    fn open(held: Held) -> Result<Self, PkiError> {
        let issuer = |anchor: &Anchor| {
            let path = &anchor.key_path;
            let key = KeyPair::from_pem(&read(path)?).map_err(content(path, "private key"))?;
            if <[u8; 32]>::from(Sha256::digest(key.subject_public_key_info())) != anchor.key_sha256 {
                return Err(content(path, "key of the authority")("its certificate has another"));
            }
            Issuer::from_ca_cert_der(&anchor.der, key).map_err(content(path, "key of a CA"))
        };
        Ok(Self { serving: issuer(&held.serving)?, signing: issuer(&held.signing)?, held })
    }
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
            // The first authority may be retired, its key gone.
            _ if dir.join(STATE_FILE).exists() => {}
            (false, false) => make_ca(&ca_key_path, &ca_path, now_us)?,
            (true, false) => finish_ca(&ca_key_path, &ca_path)?,
            (false, true) => finish_ca(&ca_path, &ca_key_path)?,
            (true, true) => {}
        }
        let files = ServerFiles::with_hosts(dir, Some(hosts))?;
        let authorities = RwLock::new(Arc::new(Authorities::open(authorities::held(dir)?)?));
        let (dir, hosts, changing) = (dir.to_owned(), hosts.to_vec(), Mutex::default());
        let pki = Self { dir, authorities, files, hosts, server_days, changing };
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

    fn now(&self) -> Arc<Authorities> {
        self.authorities.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The authorities in force.
    #[must_use]
    pub fn held(&self) -> Held {
        self.now().held.clone()
    }

    /// Every trusted CA's certificate in PEM, the server's own first.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.now().held.pem()
    }

    /// SHA-256 of the SubjectPublicKeyInfo of the server's CA: what a claim pins.
    #[must_use]
    pub fn ca_spki_sha256(&self) -> [u8; 32] {
        self.now().held.serving.key_sha256
    }

    /// Reads again which authorities there are: a command may have made another one.
    ///
    /// # Errors
    /// A file cannot be read; what was in force stays.
    pub fn refresh(&self) -> Result<(), PkiError> {
        let _changing = self.lock();
        self.read_again()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_again(&self) -> Result<(), PkiError> {
        let held = authorities::held(&self.dir)?;
        if held != self.now().held {
            let next = Arc::new(Authorities::open(held)?);
            *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Ok(())
    }

    /// Makes another authority, as [`rotate`] does.
    ///
    /// # Errors
    /// Two are there already; a file cannot be written.
    pub fn rotate(&self, now_us: i64) -> Result<Held, PkiError> {
        let _changing = self.lock();
        let held = rotate(&self.dir, now_us)?;
        self.read_again()?;
        Ok(held)
    }

    /// Ends the authority that the newest one follows: first the server's certificate comes from the new one, then the old
    /// one is trusted no more and its key is deleted. A crash between leaves both trusted; then this is called again.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn retire(&self, now_us: i64) -> Result<(), PkiError> {
        let _changing = self.lock();
        let held = authorities::held(&self.dir)?;
        let Some(old) = held.retiring().cloned() else { return Ok(()) };
        let serving = held.signing.clone();
        let both = Held { serving: serving.clone(), trusted: vec![serving.clone(), old.clone()], ..held };
        authorities::save(&self.dir, &both)?;
        self.read_again()?;
        self.make_server(now_us)?;
        authorities::save(&self.dir, &Held { trusted: vec![serving], ..both })?;
        self.read_again()?;
        std::fs::remove_file(&old.key_path).map_err(file(&old.key_path))
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
        let _changing = self.lock();
        self.make_server(now_us)
    }

    fn make_server(&self, now_us: i64) -> Result<ServerPem, PkiError> {
        let key = KeyPair::generate()?;
        let (mut params, _) = params(now_us, i64::from(self.server_days) * DAY_S);
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
        let authorities = self.now();
        let certificate = params.signed_by(&key, &authorities.serving)?;
        write(&self.files.key, &key.serialize_pem(), 0o600)?;
        let chain = format!("{}{}", certificate.pem(), authorities.held.serving.pem);
        write(&self.files.certificate, &chain, 0o644)?;
        self.server(now_us)
    }

    /// Signs a checked request for a device, good for so many seconds. Only its key is taken over: names and uses are ours.
    ///
    /// # Errors
    /// The signature fails.
    pub fn sign_device(
        &self,
        csr: &CheckedCsr,
        tenant: &TenantId,
        device: &DeviceId,
        life_s: i64,
        now_us: i64,
    ) -> Result<DeviceCertificate, PkiError> {
        let (mut params, serial) = params(now_us, life_s);
        let uri = device_uri(tenant, device).try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.distinguished_name = name(device.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let authorities = self.now();
        let held = &authorities.held;
        let (issuer, anchor) = if now_us >= held.signs_from_us {
            (&authorities.signing, &held.signing)
        } else {
            (&authorities.serving, &held.serving)
        };
        let pem = params.signed_by(&csr.key, issuer)?.pem();
        let expires_at_us = (now_us / 1_000_000).saturating_add(life_s).saturating_mul(1_000_000);
        let (serial, authority) = (hex::encode(serial), hex::encode(anchor.key_sha256));
        Ok(DeviceCertificate { serial, pem, authority, issued_at_us: now_us, expires_at_us })
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
fn params(now_us: i64, life_s: i64) -> (CertificateParams, [u8; 16]) {
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
    params.not_after = at(now_s.saturating_add(life_s));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params, serial)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// A new authority: key and certificate in PEM, and the hash of its key.
fn new_ca(now_us: i64) -> Result<(String, String, [u8; 32]), PkiError> {
    let key = KeyPair::generate()?;
    let (mut params, serial) = params(now_us, CA_DAYS * DAY_S);
    params.distinguished_name = name(&format!("Muster device CA {}", hex::encode(&serial[..4])));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let key_sha256 = Sha256::digest(key.subject_public_key_info()).into();
    Ok((key.serialize_pem(), certificate.pem(), key_sha256))
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
fn key_sha256(certificate: &[u8]) -> Result<[u8; 32], String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(Sha256::digest(parsed.public_key().raw).into())
}

/// Key and certificate are complete under their temporary names before either gets its own: where a crash comes
/// between, [`finish_ca`] goes on.
fn make_ca(key_path: &Path, ca_path: &Path, now_us: i64) -> Result<(), PkiError> {
    let (key_pem, certificate_pem, _) = new_ca(now_us)?;
    stage(key_path, &key_pem, 0o600)?;
    stage(ca_path, &certificate_pem, 0o644)?;
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
