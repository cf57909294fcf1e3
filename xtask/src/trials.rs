//! `xtask trials`: many more seeded trials than a test run makes, of every durable part.
//!
//! Power cuts on the simulated file system: the journal, the agent's queue, the server's log with its store.
//! `kill -9` and cut networks with the real binaries. A fleet of 2,000 devices with every fault at once, five minutes
//! a seed. A failing trial prints its seed. `skew` builds the newest tag before this commit, and runs its agent against this server, its files
//! with a backlog in them through an upgrade, and the way back.

use crate::{bench, cargo};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The tests read it; each trial is one seed.
const TRIALS_VARIABLE: &str = "MUSTER_TRIALS";

/// Command line of `xtask trials`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Power cuts of each durable part.
    #[arg(long, default_value_t = 1_000)]
    count: u64,
    /// Kills of each program, and network cuts.
    #[arg(long, default_value_t = 200)]
    kills: u64,
    /// Simulations of a fleet with every fault, five minutes each: seeds 1 to this.
    #[arg(long, default_value_t = 3)]
    fleets: u64,
    /// One part only: journal, agent, server, faults, skew or fleet.
    #[arg(long)]
    only: Option<String>,
    /// The tag or commit that `skew` builds, instead of the newest tag before this commit.
    #[arg(long)]
    previous: Option<String>,
}

/// The part that is no test: a load simulation.
const FLEET: &str = "fleet";
/// The part that needs another commit's binaries, and the variable that names them.
const SKEW: &str = "skew";
const PREVIOUS_VARIABLE: &str = "MUSTER_PREVIOUS_BINARIES";

struct Part {
    name: &'static str,
    package: &'static str,
    /// Tests whose name holds this.
    filter: &'static str,
    real_binaries: bool,
}

const PARTS: [Part; 5] = [
    Part { name: "journal", package: "muster-journal", filter: "trial", real_binaries: false },
    Part { name: "agent", package: "muster-agent", filter: "trial", real_binaries: false },
    Part { name: "server", package: "muster-server", filter: "trial", real_binaries: false },
    Part { name: "faults", package: "muster-tests", filter: "loses_nothing", real_binaries: true },
    Part { name: SKEW, package: "muster-tests", filter: "the_tag_before_this_one", real_binaries: true },
];

/// Runs the trials; answers whether all passed.
///
/// # Errors
/// A part has no trials, or cargo cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let wanted = |part: &&Part| arguments.only.as_deref().is_none_or(|only| only == part.name);
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    let with_fleet = arguments.only.as_deref().is_none_or(|only| only == FLEET);
    if parts.is_empty() && !with_fleet {
        bail!("--only is one of: {}, {FLEET}", PARTS.map(|part| part.name).join(", "));
    }
    cargo::build_for_tests()?;
    let binaries = if parts.is_empty() { Vec::new() } else { test_binaries()? };
    let mut table = Vec::new();
    for part in parts {
        let count = match part.name {
            SKEW => 1,
            _ if part.real_binaries => arguments.kills,
            _ => arguments.count,
        };
        println!("{}: {count} trials", part.name);
        let began = Instant::now();
        let previous = match part.name {
            SKEW => Some(build_previous(arguments.previous.as_deref())?),
            _ => None,
        };
        let (passed, tests) = run_part(part, count, &binaries, previous.as_deref())?;
        if tests == 0 {
            bail!("package {} has no test named *{}*", part.package, part.filter);
        }
        table.push((part.name, count, tests, passed, began.elapsed().as_secs()));
    }
    if with_fleet {
        let began = Instant::now();
        let held = bench::fleet::with_every_fault(arguments.fleets)?;
        table.push((FLEET, arguments.fleets, 1, held, began.elapsed().as_secs()));
    }
    println!("\n{:<10} {:>8} {:>8} {:>8}", "part", "trials", "tests", "seconds");
    for (name, count, tests, passed, seconds) in &table {
        println!("{name:<10} {count:>8} {tests:>8} {seconds:>8}  {}", if *passed { "ok" } else { "FAILED" });
    }
    Ok(table.iter().all(|(_, _, _, passed, _)| *passed))
}

/// Builds server and agent of the newest tag before this commit; gives the directory of its binaries.
fn build_previous(given: Option<&str>) -> Result<PathBuf> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git").current_dir(cargo::root()).args(arguments).output();
        let output = output.context("cannot start git")?;
        if !output.status.success() {
            bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let tag = match given {
        Some(given) => given.to_owned(),
        None => git(&["describe", "--tags", "--abbrev=0", "HEAD^"])
            .context("there is no tag before this commit: name one with --previous")?,
    };
    println!("{SKEW}: building {tag}");
    let skew = cargo::target_dir().join(SKEW);
    let source = skew.join("source");
    if source.exists() {
        git(&["worktree", "remove", "--force", &source.display().to_string()])?;
    }
    git(&["worktree", "add", "--detach", &source.display().to_string(), &tag])?;
    let mut build = cargo::cargo();
    build.current_dir(&source).args(["build", "--locked", "-p", "muster-server", "-p", "muster-agent"]);
    let status = build.arg("--target-dir").arg(skew.join("target")).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("{tag} cannot be built");
    }
    Ok(skew.join("target/debug"))
}

/// A built test binary, and the package that it tests.
struct TestBinary {
    package: String,
    dir: PathBuf,
    path: PathBuf,
}

/// The workspace's test binaries: those that `cargo xtask test` runs, so nothing is compiled for other features.
fn test_binaries() -> Result<Vec<TestBinary>> {
    let mut command = cargo::cargo();
    command.args(["test", "--locked", "--workspace", "--bins", "--lib", "--tests", "--no-run"]);
    command.args(["--message-format", "json"]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo test")?;
    if !output.status.success() {
        bail!("the tests cannot be built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(test_binary).collect())
}

/// Reads one of cargo's messages; None where it tells of something else than a test binary.
fn test_binary(line: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?;
    let (_, name) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = name.split('@').next()?;
    Some(TestBinary { package: package.to_owned(), dir: dir.to_owned(), path: path.into() })
}

/// Runs one part's tests one at a time; answers whether all passed and how many there were.
fn run_part(
    part: &Part,
    count: u64,
    binaries: &[TestBinary],
    previous: Option<&Path>,
) -> Result<(bool, u64)> {
    let (mut passed, mut tests) = (true, 0);
    for TestBinary { dir, path, .. } in binaries.iter().filter(|binary| binary.package == part.package) {
        let mut command = Command::new(path);
        command.args([part.filter, "--test-threads=1", "--nocapture"]).current_dir(dir);
        command.env(TRIALS_VARIABLE, count.to_string()).env("CARGO_MANIFEST_DIR", dir);
        if let Some(previous) = previous {
            command.env(PREVIOUS_VARIABLE, previous);
        }
        let output =
            command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {path:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        passed &= output.status.success();
        tests += count_tests(&text);
    }
    Ok((passed, tests))
}

/// The sum of cargo's `running N tests`.
fn count_tests(text: &str) -> u64 {
    let counts =
        text.lines().filter_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_told_from_cargos_other_messages() {
        let line = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/agent#muster-agent@0.1.0",
                "manifest_path":"/w/agent/Cargo.toml","profile":{{"test":{test}}},"executable":"/w/target/agent-1"}}"#
            )
        };
        let found = test_binary(&line(true)).unwrap();
        assert_eq!((found.package.as_str(), found.dir.as_path()), ("muster-agent", Path::new("/w/agent")));
        assert!(test_binary(&line(false)).is_none());
        assert!(test_binary("{\"reason\":\"build-finished\"}").is_none() && test_binary("warning").is_none());
    }

    #[test]
    fn tests_are_counted_over_binaries() {
        assert_eq!(
            count_tests("running 2 tests\ntest a ... ok\n\nrunning 0 tests\nrunning 1 test\nrunning late\n"),
            3
        );
    }
}
