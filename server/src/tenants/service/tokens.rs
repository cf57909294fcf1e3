//! API tokens of a tenant.

use super::{DAY_US, NewToken, Tenants, TenantsError, new_id};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::directory::TokenInfo;
use crate::tenants::model::{self, Permission, Principal, Role};
use crate::tenants::store::{self, TokenRow};
use muster_wire::TenantId;

/// What a new token shall be.
#[derive(Debug)]
pub struct TokenRequest {
    /// For people.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Permission>,
    /// Its life.
    pub days: u32,
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
        let mut scopes = request.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        if let Some(beyond) = scopes.iter().find(|scope| !who.may_grant_scope(**scope, tenant)) {
            let why = format!("you may not give {}", beyond.as_str());
            return Err(TenantsError::Invalid { field: "scopes", why });
        }
        let role = who.role_in(tenant).ok_or(TenantsError::NotFound("tenant"))?;
        self.insert_token(tenant, role, scopes, request.name, request.days, who.audit_name()).await
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
        self.insert_token(tenant, Role::Owner, scopes, name, days, "server".into()).await
    }

    async fn insert_token(
        &self,
        tenant: &TenantId,
        role: Role,
        scopes: Vec<Permission>,
        name: String,
        days: u32,
        actor: String,
    ) -> Result<NewToken, TenantsError> {
        let (secret, now_us) = (secret::new_token("mst_"), self.now_us());
        let (sha256, scope) = (secret::token_sha256(&secret), Scope::Tenant(tenant.clone()));
        let expires_at_us = now_us.saturating_add(i64::from(days) * DAY_US);
        let max = self.inner.config.get().quota.api_tokens_max;
        let info = (tenant.clone(), role, scopes.clone());
        let write = move |tx: &mut Tx<'_>| {
            let gone = store::tokens_expire(tx, &scope, now_us)?;
            if store::token_count(tx, &scope)? >= i64::from(max) {
                return Err(TenantsError::Quota { noun: "API tokens", max });
            }
            let row = TokenRow {
                token_id: new_id("t"),
                name,
                role,
                scopes,
                created_by: actor.clone(),
                created_at_us: now_us,
                expires_at_us,
            };
            store::token_insert(tx, &scope, &row, &sha256)?;
            let (action, detail) =
                ("token.create", serde_json::json!({ "name": row.name, "scopes": row.scopes }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &row.token_id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok((row, gone))
        };
        let (row, gone) = self.inner.db.write(write).await?;
        gone.iter().for_each(|sha256| self.inner.tokens.remove(sha256));
        let (tenant, role, scopes) = info;
        let info = TokenInfo { token_id: row.token_id.clone(), tenant, role, scopes, expires_at_us };
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
        let sha256 = self.inner.db.write(write).await?;
        self.inner.tokens.remove(&sha256);
        Ok(())
    }
}
