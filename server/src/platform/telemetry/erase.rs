//! Erases what is stored of devices, and what is left of a tenant.
//!
//! `erasure` calls it, outside the async runtime. It has shut the devices out before, so that nothing of them enters the
//! event log any more, and says up to where the log may hold something.
//!
//! Promise: after [`Erased::Done`] the tables hold nothing of the devices, and nothing that stands in the log comes back:
//! the last commit takes the rows, and moves every mark behind that place (ADR 0016), so whoever reads the log again
//! after a crash begins behind it. It is synced before it is told. Until then each step may be done again.
//!
//! Where readings and events are in ClickHouse, their blocks are sent first ([`TelemetryStore::flush_to`], then
//! [`TelemetryStore::unsent`]), the rows there are deleted ([`TelemetryStore::erase_remote`]), and the names here go last.
//!
//! Limits: [`ROWS_PER_STEP`] rows a transaction, but for the last one.

use super::clickhouse::{self, Deleted, Whose};
use super::flush;
use super::ledger::Ledger;
use super::memtable::{Memtable, SHARDS};
use super::partition;
use super::{TelemetryError, TelemetryStore, device_of, tenant_of};
use crate::platform::db::sqlite::Tx;
use crate::platform::db::{DbError, Scope};
use std::sync::atomic::Ordering;

/// Rows deleted in one transaction.
const ROWS_PER_STEP: i64 = 5_000;

/// A place in the event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// Of the log.
    pub epoch: u64,
    /// All below.
    pub position: u64,
}

/// How far an erasure came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erased {
    /// The store has not read the log up to the place; try again later.
    NotYet,
    /// Nothing is left. So many rows were deleted by this call.
    Done(u64),
}

impl TelemetryStore {
    /// Whether all of the log below a place is applied. Where it is not, somebody waits for it ([`Self::is_awaited`]).
    #[must_use]
    pub fn has_read(&self, place: LogPlace) -> bool {
        let stands = self.memtable().position.as_ref().map(|at| (at.epoch, at.applied));
        match stands {
            Some((epoch, applied)) if epoch == place.epoch && applied >= place.position => true,
            Some((epoch, _)) if epoch == place.epoch => {
                self.awaited.fetch_max(place.position, Ordering::Relaxed);
                false
            }
            _ => false,
        }
    }

    /// Whether somebody waits until the log is applied beyond a position, be it ticks alone.
    #[must_use]
    pub fn is_awaited(&self, position: u64) -> bool {
        self.awaited.load(Ordering::Relaxed) > position
    }

    /// The tenant's devices of which something is stored, by name from after `after` on.
    ///
    /// # Errors
    /// The database failed.
    pub fn stored_devices(&self, scope: &Scope, after: &str, limit: i64) -> Result<Vec<String>, DbError> {
        let (scope, after) = (scope.clone(), after.to_owned());
        self.db.read_blocking(move |tx| {
            let tenant = tenant_of(tx, &scope)?.id();
            const PAGE: &str =
                "SELECT name FROM device WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3";
            tx.query(PAGE, &[&tenant, &after, &limit], |row| row.get(0))
        })
    }

    /// When a device, or the newest of the tenant's, connected that is connected still, as far as the store has read.
    ///
    /// # Errors
    /// The database failed.
    pub fn connected_since(&self, scope: &Scope, device: Option<&str>) -> Result<Option<i64>, DbError> {
        let (scope, device) = (scope.clone(), device.map(str::to_owned));
        self.db.read_blocking(move |tx| {
            let tenant = tenant_of(tx, &scope)?.id();
            const FIND: &str = "SELECT max(presence_at) FROM device
                WHERE tenant_id = $1 AND connected = 1 AND ($2 IS NULL OR name = $2)";
            tx.query_one(FIND, &[&tenant, &device], |row| row.get(0))
        })
    }

    /// Moves all of the log below a place into the tables, or into blocks for ClickHouse, and syncs it. Gives the newest
    /// block's number for [`Self::unsent`]; none where the store has not read so far.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn flush_to(&self, place: LogPlace) -> Result<Option<i64>, TelemetryError> {
        if !self.has_read(place) {
            return Ok(None);
        }
        // Each once: on a busy store there is always something.
        for shard in 0..SHARDS {
            let is_pending = self.memtable().is_pending(shard);
            if is_pending {
                self.flush(shard)?;
            }
        }
        let newest = self.db.read_blocking(newest_event)?;
        while self.db.read_blocking(clickhouse::state)?.events_packed < newest && self.flush_events()? {}
        // What was thrown away after a failure is read again.
        if self.settle()? < place.position {
            return Ok(None);
        }
        let made = self.db.read_blocking(clickhouse::state)?.made;
        self.sync()?;
        Ok(Some(made))
    }

    /// How many blocks up to a number ClickHouse has not taken yet.
    ///
    /// # Errors
    /// There are some, and ClickHouse does not answer; the database failed.
    pub fn unsent(&self, batch: i64) -> Result<u64, TelemetryError> {
        let Some(remote) = &self.remote else { return Ok(0) };
        let waiting = self.db.read_blocking(move |tx| clickhouse::waiting(tx, batch))?;
        if waiting > 0 {
            remote.ask(async |clickhouse| clickhouse.check().await)?;
        }
        Ok(waiting)
    }

    /// Deletes what ClickHouse has of a device, or of the whole tenant; call it until nothing is left. What waits to be
    /// sent must have been.
    ///
    /// # Errors
    /// ClickHouse or the disk failed; call it again.
    pub fn erase_remote(&self, scope: &Scope, device: Option<&str>) -> Result<Deleted, TelemetryError> {
        let Some(remote) = &self.remote else { return Ok(Deleted::default()) };
        // Were a power cut to take back that a block was confirmed, it would be sent again; ClickHouse may have
        // forgotten its token together with the rows.
        self.sync()?;
        let whose = Whose::of(scope, device)?;
        remote.ask(async |clickhouse| clickhouse.erase(&whose).await)
    }

    pub(super) fn id_of(&self, scope: &Scope, device: &str) -> Result<Option<i64>, DbError> {
        let (scope, device) = (scope.clone(), device.to_owned());
        self.db.read_blocking(move |tx| device_of(tx, &scope, &device))
    }

    /// Erases devices; see the module.
    ///
    /// # Errors
    /// The database or the disk failed; call it again.
    pub fn erase_devices(
        &self,
        scope: &Scope,
        devices: &[String],
        place: LogPlace,
    ) -> Result<Erased, TelemetryError> {
        if !self.has_read(place) {
            return Ok(Erased::NotYet);
        }
        let mut ids = Vec::new();
        for device in devices {
            ids.extend(self.id_of(scope, device)?);
        }
        let mut rows = 0;
        if !ids.is_empty() {
            let going = ids.clone();
            self.change(move |tx, memtable, _| drop_unflushed(tx, memtable, &going))?;
            if self.flush_to(place)?.is_none() {
                return Ok(Erased::NotYet);
            }
            for id in &ids {
                rows += self.delete_in_steps(*id)?;
            }
            // Their names and what was flushed of them just now go in one commit with the marks.
            let gone = ids.clone();
            let last = self.change_last(place, ids, move |tx| {
                let mut rows = 0;
                for id in &gone {
                    rows += overwriting(tx, |tx| delete_rest(tx, *id))?;
                }
                Ok(Some(rows))
            })?;
            match last {
                Some(last) => rows += last,
                None => return Ok(Erased::NotYet),
            }
        }
        self.sync()?;
        Ok(Erased::Done(rows))
    }

    /// Erases what a tenant has besides devices: its counters and its name. Devices must be gone.
    ///
    /// # Errors
    /// The database or the disk failed; call it again.
    pub fn erase_tenant(&self, scope: &Scope, place: LogPlace) -> Result<Erased, TelemetryError> {
        if !self.has_read(place) {
            return Ok(Erased::NotYet);
        }
        let scope = scope.clone();
        let rows = self.change_last(place, Vec::new(), move |tx| {
            let Some(id) = tenant_of(tx, &scope)?.id() else { return Ok(Some(0)) };
            const LEFT: &str = "SELECT count(*) FROM device WHERE tenant_id = $1";
            if tx.query_one(LEFT, &[&id], |row| row.get::<i64>(0))? > 0 {
                return Ok(None);
            }
            let mut rows = 0;
            for table in ["counter", "dead_letter", "rejected", "event", "remote_retention"] {
                rows += tx.execute(&format!("DELETE FROM {table} WHERE tenant_id = $1"), &[&id])?;
            }
            tx.execute("DELETE FROM tenant WHERE id = $1", &[&id])?;
            Ok(Some(rows as u64))
        })?;
        let Some(rows) = rows else { return Ok(Erased::NotYet) };
        self.sync()?;
        Ok(Erased::Done(rows))
    }

    /// The commit that takes names: what the memtable holds is flushed in it, but for readings and events of the devices
    /// that go. None where a mark is not behind the place then.
    fn change_last(
        &self,
        place: LogPlace,
        going: Vec<i64>,
        delete: impl FnOnce(&mut Tx<'_>) -> Result<Option<u64>, TelemetryError> + Send + 'static,
    ) -> Result<Option<u64>, TelemetryError> {
        let (sink, size) = (self.sink(), self.shards_at_once());
        self.leave_outbox_bound()?;
        let changed = self.change(move |tx, memtable, faults| {
            drop_unflushed(tx, memtable, &going)?;
            for shard in 0..SHARDS {
                if memtable.is_pending(shard) {
                    flush::shards(tx, memtable, &Memtable::group_of(shard, size), &sink, faults)?;
                }
            }
            flush::settle(tx, memtable)?;
            let stands = memtable.position.as_ref();
            if !stands.is_some_and(|at| at.epoch == place.epoch && at.marks.oldest() >= place.position) {
                return Ok(None);
            }
            memtable.names.forget();
            memtable.partitions.forget_days();
            // Nothing of it is dirty: a cache of rows, of which some are about to go.
            memtable.ledger = Ledger::default();
            delete(tx)
        })?;
        self.note_made()?;
        Ok(changed)
    }

    /// Deletes what there is much of.
    fn delete_in_steps(&self, id: i64) -> Result<u64, DbError> {
        let days: Vec<i64> = self.db.read_blocking(move |tx| days(tx, id))?;
        let mut deleted = 0;
        let readings = days.into_iter().map(|day| {
            let (table, key) = (partition::table(day), "series_id, ts, queue_ref, seq, idx");
            format!(
                "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table}
                 WHERE series_id IN (SELECT id FROM series WHERE device_id = $1) LIMIT $2)"
            )
        });
        let events =
            "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE device_id = $1 LIMIT $2)".to_owned();
        let ranges = "DELETE FROM queue_range WHERE (ref, first) IN (SELECT ref, first FROM queue_range
                      WHERE ref IN (SELECT ref FROM queue WHERE device_id = $1) LIMIT $2)"
            .to_owned();
        for sql in readings.chain([events, ranges]) {
            loop {
                let sql = sql.clone();
                let step = self.db.write_blocking(move |tx| {
                    overwriting(tx, |tx| tx.execute(&sql, &[&id, &ROWS_PER_STEP]))
                })?;
                deleted += step as u64;
                if (step as i64) < ROWS_PER_STEP {
                    break;
                }
            }
        }
        Ok(deleted)
    }
}

const EVENTS: &str = "DELETE FROM event WHERE device_id = $1";

/// What would become rows or blocks in the next flush.
fn drop_unflushed(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    device_ids: &[i64],
) -> Result<(), TelemetryError> {
    memtable.drop_rows_of(device_ids);
    for id in device_ids {
        overwriting(tx, |tx| tx.execute(EVENTS, &[id]))?;
    }
    Ok(())
}

fn newest_event(tx: &mut Tx<'_>) -> Result<i64, DbError> {
    tx.query_one("SELECT ifnull(max(id), 0) FROM event", &[], |row| row.get(0))
}

/// What is deleted meanwhile is filled with zeros; retention deletes without.
fn overwriting<T>(
    tx: &mut Tx<'_>,
    delete: impl FnOnce(&mut Tx<'_>) -> Result<T, DbError>,
) -> Result<T, DbError> {
    tx.query_opt("PRAGMA secure_delete = ON", &[], |row| row.get::<i64>(0))?;
    let deleted = delete(tx);
    tx.query_opt("PRAGMA secure_delete = OFF", &[], |row| row.get::<i64>(0))?;
    deleted
}

pub(super) fn days(tx: &mut Tx<'_>, id: i64) -> Result<Vec<i64>, DbError> {
    tx.query("SELECT day FROM device_day WHERE device_id = $1 ORDER BY day", &[&id], |row| row.get(0))
}

/// Everything that names a device, the device last.
fn delete_rest(tx: &mut Tx<'_>, id: i64) -> Result<u64, DbError> {
    let mut rows = 0;
    for day in days(tx, id)? {
        let sql = format!(
            "DELETE FROM {} WHERE series_id IN (SELECT id FROM series WHERE device_id = $1)",
            partition::table(day)
        );
        rows += tx.execute(&sql, &[&id])?;
    }
    for sql in [
        EVENTS,
        "DELETE FROM dead_letter WHERE device_id = $1",
        "DELETE FROM rejected WHERE device_id = $1",
        "DELETE FROM queue_range WHERE ref IN (SELECT ref FROM queue WHERE device_id = $1)",
        "DELETE FROM queue_merged WHERE device_id = $1",
        "DELETE FROM queue WHERE device_id = $1",
        "DELETE FROM last_value WHERE device_id = $1",
        "DELETE FROM series WHERE device_id = $1",
        "DELETE FROM device_day WHERE device_id = $1",
        "DELETE FROM device WHERE id = $1",
    ] {
        rows += tx.execute(sql, &[&id])?;
    }
    Ok(rows as u64)
}
