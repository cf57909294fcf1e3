//! What each store must do. The store given is empty and left empty.

use super::*;

pub(super) async fn all(blobs: &Blobs) {
    blobs.check().await.unwrap();
    round_trip(blobs).await;
    ranges(blobs).await;
    order_and_pages(blobs).await;
    uploads(blobs).await;
    bounds(blobs).await;
    prefixes(blobs).await;
    all_but_one(blobs).await;
}

async fn round_trip(blobs: &Blobs) {
    let at = key("exports/j-1/a.txt");
    assert!(matches!(blobs.get(&at, None).await, Err(BlobError::Missing { key }) if key == at));
    assert!(matches!(blobs.head(&at).await, Err(BlobError::Missing { .. })));
    blobs.delete(&at).await.unwrap();

    let stored = blobs.put(&at, Bytes::from_static(b"first")).await.unwrap();
    assert_eq!((&stored.key, stored.bytes), (&at, 5));
    assert_eq!(
        hex::encode(stored.sha256),
        "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    );
    assert_eq!(&blobs.get(&at, Some(&stored.sha256)).await.unwrap()[..], b"first");
    let other = blobs.put(&at, Bytes::from_static(b"second, longer")).await.unwrap();
    assert_eq!(&blobs.get(&at, Some(&other.sha256)).await.unwrap()[..], b"second, longer");
    assert!(matches!(blobs.get(&at, Some(&stored.sha256)).await, Err(BlobError::Corrupt { .. })));
    let head = blobs.head(&at).await.unwrap();
    assert_eq!(head.bytes, 14);
    assert!(head.modified_us > 1_700_000_000_000_000, "{head:?}");
    blobs.put(&key("empty"), Bytes::new()).await.unwrap();
    assert_eq!(blobs.get(&key("empty"), None).await.unwrap().len(), 0);

    for at in [&at, &key("empty")] {
        blobs.delete(at).await.unwrap();
        assert!(matches!(blobs.get(at, None).await, Err(BlobError::Missing { .. })));
    }
}

async fn ranges(blobs: &Blobs) {
    let at = key("range");
    blobs.put(&at, Bytes::from_static(b"0123456789")).await.unwrap();
    for (range, expect) in [(0..3, "012"), (4..5, "4"), (8..100, "89"), (0..10, "0123456789")] {
        assert_eq!(&blobs.range(&at, range).await.unwrap()[..], expect.as_bytes());
    }
    for range in [10..12, 3..3, 99..100] {
        assert!(matches!(blobs.range(&at, range).await, Err(BlobError::Range { size: 10, .. })));
    }
    assert!(matches!(blobs.range(&key("none"), 0..1).await, Err(BlobError::Missing { .. })));
    blobs.delete(&at).await.unwrap();
}

async fn order_and_pages(blobs: &Blobs) {
    // By bytes '-' and '.' come before '/', in folders after it.
    let mut paths = ["x/a/1", "x/a/2", "x/a-b", "x/a.b", "x/a0", "x/B", "x/b/c/d"].map(key).to_vec();
    for at in &paths {
        blobs.put(at, Bytes::from_static(b"1")).await.unwrap();
    }
    blobs.put(&key("xy"), Bytes::from_static(b"beside")).await.unwrap();
    paths.sort();
    let below = Prefix::below(&tenant("acme"), "x").unwrap();
    for limit in [1, 3, paths.len(), 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = blobs.list(&below, after.as_ref(), limit).await.unwrap();
            assert!(page.items.len() <= limit);
            seen.extend(page.items.into_iter().map(|head| head.key));
            after = seen.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, paths, "{limit} a page");
    }
    let none = blobs.list(&Prefix::below(&tenant("acme"), "nothing").unwrap(), None, 10).await.unwrap();
    assert_eq!(none, Page::default());
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme"))).await.unwrap(), 8);
}

async fn uploads(blobs: &Blobs) {
    // Two parts and a rest, in pieces that fit none of them.
    let content: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    let at = key("uploads/large");
    let mut upload = blobs.upload(at.clone());
    for piece in content.chunks(3_333_333) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        assert!(matches!(blobs.head(&at).await, Err(BlobError::Missing { .. })), "half of it is visible");
        assert_eq!(blobs.list(&Prefix::of(&tenant("acme")), None, 10).await.unwrap(), Page::default());
    }
    let stored = upload.finish().await.unwrap();
    assert_eq!((stored.bytes, stored.sha256), (20_000_000, Sha256::digest(&content).into()));
    for range in [0..10, 8_388_600..8_388_616, 16_777_210..16_777_226, 19_999_990..20_000_000] {
        let expect = &content[range.start as usize..range.end as usize];
        assert_eq!(&blobs.range(&at, range).await.unwrap()[..], expect);
    }
    // One that is given up leaves what was there.
    let mut given_up = blobs.upload(at.clone());
    given_up.write(vec![7; 9 << 20].into()).await.unwrap();
    drop(given_up);
    assert_eq!(blobs.head(&at).await.unwrap().bytes, 20_000_000);
    let mut small = blobs.upload(key("uploads/small"));
    small.write(Bytes::from_static(b"sm")).await.unwrap();
    small.write(Bytes::from_static(b"all")).await.unwrap();
    let small = small.finish().await.unwrap();
    assert_eq!(&blobs.get(&small.key, Some(&small.sha256)).await.unwrap()[..], b"small");
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme"))).await.unwrap(), 2);
}

async fn bounds(blobs: &Blobs) {
    let tight = Blobs { bounds: Bounds { whole_bytes: 8, blob_bytes: 12, scan: 3 }, ..blobs.clone() };
    let at = key("bounds/a");
    let too_large = |result: Result<u64, BlobError>, expect: u64, limit: u64| match result {
        Err(BlobError::TooLarge { bytes, max, .. }) => assert_eq!((bytes, max), (expect, limit)),
        other => panic!("{other:?}"),
    };
    too_large(tight.put(&at, Bytes::from_static(b"123456789")).await.map(|stored| stored.bytes), 9, 8);
    assert!(matches!(blobs.head(&at).await, Err(BlobError::Missing { .. })));
    blobs.put(&at, Bytes::from_static(b"123456789")).await.unwrap();
    too_large(tight.get(&at, None).await.map(|content| content.len() as u64), 9, 8);
    too_large(tight.range(&at, 0..9).await.map(|content| content.len() as u64), 9, 8);
    assert_eq!(&tight.range(&at, 1..9).await.unwrap()[..], b"23456789");
    let mut upload = tight.upload(key("bounds/b"));
    upload.write(Bytes::from_static(b"1234567")).await.unwrap();
    too_large(upload.write(Bytes::from_static(b"890123")).await.map(|()| 0), 13, 12);
    drop(upload);
    for name in ["b", "c"] {
        blobs.put(&key(&format!("bounds/{name}")), Bytes::new()).await.unwrap();
    }
    let all = Prefix::of(&tenant("acme"));
    assert_eq!(tight.list(&all, None, 10).await.unwrap().items.len(), 3);
    blobs.put(&key("bounds/d"), Bytes::new()).await.unwrap();
    assert!(matches!(tight.list(&all, None, 10).await, Err(BlobError::TooMany { max: 3 })));
    assert_eq!(blobs.delete_prefix(&all).await.unwrap(), 4);
}

async fn prefixes(blobs: &Blobs) {
    // A tenant whose name begins like another's keeps what it has.
    let other = Key::new(&tenant("acme2"), "exports/j-1/a").unwrap();
    let beside = key("exports/j-10/a");
    for at in [&other, &beside, &key("exports/j-1/a"), &key("exports/j-1/b/c")] {
        blobs.put(at, Bytes::from_static(b"1")).await.unwrap();
    }
    let below = Prefix::below(&tenant("acme"), "exports/j-1").unwrap();
    assert_eq!(blobs.delete_prefix(&below).await.unwrap(), 2);
    assert_eq!(blobs.delete_prefix(&below).await.unwrap(), 0);
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme"))).await.unwrap(), 1);
    assert_eq!(&blobs.get(&other, None).await.unwrap()[..], b"1");
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme2"))).await.unwrap(), 1);
}

async fn all_but_one(blobs: &Blobs) {
    let other = Key::new(&tenant("acme2"), "exports/j-2/a").unwrap();
    let kept = [key("exports/j-1/a"), key("exports/j-1/b/c")];
    let gone = ["exports/j-10/a", "exports/j-2/a/b", "exports/a", "frames/1/2", "model"].map(key);
    for at in kept.iter().chain(&gone).chain([&other]) {
        blobs.put(at, Bytes::from_static(b"1")).await.unwrap();
    }
    let one = Prefix::below(&tenant("acme"), "exports/j-1").unwrap();
    let mut pages = 0;
    while blobs.delete_page_beside(&tenant("acme"), &one).await.unwrap() {
        pages += 1;
        assert!(pages < 20, "it never ends");
    }
    let left = blobs.list(&Prefix::of(&tenant("acme")), None, 100).await.unwrap();
    assert_eq!(left.items.into_iter().map(|head| head.key).collect::<Vec<_>>(), kept);
    assert_eq!(&blobs.get(&other, None).await.unwrap()[..], b"1");
    while blobs.delete_page(&Prefix::of(&tenant("acme"))).await.unwrap() {}
    assert!(!blobs.delete_page_beside(&tenant("acme"), &one).await.unwrap(), "nothing is there");
    assert_eq!(blobs.delete_prefix(&Prefix::of(&tenant("acme2"))).await.unwrap(), 1);
}
