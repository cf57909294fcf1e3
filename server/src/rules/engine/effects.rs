//! What the engine decided and has to be committed, in the shapes of the snapshot.

use super::Instance;
use crate::alerts::model::NewAlert;
use crate::rules::machine::{Opening, Phase};
use muster_wire::{TenantId, Value};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Which data an instance follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// As it happens; time is the log's.
    Live,
    /// Older than five minutes when it came; time is the device's.
    Historical,
}

impl Stream {
    /// The stored number.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Live => 0,
            Self::Historical => 1,
        }
    }

    /// The stream of a stored number.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::Live, Self::Historical].into_iter().find(|stream| stream.number() == number)
    }
}

/// Names a rule's state on a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey {
    /// Whose.
    pub tenant: String,
    /// Which rule.
    pub rule_id: String,
    /// Which device.
    pub device: String,
    /// `metric:<name>` or `pipeline:<name>`.
    pub subject: String,
    /// Live or historical.
    pub stream: Stream,
}

impl StateKey {
    pub(super) fn new(tenant: &str, rule_id: &str, device: &str, instance: &Instance) -> Self {
        Self {
            tenant: tenant.to_owned(),
            rule_id: rule_id.to_owned(),
            device: device.to_owned(),
            subject: instance.subject.to_string(),
            stream: instance.stream,
        }
    }
}

/// What began it: kept until the alert opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The value when the condition began to hold.
    pub value: Value,
    /// The rule's message with it.
    pub message: String,
}

/// A rule's state on a subject as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredState {
    /// The rule's version; a row column of its own.
    #[serde(skip)]
    pub version: i64,
    /// Where it stands.
    pub phase: Phase,
    /// What began it.
    pub evidence: Evidence,
    /// The open alert's id, while firing.
    pub alert: Option<String>,
}

impl StoredState {
    pub(super) fn of(instance: &Instance, version: i64) -> Self {
        Self {
            version,
            phase: instance.phase,
            evidence: instance.evidence.clone(),
            alert: instance.alert.clone(),
        }
    }

    pub(super) fn into_instance(self, key: &StateKey) -> Instance {
        Instance {
            subject: key.subject.as_str().into(),
            stream: key.stream,
            phase: self.phase,
            evidence: self.evidence,
            alert: self.alert,
            timer: None,
        }
    }
}

/// `(tenant, device, metric)`.
pub type LastKey = (String, String, String);

/// An alert whose condition ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClearedAlert {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub id: String,
    /// When.
    pub at_us: i64,
    /// `condition`, `data_ended`, `rule_changed` or `device_removed`.
    pub why: &'static str,
}

/// Everything to commit in one transaction.
#[derive(Debug, Default)]
pub struct Effects {
    /// Alerts to open, in order.
    pub opened: Vec<NewAlert>,
    /// Alerts to clear, after all are opened.
    pub cleared: Vec<ClearedAlert>,
    /// States that changed; `None` deletes the row.
    pub states: HashMap<StateKey, Option<StoredState>>,
    /// Last values that changed.
    pub lasts: HashMap<LastKey, Value>,
    /// Rule versions that no longer run: `(tenant, rule, version, reason)`.
    pub quarantined: Vec<(String, String, i64, String)>,
}

impl Effects {
    /// Whether there is nothing to commit but the cursor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much there is to commit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.opened.len() + self.cleared.len() + self.states.len() + self.lasts.len() + self.quarantined.len()
    }

    /// Drops a state whose rule or device is gone, and clears its alert.
    pub(super) fn forget(&mut self, key: StateKey, stored: &StoredState, at_us: i64, why: &'static str) {
        if let (Some(id), Ok(tenant)) = (&stored.alert, TenantId::parse(&key.tenant)) {
            self.cleared.push(ClearedAlert { tenant, id: id.clone(), at_us, why });
        }
        self.states.insert(key, None);
    }
}

/// An alert's id: a hash of what opened it, so that a replay opens the same one.
#[must_use]
pub fn alert_id(epoch: u64, key: &StateKey, version: i64, opening: Opening) -> String {
    let mut hash = Sha256::new();
    for text in [&key.tenant, &key.rule_id, &key.device, &key.subject] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(epoch.to_le_bytes());
    hash.update(version.to_le_bytes());
    hash.update(key.stream.number().to_le_bytes());
    hash.update(opening.position.to_le_bytes());
    hash.update(opening.index.to_le_bytes());
    hex::encode(&hash.finalize()[..16])
}
