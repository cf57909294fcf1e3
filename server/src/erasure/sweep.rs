//! The last state: what others wrote in between goes, then what kept the name.
//!
//! The rules read the log by themselves and keep what they know of a device in memory: until they have committed all of
//! the log that may name it, and have forgotten it, they may write of it once more.

use super::model::Job;
use super::service::leaving;
use super::worker::stored::behind;
use super::worker::{ROWS_PER_STEP, Step, Worker, WorkerError, scope};
use super::{store, tables};
use crate::platform::blob::Prefix;
use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::DeviceId;

impl Worker {
    pub(super) async fn sweep(&self, job: &mut Job) -> Result<Step, WorkerError> {
        if let Some(waits) = self.is_quiet(job).await? {
            return Ok(waits);
        }
        // Another log: it holds nothing behind where it ends now.
        if job.log.is_none_or(|(epoch, _)| epoch != self.log.epoch()) {
            (job.log, job.place.batch) = (Some(self.log_end().await?), None);
            return self.save(job).await;
        }
        let place = self.log_place(job);
        if !self.telemetry.has_read(place) {
            return Ok(behind(place));
        }
        if !self.rules.has_committed(place.epoch, place.position).await? {
            let upto = place.position;
            return Ok(Step::Waits(format!("the rules to read the event log up to position {upto}")));
        }
        match job.device.clone() {
            Some(device) => self.sweep_device(job, device).await,
            None => self.sweep_tenant(job).await,
        }
    }

    /// The registry's row goes last: it keeps the name. Nobody else is given it before the job is done, so a retry
    /// after a crash between the two finds the name free or the job done.
    async fn sweep_device(&self, job: &mut Job, device: DeviceId) -> Result<Step, WorkerError> {
        // A process that began anew knows it again.
        self.devices.hide(&job.tenant, &device).await;
        if let Some(waits) = self.rules_forget(job) {
            return Ok(waits);
        }
        if let Some(waits) = self.erase_stored(job, &device).await? {
            return Ok(waits);
        }
        if !self.erase_rows(job, device.clone()).await? {
            return Ok(Step::Moved);
        }
        self.devices.erase(&job.requested_by, &job.tenant, &device).await?;
        self.finish(job).await
    }

    async fn sweep_tenant(&self, job: &mut Job) -> Result<Step, WorkerError> {
        match job.place.part {
            0 => {
                let page = self.page(job).await?;
                for device in &page {
                    self.devices.erase(&job.requested_by, &job.tenant, device).await?;
                }
                match page.last() {
                    Some(last) => job.place.device = last.to_string(),
                    None => job.place.part = 1,
                }
                self.save(job).await
            }
            1 => match self.rules_forget(job) {
                Some(waits) => Ok(waits),
                None => self.end_others(job).await,
            },
            2 => {
                let kept = Prefix::below(&job.tenant, &job.folder())?;
                if !self.erasures.blobs()?.delete_page_beside(&job.tenant, &kept).await? {
                    job.place.part = 3;
                }
                self.save(job).await
            }
            _ => self.sweep_rows(job).await,
        }
    }

    /// Other jobs of the tenant end with it, and what they exported goes too.
    async fn end_others(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.go_on();
        let (mut changed, now_us) = (job.clone(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let scope = scope(&changed);
            store::end_others(tx, &scope, &changed.id, now_us)?;
            let files = store::files_forget(tx, &scope, &changed.id, true, ROWS_PER_STEP)?;
            if (files as i64) < ROWS_PER_STEP {
                changed.place.part = 2;
            }
            store::update(tx, &scope, &changed).map(drop)
        };
        self.erasures.db.write(write).await?;
        Ok(Step::Moved)
    }

    async fn sweep_rows(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.go_on();
        let mut changed = job.clone();
        let write = move |tx: &mut Tx<'_>| {
            let (rows, is_all) = tables::erase_tenant(tx, &scope(&changed), ROWS_PER_STEP)?;
            changed.rows_erased += rows;
            store::update(tx, &scope(&changed), &changed)?;
            Ok::<_, DbError>((changed, is_all))
        };
        let is_all;
        (*job, is_all) = self.erasures.db.write(write).await?;
        if !is_all {
            return Ok(Step::Moved);
        }
        for member in leaving(job) {
            let write =
                move |tx: &mut Tx<'_>| store::account_forget(tx, &Scope::System("erasure"), &member.user_id);
            job.rows_erased += self.erasures.db.write(write).await?.cast_signed();
        }
        job.members.clear();
        self.finish(job).await
    }

    async fn finish(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.enter_next(self.now_us());
        let (done, at_us) = (job.clone(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let scope = scope(&done);
            store::update(tx, &scope, &done)?;
            let detail = serde_json::json!({ "rows": done.rows_erased, "exported": done.rows_exported });
            let (actor, action, object) = ("server", "erasure.done", done.id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us, actor, action, object, detail })
        };
        self.erasures.db.write(write).await?;
        self.forget(job);
        tracing::info!(tenant = %job.tenant, erasure = job.id, rows = job.rows_erased, "erased");
        Ok(Step::Moved)
    }
}
