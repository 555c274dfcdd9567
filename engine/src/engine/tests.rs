//! The engine as a whole: what is acknowledged is durable and applied (I1), views are disposable (I4), a fenced or
//! failed writer acknowledges nothing (I5), and entries above the replica's end wait for it.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::clock::{SeededEntropy, SystemClock};
use crate::repo::mst::{NodePlace, NodeSource, NodeSourceError};
use crate::repo::{Cid, Did};
use crate::storage::OsStorage;
use crate::views::testkit::{TestRepo, Writes, record};

const DEADLINE: Duration = Duration::from_secs(30);

struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, _: &Cid, _: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
        Err(NodeSourceError::Missing)
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, future).await })
        .expect("in time")
}

fn config(dir: &Path, durability: Durability) -> EngineConfig {
    EngineConfig {
        index_cache_bytes: 8 << 20,
        ..EngineConfig::new(dir, durability)
    }
}

/// Starts with the next epoch; tells how many entries were replayed.
fn start_with(config: EngineConfig, remote: Option<Lsn>) -> Result<(Engine, u64), EngineError> {
    let prelude = EnginePrelude::recover(config, Arc::new(OsStorage))?;
    let replayed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&replayed);
    let options = StartOptions {
        remote,
        on_replay: Box::new(move |progress| count.store(progress.entries, Ordering::SeqCst)),
        ..StartOptions::local(prelude.last_epoch().next())
    };
    let engine = prelude.start(Arc::new(SystemClock), &SeededEntropy::new(1), options)?;
    Ok((engine, replayed.load(Ordering::SeqCst)))
}

fn start(dir: &Path) -> Engine {
    let (engine, _) = start_with(config(dir, Durability::Local), None).unwrap();
    wait(engine.ready()).unwrap();
    engine
}

fn stop(engine: Engine) {
    let how = Shutdown {
        drain: DEADLINE,
        checkpoint: false,
    };
    wait(engine.shutdown(how)).unwrap();
}

fn writes(path: &str) -> Writes {
    Writes::from([(path.to_owned(), Some((record(path, &[]), BTreeSet::new())))])
}

fn post(engine: &Engine, repo: &mut TestRepo, rkey: u32) -> Receipt {
    let draft = repo.commit(&writes(&format!("app.test.post/{rkey}")), &NoNodes);
    engine.append(vec![draft]).unwrap()
}

fn post_and_wait(engine: &Engine, repo: &mut TestRepo, rkeys: std::ops::Range<u32>) {
    for rkey in rkeys {
        let lsns = wait(post(engine, repo, rkey).durable()).unwrap();
        assert!(engine.applied().get() >= lsns.last && engine.local().get() >= lsns.last);
    }
    repo.check(&engine.reader().unwrap());
}

fn remove_views(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
}

/// Everything the views answer: every repo with all of its records' bytes, and the rows of the account database.
fn answers(engine: &Engine) -> (Vec<String>, Vec<String>) {
    let reader = engine.reader().unwrap();
    let mut index = Vec::new();
    for head in reader.repos(None, 1_000).unwrap() {
        index.push(format!("{head:?}"));
        for row in reader.records_from(&head.did, None).unwrap() {
            let (path, row) = row.unwrap();
            let bytes = engine.read_at(row.location).unwrap();
            assert!(row.cid.matches(&bytes), "the location is the record's");
            index.push(format!("{path} {row:?} {bytes:?}"));
        }
        let commit = engine.read_at(head.commit_location).unwrap();
        assert!(head.commit.matches(&commit));
    }
    let accounts = engine.accounts().read_blocking(|conn| {
        let mut tables = conn
            .prepare("SELECT name || ': ' || sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")?;
        let rows = tables.query_map([], |row| row.get(0))?;
        Ok::<_, crate::views::accounts::AccountsError>(rows.collect::<Result<Vec<String>, _>>()?)
    });
    (index, accounts.unwrap())
}

#[test]
fn a_write_is_there_when_it_is_answered_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("restart");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..20);
    let before = (answers(&engine), engine.appended().get());
    stop(engine);
    let engine = start(dir.path());
    assert_eq!((answers(&engine), engine.applied().get()), before);
    post_and_wait(&engine, &mut repo, 20..25);
    let did: Did = repo.did.clone();
    assert_eq!(
        engine
            .reader()
            .unwrap()
            .repo(&did)
            .unwrap()
            .unwrap()
            .counts
            .records,
        25
    );
}

#[test]
fn deleted_or_damaged_views_are_rebuilt_to_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    let mut repos = [TestRepo::new("one"), TestRepo::new("two")];
    for repo in &mut repos {
        post_and_wait(&engine, repo, 0..30);
    }
    let before = answers(&engine);
    stop(engine);

    remove_views(dir.path());
    let (engine, replayed) = start_with(config(dir.path(), Durability::Local), None).unwrap();
    assert!(replayed >= 60);
    assert_eq!(answers(&engine), before);
    stop(engine);

    std::fs::write(dir.path().join("index.redb"), vec![0xa5; 100_000]).unwrap();
    let engine = start(dir.path());
    assert_eq!(answers(&engine), before);
    stop(engine);

    std::fs::write(dir.path().join("account.sqlite"), vec![0xa5; 100_000]).unwrap();
    let engine = start(dir.path());
    assert_eq!(answers(&engine), before);
    post_and_wait(&engine, &mut repos[0], 30..31);
}

#[test]
fn a_crash_of_the_process_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("crash");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..10);
    let before = answers(&engine);
    drop(engine);
    let engine = start(dir.path());
    assert_eq!(answers(&engine), before);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn a_view_ahead_of_the_log_is_thrown_away() {
    let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut repo = TestRepo::new("ahead");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..5);
    let before = answers(&engine);
    stop(engine);
    copy_dir(&dir.path().join("log"), aside.path());

    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 5..9);
    stop(engine);
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    copy_dir(aside.path(), &dir.path().join("log"));

    let engine = start(dir.path());
    assert_eq!(answers(&engine), before);
}

#[test]
fn a_start_from_a_checkpoint_replays_only_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("checkpoint");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..40);
    let taken = wait(engine.checkpoint()).unwrap();
    assert_eq!(taken.lsn(), engine.applied().get());
    post_and_wait(&engine, &mut repo, 40..43);
    let before = answers(&engine);
    stop(engine);

    remove_views(dir.path());
    let (engine, replayed) = start_with(config(dir.path(), Durability::Local), None).unwrap();
    assert_eq!(replayed, 3);
    assert_eq!(answers(&engine), before);
    repo.check(&engine.reader().unwrap());
}

#[test]
fn a_checkpoint_that_was_fetched_becomes_the_views_if_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("fetched");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..40);
    let taken = wait(engine.checkpoint()).unwrap();
    post_and_wait(&engine, &mut repo, 40..43);
    let before = answers(&engine);
    stop(engine);

    let start_fetched = |fetched| {
        let config = config(dir.path(), Durability::Local);
        let prelude = EnginePrelude::recover(config, Arc::new(OsStorage)).unwrap();
        let replayed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&replayed);
        let options = StartOptions {
            fetched,
            on_replay: Box::new(move |progress| count.store(progress.entries, Ordering::SeqCst)),
            ..StartOptions::local(prelude.last_epoch().next())
        };
        let engine = prelude.start(Arc::new(SystemClock), &SeededEntropy::new(1), options);
        let engine = engine.unwrap();
        assert_eq!(answers(&engine), before);
        repo.check(&engine.reader().unwrap());
        stop(engine);
        replayed.load(Ordering::SeqCst)
    };
    // There are views: the checkpoint stays.
    assert_eq!(start_fetched(Some(taken.lsn())), 0);
    assert!(taken.verify().is_ok());
    remove_views(dir.path());
    assert_eq!(start_fetched(Some(taken.lsn())), 3);
    assert!(!taken.dir.exists());
    // It is not there: the log has everything.
    remove_views(dir.path());
    assert!(start_fetched(Some(taken.lsn())) >= 43);
}

#[test]
fn a_damaged_checkpoint_costs_a_longer_replay_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("damaged");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..10);
    let taken = wait(engine.checkpoint()).unwrap();
    let before = answers(&engine);
    stop(engine);
    let path = taken.dir.join("index.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    remove_views(dir.path());
    let (engine, replayed) = start_with(config(dir.path(), Durability::Local), None).unwrap();
    assert!(replayed >= 10);
    assert_eq!(answers(&engine), before);
}

#[test]
fn under_durability_remote_nothing_is_applied_or_shown_before_the_replica_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("remote");
    let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(Lsn::ZERO)).unwrap();
    let receipt = post(&engine, &mut repo, 0);
    wait(engine.local().wait(engine.appended().get())).unwrap();
    assert_eq!(
        (engine.applied().get(), engine.visible().get()),
        (Lsn::ZERO, Lsn::ZERO)
    );
    assert!(engine.health().backlog_bytes > 0);

    let advance = |engine: &Engine| engine.remote().unwrap().advance(engine.appended().get());
    wait(async {
        let lsns = tokio::join!(receipt.durable(), async {
            engine
                .appended()
                .changed_since(Lsn::saturating(engine.inner.ready_at.load(Ordering::Acquire)))
                .await
                .unwrap();
            advance(&engine);
        });
        let last = lsns.0.unwrap().last;
        engine.visible().wait(last).await.unwrap();
    });
    wait(engine.ready()).unwrap();
    repo.check(&engine.reader().unwrap());
    assert_eq!(engine.health().backlog_bytes, 0);

    // Written, never shipped; then a crash.
    let shipped = engine.applied().get();
    let unshipped = post(&engine, &mut repo, 1);
    wait(engine.appended().changed_since(shipped)).unwrap();
    wait(engine.local().wait(engine.appended().get())).unwrap();
    drop((unshipped, engine));
    let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(shipped)).unwrap();
    assert_eq!(
        (engine.applied().get(), engine.visible().get()),
        (shipped, shipped)
    );
    assert!(engine.appended().get() > shipped && engine.health().backlog_bytes > 0);
    // A commit that is built now would continue from a head that is not the newest: nobody may be served yet.
    let too_early = wait(async { tokio::time::timeout(Duration::from_millis(50), engine.ready()).await });
    assert!(too_early.is_err());
    advance(&engine);
    wait(engine.ready()).unwrap();
    wait(engine.visible().wait(engine.appended().get())).unwrap();
    repo.check(&engine.reader().unwrap());
}

#[test]
fn schema_steps_that_the_replica_has_not_got_yet_are_not_appended_twice() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(Lsn::ZERO)).unwrap();
        wait(engine.local().wait(engine.appended().get())).unwrap();
        assert_eq!(
            engine
                .segments()
                .iter()
                .map(|segment| segment.frames)
                .sum::<u64>(),
            1
        );
        drop(engine);
    }
    let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(Lsn::ZERO)).unwrap();
    engine.remote().unwrap().advance(engine.appended().get());
    wait(engine.ready()).unwrap();
}

#[test]
fn with_a_replica_the_firehose_waits_for_it_whatever_the_durability() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("visible");
    let (engine, _) = start_with(config(dir.path(), Durability::Local), Some(Lsn::ZERO)).unwrap();
    let lsns = wait(post(&engine, &mut repo, 0).durable()).unwrap();
    assert_eq!(engine.visible().get(), Lsn::ZERO);
    engine.remote().unwrap().advance(lsns.last);
    assert_eq!(wait(engine.visible().wait(lsns.last)).unwrap(), lsns.last);
}

#[test]
fn a_failed_log_fails_its_receipts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("poison");
    let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(Lsn::ZERO)).unwrap();
    let receipt = post(&engine, &mut repo, 0);
    wait(engine.local().wait(engine.appended().get())).unwrap();
    engine.log().poison("the disk is gone");
    let failed = wait(receipt.durable()).unwrap_err();
    assert_eq!(
        failed,
        WriteError::OutcomeUnknown {
            reason: "the disk is gone".into()
        }
    );
    let refused = engine.append(vec![EntryDraft::marker()]).unwrap_err();
    assert!(matches!(refused, AppendError::Poisoned { .. }), "{refused}");
    assert_eq!(engine.health().failed.as_deref(), Some("the disk is gone"));
}

#[test]
fn a_fenced_writer_says_by_whom() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("fenced");
    let (engine, _) = start_with(config(dir.path(), Durability::Remote), Some(Lsn::ZERO)).unwrap();
    let receipt = post(&engine, &mut repo, 0);
    engine.fence(Epoch(9));
    assert_eq!(wait(receipt.durable()), Err(WriteError::Fenced { by: Epoch(9) }));
    let refused = engine.append(vec![EntryDraft::marker()]).unwrap_err();
    assert_eq!(refused, AppendError::Fenced { by: Epoch(9) });
}

#[test]
fn an_entry_that_a_view_cannot_take_stops_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("wrong");
    let engine = start(dir.path());
    post_and_wait(&engine, &mut repo, 0..1);
    let _skipped = repo.commit(&writes("app.test.post/1"), &NoNodes);
    let failed = wait(post(&engine, &mut repo, 2).durable()).unwrap_err();
    assert!(failed.to_string().contains("does not fit view index"), "{failed}");
    assert!(matches!(
        engine.append(vec![EntryDraft::marker()]),
        Err(AppendError::Poisoned { .. })
    ));
    drop(engine);
    let again = start_with(config(dir.path(), Durability::Local), None);
    assert!(matches!(again, Err(EngineError::Replay(_))), "{again:?}");
}

#[test]
fn writes_beyond_the_backlog_are_refused_until_the_replica_has_caught_up() {
    for durability in [Durability::Remote, Durability::Local] {
        let dir = tempfile::tempdir().unwrap();
        let config = EngineConfig {
            backlog_bytes_max: 2_000,
            ..config(dir.path(), durability)
        };
        let (engine, _) = start_with(config, Some(Lsn::ZERO)).unwrap();
        engine.remote().unwrap().advance(engine.appended().get());
        wait(engine.ready()).unwrap();
        let mut accepted = 0;
        let mut last = None;
        loop {
            let change = crate::entry::Change::RepoRemoved {
                did: "did:plc:nobody".parse().unwrap(),
            };
            match engine.append(vec![EntryDraft::private(vec![change])]) {
                // Under durability local it is applied at once, and counts all the same.
                Ok(receipt) if durability == Durability::Local => {
                    last = Some(wait(receipt.durable()).unwrap());
                }
                Ok(receipt) => last = Some(wait(receipt.pending).unwrap()),
                Err(AppendError::Busy) => break,
                Err(other) => panic!("{other}"),
            }
            accepted += 1;
            assert!(accepted < 1_000, "{durability:?} has no bound");
        }
        let last = last.unwrap().last;
        assert!(engine.health().backlog_bytes > 2_000);
        engine.remote().unwrap().advance(last);
        wait(engine.visible().wait(last)).unwrap();
        assert_eq!(engine.health().backlog_bytes, 0, "{durability:?}");
        drop(engine.append(vec![EntryDraft::marker()]).unwrap());
    }
}

#[test]
fn a_directory_has_one_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = start(dir.path());
    let second = EnginePrelude::recover(config(dir.path(), Durability::Local), Arc::new(OsStorage));
    assert!(
        matches!(
            second,
            Err(EngineError::Log(crate::log::OpenError::Locked { .. }))
        ),
        "{second:?}"
    );
    drop(engine);
    drop(start(dir.path()));
}
