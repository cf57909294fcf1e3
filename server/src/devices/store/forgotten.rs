//! SQL of what a device leaves behind when it is deleted or moved, and of how that is forgotten.

use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::DeviceId;

/// Rows of one kind that one call forgets.
pub const PRUNED_MAX: i64 = 1_000;

/// Notes that a device was deleted: what is stored of it stays under its id.
pub fn deleted_put(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId, now_us: i64) -> Result<(), DbError> {
    let sql = "INSERT INTO deleted_devices (tenant, device, deleted_at_us) VALUES ($1, $2, $3)
               ON CONFLICT (tenant, device) DO UPDATE SET deleted_at_us = $3";
    tx.execute(scope, sql, &[&scope.tenant()?, &device.as_str(), &now_us]).map(drop)
}

/// Whether something may be stored of a deleted device of this id.
pub fn was_deleted(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<bool, DbError> {
    let sql = "SELECT deleted_at_us FROM deleted_devices WHERE tenant = $1 AND device = $2";
    let found = tx.query_opt(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get::<i64>(0))?;
    Ok(found.is_some())
}

/// Forgets at most [`PRUNED_MAX`] devices that were deleted before a time.
pub fn deleted_prune(tx: &mut Tx<'_>, scope: &Scope, before_us: i64) -> Result<usize, DbError> {
    let sql = "DELETE FROM deleted_devices WHERE tenant = $1 AND device IN
                 (SELECT device FROM deleted_devices WHERE tenant = $1 AND deleted_at_us <= $2 LIMIT $3)";
    tx.execute(scope, sql, &[&scope.tenant()?, &before_us, &PRUNED_MAX])
}

/// Forgets at most [`PRUNED_MAX`] certificates that ended before a time and whose device is there no more. One that is not
/// known any more is refused as one that was revoked.
pub fn certificates_prune(tx: &mut Tx<'_>, scope: &Scope, before_us: i64) -> Result<usize, DbError> {
    let sql = "DELETE FROM certificates WHERE tenant = $1 AND serial IN
                 (SELECT c.serial FROM certificates c WHERE c.tenant = $1 AND c.expires_at_us <= $2
                  AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.tenant = $1 AND d.device = c.device) LIMIT $3)";
    tx.execute(scope, sql, &[&scope.tenant()?, &before_us, &PRUNED_MAX])
}

/// Deletes every claim that names a device; gives their ids.
pub fn claims_delete_all_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
) -> Result<Vec<String>, DbError> {
    let sql = "DELETE FROM claims WHERE tenant = $1 AND device = $2 RETURNING claim_id";
    tx.query(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get(0))
}

/// Deletes the claims that name a device and would enrol another key; gives their ids.
pub fn claims_delete_open_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
) -> Result<Vec<String>, DbError> {
    let sql = "DELETE FROM claims WHERE tenant = $1 AND device = $2 AND uses < uses_max RETURNING claim_id";
    tx.query(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get(0))
}
