//! A child process that cannot outlive its test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A running binary of the workspace, its output in a log file.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

/// The path of a binary that the workspace built beside this test.
///
/// # Panics
/// When it is missing: `cargo xtask test` builds the binaries before the tests.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("a test knows its own path");
    let dir = here.ancestors().nth(2).expect("a test binary lies in target/<profile>/deps");
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask test`, which builds it", path.display());
    path
}

/// A binary of another build, where a directory is given; the workspace's own else.
///
/// # Panics
/// As [`binary`].
#[must_use]
pub fn binary_of(build: Option<&Path>, name: &str) -> PathBuf {
    build.map_or_else(|| binary(name), |dir| dir.join(name))
}

impl Process {
    /// Starts a command; stdout and stderr are appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("the log file can be made");
        let err = out.try_clone().expect("a file handle can be cloned");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name: name.to_owned(), log: log.to_owned() }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it has not ended by the deadline.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        crate::wait_for(&format!("{} to stop after SIGTERM", self.name), || {
            self.child
                .try_wait()
                .map_err(|error| error.to_string())?
                .ok_or_else(|| "still running".to_owned())
        })
    }

    /// Sends a signal.
    #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the child is ours and not yet reaped.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// The last lines of the log, for a failure's text.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{} log ends:\n{}", self.name, lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
