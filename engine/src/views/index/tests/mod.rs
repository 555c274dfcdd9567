//! The index against a model: its answers are those of a `BTreeMap`, a rebuilt file has those of the live one (I4).

mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use redb::{ReadableDatabase, ReadableTable};

use super::*;
use crate::entry::{Change, EntryDraft};
use crate::repo::cid::Cid;
use crate::repo::mst::{NodePlace, NodeSource, NodeSourceError, Tree, WalkItem, build_from_sorted};
use crate::repo::{Nsid, Tid};
use crate::views::testkit::{LOG_ID, Placer, TestRepo, Write, Writes, lsn, record};

fn open(dir: &Path) -> IndexView {
    IndexView::open(&dir.join("index.redb"), LOG_ID, 8 << 20).unwrap()
}

/// Every row of every table, for comparing two files.
fn dump(view: &IndexView) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let read = view.slot.database().begin_read().unwrap();
    let mut rows = Vec::new();
    macro_rules! table {
        ($definition:expr, $key:expr, $value:expr) => {
            for row in read.open_table($definition).unwrap().iter().unwrap() {
                let (key, value) = row.unwrap();
                rows.push((
                    stringify!($definition),
                    $key(key.value()),
                    $value(value.value()),
                ));
            }
        };
    }
    table!(META, |k: &str| k.as_bytes().to_vec(), |v: &[u8]| v.to_vec());
    table!(REPOS, |k: &str| k.as_bytes().to_vec(), |v: u32| v
        .to_be_bytes()
        .to_vec());
    table!(HEADS, |k: u32| k.to_be_bytes().to_vec(), |v: &[u8]| v.to_vec());
    table!(RECORDS, |k: &[u8]| k.to_vec(), |v: &[u8; 56]| v.to_vec());
    table!(NODES, |k: &[u8]| k.to_vec(), |v: &[u8]| v.to_vec());
    table!(BLOBS, |k: &[u8]| k.to_vec(), |v: &[u8]| v.to_vec());
    table!(RECORD_BLOBS, |k: &[u8]| k.to_vec(), |()| Vec::new());
    table!(SUBJECTS, |k: &[u8]| k.to_vec(), |()| Vec::new());
    table!(RECORD_SUBJECTS, |k: &[u8]| k.to_vec(), |v: &[u8; 16]| v.to_vec());
    table!(BLOB_REFS, |k: &[u8]| k.to_vec(), |v: u64| v
        .to_be_bytes()
        .to_vec());
    table!(COLLECTIONS, |k: &[u8]| k.to_vec(), |v: u64| v
        .to_be_bytes()
        .to_vec());
    table!(GENERATIONS, |k: &[u8]| k.to_vec(), |v: &[u8]| v.to_vec());
    table!(DEAD, |k: &[u8]| k.to_vec(), |()| Vec::new());
    table!(SEGMENTS, |k: u64| k.to_be_bytes().to_vec(), |v: &[u8]| v.to_vec());
    table!(REMOVED, |k: &[u8]| k.to_vec(), |()| Vec::new());
    // Of the file, not of the log: see `removals`.
    rows.retain(|(_, key, _)| key != META_ERASED.as_bytes());
    assert_eq!(view.reader().unwrap().segments().unwrap(), counted(&read));
    rows
}

/// What is in use of each segment, counted anew.
fn counted(read: &redb::ReadTransaction) -> Vec<SegmentUse> {
    let mut found: std::collections::BTreeMap<crate::log::Lsn, SegmentUse> =
        std::collections::BTreeMap::new();
    for row in read.open_table(RECORDS).unwrap().iter().unwrap() {
        let at = RecordRow::decode(row.unwrap().1.value()).unwrap().location;
        let used = found.entry(at.segment).or_default();
        used.records += 1;
        used.record_bytes += u64::from(at.len);
    }
    for row in read.open_table(HEADS).unwrap().iter().unwrap() {
        if let Some(commit) = rows::HeadRow::decode(row.unwrap().1.value()).unwrap().commit {
            let used = found.entry(commit.location.segment).or_default();
            used.commits += 1;
            used.commit_bytes += u64::from(commit.location.len);
        }
    }
    for (segment, used) in &mut found {
        used.segment = *segment;
    }
    found.into_values().collect()
}

fn sweep_all(view: &mut IndexView) {
    while view.sweep(50).unwrap() {}
}

struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, _: &Cid, _: &NodePlace<'_>) -> Result<bytes::Bytes, NodeSourceError> {
        Err(NodeSourceError::Missing)
    }
}

/// Where one block is.
fn find(reader: &IndexReader, did: &Did, cid: &Cid) -> Option<BlockPlace> {
    let until = Instant::now() + Duration::from_secs(60);
    let found = reader.find_blocks(did, &[*cid], until).unwrap();
    assert!(found.iter().all(|(at, _)| at == cid));
    found.into_iter().next().map(|(_, place)| place)
}

/// The nodes and records of a tree.
fn blocks_of(repo: &TestRepo) -> BTreeSet<Cid> {
    let mut blocks: BTreeSet<Cid> = repo.records.values().map(|record| record.cid).collect();
    let records = repo
        .records
        .iter()
        .map(|(path, record)| (path.as_str(), record.cid));
    build_from_sorted(records, |node| {
        blocks.insert(node.cid);
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap();
    blocks
}

fn create(paths: &[&str]) -> Writes {
    paths
        .iter()
        .map(|path| ((*path).to_owned(), Some((record(path, &[]), BTreeSet::new()))))
        .collect()
}

#[test]
fn a_removed_repo_leaves_nothing_and_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let (mut stays, mut goes) = (TestRepo::new("stays"), TestRepo::new("goes"));
    let blob = Cid::for_raw(b"blob");
    let mut writes = create(&["app.test.post/a", "app.test.like/b"]);
    writes.insert(
        "app.test.image/c".to_owned(),
        Some((record("c", &[blob]), BTreeSet::from([blob]))),
    );

    let first = placer.place(stays.commit(&create(&["app.test.post/x"]), &NoNodes));
    view.apply(&[first]).unwrap();
    let before = dump(&view);
    let upload = goes.store(b"blob");
    let entries = [
        placer.place(EntryDraft::private(vec![upload])),
        placer.place(goes.commit(&writes, &NoNodes)),
        placer.place(EntryDraft::private(vec![Change::RepoRemoved {
            did: goes.did.clone(),
        }])),
    ];
    view.apply(&entries).unwrap();
    let rows = |dump: Vec<(&'static str, Vec<u8>, Vec<u8>)>| -> Vec<_> {
        dump.into_iter()
            .filter(|(table, ..)| !["META", "REMOVED"].contains(table))
            .collect()
    };
    let removed = view.reader().unwrap();
    let mut pieces = 0;
    while view.sweep(1).unwrap() {
        pieces += 1;
    }
    assert!(pieces > 3, "it goes in pieces");
    assert_eq!(removed.removals(None, 9).unwrap()[0].did, goes.did);
    assert_eq!(rows(dump(&view)), rows(before));
    assert_eq!(view.reader().unwrap().differences(&removed, 10).unwrap(), []);
    assert_eq!(removed.differences(&view.reader().unwrap(), 10).unwrap(), []);
    assert_eq!(removed.repo(&goes.did).unwrap(), None);
    assert_eq!(
        removed
            .repos_by_collection(&"app.test.image".parse().unwrap(), None, 10)
            .unwrap(),
        []
    );
    assert_eq!(view.reader().unwrap().repo(&goes.did).unwrap(), None);
    let post = "app.test.image".parse().unwrap();
    assert_eq!(
        view.reader()
            .unwrap()
            .repos_by_collection(&post, None, 10)
            .unwrap(),
        []
    );

    let mut again = TestRepo::new("goes");
    let entry = placer.place(again.commit(&create(&["app.test.post/new"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    again.check(&view.reader().unwrap());
    stays.check(&view.reader().unwrap());
}

#[test]
fn blocks_are_found_where_they_are_and_superseded_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("blocks");
    let entry = placer.place(repo.commit(&create(&["app.test.post/a"]), &NoNodes));
    view.apply(std::slice::from_ref(&entry)).unwrap();
    let (old_commit, _, old_root) = repo.head.unwrap();
    let reader = view.reader().unwrap();

    let slice = |entry: &Entry, at: crate::log::Location| {
        let from = usize::try_from(at.offset - entry.public_at.offset).unwrap();
        entry.public.slice(from..from + at.len as usize)
    };
    let record_cid = repo.records["app.test.post/a"].cid;
    for cid in [old_commit, record_cid] {
        match find(&reader, &repo.did, &cid) {
            Some(BlockPlace::Record(at) | BlockPlace::Commit(at)) => assert!(cid.matches(&slice(&entry, at))),
            other => panic!("{other:?}"),
        }
    }
    let Some(BlockPlace::Node(root)) = find(&reader, &repo.did, &old_root) else {
        panic!()
    };
    assert!(old_root.matches(&root));
    assert_eq!(find(&reader, &repo.did, &Cid::for_raw(b"?")), None);
    let late = reader.find_blocks(&repo.did, &[Cid::for_raw(b"?")], Instant::now());
    assert!(matches!(late, Err(FindError::TimeUp)), "{late:?}");
    assert_eq!(find(&reader, &"did:plc:other".parse().unwrap(), &old_root), None);

    let entry = placer.place(repo.commit(&create(&["app.test.post/b"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    let now = view.reader().unwrap();
    assert_eq!(find(&now, &repo.did, &old_root), None);
    assert_eq!(find(&now, &repo.did, &old_commit), None);
    assert!(
        find(&reader, &repo.did, &old_root).is_some(),
        "a snapshot stays what it was"
    );
}

/// Commits, compares with the model, and tells whether the blob is stored.
fn commit(
    view: &mut IndexView,
    placer: &mut Placer,
    repo: &mut TestRepo,
    blob: Cid,
    writes: Vec<(&str, Write)>,
) -> bool {
    let writes = writes
        .into_iter()
        .map(|(path, write)| (path.to_owned(), write))
        .collect();
    let entry = placer.place(repo.commit(&writes, &NoNodes));
    view.apply(&[entry]).unwrap();
    let reader = view.reader().unwrap();
    repo.check(&reader);
    reader.blob(&repo.did, &blob).unwrap().is_some()
}

#[test]
fn a_blob_is_forgotten_with_its_last_reference_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("blobs");
    let blob = Cid::for_raw(b"picture");
    let with = || Some((record("with", &[blob, blob]), BTreeSet::from([blob])));
    assert!(
        !commit(
            &mut view,
            &mut placer,
            &mut repo,
            blob,
            vec![("app.test.post/a", with())]
        ),
        "referenced, not uploaded yet"
    );
    let upload = repo.store(b"picture");
    let (path, write) = ("app.test.post/x", Some((record("x", &[]), BTreeSet::new())));
    let entry = placer.place(EntryDraft::private(vec![upload]));
    view.apply(&[entry]).unwrap();
    assert!(commit(
        &mut view,
        &mut placer,
        &mut repo,
        blob,
        vec![(path, write)]
    ));
    let handed_over = vec![("app.test.post/a", None), ("app.test.post/b", with())];
    assert!(
        commit(&mut view, &mut placer, &mut repo, blob, handed_over),
        "one record hands it to another in one commit"
    );
    let without = Some((record("without", &[]), BTreeSet::new()));
    assert!(!commit(
        &mut view,
        &mut placer,
        &mut repo,
        blob,
        vec![("app.test.post/b", without)]
    ));
}

#[test]
fn a_commit_that_does_not_follow_the_head_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("chain");
    let mut next = |path: &str| placer.place(repo.commit(&create(&[path]), &NoNodes));
    let (first, second, third) = (
        next("app.test.post/a"),
        next("app.test.post/b"),
        next("app.test.post/c"),
    );
    let later = |entry: &Entry| Entry {
        lsn: lsn(1 << 52),
        ..entry.clone()
    };
    view.apply(std::slice::from_ref(&first)).unwrap();
    let before = dump(&view);
    for wrong in [
        vec![third.clone()],
        vec![later(&first)],
        vec![second, later(&first)],
    ] {
        let error = view.apply(&wrong).unwrap_err();
        assert!(matches!(error, ViewError::Contradiction { .. }), "{error}");
        assert_eq!(dump(&view), before);
        assert_eq!(view.applied(), first.lsn);
    }
}

#[test]
fn entries_that_are_applied_already_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("twice");
    let first = placer.place(repo.commit(&create(&["app.test.post/a"]), &NoNodes));
    let second = placer.place(repo.commit(&create(&["app.test.post/b"]), &NoNodes));
    view.apply(std::slice::from_ref(&first)).unwrap();
    view.apply(&[first, second.clone()]).unwrap();
    assert_eq!(view.applied(), second.lsn);
    repo.check(&view.reader().unwrap());
}

#[test]
fn a_file_that_is_damaged_or_of_another_log_is_unusable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    drop(open(dir.path()));
    let other = IndexView::open(&path, LogId([1; 16]), 1 << 20);
    assert!(matches!(other, Err(IndexError::Unusable { .. })), "{other:?}");

    std::fs::write(
        &path,
        b"this is no database, but it is long enough to be looked at",
    )
    .unwrap();
    let damaged = IndexView::open(&path, LOG_ID, 1 << 20);
    assert!(matches!(damaged, Err(IndexError::Unusable { .. })), "{damaged:?}");
}

#[test]
fn what_was_persisted_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut repo = TestRepo::new("persisted");
    let mut placer = Placer::new();
    let entry = placer.place(repo.commit(&create(&["app.test.post/a"]), &NoNodes));
    {
        let mut view = open(dir.path());
        view.apply(std::slice::from_ref(&entry)).unwrap();
        view.persist().unwrap();
    }
    let view = open(dir.path());
    assert_eq!(view.applied(), entry.lsn);
    repo.check(&view.reader().unwrap());
}

#[test]
fn what_is_staged_is_in_no_answer_until_the_flip_and_all_of_it_after() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("moves");
    let entry = placer.place(repo.commit(&create(&["app.test.post/old", "app.test.like/old"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    let blob = Cid::for_raw(b"blob");
    let new = (0..300).map(|n| {
        let blobs = if n == 7 {
            BTreeSet::from([blob])
        } else {
            BTreeSet::new()
        };
        let list: Vec<Cid> = blobs.iter().copied().collect();
        (
            format!("app.test.new/{n:04}"),
            (record(&format!("new {n}"), &list), blobs),
        )
    });
    let mut moved = TestRepo::new("moves");
    moved.head = repo.head;
    let (rows, flip) = moved.import(1, &new.collect(), 64, true);
    for draft in rows {
        view.apply(&[placer.place(draft)]).unwrap();
        let reader = view.reader().unwrap();
        repo.check(&reader);
        let collection = "app.test.new".parse().unwrap();
        assert_eq!(reader.repos_by_collection(&collection, None, 10).unwrap(), []);
    }
    assert_eq!(
        view.reader().unwrap().staged_generations(10).unwrap(),
        [(repo.did.clone(), 1)]
    );
    // A commit of the live generation in between changes nothing of the staged one.
    let entry = placer.place(repo.commit(&create(&["app.test.post/more"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    repo.check(&view.reader().unwrap());
    let number = view.reader().unwrap().repo(&repo.did).unwrap().unwrap().number;

    let flip = placer.place(flip);
    view.apply(std::slice::from_ref(&flip)).unwrap();
    for _ in 0..2 {
        let reader = view.reader().unwrap();
        moved.check(&reader);
        assert_eq!(reader.staged_generations(10).unwrap(), []);
        assert_eq!(reader.next_generation(&repo.did).unwrap(), Some(2));
        assert_eq!(reader.repo(&repo.did).unwrap().unwrap().number, number);
        let found = |collection: &str| {
            let found = reader.repos_by_collection(&collection.parse().unwrap(), None, 10);
            found.unwrap().len()
        };
        assert_eq!((found("app.test.new"), found("app.test.post")), (1, 0));
        sweep_all(&mut view);
    }
    // The tree goes on where the import ends.
    let entry = placer.place(moved.commit(&create(&["app.test.post/after"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    moved.check(&view.reader().unwrap());
    // A generation is used once.
    let (rows, _) = TestRepo::new("moves").import(
        1,
        &[("a.b.c/x".to_owned(), (record("x", &[]), BTreeSet::new()))].into(),
        1,
        true,
    );
    let entry = placer.place(rows.into_iter().next().unwrap());
    let error = view.apply(&[entry]).unwrap_err();
    assert!(error.to_string().contains("behind its head"), "{error}");
    moved.check(&view.reader().unwrap());
}

#[test]
fn what_was_swept_while_a_new_file_was_made_is_swept_there_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("gone");
    let entry = placer.place(repo.commit(&create(&["app.test.post/a"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    let removed = EntryDraft::private(vec![Change::RepoRemoved {
        did: repo.did.clone(),
    }]);
    view.apply(&[placer.place(removed)]).unwrap();
    let storage = std::sync::Arc::new(crate::storage::MemoryStorage::new());
    let log = crate::log::Log::recover(storage, Path::new("/log")).unwrap();
    let applied = view.applied();
    let renewal = Renewal::prepare(
        &view.source(),
        dir.path(),
        LOG_ID,
        8 << 20,
        log.reader(),
        crate::views::driver::DriverConfig::default(),
        || applied,
    );
    sweep_all(&mut view);
    assert!(!view.reader().unwrap().is_unswept().unwrap());
    renewal.unwrap().finish(&view.source()).unwrap();
    assert!(
        view.reader().unwrap().is_unswept().unwrap(),
        "the copy is from before"
    );
    sweep_all(&mut view);
    assert!(!view.reader().unwrap().is_unswept().unwrap());
}

#[test]
fn rows_of_a_did_without_a_repo_are_staged_and_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let records: BTreeMap<_, _> = (0..9)
        .map(|n| (format!("app.test.post/{n}"), (record("x", &[]), BTreeSet::new())))
        .collect();
    let nobody = TestRepo::new("new");
    let did = nobody.did.clone();
    let (rows, _) = nobody.clone().import(1, &records, 4, true);
    for draft in rows {
        view.apply(&[placer.place(draft)]).unwrap();
        let reader = view.reader().unwrap();
        nobody.check(&reader);
        assert_eq!(reader.staged_generations(10).unwrap(), [(did.clone(), 1)]);
        assert_eq!(reader.next_generation(&did).unwrap(), Some(2));
    }
    let given_up = EntryDraft::private(vec![Change::GenerationSwept {
        did: did.clone(),
        generation: 1,
    }]);
    view.apply(&[placer.place(given_up)]).unwrap();
    sweep_all(&mut view);
    assert_eq!(view.reader().unwrap().staged_generations(10).unwrap(), []);

    // The next one comes to its end, and the repo goes on from there.
    let mut repo = TestRepo::new("new");
    let (rows, flip) = repo.import(2, &records, 4, false);
    for draft in rows.into_iter().chain([flip]) {
        view.apply(&[placer.place(draft)]).unwrap();
    }
    repo.check(&view.reader().unwrap());
    let entry = placer.place(repo.commit(&create(&["app.test.post/after"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    sweep_all(&mut view);
    repo.check(&view.reader().unwrap());

    // The generation that commits of a new repo go to is never staged.
    let before = dump(&view);
    let (rows, _) = TestRepo::new("other").import(0, &records, 4, true);
    let error = view
        .apply(&[placer.place(rows.into_iter().next().unwrap())])
        .unwrap_err();
    assert!(error.to_string().contains("has no repo"), "{error}");
    assert_eq!(dump(&view), before);
}

#[test]
fn a_flip_whose_records_are_not_the_signed_tree_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let mut repo = TestRepo::new("wrong");
    let entry = placer.place(repo.commit(&create(&["app.test.post/a"]), &NoNodes));
    view.apply(&[entry]).unwrap();
    let before = dump(&view);
    let records = (0..9)
        .map(|n| (format!("app.test.post/{n}"), (record("x", &[]), BTreeSet::new())))
        .collect();
    let mut moved = TestRepo::new("wrong");
    let (rows, flip) = moved.import(1, &records, 3, true);
    let mut entries: Vec<Entry> = rows
        .into_iter()
        .skip(1)
        .map(|draft| placer.place(draft))
        .collect();
    entries.push(placer.place(flip));
    let error = view.apply(&entries).unwrap_err();
    assert!(error.to_string().contains("its commit says"), "{error}");
    assert_eq!(dump(&view), before);
}

#[test]
fn nodes_that_are_lost_or_damaged_are_built_anew_from_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let (mut view, mut placer) = (open(dir.path()), Placer::new());
    let (mut repo, mut other) = (TestRepo::new("heals"), TestRepo::new("other"));
    let paths: Vec<String> = (0..150).map(|n| format!("app.test.post/{n:05}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    for repo in [&mut repo, &mut other] {
        let entry = placer.place(repo.commit(&create(&paths), &NoNodes));
        view.apply(&[entry]).unwrap();
    }
    let sound = dump(&view);
    let source = view.source();
    assert_eq!(source.rebuild_nodes(&repo.did).unwrap(), Rebuilt::Sound);
    assert_eq!(dump(&view), sound);
    let nobody = "did:plc:nobody".parse().unwrap();
    assert_eq!(source.rebuild_nodes(&nobody).unwrap(), Rebuilt::NoRepo);

    let transaction = view.slot.database().begin_write().unwrap();
    let mut at = 0;
    transaction
        .open_table(NODES)
        .unwrap()
        .retain(|_, _| {
            at += 1;
            at % 3 > 0
        })
        .unwrap();
    view.slot.commit(transaction).unwrap();
    assert_eq!(source.rebuild_nodes(&repo.did).unwrap(), Rebuilt::Sound);
    assert_eq!(source.rebuild_nodes(&other.did).unwrap(), Rebuilt::Sound);
    assert_eq!(dump(&view), sound);

    // A record's row is gone: the tree that was signed cannot be had.
    let transaction = view.slot.database().begin_write().unwrap();
    let key = view
        .reader()
        .unwrap()
        .key(&repo.did)
        .unwrap()
        .unwrap()
        .key(&[b"app.test.post/00077"]);
    assert!(
        transaction
            .open_table(RECORDS)
            .unwrap()
            .remove(key.as_slice())
            .unwrap()
            .is_some()
    );
    view.slot.commit(transaction).unwrap();
    let (_, _, expected) = repo.head.unwrap();
    match source.rebuild_nodes(&repo.did).unwrap() {
        Rebuilt::Damaged { expected: said, root } => assert!(said == expected && root != expected),
        found => panic!("{found:?}"),
    }
    other.check(&view.reader().unwrap());
}
