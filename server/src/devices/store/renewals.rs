//! SQL of renewals: which certificate followed which.

use super::{column, device_id};
use crate::platform::db::{DbError, Scope, ToSql, Tx};
use muster_wire::DeviceId;

/// What a certificate was renewed to.
#[derive(Clone, Debug)]
pub struct RenewalRow {
    /// The renewed certificate.
    pub serial: String,
    pub device: DeviceId,
    /// The key that it was renewed for.
    pub spki_sha256: [u8; 32],
    /// The certificate that followed.
    pub next_serial: String,
    pub certificate_pem: String,
}

pub fn renewal_get(tx: &mut Tx<'_>, scope: &Scope, serial: &str) -> Result<Option<RenewalRow>, DbError> {
    let sql = "SELECT serial, device, spki_sha256, next_serial, certificate_pem FROM renewals
               WHERE tenant = $1 AND serial = $2";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &serial], |row| {
        Ok(RenewalRow {
            serial: row.get(0)?,
            device: device_id(&row.get::<String>(1)?)?,
            spki_sha256: row.get(2)?,
            next_serial: row.get(3)?,
            certificate_pem: row.get(4)?,
        })
    })
}

pub fn renewal_insert(tx: &mut Tx<'_>, scope: &Scope, row: &RenewalRow, now_us: i64) -> Result<(), DbError> {
    let sql = "INSERT INTO renewals (tenant, serial, device, spki_sha256, next_serial, certificate_pem, renewed_at_us)
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let inserted = tx.execute(
        scope,
        sql,
        &[
            &scope.tenant()?,
            &row.serial,
            &row.device.as_str(),
            &row.spki_sha256,
            &row.next_serial,
            &row.certificate_pem,
            &now_us,
        ],
    )?;
    if inserted == 1 { Ok(()) } else { Err(column("renewals")) }
}

/// Has every earlier renewal for the same key lead to the same certificate.
pub fn renewals_lead(tx: &mut Tx<'_>, scope: &Scope, row: &RenewalRow) -> Result<(), DbError> {
    let sql = "UPDATE renewals SET next_serial = $4, certificate_pem = $5
               WHERE tenant = $1 AND device = $2 AND spki_sha256 = $3";
    let args: [&dyn ToSql; 5] =
        [&scope.tenant()?, &row.device.as_str(), &row.spki_sha256, &row.next_serial, &row.certificate_pem];
    tx.execute(scope, sql, &args).map(drop)
}

/// Forgets a device's renewals.
pub fn renewals_delete(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<(), DbError> {
    let sql = "DELETE FROM renewals WHERE tenant = $1 AND device = $2";
    tx.execute(scope, sql, &[&scope.tenant()?, &device.as_str()]).map(drop)
}

/// Forgets a device's certificates that ended before a time and are of no use: renewed, or revoked. One that is not
/// known any more is refused as one that was revoked.
pub fn certificates_forget(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
    before_us: i64,
) -> Result<(), DbError> {
    let tenant = scope.tenant()?;
    let sql = "DELETE FROM certificates WHERE tenant = $1 AND device = $2 AND expires_at_us <= $3
               AND (revoked_at_us IS NOT NULL OR serial IN (SELECT serial FROM renewals WHERE tenant = $1 AND device = $2))";
    tx.execute(scope, sql, &[&tenant, &device.as_str(), &before_us])?;
    let sql = "DELETE FROM renewals WHERE tenant = $1 AND device = $2
               AND serial NOT IN (SELECT serial FROM certificates WHERE tenant = $1 AND device = $2)";
    tx.execute(scope, sql, &[&tenant, &device.as_str()]).map(drop)
}
