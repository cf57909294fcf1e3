//! Reads the layers and merges them.

use super::Config;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Environment variables of ours start with this: `MUSTER_SERVER_HTTP_LISTEN` is `http.listen`.
pub const ENV_PREFIX: &str = "MUSTER_SERVER_";
/// Variables with the prefix that name something else than a key.
const ENV_OTHER: [&str; 1] = ["MUSTER_SERVER_CONFIG"];
/// The largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes")]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// A layer holds an unknown key or a wrong type; the reason names the key.
    #[error("{origin}: {why}")]
    Layer {
        /// File, variable or flag.
        origin: String,
        /// Key and expectation.
        why: String,
    },
    /// A value is out of range.
    #[error("{key}: {why}")]
    Value {
        /// The key, as `section.key`.
        key: &'static str,
        /// What was expected.
        why: String,
    },
}

/// Where a configuration comes from; kept, so that a reload reads the same layers again.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if any.
    pub file: Option<PathBuf>,
    /// The process's variables, as they were at the start.
    pub env: BTreeMap<String, String>,
    /// `section.key` and value of each flag, in order.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// Reads, merges and checks the layers.
    ///
    /// # Errors
    /// Names the layer, the key and what was expected.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut merged = match &self.file {
            Some(path) => read(path)?,
            None => Table::new(),
        };
        for (name, text) in self.env.iter().filter(|(name, _)| is_ours(name)) {
            let layer = |why| ConfigError::Layer { origin: format!("variable {name}"), why };
            let key = env_key(&name[ENV_PREFIX.len()..]);
            merge(&mut merged, check(one(&key, text)).map_err(layer)?);
        }
        for (key, text) in &self.flags {
            let layer = |why| ConfigError::Layer { origin: format!("flag {key}"), why };
            merge(&mut merged, check(one(key, text)).map_err(layer)?);
        }
        let config =
            parse(merged).map_err(|why| ConfigError::Layer { origin: "configuration".into(), why })?;
        config.validate().map_err(|error| self.placed(error))?;
        Ok(config)
    }

    /// Adds the layer that gave the value; a default (off beside another value) has none.
    fn placed(&self, error: ConfigError) -> ConfigError {
        let ConfigError::Value { key, why } = error else { return error };
        match self.origin_of(key) {
            Some(origin) => ConfigError::Layer { origin, why: format!("{key}: {why}") },
            None => ConfigError::Value { key, why },
        }
    }

    /// The last layer that sets a key.
    fn origin_of(&self, key: &str) -> Option<String> {
        let is_in_key =
            |flag: &str| flag.strip_prefix(key).is_some_and(|rest| matches!(rest.get(..1), None | Some(".")));
        if let Some((flag, _)) = self.flags.iter().rev().find(|(flag, _)| is_in_key(flag)) {
            return Some(format!("flag {flag}"));
        }
        let mut variables = self.env.keys().filter(|name| is_ours(name));
        if let Some(name) = variables.find(|name| env_key(&name[ENV_PREFIX.len()..]) == key) {
            return Some(format!("variable {name}"));
        }
        let path = self.file.as_ref()?;
        let line = line_of(&std::fs::read_to_string(path).ok()?, key)?;
        Some(format!("{}:{line}", path.display()))
    }
}

/// The line, from 1, where a file sets a key.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let file = toml::de::DeTable::parse(text).ok()?;
    let (mut table, mut start) = (Some(file.get_ref()), 0);
    for part in key.split('.') {
        let (name, value) = table?.iter().find(|(name, _)| name.get_ref() == part)?;
        (table, start) = (value.get_ref().as_table(), name.span().start);
    }
    Some(text[..start].matches('\n').count() + 1)
}

fn is_ours(name: &str) -> bool {
    name.starts_with(ENV_PREFIX) && !ENV_OTHER.contains(&name)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(fail)?.len() > FILE_BYTES_MAX {
        return Err(ConfigError::Large { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    let layer = |why: String| ConfigError::Layer { origin: path.display().to_string(), why };
    // Straight into the type first: its errors show line and column.
    toml::from_str::<Config>(&text).map_err(|error| layer(shown(&text, &error)))?;
    toml::from_str(&text).map_err(|error| layer(error.to_string()))
}

/// With the line at fault, unless that may hold a password.
fn shown(text: &str, error: &toml::de::Error) -> String {
    let all = error.to_string();
    if !all.contains("://") {
        return all;
    }
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

fn parse(table: Table) -> Result<Config, String> {
    Value::Table(table)
        .try_into()
        .map_err(|error: toml::de::Error| error.to_string().trim().replace('\n', " "))
}

/// Checks one layer alone, so that its error names the layer.
fn check(layer: Table) -> Result<Table, String> {
    parse(layer.clone()).map(|_| layer)
}

/// `HTTP_BODY_BYTES_MAX` is `http.body_bytes_max`; `DATA_DIR` is `data_dir`.
fn env_key(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let defaults = Table::try_from(Config::default()).unwrap_or_default();
    let sections = defaults.iter().filter(|(_, value)| value.is_table()).map(|(section, _)| section);
    let mut found = sections.filter_map(|section| {
        let key = lower.strip_prefix(section.as_str())?.strip_prefix('_')?;
        Some(format!("{section}.{key}"))
    });
    found.next().unwrap_or(lower)
}

/// A table with one key. The text is TOML where it parses as such, else a plain string.
fn one(key: &str, text: &str) -> Table {
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    key.rsplit('.')
        .fold(None, |inner, part| {
            let value = inner.map_or_else(|| value.clone(), Value::Table);
            Some(Table::from_iter([(part.to_owned(), value)]))
        })
        .unwrap_or_default()
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
