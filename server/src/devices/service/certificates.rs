//! A device's certificates: the list, and taking one away.

use super::{Devices, DevicesError, NO_DEVICE};
use crate::devices::store::{self, CertificateRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::{DeviceId, TenantId};

impl Devices {
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
