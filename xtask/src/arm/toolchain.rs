//! A Rust and a C compiler for ARM, and an emulator, out of unpacked packages.
//!
//! The project's own cargo drives Debian's rustc, whose standard libraries are for more targets than the project's own.

use super::Engine;
use super::packages::Packages;
use crate::cargo;
use anyhow::{Context, Result};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is built for.
pub(super) struct Target {
    pub(super) triple: &'static str,
    pub(super) packages: &'static Packages,
    /// Processors that the kernels' tests run on, and which kernels each must take.
    pub(super) processors: &'static [(&'static str, &'static str)],
    /// Before the names of its C tools, and its folder below `usr`.
    gnu: &'static str,
    emulator: &'static str,
    /// The processor that the agent runs on.
    processor: &'static str,
    /// Whether the standard library is compiled here: there is no package of it.
    is_std_built: bool,
}

/// 64-bit ARM.
pub(super) const AARCH64: &Target = &Target {
    triple: "aarch64-unknown-linux-gnu",
    packages: &Packages {
        programs: &["rustc-web", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"],
        foreign: &[("libstd-rust-web-dev", "arm64")],
        same_version_as: "rustc-web",
    },
    processors: &[("max", "Dotprod"), ("cortex-a53", "Portable")],
    gnu: "aarch64-linux-gnu",
    emulator: "qemu-aarch64-static",
    processor: "max",
    is_std_built: false,
};

/// 32-bit ARM: ARMv7 with hard floats.
pub(super) const ARMV7: &Target = &Target {
    triple: "armv7-unknown-linux-gnueabihf",
    packages: &Packages {
        programs: &[
            "rustc-web",
            "rust-web-src",
            "gcc-arm-linux-gnueabihf",
            "libc6-dev-armhf-cross",
            "qemu-user-static",
        ],
        foreign: &[],
        same_version_as: "rustc-web",
    },
    processors: &[("cortex-a7", "Portable")],
    gnu: "arm-linux-gnueabihf",
    emulator: "qemu-arm-static",
    processor: "cortex-a7",
    is_std_built: true,
};

/// Builds and runs for one target.
pub(super) struct Toolchain {
    dir: PathBuf,
    root: PathBuf,
    bin: PathBuf,
    target: &'static Target,
}

/// An agent that was built.
pub(super) struct Built {
    pub(super) file: PathBuf,
    /// Profile and links, in words.
    pub(super) how: String,
}

impl Toolchain {
    /// Writes the wrappers that make unpacked programs find their libraries.
    ///
    /// # Errors
    /// A wrapper cannot be written.
    pub(super) fn set_up(dir: &Path, root: &Path, target: &'static Target) -> Result<Self> {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        let toolchain = Self { dir: dir.to_owned(), root: root.to_owned(), bin, target };
        let (usr, gnu) = (root.join("usr"), target.gnu);
        let usr = usr.display();
        let libraries = format!("export LD_LIBRARY_PATH={usr}/lib/x86_64-linux-gnu:{usr}/lib/llvm-22/lib\n",);
        let tool =
            |name: &str, command: String| toolchain.script(name, &format!("{libraries}exec {command}"));
        tool("rustc", format!("{usr}/bin/rustc --sysroot {usr}"))?;
        tool(&format!("{gnu}-gcc"), format!("{usr}/bin/{gnu}-gcc --sysroot={}", root.display()))?;
        tool(&format!("{gnu}-ar"), format!("{usr}/bin/{gnu}-ar"))?;
        Ok(toolchain)
    }

    /// A script whose last command takes further arguments.
    fn script(&self, name: &str, commands: &str) -> Result<PathBuf> {
        let file = self.bin.join(name);
        let fail = || format!("cannot write {}", file.display());
        std::fs::write(&file, format!("#!/bin/sh\n{commands} \"$@\"\n")).with_context(fail)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o755)).with_context(fail)?;
        Ok(file)
    }

    /// The emulator with the target's C library.
    fn emulator(&self, processor: &str) -> String {
        let usr = self.root.join("usr");
        format!(
            "{0}/bin/{1} -cpu {processor} -L {0}/{2}",
            usr.display(),
            self.target.emulator,
            self.target.gnu
        )
    }

    /// cargo that compiles for the target, below a folder of its own.
    fn cargo(&self, subcommand: &str, processor: &str) -> Command {
        let (triple, gnu) = (self.target.triple, self.target.gnu);
        let (lower, upper) = (triple.replace('-', "_"), triple.replace('-', "_").to_uppercase());
        let tool = |name: &str| self.bin.join(format!("{gnu}-{name}"));
        let mut command = cargo::cargo();
        command
            .args([subcommand, "--locked", "--target", triple, "--target-dir"])
            .arg(self.dir.join("build"));
        command.env("RUSTC", self.bin.join("rustc"));
        command.env(format!("CARGO_TARGET_{upper}_LINKER"), tool("gcc"));
        command.env(format!("CARGO_TARGET_{upper}_RUNNER"), self.emulator(processor));
        command.env(format!("CC_{lower}"), tool("gcc")).env(format!("AR_{lower}"), tool("ar"));
        if self.target.is_std_built {
            // The switch is for compilers that are no stable release's; the library is that compiler's own.
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_unwind");
        }
        command
    }

    /// The kernels' tests on an emulated processor, which must take the kernels of that name.
    ///
    /// # Errors
    /// A test fails, or it takes others.
    pub(super) fn test_kernels(&self, processor: &str, expected: &str) -> Result<()> {
        let mut command = self.cargo("test", processor);
        command.args(["--quiet", "--package", "muster-kernels", "--lib", "--tests"]);
        cargo::run(command.env("MUSTER_KERNELS_ISA", expected))
    }

    /// Builds the agent with the profile that it is shipped with; without LTO unless it is as shipped.
    ///
    /// # Errors
    /// The build fails.
    pub(super) fn build_agent(&self, engine: Engine, shipped: bool) -> Result<Built> {
        let mut command = self.cargo("build", self.target.processor);
        let profile = cargo::agent_profile(engine.features());
        command.args(["--profile", profile, "--package", "muster-agent", "--bin", "muster-agent"]);
        command.args(["--no-default-features", "--features", engine.features()]);
        if !shipped {
            command.args(["--config", &format!("profile.{profile}.lto=false")]);
            command.args(["--config", &format!("profile.{profile}.codegen-units=16")]);
        }
        cargo::run(&mut command)?;
        let file = self.dir.join("build").join(self.target.triple).join(profile).join("muster-agent");
        let how = format!(
            "profile {profile}, {}",
            if shipped { "as shipped" } else { "but without LTO (--shipped has it)" }
        );
        Ok(Built { file, how })
    }

    /// A program of this machine that becomes the emulator with the agent, under the same process id.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn emulated(&self, built: &Built) -> Result<PathBuf> {
        let emulator = self.emulator(self.target.processor);
        self.script("muster-agent", &format!("exec {emulator} {}", built.file.display()))
    }
}
