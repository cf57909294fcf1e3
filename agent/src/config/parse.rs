//! From bytes to the structs, with errors that a person can act on.

use super::{CONFIG_BYTES_MAX, Config, SourceConfig};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// More bytes than [`CONFIG_BYTES_MAX`], or no UTF-8.
    #[error("{}: expected UTF-8 text of at most {CONFIG_BYTES_MAX} bytes", file.display())]
    NotText {
        /// The file.
        file: PathBuf,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("{}:{line}: {field}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with its section.
        field: String,
        /// What was expected.
        problem: String,
    },
    /// The right type, but against a rule.
    #[error("{}: {field}: expected {expected}, found {found}", file.display())]
    Rule {
        /// The file.
        file: PathBuf,
        /// The key with its section.
        field: String,
        /// What was expected.
        expected: String,
        /// What stands there.
        found: String,
    },
}

pub(super) fn read(file: &Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .map_err(fail)?
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    let short = bytes.len() as u64 <= CONFIG_BYTES_MAX;
    let text = if short { String::from_utf8(bytes).ok() } else { None };
    text.ok_or_else(|| ConfigError::NotText { file: file.to_owned() })
}

pub(super) fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (at, error) = in_source(text, start_of(&error, text)).unwrap_or((start_of(&error, text), error));
        let (line, field) = locate(text, at);
        let problem = error.message().replace('\n', ", ");
        ConfigError::Syntax { file: file.to_owned(), line, field, problem }
    })
}

fn start_of(error: &toml::de::Error, text: &str) -> usize {
    error.span().map_or(0, |span| span.start.min(text.len()))
}

/// A source is told apart by its kind, and an error in it stands at its header: reads the section that begins there again,
/// as the kind that it is, for the place of the error.
fn in_source(text: &str, at: usize) -> Option<(usize, toml::de::Error)> {
    let at = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
    let section = text.get(at..).filter(|section| section.trim_start().starts_with("[[source]]"))?;
    let lines = section.split_inclusive('\n').skip(1);
    let first = at + section.find('\n')? + 1;
    let body: String = lines.take_while(|line| !line.trim_start().starts_with('[')).collect();
    // What is missing stands on no line.
    let error =
        SourceConfig::error_in(&body).filter(|error| !error.message().starts_with("missing field"))?;
    Some((first + start_of(&error, &body), error))
}

/// The line of a byte offset, and the key on it behind its section's name.
fn locate(text: &str, at: usize) -> (usize, String) {
    let before = text.get(..at).unwrap_or(text);
    let line_index = before.matches('\n').count();
    let mut section = "";
    let mut key = "";
    for (index, line) in text.lines().enumerate().take(line_index + 1) {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']', ' ']);
        } else if index == line_index {
            key = line.split('=').next().unwrap_or("").trim();
        }
    }
    let field = match (section, key) {
        ("", "") => "(top level)".to_owned(),
        (section, "") => section.to_owned(),
        ("", key) => key.to_owned(),
        (section, key) => format!("{section}.{key}"),
    };
    (line_index + 1, field)
}
