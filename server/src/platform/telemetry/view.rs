//! Reading tables and memtable as of one moment.
//!
//! A flush moves rows from the memtable into the tables in one commit, and writes its mark there. A query takes what it
//! needs of the memtable first, then a snapshot of the tables: where both have the same marks, nothing was moved in
//! between, so nothing is missing and nothing is there twice. Else it begins again.

use super::cursor;
use super::memtable::{Memtable, shard_of};
use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Tries to meet a moment without a flush, [`PAUSE`] apart: a commit takes milliseconds.
const ATTEMPTS_MAX: usize = 2_000;
const PAUSE: Duration = Duration::from_millis(1);

/// A reader's snapshot of the tables, and the way to the memtable. As a [`Tx`] it shows the tables alone.
pub struct View<'a, 'tx> {
    tx: &'a mut Tx<'tx>,
    memtable: &'a Mutex<Memtable>,
}

impl<'tx> Deref for View<'_, 'tx> {
    type Target = Tx<'tx>;

    fn deref(&self) -> &Self::Target {
        self.tx
    }
}

impl DerefMut for View<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.tx
    }
}

impl<'a, 'tx> View<'a, 'tx> {
    pub(super) fn new(tx: &'a mut Tx<'tx>, memtable: &'a Mutex<Memtable>) -> Self {
        Self { tx, memtable }
    }

    /// Takes something of a device's shard, or of all shards, and renews the snapshot to the same moment.
    pub(super) fn take<T>(
        &mut self,
        device_id: Option<i64>,
        take: impl Fn(&Memtable) -> T,
    ) -> Result<T, DbError> {
        for _ in 0..ATTEMPTS_MAX {
            let (taken, marks) = {
                let memtable = self.memtable.lock().unwrap_or_else(PoisonError::into_inner);
                (take(&memtable), memtable.position.as_ref().map(|at| at.marks.clone()))
            };
            self.tx.renew()?;
            // Nothing is known before the store has begun: the tables are all there is.
            let Some(marks) = marks else { return Ok(taken) };
            let written = cursor::marks(self.tx)?;
            let is_same = written.is_some_and(|written| match device_id {
                Some(id) => written.shards[shard_of(id)] == marks.shards[shard_of(id)],
                None => written == marks,
            });
            if is_same {
                return Ok(taken);
            }
            std::thread::sleep(PAUSE);
        }
        Err(DbError::Busy)
    }
}
