//! What rules and people do to alerts.

use super::model::{Alert, AlertFilter, AlertState, Illegal, NOTE_CHARS_MAX, NewAlert, SkippedRange, Step};
use super::store;
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::live::{LiveBus, LiveKind};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::{Principal, Reach};
use muster_wire::TenantId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows deleted in one transaction by [`AlertService::prune`].
pub(super) const PRUNE_ROWS_MAX: i64 = 1_000;

/// Answers of this process that are remembered, so that they are not told twice.
pub(super) const ANSWERS_MAX: usize = 1_024;

/// Why an alert was not changed or found.
#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    /// No such alert in the tenant.
    #[error("there is no such alert")]
    NotFound,
    /// Its state does not allow the step.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The note is too long.
    #[error("note must be at most {NOTE_CHARS_MAX} characters")]
    NoteTooLong,
    /// The database failed.
    #[error("alerts cannot be stored or read")]
    Db(#[from] DbError),
}

/// Alerts of every tenant.
#[derive(Clone)]
pub struct AlertService {
    db: Db,
    clock: SharedClock,
    live: LiveBus,
    /// What people answered through this process: tenant, alert, when.
    answers: Arc<Mutex<VecDeque<(TenantId, String, i64)>>>,
}

/// Opens an alert inside a rule's commit; `None` where the same one was opened before.
///
/// # Errors
/// The database failed.
pub fn open(tx: &mut Tx<'_>, alert: &NewAlert) -> Result<Option<Alert>, DbError> {
    let scope = Scope::Tenant(alert.tenant.clone());
    if store::insert(tx, &scope, alert)? { store::get(tx, &scope, &alert.id) } else { Ok(None) }
}

/// Tells a tenant of a skipped range, inside a commit; `None` where it was told before, or where an alert of the same
/// reader still waits for a person: a damaged log is one alert, not thousands. The rows and the metric have the rest.
///
/// # Errors
/// The database failed.
pub fn open_skipped(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    range: &SkippedRange,
    now_us: i64,
) -> Result<Option<Alert>, DbError> {
    let (scope, new) = (Scope::Tenant(tenant.clone()), range.alert(tenant, now_us));
    if store::is_waiting(tx, &scope, &new.device, &new.subject)? { Ok(None) } else { open(tx, &new) }
}

/// Clears an alert inside a rule's commit; `None` where it is gone or has cleared before.
///
/// # Errors
/// The database failed.
pub fn clear(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &str,
    at_us: i64,
    why: &str,
) -> Result<Option<Alert>, DbError> {
    let scope = Scope::Tenant(tenant.clone());
    let Some(mut alert) = store::get(tx, &scope, id)? else { return Ok(None) };
    let Ok(state) = alert.state.after(Step::Clear) else { return Ok(None) };
    if alert.cleared_at_us.is_some() {
        return Ok(None);
    }
    alert.state = state;
    alert.cleared_at_us = Some(at_us.max(alert.opened_at_us));
    alert.cleared_why = Some(why.to_owned());
    store::update(tx, &scope, &alert)?;
    Ok(Some(alert))
}

/// Tells the tenant's live streams what an alert is now. Call it after the commit.
pub fn announce(live: &LiveBus, tenant: &str, alert: &Alert) {
    // The row is plain values: it always serialises.
    if let Ok(json) = serde_json::to_string(alert) {
        live.publish(tenant, LiveKind::Alert, Some(&alert.device), &json);
    }
}

impl AlertService {
    /// A service on a registry.
    #[must_use]
    pub fn new(db: Db, clock: SharedClock, live: LiveBus) -> Self {
        Self { db, clock, live, answers: Arc::default() }
    }

    /// A page of alerts, the newest first, and one more where there is one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(
        &self,
        tenant: &TenantId,
        filter: AlertFilter,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Vec<Alert>, AlertError> {
        let scope = Scope::Tenant(tenant.clone());
        self.db.read(move |tx| Ok(store::list(tx, &scope, &filter, after.as_ref(), limit)?)).await
    }

    /// One alert, of a device within a reach.
    ///
    /// # Errors
    /// There is none, or the database failed.
    pub async fn get(&self, tenant: &TenantId, reach: Reach, id: &str) -> Result<Alert, AlertError> {
        let (scope, id) = (Scope::Tenant(tenant.clone()), id.to_owned());
        let read = move |tx: &mut Tx<'_>| Ok::<_, AlertError>(store::get_within(tx, &scope, &reach, &id)?);
        let found = self.db.read(read).await?;
        found.ok_or(AlertError::NotFound)
    }

    /// How many alerts of devices within a reach are in each state; states without any are 0.
    ///
    /// # Errors
    /// The database failed.
    pub async fn counts(
        &self,
        tenant: &TenantId,
        reach: Reach,
    ) -> Result<BTreeMap<&'static str, i64>, AlertError> {
        let scope = Scope::Tenant(tenant.clone());
        let counted = self.db.read(move |tx| Ok::<_, AlertError>(store::counts(tx, &scope, &reach)?)).await?;
        let mut counts: BTreeMap<_, _> = AlertState::ALL.iter().map(|state| (state.as_str(), 0)).collect();
        for (state, count) in counted {
            if let Some(state) = AlertState::parse(&state) {
                counts.insert(state.as_str(), count);
            }
        }
        Ok(counts)
    }

    /// A person takes notice.
    ///
    /// # Errors
    /// There is no such alert, it is past that, or the note is too long.
    pub async fn ack(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        note: Option<String>,
    ) -> Result<Alert, AlertError> {
        self.answer(who, tenant, id, (Step::Ack, "alert.ack"), note).await
    }

    /// A person closes it.
    ///
    /// # Errors
    /// There is no such alert, it is resolved already, or the note is too long.
    pub async fn resolve(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        note: Option<String>,
    ) -> Result<Alert, AlertError> {
        self.answer(who, tenant, id, (Step::Resolve, "alert.resolve"), note).await
    }

    async fn answer(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        (step, action): (Step, &'static str),
        note: Option<String>,
    ) -> Result<Alert, AlertError> {
        if note.as_ref().is_some_and(|note| note.chars().count() > NOTE_CHARS_MAX) {
            return Err(AlertError::NoteTooLong);
        }
        let (scope, id, now_us) = (Scope::Tenant(tenant.clone()), id.to_owned(), self.clock.now_us());
        let (actor, reach) = (who.audit_name(), who.reach_in(tenant));
        self.remember((tenant.clone(), id.clone(), now_us));
        let changed = self.db.write(move |tx| {
            let found = store::get_within(tx, &scope, &reach, &id)?;
            let mut alert = found.ok_or(AlertError::NotFound)?;
            alert.state = alert.state.after(step)?;
            let (at, by) = match step {
                Step::Ack => (&mut alert.acked_at_us, &mut alert.acked_by),
                Step::Resolve | Step::Clear => (&mut alert.resolved_at_us, &mut alert.resolved_by),
            };
            *at = Some(now_us);
            *by = Some(actor.clone());
            let detail = serde_json::json!({ "note": note });
            if note.is_some() {
                alert.note = note;
            }
            store::update(tx, &scope, &alert)?;
            audit::append(
                tx,
                &scope,
                &AuditEntry { at_us: now_us, actor: &actor, action, object: &id, detail },
            )?;
            Ok::<_, AlertError>(alert)
        });
        let alert = changed.await?;
        announce(&self.live, tenant.as_str(), &alert);
        Ok(alert)
    }

    /// Tells live streams what people answered through another process. Through this one they were told before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tell_answered(&self, tenant: &TenantId, id: &str) -> Result<(), AlertError> {
        let alert = match self.get(tenant, Reach::Everything, id).await {
            Ok(alert) => alert,
            Err(AlertError::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        // Nothing is answered after it was resolved, whatever the processes' clocks say.
        let at_us = alert.resolved_at_us.or(alert.acked_at_us);
        let is_ours = |(of, answered, when): &(TenantId, String, i64)| {
            of == tenant && answered == id && Some(*when) == at_us
        };
        if !self.answers().iter().any(is_ours) {
            announce(&self.live, tenant.as_str(), &alert);
        }
        Ok(())
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<(TenantId, String, i64)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remember(&self, answer: (TenantId, String, i64)) {
        let mut answers = self.answers();
        if answers.len() >= ANSWERS_MAX {
            answers.pop_front();
        }
        answers.push_back(answer);
    }

    /// Tells a tenant of a skipped range; says whether it was news.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tell_skipped(&self, tenant: &TenantId, range: &SkippedRange) -> Result<bool, AlertError> {
        let (of, range, now_us) = (tenant.clone(), range.clone(), self.clock.now_us());
        let opened =
            self.db.write(move |tx| Ok::<_, AlertError>(open_skipped(tx, &of, &range, now_us)?)).await?;
        if let Some(alert) = &opened {
            announce(&self.live, tenant.as_str(), alert);
        }
        Ok(opened.is_some())
    }

    /// Opens an alert of the platform's own; says whether it was news: told again, it has the same id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tell(&self, alert: NewAlert) -> Result<bool, AlertError> {
        let tenant = alert.tenant.clone();
        let opened = self.db.write(move |tx| Ok::<_, AlertError>(open(tx, &alert)?)).await?;
        if let Some(alert) = &opened {
            announce(&self.live, tenant.as_str(), alert);
        }
        Ok(opened.is_some())
    }

    /// Deletes a tenant's alerts that cleared before a time; returns how many. Idempotent.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune(&self, tenant: &TenantId, before_us: i64) -> Result<usize, AlertError> {
        let mut all = 0;
        loop {
            let scope = Scope::Tenant(tenant.clone());
            let deleted = self.db.write(move |tx| {
                Ok::<_, AlertError>(store::delete_old(tx, &scope, before_us, PRUNE_ROWS_MAX)?)
            });
            let deleted = deleted.await?;
            all += deleted;
            if deleted < usize::try_from(PRUNE_ROWS_MAX).unwrap_or(usize::MAX) {
                return Ok(all);
            }
        }
    }
}
