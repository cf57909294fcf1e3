//! The tables `rules`, `rule_quarantine`, `rule_state`, `rule_last`, `rule_cursor` and `rule_gaps`.

use super::engine::{LastKey, LogTime, StateKey, StoredState, Stream};
use super::model::{Rule, RuleSpec};
use crate::platform::db::{DbError, Row, Scope, Tx};
use muster_wire::Value;
use std::ops::RangeInclusive;

const COLUMNS: &str = "id, name, enabled, version, spec, created_at_us, updated_at_us";

fn bad(column: &str) -> DbError {
    DbError::Column { column: column.to_owned() }
}

/// The tenant that a scope allows.
fn tenant(scope: &Scope) -> Result<&str, DbError> {
    match scope {
        Scope::Tenant(tenant) => Ok(tenant.as_str()),
        Scope::System(_) => Err(bad("tenant")),
    }
}

/// The engine's own tables hold every tenant's rows: only the consumer may touch them.
fn system(scope: &Scope) -> Result<(), DbError> {
    match scope {
        Scope::System(_) => Ok(()),
        Scope::Tenant(_) => Err(bad("scope")),
    }
}

fn rule(row: &Row<'_>) -> Result<Rule, DbError> {
    rule_from(row, 0)
}

fn rule_from(row: &Row<'_>, first: usize) -> Result<Rule, DbError> {
    let spec: RuleSpec = serde_json::from_str(&row.get::<String>(first + 4)?).map_err(|_| bad("spec"))?;
    Ok(Rule {
        id: row.get(first)?,
        name: row.get(first + 1)?,
        enabled: row.get(first + 2)?,
        version: row.get(first + 3)?,
        spec,
        created_at_us: row.get(first + 5)?,
        updated_at_us: row.get(first + 6)?,
    })
}

fn spec_text(spec: &RuleSpec) -> String {
    serde_json::to_string(spec).expect("a rule is plain values")
}

pub(super) fn count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    let count =
        tx.query_opt(scope, "SELECT count(*) FROM rules WHERE tenant = $1", &[&tenant(scope)?], |row| {
            row.get(0)
        })?;
    Ok(count.unwrap_or(0))
}

pub(super) fn insert(tx: &mut Tx<'_>, scope: &Scope, rule: &Rule) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO rules (tenant, id, name, enabled, version, spec, created_at_us, updated_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            &tenant(scope)?,
            &rule.id,
            &rule.name,
            &rule.enabled,
            &rule.version,
            &spec_text(&rule.spec),
            &rule.created_at_us,
            &rule.updated_at_us,
        ],
    )?;
    Ok(())
}

/// Writes a changed rule; false where the version before is not the stored one any more.
pub(super) fn update(tx: &mut Tx<'_>, scope: &Scope, rule: &Rule) -> Result<bool, DbError> {
    let rows = tx.execute(
        scope,
        "UPDATE rules SET name = $3, enabled = $4, version = $5, spec = $6, updated_at_us = $7
         WHERE tenant = $1 AND id = $2 AND version = $5 - 1",
        &[
            &tenant(scope)?,
            &rule.id,
            &rule.name,
            &rule.enabled,
            &rule.version,
            &spec_text(&rule.spec),
            &rule.updated_at_us,
        ],
    )?;
    Ok(rows == 1)
}

pub(super) fn delete(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<bool, DbError> {
    let tenant = tenant(scope)?;
    tx.execute(scope, "DELETE FROM rule_quarantine WHERE tenant = $1 AND rule_id = $2", &[&tenant, &id])?;
    Ok(tx.execute(scope, "DELETE FROM rules WHERE tenant = $1 AND id = $2", &[&tenant, &id])? == 1)
}

pub(super) fn get(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<Option<Rule>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM rules WHERE tenant = $1 AND id = $2");
    tx.query_opt(scope, &sql, &[&tenant(scope)?, &id], rule)
}

/// Rules by id, from after `after` on.
pub(super) fn list(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<Rule>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM rules WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3");
    tx.query(scope, &sql, &[&tenant(scope)?, &after, &limit], rule)
}

/// A stored rule whose content is not read yet.
pub(super) struct StoredRule<'a> {
    pub(super) tenant: String,
    pub(super) id: String,
    pub(super) version: i64,
    row: &'a Row<'a>,
}

impl StoredRule<'_> {
    /// All of it.
    pub(super) fn read(&self) -> Result<Rule, DbError> {
        rule_from(self.row, 1)
    }
}

/// Every tenant's enabled rules, one after the other: nothing is collected.
pub(super) fn enabled_each(
    tx: &mut Tx<'_>,
    scope: &Scope,
    mut each: impl FnMut(&StoredRule<'_>),
) -> Result<(), DbError> {
    system(scope)?;
    let sql = format!("SELECT tenant, {COLUMNS} FROM rules WHERE enabled = 1 ORDER BY tenant, id");
    tx.for_each(scope, &sql, &[], |row| {
        each(&StoredRule { tenant: row.get(0)?, id: row.get(1)?, version: row.get(4)?, row });
        Ok(())
    })
}

/// Tenants with an enabled rule.
pub(super) fn tenants(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<String>, DbError> {
    system(scope)?;
    tx.query(scope, "SELECT DISTINCT tenant FROM rules WHERE enabled = 1 ORDER BY tenant", &[], |row| {
        row.get(0)
    })
}

/// Where the rules stand in which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) log_epoch: u64,
    /// The next position to read.
    pub(super) position: u64,
    pub(super) time: LogTime,
}

pub(super) fn cursor(tx: &mut Tx<'_>, scope: &Scope) -> Result<Option<Cursor>, DbError> {
    system(scope)?;
    let sql = "SELECT log_epoch, position, log_us, idle_us FROM rule_cursor WHERE id = 1";
    tx.query_opt(scope, sql, &[], |row| {
        let epoch = u64::from_str_radix(&row.get::<String>(0)?, 16).map_err(|_| bad("log_epoch"))?;
        let position = u64::try_from(row.get::<i64>(1)?).map_err(|_| bad("position"))?;
        Ok(Cursor { log_epoch: epoch, position, time: LogTime { log_us: row.get(2)?, idle_us: row.get(3)? } })
    })
}

fn signed(position: u64) -> Result<i64, DbError> {
    i64::try_from(position).map_err(|_| bad("position"))
}

pub(super) fn save_cursor(
    tx: &mut Tx<'_>,
    scope: &Scope,
    cursor: &Cursor,
    now_us: i64,
) -> Result<(), DbError> {
    system(scope)?;
    tx.execute(scope, "INSERT INTO rule_cursor (id, log_epoch, position, log_us, idle_us, saved_at_us) VALUES (1, $1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET log_epoch = $1, position = $2, log_us = $3, idle_us = $4, saved_at_us = $5",
        &[
            &format!("{:016x}", cursor.log_epoch), &signed(cursor.position)?, &cursor.time.log_us, &cursor.time.idle_us,
            &now_us,
        ],
    )?;
    Ok(())
}

/// Positions that the rules never saw.
pub(super) fn save_gap(
    tx: &mut Tx<'_>,
    scope: &Scope,
    log_epoch: u64,
    range: &RangeInclusive<u64>,
    reason: &str,
    now_us: i64,
) -> Result<(), DbError> {
    system(scope)?;
    tx.execute(scope, "INSERT INTO rule_gaps (log_epoch, first, last, at_us, reason) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        &[&format!("{log_epoch:016x}"), &signed(*range.start())?, &signed(*range.end())?, &now_us, &reason],
    )?;
    Ok(())
}

pub(super) fn states(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(StateKey, StoredState)>, DbError> {
    system(scope)?;
    let sql = "SELECT tenant, rule_id, device, subject, stream, version, state FROM rule_state
               ORDER BY tenant, rule_id, device, subject, stream";
    tx.query(scope, sql, &[], |row| {
        let stream = Stream::from_number(row.get(4)?).ok_or_else(|| bad("stream"))?;
        let key = StateKey {
            tenant: row.get(0)?,
            rule_id: row.get(1)?,
            device: row.get(2)?,
            subject: row.get(3)?,
            stream,
        };
        let mut state: StoredState =
            serde_json::from_str(&row.get::<String>(6)?).map_err(|_| bad("state"))?;
        state.version = row.get(5)?;
        Ok((key, state))
    })
}

pub(super) fn save_state(
    tx: &mut Tx<'_>,
    scope: &Scope,
    key: &StateKey,
    state: Option<&StoredState>,
) -> Result<(), DbError> {
    system(scope)?;
    let stream = key.stream.number();
    let Some(state) = state else {
        tx.execute(scope, "DELETE FROM rule_state WHERE tenant = $1 AND rule_id = $2 AND device = $3 AND subject = $4 AND stream = $5",
            &[&key.tenant, &key.rule_id, &key.device, &key.subject, &stream],
        )?;
        return Ok(());
    };
    let text = serde_json::to_string(state).map_err(|_| bad("state"))?;
    tx.execute(scope, "INSERT INTO rule_state (tenant, rule_id, device, subject, stream, version, state) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (tenant, rule_id, device, subject, stream) DO UPDATE SET version = $6, state = $7",
        &[&key.tenant, &key.rule_id, &key.device, &key.subject, &stream, &state.version, &text],
    )?;
    Ok(())
}

pub(super) fn lasts(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(LastKey, Value)>, DbError> {
    system(scope)?;
    tx.query(scope, "SELECT tenant, device, metric, value FROM rule_last", &[], |row| {
        let value = serde_json::from_str(&row.get::<String>(3)?).map_err(|_| bad("value"))?;
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), value))
    })
}

pub(super) fn save_last(tx: &mut Tx<'_>, scope: &Scope, key: &LastKey, value: &Value) -> Result<(), DbError> {
    system(scope)?;
    let text = serde_json::to_string(value).map_err(|_| bad("value"))?;
    tx.execute(
        scope,
        "INSERT INTO rule_last (tenant, device, metric, value) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant, device, metric) DO UPDATE SET value = $4",
        &[&key.0, &key.1, &key.2, &text],
    )?;
    Ok(())
}

/// Deletes the last values of devices that are not registered; gives how many rows.
pub(super) fn delete_lasts(
    tx: &mut Tx<'_>,
    scope: &Scope,
    is_known: impl Fn(&str, &str) -> bool,
) -> Result<usize, DbError> {
    system(scope)?;
    let devices = tx.query(scope, "SELECT DISTINCT tenant, device FROM rule_last", &[], |row| {
        Ok::<(String, String), DbError>((row.get(0)?, row.get(1)?))
    })?;
    let mut deleted = 0;
    for (tenant, device) in devices.iter().filter(|(tenant, device)| !is_known(tenant, device)) {
        deleted +=
            tx.execute(scope, "DELETE FROM rule_last WHERE tenant = $1 AND device = $2", &[tenant, device])?;
    }
    Ok(deleted)
}

/// `(tenant, rule, version, reason)` of every quarantined rule.
pub(super) fn quarantined(
    tx: &mut Tx<'_>,
    scope: &Scope,
) -> Result<Vec<(String, String, i64, String)>, DbError> {
    system(scope)?;
    tx.query(scope, "SELECT tenant, rule_id, version, reason FROM rule_quarantine", &[], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    })
}

pub(super) fn save_quarantine(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &(String, String, i64, String),
    now_us: i64,
) -> Result<(), DbError> {
    system(scope)?;
    let (tenant, rule_id, version, reason) = row;
    tx.execute(
        scope,
        "INSERT INTO rule_quarantine (tenant, rule_id, version, at_us, reason) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (tenant, rule_id) DO UPDATE SET version = $3, at_us = $4, reason = $5",
        &[tenant, rule_id, version, &now_us, reason],
    )?;
    Ok(())
}
