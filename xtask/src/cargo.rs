//! Where the workspace is, and cargo as a child process.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask stands one level below the workspace root").to_owned()
}

/// The directory that cargo builds into.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where the dev profile's binaries are after a build.
pub(crate) fn dev_binaries() -> PathBuf {
    target_dir().join("debug")
}

/// Builds every binary and test together, so that both resolve to the same features and dependencies are
/// compiled once.
///
/// # Errors
/// Cargo cannot be started, or the build fails.
pub(crate) fn build_for_tests() -> Result<()> {
    run(cargo().args(["build", "--locked", "--workspace", "--bins", "--tests"]))
}

/// Builds the server and the agent with the dev profile.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_programs() -> Result<()> {
    run(cargo().args([
        "build",
        "--locked",
        "--bins",
        "--package",
        "muster-server",
        "--package",
        "muster-agent",
    ]))
}

/// Builds the server with the dev profile.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_server() -> Result<()> {
    run(cargo().args(["build", "--locked", "--bins", "--package", "muster-server"]))
}

/// Where the `dist` profile's binaries are after a build.
pub(crate) fn dist_binaries() -> PathBuf {
    target_dir().join("dist")
}

/// Builds binaries as they are shipped: fat LTO, stripped. Takes minutes.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_dist(packages: &[&str]) -> Result<()> {
    println!("building {} with fat LTO (takes some minutes the first time)", packages.join(" and "));
    for package in packages {
        // One at a time: each is measured with the features that it asks for itself.
        run(cargo().args(["build", "--locked", "--profile", "dist", "--bins", "--package", package]))?;
    }
    Ok(())
}

/// Where the agent is after [`build_agent`].
pub(crate) fn agent_binary() -> PathBuf {
    target_dir().join("agent").join("muster-agent")
}

/// Builds the agent as it is shipped, with a profile of its own. Takes minutes.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_agent() -> Result<PathBuf> {
    build_agent_with("tract")
}

/// The profile with which the agent with these engines is shipped.
pub(crate) fn agent_profile(features: &str) -> &'static str {
    if features.is_empty() { "agent-lean" } else { "agent" }
}

/// The same with the engines that `features` names, none of them where it is empty; says where it is.
///
/// # Errors
/// As [`build_for_tests`].
pub(crate) fn build_agent_with(features: &str) -> Result<PathBuf> {
    println!("building muster-agent [{features}] for small size (takes some minutes the first time)");
    let profile = agent_profile(features);
    let build = ["build", "--locked", "--profile", profile, "--bins", "--package", "muster-agent"];
    run(cargo().args(build).args(["--no-default-features", "--features", features]))?;
    Ok(target_dir().join(profile).join("muster-agent"))
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or ends with another status than 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
