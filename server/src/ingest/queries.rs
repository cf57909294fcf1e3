//! What people ask the telemetry store: readings, events, the ledger, and what could not be stored.
//!
//! `api` calls it; it checks that the device is registered and calls `platform::telemetry`. Every list is bounded
//! there; every query sees one snapshot. Queries of readings, which may take seconds, wait for one of
//! [`SERIES_READS_MAX`] places, so that a reader is left for everything else. A process that does not read the event log has
//! no store: readings and events are ClickHouse's there, where the configuration names one, and everything else is
//! [`NotHere`], once it is known that the caller may ask.

use crate::devices::model::FieldError;
use crate::devices::{Devices, DevicesError};
use crate::platform::clock::SharedClock;
use crate::platform::db::{DbError, Scope};
use crate::platform::http_kit::NotHere;
use crate::platform::telemetry::clickhouse::Reader;
use crate::platform::telemetry::{
    self, Aggregate, DeadLetter, DeviceLedger, EventQuery, EventRow, LIST_MAX, LastValue, Points,
    ReadingsQuery, RejectedRow, SERIES_READS_MAX, STEPS_MAX, TelemetryStore, Totals, View,
};
use crate::tenants::Reach;
use crate::tenants::scan::scan;
use muster_wire::{DeviceId, TenantId};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How far back a query without `from` goes.
const RANGE_DEFAULT_US: i64 = 3_600_000_000;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The store is another process's.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// No such device, or the registry failed.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// A field is out of range.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The store failed.
    #[error("the store failed")]
    Db(#[from] DbError),
}

/// Which readings of a device.
#[derive(Clone, Debug)]
pub struct Range {
    /// The metric.
    pub metric: String,
    /// From this time on; an hour before `to_us` unless given.
    pub from_us: Option<i64>,
    /// Up to, not including; now unless given.
    pub to_us: Option<i64>,
    /// The step and how to join what is in it.
    pub step: Option<(i64, Aggregate)>,
    /// At most this many points.
    pub limit: usize,
}

/// The slice's reading side; clones share it.
#[derive(Clone)]
pub struct Queries {
    /// None where another process reads the event log.
    store: Option<TelemetryStore>,
    /// What ClickHouse has, where there is no store.
    reader: Option<Reader>,
    devices: Devices,
    clock: SharedClock,
    series_reads: Arc<Semaphore>,
}

impl Queries {
    /// On an open store, or in a process without one.
    #[must_use]
    pub fn new(store: Option<TelemetryStore>, devices: Devices, clock: SharedClock) -> Self {
        let series_reads = Arc::new(Semaphore::new(SERIES_READS_MAX));
        Self { store, reader: None, devices, clock, series_reads }
    }

    /// In a process without a store: readings and events are ClickHouse's.
    #[must_use]
    pub fn with_reader(self, reader: Option<Reader>) -> Self {
        Self { reader, ..self }
    }

    async fn read<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        query: impl FnOnce(&mut View<'_, '_>, &Scope) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let scope = Scope::Tenant(tenant.clone());
        Ok(self.store()?.read(move |view| query(view, &scope)).await?)
    }

    fn store(&self) -> Result<&TelemetryStore, NotHere> {
        self.store.as_ref().ok_or(NotHere)
    }

    /// Readings of one metric.
    ///
    /// # Errors
    /// No such device; a step too short for the range; the database's.
    pub async fn readings(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        range: Range,
    ) -> Result<Points, QueryError> {
        if self.reader.is_none() {
            self.store()?;
        }
        self.devices.get(tenant, device).await?;
        let to_us = range.to_us.unwrap_or_else(|| self.clock.now_us().saturating_add(1));
        let query = ReadingsQuery {
            device: device.to_string(),
            metric: range.metric,
            from_us: range.from_us.unwrap_or_else(|| to_us.saturating_sub(RANGE_DEFAULT_US)),
            to_us,
            step: range.step,
            limit: range.limit,
        };
        check_steps(&query)?;
        let _place = self.series_reads.acquire().await.map_err(|_| DbError::Closed)?;
        let scope = Scope::Tenant(tenant.clone());
        Ok(match &self.reader {
            Some(reader) => reader.readings(&scope, &query).await?,
            None => self.store()?.readings(&scope, &query).await?,
        })
    }

    /// The last value of each metric.
    ///
    /// # Errors
    /// No such device; the database's.
    pub async fn last(&self, tenant: &TenantId, device: &DeviceId) -> Result<Vec<LastValue>, QueryError> {
        self.store()?;
        self.devices.get(tenant, device).await?;
        let device = device.to_string();
        self.read(tenant, move |view, scope| telemetry::last_values(view, scope, &device)).await
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn events(&self, tenant: &TenantId, query: EventQuery) -> Result<Vec<EventRow>, QueryError> {
        let scope = Scope::Tenant(tenant.clone());
        Ok(match &self.reader {
            Some(reader) => reader.events(&scope, &query).await?,
            None => self.store()?.events(&scope, &query).await?,
        })
    }

    /// As [`Self::events`], of the devices that a reach has: events of all devices are read until as many as were asked for
    /// are found (see [`scan`]); with the id to go on before, where it is not the last. A device that is out of reach has
    /// none, and none are looked through.
    ///
    /// # Errors
    /// The database's.
    pub async fn events_within(
        &self,
        tenant: &TenantId,
        reach: &Reach,
        query: EventQuery,
    ) -> Result<(Vec<EventRow>, Option<i64>), QueryError> {
        if let Some(device) = &query.device {
            let asked = HashSet::from([device.clone()]);
            if self.devices.reachable(tenant, reach, asked).await?.is_empty() {
                return Ok((Vec::new(), None));
            }
        }
        let (first, wanted) = (query.before, query.limit);
        let piece = move |before: Option<i64>| {
            let query = EventQuery { before, limit: LIST_MAX, ..query.clone() };
            async move {
                let rows = self.events(tenant, query).await?;
                let next = rows.last().map(|last| Some(last.id));
                let asked = rows.iter().map(|row| row.device.clone()).collect();
                let within = self.devices.reachable(tenant, reach, asked).await?;
                let rows = rows.into_iter().filter(|row| within.contains(&row.device)).collect();
                Ok::<(Vec<EventRow>, _), QueryError>((rows, next))
            }
        };
        let (found, next) = scan(first, wanted, piece).await?;
        Ok((found, next.flatten()))
    }

    /// Who reaches which device.
    #[must_use]
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// What became of a device's records.
    ///
    /// # Errors
    /// No such device; the database's.
    pub async fn device_ledger(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<DeviceLedger, QueryError> {
        self.store()?;
        self.devices.get(tenant, device).await?;
        let device = device.to_string();
        self.read(tenant, move |view, scope| telemetry::device_ledger(view, scope, &device)).await
    }

    /// What became of a tenant's records.
    ///
    /// # Errors
    /// The database's.
    pub async fn totals(&self, tenant: &TenantId) -> Result<Totals, QueryError> {
        self.read(tenant, telemetry::totals).await
    }

    /// Bodies that could not be stored, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn dead_letters(
        &self,
        tenant: &TenantId,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueryError> {
        self.read(tenant, move |view, scope| telemetry::dead_letters(view, scope, before, limit)).await
    }

    /// Messages that the gateway refused for good, newest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn rejected(&self, tenant: &TenantId, limit: usize) -> Result<Vec<RejectedRow>, QueryError> {
        self.read(tenant, move |view, scope| telemetry::rejected(view, scope, limit)).await
    }
}

/// Refuses a range of more than [`STEPS_MAX`] steps: each may become a group that the database holds.
fn check_steps(query: &ReadingsQuery) -> Result<(), FieldError> {
    let Some((step_us, _)) = query.step else { return Ok(()) };
    let range_us = i128::from(query.to_us) - i128::from(query.from_us);
    if range_us <= i128::from(step_us) * i128::from(STEPS_MAX) {
        return Ok(());
    }
    let why = format!("is too short: `from` to `to` holds more than {STEPS_MAX} steps of it");
    Err(FieldError { field: "step".into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::model::Labels;
    use crate::devices::service::NewDevice;
    use crate::testing::{TestApp, owner};
    use std::pin::pin;

    #[tokio::test]
    async fn queries_of_readings_wait_for_a_place_and_others_do_not() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let (queries, slices) = (&app.parts.slices.queries, &app.parts.slices);
        let device = DeviceId::parse("pump").unwrap();
        let new =
            NewDevice { device: device.clone(), name: String::new(), labels: Labels::new(), profile: None };
        slices.devices.create(&owner(&acme), &acme, new).await.unwrap();
        let places = queries.series_reads.acquire_many(SERIES_READS_MAX as u32).await.unwrap();
        let range = Range { metric: "m".into(), from_us: None, to_us: None, step: None, limit: 1 };
        let mut third = pin!(queries.readings(&acme, &device, range));
        for _ in 0..20 {
            tokio::select! {
                biased;
                _ = &mut third => panic!("every place is taken"),
                last = queries.last(&acme, &device) => assert!(last.unwrap().is_empty()),
            }
        }
        drop(places);
        assert!(third.await.unwrap().points.is_empty());
    }

    #[test]
    fn a_range_has_a_bound_of_steps() {
        let refused = |from_us: i64, to_us: i64, step_us: i64| {
            let step = Some((step_us, Aggregate::Avg));
            let (device, metric) = ("d".to_owned(), "m".to_owned());
            let query = ReadingsQuery { device, metric, from_us, to_us, step, limit: 1 };
            check_steps(&query).err().map(|error| error.field)
        };
        let second = 1_000_000;
        assert_eq!(refused(0, STEPS_MAX * second, second), None);
        assert_eq!(refused(0, STEPS_MAX * second + 1, second), Some("step".into()));
        assert_eq!(refused(i64::MIN, i64::MAX, 366 * 86_400 * second), Some("step".into()));
        assert_eq!(refused(5, 0, second), None);
    }
}
