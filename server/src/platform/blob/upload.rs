//! A blob that is written piece by piece.

use super::{BlobError, Blobs, Key, Stored};
use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};

/// Gathered before it is sent; S3 wants 5 MiB and takes 10,000 parts.
pub const PART_BYTES: usize = 8 << 20;

/// An unfinished blob: nobody sees it before [`Self::finish`]. Dropped, it is given up: a folder forgets it at once,
/// S3 is told so (after a crash the bucket's own rule for unfinished uploads removes its parts).
#[derive(Debug)]
pub struct Upload {
    blobs: Blobs,
    key: Key,
    /// None before the first part is full.
    parts: Option<Box<dyn MultipartUpload>>,
    gathered: BytesMut,
    sha256: Sha256,
    bytes: u64,
}

impl Upload {
    pub(super) fn new(blobs: Blobs, key: Key) -> Self {
        Self { blobs, key, parts: None, gathered: BytesMut::new(), sha256: Sha256::new(), bytes: 0 }
    }

    /// Adds a piece. After an error the upload is lost: drop it.
    ///
    /// # Errors
    /// The blob would be larger than [`super::BLOB_BYTES_MAX`], or the store's.
    pub async fn write(&mut self, mut piece: Bytes) -> Result<(), BlobError> {
        self.bytes += piece.len() as u64;
        self.blobs.fits(&self.key, self.bytes, self.blobs.bounds.blob_bytes)?;
        self.sha256.update(&piece);
        while self.gathered.len() + piece.len() > PART_BYTES {
            let rest = piece.split_off(PART_BYTES - self.gathered.len());
            self.gathered.extend_from_slice(&piece);
            piece = rest;
            self.send().await?;
        }
        self.gathered.extend_from_slice(&piece);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), BlobError> {
        let part = self.gathered.split().freeze();
        let (bytes, part) = (part.len() as u64, PutPayload::from_bytes(part));
        let sending = self.parts().await?.put_part(part);
        self.blobs.bounded(Some(&self.key), bytes, sending).await
    }

    async fn parts(&mut self) -> Result<&mut Box<dyn MultipartUpload>, BlobError> {
        if self.parts.is_none() {
            let at = self.key.object();
            let begun = self.blobs.bounded(Some(&self.key), 0, self.blobs.store.put_multipart(&at)).await?;
            return Ok(self.parts.insert(begun));
        }
        Ok(self.parts.as_mut().expect("it was just looked at"))
    }

    /// Sends the rest: from now on the blob is there, whole.
    ///
    /// # Errors
    /// The store's; the blob is not there then, or what it was before.
    pub async fn finish(mut self) -> Result<Stored, BlobError> {
        if self.parts.is_none() {
            let content = self.gathered.split().freeze();
            return self.blobs.put(&self.key, content).await;
        }
        if !self.gathered.is_empty() {
            self.send().await?;
        }
        let sha256 = std::mem::take(&mut self.sha256).finalize().into();
        if let Some(parts) = &mut self.parts {
            let completed = parts.complete();
            self.blobs.bounded(Some(&self.key), 0, completed).await?;
        }
        self.parts = None;
        Ok(Stored { key: self.key.clone(), bytes: self.bytes, sha256 })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(%error, "an upload that was given up may have left parts in the bucket");
                }
            });
        }
    }
}
