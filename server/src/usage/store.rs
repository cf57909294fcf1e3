//! The tables `tenant_quotas`, `usage_*` and `price_list`.

use super::gap::Gap;
use super::model::{Counts, DayRow, Level, Notice, Quota, QuotaSpec, Refused};
use crate::platform::db::{DbError, Row, Scope, Tx};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Days that go at once: what a clock that is wrong for a moment can cost.
const PRUNE_DAYS_MAX: i64 = 3;

/// Where the reader stands in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Which log.
    pub(super) log_epoch: u64,
    /// The next position to count.
    pub(super) position: u64,
    /// Commits so far, of all logs.
    pub(super) commits: u64,
    /// Who wrote it: random, of one reader's life.
    pub(super) writer: u64,
    /// What was received before this is counted.
    pub(super) counted_us: i64,
}

fn bad(column: &str) -> DbError {
    DbError::Column { column: column.into() }
}

fn number(row: &Row<'_>, column: usize) -> Result<u64, DbError> {
    u64::try_from(row.get::<i64>(column)?).map_err(|_| bad(&format!("{column}")))
}

/// As a column's value; counts stay far below.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

// ---- quotas ----

/// Every tenant's own quotas.
pub(super) fn quotas_all(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<(String, QuotaSpec)>, DbError> {
    tx.query(scope, "SELECT tenant, spec FROM tenant_quotas", &[], |row| {
        let spec = serde_json::from_str(&row.get::<String>(1)?).map_err(|_| bad("spec"))?;
        Ok((row.get(0)?, spec))
    })
}

/// A tenant's own quotas.
pub(super) fn quotas_get(tx: &mut Tx<'_>, scope: &Scope) -> Result<Option<QuotaSpec>, DbError> {
    let sql = "SELECT spec FROM tenant_quotas WHERE tenant = $1";
    tx.query_opt(scope, sql, &[&scope.tenant()?], |row| {
        serde_json::from_str(&row.get::<String>(0)?).map_err(|_| bad("spec"))
    })
}

/// Writes a tenant's own quotas; none takes them away.
pub(super) fn quotas_put(
    tx: &mut Tx<'_>,
    scope: &Scope,
    spec: Option<&QuotaSpec>,
    by: &str,
    now_us: i64,
) -> Result<(), DbError> {
    let tenant = scope.tenant()?;
    let Some(spec) = spec else {
        tx.execute(scope, "DELETE FROM tenant_quotas WHERE tenant = $1", &[&tenant])?;
        return Ok(());
    };
    let text = serde_json::to_string(spec).map_err(|_| bad("spec"))?;
    tx.execute(
        scope,
        "INSERT INTO tenant_quotas (tenant, spec, changed_by, changed_at_us) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant) DO UPDATE SET spec = $2, changed_by = $3, changed_at_us = $4",
        &[&tenant, &text, &by, &now_us],
    )?;
    Ok(())
}

// ---- the reader's place ----

/// Where the reader stands in each log.
pub(super) fn cursors(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<Cursor>, DbError> {
    let sql = "SELECT log_epoch, position, commits, writer, counted_us FROM usage_cursor";
    tx.query(scope, sql, &[], |row| {
        let (log_epoch, writer) = (hex(&row.get::<String>(0)?)?, hex(&row.get::<String>(3)?)?);
        let (position, commits) = (number(row, 1)?, number(row, 2)?);
        Ok(Cursor { log_epoch, position, commits, writer, counted_us: row.get(4)? })
    })
}

fn hex(text: &str) -> Result<u64, DbError> {
    u64::from_str_radix(text, 16).map_err(|_| bad("hex"))
}

/// Moves the cursor of a log from one commit, none before its first, to the next of all logs; false where another came
/// between.
pub(super) fn cursor_move(
    tx: &mut Tx<'_>,
    scope: &Scope,
    commits_before: Option<u64>,
    to: &Cursor,
    now_us: i64,
) -> Result<bool, DbError> {
    let sql = "SELECT CAST(coalesce(max(commits), 0) AS BIGINT) FROM usage_cursor";
    if tx.query_one(scope, sql, &[], |row| number(row, 0))? + 1 != to.commits {
        return Ok(false);
    }
    let (epoch, writer, position) =
        (format!("{:016x}", to.log_epoch), format!("{:016x}", to.writer), int(to.position));
    let rows = match commits_before {
        None => tx.execute(
            scope,
            "INSERT INTO usage_cursor (log_epoch, position, commits, writer, counted_us, saved_at_us)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
            &[&epoch, &position, &int(to.commits), &writer, &to.counted_us, &now_us],
        )?,
        Some(before) => tx.execute(
            scope,
            "UPDATE usage_cursor
             SET position = $2, commits = $3, writer = $4, counted_us = $5, saved_at_us = $6
             WHERE log_epoch = $1 AND commits = $7",
            &[&epoch, &position, &int(to.commits), &writer, &to.counted_us, &now_us, &int(before)],
        )?,
    };
    Ok(rows == 1)
}

/// Notes what was never counted.
pub(super) fn gap_put(tx: &mut Tx<'_>, scope: &Scope, gap: &Gap) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO usage_gaps (log_epoch, first, last, since_us, at_us, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING",
        &[
            &format!("{:016x}", gap.log_epoch),
            &int(gap.first),
            &gap.last.map(int),
            &gap.since_us,
            &gap.at_us,
            &gap.why,
        ],
    )?;
    Ok(())
}

/// The reader is back at a log: what it held beyond is counted after all.
pub(super) fn gap_close(tx: &mut Tx<'_>, scope: &Scope, log_epoch: u64) -> Result<(), DbError> {
    let sql = "DELETE FROM usage_gaps WHERE log_epoch = $1 AND last IS NULL";
    tx.execute(scope, sql, &[&format!("{log_epoch:016x}")])?;
    Ok(())
}

/// What was never counted and may have been received between two times, the newest first.
pub(super) fn gaps_between(
    tx: &mut Tx<'_>,
    scope: &Scope,
    (from_us, until_us): (i64, i64),
    limit: i64,
) -> Result<Vec<Gap>, DbError> {
    let sql = "SELECT log_epoch, first, last, since_us, at_us, reason FROM usage_gaps
               WHERE since_us < $2 AND at_us >= $1 ORDER BY at_us DESC, log_epoch, first LIMIT $3";
    tx.query(scope, sql, &[&from_us, &until_us, &limit], |row| {
        let last = row.get::<Option<i64>>(2)?.map(u64::try_from).transpose().map_err(|_| bad("last"))?;
        let (log_epoch, first) = (hex(&row.get::<String>(0)?)?, number(row, 1)?);
        Ok(Gap { log_epoch, first, last, since_us: row.get(3)?, at_us: row.get(4)?, why: row.get(5)? })
    })
}

// ---- meters ----

/// Adds to a tenant's day.
pub(super) fn day_add(tx: &mut Tx<'_>, scope: &Scope, row: &DayRow) -> Result<(), DbError> {
    let counts = &row.counts;
    tx.execute(
        scope,
        "INSERT INTO usage_days AS d (tenant, day, messages, bytes, readings, events, event_bytes, inference_us,
                                      peak_per_s, devices, storage_bytes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (tenant, day) DO UPDATE SET
             messages = d.messages + excluded.messages, bytes = d.bytes + excluded.bytes,
             readings = d.readings + excluded.readings, events = d.events + excluded.events,
             event_bytes = d.event_bytes + excluded.event_bytes,
             inference_us = d.inference_us + excluded.inference_us,
             peak_per_s = CASE WHEN excluded.peak_per_s > d.peak_per_s THEN excluded.peak_per_s ELSE d.peak_per_s END,
             devices = CASE WHEN excluded.devices > d.devices THEN excluded.devices ELSE d.devices END,
             storage_bytes = CASE WHEN excluded.storage_bytes > d.storage_bytes THEN excluded.storage_bytes
                                  ELSE d.storage_bytes END",
        &[
            &row.tenant,
            &row.day,
            &int(counts.messages),
            &int(counts.bytes),
            &int(counts.readings),
            &int(counts.events),
            &int(counts.event_bytes),
            &int(counts.inference_us),
            &int(counts.peak_per_s),
            &int(row.devices),
            &int(row.storage_bytes),
        ],
    )?;
    for (reason, messages) in Refused::ALL.iter().zip(counts.refused).filter(|(_, messages)| *messages > 0) {
        tx.execute(
            scope,
            "INSERT INTO usage_refusals AS r (tenant, day, reason, messages) VALUES ($1, $2, $3, $4)
             ON CONFLICT (tenant, day, reason) DO UPDATE SET messages = r.messages + excluded.messages",
            &[&row.tenant, &row.day, &reason.as_str(), &int(messages)],
        )?;
    }
    Ok(())
}

const DAY_COLUMNS: &str = "tenant, day, messages, bytes, readings, events, event_bytes, inference_us, peak_per_s, \
     devices, storage_bytes";

fn day_row(row: &Row<'_>) -> Result<DayRow, DbError> {
    let counts = Counts {
        messages: number(row, 2)?,
        bytes: number(row, 3)?,
        readings: number(row, 4)?,
        events: number(row, 5)?,
        event_bytes: number(row, 6)?,
        inference_us: number(row, 7)?,
        peak_per_s: number(row, 8)?,
        refused: [0; 13],
    };
    let (devices, storage_bytes) = (number(row, 9)?, number(row, 10)?);
    Ok(DayRow { tenant: row.get(0)?, day: row.get(1)?, counts, devices, storage_bytes })
}

/// A tenant's days, oldest first, with their refusals.
pub(super) fn days_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    days: &RangeInclusive<i64>,
) -> Result<Vec<DayRow>, DbError> {
    let (tenant, first, last) = (scope.tenant()?, *days.start(), *days.end());
    let sql = format!(
        "SELECT {DAY_COLUMNS} FROM usage_days WHERE tenant = $1 AND day >= $2 AND day <= $3 ORDER BY day"
    );
    let mut rows = tx.query(scope, &sql, &[&tenant, &first, &last], day_row)?;
    let sql = "SELECT tenant, day, reason, messages FROM usage_refusals
               WHERE tenant = $1 AND day >= $2 AND day <= $3";
    join_refusals(tx, scope, sql, &[&tenant, &first, &last], &mut rows)?;
    Ok(rows)
}

/// Every tenant's days from after `(day, tenant)` on, with their refusals.
pub(super) fn days_all(
    tx: &mut Tx<'_>,
    scope: &Scope,
    days: &RangeInclusive<i64>,
    after: &(i64, String),
    limit: i64,
) -> Result<Vec<DayRow>, DbError> {
    let (first, last) = (*days.start(), *days.end());
    let sql = format!(
        "SELECT {DAY_COLUMNS} FROM usage_days
         WHERE day >= $1 AND day <= $2 AND (day > $3 OR (day = $3 AND tenant > $4))
         ORDER BY day, tenant LIMIT $5"
    );
    let mut rows = tx.query(scope, &sql, &[&first, &last, &after.0, &after.1, &limit], day_row)?;
    let Some((oldest, newest)) = rows.first().map(|row| row.day).zip(rows.last().map(|row| row.day)) else {
        return Ok(rows);
    };
    let sql = "SELECT tenant, day, reason, messages FROM usage_refusals WHERE day >= $1 AND day <= $2";
    join_refusals(tx, scope, sql, &[&oldest, &newest], &mut rows)?;
    Ok(rows)
}

fn join_refusals(
    tx: &mut Tx<'_>,
    scope: &Scope,
    sql: &str,
    args: &[&dyn crate::platform::db::ToSql],
    rows: &mut [DayRow],
) -> Result<(), DbError> {
    let places: HashMap<(String, i64), usize> =
        rows.iter().enumerate().map(|(at, row)| ((row.tenant.clone(), row.day), at)).collect();
    tx.for_each(scope, sql, args, |row| {
        let key = (row.get::<String>(0)?, row.get::<i64>(1)?);
        let reason = Refused::parse(&row.get::<String>(2)?).ok_or_else(|| bad("reason"))?;
        if let Some(at) = places.get(&key) {
            rows[*at].counts.refused[reason as usize] = number(row, 3)?;
        }
        Ok::<_, DbError>(())
    })
}

/// Every tenant's row of one day, without refusals.
pub(super) fn days_on(tx: &mut Tx<'_>, scope: &Scope, day: i64) -> Result<Vec<DayRow>, DbError> {
    tx.query(scope, &format!("SELECT {DAY_COLUMNS} FROM usage_days WHERE day = $1"), &[&day], day_row)
}

/// Readings, events and the events' bytes of every tenant on the days from `first` to before `next`.
pub(super) fn stored_sums(
    tx: &mut Tx<'_>,
    scope: &Scope,
    first: i64,
    next: i64,
) -> Result<Vec<(String, Counts)>, DbError> {
    let sql = "SELECT tenant, CAST(sum(readings) AS BIGINT), CAST(sum(events) AS BIGINT), CAST(sum(event_bytes) AS BIGINT)
               FROM usage_days WHERE day >= $1 AND day < $2 GROUP BY tenant";
    tx.query(scope, sql, &[&first, &next], |row| {
        let (readings, events, event_bytes) = (number(row, 1)?, number(row, 2)?, number(row, 3)?);
        Ok((row.get(0)?, Counts { readings, events, event_bytes, ..Counts::default() }))
    })
}

/// Tenants that are being or were erased.
pub(super) fn tenants_erased(tx: &mut Tx<'_>, scope: &Scope) -> Result<Vec<String>, DbError> {
    tx.query(scope, "SELECT DISTINCT tenant FROM erasures WHERE device = ''", &[], |row| row.get(0))
}

/// Deletes what is older than a day, at most [`PRUNE_DAYS_MAX`] days of it.
pub(super) fn prune(tx: &mut Tx<'_>, scope: &Scope, before: i64) -> Result<(), DbError> {
    let oldest =
        tx.query_one(scope, "SELECT min(day) FROM usage_days", &[], |row| row.get::<Option<i64>>(0))?;
    let before = oldest.map_or(before, |oldest| before.min(oldest + PRUNE_DAYS_MAX));
    for table in ["usage_days", "usage_refusals", "usage_notices"] {
        tx.execute(scope, &format!("DELETE FROM {table} WHERE day < $1"), &[&before])?;
    }
    Ok(())
}

// ---- notices ----

const NOTICE_COLUMNS: &str = "tenant, day, quota, level, used, allowed, at_us";

fn notice(row: &Row<'_>) -> Result<Notice, DbError> {
    Ok(Notice {
        tenant: row.get(0)?,
        day: row.get(1)?,
        quota: Quota::parse(&row.get::<String>(2)?).ok_or_else(|| bad("quota"))?,
        level: Level::parse(&row.get::<String>(3)?).ok_or_else(|| bad("level"))?,
        used: number(row, 4)?,
        allowed: number(row, 5)?,
        at_us: row.get(6)?,
    })
}

/// Notes a limit that was reached, once a day.
pub(super) fn notice_put(tx: &mut Tx<'_>, scope: &Scope, notice: &Notice) -> Result<(), DbError> {
    let sql = format!(
        "INSERT INTO usage_notices ({NOTICE_COLUMNS}, told) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)
         ON CONFLICT DO NOTHING"
    );
    let (quota, level) = (notice.quota.as_str(), notice.level.as_str());
    let (used, allowed) = (int(notice.used), int(notice.allowed));
    tx.execute(scope, &sql, &[&notice.tenant, &notice.day, &quota, &level, &used, &allowed, &notice.at_us])?;
    Ok(())
}

/// Every tenant's notices of one day.
pub(super) fn notices_on(tx: &mut Tx<'_>, scope: &Scope, day: i64) -> Result<Vec<Notice>, DbError> {
    tx.query(scope, &format!("SELECT {NOTICE_COLUMNS} FROM usage_notices WHERE day = $1"), &[&day], notice)
}

/// A tenant's notices, oldest first.
pub(super) fn notices_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    days: &RangeInclusive<i64>,
) -> Result<Vec<Notice>, DbError> {
    let sql = format!(
        "SELECT {NOTICE_COLUMNS} FROM usage_notices WHERE tenant = $1 AND day >= $2 AND day <= $3
         ORDER BY day, at_us, quota, level"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, days.start(), days.end()], notice)
}

/// Notices whose alert is not open yet, the oldest first; an erased tenant is told nothing.
pub(super) fn notices_untold(tx: &mut Tx<'_>, scope: &Scope, limit: i64) -> Result<Vec<Notice>, DbError> {
    let sql = format!(
        "SELECT {NOTICE_COLUMNS} FROM usage_notices WHERE told = 0
         AND tenant NOT IN (SELECT tenant FROM erasures WHERE device = '')
         ORDER BY day, tenant LIMIT $1"
    );
    tx.query(scope, &sql, &[&limit], notice)
}

/// Notes that a notice's alert is open.
pub(super) fn notice_told(tx: &mut Tx<'_>, scope: &Scope, notice: &Notice) -> Result<(), DbError> {
    let (quota, level) = (notice.quota.as_str(), notice.level.as_str());
    tx.execute(
        scope,
        "UPDATE usage_notices SET told = 1 WHERE tenant = $1 AND day = $2 AND quota = $3 AND level = $4",
        &[&notice.tenant, &notice.day, &quota, &level],
    )?;
    Ok(())
}

// ---- the price list ----

/// The price list's text.
pub(super) fn prices(tx: &mut Tx<'_>, scope: &Scope) -> Result<Option<String>, DbError> {
    tx.query_opt(scope, "SELECT spec FROM price_list WHERE id = 1", &[], |row| row.get(0))
}

/// Writes the price list.
pub(super) fn prices_put(
    tx: &mut Tx<'_>,
    scope: &Scope,
    spec: &str,
    by: &str,
    now_us: i64,
) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO price_list (id, spec, changed_by, changed_at_us) VALUES (1, $1, $2, $3)
         ON CONFLICT (id) DO UPDATE SET spec = $1, changed_by = $2, changed_at_us = $3",
        &[&spec, &by, &now_us],
    )?;
    Ok(())
}
