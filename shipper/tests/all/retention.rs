//! What a compaction displaces stays in the replica for points in time, and as long as somebody reads it.

use std::sync::Arc;
use std::time::Duration;

use engine::log::Lsn;
use parking_lot::Mutex;
use shipper::pit;
use shipper::retention::Protect;
use shipper::ship::ShipConfig;
use tempfile::TempDir;

use crate::common::*;
use crate::compaction::{Server, manifest, options, until};

const HOUR: Duration = Duration::from_secs(3_600);

async fn publish_checkpoint(server: &Server) -> Lsn {
    let checkpoint = server.engine.checkpoint().await.unwrap();
    server
        .handle
        .publish_checkpoint(checkpoint.dir.clone(), checkpoint.lsn())
        .await
        .unwrap();
    checkpoint.lsn()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_the_window_everything_of_before_a_compaction_is_there_and_verified() {
    let store = faulty(21);
    let dir = TempDir::new().unwrap();
    let config = ShipConfig {
        pitr_window: HOUR,
        ..quick()
    };
    let server = Server::start_with(as_store(&store), dir.path(), config).await;
    for n in 0..40 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    let first = publish_checkpoint(&server).await;
    until(&store, "it is verified", |manifest| {
        manifest.checkpoints[0].verified_at_micros > 0
    })
    .await;
    let before = manifest(&store).await;
    server.engine.compact(through, options()).await.unwrap();
    server.upload(50).await;
    let second = publish_checkpoint(&server).await;
    let after = until(&store, "the one after the compaction is verified", |manifest| {
        manifest
            .checkpoints
            .first()
            .is_some_and(|newest| newest.verified_at_micros > 0)
    })
    .await;

    assert_eq!(after.checkpoints[0].lsn, second.get());
    assert_eq!(after.displaced.checkpoints[0].entry.lsn, first.get());
    let kept: Vec<_> = after
        .displaced
        .segments
        .iter()
        .map(|kept| kept.entry.clone())
        .collect();
    assert_eq!(kept, before.segments);
    assert!(
        after
            .displaced
            .segments
            .iter()
            .all(|kept| kept.through == through.get())
    );
    let there = [names(&store, "seg/"), names(&store, "ckpt/")].concat();
    let mut named: Vec<&str> = after.objects().collect();
    named.sort_unstable();
    let mut there: Vec<&str> = there.iter().map(String::as_str).collect();
    there.sort_unstable();
    assert_eq!(there, named, "everything that is named, and nothing else");
    // A moment in the middle of the old segments can be had of them, and the end of the compaction of the new ones.
    let cut = Lsn::saturating(before.segments[2].base + 1);
    let history = pit::history(&after, cut).unwrap();
    assert_eq!(history.segments, before.segments[..3]);
    assert_eq!(pit::history(&after, through).unwrap().compacted, through);
    assert_eq!(pit::oldest(&after), Some(Lsn::ZERO));

    // Nothing is due: housekeeping passes by and asks for nothing.
    let calls = store.calls().len();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(store.calls()[calls..], []);
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_window_only_what_somebody_reads_stays_and_goes_with_him() {
    let store = faulty(22);
    let dir = TempDir::new().unwrap();
    let reader = Arc::new(Mutex::new(Some(Lsn::ZERO)));
    let asked = reader.clone();
    let config = ShipConfig {
        protect: Protect::new(move || *asked.lock()),
        ..quick()
    };
    let server = Server::start_with(as_store(&store), dir.path(), config).await;
    for n in 0..40 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    let old = manifest(&store).await.segments;
    server.engine.compact(through, options()).await.unwrap();
    let held = until(&store, "the compaction is followed", |manifest| {
        !manifest.displaced.segments.is_empty()
    })
    .await;
    assert_eq!(held.displaced.segments.len(), old.len());
    assert!(server.handle.erased().through < through);
    let there = names(&store, "seg/");
    assert!(old.iter().all(|segment| there.contains(&segment.object)));

    *reader.lock() = None;
    until(&store, "they are named no more", |manifest| {
        manifest.displaced.segments.is_empty()
    })
    .await;
    eventually("they are deleted", || {
        let there = names(&store, "seg/");
        !old.iter().any(|segment| there.contains(&segment.object))
    })
    .await;
    server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_checkpoint_is_not_verified_and_nothing_is_deleted_on_its_word() {
    let store = faulty(23);
    let dir = TempDir::new().unwrap();
    let config = ShipConfig {
        // As good as over at once: only the proof is missing.
        pitr_window: Duration::from_micros(8),
        ..quick()
    };
    let server = Server::start_with(as_store(&store), dir.path(), config).await;
    for n in 0..40 {
        server.upload(n).await;
    }
    let through = server.seal_and_cover(&store).await;
    server.engine.compact(through, options()).await.unwrap();
    until(&store, "the compaction is followed", |manifest| {
        !manifest.displaced.segments.is_empty()
    })
    .await;
    let checkpoint = server.engine.checkpoint().await.unwrap();
    let index = checkpoint.dir.join("index.redb");
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    server
        .handle
        .publish_checkpoint(checkpoint.dir.clone(), checkpoint.lsn())
        .await
        .unwrap();
    eventually("it is found to be damaged", || {
        server
            .handle
            .last_error()
            .is_some_and(|error| error.contains("is damaged"))
    })
    .await;
    assert!(!manifest(&store).await.displaced.segments.is_empty());

    server.upload(60).await;
    publish_checkpoint(&server).await;
    until(&store, "a whole one lets them go", |manifest| {
        manifest.displaced.segments.is_empty()
    })
    .await;
    server.kill().await;
}
