//! The authorities: one is followed by another while devices stay connected.
//!
//! Rotation makes a second authority. Both are trusted from then on; devices get their next certificates from the new one,
//! and with each the whole set of authorities to trust. Once no device depends on the old one, it is retired: the server's
//! own certificate comes from the new one, and the old one's certificates are accepted no more. Connections that are up
//! stay up through both, but those of certificates that a forced retirement revokes.

use super::{Devices, DevicesError};
use crate::devices::pki::{Anchor, Held, PkiError};
use crate::devices::store::{self, AuthorityUse};
use crate::platform::db::{Scope, Tx};
use crate::platform::http_kit::chain;
use crate::tenants::Principal;
use crate::tenants::audit::{self, AuditEntry};
use muster_wire::TenantId;
use std::collections::BTreeMap;

const AUTHORITIES: Scope = Scope::System("authorities");

/// What depends on an authority.
#[derive(Clone, Debug)]
pub struct AuthorityView {
    /// The authority.
    pub anchor: Anchor,
    /// The server's own certificate comes from it.
    pub serves: bool,
    /// It signs devices' certificates.
    pub signs: bool,
    /// Devices whose newest certificate it signed.
    pub devices: i64,
    /// Open claims that name it.
    pub claims: i64,
}

/// Whether an authority may go while something depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retire {
    /// Only when nothing does.
    Unused,
    /// Whatever does: its certificates are revoked, open claims are of no use any more.
    Anyway,
}

/// What an authority's certificates have in the registry's column.
fn names(anchor: &Anchor) -> [String; 2] {
    let name = hex::encode(anchor.key_sha256);
    [name.clone(), if anchor.is_first { String::new() } else { name }]
}

impl Devices {
    /// The authorities that are trusted now, with what depends on them.
    ///
    /// # Errors
    /// The database's.
    pub async fn authorities(&self) -> Result<Vec<AuthorityView>, DevicesError> {
        let (held, now_us) = (self.pki()?.held(), self.now_us());
        let read = move |tx: &mut Tx<'_>| {
            let mut views = Vec::new();
            for anchor in &held.trusted {
                let used = store::authority_use(tx, &AUTHORITIES, &names(anchor), now_us)?;
                views.push(view(&held, anchor, used));
            }
            Ok::<_, DevicesError>(views)
        };
        self.inner.db.read(read).await
    }

    /// Makes a second authority.
    ///
    /// # Errors
    /// There are two already; a file cannot be written.
    pub async fn rotate_authority(&self, who: &Principal) -> Result<Vec<AuthorityView>, DevicesError> {
        let (pki, now_us, actor) = (self.pki()?, self.now_us(), who.audit_name());
        let held = pki.held();
        if held.retiring().is_some() {
            return Err(PkiError::UnderWay.into());
        }
        let followed = hex::encode(held.signing.key_sha256);
        let write = move |tx: &mut Tx<'_>| {
            tell(tx, &AUTHORITIES, &actor, ("authority.rotate", &followed), now_us, serde_json::json!({}))
        };
        self.inner.db.write(write).await?;
        let held = blocking(move || pki.rotate(now_us)).await?;
        tracing::info!(authority = hex::encode(held.signing.key_sha256), "another authority is trusted");
        self.authorities().await
    }

    /// Ends the authority that another one follows.
    ///
    /// # Errors
    /// There is one only; the new one does not sign yet; devices or claims depend on it.
    pub async fn retire_authority(
        &self,
        who: &Principal,
        retire: Retire,
    ) -> Result<Vec<AuthorityView>, DevicesError> {
        let (held, now_us) = (self.pki()?.held(), self.now_us());
        let only = DevicesError::Conflict("there is one authority only: rotate first");
        let old = held.retiring().ok_or(only)?.clone();
        if now_us < held.signs_from_us {
            return Err(DevicesError::Conflict(
                "the new authority was made a moment ago, try again in a minute",
            ));
        }
        let (actor, key) = (who.audit_name(), hex::encode(old.key_sha256));
        let write = move |tx: &mut Tx<'_>| {
            let AuthorityUse { devices, claims } =
                store::authority_use(tx, &AUTHORITIES, &names(&old), now_us)?;
            if retire == Retire::Unused && devices + claims > 0 {
                return Err(DevicesError::AuthorityInUse { devices, claims });
            }
            let revoked = match retire {
                Retire::Unused => Vec::new(),
                Retire::Anyway => store::authority_revoke(tx, &AUTHORITIES, &names(&old), now_us)?,
            };
            let about = ("authority.retire", key.as_str());
            let detail = |revoked: usize| serde_json::json!({ "revoked": revoked });
            tell(tx, &AUTHORITIES, &actor, about, now_us, detail(revoked.len()))?;
            // And whose certificates it takes away: who follows the chains finds them by it.
            let mut of_tenants = BTreeMap::<TenantId, usize>::new();
            for (tenant, _) in &revoked {
                *of_tenants.entry(tenant.clone()).or_default() += 1;
            }
            for (tenant, revoked) in of_tenants {
                tell(tx, &Scope::Tenant(tenant), &actor, about, now_us, detail(revoked))?;
            }
            Ok(revoked)
        };
        let revoked = self.inner.db.write(write).await?;
        // First nobody may come with it any more, then it is trusted no more.
        let serials: Vec<String> = revoked.into_iter().map(|(_, serial)| serial).collect();
        self.revoke_in_directory(&serials);
        let pki = self.pki()?;
        blocking(move || pki.retire(now_us)).await?;
        if let Err(error) = self.tell_door_again().await {
            tracing::warn!(error = %chain(&error), "other processes are not told of the new authority yet, will retry");
        }
        tracing::info!(revoked = serials.len(), "an authority was retired");
        self.authorities().await
    }
}

fn view(held: &Held, anchor: &Anchor, used: AuthorityUse) -> AuthorityView {
    let (serves, signs) = (*anchor == held.serving, *anchor == held.signing);
    let claims = if serves { used.claims } else { 0 };
    AuthorityView { anchor: anchor.clone(), serves, signs, devices: used.devices, claims }
}

fn tell(
    tx: &mut Tx<'_>,
    scope: &Scope,
    actor: &str,
    (action, object): (&'static str, &str),
    at_us: i64,
    detail: serde_json::Value,
) -> Result<(), DevicesError> {
    let entry = AuditEntry { at_us, actor, action, object, detail };
    Ok(audit::append(tx, scope, &entry)?)
}

/// Files are written and synced off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PkiError> + Send + 'static,
) -> Result<T, DevicesError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(DevicesError::Starting),
    }
}
