//! Devices' labels in memory, for rules that select devices by label.
//!
//! The service fills it beside the directory; the rules' consumer reads it and looks at [`LabelBook::changes`] to
//! know when its resolved selectors are old, and at [`LabelBook::deletions`] to know when to forget devices. Devices
//! without labels take no room.

use super::model::Labels;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

type ByDevice = HashMap<Box<str>, Labels>;

/// Labels by tenant and device.
#[derive(Debug, Default)]
pub struct LabelBook {
    tenants: RwLock<HashMap<Box<str>, ByDevice>>,
    changes: AtomicU64,
    deletions: AtomicU64,
}

impl LabelBook {
    /// A device's labels; none where there is no such device.
    #[must_use]
    pub fn labels(&self, tenant: &str, device: &str) -> Labels {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant).and_then(|devices| devices.get(device)).cloned().unwrap_or_default()
    }

    /// Counts changes since the start.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Counts deleted devices since the start.
    #[must_use]
    pub fn deletions(&self) -> u64 {
        self.deletions.load(Ordering::Acquire)
    }

    /// A device was deleted; the directory no longer knows it.
    pub(super) fn remove(&self, tenant: &str, device: &str) {
        self.set(tenant, device, &Labels::new());
        self.deletions.fetch_add(1, Ordering::Release);
    }

    pub(super) fn set(&self, tenant: &str, device: &str, labels: &Labels) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let devices = tenants.entry(tenant.into()).or_default();
        let before = if labels.is_empty() {
            devices.remove(device)
        } else {
            devices.insert(device.into(), labels.clone())
        };
        if before.as_ref() != (!labels.is_empty()).then_some(labels) {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_real_change_counts() {
        let book = LabelBook::default();
        let labels = Labels::from([("site".into(), "berlin".into())]);
        book.set("acme", "pump", &Labels::new());
        assert_eq!(book.changes(), 0);
        book.set("acme", "pump", &labels);
        book.set("acme", "pump", &labels);
        assert_eq!((book.changes(), book.labels("acme", "pump")), (1, labels));
        assert_eq!(book.labels("other", "pump"), Labels::new());
        book.set("acme", "pump", &Labels::new());
        assert_eq!((book.changes(), book.labels("acme", "pump")), (2, Labels::new()));
        assert_eq!(book.deletions(), 0);
        book.remove("acme", "pump");
        assert_eq!(
            (book.changes(), book.deletions()),
            (2, 1),
            "a device without labels counts as deleted too"
        );
    }
}
