//! Slows guessing: counts failed logins by account and by address, in memory.
//!
//! The service asks before it hashes a password. A restart forgets the counts; argon2 still bounds the rate then.
//! Bound: [`KEYS_MAX`] keys; when full, the key whose lock ends first makes room.

use std::collections::HashMap;

/// Accounts and addresses that are remembered.
pub const KEYS_MAX: usize = 10_000;

/// How many failures lock a key, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Failures until the lock.
    pub failures_max: u32,
    /// The lock, and the window in which failures count.
    pub lock_us: i64,
}

/// Failures by key.
#[derive(Debug, Default)]
pub struct LoginGuard {
    keys: HashMap<String, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    until_us: i64,
}

impl LoginGuard {
    /// Whether the key is locked; gives the seconds that are left.
    #[must_use]
    pub fn locked_for_s(&self, key: &str, policy: Policy, now_us: i64) -> Option<u64> {
        let until_us = self.locked_until_us(key, policy, now_us)?;
        Some(u64::try_from((until_us - now_us) / 1_000_000).unwrap_or(0) + 1)
    }

    /// The end of the key's lock, where it is locked.
    #[must_use]
    pub fn locked_until_us(&self, key: &str, policy: Policy, now_us: i64) -> Option<i64> {
        let failures = self.keys.get(key).filter(|failures| failures.until_us > now_us)?;
        (failures.count >= policy.failures_max).then_some(failures.until_us)
    }

    /// Counts a failure.
    pub fn failed(&mut self, key: &str, policy: Policy, now_us: i64) {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(key) {
            self.make_room(now_us);
        }
        let failures = self.keys.entry(key.to_owned()).or_insert(Failures { count: 0, until_us: now_us });
        if failures.until_us <= now_us {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.until_us = now_us.saturating_add(policy.lock_us);
    }

    /// Takes the newest attempt back: it was no failure. Older failures of an address stay counted; an account's are
    /// forgotten with [`Self::forget`].
    pub fn take_back(&mut self, key: &str) {
        if let Some(failures) = self.keys.get_mut(key) {
            failures.count = failures.count.saturating_sub(1);
        }
    }

    /// Forgets a key's failures.
    pub fn forget(&mut self, key: &str) {
        self.keys.remove(key);
    }

    fn make_room(&mut self, now_us: i64) {
        self.keys.retain(|_, failures| failures.until_us > now_us);
        if self.keys.len() >= KEYS_MAX {
            let first =
                self.keys.iter().min_by_key(|(_, failures)| failures.until_us).map(|(key, _)| key.clone());
            first.map(|key| self.keys.remove(&key));
        }
    }
}

/// Refused logins that are written to the audit chain in one minute, beside those that an account's own lock bounds.
pub const REFUSALS_PER_MINUTE_MAX: u32 = 60;

/// How many more refused logins may be written this minute.
#[derive(Debug, Default)]
pub struct RefusalBudget {
    minute: i64,
    written: u32,
    left_out: u64,
}

impl RefusalBudget {
    /// Takes one; gives how many were left out since the last that was taken, or none where this one is.
    pub fn take(&mut self, now_us: i64) -> Option<u64> {
        let minute = now_us.div_euclid(60_000_000);
        if minute != self.minute {
            (self.minute, self.written) = (minute, 0);
        }
        if self.written >= REFUSALS_PER_MINUTE_MAX {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { failures_max: 3, lock_us: 60_000_000 };

    #[test]
    fn failures_lock_and_time_unlocks() {
        let mut guard = LoginGuard::default();
        for _ in 0..2 {
            guard.failed("a", POLICY, 0);
        }
        assert_eq!(guard.locked_for_s("a", POLICY, 0), None);
        guard.failed("a", POLICY, 1_000_000);
        assert_eq!(guard.locked_for_s("a", POLICY, 1_000_000), Some(61));
        assert_eq!(guard.locked_for_s("b", POLICY, 1_000_000), None);
        assert_eq!(guard.locked_for_s("a", POLICY, 61_000_000), None);
        guard.failed("a", POLICY, 62_000_000);
        assert_eq!(guard.locked_for_s("a", POLICY, 62_000_000), None, "an old failure no longer counts");
    }

    #[test]
    fn refusals_are_written_up_to_a_bound_and_the_rest_is_counted() {
        let mut budget = RefusalBudget::default();
        for _ in 0..REFUSALS_PER_MINUTE_MAX {
            assert_eq!(budget.take(0), Some(0));
        }
        assert_eq!((budget.take(1), budget.take(59_999_999)), (None, None));
        assert_eq!((budget.take(60_000_000), budget.take(60_000_001)), (Some(2), Some(0)));
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut guard = LoginGuard::default();
        for at in 0..KEYS_MAX + 10 {
            guard.failed(&format!("k{at}"), POLICY, i64::try_from(at).unwrap());
        }
        assert_eq!(guard.keys.len(), KEYS_MAX);
        assert!(guard.keys.contains_key(&format!("k{}", KEYS_MAX + 9)));
    }
}
