//! The registry's service: devices here, claims and enrolment in [`claims`].
//!
//! A change of a device holds that device's lock over commit and directory, so that the directory never ends on an
//! older state than the registry; other devices do not wait.

mod claims;

pub use claims::{Enrolled, NewClaim};

use super::directory::{DeviceAuth, Directory};
use super::labels::LabelBook;
use super::model::{self, FieldError, Labels};
use super::pki::{CsrError, Pki, PkiError};
use super::store::{self, CertificateRow, DeviceRow};
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::{DeviceId, TenantId};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, MutexGuard};

/// Locks that devices share by hash: as many changes commit together.
const LOCKS: usize = 64;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// No such object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Already there, or not in the state that the request needs.
    #[error("{0}")]
    Conflict(&'static str),
    /// A field is out of range.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The certificate request is refused.
    #[error("csr_pem {0}")]
    Csr(#[from] CsrError),
    /// A quota is used up.
    #[error("the tenant's quota of {max} {noun} is used up")]
    Quota {
        /// Of what.
        noun: &'static str,
        /// The quota.
        max: u32,
    },
    /// The claim's secret is unknown or was deleted.
    #[error("the claim is not known")]
    ClaimUnknown,
    /// The claim is used up or past its time.
    #[error("the claim is used up or past its time")]
    ClaimSpent,
    /// The device is disabled.
    #[error("the device is disabled")]
    Disabled,
    /// Too many wrong claims from one address.
    #[error("too many wrong claims; try again in {retry_after_s} s")]
    TooMany {
        /// When to try again.
        retry_after_s: u64,
    },
    /// The listeners are not up yet.
    #[error("the server is starting")]
    Starting,
    /// The authority failed.
    #[error("certificate authority failed")]
    Pki(#[from] PkiError),
    /// The database failed.
    #[error("database failed")]
    Db(#[from] DbError),
}

/// Where devices find the server, once its listeners are up.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// A name or address in the server's certificate.
    pub host: String,
    /// The enrolment listener's port.
    pub enroll_port: u16,
    /// The MQTT listener's port.
    pub mqtt_port: u16,
}

/// The slice's service; clones share it.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: SharedClock,
    config: Live,
    pki: Arc<Pki>,
    directory: Arc<Directory>,
    labels: Arc<LabelBook>,
    endpoints: OnceLock<Endpoints>,
    locks: [Mutex<()>; LOCKS],
    hasher: RandomState,
    guard: std::sync::Mutex<crate::tenants::login_guard::LoginGuard>,
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
}

/// A new device.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// Its id.
    pub device: DeviceId,
    /// The name that people read.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
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
        let (endpoints, hasher, guard) = (OnceLock::new(), RandomState::new(), std::sync::Mutex::default());
        let locks = std::array::from_fn(|_| Mutex::new(()));
        let rows = db.read(all).await?;
        let labels = Arc::default();
        let inner = Inner { db, clock, config, pki, directory, labels, endpoints, locks, hasher, guard };
        let devices = Self { inner: Arc::new(inner) };
        rows.iter().for_each(|(tenant, row)| devices.publish(tenant, row));
        devices.revoke_in_directory(&serials);
        Ok(devices)
    }

    /// Tells where the listeners are; call once they are up.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        // A second call would be a restart of listeners, which there is not.
        let _ = self.inner.endpoints.set(endpoints);
    }

    /// The labels, for rules.
    #[must_use]
    pub fn labels(&self) -> &Arc<LabelBook> {
        &self.inner.labels
    }

    /// Tells the directory and the label book what the registry holds now. Hold the device's lock.
    fn publish(&self, tenant: &TenantId, row: &DeviceRow) {
        self.inner.directory.set_device(tenant, &row.device, auth_of(row));
        self.inner.labels.set(tenant.as_str(), row.device.as_str(), &row.labels);
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
        model::check_device_name(&new.name)?;
        model::check_labels(&new.labels)?;
        let _held = self.lock(tenant, &new.device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let max = self.inner.config.get().quota.devices_max;
        let NewDevice { device, name, labels } = new;
        let row = DeviceRow {
            device,
            name,
            enabled: true,
            labels,
            token_sha256: None,
            created_at_us: now_us,
            enrolled_at_us: None,
        };
        let write = move |tx: &mut Tx<'_>| {
            insert_device(tx, &scope, &row, max)?;
            let (action, detail) = ("device.create", serde_json::json!({}));
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

    /// The tenant's devices.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self, tenant: &TenantId, page: &Page) -> Result<Vec<DeviceRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::device_list(tx, &scope, &after, limit)).await?)
    }

    /// Changes a device. Before this returns, a disabled one is refused by every check of who it is, and the gateways
    /// are told to close its connection, which they do without this waiting for them.
    ///
    /// # Errors
    /// No such device; a field out of range.
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
            "name": change.name, "enabled": change.enabled, "labels": change.labels,
        });
        self.update(who, tenant, device, "device.change", detail, move |row| {
            let DeviceChange { name, enabled, labels } = change;
            row.name = name.unwrap_or(std::mem::take(&mut row.name));
            row.enabled = enabled.unwrap_or(row.enabled);
            row.labels = labels.unwrap_or(std::mem::take(&mut row.labels));
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
        let set = move |row: &mut DeviceRow| row.token_sha256 = Some(sha256);
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
        let clear = |row: &mut DeviceRow| row.token_sha256 = None;
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
        change: impl FnOnce(&mut DeviceRow) + Send + 'static,
    ) -> Result<DeviceRow, DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let device = device.clone();
        let write = move |tx: &mut Tx<'_>| {
            let mut row = store::device_get(tx, &scope, &device)?.ok_or(NO_DEVICE)?;
            change(&mut row);
            if !store::device_update(tx, &scope, &row)? {
                return Err(NO_DEVICE);
            }
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: device.as_str(), detail };
            audit::append(tx, &scope, &entry)?;
            Ok(row)
        };
        let row = self.inner.db.write(write).await?;
        self.publish(tenant, &row);
        Ok(row)
    }

    /// Deletes a device and revokes its certificates. Its stored readings stay until their retention ends.
    ///
    /// # Errors
    /// No such device.
    pub async fn delete(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<(), DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let gone = device.clone();
        let write = move |tx: &mut Tx<'_>| {
            if !store::device_delete(tx, &scope, &gone)? {
                return Err(NO_DEVICE);
            }
            let serials = store::certificates_revoke(tx, &scope, &gone, now_us)?;
            let (action, detail) = ("device.delete", serde_json::json!({ "revoked": serials }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: gone.as_str(), detail };
            audit::append(tx, &scope, &entry)?;
            Ok(serials)
        };
        let serials = self.inner.db.write(write).await?;
        self.inner.directory.remove_device(tenant, device);
        self.inner.labels.remove(tenant.as_str(), device.as_str());
        self.revoke_in_directory(&serials);
        Ok(())
    }

    /// A device's certificates.
    ///
    /// # Errors
    /// No such device.
    pub async fn certificates(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        page: &Page,
    ) -> Result<Vec<CertificateRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let device = device.clone();
        let read = move |tx: &mut Tx<'_>| {
            store::device_get(tx, &scope, &device)?.ok_or(NO_DEVICE)?;
            Ok(store::certificate_list(tx, &scope, &device, &after, limit)?)
        };
        self.inner.db.read(read).await
    }

    /// Revokes one certificate; a connection that stands on it is closed.
    ///
    /// # Errors
    /// No such certificate of this device.
    pub async fn revoke_certificate(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
        serial: String,
    ) -> Result<CertificateRow, DevicesError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let device = device.clone();
        let write = move |tx: &mut Tx<'_>| {
            let none = DevicesError::NotFound("certificate");
            let found = store::certificate_get(tx, &scope, &serial)?.filter(|row| row.device == device);
            let Some(found) = found else { return Err(none) };
            if store::certificate_revoke(tx, &scope, &serial, now_us)? {
                let (action, detail) = ("certificate.revoke", serde_json::json!({ "device": device }));
                let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &serial, detail };
                audit::append(tx, &scope, &entry)?;
            }
            Ok(CertificateRow { revoked_at_us: found.revoked_at_us.or(Some(now_us)), ..found })
        };
        let row = self.inner.db.write(write).await?;
        self.revoke_in_directory(std::slice::from_ref(&row.serial));
        Ok(row)
    }
}

const NO_DEVICE: DevicesError = DevicesError::NotFound("device");

/// Inserts within the quota.
fn insert_device(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow, max: u32) -> Result<(), DevicesError> {
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
