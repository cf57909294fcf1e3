//! Logins: who an address and a password are, sessions that open and close, the lock after too many failures.
//!
//! Every login stands in the audit chain of the server (`-`), with where it came from, and in the chain of each tenant
//! that the account is a member of, without; so does the refusal of one that an account met. Refusals of addresses
//! that have no account, or are locked, are written as far as [`RefusalBudget`] goes: nobody fills a disk with them.

use super::accounts::{hold, tell_server};
use super::{ACCOUNTS, SESSION, Tenants, TenantsError, principal};
use crate::platform::config::AuthSection;
use crate::platform::db::Tx;
use crate::platform::secret;
use crate::tenants::audit::AuditEntry;
use crate::tenants::login_guard::Policy;
use crate::tenants::model::{self, Principal};
use crate::tenants::store::sessions::{self, NewSession};
use crate::tenants::store::{self, UserRow};
use std::sync::PoisonError;

/// Sessions of one account; the oldest end beyond.
pub const SESSIONS_MAX: i64 = 20;
/// What is kept of a client's own words about itself, in characters.
pub const AGENT_CHARS_MAX: usize = 120;

/// Where a request comes from.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address: failures are counted by it.
    pub peer: String,
    /// What it calls itself.
    pub agent: String,
}

impl Client {
    /// A client; its own words are cut to [`AGENT_CHARS_MAX`] plain characters.
    #[must_use]
    pub fn new(peer: &str, agent: &str) -> Self {
        let agent = agent.chars().filter(|c| !c.is_control()).take(AGENT_CHARS_MAX).collect();
        Self { peer: peer.to_owned(), agent }
    }
}

/// A password that takes the place of an account's.
pub(super) struct NewPassword {
    pub(super) text: String,
    /// It must be changed before anything else.
    pub(super) is_one_time: bool,
    /// The hash of the session that stays; empty: none does.
    pub(super) keep: Vec<u8>,
}

/// Why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Password,
    Unknown,
    Locked,
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Unknown => "unknown",
            Self::Locked => "locked",
        }
    }
}

impl Tenants {
    /// Checks address and password; gives the session's secret for the cookie and who it is.
    ///
    /// # Errors
    /// Wrong credentials, or too many of them from this account or address.
    pub async fn login(
        &self,
        email: &str,
        password: &str,
        client: &Client,
    ) -> Result<(String, Principal), TenantsError> {
        let user = self.check_credentials(email, password, &client.peer).await?;
        self.open_session(user, client.clone()).await
    }

    /// Whose address and password these are. Guarded, and every refusal is told to the audit chain.
    pub(super) async fn check_credentials(
        &self,
        email: &str,
        password: &str,
        peer: &str,
    ) -> Result<UserRow, TenantsError> {
        let auth = self.inner.config.get().auth.clone();
        let account = model::parse_email(email).unwrap_or_else(|_| "malformed".into());
        let keys = guard_keys(&auth, &account, peer);
        if let Err(locked) = self.count_attempt(&keys) {
            self.refuse(Refusal::Locked, None, &account, peer).await?;
            return Err(locked);
        }
        let asked = account.clone();
        let user = self.inner.db.read(move |tx| store::user_by_email(tx, &ACCOUNTS, &asked)).await?;
        let stored = user.as_ref().map(|user| user.password_hash.clone());
        let fits = password.len() <= model::TEXT_BYTES_MAX
            && self.inner.passwords.verify(password.to_owned(), stored).await?;
        match user {
            Some(user) if fits => {
                self.forgive(&keys);
                Ok(user)
            }
            user => {
                tracing::info!(peer, "login failed");
                let why = if user.is_some() { Refusal::Password } else { Refusal::Unknown };
                self.refuse(why, user, &account, peer).await?;
                Err(TenantsError::Unauthenticated)
            }
        }
    }

    /// Refuses a locked key, and counts the attempt as failed until it succeeds: attempts that run side by side
    /// are no way around the lock.
    pub(super) fn count_attempt(&self, keys: &[(String, Policy)]) -> Result<(), TenantsError> {
        let (mut guard, now_us) = (self.guard(), self.now_us());
        let locked = keys.iter().filter_map(|(key, policy)| guard.locked_for_s(key, *policy, now_us)).max();
        if let Some(retry_after_s) = locked {
            return Err(TenantsError::Locked { retry_after_s });
        }
        keys.iter().for_each(|(key, policy)| guard.failed(key, *policy, now_us));
        Ok(())
    }

    /// An attempt succeeded: the account starts anew, the address gets this one attempt back.
    pub(super) fn forgive(&self, keys: &[(String, Policy)]) {
        let mut guard = self.guard();
        for (key, _) in keys {
            if key.starts_with(ACCOUNT_KEY) { guard.forget(key) } else { guard.take_back(key) }
        }
    }

    /// The end of an account's lock, where it is locked.
    #[must_use]
    pub fn locked_until_us(&self, email: &str) -> Option<i64> {
        let (key, policy) = account_key(&self.inner.config.get().auth, email);
        self.guard().locked_until_us(&key, policy, self.now_us())
    }

    async fn refuse(
        &self,
        why: Refusal,
        user: Option<UserRow>,
        account: &str,
        peer: &str,
    ) -> Result<(), TenantsError> {
        let now_us = self.now_us();
        // What an account meets is bounded by its lock.
        let mut left_out = 0;
        if why != Refusal::Password {
            let mut budget = self.inner.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            match budget.take(now_us) {
                Some(count) => left_out = count,
                None => return Ok(()),
            }
        }
        let locks = why == Refusal::Password && self.locked_until_us(account).is_some();
        let mut detail = serde_json::json!({ "email": account, "why": why.as_str() });
        if locks {
            detail["locks"] = true.into();
        }
        if left_out > 0 {
            detail["left_out_before"] = left_out.into();
        }
        let peer = peer.to_owned();
        let write = move |tx: &mut Tx<'_>| {
            let (object, action) = (user.as_ref().map_or("-", |user| &*user.user_id), "session.refuse");
            let entry = AuditEntry { at_us: now_us, actor: "server", action, object, detail };
            match &user {
                Some(user) => hold(tx, &user.user_id, None)?.tell(tx, entry, &peer),
                None => tell_server(tx, entry, &peer),
            }
        };
        Ok(self.inner.db.write(write).await?)
    }

    async fn open_session(&self, user: UserRow, client: Client) -> Result<(String, Principal), TenantsError> {
        let life_us = i64::from(self.inner.config.get().auth.session_hours) * 3_600_000_000;
        let secret = secret::new_token("mss_");
        let (sha256, now_us) = (secret::token_sha256(&secret), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let held = hold(tx, &user.user_id, None)?;
            // The password may have been changed, or the account erased, since it was looked at.
            let now = store::user_get(tx, &SESSION, &user.user_id)?;
            if now.is_none_or(|now| now.password_hash != user.password_hash) {
                return Err(TenantsError::Unauthenticated);
            }
            let new = NewSession {
                sha256: &sha256,
                user_id: &user.user_id,
                peer: &client.peer,
                agent: &client.agent,
                created_at_us: now_us,
                expires_at_us: now_us.saturating_add(life_us),
            };
            sessions::insert(tx, &SESSION, &new, SESSIONS_MAX)?;
            let memberships = store::memberships_of(tx, &SESSION, &user.user_id)?;
            let (actor, detail) = (format!("user:{}", user.email), serde_json::json!({}));
            let object = user.user_id.as_str();
            let entry = AuditEntry { at_us: now_us, actor: &actor, action: "session.open", object, detail };
            held.tell(tx, entry, &client.peer)?;
            Ok::<_, TenantsError>(principal(user, memberships))
        };
        Ok((secret, self.inner.db.write(write).await?))
    }

    /// Who a session's secret stands for.
    ///
    /// # Errors
    /// Unknown or past its life.
    pub async fn by_session(&self, secret: &str) -> Result<Principal, TenantsError> {
        let (sha256, now_us) = (secret::token_sha256(secret), self.now_us());
        let read = move |tx: &mut Tx<'_>| {
            let user = sessions::user_of(tx, &SESSION, &sha256, now_us)?;
            let user = user.ok_or(TenantsError::Unauthenticated)?;
            let memberships = store::memberships_of(tx, &SESSION, &user.user_id)?;
            Ok(principal(user, memberships))
        };
        self.inner.db.read(read).await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// The database's.
    pub async fn logout(&self, secret: &str, peer: &str) -> Result<(), TenantsError> {
        let (sha256, now_us, peer) = (secret::token_sha256(secret), self.now_us(), peer.to_owned());
        let write = move |tx: &mut Tx<'_>| {
            let Some(user_id) = sessions::account_of(tx, &SESSION, &sha256)? else { return Ok(()) };
            let held = hold(tx, &user_id, None)?;
            if !sessions::delete(tx, &SESSION, &sha256)? {
                return Ok(());
            }
            let Some(user) = store::user_get(tx, &SESSION, &user_id)? else { return Ok(()) };
            let (actor, detail) = (format!("user:{}", user.email), serde_json::json!({}));
            let (action, object) = ("session.close", user_id.as_str());
            held.tell(tx, AuditEntry { at_us: now_us, actor: &actor, action, object, detail }, &peer)
        };
        Ok(self.inner.db.write(write).await?)
    }

    /// Changes the caller's password and ends their other sessions. Guarded as a login is.
    ///
    /// # Errors
    /// The old password is wrong; the new one is too weak or the same.
    pub async fn change_password(
        &self,
        email: &str,
        session: &str,
        old: &str,
        new: String,
        peer: &str,
    ) -> Result<(), TenantsError> {
        model::check_password(&new)?;
        if old == new {
            return Err(TenantsError::Invalid {
                field: "new_password",
                why: "must differ from the old one".into(),
            });
        }
        self.check_credentials(email, old, peer).await?;
        let keep = secret::token_sha256(session).to_vec();
        self.store_password(email, NewPassword { text: new, is_one_time: false, keep }).await
    }

    pub(super) async fn store_password(&self, email: &str, new: NewPassword) -> Result<(), TenantsError> {
        let NewPassword { text, is_one_time, keep } = new;
        let (hash, email, now_us) = (self.inner.passwords.hash(text).await?, email.to_owned(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let user =
                store::user_by_email(tx, &ACCOUNTS, &email)?.ok_or(TenantsError::NotFound("account"))?;
            let held = hold(tx, &user.user_id, None)?;
            store::user_set_password(tx, &ACCOUNTS, &user.user_id, &hash, is_one_time)?;
            sessions::delete_others(tx, &ACCOUNTS, &user.user_id, &keep)?;
            // A leave that was given before would open the account to whoever holds it.
            store::leaves::reset_delete(tx, &ACCOUNTS, &user.user_id)?;
            let actor = if is_one_time { "server".to_owned() } else { format!("user:{email}") };
            let detail = serde_json::json!({ "one_time": is_one_time });
            let (action, object) = ("user.password", user.user_id.as_str());
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object, detail };
            Ok(held.tell(tx, entry, "")?)
        };
        self.inner.db.write(write).await
    }
}

const ACCOUNT_KEY: &str = "account:";

pub(super) fn account_key(auth: &AuthSection, account: &str) -> (String, Policy) {
    (format!("{ACCOUNT_KEY}{account}"), policy(auth, 1))
}

/// The address's key, four times as patient. A proxy on this machine stands for everybody, so it has none.
pub(super) fn peer_key(auth: &AuthSection, peer: &str) -> Option<(String, Policy)> {
    let is_near = peer.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    (!is_near).then(|| (format!("peer:{peer}"), policy(auth, 4)))
}

fn policy(auth: &AuthSection, factor: u32) -> Policy {
    let lock_us = i64::from(auth.lockout_minutes) * 60_000_000;
    Policy { failures_max: auth.login_failures_max.saturating_mul(factor), lock_us }
}

fn guard_keys(auth: &AuthSection, account: &str, peer: &str) -> Vec<(String, Policy)> {
    std::iter::once(account_key(auth, account)).chain(peer_key(auth, peer)).collect()
}
