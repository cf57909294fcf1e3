//! SQL of the approval queue.

use super::{column, device_id};
use crate::devices::model::EnrollmentState;
use crate::platform::db::{DbError, Row, Scope, ToSql, Tx};
use muster_wire::DeviceId;

/// A device that waits for a decision, or for its next question after one.
#[derive(Clone, Debug)]
pub struct EnrollmentRow {
    pub enrollment_id: String,
    pub claim_id: String,
    pub spki_sha256: [u8; 32],
    pub device: DeviceId,
    /// The address that it asked from.
    pub peer: String,
    pub state: EnrollmentState,
    pub requested_at_us: i64,
    pub expires_at_us: i64,
    pub decided_by: Option<String>,
    pub decided_at_us: Option<i64>,
    pub note: Option<String>,
}

const COLUMNS: &str =
    "enrollment_id, claim_id, spki_sha256, device, peer, state, requested_at_us, expires_at_us,
    decided_by, decided_at_us, note";

fn enrollment_row(row: &Row<'_>) -> Result<EnrollmentRow, DbError> {
    Ok(EnrollmentRow {
        enrollment_id: row.get(0)?,
        claim_id: row.get(1)?,
        spki_sha256: row.get(2)?,
        device: device_id(&row.get::<String>(3)?)?,
        peer: row.get(4)?,
        state: EnrollmentState::parse(&row.get::<String>(5)?).ok_or_else(|| column("state"))?,
        requested_at_us: row.get(6)?,
        expires_at_us: row.get(7)?,
        decided_by: row.get(8)?,
        decided_at_us: row.get(9)?,
        note: row.get(10)?,
    })
}

pub fn enrollment_insert(tx: &mut Tx<'_>, scope: &Scope, row: &EnrollmentRow) -> Result<(), DbError> {
    let sql = "INSERT INTO enrollments (tenant, enrollment_id, claim_id, spki_sha256, device, peer, state,
                   requested_at_us, expires_at_us)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let args: [&dyn ToSql; 9] = [
        &scope.tenant()?,
        &row.enrollment_id,
        &row.claim_id,
        &row.spki_sha256,
        &row.device.as_str(),
        &row.peer,
        &row.state.as_str(),
        &row.requested_at_us,
        &row.expires_at_us,
    ];
    tx.execute(scope, sql, &args).map(drop)
}

/// Finds the request of a key.
pub fn enrollment_of_key(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim_id: &str,
    spki_sha256: &[u8; 32],
) -> Result<Option<EnrollmentRow>, DbError> {
    let sql =
        format!("SELECT {COLUMNS} FROM enrollments WHERE tenant = $1 AND claim_id = $2 AND spki_sha256 = $3");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &claim_id, spki_sha256], enrollment_row)
}

pub fn enrollment_get(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<Option<EnrollmentRow>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM enrollments WHERE tenant = $1 AND enrollment_id = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &id], enrollment_row)
}

pub fn enrollment_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    state: Option<EnrollmentState>,
    now_us: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<EnrollmentRow>, DbError> {
    let state = state.map(EnrollmentState::as_str).unwrap_or_default();
    let sql = format!(
        "SELECT {COLUMNS} FROM enrollments WHERE tenant = $1 AND expires_at_us > $2 AND ($3 = '' OR state = $3)
         AND enrollment_id > $4 ORDER BY enrollment_id LIMIT $5"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &now_us, &state, &after, &limit], enrollment_row)
}

/// How many wait in the tenant, and how many of a claim wait or were approved and did not come yet.
pub fn enrollment_counts(tx: &mut Tx<'_>, scope: &Scope, claim_id: &str) -> Result<(i64, i64), DbError> {
    let tenant = scope.tenant()?;
    let sql = "SELECT count(*) FROM enrollments WHERE tenant = $1 AND state = 'pending'";
    let waiting = tx.query_opt(scope, sql, &[&tenant], |row| row.get(0))?.unwrap_or(0);
    let sql = "SELECT count(*) FROM enrollments WHERE tenant = $1 AND claim_id = $2 AND state <> 'rejected'";
    let of_claim = tx.query_opt(scope, sql, &[&tenant, &claim_id], |row| row.get(0))?.unwrap_or(0);
    Ok((waiting, of_claim))
}

/// Whether another request of the tenant, which may still be granted, is for this id.
pub fn enrollment_names(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<bool, DbError> {
    let sql = "SELECT enrollment_id FROM enrollments WHERE tenant = $1 AND device = $2 AND state <> 'rejected' LIMIT 1";
    let found =
        tx.query_opt(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get::<String>(0))?;
    Ok(found.is_some())
}

/// Notes a decision on one that waits.
pub fn enrollment_decide(tx: &mut Tx<'_>, scope: &Scope, row: &EnrollmentRow) -> Result<bool, DbError> {
    let sql = "UPDATE enrollments SET state = $3, expires_at_us = $4, decided_by = $5, decided_at_us = $6, note = $7
               WHERE tenant = $1 AND enrollment_id = $2 AND state = 'pending'";
    let args: [&dyn ToSql; 7] = [
        &scope.tenant()?,
        &row.enrollment_id,
        &row.state.as_str(),
        &row.expires_at_us,
        &row.decided_by,
        &row.decided_at_us,
        &row.note,
    ];
    Ok(tx.execute(scope, sql, &args)? == 1)
}

pub fn enrollment_delete(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<(), DbError> {
    let sql = "DELETE FROM enrollments WHERE tenant = $1 AND enrollment_id = $2";
    tx.execute(scope, sql, &[&scope.tenant()?, &id]).map(drop)
}

/// Forgets what is past its time.
pub fn enrollments_forget(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<(), DbError> {
    let sql = "DELETE FROM enrollments WHERE tenant = $1 AND expires_at_us <= $2";
    tx.execute(scope, sql, &[&scope.tenant()?, &now_us]).map(drop)
}
