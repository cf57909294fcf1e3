//! What an alert is, and which steps its state may take. Pure.

use crate::platform::http_kit::ReadingValue;
use crate::tenants::Reach;
use muster_wire::{TenantId, Value};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest note of a person, in characters.
pub const NOTE_CHARS_MAX: usize = 1_000;
/// The longest message of a rule, in characters.
pub const MESSAGE_CHARS_MAX: usize = 512;

/// How bad it is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl Severity {
    /// Every severity, the mildest first.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    /// The stored text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The severity of a stored text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.as_str() == text)
    }
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition holds and nobody has said a word.
    Open,
    /// The condition holds and somebody knows.
    Acked,
    /// A person closed it, whether or not the condition has cleared.
    Resolved,
    /// The condition cleared by itself.
    Cleared,
}

/// What happens to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A person knows.
    Ack,
    /// A person closes it.
    Resolve,
    /// The rule's clear condition holds.
    Clear,
}

/// A step that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the alert is {}", state.as_str())]
pub struct Illegal {
    /// Where it stands.
    pub state: AlertState,
}

impl AlertState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Open, Self::Acked, Self::Resolved, Self::Cleared];

    /// The stored text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acked => "acked",
            Self::Resolved => "resolved",
            Self::Cleared => "cleared",
        }
    }

    /// The state of a stored text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// The state after a step.
    ///
    /// # Errors
    /// The step makes no sense there.
    pub fn after(self, step: Step) -> Result<Self, Illegal> {
        match (self, step) {
            (Self::Open, Step::Ack) => Ok(Self::Acked),
            (Self::Open | Self::Acked | Self::Cleared, Step::Resolve) => Ok(Self::Resolved),
            (Self::Open | Self::Acked, Step::Clear) => Ok(Self::Cleared),
            // A person's word stays; the row only learns when the condition cleared.
            (Self::Resolved, Step::Clear) => Ok(Self::Resolved),
            (state, _) => Err(Illegal { state }),
        }
    }
}

/// An alert that a rule opens.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAlert {
    /// Whose.
    pub tenant: TenantId,
    /// A hash of what opened it: 32 hex digits.
    pub id: String,
    /// Which device.
    pub device: String,
    /// Which rule.
    pub rule_id: String,
    /// Which version of it.
    pub rule_version: i64,
    /// Its name then.
    pub rule_name: String,
    /// `metric:<name>` or `pipeline:<name>`.
    pub subject: String,
    /// How bad.
    pub severity: Severity,
    /// Opened by data older than five minutes: nobody is notified.
    pub historical: bool,
    /// The value (or score) that opened it.
    pub value: Value,
    /// The rule's message, filled in.
    pub message: String,
    /// When the condition was met: the log's time, or the device's for a historical one.
    pub opened_at_us: i64,
}

/// The device (and rule) of an alert that the platform opens about itself: no device can have this id.
pub const PLATFORM: &str = "-";

/// A range of the event log that a reader never saw and never will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedRange {
    /// Which reader.
    pub reader: &'static str,
    /// Which log.
    pub log_epoch: u64,
    /// The first position.
    pub first: u64,
    /// One past the last.
    pub next: u64,
    /// What is missing, and why: a sentence without its stop.
    pub why: String,
}

impl SkippedRange {
    /// The alert that tells a tenant. Told again, it has the same id.
    #[must_use]
    pub fn alert(&self, tenant: &TenantId, now_us: i64) -> NewAlert {
        let Self { reader, log_epoch, first, next, why } = self;
        let hash = Sha256::digest(format!("skipped {reader} {log_epoch:016x} {first} {next}"));
        let last = next.saturating_sub(1);
        #[allow(clippy::cast_precision_loss, reason = "a count to show")]
        let count = next.saturating_sub(*first) as f64;
        NewAlert {
            tenant: tenant.clone(),
            id: hex::encode(&hash[..16]),
            device: PLATFORM.into(),
            rule_id: PLATFORM.into(),
            rule_version: 0,
            rule_name: "Event log records skipped".into(),
            subject: format!("log:{reader}"),
            severity: Severity::Critical,
            historical: false,
            value: Value::Number(count),
            message: format!("{count} records of the event log (positions {first} to {last}) {why}"),
            opened_at_us: now_us,
        }
    }
}

/// A stored alert.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Alert {
    /// A hash of what opened it.
    pub id: String,
    /// The device; `-` where the platform tells about itself.
    pub device: String,
    /// The rule that opened it; `-` where none did.
    pub rule_id: String,
    /// The rule's version then.
    pub rule_version: i64,
    /// The rule's name then.
    pub rule_name: String,
    /// `metric:<name>`, `pipeline:<name>`, `log:<reader>` or `quota:<quota>`.
    pub subject: String,
    /// How bad.
    pub severity: Severity,
    /// Where it stands.
    pub state: AlertState,
    /// Opened by data older than five minutes.
    pub historical: bool,
    /// The value (or score) that opened it: a number, a bool or a text.
    #[schema(value_type = ReadingValue)]
    pub value: Value,
    /// The rule's message, filled in.
    pub message: String,
    /// Microseconds since 1970 (UTC).
    pub opened_at_us: i64,
    /// When the condition cleared, where it has.
    pub cleared_at_us: Option<i64>,
    /// Why it cleared: `condition`, `rule_changed`, `device_removed` or `data_ended`.
    pub cleared_why: Option<String>,
    /// When a person acknowledged it.
    pub acked_at_us: Option<i64>,
    /// Who acknowledged it.
    pub acked_by: Option<String>,
    /// When a person resolved it.
    pub resolved_at_us: Option<i64>,
    /// Who resolved it.
    pub resolved_by: Option<String>,
    /// A person's words.
    pub note: Option<String>,
}

/// Which alerts a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertFilter {
    /// Only of devices within it.
    pub reach: Reach,
    /// Only in this state.
    pub state: Option<AlertState>,
    /// Only of this device.
    pub device: Option<String>,
    /// Only of this rule.
    pub rule_id: Option<String>,
    /// Only at least this bad.
    pub severity_min: Option<Severity>,
    /// Only historical ones, or only live ones.
    pub historical: Option<bool>,
    /// Only those opened from this time on.
    pub from_us: Option<i64>,
    /// Only those opened before this time.
    pub to_us: Option<i64>,
    /// In which order.
    pub sort: AlertSort,
}

/// The order of a list of alerts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
pub enum AlertSort {
    /// The newest first.
    #[default]
    #[serde(rename = "-opened_at")]
    OpenedDown,
    /// The oldest first.
    #[serde(rename = "opened_at")]
    Opened,
}
