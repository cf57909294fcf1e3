//! Numpy archives, bundles on disk, and where the material for tests lies.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// A committed bundle below `agent/models`.
pub fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/models").join(name)
}

/// The folder with third-party models: `MUSTER_SHARED`, or `shared` beside the workspace or above.
pub fn shared() -> PathBuf {
    found_shared().expect("a test that needs the folder asks `without_reference_models` first")
}

/// Whether a test must be skipped, since the third-party models are not part of the project and not here. It is
/// noted in the file that `cargo xtask test` prints; tests/skips.txt lists who may.
pub fn without_reference_models(test: &str) -> bool {
    if found_shared().is_some() {
        return false;
    }
    let line = format!("{test}: no reference models; set MUSTER_SHARED to the folder that holds `models`\n");
    match std::env::var_os("MUSTER_SKIPS_FILE") {
        None => eprint!("skipped {line}"),
        Some(path) => {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
    }
    true
}

fn found_shared() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MUSTER_SHARED") {
        let path = PathBuf::from(path);
        assert!(path.join("models").is_dir(), "MUSTER_SHARED is {path:?}, which has no folder `models`");
        return Some(path);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    workspace.ancestors().map(|dir| dir.join("shared")).find(|dir| dir.join("models/ad01_wq8.onnx").is_file())
}

/// One f32 array of an .npz file: shape and values.
pub fn npz(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let member = zip_member(&bytes, &format!("{name}.npy"))
        .unwrap_or_else(|| panic!("{path:?} holds no array {name}"));
    npy(&member)
}

/// A member of a zip archive, stored or deflated, found through the central directory.
fn zip_member(zip: &[u8], name: &str) -> Option<Vec<u8>> {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([zip[at], zip[at + 1]]));
    let u32_at = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) as usize;
    let end = (0..zip.len() - 21).rev().find(|&at| zip[at..].starts_with(b"PK\x05\x06"))?;
    let mut at = u32_at(end + 16);
    while zip[at..].starts_with(b"PK\x01\x02") {
        let (method, packed, name_length) = (u16_at(at + 10), u32_at(at + 20), u16_at(at + 28));
        if &zip[at + 46..at + 46 + name_length] == name.as_bytes() {
            let local = u32_at(at + 42);
            let start = local + 30 + u16_at(local + 26) + u16_at(local + 28);
            let data = &zip[start..start + packed];
            if method == 0 {
                return Some(data.to_vec());
            }
            let mut member = Vec::new();
            flate2::read::DeflateDecoder::new(data).read_to_end(&mut member).unwrap();
            return Some(member);
        }
        at += 46 + name_length + u16_at(at + 30) + u16_at(at + 32);
    }
    None
}

fn npy(bytes: &[u8]) -> (Vec<usize>, Vec<f32>) {
    assert_eq!(&bytes[..6], b"\x93NUMPY");
    let header_length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + header_length]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    let dims = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let shape = dims
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().unwrap())
        .collect();
    let values =
        bytes[10 + header_length..].as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    (shape, values)
}

/// Writes a bundle: `head` is model.toml without golden samples; each sample is an input and an output tensor.
pub fn write_bundle(dir: &Path, head: &str, onnx: &Path, samples: &[(&[f32], &[f32])], tolerance: f32) {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut text = head.to_owned();
    for (index, (input, output)) in samples.iter().enumerate() {
        let (x, y) = (format!("x{index}.f32"), format!("y{index}.f32"));
        fs::write(dir.join(&x), bytes(input)).unwrap();
        fs::write(dir.join(&y), bytes(output)).unwrap();
        text += &format!(
            "[[golden]]\nname = \"sample {index}\"\ntensor = \"{x}\"\nexpected_file = \"{y}\"\ntolerance = {tolerance:?}\n"
        );
    }
    fs::write(dir.join("model.toml"), text).unwrap();
    fs::copy(onnx, dir.join("model.onnx")).unwrap_or_else(|error| panic!("{onnx:?}: {error}"));
}

/// Copies a bundle, so that a test can tamper with it.
pub fn copy_bundle(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_bundle(&entry.path(), &target);
        } else {
            // The copy must be writable even when the original is not.
            fs::write(&target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}
