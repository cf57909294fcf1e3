//! What an erasure asks of the registry. Each call may come again.

use super::{Devices, DevicesError, NO_DEVICE, auth_of};
use crate::devices::store::{self, DeviceRow};
use crate::platform::db::{Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::{DeviceId, TenantId};

impl Devices {
    /// The tenant's devices by id, from after `after` on.
    ///
    /// # Errors
    /// The database's.
    pub async fn ids(
        &self,
        tenant: &TenantId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<DeviceId>, DevicesError> {
        let (scope, after) = (Scope::Tenant(tenant.clone()), after.to_owned());
        Ok(self.inner.db.read(move |tx| store::device_ids(tx, &scope, &after, limit)).await?)
    }

    /// Disables a device that is being erased. Its connection is closed; nobody can enable it again.
    ///
    /// # Errors
    /// The database's.
    pub async fn shut_out(
        &self,
        actor: &str,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<(), DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, at_us) = (Scope::Tenant(tenant.clone()), actor.to_owned(), self.now_us());
        let id = device.clone();
        let write = move |tx: &mut Tx<'_>| {
            let Some(mut row) = store::device_get(tx, &scope, &id)? else { return Ok(None) };
            if row.enabled {
                row.enabled = false;
                store::device_update(tx, &scope, &row)?;
                let detail = serde_json::json!({ "enabled": false, "erasure": true });
                let (action, object) = ("device.change", id.as_str());
                audit::append(tx, &scope, &AuditEntry { at_us, actor: &actor, action, object, detail })?;
            }
            Ok::<_, DevicesError>(Some(row))
        };
        if let Some(row) = self.inner.db.write(write).await? {
            self.inner.directory.set_device(tenant, device, auth_of(&row));
        }
        Ok(())
    }

    /// Takes a device out of what rules and the gateway know, while its row still keeps its name.
    pub async fn hide(&self, tenant: &TenantId, device: &DeviceId) {
        let _held = self.lock(tenant, device).await;
        self.inner.directory.remove_device(tenant, device);
        self.inner.labels.remove(tenant.as_str(), device.as_str());
    }

    /// Deletes a device's row and revokes its certificates. Its name may be given to another once the erasure is done.
    ///
    /// # Errors
    /// The database's.
    pub async fn erase(&self, actor: &str, tenant: &TenantId, device: &DeviceId) -> Result<(), DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, at_us) = (Scope::Tenant(tenant.clone()), actor.to_owned(), self.now_us());
        let id = device.clone();
        let write = move |tx: &mut Tx<'_>| {
            let was_there = store::device_delete(tx, &scope, &id)?;
            let serials = store::certificates_revoke(tx, &scope, &id, at_us)?;
            if was_there || !serials.is_empty() {
                let detail = serde_json::json!({ "revoked": serials });
                let (action, object) = ("device.erase", id.as_str());
                audit::append(tx, &scope, &AuditEntry { at_us, actor: &actor, action, object, detail })?;
            }
            Ok::<_, DevicesError>(serials)
        };
        let serials = self.inner.db.write(write).await?;
        self.inner.directory.remove_device(tenant, device);
        self.inner.labels.remove(tenant.as_str(), device.as_str());
        self.revoke_in_directory(&serials);
        Ok(())
    }
}

pub(super) const IN_ERASURE: DevicesError = DevicesError::Conflict("the device is being erased");

/// A device's row, unless it is being erased: then it stays as it is, disabled, and its name taken.
pub(super) fn row_to_change(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
) -> Result<DeviceRow, DevicesError> {
    let row = store::device_get(tx, scope, device)?.ok_or(NO_DEVICE)?;
    match store::is_in_erasure(tx, scope, device)? {
        true => Err(IN_ERASURE),
        false => Ok(row),
    }
}
