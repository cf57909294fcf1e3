//! Open sessions: one's own, and those of a member.

use super::accounts::hold;
use super::logins::account_key;
use super::members::ABOVE;
use super::{ACCOUNTS, Tenants, TenantsError};
use crate::platform::db::{Scope, Tx};
use crate::platform::secret;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::{self, Principal};
use crate::tenants::store::sessions::{self, SessionRow};
use crate::tenants::store::{self, UserRow};
use muster_wire::TenantId;

/// Which sessions of an account shall end.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The one with this id.
    One(String),
    /// All but the one that asks.
    Others,
}

/// An account that a caller may act on as a whole.
///
/// An account is of no tenant, so whoever ends its sessions or sets its password must be allowed to in each of its
/// tenants: else an admin of one could invite another's owner as a member and take the account over.
pub(super) fn governed(
    tx: &mut Tx<'_>,
    who: &Principal,
    tenant: &TenantId,
    user_id: &str,
) -> Result<UserRow, TenantsError> {
    let none = TenantsError::NotFound("user");
    let scope = Scope::Tenant(tenant.clone());
    let member = store::member_get(tx, &scope, user_id)?.ok_or(none)?;
    if !model::may_change_role(who, tenant, Some(&member.role), None) {
        return Err(ABOVE);
    }
    let user = store::user_get(tx, &ACCOUNTS, user_id)?.ok_or(TenantsError::NotFound("user"))?;
    let memberships = store::memberships_of(tx, &ACCOUNTS, user_id)?;
    if model::governs(who, &memberships, user.system_admin) {
        return Ok(user);
    }
    Err(TenantsError::Conflict(
        "the account is more than a member of this tenant: its owner, or the server's administrator, can do this",
    ))
}

impl Tenants {
    /// The caller's open sessions, the newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn sessions(&self, user_id: &str) -> Result<Vec<SessionRow>, TenantsError> {
        let (user_id, now_us) = (user_id.to_owned(), self.now_us());
        Ok(self.inner.db.read(move |tx| sessions::list(tx, &ACCOUNTS, &user_id, now_us)).await?)
    }

    /// Ends one of the caller's sessions, or all but the one that asks; gives how many ended.
    ///
    /// # Errors
    /// No such session.
    pub async fn end_sessions(
        &self,
        user_id: &str,
        session: &str,
        ending: Ending,
    ) -> Result<usize, TenantsError> {
        let (user_id, now_us) = (user_id.to_owned(), self.now_us());
        let own = secret::token_sha256(session);
        let write = move |tx: &mut Tx<'_>| {
            let held = hold(tx, &user_id, None)?;
            let ended = match ending {
                Ending::Others => sessions::delete_others(tx, &ACCOUNTS, &user_id, &own)?,
                Ending::One(id) => {
                    let rows = sessions::list(tx, &ACCOUNTS, &user_id, now_us)?;
                    let found = rows.into_iter().find(|row| session_id(&row.sha256) == id);
                    let row = found.ok_or(TenantsError::NotFound("session"))?;
                    usize::from(sessions::delete(tx, &ACCOUNTS, &row.sha256)?)
                }
            };
            let user = store::user_get(tx, &ACCOUNTS, &user_id)?.ok_or(TenantsError::NotFound("user"))?;
            let actor = format!("user:{}", user.email);
            let (action, detail) = ("session.revoke", serde_json::json!({ "sessions": ended }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &user_id, detail };
            held.tell(tx, entry, "")?;
            Ok(ended)
        };
        self.inner.db.write(write).await
    }

    /// A member's open sessions, the newest first.
    ///
    /// # Errors
    /// No such member; one above the caller, or of other tenants too.
    pub async fn member_sessions(
        &self,
        who: &Principal,
        tenant: &TenantId,
        user_id: &str,
    ) -> Result<Vec<SessionRow>, TenantsError> {
        let (who, tenant, user_id, now_us) = (who.clone(), tenant.clone(), user_id.to_owned(), self.now_us());
        let read = move |tx: &mut Tx<'_>| {
            governed(tx, &who, &tenant, &user_id)?;
            Ok(sessions::list(tx, &ACCOUNTS, &user_id, now_us)?)
        };
        self.inner.db.read(read).await
    }

    /// Ends all of a member's sessions; gives how many.
    ///
    /// # Errors
    /// As [`Self::member_sessions`].
    pub async fn end_member_sessions(
        &self,
        who: &Principal,
        tenant: &TenantId,
        user_id: &str,
    ) -> Result<usize, TenantsError> {
        let (who, tenant, user_id, now_us) = (who.clone(), tenant.clone(), user_id.to_owned(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let held = hold(tx, &user_id, Some(&tenant))?;
            governed(tx, &who, &tenant, &user_id)?;
            let ended = sessions::delete_others(tx, &ACCOUNTS, &user_id, &[])?;
            let (actor, detail) = (who.audit_name(), serde_json::json!({ "sessions": ended }));
            let (action, object) = ("session.revoke", user_id.as_str());
            held.tell(tx, AuditEntry { at_us: now_us, actor: &actor, action, object, detail }, "")?;
            Ok(ended)
        };
        self.inner.db.write(write).await
    }

    /// Takes the lock off a member's account; says whether it was locked.
    ///
    /// # Errors
    /// As [`Self::member_sessions`].
    pub async fn unlock(
        &self,
        who: &Principal,
        tenant: &TenantId,
        user_id: &str,
    ) -> Result<bool, TenantsError> {
        let (asks, of, user_id, now_us) = (who.clone(), tenant.clone(), user_id.to_owned(), self.now_us());
        let read = {
            let user_id = user_id.clone();
            move |tx: &mut Tx<'_>| governed(tx, &asks, &of, &user_id)
        };
        let user = self.inner.db.read(read).await?;
        let was_locked = self.locked_until_us(&user.email).is_some();
        let (scope, actor) = (Scope::Tenant(tenant.clone()), who.audit_name());
        let write = move |tx: &mut Tx<'_>| {
            let detail = serde_json::json!({ "was_locked": was_locked });
            let (action, object) = ("user.unlock", user_id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })
        };
        self.inner.db.write(write).await?;
        let (key, _) = account_key(&self.inner.config.get().auth, &user.email);
        self.guard().forget(&key);
        Ok(was_locked)
    }
}

/// What a session is called: the beginning of what is stored of its secret, from which nobody finds the secret.
#[must_use]
pub fn session_id(sha256: &[u8; 32]) -> String {
    hex::encode(&sha256[..8])
}
