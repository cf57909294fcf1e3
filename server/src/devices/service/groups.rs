//! Groups: devices that people name, or that a condition finds.
//!
//! The members of a group with a condition are rows too, so that lists are cut to a group by SQL: a write of the group
//! asks the condition of every device of the tenant in its transaction, a write of a device asks every condition.

use super::places::{NAMED, taken};
use super::{Devices, DevicesError, NO_DEVICE, departure};
use crate::devices::facts;
use crate::devices::model;
use crate::devices::store;
use crate::devices::store::places::{self, GroupRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::Principal;
use crate::tenants::reach::{self, Place, PlaceId, Reach};
use muster_wire::{DeviceId, TenantId};

/// Groups of a tenant.
pub const GROUPS_MAX: u32 = 200;
/// Groups with a condition, of a tenant: each write of a device asks them all.
pub const DYNAMIC_GROUPS_MAX: u32 = 32;

const NO_GROUP: DevicesError = DevicesError::NotFound("group");

impl Devices {
    /// Makes a group; one with a condition has its members when this returns.
    ///
    /// # Errors
    /// A field out of range; the id is taken; a bound is reached.
    pub async fn create_group(
        &self,
        who: &Principal,
        tenant: &TenantId,
        group: PlaceId,
        (name, condition): (String, Option<String>),
    ) -> Result<GroupRow, DevicesError> {
        model::check_device_name(&name)?;
        let compiled = condition.as_deref().map(facts::compile).transpose()?;
        let row = GroupRow { group, name, condition, created_at_us: self.now_us() };
        let about = ("group.create", row.group.as_str().to_owned());
        let detail = serde_json::json!({ "name": row.name, "condition": row.condition });
        self.write_place(who, tenant, about, detail, move |tx, scope| {
            let (groups, dynamic) = places::group_counts(tx, scope)?;
            if groups >= i64::from(GROUPS_MAX) {
                return Err(DevicesError::Quota { noun: "groups", max: GROUPS_MAX });
            }
            if compiled.is_some() && dynamic >= i64::from(DYNAMIC_GROUPS_MAX) {
                return Err(DevicesError::Quota { noun: "groups with a condition", max: DYNAMIC_GROUPS_MAX });
            }
            places::group_insert(tx, scope, &row).map_err(taken("the group exists already"))?;
            if let Some(condition) = &compiled {
                places::refill(tx, scope, &row.group, condition)?;
            }
            Ok(row)
        })
        .await
    }

    /// Replaces a group's name and condition; the members follow before this returns.
    ///
    /// # Errors
    /// No such group; a field out of range; with a condition where it had none, or the other way round.
    pub async fn change_group(
        &self,
        who: &Principal,
        tenant: &TenantId,
        group: PlaceId,
        (name, condition): (String, Option<String>),
    ) -> Result<GroupRow, DevicesError> {
        model::check_device_name(&name)?;
        let compiled = condition.as_deref().map(facts::compile).transpose()?;
        let about = ("group.change", group.as_str().to_owned());
        let detail = serde_json::json!({ "name": name, "condition": condition });
        self.write_place(who, tenant, about, detail, move |tx, scope| {
            let before = places::group_get(tx, scope, &group)?.ok_or(NO_GROUP)?;
            if before.condition.is_some() != condition.is_some() {
                return Err(DevicesError::Conflict("a group keeps its kind: with a condition, or without"));
            }
            let row = GroupRow { name, condition, ..before.clone() };
            places::group_update(tx, scope, &row)?;
            if let Some(condition) = compiled.filter(|_| row.condition != before.condition) {
                places::refill(tx, scope, &row.group, &condition)?;
            }
            Ok(row)
        })
        .await
    }

    /// Deletes a group that no scope names.
    ///
    /// # Errors
    /// No such group; a scope names it.
    pub async fn delete_group(
        &self,
        who: &Principal,
        tenant: &TenantId,
        group: PlaceId,
    ) -> Result<(), DevicesError> {
        let (about, now_us) = (("group.delete", group.as_str().to_owned()), self.now_us());
        self.write_place(who, tenant, about, serde_json::json!({}), move |tx, scope| {
            places::group_get(tx, scope, &group)?.ok_or(NO_GROUP)?;
            if reach::is_named(tx, scope, &Place::Group(group.clone()), now_us)? {
                return Err(NAMED);
            }
            places::group_delete(tx, scope, &group)?;
            Ok(())
        })
        .await
    }

    /// Puts a device into a group without a condition, or takes it out.
    ///
    /// # Errors
    /// No such group or device; the group has a condition.
    pub async fn set_member(
        &self,
        who: &Principal,
        tenant: &TenantId,
        (group, device): (PlaceId, DeviceId),
        is_member: bool,
    ) -> Result<(), DevicesError> {
        let action = if is_member { "group.add" } else { "group.remove" };
        let about = (action, group.as_str().to_owned());
        let detail = serde_json::json!({ "device": device });
        let (actor, now_us) = (who.audit_name(), self.now_us());
        self.write_place(who, tenant, about, detail, move |tx, scope| {
            let found = places::group_get(tx, scope, &group)?.ok_or(NO_GROUP)?;
            if found.condition.is_some() {
                return Err(DevicesError::Conflict("the group's condition says who is a member"));
            }
            store::device_get(tx, scope, &device)?.ok_or(NO_DEVICE)?;
            if is_member {
                places::member_put(tx, scope, group.as_str(), device.as_str())?;
                return Ok(());
            }
            let left = departure::places_of(tx, scope, &device)?;
            places::member_delete(tx, scope, group.as_str(), device.as_str())?;
            Ok(departure::end_claims(tx, scope, &device, &left, (&actor, now_us))?)
        })
        .await
    }

    /// One group, where the reach has it.
    ///
    /// # Errors
    /// No such group.
    pub async fn group(
        &self,
        tenant: &TenantId,
        reach: &Reach,
        group: PlaceId,
    ) -> Result<GroupRow, DevicesError> {
        if reach.ids().is_some_and(|(_, groups)| !groups.contains(&group.as_str())) {
            return Err(NO_GROUP);
        }
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| places::group_get(tx, &scope, &group)?.ok_or(NO_GROUP);
        self.inner.db.read(read).await
    }

    /// The groups that a reach has.
    ///
    /// # Errors
    /// The database's.
    pub async fn groups(
        &self,
        tenant: &TenantId,
        reach: Reach,
        page: &Page,
    ) -> Result<Vec<GroupRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let read = move |tx: &mut Tx<'_>| {
            let only = reach.ids().map(|(_, groups)| groups);
            places::group_list(tx, &scope, only.as_deref(), &after, limit)
        };
        Ok(self.inner.db.read(read).await?)
    }

    /// A group's members.
    ///
    /// # Errors
    /// No such group.
    pub async fn members(
        &self,
        tenant: &TenantId,
        reach: &Reach,
        group: PlaceId,
        page: &Page,
    ) -> Result<Vec<DeviceId>, DevicesError> {
        let group = self.group(tenant, reach, group).await?.group;
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| places::member_list(tx, &scope, &group, &after, limit)).await?)
    }
}
