//! `xtask gen`: files that are made from the code. A test of the server checks that the committed ones are true.

use crate::cargo;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Made by `muster-server openapi`.
const OPENAPI: &str = "docs/api/openapi.json";

/// Command line of `xtask gen`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail where a file is out of date.
    #[arg(long)]
    check: bool,
}

/// Writes or checks the files; answers whether they are true.
///
/// # Errors
/// The server cannot be built, or a file cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    cargo::build_programs()?;
    let server = cargo::dev_binaries().join("muster-server");
    let output = Command::new(&server).arg("openapi").output().context("cannot start muster-server")?;
    if !output.status.success() {
        bail!("muster-server openapi: {}", String::from_utf8_lossy(&output.stderr));
    }
    let path = cargo::root().join(OPENAPI);
    if arguments.check {
        let committed = std::fs::read(&path).unwrap_or_default();
        if committed != output.stdout {
            eprintln!("{OPENAPI} is out of date: run `cargo xtask gen`");
        }
        return Ok(committed == output.stdout);
    }
    std::fs::create_dir_all(path.parent().context("the path has a folder")?)?;
    std::fs::write(&path, &output.stdout).with_context(|| format!("cannot write {OPENAPI}"))?;
    println!("{OPENAPI}: {} bytes", output.stdout.len());
    Ok(true)
}
