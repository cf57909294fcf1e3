//! Which devices are there: what the store heard of them, joined with what the feed saw since the start.
//!
//! `api` calls it; it calls the telemetry store and the feed. Every list is bounded by the caller's page.

use super::feed::{Feed, Presence};
use crate::devices::Devices;
use crate::platform::db::{DbError, Scope};
use crate::platform::ends::Ends;
use crate::platform::http_kit::Page;
use crate::platform::telemetry::{self, TelemetryStore};
use crate::tenants::Reach;
use crate::tenants::scan::scan;
use muster_wire::TenantId;
use std::sync::Arc;

/// Devices that are read at once where a list is cut to a reach.
const SCAN_ROWS: i64 = 500;

/// A device that was heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePresence {
    /// Its id.
    pub device: String,
    /// None where it neither came nor went since the server started: it is not connected.
    pub presence: Option<Presence>,
    /// Why its last connection ended, where it is not connected.
    pub reason: Option<&'static str>,
    /// When it was last heard of; microseconds since 1970 (UTC).
    pub last_seen_us: i64,
}

/// The slice's reading side; clones share it.
#[derive(Clone)]
pub struct PresenceService {
    feed: Feed,
    store: TelemetryStore,
    ends: Arc<Ends>,
}

impl PresenceService {
    /// On an open store, and what the gateway knows of connections' ends.
    #[must_use]
    pub fn new(feed: Feed, store: TelemetryStore, ends: Arc<Ends>) -> Self {
        Self { feed, store, ends }
    }

    /// Where the gateway notes ends.
    #[must_use]
    pub fn ends(&self) -> Arc<Ends> {
        self.ends.clone()
    }

    /// A page of the tenant's devices by id, and one more where there is one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, tenant: &TenantId, page: &Page) -> Result<Vec<DevicePresence>, DbError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let rows = self.store.read(move |view| telemetry::last_seen(view, &scope, &after, limit)).await?;
        Ok(self.joined(tenant, rows))
    }

    /// As [`Self::list`], of the devices that a reach has: all devices are read until a page is full (see [`scan`]); with the
    /// device to go on after, where it is not the last.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_within(
        &self,
        devices: &Devices,
        tenant: &TenantId,
        reach: &Reach,
        page: &Page,
    ) -> Result<(Vec<DevicePresence>, Option<String>), DbError> {
        let (after, wanted) = (page.after_text().to_owned(), page.limit as usize + 1);
        let piece = move |from: String| async move {
            let scope = Scope::Tenant(tenant.clone());
            let rows =
                self.store.read(move |view| telemetry::last_seen(view, &scope, &from, SCAN_ROWS)).await?;
            let next = rows.last().map(|last| last.device.clone());
            let asked = rows.iter().map(|row| row.device.clone()).collect();
            let within = devices.reachable(tenant, reach, asked).await?;
            let rows = rows.into_iter().filter(|row| within.contains(&row.device)).collect();
            Ok((self.joined(tenant, rows), next))
        };
        scan(after, wanted, piece).await
    }

    fn joined(&self, tenant: &TenantId, rows: Vec<telemetry::LastSeen>) -> Vec<DevicePresence> {
        let join = |row: telemetry::LastSeen| {
            let presence = self.feed.presence_of(tenant.as_str(), &row.device);
            let end = self.ends.of(tenant.as_str(), &row.device);
            let is_connected = presence.is_some_and(|presence| presence.connected);
            let reason = end.filter(|_| !is_connected).map(|end| end.reason);
            DevicePresence { presence, reason, last_seen_us: row.last_seen_us, device: row.device }
        };
        rows.into_iter().map(join).collect()
    }
}
