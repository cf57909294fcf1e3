//! Deleting what is older than a tenant keeps, by `received_at`, in small transactions between the batches: each
//! deletes at most [`ROWS_PER_STEP`] rows, or drops a day's table that is empty.
//!
//! Readings go by day: a tenant's devices are emptied one by one, and a day's table is dropped once no
//! device has rows in it. A metric whose readings are all gone goes with its last value, so that it no longer counts
//! among the device's; the device stays (its ledger outlives its readings). The file shrinks by incremental vacuum.

use super::partition::{self, DAY_US};
use super::{TelemetryError, TelemetryStore};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// Rows deleted in one transaction where they are deleted by row.
const ROWS_PER_STEP: i64 = 5_000;
/// Devices emptied of one day in one pass; the next pass goes on.
const DEVICE_DAYS_PER_PASS: i64 = 20_000;
/// Pages given back to the file system in one transaction.
const PAGES_PER_STEP: u32 = 2_000;
/// Transactions of one kind in one pass.
const STEPS_PER_PASS: usize = 1_000;
/// A metric's last value may be older than its newest reading: by minutes in the log's order, and by the span that one
/// batch has of a day. So its readings are known to be gone this many days after the last value's day.
const LAST_VALUE_DAYS: i64 = 2;

/// How long telemetry is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Days for tenants that are not named.
    pub default_days: u32,
    /// Days by tenant.
    pub tenant_days: BTreeMap<String, u32>,
}

impl Policy {
    /// Days for a tenant.
    #[must_use]
    pub fn days(&self, tenant: &str) -> u32 {
        self.tenant_days.get(tenant).copied().unwrap_or(self.default_days)
    }

    /// As [`Self::days`], as the column of a row holds it.
    pub(super) fn days_kept(&self, tenant: &str) -> u16 {
        u16::try_from(self.days(tenant)).unwrap_or(u16::MAX)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { default_days: 30, tenant_days: BTreeMap::new() }
    }
}

/// What a pass deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Readings.
    pub readings: u64,
    /// Day tables.
    pub days: u64,
    /// Events, dead letters and rejected rows.
    pub rows: u64,
    /// Metrics without readings.
    pub series: u64,
}

impl TelemetryStore {
    /// Deletes what is past its time. Idempotent; call it hourly, outside the async runtime.
    ///
    /// # Errors
    /// The database failed; what was deleted stays deleted, the next pass goes on.
    pub fn retain(&self, policy: &Policy, now_us: i64) -> Result<Retained, TelemetryError> {
        self.set_policy(policy);
        let mut retained = Retained::default();
        let tenants: Vec<(i64, String)> = self.db.read_blocking(|tx| {
            tx.query("SELECT id, name FROM tenant", &[], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)))
        })?;
        for (tenant_id, name) in tenants {
            let first_kept = partition::day_of(now_us) - i64::from(policy.days(&name));
            retained.readings += self.delete_readings(tenant_id, first_kept)?;
            retained.series += self.delete_series(tenant_id, first_kept)?;
            retained.rows += self.delete_rows(tenant_id, first_kept.saturating_mul(DAY_US))?;
        }
        retained.days = self.drop_days(now_us)?;
        self.give_back()?;
        Ok(retained)
    }

    fn delete_readings(&self, tenant_id: i64, first_kept: i64) -> Result<u64, DbError> {
        let expired: Vec<(i64, i64)> = self.db.read_blocking(move |tx| {
            tx.query(
                "SELECT dd.device_id, dd.day FROM device_day dd JOIN device d ON d.id = dd.device_id
                 WHERE dd.day < $1 AND d.tenant_id = $2 ORDER BY dd.day LIMIT $3",
                &[&first_kept, &tenant_id, &DEVICE_DAYS_PER_PASS],
                |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)),
            )
        })?;
        let mut deleted = 0;
        for (device_id, day) in expired {
            let mut is_empty = false;
            while !is_empty {
                let memtable = self.memtable.clone();
                let step = self.db.write_blocking(move |tx| {
                    let step = empty_device_day(tx, device_id, day)?;
                    if is_last(step) {
                        // A log that is days behind may still bring readings of that day: they must be noted again.
                        memtable.lock().unwrap_or_else(PoisonError::into_inner).partitions.forget_days();
                    }
                    Ok::<_, DbError>(step)
                })?;
                deleted += step;
                is_empty = is_last(step);
            }
        }
        Ok(deleted)
    }

    /// Deletes metrics of which nothing is kept, with their last values.
    fn delete_series(&self, tenant_id: i64, first_kept: i64) -> Result<u64, DbError> {
        let mut deleted = 0;
        for _ in 0..STEPS_PER_PASS {
            let old = self.db.read_blocking(move |tx| old_series(tx, tenant_id, first_kept))?;
            let found = old.len();
            if found == 0 {
                break;
            }
            let memtable = self.memtable.clone();
            let step = self.db.write_blocking(move |tx| {
                let mut memtable = memtable.lock().unwrap_or_else(PoisonError::into_inner);
                memtable.names.forget();
                let has_rows = |old: &OldSeries| memtable.rows_of(old.1, old.0).next().is_some();
                let old: Vec<OldSeries> = old.into_iter().filter(|old| !has_rows(old)).collect();
                drop_series(tx, &old, first_kept)
            })?;
            deleted += step;
            if (found as i64) < ROWS_PER_STEP || step == 0 {
                break;
            }
        }
        Ok(deleted)
    }

    fn delete_rows(&self, tenant_id: i64, before_us: i64) -> Result<u64, DbError> {
        let mut deleted = 0;
        for (table, time) in [("event", "received_at"), ("dead_letter", "received_at")] {
            for _ in 0..STEPS_PER_PASS {
                let sql = format!(
                    "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE tenant_id = $1 AND {time} < $2 LIMIT $3)"
                );
                let step = self
                    .db
                    .write_blocking(move |tx| tx.execute(&sql, &[&tenant_id, &before_us, &ROWS_PER_STEP]))?;
                deleted += step as u64;
                if (step as i64) < ROWS_PER_STEP {
                    break;
                }
            }
        }
        const REJECTED: &str = "DELETE FROM rejected WHERE tenant_id = $1 AND last_at < $2";
        let rejected = self.db.write_blocking(move |tx| tx.execute(REJECTED, &[&tenant_id, &before_us]))?;
        Ok(deleted + rejected as u64)
    }

    /// Drops the tables of past days that hold nothing any more.
    fn drop_days(&self, now_us: i64) -> Result<u64, DbError> {
        let today = partition::day_of(now_us);
        let empty: Vec<i64> = self.db.read_blocking(move |tx| {
            tx.query(
                "SELECT day FROM reading_day r WHERE day < $1 - 1
                 AND NOT EXISTS (SELECT 1 FROM device_day d WHERE d.day = r.day)",
                &[&today],
                |row| row.get(0),
            )
        })?;
        for day in &empty {
            let (day, memtable) = (*day, self.memtable.clone());
            self.db.write_blocking(move |tx| {
                // Made anew if the log is so far behind that it still brings records of that day.
                memtable.lock().unwrap_or_else(PoisonError::into_inner).partitions.forget();
                const FORGET: &str = "DELETE FROM reading_day WHERE day = $1
                    AND NOT EXISTS (SELECT 1 FROM device_day WHERE day = $1)";
                if tx.execute(FORGET, &[&day])? == 0 {
                    return Ok(0);
                }
                tx.execute(&format!("DROP TABLE IF EXISTS {}", partition::table(day)), &[])
            })?;
        }
        Ok(empty.len() as u64)
    }

    fn give_back(&self) -> Result<(), DbError> {
        let mut left = u64::MAX;
        for _ in 0..STEPS_PER_PASS {
            let now: u64 = self.db.write_blocking(|tx| tx.give_pages_back(PAGES_PER_STEP))?;
            if now == 0 || now >= left {
                break;
            }
            left = now;
        }
        Ok(())
    }
}

/// Whether a step that deleted so many rows left none.
fn is_last(deleted: u64) -> bool {
    deleted < ROWS_PER_STEP.cast_unsigned()
}

/// Deletes at most [`ROWS_PER_STEP`] rows; the note that the day has some goes with the last of them.
fn empty_device_day(tx: &mut Tx<'_>, device_id: i64, day: i64) -> Result<u64, DbError> {
    let (table, key) = (partition::table(day), "series_id, ts, queue_ref, seq, idx");
    let sql = format!(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table}
         WHERE series_id IN (SELECT id FROM series WHERE device_id = $1) LIMIT $2)"
    );
    let deleted = tx.execute(&sql, &[&device_id, &ROWS_PER_STEP])? as u64;
    if is_last(deleted) {
        tx.execute("DELETE FROM device_day WHERE device_id = $1 AND day = $2", &[&device_id, &day])?;
    }
    Ok(deleted)
}

/// A series, its device, and when its last value came.
type OldSeries = (i64, i64, i64);

/// At most [`ROWS_PER_STEP`] series whose readings are all deleted. A device with expired days that are not emptied
/// yet keeps all of its: the days are emptied by series.
fn old_series(tx: &mut Tx<'_>, tenant_id: i64, first_kept: i64) -> Result<Vec<OldSeries>, DbError> {
    let before_us = (first_kept - LAST_VALUE_DAYS).saturating_mul(DAY_US);
    tx.query(
        "SELECT l.series_id, l.device_id, l.received_at FROM device d JOIN last_value l ON l.device_id = d.id
         WHERE d.tenant_id = $1 AND l.received_at < $2
         AND NOT EXISTS (SELECT 1 FROM device_day dd WHERE dd.device_id = d.id AND dd.day < $3) LIMIT $4",
        &[&tenant_id, &before_us, &first_kept, &ROWS_PER_STEP],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// Deletes those that are still old: a batch may have come since they were found.
fn drop_series(tx: &mut Tx<'_>, old: &[OldSeries], first_kept: i64) -> Result<u64, DbError> {
    const LAST: &str = "DELETE FROM last_value WHERE series_id = $1 AND received_at = $2
        AND NOT EXISTS (SELECT 1 FROM device_day WHERE device_id = $3 AND day < $4)";
    // The last value told when the device was last heard of: its own row does now.
    const SEEN: &str = "UPDATE device SET presence_at = max(presence_at, $2) WHERE id = $1";
    let mut deleted = 0;
    for (series_id, device_id, received_at) in old {
        if tx.execute(LAST, &[series_id, received_at, device_id, &first_kept])? == 1 {
            tx.execute(SEEN, &[device_id, received_at])?;
            tx.execute("DELETE FROM series WHERE id = $1", &[series_id])?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Bench;
    use super::*;

    #[test]
    fn a_day_is_emptied_in_steps_and_noted_until_its_last_row_is_gone() {
        let bench = Bench::embedded();
        let steps = bench.store.db().write_blocking(|tx| {
            tx.execute("INSERT INTO tenant VALUES (1, 'acme')", &[])?;
            tx.execute("INSERT INTO device (id, tenant_id, name) VALUES (1, 1, 'cam')", &[])?;
            tx.execute("INSERT INTO series VALUES (1, 1, 'a', NULL), (2, 1, 'b', NULL)", &[])?;
            tx.execute("INSERT INTO device_day VALUES (1, 7, 0, 1)", &[])?;
            partition::Partitions::default().insert(tx, 7, &[])?;
            let rows = 2 * ROWS_PER_STEP + 1;
            tx.execute(
                "INSERT INTO reading_7 WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < $1)
                 SELECT 1 + n % 2, n, 1, n, 0, 0, 1.0 FROM n",
                &[&rows],
            )?;
            let mut steps = Vec::new();
            for _ in 0..3 {
                let deleted = empty_device_day(tx, 1, 7)?;
                let noted: i64 = tx.query_one("SELECT count(*) FROM device_day", &[], |row| row.get(0))?;
                steps.push((deleted, noted));
            }
            Ok::<_, DbError>(steps)
        });
        assert_eq!(steps.unwrap(), [(5_000, 1), (5_000, 1), (1, 0)]);
    }
}
