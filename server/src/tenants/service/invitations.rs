//! Invitations: a one-time leave for whoever has an address to become a member.
//!
//! As with resets the secret is in one answer alone, and whoever made it hands it over until there is mail. Who accepts
//! proves to be the account by its password, or gets an account with the password that they give.

use super::accounts::seat;
use super::logins::peer_key;
use super::members::MEMBER;
use super::roles::{GrantRequest, resolve};
use super::{ACCOUNTS, DAY_US, Tenants, TenantsError, new_id, taken};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{self, Principal};
use crate::tenants::reach::Reach;
use crate::tenants::store::leaves::{self, InvitationRow};
use crate::tenants::store::{self, UserRow};
use muster_wire::TenantId;

/// Open invitations of a tenant.
pub const INVITATIONS_MAX: u32 = 100;
/// The longest life of an invitation, in days.
pub const INVITATION_DAYS_MAX: u32 = 30;

/// A new invitation; its secret is shown once.
#[derive(Debug)]
pub struct NewInvitation {
    /// The row.
    pub row: InvitationRow,
    /// The secret.
    pub token: String,
}

/// What an accepted invitation gave.
#[derive(Debug)]
pub struct Accepted {
    /// The tenant.
    pub tenant: TenantId,
    /// The account's address.
    pub email: String,
    /// The account is new.
    pub is_new: bool,
}

impl Tenants {
    /// Invites an address.
    ///
    /// # Errors
    /// A role above the caller's; invited already; a member already; a bound is reached.
    pub async fn invite(
        &self,
        who: &Principal,
        tenant: &TenantId,
        email: &str,
        grant: GrantRequest,
        days: u32,
    ) -> Result<NewInvitation, TenantsError> {
        if !(1..=INVITATION_DAYS_MAX).contains(&days) {
            let why = format!("must be 1 to {INVITATION_DAYS_MAX}");
            return Err(TenantsError::Invalid { field: "days", why });
        }
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let token = secret::new_token("min_");
        let sha256 = secret::token_sha256(&token);
        let mut row = InvitationRow {
            invitation_id: new_id("i"),
            email: model::parse_email(email)?,
            role: String::new(),
            reach: Reach::Everything,
            created_by: actor.clone(),
            created_at_us: now_us,
            expires_at_us: now_us.saturating_add(i64::from(days) * DAY_US),
        };
        let (who, tenant) = (who.clone(), tenant.clone());
        let write = move |tx: &mut Tx<'_>| {
            let (role, reach) = resolve(tx, (&who, &tenant), None, &grant)?;
            (row.role, row.reach) = (role.text().to_owned(), reach);
            leaves::invitations_expire(tx, &scope, now_us)?;
            if leaves::invitation_count(tx, &scope)? >= i64::from(INVITATIONS_MAX) {
                return Err(TenantsError::Quota { noun: "open invitations", max: INVITATIONS_MAX });
            }
            if store::member_by_email(tx, &scope, &row.email)? {
                return Err(TenantsError::Conflict(MEMBER));
            }
            let invited = taken("the address has an open invitation: revoke it first");
            leaves::invitation_insert(tx, &scope, &row, &sha256).map_err(invited)?;
            let detail =
                serde_json::json!({ "email": row.email, "role": row.role, "scope": row.reach.places() });
            let (action, object) = ("invitation.create", row.invitation_id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        Ok(NewInvitation { row: self.inner.db.write(write).await?, token })
    }

    /// The tenant's open invitations.
    ///
    /// # Errors
    /// The database's.
    pub async fn invitations(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Vec<InvitationRow>, TenantsError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let now_us = self.now_us();
        let read = move |tx: &mut Tx<'_>| leaves::invitation_list(tx, &scope, (&after, now_us), limit);
        Ok(self.inner.db.read(read).await?)
    }

    /// Revokes an invitation.
    ///
    /// # Errors
    /// No such invitation.
    pub async fn revoke_invitation(
        &self,
        who: &Principal,
        tenant: &TenantId,
        invitation_id: String,
    ) -> Result<(), TenantsError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let email = leaves::invitation_delete(tx, &scope, &invitation_id)?;
            let email = email.ok_or(TenantsError::NotFound("invitation"))?;
            let (action, detail) = ("invitation.revoke", serde_json::json!({ "email": email }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &invitation_id, detail };
            Ok(audit::append(tx, &scope, &entry)?)
        };
        self.inner.db.write(write).await
    }

    /// Spends an invitation. `password` is the account's, or a new account's first.
    ///
    /// # Errors
    /// The invitation is unknown, spent or past its life; the password is wrong or too weak; the tenant is full.
    pub async fn accept(&self, token: &str, password: String, peer: &str) -> Result<Accepted, TenantsError> {
        let keys: Vec<_> = peer_key(&self.inner.config.get().auth, peer).into_iter().collect();
        self.count_attempt(&keys)?;
        let (sha256, now_us) = (secret::token_sha256(token), self.now_us());
        let known = move |tx: &mut Tx<'_>| {
            let found = leaves::invitation_by_token(tx, &ACCOUNTS, &sha256, now_us)?;
            let (_, row) = found.ok_or(TenantsError::Unauthenticated)?;
            let account = store::user_by_email(tx, &ACCOUNTS, &row.email)?;
            Ok::<_, TenantsError>((row.email, account.is_some()))
        };
        let (email, is_known) = self.inner.db.read(known).await?;
        self.forgive(&keys);
        let user = if is_known {
            self.check_credentials(&email, &password, peer).await?
        } else {
            model::check_password(&password)
                .map_err(|error| TenantsError::Invalid { field: "password", why: error.why.into() })?;
            UserRow { password_pending: false, ..self.new_user(email, &password, false).await? }
        };
        let users_max = self.inner.config.get().quota.users_max;
        let write = move |tx: &mut Tx<'_>| join(tx, &sha256, &user, is_known, (users_max, now_us));
        self.inner.db.write(write).await
    }
}

/// The account becomes a member and the invitation is gone, in one transaction.
fn join(
    tx: &mut Tx<'_>,
    sha256: &[u8; 32],
    user: &UserRow,
    is_known: bool,
    (users_max, now_us): (u32, i64),
) -> Result<Accepted, TenantsError> {
    let found = leaves::invitation_by_token(tx, &ACCOUNTS, sha256, now_us)?;
    let (tenant, row) = found.ok_or(TenantsError::Unauthenticated)?;
    let scope = Scope::Tenant(tenant.clone());
    // Says whether it is still there: from here on nobody else writes to this tenant.
    if leaves::invitation_delete(tx, &scope, &row.invitation_id)?.is_none() {
        return Err(TenantsError::Unauthenticated);
    }
    if store::member_count(tx, &scope)? >= i64::from(users_max) {
        return Err(TenantsError::Quota { noun: "members", max: users_max });
    }
    tx.lock(&ACCOUNTS, "accounts")?;
    if is_known {
        let gone = TenantsError::Conflict("the account is gone: try again");
        store::user_get(tx, &ACCOUNTS, &user.user_id)?.ok_or(gone)?;
    } else {
        let why = "the account was made in between: try again with its password";
        store::user_insert(tx, &ACCOUNTS, user).map_err(taken(why))?;
    }
    if store::member_get(tx, &scope, &user.user_id)?.is_some() {
        return Err(TenantsError::Conflict(MEMBER));
    }
    seat(tx, &scope, &user.user_id, Some((row.role.as_str(), &row.reach)), now_us)?;
    let detail = serde_json::json!({
        "email": row.email, "role": row.role, "scope": row.reach.places(), "invitation": row.invitation_id,
    });
    let actor = format!("user:{}", row.email);
    let (action, object) = ("user.join", user.user_id.as_str());
    audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
    Ok(Accepted { tenant, email: row.email, is_new: !is_known })
}
