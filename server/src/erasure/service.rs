//! What people ask for: begin a job, look at jobs, fetch an export.

use super::model::{File, Job, Member, OPEN_PER_TENANT_MAX, Place, State};
use super::store;
use crate::devices::{Devices, DevicesError};
use crate::platform::blob::{BlobError, Blobs, Key};
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::http_kit::{NotHere, Page};
use crate::platform::secret;
use crate::platform::telemetry::TelemetryError;
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::{Permission, Principal, Tenants};
use bytes::Bytes;
use muster_wire::{DeviceId, TenantId};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    /// No such object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Not in the state that the request needs.
    #[error("{0}")]
    Conflict(&'static str),
    /// The tenant has as many jobs as it may.
    #[error("{OPEN_PER_TENANT_MAX} erasures of the tenant are not done yet; try again later")]
    TooMany,
    /// The confirmation is not the tenant's id.
    #[error("must be the tenant's id")]
    NotConfirmed,
    /// The devices slice.
    #[error("devices")]
    Devices(#[from] DevicesError),
    /// Exports are in another process's folder.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// The blob store.
    #[error("export")]
    Blob(#[from] BlobError),
    /// The telemetry store.
    #[error("telemetry store")]
    Telemetry(#[from] TelemetryError),
    /// The database.
    #[error("database failed")]
    Db(#[from] DbError),
}

/// The slice's service; clones share it.
#[derive(Clone)]
pub struct Erasures {
    pub(super) db: Db,
    pub(super) clock: SharedClock,
    /// None in a process without a blob store of its own.
    blobs: Option<Blobs>,
    devices: Devices,
    tenants: Tenants,
}

impl Erasures {
    /// On open stores.
    #[must_use]
    pub fn new(db: Db, clock: SharedClock, blobs: Option<Blobs>, devices: Devices, tenants: Tenants) -> Self {
        Self { db, clock, blobs, devices, tenants }
    }

    /// As [`Devices::admit`].
    ///
    /// # Errors
    /// As there.
    pub async fn admit<'w>(
        &self,
        who: &'w Principal,
        permission: Permission,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<&'w Principal, ErasureError> {
        Ok(self.devices.admit(who, permission, tenant, device).await?)
    }

    /// Where exports are.
    pub(super) fn blobs(&self) -> Result<&Blobs, ErasureError> {
        self.blobs.as_ref().ok_or(ErasureError::NotHere(NotHere))
    }

    /// Asks for a device to be erased.
    ///
    /// # Errors
    /// No such device; it is being erased already; too many jobs.
    pub async fn erase_device(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: DeviceId,
        with_export: bool,
    ) -> Result<Job, ErasureError> {
        self.devices.get(tenant, &device).await?;
        self.begin(who, tenant, Some(device), with_export).await
    }

    /// Asks for a tenant to be erased: its members, tokens and claims are shut out before this returns.
    ///
    /// # Errors
    /// Not confirmed; no such tenant; it is erased already; an export that nobody could fetch.
    pub async fn erase_tenant(
        &self,
        who: &Principal,
        tenant: &TenantId,
        confirm: &str,
        with_export: bool,
    ) -> Result<Job, ErasureError> {
        if confirm != tenant.as_str() {
            return Err(ErasureError::NotConfirmed);
        }
        let is_own = matches!(who, Principal::Token { membership, .. } if membership.tenant == *tenant);
        if with_export && is_own {
            let why = "API tokens of the tenant go with it, and who asks fetches the export: ask as a person or a system \
                       administrator, or with \"export\": false";
            return Err(ErasureError::Conflict(why));
        }
        self.begin(who, tenant, None, with_export).await
    }

    async fn begin(
        &self,
        who: &Principal,
        tenant: &TenantId,
        device: Option<DeviceId>,
        with_export: bool,
    ) -> Result<Job, ErasureError> {
        let job = new_job(who, tenant, device, with_export, self.clock.now_us());
        if job.device.is_some() {
            return self.db.write(move |tx| insert(tx, job)).await;
        }
        self.tenants.revoke_all_tokens(&who.audit_name(), tenant, move |tx| insert(tx, job)).await
    }

    /// Shuts out who is a member of a job's tenant now; gives the job, which remembers them.
    pub(super) async fn shut_people_out(&self, job: &Job) -> Result<Job, DbError> {
        let mut job = job.clone();
        let write = move |tx: &mut Tx<'_>| {
            store::shut_people_out(tx, &Scope::System("erasure"), &mut job)?;
            store::update(tx, &Scope::Tenant(job.tenant.clone()), &job)?;
            Ok(job)
        };
        self.db.write(write).await
    }

    /// The tenant's jobs, the oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self, tenant: &TenantId, page: &Page) -> Result<Vec<Job>, ErasureError> {
        let (scope, after, limit) =
            (Scope::Tenant(tenant.clone()), page.after_text().to_owned(), page.fetch());
        Ok(self.db.read(move |tx| store::list(tx, &scope, &after, limit)).await?)
    }

    /// One job.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, tenant: &TenantId, id: &str) -> Result<Job, ErasureError> {
        let (scope, id) = (Scope::Tenant(tenant.clone()), id.to_owned());
        let found = self.db.read(move |tx| store::get(tx, &scope, &id)).await?;
        found.ok_or(ErasureError::NotFound("erasure"))
    }

    /// A job's files by name.
    ///
    /// # Errors
    /// The database's.
    pub async fn files(&self, tenant: &TenantId, id: &str, page: &Page) -> Result<Vec<File>, ErasureError> {
        let (scope, id) = (Scope::Tenant(tenant.clone()), id.to_owned());
        let (after, limit) = (page.after_text().to_owned(), page.fetch());
        Ok(self.db.read(move |tx| store::file_list(tx, &scope, &id, &after, limit)).await?)
    }

    /// The content of a file, checked against what was written. Who reads it stands in the audit chain.
    ///
    /// # Errors
    /// There is none; the blob store's.
    pub async fn download(
        &self,
        who: &Principal,
        tenant: &TenantId,
        id: &str,
        name: &str,
    ) -> Result<Bytes, ErasureError> {
        let job = self.get(tenant, id).await?;
        let (scope, id, name) = (Scope::Tenant(tenant.clone()), id.to_owned(), name.to_owned());
        let (actor, at_us) = (who.audit_name(), self.clock.now_us());
        let found = self.db.write(move |tx| {
            let file = store::file_get(tx, &scope, &id, &name)?.ok_or(ErasureError::NotFound("file"))?;
            let detail = serde_json::json!({ "file": file.name });
            let entry = AuditEntry { at_us, actor: &actor, action: "erasure.download", object: &id, detail };
            audit::append(tx, &scope, &entry)?;
            Ok::<_, ErasureError>(file)
        });
        let file = found.await?;
        let key = Key::new(tenant, &format!("{}/{}", job.folder(), file.name))?;
        Ok(self.blobs()?.get(&key, Some(&file.sha256)).await?)
    }
}

fn new_job(
    who: &Principal,
    tenant: &TenantId,
    device: Option<DeviceId>,
    with_export: bool,
    now_us: i64,
) -> Job {
    // Ids are listed in the order of their times.
    let id = format!("{:016x}{}", now_us.max(0), hex::encode(secret::random_bytes::<4>()));
    Job {
        tenant: tenant.clone(),
        id,
        device,
        state: State::ShuttingOut,
        with_export,
        requested_by: who.audit_name(),
        requester: who.id().to_owned(),
        requested_at_us: now_us,
        members: Vec::new(),
        log: None,
        since_us: now_us,
        place: Place::default(),
        rows_exported: 0,
        rows_erased: 0,
        waiting_for: None,
        tries: 0,
        next_try_at_us: 0,
        done_at_us: None,
        export_until_us: None,
    }
}

/// Of a tenant nobody is a member any more with this commit, and no claim enrols a device.
fn insert(tx: &mut Tx<'_>, mut job: Job) -> Result<Job, ErasureError> {
    let scope = Scope::Tenant(job.tenant.clone());
    if !store::tenant_exists(tx, &scope)? {
        return Err(ErasureError::NotFound("tenant"));
    }
    if store::is_tenant_erased(tx, &scope)? {
        return Err(ErasureError::Conflict("the tenant is being erased"));
    }
    if job.device.is_some() && store::open_count(tx, &scope)? >= OPEN_PER_TENANT_MAX {
        return Err(ErasureError::TooMany);
    }
    let (action, object) = match &job.device {
        Some(device) => ("erasure.device", device.as_str().to_owned()),
        None => ("erasure.tenant", job.tenant.to_string()),
    };
    if job.device.is_none() {
        store::shut_people_out(tx, &Scope::System("erasure"), &mut job)?;
    }
    store::insert(tx, &scope, &job).map_err(|error| match error.is_unique_violation() {
        true => ErasureError::Conflict("the device is being erased"),
        false => error.into(),
    })?;
    let (at_us, actor) = (job.requested_at_us, job.requested_by.as_str());
    let detail = serde_json::json!({ "id": job.id, "export": job.with_export });
    audit::append(tx, &scope, &AuditEntry { at_us, actor, action, object: &object, detail })?;
    Ok(job)
}

/// Whether a caller is who asked for the erasure of a tenant: it may look at it, though it is a member no longer. A
/// device's erasure takes nothing from whoever asked, so who may not see it otherwise may not see it for that.
#[must_use]
pub fn asked_for(who: &Principal, job: &Job) -> bool {
    let is_pending = matches!(who, Principal::User { password_pending: true, .. });
    let is_asker = who.audit_name() == job.requested_by && who.id() == job.requester;
    job.device.is_none() && is_asker && !is_pending
}

/// The members whose accounts go with the tenant: all but who asked, who has yet to fetch the export.
pub(super) fn leaving(job: &Job) -> Vec<Member> {
    job.members.iter().filter(|member| member.user_id != job.requester).cloned().collect()
}
