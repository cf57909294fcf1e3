//! When each device was last heard of.

use super::tenant_of;
use crate::platform::db::{DbError, Scope, Tx};

/// A device and when it was last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSeen {
    /// The device.
    pub device: String,
    /// When its newest reading came or its connection last came or went, the server's time.
    pub last_seen_us: i64,
}

/// The tenant's devices of which something was stored, by name from after `after` on.
///
/// # Errors
/// The database failed.
pub fn last_seen(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<LastSeen>, DbError> {
    let tenant = tenant_of(tx, scope)?.id();
    tx.query(
        "SELECT d.name, max(d.presence_at, ifnull((SELECT max(l.received_at) FROM last_value l WHERE l.device_id = d.id), 0))
         FROM device d WHERE ($1 IS NULL OR d.tenant_id = $1) AND d.name > $2 ORDER BY d.name LIMIT $3",
        &[&tenant, &after, &limit],
        |row| Ok(LastSeen { device: row.get(0)?, last_seen_us: row.get(1)? }),
    )
}
