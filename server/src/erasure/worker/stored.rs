//! The steps that have to do with the telemetry store and the log before it.

use super::{PER_STEP, Step, Worker, WorkerError, scope};
use crate::erasure::model::{DRAIN_US, Job, Place};
use crate::platform::db::DbError;
use crate::platform::telemetry::{Erased, LogPlace, TelemetryError};
use muster_wire::DeviceId;

impl Worker {
    /// Makes sure that all that was in the event log is where an export reads and an erasure deletes it: in the store's
    /// tables, and where it has them in ClickHouse's. Some: not yet.
    pub(super) async fn settle(&self, job: &mut Job) -> Result<Option<Step>, WorkerError> {
        if job.log.is_none_or(|(epoch, _)| epoch != self.log.epoch()) {
            (job.log, job.place.batch) = (Some(self.log_end().await?), None);
            return self.save(job).await.map(Some);
        }
        let (store, place) = (self.telemetry.clone(), self.log_place(job));
        let Some(batch) = job.place.batch else {
            job.place.batch = blocking(move || store.flush_to(place)).await?;
            return match job.place.batch {
                Some(_) => self.save(job).await.map(Some),
                None => Ok(Some(behind(place))),
            };
        };
        let unsent = blocking(move || store.unsent(batch)).await?;
        Ok((unsent > 0).then(|| Step::Waits(format!("ClickHouse to take {unsent} blocks"))))
    }

    /// Connections that are just being closed may still bring something.
    pub(in crate::erasure) async fn is_quiet(&self, job: &Job) -> Result<Option<Step>, WorkerError> {
        if self.now_us() < job.since_us.saturating_add(DRAIN_US) {
            return Ok(Some(Step::Waits("connections to end".to_owned())));
        }
        let (store, scope, device) = (self.telemetry.clone(), scope(job), job.device.clone());
        let connected =
            blocking(move || Ok(store.connected_since(&scope, device.as_ref().map(DeviceId::as_str))?))
                .await?;
        let is_open = connected.is_some_and(|since_us| since_us >= self.started_at_us);
        Ok(is_open.then(|| Step::Waits("a device is still connected".to_owned())))
    }

    /// Where the log ends, once all that was appended so far is on disk.
    pub(in crate::erasure) async fn log_end(&self) -> Result<(u64, u64), WorkerError> {
        let log = self.log.clone();
        let end = tokio::task::spawn_blocking(move || log.commit()).await.map_err(|_| DbError::Closed)??;
        Ok((self.log.epoch(), end))
    }

    pub(in crate::erasure) fn log_place(&self, job: &Job) -> LogPlace {
        let (epoch, position) = job.log.unwrap_or((self.log.epoch(), u64::MAX));
        LogPlace { epoch, position }
    }

    /// What ClickHouse has of the device or the tenant. Some: not all of it is gone yet.
    pub(super) async fn erase_remote(&self, job: &mut Job) -> Result<Option<Step>, WorkerError> {
        let (store, of, device) = (self.telemetry.clone(), scope(job), job.device.clone());
        let device = move || store.erase_remote(&of, device.as_ref().map(DeviceId::as_str));
        let deleted = blocking(device).await?;
        job.rows_erased += deleted.rows.cast_signed();
        if deleted.left == 0 {
            return Ok(None);
        }
        if deleted.rows > 0 {
            self.save(job).await?;
        }
        Ok(Some(Step::Waits(format!("ClickHouse to delete {} rows", deleted.left))))
    }

    /// What the store has of a device, wherever. Some: it cannot yet.
    pub(in crate::erasure) async fn erase_stored(
        &self,
        job: &mut Job,
        device: &DeviceId,
    ) -> Result<Option<Step>, WorkerError> {
        if let Some(step) = self.erase_remote(job).await? {
            return Ok(Some(step));
        }
        self.erase_here(job, vec![device.to_string()]).await
    }

    async fn erase_here(&self, job: &mut Job, devices: Vec<String>) -> Result<Option<Step>, WorkerError> {
        let (store, of, place) = (self.telemetry.clone(), scope(job), self.log_place(job));
        match blocking(move || store.erase_devices(&of, &devices, place)).await? {
            Erased::NotYet => Ok(Some(behind(place))),
            Erased::Done(rows) => {
                job.rows_erased += rows.cast_signed();
                Ok(None)
            }
        }
    }

    pub(super) async fn erase_stored_tenant(&self, job: &mut Job) -> Result<Step, WorkerError> {
        if job.log.is_none_or(|(epoch, _)| epoch != self.log.epoch()) {
            job.place = Place::default();
            return self.save(job).await;
        }
        let (store, of) = (self.telemetry.clone(), scope(job));
        let devices = blocking(move || Ok(store.stored_devices(&of, "", PER_STEP)?)).await?;
        if !devices.is_empty() {
            return match self.erase_here(job, devices).await? {
                Some(waits) => Ok(waits),
                None => self.save(job).await,
            };
        }
        let (store, of, place) = (self.telemetry.clone(), scope(job), self.log_place(job));
        match blocking(move || store.erase_tenant(&of, place)).await? {
            Erased::NotYet => Ok(behind(place)),
            Erased::Done(rows) => {
                job.rows_erased += rows.cast_signed();
                job.place.part = 4;
                self.save(job).await
            }
        }
    }
}

pub(in crate::erasure) fn behind(place: LogPlace) -> Step {
    Step::Waits(format!("the store to read the event log up to position {}", place.position))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TelemetryError> + Send + 'static,
) -> Result<T, WorkerError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| DbError::Closed)??)
}
