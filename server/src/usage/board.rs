//! Every tenant's allowance and quotas, and the day that they count.
//!
//! The service and configuration reloads set quotas here, the gateway tells the time and takes an [`Allowance`] once a
//! connection. Days are UTC and change when [`Board::at`] is told, at most one tick late. Whoever waits for more than ticks bring
//! watches [`Board::changes`].
//!
//! Bounds: an allowance for each tenant that ever connected, was metered or has quotas of its own: about 300 bytes.

use super::allowance::Allowance;
use super::model::{QuotaSpec, Quotas, day_of, day_text};
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Default)]
struct Maps {
    defaults: Quotas,
    own: HashMap<Box<str>, QuotaSpec>,
    tenants: HashMap<Box<str>, Arc<Allowance>>,
}

impl Maps {
    fn quotas(&self, tenant: &str) -> Quotas {
        self.own.get(tenant).map_or(self.defaults, |own| self.defaults.with(own))
    }
}

/// Every tenant's allowance. Share it in an `Arc`.
pub struct Board {
    maps: RwLock<Maps>,
    day: AtomicI64,
    changes: AtomicU64,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A board without any limit.
    #[must_use]
    pub fn new() -> Self {
        Self { maps: RwLock::default(), day: AtomicI64::new(i64::MIN), changes: AtomicU64::new(0) }
    }

    /// A tenant's allowance: once a connection, not once a message.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Arc<Allowance> {
        if let Some(found) = self.read().tenants.get(tenant) {
            return found.clone();
        }
        let mut maps = self.write();
        let quotas = maps.quotas(tenant);
        let allowance = maps.tenants.entry(tenant.into()).or_insert_with(|| {
            let new = Allowance::default();
            new.set(&quotas);
            Arc::new(new)
        });
        allowance.clone()
    }

    /// Puts other defaults in force, for connections that are up too.
    pub fn set_defaults(&self, defaults: Quotas) {
        let mut maps = self.write();
        maps.defaults = defaults;
        maps.tenants.iter().for_each(|(tenant, allowance)| allowance.set(&maps.quotas(tenant)));
        self.changed();
    }

    /// Gives a tenant quotas of its own, or takes them away.
    pub fn set_own(&self, tenant: &str, own: Option<QuotaSpec>) {
        let mut maps = self.write();
        match own {
            Some(own) => maps.own.insert(tenant.into(), own),
            None => maps.own.remove(tenant),
        };
        if let Some(allowance) = maps.tenants.get(tenant) {
            allowance.set(&maps.quotas(tenant));
        }
        self.changed();
    }

    /// Gives every tenant the quotas of its own that it has now; whoever is not named has none.
    pub fn set_all_own(&self, own: Vec<(String, QuotaSpec)>) {
        let mut maps = self.write();
        maps.own = own.into_iter().map(|(tenant, spec)| (tenant.into(), spec)).collect();
        maps.tenants.iter().for_each(|(tenant, allowance)| allowance.set(&maps.quotas(tenant)));
        self.changed();
    }

    /// The quotas in force for a tenant.
    #[must_use]
    pub fn quotas(&self, tenant: &str) -> Quotas {
        self.read().quotas(tenant)
    }

    /// The quotas of a tenant's own.
    #[must_use]
    pub fn own(&self, tenant: &str) -> Option<QuotaSpec> {
        self.read().own.get(tenant).copied()
    }

    /// Tells the time. On a new day every tenant begins anew. A clock that is set back by little changes nothing; by more
    /// than a day it had been wrong before, and the day that it says begins anew, until the meter told what was used of it.
    pub fn at(&self, now_us: i64) {
        let day = day_of(now_us);
        let goes_on = |before: i64| day == before || day.checked_add(1) == Some(before);
        if goes_on(self.day.load(Ordering::Relaxed)) {
            return;
        }
        let maps = self.write();
        let before = self.day.load(Ordering::Relaxed);
        if goes_on(before) {
            return;
        }
        self.day.store(day, Ordering::Relaxed);
        // The first day of a process is no new day: what was restored counts.
        if before == i64::MIN {
            return;
        }
        if day < before {
            let (from, to) = (day_text(before), day_text(day));
            tracing::error!(from, to, "the clock went back by more than a day: it was wrong before");
        }
        maps.tenants.values().for_each(|allowance| allowance.new_day());
        self.changed();
    }

    /// How often something changed that may let in what was refused: limits, the day, what the meter found.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// To be called after the change.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The day that is counted.
    #[must_use]
    pub fn day(&self) -> i64 {
        self.day.load(Ordering::Relaxed)
    }

    /// Every tenant that has an allowance.
    pub(super) fn each(&self, mut each: impl FnMut(&str, &Arc<Allowance>)) {
        self.read().tenants.iter().for_each(|(tenant, allowance)| each(tenant, allowance));
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}
