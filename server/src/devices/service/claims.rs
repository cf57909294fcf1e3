//! Claims and the enrolment that spends them.
//!
//! A claim is an operator's leave for a device to get a certificate. Its use is bound to the key of the request:
//! the same key gets the same certificate again (the reply may have been lost), another key spends another use.
//! A claim that names no device never takes over one that exists.

use super::{Devices, DevicesError, Endpoints, NO_DEVICE, insert_device};
use crate::devices::model::{self, ClaimRequest, ClaimState, ClaimUse, FieldError};
use crate::devices::pki::{self, CheckedCsr, Pki};
use crate::devices::store::{self, CertificateRow, ClaimRow, ClaimUseRow, DeviceRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::Page;
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::login_guard::Policy;
use muster_wire::{DeviceId, TenantId};
use std::sync::PoisonError;

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
    /// Where to connect.
    pub endpoints: Endpoints,
}

/// One enrolment's values, as the transaction needs them.
struct Enrolment {
    token_sha256: [u8; 32],
    csr: CheckedCsr,
    asked: Option<DeviceId>,
    fallback: DeviceId,
    now_us: i64,
    certificate_days: u32,
    devices_max: u32,
}

struct Outcome {
    tenant: TenantId,
    row: DeviceRow,
    certificate_pem: String,
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
        request.check()?;
        let endpoints = self.inner.endpoints.get().ok_or(DevicesError::Starting)?.clone();
        let (token, now_us) = (secret::new_token("mcl_"), self.now_us());
        let (sha256, scope, actor) =
            (secret::token_sha256(&token), Scope::Tenant(tenant.clone()), who.audit_name());
        let max = self.inner.config.get().quota.claims_max;
        let ClaimRequest { device, uses_max, life_s, labels } = request;
        let expires_at_us = now_us.saturating_add(i64::from(life_s) * 1_000_000);
        let row = ClaimRow {
            claim_id: format!("c-{}", hex::encode(secret::random_bytes::<8>())),
            state: ClaimState { device, uses: 0, uses_max, expires_at_us },
            labels,
            created_by: actor.clone(),
            created_at_us: now_us,
        };
        let write = move |tx: &mut Tx<'_>| {
            store::claims_forget(tx, &scope, now_us.saturating_sub(KEEP_US))?;
            if store::claim_count_open(tx, &scope, now_us)? >= i64::from(max) {
                return Err(DevicesError::Quota { noun: "open claims", max });
            }
            store::claim_insert(tx, &scope, &row, &sha256)?;
            let detail = serde_json::json!({ "device": row.state.device, "uses_max": row.state.uses_max });
            let (action, object) = ("claim.create", row.claim_id.as_str());
            audit::append(tx, &scope, &AuditEntry { at_us: now_us, actor: &actor, action, object, detail })?;
            Ok(row)
        };
        let row = self.inner.db.write(write).await?;
        let pin = self.inner.pki.ca_spki_sha256();
        Ok(NewClaim { row, claim: model::claim_string(&endpoints.host, endpoints.enroll_port, &token, pin) })
    }

    /// The tenant's claims.
    ///
    /// # Errors
    /// The database's.
    pub async fn claims(&self, tenant: &TenantId, page: &Page) -> Result<Vec<ClaimRow>, DevicesError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.inner.db.read(move |tx| store::claim_list(tx, &scope, &after, limit)).await?)
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
        let write = move |tx: &mut Tx<'_>| {
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
    /// Unknown or spent claim; bad request or name; the device is disabled or exists already.
    pub async fn enroll(
        &self,
        token: &str,
        csr_pem: &str,
        device_name: Option<&str>,
        peer: &str,
    ) -> Result<Enrolled, DevicesError> {
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
            certificate_days: config.pki.device_days,
            devices_max: config.quota.devices_max,
        };
        let outcome = self.commit_enrolment(enrolment).await;
        if matches!(outcome, Err(DevicesError::ClaimUnknown)) {
            guard().failed(peer, policy, now_us);
        }
        let Outcome { tenant, row, certificate_pem, .. } = outcome?;
        let ca_pem = self.inner.pki.ca_pem().to_owned();
        Ok(Enrolled { tenant, device: row.device, certificate_pem, ca_pem, endpoints })
    }

    async fn commit_enrolment(&self, enrolment: Enrolment) -> Result<Outcome, DevicesError> {
        let pki = self.inner.pki.clone();
        let outcome = self.inner.db.write(move |tx| enroll_in(tx, &pki, &enrolment)).await?;
        // Which device it is was known inside the transaction only: take its lock now and tell what stands there.
        let _held = self.lock(&outcome.tenant, &outcome.row.device).await;
        let newest = self.get(&outcome.tenant, &outcome.row.device).await?;
        self.publish(&outcome.tenant, &newest);
        self.revoke_in_directory(&outcome.revoked);
        Ok(outcome)
    }
}

/// The whole exchange in one transaction: a use is counted if and only if its certificate is kept.
fn enroll_in(tx: &mut Tx<'_>, pki: &Pki, enrolment: &Enrolment) -> Result<Outcome, DevicesError> {
    let found = store::claim_by_token(tx, &CLAIMS, &enrolment.token_sha256)?;
    let (tenant, claim) = found.ok_or(DevicesError::ClaimUnknown)?;
    let scope = Scope::Tenant(tenant.clone());
    let repeated = store::claim_use_get(tx, &scope, &claim.claim_id, &enrolment.csr.spki_sha256)?;
    // From here on nobody else writes to this tenant: the claim may have been used or deleted until now.
    let found = store::claim_by_token(tx, &CLAIMS, &enrolment.token_sha256)?;
    let (_, claim) = found.ok_or(DevicesError::ClaimUnknown)?;
    if let Some(used) = repeated {
        return repeat(tx, tenant, &scope, used, enrolment.now_us);
    }
    let named =
        model::use_claim(&claim.state, enrolment.asked.clone(), enrolment.fallback.clone(), enrolment.now_us);
    let row = match named {
        ClaimUse::Spent => return Err(DevicesError::ClaimSpent),
        ClaimUse::OtherDevice => {
            let why = "is not the device that the claim names".into();
            return Err(FieldError { field: "device_name".into(), why }.into());
        }
        ClaimUse::New(device) => new_device(tx, &scope, &claim, device, enrolment)?,
        ClaimUse::Named(device) => match store::device_get(tx, &scope, &device)? {
            Some(row) => known_device(tx, &scope, row, enrolment.now_us)?,
            None => new_device(tx, &scope, &claim, device, enrolment)?,
        },
    };
    // A new key takes the device over: what was issued before is no longer good.
    let revoked = store::certificates_revoke(tx, &scope, &row.device, enrolment.now_us)?;
    let signed =
        pki.sign_device(&enrolment.csr, &tenant, &row.device, enrolment.certificate_days, enrolment.now_us)?;
    let certificate = CertificateRow {
        serial: signed.serial.clone(),
        device: row.device.clone(),
        spki_sha256: enrolment.csr.spki_sha256,
        issued_at_us: signed.issued_at_us,
        expires_at_us: signed.expires_at_us,
        revoked_at_us: None,
    };
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
    Ok(Outcome { tenant, row, certificate_pem: signed.pem, revoked })
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
    let good = certificate.is_some_and(|row| row.revoked_at_us.is_none() && row.expires_at_us > now_us);
    if !good {
        return Err(DevicesError::ClaimSpent);
    }
    Ok(Outcome { tenant, row, certificate_pem: used.certificate_pem, revoked: Vec::new() })
}

fn new_device(
    tx: &mut Tx<'_>,
    scope: &Scope,
    claim: &ClaimRow,
    device: DeviceId,
    enrolment: &Enrolment,
) -> Result<DeviceRow, DevicesError> {
    let row = DeviceRow {
        device,
        name: String::new(),
        enabled: true,
        labels: claim.labels.clone(),
        token_sha256: None,
        created_at_us: enrolment.now_us,
        enrolled_at_us: Some(enrolment.now_us),
    };
    insert_device(tx, scope, &row, enrolment.devices_max)?;
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
