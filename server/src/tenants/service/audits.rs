//! Audit chains: verification and export, a page of rows in each read.

use super::{Tenants, TenantsError};
use crate::platform::db::{Scope, Tx};
use crate::tenants::audit::export::{self, Span};
use crate::tenants::audit::verify::{self, Fault, Mark, Walk};
use crate::tenants::audit::{self, AuditRow};
use muster_wire::TenantId;

/// Rows that one request verifies at most; the next goes on where it ended.
pub const VERIFY_ROWS_MAX: u64 = 10_000;

/// What a verification found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Good rows.
    pub rows: u64,
    /// The last good row.
    pub at: Mark,
    /// The chain's end was reached.
    pub is_complete: bool,
    /// What is wrong after it.
    pub fault: Option<Fault>,
}

/// Rows of an export.
pub type AuditPage = Vec<AuditRow>;

impl Tenants {
    /// Walks the tenant's chain, from a noted row on, at most [`VERIFY_ROWS_MAX`] rows.
    ///
    /// # Errors
    /// The database's. A fault of the chain is an answer.
    pub async fn verify_audit(
        &self,
        tenant: &TenantId,
        from: Option<Mark>,
    ) -> Result<Verified, TenantsError> {
        let mut walk = from.map_or_else(|| Walk::whole(None), Walk::from);
        let found = |walk: &Walk, is_complete, fault| Verified {
            rows: walk.rows(),
            at: walk.at(),
            is_complete,
            fault,
        };
        while walk.rows() < VERIFY_ROWS_MAX {
            let (scope, after) = (Scope::Tenant(tenant.clone()), walk.at().seq);
            let read = move |tx: &mut Tx<'_>| audit::list(tx, &scope, after, verify::PAGE_ROWS);
            let rows = self.inner.db.read(read).await?;
            if let Err(fault) = walk.take(&rows) {
                return Ok(found(&walk, false, Some(fault)));
            }
            if rows.is_empty() {
                let scope = Scope::Tenant(tenant.clone());
                return Ok(found(&walk, true, walk.end(&scope).err()));
            }
        }
        Ok(found(&walk, false, None))
    }

    /// The next rows of an export.
    ///
    /// # Errors
    /// The database's.
    pub async fn export_audit(
        &self,
        tenant: &TenantId,
        span: Span,
        after: i64,
    ) -> Result<AuditPage, TenantsError> {
        let scope = Scope::Tenant(tenant.clone());
        Ok(self.inner.db.read(move |tx| export::page(tx, &scope, span, after)).await?)
    }
}
