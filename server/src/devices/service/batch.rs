//! Many devices in one request: all of them or none, with a claim each where asked.

use super::{Devices, DevicesError, claims};
use crate::devices::model::batch::{BatchRow, ERRORS_MAX, LineError};
use crate::devices::model::{self, ClaimState, Labels, ProfileSpec};
use crate::devices::store::{self, ClaimRow, DeviceRow};
use crate::platform::db::{Scope, Tx};
use crate::platform::secret;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::TenantId;
use std::collections::HashMap;

/// Life of a batch's claims where the profile says nothing: a technician goes out with them.
const CLAIM_LIFE_S: u32 = 7 * 86_400;

/// What a batch shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claims {
    /// Devices only.
    None,
    /// A claim for each.
    Each,
}

/// A device of a batch.
#[derive(Clone, Debug)]
pub struct BatchDevice {
    /// Its row.
    pub row: DeviceRow,
    /// What a technician hands to it, shown once.
    pub claim: Option<String>,
}

/// A batch's values, as the transaction needs them.
struct Batch {
    rows: Vec<BatchRow>,
    /// Token and its hash, one a row; none where no claims are asked for.
    tokens: Vec<(String, [u8; 32])>,
    actor: String,
    now_us: i64,
    devices_max: u32,
    claims_max: u32,
}

impl Devices {
    /// Says what is off in a batch that could be read; writes nothing.
    ///
    /// # Errors
    /// Quota.
    pub async fn check_batch(
        &self,
        tenant: &TenantId,
        rows: Vec<BatchRow>,
    ) -> Result<Vec<LineError>, DevicesError> {
        let (scope, max) = (Scope::Tenant(tenant.clone()), self.devices_max()(tenant.as_str()));
        let read = move |tx: &mut Tx<'_>| match plan(tx, &scope, &rows, max) {
            Ok(_) => Ok(Vec::new()),
            Err(DevicesError::Batch(errors)) => Ok(errors),
            Err(other) => Err(other),
        };
        self.inner.db.read(read).await
    }

    /// Makes all devices of a batch, or none.
    ///
    /// # Errors
    /// What is off, line by line; quota; the listeners are not up.
    pub async fn create_batch(
        &self,
        who: &Principal,
        tenant: &TenantId,
        rows: Vec<BatchRow>,
        claims: Claims,
    ) -> Result<Vec<BatchDevice>, DevicesError> {
        let door = match claims {
            Claims::None => None,
            Claims::Each => Some(self.door().await?),
        };
        let pin = door.as_ref().map(|door| door.pin()).transpose()?;
        let token = |_: &BatchRow| {
            let token = secret::new_token("mcl_");
            let sha256 = secret::token_sha256(&token);
            (token, sha256)
        };
        let tokens = match claims {
            Claims::None => Vec::new(),
            Claims::Each => rows.iter().map(token).collect(),
        };
        let batch = Batch {
            rows,
            tokens,
            actor: who.audit_name(),
            now_us: self.now_us(),
            devices_max: self.devices_max()(tenant.as_str()),
            claims_max: self.inner.config.get().quota.claims_max,
        };
        let scope = Scope::Tenant(tenant.clone());
        let made = self.inner.db.write(move |tx| create_in(tx, &scope, &batch)).await?;
        if self.has_gateway() {
            // Others may have changed them since the commit: each is told of as it stands now, under its lock.
            for (row, _) in &made {
                self.refresh(tenant, &row.device).await?;
            }
        }
        let claim = |token: String| {
            let (endpoints, pin) = (&door.as_ref()?.endpoints, pin.as_ref()?);
            Some(model::claim_string(&endpoints.host, endpoints.enroll_port, &token, pin))
        };
        let made = made.into_iter().map(|(row, token)| {
            let claim = token.and_then(claim);
            BatchDevice { row, claim }
        });
        Ok(made.collect())
    }
}

/// Looks everything up that may be off, before anything is written: after a failed statement there is no other one.
fn plan(
    tx: &mut Tx<'_>,
    scope: &Scope,
    rows: &[BatchRow],
    devices_max: u32,
) -> Result<HashMap<String, ProfileSpec>, DevicesError> {
    let (mut profiles, mut errors) = (HashMap::new(), Vec::new());
    for row in rows {
        if errors.len() >= ERRORS_MAX {
            break;
        }
        if let Some(name) = row.profile.as_ref().filter(|name| !profiles.contains_key(*name)) {
            match store::profile_get(tx, scope, name)? {
                Some(found) => drop(profiles.insert(name.clone(), found.spec)),
                None => errors.push(LineError::new(row.line, "profile", "there is no such profile")),
            }
        }
        if store::device_get(tx, scope, &row.device)?.is_some() {
            errors.push(LineError::new(row.line, "id", "the device exists already"));
        } else if store::is_in_erasure(tx, scope, &row.device)? {
            errors.push(LineError::new(row.line, "id", "the device is being erased"));
        }
        let labels = labels_of(row, profiles.get(row.profile.as_deref().unwrap_or_default()));
        if let Err(error) = model::check_labels(&labels) {
            errors.push(LineError::new(row.line, error.field, format!("with the profile's: {}", error.why)));
        }
    }
    if !errors.is_empty() {
        return Err(DevicesError::Batch(errors));
    }
    let after = store::device_count(tx, scope)?.saturating_add(i64::try_from(rows.len()).unwrap_or(i64::MAX));
    if after > i64::from(devices_max) {
        return Err(DevicesError::Quota { noun: "devices", max: devices_max });
    }
    Ok(profiles)
}

fn labels_of(row: &BatchRow, profile: Option<&ProfileSpec>) -> Labels {
    let labels = profile.map_or_else(|| row.labels.clone(), |profile| profile.labels_with(&row.labels));
    model::filled(&labels, &row.device)
}

fn create_in(
    tx: &mut Tx<'_>,
    scope: &Scope,
    batch: &Batch,
) -> Result<Vec<(DeviceRow, Option<String>)>, DevicesError> {
    let profiles = plan(tx, scope, &batch.rows, batch.devices_max)?;
    claims::claims_forget(tx, scope, batch.now_us)?;
    let open = store::claim_count_open(tx, scope, batch.now_us)?;
    if open.saturating_add(i64::try_from(batch.tokens.len()).unwrap_or(i64::MAX))
        > i64::from(batch.claims_max)
    {
        return Err(DevicesError::Quota { noun: "open claims", max: batch.claims_max });
    }
    let mut made = Vec::with_capacity(batch.rows.len());
    let mut tokens = batch.tokens.iter();
    for asked in &batch.rows {
        let profile = asked.profile.as_ref().and_then(|name| profiles.get(name));
        let row = DeviceRow {
            device: asked.device.clone(),
            name: asked.name.clone(),
            enabled: true,
            labels: labels_of(asked, profile),
            profile: asked.profile.clone(),
            token_sha256: None,
            created_at_us: batch.now_us,
            enrolled_at_us: None,
        };
        store::device_insert(tx, scope, &row)?;
        note(tx, scope, batch, "device.create", row.device.as_str(), serde_json::json!({ "batch": true }))?;
        let token = tokens.next();
        if let Some((_, sha256)) = token {
            let life_s = profile.and_then(|profile| profile.claim.life_s).unwrap_or(CLAIM_LIFE_S);
            let claim = claim_of(&row, batch, life_s);
            store::claim_insert(tx, scope, &claim, sha256)?;
            let detail = serde_json::json!({ "device": row.device, "uses_max": 1 });
            note(tx, scope, batch, "claim.create", &claim.claim_id, detail)?;
        }
        made.push((row, token.map(|(token, _)| token.clone())));
    }
    Ok(made)
}

fn claim_of(row: &DeviceRow, batch: &Batch, life_s: u32) -> ClaimRow {
    let expires_at_us = batch.now_us.saturating_add(i64::from(life_s) * 1_000_000);
    ClaimRow {
        claim_id: format!("c-{}", hex::encode(secret::random_bytes::<8>())),
        state: ClaimState { device: Some(row.device.clone()), uses: 0, uses_max: 1, expires_at_us },
        labels: Labels::new(),
        profile: row.profile.clone(),
        id_pattern: None,
        approval: false,
        created_by: batch.actor.clone(),
        created_at_us: batch.now_us,
    }
}

fn note(
    tx: &mut Tx<'_>,
    scope: &Scope,
    batch: &Batch,
    action: &'static str,
    object: &str,
    detail: serde_json::Value,
) -> Result<(), DevicesError> {
    let entry = AuditEntry { at_us: batch.now_us, actor: &batch.actor, action, object, detail };
    Ok(audit::append(tx, scope, &entry)?)
}
