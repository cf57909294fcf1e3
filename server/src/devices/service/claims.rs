//! Claims and the enrolment that spends them.
//!
//! A claim is an operator's leave for a device to get a certificate. Its use is bound to the key of the request:
//! the same key gets the same certificate again (the reply may have been lost), another key spends another use.
//! A claim that names no device never takes over one that exists.

use super::approval::{self, Gate};
use super::{Devices, DevicesError, DevicesMax, Endpoints, NO_DEVICE, insert_device, profiles};
use crate::devices::model::{
    self, ClaimDefaults, ClaimRequest, ClaimState, ClaimTerms, ClaimUse, FieldError,
};
use crate::devices::pki::{self, CheckedCsr, Pki};
use crate::devices::store::{self, CertificateRow, ClaimRow, ClaimUseRow, DeviceRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::login_guard::Policy;
use crate::tenants::reach::Reach;
use muster_wire::{DeviceId, TenantId};
use std::sync::{Arc, PoisonError};

/// Ended claims are kept this long, so that a lost reply can still be repeated.
const KEEP_US: i64 = 7 * 86_400_000_000;
const CLAIMS: Scope = Scope::System("claims");

/// A new claim; the string is shown once.
#[derive(Debug)]
pub struct NewClaim {
    /// The row.
    pub row: ClaimRow,
    /// What an operator hands to the device.
    pub claim: String,
}

/// What a device gets.
#[derive(Debug)]
pub struct Enrolled {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub device: DeviceId,
    /// Its certificate.
    pub certificate_pem: String,
    /// The CA that signed it and the server's certificate.
    pub ca_pem: String,
    /// Where to connect, and to renew.
    pub endpoints: Endpoints,
    /// The server's time, microseconds since 1970 (UTC).
    pub now_us: i64,
    /// The end of the certificate's time.
    pub expires_at_us: i64,
}

/// One enrolment's values, as the transaction needs them.
pub(super) struct Enrolment {
    token_sha256: [u8; 32],
    pub(super) csr: CheckedCsr,
    pub(super) asked: Option<DeviceId>,
    pub(super) fallback: DeviceId,
    pub(super) now_us: i64,
    pub(super) peer: String,
    /// Life of a certificate where the profile does not say.
    life_s: i64,
    devices_max: DevicesMax,
}

/// What a transaction ended with; both are kept.
enum Ended {
    Enrolled(Box<Outcome>),
    Waits,
}

struct Outcome {
    tenant: TenantId,
    row: DeviceRow,
    certificate_pem: String,
    expires_at_us: i64,
    revoked: Vec<String>,
}

impl Devices {
    /// Makes a claim.
    ///
    /// # Errors
    /// A field out of range; quota; the listeners are not up.
    pub async fn create_claim(
        &self,
        who: &Principal,
        tenant: &TenantId,
        request: ClaimRequest,
    ) -> Result<NewClaim, DevicesError> {
        // What needs no profile is refused before the registry is asked.
        request.settle(&ClaimDefaults::default())?;
        let door = self.door().await?;
        let (endpoints, pin) = (&door.endpoints, door.pin()?);
        let (token, now_us) = (secret::new_token("mcl_"), self.now_us());
        let (sha256, scope, actor) =
            (secret::token_sha256(&token), Scope::Tenant(tenant.clone()), who.audit_name());
        let max = self.inner.config.get().quota.claims_max;
        let write = move |tx: &mut Tx<'_>| {
            let profile = profiles::named(tx, &scope, request.profile.as_deref())?;
            let terms = request.settle(&profile.claim)?;
            let row = claim_row(request, terms, &actor, now_us);
            claims_forget(tx, &scope, now_us)?;
            if store::claim_count_open(tx, &scope, now_us)? >= i64::from(max) {
                return Err(DevicesError::Quota { noun: "open claims", max });
            }
            store::claim_insert(tx, &scope, &row, &sha256)?;
            let detail = serde_json::json!({
                "device": row.state.device, "uses_max": row.state.uses_max, "approval": row.approval, "profile": row.profile,
            });
            let (action, object) = ("claim.create", row.claim_id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        let row = self.inner.db.write(write).await?;
        Ok(NewClaim { row, claim: model::claim_string(&endpoints.host, endpoints.enroll_port, &token, &pin) })
    }

    /// The tenant's claims; with a bounded reach those that name a device within it.
    ///
    /// # Errors
    /// The database's.
    pub async fn claims(
        &self,
        tenant: &TenantId,
        reach: Reach,
        page: &Page,
    ) -> Result<Vec<ClaimRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::claim_list(tx, &scope, &reach, (&after, limit))).await?)
    }

    /// Deletes a claim; what it enrolled stays.
    ///
    /// # Errors
    /// No such claim.
    pub async fn delete_claim(
        &self,
        who: &Principal,
        tenant: &TenantId,
        claim_id: String,
    ) -> Result<(), DevicesError> {
        let (scope, actor, now_us) = (Scope::Tenant(tenant.clone()), who.audit_name(), self.now_us());
        let reach = who.reach_in(tenant);
        let write = move |tx: &mut Tx<'_>| {
            if !store::claim_is_within(tx, &scope, &reach, &claim_id)? {
                return Err(DevicesError::NotFound("claim"));
            }
            if !store::claim_delete(tx, &scope, &claim_id)? {
                return Err(DevicesError::NotFound("claim"));
            }
            let (action, detail) = ("claim.delete", serde_json::json!({}));
            let entry = AuditEntry { at_us: now_us, actor: &actor, action, object: &claim_id, detail };
            Ok(audit::append(tx, &scope, &entry)?)
        };
        self.inner.db.write(write).await
    }

    /// Exchanges a claim and a certificate request for a certificate.
    ///
    /// # Errors
    /// Unknown or spent claim; bad request or name; the device is disabled or exists already; a person has to decide, or
    /// decided against it.
    pub async fn enroll(
        &self,
        token: &str,
        csr_pem: &str,
        device_name: Option<&str>,
        peer: &str,
    ) -> Result<Enrolled, DevicesError> {
        let pki = self.pki()?;
        let endpoints = self.inner.endpoints.get().ok_or(DevicesError::Starting)?.clone();
        let config = self.inner.config.get();
        let (policy, now_us) =
            (Policy { failures_max: config.enroll.attempts_per_minute, lock_us: 60_000_000 }, self.now_us());
        let guard = || self.inner.guard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(retry_after_s) = guard().locked_for_s(peer, policy, now_us) {
            return Err(DevicesError::TooMany { retry_after_s });
        }
        let asked = device_name.map(DeviceId::parse).transpose();
        let asked =
            asked.map_err(|error| FieldError { field: "device_name".into(), why: error.to_string() })?;
        let fallback = format!("device-{}", hex::encode(secret::random_bytes::<6>()));
        let enrolment = Enrolment {
            token_sha256: secret::token_sha256(token),
            csr: pki::check_csr(csr_pem)?,
            asked,
            fallback: DeviceId::parse(&fallback).map_err(|_| NO_DEVICE)?,
            now_us,
            peer: peer.to_owned(),
            life_s: i64::from(config.pki.device_days) * pki::DAY_S,
            devices_max: self.devices_max(),
        };
        let outcome = self.commit_enrolment(pki.clone(), enrolment).await;
        if matches!(outcome, Err(DevicesError::ClaimUnknown)) {
            guard().failed(peer, policy, now_us);
        }
        let Outcome { tenant, row, certificate_pem, expires_at_us, .. } = outcome?;
        let (ca_pem, device) = (pki.ca_pem(), row.device);
        Ok(Enrolled { tenant, device, certificate_pem, ca_pem, endpoints, now_us, expires_at_us })
    }

    /// Commits, and tells the directory.
    async fn commit_enrolment(&self, pki: Arc<Pki>, enrolment: Enrolment) -> Result<Outcome, DevicesError> {
        let ended = self.inner.db.write(move |tx| enroll_in(tx, &pki, &enrolment)).await?;
        let Ended::Enrolled(outcome) = ended else { return Err(DevicesError::Waits) };
        // Which device it is was known inside the transaction only: take its lock now and tell what stands there.
        let _held = self.lock(&outcome.tenant, &outcome.row.device).await;
        let newest = self.get(&outcome.tenant, &outcome.row.device).await?;
        self.publish(&outcome.tenant, &newest);
        self.revoke_in_directory(&outcome.revoked);
        Ok(*outcome)
    }
}

/// The whole exchange in one transaction: a use is counted if and only if its certificate is kept.
fn enroll_in(tx: &mut Tx<'_>, pki: &Pki, enrolment: &Enrolment) -> Result<Ended, DevicesError> {
    let found = store::claim_by_token(tx, &CLAIMS, &enrolment.token_sha256)?;
    let (tenant, claim) = found.ok_or(DevicesError::ClaimUnknown)?;
    let scope = Scope::Tenant(tenant.clone());
    let repeated = store::claim_use_get(tx, &scope, &claim.claim_id, &enrolment.csr.spki_sha256)?;
    // From here on nobody else writes to this tenant: the claim may have been used or deleted until now.
    let found = store::claim_by_token(tx, &CLAIMS, &enrolment.token_sha256)?;
    let (_, claim) = found.ok_or(DevicesError::ClaimUnknown)?;
    if let Some(used) = repeated {
        return Ok(Ended::Enrolled(Box::new(repeat(tx, tenant, &scope, used, enrolment.now_us)?)));
    }
    let named = if claim.approval {
        match approval::gate(tx, &scope, &claim, enrolment)? {
            Gate::Waits => return Ok(Ended::Waits),
            Gate::Granted(device) => ClaimUse::New(device),
        }
    } else {
        model::use_claim(&claim.state, enrolment.asked.clone(), enrolment.fallback.clone(), enrolment.now_us)
    };
    let outcome = admit(tx, pki, tenant, &claim, named, enrolment)?;
    Ok(Ended::Enrolled(Box::new(outcome)))
}

/// Signs for the device that the claim gives, and counts the use.
fn admit(
    tx: &mut Tx<'_>,
    pki: &Pki,
    tenant: TenantId,
    claim: &ClaimRow,
    named: ClaimUse,
    enrolment: &Enrolment,
) -> Result<Outcome, DevicesError> {
    let scope = Scope::Tenant(tenant.clone());
    let row = match named {
        ClaimUse::Spent => return Err(DevicesError::ClaimSpent),
        ClaimUse::OtherDevice => {
            let why = "is not the device that the claim names".into();
            return Err(FieldError { field: "device_name".into(), why }.into());
        }
        ClaimUse::New(device) => new_device(tx, &scope, claim, device, enrolment)?,
        ClaimUse::Named(device) => match store::device_get(tx, &scope, &device)? {
            Some(row) => known_device(tx, &scope, row, enrolment.now_us)?,
            None => new_device(tx, &scope, claim, device, enrolment)?,
        },
    };
    // A new key takes the device over: what was issued before is no longer good.
    let revoked = store::certificates_revoke(tx, &scope, &row.device, enrolment.now_us)?;
    let profile = profiles::named(tx, &scope, row.profile.as_deref())?;
    let life_s = profiles::life_s(&profile, enrolment.life_s);
    let signed = pki.sign_device(&enrolment.csr, &tenant, &row.device, life_s, enrolment.now_us)?;
    let certificate = CertificateRow::of(&signed, row.device.clone(), enrolment.csr.spki_sha256);
    store::certificate_insert(tx, &scope, &certificate)?;
    let used = ClaimUseRow {
        device: row.device.clone(),
        serial: signed.serial.clone(),
        certificate_pem: signed.pem.clone(),
    };
    let spki = &enrolment.csr.spki_sha256;
    if !store::claim_use_insert(tx, &scope, &claim.claim_id, spki, &used, enrolment.now_us)? {
        return Err(DevicesError::ClaimSpent);
    }
    let (actor, action) = (format!("claim:{}", claim.claim_id), "device.enroll");
    let detail = serde_json::json!({ "serial": signed.serial, "revoked": revoked });
    let entry =
        AuditEntry { at_us: enrolment.now_us, actor: &actor, action, object: row.device.as_str(), detail };
    audit::append(tx, &scope, &entry)?;
    let expires_at_us = signed.expires_at_us;
    Ok(Outcome { tenant, row, certificate_pem: signed.pem, expires_at_us, revoked })
}

/// The same key asks again: it gets what it got, as long as that is good.
fn repeat(
    tx: &mut Tx<'_>,
    tenant: TenantId,
    scope: &Scope,
    used: ClaimUseRow,
    now_us: i64,
) -> Result<Outcome, DevicesError> {
    let row = store::device_get(tx, scope, &used.device)?.ok_or(DevicesError::ClaimSpent)?;
    if !row.enabled {
        return Err(DevicesError::Disabled);
    }
    let certificate = store::certificate_get(tx, scope, &used.serial)?;
    let good = certificate.filter(|row| row.revoked_at_us.is_none() && row.expires_at_us > now_us);
    let expires_at_us = good.ok_or(DevicesError::ClaimSpent)?.expires_at_us;
    let certificate_pem = used.certificate_pem;
    Ok(Outcome { tenant, row, certificate_pem, expires_at_us, revoked: Vec::new() })
}

/// Forgets claims that ended long ago; call it before new ones are counted.
pub(super) fn claims_forget(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<(), DevicesError> {
    Ok(store::claims_forget(tx, scope, now_us.saturating_sub(KEEP_US), now_us).map(drop)?)
}

/// The row of a new claim.
fn claim_row(request: ClaimRequest, terms: ClaimTerms, actor: &str, now_us: i64) -> ClaimRow {
    let expires_at_us = now_us.saturating_add(i64::from(terms.life_s) * 1_000_000);
    ClaimRow {
        claim_id: format!("c-{}", hex::encode(secret::random_bytes::<8>())),
        state: ClaimState { device: request.device, uses: 0, uses_max: terms.uses_max, expires_at_us },
        labels: request.labels,
        profile: request.profile,
        id_pattern: terms.id_pattern,
        approval: terms.approval,
        created_by: actor.to_owned(),
        created_at_us: now_us,
    }
}

/// Whether a claim gives this id.
pub(super) fn check_pattern(claim: &ClaimRow, device: &DeviceId) -> Result<(), FieldError> {
    match &claim.id_pattern {
        Some(pattern) if !model::fits(pattern, device.as_str()) => {
            let why = format!("is {device}, which does not fit the claim's {pattern}");
            Err(FieldError { field: "device_name".into(), why })
        }
        _ => Ok(()),
    }
}

fn new_device(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim: &ClaimRow,
    device: DeviceId,
    enrolment: &Enrolment,
) -> Result<DeviceRow, DevicesError> {
    check_pattern(claim, &device)?;
    let profile = profiles::named(tx, scope, claim.profile.as_deref())?;
    let labels = model::filled(&profile.labels_with(&claim.labels), &device);
    model::check_labels(&labels)?;
    let row = DeviceRow {
        device,
        name: String::new(),
        enabled: true,
        labels,
        profile: claim.profile.clone(),
        token_sha256: None,
        created_at_us: enrolment.now_us,
        enrolled_at_us: Some(enrolment.now_us),
    };
    insert_device(tx, scope, &row, (enrolment.devices_max)(scope.tenant()?))?;
    Ok(row)
}

fn known_device(
    tx: &mut Tx<'_>,
    scope: &Scope,
    mut row: DeviceRow,
    now_us: i64,
) -> Result<DeviceRow, DevicesError> {
    if !row.enabled {
        return Err(DevicesError::Disabled);
    }
    row.enrolled_at_us = Some(now_us);
    if store::device_update(tx, scope, &row)? { Ok(row) } else { Err(NO_DEVICE) }
}
