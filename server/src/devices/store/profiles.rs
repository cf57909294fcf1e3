//! SQL of profiles.

use super::column;
use crate::devices::model::ProfileSpec;
use crate::platform::db::{DbError, Row, Scope, Tx};

/// A profile's row.
#[derive(Clone, Debug)]
pub struct ProfileRow {
    pub profile: String,
    pub spec: ProfileSpec,
    pub created_at_us: i64,
    pub updated_at_us: i64,
}

const COLUMNS: &str = "profile, spec, created_at_us, updated_at_us";

fn profile_row(row: &Row<'_>) -> Result<ProfileRow, DbError> {
    let spec = serde_json::from_str(&row.get::<String>(1)?).map_err(|_| column("spec"))?;
    let (created_at_us, updated_at_us) = (row.get(2)?, row.get(3)?);
    Ok(ProfileRow { profile: row.get(0)?, spec, created_at_us, updated_at_us })
}

pub fn profile_get(tx: &mut Tx<'_>, scope: &Scope, profile: &str) -> Result<Option<ProfileRow>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM profiles WHERE tenant = $1 AND profile = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &profile], profile_row)
}

pub fn profile_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    after: &str,
    limit: i64,
) -> Result<Vec<ProfileRow>, DbError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM profiles WHERE tenant = $1 AND profile > $2 ORDER BY profile LIMIT $3"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], profile_row)
}

pub fn profile_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    let sql = "SELECT count(*) FROM profiles WHERE tenant = $1";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?], |row| row.get(0))?.unwrap_or(0))
}

/// Makes a profile, or gives it another specification.
pub fn profile_put(tx: &mut Tx<'_>, scope: &Scope, row: &ProfileRow) -> Result<(), DbError> {
    let spec = serde_json::to_string(&row.spec).map_err(|_| column("spec"))?;
    let sql = "INSERT INTO profiles (tenant, profile, spec, created_at_us, updated_at_us) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (tenant, profile) DO UPDATE SET spec = excluded.spec, updated_at_us = excluded.updated_at_us";
    let args: [&dyn crate::platform::db::ToSql; 5] =
        [&scope.tenant()?, &row.profile, &spec, &row.created_at_us, &row.updated_at_us];
    tx.execute(scope, sql, &args).map(drop)
}

pub fn profile_delete(tx: &mut Tx<'_>, scope: &Scope, profile: &str) -> Result<bool, DbError> {
    let sql = "DELETE FROM profiles WHERE tenant = $1 AND profile = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &profile])? == 1)
}

/// Whether a device or a claim names the profile.
pub fn profile_is_used(tx: &mut Tx<'_>, scope: &Scope, profile: &str) -> Result<bool, DbError> {
    let tenant = scope.tenant()?;
    for table in ["devices", "claims"] {
        let sql = format!("SELECT profile FROM {table} WHERE tenant = $1 AND profile = $2 LIMIT 1");
        if tx.query_opt(scope, &sql, &[&tenant, &profile], |row| row.get::<String>(0))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
