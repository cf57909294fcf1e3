//! Which authorities there are: one, or two while one follows the other.
//!
//! `authorities.json` beside the authorities' files says which of them are trusted, which one the server's own certificate
//! comes from and which one signs devices' certificates; without it there is `ca.pem` alone. Its rename is the only step
//! that changes anything, so a crash leaves the old state or the new. A new authority signs only [`LEAD_US`] after it was
//! made, when every listener trusts it. At most [`AUTHORITIES_MAX`] at a time.

use super::{PkiError, content, file, key_sha256, read, write};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};

/// The file's name.
pub(super) const STATE_FILE: &str = "authorities.json";
/// From when on a new authority signs, after it was made: listeners look at the files every few seconds.
pub(super) const LEAD_US: i64 = 60_000_000;
/// The old one and the new one.
pub(super) const AUTHORITIES_MAX: usize = 2;
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    serving: String,
    signing: String,
    signs_from_us: i64,
    trusted: Vec<String>,
}

/// One authority's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// SHA-256 of its key.
    pub key_sha256: [u8; 32],
    /// The certificate.
    pub pem: String,
    /// The server's first authority: certificates whose rows name none are its.
    pub is_first: bool,
    pub(super) der: CertificateDer<'static>,
    pub(super) key_path: PathBuf,
}

/// The authorities in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The one that the server's own certificate comes from; claims name it.
    pub serving: Anchor,
    /// The one that signs devices' certificates from `signs_from_us` on.
    pub signing: Anchor,
    /// Microseconds since 1970 (UTC).
    pub signs_from_us: i64,
    /// Those whose certificates are accepted, the serving one first.
    pub trusted: Vec<Anchor>,
}

impl Held {
    /// Every trusted certificate, one behind the other.
    #[must_use]
    pub fn pem(&self) -> String {
        self.trusted.iter().map(|anchor| anchor.pem.as_str()).collect()
    }

    /// The authority that the next one follows, while there are two.
    #[must_use]
    pub fn retiring(&self) -> Option<&Anchor> {
        self.trusted.iter().find(|anchor| **anchor != self.signing)
    }
}

fn paths(dir: &Path, key_sha256: &[u8; 32]) -> (PathBuf, PathBuf) {
    let name = format!("ca-{}", &hex::encode(key_sha256)[..16]);
    (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")))
}

fn anchor(path: &Path, key_path: PathBuf, is_first: bool) -> Result<Anchor, PkiError> {
    let pem = read(path)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(content(path, "certificate"))?;
    let key_sha256 = key_sha256(&der).map_err(content(path, "certificate"))?;
    Ok(Anchor { key_sha256, pem, is_first, der, key_path })
}

fn first(dir: &Path) -> Result<Anchor, PkiError> {
    anchor(&dir.join("ca.pem"), dir.join("ca.key"), true)
}

/// Reads the authorities of a directory.
///
/// # Errors
/// A file cannot be read, or does not hold what it should.
pub(super) fn held(dir: &Path) -> Result<Held, PkiError> {
    let path = dir.join(STATE_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let only = first(dir)?;
            let trusted = vec![only.clone()];
            return Ok(Held { serving: only.clone(), signing: only, signs_from_us: 0, trusted });
        }
        Err(error) => return Err(file(&path)(error)),
    };
    let off = content::<String>(&path, "state of the authorities");
    let state: State = serde_json::from_str(&text).map_err(|error| off(error.to_string()))?;
    if state.version != VERSION || state.trusted.is_empty() || state.trusted.len() > AUTHORITIES_MAX {
        return Err(off(format!("version {VERSION} with 1 to {AUTHORITIES_MAX} authorities was expected")));
    }
    let mut all = Vec::new();
    for wanted in [&state.serving, &state.signing].into_iter().chain(&state.trusted) {
        let mut key = [0; 32];
        hex::decode_to_slice(wanted, &mut key).map_err(|error| off(error.to_string()))?;
        let (certificate, private) = paths(dir, &key);
        let found = if certificate.exists() { anchor(&certificate, private, false)? } else { first(dir)? };
        if found.key_sha256 != key {
            return Err(off(format!("there is no certificate of {wanted}")));
        }
        all.push(found);
    }
    let (serving, signing) = (all[0].clone(), all[1].clone());
    let mut trusted = all.split_off(2);
    if !trusted.contains(&serving) || !trusted.contains(&signing) {
        return Err(off("an authority that signs is not trusted".into()));
    }
    trusted.sort_by_key(|anchor| *anchor != serving);
    Ok(Held { serving, signing, signs_from_us: state.signs_from_us, trusted })
}

/// Puts a state in force.
pub(super) fn save(dir: &Path, held: &Held) -> Result<(), PkiError> {
    let path = dir.join(STATE_FILE);
    let state = State {
        version: VERSION,
        serving: hex::encode(held.serving.key_sha256),
        signing: hex::encode(held.signing.key_sha256),
        signs_from_us: held.signs_from_us,
        trusted: held.trusted.iter().map(|anchor| hex::encode(anchor.key_sha256)).collect(),
    };
    let text = serde_json::to_string_pretty(&state).map_err(content(&path, "state of the authorities"))?;
    write(&path, &text, 0o644)
}

/// Makes another authority, which is trusted at once, by everybody who looks at the files, and signs devices'
/// certificates from [`LEAD_US`] on. The server's own certificate stays as it is. A server that runs sees it within seconds.
///
/// # Errors
/// Two are there already; a file cannot be written.
pub fn rotate(dir: &Path, now_us: i64) -> Result<Held, PkiError> {
    let before = held(dir)?;
    if before.trusted.len() >= AUTHORITIES_MAX {
        return Err(PkiError::UnderWay);
    }
    let (key_pem, certificate_pem, key) = super::new_ca(now_us)?;
    let (path, key_path) = paths(dir, &key);
    write(&key_path, &key_pem, 0o600)?;
    write(&path, &certificate_pem, 0o644)?;
    let next = anchor(&path, key_path, false)?;
    let trusted = vec![before.serving.clone(), next.clone()];
    let signs_from_us = now_us.saturating_add(LEAD_US);
    let after = Held { serving: before.serving, signing: next, signs_from_us, trusted };
    save(dir, &after)?;
    Ok(after)
}
