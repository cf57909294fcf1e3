//! Reads out what is stored of a device, piece by piece, for an export.
//!
//! `erasure` calls it, outside the async runtime, once the device is shut out and [`TelemetryStore::flush_to`] and
//! [`TelemetryStore::is_sent`] say that all of it is where it stays. Nothing is added or taken away meanwhile, so the
//! place of a piece means the same after a crash.
//!
//! Where readings and events are in ClickHouse they are read there, then what an embedded store left of them here before.

use super::accounts::device_ledger;
use super::clickhouse::Whose;
use super::erase::days;
use super::{TelemetryError, TelemetryStore, from_sql, partition};
use crate::platform::db::sqlite::{Row, Tx};
use crate::platform::db::{DbError, Scope};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_wire::QueueId;
use serde_json::{Value as Json, json};
use std::collections::HashMap;

/// Before a place in the tables here, where ClickHouse has been read to its end.
const HERE: &str = "here";

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
    /// Reads a piece of what is stored of a device: `limit` rows or a few more, or fewer where it is the last.
    ///
    /// # Errors
    /// The database or ClickHouse failed; `after` is not a place that this function gave.
    pub fn read_out(
        &self,
        scope: &Scope,
        device: &str,
        part: Part,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ReadOut, TelemetryError> {
        let Some(id) = self.id_of(scope, device)? else { return Ok(ReadOut::default()) };
        match part {
            Part::Ledger => Ok(self.read_ledger(scope, device)?),
            Part::Readings | Part::Events if self.remote.is_some() => {
                self.read_remote((scope, device, id), part, after, limit)
            }
            _ => Ok(self.read_here(id, part, after, limit)?),
        }
    }

    fn read_ledger(&self, scope: &Scope, device: &str) -> Result<ReadOut, DbError> {
        let (scope, device) = (scope.clone(), device.to_owned());
        let ledger = self.read_blocking(move |view| device_ledger(view, &scope, &device))?;
        let row = serde_json::to_value(&ledger).map_err(|_| DbError::Column { column: "ledger".into() })?;
        Ok(ReadOut { rows: vec![row], next: None })
    }

    fn read_here(&self, id: i64, part: Part, after: Option<&str>, limit: usize) -> Result<ReadOut, DbError> {
        let (after, is_all) = (after.map(str::to_owned), self.remote.is_none());
        self.db.read_blocking(move |tx| {
            let mut piece = Piece { tx, id, limit, is_all, out: ReadOut::default() };
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

    fn read_remote(
        &self,
        (scope, device, id): (&Scope, &str, i64),
        part: Part,
        after: Option<&str>,
        limit: usize,
    ) -> Result<ReadOut, TelemetryError> {
        let Some(remote) = &self.remote else { return Ok(ReadOut::default()) };
        if let Some(after) = after.and_then(|after| after.strip_prefix(HERE)) {
            let mut piece = self.read_here(id, part, Some(after).filter(|after| !after.is_empty()), limit)?;
            piece.next = piece.next.map(|next| format!("{HERE}{next}"));
            return Ok(piece);
        }
        let whose = Whose::of(scope, Some(device))?;
        if part == Part::Events {
            // Those that waited here are in blocks.
            return remote.ask(async |clickhouse| clickhouse.read_events(&whose, after, limit).await);
        }
        let units = self.units(id)?;
        let mut piece =
            remote.ask(async |clickhouse| clickhouse.read_readings(&whose, &units, after, limit).await)?;
        piece.next = piece.next.or_else(|| Some(HERE.to_owned()));
        Ok(piece)
    }

    /// Units by metric, where devices told them.
    fn units(&self, id: i64) -> Result<HashMap<String, String>, DbError> {
        self.db.read_blocking(move |tx| {
            const UNITS: &str = "SELECT name, unit FROM series WHERE device_id = $1 AND unit IS NOT NULL";
            let units = tx.query(UNITS, &[&id], |row| Ok::<_, DbError>((row.get(0)?, row.get(1)?)))?;
            Ok(units.into_iter().collect())
        })
    }
}

/// Reads one piece.
struct Piece<'a, 'tx> {
    tx: &'a mut Tx<'tx>,
    id: i64,
    limit: usize,
    /// Else without readings that are keyed by name and time: ClickHouse has those, only their keys are here.
    is_all: bool,
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
                 AND ($8 OR q.queue_id IS NULL OR q.queue_id != 0 OR r.seq != 0)
                 ORDER BY r.series_id, r.ts, r.queue_ref, r.seq, r.idx LIMIT $7",
                partition::table(day)
            );
            let [series, ts, queue, seq, index] = from;
            let args: [&dyn crate::platform::db::sqlite::ToSql; 8] =
                [&self.id, &series, &ts, &queue, &seq, &index, &self.left(), &self.is_all];
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
