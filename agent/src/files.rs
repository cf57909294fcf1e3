//! Small files of the agent's own below `data_dir`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Why a file was not replaced; the old one stands.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub(crate) struct ReplaceError {
    /// What was being done.
    pub(crate) step: &'static str,
    /// To what.
    pub(crate) path: PathBuf,
    /// Why not.
    pub(crate) source: std::io::Error,
}

/// Replaces a file whole: a new one with mode 0600, fsync, rename, fsync of the folder, which is made with mode 0700.
///
/// # Errors
/// The disk refuses.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), ReplaceError> {
    fn at(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ReplaceError {
        move |source| ReplaceError { step, path: path.to_owned(), source }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&fresh).map_err(at("create", &fresh))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at("write", &fresh))?;
    std::fs::rename(&fresh, &path).map_err(at("rename", &path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync", dir))
}
