//! Deleting what is older than a tenant keeps, by `received_at`, in small transactions between the batches.
//!
//! Readings go by day: a tenant's devices are emptied one by one, and a day's table is dropped once no
//! device has rows in it. The file shrinks by incremental vacuum.

use super::partition::{self, DAY_US};
use super::{TelemetryError, TelemetryStore};
use crate::platform::db::{DbError, Tx};
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

/// How long telemetry is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Days for tenants that are not named.
    pub default_days: u32,
    /// Days by tenant.
    pub tenant_days: BTreeMap<String, u32>,
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
}

impl TelemetryStore {
    /// Deletes what is past its time. Idempotent; call it hourly, outside the async runtime.
    ///
    /// # Errors
    /// The database failed; what was deleted stays deleted, the next pass goes on.
    pub fn retain(&self, policy: &Policy, now_us: i64) -> Result<Retained, TelemetryError> {
        let mut retained = Retained::default();
        let tenants: Vec<(i64, String)> = self.db.read_blocking(|tx| {
            tx.query("SELECT id, name FROM tenant", &[], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)))
        })?;
        for (tenant_id, name) in tenants {
            let days = policy.tenant_days.get(&name).copied().unwrap_or(policy.default_days);
            let first_kept = partition::day_of(now_us) - i64::from(days);
            retained.readings += self.delete_readings(tenant_id, first_kept)?;
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
            let state = self.state.clone();
            deleted += self.db.write_blocking(move |tx| {
                // A log that is days behind may still bring readings of that day: they must be noted again.
                state.lock().unwrap_or_else(PoisonError::into_inner).names.forget_days();
                empty_device_day(tx, device_id, day)
            })?;
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
            let (day, state) = (*day, self.state.clone());
            self.db.write_blocking(move |tx| {
                // Made anew if the log is so far behind that it still brings records of that day.
                state.lock().unwrap_or_else(PoisonError::into_inner).partitions.forget();
                tx.execute("DELETE FROM reading_day WHERE day = $1", &[&day])?;
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

fn empty_device_day(tx: &mut Tx<'_>, device_id: i64, day: i64) -> Result<u64, DbError> {
    let table = partition::table(day);
    let sql = format!("DELETE FROM {table} WHERE series_id IN (SELECT id FROM series WHERE device_id = $1)");
    let deleted = tx.execute(&sql, &[&device_id])?;
    tx.execute("DELETE FROM device_day WHERE device_id = $1 AND day = $2", &[&device_id, &day])?;
    Ok(deleted as u64)
}
