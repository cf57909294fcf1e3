//! Reports on disk.
//!
//! Called by `run` ([`save`]) and the commands ([`read`]). A file is replaced whole or not at all. No
//! `report.json` is written that [`read`] would refuse, so one that exists can be read. Limits: [`REPORT_BYTES_MAX`],
//! [`SAMPLES_MAX`], [`FAULTS_MAX`].

use super::html;
use super::json;
use super::model::{REPORT_VERSION, Report, SAMPLES_MAX};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The largest file that is read: a day of samples takes a quarter of it.
pub const REPORT_BYTES_MAX: u64 = 256 << 20;
/// Faults of one report.
pub const FAULTS_MAX: usize = 10_000;
/// The report for machines, in the directory that `--out` names.
pub const REPORT_JSON: &str = "report.json";
/// The report for people, in the same directory.
pub const REPORT_HTML: &str = "report.html";

/// What a run found where [`read`] would refuse it: for a person to mend.
pub const REFUSED_JSON: &str = "report.refused.json";

/// Why a report cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StoreError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} has more than {max} bytes, which no report has")]
    TooLarge { path: PathBuf, max: u64 },
    #[error("{path} is no JSON object with a number in the field `version`")]
    NoVersion {
        path: PathBuf,
        #[source]
        source: Option<serde_json::Error>,
    },
    #[error(
        "{path} has the version {found} in the field `version`; this program reads version {expected} only"
    )]
    Version { path: PathBuf, found: u64, expected: u32 },
    #[error("{path}: field `{field}`")]
    Json {
        path: PathBuf,
        field: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path}: field `{field}` {problem}")]
    Field { path: PathBuf, field: String, problem: String },
}

/// Where a report was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// For machines.
    pub json: PathBuf,
    /// For people.
    pub html: PathBuf,
}

/// Reads a report: a file, or the [`REPORT_JSON`] of a directory.
///
/// # Errors
/// The file cannot be read, is too large, of another version, or no report.
pub fn read(path: &Path) -> Result<Report, StoreError> {
    let path = if path.is_dir() { path.join(REPORT_JSON) } else { path.to_owned() };
    let text = read_text(&path, REPORT_BYTES_MAX)?;
    check_version(&path, &text, REPORT_VERSION)?;
    parse(&path, &text)
}

/// Writes [`REPORT_JSON`] and [`REPORT_HTML`] into a directory, which is made if it is not there.
///
/// # Errors
/// The report is one that [`read`] would refuse (it is then left as [`REFUSED_JSON`]), or the disk fails.
pub fn save(dir: &Path, report: &Report) -> Result<Saved, StoreError> {
    let saved = Saved { json: dir.join(REPORT_JSON), html: dir.join(REPORT_HTML) };
    let bytes = json::lines(report).map_err(|source| StoreError::Json {
        path: saved.json.clone(),
        field: String::new(),
        source,
    })?;
    // A number that is none becomes null in JSON: reading it back finds the field. A run's numbers are not thrown
    // away for it.
    let refused = dir.join(REFUSED_JSON);
    if let Err(error) = parse(&refused, &String::from_utf8_lossy(&bytes)) {
        write_file(&refused, &bytes)?;
        return Err(error);
    }
    write_file(&saved.json, &bytes)?;
    write_file(&saved.html, html::page(report).as_bytes())?;
    Ok(saved)
}

/// Reads a text of at most `max` bytes.
pub(super) fn read_text(path: &Path, max: u64) -> Result<String, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > max {
        return Err(StoreError::TooLarge { path: path.to_owned(), max });
    }
    file.take(max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > max {
        return Err(StoreError::TooLarge { path: path.to_owned(), max });
    }
    Ok(text)
}

/// Refuses a file of another version before its fields are looked at, which that version may have changed.
pub(super) fn check_version(path: &Path, text: &str, expected: u32) -> Result<(), StoreError> {
    #[derive(Deserialize)]
    struct Head {
        version: Option<u64>,
    }
    let path = path.to_owned();
    match serde_json::from_str::<Head>(text) {
        Ok(Head { version: Some(found) }) if found == u64::from(expected) => Ok(()),
        Ok(Head { version: Some(found) }) => Err(StoreError::Version { path, found, expected }),
        Ok(Head { version: None }) => Err(StoreError::NoVersion { path, source: None }),
        Err(source) => Err(StoreError::NoVersion { path, source: Some(source) }),
    }
}

/// Replaces a file whole; makes its directory.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |source| StoreError::Write { path: path.to_owned(), source };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let mut file = File::create(&unfinished).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&unfinished, path).map_err(failed)
}

fn parse(path: &Path, text: &str) -> Result<Report, StoreError> {
    let report: Report = serde_json::from_str(text).map_err(|source| StoreError::Json {
        path: path.to_owned(),
        field: json::field_of(text, &source),
        source,
    })?;
    match fault_of(&report) {
        None => Ok(report),
        Some((field, problem)) => Err(StoreError::Field { path: path.to_owned(), field, problem }),
    }
}

/// What the types do not say: bounds, and an order that the plots rely on.
fn fault_of(report: &Report) -> Option<(String, String)> {
    if report.samples.len() > SAMPLES_MAX {
        let problem = format!("has {} samples; the most are {SAMPLES_MAX}", report.samples.len());
        return Some(("samples".to_owned(), problem));
    }
    if report.faults.len() > FAULTS_MAX {
        let problem = format!("has {} faults; the most are {FAULTS_MAX}", report.faults.len());
        return Some(("faults".to_owned(), problem));
    }
    if report.setup.seconds < 0.0 {
        return Some(("setup.seconds".to_owned(), "is below 0".to_owned()));
    }
    let mut pairs = report.samples.windows(2).enumerate();
    if let Some((at, _)) = pairs.find(|(_, pair)| pair[1].at_s < pair[0].at_s) {
        return Some((format!("samples[{}].at_s", at + 1), "is before the sample before it".to_owned()));
    }
    let backward = report.faults.iter().position(|fault| fault.until_s < fault.from_s)?;
    Some((format!("faults[{backward}].until_s"), "is before its beginning".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::model::{FaultMark, Sample};
    use super::super::synthetic;
    use super::*;
    use std::error::Error;
    use tempfile::tempdir;

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let dir = tempdir().unwrap();
        let path = dir.path().join("bad.json");
        std::fs::write(&path, text).unwrap();
        told(&read(&path).unwrap_err(), expected);
    }

    #[track_caller]
    fn told(error: &StoreError, expected: &str) {
        let whole = format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(whole.contains(expected), "{whole}");
    }

    #[test]
    fn what_was_saved_is_read_back_from_the_file_and_from_its_directory() {
        let dir = tempdir().unwrap();
        let report = synthetic::report(1, 90);
        let saved = save(&dir.path().join("new/run"), &report).unwrap();
        let again = read(&saved.json).unwrap();
        assert!(again == read(saved.json.parent().unwrap()).unwrap());
        assert!(
            again.totals == report.totals
                && again.setup == report.setup
                && again.faults.len() == report.faults.len()
        );
        assert_eq!(json::lines(&again).unwrap(), std::fs::read(&saved.json).unwrap());
        assert!(std::fs::read_to_string(&saved.html).unwrap().contains("</html>"));
        let names: Vec<_> = std::fs::read_dir(saved.json.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn the_same_report_gives_the_same_bytes_and_a_sample_one_line() {
        let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
        let report = synthetic::report(1, 30);
        let text = std::fs::read_to_string(save(one.path(), &report).unwrap().json).unwrap();
        assert_eq!(text, std::fs::read_to_string(save(two.path(), &report).unwrap().json).unwrap());
        assert_eq!(text.lines().filter(|line| line.contains("\"at_s\"")).count(), report.samples.len());
    }

    #[test]
    fn another_version_is_refused_before_its_fields_are_looked_at() {
        refused(r#"{"version": 2, "unknown": 1}"#, "bad.json has the version 2 in the field `version`");
        refused(r#"{"setup": {}}"#, "is no JSON object with a number in the field `version`");
        refused(r#"{"version": "1"}"#, "field `version`");
        refused("PK\u{3}\u{4}", "is no JSON object");
        refused("", "is no JSON object");
    }

    #[test]
    fn an_error_names_the_file_and_the_field() {
        let good = String::from_utf8(json::lines(&synthetic::report(1, 5)).unwrap()).unwrap();
        refused(&good.replacen("\"online\": ", "\"online\": -", 1), "bad.json: field `samples[0].online`");
        refused(&good.replacen("\"devices\":", "\"devises\":", 1), "field `setup.devises`: unknown field");
        refused(&good.replacen("\"seed\": 1,", "", 1), "field `setup`: missing field `seed`");
        refused(&good.replacen("\"at_s\": 2.0", "\"at_s\": 0.5", 1), "field `samples[1].at_s` is before");
        refused(&good[..good.len() / 2], "EOF while parsing");
    }

    #[test]
    fn more_samples_or_faults_than_a_report_may_hold_are_neither_written_nor_read() {
        let dir = tempdir().unwrap();
        let mut report = synthetic::report(1, 1);
        report.samples = vec![Sample::default(); SAMPLES_MAX + 1];
        told(
            &save(dir.path(), &report).unwrap_err(),
            "field `samples` has 86401 samples; the most are 86400",
        );
        report.samples.clear();
        report.faults = vec![FaultMark::default(); FAULTS_MAX];
        save(dir.path(), &report).unwrap();
        report.faults.push(FaultMark { from_s: 2.0, until_s: 1.0, ..FaultMark::default() });
        told(&save(dir.path(), &report).unwrap_err(), "field `faults` has 10001 faults; the most are 10000");
        report.faults.drain(..FAULTS_MAX);
        told(&save(dir.path(), &report).unwrap_err(), "field `faults[0].until_s` is before");
    }

    #[test]
    fn a_number_that_is_none_is_not_written_and_leaves_the_old_file() {
        let dir = tempdir().unwrap();
        let mut report = synthetic::report(1, 5);
        let saved = save(dir.path(), &report).unwrap();
        let before = std::fs::read(&saved.json).unwrap();
        report.totals.success_ratio = f64::NAN;
        told(&save(dir.path(), &report).unwrap_err(), "field `totals.success_ratio`: invalid type: null");
        assert!(std::fs::read(&saved.json).unwrap() == before);
        let refused = std::fs::read_to_string(dir.path().join(REFUSED_JSON)).unwrap();
        assert!(refused.contains("\"success_ratio\": null"));
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused_unread() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("huge.json");
        File::create(&path).unwrap().set_len(REPORT_BYTES_MAX + 1).unwrap();
        told(&read(&path).unwrap_err(), "huge.json has more than 268435456 bytes");
        // A pipe or a file that grows has no length that could be trusted.
        let without_length = Path::new("/proc/self/status");
        assert!(matches!(read_text(without_length, 4), Err(StoreError::TooLarge { .. })));
        std::fs::write(&path, "12345").unwrap();
        assert!(matches!(read_text(&path, 4), Err(StoreError::TooLarge { .. })));
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        told(&read(Path::new("/nowhere/report.json")).unwrap_err(), "cannot read /nowhere/report.json");
    }
}
