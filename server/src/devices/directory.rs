//! Who may speak MQTT, in memory: devices, revoked certificates, integration tokens.
//!
//! The devices and tenants services fill it from the registry when the server starts and after each
//! commit, and [`super::replica`] does in a process that reads another's registry; the gateway reads it
//! without await on every CONNECT, resumed TLS sessions included, and
//! follows [`Directory::subscribe_changes`] so that a disabled device is cut off at once.
//!
//! Promise: a lookup sees every change that returned before it began. Nothing here is durable: the
//! registry is the truth. Limits: [`CHANGES_MAX`] unread changes a subscriber; one that lags is told
//! so and looks at everything again. A device takes about 110 bytes with its name.

use crate::tenants::Permission;
use crate::tenants::directory::TokenInfo;
use muster_wire::{DeviceId, TenantId};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::broadcast;

/// Changes that a subscriber may leave unread: more than an operator's bulk edit makes in a second.
pub const CHANGES_MAX: usize = 1_024;

/// The SHA-256 of a token; the token itself is never kept.
pub type TokenHash = [u8; 32];

/// The hash that stands for a token, over its text's bytes.
#[must_use]
pub fn token_hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// What the gateway must know of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAuth {
    /// A disabled device is refused and cut off.
    pub enabled: bool,
    /// The device token, where the device has one beside or instead of a certificate.
    pub token_sha256: Option<TokenHash>,
}

/// What the gateway must know of an API token that may subscribe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntegrationToken {
    /// The tenant whose `up/` topics it may read.
    pub tenant: TenantId,
    /// The token's own id, for takeover and logs.
    pub token_id: Box<str>,
    /// Refused from this time on, microseconds since 1970 (UTC).
    pub expires_at_us: Option<i64>,
}

impl IntegrationToken {
    /// What an API token is to the gateway; none where it may not subscribe.
    #[must_use]
    pub fn of(token: &TokenInfo) -> Option<Self> {
        // It is sent what all devices of its tenant send: nothing for one that reaches some of them.
        let may = token.scopes.contains(&Permission::MqttSubscribe) && token.membership.reach.is_everything();
        may.then(|| Self {
            tenant: token.membership.tenant.clone(),
            token_id: token.token_id.as_str().into(),
            expires_at_us: Some(token.expires_at_us),
        })
    }
}

/// What changed; look it up again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device was added, edited, disabled or removed.
    Device {
        /// Its tenant.
        tenant: TenantId,
        /// Its id within the tenant.
        device: DeviceId,
    },
    /// A certificate or an integration token was revoked, or everything was loaded anew.
    Everything,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Maps {
    devices: HashMap<Box<str>, HashMap<Box<str>, DeviceAuth>>,
    revoked_serials: HashSet<Box<[u8]>>,
    integrations: HashMap<TokenHash, IntegrationToken>,
}

/// The directory. Share it in an `Arc`.
pub struct Directory {
    maps: RwLock<Maps>,
    changes: broadcast::Sender<Change>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { maps: RwLock::default(), changes: broadcast::channel(CHANGES_MAX).0 }
    }
}

impl Directory {
    /// An empty directory: it refuses everybody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds a device.
    #[must_use]
    pub fn lookup(&self, tenant: &str, device: &str) -> Option<DeviceAuth> {
        self.read().devices.get(tenant)?.get(device).copied()
    }

    /// How many devices each tenant has; tenants without any are left out.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, u64)> {
        let maps = self.read();
        let of_tenants = maps.devices.iter().filter(|(_, devices)| !devices.is_empty());
        of_tenants.map(|(tenant, devices)| (tenant.to_string(), devices.len() as u64)).collect()
    }

    /// Tells whether a certificate was revoked, by the serial number's bytes as they stand in it.
    #[must_use]
    pub fn is_cert_revoked(&self, serial: &[u8]) -> bool {
        self.read().revoked_serials.contains(serial)
    }

    /// Finds an integration token by its hash; the caller checks the expiry.
    #[must_use]
    pub fn integration(&self, hash: &TokenHash) -> Option<IntegrationToken> {
        self.read().integrations.get(hash).cloned()
    }

    /// Adds or replaces a device.
    pub fn set_device(&self, tenant: &TenantId, device: &DeviceId, auth: DeviceAuth) {
        let mut maps = self.write();
        let of_tenant = maps.devices.entry(tenant.as_str().into()).or_default();
        let before = of_tenant.insert(device.as_str().into(), auth);
        drop(maps);
        if before != Some(auth) {
            self.announce(Change::Device { tenant: tenant.clone(), device: device.clone() });
        }
    }

    /// Removes a device.
    pub fn remove_device(&self, tenant: &TenantId, device: &DeviceId) {
        let mut maps = self.write();
        let before =
            maps.devices.get_mut(tenant.as_str()).and_then(|of_tenant| of_tenant.remove(device.as_str()));
        drop(maps);
        if before.is_some() {
            self.announce(Change::Device { tenant: tenant.clone(), device: device.clone() });
        }
    }

    /// Revokes a certificate by its serial number's bytes.
    pub fn revoke_cert(&self, serial: &[u8]) {
        self.revoke_certs([serial.into()]);
    }

    /// Revokes certificates, and announces it once.
    pub fn revoke_certs(&self, serials: impl IntoIterator<Item = Box<[u8]>>) {
        let mut maps = self.write();
        let before = maps.revoked_serials.len();
        maps.revoked_serials.extend(serials);
        let is_more = maps.revoked_serials.len() > before;
        drop(maps);
        if is_more {
            self.announce(Change::Everything);
        }
    }

    /// Puts a whole list of revoked certificates in force, by their serial numbers' bytes: those that are not on it have
    /// expired.
    pub fn set_revoked(&self, serials: impl IntoIterator<Item = Box<[u8]>>) {
        let serials: HashSet<_> = serials.into_iter().collect();
        let mut maps = self.write();
        let is_more = serials.iter().any(|serial| !maps.revoked_serials.contains(serial));
        maps.revoked_serials = serials;
        drop(maps);
        if is_more {
            self.announce(Change::Everything);
        }
    }

    /// Puts a whole list of integration tokens in force; says how many were others before.
    pub fn set_integrations(&self, tokens: HashMap<TokenHash, IntegrationToken>) -> usize {
        let mut maps = self.write();
        let before = std::mem::replace(&mut maps.integrations, tokens);
        let gone = before.iter().filter(|(hash, token)| maps.integrations.get(*hash) != Some(token)).count();
        let new = maps.integrations.keys().filter(|hash| !before.contains_key(*hash)).count();
        drop(maps);
        if gone > 0 {
            self.announce(Change::Everything);
        }
        gone + new
    }

    /// Adds or replaces an integration token.
    pub fn set_integration(&self, hash: TokenHash, token: IntegrationToken) {
        let before = self.write().integrations.insert(hash, token);
        if before.is_some() {
            self.announce(Change::Everything);
        }
    }

    /// Removes an integration token.
    pub fn remove_integration(&self, hash: &TokenHash) {
        let before = self.write().integrations.remove(hash);
        if before.is_some() {
            self.announce(Change::Everything);
        }
    }

    /// How many devices there are.
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.read().devices.values().map(HashMap::len).sum()
    }

    /// Every device's tenant and id, as of one moment.
    #[must_use]
    pub fn device_names(&self) -> Vec<(TenantId, DeviceId)> {
        let maps = self.read();
        let mut names = Vec::new();
        for (tenant, devices) in &maps.devices {
            let tenant = TenantId::parse(tenant).expect("it came in as a tenant's id");
            let device = |text: &str| DeviceId::parse(text).expect("it came in as a device's id");
            names.extend(devices.keys().map(|text| (tenant.clone(), device(text))));
        }
        names
    }

    /// Follows changes from now on.
    #[must_use]
    pub fn subscribe_changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn announce(&self, change: Change) {
        // Nobody follows while the gateway is not running.
        let _no_receiver = self.changes.send(change);
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Equal where they let the same in.
#[cfg(test)]
impl PartialEq for Directory {
    fn eq(&self, other: &Self) -> bool {
        let held = |directory: &Self| {
            let mut maps = directory.read().clone();
            maps.devices.retain(|_, devices| !devices.is_empty());
            maps
        };
        held(self) == held(other)
    }
}

#[cfg(test)]
impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::broadcast::error::TryRecvError;

    #[test]
    fn a_change_is_seen_by_lookup_and_follower() {
        let directory = Directory::new();
        let (tenant, device) = (TenantId::parse("acme").unwrap(), DeviceId::parse("pump-1").unwrap());
        let mut changes = directory.subscribe_changes();
        let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash("secret")) };
        directory.set_device(&tenant, &device, auth);
        assert_eq!(directory.lookup("acme", "pump-1"), Some(auth));
        assert_eq!(directory.lookup("other", "pump-1"), None);
        directory.set_device(&tenant, &device, auth);
        directory.set_device(&tenant, &device, DeviceAuth { enabled: false, ..auth });
        directory.remove_device(&tenant, &device);
        directory.remove_device(&tenant, &device);
        assert_eq!(directory.lookup("acme", "pump-1"), None);
        let expect = Change::Device { tenant, device };
        for _ in 0..3 {
            assert_eq!(changes.try_recv().unwrap(), expect);
        }
        assert!(changes.try_recv().is_err(), "an unchanged write and a second removal tell nothing");
    }

    #[test]
    fn a_follower_that_left_more_changes_unread_than_are_kept_is_told() {
        let directory = Directory::new();
        let mut changes = directory.subscribe_changes();
        let change = |number: usize| directory.revoke_cert(&number.to_le_bytes());
        (0..CHANGES_MAX).for_each(change);
        assert_eq!(changes.try_recv(), Ok(Change::Everything), "as many are kept");
        (0..2).for_each(|more| change(CHANGES_MAX + more));
        assert_eq!(changes.try_recv(), Err(TryRecvError::Lagged(1)));
        assert_eq!(changes.len(), CHANGES_MAX);
    }

    #[test]
    fn whole_lists_announce_only_what_shuts_somebody_out() {
        let directory = Directory::new();
        let mut changes = directory.subscribe_changes();
        let token = |id: &str| IntegrationToken {
            tenant: TenantId::parse("acme").unwrap(),
            token_id: id.into(),
            expires_at_us: None,
        };
        assert_eq!(directory.set_integrations([([1; 32], token("a"))].into()), 1);
        assert_eq!(directory.set_integrations([([1; 32], token("a")), ([2; 32], token("b"))].into()), 1);
        assert!(changes.try_recv().is_err(), "nobody was shut out");
        assert_eq!(directory.set_integrations([([1; 32], token("c"))].into()), 2);
        assert_eq!(changes.try_recv(), Ok(Change::Everything));
        assert_eq!(directory.integration(&[1; 32]), Some(token("c")));
        assert_eq!(directory.integration(&[2; 32]), None);

        directory.set_revoked([[1].into(), [2].into()]);
        assert_eq!(changes.try_recv(), Ok(Change::Everything));
        directory.set_revoked([[2].into()]);
        assert!(changes.try_recv().is_err(), "one has expired");
        assert!(directory.is_cert_revoked(&[2]) && !directory.is_cert_revoked(&[1]));
    }

    #[test]
    fn revoking_announces_once() {
        let directory = Directory::new();
        let mut changes = directory.subscribe_changes();
        assert!(!directory.is_cert_revoked(&[1, 2]));
        directory.revoke_cert(&[1, 2]);
        directory.revoke_cert(&[1, 2]);
        assert!(directory.is_cert_revoked(&[1, 2]));
        assert_eq!(changes.try_recv().unwrap(), Change::Everything);
        assert!(changes.try_recv().is_err());
    }
}
