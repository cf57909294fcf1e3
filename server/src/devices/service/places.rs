//! Sites, which device is at which, and who reaches it.

use super::{Devices, DevicesError, NO_DEVICE, departure};
use crate::devices::model::{self, FieldError};
use crate::devices::store;
use crate::devices::store::places::{self, PlacedDevice, SiteRow};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{Decision, Object, authorise};
use crate::tenants::reach::{self, Place, PlaceId, Reach};
use crate::tenants::service::{TenantsError, enforce};
use crate::tenants::{Permission, Principal};
use muster_wire::{DeviceId, TenantId};
use std::collections::HashSet;

/// Sites of a tenant.
pub const SITES_MAX: u32 = 1_000;
/// Devices that one live stream with a bounded reach may follow.
pub const FOLLOWED_MAX: usize = 20_000;
const ADDRESS_BYTES_MAX: usize = 512;
const TIME_ZONE_BYTES_MAX: usize = 64;

/// What is written of a site.
#[derive(Clone, Debug)]
pub struct SiteText {
    /// For people.
    pub name: String,
    /// Where it is; may be empty.
    pub address: String,
    /// Its time zone's name, as `Europe/Berlin`; may be empty.
    pub time_zone: String,
}

impl SiteText {
    fn check(&self) -> Result<(), FieldError> {
        model::check_device_name(&self.name)?;
        let refuse = |field: &str, why: &str| Err(FieldError { field: field.into(), why: why.into() });
        if self.address.len() > ADDRESS_BYTES_MAX || self.address.chars().any(|c| c.is_control() && c != '\n')
        {
            return refuse(
                "address",
                "must have at most 512 bytes and no control characters but line breaks",
            );
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b"_+-/".contains(&b);
        if self.time_zone.len() > TIME_ZONE_BYTES_MAX || !self.time_zone.bytes().all(word) {
            return refuse("time_zone", "must be a name as Europe/Berlin, of at most 64 bytes");
        }
        Ok(())
    }

    fn row(self, site: PlaceId, created_at_us: i64) -> SiteRow {
        let Self { name, address, time_zone } = self;
        SiteRow { site, name, address, time_zone, created_at_us }
    }
}

const NO_SITE: DevicesError = DevicesError::NotFound("site");
pub(super) const NAMED: DevicesError =
    DevicesError::Conflict("a member, an API token or an invitation has it as its scope: change that first");

pub(super) fn taken(why: &'static str) -> impl Fn(DbError) -> DevicesError {
    move |error| if error.is_unique_violation() { DevicesError::Conflict(why) } else { error.into() }
}

/// Refuses what would leave the reach of whoever writes it: they would not see it any more.
pub(super) fn keep_within(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    device: &DeviceId,
) -> Result<(), DevicesError> {
    if reach.is_everything() || reach::reaches(tx, scope, reach, device.as_str())? {
        return Ok(());
    }
    let why = "the device would be outside of the scope that your role or token has";
    Err(TenantsError::Denied(why).into())
}

/// Puts a device at a site that is there.
pub(super) fn place(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &store::DeviceRow,
    site: Option<&PlaceId>,
) -> Result<(), DevicesError> {
    if let Some(site) = site
        && places::site_get(tx, scope, site)?.is_none()
    {
        return Err(FieldError { field: "site".into(), why: "there is no such site".into() }.into());
    }
    Ok(places::device_move(tx, scope, row, site)?)
}

impl Devices {
    /// Lets somebody through to one device and what belongs to it, or refuses: a device that they do not reach looks absent.
    /// Every operation on one device asks this first.
    ///
    /// # Errors
    /// 404 for another tenant's or one out of reach, 403 for a weak role or scope.
    pub async fn admit<'w>(
        &self,
        who: &'w Principal,
        permission: Permission,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<&'w Principal, DevicesError> {
        enforce(authorise(who, permission, Object::Part(tenant)), permission)?;
        if who.reach_in(tenant).is_everything() {
            return Ok(who);
        }
        let (scope, id) = (Scope::Tenant(tenant.clone()), device.clone());
        let facts = self.inner.db.read(move |tx| places::whereabouts(tx, &scope, &id)).await?;
        match authorise(who, permission, Object::Device(tenant, &facts)) {
            Decision::NotFound => Err(NO_DEVICE),
            decision => {
                enforce(decision, permission)?;
                Ok(who)
            }
        }
    }

    /// Those of some devices that a reach has.
    ///
    /// # Errors
    /// The database's.
    pub async fn reachable(
        &self,
        tenant: &TenantId,
        reach: &Reach,
        devices: HashSet<String>,
    ) -> Result<HashSet<String>, DbError> {
        let (scope, reach) = (Scope::Tenant(tenant.clone()), reach.clone());
        let read = move |tx: &mut Tx<'_>| {
            let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
            places::reachable(tx, &scope, &reach, &devices)
        };
        Ok(self.inner.db.read(read).await?.into_iter().collect())
    }

    /// Every device that a reach has now; `None` where they are more than [`FOLLOWED_MAX`].
    ///
    /// # Errors
    /// The database's.
    pub async fn followed(
        &self,
        tenant: &TenantId,
        reach: &Reach,
    ) -> Result<Option<HashSet<Box<str>>>, DbError> {
        let (scope, reach) = (Scope::Tenant(tenant.clone()), reach.clone());
        let limit = i64::try_from(FOLLOWED_MAX + 1).unwrap_or(i64::MAX);
        let read = move |tx: &mut Tx<'_>| places::reachable_all(tx, &scope, &reach, limit);
        let devices = self.inner.db.read(read).await?;
        let fits = devices.len() <= FOLLOWED_MAX;
        Ok(fits.then(|| devices.into_iter().map(String::into_boxed_str).collect()))
    }

    /// A device with its site.
    ///
    /// # Errors
    /// No such device.
    pub async fn placed(&self, tenant: &TenantId, device: &DeviceId) -> Result<PlacedDevice, DevicesError> {
        let (scope, device) = (Scope::Tenant(tenant.clone()), device.clone());
        let read = move |tx: &mut Tx<'_>| places::device_get(tx, &scope, &device)?.ok_or(NO_DEVICE);
        self.inner.db.read(read).await
    }

    /// Moves a device to a site, or away from any; claims that name it end where it leaves one.
    ///
    /// # Errors
    /// No such device or site; it would leave the caller's reach.
    pub async fn move_device(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: &DeviceId,
        site: Option<PlaceId>,
    ) -> Result<PlacedDevice, DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let (device, reach) = (device.clone(), who.reach_in(tenant));
        let write = move |tx: &mut Tx<'_>| {
            let row = store::device_get(tx, &scope, &device)?.ok_or(NO_DEVICE)?;
            let left = departure::places_of(tx, &scope, &device)?;
            place(tx, &scope, &row, site.as_ref())?;
            keep_within(tx, &scope, &reach, &device)?;
            let (action, detail) = ("device.site", serde_json::json!({ "site": site }));
            let object = device.as_str();
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            departure::end_claims(tx, &scope, &device, &left, (&actor, now_us))?;
            Ok(PlacedDevice { row, site: site.map(|site| site.as_str().to_owned()) })
        };
        self.inner.db.write(write).await
    }

    /// Writes inside the tenant, with a row in its audit chain.
    pub(super) async fn write_place<T: Send + 'static>(
        &self,
        who: &Principal,
        tenant: &TenantId,
        (action, object): (&'static str, String),
        detail: serde_json::Value,
        work: impl FnOnce(&mut Tx<'_>, &Scope) -> Result<T, DevicesError> + Send + 'static,
    ) -> Result<T, DevicesError> {
        let (scope, actor, at_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let done = work(tx, &scope)?;
            let entry = AuditEntry { at_us, actor: &actor, action, object: &object, detail };
            audit::append(tx, &scope, &entry)?;
            Ok(done)
        };
        self.inner.db.write(write).await
    }

    /// Makes a site.
    ///
    /// # Errors
    /// A field out of range; the id is taken; a bound is reached.
    pub async fn create_site(
        &self,
        who: &Principal,
        tenant: &TenantId,
        site: PlaceId,
        text: SiteText,
    ) -> Result<SiteRow, DevicesError> {
        text.check()?;
        let row = text.row(site, self.now_us());
        let about = ("site.create", row.site.as_str().to_owned());
        let detail = serde_json::json!({ "name": row.name });
        self.write_place(who, tenant, about, detail, move |tx, scope| {
            if places::site_count(tx, scope)? >= i64::from(SITES_MAX) {
                return Err(DevicesError::Quota { noun: "sites", max: SITES_MAX });
            }
            places::site_insert(tx, scope, &row).map_err(taken("the site exists already"))?;
            Ok(row)
        })
        .await
    }

    /// Replaces what is written of a site.
    ///
    /// # Errors
    /// No such site; a field out of range.
    pub async fn change_site(
        &self,
        who: &Principal,
        tenant: &TenantId,
        site: PlaceId,
        text: SiteText,
    ) -> Result<SiteRow, DevicesError> {
        text.check()?;
        let about = ("site.change", site.as_str().to_owned());
        let detail = serde_json::json!({ "name": text.name });
        self.write_place(who, tenant, about, detail, move |tx, scope| {
            let before = places::site_get(tx, scope, &site)?.ok_or(NO_SITE)?;
            let row = text.row(site, before.created_at_us);
            places::site_update(tx, scope, &row)?;
            Ok(row)
        })
        .await
    }

    /// Deletes a site where no device is, and that no scope names.
    ///
    /// # Errors
    /// No such site; it is in use.
    pub async fn delete_site(
        &self,
        who: &Principal,
        tenant: &TenantId,
        site: PlaceId,
    ) -> Result<(), DevicesError> {
        let (about, now_us) = (("site.delete", site.as_str().to_owned()), self.now_us());
        self.write_place(who, tenant, about, serde_json::json!({}), move |tx, scope| {
            places::site_get(tx, scope, &site)?.ok_or(NO_SITE)?;
            if places::site_is_used(tx, scope, &site)? {
                return Err(DevicesError::Conflict("devices are at this site: move them first"));
            }
            if reach::is_named(tx, scope, &Place::Site(site.clone()), now_us)? {
                return Err(NAMED);
            }
            places::site_delete(tx, scope, &site)?;
            Ok(())
        })
        .await
    }

    /// One site, where the reach has it.
    ///
    /// # Errors
    /// No such site.
    pub async fn site(
        &self,
        tenant: &TenantId,
        reach: &Reach,
        site: PlaceId,
    ) -> Result<SiteRow, DevicesError> {
        if reach.ids().is_some_and(|(sites, _)| !sites.contains(&site.as_str())) {
            return Err(NO_SITE);
        }
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| places::site_get(tx, &scope, &site)?.ok_or(NO_SITE);
        self.inner.db.read(read).await
    }

    /// The sites that a reach has.
    ///
    /// # Errors
    /// The database's.
    pub async fn sites(
        &self,
        tenant: &TenantId,
        reach: Reach,
        page: &Page,
    ) -> Result<Vec<SiteRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let read = move |tx: &mut Tx<'_>| {
            let only = reach.ids().map(|(sites, _)| sites);
            places::site_list(tx, &scope, only.as_deref(), &after, limit)
        };
        Ok(self.inner.db.read(read).await?)
    }
}
