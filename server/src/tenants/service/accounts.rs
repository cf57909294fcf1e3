//! Accounts as what several writes want at once: in which order they take it, and where they tell of it.
//!
//! An account is of no tenant, and what is done to it stands in the chains of all of its tenants. Architecture invariant:
//! a write of something that accounts have takes, in this order and nothing of an earlier kind after a later one: the
//! tenants' locks in the order of their ids; `accounts`, where it makes an account; the account's own lock; rows; the
//! server's chain. So such writes wait for each other and never in a circle.

use super::ACCOUNTS;
use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::reach::Reach;
use crate::tenants::store::{self, leaves};
use muster_wire::TenantId;
use std::collections::BTreeSet;

/// Tenants of one account whose chains tell of what it does and meets; further ones stand in the server's alone.
pub const CHAINS_MAX: usize = 64;

/// An account that this write holds to its end.
pub(super) struct Held {
    chains: BTreeSet<TenantId>,
}

impl Held {
    /// Tells what the account did or met: to the chains of its tenants, then to the server's, which alone says from where.
    pub(super) fn tell(&self, tx: &mut Tx<'_>, entry: AuditEntry<'_>, peer: &str) -> Result<(), DbError> {
        for tenant in &self.chains {
            audit::append(tx, &Scope::Tenant(tenant.clone()), &entry)?;
        }
        tell_server(tx, entry, peer)
    }
}

/// Tells the server's own chain.
pub(super) fn tell_server(tx: &mut Tx<'_>, entry: AuditEntry<'_>, peer: &str) -> Result<(), DbError> {
    let mut detail = entry.detail;
    if !peer.is_empty() {
        detail["peer"] = peer.into();
    }
    audit::append(tx, &ACCOUNTS, &AuditEntry { detail, ..entry })
}

/// Holds an account, and its tenants as of now; `asking` is the tenant in which somebody asked for it. Comes before every
/// other statement of a write.
pub(super) fn hold(tx: &mut Tx<'_>, user_id: &str, asking: Option<&TenantId>) -> Result<Held, DbError> {
    let memberships = store::memberships_of(tx, &ACCOUNTS, user_id)?;
    let own = memberships.into_iter().take(CHAINS_MAX).map(|membership| membership.tenant);
    let chains: BTreeSet<_> = own.chain(asking.cloned()).collect();
    for tenant in &chains {
        tx.lock(&ACCOUNTS, tenant.as_str())?;
    }
    hold_account(tx, &ACCOUNTS, user_id)?;
    Ok(Held { chains })
}

/// Makes other writes of an account wait for the end of this one, which holds the tenants that it needs.
///
/// # Errors
/// The database's.
pub fn hold_account(tx: &mut Tx<'_>, accounts: &Scope, user_id: &str) -> Result<(), DbError> {
    tx.lock(accounts, &format!("account {user_id}"))
}

/// Makes an account a member with a role and a reach, or no member any more. A leave to set its password that somebody
/// gave before is void: they may not govern what the account is now.
pub(super) fn seat(
    tx: &mut Tx<'_>,
    scope: &Scope,
    user_id: &str,
    grant: Option<(&str, &Reach)>,
    now_us: i64,
) -> Result<(), DbError> {
    tx.lock(scope, scope.tenant()?)?;
    hold_account(tx, &ACCOUNTS, user_id)?;
    leaves::reset_delete(tx, &ACCOUNTS, user_id)?;
    match grant {
        Some(grant) => store::member_put(tx, scope, user_id, grant, now_us),
        None => store::member_delete(tx, scope, user_id).map(drop),
    }
}
