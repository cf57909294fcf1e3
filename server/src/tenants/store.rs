//! SQL of tenants, users, sessions and API tokens. Only the service calls it.

use super::directory::TokenInfo;
use super::model::{GivenRole, Membership, Permission, Role};
use super::reach::Reach;
use crate::platform::db::{DbError, Row, Scope, Tx};
use crate::platform::http_kit::ETag;
use muster_wire::TenantId;

pub mod leaves;
pub mod roles;
pub mod sessions;

/// A tenant's row.
#[derive(Clone, Debug)]
pub struct TenantRow {
    pub tenant: String,
    pub name: String,
    pub created_at_us: i64,
}

impl TenantRow {
    /// Its state, for conditional requests.
    #[must_use]
    pub fn etag(&self) -> ETag {
        ETag::of(self)
    }
}

/// An account's row.
#[derive(Clone, Debug)]
pub struct UserRow {
    pub user_id: String,
    pub email: String,
    pub password_hash: String,
    pub password_pending: bool,
    pub system_admin: bool,
    pub created_at_us: i64,
}

/// A membership with its account.
#[derive(Clone, Debug)]
pub struct MemberRow {
    pub user_id: String,
    pub email: String,
    pub role: GivenRole,
    pub reach: Reach,
    pub password_pending: bool,
    pub created_at_us: i64,
}

/// An API token's row, without its hash.
#[derive(Clone, Debug)]
pub struct TokenRow {
    pub token_id: String,
    pub name: String,
    pub role: GivenRole,
    pub reach: Reach,
    pub scopes: Vec<Permission>,
    pub created_by: String,
    pub created_at_us: i64,
    pub expires_at_us: i64,
}

fn column(name: &str) -> DbError {
    DbError::Column { column: name.into() }
}

/// What stands for the role of a token whose maker had one of the tenant's own: its scopes are all it may.
const BY_SCOPES: &str = "custom";

/// A role's text, with the permissions of one of the tenant's own.
fn given(text: String, permissions: Option<&str>) -> Result<GivenRole, DbError> {
    match (Role::parse(&text), permissions) {
        (Some(role), _) => Ok(role.into()),
        (None, Some(permissions)) => {
            Ok(GivenRole::Custom { role_id: text, permissions: scopes(permissions) })
        }
        (None, None) => Err(column("role")),
    }
}

fn token_role(text: String, scopes: &str) -> Result<GivenRole, DbError> {
    given(text, Some(scopes))
}

fn token_role_text(role: &GivenRole) -> &str {
    match role {
        GivenRole::BuiltIn(role) => role.as_str(),
        GivenRole::Custom { .. } => BY_SCOPES,
    }
}

/// Unknown scopes (of a newer build) are dropped: a token never gains by them.
fn scopes(text: &str) -> Vec<Permission> {
    text.split(' ').filter_map(Permission::parse).collect()
}

fn scopes_text(scopes: &[Permission]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
}

fn count(tx: &mut Tx<'_>, scope: &Scope, sql: &str) -> Result<i64, DbError> {
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?], |row| row.get(0))?.unwrap_or(0))
}

pub fn tenant_insert(tx: &mut Tx<'_>, scope: &Scope, row: &TenantRow) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, $2, $3)";
    tx.execute(scope, sql, &[&row.tenant, &row.name, &row.created_at_us]).map(drop)
}

pub fn tenant_rename(tx: &mut Tx<'_>, scope: &Scope, name: &str) -> Result<bool, DbError> {
    Ok(tx.execute(scope, "UPDATE tenants SET name = $2 WHERE tenant = $1", &[&scope.tenant()?, &name])? == 1)
}

fn tenant_row(row: &Row<'_>) -> Result<TenantRow, DbError> {
    Ok(TenantRow { tenant: row.get(0)?, name: row.get(1)?, created_at_us: row.get(2)? })
}

pub fn tenant_get(tx: &mut Tx<'_>, scope: &Scope) -> Result<Option<TenantRow>, DbError> {
    let sql = "SELECT tenant, name, created_at_us FROM tenants WHERE tenant = $1";
    tx.query_opt(scope, sql, &[&scope.tenant()?], tenant_row)
}

/// The tenants that an account is a member of.
pub fn tenant_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    user_id: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<TenantRow>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT t.tenant, t.name, t.created_at_us FROM tenants t
               JOIN memberships m ON m.tenant = t.tenant AND m.user_id = $1
               WHERE t.tenant > $2 ORDER BY t.tenant LIMIT $3";
    tx.query(scope, sql, &[&user_id, &after, &limit], tenant_row)
}

/// Every tenant, for work that goes over all of them.
pub fn tenant_ids(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<TenantId>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.query(scope, "SELECT tenant FROM tenants ORDER BY tenant", &[], |row| {
        TenantId::parse(&row.get::<String>(0)?).map_err(|_| column("tenant"))
    })
}

pub fn any_tenant(tx: &mut Tx<'_>, scope: &Scope) -> Result<bool, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    Ok(tx.query_opt(scope, "SELECT 1 FROM tenants LIMIT 1", &[], |row| row.get::<i64>(0))?.is_some())
}

pub fn user_insert(tx: &mut Tx<'_>, scope: &Scope, row: &UserRow) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.execute(
        scope,
        "INSERT INTO users (user_id, email, password_hash, password_pending, system_admin, created_at_us)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &row.user_id,
            &row.email,
            &row.password_hash,
            &row.password_pending,
            &row.system_admin,
            &row.created_at_us,
        ],
    )
    .map(drop)
}

const USER_COLUMNS: &str =
    "u.user_id, u.email, u.password_hash, u.password_pending, u.system_admin, u.created_at_us";

fn user_row(row: &Row<'_>) -> Result<UserRow, DbError> {
    Ok(UserRow {
        user_id: row.get(0)?,
        email: row.get(1)?,
        password_hash: row.get(2)?,
        password_pending: row.get(3)?,
        system_admin: row.get(4)?,
        created_at_us: row.get(5)?,
    })
}

pub fn user_by_email(tx: &mut Tx<'_>, scope: &Scope, email: &str) -> Result<Option<UserRow>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!("SELECT {USER_COLUMNS} FROM users u WHERE u.email = $1");
    tx.query_opt(scope, &sql, &[&email], user_row)
}

pub fn user_get(tx: &mut Tx<'_>, scope: &Scope, user_id: &str) -> Result<Option<UserRow>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!("SELECT {USER_COLUMNS} FROM users u WHERE u.user_id = $1");
    tx.query_opt(scope, &sql, &[&user_id], user_row)
}

pub fn user_set_password(
    tx: &mut Tx<'_>,
    scope: &Scope,
    user_id: &str,
    hash: &str,
    pending: bool,
) -> Result<bool, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "UPDATE users SET password_hash = $2, password_pending = $3 WHERE user_id = $1";
    Ok(tx.execute(scope, sql, &[&user_id, &hash, &pending])? == 1)
}

pub fn memberships_of(tx: &mut Tx<'_>, scope: &Scope, user_id: &str) -> Result<Vec<Membership>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT m.tenant, m.role, r.permissions, m.reach FROM memberships m
               LEFT JOIN custom_roles r ON r.tenant = m.tenant AND r.role_id = m.role
               WHERE m.user_id = $1 ORDER BY m.tenant";
    tx.query(scope, sql, &[&user_id], |row| {
        let tenant = TenantId::parse(&row.get::<String>(0)?).map_err(|_| column("tenant"))?;
        let role = given(row.get(1)?, row.get::<Option<String>>(2)?.as_deref())?;
        Ok(Membership { tenant, role, reach: Reach::of_text(&row.get::<String>(3)?)? })
    })
}

pub fn member_put(
    tx: &mut Tx<'_>,
    scope: &Scope,
    user_id: &str,
    (role, reach): (&str, &Reach),
    now_us: i64,
) -> Result<(), DbError> {
    let sql =
        "INSERT INTO memberships (tenant, user_id, role, reach, created_at_us) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (tenant, user_id) DO UPDATE SET role = excluded.role, reach = excluded.reach";
    tx.execute(scope, sql, &[&scope.tenant()?, &user_id, &role, &reach.text(), &now_us]).map(drop)
}

pub fn member_delete(tx: &mut Tx<'_>, scope: &Scope, user_id: &str) -> Result<bool, DbError> {
    let sql = "DELETE FROM memberships WHERE tenant = $1 AND user_id = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &user_id])? == 1)
}

const MEMBER_SELECT: &str =
    "SELECT u.user_id, u.email, m.role, r.permissions, m.reach, u.password_pending, m.created_at_us
     FROM memberships m JOIN users u ON u.user_id = m.user_id
     LEFT JOIN custom_roles r ON r.tenant = m.tenant AND r.role_id = m.role WHERE m.tenant = $1";

fn member_row(row: &Row<'_>) -> Result<MemberRow, DbError> {
    Ok(MemberRow {
        user_id: row.get(0)?,
        email: row.get(1)?,
        role: given(row.get(2)?, row.get::<Option<String>>(3)?.as_deref())?,
        reach: Reach::of_text(&row.get::<String>(4)?)?,
        password_pending: row.get(5)?,
        created_at_us: row.get(6)?,
    })
}

pub fn member_get(tx: &mut Tx<'_>, scope: &Scope, user_id: &str) -> Result<Option<MemberRow>, DbError> {
    tx.query_opt(
        scope,
        &format!("{MEMBER_SELECT} AND u.user_id = $2"),
        &[&scope.tenant()?, &user_id],
        member_row,
    )
}

/// Whether the account of an address is a member.
pub fn member_by_email(tx: &mut Tx<'_>, scope: &Scope, email: &str) -> Result<bool, DbError> {
    let found = tx.query_opt(
        scope,
        &format!("{MEMBER_SELECT} AND u.email = $2"),
        &[&scope.tenant()?, &email],
        member_row,
    )?;
    Ok(found.is_some())
}

pub fn member_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    after: &str,
    limit: i64,
) -> Result<Vec<MemberRow>, DbError> {
    let sql = format!("{MEMBER_SELECT} AND u.user_id > $2 ORDER BY u.user_id LIMIT $3");
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], member_row)
}

pub fn member_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    count(tx, scope, "SELECT count(*) FROM memberships WHERE tenant = $1")
}

pub fn owner_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    count(tx, scope, "SELECT count(*) FROM memberships WHERE tenant = $1 AND role = 'owner'")
}

pub fn token_insert(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &TokenRow,
    sha256: &[u8; 32],
) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO api_tokens
           (tenant, token_id, name, token_sha256, role, reach, scopes, created_by, created_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            &scope.tenant()?,
            &row.token_id,
            &row.name,
            sha256,
            &token_role_text(&row.role),
            &row.reach.text(),
            &scopes_text(&row.scopes),
            &row.created_by,
            &row.created_at_us,
            &row.expires_at_us,
        ],
    )
    .map(drop)
}

/// Deletes a token; gives its hash.
pub fn token_delete(tx: &mut Tx<'_>, scope: &Scope, token_id: &str) -> Result<Option<[u8; 32]>, DbError> {
    let sql = "DELETE FROM api_tokens WHERE tenant = $1 AND token_id = $2 RETURNING token_sha256";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &token_id], |row| row.get(0))
}

/// Deletes every token of the tenant; gives their ids.
pub fn tokens_delete(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<String>, DbError> {
    let sql = "DELETE FROM api_tokens WHERE tenant = $1 RETURNING token_id";
    tx.query(scope, sql, &[&scope.tenant()?], |row| row.get(0))
}

/// Whether the whole tenant is being or was erased.
pub fn is_in_erasure(tx: &mut Tx<'_>, scope: &Scope) -> Result<bool, DbError> {
    Ok(count(tx, scope, "SELECT count(*) FROM erasures WHERE tenant = $1 AND device = ''")? > 0)
}

/// Deletes the tenant's tokens past their life, so that they do not count as open; gives their hashes.
pub fn tokens_expire(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<Vec<[u8; 32]>, DbError> {
    let sql = "DELETE FROM api_tokens WHERE tenant = $1 AND expires_at_us <= $2 RETURNING token_sha256";
    tx.query(scope, sql, &[&scope.tenant()?, &now_us], |row| row.get(0))
}

pub fn token_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    count(tx, scope, "SELECT count(*) FROM api_tokens WHERE tenant = $1")
}

pub fn token_list(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<TokenRow>, DbError> {
    let sql =
        "SELECT token_id, name, role, scopes, created_by, created_at_us, expires_at_us, reach FROM api_tokens
               WHERE tenant = $1 AND token_id > $2 ORDER BY token_id LIMIT $3";
    tx.query(scope, sql, &[&scope.tenant()?, &after, &limit], |row| {
        let listed = row.get::<String>(3)?;
        Ok(TokenRow {
            token_id: row.get(0)?,
            name: row.get(1)?,
            role: token_role(row.get(2)?, &listed)?,
            reach: Reach::of_text(&row.get::<String>(7)?)?,
            scopes: scopes(&listed),
            created_by: row.get(4)?,
            created_at_us: row.get(5)?,
            expires_at_us: row.get(6)?,
        })
    })
}

/// Every token of every tenant, for the directory.
pub fn tokens_all(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<([u8; 32], TokenInfo)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.query(scope, &format!("SELECT {TOKEN_INFO} FROM api_tokens"), &[], token_info)
}

/// Every token of a tenant, for the directory.
pub fn tokens_of(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<([u8; 32], TokenInfo)>, DbError> {
    let sql = format!("SELECT {TOKEN_INFO} FROM api_tokens WHERE tenant = $1");
    tx.query(scope, &sql, &[&scope.tenant()?], token_info)
}

const TOKEN_INFO: &str = "token_sha256, token_id, tenant, role, scopes, expires_at_us, reach";

fn token_info(row: &Row<'_>) -> Result<([u8; 32], TokenInfo), DbError> {
    let tenant = TenantId::parse(&row.get::<String>(2)?).map_err(|_| column("tenant"))?;
    let listed = row.get::<String>(4)?;
    let role = token_role(row.get(3)?, &listed)?;
    let membership = Membership { tenant, role, reach: Reach::of_text(&row.get::<String>(6)?)? };
    let token =
        TokenInfo { token_id: row.get(1)?, membership, scopes: scopes(&listed), expires_at_us: row.get(5)? };
    Ok((row.get(0)?, token))
}
