//! A damaged replica: an error that names the object, never a silent skip (I3, I7).

use bytes::Bytes;
use engine::log::Lsn;
use shipper::names::Ordinal;
use shipper::store::{ObjectName, ReplicaStore};
use std::error::Error;
use std::sync::Arc;
use tempfile::TempDir;

use crate::common::*;

/// A replica with a segment, a manifest, a checkpoint and some chunks.
async fn replica() -> (Arc<Faulty>, Lsn) {
    let (store, dir) = (faulty(1), TempDir::new().unwrap());
    let machine = Machine::start(as_store(&store), dir.path()).await.unwrap();
    let first = machine.append(group(1, 3, 1_000)).await;
    machine.acknowledged(first).await;
    machine.log.seal_now().await.unwrap();
    eventually("a manifest", || !names(&store, "manifest/").is_empty()).await;
    eventually("covered chunks are gone", || names(&store, "wal/").len() == 1).await;
    let views = TempDir::new().unwrap();
    std::fs::write(views.path().join("index.redb"), vec![7; 10_000]).unwrap();
    machine
        .handle
        .publish_checkpoint(views.path().to_owned(), first)
        .await
        .unwrap();
    let mut last = Lsn::ZERO;
    for n in 2..6 {
        last = machine.append(group(n, 2, 500)).await;
        machine.acknowledged(last).await;
    }
    machine.kill().await;
    (store, last)
}

fn chain_of_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damaged_object_is_named() {
    let (store, last) = replica().await;
    for name in store.inner().names() {
        let is_old = |prefix: &str| {
            names(&store, prefix)
                .last()
                .is_some_and(|newest| newest != name.as_str())
        };
        let covered_mark = name.as_str() == Ordinal::FIRST.object_name();
        if name.as_str().starts_with("ckpt/")
            || covered_mark
            || (name.as_str().starts_with("manifest/") && is_old("manifest/"))
        {
            continue;
        }
        let whole = store.inner().get(&name, 1 << 30).await.unwrap();
        let mut flipped = whole.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        for bytes in [
            Bytes::from(flipped),
            whole.slice(..whole.len() / 2),
            whole.slice(..whole.len() - 1),
            Bytes::new(),
        ] {
            store.inner().tamper(&name, bytes.clone());
            let error = match restore_to(&as_store(&store), TempDir::new().unwrap().path()).await {
                Err(error) => error,
                // A newline at the end of log.json, and the like.
                Ok(restored) if name.as_str() == "log.json" && restored.last_lsn == last => continue,
                Ok(restored) => panic!("{name} of {} bytes was accepted: {restored:?}", bytes.len()),
            };
            assert!(
                chain_of_text(&error).contains(name.as_str()),
                "{name}: {}",
                chain_of_text(&error)
            );
        }
        store.inner().tamper(&name, whole);
    }
    assert_eq!(
        restore_to(&as_store(&store), TempDir::new().unwrap().path())
            .await
            .unwrap()
            .last_lsn,
        last
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_checkpoint_is_done_without_and_said() {
    let (store, last) = replica().await;
    let name = ObjectName::new(names(&store, "ckpt/").remove(0)).unwrap();
    store.inner().tamper(&name, Bytes::from(vec![8; 10_000]));
    let restored = restore_to(&as_store(&store), TempDir::new().unwrap().path())
        .await
        .unwrap();
    assert_eq!(restored.last_lsn, last);
    assert!(restored.checkpoint.is_none());
    assert!(
        restored.warnings[0].contains(name.as_str()),
        "{:?}",
        restored.warnings
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_log_object_is_not_taken_for_an_empty_one() {
    let (store, _) = replica().await;
    store
        .inner()
        .delete(&ObjectName::new("log.json").unwrap())
        .await
        .unwrap();
    let dir = TempDir::new().unwrap();
    let error = shipper::start::begin(&as_store(&store), &start_options(dir.path()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("log.json"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_is_an_error_and_not_an_empty_log() {
    let (store, _) = replica().await;
    let name = ObjectName::new(names(&store, "seg/").remove(0)).unwrap();
    store.inner().delete(&name).await.unwrap();
    let error = restore_to(&as_store(&store), TempDir::new().unwrap().path())
        .await
        .unwrap_err();
    assert!(chain_of_text(&error).contains(name.as_str()), "{error}");
}
