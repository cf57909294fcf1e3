//! Tenants, devices and metrics as small integers: a cache in front of their tables.
//!
//! Called by the writer only, inside its transaction; a failed transaction throws the whole cache away,
//! so it never holds a row that was rolled back. It is emptied when over its bounds: correct, only slower.

use crate::platform::db::DbError;
use crate::platform::db::sqlite::Tx;
use muster_wire::METRICS_PER_DEVICE_MAX;
use std::collections::HashMap;
use std::sync::Arc;

/// Devices kept in memory.
pub const DEVICES_CACHED_MAX: usize = 50_000;
/// Metric names kept in memory, over all devices.
pub const SERIES_CACHED_MAX: usize = 1_000_000;

/// A device's place in the cache; valid until the cache is cleared.
pub(super) type Slot = usize;

pub(super) struct Device {
    pub(super) id: i64,
    pub(super) tenant_id: i64,
    pub(super) tenant: Arc<str>,
    pub(super) name: Arc<str>,
    series: HashMap<Arc<str>, i64>,
    /// In order of id.
    series_names: Vec<(i64, Arc<str>)>,
}

struct Tenant {
    id: i64,
    name: Arc<str>,
    devices: HashMap<Arc<str>, Slot>,
}

#[derive(Default)]
pub(super) struct Names {
    tenants: HashMap<Arc<str>, Tenant>,
    devices: Vec<Device>,
    series: usize,
}

/// What [`Names::series`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Series {
    Id(i64),
    /// The device has [`METRICS_PER_DEVICE_MAX`] other metrics.
    TooMany,
}

impl Names {
    /// Empties the cache where it is over its bounds. Called before each batch.
    pub(super) fn trim(&mut self) {
        if self.devices.len() > DEVICES_CACHED_MAX || self.series > SERIES_CACHED_MAX {
            *self = Self::default();
        }
    }

    /// Empties the cache: rows of series were deleted.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    pub(super) fn device(&self, slot: Slot) -> &Device {
        &self.devices[slot]
    }

    /// Finds or makes a device.
    pub(super) fn slot(&mut self, tx: &mut Tx<'_>, tenant: &str, device: &str) -> Result<Slot, DbError> {
        if !self.tenants.contains_key(tenant) {
            let (id, name) = (tenant_id(tx, tenant)?, Arc::<str>::from(tenant));
            self.tenants.insert(name.clone(), Tenant { id, name, devices: HashMap::new() });
        }
        let known = self.tenants.get_mut(tenant).expect("inserted above");
        if let Some(slot) = known.devices.get(device) {
            return Ok(*slot);
        }
        let id = device_id(tx, known.id, device)?;
        let map = |row: &crate::platform::db::sqlite::Row<'_>| {
            Ok::<_, DbError>((row.get(0)?, row.get::<String>(1)?.into()))
        };
        let names: Vec<(i64, Arc<str>)> =
            tx.query("SELECT id, name FROM series WHERE device_id = $1 ORDER BY id", &[&id], map)?;
        let slot = self.devices.len();
        let name = Arc::<str>::from(device);
        known.devices.insert(name.clone(), slot);
        self.series += names.len();
        self.devices.push(Device {
            id,
            tenant_id: known.id,
            tenant: known.name.clone(),
            name,
            series: names.iter().map(|(id, name)| (name.clone(), *id)).collect(),
            series_names: names,
        });
        Ok(slot)
    }

    /// Finds or makes a metric of a device. `at` is its place in the message: devices send the same metrics in
    /// the same order, so the metric that was made in this place is tried before the hash.
    pub(super) fn series(
        &mut self,
        tx: &mut Tx<'_>,
        slot: Slot,
        (at, metric): (usize, &str),
        unit: Option<&str>,
    ) -> Result<Series, DbError> {
        let device = &mut self.devices[slot];
        if let Some((id, name)) = device.series_names.get(at)
            && **name == *metric
        {
            return Ok(Series::Id(*id));
        }
        if let Some(id) = device.series.get(metric) {
            return Ok(Series::Id(*id));
        }
        if device.series.len() >= METRICS_PER_DEVICE_MAX {
            return Ok(Series::TooMany);
        }
        const INSERT: &str = "INSERT INTO series (device_id, name, unit) VALUES ($1, $2, $3) RETURNING id";
        let id: i64 = tx.query_one(INSERT, &[&device.id, &metric, &unit], |row| row.get(0))?;
        let name = Arc::<str>::from(metric);
        device.series.insert(name.clone(), id);
        device.series_names.push((id, name));
        self.series += 1;
        Ok(Series::Id(id))
    }

    /// The name of a metric of a cached device.
    pub(super) fn series_name(&self, slot: Slot, id: i64) -> Option<Arc<str>> {
        let names = &self.devices[slot].series_names;
        let at = names.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(names[at].1.clone())
    }
}

fn tenant_id(tx: &mut Tx<'_>, name: &str) -> Result<i64, DbError> {
    tx.execute("INSERT INTO tenant (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", &[&name])?;
    tx.query_one("SELECT id FROM tenant WHERE name = $1", &[&name], |row| row.get(0))
}

fn device_id(tx: &mut Tx<'_>, tenant_id: i64, name: &str) -> Result<i64, DbError> {
    const FIND: &str = "SELECT id FROM device WHERE tenant_id = $1 AND name = $2";
    if let Some(id) = tx.query_opt(FIND, &[&tenant_id, &name], |row| row.get::<i64>(0))? {
        return Ok(id);
    }
    const INSERT: &str = "INSERT INTO device (tenant_id, name) VALUES ($1, $2) RETURNING id";
    tx.query_one(INSERT, &[&tenant_id, &name], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(devices: usize, series: usize) -> Names {
        let (tenant, name) = (Arc::<str>::from("acme"), Arc::<str>::from("cam"));
        let device = |id: usize| Device {
            id: id as i64,
            tenant_id: 1,
            tenant: tenant.clone(),
            name: name.clone(),
            series: HashMap::new(),
            series_names: Vec::new(),
        };
        Names { devices: (0..devices).map(device).collect(), series, ..Names::default() }
    }

    #[test]
    fn the_cache_is_emptied_over_its_bounds_only() {
        let left = |devices, series| {
            let mut names = names(devices, series);
            names.trim();
            (names.devices.len(), names.series)
        };
        let whole = (DEVICES_CACHED_MAX, SERIES_CACHED_MAX);
        assert_eq!(left(DEVICES_CACHED_MAX, SERIES_CACHED_MAX), whole);
        assert_eq!(left(DEVICES_CACHED_MAX + 1, 0), (0, 0));
        assert_eq!(left(1, SERIES_CACHED_MAX + 1), (0, 0));
    }
}
