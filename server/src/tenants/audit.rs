//! The audit chain: one row a change, each row's hash covers the row before it.
//!
//! A slice's service appends inside the transaction of the change, so neither exists without the other. Rows are
//! never changed or deleted (triggers refuse it); a row altered behind the database's back breaks the chain at that
//! row and [`verify`] finds it. The chain is per tenant; what concerns the whole server stands under `-`.
//!
//! Processes that share a registry follow the chains (`devices::replica`, `app::follow`). So whatever changes what a process
//! keeps in memory is an action `device.*`, `certificate.*`, `token.*`, `rule.*` or `alert.*` on the id of that device,
//! certificate, API token, rule or alert, in its tenant's chain; or `authority.*`, after which everything is compared.

pub mod export;
pub mod verify;

use crate::platform::db::{DbError, Row, Scope, Tx};
use muster_wire::TenantId;
use sha2::{Digest as _, Sha256};

/// What happened.
#[derive(Clone, Debug)]
pub struct AuditEntry<'a> {
    /// When.
    pub at_us: i64,
    /// Who: `user:<email>`, `token:<id>`, `claim:<id>`, `server`.
    pub actor: &'a str,
    /// What: `device.create`.
    pub action: &'static str,
    /// On what: the object's id.
    pub object: &'a str,
    /// More, as JSON. Never secrets.
    pub detail: serde_json::Value,
}

/// A stored row.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// Position in the tenant's chain, from 1.
    pub seq: i64,
    /// When.
    pub at_us: i64,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// On what.
    pub object: String,
    /// More, as JSON text.
    pub detail: String,
    /// Covers this row and the hash before it.
    pub hash: [u8; 32],
}

impl AuditRow {
    /// The hash that this row must have after another's.
    fn hash_after(&self, before: &[u8; 32]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(before);
        hash.update(self.seq.to_be_bytes());
        hash.update(self.at_us.to_be_bytes());
        for part in [&self.actor, &self.action, &self.object, &self.detail] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().into()
    }
}

/// The tenant text of a chain.
fn chain_of(scope: &Scope) -> &str {
    match scope {
        Scope::Tenant(tenant) => tenant.as_str(),
        Scope::System(_) => "-",
    }
}

/// Appends a row to the scope's chain.
///
/// # Errors
/// The database's.
pub fn append(tx: &mut Tx<'_>, scope: &Scope, entry: &AuditEntry<'_>) -> Result<(), DbError> {
    let chain = chain_of(scope);
    tx.lock(scope, chain)?;
    let newest = "SELECT seq, hash FROM audit WHERE tenant = $1 ORDER BY seq DESC LIMIT 1";
    let last = tx.query_opt(scope, newest, &[&chain], |row| {
        Ok::<_, DbError>((row.get::<i64>(0)?, row.get::<[u8; 32]>(1)?))
    })?;
    let (seq, before) = last.unwrap_or((0, [0; 32]));
    let mut row = AuditRow {
        seq: seq + 1,
        at_us: entry.at_us,
        actor: entry.actor.to_owned(),
        action: entry.action.to_owned(),
        object: entry.object.to_owned(),
        detail: entry.detail.to_string(),
        hash: [0; 32],
    };
    row.hash = row.hash_after(&before);
    tx.execute(
        scope,
        "INSERT INTO audit (tenant, seq, at_us, actor, action, object, detail, hash)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[&chain, &row.seq, &row.at_us, &row.actor, &row.action, &row.object, &row.detail, &row.hash],
    )?;
    Ok(())
}

/// Rows of the scope's chain after a position, oldest first.
///
/// # Errors
/// The database's.
pub fn list(tx: &mut Tx<'_>, scope: &Scope, after: i64, limit: i64) -> Result<Vec<AuditRow>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM audit WHERE tenant = $1 AND seq > $2 ORDER BY seq LIMIT $3");
    tx.query(scope, &sql, &[&chain_of(scope), &after, &limit], audit_row)
}

pub(super) const COLUMNS: &str = "seq, at_us, actor, action, object, detail, hash";

pub(super) fn audit_row(row: &Row<'_>) -> Result<AuditRow, DbError> {
    Ok(AuditRow {
        seq: row.get(0)?,
        at_us: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        object: row.get(4)?,
        detail: row.get(5)?,
        hash: row.get(6)?,
    })
}

/// Every chain: the server's, `-`, as it is named, those of tenants, though nothing is left of one, and those that are left of
/// a tenant.
///
/// # Errors
/// The database's.
pub fn chains(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<String>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT tenant FROM tenants UNION SELECT tenant FROM audit WHERE tenant <> '-' ORDER BY tenant";
    let tenants = tx.query(scope, sql, &[], |row| row.get::<String>(0))?;
    Ok(std::iter::once("-".to_owned()).chain(tenants).collect())
}

/// Whether there is a chain, or must have been: each tenant's begins with the row that made it.
///
/// # Errors
/// The database's.
pub fn is_chain(tx: &mut Tx<'_>, scope: &Scope) -> Result<bool, DbError> {
    let sql =
        "SELECT 1 FROM tenants WHERE tenant = $1 UNION ALL SELECT 1 FROM audit WHERE tenant = $1 LIMIT 1";
    let Scope::Tenant(tenant) = scope else { return Ok(true) };
    Ok(tx.query_opt(scope, sql, &[&tenant.as_str()], |row| row.get::<i64>(0))?.is_some())
}

/// What was changed: a row without who, when and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Position in the tenant's chain.
    pub seq: i64,
    /// What: `device.create`.
    pub action: String,
    /// On what: the object's id.
    pub object: String,
}

/// What was changed after a position, oldest first: for processes that follow the registry.
///
/// # Errors
/// The database's.
pub fn changed_since(
    tx: &mut Tx<'_>,
    scope: &Scope,
    after: i64,
    limit: i64,
) -> Result<Vec<Changed>, DbError> {
    let sql = "SELECT seq, action, object FROM audit WHERE tenant = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    tx.query(scope, sql, &[&chain_of(scope), &after, &limit], |row| {
        Ok(Changed { seq: row.get(0)?, action: row.get(1)?, object: row.get(2)? })
    })
}

/// The newest position of each tenant's chain; 0 where it is empty. Takes a seek a tenant.
///
/// # Errors
/// The database's.
pub fn newest_each(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(TenantId, i64)>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT t.tenant, (SELECT coalesce(max(a.seq), 0) FROM audit a WHERE a.tenant = t.tenant) FROM tenants t";
    tx.query(scope, sql, &[], |row| {
        let tenant = TenantId::parse(&row.get::<String>(0)?);
        Ok((tenant.map_err(|_| DbError::Column { column: "tenant".into() })?, row.get(1)?))
    })
}
