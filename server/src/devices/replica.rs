//! The directory of a process that lets devices in by another server's registry.
//!
//! `app` opens a [`Replica`] and asks it to [`Replica::look`] every half second, on a thread of its own: calls block.
//! It reads that server's `registry.db` and never writes there; what it finds goes into the [`Directory`], which tells
//! the gateway whom to cut off.
//!
//! The registry is committed to all the time (rules save their state each second), and reading 100,000 devices takes
//! a tenth of a second. So a look asks the tenants' audit chains what was changed: every change of a device, certificate
//! or token commits with a row there that names it (see `tenants::audit`). [`Look::Everything`] compares all rows as
//! well, for what was changed without such a row, by hand say; the same is done at the start, after an error, and when
//! the chains name more than [`NAMED_MAX`] objects.
//!
//! Promise: once a look returned, the directory lets in whom the registry let in when it began, or whoever came later.
//! After an error what was known stays in force and the next look opens the file anew.
//! Costs a seek for each tenant where anything was committed.

use super::directory::{Directory, IntegrationToken};
use super::store;
use crate::platform::clock::SharedClock;
use crate::platform::db::sqlite::ReadOnlyDb;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::schema;
use crate::tenants::audit;
use crate::tenants::chains::Chains;
use crate::tenants::directory as accounts;
use muster_wire::{DeviceId, TenantId};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of the audit chains that one look reads; with more it compares everything.
pub const NAMED_MAX: usize = 4_096;

const DIRECTORY: Scope = Scope::System("device directory");
const TOKENS: Scope = Scope::System("token directory");

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what the audit chains name.
    Changes,
    /// At every row too.
    Everything,
}

/// What a look found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Rows of the audit chains since the look before; none where they could not tell (the file was opened anew, or
    /// they were too many).
    pub named: Option<usize>,
    /// Where every row was compared: entries that were wrong, beside what the chains had named.
    pub compared: Option<usize>,
}

/// Follows a registry.
pub struct Replica {
    path: PathBuf,
    clock: SharedClock,
    directory: Arc<Directory>,
    /// None after an error.
    db: Option<ReadOnlyDb>,
    /// The newest audit position that was looked at, by tenant.
    chains: Chains,
}

impl Replica {
    /// Fills a directory from `registry.db` in a data directory.
    ///
    /// # Errors
    /// There is none, it cannot be read, or it is of another build.
    pub fn open(data_dir: &Path, clock: SharedClock, directory: Arc<Directory>) -> Result<Self, DbError> {
        let path = data_dir.join("registry.db");
        let mut replica = Self { path, clock, directory, db: None, chains: Chains::default() };
        replica.look(Look::Everything)?;
        Ok(replica)
    }

    /// Brings the directory up to date.
    ///
    /// # Errors
    /// The file cannot be read, or is no longer what it was.
    pub fn look(&mut self, look: Look) -> Result<Seen, DbError> {
        // Put back at the end: an error on the way drops the connection, and the chains count no longer.
        let db = self.db.take();
        let chains = db.is_some().then(|| std::mem::take(&mut self.chains));
        let mut db = match db {
            Some(db) => db,
            None => ReadOnlyDb::open(&self.path, &schema::registry())?,
        };
        let pass = Pass { directory: &self.directory, now_us: self.clock.now_us() };
        let (seen, chains) = match chains {
            Some(chains) if !db.has_changed()? && look == Look::Changes => {
                (Seen { named: Some(0), compared: None }, chains)
            }
            Some(chains) => db.read(|tx| pass.follow(tx, chains, look))?,
            None => {
                db.has_changed()?;
                db.read(|tx| pass.compare(tx, None))?
            }
        };
        (self.db, self.chains) = (Some(db), chains);
        Ok(seen)
    }
}

/// One look, in one transaction.
struct Pass<'a> {
    directory: &'a Directory,
    now_us: i64,
}

impl Pass<'_> {
    fn follow(&self, tx: &mut Tx<'_>, mut chains: Chains, look: Look) -> Result<(Seen, Chains), DbError> {
        let Some(changed) = chains.read_all(tx, &DIRECTORY, NAMED_MAX)? else {
            return self.compare(tx, None);
        };
        let named = changed.len();
        // One row stands for every certificate of the authority.
        let is_authority = changed.iter().any(|(_, row)| noun(&row.action) == "authority");
        self.apply(tx, changed)?;
        match look {
            Look::Changes if is_authority => self.compare(tx, Some(named)),
            Look::Changes => Ok((Seen { named: Some(named), compared: None }, chains)),
            Look::Everything => self.compare(tx, Some(named)),
        }
    }

    /// Reads again what was named.
    fn apply(&self, tx: &mut Tx<'_>, changed: Vec<(TenantId, audit::Changed)>) -> Result<(), DbError> {
        let (mut done, mut revoked, mut are_tokens) = (HashSet::new(), Vec::new(), false);
        for (tenant, audit::Changed { action, object, .. }) in changed {
            match noun(&action) {
                "device" if done.insert((tenant.clone(), object.clone())) => {
                    revoked.extend(self.device(tx, tenant, &object)?);
                }
                "certificate" => revoked.extend(revoked_serial(tx, tenant, object)?),
                "token" => are_tokens = true,
                _ => {}
            }
        }
        self.directory.revoke_certs(bytes_of(&revoked));
        if are_tokens {
            self.tokens(tx)?;
        }
        Ok(())
    }

    /// Gives the device's revoked certificates.
    fn device(&self, tx: &mut Tx<'_>, tenant: TenantId, object: &str) -> Result<Vec<String>, DbError> {
        let Ok(device) = DeviceId::parse(object) else { return Ok(Vec::new()) };
        let scope = Scope::Tenant(tenant.clone());
        match store::auth_get(tx, &scope, object)? {
            Some(auth) => self.directory.set_device(&tenant, &device, auth),
            None => self.directory.remove_device(&tenant, &device),
        }
        store::serials_revoked_of(tx, &scope, object, self.now_us)
    }

    /// Gives how many were others before.
    fn tokens(&self, tx: &mut Tx<'_>) -> Result<usize, DbError> {
        let all = accounts::tokens(tx, &TOKENS)?;
        let all = all.into_iter().filter_map(|(sha256, token)| Some((sha256, IntegrationToken::of(&token)?)));
        Ok(self.directory.set_integrations(all.collect()))
    }

    /// Looks at every row, and where each chain ends.
    fn compare(&self, tx: &mut Tx<'_>, named: Option<usize>) -> Result<(Seen, Chains), DbError> {
        let chains = Chains::newest(tx, &DIRECTORY)?;
        let (mut devices, mut wrong) = (0, 0);
        store::auths_each(tx, &DIRECTORY, |tenant, device, auth| {
            devices += 1;
            if self.directory.lookup(tenant.as_str(), device.as_str()) != Some(auth) {
                self.directory.set_device(&tenant, &device, auth);
                wrong += 1;
            }
        })?;
        // All rows are in the directory now; what it holds beside them is gone from the registry.
        if self.directory.device_count() > devices {
            wrong += self.forget_deleted(tx)?;
        }
        let serials = bytes_of(&store::serials_revoked(tx, &DIRECTORY, self.now_us)?);
        wrong += serials.iter().filter(|serial| !self.directory.is_cert_revoked(serial)).count();
        self.directory.set_revoked(serials);
        wrong += self.tokens(tx)?;
        Ok((Seen { named, compared: Some(wrong) }, chains))
    }

    fn forget_deleted(&self, tx: &mut Tx<'_>) -> Result<usize, DbError> {
        let mut gone = 0;
        for (tenant, device) in self.directory.device_names() {
            let scope = Scope::Tenant(tenant.clone());
            if store::auth_get(tx, &scope, device.as_str())?.is_none() {
                self.directory.remove_device(&tenant, &device);
                gone += 1;
            }
        }
        Ok(gone)
    }
}

fn noun(action: &str) -> &str {
    action.split_once('.').map_or("", |(noun, _)| noun)
}

fn revoked_serial(tx: &mut Tx<'_>, tenant: TenantId, serial: String) -> Result<Option<String>, DbError> {
    let found = store::certificate_get(tx, &Scope::Tenant(tenant), &serial)?;
    Ok(found.filter(|row| row.revoked_at_us.is_some()).map(|row| row.serial))
}

/// The bytes of serials as they stand in certificates.
fn bytes_of(serials: &[String]) -> Vec<Box<[u8]>> {
    serials.iter().filter_map(|serial| hex::decode(serial).ok()).map(Vec::into_boxed_slice).collect()
}

#[cfg(test)]
mod tests;
