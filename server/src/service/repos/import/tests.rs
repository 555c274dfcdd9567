//! Imports over a real engine: what comes back out, what is refused, and that a refused one changes nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use engine::entry::{Change, Entry, EntryDraft, EntryKind, RepoRow};
use engine::log::Lsn;
use engine::repo::car::{CarLimits, CarSlice, write_block, write_header};
use engine::repo::mst::{NodeData, build_from_sorted};
use engine::repo::{Cid, Did, SigningKey, Tid, UnsignedCommit};
use serde_json::json;

use super::ImportError;
use super::room::{Room, RoomLimits};
use super::spool::Spool;
use crate::testkit::{Answer, ExportedRepo, NOTE, Options, PATIENCE, Server, User, bearer};

const CAR: &str = "application/vnd.ipld.car";

async fn import(server: &Server, user: &User, body: impl Into<Body>) -> Answer {
    let authorization = bearer(&user.access);
    let headers = [("content-type", CAR), ("authorization", authorization.as_str())];
    let path = "/xrpc/com.atproto.repo.importRepo";
    server.request(Method::POST, path, &headers, body).await
}

async fn export(server: &Server, did: &Did) -> Bytes {
    let answer = server
        .query("com.atproto.sync.getRepo", &format!("did={did}"))
        .await;
    assert_eq!(answer.status, 200);
    answer.body
}

fn car(root: Cid, blocks: impl IntoIterator<Item = (Cid, Bytes)>) -> Vec<u8> {
    let mut car = Vec::new();
    write_header(&mut car, &[root]);
    for (cid, block) in blocks {
        write_block(&mut car, &cid, &block);
    }
    car
}

/// A repo that another server has signed: its blocks by CID, the commit first.
fn foreign(did: &Did, records: &[(String, Vec<u8>)]) -> Vec<(Cid, Bytes)> {
    let mut nodes = Vec::new();
    let entries = records
        .iter()
        .map(|(path, record)| (path.as_str(), Cid::for_dag_cbor(record)));
    let data = build_from_sorted(entries, |node| {
        nodes.push((node.cid, Bytes::from(node.bytes)));
        Ok::<(), std::convert::Infallible>(())
    });
    let commit = UnsignedCommit {
        did: did.clone(),
        data: data.unwrap(),
        rev: Tid::from_micros(1_600_000_000_000_000, 5),
    };
    let key = SigningKey::generate(&engine::clock::SeededEntropy::new(9)).unwrap();
    let commit = commit.sign(&key).unwrap();
    let records = records
        .iter()
        .map(|(_, record)| (Cid::for_dag_cbor(record), Bytes::from(record.clone())));
    let blocks = [(commit.cid(), commit.bytes().clone())];
    blocks.into_iter().chain(nodes).chain(records).collect()
}

fn record(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = engine::repo::cbor::Writer::new(&mut out);
    writer.map(2).text("text").text(text).text("$type").text(NOTE);
    out
}

fn records(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| (format!("{NOTE}/{n:06}"), record(&format!("moved {n}"))))
        .collect()
}

fn entries(server: &Server, after: Lsn) -> Vec<Entry> {
    let mut tail = server.app.engine.tail(after);
    let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
    frames.iter().map(|frame| Entry::decode(frame).unwrap()).collect()
}

/// Generations that nobody has made the live one.
fn left_staged(server: &Server) -> Vec<(Did, u32)> {
    server
        .app
        .engine
        .reader()
        .unwrap()
        .staged_generations(10)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_replaces_the_repo_whatever_the_order_of_its_blocks() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "gone afterwards").await;
    for (turn, count) in [(0, 300), (1, 40), (2, 0)] {
        let records = records(count);
        let mut blocks = foreign(&alice.did, &records);
        let root = blocks[0].0;
        if turn == 1 {
            blocks.reverse();
        }
        let before = server.app.engine.appended().get();
        let answer = import(&server, &alice, car(root, blocks)).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert!(answer.body.is_empty());

        let repo = server.repo(&alice.did).await;
        let expected: Vec<_> = records
            .iter()
            .map(|(path, record)| (path.clone(), Cid::for_dag_cbor(record)))
            .collect();
        assert_eq!(repo.records.into_iter().collect::<Vec<_>>(), expected);
        let query = format!("did={}", alice.did);
        let latest = server
            .query("com.atproto.sync.getLatestCommit", &query)
            .await
            .ok();
        assert_eq!(latest["rev"], repo.commit.rev().to_string());
        assert_eq!(latest["cid"], repo.commit.cid().to_string());

        // Subscribers know the account: they are told of the new commit, and of nothing else.
        let events: Vec<EntryKind> = entries(&server, before)
            .iter()
            .map(|entry| entry.kind)
            .filter(|kind| kind.is_event())
            .collect();
        assert_eq!(events, [EntryKind::Sync]);
        // The repo goes on from there, and what it had is found.
        server.post(&alice, "afterwards").await;
        let repo = server.repo(&alice.did).await;
        assert_eq!(repo.records.len(), count + 1);
        if count > 0 {
            let query = format!("repo={}&collection={NOTE}&rkey=000007", alice.did);
            let found = server.query("com.atproto.repo.getRecord", &query).await.ok();
            assert_eq!(found["value"]["text"], "moved 7");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_comes_back_as_it_was_and_a_deactivated_account_imports_in_silence() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let blob = server
        .upload(&alice, "image/png", &b"\x89PNG\r\n\x1a\n picture"[..])
        .await;
    let blob = blob.ok()["blob"].clone();
    let input = json!({"repo": alice.did, "collection": NOTE, "rkey": "withblob", "record": {"text": "x", "pic": blob}});
    let put = "com.atproto.repo.putRecord";
    server.call_as(&alice.access, put, &input).await.ok();
    for n in 0..20 {
        server.post(&alice, &format!("post {n}")).await;
    }
    let kept = export(&server, &alice.did).await;
    let before = ExportedRepo::read(&kept);
    let input = json!({"repo": alice.did, "collection": NOTE, "rkey": "withblob"});
    let delete = "com.atproto.repo.deleteRecord";
    server.call_as(&alice.access, delete, &input).await.ok();
    server.post(&alice, "one too many").await;

    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    let mark = server.app.engine.appended().get();
    assert_eq!(import(&server, &alice, kept).await.status, 200);
    assert!(entries(&server, mark).iter().all(|entry| !entry.kind.is_event()));
    server
        .sql("UPDATE actor SET deactivatedAt = NULL WHERE did = ?1", &alice.did)
        .await;
    let after = server.repo(&alice.did).await;
    assert_eq!(after.records, before.records);
    assert!(after.commit.rev() > before.commit.rev());
    let reader = server.app.engine.reader().unwrap();
    let missing = reader.missing_blobs(&alice.did, None, 10).unwrap();
    assert_eq!(
        missing.len(),
        1,
        "it was forgotten with its record, and is to be uploaded again"
    );
    // What the old generation held is swept in the background.
    let deadline = Instant::now() + PATIENCE;
    while server
        .app
        .engine
        .reader()
        .unwrap()
        .segments()
        .unwrap()
        .iter()
        .map(|used| used.records)
        .sum::<u64>()
        > 21
    {
        assert!(Instant::now() < deadline, "the old generation is not swept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_repo_of_the_account_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    server.post(&alice, "stays").await;
    let kept = server.repo(&alice.did).await;
    let sound = foreign(&alice.did, &records(60));
    let root = sound[0].0;
    let whole = car(root, sound.clone());
    let without = |index: usize| {
        let blocks = sound.iter().enumerate().filter(|(at, _)| *at != index);
        car(root, blocks.map(|(_, block)| block.clone()))
    };
    let one = |path: &str, record: Vec<u8>| {
        let blocks = foreign(&alice.did, &[(path.to_owned(), record)]);
        car(blocks[0].0, blocks)
    };
    let mut two_roots = Vec::new();
    write_header(&mut two_roots, &[root, root]);
    let mut no_root = Vec::new();
    write_header(&mut no_root, &[]);
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let bobs = foreign(&bob.did, &records(3));
    // A tree whose root hangs a leaf in the wrong gap: out of order, and reached twice.
    let twice = {
        let mut blocks = sound.clone();
        let (at, node) = blocks
            .iter()
            .enumerate()
            .skip(1)
            .find_map(|(at, (_, block))| {
                let node = NodeData::decode(block).ok()?;
                (node.left.is_some() && node.entries.first()?.right.is_some()).then_some((at, node))
            })
            .unwrap();
        let mut node = node;
        node.entries[0].right = node.left;
        let bytes = Bytes::from(node.encode());
        let data = Cid::for_dag_cbor(&bytes);
        blocks[at] = (data, bytes);
        let key = SigningKey::generate(&engine::clock::SeededEntropy::new(9)).unwrap();
        let rev = Tid::from_micros(1_600_000_000_000_000, 5);
        let unsigned = UnsignedCommit {
            did: alice.did.clone(),
            data,
            rev,
        };
        let commit = unsigned.sign(&key).unwrap();
        blocks[0] = (commit.cid(), commit.bytes().clone());
        car(commit.cid(), blocks)
    };
    let bad = [
        ("nothing", Vec::new()),
        ("no CAR", b"this is no CAR at all, but it is long enough".to_vec()),
        ("half a CAR", whole[..whole.len() / 2].to_vec()),
        ("two roots", two_roots),
        ("no root", no_root),
        ("a root that is missing", car(Cid::for_raw(b"?"), sound.clone())),
        ("a root that is no commit", car(sound[1].0, sound.clone())),
        ("a node that is missing", without(1)),
        ("a record that is missing", without(sound.len() - 1)),
        ("a block that is not its CID", flipped),
        ("another's repo", car(bobs[0].0, bobs)),
        ("a leaf in two places", twice),
        ("a path that is none", one("nonsid/x", record("x"))),
        ("a record that is no CBOR", one("a.b.c/x", b"\xff".to_vec())),
        ("a length beyond reason", vec![0xff, 0xff, 0xff, 0xff, 0x7f]),
    ];
    for (what, body) in bad {
        let answer = import(&server, &alice, body).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".into()), "{what}");
        let now = server.repo(&alice.did).await;
        assert_eq!(
            (now.commit, now.records),
            (kept.commit.clone(), kept.records.clone()),
            "{what}"
        );
    }
    let large = vec![0; 100_001];
    assert_eq!(
        import(&server, &alice, large).await.error(),
        (413, "PayloadTooLarge".into())
    );
    let path = "/xrpc/com.atproto.repo.importRepo";
    let nobody = server
        .request(Method::POST, path, &[("content-type", CAR)], whole.clone())
        .await;
    assert_eq!(nobody.status, 401);
    let authorization = bearer(&alice.access);
    let headers = [
        ("content-type", "application/json"),
        ("authorization", authorization.as_str()),
    ];
    let answer = server.request(Method::POST, path, &headers, whole.clone()).await;
    assert_eq!(answer.error(), (400, "InvalidRequest".into()));

    server.post(&alice, "the repo goes on").await;
    assert_eq!(import(&server, &alice, whole).await.status, 200);
    assert_eq!(server.repo(&alice.did).await.records.len(), 60);
    assert_eq!(left_staged(&server), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_can_be_switched_off() {
    let server = Server::with(Options {
        vars: vec![("PDS_ACCEPTING_REPO_IMPORTS", "false".to_owned())],
        ..Options::default()
    })
    .await;
    let alice = server.sign_up("alice").await;
    let answer = import(&server, &alice, Vec::new()).await;
    assert_eq!(answer.json()["message"], "Service is not accepting repo imports");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repo_that_is_being_replaced_takes_no_writes_and_then_takes_them_again() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "before").await;
    let repos = &server.app.repos;
    let closed = repos.close_to_writes(&alice.did).await.unwrap();
    assert!(repos.close_to_writes(&alice.did).await.is_err(), "one at a time");
    let input = json!({"repo": alice.did, "collection": NOTE, "record": {"text": "meanwhile"}});
    let create = "com.atproto.repo.createRecord";
    let answer = server.call_as(&alice.access, create, &input).await;
    assert_eq!(answer.status, 503);
    let car = car_of(&alice.did);
    assert_eq!(import(&server, &alice, car).await.status, 503);
    drop(closed);
    server.post(&alice, "after").await;
    assert_eq!(server.repo(&alice.did).await.records.len(), 2);
}

fn car_of(did: &Did) -> Vec<u8> {
    let blocks = foreign(did, &records(1));
    car(blocks[0].0, blocks)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_import_has_staged_is_given_up_at_the_next_start() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "stays").await;
    let rows = records(50).into_iter().map(|(path, record)| RepoRow {
        path,
        rev: Tid::from_micros(1_700_000_000_000_000, 1),
        cid: Cid::for_dag_cbor(&record),
        block: record.into(),
    });
    let staged = Change::RepoRows {
        did: alice.did.clone(),
        generation: 1,
        rows: rows.collect(),
    };
    let receipt = server
        .app
        .engine
        .append(vec![EntryDraft::private(vec![staged])])
        .unwrap();
    receipt.durable().await.unwrap();
    assert_eq!(left_staged(&server), [(alice.did.clone(), 1)]);
    let server = server.restart().await;
    assert_eq!(left_staged(&server).len(), 1);
    server.app.imports.give_up_unfinished().unwrap();
    server.post(&alice, "more").await;
    assert_eq!(left_staged(&server), []);
    assert_eq!(import(&server, &alice, car_of(&alice.did)).await.status, 200);
    assert_eq!(server.repo(&alice.did).await.records.len(), 1);
    let unique: BTreeSet<u32> = [server
        .app
        .engine
        .reader()
        .unwrap()
        .next_generation(&alice.did)
        .unwrap()
        .unwrap()]
    .into();
    assert_eq!(unique, BTreeSet::from([3]), "a generation is used once");
}

/// The CAR of another account as that of `did`: the same tree under a commit that names it.
fn moved(exported: &[u8], did: &Did) -> Vec<u8> {
    let read = || CarSlice::new(exported, CarLimits::default()).unwrap();
    let root = read().roots()[0];
    let blocks: Vec<(Cid, Bytes)> = read()
        .map(|block| block.map(|b| (b.cid, Bytes::copy_from_slice(b.bytes))).unwrap())
        .collect();
    let before = blocks.iter().find(|(cid, _)| *cid == root).unwrap();
    let before = engine::repo::Commit::decode(before.1.clone()).unwrap();
    let commit = UnsignedCommit {
        did: did.clone(),
        data: before.data(),
        rev: before.rev(),
    };
    let key = SigningKey::generate(&engine::clock::SeededEntropy::new(11)).unwrap();
    let commit = commit.sign(&key).unwrap();
    let rest = blocks.into_iter().filter(|(cid, _)| *cid != root);
    let first = (commit.cid(), commit.bytes().clone());
    car(commit.cid(), std::iter::once(first).chain(rest))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_exports_another_imports_with_the_same_records_and_root() {
    let roomy = || Options {
        vars: vec![("PDS_MAX_REPO_IMPORT_SIZE", (64 << 20).to_string())],
        ..Options::default()
    };
    let (here, there) = (Server::with(roomy()).await, Server::with(roomy()).await);
    let (alice, bobby) = (here.sign_up("alice").await, there.sign_up("bobby").await);
    let records = records(5_000);
    let blocks = foreign(&alice.did, &records);
    assert_eq!(import(&here, &alice, car(blocks[0].0, blocks)).await.status, 200);
    // Some of it comes and goes by ordinary writes.
    for n in 0..50 {
        let name = format!(
            "com.atproto.repo.{}",
            if n % 2 == 0 { "deleteRecord" } else { "putRecord" }
        );
        let input = json!({"repo": alice.did, "collection": NOTE, "rkey": format!("{:06}", n * 97), "record": {"text": n}});
        assert_eq!(here.call_as(&alice.access, &name, &input).await.status, 200);
    }
    let exported = export(&here, &alice.did).await;
    let answer = import(&there, &bobby, moved(&exported, &bobby.did)).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let (left, right) = (ExportedRepo::read(&exported), there.repo(&bobby.did).await);
    assert_eq!(left.records.len(), 4_975);
    assert_eq!(left.records, right.records);
    assert_eq!(left.commit.data(), right.commit.data());
    // And again after the index was built anew from the log.
    let there = there
        .restart_after(|data| std::fs::remove_file(data.join("index.redb")).unwrap())
        .await;
    assert_eq!(there.repo(&bobby.did).await.commit.cid(), right.commit.cid());
    there.post(&bobby, "it goes on").await;
    assert_eq!(there.repo(&bobby.did).await.records.len(), 4_976);
}

/// An import whose body is held up at its beginning.
fn slow_import(
    server: &Server,
    user: &User,
    length: usize,
) -> (
    tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>,
    impl Future<Output = Answer>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let (authorization, length) = (bearer(&user.access), length.to_string());
    let answer = async move {
        let headers = [
            ("content-type", CAR),
            ("authorization", authorization.as_str()),
            ("content-length", length.as_str()),
        ];
        let path = "/xrpc/com.atproto.repo.importRepo";
        server
            .request(Method::POST, path, &headers, Body::from_stream(body))
            .await
    };
    (sender, answer)
}

fn no_room(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("retry-after"), Some("60"));
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_run_at_once_share_a_budget_of_disk() {
    let server = Server::with(Options {
        vars: vec![
            ("PDS_MAX_REPO_IMPORT_SIZE", "60000".to_owned()),
            ("PDS_IMPORT_DISK_BYTES", "100000".to_owned()),
        ],
        ..Options::default()
    })
    .await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let blocks = foreign(&bobby.did, &records(10));
    let small = car(blocks[0].0, blocks);
    let (hold, first) = slow_import(&server, &alice, 60_000);
    let second = async {
        // The body is asked for when the import has its room; the second piece is taken when the first was.
        for _ in 0..2 {
            hold.send(Ok(Bytes::new())).await.unwrap();
        }
        no_room(&import(&server, &bobby, small.clone()).await);
        // The client goes away: its room is free again.
        drop(hold);
    };
    let (first, ()) = tokio::join!(first, second);
    assert_eq!(first.status, 400);
    assert_eq!(import(&server, &bobby, small).await.status, 200);
    // What can never fit is not to be tried again.
    let (_hold, large) = slow_import(&server, &alice, 60_001);
    assert_eq!(large.await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_would_leave_too_little_of_the_disk_is_refused_before_it_writes() {
    let server = Server::with(Options {
        vars: vec![("PDS_DISK_RESERVE_BYTES", (1u64 << 41).to_string())],
        ..Options::default()
    })
    .await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "stays").await;
    let before = (
        export(&server, &alice.did).await,
        server.app.engine.appended().get(),
    );
    let blocks = foreign(&alice.did, &records(10));
    let body = car(blocks[0].0, blocks);
    no_room(&import(&server, &alice, body.clone()).await);
    // Also when it does not say how long it is.
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(body))]);
    no_room(&import(&server, &alice, Body::from_stream(pieces)).await);
    let after = (
        export(&server, &alice.did).await,
        server.app.engine.appended().get(),
    );
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_ends_before_it_fills_a_disk_that_others_fill_meanwhile() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const PIECE: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(1 << 40));
    let limits = RoomLimits {
        budget: 1 << 40,
        keep_free: 1 << 30,
    };
    let measured = free.clone();
    let room = Room::measured(
        dir.path().to_owned(),
        limits,
        Box::new(move |_| Ok(measured.load(Ordering::SeqCst))),
    );
    let blocks = (0..40u8).map(|n| {
        let block = Bytes::from(vec![n; PIECE]);
        (Cid::for_raw(&block), block)
    });
    let bytes = car(Cid::for_raw(&[]), blocks);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let share = room.share(0).unwrap();
    let reading = tokio::task::spawn_blocking(move || Spool::read(receiver, share, 1 << 30).map(|_| ()));
    let mut sent = 0;
    for piece in bytes.chunks(PIECE) {
        if sent == 10 {
            // Less than what is to stay free and what this spool has promised itself.
            free.store(limits.keep_free + PIECE as u64, Ordering::SeqCst);
        }
        if sender.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
            break;
        }
        sent += 1;
    }
    let ended = reading.await.unwrap();
    assert!(matches!(ended, Err(ImportError::NoRoom)), "{ended:?}");
    assert!((10..30).contains(&sent), "{sent} MiB were taken");
    free.store(1 << 40, Ordering::SeqCst);
    assert!(
        room.share(room.largest()).is_err(),
        "the reserve is not for imports"
    );
    assert!(room.share(room.largest() / 2).is_ok(), "its room is free again");
}
