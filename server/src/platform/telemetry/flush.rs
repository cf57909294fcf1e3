//! Moves one shard of the memtable into the tables: rows, last values, ledger, counters and the shard's mark, in one
//! commit.
//!
//! Runs on the database's writer thread, inside one closure. Whatever fails, nothing of it stays, the memtable is
//! thrown away and read from the log again.

use super::TelemetryError;
use super::cursor;
use super::faults::{CrashPoint, Faults};
use super::memtable::{Memtable, Position};
use super::partition;
use super::tally;
use crate::platform::db::sqlite::Tx;

/// Flushes a shard.
pub(super) fn shard(
    tx: &mut Tx<'_>,
    memtable: &mut Memtable,
    at: usize,
    faults: &Faults,
) -> Result<(), TelemetryError> {
    let Some(position) = memtable.position.clone() else { return Ok(()) };
    let held = &mut memtable.shards[at];
    held.rows.sort_unstable_by_key(|row| (partition::day_of(row.received_at), row.key()));
    let mut known = 0;
    for day in held.rows.chunk_by(|a, b| partition::day_of(a.received_at) == partition::day_of(b.received_at))
    {
        let number = partition::day_of(day[0].received_at);
        known += memtable.partitions.insert(tx, number, day)?;
        partition::update_last(tx, day)?;
        memtable.partitions.note_day(tx, number, day)?;
    }
    if known > 0 {
        // The ledger lets nothing through twice; were it wrong, the key would say so.
        tracing::error!(rows = known, "readings were in the store already");
    }
    faults.reach(CrashPoint::AfterRows)?;
    memtable.ledger.flush(tx, at)?;
    tally::add_counts(tx, &held.counts)?;
    faults.reach(CrashPoint::AfterLedger)?;
    let marks = memtable.marks_after(&position, Some(at));
    cursor::write(tx, &position, &marks)?;
    faults.reach(CrashPoint::AfterCursor)?;
    memtable.shards[at].clear();
    memtable.position = Some(Position { marks, ..position });
    Ok(())
}

/// Moves the marks of the shards that hold nothing, where that lets the log go further.
pub(super) fn settle(tx: &mut Tx<'_>, memtable: &mut Memtable) -> Result<(), TelemetryError> {
    let Some(position) = memtable.position.clone() else { return Ok(()) };
    let marks = memtable.marks_after(&position, None);
    if marks.oldest() > position.marks.oldest() {
        cursor::write(tx, &position, &marks)?;
        memtable.position = Some(Position { marks, ..position });
    }
    Ok(())
}
