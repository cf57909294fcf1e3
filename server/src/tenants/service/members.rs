//! Members of a tenant.

use super::accounts::seat;
use super::roles::{GrantRequest, resolve};
use super::{ACCOUNTS, NewMember, Tenants, TenantsError, one_time_password};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{self, GivenRole, Principal, Role};
use crate::tenants::store::{self, MemberRow};
use muster_wire::TenantId;

/// What to do with a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Give another role or reach; what is absent stays.
    Grant {
        /// A role's name or id.
        role: Option<String>,
        /// The places, or none for the whole tenant.
        places: Option<Option<Vec<String>>>,
    },
    /// Take the membership away; the account stays.
    Remove,
}

pub(super) const MEMBER: &str = "the account is a member already";
const KNOWN: &str = "the address has an account: invite it, and it joins if its owner wants to";
pub(super) const ABOVE: TenantsError = TenantsError::Denied("nobody may give or take a role above their own");

impl Tenants {
    /// Adds a member, for whom it makes an account with a one-time password. Who has an account is invited: they say
    /// themselves whether they join.
    ///
    /// # Errors
    /// The address has an account; a role above the caller's; quota.
    pub async fn add_member(
        &self,
        who: &Principal,
        tenant: &TenantId,
        email: &str,
        grant: impl Into<GrantRequest>,
    ) -> Result<NewMember, TenantsError> {
        let grant = grant.into();
        let (email, password) = (model::parse_email(email)?, one_time_password());
        // Hashed even for a known address, so that the time tells nothing.
        let fresh = self.new_user(email.clone(), &password, false).await?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let users_max = self.inner.config.get().quota.users_max;
        let (who, tenant) = (who.clone(), tenant.clone());
        let write = move |tx: &mut Tx<'_>| {
            let (role, reach) = resolve(tx, (&who, &tenant), None, &grant)?;
            if store::member_count(tx, &scope)? >= i64::from(users_max) {
                return Err(TenantsError::Quota { noun: "members", max: users_max });
            }
            // Accounts are of no tenant: two may add the same new one at once.
            tx.lock(&ACCOUNTS, "accounts")?;
            if let Some(user) = store::user_by_email(tx, &ACCOUNTS, &email)? {
                let is_member = store::member_get(tx, &scope, &user.user_id)?.is_some();
                return Err(TenantsError::Conflict(if is_member { MEMBER } else { KNOWN }));
            }
            let user_id = fresh.user_id.as_str();
            store::user_insert(tx, &ACCOUNTS, &fresh)?;
            seat(tx, &scope, user_id, Some((role.text(), &reach)), now_us)?;
            let detail = serde_json::json!({ "email": email, "role": role.text(), "scope": reach.places() });
            let entry =
                AuditEntry { at_us: now_us, actor: &actor, action: "user.add", object: user_id, detail };
            audit::append(tx, &scope, &entry)?;
            let row = store::member_get(tx, &scope, user_id)?.ok_or(TenantsError::NotFound("user"))?;
            Ok(NewMember { row, password })
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
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let (who, tenant) = (who.clone(), tenant.clone());
        let write = move |tx: &mut Tx<'_>| {
            let member = store::member_get(tx, &scope, &user_id)?.ok_or(TenantsError::NotFound("user"))?;
            let to = match change {
                MemberChange::Grant { role, places } => {
                    let role = role.unwrap_or_else(|| member.role.text().to_owned());
                    let places = places.unwrap_or_else(|| member.reach.places());
                    let grant = GrantRequest { role, places };
                    Some(resolve(tx, (&who, &tenant), Some(&member.role), &grant)?)
                }
                MemberChange::Remove if !model::may_change_role(&who, &tenant, Some(&member.role), None) => {
                    return Err(ABOVE);
                }
                MemberChange::Remove => None,
            };
            let is_owner = |role: &GivenRole| *role == GivenRole::from(Role::Owner);
            let stays = to.as_ref().is_some_and(|(role, _)| is_owner(role));
            if is_owner(&member.role) && !stays && store::owner_count(tx, &scope)? == 1 {
                return Err(TenantsError::Conflict("the tenant's last owner must stay"));
            }
            let grant = to.as_ref().map(|(role, reach)| (role.text(), reach));
            seat(tx, &scope, &user_id, grant, now_us)?;
            let (role, reach) = to.map_or((None, None), |(role, reach)| (Some(role), reach.places()));
            let detail = serde_json::json!({
                "from": member.role.text(), "to": role.as_ref().map(GivenRole::text),
                "scope_from": member.reach.places(), "scope_to": reach,
            });
            let action = "user.role";
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &user_id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok(store::member_get(tx, &scope, &user_id)?)
        };
        self.inner.db.write(write).await
    }
}
