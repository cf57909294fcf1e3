//! Works the jobs off, in the process that holds the store: one step of each open job in turn.
//!
//! `app.rs` runs it; tests take its steps one by one. A step's effects are safe to have twice, and its end is a commit
//! of the job's row: whatever stops the process between two, the next one goes on. What fails is tried again after a
//! second, later after up to a minute, and stands in the job as what it waits for. Tenants take turns.

pub(super) mod stored;

use super::model::{FAIL_US_MAX, Job, Place, State, WAIT_US_MAX};
use super::service::{ErasureError, Erasures};
use super::{export, store, tables};
use crate::devices::{Devices, DevicesError};
use crate::platform::blob::BlobError;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::event_log::{EventLog, EventLogError};
use crate::platform::http_kit::chain;
use crate::platform::http_kit::condition::Precondition;
use crate::platform::telemetry::{TelemetryError, TelemetryStore};
use crate::rules::service::{RuleError, RuleService};
use crate::tenants::model::Membership;
use crate::tenants::{Principal, Role};
use muster_wire::{DeviceId, TenantId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

const INTERVAL: Duration = Duration::from_secs(1);
/// Tenants of one round, a job of each.
pub(super) const JOBS_AT_ONCE: i64 = 20;
/// Devices or rules of one step.
const PER_STEP: i64 = 100;
/// Rows of the registry that one transaction deletes.
pub(super) const ROWS_PER_STEP: i64 = 5_000;
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
pub(super) enum Step {
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
    /// Rules.
    pub rules: RuleService,
    /// The store.
    pub telemetry: TelemetryStore,
    /// The log before it.
    pub log: EventLog,
    /// Connections that began before have ended.
    pub started_at_us: i64,
    /// Begins empty.
    pub memory: Memory,
}

/// What a worker knows beside the jobs' rows; another process begins without it.
#[derive(Debug, Default)]
pub struct Memory {
    /// The tenant that had its turn last.
    turn: Mutex<String>,
    /// What the rules were asked to forget, by tenant and job.
    asked: Mutex<HashMap<(TenantId, String), u64>>,
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

    /// One step of a job of each of the tenants whose turn it is. Says whether there is more to do at once.
    ///
    /// # Errors
    /// The jobs cannot be read or written.
    pub async fn step_all(&self) -> Result<bool, WorkerError> {
        let jobs = self.turn().await?;
        let mut moved = jobs.len() as i64 == JOBS_AT_ONCE;
        for mut job in jobs {
            let before = job.waiting_for.clone();
            let (why, max_us) = match self.step(&mut job).await {
                Ok(Step::Moved) => {
                    moved = true;
                    continue;
                }
                Ok(Step::Waits(why)) => (why, WAIT_US_MAX),
                Err(error) => {
                    let why = format!("{} fails: {}", job.state.as_str(), chain(&error));
                    // The same again differs in its times: once is enough.
                    if before.as_deref().is_none_or(|before| !before.contains(" fails: ")) {
                        tracing::warn!(tenant = %job.tenant, erasure = job.id, why, "an erasure waits, will retry");
                    }
                    (why, FAIL_US_MAX)
                }
            };
            self.put_off(&job, why, max_us).await?;
        }
        Ok(moved)
    }

    /// A job of each of the next tenants; behind the last one the first is next.
    async fn turn(&self) -> Result<Vec<Job>, WorkerError> {
        let now_us = self.now_us();
        let due = async |after: String| {
            let read = move |tx: &mut Tx<'_>| {
                store::due(tx, &Scope::System("erasure"), now_us, &after, JOBS_AT_ONCE)
            };
            self.erasures.db.read(read).await
        };
        let after = self.memory.turn.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut jobs = due(after.clone()).await?;
        if jobs.is_empty() && !after.is_empty() {
            jobs = due(String::new()).await?;
        }
        let last = jobs.last().filter(|_| jobs.len() as i64 == JOBS_AT_ONCE);
        let last = last.map(|job| job.tenant.to_string()).unwrap_or_default();
        *self.memory.turn.lock().unwrap_or_else(PoisonError::into_inner) = last;
        Ok(jobs)
    }

    /// Only what it waits for and until when: the step may have changed its own copy of the job before it failed.
    async fn put_off(&self, job: &Job, why: String, max_us: i64) -> Result<(), WorkerError> {
        let (scope, id, now_us) = (scope(job), job.id.clone(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let Some(mut job) = store::get(tx, &scope, &id)? else { return Ok(()) };
            job.waiting_for = Some(why);
            job.put_off(now_us, max_us);
            store::update(tx, &scope, &job).map(drop)
        };
        Ok(self.erasures.db.write(write).await?)
    }

    /// Whether the rules have forgotten devices that are not known any more since this was asked first. None: they have.
    pub(super) fn rules_forget(&self, job: &Job) -> Option<Step> {
        let board = self.rules.board();
        let mut asked = self.memory.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked =
            *asked.entry((job.tenant.clone(), job.id.clone())).or_insert_with(|| board.ask_to_forget());
        (!board.has_forgotten(asked))
            .then(|| Step::Waits("the rules to forget what they know of it".to_owned()))
    }

    /// A job is done, and with a tenant's its other jobs.
    pub(super) fn forget(&self, job: &Job) {
        let mut asked = self.memory.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|(tenant, id), _| *tenant != job.tenant || (job.device.is_some() && *id != job.id));
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

    pub(super) fn now_us(&self) -> i64 {
        self.erasures.clock.now_us()
    }

    pub(super) async fn save(&self, job: &mut Job) -> Result<Step, WorkerError> {
        job.go_on();
        let (scope, job) = (scope(job), job.clone());
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
        // Once more: a request that was let in before may have brought somebody in since.
        *job = self.erasures.shut_people_out(job).await?;
        let page = self.page(job).await?;
        for device in &page {
            self.devices.shut_out(&job.requested_by, &job.tenant, device).await?;
        }
        self.go_behind(job, page.last()).await
    }

    /// The tenant's registered devices behind the place.
    pub(super) async fn page(&self, job: &Job) -> Result<Vec<DeviceId>, WorkerError> {
        Ok(self.devices.ids(&job.tenant, &job.place.device, PER_STEP).await?)
    }

    /// Goes behind the last device, or to the next state where there was none.
    async fn go_behind(&self, job: &mut Job, last: Option<&DeviceId>) -> Result<Step, WorkerError> {
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
            _ if job.log.is_none_or(|(epoch, _)| epoch != self.log.epoch()) => {
                job.place = Place::default();
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
                match self.erase_rows(job, device).await? {
                    true => self.enter_next(job).await,
                    false => Ok(Step::Moved),
                }
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
        let rules = self.rules.list(&job.tenant, "", PER_STEP).await?;
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

    /// Deletes some of what the registry's tables hold of a device. Says whether that was all.
    pub(super) async fn erase_rows(&self, job: &mut Job, device: DeviceId) -> Result<bool, WorkerError> {
        job.go_on();
        let mut changed = job.clone();
        let write = move |tx: &mut Tx<'_>| {
            let scope = scope(&changed);
            let (rows, is_all) = tables::erase_device(tx, &scope, device.as_str(), ROWS_PER_STEP)?;
            changed.rows_erased += rows;
            store::update(tx, &scope, &changed)?;
            Ok::<_, DbError>((changed, is_all))
        };
        let is_all;
        (*job, is_all) = self.erasures.db.write(write).await?;
        Ok(is_all)
    }
}

pub(super) fn scope(job: &Job) -> Scope {
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
