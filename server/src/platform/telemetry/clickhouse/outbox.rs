//! Blocks that wait for ClickHouse, in telemetry.db.
//!
//! A block's `batch` is the time at which it was made, in microseconds, moved on where two would share it: it grows over
//! restarts, and an older copy of the file that comes back does not use the numbers of the blocks that it never saw.
//! The token holds a hash of the block besides: other rows are never taken for a repetition.

use super::super::TelemetryError;
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use sha2::{Digest as _, Sha256};

/// What is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Readings,
    Events,
}

impl Kind {
    fn number(self) -> i64 {
        match self {
            Self::Readings => 0,
            Self::Events => 1,
        }
    }
}

/// A block that waits.
pub(super) struct Waiting {
    pub(super) batch: i64,
    pub(super) kind: Kind,
    pub(super) token: String,
    pub(super) events_to: i64,
    pub(super) block: Vec<u8>,
}

/// What waits, in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// Blocks.
    pub blocks: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of them, compressed.
    pub bytes: u64,
}

/// Where the outbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    /// The newest batch that was made.
    pub(in super::super) made: i64,
    /// The newest that is confirmed: all up to it are in ClickHouse.
    pub(in super::super) confirmed: i64,
    /// Events up to this row are in blocks, or were.
    pub(in super::super) events_packed: i64,
}

pub(in super::super) fn state(tx: &mut Tx<'_>) -> Result<State, DbError> {
    tx.query_one("SELECT made, confirmed, events_packed FROM outbox_state", &[], |row| {
        Ok(State { made: row.get(0)?, confirmed: row.get(1)?, events_packed: row.get(2)? })
    })
}

/// What waits, in sum.
pub(in super::super) fn held(tx: &mut Tx<'_>) -> Result<Outbox, DbError> {
    const SUM: &str = "SELECT count(*), ifnull(sum(rows), 0), ifnull(sum(bytes), 0) FROM outbox";
    tx.query_one(SUM, &[], |row| Ok(Outbox { blocks: row.get(0)?, rows: row.get(1)?, bytes: row.get(2)? }))
}

/// Blocks that wait: a store without ClickHouse must not leave them behind.
pub(in super::super) fn open_blocks(tx: &mut Tx<'_>) -> Result<u64, DbError> {
    held(tx).map(|held| held.blocks)
}

/// Blocks up to a number that wait.
pub(in super::super) fn waiting(tx: &mut Tx<'_>, batch: i64) -> Result<u64, DbError> {
    tx.query_one("SELECT count(*) FROM outbox WHERE batch <= $1", &[&batch], |row| row.get(0))
}

/// The number of the next batch.
pub(super) fn next_batch(tx: &mut Tx<'_>, now_us: i64) -> Result<i64, DbError> {
    const NEXT: &str = "UPDATE outbox_state SET made = max($1, made + 1) RETURNING made";
    tx.query_one(NEXT, &[&now_us], |row| row.get(0))
}

/// Adds a block under its number.
pub(super) fn put(
    tx: &mut Tx<'_>,
    batch: i64,
    kind: Kind,
    (rows, events_to): (usize, i64),
    block: &[u8],
) -> Result<(), TelemetryError> {
    let token = format!("{batch}-{}", &hex::encode(Sha256::digest(block))[..32]);
    tx.execute(
        "INSERT INTO outbox (batch, kind, rows, bytes, token, events_to, block) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[&batch, &kind.number(), &(rows as i64), &(block.len() as i64), &token, &events_to, &block],
    )?;
    Ok(())
}

/// The oldest block up to `synced`.
pub(super) fn oldest(tx: &mut Tx<'_>, synced: i64) -> Result<Option<Waiting>, DbError> {
    tx.query_opt(
        "SELECT batch, kind, token, events_to, block FROM outbox WHERE batch <= $1 ORDER BY batch LIMIT 1",
        &[&synced],
        |row| {
            let kind = if row.get::<i64>(1)? == 0 { Kind::Readings } else { Kind::Events };
            Ok(Waiting {
                batch: row.get(0)?,
                kind,
                token: row.get(2)?,
                events_to: row.get(3)?,
                block: row.get(4)?,
            })
        },
    )
}

/// Takes a block out: ClickHouse has it.
pub(super) fn confirm(tx: &mut Tx<'_>, batch: i64, events_to: i64) -> Result<(), DbError> {
    tx.execute("DELETE FROM outbox WHERE batch = $1", &[&batch])?;
    tx.execute("DELETE FROM event WHERE id <= $1", &[&events_to])?;
    tx.execute("UPDATE outbox_state SET confirmed = max(confirmed, $1)", &[&batch])?;
    Ok(())
}
