//! The choices that were made before: `<data_dir>/choices.json`.
//!
//! It spares the next start the measuring and holds nothing else: a file that is gone, damaged, or of another agent or
//! processor means that is measured again. Limits: 64 choices, 256 KiB; the oldest goes.

use super::fingerprint;
use crate::config::PIPELINES_MAX;
use crate::files;
use muster_runtime::Candidate;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file below `data_dir`.
const FILE_NAME: &str = "choices.json";
/// The largest file; a choice has at most 2 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Choices kept, the newest first.
const CHOICES_MAX: usize = PIPELINES_MAX;
/// The version of the file's format.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    /// Of agent, engines and processor.
    device: String,
    choices: Vec<KeptChoice>,
}

/// What a bundle runs with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptChoice {
    /// Of the bundle's content.
    bundle: String,
    engine: String,
    file: String,
    median_ns: u64,
}

impl KeptChoice {
    pub(super) fn new(bundle: String, chosen: &Candidate, median: Duration) -> Self {
        let median_ns = u64::try_from(median.as_nanos()).unwrap_or(u64::MAX);
        Self { bundle, engine: chosen.engine.as_str().into(), file: chosen.form.file.clone(), median_ns }
    }

    pub(super) fn is(&self, candidate: &Candidate) -> bool {
        self.engine == candidate.engine.as_str() && self.file == candidate.form.file
    }

    pub(super) fn median(&self) -> Duration {
        Duration::from_nanos(self.median_ns)
    }
}

/// The choices of this device.
#[derive(Debug)]
pub struct Choices {
    data_dir: PathBuf,
    device: String,
    kept: Vec<KeptChoice>,
    is_changed: bool,
}

impl Choices {
    /// Reads what was kept below `data_dir`; the folder need not exist.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        Self::open_for(data_dir, fingerprint::device())
    }

    fn open_for(data_dir: &Path, device: String) -> Self {
        let path = data_dir.join(FILE_NAME);
        let kept = match read(&path) {
            Ok(Some(kept)) if kept.format == FORMAT && kept.device == device => kept.choices,
            Ok(Some(_)) => {
                tracing::info!("another agent or processor chose engines and forms, they are chosen anew");
                Vec::new()
            }
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::warn!(file = %path.display(), error, "kept choices cannot be read, they are made anew");
                Vec::new()
            }
        };
        let mut choices = Self { data_dir: data_dir.to_owned(), device, kept, is_changed: false };
        choices.kept.truncate(CHOICES_MAX);
        choices
    }

    pub(super) fn find(&self, bundle: &str) -> Option<&KeptChoice> {
        self.kept.iter().find(|kept| kept.bundle == bundle)
    }

    pub(super) fn keep(&mut self, choice: KeptChoice) {
        self.kept.retain(|kept| kept.bundle != choice.bundle);
        self.kept.insert(0, choice);
        self.kept.truncate(CHOICES_MAX);
        self.is_changed = true;
    }

    /// Writes what was chosen since; where that fails it is logged, and the next start measures again.
    pub fn save(&mut self) {
        if !self.is_changed {
            return;
        }
        match self.write() {
            Ok(()) => self.is_changed = false,
            Err(error) => {
                let (dir, error) = (self.data_dir.display(), format!("{error:#}"));
                tracing::warn!(%dir, error, "the choice of engine and form cannot be kept, the next start measures again");
            }
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        let kept = Kept { format: FORMAT, device: self.device.clone(), choices: self.kept.clone() };
        Ok(files::replace(&self.data_dir, FILE_NAME, &serde_json::to_vec_pretty(&kept)?)?)
    }
}

/// None where there is no file; the text says what is wrong with one.
fn read(path: &Path) -> Result<Option<Kept>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("expected at most {FILE_BYTES_MAX} bytes"));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bundle: &str) -> KeptChoice {
        let (engine, file) = ("tract".to_owned(), "model.onnx".to_owned());
        KeptChoice { bundle: bundle.into(), engine, file, median_ns: 7 }
    }

    fn open(dir: &Path) -> Choices {
        Choices::open_for(dir, "device".into())
    }

    #[test]
    fn a_choice_is_found_again_by_the_same_device_only() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut choices = open(&data);
        assert_eq!(choices.find("a"), None);
        choices.save();
        assert!(!data.exists(), "nothing new, nothing written");
        choices.keep(choice("a"));
        choices.keep(choice("b"));
        choices.save();
        let again = open(&data);
        assert_eq!(again.find("a"), Some(&choice("a")));
        assert_eq!(again.find("c"), None);
        assert_eq!(Choices::open_for(&data, "another".into()).find("a"), None);
        let names: Vec<_> =
            std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME], "no half-written file is left");
    }

    #[test]
    fn the_oldest_choice_goes_and_a_full_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut choices = open(dir.path());
        // As long as an entry can be: each byte of the file's name takes six.
        let long = |at: usize| KeptChoice {
            bundle: format!("{at:064}"),
            file: "\u{1}".repeat(256),
            median_ns: u64::MAX,
            ..choice("")
        };
        (0..=CHOICES_MAX).for_each(|at| choices.keep(long(at)));
        choices.keep(long(CHOICES_MAX));
        assert_eq!(choices.kept.len(), CHOICES_MAX);
        choices.save();
        let again = open(dir.path());
        assert_eq!(again.kept.len(), CHOICES_MAX);
        assert_eq!((again.find(&long(0).bundle), again.find(&long(1).bundle)), (None, Some(&long(1))));
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut choices = open(dir.path());
        choices.keep(choice("a"));
        choices.save();
        let whole = std::fs::read(&path).unwrap();
        let spaces =
            |bytes: u64| [whole.clone(), vec![b' '; usize::try_from(bytes).unwrap() - whole.len()]].concat();
        std::fs::write(&path, spaces(FILE_BYTES_MAX)).unwrap();
        assert_eq!(open(dir.path()).find("a"), Some(&choice("a")), "at the bound");
        let older = String::from_utf8(whole.clone()).unwrap().replace("\"format\": 1", "\"format\": 0");
        let damaged = [
            Vec::new(),
            b"{".to_vec(),
            vec![0xff; 100],
            whole[..whole.len() / 2].to_vec(),
            older.into_bytes(),
        ];
        for bytes in damaged.into_iter().chain([spaces(FILE_BYTES_MAX + 1)]) {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(open(dir.path()).find("a"), None, "{} bytes", bytes.len());
        }
        let mut choices = open(dir.path());
        choices.keep(choice("b"));
        choices.save();
        assert_eq!(open(dir.path()).find("b"), Some(&choice("b")));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, b"no folder").unwrap();
        let mut choices = open(&blocked.join("data"));
        choices.keep(choice("a"));
        choices.save();
        assert!(choices.is_changed, "it is tried again");
        assert_eq!(choices.find("a"), Some(&choice("a")));
    }
}
