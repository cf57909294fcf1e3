//! A tenant's quotas as the configuration gives them: they hold for every tenant that was given none of its own.

use super::{ConfigError, QuotaSection};
use serde::{Deserialize, Serialize};

/// The largest number that a quota can be: what JSON, TOML and a database column all hold.
pub const QUOTA_MAX: u64 = 1 << 53;
/// The largest rate, in messages a second.
pub const QUOTA_PER_S_MAX: u64 = 10_000_000;
/// The largest burst, in messages.
pub const QUOTA_BURST_MAX: u64 = 100_000_000;

/// One quota: what it warns at and what it refuses beyond; absent: neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSection {
    /// The tenant is warned, once a day, when it has used this much; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// What goes beyond this is refused; absent: nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
}

/// A quota of messages a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaRateSection {
    /// The tenant is warned, once a day, when one second had this many messages; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// Messages a second of all the tenant's devices in the long run; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
    /// Messages at once after a silence, at least those of 100 ms; absent: those of ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl LimitSection {
    /// Why it cannot be; none where it can.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let over = self.soft.into_iter().chain(self.hard).find(|number| *number > QUOTA_MAX);
        if let Some(number) = over {
            return Some(format!("is {number}, must be 0 to {QUOTA_MAX}"));
        }
        let is_upside_down = self.soft.zip(self.hard).is_some_and(|(soft, hard)| soft > hard);
        is_upside_down.then(|| "has a soft limit above its hard one, must be at most that".to_owned())
    }
}

impl QuotaRateSection {
    /// Why it cannot be; none where it can.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let limit = LimitSection { soft: self.soft, hard: self.hard };
        if let Some(number) = self.hard.filter(|hard| *hard > QUOTA_PER_S_MAX) {
            return Some(format!("is {number} a second, must be 0 to {QUOTA_PER_S_MAX}"));
        }
        if let Some(number) = self.burst.filter(|burst| *burst > QUOTA_BURST_MAX) {
            return Some(format!("has a burst of {number}, must be 0 to {QUOTA_BURST_MAX}"));
        }
        self.burst_fault().or_else(|| limit.fault())
    }

    /// A burst below what a tick of 100 ms earns would be a lower limit than the one that was given.
    fn burst_fault(&self) -> Option<String> {
        let (hard, burst) = self.hard.zip(self.burst)?;
        match hard.div_ceil(10) {
            0 if burst > 0 => Some(format!("has a burst of {burst} at 0 a second, must be 0")),
            least if burst < least => {
                Some(format!("has a burst of {burst} at {hard} a second, must be at least {least}"))
            }
            _ => None,
        }
    }
}

impl QuotaSection {
    pub(super) fn validate_limits(&self) -> Result<(), ConfigError> {
        let devices =
            LimitSection { soft: self.devices_soft.map(u64::from), hard: Some(self.devices_max.into()) };
        let all = [
            ("quota.messages_per_s", self.messages_per_s.fault()),
            ("quota.messages_per_day", self.messages_per_day.fault()),
            ("quota.bytes_per_day", self.bytes_per_day.fault()),
            ("quota.inference_ms_per_day", self.inference_ms_per_day.fault()),
            ("quota.storage_bytes", self.storage_bytes.fault()),
            ("quota.connections", self.connections.fault()),
            ("quota.devices_soft", devices.fault()),
        ];
        match all.into_iter().find_map(|(key, fault)| Some((key, fault?))) {
            Some((key, why)) => Err(ConfigError::Value { key, why }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_nothing_from_the_rate_and_adds_nothing_to_zero() {
        let fault = |hard, burst| QuotaRateSection { soft: None, hard: Some(hard), burst }.fault();
        for (hard, burst, expect) in [
            (100, 0, "at least 10"),
            (1_000, 10, "at least 100"),
            (1, 0, "at least 1"),
            (11, 1, "at least 2"),
            (0, 10, "must be 0"),
        ] {
            let why = fault(hard, Some(burst)).unwrap_or_default();
            assert!(why.contains(expect), "{hard} with {burst}: {why}");
        }
        for (hard, burst) in [(100, 10), (1_000, 100), (1, 1), (11, 2), (0, 0)] {
            assert_eq!((fault(hard, Some(burst)), fault(hard, None)), (None, None), "{hard} with {burst}");
        }
    }
}
