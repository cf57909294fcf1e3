//! How long rows are kept: a column of each row, by which ClickHouse itself deletes what is past its time.
//!
//! New rows carry the days that hold when they are packed. Where a tenant's days change, the rows that are there are told
//! (a mutation, once); a repetition after a crash changes nothing.

use super::super::retention::Policy;
use super::super::{TelemetryError, TelemetryStore};
use super::schema::TABLES;
use super::{ClickHouse, ClickHouseError, Sender};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;

impl Sender {
    /// Tells ClickHouse of tenants whose days changed. Says how many.
    ///
    /// # Errors
    /// ClickHouse or telemetry.db failed; what is left is done the next time.
    pub fn retain(&mut self) -> Result<usize, TelemetryError> {
        let changed = self.store().changed_days()?;
        let count = changed.len();
        for (tenant_id, tenant, days) in changed {
            self.run(async |clickhouse| tell(clickhouse, &tenant, days).await)?;
            self.store().note_days(tenant_id, days)?;
        }
        Ok(count)
    }
}

async fn tell(clickhouse: &ClickHouse, tenant: &str, days: u16) -> Result<(), ClickHouseError> {
    for table in TABLES {
        let sql = format!(
            "ALTER TABLE {table} UPDATE retention_days = {days} WHERE tenant = ? AND retention_days != {days}"
        );
        clickhouse.tell(clickhouse.mutator().query(&sql).bind(tenant)).await?;
    }
    tracing::info!(tenant, days, "ClickHouse was told how long rows are kept");
    Ok(())
}

impl TelemetryStore {
    fn changed_days(&self) -> Result<Vec<(i64, String, u16)>, DbError> {
        let policy: Policy = self.policy();
        self.db.read_blocking(move |tx| {
            let tenants: Vec<(i64, String, u16)> = tx.query(
                "SELECT t.id, t.name, r.days FROM tenant t JOIN remote_retention r ON r.tenant_id = t.id",
                &[],
                |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            let changed = tenants.into_iter().filter_map(|(id, name, told)| {
                let days = policy.days_kept(&name);
                (told != days).then_some((id, name, days))
            });
            Ok(changed.collect())
        })
    }

    fn note_days(&self, tenant_id: i64, days: u16) -> Result<(), DbError> {
        const NOTE: &str = "UPDATE remote_retention SET days = $2 WHERE tenant_id = $1";
        self.db.write_blocking(move |tx| tx.execute(NOTE, &[&tenant_id, &days])).map(drop)
    }
}

/// Notes the days that a tenant's first rows carry.
pub(super) fn note_first(tx: &mut Tx<'_>, tenant: &str, days: u16) -> Result<(), DbError> {
    const NOTE: &str =
        "INSERT INTO remote_retention (tenant_id, days) SELECT id, $2 FROM tenant WHERE name = $1
        ON CONFLICT (tenant_id) DO NOTHING";
    tx.execute(NOTE, &[&tenant, &days]).map(drop)
}
