//! SQL of what depends on an authority, over all tenants.

use super::tenant_id;
use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::TenantId;

/// What depends on an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityUse {
    /// Devices whose newest certificate it signed, in time or past it: that could not renew without it.
    pub devices: i64,
    /// Claims that can still be used.
    pub claims: i64,
}

/// Counts; `names` are what its certificates have in their column.
pub fn authority_use(
    tx: &mut Tx<'_>,
    scope: &Scope,
    names: &[String; 2],
    now_us: i64,
) -> Result<AuthorityUse, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT count(*) FROM (SELECT DISTINCT c.tenant, c.device FROM certificates c
               WHERE (c.authority = $1 OR c.authority = $2) AND c.revoked_at_us IS NULL
               AND NOT EXISTS (SELECT 1 FROM renewals r WHERE r.tenant = c.tenant AND r.serial = c.serial)) AS used";
    let devices = tx.query_opt(scope, sql, &[&names[0], &names[1]], |row| row.get(0))?.unwrap_or(0);
    let sql = "SELECT count(*) FROM claims WHERE uses < uses_max AND expires_at_us > $1";
    let claims = tx.query_opt(scope, sql, &[&now_us], |row| row.get(0))?.unwrap_or(0);
    Ok(AuthorityUse { devices, claims })
}

/// Revokes what it signed; gives tenant and serial.
pub fn authority_revoke(
    tx: &mut Tx<'_>,
    scope: &Scope,
    names: &[String; 2],
    now_us: i64,
) -> Result<Vec<(TenantId, String)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "UPDATE certificates SET revoked_at_us = $3
               WHERE (authority = $1 OR authority = $2) AND revoked_at_us IS NULL RETURNING tenant, serial";
    tx.query(scope, sql, &[&names[0], &names[1], &now_us], |row| {
        Ok((tenant_id(&row.get::<String>(0)?)?, row.get(1)?))
    })
}
