//! A tenant's own roles, and what a grant (a role with a reach) comes to.

use super::members::ABOVE;
use super::{Tenants, TenantsError, new_id, taken};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{self, GivenRole, Permission, Principal, Role};
use crate::tenants::reach::{self, Reach};
use crate::tenants::store::leaves;
use crate::tenants::store::roles::{self, RoleRow};
use muster_wire::TenantId;

/// Roles of its own that a tenant may have.
pub const ROLES_MAX: u32 = 50;

/// What somebody shall be, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// One of the four roles, or the id of one of the tenant's own.
    pub role: String,
    /// The places; none: the whole tenant.
    pub places: Option<Vec<String>>,
}

impl From<Role> for GrantRequest {
    fn from(role: Role) -> Self {
        Self { role: role.as_str().to_owned(), places: None }
    }
}

/// The role of a name or an id.
pub(super) fn find_role(tx: &mut Tx<'_>, scope: &Scope, text: &str) -> Result<GivenRole, TenantsError> {
    if let Some(role) = Role::parse(text) {
        return Ok(role.into());
    }
    let why = "must be viewer, operator, admin, owner, or the id of a role of the tenant";
    let found = roles::get(tx, scope, text)?;
    let row = found.ok_or_else(|| TenantsError::Invalid { field: "role", why: why.into() })?;
    Ok(GivenRole::Custom { role_id: row.role_id, permissions: row.permissions })
}

/// Refuses a reach with a place that is not there.
pub(super) fn check_places(tx: &mut Tx<'_>, scope: &Scope, reach: &Reach) -> Result<(), TenantsError> {
    match reach::missing_place(tx, scope, reach)? {
        None => Ok(()),
        Some(place) => Err(TenantsError::Invalid { field: "scope", why: format!("there is no {place}") }),
    }
}

/// What a grant comes to, if `who` may give it to somebody who had the role `from`.
pub(super) fn resolve(
    tx: &mut Tx<'_>,
    (who, tenant): (&Principal, &TenantId),
    from: Option<&GivenRole>,
    grant: &GrantRequest,
) -> Result<(GivenRole, Reach), TenantsError> {
    let scope = &Scope::Tenant(tenant.clone());
    let role = find_role(tx, scope, &grant.role)?;
    let reach = Reach::parse(grant.places.as_deref())?;
    if !model::may_change_role(who, tenant, from, Some(&role)) {
        return Err(ABOVE);
    }
    if role == GivenRole::from(Role::Owner) && !reach.is_everything() {
        let why = "an owner has the whole tenant".into();
        return Err(TenantsError::Invalid { field: "scope", why });
    }
    check_places(tx, scope, &reach)?;
    Ok((role, reach))
}

/// Checks a role's permissions against who writes it; gives them sorted.
fn check(
    who: &Principal,
    tenant: &TenantId,
    mut permissions: Vec<Permission>,
) -> Result<Vec<Permission>, TenantsError> {
    permissions.sort_unstable();
    permissions.dedup();
    let refuse = |why: String| Err(TenantsError::Invalid { field: "permissions", why });
    match permissions.iter().find(|permission| !model::may_give(who, tenant, **permission)) {
        Some(beyond) => refuse(format!("you may not give {}", beyond.as_str())),
        None if permissions.is_empty() => refuse("must name at least one".into()),
        None => Ok(permissions),
    }
}

impl Tenants {
    /// Makes a role of the tenant's own.
    ///
    /// # Errors
    /// A permission beyond the caller's; the name is taken; a bound is reached.
    pub async fn create_role(
        &self,
        who: &Principal,
        tenant: &TenantId,
        name: String,
        permissions: Vec<Permission>,
    ) -> Result<RoleRow, TenantsError> {
        model::check_name(&name)?;
        let permissions = check(who, tenant, permissions)?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let row = RoleRow { role_id: new_id("r"), name, permissions, created_at_us: now_us };
        let write = move |tx: &mut Tx<'_>| {
            if roles::count(tx, &scope)? >= i64::from(ROLES_MAX) {
                return Err(TenantsError::Quota { noun: "roles", max: ROLES_MAX });
            }
            roles::insert(tx, &scope, &row).map_err(taken("another role has this name"))?;
            tell(tx, &scope, (&actor, "role.create"), &row, now_us)?;
            Ok(row)
        };
        self.inner.db.write(write).await
    }

    /// The tenant's own roles.
    ///
    /// # Errors
    /// The database's.
    pub async fn roles(&self, tenant: &TenantId, page: &Page) -> Result<Vec<RoleRow>, TenantsError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| roles::list(tx, &scope, &after, limit)).await?)
    }

    /// Replaces a role's name and permissions; whoever has it has them from their next request on. Tokens keep theirs.
    ///
    /// # Errors
    /// No such role; one that allows more than the caller may, before or after; the name is taken.
    pub async fn change_role(
        &self,
        who: &Principal,
        tenant: &TenantId,
        role_id: String,
        (name, permissions): (String, Vec<Permission>),
    ) -> Result<RoleRow, TenantsError> {
        model::check_name(&name)?;
        let permissions = check(who, tenant, permissions)?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let (who, tenant) = (who.clone(), tenant.clone());
        let write = move |tx: &mut Tx<'_>| {
            let before = roles::get(tx, &scope, &role_id)?.ok_or(TenantsError::NotFound("role"))?;
            if before.permissions.iter().any(|permission| !model::may_give(&who, &tenant, *permission)) {
                return Err(ABOVE);
            }
            let row = RoleRow { name, permissions, ..before };
            roles::update(tx, &scope, &row).map_err(taken("another role has this name"))?;
            tell(tx, &scope, (&actor, "role.change"), &row, now_us)?;
            Ok(row)
        };
        self.inner.db.write(write).await
    }

    /// Deletes a role that nobody has.
    ///
    /// # Errors
    /// No such role; a member or an open invitation has it.
    pub async fn delete_role(
        &self,
        who: &Principal,
        tenant: &TenantId,
        role_id: String,
    ) -> Result<(), TenantsError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let row = roles::get(tx, &scope, &role_id)?.ok_or(TenantsError::NotFound("role"))?;
            leaves::invitations_expire(tx, &scope, now_us)?;
            if roles::is_given(tx, &scope, &role_id)? {
                return Err(TenantsError::Conflict("members or open invitations have this role"));
            }
            roles::delete(tx, &scope, &role_id)?;
            Ok(tell(tx, &scope, (&actor, "role.delete"), &row, now_us)?)
        };
        self.inner.db.write(write).await
    }
}

fn tell(
    tx: &mut Tx<'_>,
    scope: &Scope,
    (actor, action): (&str, &'static str),
    row: &RoleRow,
    now_us: i64,
) -> Result<(), crate::platform::db::DbError> {
    let detail = serde_json::json!({ "name": row.name, "permissions": row.permissions });
    audit::append(tx, scope, &AuditEntry { at_us: now_us, actor, action, object: &row.role_id, detail })
}
