//! The models' recipe (`agent/models/recipe`) and its Python: `xtask test` runs its tests and checks the committed bundles,
//! `xtask bench models` runs ONNX Runtime from the same environment.
//!
//! Needs Python 3.11 with venv; the packages are installed below `target/` where they are missing.

use crate::cargo;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// What the recipe needs, with versions.
const REQUIREMENTS: &str = include_str!("../../agent/models/recipe/requirements.txt");

/// Python with the recipe's packages.
///
/// # Errors
/// Python has no `venv`, or a package cannot be fetched.
pub(crate) fn python() -> Result<PathBuf> {
    let home = cargo::target_dir().join("recipe-venv");
    let (python, installed) = (home.join("bin/python"), home.join("installed.txt"));
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(python);
    }
    println!("installing the packages of the models' recipe");
    cargo::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))
        .context("Python 3.11 with venv is needed")?;
    let mut pip = Command::new(home.join("bin/pip"));
    pip.args(["install", "-q", "--disable-pip-version-check", "-r"]);
    cargo::run(pip.arg(folder().join("requirements.txt")))?;
    std::fs::write(&installed, REQUIREMENTS).context("cannot note what is installed")?;
    Ok(python)
}

/// Runs the recipe's tests and checks the committed bundles; answers whether all held.
///
/// # Errors
/// As [`python`].
pub(crate) fn test() -> Result<bool> {
    let python = python()?;
    for arguments in [["-m", "unittest"], ["recipe.py", "check"]] {
        let mut command = Command::new(&python);
        let status = command.args(arguments).current_dir(folder()).status().context("cannot run Python")?;
        if !status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn folder() -> PathBuf {
    cargo::root().join("agent/models/recipe")
}
