//! One contract, on a folder and on a real S3 server; then what only one of them can do wrong.

mod contract;
mod s3;

use super::*;
use muster_wire::TenantId;
use std::path::Path;

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

fn key(path: &str) -> Key {
    Key::new(&tenant("acme"), path).unwrap()
}

fn folder(path: &Path) -> Blobs {
    Blobs::open(&Options::folder(path)).unwrap()
}

#[tokio::test]
async fn a_folder_holds_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(&folder(dir.path())).await;
}

#[tokio::test]
async fn a_folder_that_is_gone_or_read_only_is_told_and_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("blobs");
    let blobs = folder(&at);
    blobs.check().await.unwrap();
    let away = dir.path().join("away");
    std::fs::rename(&at, &away).unwrap();
    assert!(matches!(blobs.check().await, Err(BlobError::Unreachable(_))));
    assert!(matches!(blobs.get(&key("a"), None).await, Err(BlobError::Missing { .. })));
    std::fs::rename(&away, &at).unwrap();
    blobs.check().await.unwrap();
    blobs.put(&key("a"), Bytes::from_static(b"back")).await.unwrap();
}

#[tokio::test]
async fn what_was_cut_while_it_was_written_to_a_folder_goes_with_its_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = folder(dir.path());
    let mut upload = blobs.upload(key("big/file"));
    upload.write(vec![1; 9 << 20].into()).await.unwrap();
    // As after a crash: nobody gives it up.
    std::mem::forget(upload);
    let left = || walk(dir.path());
    assert_eq!(left().len(), 1, "{:?}", left());
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme"))).await.unwrap(), 0);
    assert_eq!(left(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_changed_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = folder(dir.path());
    let stored = blobs.put(&key("a/b"), Bytes::from_static(b"content")).await.unwrap();
    std::fs::write(dir.path().join("acme/a/b"), b"c0ntent").unwrap();
    assert!(matches!(blobs.get(&key("a/b"), Some(&stored.sha256)).await, Err(BlobError::Corrupt { .. })));
    assert_eq!(&blobs.get(&key("a/b"), None).await.unwrap()[..], b"c0ntent");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
