//! Serials of certificates that were taken away.

use crate::platform::db::{DbError, Scope, Tx};

/// Revoked serials that have not expired yet, of every tenant, for the directory.
pub fn serials_revoked(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<Vec<String>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT serial FROM certificates WHERE revoked_at_us IS NOT NULL AND expires_at_us > $1";
    tx.query(scope, sql, &[&now_us], |row| row.get(0))
}

/// Revoked serials of one device that have not expired yet.
pub fn serials_revoked_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &str,
    now_us: i64,
) -> Result<Vec<String>, DbError> {
    let sql = "SELECT serial FROM certificates
               WHERE tenant = $1 AND device = $2 AND revoked_at_us IS NOT NULL AND expires_at_us > $3";
    tx.query(scope, sql, &[&scope.tenant()?, &device, &now_us], |row| row.get(0))
}
