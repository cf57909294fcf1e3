//! The identity's files: `device.key`, then `identity.json` once enrolled. A renewal makes the next key in the other one of
//! two files; `identity.json` says which counts, so one rename changes key and certificate together.

use super::keys::{self, KeyError};
use crate::files::{self, ReplaceError};
use muster_wire::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub(super) const KEY_FILE: &str = "device.key";
/// The other one.
const KEY_FILE_2: &str = "device-2.key";
const IDENTITY_FILE: &str = "identity.json";

/// What an enrolment gave; everything but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The tenant that the claim belonged to.
    pub tenant: TenantId,
    /// The device's name.
    pub device: DeviceId,
    /// The device's certificate and what stands between it and the CA.
    pub certificate_pem: String,
    /// Every CA that the server's certificate may come from.
    pub ca_pem: String,
    /// Where the uplink connects.
    pub mqtt_host: String,
    /// Its port.
    pub mqtt_port: u16,
    /// The newest time that the server told, microseconds since 1970.
    pub server_time_us: i64,
    /// The enrolment listener's host, where renewal is; absent in the files of older agents.
    #[serde(default)]
    pub enroll_host: Option<String>,
    /// Its port.
    #[serde(default)]
    pub enroll_port: Option<u16>,
    /// The file of the certificate's key.
    #[serde(default = "first_key_file")]
    pub key_file: String,
    /// SHA-256 of the key file that this identity made useless, as hex: one that a crash left is no next key.
    #[serde(default)]
    pub spent_key_sha256: Option<String>,
}

fn first_key_file() -> String {
    KEY_FILE.to_owned()
}

/// Why the identity cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step on the disk failed.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what this program wrote.
    #[error("{} is not an identity of this agent", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        #[source]
        source: serde_json::Error,
    },
    /// The key is of no use.
    #[error("device key")]
    Key(#[from] KeyError),
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    move |source| StoreError::Io { step, path: path.to_owned(), source }
}

/// The device's key as PEM, made at the first call.
///
/// # Errors
/// The disk refuses.
pub(super) fn load_or_create_key(dir: &Path) -> Result<String, StoreError> {
    load_or_create(dir, KEY_FILE)
}

/// The key of an identity as PEM.
///
/// # Errors
/// The disk refuses.
pub fn load_key(dir: &Path, identity: &Identity) -> Result<String, StoreError> {
    let path = dir.join(own_file(identity));
    std::fs::read_to_string(&path).map_err(io("read", &path))
}

/// Only the two names count, whatever stands in the file.
fn own_file(identity: &Identity) -> &'static str {
    if identity.key_file == KEY_FILE_2 { KEY_FILE_2 } else { KEY_FILE }
}

fn other_file(identity: &Identity) -> &'static str {
    if own_file(identity) == KEY_FILE { KEY_FILE_2 } else { KEY_FILE }
}

fn key_sha256(pem: &str) -> String {
    hex::encode(Sha256::digest(pem))
}

/// The key to renew with, as file and PEM; the same until [`put_in_force`].
pub(super) fn next_key(dir: &Path, identity: &Identity) -> Result<(&'static str, String), StoreError> {
    let file = other_file(identity);
    if let Some(pem) = read(dir, file)?
        && identity.spent_key_sha256.as_ref() == Some(&key_sha256(&pem))
    {
        remove(dir, file)?;
    }
    Ok((file, load_or_create(dir, file)?))
}

/// Puts an identity in force, and forgets the key that is not its own.
pub(super) fn put_in_force(dir: &Path, mut next: Identity) -> Result<Identity, StoreError> {
    let file = other_file(&next);
    next.spent_key_sha256 = read(dir, file)?.as_deref().map(key_sha256);
    save(dir, &next)?;
    remove(dir, file)?;
    Ok(next)
}

fn read(dir: &Path, file: &'static str) -> Result<Option<String>, StoreError> {
    let path = dir.join(file);
    match std::fs::read_to_string(&path) {
        Ok(pem) => Ok(Some(pem)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", &path)(error)),
    }
}

fn remove(dir: &Path, file: &'static str) -> Result<(), StoreError> {
    let path = dir.join(file);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", &path)(error)),
        _ => Ok(()),
    }
}

fn load_or_create(dir: &Path, file: &'static str) -> Result<String, StoreError> {
    if let Some(pem) = read(dir, file)? {
        return Ok(pem);
    }
    let pem = keys::generate()?;
    write_secret(dir, file, pem.as_bytes())?;
    Ok(pem)
}

/// The identity, if there is one.
///
/// # Errors
/// The disk refuses, or the file is not ours.
pub fn load(dir: &Path) -> Result<Option<Identity>, StoreError> {
    let path = dir.join(IDENTITY_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read", &path)(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| StoreError::Malformed { path, source })
}

fn save(dir: &Path, identity: &Identity) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(identity)
        .map_err(|source| StoreError::Malformed { path: dir.join(IDENTITY_FILE), source })?;
    write_secret(dir, IDENTITY_FILE, &bytes)
}

fn write_secret(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |ReplaceError { step, path, source }| StoreError::Io { step, path, source };
    files::replace(dir, name, bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn identity(key_file: &str) -> Identity {
        Identity {
            tenant: TenantId::parse("acme").unwrap(),
            device: DeviceId::parse("pump").unwrap(),
            certificate_pem: String::new(),
            ca_pem: String::new(),
            mqtt_host: "localhost".into(),
            mqtt_port: 8883,
            server_time_us: 0,
            enroll_host: None,
            enroll_port: None,
            key_file: key_file.into(),
            spent_key_sha256: None,
        }
    }

    #[test]
    fn the_next_key_stays_until_it_counts_and_the_old_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first_key = load_or_create_key(dir.path()).unwrap();
        let first = identity(KEY_FILE);
        save(dir.path(), &first).unwrap();
        let (file, key) = next_key(dir.path(), &first).unwrap();
        assert_eq!(next_key(dir.path(), &first).unwrap(), (file, key.clone()), "after a crash, too");
        assert_ne!(key, first_key);
        let second = put_in_force(dir.path(), identity(file)).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), second);
        assert_eq!(load_key(dir.path(), &second).unwrap(), key);
        assert!(!dir.path().join(KEY_FILE).exists());
        let (file, third) = next_key(dir.path(), &second).unwrap();
        assert_eq!(file, KEY_FILE);
        assert!(third != first_key && third != key);
    }

    #[test]
    fn a_key_that_a_crash_or_an_older_identity_left_is_no_next_key() {
        let dir = tempfile::tempdir().unwrap();
        let first_key = load_or_create_key(dir.path()).unwrap();
        let (file, _) = next_key(dir.path(), &identity(KEY_FILE)).unwrap();
        let second = put_in_force(dir.path(), identity(file)).unwrap();
        // The crash comes before the old key is removed.
        write_secret(dir.path(), KEY_FILE, first_key.as_bytes()).unwrap();
        let (_, third_key) = next_key(dir.path(), &second).unwrap();
        assert_ne!(third_key, first_key);
        assert_eq!(next_key(dir.path(), &second).unwrap().1, third_key, "and that stays");
        // Enrolled anew: neither key of before is the next one.
        let second_key = load_key(dir.path(), &second).unwrap();
        let again = put_in_force(dir.path(), identity(KEY_FILE)).unwrap();
        assert!(!dir.path().join(KEY_FILE_2).exists());
        write_secret(dir.path(), KEY_FILE_2, second_key.as_bytes()).unwrap();
        assert_ne!(next_key(dir.path(), &again).unwrap().1, second_key);
    }

    #[test]
    fn an_identity_of_an_older_agent_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"tenant":"acme","device":"pump","certificate_pem":"","ca_pem":"","mqtt_host":"localhost",
            "mqtt_port":8883,"server_time_us":0}"#;
        std::fs::write(dir.path().join(IDENTITY_FILE), text).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), identity(KEY_FILE));
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("identity");
        let key = load_or_create_key(&dir).unwrap();
        assert_eq!(load_or_create_key(&dir).unwrap(), key);
        let mode = std::fs::metadata(dir.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(load(&dir).unwrap(), None);
    }
}
