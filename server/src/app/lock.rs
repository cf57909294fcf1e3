//! One process a data directory.

use super::AppError;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Held while the server runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Makes the directory (mode 0700) where needed and takes its lock.
    ///
    /// # Errors
    /// The directory cannot be used, or another process has it.
    pub fn take(dir: &Path) -> Result<Self, AppError> {
        let fail = |source| AppError::DataDir { path: dir.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(AppError::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(fail(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = DataDirLock::take(&data).unwrap();
        assert!(matches!(DataDirLock::take(&data), Err(AppError::InUse { .. })));
        drop(first);
        DataDirLock::take(&data).unwrap();
    }
}
