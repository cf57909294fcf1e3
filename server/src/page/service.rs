//! Which devices are there: what the store heard of them, joined with what the feed saw since the start.
//!
//! `api` calls it; it calls the telemetry store and the feed. Every list is bounded by the caller's page.

use super::feed::{Feed, Presence};
use crate::platform::db::{DbError, Scope};
use crate::platform::http_kit::Page;
use crate::platform::telemetry::{self, TelemetryStore};
use muster_wire::TenantId;

/// A device that was heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePresence {
    /// Its id.
    pub device: String,
    /// None where it neither came nor went since the server started: it is not connected.
    pub presence: Option<Presence>,
    /// When it was last heard of; microseconds since 1970 (UTC).
    pub last_seen_us: i64,
}

/// The slice's reading side; clones share it.
#[derive(Clone)]
pub struct PresenceService {
    feed: Feed,
    store: TelemetryStore,
}

impl PresenceService {
    /// On an open store.
    #[must_use]
    pub fn new(feed: Feed, store: TelemetryStore) -> Self {
        Self { feed, store }
    }

    /// A page of the tenant's devices by id, and one more where there is one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, tenant: &TenantId, page: &Page) -> Result<Vec<DevicePresence>, DbError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let rows = self.store.read(move |view| telemetry::last_seen(view, &scope, &after, limit)).await?;
        let join = |row: telemetry::LastSeen| DevicePresence {
            presence: self.feed.presence_of(tenant.as_str(), &row.device),
            last_seen_us: row.last_seen_us,
            device: row.device,
        };
        Ok(rows.into_iter().map(join).collect())
    }
}
