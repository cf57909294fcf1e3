//! Packages of the archives that the machine's own apt names, unpacked below a folder of ours.
//!
//! apt runs with state, cache and status of its own, so nothing on the machine is changed or locked, and no root is needed.

use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a target needs.
pub(super) struct Packages {
    /// Programs of this machine, with what they depend on.
    pub(super) programs: &'static [&'static str],
    /// Of another architecture, alone, in the version of `same_version_as`.
    pub(super) foreign: &'static [(&'static str, &'static str)],
    pub(super) same_version_as: &'static str,
}

/// Cross tools that the machine has count as missing: all are to lie in one folder.
const NOT_COUNTED: [&str; 9] = [
    "aarch64-linux-gnu",
    "arm-linux-gnueabihf",
    "-arm64-cross",
    "-armhf-cross",
    "crossbuild-essential",
    "rust-web",
    "rustc-web",
    "cargo-web",
    "qemu-user",
];
/// What the machine has installed.
const MACHINE_STATUS: &str = "/var/lib/dpkg/status";

/// Fetches and unpacks, once; answers the folder that holds `usr`.
///
/// # Errors
/// This is no Debian, or a package cannot be fetched; with apt's own words.
pub(super) fn fetch(dir: &Path, packages: &Packages) -> Result<PathBuf> {
    let (root, done) = (dir.join("root"), dir.join("packages.txt"));
    let foreign = packages.foreign.iter().map(|(name, architecture)| format!("{name}:{architecture}"));
    let wanted: Vec<String> =
        packages.programs.iter().map(|name| (*name).to_owned()).chain(foreign.clone()).collect();
    let unpacked = std::fs::read_to_string(&done).unwrap_or_default();
    if wanted.iter().all(|name| unpacked.lines().any(|line| line == name)) {
        println!("packages: those of an earlier run, in {}", root.display());
        return Ok(root);
    }
    let apt = Apt::set_up(&dir.join("apt"))?;
    println!("reading the archives' lists");
    let update = apt.run("apt-get", &["update", "-q"]).context("cannot read the lists of the archives")?;
    // apt calls it a success where no archive answered.
    let warning = first_warning(&String::from_utf8_lossy(&update.stderr));
    println!("fetching {}, and what they need", wanted.join(" "));
    let mut install = vec!["install", "--yes", "-q", "--download-only"];
    install.extend(packages.programs);
    apt.run("apt-get", &install)
        .with_context(|| format!("cannot fetch {}{warning}", packages.programs.join(" ")))?;
    let version = apt.version_of(packages.same_version_as)?;
    for name in foreign {
        let name = format!("{name}={version}");
        apt.run("apt-get", &["download", "-q", &name])
            .with_context(|| format!("cannot fetch {name}{warning}"))?;
    }
    let archives = apt.archives()?;
    println!("unpacking {} packages into {}", archives.len(), root.display());
    for archive in &archives {
        checked(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))
            .with_context(|| format!("cannot unpack {}", archive.display()))?;
    }
    let all: Vec<&str> = unpacked.lines().chain(wanted.iter().map(String::as_str)).collect();
    std::fs::write(&done, all.join("\n")).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(root)
}

/// apt with a folder of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn set_up(dir: &Path) -> Result<Self> {
        for name in ["lists/partial", "archives/partial"] {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let status = std::fs::read_to_string(MACHINE_STATUS).with_context(|| {
            format!("cannot read {MACHINE_STATUS}: `xtask arm` takes its tools from a Debian's archives")
        })?;
        let (apt, folder) = (Self { dir: dir.to_owned() }, dir.display());
        apt.write("status", &counted(&status))?;
        apt.write(
            "apt.conf",
            &format!(
                "Dir::State \"{folder}\";\nDir::State::lists \"{folder}/lists\";\nDir::State::status \"{folder}/status\";\n\
                 Dir::Cache \"{folder}\";\nDir::Cache::archives \"{folder}/archives\";\nDir::Log \"{folder}\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
                 APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\n\
                 Acquire::Retries \"3\";\nDebug::NoLocking \"true\";\n\
                 #clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n",
            ),
        )?;
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.dir.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.dir.join("archives"));
        checked(command.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C"))
    }

    /// The version that apt would install.
    fn version_of(&self, package: &str) -> Result<String> {
        let output = self.run("apt-cache", &["policy", package])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        candidate(&text).map(str::to_owned).with_context(|| format!("no version of {package} is known"))
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join("archives");
        let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The status file without what is not to count.
fn counted(status: &str) -> String {
    let is_counted = |paragraph: &&str| {
        let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or_default();
        !name.is_empty() && !NOT_COUNTED.iter().any(|part| name.contains(part))
    };
    let mut text = String::with_capacity(status.len());
    for paragraph in status.split("\n\n").filter(is_counted) {
        // Writing into a text cannot fail.
        let _ = writeln!(text, "{}\n", paragraph.trim_end());
    }
    text
}

/// What apt complained of first, as the end of an error's sentence; nothing where it did not.
fn first_warning(said: &str) -> String {
    let warning = said.lines().find_map(|line| line.strip_prefix("W: "));
    warning.map(|warning| format!(" (of the archives' lists: {warning})")).unwrap_or_default()
}

/// The version that `apt-cache policy` names as the one to install.
fn candidate(policy: &str) -> Option<&str> {
    let found = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (found != "(none)").then_some(found)
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or fails; with the last lines of what it said.
fn checked(command: &mut Command) -> Result<Output> {
    const LINES: usize = 8;
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        bail!("{program} ended with {}:\n{last}", output.status);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_tools_of_the_machine_do_not_count() {
        let status = "Package: gcc-12-aarch64-linux-gnu\nStatus: install ok installed\n\n\
                      Package: libc6\nStatus: install ok installed\n\nPackage: rustc-web\nVersion: 1\n\n";
        assert_eq!(counted(status), "Package: libc6\nStatus: install ok installed\n\n");
    }

    #[test]
    fn a_list_that_was_not_read_is_named() {
        let said = "W: Failed to fetch the list\nW: Some index files failed to download.\n";
        assert_eq!(first_warning(said), " (of the archives' lists: Failed to fetch the list)");
        assert_eq!(first_warning(""), "");
    }

    #[test]
    fn the_version_to_install_is_found() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1\n  Version table:\n";
        assert_eq!(candidate(policy), Some("1.96.0+dfsg1-1"));
        assert_eq!(candidate("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }
}
