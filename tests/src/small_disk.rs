//! A file system of a few megabytes that a test fills for real.
//!
//! It is a tmpfs in a mount namespace of the test's own thread: the processes that the thread starts see it, nobody
//! else does, and the kernel takes it away with the last of them, however the test ends. Needs leave to mount.

use muster_journal::{Fs as _, RealFs};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// The file that takes the space.
const BALLAST: &str = "ballast";
/// The unit in which space is given out.
const PAGE_BYTES: usize = 4096;

/// The mounted file system; it is unmounted when dropped.
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts `bytes` at `dir`, which is made. `None`: the system does not let us, and the skip of `test` is noted.
    ///
    /// # Panics
    /// When the directory cannot be made.
    #[must_use]
    pub fn mount(test: &str, dir: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(dir).expect("a directory to mount at can be made");
        match mount_private(dir, bytes) {
            Ok(()) => Some(Self { dir: dir.to_owned() }),
            Err(error) => {
                crate::skip(test, &format!("a file system cannot be mounted here ({error})"));
                None
            }
        }
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// When the system does not tell.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        RealFs.free_bytes(&self.dir).expect("a mounted file system tells its free space")
    }

    /// Takes space until at most `leave` bytes are free.
    ///
    /// # Panics
    /// When writing fails for another reason than a full disk.
    pub fn fill(&self, leave: u64) {
        let mut file =
            File::options().append(true).create(true).open(self.dir.join(BALLAST)).expect("ballast opens");
        while self.free_bytes() > leave {
            let take = usize::try_from(self.free_bytes() - leave).unwrap_or(usize::MAX).min(256 * PAGE_BYTES);
            match file.write_all(&vec![0xB5; take.next_multiple_of(PAGE_BYTES)]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("ballast: {error}"),
            }
        }
    }

    /// Gives all that was taken back.
    ///
    /// # Panics
    /// When the ballast cannot be removed.
    pub fn give_back(&self) {
        std::fs::remove_file(self.dir.join(BALLAST)).expect("ballast can be removed");
    }
}

impl Drop for SmallDisk {
    #[allow(unsafe_code, reason = "umount2(2) has no safe wrapper in std")]
    fn drop(&mut self) {
        let Ok(dir) = CString::new(self.dir.as_os_str().as_bytes()) else { return };
        // SAFETY: the path is a valid string for the call's time.
        // What it says does not matter: the file system goes with the namespace.
        unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) };
    }
}

#[allow(unsafe_code, reason = "unshare(2) and mount(2) have no safe wrappers in std")]
fn mount_private(dir: &Path, bytes: u64) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    let options = CString::new(format!("size={bytes},mode=0700"))?;
    let told = |answer: i32| if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: every pointer is a valid string for the call's time, or null where the call ignores it.
    unsafe {
        told(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        told(libc::mount(null(), c"/".as_ptr(), null(), private, null()))?;
        let tmpfs = c"tmpfs".as_ptr();
        told(libc::mount(tmpfs, dir.as_ptr(), tmpfs, 0, options.as_ptr().cast()))
    }
}
