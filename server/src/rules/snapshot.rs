//! Commits what the engine decided, and reads back what was committed. One transaction each.

use super::consumer::READER;
use super::engine::{DeviceSource, Effects, Snapshot};
use super::model::CompiledRule;
use super::store::{self, Cursor, StoredRule};
use super::validate::{Written, compile};
use crate::alerts::model::{Alert, SkippedRange};
use crate::alerts::service as alerts;
use crate::platform::db::{DbError, Scope, Tx};
use muster_wire::TenantId;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The consumer works for every tenant at once.
pub(super) fn scope() -> Scope {
    Scope::System("rules: the engine's state and cursor hold every tenant's rows")
}

/// What one commit writes.
pub(super) struct Checkpoint {
    pub(super) cursor: Cursor,
    pub(super) effects: Effects,
    /// Positions that could not be read, and why.
    pub(super) gaps: Vec<(RangeInclusive<u64>, &'static str)>,
    /// Set where devices were deleted: tells which are left.
    pub(super) known: Option<DeviceSource>,
}

/// What was committed last.
pub(super) struct Restored {
    pub(super) cursor: Option<Cursor>,
    pub(super) snapshot: Snapshot,
}

/// Alerts, states, last values, quarantines, gaps and the cursor: all or nothing. Returns the alerts that changed.
pub(super) fn commit(
    tx: &mut Tx<'_>,
    checkpoint: &Checkpoint,
    now_us: i64,
) -> Result<Vec<(TenantId, Alert)>, DbError> {
    let (scope, effects) = (scope(), &checkpoint.effects);
    let mut changed = Vec::new();
    for alert in &effects.opened {
        changed.extend(alerts::open(tx, alert)?.map(|row| (alert.tenant.clone(), row)));
    }
    for cleared in &effects.cleared {
        let row = alerts::clear(tx, &cleared.tenant, &cleared.id, cleared.at_us, cleared.why)?;
        changed.extend(row.map(|row| (cleared.tenant.clone(), row)));
    }
    for (key, state) in &effects.states {
        store::save_state(tx, &scope, key, state.as_ref())?;
    }
    for (key, value) in &effects.lasts {
        store::save_last(tx, &scope, key, value)?;
    }
    if let Some(known) = &checkpoint.known {
        let rows = store::delete_lasts(tx, &scope, |tenant, device| known(tenant, device))?;
        if rows > 0 {
            tracing::info!(rows, "last values of deleted devices deleted");
        }
    }
    for row in &effects.quarantined {
        store::save_quarantine(tx, &scope, row, now_us)?;
    }
    changed.extend(save_gaps(tx, checkpoint, now_us)?);
    store::save_cursor(tx, &scope, &checkpoint.cursor, now_us)?;
    Ok(changed)
}

/// Positions that the rules never saw: a row each, and an alert of every tenant whose rules they might have met.
fn save_gaps(
    tx: &mut Tx<'_>,
    checkpoint: &Checkpoint,
    now_us: i64,
) -> Result<Vec<(TenantId, Alert)>, DbError> {
    let (scope, log_epoch) = (scope(), checkpoint.cursor.log_epoch);
    let mut opened = Vec::new();
    if checkpoint.gaps.is_empty() {
        return Ok(opened);
    }
    let tenants = store::tenants(tx, &scope)?;
    let tenants: Vec<_> = tenants.iter().filter_map(|tenant| TenantId::parse(tenant).ok()).collect();
    for (range, reason) in &checkpoint.gaps {
        store::save_gap(tx, &scope, log_epoch, range, reason, now_us)?;
        let (first, next) = (*range.start(), range.end() + 1);
        let why = format!("were not judged by rules: {reason}");
        let skipped = SkippedRange { reader: READER, log_epoch, first, next, why };
        for tenant in &tenants {
            let alert = alerts::open_skipped(tx, tenant, &skipped, now_us)?;
            opened.extend(alert.map(|row| (tenant.clone(), row)));
        }
    }
    Ok(opened)
}

/// Reads the snapshot.
pub(super) fn restore(tx: &mut Tx<'_>) -> Result<Restored, DbError> {
    let scope = scope();
    let cursor = store::cursor(tx, &scope)?;
    let snapshot = Snapshot {
        time: cursor.map(|cursor| cursor.time).unwrap_or_default(),
        states: store::states(tx, &scope)?,
        lasts: store::lasts(tx, &scope)?,
        quarantined: store::quarantined(tx, &scope)?,
    };
    Ok(Restored { cursor, snapshot })
}

/// Every enabled rule, compiled. Of what runs already nothing is read but its version: a rule's content changes only
/// together with that. One that no longer compiles does not run, and is told.
pub(super) fn rules(
    tx: &mut Tx<'_>,
    running: &[Arc<CompiledRule>],
) -> Result<Vec<Arc<CompiledRule>>, DbError> {
    let running: HashMap<(&str, &str), &Arc<CompiledRule>> =
        running.iter().map(|rule| ((rule.tenant.as_str(), rule.id.as_ref()), rule)).collect();
    let mut compiled = Vec::new();
    store::enabled_each(tx, &scope(), |stored| {
        let known = running.get(&(stored.tenant.as_str(), stored.id.as_str()));
        match known.filter(|rule| rule.version == stored.version) {
            Some(rule) => compiled.push(Arc::clone(rule)),
            None => compiled.extend(compile_stored(stored).map(Arc::new)),
        }
    })?;
    Ok(compiled)
}

fn compile_stored(stored: &StoredRule<'_>) -> Option<CompiledRule> {
    let tenant = TenantId::parse(&stored.tenant).ok()?;
    let rule = stored.read();
    let rule = rule.inspect_err(|error| {
        let tenant = tenant.as_str();
        tracing::error!(tenant, %error, "stored rule cannot be read and does not run");
    });
    let rule = rule.ok()?;
    let written =
        Written { tenant: &tenant, id: &rule.id, version: rule.version, name: &rule.name, spec: &rule.spec };
    let compiled = compile(&written);
    let compiled = compiled.inspect_err(|error| {
        tracing::error!(rule_id = %rule.id, %error, "stored rule does not compile and does not run");
    });
    compiled.ok()
}
