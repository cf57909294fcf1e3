//! Reads out and erases what is stored of one device, and what is left of a tenant.
//!
//! `erasure` calls it, outside the async runtime. It has shut the device out before, so that nothing of it enters the
//! event log any more, and says up to where the log may hold something.
//!
//! Promise: after [`Erased::Done`] the tables hold nothing of the device, and nothing that stands in the log comes back:
//! the last commit takes the rows, and moves every mark behind that place (ADR 0016), so whoever reads the log again
//! after a crash begins behind it. It is synced before it is told. Until then each step may be done again.
//!
//! Limits: [`ROWS_PER_STEP`] rows a transaction, but for the last one. Where readings are in ClickHouse, nothing is read
//! out and nothing erased: [`TelemetryError::NotErasable`].

use super::accounts::device_ledger;
use super::flush::{self, Sink};
use super::ledger::Ledger;
use super::memtable::{SHARDS, shard_of};
use super::partition;
use super::{TelemetryError, TelemetryStore, device_of, from_sql, tenant_of};
use crate::platform::db::sqlite::{Row, Tx};
use crate::platform::db::{DbError, Scope};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_wire::QueueId;
use serde_json::{Value as Json, json};

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

/// What is read out, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Every reading.
    Readings,
    /// Every event.
    Events,
    /// The device's ledger, one line.
    Ledger,
    /// Bodies that could not be decoded.
    DeadLetters,
    /// Messages that the gateway refused, by the minute.
    Rejected,
}

impl Part {
    /// All, in the order that they are read.
    pub const ALL: [Self; 5] =
        [Self::Readings, Self::Events, Self::Ledger, Self::DeadLetters, Self::Rejected];

    /// As it stands in a file's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Readings => "readings",
            Self::Events => "events",
            Self::Ledger => "ledger",
            Self::DeadLetters => "dead-letters",
            Self::Rejected => "rejected",
        }
    }
}

/// A piece of a part.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOut {
    /// One object a row.
    pub rows: Vec<Json>,
    /// Where the next piece begins; none: this was the last.
    pub next: Option<String>,
}

impl TelemetryStore {
    /// Whether everything of a device is where [`Self::erase_device`] reaches it.
    ///
    /// # Errors
    /// Readings are in ClickHouse.
    pub fn check_erasable(&self) -> Result<(), TelemetryError> {
        match self.remote {
            None => Ok(()),
            Some(_) => Err(TelemetryError::NotErasable),
        }
    }

    /// Whether all of the log below a place is applied.
    #[must_use]
    pub fn has_read(&self, place: LogPlace) -> bool {
        let memtable = self.memtable();
        memtable.position.as_ref().is_some_and(|at| at.epoch == place.epoch && at.applied >= place.position)
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

    /// Moves what the memtable holds of a device, or of all, into the tables, for [`Self::read_out`].
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn flush_devices(&self, scope: &Scope, device: Option<&str>) -> Result<(), TelemetryError> {
        self.check_erasable()?;
        let only = match device {
            Some(device) => match self.id_of(scope, device)? {
                Some(id) => Some(shard_of(id)),
                None => return Ok(()),
            },
            None => None,
        };
        for shard in (0..SHARDS).filter(|shard| only.is_none_or(|only| only == *shard)) {
            let is_pending = self.memtable().is_pending(shard);
            if is_pending {
                self.flush(shard)?;
            }
        }
        Ok(())
    }

    fn id_of(&self, scope: &Scope, device: &str) -> Result<Option<i64>, DbError> {
        let (scope, device) = (scope.clone(), device.to_owned());
        self.db.read_blocking(move |tx| device_of(tx, &scope, &device))
    }

    /// Reads a piece of what the tables hold of a device, at most `limit` rows.
    ///
    /// # Errors
    /// The database failed; `after` is not a place that this function gave.
    pub fn read_out(
        &self,
        scope: &Scope,
        device: &str,
        part: Part,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ReadOut, DbError> {
        let (scope, device, after) = (scope.clone(), device.to_owned(), after.map(str::to_owned));
        let Some(id) = self.id_of(&scope, &device)? else { return Ok(ReadOut::default()) };
        if part == Part::Ledger {
            let ledger = self.read_blocking(move |view| device_ledger(view, &scope, &device))?;
            let row =
                serde_json::to_value(&ledger).map_err(|_| DbError::Column { column: "ledger".into() })?;
            return Ok(ReadOut { rows: vec![row], next: None });
        }
        self.db.read_blocking(move |tx| {
            let mut piece = Piece { tx, id, limit, out: ReadOut::default() };
            match part {
                Part::Readings => piece.readings(after.as_deref())?,
                Part::Events => piece.events(after.as_deref())?,
                Part::DeadLetters => piece.dead_letters(after.as_deref())?,
                Part::Rejected => piece.rejected(after.as_deref())?,
                Part::Ledger => {}
            }
            Ok(piece.out)
        })
    }

    /// Erases a device; see the module.
    ///
    /// # Errors
    /// The database or the disk failed; call it again.
    pub fn erase_device(
        &self,
        scope: &Scope,
        device: &str,
        place: LogPlace,
    ) -> Result<Erased, TelemetryError> {
        self.check_erasable()?;
        if !self.has_read(place) {
            return Ok(Erased::NotYet);
        }
        let mut rows = 0;
        if let Some(id) = self.id_of(scope, device)? {
            self.flush_devices(scope, None)?;
            rows += self.delete_in_steps(id)?;
            // What was flushed of it just now, and its names, go in one commit with the marks.
            let last = self.change(move |tx, memtable, faults| {
                for shard in 0..SHARDS {
                    if memtable.is_pending(shard) {
                        flush::shards(tx, memtable, &(shard..shard + 1), &Sink::Tables, faults)?;
                    }
                }
                flush::settle(tx, memtable)?;
                let stands = memtable.position.as_ref();
                if !stands.is_some_and(|at| at.epoch == place.epoch && at.marks.oldest() >= place.position) {
                    return Ok(None);
                }
                let rows = overwriting(tx, |tx| delete_rest(tx, id))?;
                memtable.names.forget();
                memtable.partitions.forget_days();
                // Nothing of it is dirty: a cache of rows, of which some are gone.
                memtable.ledger = Ledger::default();
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
        self.check_erasable()?;
        if !self.has_read(place) {
            return Ok(Erased::NotYet);
        }
        let scope = scope.clone();
        let rows = self.change(move |tx, memtable, faults| {
            let Some(id) = tenant_of(tx, &scope)?.id() else { return Ok(Some(0)) };
            for shard in 0..SHARDS {
                if memtable.is_pending(shard) {
                    flush::shards(tx, memtable, &(shard..shard + 1), &Sink::Tables, faults)?;
                }
            }
            flush::settle(tx, memtable)?;
            let is_behind = memtable.position.as_ref().is_none_or(|at| at.marks.oldest() < place.position);
            let left: i64 =
                tx.query_one("SELECT count(*) FROM device WHERE tenant_id = $1", &[&id], |row| {
                    row.get::<i64>(0)
                })?;
            if is_behind || left > 0 {
                return Ok(None);
            }
            memtable.names.forget();
            memtable.ledger = Ledger::default();
            let mut rows = 0;
            for table in ["counter", "dead_letter", "rejected", "event"] {
                rows += tx.execute(&format!("DELETE FROM {table} WHERE tenant_id = $1"), &[&id])?;
            }
            tx.execute("DELETE FROM tenant WHERE id = $1", &[&id])?;
            Ok(Some(rows as u64))
        })?;
        let Some(rows) = rows else { return Ok(Erased::NotYet) };
        self.sync()?;
        Ok(Erased::Done(rows))
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

fn days(tx: &mut Tx<'_>, id: i64) -> Result<Vec<i64>, DbError> {
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
        "DELETE FROM event WHERE device_id = $1",
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

/// Reads one piece.
struct Piece<'a, 'tx> {
    tx: &'a mut Tx<'tx>,
    id: i64,
    limit: usize,
    out: ReadOut,
}

fn place<const N: usize>(after: Option<&str>) -> Result<Option<[i64; N]>, DbError> {
    let Some(after) = after else { return Ok(None) };
    let numbers: Result<Vec<i64>, _> = after.split('.').map(str::parse).collect();
    let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
    numbers.map(Some).ok_or_else(|| DbError::Column { column: "after".into() })
}

fn text(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(".")
}

impl Piece<'_, '_> {
    fn left(&self) -> i64 {
        (self.limit - self.out.rows.len()) as i64
    }

    /// Takes rows with their places; a full piece has another behind it.
    fn take(&mut self, found: Vec<(Vec<i64>, Json)>) {
        let last = found.last().map(|(place, _)| text(place));
        self.out.rows.extend(found.into_iter().map(|(_, row)| row));
        self.out.next = if self.out.rows.len() >= self.limit { last } else { None };
    }

    fn readings(&mut self, after: Option<&str>) -> Result<(), DbError> {
        let mut after = place::<6>(after)?;
        for day in days(self.tx, self.id)? {
            let from = match after {
                Some([of, ..]) if day < of => continue,
                Some([of, series, ts, queue, seq, index]) if day == of => [series, ts, queue, seq, index],
                _ => [i64::MIN; 5],
            };
            after = None;
            let sql = format!(
                "SELECT r.series_id, r.ts, r.queue_ref, r.seq, r.idx, s.name, s.unit, r.received_at, r.value,
                 q.queue_id, q.class FROM series s JOIN {} r ON r.series_id = s.id
                 LEFT JOIN queue q ON q.ref = r.queue_ref
                 WHERE s.device_id = $1 AND (r.series_id, r.ts, r.queue_ref, r.seq, r.idx) > ($2, $3, $4, $5, $6)
                 ORDER BY r.series_id, r.ts, r.queue_ref, r.seq, r.idx LIMIT $7",
                partition::table(day)
            );
            let [series, ts, queue, seq, index] = from;
            let args: [&dyn crate::platform::db::sqlite::ToSql; 7] =
                [&self.id, &series, &ts, &queue, &seq, &index, &self.left()];
            let found = self.tx.query(&sql, &args, |row| reading(row, day))?;
            self.take(found);
            if self.left() == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn events(&mut self, after: Option<&str>) -> Result<(), DbError> {
        let [after] = place::<1>(after)?.unwrap_or([i64::MIN]);
        let found = self.tx.query(
            "SELECT id, received_at, measured_at, kind, pipeline, model, model_version, label, score, subject,
             latency_us, boxes FROM event WHERE device_id = $1 AND id > $2 ORDER BY id LIMIT $3",
            &[&self.id, &after, &self.left()],
            |row| {
                let boxes = row.get::<Option<String>>(11)?.and_then(|boxes| serde_json::from_str(&boxes).ok());
                let event = json!({
                    "received_at_us": row.get::<i64>(1)?, "measured_at_us": row.get::<i64>(2)?,
                    "kind": row.get::<String>(3)?, "pipeline": row.get::<String>(4)?,
                    "model": row.get::<String>(5)?, "model_version": row.get::<String>(6)?,
                    "label": row.get::<String>(7)?, "score": row.get::<f64>(8)?,
                    "subject": row.get::<Option<String>>(9)?, "latency_us": row.get::<i64>(10)?,
                    "boxes": boxes.unwrap_or(Json::Null),
                });
                Ok::<_, DbError>((vec![row.get(0)?], event))
            },
        )?;
        self.take(found);
        Ok(())
    }

    fn dead_letters(&mut self, after: Option<&str>) -> Result<(), DbError> {
        let [after] = place::<1>(after)?.unwrap_or([i64::MIN]);
        let found = self.tx.query(
            "SELECT id, received_at, class, queue_id, seq, reason, detail, body FROM dead_letter
             WHERE device_id = $1 AND id > $2 ORDER BY id LIMIT $3",
            &[&self.id, &after, &self.left()],
            |row| {
                let letter = json!({
                    "received_at_us": row.get::<i64>(1)?, "class": row.get::<u8>(2)?,
                    "queue_id": QueueId(row.get::<i64>(3)?.cast_unsigned()), "seq": row.get::<i64>(4)?,
                    "reason": row.get::<String>(5)?, "detail": row.get::<String>(6)?,
                    "body_base64": STANDARD.encode(row.get::<Vec<u8>>(7)?),
                });
                Ok::<_, DbError>((vec![row.get(0)?], letter))
            },
        )?;
        self.take(found);
        Ok(())
    }

    fn rejected(&mut self, after: Option<&str>) -> Result<(), DbError> {
        let [minute, class, reason] = place::<3>(after)?.unwrap_or([i64::MIN; 3]);
        let found = self.tx.query(
            "SELECT minute, class, reason, count, last_at FROM rejected
             WHERE device_id = $1 AND (minute, class, reason) > ($2, $3, $4) ORDER BY minute, class, reason LIMIT $5",
            &[&self.id, &minute, &class, &reason, &self.left()],
            |row| {
                let (minute, class, reason) = (row.get::<i64>(0)?, row.get::<i64>(1)?, row.get::<i64>(2)?);
                let rejected = json!({
                    "minute_us": minute.saturating_mul(60_000_000), "class": class, "reason": reason,
                    "count": row.get::<i64>(3)?, "last_at_us": row.get::<i64>(4)?,
                });
                Ok::<_, DbError>((vec![minute, class, reason], rejected))
            },
        )?;
        self.take(found);
        Ok(())
    }
}

fn reading(row: &Row<'_>, day: i64) -> Result<(Vec<i64>, Json), DbError> {
    let mut place = vec![day];
    for column in 0..5 {
        place.push(row.get(column)?);
    }
    let value = serde_json::to_value(from_sql(row.get(8)?)).unwrap_or(Json::Null);
    let queue_id = row.get::<Option<i64>>(9)?.map(|id| QueueId(id.cast_unsigned()));
    let reading = json!({
        "metric": row.get::<String>(5)?, "unit": row.get::<Option<String>>(6)?, "ts_us": place[2],
        "received_at_us": row.get::<i64>(7)?, "value": value, "queue_id": queue_id,
        "class": row.get::<Option<u8>>(10)?, "seq": place[4], "index": place[5],
    });
    Ok((place, reading))
}
