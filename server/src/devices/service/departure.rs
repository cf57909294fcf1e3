//! What ends when a device leaves a place, or the tenant: claims that name it, and later what is known of it.
//!
//! A claim that names a device gives whoever holds it the device. So when the device leaves a site or a group, what people
//! with that reach made goes; used-up claims stay, since they give nothing but the same certificate again.

use super::{Devices, DevicesError};
use crate::devices::store::{self, PRUNED_MAX, places};
use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::reach::Whereabouts;
use muster_wire::{DeviceId, TenantId};

/// Certificates of deleted devices are kept this long after their end.
const FORGET_US: i64 = 30 * 86_400_000_000;
/// Transactions of one pass.
const TURNS_MAX: usize = 10;

/// Where a device is, to be asked before it may leave.
pub(super) fn places_of(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<Whereabouts, DbError> {
    places::whereabouts(tx, scope, device)
}

/// Deletes the claims that name a device, where it is no longer wherever it was.
pub(super) fn end_claims(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
    before: &Whereabouts,
    (actor, at_us): (&str, i64),
) -> Result<(), DbError> {
    let now = places::whereabouts(tx, scope, device)?;
    let stays = before.site.as_ref().is_none_or(|site| now.site.as_ref() == Some(site))
        && before.groups.iter().all(|group| now.groups.contains(group));
    if stays {
        return Ok(());
    }
    for claim_id in store::claims_delete_open_of(tx, scope, device)? {
        let detail = serde_json::json!({ "device": device, "left": true });
        let (action, object) = ("claim.delete", claim_id.as_str());
        audit::append(tx, scope, &AuditEntry { at_us, actor, action, object, detail })?;
    }
    Ok(())
}

impl Devices {
    /// Forgets certificates of deleted devices, and the ids of those that were deleted before `before_us`: then nothing is
    /// stored of them any more. Idempotent; what one pass leaves, the next takes.
    ///
    /// # Errors
    /// The database's.
    pub async fn prune(&self, tenant: &TenantId, before_us: i64) -> Result<usize, DevicesError> {
        let (scope, ended_us) = (Scope::Tenant(tenant.clone()), self.now_us().saturating_sub(FORGET_US));
        let mut all = 0;
        for _ in 0..TURNS_MAX {
            let scope = scope.clone();
            let write = move |tx: &mut Tx<'_>| {
                let certificates = store::certificates_prune(tx, &scope, ended_us)?;
                Ok::<_, DbError>((certificates, store::deleted_prune(tx, &scope, before_us)?))
            };
            let (certificates, devices) = self.inner.db.write(write).await?;
            all += certificates + devices;
            if i64::try_from(certificates.max(devices)).is_ok_and(|pruned| pruned < PRUNED_MAX) {
                break;
            }
        }
        Ok(all)
    }
}
