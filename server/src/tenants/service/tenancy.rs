//! Tenants themselves, and their audit chains.

use super::accounts::seat;
use super::{ACCOUNTS, Tenants, TenantsError, taken};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::{Page, Precondition};
use crate::tenants::audit::{self, AuditEntry, AuditRow};
use crate::tenants::audit_search::{self, AuditFilter};
use crate::tenants::model::{self, Principal, Role, TextError};
use crate::tenants::reach::Reach;
use crate::tenants::store::{self, TenantRow};
use muster_wire::TenantId;

impl Tenants {
    /// Creates a tenant. Its owner is the caller, or `owner_email`'s account when a program asks.
    ///
    /// # Errors
    /// Taken id; no such owner.
    pub async fn create_tenant(
        &self,
        who: &Principal,
        tenant: TenantId,
        name: String,
        owner_email: Option<String>,
    ) -> Result<TenantRow, TenantsError> {
        model::check_name(&name)?;
        let owner = match (owner_email, who) {
            (Some(email), _) => model::parse_email(&email)
                .map_err(|error| TenantsError::from(TextError { field: "owner_email", ..error }))?,
            (None, Principal::User { email, .. }) => email.clone(),
            (None, Principal::Token { .. }) => {
                return Err(TenantsError::Invalid {
                    field: "owner_email",
                    why: "is needed with an API token".into(),
                });
            }
        };
        let (actor, now_us, scope) = (who.audit_name(), self.now_us(), Scope::Tenant(tenant.clone()));
        let row = TenantRow { tenant: tenant.to_string(), name, created_at_us: now_us };
        let write = move |tx: &mut Tx<'_>| {
            let user = store::user_by_email(tx, &ACCOUNTS, &owner)?.ok_or_else(|| TenantsError::Invalid {
                field: "owner_email",
                why: "is not the address of an account".into(),
            })?;
            store::tenant_insert(tx, &ACCOUNTS, &row).map_err(taken("the tenant id is taken"))?;
            let given = (Role::Owner.as_str(), &Reach::Everything);
            seat(tx, &scope, &user.user_id, Some(given), now_us)?;
            let detail = serde_json::json!({ "owner": owner });
            let (object, action) = (row.tenant.as_str(), "tenant.create");
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        self.inner.db.write(write).await
    }

    /// The caller's tenants.
    ///
    /// # Errors
    /// The database's.
    pub async fn tenants_of(&self, who: &Principal, page: &Page) -> Result<Vec<TenantRow>, TenantsError> {
        let (after, limit) = (page.after_text().to_owned(), page.fetch());
        match who {
            Principal::User { user_id, .. } => {
                let user_id = user_id.clone();
                let read = move |tx: &mut Tx<'_>| store::tenant_list(tx, &ACCOUNTS, &user_id, &after, limit);
                Ok(self.inner.db.read(read).await?)
            }
            Principal::Token { membership, .. } if membership.tenant.as_str() <= after.as_str() => {
                Ok(Vec::new())
            }
            Principal::Token { membership, .. } => Ok(vec![self.tenant(&membership.tenant).await?]),
        }
    }

    /// Every tenant, for work that goes over all of them.
    ///
    /// # Errors
    /// The database's.
    pub async fn ids(&self) -> Result<Vec<TenantId>, TenantsError> {
        Ok(self.inner.db.read(|tx| store::tenant_ids(tx, &Scope::System("retention"))).await?)
    }

    /// One tenant.
    ///
    /// # Errors
    /// No such tenant.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<TenantRow, TenantsError> {
        let scope = Scope::Tenant(tenant.clone());
        self.inner
            .db
            .read(move |tx| store::tenant_get(tx, &scope)?.ok_or(TenantsError::NotFound("tenant")))
            .await
    }

    /// Renames a tenant.
    ///
    /// # Errors
    /// No such tenant; a bad name; it is another one than the caller expects.
    pub async fn rename_tenant(
        &self,
        who: &Principal,
        tenant: &TenantId,
        name: String,
        expected: Precondition,
    ) -> Result<TenantRow, TenantsError> {
        model::check_name(&name)?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let none = TenantsError::NotFound("tenant");
            expected.check(&store::tenant_get(tx, &scope)?.ok_or(none)?.etag())?;
            if !store::tenant_rename(tx, &scope, &name)? {
                return Err(TenantsError::NotFound("tenant"));
            }
            let (object, detail) = (scope.tenant()?, serde_json::json!({ "name": name }));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action: "tenant.rename", object, detail };
            audit::append(tx, &scope, &entry)?;
            store::tenant_get(tx, &scope)?.ok_or(TenantsError::NotFound("tenant"))
        };
        self.inner.db.write(write).await
    }

    /// Rows of the tenant's audit chain by who, what and when, from after a position on.
    ///
    /// # Errors
    /// The database's.
    pub async fn audit_search(
        &self,
        tenant: &TenantId,
        filter: AuditFilter,
        after: Option<i64>,
        limit: i64,
    ) -> Result<Vec<AuditRow>, TenantsError> {
        let scope = Scope::Tenant(tenant.clone());
        let read = move |tx: &mut Tx<'_>| audit_search::audit_search(tx, &scope, &filter, after, limit);
        Ok(self.inner.db.read(read).await?)
    }
}
