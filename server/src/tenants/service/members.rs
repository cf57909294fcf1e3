//! Members of a tenant.

use super::{ACCOUNTS, NewMember, Tenants, TenantsError, one_time_password};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{self, Principal, Role};
use crate::tenants::store::{self, MemberRow};
use muster_wire::TenantId;

/// What to do with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Give another role.
    Role(Role),
    /// Take the membership away; the account stays.
    Remove,
}

const ABOVE: TenantsError = TenantsError::Denied("nobody may give or take a role above their own");

impl Tenants {
    /// Adds a member; a new address gets an account with a one-time password.
    ///
    /// # Errors
    /// Already a member; a role above the caller's; quota.
    pub async fn add_member(
        &self,
        who: &Principal,
        tenant: &TenantId,
        email: &str,
        role: Role,
    ) -> Result<NewMember, TenantsError> {
        let actor_role = who.role_in(tenant).ok_or(TenantsError::NotFound("tenant"))?;
        if !model::may_change_role(actor_role, None, Some(role)) {
            return Err(ABOVE);
        }
        let (email, password) = (model::parse_email(email)?, one_time_password());
        // Hashed even for a known address, so that the time tells nothing.
        let fresh = self.new_user(email.clone(), &password, false).await?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let users_max = self.inner.config.get().quota.users_max;
        let write = move |tx: &mut Tx<'_>| {
            if store::member_count(tx, &scope)? >= i64::from(users_max) {
                return Err(TenantsError::Quota { noun: "members", max: users_max });
            }
            // Accounts are of no tenant: two may add the same new one at once.
            tx.lock(&ACCOUNTS, "accounts")?;
            let known = store::user_by_email(tx, &ACCOUNTS, &email)?;
            let user_id = known.as_ref().map_or_else(|| fresh.user_id.clone(), |user| user.user_id.clone());
            if known.is_none() {
                store::user_insert(tx, &ACCOUNTS, &fresh)?;
            } else if store::member_get(tx, &scope, &user_id)?.is_some() {
                return Err(TenantsError::Conflict("the account is a member already"));
            }
            store::member_put(tx, &scope, &user_id, role, now_us)?;
            let detail = serde_json::json!({ "email": email, "role": role });
            let entry =
                AuditEntry { at_us: now_us, actor: &actor, action: "user.add", object: &user_id, detail };
            audit::append(tx, &scope, &entry)?;
            let row = store::member_get(tx, &scope, &user_id)?.ok_or(TenantsError::NotFound("user"))?;
            Ok(NewMember { row, password: known.is_none().then_some(password) })
        };
        self.inner.db.write(write).await
    }

    /// The tenant's members.
    ///
    /// # Errors
    /// The database's.
    pub async fn members(&self, tenant: &TenantId, page: &Page) -> Result<Vec<MemberRow>, TenantsError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::member_list(tx, &scope, &after, limit)).await?)
    }

    /// Gives a member another role, or takes the membership away.
    ///
    /// # Errors
    /// No such member; a role above the caller's; the last owner.
    pub async fn change_member(
        &self,
        who: &Principal,
        tenant: &TenantId,
        user_id: String,
        change: MemberChange,
    ) -> Result<Option<MemberRow>, TenantsError> {
        let actor_role = who.role_in(tenant).ok_or(TenantsError::NotFound("tenant"))?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let member = store::member_get(tx, &scope, &user_id)?.ok_or(TenantsError::NotFound("user"))?;
            let to = match change {
                MemberChange::Role(role) => Some(role),
                MemberChange::Remove => None,
            };
            if !model::may_change_role(actor_role, Some(member.role), to) {
                return Err(ABOVE);
            }
            let leaves = member.role == Role::Owner && to != Some(Role::Owner);
            if leaves && store::owner_count(tx, &scope)? == 1 {
                return Err(TenantsError::Conflict("the tenant's last owner must stay"));
            }
            match to {
                Some(role) => store::member_put(tx, &scope, &user_id, role, now_us)?,
                None => drop(store::member_delete(tx, &scope, &user_id)?),
            }
            let (action, detail) = ("user.role", serde_json::json!({ "from": member.role, "to": to }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &user_id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok(store::member_get(tx, &scope, &user_id)?)
        };
        self.inner.db.write(write).await
    }
}
