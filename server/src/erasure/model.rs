//! A job and its steps, as pure values.

use muster_wire::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};

/// Jobs of a tenant that are not done.
pub const OPEN_PER_TENANT_MAX: i64 = 100;
/// The longest between two tries of what cannot be done yet.
pub const WAIT_US_MAX: i64 = 8_000_000;
/// The longest between two tries of what fails.
pub const FAIL_US_MAX: i64 = 60_000_000;
/// Files that one page of a manifest names.
pub const MANIFEST_FILES_MAX: usize = 10_000;
/// Rows of one file of an export.
pub const FILE_ROWS_MAX: usize = 20_000;
/// Bytes of one file before they are compressed; one row may go beyond.
pub const FILE_BYTES_MAX: usize = 8 << 20;
/// How long an export is kept.
pub const EXPORT_DAYS: i64 = 30;
/// After the last device was shut out: connections that are just being closed end meanwhile.
pub const DRAIN_US: i64 = 2_000_000;

/// What a job has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Devices are disabled, tokens and claims taken away.
    ShuttingOut,
    /// The store reads what the event log holds of them.
    Draining,
    /// Files are written.
    Exporting,
    /// Rows are deleted.
    Erasing,
    /// Rows that others wrote in between are deleted.
    Sweeping,
    /// Nothing is left but the export.
    Done,
}

impl State {
    const ALL: [Self; 6] =
        [Self::ShuttingOut, Self::Draining, Self::Exporting, Self::Erasing, Self::Sweeping, Self::Done];

    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ShuttingOut => "shutting_out",
            Self::Draining => "draining",
            Self::Exporting => "exporting",
            Self::Erasing => "erasing",
            Self::Sweeping => "sweeping",
            Self::Done => "done",
        }
    }

    /// The state of a stored text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// What follows.
    #[must_use]
    pub fn next(self, with_export: bool) -> Self {
        match self {
            Self::ShuttingOut => Self::Draining,
            Self::Draining if with_export => Self::Exporting,
            Self::Draining | Self::Exporting => Self::Erasing,
            Self::Erasing => Self::Sweeping,
            Self::Sweeping | Self::Done => Self::Done,
        }
    }
}

/// Where a step stands that takes many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// Which part of the export.
    pub part: usize,
    /// The device that it stands at, or that was done last.
    pub device: String,
    /// Within the part.
    pub after: Option<String>,
    /// Files of this part so far.
    pub files: u32,
    /// The newest block for ClickHouse that may hold something, once all is in blocks.
    pub batch: Option<i64>,
}

/// A member of a tenant that is erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The account.
    pub user_id: String,
    /// Its address.
    pub email: String,
    /// Its role.
    pub role: String,
    /// The places that it reaches; empty: the whole tenant.
    #[serde(default)]
    pub reach: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Whose.
    pub tenant: TenantId,
    /// Its id.
    pub id: String,
    /// None: the whole tenant.
    pub device: Option<DeviceId>,
    /// What it does.
    pub state: State,
    /// Whether files are written first.
    pub with_export: bool,
    /// As in audit rows.
    pub requested_by: String,
    /// The id of that account or API token: an address may be another account's one day.
    pub requester: String,
    /// When.
    pub requested_at_us: i64,
    /// Who was a member of the tenant.
    pub members: Vec<Member>,
    /// Up to where the event log may hold something.
    pub log: Option<(u64, u64)>,
    /// When the state began.
    pub since_us: i64,
    /// Within the state.
    pub place: Place,
    /// Rows in files.
    pub rows_exported: i64,
    /// Rows deleted.
    pub rows_erased: i64,
    /// Why it does not go on.
    pub waiting_for: Option<String>,
    /// How often in a row it did not go on.
    pub tries: u32,
    /// It is not tried before.
    pub next_try_at_us: i64,
    /// When it was done.
    pub done_at_us: Option<i64>,
    /// Until when its files are kept.
    pub export_until_us: Option<i64>,
}

impl Job {
    /// The folder of its files, below the tenant.
    #[must_use]
    pub fn folder(&self) -> String {
        format!("exports/{}", self.id)
    }

    /// Enters the next state.
    pub fn enter_next(&mut self, now_us: i64) {
        self.state = self.state.next(self.with_export);
        (self.since_us, self.place) = (now_us, Place::default());
        self.go_on();
        if self.state == State::Done {
            self.done_at_us = Some(now_us);
            let kept_us = EXPORT_DAYS * 86_400_000_000;
            self.export_until_us = self.with_export.then_some(now_us.saturating_add(kept_us));
        }
    }

    /// A step was done: the next one may be, at once.
    pub fn go_on(&mut self) {
        (self.waiting_for, self.tries, self.next_try_at_us) = (None, 0, 0);
    }

    /// A step was not done: a few tries a second apart, then fewer and fewer, at least one each `max_us`.
    pub fn put_off(&mut self, now_us: i64, max_us: i64) {
        let doublings = self.tries.saturating_sub(2).min(16);
        let delay_us = (1_000_000_i64 << doublings).min(max_us);
        (self.tries, self.next_try_at_us) = (self.tries.saturating_add(1), now_us.saturating_add(delay_us));
    }
}

/// A file of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// `readings-00001.ndjson.gz`.
    pub name: String,
    /// Its size.
    pub bytes: i64,
    /// Of its content.
    pub sha256: [u8; 32],
    /// Its rows.
    pub rows: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_follow_each_other_and_are_read_as_they_are_written() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        let path = |with_export| {
            let mut state = State::ShuttingOut;
            let mut all = vec![state];
            while state != State::Done {
                state = state.next(with_export);
                all.push(state);
            }
            all
        };
        assert_eq!(path(true), State::ALL);
        assert_eq!(path(false).len(), 5);
        assert!(!path(false).contains(&State::Exporting));
    }
}
