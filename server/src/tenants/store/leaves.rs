//! SQL of one-time leaves: to set a new password, to join a tenant. Their secrets are stored as SHA-256.

use super::column;
use crate::platform::db::{DbError, Row, Scope, Tx};
use crate::tenants::reach::Reach;
use muster_wire::TenantId;

/// An invitation's row, without its hash.
#[derive(Clone, Debug)]
pub struct InvitationRow {
    pub invitation_id: String,
    pub email: String,
    pub role: String,
    pub reach: Reach,
    pub created_by: String,
    pub created_at_us: i64,
    pub expires_at_us: i64,
}

/// Gives an account a leave to set a new password, in place of the one before.
pub fn reset_put(
    tx: &mut Tx<'_>,
    scope: &Scope,
    user_id: &str,
    sha256: &[u8; 32],
    created_by: &str,
    (now_us, expires_at_us): (i64, i64),
) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.execute(
        scope,
        "INSERT INTO password_resets (user_id, token_sha256, created_by, created_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (user_id) DO UPDATE SET token_sha256 = excluded.token_sha256, created_by = excluded.created_by,
             created_at_us = excluded.created_at_us, expires_at_us = excluded.expires_at_us",
        &[&user_id, sha256, &created_by, &now_us, &expires_at_us],
    )
    .map(drop)
}

/// Whose leave it is, unless it is past its life.
pub fn reset_user(
    tx: &mut Tx<'_>,
    scope: &Scope,
    sha256: &[u8; 32],
    now_us: i64,
) -> Result<Option<String>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT user_id FROM password_resets WHERE token_sha256 = $1 AND expires_at_us > $2";
    tx.query_opt(scope, sql, &[sha256, &now_us], |row| row.get(0))
}

/// Forgets an account's leave, where there is one.
pub fn reset_delete(tx: &mut Tx<'_>, scope: &Scope, user_id: &str) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.execute(scope, "DELETE FROM password_resets WHERE user_id = $1", &[&user_id]).map(drop)
}

const INVITATION_COLUMNS: &str =
    "invitation_id, email, role, created_by, created_at_us, expires_at_us, reach";

fn invitation_row(row: &Row<'_>, at: usize) -> Result<InvitationRow, DbError> {
    Ok(InvitationRow {
        invitation_id: row.get(at)?,
        email: row.get(at + 1)?,
        role: row.get(at + 2)?,
        reach: Reach::of_text(&row.get::<String>(at + 6)?)?,
        created_by: row.get(at + 3)?,
        created_at_us: row.get(at + 4)?,
        expires_at_us: row.get(at + 5)?,
    })
}

pub fn invitation_insert(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &InvitationRow,
    sha256: &[u8; 32],
) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO invitations
           (tenant, invitation_id, email, role, reach, token_sha256, created_by, created_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &scope.tenant()?,
            &row.invitation_id,
            &row.email,
            &row.role,
            &row.reach.text(),
            sha256,
            &row.created_by,
            &row.created_at_us,
            &row.expires_at_us,
        ],
    )
    .map(drop)
}

/// Deletes the tenant's invitations past their life, so that they do not count as open.
pub fn invitations_expire(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<usize, DbError> {
    let sql = "DELETE FROM invitations WHERE tenant = $1 AND expires_at_us <= $2";
    tx.execute(scope, sql, &[&scope.tenant()?, &now_us])
}

pub fn invitation_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    super::count(tx, scope, "SELECT count(*) FROM invitations WHERE tenant = $1")
}

/// Open invitations, by id.
pub fn invitation_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    (after, now_us): (&str, i64),
    limit: i64,
) -> Result<Vec<InvitationRow>, DbError> {
    let sql = format!(
        "SELECT {INVITATION_COLUMNS} FROM invitations
         WHERE tenant = $1 AND invitation_id > $2 AND expires_at_us > $3 ORDER BY invitation_id LIMIT $4"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &now_us, &limit], |row| invitation_row(row, 0))
}

/// Deletes an invitation; gives its address.
pub fn invitation_delete(
    tx: &mut Tx<'_>,
    scope: &Scope,
    invitation_id: &str,
) -> Result<Option<String>, DbError> {
    let sql = "DELETE FROM invitations WHERE tenant = $1 AND invitation_id = $2 RETURNING email";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &invitation_id], |row| row.get(0))
}

/// Finds an invitation by its secret: the tenant is in the invitation, not in the request.
pub fn invitation_by_token(
    tx: &mut Tx<'_>,
    scope: &Scope,
    sha256: &[u8; 32],
    now_us: i64,
) -> Result<Option<(TenantId, InvitationRow)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!(
        "SELECT tenant, {INVITATION_COLUMNS} FROM invitations WHERE token_sha256 = $1 AND expires_at_us > $2"
    );
    tx.query_opt(scope, &sql, &[sha256, &now_us], |row| {
        let tenant = TenantId::parse(&row.get::<String>(0)?).map_err(|_| column("tenant"))?;
        Ok((tenant, invitation_row(row, 1)?))
    })
}
