//! What only a server across a network can do.

use super::*;
use muster_services::SeaweedFs;
use std::time::Instant;

/// Options for a server, its secret in a file.
fn options(server: &SeaweedFs, dir: &Path, prefix: &str) -> Options {
    let secret = dir.join("secret");
    std::fs::write(&secret, server.secret_key()).unwrap();
    Options {
        url: format!("s3://{}/{prefix}", server.bucket()).parse().unwrap(),
        endpoint: Some(server.endpoint()),
        access_key_id: Some(server.access_key_id().to_owned()),
        secret_key_file: Some(secret),
        allow_http: true,
        ..Options::folder(dir)
    }
}

#[tokio::test]
async fn s3_holds_the_contract_and_refuses_wrong_keys() {
    let server = SeaweedFs::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let whole = options(&server, dir.path(), "");
    contract::all(&Blobs::open(&whole).unwrap()).await;
    let blobs = Blobs::open(&options(&server, dir.path(), "fleet/one")).unwrap();
    contract::all(&blobs).await;

    blobs.put(&key("a"), Bytes::from_static(b"1")).await.unwrap();
    // A secret that changes is taken without a restart; so is a wrong one.
    std::fs::write(dir.path().join("secret"), "wrong").unwrap();
    let all = Prefix::of(&tenant("acme"));
    let refused = [
        blobs.check().await.err(),
        blobs.get(&key("a"), None).await.err(),
        blobs.put(&key("b"), Bytes::new()).await.err(),
        blobs.list(&all, None, 1).await.err(),
        blobs.delete_prefix(&all).await.err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(BlobError::Refused(_))), "{error:?}");
    }
    std::fs::remove_file(dir.path().join("secret")).unwrap();
    assert!(matches!(blobs.check().await, Err(BlobError::Refused(why)) if why.contains("secret_key_file")));
    std::fs::write(dir.path().join("secret"), server.secret_key()).unwrap();
    assert_eq!(&blobs.get(&key("a"), None).await.unwrap()[..], b"1");

    let stranger = Options { access_key_id: Some("stranger".into()), ..whole.clone() };
    let stranger = Blobs::open(&stranger).unwrap();
    assert!(matches!(stranger.check().await, Err(BlobError::Refused(_))));
    let elsewhere = Options { url: "s3://nowhere".parse().unwrap(), ..whole };
    let elsewhere = Blobs::open(&elsewhere).unwrap();
    for error in [elsewhere.get(&key("a"), None).await.err(), elsewhere.list(&all, None, 1).await.err()] {
        assert!(matches!(error, Some(BlobError::NoBucket(_))), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told_and_works_again() {
    let mut server = SeaweedFs::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&options(&server, dir.path(), "")).unwrap();
    let mut upload = blobs.upload(key("cut"));
    upload.write(vec![1; 9 << 20].into()).await.unwrap();
    let stored = blobs.put(&key("kept"), Bytes::from_static(b"kept")).await.unwrap();
    server.stop().unwrap();
    for error in [
        blobs.check().await.err(),
        blobs.get(&key("kept"), None).await.err(),
        blobs.put(&key("b"), Bytes::new()).await.err(),
        blobs.delete(&key("b")).await.err(),
        upload.finish().await.err(),
    ] {
        assert!(error.as_ref().is_some_and(BlobError::is_passing), "{error:?}");
        assert!(matches!(error, Some(BlobError::Unreachable(_))), "{error:?}");
    }
    server.start_again().unwrap();
    // The volume joins its master a moment after the gate answers.
    let deadline = Instant::now() + OPERATION_TIME_MAX;
    while blobs.put(&key("after"), Bytes::from_static(b"after")).await.is_err() {
        assert!(Instant::now() < deadline, "it does not come back");
    }
    assert_eq!(&blobs.get(&key("kept"), Some(&stored.sha256)).await.unwrap()[..], b"kept");
    assert!(matches!(blobs.head(&key("cut")).await, Err(BlobError::Missing { .. })));
}

#[tokio::test]
async fn a_server_that_fails_is_tried_a_bounded_number_of_times() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "x").unwrap();
    let options = Options {
        url: "s3://bucket".parse().unwrap(),
        endpoint: Some(endpoint),
        access_key_id: Some("x".into()),
        secret_key_file: Some(secret),
        allow_http: true,
        ..Options::folder(dir.path())
    };
    let blobs = Blobs::open(&options).unwrap();
    let error = blobs.get(&key("a"), None).await;
    assert!(matches!(error, Err(BlobError::Unreachable(_))), "{error:?}");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), TRIES);

    let without = Options { allow_http: false, ..options.clone() };
    assert!(Blobs::open(&without).unwrap().check().await.is_err(), "plain HTTP was not allowed");
    let unknown = Options { ca_file: Some(dir.path().join("none.pem")), ..options };
    assert!(matches!(Blobs::open(&unknown), Err(BlobError::Config { key: "blob.ca_file", .. })));
}
