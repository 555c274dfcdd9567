//! The end of a repo: no commit of it comes after its removal, who came too late is told so, and the same DID can begin
//! again.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::Method;
use engine::entry::{Change, Entry, EntryKind};
use engine::log::Lsn;
use engine::repo::event::{self, Event};
use engine::repo::{Did, SigningKey};
use futures_util::future::join_all;
use serde_json::json;

use super::prepare::{Validate, prepare};
use super::{Write, WriteError, build};
use crate::testkit::{NOTE, Options, PATIENCE, Server, User, bearer};

fn create(rkey: &str) -> Vec<Write> {
    let path = format!("{NOTE}/{rkey}").parse().unwrap();
    let record = prepare(&path, json!({"text": rkey}), Validate::Off).unwrap();
    vec![Write::Create(path, record)]
}

/// What the log says of a repo, in order.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Commit,
    Removed,
    Blob,
    Rows,
    Head,
    Swept,
}

fn history(server: &Server, did: &Did) -> Vec<(Lsn, Said)> {
    let mut tail = server.app.engine.tail(Lsn::ZERO);
    let mut history = Vec::new();
    loop {
        let frames = tail.next_batch(Lsn::MAX, 16 << 20).unwrap();
        if frames.is_empty() {
            return history;
        }
        for frame in &frames {
            let entry = Entry::decode(frame).unwrap();
            if entry.kind == EntryKind::Commit
                && let Event::Commit(view) = event::decode(&frame.public()).unwrap()
                && view.repo == *did
            {
                history.push((entry.lsn, Said::Commit));
            }
            for change in &entry.changes {
                let (of, said) = match change {
                    Change::RepoRemoved { did } => (did, Said::Removed),
                    Change::BlobStored { did, .. } => (did, Said::Blob),
                    Change::RepoRows { did, .. } => (did, Said::Rows),
                    Change::RepoHead { did, .. } => (did, Said::Head),
                    Change::GenerationSwept { did, .. } => (did, Said::Swept),
                    _ => continue,
                };
                if of == did {
                    history.push((entry.lsn, said));
                }
            }
        }
    }
}

/// Gives the DID a new repo, as a sign-up does.
async fn begin_again(server: &Server, did: &Did) {
    let repos = &server.app.repos;
    let key: std::sync::Arc<SigningKey> = repos.inner.shared.keys.get(did).await.unwrap().unwrap();
    let genesis = build::genesis(did, &key, repos.next_tid()).unwrap();
    let receipt = server
        .app
        .engine
        .append(vec![genesis.commit, genesis.sync])
        .unwrap();
    receipt.durable().await.unwrap();
}

async fn upload(server: &Server, user: &User, n: usize) -> u16 {
    server
        .upload(user, "text/plain", format!("blob {n}"))
        .await
        .status
        .as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_during_a_removal_never_come_after_it() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    let repos = &server.app.repos;
    for round in 0..8 {
        let removed = AtomicBool::new(false);
        let writers = (0..16).map(|writer| {
            let (removed, alice) = (&removed, &alice);
            async move {
                let (mut made, mut late) = (0, 0);
                for n in 0.. {
                    let was_removed = removed.load(Ordering::SeqCst);
                    let key = format!("r{round}w{writer}n{n}");
                    match repos.write(&alice.did, create(&key), None).await {
                        Ok(_) => {
                            assert!(!was_removed, "a write after the removal was acknowledged");
                            made += 1;
                        }
                        Err(WriteError::RepoNotFound(_)) => late += 1,
                        Err(WriteError::Busy) => assert!(!was_removed, "a removed repo is not busy"),
                        Err(error) => panic!("{error}"),
                    }
                    if late > 2 {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                made
            }
        });
        let uploads = async {
            let mut answers = Vec::new();
            for n in 0..200 {
                answers.push(upload(&server, &alice, round * 1000 + n).await);
                if removed.load(Ordering::SeqCst) {
                    break;
                }
            }
            answers
        };
        let removal = async {
            for n in 0..5 {
                repos
                    .write(&alice.did, create(&format!("r{round}m{n}")), None)
                    .await
                    .unwrap();
            }
            let lsn = repos.remove(&alice.did, Vec::new()).await.unwrap();
            removed.store(true, Ordering::SeqCst);
            lsn
        };
        let (made, uploads, lsn) = tokio::join!(join_all(writers), uploads, removal);
        assert!(made.iter().sum::<usize>() > 0, "round {round} was no race");
        assert!(
            uploads.iter().all(|status| [200, 400, 503].contains(status)),
            "{uploads:?}"
        );
        let history = history(&server, &alice.did);
        assert_eq!(history.last().unwrap(), &(lsn, Said::Removed));
        // A DID that has no repo gets no actor that stays, and others never noticed.
        assert!(matches!(
            repos.remove(&alice.did, Vec::new()).await,
            Err(WriteError::RepoNotFound(_))
        ));
        repos
            .write(&bobby.did, create(&format!("other{round}")), None)
            .await
            .unwrap();
        assert!(repos.inner.closed.lock().is_empty());

        begin_again(&server, &alice.did).await;
        repos.write(&alice.did, create("again"), None).await.unwrap();
        assert_eq!(server.repo(&alice.did).await.records.len(), 1);
    }
    let rows = server.repo(&alice.did).await;
    let server = server.restart().await;
    assert_eq!(server.repo(&alice.did).await.records, rows.records);
    assert_eq!(server.repo(&bobby.did).await.records.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_repo_answers_so_over_http_and_a_rebuild_agrees() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "soon gone").await;
    server.app.repos.remove(&alice.did, Vec::new()).await.unwrap();
    for server in [&server] {
        let input = json!({"repo": alice.did, "collection": NOTE, "record": {"text": "late"}});
        let late = server
            .call_as(&alice.access, "com.atproto.repo.createRecord", &input)
            .await;
        assert_eq!(late.error(), (400, "RepoNotFound".to_owned()));
        assert_eq!(upload(server, &alice, 1).await, 400);
        let query = format!("did={}", alice.did);
        for method in ["com.atproto.sync.getLatestCommit", "com.atproto.sync.getRepo"] {
            let (status, _) = server.query(method, &query).await.error();
            assert_eq!(status, 400, "{method}");
        }
    }
    let server = server
        .restart_after(|data| std::fs::remove_file(data.join("index.redb")).unwrap())
        .await;
    let error = server
        .app
        .repos
        .write(&alice.did, create("late"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, WriteError::RepoNotFound(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_and_exports_under_way_end_in_order() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    for n in 0..40 {
        server.post(&alice, &format!("post {n}")).await;
    }
    let query = format!("/xrpc/com.atproto.sync.getRepo?did={}", alice.did);
    let car = server.get(&query).await.body;
    let export = super::export::repo(&server.app.engine, &server.app.exports, &alice.did, None);
    let export = export.await.unwrap();

    // An import whose bytes are here when the repo goes.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<bytes::Bytes, std::io::Error>>(1);
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let authorization = bearer(&alice.access);
    let headers = [
        ("content-type", "application/vnd.ipld.car"),
        ("authorization", authorization.as_str()),
    ];
    let import = server.request(
        Method::POST,
        "/xrpc/com.atproto.repo.importRepo",
        &headers,
        Body::from_stream(body),
    );
    let removal = async {
        sender.send(Ok(car.slice(..100))).await.unwrap();
        server.app.repos.remove(&alice.did, Vec::new()).await.unwrap();
        sender.send(Ok(car.slice(100..))).await.unwrap();
        drop(sender);
    };
    let (import, ()) = tokio::join!(import, removal);
    assert_eq!(import.error(), (400, "RepoNotFound".to_owned()));
    let said: Vec<Said> = history(&server, &alice.did)
        .into_iter()
        .map(|(_, said)| said)
        .collect();
    assert_eq!(said.last(), Some(&Said::Removed));

    // The export goes on with what it began with.
    let pieces: Vec<bytes::Bytes> = futures_util::TryStreamExt::try_collect(export).await.unwrap();
    assert_eq!(pieces.concat(), car);
    server.post(&bobby, "not concerned").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_takes_the_repo_from_an_import_that_has_closed_it() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let repos = &server.app.repos;
    let held = repos.close_to_writes(&alice.did).await.unwrap();
    let closing = held.closing();
    // Another import does not wait for it, and says so.
    assert!(matches!(
        repos.close_to_writes(&alice.did).await,
        Err(WriteError::Busy)
    ));
    assert!(!closing.is_unwanted());
    let importing = async {
        let noticed = tokio::time::timeout(PATIENCE, async {
            while !closing.is_unwanted() {
                tokio::task::yield_now().await;
            }
        });
        noticed.await.unwrap();
        drop(held);
    };
    let (removed, ()) = tokio::join!(repos.remove(&alice.did, Vec::new()), importing);
    removed.unwrap();
    assert!(repos.inner.closed.lock().is_empty());
}

#[tokio::test]
async fn trees_stay_inside_their_bytes() {
    let most = 400 << 10;
    let options = Options {
        tree_bytes: most,
        ..Options::default()
    };
    let server = Server::with(options).await;
    let repos = &server.app.repos;
    let mut users = Vec::new();
    for name in ["alice", "bobby", "carol", "david", "emily", "frank"] {
        users.push(server.sign_up(name).await);
    }
    // Forgetting looks at the clock, which stands still unless told.
    let tick = || server.clock.advance(std::time::Duration::from_millis(20));
    let mut highest = 0;
    for (turn, user) in users.iter().chain(&users).enumerate() {
        for n in 0..60 {
            tick();
            let keys = (0..10).map(|m| format!("k{:02}t{turn}n{n}m{m}{}", n * 7 % 60, "y".repeat(60)));
            let writes = keys.flat_map(|key| create(&key)).collect();
            repos.write(&user.did, writes, None).await.unwrap();
            highest = highest.max(repos.inner.shared.trees.used());
        }
    }
    assert!(highest > most / 2, "{highest} bytes are no test of {most}");
    assert!(highest < most + (64 << 10), "{highest} bytes");
    for user in &users {
        assert_eq!(server.repo(&user.did).await.records.len(), 1200);
    }
    // What is forgotten is given back.
    repos.inner.actors.lock().clear();
    let ended = tokio::time::timeout(PATIENCE, async {
        while repos.inner.shared.trees.used() > 0 {
            tokio::task::yield_now().await;
        }
    });
    ended.await.unwrap();
}
