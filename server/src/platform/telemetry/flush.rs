//! Moves shards of the memtable into the tables: rows, last values, ledger, counters and the shards' marks, in one
//! commit. Where readings go to ClickHouse, the rows become a block of the outbox instead (ADR 0018).
//!
//! Runs on the database's writer thread, inside one closure. Whatever fails, nothing of it stays, the memtable is
//! thrown away and read from the log again.

use super::TelemetryError;
use super::clickhouse::{Packed, pack_events, pack_readings};
use super::cursor;
use super::faults::{CrashPoint, Faults};
use super::memtable::{Memtable, Position};
use super::partition::{self, ReadingRow};
use super::retention::Policy;
use super::tally;
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use std::ops::Range;

/// Blocks of events of one commit: flushes come seconds apart, and a block holds 20,000.
const EVENT_BLOCKS_MAX: usize = 8;

/// Where the rows go.
#[derive(Clone)]
pub(super) enum Sink {
    /// Into the day's tables.
    Tables,
    /// Into the outbox; each row carries how long it is kept.
    Outbox(Policy),
}

/// Flushes a run of shards.
pub(super) fn shards(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    ats: &Range<usize>,
    sink: &Sink,
    faults: &Faults,
) -> Result<(), TelemetryError> {
    let Some(position) = memtable.position.clone() else { return Ok(()) };
    match sink {
        Sink::Tables => {
            for at in ats.clone() {
                rows_into_tables(tx, memtable, at)?;
            }
        }
        Sink::Outbox(policy) => rows_into_outbox(tx, memtable, ats, policy, &position)?,
    }
    faults.reach(CrashPoint::AfterRows)?;
    for at in ats.clone() {
        memtable.ledger.flush(tx, at)?;
        tally::add_counts(tx, &memtable.shards[at].counts)?;
    }
    if let Sink::Outbox(policy) = sink {
        events(tx, memtable, policy)?;
    }
    faults.reach(CrashPoint::AfterLedger)?;
    let marks = memtable.marks_after(&position, ats);
    cursor::write(tx, &position, &marks)?;
    faults.reach(CrashPoint::AfterCursor)?;
    ats.clone().for_each(|at| memtable.shards[at].clear());
    memtable.position = Some(Position { marks, ..position });
    Ok(())
}

fn rows_into_tables(tx: &mut Tx<'_>, memtable: &mut Memtable, at: usize) -> Result<(), DbError> {
    let held = &mut memtable.shards[at];
    held.rows.sort_unstable_by_key(|row| (partition::day_of(row.received_at), row.key()));
    let mut known = 0;
    for day in by_day(&held.rows) {
        let number = partition::day_of(day[0].received_at);
        known += memtable.partitions.insert(tx, number, day)?;
        partition::update_last(tx, day)?;
        memtable.partitions.note_day(tx, number, day)?;
    }
    if known > 0 {
        // The ledger lets nothing through twice; were it wrong, the key would say so.
        tracing::error!(rows = known, "readings were in the store already");
    }
    Ok(())
}

fn by_day(rows: &[ReadingRow]) -> impl Iterator<Item = &[ReadingRow]> {
    rows.chunk_by(|a, b| partition::day_of(a.received_at) == partition::day_of(b.received_at))
}

fn rows_into_outbox(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    ats: &Range<usize>,
    policy: &Policy,
    position: &Position,
) -> Result<(), TelemetryError> {
    let count = ats.clone().map(|at| memtable.shards[at].rows.len()).sum();
    let mut rows = Vec::with_capacity(count);
    ats.clone().for_each(|at| rows.append(&mut memtable.shards[at].rows));
    rows.sort_unstable_by_key(ReadingRow::key);
    partition::update_last(tx, &rows)?;
    let Packed { batches, mut named } = pack_readings(tx, rows, policy, position.received_at_us)?;
    // Packs that come again are known by their name and time: those keys stay here.
    named.sort_unstable_by_key(|row| (partition::day_of(row.received_at), row.key()));
    for day in by_day(&named) {
        let number = partition::day_of(day[0].received_at);
        memtable.partitions.insert(tx, number, day)?;
        memtable.partitions.note_day(tx, number, day)?;
    }
    batches.into_iter().for_each(|(batch, rows)| memtable.keep_sent(batch, rows));
    Ok(())
}

/// Packs the events that wait, as many as one commit should.
pub(super) fn events(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    policy: &Policy,
) -> Result<(), TelemetryError> {
    let now_us = memtable.position.as_ref().map_or(0, |at| at.received_at_us);
    for _ in 0..EVENT_BLOCKS_MAX {
        if memtable.events_wait {
            memtable.events_wait = pack_events(tx, policy, now_us)?;
        }
    }
    Ok(())
}

/// Moves the marks of the shards that hold nothing, where that lets the log go further.
pub(super) fn settle(tx: &mut Tx<'_>, memtable: &mut Memtable) -> Result<(), TelemetryError> {
    let Some(position) = memtable.position.clone() else { return Ok(()) };
    let marks = memtable.marks_after(&position, &(0..0));
    if marks.oldest() > position.marks.oldest() {
        cursor::write(tx, &position, &marks)?;
        memtable.position = Some(Position { marks, ..position });
    }
    Ok(())
}
