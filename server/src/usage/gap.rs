//! What was never counted, as it is stored and as it is shown beside usage and invoices.

use serde::Serialize;

/// Gaps that are shown at once, the newest.
pub(super) const GAPS_MAX: i64 = 100;

/// Positions of an event log that the meter never counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Which log.
    pub log_epoch: u64,
    /// The first position.
    pub first: u64,
    /// The last; none where another log took over and nobody knows.
    pub last: Option<u64>,
    /// They were received after this.
    pub since_us: i64,
    /// When it was found.
    pub at_us: i64,
    /// Why.
    pub why: String,
}

/// Records that were not counted, of all tenants: whose they were is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct GapView {
    /// They were received after this; microseconds since 1970 (UTC).
    since_us: i64,
    /// And before this, when it was found.
    until_us: i64,
    /// How many; null where nobody knows, perhaps none: another event log took over.
    records: Option<u64>,
    /// Why.
    reason: String,
}

impl From<Gap> for GapView {
    fn from(gap: Gap) -> Self {
        let records = gap.last.map(|last| last.saturating_sub(gap.first) + 1);
        Self { since_us: gap.since_us, until_us: gap.at_us, records, reason: gap.why }
    }
}
