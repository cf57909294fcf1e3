//! SQL of devices, claims and certificates. Only the service calls it.

use super::model::{ClaimState, Labels};
use super::pki::DeviceCertificate;
use crate::platform::db::{DbError, Row, Scope, ToSql, Tx};
use crate::platform::http_kit::ETag;
use crate::tenants::reach::{self, Args, Reach};
use muster_wire::{DeviceId, TenantId};

mod authorities;
mod directory;
mod enrollments;
mod forgotten;
mod listing;
pub mod places;
mod profiles;
mod renewals;
mod revoked;

pub use authorities::{AuthorityUse, authority_revoke, authority_use};
pub use directory::{auth_get, auths_each, devices_all, devices_readable};
pub use enrollments::{
    EnrollmentRow, enrollment_counts, enrollment_decide, enrollment_delete, enrollment_get,
    enrollment_insert, enrollment_list, enrollment_names, enrollment_of_key, enrollments_forget,
};
pub use forgotten::{
    PRUNED_MAX, certificates_prune, claims_delete_all_of, claims_delete_open_of, deleted_prune, deleted_put,
    was_deleted,
};
pub use listing::{DeviceFilter, DeviceSort, device_list};
pub use profiles::{
    ProfileRow, profile_count, profile_delete, profile_get, profile_is_used, profile_list, profile_put,
};
pub use renewals::{
    RenewalRow, certificates_forget, renewal_get, renewal_insert, renewals_delete, renewals_lead,
};
pub use revoked::{serials_revoked, serials_revoked_of};

/// A device's row.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    pub device: DeviceId,
    pub name: String,
    pub enabled: bool,
    pub labels: Labels,
    pub profile: Option<String>,
    pub token_sha256: Option<[u8; 32]>,
    pub created_at_us: i64,
    pub enrolled_at_us: Option<i64>,
}

impl DeviceRow {
    /// Its state, for conditional requests.
    #[must_use]
    pub fn etag(&self) -> ETag {
        ETag::of(self)
    }
}

/// A claim's row, without its hash.
#[derive(Clone, Debug)]
pub struct ClaimRow {
    pub claim_id: String,
    pub state: ClaimState,
    pub labels: Labels,
    /// Of the devices that it enrols.
    pub profile: Option<String>,
    /// Which ids a device may ask for.
    pub id_pattern: Option<String>,
    /// A person decides on each device.
    pub approval: bool,
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
    /// SHA-256 of the key that signed it, as hex; empty: the server's first authority.
    pub authority: String,
}

impl CertificateRow {
    /// The row of a new certificate.
    pub fn of(signed: &DeviceCertificate, device: DeviceId, spki_sha256: [u8; 32]) -> Self {
        Self {
            serial: signed.serial.clone(),
            device,
            spki_sha256,
            issued_at_us: signed.issued_at_us,
            expires_at_us: signed.expires_at_us,
            revoked_at_us: None,
            authority: signed.authority.clone(),
        }
    }
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

const DEVICE_COLUMNS: &str =
    "device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us, profile";

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
        profile: row.get(at + 7)?,
    })
}

pub fn device_insert(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO devices
           (tenant, device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us, profile)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &scope.tenant()?,
            &row.device.as_str(),
            &row.name,
            &row.enabled,
            &labels_text(&row.labels)?,
            &row.token_sha256,
            &row.created_at_us,
            &row.enrolled_at_us,
            &row.profile,
        ],
    )?;
    places::refresh(tx, scope, row)
}

/// Writes every column but the keys and `created_at_us`.
pub fn device_update(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow) -> Result<bool, DbError> {
    let changed = tx.execute(
        scope,
        "UPDATE devices SET name = $3, enabled = $4, labels = $5, token_sha256 = $6, enrolled_at_us = $7,
             profile = $8
         WHERE tenant = $1 AND device = $2",
        &[
            &scope.tenant()?,
            &row.device.as_str(),
            &row.name,
            &row.enabled,
            &labels_text(&row.labels)?,
            &row.token_sha256,
            &row.enrolled_at_us,
            &row.profile,
        ],
    )?;
    places::refresh(tx, scope, row)?;
    Ok(changed == 1)
}

pub fn device_get(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<Option<DeviceRow>, DbError> {
    let sql = format!("SELECT {DEVICE_COLUMNS} FROM devices WHERE tenant = $1 AND device = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &device.as_str()], device_row)
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

/// Ids alone, in their order.
pub fn device_ids(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<DeviceId>, DbError> {
    let sql = "SELECT device FROM devices WHERE tenant = $1 AND device > $2 ORDER BY device LIMIT $3";
    tx.query(scope, sql, &[&scope.tenant()?, &after, &limit], |row| device_id(&row.get::<String>(0)?))
}

/// Whether a device, or its tenant, is being erased.
pub fn is_in_erasure(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<bool, DbError> {
    let sql = "SELECT count(*) FROM erasures
               WHERE tenant = $1 AND (device = $2 OR device = '') AND done_at_us IS NULL";
    Ok(tx.query_one(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get::<i64>(0))? > 0)
}

pub fn certificate_insert(tx: &mut Tx<'_>, scope: &Scope, row: &CertificateRow) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO certificates (serial, tenant, device, spki_sha256, issued_at_us, expires_at_us, authority)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            &row.serial,
            &scope.tenant()?,
            &row.device.as_str(),
            &row.spki_sha256,
            &row.issued_at_us,
            &row.expires_at_us,
            &row.authority,
        ],
    )
    .map(drop)
}

const CERTIFICATE_COLUMNS: &str =
    "serial, device, spki_sha256, issued_at_us, expires_at_us, revoked_at_us, authority";

fn certificate_row(row: &Row<'_>) -> Result<CertificateRow, DbError> {
    Ok(CertificateRow {
        serial: row.get(0)?,
        device: device_id(&row.get::<String>(1)?)?,
        spki_sha256: row.get(2)?,
        issued_at_us: row.get(3)?,
        expires_at_us: row.get(4)?,
        revoked_at_us: row.get(5)?,
        authority: row.get(6)?,
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

/// Revokes every certificate of a device, those past their time too, since they could be renewed; gives the serials of
/// the others.
pub fn certificates_revoke(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
    now_us: i64,
) -> Result<Vec<String>, DbError> {
    let sql = "UPDATE certificates SET revoked_at_us = $3
               WHERE tenant = $1 AND device = $2 AND revoked_at_us IS NULL RETURNING serial, expires_at_us";
    let all = tx.query(scope, sql, &[&scope.tenant()?, &device.as_str(), &now_us], |row| {
        Ok::<_, DbError>((row.get::<String>(0)?, row.get::<i64>(1)?))
    })?;
    Ok(all
        .into_iter()
        .filter(|(_, expires_at_us)| *expires_at_us > now_us)
        .map(|(serial, _)| serial)
        .collect())
}

const CLAIM_COLUMNS: &str =
    "claim_id, device, uses, uses_max, expires_at_us, labels, created_by, created_at_us, profile,
    id_pattern, approval";

fn claim_row_at(row: &Row<'_>, at: usize) -> Result<ClaimRow, DbError> {
    let device = row.get::<Option<String>>(at + 1)?;
    let state = ClaimState {
        device: device.as_deref().map(device_id).transpose()?,
        uses: row.get(at + 2)?,
        uses_max: row.get(at + 3)?,
        expires_at_us: row.get(at + 4)?,
    };
    let labels = labels(&row.get::<String>(at + 5)?)?;
    Ok(ClaimRow {
        claim_id: row.get(at)?,
        state,
        labels,
        created_by: row.get(at + 6)?,
        created_at_us: row.get(at + 7)?,
        profile: row.get(at + 8)?,
        id_pattern: row.get(at + 9)?,
        approval: row.get(at + 10)?,
    })
}

pub fn claim_insert(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &ClaimRow,
    sha256: &[u8; 32],
) -> Result<(), DbError> {
    tx.execute(scope, "INSERT INTO claims
           (tenant, claim_id, token_sha256, device, labels, uses, uses_max, created_by, created_at_us, expires_at_us,
            profile, id_pattern, approval)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        &[
            &scope.tenant()?, &row.claim_id, sha256, &row.state.device.as_ref().map(DeviceId::as_str),
            &labels_text(&row.labels)?, &row.state.uses, &row.state.uses_max, &row.created_by, &row.created_at_us,
            &row.state.expires_at_us, &row.profile, &row.id_pattern, &row.approval,
        ],
    )
    .map(drop)
}

pub fn claim_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    (after, limit): (&str, i64),
) -> Result<Vec<ClaimRow>, DbError> {
    let mut args: Args =
        vec![Box::new(scope.tenant()?.to_owned()), Box::new(after.to_owned()), Box::new(limit)];
    let condition = reach::within(reach, "claims.device", &mut args);
    let sql = format!(
        "SELECT {CLAIM_COLUMNS} FROM claims WHERE tenant = $1 AND claim_id > $2{condition}
         ORDER BY claim_id LIMIT $3"
    );
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, |row| claim_row_at(row, 0))
}

/// Whether a claim is there, for a device within a reach.
pub fn claim_is_within(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    claim_id: &str,
) -> Result<bool, DbError> {
    let mut args: Args = vec![Box::new(scope.tenant()?.to_owned()), Box::new(claim_id.to_owned())];
    let condition = reach::within(reach, "claims.device", &mut args);
    let sql = format!("SELECT 1 FROM claims WHERE tenant = $1 AND claim_id = $2{condition}");
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    Ok(tx.query_opt(scope, &sql, &args, |row| row.get::<i64>(0))?.is_some())
}

/// Claims that can still be used.
pub fn claim_count_open(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<i64, DbError> {
    let sql = "SELECT count(*) FROM claims WHERE tenant = $1 AND uses < uses_max AND expires_at_us > $2";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?, &now_us], |row| row.get(0))?.unwrap_or(0))
}

/// Forgets claims that ended before a time, but those with which a device still waits; their uses go with them.
pub fn claims_forget(tx: &mut Tx<'_>, scope: &Scope, before_us: i64, now_us: i64) -> Result<usize, DbError> {
    let sql = "DELETE FROM claims WHERE tenant = $1 AND expires_at_us <= $2 AND NOT EXISTS
                 (SELECT 1 FROM enrollments e
                  WHERE e.tenant = claims.tenant AND e.claim_id = claims.claim_id AND e.expires_at_us > $3)";
    tx.execute(scope, sql, &[&scope.tenant()?, &before_us, &now_us])
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
