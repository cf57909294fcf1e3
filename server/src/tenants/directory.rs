//! API tokens in memory: the HTTP API and the gateway look them up on every request without a query.
//!
//! Loaded at the start, kept in step by the service after each commit. Bound: `quota.api_tokens_max` a tenant.
//! Where another process changed a tenant's, the service replaces them. A process that reads another's registry asks
//! [`tokens`] in a transaction of its own.

use super::model::{Membership, Permission};
use super::store;
use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::TenantId;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// The token's id.
    pub token_id: String,
    /// Its only tenant, the role that it cannot exceed, and how far it reaches.
    pub membership: Membership,
    /// What it may do.
    pub scopes: Vec<Permission>,
    /// The end of its life.
    pub expires_at_us: i64,
}

/// Every API token of a registry, past its life or not.
///
/// # Errors
/// The database's.
pub fn tokens(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<([u8; 32], TokenInfo)>, DbError> {
    store::tokens_all(tx, scope)
}

/// Told of each token that comes (with its life) or goes (`None`).
pub type Follower = Box<dyn Fn(&[u8; 32], Option<&TokenInfo>) + Send + Sync>;

/// Every token by its SHA-256; clones share it.
#[derive(Clone, Default)]
pub struct TokenDirectory {
    maps: Arc<RwLock<Maps>>,
}

#[derive(Default)]
struct Maps {
    tokens: HashMap<[u8; 32], Arc<TokenInfo>>,
    follower: Option<Follower>,
}

impl TokenDirectory {
    /// The token of a hash, unless it is past its life. A lookup by hash leaks no prefix of the secret.
    #[must_use]
    pub fn token(&self, sha256: &[u8; 32], now_us: i64) -> Option<Arc<TokenInfo>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.tokens.get(sha256).filter(|token| token.expires_at_us > now_us).cloned()
    }

    /// Tells a follower of every token now and of each change later. One follower: `app.rs` sets the gateway's.
    pub fn follow(&self, follower: Follower) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        for (sha256, token) in &maps.tokens {
            follower(sha256, Some(token));
        }
        maps.follower = Some(follower);
    }

    pub(super) fn insert(&self, sha256: [u8; 32], token: TokenInfo) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(follower) = &maps.follower {
            follower(&sha256, Some(&token));
        }
        maps.tokens.insert(sha256, Arc::new(token));
    }

    /// Puts a tenant's tokens in force; those that it had beside are gone.
    pub(super) fn replace(&self, tenant: &TenantId, tokens: Vec<([u8; 32], TokenInfo)>) {
        let held = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let of_tenant = held.tokens.iter().filter(|(_, token)| token.membership.tenant == *tenant);
        let mut gone: HashMap<_, _> = of_tenant.map(|(sha256, token)| (*sha256, token.clone())).collect();
        drop(held);
        for (sha256, token) in tokens {
            if gone.remove(&sha256).is_none_or(|before| *before != token) {
                self.insert(sha256, token);
            }
        }
        gone.keys().for_each(|sha256| self.remove(sha256));
    }

    /// Tenants that have any.
    pub(super) fn tenants(&self) -> std::collections::BTreeSet<TenantId> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.tokens.values().map(|token| token.membership.tenant.clone()).collect()
    }

    pub(super) fn remove(&self, sha256: &[u8; 32]) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if maps.tokens.remove(sha256).is_some()
            && let Some(follower) = &maps.follower
        {
            follower(sha256, None);
        }
    }
}
