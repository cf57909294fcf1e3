//! When each device was last heard of.

use super::View;
use super::tenant_of;
use crate::platform::db::{DbError, Scope};

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
pub fn last_seen(
    view: &mut View<'_, '_>,
    scope: &Scope,
    after: &str,
    limit: i64,
) -> Result<Vec<LastSeen>, DbError> {
    let tenant = tenant_of(view, scope)?.id();
    let mut seen: Vec<LastSeen> = view.query(
        "SELECT d.name, max(d.presence_at, ifnull((SELECT max(l.received_at) FROM last_value l WHERE l.device_id = d.id), 0))
         FROM device d WHERE ($1 IS NULL OR d.tenant_id = $1) AND d.name > $2 ORDER BY d.name LIMIT $3",
        &[&tenant, &after, &limit],
        |row| Ok::<_, DbError>(LastSeen { device: row.get(0)?, last_seen_us: row.get(1)? }),
    )?;
    // What is newer than the tables only adds: the two need not be of one moment.
    view.recent(|memtable| {
        for row in &mut seen {
            let heard_at = memtable.names.heard_at(tenant, &row.device);
            row.last_seen_us = row.last_seen_us.max(heard_at.unwrap_or(0));
        }
    });
    Ok(seen)
}
