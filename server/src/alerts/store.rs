//! The table `alerts`.

use super::model::{Alert, AlertFilter, AlertSort, AlertState, NewAlert, Severity};
use crate::platform::db::{DbError, Row, Scope, ToSql, Tx};
use crate::tenants::reach::{self, Args, Reach};
use muster_wire::Value;

const COLUMNS: &str = "id, device, rule_id, rule_version, rule_name, subject, severity, state, historical, value, \
     message, opened_at_us, cleared_at_us, cleared_why, acked_at_us, acked_by, resolved_at_us, resolved_by, note";

/// The tenant that a scope allows. Every row here belongs to one.
fn tenant(scope: &Scope) -> Result<&str, DbError> {
    match scope {
        Scope::Tenant(tenant) => Ok(tenant.as_str()),
        Scope::System(_) => Err(DbError::Column { column: "tenant".into() }),
    }
}

/// Inserts an alert; false where it is there already.
pub(super) fn insert(tx: &mut Tx<'_>, scope: &Scope, alert: &NewAlert) -> Result<bool, DbError> {
    let rows = tx.execute(scope, "INSERT INTO alerts (tenant, id, device, rule_id, rule_version, rule_name, subject, severity, state, historical,
                             value, message, opened_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'open', $9, $10, $11, $12) ON CONFLICT DO NOTHING",
        &[
            &tenant(scope)?, &alert.id, &alert.device, &alert.rule_id, &alert.rule_version, &alert.rule_name,
            &alert.subject, &alert.severity.as_str(), &alert.historical, &value_text(&alert.value), &alert.message,
            &alert.opened_at_us,
        ],
    )?;
    Ok(rows == 1)
}

/// Finds one alert.
pub(super) fn get(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<Option<Alert>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM alerts WHERE tenant = $1 AND id = $2");
    tx.query_opt(scope, &sql, &[&tenant(scope)?, &id], alert)
}

/// Finds one alert, of a device within a reach.
pub(super) fn get_within(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    id: &str,
) -> Result<Option<Alert>, DbError> {
    let mut args: Args = vec![Box::new(tenant(scope)?.to_owned()), Box::new(id.to_owned())];
    let condition = reach::within(reach, "alerts.device", &mut args);
    let sql = format!("SELECT {COLUMNS} FROM alerts WHERE tenant = $1 AND id = $2{condition}");
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query_opt(scope, &sql, &args, alert)
}

/// Writes what a step changes; false where the alert is gone.
pub(super) fn update(tx: &mut Tx<'_>, scope: &Scope, alert: &Alert) -> Result<bool, DbError> {
    let rows = tx.execute(
        scope,
        "UPDATE alerts SET state = $3, cleared_at_us = $4, cleared_why = $5, acked_at_us = $6, acked_by = $7,
                           resolved_at_us = $8, resolved_by = $9, note = $10
         WHERE tenant = $1 AND id = $2",
        &[
            &tenant(scope)?,
            &alert.id,
            &alert.state.as_str(),
            &alert.cleared_at_us,
            &alert.cleared_why,
            &alert.acked_at_us,
            &alert.acked_by,
            &alert.resolved_at_us,
            &alert.resolved_by,
            &alert.note,
        ],
    )?;
    Ok(rows == 1)
}

/// In the filter's order, from after `(opened_at_us, id)` on.
pub(super) fn list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    filter: &AlertFilter,
    after: Option<&(i64, String)>,
    limit: i64,
) -> Result<Vec<Alert>, DbError> {
    let mut sql = format!("SELECT {COLUMNS} FROM alerts WHERE tenant = $1");
    let tenant = tenant(scope)?;
    let mut args: Args = vec![Box::new(tenant.to_owned())];
    sql.push_str(&reach::within(&filter.reach, "alerts.device", &mut args));
    let mut and = |condition: &str, arg: Box<dyn ToSql>| {
        args.push(arg);
        sql.push_str(&condition.replace('?', &format!("${}", args.len())));
    };
    if let Some(state) = filter.state {
        and(" AND state = ?", Box::new(state.as_str()));
    }
    if let Some(device) = &filter.device {
        and(" AND device = ?", Box::new(device.clone()));
    }
    if let Some(rule_id) = &filter.rule_id {
        and(" AND rule_id = ?", Box::new(rule_id.clone()));
    }
    if let Some(historical) = filter.historical {
        and(" AND historical = ?", Box::new(historical));
    }
    match filter.severity_min {
        Some(Severity::Critical) => and(" AND severity = ?", Box::new("critical")),
        Some(Severity::Warning) => and(" AND severity <> ?", Box::new("info")),
        Some(Severity::Info) | None => {}
    }
    if let Some(from_us) = filter.from_us {
        and(" AND opened_at_us >= ?", Box::new(from_us));
    }
    if let Some(to_us) = filter.to_us {
        and(" AND opened_at_us < ?", Box::new(to_us));
    }
    let (compare, direction) = match filter.sort {
        AlertSort::OpenedDown => ("<", "DESC"),
        AlertSort::Opened => (">", "ASC"),
    };
    if let Some((opened_at_us, id)) = after {
        and(&format!(" AND (opened_at_us, id) {compare} (?, "), Box::new(*opened_at_us));
        and("?)", Box::new(id.clone()));
    }
    and(&format!(" ORDER BY opened_at_us {direction}, id {direction} LIMIT ?"), Box::new(limit));
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, alert)
}

/// Whether an alert about this subject of a device waits for a person.
pub(super) fn is_waiting(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &str,
    subject: &str,
) -> Result<bool, DbError> {
    let found = tx.query_opt(scope, "SELECT 1 FROM alerts WHERE tenant = $1 AND device = $2 AND subject = $3 AND state IN ('open', 'acked') LIMIT 1",
        &[&tenant(scope)?, &device, &subject],
        |row| row.get::<i64>(0),
    )?;
    Ok(found.is_some())
}

/// How many alerts of devices within a reach are in each state.
pub(super) fn counts(tx: &mut Tx<'_>, scope: &Scope, reach: &Reach) -> Result<Vec<(String, i64)>, DbError> {
    let mut args: Args = vec![Box::new(tenant(scope)?.to_owned())];
    let condition = reach::within(reach, "alerts.device", &mut args);
    let sql = format!("SELECT state, count(*) FROM alerts WHERE tenant = $1{condition} GROUP BY state");
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Deletes what has cleared or was resolved before a time, at most `limit` rows of one tenant.
pub(super) fn delete_old(
    tx: &mut Tx<'_>,
    scope: &Scope,
    before_us: i64,
    limit: i64,
) -> Result<usize, DbError> {
    tx.execute(
        scope,
        "DELETE FROM alerts WHERE tenant = $1 AND id IN
           (SELECT id FROM alerts WHERE tenant = $1 AND opened_at_us < $2
                                             AND (cleared_at_us < $2 OR resolved_at_us < $2) LIMIT $3)",
        &[&tenant(scope)?, &before_us, &limit],
    )
}

fn value_text(value: &Value) -> String {
    serde_json::to_string(value).expect("a finite number, a bool or a text is JSON")
}

fn alert(row: &Row<'_>) -> Result<Alert, DbError> {
    let bad = |column: &str| DbError::Column { column: column.to_owned() };
    let (severity, state, value) = (row.get::<String>(6)?, row.get::<String>(7)?, row.get::<String>(9)?);
    Ok(Alert {
        id: row.get(0)?,
        device: row.get(1)?,
        rule_id: row.get(2)?,
        rule_version: row.get(3)?,
        rule_name: row.get(4)?,
        subject: row.get(5)?,
        severity: Severity::parse(&severity).ok_or_else(|| bad("severity"))?,
        state: AlertState::parse(&state).ok_or_else(|| bad("state"))?,
        historical: row.get(8)?,
        value: serde_json::from_str(&value).map_err(|_| bad("value"))?,
        message: row.get(10)?,
        opened_at_us: row.get(11)?,
        cleared_at_us: row.get(12)?,
        cleared_why: row.get(13)?,
        acked_at_us: row.get(14)?,
        acked_by: row.get(15)?,
        resolved_at_us: row.get(16)?,
        resolved_by: row.get(17)?,
        note: row.get(18)?,
    })
}
