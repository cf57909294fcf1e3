//! The registry's service: devices here, claims and enrolment in [`claims`].
//!
//! A change of a device holds that device's lock over commit and directory, so that the directory never ends on an
//! older state than the registry; other devices do not wait.

mod approval;
mod authorities;
mod batch;
mod certificates;
mod claims;
mod departure;
mod erase;
mod error;
mod follow;
mod groups;
mod places;
mod profiles;
mod renewal;

pub(crate) use approval::RETRY_AFTER_S;
#[cfg(test)]
pub(crate) use approval::WAITING_MAX;
pub use authorities::{AuthorityView, Retire};
pub use batch::{BatchDevice, Claims};
pub use claims::{Enrolled, NewClaim};
pub use error::DevicesError;
pub use groups::{DYNAMIC_GROUPS_MAX, GROUPS_MAX};
pub use places::{FOLLOWED_MAX, SITES_MAX, SiteText};
#[cfg(test)]
pub(crate) use profiles::PROFILES_MAX;

use super::directory::{DeviceAuth, Directory};
use super::labels::LabelBook;
use super::model::{self, Labels};
use super::pki::Pki;
use super::store::places::PlacedDevice;
use super::store::{self, DeviceFilter, DeviceRow};
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, Scope, Tx};
use crate::platform::http_kit::{NotHere, Precondition};
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::reach::PlaceId;
use muster_wire::{DeviceId, TenantId};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, MutexGuard};

/// Locks that devices share by hash: as many changes commit together.
const LOCKS: usize = 64;

/// Where devices find the server, once its listeners are up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Endpoints {
    /// A name or address in the server's certificate.
    pub host: String,
    /// The enrolment listener's port.
    pub enroll_port: u16,
    /// The MQTT listener's port.
    pub mqtt_port: u16,
}

/// Gives how many devices a tenant may have.
pub type DevicesMax = Arc<dyn Fn(&str) -> u32 + Send + Sync>;

/// The slice's service; clones share it.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: SharedClock,
    config: Live,
    /// None in a process without a gateway: nothing of devices is in its memory then, and it signs nothing.
    pki: Option<Arc<Pki>>,
    directory: Arc<Directory>,
    labels: Arc<LabelBook>,
    endpoints: OnceLock<Endpoints>,
    devices_max: OnceLock<DevicesMax>,
    locks: [Mutex<()>; LOCKS],
    hasher: RandomState,
    guard: std::sync::Mutex<crate::tenants::login_guard::LoginGuard>,
    told: Mutex<Option<follow::Told>>,
}

/// What may change of a device; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct DeviceChange {
    /// The name that people read.
    pub name: Option<String>,
    /// Off has its connection closed.
    pub enabled: Option<bool>,
    /// Replaces all labels.
    pub labels: Option<Labels>,
    /// What the caller expects to change.
    pub expected: Precondition,
    /// Another profile; the empty text for none. Labels stay.
    pub profile: Option<String>,
}

/// A new device.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its id.
    pub device: DeviceId,
    /// The name that people read.
    pub name: String,
    /// Its labels, above the profile's.
    pub labels: Labels,
    /// Its profile.
    pub profile: Option<String>,
}

fn auth_of(row: &DeviceRow) -> DeviceAuth {
    DeviceAuth { enabled: row.enabled, token_sha256: row.token_sha256 }
}

impl Devices {
    /// Fills the directory from the registry.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(
        db: Db,
        clock: SharedClock,
        config: Live,
        pki: Arc<Pki>,
        directory: Arc<Directory>,
    ) -> Result<Self, DevicesError> {
        let now_us = clock.now_us();
        let all = |tx: &mut Tx<'_>| store::devices_all(tx, &Scope::System("device directory"));
        let revoked =
            move |tx: &mut Tx<'_>| store::serials_revoked(tx, &Scope::System("device directory"), now_us);
        let serials = db.read(revoked).await?;
        let rows = db.read(all).await?;
        let devices = Self::with(db, clock, config, Some(pki), directory);
        rows.iter().for_each(|(tenant, row)| devices.publish(tenant, row));
        devices.revoke_in_directory(&serials);
        Ok(devices)
    }

    /// In a process without a gateway: on the registry alone.
    #[must_use]
    pub fn without_gateway(db: Db, clock: SharedClock, config: Live) -> Self {
        Self::with(db, clock, config, None, Arc::default())
    }

    fn with(
        db: Db,
        clock: SharedClock,
        config: Live,
        pki: Option<Arc<Pki>>,
        directory: Arc<Directory>,
    ) -> Self {
        let (endpoints, devices_max) = (OnceLock::new(), OnceLock::new());
        let (hasher, guard) = (RandomState::new(), std::sync::Mutex::default());
        let locks = std::array::from_fn(|_| Mutex::new(()));
        let (labels, told) = (Arc::default(), Mutex::default());
        let inner = Inner {
            db,
            clock,
            config,
            pki,
            directory,
            labels,
            endpoints,
            devices_max,
            locks,
            hasher,
            guard,
            told,
        };
        Self { inner: Arc::new(inner) }
    }

    fn has_gateway(&self) -> bool {
        self.inner.pki.is_some()
    }

    fn pki(&self) -> Result<Arc<Pki>, NotHere> {
        self.inner.pki.clone().ok_or(NotHere)
    }

    /// Tells where the listeners are; call once they are up.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        // A second call would be a restart of listeners, which there is not.
        let _ = self.inner.endpoints.set(endpoints);
    }

    /// Asks something else than the configuration how many devices a tenant may have; call once, at the start.
    pub fn set_devices_max(&self, devices_max: DevicesMax) {
        let _ = self.inner.devices_max.set(devices_max);
    }

    /// How many devices a tenant may have.
    fn devices_max(&self) -> DevicesMax {
        let config = self.inner.config.clone();
        let of_config = || -> DevicesMax { Arc::new(move |_: &str| config.get().quota.devices_max) };
        self.inner.devices_max.get().cloned().unwrap_or_else(of_config)
    }

    /// The labels, for rules.
    #[must_use]
    pub fn labels(&self) -> &Arc<LabelBook> {
        &self.inner.labels
    }

    /// Tells the directory and the label book what the registry holds now. Hold the device's lock.
    fn publish(&self, tenant: &TenantId, row: &DeviceRow) {
        if !self.has_gateway() {
            return;
        }
        self.inner.directory.set_device(tenant, &row.device, auth_of(row));
        self.inner.labels.set(tenant.as_str(), row.device.as_str(), &row.labels);
    }

    /// The device is gone from the registry. Hold its lock.
    fn forget(&self, tenant: &TenantId, device: &DeviceId) {
        self.inner.directory.remove_device(tenant, device);
        self.inner.labels.remove(tenant.as_str(), device.as_str());
    }

    fn now_us(&self) -> i64 {
        self.inner.clock.now_us()
    }

    async fn lock(&self, tenant: &TenantId, device: &DeviceId) -> MutexGuard<'_, ()> {
        let hash = self.inner.hasher.hash_one((tenant, device));
        let at = usize::try_from(hash % LOCKS as u64).unwrap_or(0);
        self.inner.locks[at].lock().await
    }

    fn revoke_in_directory(&self, serials: &[String]) {
        if !self.has_gateway() {
            return;
        }
        let serials = serials.iter().filter_map(|serial| hex::decode(serial).ok());
        self.inner.directory.revoke_certs(serials.map(Vec::into_boxed_slice));
    }

    /// Creates a device.
    ///
    /// # Errors
    /// Taken id; a field out of range; quota.
    pub async fn create(
        &self,
        who: &Principal,
        tenant: &TenantId,
        new: NewDevice,
    ) -> Result<DeviceRow, DevicesError> {
        self.create_at(who, tenant, new, None).await
    }

    /// Creates a device at a site. Somebody with a bounded reach creates them within it.
    ///
    /// # Errors
    /// As [`Self::create`]; no such site; it would be out of the caller's reach.
    pub async fn create_at(
        &self,
        who: &Principal,
        tenant: &TenantId,
        new: NewDevice,
        site: Option<PlaceId>,
    ) -> Result<DeviceRow, DevicesError> {
        model::check_device_name(&new.name)?;
        model::check_labels(&new.labels)?;
        let _held = self.lock(tenant, &new.device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let max = self.devices_max()(tenant.as_str());
        let reach = who.reach_in(tenant);
        let NewDevice { device, name, labels, profile } = new;
        let mut row = DeviceRow {
            device,
            name,
            enabled: true,
            labels,
            profile,
            token_sha256: None,
            created_at_us: now_us,
            enrolled_at_us: None,
        };
        let write = move |tx: &mut Tx<'_>| {
            let profile = profiles::named(tx, &scope, row.profile.as_deref())?;
            row.labels = model::filled(&profile.labels_with(&row.labels), &row.device);
            model::check_labels(&row.labels)?;
            if !reach.is_everything() && store::was_deleted(tx, &scope, &row.device)? {
                return Err(DevicesError::Conflict(DELETED));
            }
            insert_device(tx, &scope, &row, max)?;
            if site.is_some() {
                places::place(tx, &scope, &row, site.as_ref())?;
            }
            places::keep_within(tx, &scope, &reach, &row.device)?;
            let (action, detail) = ("device.create", serde_json::json!({ "site": site }));
            let entry =
                AuditEntry { at_us: now_us, actor: &actor, action, object: row.device.as_str(), detail };
            audit::append(tx, &scope, &entry)?;
            Ok::<_, DevicesError>(row)
        };
        let row = self.inner.db.write(write).await?;
        self.publish(tenant, &row);
        Ok(row)
    }

    /// One device.
    ///
    /// # Errors
    /// No such device.
    pub async fn get(&self, tenant: &TenantId, device: &DeviceId) -> Result<DeviceRow, DevicesError> {
        let (scope, device) = (Scope::Tenant(tenant.clone()), device.clone());
        let read = move |tx: &mut Tx<'_>| store::device_get(tx, &scope, &device)?.ok_or(NO_DEVICE);
        self.inner.db.read(read).await
    }

    /// The tenant's devices that a filter lets through, with their sites.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(
        &self,
        tenant: &TenantId,
        filter: DeviceFilter,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Vec<PlacedDevice>, DevicesError> {
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| store::device_list(tx, &scope, &filter, after.as_ref(), limit);
        Ok(self.inner.db.read(read).await?)
    }

    /// Changes a device. Before this returns, a disabled one is refused by every check of who it is, and the gateways
    /// are told to close its connection, which they do without this waiting for them.
    ///
    /// # Errors
    /// No such device; a field out of range; it is another one than the caller expects.
    pub async fn change(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
        change: DeviceChange,
    ) -> Result<DeviceRow, DevicesError> {
        change.name.as_deref().map_or(Ok(()), model::check_device_name)?;
        change.labels.as_ref().map_or(Ok(()), model::check_labels)?;
        let detail = serde_json::json!({
            "name": change.name, "enabled": change.enabled, "labels": change.labels, "profile": change.profile,
        });
        self.update(who, tenant, device, "device.change", detail, move |row| {
            let DeviceChange { name, enabled, labels, profile, expected } = change;
            expected.check(&row.etag())?;
            if let Some(profile) = profile {
                row.profile = Some(profile).filter(|profile| !profile.is_empty());
            }
            row.name = name.unwrap_or(std::mem::take(&mut row.name));
            row.enabled = enabled.unwrap_or(row.enabled);
            row.labels = labels.unwrap_or(std::mem::take(&mut row.labels));
            Ok(())
        })
        .await
    }

    /// Gives a foreign device a token, in place of the one before; the secret is shown once.
    ///
    /// # Errors
    /// No such device.
    pub async fn create_token(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<String, DevicesError> {
        let token = secret::new_token("mdt_");
        let sha256 = secret::token_sha256(&token);
        let set = move |row: &mut DeviceRow| {
            row.token_sha256 = Some(sha256);
            Ok(())
        };
        self.update(who, tenant, device, "device.token", serde_json::json!({}), set).await?;
        Ok(token)
    }

    /// Takes the token away.
    ///
    /// # Errors
    /// No such device.
    pub async fn delete_token(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<(), DevicesError> {
        let clear = |row: &mut DeviceRow| {
            row.token_sha256 = None;
            Ok(())
        };
        self.update(who, tenant, device, "device.token_revoke", serde_json::json!({}), clear).await?;
        Ok(())
    }

    async fn update(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
        action: &'static str,
        detail: serde_json::Value,
        change: impl FnOnce(&mut DeviceRow) -> Result<(), DevicesError> + Send + 'static,
    ) -> Result<DeviceRow, DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let (device, reach) = (device.clone(), who.reach_in(tenant));
        let write = move |tx: &mut Tx<'_>| {
            let mut row = erase::row_to_change(tx, &scope, &device)?;
            let before = row.profile.clone();
            change(&mut row)?;
            let left = departure::places_of(tx, &scope, &device)?;
            if row.profile != before {
                profiles::named(tx, &scope, row.profile.as_deref())?;
            }
            if !store::device_update(tx, &scope, &row)? {
                return Err(NO_DEVICE);
            }
            places::keep_within(tx, &scope, &reach, &device)?;
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: device.as_str(), detail };
            audit::append(tx, &scope, &entry)?;
            departure::end_claims(tx, &scope, &device, &left, (&actor, now_us))?;
            Ok(row)
        };
        let row = self.inner.db.write(write).await?;
        self.publish(tenant, &row);
        Ok(row)
    }

    /// Deletes a device, revokes its certificates and deletes claims that name it. Its stored readings stay until their
    /// retention ends.
    ///
    /// # Errors
    /// No such device, or it is another one than the caller expects.
    pub async fn delete(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
        expected: &Precondition,
    ) -> Result<(), DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let (gone, expected) = (device.clone(), expected.clone());
        let write = move |tx: &mut Tx<'_>| {
            let row = erase::row_to_change(tx, &scope, &gone)?;
            expected.check(&row.etag())?;
            if !store::device_delete(tx, &scope, &gone)? {
                return Err(NO_DEVICE);
            }
            let serials = store::certificates_revoke(tx, &scope, &gone, now_us)?;
            store::renewals_delete(tx, &scope, &gone)?;
            store::deleted_put(tx, &scope, &gone, now_us)?;
            let claims = store::claims_delete_all_of(tx, &scope, &gone)?;
            let detail = serde_json::json!({ "revoked": serials, "claims": claims });
            let action = "device.delete";
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: gone.as_str(), detail };
            audit::append(tx, &scope, &entry)?;
            Ok(serials)
        };
        let serials = self.inner.db.write(write).await?;
        self.forget(tenant, device);
        self.revoke_in_directory(&serials);
        Ok(())
    }
}

const NO_DEVICE: DevicesError = DevicesError::NotFound("device");
const DELETED: &str = "a deleted device had this id, and what is stored of it stays for a time: \
     whoever reaches the whole tenant may give the id again";

/// Inserts within the quota. A name that is being erased is free only once that is done: what is erased again after a
/// crash is never another device.
fn insert_device(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow, max: u32) -> Result<(), DevicesError> {
    if store::is_in_erasure(tx, scope, &row.device)? {
        return Err(erase::IN_ERASURE);
    }
    if store::device_count(tx, scope)? >= i64::from(max) {
        return Err(DevicesError::Quota { noun: "devices", max });
    }
    store::device_insert(tx, scope, row).map_err(|error| {
        if error.is_unique_violation() {
            DevicesError::Conflict("the device exists already")
        } else {
            error.into()
        }
    })
}
