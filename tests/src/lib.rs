//! Harness of the end-to-end tests: real binaries, real sockets, real files, and faults.
//!
//! The tests under `tests/` use it. It promises: every process that it started is killed by pid when
//! its handle is dropped; every wait is for an observable state with a deadline that names what it
//! waited for; every address is an ephemeral port on 127.0.0.1; every file is in a temporary directory.

pub mod agent;
pub mod http;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod rig;
pub mod server;
pub mod small_disk;

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// How long a real binary may take to reach a state on a busy machine with two cores.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// How many seeded trials a randomised test runs: `MUSTER_TRIALS`, else the given default.
///
/// # Panics
/// When the variable is set to something that is no number.
#[must_use]
pub fn trials(default: u64) -> u64 {
    match std::env::var("MUSTER_TRIALS") {
        Ok(text) => text.parse().expect("MUSTER_TRIALS must be a number"),
        Err(_) => default,
    }
}

/// Notes a test that cannot run here in the file that `cargo xtask test` prints.
///
/// # Panics
/// When that file cannot be written.
pub fn skip(test: &str, why: &str) {
    let line = format!("{test}: {why}\n");
    let Some(path) = std::env::var_os("MUSTER_SKIPS_FILE") else {
        eprint!("skipped {line}");
        return;
    };
    let mut file = File::options().append(true).create(true).open(path).expect("the list of skips opens");
    file.write_all(line.as_bytes()).expect("the list of skips can be written");
}

/// Polls until `probe` gives a value.
///
/// # Panics
/// When the deadline passes, with `what` and the last thing that `explain` says.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if started.elapsed() > DEADLINE => panic!("waited {DEADLINE:?} for {what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
