//! What every [`BlobStore`] must do, as functions for the tests of any store; they panic where a store fails them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test support: a failing check is meant to stop"
)]

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::{BlobError, BlobStore, PIECE_BYTES};
use crate::repo::{Cid, Did};

/// Runs the whole contract on a fresh store.
pub async fn all(store: &dyn BlobStore) {
    what_was_finished_can_be_read(store).await;
    unfinished_uploads_are_invisible(store).await;
    the_bound_of_an_upload_holds(store).await;
    the_same_content_is_one_blob_per_account(store).await;
    ranges_are_exact(store).await;
    deletion_is_idempotent(store).await;
    a_list_is_whole_and_of_one_account(store).await;
    assert!(!store.describe().is_empty());
}

fn did(name: &str) -> Did {
    format!("did:web:{name}.example.com").parse().expect("a DID")
}

fn content(size: usize) -> Vec<u8> {
    (0..size as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

async fn put(store: &dyn BlobStore, did: &Did, bytes: &[u8]) -> Cid {
    let mut upload = store.begin(did, bytes.len() as u64).await.expect("begun");
    for piece in bytes.chunks(100_000) {
        upload
            .write(Bytes::copy_from_slice(piece))
            .await
            .expect("written");
    }
    assert_eq!(upload.written(), bytes.len() as u64);
    let cid = Cid::for_raw(bytes);
    assert_eq!(upload.finish(&cid).await, Ok(bytes.len() as u64));
    cid
}

/// Blobs of any size, none included, come back as they were, in bounded pieces.
pub async fn what_was_finished_can_be_read(store: &dyn BlobStore) {
    let did = did("read");
    for size in [0, 1, 100_000, 9 * 1024 * 1024 + 3] {
        let bytes = content(size);
        let cid = put(store, &did, &bytes).await;
        assert_eq!(store.size(&did, &cid).await, Ok(Some(size as u64)));
        let mut reader = store.open(&did, &cid).await.expect("open");
        assert_eq!(reader.size, size as u64);
        let mut read = Vec::new();
        while let Some(piece) = reader.stream.try_next().await.expect("a piece") {
            assert!(piece.len() as u64 <= PIECE_BYTES);
            read.extend_from_slice(&piece);
        }
        assert!(read == bytes, "a blob of {size} bytes changed on its way");
    }
}

/// Nothing is seen of an upload before it is finished, nor of an abandoned one ever.
pub async fn unfinished_uploads_are_invisible(store: &dyn BlobStore) {
    let did = did("unfinished");
    let cid = Cid::for_raw(b"half");
    let mut upload = store.begin(&did, 100).await.expect("begun");
    upload.write(Bytes::from_static(b"half")).await.expect("written");
    assert_eq!(store.exists(&did, &cid).await, Ok(false));
    drop(upload);
    assert_eq!(store.exists(&did, &cid).await, Ok(false));
    let absent = store.open(&did, &cid).await.expect_err("no blob");
    assert_eq!(absent, BlobError::NotFound { did, cid });
}

/// An upload takes as much as was allowed and not a byte more.
pub async fn the_bound_of_an_upload_holds(store: &dyn BlobStore) {
    let mut upload = store.begin(&did("bound"), 10).await.expect("begun");
    upload
        .write(Bytes::from_static(b"0123456789"))
        .await
        .expect("written");
    assert_eq!(
        upload.write(Bytes::from_static(b"x")).await,
        Err(BlobError::TooLarge { max: 10 })
    );
}

/// Uploading again succeeds; accounts do not share.
pub async fn the_same_content_is_one_blob_per_account(store: &dyn BlobStore) {
    let (one, other) = (did("one"), did("other"));
    let cid = put(store, &one, b"the same").await;
    assert_eq!(store.exists(&other, &cid).await, Ok(false));
    assert_eq!(put(store, &one, b"the same").await, cid);
    assert_eq!(put(store, &other, b"the same").await, cid);
    store.delete(&one, &cid).await.expect("deleted");
    let kept = store.open(&other, &cid).await.expect("open");
    assert_eq!(kept.read_all(8).await, Ok(Bytes::from_static(b"the same")));
}

/// A range gives exactly its bytes, or an error if the blob ends before.
pub async fn ranges_are_exact(store: &dyn BlobStore) {
    let did = did("range");
    let bytes = content(5 * 1024 * 1024);
    let cid = put(store, &did, &bytes).await;
    let size = bytes.len() as u64;
    for range in [0..size, 0..1, size - 1..size, 100..4_500_000, 7..7] {
        let reader = store.open_range(&did, &cid, range.clone()).await.expect("open");
        assert_eq!(reader.size, size);
        let read = reader.read_all(size).await.expect("read");
        assert!(
            read == bytes[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    let beyond = store
        .open_range(&did, &cid, 0..size + 1)
        .await
        .expect_err("too far");
    assert_eq!(
        beyond,
        BlobError::OutOfRange {
            start: 0,
            end: size + 1
        }
    );
}

/// Deleting succeeds whether or not the blob is there, and it can come back.
pub async fn deletion_is_idempotent(store: &dyn BlobStore) {
    let did = did("deleted");
    let cid = Cid::for_raw(b"gone");
    assert_eq!(store.delete(&did, &cid).await, Ok(()));
    put(store, &did, b"gone").await;
    assert_eq!(store.delete(&did, &cid).await, Ok(()));
    assert_eq!(store.delete(&did, &cid).await, Ok(()));
    assert_eq!(store.exists(&did, &cid).await, Ok(false));
    assert_eq!(put(store, &did, b"gone").await, cid);
    assert_eq!(store.exists(&did, &cid).await, Ok(true));
}

/// A list has every blob of the account once, in order, however small its pieces are.
pub async fn a_list_is_whole_and_of_one_account(store: &dyn BlobStore) {
    let (one, other) = (did("listed"), did("listed.not"));
    assert_eq!(store.list(&one, None, 10).await, Ok(Vec::new()));
    let mut cids = Vec::new();
    for n in 0..5u8 {
        cids.push(put(store, &one, &[n]).await);
        put(store, &other, &[n, n]).await;
    }
    cids.sort_by_key(ToString::to_string);
    assert_eq!(store.list(&one, None, 10).await, Ok(cids.clone()));
    let mut listed: Vec<Cid> = Vec::new();
    loop {
        let page = store.list(&one, listed.last(), 2).await.expect("listed");
        listed.extend(&page);
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(listed, cids);
    store.delete(&one, &cids[0]).await.expect("deleted");
    assert_eq!(store.list(&one, None, 10).await, Ok(cids.split_off(1)));
}
