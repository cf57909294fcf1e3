//! API tokens of a tenant.

use super::roles::{check_places, find_role};
use super::{DAY_US, NewToken, TOKEN_LOCKS, Tenants, TenantsError, new_id};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::directory::TokenInfo;
use crate::tenants::model::{self, GivenRole, Membership, Permission, Principal, Role};
use crate::tenants::reach::Reach;
use crate::tenants::store::{self, TokenRow};
use muster_wire::TenantId;

/// What a new token shall be.
#[derive(Debug, Default)]
pub struct TokenRequest {
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Permission>,
    /// A role's name or id in place of scopes: what the role allows now.
    pub role: Option<String>,
    /// The places that it reaches; none: the whole tenant.
    pub places: Option<Vec<String>>,
    /// Its life.
    pub days: u32,
}

/// What a token is made of.
struct Made {
    membership: Membership,
    scopes: Vec<Permission>,
    name: String,
    days: u32,
    actor: String,
}

impl Tenants {
    /// Makes a token; nobody gives a scope that they do not have.
    ///
    /// # Errors
    /// A scope beyond the caller's; a field out of range; quota.
    pub async fn create_token(
        &self,
        who: &Principal,
        tenant: &TenantId,
        request: TokenRequest,
    ) -> Result<NewToken, TenantsError> {
        model::check_name(&request.name)?;
        let config = self.inner.config.get();
        if !(1..=config.auth.token_days_max).contains(&request.days) {
            let why = format!("must be 1 to {}", config.auth.token_days_max);
            return Err(TenantsError::Invalid { field: "days", why });
        }
        let reach = Reach::parse(request.places.as_deref())?;
        let mut scopes = match request.role {
            Some(_) if !request.scopes.is_empty() => {
                let why = "a token has either a role or scopes".into();
                return Err(TenantsError::Invalid { field: "role", why });
            }
            Some(role) => self.permissions_of(tenant, role).await?,
            None => request.scopes,
        };
        scopes.sort_unstable();
        scopes.dedup();
        if let Some(beyond) = scopes.iter().find(|scope| !who.may_grant_scope(**scope, tenant)) {
            let why = format!("you may not give {}", beyond.as_str());
            return Err(TenantsError::Invalid { field: "scopes", why });
        }
        let of_everything = [Permission::MqttSubscribe, Permission::PlatformAdmin];
        if let Some(wide) = scopes.iter().find(|scope| of_everything.contains(scope))
            && !reach.is_everything()
        {
            let why = format!("{} is of the whole tenant: not with a scope of places", wide.as_str());
            return Err(TenantsError::Invalid { field: "scope", why });
        }
        let own = who.membership_in(tenant).ok_or(TenantsError::NotFound("tenant"))?;
        let role = match &own.role {
            GivenRole::BuiltIn(role) => GivenRole::from(*role),
            // The role may change or go: what the token may is what it was given.
            GivenRole::Custom { role_id, .. } => {
                GivenRole::Custom { role_id: role_id.clone(), permissions: scopes.clone() }
            }
        };
        let membership = Membership { tenant: tenant.clone(), role, reach };
        let (name, days, actor) = (request.name, request.days, who.audit_name());
        self.insert_token(Made { membership, scopes, name, days, actor }).await
    }

    async fn permissions_of(&self, tenant: &TenantId, role: String) -> Result<Vec<Permission>, TenantsError> {
        let scope = Scope::Tenant(tenant.clone());
        let find = move |tx: &mut Tx<'_>| find_role(tx, &scope, &role);
        Ok(self.inner.db.read(find).await?.permissions())
    }

    /// Makes a token with every scope for `app.rs`: the bootstrap file of demos and tests.
    ///
    /// # Errors
    /// The database's.
    pub async fn create_bootstrap_token(
        &self,
        tenant: &TenantId,
        days: u32,
    ) -> Result<NewToken, TenantsError> {
        let (scopes, name) = (Permission::ALL.to_vec(), "bootstrap".to_owned());
        let membership = Membership::whole(tenant.clone(), Role::Owner);
        self.insert_token(Made { membership, scopes, name, days, actor: "server".into() }).await
    }

    async fn insert_token(&self, made: Made) -> Result<NewToken, TenantsError> {
        let Made { membership, scopes, name, days, actor } = made;
        let (secret, now_us) = (secret::new_token("mst_"), self.now_us());
        let (sha256, scope) = (secret::token_sha256(&secret), Scope::Tenant(membership.tenant.clone()));
        let expires_at_us = now_us.saturating_add(i64::from(days) * DAY_US);
        let max = self.inner.config.get().quota.api_tokens_max;
        let row = TokenRow {
            token_id: new_id("t"),
            name,
            role: membership.role.clone(),
            reach: membership.reach.clone(),
            scopes: scopes.clone(),
            created_by: actor.clone(),
            created_at_us: now_us,
            expires_at_us,
        };
        let write = move |tx: &mut Tx<'_>| {
            check_places(tx, &scope, &row.reach)?;
            if store::is_in_erasure(tx, &scope)? {
                return Err(TenantsError::Conflict("the tenant is being erased"));
            }
            let gone = store::tokens_expire(tx, &scope, now_us)?;
            if store::token_count(tx, &scope)? >= i64::from(max) {
                return Err(TenantsError::Quota { noun: "API tokens", max });
            }
            store::token_insert(tx, &scope, &row, &sha256)?;
            let detail = serde_json::json!({
                "name": row.name, "scopes": row.scopes, "scope": row.reach.places(),
            });
            let action = "token.create";
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &row.token_id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok((row, gone))
        };
        let _held = self.lock_tokens(&membership.tenant).await;
        let (row, gone) = self.inner.db.write(write).await?;
        gone.iter().for_each(|sha256| self.inner.tokens.remove(sha256));
        let info = TokenInfo { token_id: row.token_id.clone(), membership, scopes, expires_at_us };
        self.inner.tokens.insert(sha256, info);
        Ok(NewToken { row, secret })
    }

    /// The tenant's tokens.
    ///
    /// # Errors
    /// The database's.
    pub async fn token_list(&self, tenant: &TenantId, page: &Page) -> Result<Vec<TokenRow>, TenantsError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::token_list(tx, &scope, &after, limit)).await?)
    }

    /// Revokes a token at once, over HTTP and MQTT.
    ///
    /// # Errors
    /// No such token.
    pub async fn delete_token(
        &self,
        who: &Principal,
        tenant: &TenantId,
        token_id: String,
    ) -> Result<(), TenantsError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let sha256 =
                store::token_delete(tx, &scope, &token_id)?.ok_or(TenantsError::NotFound("API token"))?;
            let (action, detail) = ("token.revoke", serde_json::json!({}));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &token_id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok::<_, TenantsError>(sha256)
        };
        let _held = self.lock_tokens(tenant).await;
        let sha256 = self.inner.db.write(write).await?;
        self.inner.tokens.remove(&sha256);
        Ok(())
    }

    /// Revokes all of a tenant's tokens in one transaction with `also`: none is taken any more once this returned.
    ///
    /// # Errors
    /// `also`'s, or the database's; then none is revoked.
    pub async fn revoke_all_tokens<T: Send + 'static, E: From<DbError> + Send + 'static>(
        &self,
        actor: &str,
        tenant: &TenantId,
        also: impl FnOnce(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (scope, actor, at_us) = (Scope::Tenant(tenant.clone()), actor.to_owned(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let done = also(tx)?;
            for token_id in store::tokens_delete(tx, &scope)? {
                let (action, detail) = ("token.revoke", serde_json::json!({}));
                let entry = AuditEntry { at_us, actor: &actor, action, object: &token_id, detail };
                audit::append(tx, &scope, &entry)?;
            }
            Ok::<_, E>(done)
        };
        let _held = self.lock_tokens(tenant).await;
        let done = self.inner.db.write(write).await?;
        self.inner.tokens.replace(tenant, Vec::new());
        Ok(done)
    }

    /// Reads a tenant's tokens again: another process changed them.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh_tokens(&self, tenant: &TenantId) -> Result<(), TenantsError> {
        let _held = self.lock_tokens(tenant).await;
        let scope = Scope::Tenant(tenant.clone());
        let tokens = self.inner.db.read(move |tx| store::tokens_of(tx, &scope)).await?;
        self.inner.tokens.replace(tenant, tokens);
        Ok(())
    }

    /// Reads the tokens of every tenant again.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh_all_tokens(&self) -> Result<(), TenantsError> {
        let mut tenants = self.inner.tokens.tenants();
        tenants
            .extend(self.inner.db.read(|tx| store::tenant_ids(tx, &Scope::System("token directory"))).await?);
        for tenant in tenants {
            self.refresh_tokens(&tenant).await?;
        }
        Ok(())
    }

    /// Whoever holds it may bring a tenant's part of the directory up to what is committed: nobody else's older state
    /// follows.
    async fn lock_tokens(&self, tenant: &TenantId) -> tokio::sync::MutexGuard<'_, ()> {
        let sum =
            tenant.as_str().bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        self.inner.token_locks[sum % TOKEN_LOCKS].lock().await
    }
}
