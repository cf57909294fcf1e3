//! The approval queue: what a claim that needs approval does with a device's request, and what a person decides.
//!
//! [`super::claims`] asks [`gate`] within the enrolment's transaction. A request is bound to its key: the device asks again
//! with it until somebody decided, and gets its certificate with the first question after the approval. Bounds:
//! [`WAITING_MAX`] requests of a tenant wait, of one claim no more than its uses left; each lives [`LIFE_US`], an approved
//! one as long again.

use super::claims::Enrolment;
use super::{Devices, DevicesError};
use crate::devices::model::{self, ClaimUse, EnrollmentState};
use crate::devices::store::{self, ClaimRow, EnrollmentRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::{DeviceId, TenantId};

/// Requests of one tenant that wait for a decision.
pub(crate) const WAITING_MAX: u32 = 1_000;
/// How long a request waits, and how long an approved device may take to ask again.
const LIFE_US: i64 = 7 * 86_400_000_000;
/// When a waiting device shall ask again, in seconds.
pub(crate) const RETRY_AFTER_S: u64 = 30;

/// What the queue says to a device.
pub(super) enum Gate {
    /// Ask again.
    Waits,
    /// It may enrol under this id.
    Granted(DeviceId),
}

/// Looks a request up in the queue, or puts it there.
pub(super) fn gate(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim: &ClaimRow,
    enrolment: &Enrolment,
) -> Result<Gate, DevicesError> {
    store::enrollments_forget(tx, scope, enrolment.now_us)?;
    let spki = &enrolment.csr.spki_sha256;
    if let Some(found) = store::enrollment_of_key(tx, scope, &claim.claim_id, spki)? {
        return match found.state {
            EnrollmentState::Pending => Ok(Gate::Waits),
            EnrollmentState::Rejected => Err(DevicesError::Rejected { note: found.note.unwrap_or_default() }),
            EnrollmentState::Approved => {
                store::enrollment_delete(tx, scope, &found.enrollment_id)?;
                Ok(Gate::Granted(found.device))
            }
        };
    }
    let named =
        model::use_claim(&claim.state, enrolment.asked.clone(), enrolment.fallback.clone(), enrolment.now_us);
    let ClaimUse::New(device) = named else { return Err(DevicesError::ClaimSpent) };
    super::claims::check_pattern(claim, &device)?;
    let is_taken =
        store::device_get(tx, scope, &device)?.is_some() || store::enrollment_names(tx, scope, &device)?;
    if is_taken {
        return Err(DevicesError::Conflict("the device exists already, or another one waits under its id"));
    }
    let (waiting, of_claim) = store::enrollment_counts(tx, scope, &claim.claim_id)?;
    if waiting >= i64::from(WAITING_MAX) {
        return Err(DevicesError::Quota { noun: "devices that wait for approval", max: WAITING_MAX });
    }
    if of_claim >= i64::from(claim.state.uses_max - claim.state.uses) {
        return Err(DevicesError::ClaimSpent);
    }
    let row = EnrollmentRow {
        enrollment_id: format!("e-{}", hex::encode(secret::random_bytes::<8>())),
        claim_id: claim.claim_id.clone(),
        spki_sha256: *spki,
        device,
        peer: enrolment.peer.clone(),
        state: EnrollmentState::Pending,
        requested_at_us: enrolment.now_us,
        expires_at_us: enrolment.now_us.saturating_add(LIFE_US),
        decided_by: None,
        decided_at_us: None,
        note: None,
    };
    store::enrollment_insert(tx, scope, &row)?;
    let (actor, object) = (format!("claim:{}", claim.claim_id), row.enrollment_id.as_str());
    let detail = serde_json::json!({ "device": row.device, "peer": row.peer });
    let entry =
        AuditEntry { at_us: enrolment.now_us, actor: &actor, action: "enrollment.request", object, detail };
    audit::append(tx, scope, &entry)?;
    Ok(Gate::Waits)
}

impl Devices {
    /// The tenant's queue, in one state or whole.
    ///
    /// # Errors
    /// The database's.
    pub async fn enrollments(
        &self,
        tenant: &TenantId,
        state: Option<EnrollmentState>,
        page: &Page,
    ) -> Result<Vec<EnrollmentRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        let now_us = self.now_us();
        let read = move |tx: &mut Tx<'_>| store::enrollment_list(tx, &scope, state, now_us, &after, limit);
        Ok(self.inner.db.read(read).await?)
    }

    /// Lets a device in, or turns it away.
    ///
    /// # Errors
    /// No such request; it was decided already; a note over its bound.
    pub async fn decide(
        &self,
        who: &Principal,
        tenant: &TenantId,
        enrollment_id: String,
        decision: EnrollmentState,
        note: Option<String>,
    ) -> Result<EnrollmentRow, DevicesError> {
        note.as_deref().map_or(Ok(()), model::check_note)?;
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let write = move |tx: &mut Tx<'_>| {
            let found = store::enrollment_get(tx, &scope, &enrollment_id)?;
            let found = found.filter(|row| row.expires_at_us > now_us);
            let row = EnrollmentRow {
                state: decision,
                expires_at_us: now_us.saturating_add(LIFE_US),
                decided_by: Some(actor.clone()),
                decided_at_us: Some(now_us),
                note,
                ..found.ok_or(DevicesError::NotFound("enrollment"))?
            };
            if !store::enrollment_decide(tx, &scope, &row)? {
                return Err(DevicesError::Conflict("it was decided already"));
            }
            let action = match decision {
                EnrollmentState::Rejected => "enrollment.reject",
                EnrollmentState::Approved | EnrollmentState::Pending => "enrollment.approve",
            };
            let (object, detail) =
                (row.enrollment_id.as_str(), serde_json::json!({ "device": row.device, "note": row.note }));
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        self.inner.db.write(write).await
    }
}
