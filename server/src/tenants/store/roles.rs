//! SQL of a tenant's own roles.

use super::{scopes, scopes_text};
use crate::platform::db::{DbError, Row, Scope, Tx};
use crate::tenants::model::Permission;

/// A custom role's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRow {
    pub role_id: String,
    pub name: String,
    pub permissions: Vec<Permission>,
    pub created_at_us: i64,
}

const COLUMNS: &str = "role_id, name, permissions, created_at_us";

fn role_row(row: &Row<'_>) -> Result<RoleRow, DbError> {
    Ok(RoleRow {
        role_id: row.get(0)?,
        name: row.get(1)?,
        permissions: scopes(&row.get::<String>(2)?),
        created_at_us: row.get(3)?,
    })
}

pub fn insert(tx: &mut Tx<'_>, scope: &Scope, row: &RoleRow) -> Result<(), DbError> {
    let sql = "INSERT INTO custom_roles (tenant, role_id, name, permissions, created_at_us)
               VALUES ($1, $2, $3, $4, $5)";
    let permissions = scopes_text(&row.permissions);
    let args: [&dyn crate::platform::db::ToSql; 5] =
        [&scope.tenant()?, &row.role_id, &row.name, &permissions, &row.created_at_us];
    tx.execute(scope, sql, &args).map(drop)
}

pub fn update(tx: &mut Tx<'_>, scope: &Scope, row: &RoleRow) -> Result<bool, DbError> {
    let sql = "UPDATE custom_roles SET name = $3, permissions = $4 WHERE tenant = $1 AND role_id = $2";
    let permissions = scopes_text(&row.permissions);
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &row.role_id, &row.name, &permissions])? == 1)
}

pub fn get(tx: &mut Tx<'_>, scope: &Scope, role_id: &str) -> Result<Option<RoleRow>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM custom_roles WHERE tenant = $1 AND role_id = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &role_id], role_row)
}

pub fn list(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<RoleRow>, DbError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM custom_roles WHERE tenant = $1 AND role_id > $2 ORDER BY role_id LIMIT $3"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], role_row)
}

pub fn count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    super::count(tx, scope, "SELECT count(*) FROM custom_roles WHERE tenant = $1")
}

pub fn delete(tx: &mut Tx<'_>, scope: &Scope, role_id: &str) -> Result<bool, DbError> {
    let sql = "DELETE FROM custom_roles WHERE tenant = $1 AND role_id = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &role_id])? == 1)
}

/// Whether a member or an invitation has the role.
pub fn is_given(tx: &mut Tx<'_>, scope: &Scope, role_id: &str) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM memberships WHERE tenant = $1 AND role = $2
               UNION ALL SELECT 1 FROM invitations WHERE tenant = $1 AND role = $2 LIMIT 1";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?, &role_id], |row| row.get::<i64>(0))?.is_some())
}
