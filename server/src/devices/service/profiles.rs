//! Profiles: made and changed by people, used when a device is made, enrolled and renewed. A change counts from the next
//! certificate, claim or device on; what devices were given stays.

use super::{Devices, DevicesError};
use crate::devices::model::{self, ProfileSpec};
use crate::devices::store::{self, ProfileRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::TenantId;

/// Profiles of one tenant.
pub(crate) const PROFILES_MAX: u32 = 200;

const NO_PROFILE: DevicesError = DevicesError::NotFound("profile");

/// The profile that a request names.
pub(super) fn named(
    tx: &mut Tx<'_>,
    scope: &Scope,
    profile: Option<&str>,
) -> Result<ProfileSpec, DevicesError> {
    let Some(profile) = profile else { return Ok(ProfileSpec::default()) };
    match store::profile_get(tx, scope, profile)? {
        Some(row) => Ok(row.spec),
        None => {
            Err(model::FieldError { field: "profile".into(), why: "there is no such profile".into() }.into())
        }
    }
}

/// Life of a certificate of a device of this profile.
pub(super) fn life_s(spec: &ProfileSpec, default_s: i64) -> i64 {
    spec.certificate_life_s.map_or(default_s, i64::from)
}

impl Devices {
    /// The tenant's profiles.
    ///
    /// # Errors
    /// The database's.
    pub async fn profiles(&self, tenant: &TenantId, page: &Page) -> Result<Vec<ProfileRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::profile_list(tx, &scope, &after, limit)).await?)
    }

    /// One profile.
    ///
    /// # Errors
    /// No such profile.
    pub async fn profile(&self, tenant: &TenantId, profile: String) -> Result<ProfileRow, DevicesError> {
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| store::profile_get(tx, &scope, &profile)?.ok_or(NO_PROFILE);
        self.inner.db.read(read).await
    }

    /// Makes a profile, or gives it another specification.
    ///
    /// # Errors
    /// A field out of range; too many profiles.
    pub async fn put_profile(
        &self,
        who: &Principal,
        tenant: &TenantId,
        profile: String,
        spec: ProfileSpec,
    ) -> Result<ProfileRow, DevicesError> {
        model::check_profile_name(&profile)?;
        spec.check()?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let before = store::profile_get(tx, &scope, &profile)?;
            if before.is_none() && store::profile_count(tx, &scope)? >= i64::from(PROFILES_MAX) {
                return Err(DevicesError::Quota { noun: "profiles", max: PROFILES_MAX });
            }
            let created_at_us = before.map_or(now_us, |row| row.created_at_us);
            let row = ProfileRow { profile, spec, created_at_us, updated_at_us: now_us };
            store::profile_put(tx, &scope, &row)?;
            let detail = serde_json::json!({ "spec": row.spec });
            let (action, object) = ("profile.put", row.profile.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        self.inner.db.write(write).await
    }

    /// Deletes a profile that nothing names.
    ///
    /// # Errors
    /// No such profile; devices or claims name it.
    pub async fn delete_profile(
        &self,
        who: &Principal,
        tenant: &TenantId,
        profile: String,
    ) -> Result<(), DevicesError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            if store::profile_is_used(tx, &scope, &profile)? {
                return Err(DevicesError::Conflict("devices or claims name the profile"));
            }
            if !store::profile_delete(tx, &scope, &profile)? {
                return Err(NO_PROFILE);
            }
            let (action, detail) = ("profile.delete", serde_json::json!({}));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &profile, detail };
            Ok(audit::append(tx, &scope, &entry)?)
        };
        self.inner.db.write(write).await
    }
}
