//! Repos that a restore has set back: announced once, with a rev above what was seen, over the records that they have.

use engine::entry::{Entry, EntryKind};
use engine::log::Lsn;
use engine::repo::event::{Event, decode};
use engine::repo::{Did, Tid};

use crate::testkit::Server;

const WAITING: &str = "SELECT count(*) FROM restored_repo";

/// DID and rev of every announcement behind `after`, and whether there was a commit.
fn told(server: &Server, after: Lsn) -> (Vec<(Did, Tid)>, bool) {
    let mut tail = server.app.engine.tail(after);
    let (mut told, mut commits) = (Vec::new(), false);
    loop {
        let frames = tail.next_batch(Lsn::MAX, 1 << 20).unwrap();
        if frames.is_empty() {
            return (told, commits);
        }
        for frame in frames {
            let entry = Entry::decode(&frame).unwrap();
            commits |= entry.kind == EntryKind::Commit;
            if entry.kind != EntryKind::Sync {
                continue;
            }
            if let Event::Sync(sync) = decode(&entry.public).unwrap() {
                told.push((sync.did, sync.rev));
            }
        }
    }
}

/// A rev of an hour from now, which a server with a fast clock has shown.
fn shown() -> Tid {
    let now = engine::clock::Clock::now_micros(&engine::clock::SystemClock);
    Tid::from_micros(now + 3_600_000_000, 7)
}

/// Lets the account database say that consumers have seen the rev.
async fn set_back(server: &Server, did: &Did, rev: Tid) {
    let sql = format!("INSERT INTO restored_repo (did, rev) VALUES (?1, '{rev}')");
    server.sql(sql.leak(), did).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_repo_gets_a_rev_above_what_was_seen_and_active_ones_are_announced() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    for user in [&alice, &bobby] {
        server.post(user, "stays").await;
    }
    let before = server.repo(&alice.did).await;
    let rev = shown();
    for user in [&alice, &bobby] {
        set_back(&server, &user.did, rev).await;
    }
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &bobby.did)
        .await;
    let from = server.app.engine.appended().get();
    assert_eq!(server.app.accounts.set_restored_right().await.unwrap(), 2);
    assert_eq!(server.count(WAITING).await, 0);

    let after = server.repo(&alice.did).await;
    assert!(after.commit.rev() > rev);
    assert_eq!(
        (after.commit.data(), &after.records),
        (before.commit.data(), &before.records)
    );
    let (announced, commits) = told(&server, from);
    assert_eq!(announced, [(alice.did.clone(), after.commit.rev())]);
    assert!(!commits, "no commit that nobody can chain");
    let reader = server.app.engine.reader().unwrap();
    assert!(reader.repo(&bobby.did).unwrap().unwrap().rev > rev);
    drop(reader);

    // It is done once, and the next commit goes on from there, also after the views were folded anew.
    assert_eq!(server.app.accounts.set_restored_right().await.unwrap(), 0);
    server.post(&alice, "goes on").await;
    let server = server
        .restart_after(|data| std::fs::remove_file(data.join("index.redb")).unwrap())
        .await;
    let last = server.repo(&alice.did).await;
    assert!(last.commit.rev() > after.commit.rev());
    assert_eq!(last.records.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repo_that_is_not_there_any_more_begins_anew_above_what_was_seen() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, "was removed since").await;
    let rev = shown();
    set_back(&server, &alice.did, rev).await;
    server.app.repos.remove(&alice.did, Vec::new()).await.unwrap();
    assert_eq!(server.app.accounts.set_restored_right().await.unwrap(), 1);
    let anew = server.repo(&alice.did).await;
    assert!(anew.commit.rev() > rev && anew.records.is_empty());
    server.post(&alice, "begins anew").await;
    assert_eq!(server.repo(&alice.did).await.records.len(), 1);
}
