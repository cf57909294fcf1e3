//! Takes what may change while the server runs, refuses the rest aloud.

use super::{Config, ConfigError, Sources};
use std::sync::Arc;
use tokio::sync::watch;
use toml::{Table, Value};

/// Sections that apply without a restart.
pub const RELOADABLE: [&str; 5] = ["log", "auth", "quota", "limits", "retention"];

/// The configuration in force; clones share it. Cheap to read on every request.
#[derive(Clone, Debug)]
pub struct Live {
    now: watch::Sender<Arc<Config>>,
}

impl Live {
    /// Starts with a checked configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { now: watch::Sender::new(Arc::new(config)) }
    }

    /// The configuration in force.
    #[must_use]
    pub fn get(&self) -> Arc<Config> {
        self.now.borrow().clone()
    }

    /// Wakes on each reload.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.now.subscribe()
    }

    /// Reads the sources again. Returns the keys that were applied and those that need a restart; a broken
    /// configuration changes nothing.
    ///
    /// # Errors
    /// As [`Sources::load`].
    pub fn reload(&self, sources: &Sources) -> Result<(Vec<String>, Vec<String>), ConfigError> {
        let next = sources.load()?;
        let old = self.get();
        let reloadable =
            |key: &String| RELOADABLE.iter().any(|section| key.split('.').next() == Some(*section));
        let (applied, refused): (Vec<_>, Vec<_>) =
            changed_keys(&old, &next).into_iter().partition(reloadable);
        if !applied.is_empty() {
            let Config { log, auth, quota, limits, retention, .. } = next;
            self.now.send_replace(Arc::new(Config { log, auth, quota, limits, retention, ..(*old).clone() }));
        }
        Ok((applied, refused))
    }
}

/// The keys whose values differ, as `section.key`.
#[must_use]
pub fn changed_keys(old: &Config, new: &Config) -> Vec<String> {
    let flat = |config: &Config| {
        let mut keys = Vec::new();
        flatten(&Table::try_from(config).unwrap_or_default(), "", &mut keys);
        keys
    };
    let (old, new) = (flat(old), flat(new));
    let mut changed: Vec<String> =
        old.iter().filter(|pair| !new.contains(pair)).map(|(key, _)| key.clone()).collect();
    changed.extend(new.iter().filter(|pair| !old.contains(pair)).map(|(key, _)| key.clone()));
    changed.sort();
    changed.dedup();
    changed
}

fn flatten(table: &Table, prefix: &str, into: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => flatten(inner, &key, into),
            value => into.push((key, value.clone())),
        }
    }
}
