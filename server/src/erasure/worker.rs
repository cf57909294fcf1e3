//! Works the jobs off, in the process that holds the store: one step of each open job in turn.
//!
//! `app.rs` runs it; tests take its steps one by one. A step's effects are safe to have twice, and its end is a commit
//! of the job's row: whatever stops the process between two, the next one goes on. What fails is tried again each
//! second, and stands in the job as what it waits for.

mod stored;

use super::model::{Job, State};
use super::service::{ErasureError, Erasures, leaving};
use super::{export, store, tables};
use crate::devices::{Devices, DevicesError};
use crate::platform::blob::{BlobError, PAGE_MAX, Prefix};
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::event_log::{EventLog, EventLogError};
use crate::platform::http_kit::condition::Precondition;
use crate::platform::http_kit::{Page, chain};
use crate::platform::telemetry::{TelemetryError, TelemetryStore};
use crate::rules::service::{RuleError, RuleService};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::model::Membership;
use crate::tenants::service::TenantsError;
use crate::tenants::{Principal, Role, Tenants};
use muster_wire::{DeviceId, TenantId};
use std::time::Duration;
use tokio::sync::watch;

const INTERVAL: Duration = Duration::from_secs(1);
/// Jobs that are worked on in turn.
const JOBS_AT_ONCE: i64 = 20;
/// Devices, tokens or rules of one step.
const PER_STEP: u32 = 100;
/// Steps between two looks at the stop.
const STEPS_PER_PASS: usize = 50;

/// Why a step failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// This slice's.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// The registry's slice.
    #[error("devices")]
    Devices(#[from] DevicesError),
    /// The accounts' slice.
    #[error("accounts")]
    Tenants(#[from] TenantsError),
    /// The rules' slice.
    #[error("rules")]
    Rules(#[from] RuleError),
    /// The telemetry store.
    #[error("telemetry store")]
    Telemetry(#[from] TelemetryError),
    /// The blob store.
    #[error("blob store")]
    Blob(#[from] BlobError),
    /// The event log.
    #[error("event log")]
    Log(#[from] EventLogError),
    /// The registry.
    #[error("database")]
    Db(#[from] DbError),
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// The job's row says how far.
    Moved,
    /// Nothing can be done now.
    Waits(String),
}

/// What it works with.
pub struct Worker {
    /// The jobs.
    pub erasures: Erasures,
    /// The registry.
    pub devices: Devices,
    /// Accounts.
    pub tenants: Tenants,
    /// Rules.
    pub rules: RuleService,
    /// The store.
    pub telemetry: TelemetryStore,
    /// The log before it.
    pub log: EventLog,
    /// Connections that began before have ended.
    pub started_at_us: i64,
}

impl Worker {
    /// Runs until the server stops.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.pass() => {}
                _ = stop.changed() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = stop.changed() => return,
            }
        }
    }

    async fn pass(&self) {
        for _ in 0..STEPS_PER_PASS {
            match self.step_all().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    return tracing::warn!(error = %chain(&error), "erasures cannot be read, will retry");
                }
            }
        }
    }

    /// One step of each open job. Says whether any came further.
    ///
    /// # Errors
    /// The jobs cannot be read or written.
    pub async fn step_all(&self) -> Result<bool, WorkerError> {
        let read = |tx: &mut Tx<'_>| store::open(tx, &Scope::System("erasure"), JOBS_AT_ONCE);
        let mut moved = false;
        for mut job in self.erasures.db.read(read).await? {
            let before = job.waiting_for.clone();
            let why = match self.step(&mut job).await {
                Ok(Step::Moved) => {
                    moved = true;
                    continue;
                }
                Ok(Step::Waits(why)) => why,
                Err(error) => {
                    let why = format!("{} fails: {}", job.state.as_str(), chain(&error));
                    // The same again differs in its times: once is enough.
                    if before.as_deref().is_none_or(|before| !before.contains(" fails: ")) {
                        tracing::warn!(tenant = %job.tenant, erasure = job.id, why, "an erasure waits, will retry");
                    }
                    why
                }
            };
            if before.as_deref() != Some(&why) {
                self.note(&job, why).await?;
            }
        }
        self.forget_exports().await?;
        Ok(moved)
    }

    /// Only what it waits for: the step may have changed its own copy of the job before it failed.
    async fn note(&self, job: &Job, why: String) -> Result<(), WorkerError> {
        let (scope, id) = (Scope::Tenant(job.tenant.clone()), job.id.clone());
        let write = move |tx: &mut Tx<'_>| {
            let Some(mut job) = store::get(tx, &scope, &id)? else { return Ok(()) };
            job.waiting_for = Some(why);
            store::update(tx, &scope, &job).map(drop)
        };
        Ok(self.erasures.db.write(write).await?)
    }

    async fn step(&self, job: &mut Job) -> Result<Step, WorkerError> {
        match job.state {
            State::ShuttingOut => self.shut_out(job).await,
            State::Draining => self.drain(job).await,
            State::Exporting => {
                if export::step(&self.erasures, &self.telemetry, job).await? {
                    self.enter_next(job).await?;
                }
                Ok(Step::Moved)
            }
            State::Erasing => self.erase(job).await,
            State::Sweeping => self.sweep(job).await,
            State::Done => Ok(Step::Moved),
        }
    }

    fn now_us(&self) -> i64 {
        self.erasures.clock.now_us()
    }

    async fn save(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.waiting_for = None;
        let (scope, job) = (Scope::Tenant(job.tenant.clone()), job.clone());
        self.erasures.db.write(move |tx| store::update(tx, &scope, &job).map(drop)).await?;
        Ok(Step::Moved)
    }

    async fn enter_next(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.enter_next(self.now_us());
        self.save(job).await
    }

    async fn shut_out(&self, job: &mut Job) -> Result<Step, WorkerError> {
        if let Some(device) = &job.device {
            self.devices.shut_out(&job.requested_by, &job.tenant, device).await?;
            return self.enter_next(job).await;
        }
        let who = requester(job);
        let first = Page { limit: PER_STEP, after: None };
        let tokens = self.tenants.token_list(&job.tenant, &first).await?;
        if !tokens.is_empty() {
            for token in tokens {
                match self.tenants.delete_token(&who, &job.tenant, token.token_id).await {
                    Ok(()) | Err(TenantsError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return self.save(job).await;
        }
        // Once more: a request that was let in before may have brought somebody in since.
        *job = self.erasures.shut_people_out(job).await?;
        let page = self.page(job).await?;
        for device in &page {
            self.devices.shut_out(&job.requested_by, &job.tenant, device).await?;
        }
        self.turn(job, page.last()).await
    }

    /// The tenant's registered devices behind the place.
    async fn page(&self, job: &Job) -> Result<Vec<DeviceId>, WorkerError> {
        Ok(self.devices.ids(&job.tenant, &job.place.device, i64::from(PER_STEP)).await?)
    }

    /// Goes behind the last device, or to the next state where there was none.
    async fn turn(&self, job: &mut Job, last: Option<&DeviceId>) -> Result<Step, WorkerError> {
        match last {
            Some(last) => {
                job.place.device = last.to_string();
                self.save(job).await
            }
            None => self.enter_next(job).await,
        }
    }

    async fn drain(&self, job: &mut Job) -> Result<Step, WorkerError> {
        if let Some(waits) = self.is_quiet(job).await? {
            return Ok(waits);
        }
        match self.settle(job).await? {
            Some(step) => Ok(step),
            None => self.enter_next(job).await,
        }
    }

    async fn erase(&self, job: &mut Job) -> Result<Step, WorkerError> {
        match (&job.device, job.place.part) {
            // Whatever came since it was drained stands below this.
            (_, 0) => {
                job.log = Some(self.log_end().await?);
                job.place.part = 1;
                self.save(job).await
            }
            (Some(device), _) => {
                let device = device.clone();
                self.devices.hide(&job.tenant, &device).await;
                if let Some(step) = self.settle(job).await? {
                    return Ok(step);
                }
                if let Some(step) = self.erase_stored(job, &device).await? {
                    return Ok(step);
                }
                self.erase_rows(job, device).await?;
                self.enter_next(job).await
            }
            (None, 1) => {
                let page = self.page(job).await?;
                for device in &page {
                    self.devices.hide(&job.tenant, device).await;
                }
                match page.last() {
                    Some(last) => job.place.device = last.to_string(),
                    None => (job.place.part, job.place.device) = (2, String::new()),
                }
                self.save(job).await
            }
            (None, 2) => {
                if let Some(step) = self.settle(job).await? {
                    return Ok(step);
                }
                if let Some(step) = self.erase_remote(job).await? {
                    return Ok(step);
                }
                job.place.part = 3;
                self.save(job).await
            }
            (None, 3) => self.erase_stored_tenant(job).await,
            (None, _) => self.erase_rules(job).await,
        }
    }

    /// Rules go by their service, so that the engine hears of it.
    async fn erase_rules(&self, job: &mut Job) -> Result<Step, WorkerError> {
        let who = requester(job);
        let rules = self.rules.list(&job.tenant, "", i64::from(PER_STEP)).await?;
        if rules.is_empty() {
            return self.enter_next(job).await;
        }
        for rule in rules {
            match self.rules.delete(&who, &job.tenant, &rule.id, Precondition::None).await {
                Ok(()) | Err(RuleError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.save(job).await
    }

    async fn erase_rows(&self, job: &mut Job, device: DeviceId) -> Result<(), WorkerError> {
        let scope = scope(job);
        let write = move |tx: &mut Tx<'_>| tables::erase_device(tx, &scope, device.as_str());
        job.rows_erased += self.erasures.db.write(write).await?.cast_signed();
        Ok(())
    }

    /// The rules may have written once more of what they had in memory; the registry's row goes last, since it keeps the
    /// name from being given to another device meanwhile.
    async fn sweep(&self, job: &mut Job) -> Result<Step, WorkerError> {
        if let Some(waits) = self.is_quiet(job).await? {
            return Ok(waits);
        }
        if let Some(device) = job.device.clone() {
            // The log may be another one than that which was read to its end.
            if job.log.is_none_or(|(epoch, _)| epoch != self.log.epoch()) {
                job.log = Some(self.log_end().await?);
                return self.save(job).await;
            }
            if let Some(step) = self.erase_stored(job, &device).await? {
                return Ok(step);
            }
            self.erase_rows(job, device.clone()).await?;
            self.devices.erase(&job.requested_by, &job.tenant, &device).await?;
            return self.finish(job).await;
        }
        let page = self.page(job).await?;
        if let Some(last) = page.last() {
            for device in &page {
                self.devices.erase(&job.requested_by, &job.tenant, device).await?;
            }
            job.place.device = last.to_string();
            return self.save(job).await;
        }
        self.erase_blobs(&job.tenant).await?;
        let scope = scope(job);
        let write = move |tx: &mut Tx<'_>| tables::erase_tenant(tx, &scope);
        job.rows_erased += self.erasures.db.write(write).await?.cast_signed();
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
        let (scope, done, at_us) = (scope(job), job.clone(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            store::update(tx, &scope, &done)?;
            let detail = serde_json::json!({ "rows": done.rows_erased, "exported": done.rows_exported });
            let (actor, action, object) = ("server", "erasure.done", done.id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us, actor, action, object, detail })
        };
        self.erasures.db.write(write).await?;
        tracing::info!(tenant = %job.tenant, erasure = job.id, rows = job.rows_erased, "erased");
        Ok(Step::Moved)
    }

    /// Everything but exports, which have a time of their own.
    async fn erase_blobs(&self, tenant: &TenantId) -> Result<(), WorkerError> {
        let (all, exports) = (Prefix::of(tenant), format!("{tenant}/exports/"));
        let mut after = None;
        loop {
            let page = self.erasures.blobs()?.list(&all, after.as_ref(), PAGE_MAX).await?;
            for blob in &page.items {
                if !blob.key.as_str().starts_with(&exports) {
                    self.erasures.blobs()?.delete(&blob.key).await?;
                }
            }
            after = page.items.last().map(|blob| blob.key.clone());
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Deletes exports that are past their time.
    async fn forget_exports(&self) -> Result<(), WorkerError> {
        let now_us = self.now_us();
        let read = move |tx: &mut Tx<'_>| store::expired(tx, &Scope::System("erasure"), now_us, JOBS_AT_ONCE);
        for mut job in self.erasures.db.read(read).await? {
            let folder = Prefix::below(&job.tenant, &job.folder())?;
            if let Err(error) = self.erasures.blobs()?.delete_prefix(&folder).await {
                tracing::warn!(error = %chain(&error), "an export past its time is not deleted yet, will retry");
                continue;
            }
            job.export_until_us = None;
            let scope = scope(&job);
            let write = move |tx: &mut Tx<'_>| {
                store::files_forget(tx, &scope, &job.id)?;
                store::update(tx, &scope, &job).map(drop)
            };
            self.erasures.db.write(write).await?;
        }
        Ok(())
    }
}

fn scope(job: &Job) -> Scope {
    Scope::Tenant(job.tenant.clone())
}

/// Who asked, for services that note it.
fn requester(job: &Job) -> Principal {
    match job.requested_by.split_once(':') {
        Some(("token", token_id)) => Principal::Token {
            token_id: token_id.to_owned(),
            membership: Membership::whole(job.tenant.clone(), Role::Owner),
            scopes: Vec::new(),
        },
        other => Principal::User {
            user_id: job.requester.clone(),
            email: other.map_or("", |(_, email)| email).to_owned(),
            memberships: Vec::new(),
            system_admin: false,
            password_pending: false,
        },
    }
}
