//! What other processes did to devices of the same registry, and what they have to know of this one.
//!
//! `app::follow` calls `refresh*` in the process that has the gateway, for what the audit chains name; a device's lock is held
//! over the read and the directory, as over a change made here, so neither ends on an older state than the registry's.
//! A process with the role `api` alone keeps no devices in memory; claims that it makes lead to the gateway's process,
//! which says in the registry where devices find it ([`Devices::tell_door`]).

use super::{Devices, DevicesError, Endpoints, auth_of};
use crate::devices::store;
use crate::platform::db::{DbError, Fence, GATEWAY_AND_WORKER, Scope, Tx};
use crate::platform::http_kit::chain;
use muster_wire::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks whether what was told still holds.
const DOOR_INTERVAL: Duration = Duration::from_secs(5);

/// Where devices are let in, and by whose key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Door {
    #[serde(flatten)]
    pub(super) endpoints: Endpoints,
    /// Hex of the SHA-256 of the authority's public key, which a claim pins.
    ca_spki_sha256: String,
}

/// What was told, and by whose leave.
pub(super) struct Told {
    fence: Fence,
    door: Door,
}

impl Door {
    pub(super) fn pin(&self) -> Result<[u8; 32], DbError> {
        let bytes = hex::decode(&self.ca_spki_sha256).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| DbError::Column { column: "facts".into() })
    }
}

impl Devices {
    /// Reads a device again.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh(&self, tenant: &TenantId, device: &DeviceId) -> Result<(), DevicesError> {
        let _held = self.lock(tenant, device).await;
        let (scope, id, now_us) = (Scope::Tenant(tenant.clone()), device.clone(), self.now_us());
        let read = move |tx: &mut Tx<'_>| {
            let row = store::device_get(tx, &scope, &id)?;
            Ok::<_, DbError>((row, store::serials_revoked_of(tx, &scope, id.as_str(), now_us)?))
        };
        let (row, revoked) = self.inner.db.read(read).await?;
        match row {
            Some(row) => self.publish(tenant, &row),
            None if self.inner.directory.lookup(tenant.as_str(), device.as_str()).is_some() => {
                self.forget(tenant, device);
            }
            None => {}
        }
        self.revoke_in_directory(&revoked);
        Ok(())
    }

    /// Reads a certificate again. What was revoked stays so: no lock is needed.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh_certificate(&self, tenant: &TenantId, serial: String) -> Result<(), DevicesError> {
        let scope = Scope::Tenant(tenant.clone());
        let found = self.inner.db.read(move |tx| store::certificate_get(tx, &scope, &serial)).await?;
        let revoked = found.filter(|row| row.revoked_at_us.is_some()).map(|row| row.serial);
        self.revoke_in_directory(revoked.as_slice());
        Ok(())
    }

    /// Compares everything in memory with the registry, and reads again what differs; says how many devices did.
    ///
    /// # Errors
    /// The database's.
    pub async fn refresh_all(&self) -> Result<usize, DevicesError> {
        let now_us = self.now_us();
        let read = move |tx: &mut Tx<'_>| {
            let scope = Scope::System("device directory");
            Ok::<_, DbError>((
                store::devices_readable(tx, &scope)?,
                store::serials_revoked(tx, &scope, now_us)?,
            ))
        };
        let (rows, revoked) = self.inner.db.read(read).await?;
        let (directory, labels) = (&self.inner.directory, &self.inner.labels);
        let mut gone: HashSet<_> = directory.device_names().into_iter().collect();
        let mut wrong = Vec::new();
        for (name, row) in rows {
            gone.remove(&name);
            let (tenant, device) = (name.0.as_str(), name.1.as_str());
            match row {
                Ok(row) => {
                    let is_same = directory.lookup(tenant, device) == Some(auth_of(&row))
                        && labels.labels(tenant, device) == row.labels;
                    if !is_same {
                        wrong.push(name);
                    }
                }
                Err(error) => {
                    tracing::error!(tenant, device, error = %chain(&error), "a device cannot be read, what is known of it stays");
                }
            }
        }
        wrong.extend(gone);
        for (tenant, device) in &wrong {
            match self.refresh(tenant, device).await {
                Err(DevicesError::Db(error @ DbError::Column { .. })) => {
                    tracing::error!(%tenant, %device, error = %chain(&error), "a device cannot be read, what is known of it stays");
                }
                done => done?,
            }
        }
        self.revoke_in_directory(&revoked);
        Ok(wrong.len())
    }

    /// Tells processes without a gateway where devices are let in. Call it once the listeners are up.
    ///
    /// # Errors
    /// The listeners are not up; another process holds the lease; the database's.
    pub async fn tell_door(&self, fence: Fence) -> Result<(), DevicesError> {
        let mut told = self.inner.told.lock().await;
        let door = self.door().await?;
        self.note(fence.clone(), &door).await?;
        *told = Some(Told { fence, door });
        Ok(())
    }

    /// Tells it again where it is another one since: the next authority has another key. Nothing where it was never told.
    ///
    /// # Errors
    /// Another process holds the lease; the database's.
    pub async fn tell_door_again(&self) -> Result<(), DevicesError> {
        let mut told = self.inner.told.lock().await;
        let Some(Told { fence, door }) = told.as_mut() else { return Ok(()) };
        let now = self.door().await?;
        if now != *door {
            self.note(fence.clone(), &now).await?;
            *door = now;
        }
        Ok(())
    }

    async fn note(&self, fence: Fence, door: &Door) -> Result<(), DevicesError> {
        let facts = serde_json::to_string(door).map_err(|_| DbError::Column { column: "facts".into() })?;
        Ok(self.inner.db.write(move |tx| fence.note(tx, &facts)).await?)
    }

    /// Keeps what was told true until the server stops, whoever changed the authorities.
    pub async fn keep_door_told(self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(DOOR_INTERVAL) => {}
                _ = stop.changed() => return,
            }
            if let Err(error) = self.tell_door_again().await {
                tracing::warn!(error = %chain(&error), "other processes are not told of the new authority yet, will retry");
            }
        }
    }

    /// This process's door, or the gateway's as the registry has it.
    pub(super) async fn door(&self) -> Result<Door, DevicesError> {
        let Some(pki) = &self.inner.pki else { return self.told_door().await };
        let endpoints = self.inner.endpoints.get().ok_or(DevicesError::Starting)?.clone();
        Ok(Door { endpoints, ca_spki_sha256: hex::encode(pki.ca_spki_sha256()) })
    }

    async fn told_door(&self) -> Result<Door, DevicesError> {
        let noted = self.inner.db.read(|tx| Fence::noted(tx, GATEWAY_AND_WORKER)).await?;
        let facts = noted.ok_or(DevicesError::NoGateway)?;
        serde_json::from_str(&facts).map_err(|_| DbError::Column { column: "facts".into() }.into())
    }
}
