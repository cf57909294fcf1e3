//! Child processes that the demo and the benches run: started in a group of their own, ended by their id.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a child may take to end politely.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at a state.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Log lines that an error shows.
const LOG_TAIL_LINES: usize = 20;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C and SIGTERM be noticed by [`interrupted`] instead of ending this program at once.
#[allow(unsafe_code, reason = "the standard library has no signals")]
pub(crate) fn catch_interrupts() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let handler: extern "C" fn(libc::c_int) = note;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler stores into an atomic, which is allowed at any point.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether somebody asked this program to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A running child; dropping it ends it.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in a log file. Its own process group keeps a terminal's Ctrl-C away
    /// from it, so that it is ended in order.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// # Errors
    /// It has ended; with the end of its log.
    pub(crate) fn expect_running(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.log_tail()),
        }
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// It ended with another status than 0, or not in time (then it is killed).
    #[allow(unsafe_code, reason = "the standard library can only kill")]
    pub(crate) fn stop(&mut self) -> Result<()> {
        if self.ended().is_none() {
            let pid = libc::pid_t::try_from(self.child.id()).context("process id out of range")?;
            // SAFETY: the child was not waited for, so its id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let began = Instant::now();
        while began.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.ended() {
                if status.success() {
                    return Ok(());
                }
                bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        bail!("{} did not end in {STOP_TIMEOUT:?}", self.name)
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until something is there.
///
/// # Errors
/// `what` is not there in time, or the look itself fails for good, or the user interrupts.
pub(crate) fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if began.elapsed() > timeout {
            bail!("waited {timeout:?} for {what}");
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}
