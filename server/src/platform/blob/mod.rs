//! Blobs: files of a tenant, in a folder or in an S3 bucket.
//!
//! Who calls me: `erasure` keeps exports here; what comes later (frames, models, firmware) will. I call `object_store`,
//! over our own HTTP client, so that TLS is the workspace's.
//!
//! Promise: a blob is there whole or not at all: what was put is seen once its call returned, an upload that was not
//! finished never. A put replaces what was there. A key begins with its tenant and cannot leave it. An error tells
//! what is missing, what the other side refused, and that nobody answered; a store that is away stops nothing else.
//! Whoever keeps a blob's SHA-256 has it checked on reading. On a folder each put is synced with its directory.
//!
//! Limits: [`WHOLE_BYTES_MAX`] in one piece (put, get, range), [`BLOB_BYTES_MAX`] by [`Upload`], [`PAGE_MAX`] keys a
//! page; a page looks at every key below its prefix, at most [`SCAN_MAX`]. A request is tried [`TRIES`] times, an
//! operation ends after [`OPERATION_TIME_MAX`] and the time that its content takes at [`BYTES_PER_S_MIN`].

mod error;
mod http;
mod key;
mod open;
#[cfg(test)]
mod tests;
mod upload;

pub use error::BlobError;
pub use key::{Key, Prefix};
pub use open::{BlobUrl, Options};
pub use upload::Upload;

use bytes::Bytes;
use error::told;
use futures_util::StreamExt as _;
use muster_wire::TenantId;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The most that is put or read in one piece.
pub const WHOLE_BYTES_MAX: u64 = 16 << 20;
/// The largest blob: S3 takes 10,000 parts.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Keys of a page.
pub const PAGE_MAX: usize = 1_000;
/// Keys below a prefix that a page looks through.
pub const SCAN_MAX: usize = 1_000_000;
/// How often a request is sent to a server that does not answer or fails.
pub const TRIES: usize = 3;
/// The longest operation, each page of a deletion and each part of an upload counted alone; beside the time that content
/// takes at [`BYTES_PER_S_MIN`].
pub const OPERATION_TIME_MAX: Duration = Duration::from_secs(60);
/// Content may take so long; a slower network is too slow.
pub const BYTES_PER_S_MIN: u64 = 64 << 10;

/// A blob as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub key: Key,
    /// Its size.
    pub bytes: u64,
    /// Of its content.
    pub sha256: [u8; 32],
}

/// What the store tells of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where.
    pub key: Key,
    /// Its size.
    pub bytes: u64,
    /// When it was put, by the store's clock.
    pub modified_us: i64,
}

/// A part of a list, in the order of the keys' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most as many as were asked for.
    pub items: Vec<Head>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// What may be where a test hits a bound; the constants otherwise.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    whole_bytes: u64,
    blob_bytes: u64,
    scan: usize,
}

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// Where it is a folder.
    folder: Option<Arc<std::path::Path>>,
    shown: Arc<str>,
    bounds: Bounds,
}

impl Blobs {
    /// Opens the folder, which is made, or the bucket, which is not asked yet.
    ///
    /// # Errors
    /// The folder cannot be made, the secret or the authorities cannot be read.
    pub fn open(options: &Options) -> Result<Self, BlobError> {
        let opened = open::open(options)?;
        let bounds = Bounds { whole_bytes: WHOLE_BYTES_MAX, blob_bytes: BLOB_BYTES_MAX, scan: SCAN_MAX };
        Ok(Self { store: opened.store, folder: opened.folder, shown: opened.shown.into(), bounds })
    }

    /// Where it is, without secrets.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.shown
    }

    /// Puts a blob in one piece.
    ///
    /// # Errors
    /// It is larger than [`WHOLE_BYTES_MAX`] (use [`Self::upload`]), or the store's.
    pub async fn put(&self, key: &Key, content: Bytes) -> Result<Stored, BlobError> {
        let bytes = content.len() as u64;
        self.fits(key, bytes, self.bounds.whole_bytes)?;
        let sha256 = Sha256::digest(&content).into();
        let at = key.object();
        self.bounded(Some(key), bytes, self.store.put(&at, PutPayload::from_bytes(content))).await?;
        Ok(Stored { key: key.clone(), bytes, sha256 })
    }

    /// Begins a blob of any size up to [`BLOB_BYTES_MAX`]; it is not there before [`Upload::finish`].
    #[must_use]
    pub fn upload(&self, key: Key) -> Upload {
        Upload::new(self.clone(), key)
    }

    /// Reads a blob that fits into memory. With its SHA-256 the content is checked.
    ///
    /// # Errors
    /// It is missing, larger than [`WHOLE_BYTES_MAX`], not what was put, or the store's.
    pub async fn get(&self, key: &Key, sha256: Option<&[u8; 32]>) -> Result<Bytes, BlobError> {
        let at = key.object();
        let found = self.bounded(Some(key), 0, self.store.get(&at)).await?;
        self.fits(key, found.meta.size, self.bounds.whole_bytes)?;
        let content = self.bounded(Some(key), found.meta.size, found.bytes()).await?;
        let is_other = |expected: &[u8; 32]| Sha256::digest(&content)[..] != expected[..];
        if sha256.is_some_and(is_other) {
            return Err(BlobError::Corrupt { key: key.clone() });
        }
        Ok(content)
    }

    /// Reads a range; what lies behind the blob's end is left out.
    ///
    /// # Errors
    /// It is missing, the range is empty, begins behind its end or is longer than [`WHOLE_BYTES_MAX`], or the store's.
    pub async fn range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, BlobError> {
        let size = self.head(key).await?.bytes;
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            return Err(BlobError::Range { key: key.clone(), size });
        }
        let bytes = range.end - range.start;
        self.fits(key, bytes, self.bounds.whole_bytes)?;
        let at = key.object();
        self.bounded(Some(key), bytes, self.store.get_range(&at, range)).await
    }

    /// A blob's size and time.
    ///
    /// # Errors
    /// It is missing, or the store's.
    pub async fn head(&self, key: &Key) -> Result<Head, BlobError> {
        let at = key.object();
        let meta = self.bounded(Some(key), 0, self.store.head(&at)).await?;
        Ok(Head { key: key.clone(), bytes: meta.size, modified_us: meta.last_modified.timestamp_micros() })
    }

    /// Lists the keys below a prefix, behind `after`. Objects whose keys are none of ours are left out.
    ///
    /// # Errors
    /// More than [`SCAN_MAX`] keys are below the prefix, or the store's.
    pub async fn list(&self, below: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, BlobError> {
        let wanted = limit.clamp(1, PAGE_MAX);
        let prefix = below.object();
        let scan = async {
            // S3 servers do not agree on the order (SeaweedFS goes folder by folder): the smallest keys are kept.
            let mut smallest = BTreeMap::new();
            let (mut seen, mut all) = (0, self.store.list(Some(&prefix)));
            while let Some(meta) = all.next().await {
                let meta = meta.map_err(|error| told(None, error))?;
                seen += 1;
                if seen > self.bounds.scan {
                    return Err(BlobError::TooMany { max: self.bounds.scan });
                }
                let Some(head) = head_of(&meta) else { continue };
                if after.is_some_and(|after| head.key <= *after) {
                    continue;
                }
                smallest.insert(head.key.clone(), head);
                if smallest.len() > wanted + 1 {
                    smallest.pop_last();
                }
            }
            Ok(smallest)
        };
        let mut items: Vec<Head> = in_time(OPERATION_TIME_MAX, scan).await??.into_values().collect();
        let more = items.len() > wanted;
        items.truncate(wanted);
        Ok(Page { items, more })
    }

    /// Deletes a blob; one that is not there is deleted.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete(&self, key: &Key) -> Result<(), BlobError> {
        let at = key.object();
        match self.bounded(Some(key), 0, self.store.delete(&at)).await {
            Ok(()) | Err(BlobError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes everything below a prefix, unfinished uploads to a folder included; tells how many blobs there were.
    /// What was deleted before an error stays deleted: call it again.
    ///
    /// # Errors
    /// There are more than [`SCAN_MAX`], or the store's.
    pub async fn delete_prefix(&self, below: &Prefix) -> Result<u64, BlobError> {
        let mut deleted = 0;
        // A store that goes on listing what it deleted is not asked for ever.
        for _ in 0..=self.bounds.scan / PAGE_MAX {
            match self.delete_some(below).await? {
                0 => return Ok(deleted),
                some => deleted += some,
            }
        }
        Err(BlobError::TooMany { max: self.bounds.scan })
    }

    /// As [`Self::delete_prefix`], at most [`PAGE_MAX`] blobs. Says whether to call it again.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_page(&self, below: &Prefix) -> Result<bool, BlobError> {
        Ok(self.delete_some(below).await? > 0)
    }

    /// As [`Self::delete_page`], of everything that the tenant has beside `kept`, which is not looked through.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_page_beside(&self, tenant: &TenantId, kept: &Prefix) -> Result<bool, BlobError> {
        let mut at = Prefix::of(tenant);
        // From the tenant down to what is kept: what lies beside the way goes.
        while let Some(next) = at.towards(kept) {
            let prefix = at.object();
            let listed = self.bounded(None, 0, self.store.list_with_delimiter(Some(&prefix))).await?;
            for meta in listed.objects.iter().take(PAGE_MAX) {
                self.delete_at(&meta.location).await?;
            }
            if !listed.objects.is_empty() {
                return Ok(true);
            }
            for beside in listed.common_prefixes.iter().map(Prefix::listed) {
                // A folder that holds nothing may be listed for a while after it was emptied.
                if beside != next && self.delete_some(&beside).await? > 0 {
                    return Ok(true);
                }
            }
            if let Some(folder) = &self.folder {
                remove_files(folder.join(at.as_str())).await?;
            }
            at = next;
        }
        Ok(false)
    }

    /// At most a page; none: there is nothing left, unfinished uploads included.
    async fn delete_some(&self, below: &Prefix) -> Result<u64, BlobError> {
        let prefix = below.object();
        let page = async {
            let listed = self.store.list(Some(&prefix)).take(PAGE_MAX).collect::<Vec<_>>().await;
            let listed: Result<Vec<ObjectMeta>, _> = listed.into_iter().collect();
            listed.map_err(|error| told(None, error))
        };
        let page = in_time(OPERATION_TIME_MAX, page).await??;
        for meta in &page {
            self.delete_at(&meta.location).await?;
        }
        if let Some(folder) = self.folder.as_ref().filter(|_| page.is_empty()) {
            remove_folder(folder.join(below.as_str())).await?;
        }
        Ok(page.len() as u64)
    }

    async fn delete_at(&self, at: &ObjectPath) -> Result<(), BlobError> {
        match in_time(OPERATION_TIME_MAX, self.store.delete(at)).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(told(None, error)),
        }
    }

    /// Whether the store answers and lets us in.
    ///
    /// # Errors
    /// It does not.
    pub async fn check(&self) -> Result<(), BlobError> {
        if let Some(folder) = &self.folder {
            return open::check_folder(folder);
        }
        let nothing = ObjectPath::from("-/check");
        let first = async { self.store.list(Some(&nothing)).next().await };
        let first = in_time(OPERATION_TIME_MAX, first).await?;
        first.map_or(Ok(()), |listed| listed.map(drop).map_err(|error| told(None, error)))
    }

    fn fits(&self, key: &Key, bytes: u64, max: u64) -> Result<(), BlobError> {
        if bytes > max {
            return Err(BlobError::TooLarge { key: key.clone(), bytes, max });
        }
        Ok(())
    }

    /// With `bytes` that go over the network.
    async fn bounded<T>(
        &self,
        key: Option<&Key>,
        bytes: u64,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        let time_max = OPERATION_TIME_MAX + Duration::from_secs(bytes / BYTES_PER_S_MIN);
        in_time(time_max, work).await?.map_err(|error| told(key, error))
    }
}

async fn in_time<T>(time_max: Duration, work: impl Future<Output = T>) -> Result<T, BlobError> {
    let ended = tokio::time::timeout(time_max, work).await;
    ended.map_err(|_| BlobError::Unreachable(format!("no answer within {time_max:?}")))
}

fn head_of(meta: &ObjectMeta) -> Option<Head> {
    let key = Key::parse(meta.location.as_ref())?;
    Some(Head { key, bytes: meta.size, modified_us: meta.last_modified.timestamp_micros() })
}

/// Uploads that nobody finished, of a folder that holds no blob itself.
async fn remove_files(path: PathBuf) -> Result<(), BlobError> {
    let failed =
        |error: std::io::Error| BlobError::Failed(format!("cannot clear {}: {error}", path.display()));
    let mut entries = match tokio::fs::read_dir(&path).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        if !entry.file_type().await.map_err(failed)?.is_dir() {
            tokio::fs::remove_file(entry.path()).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// A folder's uploads that nobody finished lie beside its blobs, and no list shows them.
async fn remove_folder(path: PathBuf) -> Result<(), BlobError> {
    match tokio::fs::remove_dir_all(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BlobError::Failed(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}
