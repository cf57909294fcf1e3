//! Deletes exports that are past their time, beside the worker: a page of files at a time.

use super::model::{FAIL_US_MAX, Job};
use super::service::{ErasureError, Erasures};
use super::store;
use super::worker::{ROWS_PER_STEP, scope};
use crate::platform::blob::Prefix;
use crate::platform::db::{DbError, Scope, Tx};
use crate::platform::http_kit::chain;
use std::time::Duration;
use tokio::sync::watch;

const INTERVAL: Duration = Duration::from_secs(10);

impl Erasures {
    /// Runs until the server stops; `app.rs` starts it beside the worker.
    pub async fn forget_exports(self, mut stop: watch::Receiver<bool>) {
        loop {
            let pass = async {
                match self.forget_page().await {
                    Ok(true) => {}
                    Ok(false) => tokio::time::sleep(INTERVAL).await,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "exports past their time cannot be read, will retry");
                        tokio::time::sleep(INTERVAL).await;
                    }
                }
            };
            tokio::select! {
                () = pass => {}
                _ = stop.changed() => return,
            }
        }
    }

    /// Deletes a page of one export; says whether there was one. What fails is put off, and holds up no other.
    ///
    /// # Errors
    /// The jobs cannot be read or written.
    pub async fn forget_page(&self) -> Result<bool, ErasureError> {
        let now_us = self.clock.now_us();
        let read = move |tx: &mut Tx<'_>| store::expired(tx, &Scope::System("erasure"), now_us);
        let Some(mut job) = self.db.read(read).await? else { return Ok(false) };
        let scope = scope(&job);
        match self.delete_page(&job).await {
            Ok(true) if job.tries == 0 => return Ok(true),
            Ok(true) => job.go_on(),
            Ok(false) => return self.forget_files(job).await,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "an export past its time is not deleted yet, will retry");
                job.put_off(now_us, FAIL_US_MAX);
            }
        }
        self.db.write(move |tx| store::update(tx, &scope, &job)).await?;
        Ok(true)
    }

    async fn delete_page(&self, job: &Job) -> Result<bool, ErasureError> {
        let folder = Prefix::below(&job.tenant, &job.folder())?;
        Ok(self.blobs()?.delete_page(&folder).await?)
    }

    async fn forget_files(&self, mut job: Job) -> Result<bool, ErasureError> {
        let write = move |tx: &mut Tx<'_>| {
            let scope = scope(&job);
            let files = store::files_forget(tx, &scope, &job.id, false, ROWS_PER_STEP)?;
            if (files as i64) < ROWS_PER_STEP {
                job.export_until_us = None;
                job.go_on();
                store::update(tx, &scope, &job)?;
            }
            Ok::<_, DbError>(true)
        };
        Ok(self.db.write(write).await?)
    }
}
