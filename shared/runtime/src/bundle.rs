//! A bundle on disk: a directory with `model.toml`, `model.onnx`, the model's other forms and the files that golden samples name.
//!
//! `agent` opens bundles at start and in `muster-agent check`. Everything read is bounded; an error names file, field and
//! what was expected. Nothing outside the directory is read.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::forms::{Form, MODEL_FILE};
use crate::manifest::Manifest;
use crate::parse::{ParseError, parse_manifest};

/// Largest `model.toml`.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest model file.
pub const MODEL_BYTES_MAX: u64 = 256 << 20;
/// Largest golden file.
pub(crate) const GOLDEN_BYTES_MAX: u64 = 64 << 20;

/// Why a bundle cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file is missing or cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is over its bound.
    #[error("{file}: expected at most {bytes_max} bytes")]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
    /// `model.toml` is not UTF-8.
    #[error("{file}: expected UTF-8 text")]
    NotText {
        /// The file.
        file: PathBuf,
    },
    /// `model.toml` is refused: the field and what was expected.
    #[error("{file}: {problem}")]
    Manifest {
        /// The file.
        file: PathBuf,
        /// Line or field, and what was expected.
        problem: String,
    },
}

/// An opened bundle: the checked manifest and the model's bytes.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    onnx: Vec<u8>,
}

impl Bundle {
    /// Opens the bundle in `dir`.
    ///
    /// # Errors
    /// When a file is missing, too large, or `model.toml` is refused; the text names file, field and expectation.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, BundleError> {
        let dir = dir.as_ref().to_path_buf();
        let file = dir.join("model.toml");
        let bytes = read_bounded(&file, MANIFEST_BYTES_MAX)?;
        let text = String::from_utf8(bytes).map_err(|_| BundleError::NotText { file: file.clone() })?;
        let manifest = parse_manifest(&text)
            .map_err(|error| BundleError::Manifest { file, problem: problem_text(&error) })?;
        let onnx = read_bounded(&dir.join(MODEL_FILE), MODEL_BYTES_MAX)?;
        Ok(Self { dir, manifest, onnx })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The checked `model.toml`.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of one of the forms; `model.onnx` is in memory, another is read.
    ///
    /// # Errors
    /// When the file is missing or too large.
    pub fn form_bytes(&self, form: &Form) -> Result<Cow<'_, [u8]>, BundleError> {
        if form.file == MODEL_FILE {
            return Ok(Cow::Borrowed(&self.onnx));
        }
        read_bounded(&self.dir.join(&form.file), MODEL_BYTES_MAX).map(Cow::Owned)
    }

    /// Reads a file that a golden sample names; `parse` made sure that it stays inside.
    pub(crate) fn read_golden(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        read_bounded(&self.dir.join(name), GOLDEN_BYTES_MAX)
    }
}

fn problem_text(error: &ParseError) -> String {
    error.to_string().trim_end().to_owned()
}

/// Reads a whole file of at most `bytes_max` bytes.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BundleError> {
    let read_error = |source| BundleError::Read { file: path.to_path_buf(), source };
    let file = File::open(path).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > bytes_max {
        return Err(BundleError::TooLarge { file: path.to_path_buf(), bytes_max });
    }
    Ok(bytes)
}
