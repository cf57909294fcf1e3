//! Counters, dead letters and rejected rows: what of a batch is written at once, and how counters are added.

use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use crate::platform::event_log::{LogRecord, Origin};
use std::collections::{BTreeMap, BTreeSet};

/// Dead letters kept a tenant; the oldest go first, counted all the same.
pub const DEAD_LETTERS_PER_TENANT_MAX: i64 = 2_000;
/// Bytes of a dead letter's body that are kept.
pub const DEAD_LETTER_BYTES_MAX: usize = 64 * 1024;
const MINUTE_US: i64 = 60_000_000;

/// Rejected messages of one minute that are alike.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rejects {
    tenant_id: i64,
    device_id: i64,
    minute: i64,
    class: u8,
    reason: u8,
}

#[derive(Default)]
struct RejectCount {
    count: u64,
    last_at: i64,
    last_position: u64,
}

#[derive(Default)]
pub(super) struct Tally {
    counts: BTreeMap<(i64, &'static str), u64>,
    rejected: BTreeMap<Rejects, RejectCount>,
    dead_letter_tenants: BTreeSet<i64>,
}

impl Tally {
    pub(super) fn count(&mut self, tenant_id: i64, name: &'static str, by: u64) {
        *self.counts.entry((tenant_id, name)).or_default() += by;
    }

    pub(super) fn reject(&mut self, tenant_id: i64, device_id: i64, record: &LogRecord<'_>, reason: u8) {
        self.count(tenant_id, "rejected", 1);
        let minute = record.received_at_us.div_euclid(MINUTE_US);
        let alike = Rejects { tenant_id, device_id, minute, class: record.class, reason };
        let entry = self.rejected.entry(alike).or_default();
        entry.count += 1;
        (entry.last_at, entry.last_position) = (record.received_at_us, record.position);
    }

    pub(super) fn dead_letter(
        &mut self,
        tx: &mut Tx<'_>,
        (tenant_id, device_id): (i64, i64),
        epoch: u64,
        record: &LogRecord<'_>,
        reason: &str,
        detail: &str,
    ) -> Result<(), DbError> {
        self.count(tenant_id, "dead_letters", 1);
        self.dead_letter_tenants.insert(tenant_id);
        let (queue_id, seq) = match record.origin {
            Origin::Queue { queue_id, seq } => (queue_id, seq),
            Origin::Direct => (0, 0),
        };
        tx.execute(
            "INSERT INTO dead_letter (tenant_id, device_id, log_epoch, position, received_at, class, queue_id, seq,
             reason, detail, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                &tenant_id,
                &device_id,
                &epoch.cast_signed(),
                &record.position.cast_signed(),
                &record.received_at_us,
                &record.class,
                &queue_id.cast_signed(),
                &seq.cast_signed(),
                &reason,
                &detail,
                &&record.body[..record.body.len().min(DEAD_LETTER_BYTES_MAX)],
            ],
        )?;
        Ok(())
    }

    pub(super) fn flush(&mut self, tx: &mut Tx<'_>) -> Result<(), DbError> {
        add_counts(tx, &std::mem::take(&mut self.counts))?;
        for (alike, seen) in std::mem::take(&mut self.rejected) {
            tx.execute(
                "INSERT INTO rejected (tenant_id, device_id, minute, class, reason, count, last_at, last_position)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                 ON CONFLICT (tenant_id, device_id, minute, class, reason) DO UPDATE SET count = count + excluded.count,
                 last_at = excluded.last_at, last_position = excluded.last_position",
                &[
                    &alike.tenant_id, &alike.device_id, &alike.minute, &alike.class, &alike.reason,
                    &seen.count.cast_signed(), &seen.last_at, &seen.last_position.cast_signed(),
                ],
            )?;
        }
        for tenant_id in std::mem::take(&mut self.dead_letter_tenants) {
            tx.execute(
                "DELETE FROM dead_letter WHERE tenant_id = $1 AND id <= (SELECT id FROM dead_letter WHERE tenant_id = $1
                 ORDER BY id DESC LIMIT 1 OFFSET $2)",
                &[&tenant_id, &DEAD_LETTERS_PER_TENANT_MAX],
            )?;
        }
        Ok(())
    }
}

/// Adds to tenants' counters.
pub(super) fn add_counts(
    tx: &mut Tx<'_>,
    counts: &BTreeMap<(i64, &'static str), u64>,
) -> Result<(), DbError> {
    for ((tenant_id, name), count) in counts {
        tx.execute(
            "INSERT INTO counter (tenant_id, name, count) VALUES ($1, $2, $3)
             ON CONFLICT (tenant_id, name) DO UPDATE SET count = count + excluded.count",
            &[tenant_id, name, &count.cast_signed()],
        )?;
    }
    Ok(())
}
