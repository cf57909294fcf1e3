//! SQL of what a process keeps of devices in memory.

use super::{DEVICE_COLUMNS, DeviceRow, device_id, device_row_at, tenant_id};
use crate::devices::directory::DeviceAuth;
use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::{DeviceId, TenantId};

/// Every device of every tenant, for the directory.
pub fn devices_all(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(TenantId, DeviceRow)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.query(scope, &format!("SELECT tenant, {DEVICE_COLUMNS} FROM devices"), &[], |row| {
        Ok((tenant_id(&row.get::<String>(0)?)?, device_row_at(row, 1)?))
    })
}

/// A device's name with its row, or with what is wrong with that.
pub type Readable = ((TenantId, DeviceId), Result<DeviceRow, DbError>);

/// As [`devices_all`]; a row that holds what it cannot be stands beside the others.
pub fn devices_readable(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<Readable>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.query(scope, &format!("SELECT tenant, {DEVICE_COLUMNS} FROM devices"), &[], |row| {
        let name = (tenant_id(&row.get::<String>(0)?)?, device_id(&row.get::<String>(1)?)?);
        Ok((name, device_row_at(row, 1)))
    })
}

/// What the directory holds of each device of every tenant, one after the other: nothing is collected.
pub fn auths_each(
    tx: &mut Tx<'_>,
    scope: &Scope,
    mut each: impl FnMut(TenantId, DeviceId, DeviceAuth),
) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.for_each(scope, "SELECT tenant, device, enabled, token_sha256 FROM devices", &[], |row| {
        let auth = DeviceAuth { enabled: row.get(2)?, token_sha256: row.get(3)? };
        each(tenant_id(&row.get::<String>(0)?)?, device_id(&row.get::<String>(1)?)?, auth);
        Ok(())
    })
}

/// What the directory holds of one device.
pub fn auth_get(tx: &mut Tx<'_>, scope: &Scope, device: &str) -> Result<Option<DeviceAuth>, DbError> {
    let sql = "SELECT enabled, token_sha256 FROM devices WHERE tenant = $1 AND device = $2";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &device], |row| {
        Ok(DeviceAuth { enabled: row.get(0)?, token_sha256: row.get(1)? })
    })
}
