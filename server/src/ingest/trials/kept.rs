//! What a power cut may leave of the store: any of its commits since its last sync.

use std::path::Path;
use std::sync::{Arc, Mutex};

/// Copies of the store: as it was synced, and after each commit since.
#[derive(Clone, Default)]
pub(super) struct Kept {
    pub(super) copies: Arc<Mutex<Vec<tempfile::TempDir>>>,
    /// Syncs go unnoticed: the trials must fail.
    pub(super) ignores_syncs: bool,
}

impl Kept {
    /// Keeps a copy of the store. Nothing writes to it meanwhile.
    pub(super) fn keep(&self, store: &Path) {
        let copy = tempfile::tempdir().unwrap();
        for name in ["telemetry.db", "telemetry.db-wal"] {
            if store.join(name).exists() {
                std::fs::copy(store.join(name), copy.path().join(name)).unwrap();
            }
        }
        self.copies.lock().unwrap().push(copy);
    }

    /// The store is synced as it stands.
    pub(super) fn synced(&self, store: &Path) {
        if !self.ignores_syncs {
            self.copies.lock().unwrap().clear();
            self.keep(store);
        }
    }
}
