//! When each device was last heard of.

use super::View;
use super::memtable::shard_of;
use super::tenant_of;
use crate::platform::db::{DbError, Scope};
use std::collections::HashMap;

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
    const PAGE: &str =
        "SELECT id FROM device WHERE ($1 IS NULL OR tenant_id = $1) AND name > $2 ORDER BY name LIMIT $3";
    let ids: Vec<i64> = view.query(PAGE, &[&tenant, &after, &limit], |row| row.get::<i64>(0))?;
    let heard_at = view.take(None, |memtable| {
        let heard_at = |id: &i64| Some((*id, *memtable.shards[shard_of(*id)].heard_at.get(id)?));
        ids.iter().filter_map(heard_at).collect::<HashMap<_, _>>()
    })?;
    view.query(
        "SELECT d.name, max(d.presence_at, ifnull((SELECT max(l.received_at) FROM last_value l WHERE l.device_id = d.id), 0)), d.id
         FROM device d WHERE ($1 IS NULL OR d.tenant_id = $1) AND d.name > $2 ORDER BY d.name LIMIT $3",
        &[&tenant, &after, &limit],
        |row| {
            let recent = heard_at.get(&row.get(2)?).copied().unwrap_or(0);
            Ok(LastSeen { device: row.get(0)?, last_seen_us: row.get::<i64>(1)?.max(recent) })
        },
    )
}
