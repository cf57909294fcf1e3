//! What a choice hangs on, as hashes: the bundle's content, and what runs it.

use muster_runtime::{Bundle, EngineKind, MANIFEST_BYTES_MAX, MODEL_BYTES_MAX};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Bytes of `/proc/cpuinfo` that are looked at.
const CPUINFO_BYTES_MAX: u64 = 1 << 20;
/// What tells processors apart there, on x86 and ARM; clock rates change by themselves.
const CPU_KEYS: &[&str] =
    &["model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"];

/// `model.toml` and every file that holds the model; one that cannot be read counts as missing.
pub(super) fn bundle(bundle: &Bundle) -> String {
    let mut hash = Sha256::new();
    add_file(&mut hash, &bundle.dir().join("model.toml"), MANIFEST_BYTES_MAX);
    for form in bundle.manifest().forms() {
        add_file(&mut hash, &bundle.dir().join(&form.file), MODEL_BYTES_MAX);
    }
    hex::encode(hash.finalize())
}

/// Each file by a hash of its own, so that no byte can move from one to the next.
fn add_file(hash: &mut Sha256, path: &Path, bytes_max: u64) {
    let mut file_hash = Sha256::new();
    let copied = File::open(path).and_then(|file| std::io::copy(&mut file.take(bytes_max), &mut file_hash));
    match copied {
        Ok(_) => hash.update(file_hash.finalize()),
        Err(_) => hash.update(b"missing"),
    }
}

/// This agent's version, its engines, and the processor.
pub(super) fn device() -> String {
    let mut cpuinfo = Vec::new();
    // Where there is no such file the architecture must do.
    let _ =
        File::open("/proc/cpuinfo").and_then(|file| file.take(CPUINFO_BYTES_MAX).read_to_end(&mut cpuinfo));
    let engines: Vec<&str> = EngineKind::ALL.iter().map(|engine| engine.as_str()).collect();
    let cpuinfo = String::from_utf8_lossy(&cpuinfo);
    device_of(env!("CARGO_PKG_VERSION"), &engines, std::env::consts::ARCH, &cpuinfo)
}

fn device_of(version: &str, engines: &[&str], arch: &str, cpuinfo: &str) -> String {
    let cpu: BTreeSet<&str> = cpuinfo
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|key| CPU_KEYS.contains(&key.trim())))
        .collect();
    let mut hash = Sha256::new();
    write!(hash, "{version:?} {arch:?} {engines:?} {cpu:?}").expect("a hash takes every byte");
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_version_engines_and_processor_but_no_clock_rate() {
        let cpu = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 2000.1\nflags\t\t: avx2\nprocessor\t: 1\nmodel name\t: A\n";
        let base = device_of("1", &["tract"], "x86_64", cpu);
        assert_eq!(device_of("1", &["tract"], "x86_64", &cpu.replace("2000.1", "1800.5")), base);
        let others = [
            device_of("2", &["tract"], "x86_64", cpu),
            device_of("1", &["tract", "rten"], "x86_64", cpu),
            device_of("1", &["rten"], "x86_64", cpu),
            device_of("1", &["tract"], "aarch64", cpu),
            device_of("1", &["tract"], "x86_64", &cpu.replace("avx2", "avx2 avx512_vnni")),
            device_of("1", &["tract"], "x86_64", &cpu.replace("1\nmodel name\t: A", "1\nmodel name\t: B")),
            device_of("1", &["tract"], "x86_64", ""),
        ];
        let distinct: BTreeSet<_> = others.iter().chain([&base]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
        assert_eq!(device(), device());
    }
}
