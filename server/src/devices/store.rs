//! SQL of devices, claims and certificates. Only the service calls it.

use super::directory::DeviceAuth;
use super::model::{ClaimState, Labels};
use crate::platform::db::{DbError, Row, Scope, Tx};
use muster_wire::{DeviceId, TenantId};

/// A device's row.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    pub device: DeviceId,
    pub name: String,
    pub enabled: bool,
    pub labels: Labels,
    pub token_sha256: Option<[u8; 32]>,
    pub created_at_us: i64,
    pub enrolled_at_us: Option<i64>,
}

/// A claim's row, without its hash.
#[derive(Clone, Debug)]
pub struct ClaimRow {
    pub claim_id: String,
    pub state: ClaimState,
    pub labels: Labels,
    pub created_by: String,
    pub created_at_us: i64,
}

/// A certificate's row.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    pub serial: String,
    pub device: DeviceId,
    pub spki_sha256: [u8; 32],
    pub issued_at_us: i64,
    pub expires_at_us: i64,
    pub revoked_at_us: Option<i64>,
}

/// What a claim gave to a key.
#[derive(Clone, Debug)]
pub struct ClaimUseRow {
    pub device: DeviceId,
    pub serial: String,
    pub certificate_pem: String,
}

fn column(name: &str) -> DbError {
    DbError::Column { column: name.into() }
}

fn device_id(text: &str) -> Result<DeviceId, DbError> {
    DeviceId::parse(text).map_err(|_| column("device"))
}

fn tenant_id(text: &str) -> Result<TenantId, DbError> {
    TenantId::parse(text).map_err(|_| column("tenant"))
}

fn labels(text: &str) -> Result<Labels, DbError> {
    serde_json::from_str(text).map_err(|_| column("labels"))
}

fn labels_text(labels: &Labels) -> Result<String, DbError> {
    serde_json::to_string(labels).map_err(|_| column("labels"))
}

const DEVICE_COLUMNS: &str = "device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us";

fn device_row(row: &Row<'_>) -> Result<DeviceRow, DbError> {
    device_row_at(row, 0)
}

fn device_row_at(row: &Row<'_>, at: usize) -> Result<DeviceRow, DbError> {
    Ok(DeviceRow {
        device: device_id(&row.get::<String>(at)?)?,
        name: row.get(at + 1)?,
        enabled: row.get(at + 2)?,
        labels: labels(&row.get::<String>(at + 3)?)?,
        token_sha256: row.get(at + 4)?,
        created_at_us: row.get(at + 5)?,
        enrolled_at_us: row.get(at + 6)?,
    })
}

pub fn device_insert(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow) -> Result<(), DbError> {
    tx.execute(scope, "INSERT INTO devices (tenant, device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            &scope.tenant()?, &row.device.as_str(), &row.name, &row.enabled, &labels_text(&row.labels)?,
            &row.token_sha256, &row.created_at_us, &row.enrolled_at_us,
        ],
    )
    .map(drop)
}

/// Writes every column but the keys and `created_at_us`.
pub fn device_update(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow) -> Result<bool, DbError> {
    let changed = tx.execute(
        scope,
        "UPDATE devices SET name = $3, enabled = $4, labels = $5, token_sha256 = $6, enrolled_at_us = $7
         WHERE tenant = $1 AND device = $2",
        &[
            &scope.tenant()?,
            &row.device.as_str(),
            &row.name,
            &row.enabled,
            &labels_text(&row.labels)?,
            &row.token_sha256,
            &row.enrolled_at_us,
        ],
    )?;
    Ok(changed == 1)
}

pub fn device_get(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<Option<DeviceRow>, DbError> {
    let sql = format!("SELECT {DEVICE_COLUMNS} FROM devices WHERE tenant = $1 AND device = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &device.as_str()], device_row)
}

pub fn device_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    after: &str,
    limit: i64,
) -> Result<Vec<DeviceRow>, DbError> {
    let sql = format!(
        "SELECT {DEVICE_COLUMNS} FROM devices WHERE tenant = $1 AND device > $2 ORDER BY device LIMIT $3"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], device_row)
}

/// The registry keeps the count beside the rows: this takes as long for one device as for many.
pub fn device_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    let sql = "SELECT devices FROM device_counts WHERE tenant = $1";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?], |row| row.get(0))?.unwrap_or(0))
}

pub fn device_delete(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<bool, DbError> {
    let sql = "DELETE FROM devices WHERE tenant = $1 AND device = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &device.as_str()])? == 1)
}

/// Every device of every tenant, for the directory.
pub fn devices_all(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(TenantId, DeviceRow)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.query(scope, &format!("SELECT tenant, {DEVICE_COLUMNS} FROM devices"), &[], |row| {
        Ok((tenant_id(&row.get::<String>(0)?)?, device_row_at(row, 1)?))
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

pub fn certificate_insert(tx: &mut Tx<'_>, scope: &Scope, row: &CertificateRow) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO certificates (serial, tenant, device, spki_sha256, issued_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &row.serial,
            &scope.tenant()?,
            &row.device.as_str(),
            &row.spki_sha256,
            &row.issued_at_us,
            &row.expires_at_us,
        ],
    )
    .map(drop)
}

const CERTIFICATE_COLUMNS: &str = "serial, device, spki_sha256, issued_at_us, expires_at_us, revoked_at_us";

fn certificate_row(row: &Row<'_>) -> Result<CertificateRow, DbError> {
    Ok(CertificateRow {
        serial: row.get(0)?,
        device: device_id(&row.get::<String>(1)?)?,
        spki_sha256: row.get(2)?,
        issued_at_us: row.get(3)?,
        expires_at_us: row.get(4)?,
        revoked_at_us: row.get(5)?,
    })
}

pub fn certificate_get(
    tx: &mut Tx<'_>,
    scope: &Scope,
    serial: &str,
) -> Result<Option<CertificateRow>, DbError> {
    let sql = format!("SELECT {CERTIFICATE_COLUMNS} FROM certificates WHERE tenant = $1 AND serial = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &serial], certificate_row)
}

pub fn certificate_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
    after: &str,
    limit: i64,
) -> Result<Vec<CertificateRow>, DbError> {
    let sql = format!(
        "SELECT {CERTIFICATE_COLUMNS} FROM certificates
         WHERE tenant = $1 AND device = $2 AND serial > $3 ORDER BY serial LIMIT $4"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &device.as_str(), &after, &limit], certificate_row)
}

/// Revokes one certificate of a device; says whether it was valid so far.
pub fn certificate_revoke(
    tx: &mut Tx<'_>,
    scope: &Scope,
    serial: &str,
    now_us: i64,
) -> Result<bool, DbError> {
    let sql = "UPDATE certificates SET revoked_at_us = $3
               WHERE tenant = $1 AND serial = $2 AND revoked_at_us IS NULL";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &serial, &now_us])? == 1)
}

/// Revokes what is valid of a device; gives the serials.
pub fn certificates_revoke(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
    now_us: i64,
) -> Result<Vec<String>, DbError> {
    let sql = "UPDATE certificates SET revoked_at_us = $3
               WHERE tenant = $1 AND device = $2 AND revoked_at_us IS NULL AND expires_at_us > $3 RETURNING serial";
    tx.query(scope, sql, &[&scope.tenant()?, &device.as_str(), &now_us], |row| row.get(0))
}

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

const CLAIM_COLUMNS: &str =
    "claim_id, device, uses, uses_max, expires_at_us, labels, created_by, created_at_us";

fn claim_row_at(row: &Row<'_>, at: usize) -> Result<ClaimRow, DbError> {
    let device = row.get::<Option<String>>(at + 1)?;
    let state = ClaimState {
        device: device.as_deref().map(device_id).transpose()?,
        uses: row.get(at + 2)?,
        uses_max: row.get(at + 3)?,
        expires_at_us: row.get(at + 4)?,
    };
    let labels = labels(&row.get::<String>(at + 5)?)?;
    let (created_by, created_at_us) = (row.get(at + 6)?, row.get(at + 7)?);
    Ok(ClaimRow { claim_id: row.get(at)?, state, labels, created_by, created_at_us })
}

pub fn claim_insert(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &ClaimRow,
    sha256: &[u8; 32],
) -> Result<(), DbError> {
    tx.execute(scope, "INSERT INTO claims
           (tenant, claim_id, token_sha256, device, labels, uses, uses_max, created_by, created_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &scope.tenant()?, &row.claim_id, sha256, &row.state.device.as_ref().map(DeviceId::as_str),
            &labels_text(&row.labels)?, &row.state.uses, &row.state.uses_max, &row.created_by, &row.created_at_us,
            &row.state.expires_at_us,
        ],
    )
    .map(drop)
}

pub fn claim_list(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<ClaimRow>, DbError> {
    let sql = format!(
        "SELECT {CLAIM_COLUMNS} FROM claims WHERE tenant = $1 AND claim_id > $2 ORDER BY claim_id LIMIT $3"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], |row| claim_row_at(row, 0))
}

/// Claims that can still be used.
pub fn claim_count_open(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<i64, DbError> {
    let sql = "SELECT count(*) FROM claims WHERE tenant = $1 AND uses < uses_max AND expires_at_us > $2";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?, &now_us], |row| row.get(0))?.unwrap_or(0))
}

/// Forgets claims that ended before a time; their uses go with them.
pub fn claims_forget(tx: &mut Tx<'_>, scope: &Scope, before_us: i64) -> Result<usize, DbError> {
    tx.execute(
        scope,
        "DELETE FROM claims WHERE tenant = $1 AND expires_at_us <= $2",
        &[&scope.tenant()?, &before_us],
    )
}

pub fn claim_delete(tx: &mut Tx<'_>, scope: &Scope, claim_id: &str) -> Result<bool, DbError> {
    Ok(tx.execute(
        scope,
        "DELETE FROM claims WHERE tenant = $1 AND claim_id = $2",
        &[&scope.tenant()?, &claim_id],
    )? == 1)
}

/// Finds a claim by its secret: the tenant is in the claim, not in the request.
pub fn claim_by_token(
    tx: &mut Tx<'_>,
    scope: &Scope,
    sha256: &[u8; 32],
) -> Result<Option<(TenantId, ClaimRow)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!("SELECT tenant, {CLAIM_COLUMNS} FROM claims WHERE token_sha256 = $1");
    tx.query_opt(scope, &sql, &[sha256], |row| {
        Ok((tenant_id(&row.get::<String>(0)?)?, claim_row_at(row, 1)?))
    })
}

pub fn claim_use_get(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim_id: &str,
    spki_sha256: &[u8; 32],
) -> Result<Option<ClaimUseRow>, DbError> {
    let sql = "SELECT device, serial, certificate_pem FROM claim_uses
               WHERE tenant = $1 AND claim_id = $2 AND spki_sha256 = $3";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &claim_id, spki_sha256], |row| {
        Ok(ClaimUseRow {
            device: device_id(&row.get::<String>(0)?)?,
            serial: row.get(1)?,
            certificate_pem: row.get(2)?,
        })
    })
}

/// Counts a use and binds it to its key.
pub fn claim_use_insert(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim_id: &str,
    spki_sha256: &[u8; 32],
    used: &ClaimUseRow,
    now_us: i64,
) -> Result<bool, DbError> {
    let tenant = scope.tenant()?;
    tx.execute(
        scope,
        "INSERT INTO claim_uses (tenant, claim_id, spki_sha256, device, serial, certificate_pem, used_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            &tenant,
            &claim_id,
            spki_sha256,
            &used.device.as_str(),
            &used.serial,
            &used.certificate_pem,
            &now_us,
        ],
    )?;
    let sql = "UPDATE claims SET uses = uses + 1 WHERE tenant = $1 AND claim_id = $2 AND uses < uses_max";
    Ok(tx.execute(scope, sql, &[&tenant, &claim_id])? == 1)
}

#[cfg(test)]
mod tests;
