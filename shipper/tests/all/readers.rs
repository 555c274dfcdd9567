//! A restore that is under way keeps what it reads from being deleted by a writer that is at work, and only so long.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::clock::{Clock, ScriptedClock, SystemClock};
use engine::log::Lsn;
use sha2::{Digest, Sha256};
use shipper::manifest::SegmentEntry;
use shipper::readers::{Announce, READERS_OBJECT};
use shipper::restore::{RestoreError, RestoreOptions, Restored, restore, restore_history};
use shipper::store::faulty::{Answer, Fault, Rule, Verb};
use shipper::store::{ObjectName, ReplicaStore, Swap};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::common::*;
use crate::compaction::{Server, manifest, options, until};

fn announcing(clock: Arc<dyn Clock>) -> RestoreOptions {
    RestoreOptions {
        storage: storage(),
        request_timeout: SOON,
        with_checkpoint: true,
        lazy: false,
        on_progress: None,
        announce: Some(Announce {
            clock,
            after: Duration::ZERO,
        }),
    }
}

/// A server with some segments, and a restore that waits at its second piece of one.
struct Scene {
    store: Arc<Faulty>,
    server: Server,
    through: Lsn,
    old: Vec<SegmentEntry>,
    gate: Arc<Semaphore>,
    may_write: bool,
    to: TempDir,
    _dir: TempDir,
}

impl Scene {
    async fn new(seed: u64) -> Scene {
        let store = faulty(seed);
        let dir = TempDir::new().unwrap();
        let server = Server::start_with(as_store(&store), dir.path(), quick()).await;
        for n in 0..40 {
            server.upload(n).await;
        }
        let through = server.seal_and_cover(&store).await;
        server.upload(50).await;
        let old = manifest(&store).await.segments;
        assert!(old.len() > 3);
        let gate = Arc::new(Semaphore::new(0));
        Scene {
            store,
            server,
            through,
            old,
            gate,
            may_write: true,
            to: TempDir::new().unwrap(),
            _dir: dir,
        }
    }

    /// Lets the restore begin, and come as far as the segments.
    async fn restoring(
        &self,
        clock: Arc<dyn Clock>,
        history: bool,
    ) -> JoinHandle<Result<Restored, RestoreError>> {
        let hold = Rule::once(Fault::Hold(self.gate.clone()));
        self.store.add(hold.on(Verb::GetRange).under("seg/").after(1));
        let (store, to) = (as_store(&self.store), self.to.path().join("restored"));
        let before = self.ranges();
        let work = tokio::spawn(async move {
            let options = announcing(clock);
            match history {
                true => restore_history(&store, &to, None, &options).await,
                false => restore(&store, &to, &options).await,
            }
        });
        eventually("the restore reads segments", || self.ranges() >= before + 2).await;
        eventually("and has said so, or tried", || {
            let calls = self.store.calls();
            // It looks for a newer manifest when it has entered itself.
            let entered = calls.iter().position(|(verb, _)| *verb == Verb::Swap);
            entered
                .is_some_and(|at| !self.may_write || calls[at..].iter().any(|(verb, _)| *verb == Verb::List))
        })
        .await;
        work
    }

    fn ranges(&self) -> usize {
        let calls = self.store.calls();
        let ranges = calls
            .iter()
            .filter(|(verb, name)| *verb == Verb::GetRange && name.starts_with("seg/"));
        ranges.count()
    }

    /// The writer compacts, covers what was in chunks, and lets go of all that its manifests do not name any more.
    async fn go_on(&self) -> Lsn {
        self.server.engine.compact(self.through, options()).await.unwrap();
        until(&self.store, "the compaction is followed", |manifest| {
            manifest
                .segments
                .first()
                .is_some_and(|first| first.compaction > 0)
        })
        .await;
        for n in 60..80 {
            self.server.upload(n).await;
        }
        self.server.seal_and_cover(&self.store).await;
        self.server.upload(90).await
    }

    fn old_ones_there(&self) -> usize {
        let there = names(&self.store, "seg/");
        self.old.iter().filter(|old| there.contains(&old.object)).count()
    }

    fn restored_dir(&self) -> std::path::PathBuf {
        self.to.path().join("restored")
    }
}

/// Whether the directory has exactly these segments, byte for byte, at its beginning.
fn has_segments(dir: &Path, segments: &[SegmentEntry]) -> bool {
    segments.iter().all(|segment| {
        let file = dir.join("log").join(format!("{:016x}.seg", segment.base));
        std::fs::read(file).is_ok_and(|bytes| <[u8; 32]>::from(Sha256::digest(bytes)) == segment.sha256)
    })
}

async fn joined(work: JoinHandle<Result<Restored, RestoreError>>) -> Result<Restored, RestoreError> {
    tokio::time::timeout(SOON, work).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_reads_stays_until_it_has_ended_and_goes_then() {
    for history in [false, true] {
        let scene = Scene::new(41).await;
        let work = scene.restoring(Arc::new(SystemClock), history).await;
        let last = scene.go_on().await;
        assert_eq!(
            scene.old_ones_there(),
            scene.old.len(),
            "the writer deletes under it"
        );
        assert!(
            scene.server.handle.erased().through < scene.through,
            "what waits is not gone"
        );
        let chunks = names(&scene.store, "wal/").len();
        assert!(
            chunks > 20,
            "{chunks} chunks: those behind the restore's manifest go, too"
        );

        scene.gate.close();
        let restored = joined(work).await.unwrap();
        assert_eq!(restored.warnings, Vec::<String>::new());
        assert_eq!(
            restored.last_lsn, last,
            "the chunks of after its manifest were there"
        );
        assert!(
            has_segments(&scene.restored_dir(), &scene.old),
            "it did not start over"
        );

        eventually("then they go", || scene.old_ones_there() == 0).await;
        eventually("and the chunks", || names(&scene.store, "wal/").len() < chunks).await;
        eventually("which is known", || {
            scene.server.handle.erased().through >= scene.through
        })
        .await;
        // Nothing waits any more: nothing is asked.
        let calls = scene.store.calls().len();
        tokio::time::sleep(quick().housekeeping_interval * 60).await;
        assert_eq!(scene.store.calls()[calls..], []);
        scene.server.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_nobody_heard_of_starts_over_from_what_is_there() {
    for history in [false, true] {
        for may_write in [false, true] {
            let mut scene = Scene::new(42).await;
            scene.may_write = may_write;
            // One may not say that it reads; the other's clock makes no sense to the writer.
            if !may_write {
                scene
                    .store
                    .add(Rule::always(Fault::Before(Answer::Denied)).on(Verb::Swap));
            }
            let clock = ScriptedClock::at(1_000_000);
            let work = scene.restoring(Arc::new(clock), history).await;
            let last = scene.go_on().await;
            eventually("what it reads is deleted", || scene.old_ones_there() == 0).await;
            scene.gate.close();
            let restored = joined(work).await.unwrap();
            assert_eq!(restored.last_lsn, last);
            assert_eq!(restored.warnings.len(), usize::from(!may_write));
            let now = manifest(&scene.store).await.segments;
            assert!(has_segments(&scene.restored_dir(), &now));
            assert!(!has_segments(&scene.restored_dir(), &scene.old));
            scene.server.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_is_dead_or_came_later_holds_nothing_and_who_cannot_be_asked_everything() {
    let scene = Scene::new(43).await;
    let name = ObjectName::new(READERS_OBJECT).unwrap();
    let now = SystemClock.now_micros();
    let an_hour_ago = now - 3_600_000_000;
    let readers = format!(
        "{{\"readers\":[{}]}}",
        [
            format!(
                r#"{{"id":"dead","generation":0,"begunAtMicros":{an_hour_ago},"renewedAtMicros":{an_hour_ago}}}"#
            ),
            format!(
                r#"{{"id":"later","generation":1000000,"begunAtMicros":{now},"renewedAtMicros":{now}}}"#
            ),
        ]
        .join(",")
    );
    let swapped = scene.store.swap(&name, Bytes::from(readers), None).await;
    assert!(matches!(swapped, Ok(Swap::Swapped(_))));
    scene
        .store
        .add(Rule::always(Fault::Before(Answer::Denied)).on(Verb::ReadTagged));
    scene.go_on().await;
    assert_eq!(scene.old_ones_there(), scene.old.len());

    scene.store.heal();
    eventually("then they go", || scene.old_ones_there() == 0).await;
    scene.server.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_when_the_writer_ended_is_found_by_the_next() {
    let mut scene = Scene::new(44).await;
    let work = scene.restoring(Arc::new(SystemClock), false).await;
    scene.go_on().await;
    scene.server.stop_shipping().await;
    let dir = TempDir::new().unwrap();
    let next = Server::start_with(as_store(&scene.store), dir.path(), quick()).await;
    // Its first manifest, and the sweep after it.
    next.upload(100).await;
    next.seal_and_cover(&scene.store).await;
    eventually("the sweep looks who reads", || {
        let calls = scene.store.calls();
        let swept = calls
            .iter()
            .rposition(|(verb, name)| *verb == Verb::List && name == "seg/");
        swept.is_some_and(|at| calls[at..].iter().any(|(_, name)| name == READERS_OBJECT))
    })
    .await;
    assert_eq!(scene.old_ones_there(), scene.old.len());
    scene.gate.close();
    joined(work).await.unwrap();
    assert!(has_segments(&scene.restored_dir(), &scene.old));
    eventually("then they go", || scene.old_ones_there() == 0).await;
    next.kill().await;
    scene.server.kill().await;
}
