//! Any history: commits, uploads, imports, removals and sweeps in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Collection, record key, and text and blobs unless it deletes.
type AnyWrite = (u8, u16, Option<(u8, Vec<u8>)>);

/// One of them has records with a subject.
const COLLECTIONS: [&str; 3] = ["app.test.c0", "app.bsky.feed.like", "app.test.c2"];

/// A step of the property test.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        repo: usize,
        writes: Vec<AnyWrite>,
        reopen: bool,
    },
    Upload {
        repo: usize,
        blob: u8,
    },
    Remove {
        repo: usize,
    },
    Import {
        repo: usize,
        records: Vec<AnyWrite>,
        piece: usize,
        in_order: bool,
        end: ImportEnd,
    },
    Sweep {
        rows: usize,
    },
}

/// What becomes of an import.
#[derive(Clone, Copy, Debug)]
enum ImportEnd {
    Flip,
    GiveUp,
    Leave,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (
        0u8..3,
        0u16..400,
        proptest::option::weighted(0.75, (0u8..6, proptest::collection::vec(0u8..4, 0..2))),
    );
    let step = prop_oneof![
        20 => (0usize..3, proptest::collection::vec(write, 0..24), any::<bool>())
            .prop_map(|(repo, writes, reopen)| Step::Commit { repo, writes, reopen }),
        4 => (0usize..3, 0u8..4).prop_map(|(repo, blob)| Step::Upload { repo, blob }),
        1 => (0usize..3).prop_map(|repo| Step::Remove { repo }),
        3 => (
            0usize..3,
            proptest::collection::vec((0u8..3, 0u16..400, (0u8..6, proptest::collection::vec(0u8..4, 0..2))), 0..60),
            1usize..30,
            proptest::bool::weighted(0.8),
            prop_oneof![3 => Just(ImportEnd::Flip), 1 => Just(ImportEnd::GiveUp), 1 => Just(ImportEnd::Leave)],
        )
            .prop_map(|(repo, records, piece, in_order, end)| Step::Import {
                repo,
                records: records.into_iter().map(|(c, r, write)| (c, r, Some(write))).collect(),
                piece,
                in_order,
                end,
            }),
        2 => (1usize..40).prop_map(|rows| Step::Sweep { rows }),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_history_answers_as_the_model_does_and_rebuilds_to_the_same_bytes(steps in steps(), rows_at_once in 1usize..30) {
        let dir = tempfile::tempdir().unwrap();
        let mut view = open(dir.path());
        let mut placer = Placer::new();
        let fresh = |n: usize| TestRepo::new(["one", "two", "three"][n]);
        let mut repos: Vec<TestRepo> = (0..3).map(fresh).collect();
        let mut entries = Vec::new();
        // What each repo had at each of its revs.
        let mut history: Vec<Vec<(Tid, BTreeSet<Cid>)>> = vec![Vec::new(); 3];
        for step in steps {
            let drafts = match step {
                Step::Commit { repo, writes, reopen } => {
                    let repo = &mut repos[repo];
                    let reader = view.reader().unwrap();
                    let nodes = reader.nodes(&repo.did).unwrap();
                    if let (true, Some((_, _, root))) = (reopen, repo.head) {
                        // As after a restart: every node comes from the index, leaves rebuilt.
                        repo.tree = Tree::open(root);
                    }
                    let writes = writes.into_iter().map(|(collection, rkey, write)| {
                        let write = write.map(|(text, blobs)| {
                            let blobs: BTreeSet<Cid> = blobs.iter().map(|n| Cid::for_raw(&[*n])).collect();
                            let list: Vec<Cid> = blobs.iter().copied().collect();
                            (record(&format!("text {text}"), &list), blobs)
                        });
                        (format!("{}/{rkey}", COLLECTIONS[usize::from(collection)]), write)
                    }).collect();
                    vec![match nodes {
                        Some(nodes) => repo.commit(&writes, &nodes),
                        None => repo.commit(&writes, &NoNodes),
                    }]
                }
                Step::Upload { repo, blob } => vec![EntryDraft::private(vec![repos[repo].store(&[blob])])],
                Step::Remove { repo } => {
                    let did = repos[repo].did.clone();
                    repos[repo] = fresh(repo);
                    history[repo].clear();
                    vec![EntryDraft::private(vec![Change::RepoRemoved { did }])]
                }
                Step::Import { repo, records, piece, in_order, end } => {
                    let repo = &mut repos[repo];
                    let Some(generation) = view.reader().unwrap().next_generation(&repo.did).unwrap() else {
                        continue;
                    };
                    let records = records.into_iter().map(|(collection, rkey, write)| {
                        let (text, blobs) = write.unwrap();
                        let blobs: BTreeSet<Cid> = blobs.iter().map(|n| Cid::for_raw(&[*n])).collect();
                        let list: Vec<Cid> = blobs.iter().copied().collect();
                        (format!("{}/{rkey}", COLLECTIONS[usize::from(collection)]), (record(&format!("text {text}"), &list), blobs))
                    }).collect();
                    let before = (repo.records.clone(), repo.tree.clone(), repo.head);
                    let (mut drafts, flip) = repo.import(generation, &records, piece, in_order);
                    let did = repo.did.clone();
                    match end {
                        ImportEnd::Flip => drafts.push(flip),
                        ImportEnd::GiveUp => {
                            drafts.push(EntryDraft::private(vec![Change::GenerationSwept { did, generation }]));
                        }
                        ImportEnd::Leave => {}
                    }
                    if !matches!(end, ImportEnd::Flip) {
                        (repo.records, repo.tree, repo.head) = before;
                    }
                    drafts
                }
                Step::Sweep { rows } => {
                    view.sweep(rows).unwrap();
                    continue;
                }
            };
            for draft in drafts {
                let entry = placer.place(draft);
                view.apply(std::slice::from_ref(&entry)).unwrap();
                entries.push(entry);
            }
            for (repo, history) in repos.iter().zip(&mut history) {
                if let Some((_, rev, _)) = repo.head
                    && history.last().is_none_or(|(last, _)| *last != rev)
                {
                    history.push((rev, blocks_of(repo)));
                }
            }
        }
        let reader = view.reader().unwrap();
        for repo in &repos {
            repo.check(&reader);
            if let Some((_, _, root)) = repo.head {
                let records = repo.records.iter().map(|(path, record)| (path.as_str(), record.cid));
                let nodes = reader.nodes(&repo.did).unwrap().unwrap();
                let (mut built, mut stored) = (BTreeMap::new(), 0);
                let from_records = build_from_sorted(records, |node| {
                    stored += usize::from(node.layer > 0 && node.first_key.is_some());
                    built.insert(node.cid, node.bytes);
                    Ok::<(), std::convert::Infallible>(())
                }).unwrap();
                prop_assert_eq!(from_records, root);
                let mut walked = BTreeMap::new();
                for item in Tree::open(root).walk(&nodes).unwrap() {
                    if let WalkItem::Node { cid, bytes } = item.unwrap() {
                        walked.insert(cid, bytes.to_vec());
                    }
                }
                prop_assert_eq!(&walked, &built);
                // The same in one pass, and from its CIDs alone.
                let cids: Vec<Cid> = built.keys().copied().collect();
                let until = Instant::now() + Duration::from_secs(60);
                let found = reader.find_blocks(&repo.did, &cids, until).unwrap();
                prop_assert_eq!(found.len(), built.len());
                for (cid, place) in found {
                    prop_assert_eq!(place, BlockPlace::Node(built[&cid].clone().into()));
                }
                // No superseded node is left behind.
                let prefix = reader.key(&repo.did).unwrap().unwrap().prefix();
                let kept = dump(&view)
                    .iter()
                    .filter(|(table, key, _)| *table == "NODES" && key.starts_with(&prefix))
                    .count();
                prop_assert_eq!(kept, stored);
            }
        }
        for (repo, history) in repos.iter().zip(&history) {
            let now = blocks_of(repo);
            for (rev, then) in history {
                let mut given = BTreeSet::new();
                let mut records = BTreeSet::new();
                let known = reader.changed_since(&repo.did, *rev, |block| {
                    let cid = match block {
                        ChangedBlock::Node { cid, bytes } => {
                            assert!(cid.matches(bytes));
                            cid
                        }
                        ChangedBlock::Record { cid, .. } => {
                            records.insert(*cid);
                            cid
                        }
                    };
                    assert!(given.insert(*cid) || records.contains(cid), "a node comes once");
                    Ok::<(), std::convert::Infallible>(())
                }).unwrap();
                if known {
                    prop_assert!(given.is_subset(&now));
                    prop_assert!(now.iter().all(|cid| then.contains(cid) || given.contains(cid)));
                    let newer = repo.records.values().filter(|record| record.rev > *rev);
                    prop_assert_eq!(records, newer.map(|record| record.cid).collect());
                }
                for prefix in ["app.test.c0/", "app.test.c1/", "app.test.c2/"] {
                    let collection: Nsid = prefix.trim_end_matches('/').parse().unwrap();
                    let mut found = BTreeMap::new();
                    let within = reader.changed_in(&repo.did, *rev, Some(&collection), |block| {
                        if let ChangedBlock::Record { path, rev, cid, .. } = block {
                            assert!(found.insert(path.to_owned(), (rev, *cid)).is_none(), "a record comes once");
                        }
                        Ok::<(), std::convert::Infallible>(())
                    }).unwrap();
                    prop_assert_eq!(within, known);
                    if known {
                        let newer = repo.records.iter().filter(|(path, record)| path.starts_with(prefix) && record.rev > *rev);
                        let newer = newer.map(|(path, record)| (path.clone(), (record.rev, record.cid)));
                        prop_assert_eq!(found, newer.collect::<BTreeMap<_, _>>());
                    }
                }
                if repo.head.is_some_and(|(_, head, _)| head == *rev) {
                    prop_assert!(known && given.is_empty(), "nothing since the head");
                }
            }
        }

        // A copy as it is, with what waits to be swept; what the log says does not depend on how far that is.
        let unswept = dir.path().join("unswept.redb");
        reader.copy_to(&unswept).unwrap();
        let unswept = IndexView::open(&unswept, LOG_ID, 8 << 20).unwrap();
        prop_assert_eq!(&dump(&unswept), &dump(&view));
        let clean = !reader.is_unswept().unwrap() && reader.removals_after(Lsn::ZERO).unwrap() > 0;
        let erased = if clean { reader.applied() } else { Lsn::ZERO };
        prop_assert_eq!(unswept.reader().unwrap().erased().unwrap(), erased);
        sweep_all(&mut view);
        prop_assert_eq!(unswept.reader().unwrap().differences(&view.reader().unwrap(), 9).unwrap(), []);
        let reader = view.reader().unwrap();
        for repo in &repos {
            repo.check(&reader);
        }

        let live = dump(&view);
        let rebuilt_dir = tempfile::tempdir().unwrap();
        let mut rebuilt = open(rebuilt_dir.path());
        for batch in entries.chunks(7) {
            rebuilt.apply(batch).unwrap();
        }
        prop_assert_eq!(rebuilt.reader().unwrap().differences(&reader, 9).unwrap(), []);
        sweep_all(&mut rebuilt);
        prop_assert_eq!(&dump(&rebuilt), &live);

        let copy = dir.path().join("copy.redb");
        // The end of a transaction falls anywhere, at the end of a table too.
        reader.copy_in_transactions(&copy, rows_at_once).unwrap();
        let copied = IndexView::open(&copy, LOG_ID, 8 << 20).unwrap();
        prop_assert_eq!(&dump(&copied), &live);
        let removals = reader.removals(None, 1_000).unwrap();
        prop_assert_eq!(removals.len() as u64, reader.removals_after(Lsn::ZERO).unwrap());
        let erased = removals.last().map_or(Lsn::ZERO, |_| reader.applied());
        prop_assert_eq!(copied.reader().unwrap().erased().unwrap(), erased);
        prop_assert_eq!(reader.erased().unwrap(), Lsn::ZERO, "the live file never knows");
        prop_assert!(reader.copy_to(&copy).is_err(), "a copy never overwrites");
    }
}
