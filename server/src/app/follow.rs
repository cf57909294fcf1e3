//! Brings what this process keeps in memory up to what others changed in a registry that processes share.
//!
//! [`super::App`] and [`super::ApiAlone`] start it where the registry is PostgreSQL. [`Wakes`] tells whose audit chain grew; the
//! chain's rows name what was changed, and the slice that keeps it reads it again: API tokens and quotas in every process, and where the
//! event log is read devices, certificates, labels, rules, and answers to alerts for the live stream (docs/adr/0019).
//! Everything else is read from the registry each time.
//!
//! Promise: once a look at a commit is over, memory is as new as that commit, or newer. A look that fails is tried again
//! each [`RETRY`]; the rows before it are read again then. Where the chains name more than [`NAMED_MAX`] objects, everything is
//! compared. One row that holds what it cannot be is logged and passed over.

use super::{AppError, metrics};
use crate::alerts::service::{AlertError, AlertService};
use crate::devices::{Devices, DevicesError};
use crate::platform::condition::Condition;
use crate::platform::db::{self, Db, DbError, Scope, Wakes, Woken};
use crate::platform::http_kit::chain;
use crate::platform::http_kit::health::Health;
use crate::rules::service::RuleBoard;
use crate::tenants::audit::Changed;
use crate::tenants::chains::Chains;
use crate::tenants::{Tenants, TenantsError};
use crate::usage::{UsageError, UsageService};
use muster_wire::{DeviceId, TenantId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Rows of the audit chains that one look follows; with more it compares everything.
pub(super) const NAMED_MAX: usize = 4_096;
/// Between two tries of a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Tests make notifications good by other means, and no sooner.
const RESCAN_INTERVAL: Duration = if cfg!(test) { Duration::MAX } else { db::RESCAN_INTERVAL };

const SCOPE: Scope = Scope::System("registry changes");

/// Where the chains end now. To be read before what they are followed for.
///
/// # Errors
/// The database's.
pub(super) async fn chains(registry: &Db) -> Result<Chains, DbError> {
    registry.read(|tx| Chains::newest(tx, &SCOPE)).await
}

/// What is kept in memory where the event log is read.
pub(super) struct AtLog {
    pub(super) devices: Devices,
    pub(super) rules: Arc<RuleBoard>,
    pub(super) alerts: AlertService,
}

/// Who is told of changes.
pub(super) struct Follower {
    pub(super) registry: Db,
    pub(super) chains: Chains,
    pub(super) tenants: Tenants,
    pub(super) usage: UsageService,
    /// None in a process with the role `api` alone.
    pub(super) at_log: Option<AtLog>,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Progress {
    condition: Condition,
    /// Rows that the chains named.
    pub(super) named: AtomicU64,
    /// Comparisons of everything.
    pub(super) compares: AtomicU64,
    /// Looks that failed and were tried again.
    pub(super) failures: AtomicU64,
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the audit chains cannot be read")]
    Db(#[from] DbError),
    #[error("API tokens cannot be read again")]
    Tenants(#[from] TenantsError),
    #[error("quotas cannot be read again")]
    Usage(#[from] UsageError),
    #[error("devices cannot be read again")]
    Devices(#[from] DevicesError),
    #[error("an alert cannot be read again")]
    Alert(#[from] AlertError),
}

impl LookError {
    /// Whether it is one row's fault: that row holds what it cannot be.
    fn is_of_a_row(&self) -> bool {
        let error = match self {
            Self::Db(error)
            | Self::Tenants(TenantsError::Db(error))
            | Self::Usage(UsageError::Db(error))
            | Self::Devices(DevicesError::Db(error))
            | Self::Alert(AlertError::Db(error)) => error,
            Self::Tenants(_) | Self::Usage(_) | Self::Devices(_) | Self::Alert(_) => return false,
        };
        matches!(error, DbError::Column { .. })
    }

    /// Gives back what is no row's fault.
    fn of_a_row(self) -> Result<(), Self> {
        if self.is_of_a_row() { Ok(()) } else { Err(self) }
    }
}

/// Where a started follower can be asked.
pub(super) struct Following {
    pub(super) wakes: Arc<Wakes>,
    #[cfg_attr(not(test), allow(dead_code, reason = "tests ask it; metrics hold their own"))]
    pub(super) progress: Arc<Progress>,
}

/// Starts to follow; none where the registry is this process's own.
///
/// # Errors
/// A metric is registered twice.
pub(super) fn start(
    follower: Follower,
    health: &Health,
    registered: &prometheus::Registry,
    tasks: &mut JoinSet<()>,
    stopped: watch::Receiver<bool>,
) -> Result<Option<Following>, AppError> {
    let Some(wakes) = follower.registry.wakes(RESCAN_INTERVAL).map(Arc::new) else { return Ok(None) };
    let progress = Arc::<Progress>::default();
    let conditions = (wakes.condition(), progress.condition.clone());
    health
        .add("registry_changes", move || std::future::ready(conditions.0.check().and(conditions.1.check())));
    metrics::of_changes(registered, &wakes, &progress)?;
    tasks.spawn(follower.run(wakes.clone(), progress.clone(), stopped));
    Ok(Some(Following { wakes, progress }))
}

/// Resolves once this process may not go on with the registry as that is now.
pub(super) async fn lost(following: Option<&Following>) -> AppError {
    match following {
        Some(following) => AppError::SchemaChanged(following.wakes.lost().await),
        None => std::future::pending().await,
    }
}

impl Follower {
    async fn run(mut self, wakes: Arc<Wakes>, progress: Arc<Progress>, mut stopped: watch::Receiver<bool>) {
        let _ending = progress.condition.until_end();
        loop {
            let woken = tokio::select! {
                woken = wakes.next() => woken,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            // A look that is given up by a stop leaves nothing half: what it read is in memory, or is not.
            let looked = tokio::select! {
                looked = self.look(&woken, &progress) => looked,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let Err(error) = looked else {
                progress.condition.works();
                continue;
            };
            let why = chain(&error);
            progress.failures.fetch_add(1, Ordering::Relaxed);
            if progress.condition.check().is_ok() {
                tracing::warn!(error = %why, "changes of the registry cannot be followed, what is known stays, will retry");
            }
            progress.condition.fails(why);
            wakes.again(woken);
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    async fn look(&mut self, woken: &Woken, progress: &Progress) -> Result<(), LookError> {
        let (mut chains, woken) = (self.chains.clone(), woken.clone());
        let read = self.registry.read(move |tx| {
            let named = match woken {
                Woken::Tenants(tenants) => chains.read(tx, &tenants, NAMED_MAX)?,
                Woken::Everything => chains.read_all(tx, &SCOPE, NAMED_MAX)?,
            };
            let chains = if named.is_some() { chains } else { Chains::newest(tx, &SCOPE)? };
            Ok::<_, DbError>((named, chains))
        });
        let (named, chains) = read.await?;
        match named {
            Some(named) => {
                let count = named.len() as u64;
                self.apply(named).await?;
                progress.named.fetch_add(count, Ordering::Relaxed);
            }
            None => {
                self.compare().await?;
                progress.compares.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.chains = chains;
        Ok(())
    }

    async fn apply(&self, named: Vec<(TenantId, Changed)>) -> Result<(), LookError> {
        let (mut tokens, mut quotas, mut devices) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut certificates, mut alerts, mut are_rules) = (Vec::new(), Vec::new(), false);
        for (tenant, Changed { action, object, .. }) in named {
            match action.split_once('.').map_or("", |(noun, _)| noun) {
                "token" => drop(tokens.insert(tenant)),
                "quota" => drop(quotas.insert(tenant)),
                "device" => drop(devices.insert((tenant, object))),
                "certificate" => certificates.push((tenant, object)),
                "alert" => alerts.push((tenant, object)),
                "rule" => are_rules = true,
                _ => {}
            }
        }
        for tenant in tokens {
            pass_over(self.tenants.refresh_tokens(&tenant).await, tenant.as_str())?;
        }
        for tenant in quotas {
            pass_over(self.usage.refresh(&tenant).await, tenant.as_str())?;
        }
        let Some(at_log) = &self.at_log else { return Ok(()) };
        for (tenant, device) in devices {
            let Ok(device) = DeviceId::parse(&device) else { continue };
            pass_over(at_log.devices.refresh(&tenant, &device).await, device.as_str())?;
        }
        for (tenant, serial) in certificates {
            let done = at_log.devices.refresh_certificate(&tenant, serial.clone()).await;
            pass_over(done, &serial)?;
        }
        if are_rules {
            at_log.rules.changed();
        }
        for (tenant, alert) in alerts {
            pass_over(at_log.alerts.tell_answered(&tenant, &alert).await, &alert)?;
        }
        Ok(())
    }

    async fn compare(&self) -> Result<(), LookError> {
        if let Err(error) = self.tenants.refresh_all_tokens().await.map_err(LookError::from) {
            error.of_a_row()?;
            for tenant in self.tenants.ids().await? {
                pass_over(self.tenants.refresh_tokens(&tenant).await, tenant.as_str())?;
            }
        }
        if let Err(error) = self.usage.refresh_all().await.map_err(LookError::from) {
            error.of_a_row()?;
            for tenant in self.tenants.ids().await? {
                pass_over(self.usage.refresh(&tenant).await, tenant.as_str())?;
            }
        }
        let Some(at_log) = &self.at_log else { return Ok(()) };
        let devices = at_log.devices.refresh_all().await?;
        tracing::info!(devices, "too many changes to follow one by one: everything was compared");
        at_log.rules.changed();
        Ok(())
    }
}

/// What is wrong with one row is no reason to follow no other.
fn pass_over(done: Result<(), impl Into<LookError>>, object: &str) -> Result<(), LookError> {
    match done.map_err(Into::<LookError>::into) {
        Err(error) if error.is_of_a_row() => {
            tracing::error!(object, error = %chain(&error), "a change of the registry cannot be followed");
            Ok(())
        }
        done => done,
    }
}
