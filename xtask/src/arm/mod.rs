//! `xtask arm`: the agent built for ARM and run under emulation.
//!
//! Promise: compiler, C compiler and emulator are fetched from the archives that the machine's own apt names, and unpacked
//! below `target/arm`; nothing on the machine changes. Then the kernels' tests run for processors with and without the dot
//! product, the agent is built, and `muster-agent check` runs with both model bundles. With `--fleet` the emulated agent
//! also enrols with a server of this machine, scores and publishes. An emulator's times mean nothing: none is printed.
//!
//! Needs Debian or a derivative on x86-64, a C compiler and a network; CI does not run it. Nothing is fetched or built twice.
//! `target/arm` removed is all made anew.

mod agent;
mod packages;
mod toolchain;

use crate::cargo;
use crate::process::catch_interrupts;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use toolchain::{AARCH64, ARMV7, Built, Toolchain};

/// Command line of `xtask arm`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The emulated agent also enrols with a real server, scores and publishes.
    #[arg(long)]
    fleet: bool,
    /// A muster-server that is built already, for `--fleet`; else the dev build is made.
    #[arg(long, value_name = "FILE", requires = "fleet")]
    server: Option<PathBuf>,
    /// As it is shipped, with fat LTO, which takes long. Else the same levels without LTO.
    #[arg(long)]
    shipped: bool,
    /// The inference engine inside.
    #[arg(long, value_enum, default_value_t = Engine::Tract)]
    engine: Engine,
    /// For 32-bit ARM (ARMv7 with hard floats), in place of 64-bit, as far as it goes: the kernels' tests pass, a whole build of the
    /// agent was not tried. The standard library is compiled too.
    #[arg(long)]
    armv7: bool,
}

/// Which engine the agent is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    Tract,
    Rten,
    None,
}

impl Engine {
    fn features(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::Rten => "rten",
            Self::None => "",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::Rten => "rten",
            Self::None => "none",
        }
    }
}

/// Fetches, builds and runs; answers whether all held.
///
/// # Errors
/// A package cannot be fetched, a build fails, or the agent refuses what it should take.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    catch_interrupts();
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        bail!("`xtask arm` needs Linux on x86-64: its compiler and emulator are packages for that");
    }
    if arguments.fleet && arguments.engine == Engine::None {
        bail!("--fleet scores models: it needs an engine, found --engine none");
    }
    let target = if arguments.armv7 { ARMV7 } else { AARCH64 };
    // Absolute: programs run in several directories.
    let dir = std::path::absolute(cargo::target_dir().join("arm")).context("no current directory")?;
    let packages = packages::fetch(&dir, target.packages)?;
    let toolchain = Toolchain::set_up(&dir, &packages, target)?;

    // By its own name where only one of the two codes is compiled.
    for (processor, expected) in target.processors {
        println!("the kernels' tests on an emulated {processor}: {expected}");
        toolchain.test_kernels(processor, expected)?;
    }
    println!("building muster-agent for {}, engine {}", target.triple, arguments.engine.name());
    let built = toolchain.build_agent(arguments.engine, arguments.shipped)?;
    describe(&built)?;
    let program = toolchain.emulated(&built)?;
    let runs = dir.join("run");
    if arguments.engine != Engine::None {
        agent::check(&program, &runs)?;
    }
    if !arguments.fleet {
        return Ok(true);
    }
    let server = match &arguments.server {
        Some(server) => server.clone(),
        None => {
            println!("building the server (the first time takes some minutes)");
            cargo::build_server()?;
            cargo::dev_binaries().join("muster-server")
        }
    };
    agent::fleet(&server, &program, &runs)
}

/// Says how large it is, and for which processor.
fn describe(built: &Built) -> Result<()> {
    let file = &built.file;
    let bytes = std::fs::metadata(file).with_context(|| format!("no {}", file.display()))?.len();
    println!("  {}: {:.2} MB, {}", file.display(), bytes as f64 / 1e6, built.how);
    Ok(())
}
