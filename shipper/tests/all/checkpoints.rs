//! Checkpoints travel packed: what comes back is what was sent, or nothing, and nothing is left lying about.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use engine::clock::{Entropy, SeededEntropy, SystemClock};
use engine::log::{Epoch, Lsn};
use engine::views::checkpoint::{CheckpointFile, CheckpointManifest, MANIFEST_NAME};
use sha2::{Digest, Sha256};
use shipper::manifest::{FileEntry, Manifest};
use shipper::ship::ShipConfig;
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use shipper::store::{DOWNLOAD_PIECE_BYTES, ObjectName, ReplicaStore};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::common::*;

/// A half that shrinks to almost nothing, and one that does not shrink.
fn views(bytes: usize) -> Vec<u8> {
    let mut views = vec![0; bytes];
    SeededEntropy::new(3).fill(&mut views[bytes / 2..]).unwrap();
    for (n, byte) in views[..bytes / 2].iter_mut().enumerate() {
        *byte = (n / 1_000) as u8;
    }
    views
}

async fn machine(store: &Arc<Faulty>, dir: &Path, temp: &Path) -> Machine {
    let config = ShipConfig {
        temp_dir: temp.to_owned(),
        ..quick()
    };
    let clock = Arc::new(SystemClock);
    Machine::start_with(as_store(store), dir, config, 64 << 20, clock)
        .await
        .unwrap()
}

async fn entry(machine: &Machine) -> Lsn {
    let lsn = machine.append(group(1, 1, 100)).await;
    machine.acknowledged(lsn).await;
    lsn
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

/// The newest manifest and its name.
async fn newest(store: &Arc<Faulty>) -> (ObjectName, Manifest) {
    let name = ObjectName::new(names(store, "manifest/").pop().unwrap()).unwrap();
    let bytes = store.inner().get(&name, 1 << 20).await.unwrap();
    (name, Manifest::decode(&bytes).unwrap())
}

/// A replica with a checkpoint of one packed file, and that file.
async fn replica(store: &Arc<Faulty>) -> (Lsn, Vec<u8>, FileEntry) {
    let (dir, temp, checkpoint) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
    );
    let machine = machine(store, dir.path(), temp.path()).await;
    let lsn = entry(&machine).await;
    let file = views(12 << 20);
    std::fs::write(checkpoint.path().join("index.redb"), &file).unwrap();
    let published = machine
        .handle
        .publish_checkpoint(checkpoint.path().to_owned(), lsn);
    published.await.unwrap();
    assert!(is_empty(temp.path()));
    machine.kill().await;
    let (_, manifest) = newest(store).await;
    (lsn, file, manifest.checkpoints[0].files[0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_is_stored_packed_and_comes_back() {
    let store = faulty(31);
    let (lsn, file, entry) = replica(&store).await;
    assert!(
        entry.packed && entry.object.ends_with("index.redb.zst"),
        "{entry:?}"
    );
    assert_eq!(entry.raw_bytes, file.len() as u64);
    assert!(entry.stored_bytes < entry.raw_bytes * 6 / 10, "{entry:?}");
    let name = ObjectName::new(entry.object.clone()).unwrap();
    assert_eq!(store.inner().size(&name).await, Ok(Some(entry.stored_bytes)));

    let calls = store.calls().len();
    let other = TempDir::new().unwrap();
    let restored = restore_to(&as_store(&store), other.path()).await.unwrap();
    let (path, of) = restored.checkpoint.unwrap();
    assert_eq!((of, restored.sound), (lsn, None), "it says nothing of itself");
    assert!(std::fs::read(path.join("index.redb")).unwrap() == file);
    // A read for each piece, and nothing else: the manifest says how long it is.
    let asked = store.calls().split_off(calls);
    let of_it: Vec<_> = asked
        .iter()
        .filter(|(_, object)| *object == entry.object)
        .collect();
    let pieces = entry.stored_bytes.div_ceil(DOWNLOAD_PIECE_BYTES);
    assert!(pieces > 1);
    assert_eq!(of_it.len() as u64, pieces, "{of_it:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_object_that_is_damaged_is_done_without() {
    let store = faulty(32);
    let (lsn, _, entry) = replica(&store).await;
    let name = ObjectName::new(entry.object.clone()).unwrap();
    let whole = store.inner().get(&name, 1 << 30).await.unwrap();
    let mut flipped = whole.to_vec();
    flipped[whole.len() / 2] ^= 4;
    for bytes in [
        Bytes::from(flipped),
        whole.slice(..whole.len() - 1),
        whole.slice(..100),
        Bytes::new(),
    ] {
        store.inner().tamper(&name, bytes);
        done_without(&store, lsn, &entry.object).await;
    }
    store.inner().tamper(&name, whole);

    // The object is as it was, but the file is to be shorter, or longer.
    let (at, manifest) = newest(&store).await;
    for raw_bytes in [1 << 20, entry.raw_bytes - 1, entry.raw_bytes + 1] {
        let mut lying = manifest.clone();
        lying.checkpoints[0].files[0].raw_bytes = raw_bytes;
        store.inner().tamper(&at, lying.encode().unwrap().into());
        done_without(&store, lsn, &entry.object).await;
    }
    store.inner().tamper(&at, manifest.encode().unwrap().into());
    store.inner().delete(&name).await.unwrap();
    done_without(&store, lsn, &entry.object).await;
}

async fn done_without(store: &Arc<Faulty>, last: Lsn, object: &str) {
    let dir = TempDir::new().unwrap();
    let restored = restore_to(&as_store(store), dir.path()).await.unwrap();
    assert_eq!(restored.last_lsn, last);
    assert!(restored.checkpoint.is_none());
    assert!(restored.warnings[0].contains(object), "{:?}", restored.warnings);
    assert!(is_empty(&dir.path().join("ckpt")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_checkpoint_says_of_its_files_is_compared_with_them() {
    let store = faulty(33);
    let (dir, temp) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let machine = machine(&store, dir.path(), temp.path()).await;
    let index = views(1 << 20);
    let mut expected = None;
    for damaged in [true, false] {
        let lsn = entry(&machine).await;
        let said = CheckpointManifest {
            lsn,
            epoch: Epoch(1),
            log_id: machine.started.claim.log_id,
            files: vec![CheckpointFile {
                name: "index.redb".into(),
                size: index.len() as u64,
                sha256: Sha256::digest(&index).into(),
            }],
        };
        let checkpoint = TempDir::new().unwrap();
        std::fs::write(checkpoint.path().join(MANIFEST_NAME), said.to_bytes().unwrap()).unwrap();
        let mut bytes = index.clone();
        bytes[77] ^= u8::from(damaged);
        std::fs::write(checkpoint.path().join("index.redb"), bytes).unwrap();
        let published = machine
            .handle
            .publish_checkpoint(checkpoint.path().to_owned(), lsn);
        published.await.unwrap();
        let restored = restore_to(&as_store(&store), TempDir::new().unwrap().path())
            .await
            .unwrap();
        if damaged {
            assert_eq!((restored.sound, restored.checkpoint), (None, None));
            assert!(
                restored.warnings[0].contains("before it was shipped"),
                "{:?}",
                restored.warnings
            );
        } else {
            assert_eq!(restored.sound, Some(lsn));
            assert_eq!(restored.warnings, Vec::<String>::new());
            expected = restored.checkpoint;
        }
    }
    assert!(expected.is_some());
    machine.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shipper_that_dies_or_fails_with_a_packed_file_leaves_none() {
    let store = faulty(34);
    let (dir, temp, checkpoint) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
    );
    let machine = machine(&store, dir.path(), temp.path()).await;
    let lsn = entry(&machine).await;
    std::fs::write(checkpoint.path().join("index.redb"), views(1 << 20)).unwrap();
    let at = || (checkpoint.path().to_owned(), lsn);

    let refused = Rule::once(Fault::Before(Answer::Denied));
    store.add(refused.on(Verb::CreateFromFile).under("ckpt/"));
    let (path, of) = at();
    assert!(machine.handle.publish_checkpoint(path, of).await.is_err());
    assert!(is_empty(temp.path()));

    // An answer that was lost: the second try finds the object of the first.
    let lost = Rule::once(Fault::After(Answer::Unavailable));
    store.add(lost.on(Verb::CreateFromFile).under("ckpt/"));
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate.clone()))
            .on(Verb::Create)
            .under("manifest/"),
    );
    let publishing = tokio::spawn({
        let handle = machine.handle.clone();
        let (path, of) = at();
        async move { handle.publish_checkpoint(path, of).await }
    });
    eventually("it is shipped", || names(&store, "ckpt/").len() == 1).await;
    gate.add_permits(1);
    publishing.await.unwrap().unwrap();
    assert!(is_empty(temp.path()));

    let next = entry(&machine).await;
    let gate = Arc::new(Semaphore::new(0));
    store.add(
        Rule::once(Fault::Hold(gate))
            .on(Verb::CreateFromFile)
            .under("ckpt/"),
    );
    let calls = store.calls().len();
    let path = checkpoint.path().to_owned();
    let publishing = tokio::spawn({
        let handle = machine.handle.clone();
        async move { handle.publish_checkpoint(path, next).await }
    });
    eventually("it is being shipped", || {
        let asked = store.calls().split_off(calls);
        asked.iter().any(|(verb, _)| *verb == Verb::CreateFromFile)
    })
    .await;
    assert!(!is_empty(temp.path()));
    publishing.abort();
    machine.kill().await;
    assert!(is_empty(temp.path()));
}
