//! Accounts, sessions, tokens and members. `api.rs` and `app.rs` call it; it calls the store and the audit chain.
//!
//! Each method is one transaction with its audit row. Secrets leave it once, in the answer that made them.

use super::audit::{self, AuditEntry};
use super::directory::{TokenDirectory, TokenInfo};
use super::login_guard::{LoginGuard, RefusalBudget};
use super::model::{self, Decision, Membership, Permission, Principal, Role, TextError};
use super::passwords::{PasswordError, Passwords};
use super::reach::Reach;
use super::store::{self, MemberRow, TenantRow, TokenRow, UserRow};
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::http_kit::condition::Changed;
use crate::platform::secret;
use muster_wire::TenantId;
use std::sync::{Arc, Mutex, PoisonError};

const DAY_US: i64 = 86_400_000_000;
/// Locks that tenants share by their ids: as many changes of tokens commit together.
const TOKEN_LOCKS: usize = 16;

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
    /// The object is another one than the caller expects.
    #[error(transparent)]
    Changed(#[from] Changed),
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

/// A member with a new account, and its one-time password.
#[derive(Debug)]
pub struct NewMember {
    /// The row.
    pub row: MemberRow,
    /// Shown once.
    pub password: String,
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
    refusals: Mutex<RefusalBudget>,
    tokens: TokenDirectory,
    /// Held over commit and directory, by tenant.
    token_locks: [tokio::sync::Mutex<()>; TOKEN_LOCKS],
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
        let token_locks = std::array::from_fn(|_| tokio::sync::Mutex::new(()));
        let (passwords, guard, refusals) = (Passwords::new()?, Mutex::default(), Mutex::default());
        let inner = Inner { db, clock, config, passwords, guard, refusals, tokens, token_locks };
        Ok(Self { inner: Arc::new(inner) })
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
            let role = Role::Owner.as_str();
            accounts::seat(tx, &scope, &user.user_id, Some((role, &Reach::Everything)), now_us)?;
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

    /// Who an API token stands for.
    ///
    /// # Errors
    /// Unknown or past its life.
    pub fn by_token(&self, secret: &str) -> Result<Principal, TenantsError> {
        let token = self.inner.tokens.token(&secret::token_sha256(secret), self.now_us());
        let token = token.ok_or(TenantsError::Unauthenticated)?;
        let TokenInfo { token_id, membership, scopes, .. } = (*token).clone();
        Ok(Principal::Token { token_id, membership, scopes })
    }

    /// Gives an account a new one-time password and ends its sessions: the operator's way back in.
    ///
    /// # Errors
    /// No such account.
    pub async fn reset_password(&self, email: &str) -> Result<String, TenantsError> {
        let password = one_time_password();
        let new = NewPassword { text: password.clone(), is_one_time: true, keep: Vec::new() };
        self.store_password(&model::parse_email(email)?, new).await?;
        Ok(password)
    }
}

mod accounts;
mod audits;
mod invitations;
mod logins;
mod members;
mod resets;
mod roles;
mod sessions;
mod tenancy;
mod tokens;

pub use accounts::{CHAINS_MAX, hold_account};
pub use audits::{AuditPage, VERIFY_ROWS_MAX, Verified};
pub use invitations::{Accepted, INVITATIONS_MAX, NewInvitation};
#[cfg(test)]
pub(crate) use logins::AGENT_CHARS_MAX;
use logins::NewPassword;
pub use logins::{Client, SESSIONS_MAX};
pub use members::MemberChange;
pub use resets::{NewReset, RESET_LIFE_US};
pub use roles::{GrantRequest, ROLES_MAX};
pub use sessions::{Ending, session_id};
pub use tokens::TokenRequest;

fn principal(user: UserRow, memberships: Vec<Membership>) -> Principal {
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
        Decision::OutOfReach => Err(TenantsError::Denied(
            "this is of the whole tenant, and your role or token has a scope within it",
        )),
        Decision::PasswordPending => {
            Err(TenantsError::Denied("change the one-time password first: POST /api/v1/auth/password"))
        }
        Decision::Denied => {
            tracing::debug!(permission = permission.as_str(), "denied");
            Err(TenantsError::Denied("your role or token does not allow this"))
        }
    }
}
