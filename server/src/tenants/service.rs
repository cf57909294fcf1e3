//! Accounts, sessions, tokens and members. `api.rs` and `app.rs` call it; it calls the store and the audit chain.
//!
//! Each method is one transaction with its audit row. Secrets leave it once, in the answer that made them.

use super::audit::{self, AuditEntry};
use super::directory::{TokenDirectory, TokenInfo};
use super::login_guard::{LoginGuard, Policy};
use super::model::{self, Decision, Permission, Principal, Role, TextError};
use super::passwords::{PasswordError, Passwords};
use super::store::{self, MemberRow, TenantRow, TokenRow, UserRow};
use crate::platform::clock::SharedClock;
use crate::platform::config::{AuthSection, Live};
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::secret;
use muster_wire::TenantId;
use std::sync::{Arc, Mutex, PoisonError};

/// Sessions of one account; the oldest end beyond.
pub const SESSIONS_MAX: i64 = 20;
const DAY_US: i64 = 86_400_000_000;

const LOGIN: Scope = Scope::System("login");
const SESSION: Scope = Scope::System("session");
const FIRST_START: Scope = Scope::System("first start");
const ACCOUNTS: Scope = Scope::System("accounts");

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// Wrong address, password, session or token.
    #[error("the credentials are not valid")]
    Unauthenticated,
    /// Too many failures.
    #[error("too many failed logins; try again in {retry_after_s} s")]
    Locked {
        /// When the lock ends.
        retry_after_s: u64,
    },
    /// The role or token does not allow it.
    #[error("{0}")]
    Denied(&'static str),
    /// No such object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Already there, or not in the state that the request needs.
    #[error("{0}")]
    Conflict(&'static str),
    /// A field is out of range.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What was expected.
        why: String,
    },
    /// A quota is used up.
    #[error("the tenant's quota of {max} {noun} is used up")]
    Quota {
        /// Of what.
        noun: &'static str,
        /// The quota.
        max: u32,
    },
    /// A hash failed.
    #[error("password hash failed")]
    Password(#[from] PasswordError),
    /// The database failed.
    #[error("database failed")]
    Db(#[from] DbError),
}

impl From<TextError> for TenantsError {
    fn from(error: TextError) -> Self {
        Self::Invalid { field: error.field, why: error.why.into() }
    }
}

/// A new secret beside its row; shown once.
#[derive(Debug)]
pub struct NewToken {
    /// The row.
    pub row: TokenRow,
    /// The bearer secret.
    pub secret: String,
}

/// A member and, for a new account, its one-time password.
#[derive(Debug)]
pub struct NewMember {
    /// The row.
    pub row: MemberRow,
    /// Set when the account is new; shown once.
    pub password: Option<String>,
}

/// What the first start made; printed once.
#[derive(Debug)]
pub struct FirstStart {
    /// The tenant.
    pub tenant: TenantId,
    /// The owner's address.
    pub email: String,
    /// The one-time password.
    pub password: String,
}

/// The slice's service; clones share it.
#[derive(Clone)]
pub struct Tenants {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: SharedClock,
    config: Live,
    passwords: Passwords,
    guard: Mutex<LoginGuard>,
    tokens: TokenDirectory,
}

impl Tenants {
    /// Loads the token directory.
    ///
    /// # Errors
    /// The database's, or the hash's.
    pub async fn open(db: Db, clock: SharedClock, config: Live) -> Result<Self, TenantsError> {
        let tokens = TokenDirectory::default();
        let rows = db.read(|tx| store::tokens_all(tx, &Scope::System("token directory"))).await?;
        for (sha256, token) in rows {
            tokens.insert(sha256, token);
        }
        let guard = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { db, clock, config, passwords: Passwords::new()?, guard, tokens }) })
    }

    /// The tokens, for the gateway.
    #[must_use]
    pub fn tokens(&self) -> &TokenDirectory {
        &self.inner.tokens
    }

    fn now_us(&self) -> i64 {
        self.inner.clock.now_us()
    }

    fn guard(&self) -> std::sync::MutexGuard<'_, LoginGuard> {
        self.inner.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the tenant `default` and its owner, unless there is a tenant.
    ///
    /// # Errors
    /// The database's, or the hash's.
    pub async fn first_start(&self) -> Result<Option<FirstStart>, TenantsError> {
        if self.inner.db.read(|tx| store::any_tenant(tx, &FIRST_START)).await? {
            return Ok(None);
        }
        let tenant = TenantId::parse("default").map_err(|_| TenantsError::NotFound("tenant"))?;
        let (email, password) = ("owner@localhost".to_owned(), one_time_password());
        let user = self.new_user(email.clone(), &password, true).await?;
        let (scope, now_us) = (Scope::Tenant(tenant.clone()), self.now_us());
        let row = TenantRow { tenant: tenant.to_string(), name: "Default".into(), created_at_us: now_us };
        let write = move |tx: &mut Tx<'_>| {
            store::tenant_insert(tx, &FIRST_START, &row)?;
            store::user_insert(tx, &FIRST_START, &user)?;
            store::member_put(tx, &scope, &user.user_id, Role::Owner, now_us)?;
            let detail = serde_json::json!({ "owner": user.email });
            let entry = AuditEntry {
                at_us: now_us,
                actor: "server",
                action: "tenant.create",
                object: &row.tenant,
                detail,
            };
            audit::append(tx, &scope, &entry)
        };
        self.inner.db.write(write).await?;
        Ok(Some(FirstStart { tenant, email, password }))
    }

    async fn new_user(
        &self,
        email: String,
        password: &str,
        system_admin: bool,
    ) -> Result<UserRow, TenantsError> {
        Ok(UserRow {
            user_id: new_id("u"),
            email,
            password_hash: self.inner.passwords.hash(password.to_owned()).await?,
            password_pending: true,
            system_admin,
            created_at_us: self.now_us(),
        })
    }

    /// Checks address and password; gives the session's secret for the cookie and who it is.
    ///
    /// # Errors
    /// Wrong credentials, or too many of them from this account or address.
    pub async fn login(
        &self,
        email: &str,
        password: &str,
        peer: &str,
    ) -> Result<(String, Principal), TenantsError> {
        let auth = self.inner.config.get().auth.clone();
        let account = model::parse_email(email).unwrap_or_else(|_| "malformed".into());
        let keys = guard_keys(&auth, &account, peer);
        self.count_attempt(&keys)?;
        let user = self.inner.db.read(move |tx| store::user_by_email(tx, &LOGIN, &account)).await?;
        let stored = user.as_ref().map(|user| user.password_hash.clone());
        let fits = password.len() <= model::TEXT_BYTES_MAX
            && self.inner.passwords.verify(password.to_owned(), stored).await?;
        let Some(user) = user.filter(|_| fits) else {
            tracing::info!(peer, "login failed");
            return Err(TenantsError::Unauthenticated);
        };
        self.forgive(&keys);
        self.open_session(user, i64::from(auth.session_hours) * 3_600_000_000).await
    }

    /// Refuses a locked key, and counts the attempt as failed until it succeeds: attempts that run side by side
    /// are no way around the lock.
    fn count_attempt(&self, keys: &[(String, Policy)]) -> Result<(), TenantsError> {
        let (mut guard, now_us) = (self.guard(), self.now_us());
        let locked = keys.iter().filter_map(|(key, policy)| guard.locked_for_s(key, *policy, now_us)).max();
        if let Some(retry_after_s) = locked {
            return Err(TenantsError::Locked { retry_after_s });
        }
        keys.iter().for_each(|(key, policy)| guard.failed(key, *policy, now_us));
        Ok(())
    }

    /// A login succeeded: the account starts anew, the address gets this one attempt back.
    fn forgive(&self, keys: &[(String, Policy)]) {
        let mut guard = self.guard();
        for (at, (key, _)) in keys.iter().enumerate() {
            if at == 0 { guard.forget(key) } else { guard.take_back(key) }
        }
    }

    async fn open_session(&self, user: UserRow, life_us: i64) -> Result<(String, Principal), TenantsError> {
        let secret = secret::new_token("mss_");
        let (sha256, now_us) = (secret::token_sha256(&secret), self.now_us());
        let life = (now_us, now_us.saturating_add(life_us));
        let write = move |tx: &mut Tx<'_>| {
            store::session_insert(tx, &SESSION, &sha256, &user.user_id, life, SESSIONS_MAX)?;
            let memberships = store::memberships_of(tx, &SESSION, &user.user_id)?;
            let entry = AuditEntry {
                at_us: now_us,
                actor: &format!("user:{}", user.email),
                action: "session.open",
                object: &user.user_id,
                detail: serde_json::json!({}),
            };
            audit::append(tx, &SESSION, &entry)?;
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
            let user = store::user_by_session(tx, &SESSION, &sha256, now_us)?;
            let user = user.ok_or(TenantsError::Unauthenticated)?;
            let memberships = store::memberships_of(tx, &SESSION, &user.user_id)?;
            Ok(principal(user, memberships))
        };
        self.inner.db.read(read).await
    }

    /// Who an API token stands for.
    ///
    /// # Errors
    /// Unknown or past its life.
    pub fn by_token(&self, secret: &str) -> Result<Principal, TenantsError> {
        let token = self.inner.tokens.token(&secret::token_sha256(secret), self.now_us());
        let token = token.ok_or(TenantsError::Unauthenticated)?;
        let TokenInfo { token_id, tenant, role, scopes, .. } = (*token).clone();
        Ok(Principal::Token { token_id, tenant, role, scopes })
    }

    /// Ends a session.
    ///
    /// # Errors
    /// The database's.
    pub async fn logout(&self, secret: &str) -> Result<(), TenantsError> {
        let sha256 = secret::token_sha256(secret);
        Ok(self.inner.db.write(move |tx| store::session_delete(tx, &SESSION, &sha256)).await?)
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
        let (probe, _) = self.login(email, old, peer).await?;
        self.logout(&probe).await?;
        self.store_password(email, new, false, secret::token_sha256(session).to_vec()).await
    }

    /// Gives an account a new one-time password and ends its sessions: the operator's way back in.
    ///
    /// # Errors
    /// No such account.
    pub async fn reset_password(&self, email: &str) -> Result<String, TenantsError> {
        let password = one_time_password();
        self.store_password(&model::parse_email(email)?, password.clone(), true, Vec::new()).await?;
        Ok(password)
    }

    async fn store_password(
        &self,
        email: &str,
        new: String,
        pending: bool,
        keep: Vec<u8>,
    ) -> Result<(), TenantsError> {
        let (hash, email, now_us) = (self.inner.passwords.hash(new).await?, email.to_owned(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let user =
                store::user_by_email(tx, &ACCOUNTS, &email)?.ok_or(TenantsError::NotFound("account"))?;
            store::user_set_password(tx, &ACCOUNTS, &user.user_id, &hash, pending)?;
            store::sessions_delete_others(tx, &ACCOUNTS, &user.user_id, &keep)?;
            let actor = if pending { "server".to_owned() } else { format!("user:{email}") };
            let (action, detail) = ("user.password", serde_json::json!({ "one_time": pending }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &user.user_id, detail };
            Ok(audit::append(tx, &ACCOUNTS, &entry)?)
        };
        self.inner.db.write(write).await
    }
}

mod members;
mod tenancy;
mod tokens;

pub use members::MemberChange;
pub use tokens::TokenRequest;

/// The account's key, and the address's. A proxy on this machine stands for everybody, so it has none.
fn guard_keys(auth: &AuthSection, account: &str, peer: &str) -> Vec<(String, Policy)> {
    let lock_us = i64::from(auth.lockout_minutes) * 60_000_000;
    let policy = |factor| Policy { failures_max: auth.login_failures_max.saturating_mul(factor), lock_us };
    let mut keys = vec![(format!("account:{account}"), policy(1))];
    if !peer.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback()) {
        keys.push((format!("peer:{peer}"), policy(4)));
    }
    keys
}

fn principal(user: UserRow, memberships: Vec<(TenantId, Role)>) -> Principal {
    let UserRow { user_id, email, system_admin, password_pending, .. } = user;
    Principal::User { user_id, email, memberships, system_admin, password_pending }
}

fn taken(why: &'static str) -> impl Fn(DbError) -> TenantsError {
    move |error| if error.is_unique_violation() { TenantsError::Conflict(why) } else { error.into() }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", hex::encode(secret::random_bytes::<8>()))
}

/// 80 random bits in words that can be typed: four groups of five hex digits.
fn one_time_password() -> String {
    let digits = hex::encode(secret::random_bytes::<10>());
    [&digits[0..5], &digits[5..10], &digits[10..15], &digits[15..20]].join("-")
}

/// Turns a decision into a refusal.
///
/// # Errors
/// Unless it is [`Decision::Allow`].
pub fn enforce(decision: Decision, permission: Permission) -> Result<(), TenantsError> {
    match decision {
        Decision::Allow => Ok(()),
        Decision::NotFound => Err(TenantsError::NotFound("tenant")),
        Decision::PasswordPending => {
            Err(TenantsError::Denied("change the one-time password first: POST /api/v1/auth/password"))
        }
        Decision::Denied => {
            tracing::debug!(permission = permission.as_str(), "denied");
            Err(TenantsError::Denied("your role or token does not allow this"))
        }
    }
}
