//! `xtask test`: the whole test suite with whichever runner is installed.
//!
//! Promise: the real binaries are built before the first test; a test that could not run here is listed at the
//! end, never hidden; the last lines are the runner's own summary, also kept in `target/test-summary.txt`.

use crate::{api, bench, cargo, recipe};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where tests append `name: why` when they cannot run here.
const SKIPS_VARIABLE: &str = "MUSTER_SKIPS_FILE";
/// Where tests find the real binaries.
const BINARIES_VARIABLE: &str = "MUSTER_BIN_DIR";

/// Command line of `xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fail on skipped tests that tests/skips.txt does not list.
    #[arg(long)]
    ci: bool,
    /// Use cargo's own runner even where nextest is installed.
    #[arg(long)]
    plain: bool,
    /// Passed on to the runner (for example `-p muster-journal`, or a test name).
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds, tests and reports; answers whether all passed.
///
/// # Errors
/// The build fails, or the runner cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    install_programs();
    if let Err(error) = muster_services::python::install() {
        eprintln!("cannot install the Python packages of ClickHouse and S3: {error:#}");
    }
    cargo::build_for_tests()?;
    let target = cargo::target_dir();
    let skips_file = target.join("test-skips.txt");
    std::fs::write(&skips_file, "").with_context(|| format!("cannot write {}", skips_file.display()))?;

    let runner = if arguments.plain { Runner::Cargo } else { Runner::installed() };
    let mut command = runner.command(&arguments.rest);
    command.env(SKIPS_VARIABLE, &skips_file).env(BINARIES_VARIABLE, cargo::dev_binaries());
    let (mut passed, mut summary) = watch(command, runner)?;

    // A filter asks for some tests only.
    let is_whole = arguments.rest.is_empty();
    if is_whole {
        for (what, command) in [
            ("the registry on PostgreSQL: what stands on it", runner.on_postgres()),
            ("readings and events in ClickHouse: the store's suite", runner.on_clickhouse()),
        ] {
            println!("\nagain with {what}");
            let (passed_again, summary_again) = watch(command, runner)?;
            passed &= passed_again;
            summary.extend(summary_again);
        }
    }
    let recipe_held = !is_whole || check_recipe();
    let simulated = !is_whole || simulate()?;
    let conforms = !is_whole || conform()?;
    let skips_held = report_skips(&skips_file, arguments.ci)?;
    let summary = runner.closing_lines(&summary);
    std::fs::write(target.join("test-summary.txt"), &summary).context("cannot write the summary")?;
    print!("\n{summary}");
    Ok(passed && recipe_held && simulated && conforms && skips_held)
}

/// The models' recipe: its own tests, and the committed bundles against what they say of themselves.
fn check_recipe() -> bool {
    println!("\ntesting the models' recipe");
    let held = recipe::test();
    match &held {
        Ok(true) => {}
        Ok(false) => eprintln!("the models' recipe failed: see above"),
        Err(error) => eprintln!("the models' recipe could not be tested: {error:#}"),
    }
    held.unwrap_or(false)
}

/// A minute of 2,000 devices on the dev build: what must hold after a run is asserted, its times are printed.
fn simulate() -> Result<bool> {
    println!("\nsimulating 2,000 devices for 60 s");
    let held = bench::fleet::quick_on_dev_build()?;
    if !held {
        eprintln!("the simulation broke an invariant: see above");
    }
    Ok(held)
}

/// Every operation of the API answers as its document says.
fn conform() -> Result<bool> {
    println!("\nchecking the API against its document");
    api::run_built()
}

/// Programs of others that tests talk to, with their packages.
const PROGRAMS: [(&str, &str); 3] =
    [("mosquitto", "mosquitto"), ("mosquitto_pub", "mosquitto-clients"), ("postgres", "postgresql")];
/// Tests whose registry is on the engine that `MUSTER_TEST_REGISTRY` names.
const ON_REGISTRY: [&str; 8] =
    ["http::", "tenants::", "devices::", "alerts::", "rules::", "app::", "page::", "erasure::"];
/// Those of them that are about SQLite's file or have PostgreSQL each time, and parts of other names.
const ON_ONE_ENGINE: [&str; 5] =
    ["devices::replica::", "devices::store::", "platform::", "gateway::", "app::shared_tests::"];

/// Installs what is missing where that needs no question: as root, or with sudo that asks for no password.
/// Where it cannot, the tests that need a program are skipped and listed.
pub(crate) fn install_programs() {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return;
    }
    println!("installing {}", missing.join(" "));
    let script = format!(
        "run() {{ if [ \"$(id -u)\" = 0 ]; then \"$@\"; else sudo -n \"$@\"; fi; }}; run apt-get update -q && \
         run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends {}",
        missing.join(" ")
    );
    let installed = Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        eprintln!("cannot install {}: tests that need them are skipped", missing.join(" "));
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let dirs = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .chain(versions.map(|version| version.path().join("bin")));
    dirs.into_iter().any(|dir| dir.join(program).is_file())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Nextest,
    Cargo,
}

/// Words by which somebody says which targets to build.
const TARGETS: [&str; 6] = ["--lib", "--bins", "--bin", "--test", "--tests", "--doc"];

impl Runner {
    fn installed() -> Self {
        let answers = cargo::cargo()
            .args(["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if answers { Self::Nextest } else { Self::Cargo }
    }

    fn command(self, rest: &[String]) -> Command {
        let mut command = cargo::cargo();
        match self {
            Self::Nextest => command.args(["nextest", "run", "--locked", "--no-fail-fast"]),
            Self::Cargo => command.args(["test", "--locked", "--no-fail-fast"]),
        };
        if !rest.iter().any(|argument| argument == "-p" || argument.starts_with("--package")) {
            command.arg("--workspace");
        }
        // What was built already: by default a runner builds the examples too.
        if !rest.iter().any(|argument| TARGETS.contains(&argument.as_str())) {
            command.arg("--tests");
        }
        command.args(rest);
        command
    }

    /// The server's tests that have a registry, but for those of SQLite's own file.
    fn on_postgres(self) -> Command {
        let mut command = self.command(&self.of_server(&ON_REGISTRY, &ON_ONE_ENGINE));
        command.env("MUSTER_TEST_REGISTRY", "postgres");
        command
    }

    /// The store's suite and the erasures'; tests that are about one engine say so themselves.
    fn on_clickhouse(self) -> Command {
        let suites = ["platform::telemetry::tests::", "erasure::tests::"];
        let mut command = self.command(&self.of_server(&suites, &[]));
        command.env("MUSTER_TEST_TELEMETRY", "clickhouse");
        command
    }

    /// Chooses the server's own tests by parts of their names, in a build of the whole workspace: with the package
    /// alone cargo chooses other features, and compiles most of it again. Cargo's runner takes other crates' tests of
    /// such names along.
    fn of_server(self, with: &[&str], without: &[&str]) -> Vec<String> {
        let mut rest = vec!["--lib".to_owned()];
        match self {
            Self::Nextest => {
                let any = |names: &[&str]| {
                    names.iter().map(|name| format!("test({name})")).collect::<Vec<_>>().join(" | ")
                };
                let left_out = if without.is_empty() { "none()".to_owned() } else { any(without) };
                rest.push("-E".to_owned());
                rest.push(format!("package(muster-server) & ({}) - ({left_out})", any(with)));
            }
            Self::Cargo => {
                rest.push("--".to_owned());
                rest.extend(with.iter().map(|name| (*name).to_owned()));
                rest.extend(without.iter().flat_map(|name| ["--skip", name].map(str::to_owned)));
            }
        }
        rest
    }

    /// Whether a line of the runner's output belongs to its own summary.
    fn is_summary(self, line: &str) -> bool {
        match self {
            Self::Nextest => line.trim_start().starts_with("Summary ["),
            Self::Cargo => line.starts_with("test result: "),
        }
    }

    /// The summary as it is printed last. Cargo prints one line a test binary: empty ones are left out and a
    /// total is added.
    fn closing_lines(self, summary: &[String]) -> String {
        let mut text = String::new();
        let shown = summary.iter().filter(|line| !line.contains(" 0 passed; 0 failed; 0 ignored;"));
        for line in shown {
            text.push_str(line.trim());
            text.push('\n');
        }
        if self == Self::Cargo {
            let total = |noun: &str| summary.iter().filter_map(|line| count_before(line, noun)).sum::<u64>();
            let (passed, failed, ignored) = (total("passed"), total("failed"), total("ignored"));
            text.push_str(&format!("total: {passed} passed; {failed} failed; {ignored} ignored\n"));
        }
        text
    }
}

/// The number before a noun: 3 in `ok. 3 passed; 0 failed`.
fn count_before(line: &str, noun: &str) -> Option<u64> {
    let before = line.split(noun).next()?;
    before.split_whitespace().last()?.parse().ok()
}

/// Runs the command, passes its output on, and keeps the summary lines.
fn watch(mut command: Command, runner: Runner) -> Result<(bool, Vec<String>)> {
    // nextest writes its summary to stderr, cargo's harness to stdout.
    match runner {
        Runner::Nextest => command.stderr(Stdio::piped()),
        Runner::Cargo => command.stdout(Stdio::piped()),
    };
    let mut child = command.spawn().context("cannot start the test runner")?;
    let mut summary = Vec::new();
    let keep = |line: &str, summary: &mut Vec<String>| {
        if runner.is_summary(line) {
            summary.push(line.to_owned());
        }
    };
    if let Some(output) = child.stderr.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read the runner's output")?;
            eprintln!("{line}");
            keep(&line, &mut summary);
        }
    }
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read the runner's output")?;
            println!("{line}");
            keep(&line, &mut summary);
        }
    }
    let status = child.wait().context("cannot wait for the test runner")?;
    if status.success() && summary.is_empty() {
        bail!("the runner printed no summary");
    }
    Ok((status.success(), summary))
}

/// Prints what was skipped; in CI only the listed names may be.
fn report_skips(skips_file: &Path, ci: bool) -> Result<bool> {
    let allowed_file = cargo::root().join("tests/skips.txt");
    let allowed = std::fs::read_to_string(&allowed_file)
        .with_context(|| format!("cannot read {}", allowed_file.display()))?;
    let skipped = std::fs::read_to_string(skips_file).context("cannot read the skip list")?;
    let allowed: BTreeSet<&str> = names(&allowed).collect();
    let skipped_lines: BTreeSet<&str> = lines(&skipped).collect();
    println!("\nskipped tests: {}", skipped_lines.len());
    for line in &skipped_lines {
        println!("  {line}");
    }
    let unlisted: Vec<&str> = names(&skipped).filter(|name| !allowed.contains(name)).collect();
    if ci && !unlisted.is_empty() {
        eprintln!("skipped, but not listed in tests/skips.txt: {}", unlisted.join(", "));
        return Ok(false);
    }
    Ok(true)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    lines(text).filter_map(|line| line.split(": ").next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_summaries_are_added_up_and_empty_ones_left_out() {
        let summary = [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]
        .map(str::to_owned);
        let text = Runner::Cargo.closing_lines(&summary);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.lines().last(), Some("total: 5 passed; 1 failed; 1 ignored"));
    }

    #[test]
    fn nextest_summary_line_is_found() {
        let line = "     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped";
        assert!(Runner::Nextest.is_summary(line));
        assert_eq!(Runner::Nextest.closing_lines(&[line.to_owned()]), format!("{}\n", line.trim()));
    }

    #[test]
    fn skip_lists_hold_names_with_a_reason() {
        let text = "# comment\n\nmosquitto_pub_joins: mosquitto is not installed\nother: why: not\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["mosquitto_pub_joins", "other"]);
    }
}
