//! Renewal: a device exchanges its certificate, in time or past it, for the next one.
//!
//! The TLS listener has verified that the certificate is ours and that the device holds its key; here the registry says
//! whether it still counts. Renewal is bound to the key of the request as a claim is: the same key gets the same
//! certificate again (the reply may have been lost), or where that has ended a new one; another key is refused, since then
//! somebody else has the old one.
//! The old certificate stays good until its own end, so the connection that stands on it goes on.
//! Bounds: one renewal a certificate, not before it is [`RENEW_AGE_MIN_US`] old; what ended [`FORGET_US`] ago is deleted.

use super::{Devices, DevicesError, Enrolled, profiles};
use crate::devices::pki::{self, CheckedCsr, DeviceName, Pki};
use crate::devices::store::{self, CertificateRow, RenewalRow};
use crate::platform::db::{Scope, Tx};
use crate::tenants::audit::{self, AuditEntry};

/// A certificate younger than this is not renewed: a device in a loop costs a signature a minute.
pub(super) const RENEW_AGE_MIN_US: i64 = 60_000_000;
/// Renewed and revoked certificates are kept this long after their end.
const FORGET_US: i64 = 30 * 86_400_000_000;

/// One renewal's values, as the transaction needs them.
struct Renewal {
    name: DeviceName,
    csr: CheckedCsr,
    life_s: i64,
    now_us: i64,
}

impl Devices {
    /// Exchanges a certificate that the listener verified (DER), and a request for another, for the next certificate.
    ///
    /// # Errors
    /// Not a device's certificate; revoked or not known; renewed for another key; too young; the device is disabled or
    /// deleted; bad request.
    pub async fn renew(&self, peer: &[u8], csr_pem: &str) -> Result<Enrolled, DevicesError> {
        let pki = self.pki()?;
        let endpoints = self.inner.endpoints.get().ok_or(DevicesError::Starting)?.clone();
        let name = DeviceName::read(peer).ok_or(DevicesError::CertificateRefused("is not a device's"))?;
        let (tenant, device) = (name.tenant.clone(), name.device.clone());
        let days = self.inner.config.get().pki.device_days;
        let life_s = i64::from(days) * pki::DAY_S;
        let renewal = Renewal { name, csr: pki::check_csr(csr_pem)?, life_s, now_us: self.now_us() };
        let (signer, now_us) = (pki.clone(), renewal.now_us);
        let write = move |tx: &mut Tx<'_>| renew_in(tx, &signer, &renewal);
        let (certificate_pem, expires_at_us) = self.inner.db.write(write).await?;
        let ca_pem = pki.ca_pem();
        Ok(Enrolled { tenant, device, certificate_pem, ca_pem, endpoints, now_us, expires_at_us })
    }
}

/// What a renewed certificate's key got before; `None` where it has to be signed again, since the device was away until
/// its end.
fn repeated(
    tx: &mut Tx<'_>,
    scope: &Scope,
    done: &RenewalRow,
    renewal: &Renewal,
) -> Result<Option<(String, i64)>, DevicesError> {
    let refused = |why| Err(DevicesError::CertificateRefused(why));
    if done.spki_sha256 != renewal.csr.spki_sha256 {
        return refused("was renewed for another key");
    }
    let next = store::certificate_get(tx, scope, &done.next_serial)?;
    let Some(next) = next.filter(|next| next.revoked_at_us.is_none()) else {
        return refused("was renewed, and what followed was revoked");
    };
    if next.expires_at_us > renewal.now_us {
        return Ok(Some((done.certificate_pem.clone(), next.expires_at_us)));
    }
    match store::renewal_get(tx, scope, &next.serial)? {
        Some(_) => refused("was renewed, and so was what followed"),
        None => Ok(None),
    }
}

/// Gives the certificate in PEM and the end of its time.
fn renew_in(tx: &mut Tx<'_>, pki: &Pki, renewal: &Renewal) -> Result<(String, i64), DevicesError> {
    let Renewal { name: DeviceName { tenant, device, serial }, csr, life_s, now_us } = renewal;
    let refused = |why| Err(DevicesError::CertificateRefused(why));
    let scope = Scope::Tenant(tenant.clone());
    let Some(row) = store::device_get(tx, &scope, device)? else { return refused("is of no device") };
    if !row.enabled {
        return Err(DevicesError::Disabled);
    }
    let found = store::certificate_get(tx, &scope, serial)?.filter(|found| found.device == *device);
    let Some(old) = found else { return refused("is not known") };
    if old.revoked_at_us.is_some() {
        return refused("was revoked");
    }
    let done = store::renewal_get(tx, &scope, serial)?;
    if let Some(done) = &done
        && let Some(answer) = repeated(tx, &scope, done, renewal)?
    {
        return Ok(answer);
    }
    let age_us = now_us.saturating_sub(old.issued_at_us);
    if age_us < RENEW_AGE_MIN_US {
        let retry_after_s = u64::try_from((RENEW_AGE_MIN_US - age_us) / 1_000_000 + 1).unwrap_or(1);
        return Err(DevicesError::TooYoung { retry_after_s });
    }
    // Before this renewal is noted: its own reply may be lost, too. One that is signed again is still asked with.
    if done.is_none() {
        store::certificates_forget(tx, &scope, device, now_us.saturating_sub(FORGET_US))?;
    }
    let profile = profiles::named(tx, &scope, row.profile.as_deref())?;
    let life_s = profiles::life_s(&profile, *life_s);
    let signed = pki.sign_device(csr, tenant, device, life_s, *now_us)?;
    let certificate = CertificateRow::of(&signed, device.clone(), csr.spki_sha256);
    store::certificate_insert(tx, &scope, &certificate)?;
    let renewed = RenewalRow {
        // Signed again, what followed first is renewed too: to the same, for the same key.
        serial: done.as_ref().map_or(serial, |done| &done.next_serial).clone(),
        device: device.clone(),
        spki_sha256: csr.spki_sha256,
        next_serial: signed.serial.clone(),
        certificate_pem: signed.pem.clone(),
    };
    store::renewals_lead(tx, &scope, &renewed)?;
    store::renewal_insert(tx, &scope, &renewed, *now_us)?;
    let (actor, action) = (format!("device:{device}"), "device.renew");
    let detail = serde_json::json!({ "serial": signed.serial, "renewed": serial });
    let entry = AuditEntry { at_us: *now_us, actor: &actor, action, object: device.as_str(), detail };
    audit::append(tx, &scope, &entry)?;
    Ok((signed.pem, signed.expires_at_us))
}
