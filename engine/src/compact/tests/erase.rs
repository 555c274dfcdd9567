//! A removed repo leaves every file, and that is told only when it is so.

use std::path::PathBuf;

use super::*;
use crate::entry::RepoRemoval;
use crate::storage::OsStorage;

const TEXT: &str = "a secret of somebody who went away";
const PATH: &str = "app.test.post/the-secret-path";
const HANDLE: &str = "gone-handle.test";

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Files below `dir` that hold something of the removed repo.
fn traces(dir: &Path) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        // The index keeps paths as they are; a tree's node only their ends.
        [TEXT, PATH, HANDLE]
            .iter()
            .any(|what| bytes.windows(what.len()).any(|window| window == what.as_bytes()))
    };
    files(dir).into_iter().filter(holds).collect()
}

fn post(repo: &mut TestRepo, path: &str, text: &str) -> EntryDraft {
    let write = Some((record(text, &[]), BTreeSet::new()));
    repo.commit(&Writes::from([(path.to_owned(), write)]), &NoNodes)
}

fn accounts(engine: &Engine, sql: &'static str) -> EntryDraft {
    let prepared = wait(engine.accounts().prepare([], move |tx| {
        tx.execute(sql, [])?;
        Ok::<_, AccountsError>(())
    }));
    let bytes = prepared.unwrap().changeset;
    EntryDraft::private(vec![Change::AccountsChangeset { bytes }])
}

/// A repo that stays, one that is removed, checkpoints before and at once after; everything is in sealed segments.
fn removed(engine: &Engine) -> (TestRepo, RepoRemoval) {
    let (mut stays, mut goes) = (TestRepo::new("stays"), TestRepo::new("goes"));
    append(engine, post(&mut stays, "app.test.post/a", "kept"));
    append(engine, post(&mut goes, PATH, TEXT));
    for n in 0..50 {
        append(engine, post(&mut goes, &format!("app.test.post/{n}"), TEXT));
    }
    let insert = "INSERT INTO actor (did, handle, createdAt) VALUES ('did:plc:x', 'gone-handle.test', 'now')";
    append(engine, accounts(engine, insert));
    wait(engine.checkpoint()).unwrap();
    let change = Change::RepoRemoved {
        did: goes.did.clone(),
    };
    let group = vec![
        EntryDraft::private(vec![change]),
        accounts(engine, "DELETE FROM actor"),
    ];
    let lsns = wait(engine.append(group).unwrap().durable()).unwrap();
    wait(engine.checkpoint()).unwrap();
    wait(engine.log().seal_now()).unwrap();
    let removal = RepoRemoval {
        lsn: lsns.first,
        did: goes.did,
    };
    (stays, removal)
}

fn gone(engine: &Engine, removal: &RepoRemoval) -> bool {
    engine.erased().unwrap().through >= removal.lsn
}

#[test]
fn a_removed_repo_is_in_no_file_when_it_is_told_to_be_gone() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let engine = start(&storage, dir.path());
    let (stays, removal) = removed(&engine);
    assert_eq!(engine.removals(10).unwrap(), std::slice::from_ref(&removal));
    let of = |name: &str| {
        traces(dir.path())
            .iter()
            .any(|path| path.to_string_lossy().contains(name))
    };
    assert!(of("/log/") && of("/index.redb") && of("/ckpt/") && of("/account.sqlite"));
    let nothing_yet = wait(engine.erase()).unwrap();
    assert_eq!(nothing_yet.through, Lsn::ZERO, "nothing was compacted");

    let through = engine.applied().get();
    wait(engine.compact(through, options())).unwrap();
    assert!(!gone(&engine, &removal), "the segments of before are still there");
    let half = wait(engine.erase()).unwrap();
    assert!(half.through < removal.lsn && of("/log/"));
    wait(engine.end_compaction(Duration::ZERO)).unwrap();
    wait(engine.erase()).unwrap();
    assert!(gone(&engine, &removal));
    assert_eq!(traces(dir.path()), Vec::<PathBuf>::new());
    stays.check(&engine.reader().unwrap());
    assert_eq!(
        engine.removals(10).unwrap(),
        std::slice::from_ref(&removal),
        "nobody has told the log yet"
    );
    check_rebuild(&engine);

    // What is told is remembered, also by an index that is folded anew.
    let told = Change::RemovalsGone {
        removals: vec![removal],
    };
    append(&engine, EntryDraft::private(vec![told]));
    assert_eq!(engine.removals(10).unwrap(), []);
    check_rebuild(&engine);
    stop(engine);
    let engine = start(&storage, dir.path());
    assert_eq!(engine.removals(10).unwrap(), []);
    stop(engine);
}

#[test]
fn a_crash_makes_it_late_and_never_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let engine = start(&storage, dir.path());
    let (stays, removal) = removed(&engine);
    wait(engine.compact(engine.applied().get(), options())).unwrap();
    // As a crash would leave it: the compaction has taken effect, and nothing that it replaced is removed.
    drop(engine);
    let engine = start(&storage, dir.path());
    assert_eq!(engine.removals(10).unwrap(), std::slice::from_ref(&removal));
    assert!(!gone(&engine, &removal));
    assert_eq!(wait(engine.erase()).unwrap().through, engine.compacted_through());
    assert!(gone(&engine, &removal));
    assert_eq!(traces(dir.path()), Vec::<PathBuf>::new());
    drop(engine);

    // Without the views, the compacted log alone tells what is still to be told; a new file is made for what was folded.
    std::fs::remove_file(dir.path().join("index.redb")).unwrap();
    std::fs::remove_dir_all(dir.path().join("ckpt")).unwrap();
    let engine = start(&storage, dir.path());
    assert_eq!(engine.removals(10).unwrap(), std::slice::from_ref(&removal));
    assert!(!gone(&engine, &removal));
    wait(engine.erase()).unwrap();
    assert!(gone(&engine, &removal));
    stays.check(&engine.reader().unwrap());
    // A second compaction says it again.
    append(&engine, EntryDraft::marker());
    wait(engine.log().seal_now()).unwrap();
    wait(engine.compact(engine.applied().get(), options())).unwrap();
    assert_eq!(engine.removals(10).unwrap(), std::slice::from_ref(&removal));
    assert!(!gone(&engine, &removal), "a compaction has not ended");
    wait(engine.end_compaction(Duration::ZERO)).unwrap();
    assert!(wait(engine.erase()).unwrap().through >= removal.lsn);
    check_rebuild(&engine);
    stop(engine);
}

#[test]
fn somebody_who_reads_old_account_rows_holds_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage);
    let engine = start(&storage, dir.path());
    let reader = engine.accounts().snapshot().unwrap();
    let (_, removal) = removed(&engine);
    wait(engine.compact(engine.applied().get(), options())).unwrap();
    wait(engine.end_compaction(Duration::ZERO)).unwrap();
    wait(engine.erase()).unwrap();
    assert!(!gone(&engine, &removal));
    assert!(
        !traces(dir.path()).is_empty(),
        "the write-ahead file has the rows"
    );
    drop(reader);
    wait(engine.erase()).unwrap();
    assert!(gone(&engine, &removal));
    assert_eq!(traces(dir.path()), Vec::<PathBuf>::new());
    stop(engine);
}
