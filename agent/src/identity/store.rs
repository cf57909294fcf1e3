//! The identity's files: `device.key`, then `identity.json` once enrolled.

use super::keys::{self, KeyError};
use muster_wire::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const KEY_FILE: &str = "device.key";
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
    /// The server's CA.
    pub ca_pem: String,
    /// Where the uplink connects.
    pub mqtt_host: String,
    /// Its port.
    pub mqtt_port: u16,
    /// The newest time that the server told, microseconds since 1970.
    pub server_time_us: i64,
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
pub fn load_or_create_key(dir: &Path) -> Result<String, StoreError> {
    let path = dir.join(KEY_FILE);
    match std::fs::read_to_string(&path) {
        Ok(pem) => return Ok(pem),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("read", &path)(error)),
    }
    let pem = keys::generate()?;
    write_secret(dir, KEY_FILE, pem.as_bytes())?;
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

pub(super) fn save(dir: &Path, identity: &Identity) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(identity)
        .map_err(|source| StoreError::Malformed { path: dir.join(IDENTITY_FILE), source })?;
    write_secret(dir, IDENTITY_FILE, &bytes)
}

/// Replaces a file whole: a new one with mode 0600, fsync, rename, fsync of the folder (mode 0700).
fn write_secret(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create", dir))?;
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&fresh).map_err(io("create", &fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &fresh))?;
    std::fs::rename(&fresh, &path).map_err(io("rename", &path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
