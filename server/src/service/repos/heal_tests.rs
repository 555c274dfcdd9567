//! Repos whose rows in the index are damaged: the tree heals, or the repo says so, and others never notice.

use std::path::Path;
use std::time::Instant;

use redb::{Database, ReadableTable, TableDefinition};
use serde_json::{Value, json};

use crate::testkit::{PATIENCE, Server, User};

type Bytes = &'static [u8];
const NODES: TableDefinition<Bytes, Bytes> = TableDefinition::new("nodes");
const RECORDS: TableDefinition<Bytes, &[u8; 56]> = TableDefinition::new("records");

#[expect(
    clippy::disallowed_methods,
    reason = "nobody tells when a lock of the file system is free"
)]
fn index(data: &Path) -> Database {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Database::open(data.join("index.redb")) {
            Ok(database) => return database,
            // Tasks of the server before still hold the file for a moment.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The input of a putRecord. Which records share a node is decided by the hashes of their paths, so the collection is part of the
/// case; its lexicon is not.
fn put_of(user: &User, rkey: &str) -> Value {
    json!({"repo": user.did, "collection": "app.bsky.feed.post", "rkey": rkey, "validate": false, "record": {"text": rkey}})
}

async fn put(server: &Server, user: &User, rkey: &str) -> u16 {
    let (method, input) = ("com.atproto.repo.putRecord", put_of(user, rkey));
    server.call_as(&user.access, method, &input).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_nodes_are_built_anew_and_a_repo_whose_records_are_lost_alone_refuses_writes() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    for n in 0..60 {
        for user in [&alice, &bob] {
            assert_eq!(put(&server, user, &format!("{n:04}")).await, 200);
        }
    }
    let number = server
        .app
        .engine
        .reader()
        .unwrap()
        .repo(&alice.did)
        .unwrap()
        .unwrap()
        .number;
    let server = server
        .restart_after(|data| {
            let database = index(data);
            let transaction = database.begin_write().unwrap();
            transaction
                .open_table(NODES)
                .unwrap()
                .retain(|_, _| false)
                .unwrap();
            transaction.commit().unwrap();
        })
        .await;
    for user in [&alice, &bob] {
        assert_eq!(put(&server, user, "0030again").await, 200);
        let repo = server.repo(&user.did).await;
        assert_eq!(repo.records.len(), 61);
    }

    let server = server
        .restart_after(|data| {
            let database = index(data);
            let transaction = database.begin_write().unwrap();
            {
                let mut records = transaction.open_table(RECORDS).unwrap();
                let of_alice: Vec<Vec<u8>> = records
                    .iter()
                    .unwrap()
                    .map(|row| row.unwrap().0.value().to_vec())
                    .filter(|key| key.starts_with(&number.to_be_bytes()))
                    .collect();
                assert_eq!(of_alice.len(), 61);
                for key in of_alice.iter().step_by(2) {
                    records.remove(key.as_slice()).unwrap();
                }
            }
            transaction.commit().unwrap();
        })
        .await;
    for _ in 0..2 {
        let input = put_of(&alice, "0031again");
        let answer = server
            .call_as(&alice.access, "com.atproto.repo.putRecord", &input)
            .await;
        assert_eq!(answer.error(), (500, "RepoDamaged".to_owned()));
    }
    assert_eq!(put(&server, &bob, "0031again").await, 200);
    assert_eq!(server.repo(&bob.did).await.records.len(), 62);
}
