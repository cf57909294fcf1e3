//! Password resets: a one-time leave to set a new password, made by an admin for somebody who lost theirs.
//!
//! The leave's secret is in the answer that made it and nowhere else: who made it hands it over. Once there is mail,
//! [`NewReset`] is what is sent, and the answer no longer holds the secret.

use super::accounts::hold;
use super::logins::{account_key, peer_key};
use super::sessions::governed;
use super::{ACCOUNTS, Tenants, TenantsError};
use crate::platform::db::Tx;
use crate::platform::secret;
use crate::tenants::audit::AuditEntry;
use crate::tenants::model::{self, Principal};
use crate::tenants::store::{self, leaves, sessions};
use muster_wire::TenantId;

/// The life of a leave to set a new password.
pub const RESET_LIFE_US: i64 = 24 * 3_600_000_000;

/// A new leave to set a password; shown once.
#[derive(Debug)]
pub struct NewReset {
    /// Whose password.
    pub email: String,
    /// The secret.
    pub token: String,
    /// The end of its life.
    pub expires_at_us: i64,
}

impl Tenants {
    /// Makes a leave for a member to set a new password, in place of the one before.
    ///
    /// # Errors
    /// No such member; oneself; one above the caller, or of other tenants too.
    pub async fn create_reset(
        &self,
        who: &Principal,
        tenant: &TenantId,
        user_id: &str,
    ) -> Result<NewReset, TenantsError> {
        if matches!(who, Principal::User { user_id: own, .. } if own == user_id) {
            let why = "change your own password with POST /api/v1/auth/password";
            return Err(TenantsError::Denied(why));
        }
        let (who, tenant, user_id, now_us) = (who.clone(), tenant.clone(), user_id.to_owned(), self.now_us());
        let token = secret::new_token("mpr_");
        let (sha256, expires_at_us) = (secret::token_sha256(&token), now_us.saturating_add(RESET_LIFE_US));
        let write = move |tx: &mut Tx<'_>| {
            let held = hold(tx, &user_id, Some(&tenant))?;
            let user = governed(tx, &who, &tenant, &user_id)?;
            let actor = who.audit_name();
            leaves::reset_put(tx, &ACCOUNTS, &user_id, &sha256, &actor, (now_us, expires_at_us))?;
            let detail = serde_json::json!({ "expires_at_us": expires_at_us });
            let (action, object) = ("user.reset", user_id.as_str());
            held.tell(tx, AuditEntry { at_us: now_us, actor: &actor, action, object, detail }, "")?;
            Ok::<_, TenantsError>(user.email)
        };
        Ok(NewReset { email: self.inner.db.write(write).await?, token, expires_at_us })
    }

    /// Spends a leave: sets the password, ends every session and takes the account's lock off.
    ///
    /// # Errors
    /// The leave is unknown, spent or past its life; the password is too weak; too many wrong ones from the address.
    pub async fn spend_reset(&self, token: &str, new: String, peer: &str) -> Result<(), TenantsError> {
        model::check_password(&new)?;
        let keys: Vec<_> = peer_key(&self.inner.config.get().auth, peer).into_iter().collect();
        self.count_attempt(&keys)?;
        let (sha256, now_us) = (secret::token_sha256(token), self.now_us());
        let known = move |tx: &mut Tx<'_>| leaves::reset_user(tx, &ACCOUNTS, &sha256, now_us);
        // Asked before the hash is made: nobody keeps the server busy with leaves that they made up.
        let user_id = self.inner.db.read(known).await?.ok_or(TenantsError::Unauthenticated)?;
        self.forgive(&keys);
        let (hash, peer) = (self.inner.passwords.hash(new).await?, peer.to_owned());
        let write = move |tx: &mut Tx<'_>| {
            let held = hold(tx, &user_id, None)?;
            // Of two that spend it at once, one finds it; and nobody does once it is void or replaced.
            if leaves::reset_user(tx, &ACCOUNTS, &sha256, now_us)?.as_deref() != Some(&*user_id) {
                return Err(TenantsError::Unauthenticated);
            }
            leaves::reset_delete(tx, &ACCOUNTS, &user_id)?;
            let user = store::user_get(tx, &ACCOUNTS, &user_id)?.ok_or(TenantsError::NotFound("account"))?;
            store::user_set_password(tx, &ACCOUNTS, &user_id, &hash, false)?;
            sessions::delete_others(tx, &ACCOUNTS, &user_id, &[])?;
            let (actor, detail) = (format!("user:{}", user.email), serde_json::json!({ "reset": true }));
            let (action, object) = ("user.password", user_id.as_str());
            held.tell(tx, AuditEntry { at_us: now_us, actor: &actor, action, object, detail }, &peer)?;
            Ok::<_, TenantsError>(user.email)
        };
        let email = self.inner.db.write(write).await?;
        let (key, _) = account_key(&self.inner.config.get().auth, &email);
        self.guard().forget(&key);
        Ok(())
    }
}
