//! A wake-up with a resolution of microseconds: the poll's own time-out has one millisecond, as long as the
//! latencies that are measured.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

/// A timer of the kernel that becomes readable when it is due.
pub(crate) struct Timer {
    file: File,
}

impl Timer {
    /// # Errors
    /// The kernel has no descriptor left.
    #[allow(unsafe_code, reason = "timerfd has no safe interface in the standard library")]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers; its result is checked and owned by the file only.
        let file = unsafe {
            // The kernel may delay a wake-up by the slack, 50 us unless told otherwise.
            libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64);
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        Ok(Self { file })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Wakes after the time; replaces an earlier setting.
    #[allow(unsafe_code, reason = "timerfd has no safe interface in the standard library")]
    pub(crate) fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would switch the timer off.
        let after = after.max(Duration::from_nanos(1));
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let setting =
            libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: `setting` lives through the call; the old setting is not asked for.
        let result =
            unsafe { libc::timerfd_settime(self.file.as_raw_fd(), 0, &setting, std::ptr::null_mut()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the wake-up, so that the next one is seen.
    pub(crate) fn clear(&mut self) {
        let mut count = [0; 8];
        // Not due (WouldBlock) is as good as cleared.
        let _ = self.file.read(&mut count);
    }
}

/// Raises the limit of open files to what the system allows; answers it.
///
/// # Errors
/// The limit cannot be read.
#[allow(unsafe_code, reason = "resource limits have no safe interface in the standard library")]
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a live value of their type.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) < 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = limit.rlim_max;
        // The lower limit stays where it may not be raised.
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    Ok(limit.rlim_cur)
}
