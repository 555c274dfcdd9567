//! Compaction of whole engines: it frees what is dead, it changes no answer, and a rebuild from what it wrote is the live
//! state (I4, I8); power may be cut at every operation of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock::{SeededEntropy, SystemClock};
use crate::engine::{Durability, Engine, EngineConfig, EnginePrelude, Removal, Shutdown, StartOptions};
use crate::entry::{Change, EntryDraft};
use crate::log::sim::SimLog;
use crate::log::{Epoch, Log, LogConfig, LogId, SegmentInfo};
use crate::repo::Cid;
use crate::repo::mst::{NodePlace, NodeSource, NodeSourceError};
use crate::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use crate::views::View;
use crate::views::accounts::{AccountsError, AccountsView, LockKey};
use crate::views::driver::{DriverConfig, Fold};
use crate::views::index::IndexView;
use crate::views::testkit::{TestRepo, Writes, record};

mod erase;

const DEADLINE: Duration = Duration::from_secs(60);

fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, future).await })
        .expect("in time")
}

struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, _: &Cid, _: &NodePlace<'_>) -> Result<bytes::Bytes, NodeSourceError> {
        Err(NodeSourceError::Missing)
    }
}

fn config(dir: &Path) -> EngineConfig {
    EngineConfig {
        log: LogConfig {
            segment_bytes: 24 << 10,
            ..LogConfig::default()
        },
        index_cache_bytes: 4 << 20,
        ..EngineConfig::new(dir, Durability::Local)
    }
}

fn options() -> CompactOptions {
    CompactOptions {
        segment_bytes: 24 << 10,
        ..CompactOptions::default()
    }
}

fn start(storage: &Arc<dyn Storage>, dir: &Path) -> Engine {
    let prelude = EnginePrelude::recover(config(dir), Arc::clone(storage)).unwrap();
    let options = StartOptions::local(prelude.last_epoch().next());
    let engine = prelude
        .start(Arc::new(SystemClock), &SeededEntropy::new(1), options)
        .unwrap();
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

/// Repos with everything that can happen to them, by seed.
struct World {
    chance: SeededEntropy,
    repos: BTreeMap<u64, TestRepo>,
    actors: BTreeSet<u64>,
    removed: u64,
    imports: u32,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            chance: SeededEntropy::new(seed),
            repos: BTreeMap::new(),
            actors: BTreeSet::new(),
            removed: 0,
            imports: 0,
        }
    }

    fn any(&self, below: u64) -> u64 {
        self.chance.next_u64() % below
    }

    fn step(&mut self, engine: &Engine) {
        let number = self.any(6) + 10 * self.removed;
        let name = format!("r{number}");
        match self.any(20) {
            0 => {
                if let Some(repo) = self.repos.remove(&number) {
                    self.removed += 1;
                    append(
                        engine,
                        EntryDraft::private(vec![Change::RepoRemoved { did: repo.did }]),
                    );
                }
            }
            1 => {
                let blob = format!("blob {}", self.any(9));
                let repo = self.repos.entry(number).or_insert_with(|| TestRepo::new(&name));
                let change = repo.store(blob.as_bytes());
                append(engine, EntryDraft::private(vec![change]));
            }
            2 => {
                self.imports += 1;
                let generation = self.imports;
                let records: BTreeMap<_, _> = (0..self.any(30))
                    .map(|n| {
                        (
                            format!("app.test.import/{n}"),
                            (record(&format!("{n} {generation}"), &[]), BTreeSet::new()),
                        )
                    })
                    .collect();
                let repo = self.repos.entry(number).or_insert_with(|| TestRepo::new(&name));
                let (pieces, flip) = repo.import(generation, &records, 7, true);
                for piece in pieces {
                    append(engine, piece);
                }
                append(engine, flip);
            }
            3 => {
                // A generation that never becomes live, and may be given up.
                self.imports += 1;
                let generation = self.imports;
                let records = BTreeMap::from([(
                    "app.test.staged/x".to_owned(),
                    (record("staged", &[]), BTreeSet::new()),
                )]);
                if let Some(repo) = self.repos.get(&number).filter(|repo| repo.head.is_some()) {
                    let did = repo.did.clone();
                    let (pieces, _) = TestRepo::new(&name).import(generation, &records, 7, true);
                    for piece in pieces {
                        append(engine, piece);
                    }
                    if self.any(2) == 0 {
                        append(
                            engine,
                            EntryDraft::private(vec![Change::GenerationSwept { did, generation }]),
                        );
                    }
                }
            }
            4 | 5 => {
                let actor = self.any(30);
                let fresh = self.actors.insert(actor);
                if !fresh {
                    self.actors.remove(&actor);
                }
                let prepared = wait(engine.accounts().prepare(
                    [LockKey::did(&format!("did:plc:a{actor}"))],
                    move |tx| {
                        if fresh {
                            tx.execute(
                                "INSERT INTO actor (did, handle, createdAt) VALUES (?1, ?2, 'now')",
                                (format!("did:plc:a{actor}"), format!("secret-{actor}.test")),
                            )?;
                        } else {
                            tx.execute("DELETE FROM actor WHERE did = ?1", [format!("did:plc:a{actor}")])?;
                        }
                        Ok::<_, AccountsError>(())
                    },
                ))
                .unwrap();
                append(
                    engine,
                    EntryDraft::private(vec![Change::AccountsChangeset {
                        bytes: prepared.changeset,
                    }]),
                );
            }
            _ => {
                let mut writes = Writes::new();
                for _ in 0..=self.any(3) {
                    let path = format!("app.test.post/{}", self.any(40));
                    let blob = Cid::for_raw(format!("blob {}", self.any(9)).as_bytes());
                    let blobs: &[Cid] = if self.any(3) == 0 { &[blob] } else { &[] };
                    let text = format!("{} {}", self.chance.next_u64(), "words ".repeat(20));
                    let write = (self.any(4) > 0).then(|| {
                        (
                            record(&text, blobs),
                            blobs.iter().copied().collect::<BTreeSet<_>>(),
                        )
                    });
                    writes.insert(path, write);
                }
                let repo = self.repos.entry(number).or_insert_with(|| TestRepo::new(&name));
                append(engine, repo.commit(&writes, &NoNodes));
            }
        }
    }

    fn run(&mut self, engine: &Engine, steps: usize) {
        for _ in 0..steps {
            self.step(engine);
        }
    }

    /// Every answer about repos, and every block behind it.
    fn check(&self, engine: &Engine) {
        let reader = engine.reader().unwrap();
        for repo in self.repos.values().filter(|repo| repo.head.is_some()) {
            repo.check(&reader);
            for row in reader.records_from(&repo.did, None).unwrap() {
                let (_, row) = row.unwrap();
                assert!(row.cid.matches(&engine.read_at(row.location).unwrap()));
            }
            let head = reader.repo(&repo.did).unwrap().unwrap();
            assert!(
                head.commit
                    .matches(&engine.read_at(head.commit_location).unwrap())
            );
        }
        let with_commit = self.repos.values().filter(|repo| repo.head.is_some()).count();
        assert_eq!(reader.repos(None, 1_000).unwrap().len(), with_commit);
        assert_eq!(
            actors(engine.accounts()),
            self.actors.iter().map(|n| format!("did:plc:a{n}")).collect()
        );
    }
}

fn actors(accounts: &crate::views::accounts::Accounts) -> BTreeSet<String> {
    let read = accounts.read_blocking(|conn| {
        let mut rows = conn.prepare("SELECT did FROM actor")?;
        let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
        Ok::<_, AccountsError>(rows.collect::<rusqlite::Result<BTreeSet<_>>>()?)
    });
    read.unwrap()
}

fn append(engine: &Engine, draft: EntryDraft) {
    wait(engine.append(vec![draft]).unwrap().durable()).unwrap();
}

/// Folds the log anew: the live views must be the same (I4).
fn check_rebuild(engine: &Engine) {
    let dir = tempfile::tempdir().unwrap();
    let mut index = IndexView::open(&dir.path().join("index.redb"), engine.log_id(), 4 << 20).unwrap();
    index.adopt(engine.log_reader().compaction()).unwrap();
    let mut accounts = AccountsView::open(dir.path(), engine.log_id()).unwrap();
    {
        let views: Vec<Box<dyn View + '_>> = vec![Box::new(&mut index), Box::new(&mut accounts)];
        let mut fold = Fold::new(views, |from| engine.tail(from), DriverConfig::default());
        fold.replay(engine.applied().get(), &mut |_| {}).unwrap();
    }
    while index.sweep(1_000).unwrap() {}
    let deadline = std::time::Instant::now() + DEADLINE;
    while engine.reader().unwrap().is_unswept().unwrap() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let differences = engine
        .reader()
        .unwrap()
        .differences(&index.reader().unwrap(), 5)
        .unwrap();
    assert_eq!(differences, []);
    assert_eq!(actors(&accounts.handle()), actors(engine.accounts()));
}

fn sealed(engine: &Engine) -> Vec<SegmentInfo> {
    engine
        .segments()
        .into_iter()
        .filter(|segment| segment.sealed)
        .collect()
}

fn bytes_of(engine: &Engine) -> Vec<u8> {
    let log = engine.log_reader();
    let sealed = sealed(engine);
    sealed
        .iter()
        .flat_map(|segment| log.sealed(segment.base).unwrap().bytes().to_vec())
        .collect()
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

#[test]
fn an_import_goes_on_over_a_compaction_and_the_index_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let engine = start(&storage, dir.path());
    let mut repo = TestRepo::new("imports");
    for n in 0..200 {
        let writes = Writes::from([(
            format!("app.test.post/{n:05}"),
            Some((record(&format!("{n}"), &[]), BTreeSet::new())),
        )]);
        append(&engine, repo.commit(&writes, &NoNodes));
    }
    let records = (0..600)
        .map(|n| {
            let written = (record(&format!("new {n}"), &[]), BTreeSet::new());
            (format!("app.test.new/{n:05}"), written)
        })
        .collect();
    let (pieces, flip) = repo.import(1, &records, 50, true);
    let (before, after) = pieces.split_at(6);
    for piece in before {
        append(&engine, piece.clone());
    }
    wait(engine.log().seal_now()).unwrap();
    let path = dir.path().join(crate::views::index::FILE_NAME);
    let (file, bytes) = (inode(&path), std::fs::metadata(&path).unwrap().len());
    let through = sealed(&engine).last().unwrap().last;
    wait(engine.compact(through, options())).unwrap();
    assert_ne!(inode(&path), file);
    assert!(std::fs::metadata(&path).unwrap().len() <= bytes);
    for piece in after {
        append(&engine, piece.clone());
    }
    append(&engine, flip);
    repo.check(&engine.reader().unwrap());
    check_rebuild(&engine);
    stop(engine);
    let engine = start(&storage, dir.path());
    repo.check(&engine.reader().unwrap());
    stop(engine);
}

#[test]
fn no_answer_changes_and_a_rebuild_gives_the_live_state() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let mut world = World::new(seed);
        let mut engine = start(&storage, dir.path());
        world.run(&engine, 150);
        for round in 1..4u32 {
            wait(engine.log().seal_now()).unwrap();
            let all = sealed(&engine);
            let through = all[if round == 2 {
                all.len() - 1
            } else {
                all.len() * 2 / 3
            }]
            .last;
            let before = engine.log_bytes();
            let held = engine.reader().unwrap();
            let file = inode(&dir.path().join(crate::views::index::FILE_NAME));
            let done = wait(engine.compact(through, options())).unwrap();
            assert_eq!((done.compaction, done.through), (round, through));
            world.check(&engine);
            assert_eq!(engine.oldest_lsn(), through);
            assert_ne!(
                inode(&dir.path().join(crate::views::index::FILE_NAME)),
                file,
                "the index was written anew"
            );
            // A snapshot from before keeps what it points at.
            assert_eq!(
                wait(engine.end_compaction(Duration::ZERO)).unwrap(),
                Removal::InUse
            );
            for repo in held.repos(None, 100).unwrap() {
                assert!(
                    repo.commit
                        .matches(&engine.read_at(repo.commit_location).unwrap())
                );
            }
            drop(held);
            let Removal::Removed { bytes } = wait(engine.end_compaction(Duration::ZERO)).unwrap() else {
                panic!("nobody reads it");
            };
            assert_eq!(bytes, done.bytes_before);
            assert!(engine.log_bytes() < before, "seed {seed} round {round}: {done:?}");
            world.check(&engine);
            check_rebuild(&engine);
            world.run(&engine, 60);
            world.check(&engine);
            check_rebuild(&engine);
            if round == 2 {
                stop(engine);
                engine = start(&storage, dir.path());
                world.check(&engine);
            }
        }
    }
}

#[test]
fn the_segment_that_is_written_to_is_not_replaced_while_it_is_empty() {
    let found = Log::recover(Arc::new(MemoryStorage::new()), Path::new("/log")).unwrap();
    let config = LogConfig {
        epoch: Epoch(1),
        log_id: Some(LogId([1; 16])),
        ..LogConfig::default()
    };
    let mut log = SimLog::start(found, Arc::new(SystemClock), &config).unwrap();
    let draft = || vec![EntryDraft::marker().into_draft().unwrap()];
    log.append(draft()).unwrap();
    let through = log.seal().unwrap();
    log.append(draft()).unwrap();
    let segments = log.reader.segments();
    assert_eq!(segments.len(), 2);
    assert_eq!((segments[1].sealed, segments[1].last), (false, through));
    let found: Vec<Lsn> = inputs(&log.reader, through).map(|segment| segment.base).collect();
    assert_eq!(found, [segments[0].base]);
}

#[test]
fn what_was_deleted_is_gone_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let engine = start(&storage, dir.path());
    let mut repo = TestRepo::new("deleted");
    let path = "app.test.post/a".to_owned();
    let text = "a secret that somebody took back";
    append(
        &engine,
        repo.commit(
            &Writes::from([(path.clone(), Some((record(text, &[]), BTreeSet::new())))]),
            &NoNodes,
        ),
    );
    for sql in [
        "INSERT INTO actor (did, handle, createdAt) VALUES ('did:plc:x', 'private-handle.test', 'now')",
        "DELETE FROM actor",
    ] {
        let prepared = wait(engine.accounts().prepare([], move |tx| {
            tx.execute(sql, [])?;
            Ok::<_, AccountsError>(())
        }));
        let bytes = prepared.unwrap().changeset;
        append(
            &engine,
            EntryDraft::private(vec![Change::AccountsChangeset { bytes }]),
        );
    }
    append(&engine, repo.commit(&Writes::from([(path, None)]), &NoNodes));
    wait(engine.log().seal_now()).unwrap();
    let holds = |what: &str| {
        bytes_of(&engine)
            .windows(what.len())
            .any(|window| window == what.as_bytes())
    };
    assert!(holds(text) && holds("private-handle"));
    let through = engine.applied().get();
    wait(engine.compact(through, options())).unwrap();
    wait(engine.end_compaction(Duration::ZERO)).unwrap();
    assert!(!holds(text) && !holds("private-handle"));
    repo.check(&engine.reader().unwrap());
}

#[test]
fn a_damaged_block_ends_a_compaction_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let engine = start(&storage, dir.path());
    let mut world = World::new(3);
    world.run(&engine, 40);
    wait(engine.log().seal_now()).unwrap();
    let through = engine.applied().get();
    let row = {
        let reader = engine.reader().unwrap();
        let head = reader.repos(None, 1).unwrap().remove(0);
        reader
            .records_from(&head.did, None)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .1
    };
    let file = dir
        .path()
        .join("log")
        .join(crate::log::segment_file_name(row.location.segment));
    let names = storage.list(&dir.path().join("log")).unwrap();
    stop(engine);
    memory.flip_bit(&file, row.location.offset + 3, 2).unwrap();
    let engine = start(&storage, dir.path());
    let refused = wait(engine.compact(through, options()));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(storage.list(&dir.path().join("log")).unwrap(), names);
    memory.flip_bit(&file, row.location.offset + 3, 2).unwrap();
    stop(engine);
    let engine = start(&storage, dir.path());
    wait(engine.compact(through, options())).unwrap();
    world.check(&engine);
}

#[test]
fn it_stops_when_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let engine = start(&storage, dir.path());
    let mut world = World::new(4);
    world.run(&engine, 80);
    wait(engine.log().seal_now()).unwrap();
    let through = engine.applied().get();
    let names = storage.list(&dir.path().join("log")).unwrap();
    let mut calls = 0;
    for stop_at in 0..100 {
        let count = std::sync::atomic::AtomicU64::new(0);
        let pace: Pace = Arc::new(move |_| {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if n == stop_at { Err(Stopped) } else { Ok(()) }
        });
        match wait(engine.compact(through, CompactOptions { pace, ..options() })) {
            Err(CompactError::Stopped(_)) => calls += 1,
            done => {
                done.unwrap();
                break;
            }
        }
        assert_eq!(storage.list(&dir.path().join("log")).unwrap(), names);
        assert!(!dir.path().join(rewrite::SCRATCH_DIR).exists());
    }
    assert!(calls >= 3, "{calls}");
    world.check(&engine);
}

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn remove_files(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
}

#[test]
fn power_may_be_cut_at_every_operation() {
    // Twice compacted, so that inputs are of both kinds.
    let dir = tempfile::tempdir().unwrap();
    let mut outcomes = BTreeSet::new();
    for stop_at in 0.. {
        let memory = MemoryStorage::new();
        let plain: Arc<dyn Storage> = Arc::new(memory.clone());
        let faulty = Arc::new(FaultyStorage::new(Arc::clone(&plain)));
        let storage: Arc<dyn Storage> = Arc::clone(&faulty) as _;
        let (home, copy) = (
            dir.path().join(format!("{stop_at}")),
            tempfile::tempdir().unwrap(),
        );
        std::fs::create_dir_all(&home).unwrap();
        let mut world = World::new(11);
        let engine = start(&plain, &home);
        world.run(&engine, 25);
        wait(engine.log().seal_now()).unwrap();
        wait(engine.compact(engine.applied().get(), options())).unwrap();
        wait(engine.end_compaction(Duration::ZERO)).unwrap();
        world.run(&engine, 25);
        stop(engine);
        copy_files(&home, copy.path());

        let engine = start(&storage, &home);
        world.run(&engine, 2);
        let through = sealed(&engine).last().unwrap().last;
        faulty.inject(Fault::Stop, stop_at);
        let done = wait(engine.compact(through, options()));
        let ended = done.is_ok() && wait(engine.end_compaction(Duration::ZERO)).is_ok();
        let finished = faulty.struck().is_empty();
        assert!(ended || !finished, "step {stop_at}: {done:?}");
        drop(engine);
        memory.crash(stop_at);
        // Views as they are, as they were at their last durable point, or none.
        match stop_at % 3 {
            0 => {}
            1 => {
                remove_files(&home);
                copy_files(copy.path(), &home);
            }
            _ => remove_files(&home),
        }

        let engine = start(&plain, &home);
        outcomes.insert((engine.log_reader().compaction(), stop_at % 3));
        assert!(
            engine.log_reader().pending_compaction().is_none(),
            "step {stop_at}"
        );
        world.check(&engine);
        check_rebuild(&engine);
        world.run(&engine, 10);
        world.check(&engine);
        wait(engine.log().seal_now()).unwrap();
        wait(engine.compact(engine.applied().get(), options())).unwrap();
        wait(engine.end_compaction(Duration::ZERO)).unwrap();
        world.check(&engine);
        check_rebuild(&engine);
        stop(engine);
        std::fs::remove_dir_all(&home).unwrap();
        if finished && stop_at % 3 == 2 {
            break;
        }
    }
    let all: BTreeSet<(u32, u64)> = [1, 2]
        .into_iter()
        .flat_map(|n| [(n, 0), (n, 1), (n, 2)])
        .collect();
    assert_eq!(outcomes, all);
}
