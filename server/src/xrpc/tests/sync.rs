//! `com.atproto.sync.*`, and blobs from upload to deletion.

use std::collections::HashMap;

use axum::body::{Body, Bytes};
use axum::http::Method;
use engine::repo::Cid;
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::mst::Tree;
use futures_util::stream;
use serde_json::{Value, json};

use crate::testkit::{Answer, ExportedRepo, NOTE, Server, User, basic, bearer, files};

const BLOB: &str = "com.atproto.sync.getBlob";
const BLOBS: &str = "com.atproto.sync.listBlobs";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n0000IHDR and more of a picture that is none";

fn invalid() -> (u16, String) {
    (400, "InvalidRequest".to_owned())
}

fn blocks(answer: &Answer) -> (Vec<Cid>, HashMap<Cid, Bytes>) {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), Some("application/vnd.ipld.car"));
    let car = CarSlice::new(&answer.body, CarLimits::default()).unwrap();
    let roots = car.roots().to_vec();
    let blocks = car.map(|block| block.map(|b| (b.cid, Bytes::copy_from_slice(b.bytes))).unwrap());
    (roots, blocks.collect())
}

async fn put(server: &Server, user: &User, rkey: &str, record: Value) -> Answer {
    let input = json!({"repo": user.did, "collection": NOTE, "rkey": rkey, "record": record});
    server
        .call_as(&user.access, "com.atproto.repo.putRecord", &input)
        .await
}

#[tokio::test]
async fn an_unknown_an_inactive_and_an_own_repo_are_told_apart() {
    let server = Server::start().await;
    let (alice, bob) = (server.sign_up("alice").await, server.sign_up("bob").await);
    let methods = [
        ("getRepo", String::new()),
        ("getLatestCommit", String::new()),
        ("getRecord", format!("&collection={NOTE}&rkey=x")),
        ("listBlobs", String::new()),
    ];
    let states = [
        (
            "RepoDeactivated",
            "UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1",
        ),
        (
            "RepoTakendown",
            "UPDATE actor SET takedownRef = 'x' WHERE did = ?1",
        ),
    ];
    for (method, more) in &methods {
        let nsid = format!("com.atproto.sync.{method}");
        let answer = server
            .query(&nsid, &format!("did=did:plc:ewvi7nxzyoun6zhxrhs64oiz{more}"))
            .await;
        assert_eq!(answer.error(), (400, "RepoNotFound".into()), "{method}");
        for query in ["", "did=nope"] {
            assert_eq!(
                server.query(&nsid, &format!("{query}{more}")).await.error(),
                invalid(),
                "{method}"
            );
        }
    }
    for (name, sql) in states {
        server.sql(sql, &alice.did).await;
        for (method, more) in &methods {
            let nsid = format!("com.atproto.sync.{method}");
            let query = format!("did={}{more}", alice.did);
            assert_eq!(
                server.query(&nsid, &query).await.error(),
                (400, name.to_owned()),
                "{method}"
            );
            let answer = server.query_as(&bob.access, &nsid, &query).await;
            assert_eq!(
                answer.error(),
                (400, name.to_owned()),
                "{method} as somebody else"
            );
            assert_eq!(
                server.query_as(&alice.access, &nsid, &query).await.status,
                200,
                "{method}"
            );
            let path = format!("/xrpc/{nsid}?{query}");
            let answer = server
                .request(Method::GET, &path, &[("authorization", &basic())], Body::empty())
                .await;
            assert_eq!(answer.status, 200, "{method} as the administrator");
            for (header, status) in [("Basic YWRtaW46eA==", 401), ("rubbish", 400), ("Bearer x", 400)] {
                let answer = server
                    .request(Method::GET, &path, &[("authorization", header)], Body::empty())
                    .await;
                assert_eq!(answer.status, status, "{method} {header}");
            }
        }
    }
}

#[tokio::test]
async fn a_repo_is_exported_whole_or_since_a_revision() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let old = server.post(&alice, "old").await;
    let new = server.post(&alice, "new").await;
    assert_eq!(server.repo(&alice.did).await.records.len(), 2);
    let export = async |since: &str| {
        let query = format!("did={}&since={since}", alice.did);
        blocks(&server.query("com.atproto.sync.getRepo", &query).await)
    };
    let cid = |value: &Value| value["cid"].as_str().unwrap().parse::<Cid>().unwrap();
    let (roots, since_old) = export(old["commit"]["rev"].as_str().unwrap()).await;
    assert_eq!(roots, [cid(&new["commit"])]);
    assert!(since_old.contains_key(&cid(&new)) && !since_old.contains_key(&cid(&old)));
    for unknown in ["2222222222222", ""] {
        let (_, all) = export(unknown).await;
        assert!(all.contains_key(&cid(&old)), "{unknown}");
    }
    for latest in [new["commit"]["rev"].as_str().unwrap(), "jzzzzzzzzzzzz"] {
        let (_, none) = export(latest).await;
        assert_eq!(
            none.keys().collect::<Vec<_>>(),
            [&cid(&new["commit"])],
            "{latest}"
        );
    }
    let query = format!("did={}&since=nope", alice.did);
    assert_eq!(
        server.query("com.atproto.sync.getRepo", &query).await.error(),
        invalid()
    );
}

#[tokio::test]
async fn a_compressed_export_holds_the_same_and_media_is_never_compressed() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for n in 0..30 {
        server
            .post(&alice, &format!("{n} {}", "again and ".repeat(200)))
            .await;
    }
    let gzip = [("accept-encoding", "gzip, br")];
    let path = format!("/xrpc/com.atproto.sync.getRepo?did={}", alice.did);
    let plain = server.get(&path).await;
    let packed = server.request(Method::GET, &path, &gzip, Body::empty()).await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(packed.body.starts_with(&[0x1f, 0x8b]) && packed.body.len() < plain.body.len() / 5);
    let vary: Vec<_> = packed
        .headers
        .get_all("vary")
        .iter()
        .map(|v| v.to_str().unwrap().to_lowercase())
        .collect();
    assert!(
        vary.iter().any(|v| v.contains("accept-encoding"))
            && vary.iter().any(|v| v.contains("authorization"))
    );
    let text = "compressible ".repeat(1000);
    let blob = server.upload(&alice, "text/plain", text.clone()).await.ok()["blob"].clone();
    put(&server, &alice, "x", json!({"blob": blob})).await.ok();
    let path = format!(
        "/xrpc/{BLOB}?did={}&cid={}",
        alice.did,
        blob["ref"]["$link"].as_str().unwrap()
    );
    let answer = server.request(Method::GET, &path, &gzip, Body::empty()).await;
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(
        answer.header("content-length"),
        Some(text.len().to_string().as_str())
    );
    assert_eq!(answer.body, text.as_bytes());
}

#[tokio::test]
async fn blocks_are_given_once_each_or_not_at_all() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let post = server.post(&alice, "one").await;
    let repo = server.repo(&alice.did).await;
    let ask = async |cids: &[String]| {
        let cids: String = cids.iter().map(|cid| format!("&cids={cid}")).collect();
        server
            .query("com.atproto.sync.getBlocks", &format!("did={}{cids}", alice.did))
            .await
    };
    let cids: Vec<String> = repo
        .blocks
        .keys()
        .chain(repo.blocks.keys())
        .map(ToString::to_string)
        .collect();
    let (roots, found) = blocks(&ask(&cids).await);
    assert!(roots.is_empty());
    assert_eq!(found, repo.blocks);
    let missing = Cid::for_dag_cbor(b"missing").to_string();
    let answer = ask(&[post["cid"].as_str().unwrap().to_owned(), missing.clone()]).await;
    assert_eq!(answer.error(), invalid());
    assert!(answer.json()["message"].as_str().unwrap().contains(&missing));
    assert_eq!(ask(&[]).await.error(), invalid());
    assert_eq!(ask(&["nope".to_owned()]).await.error(), invalid());
    assert_eq!(ask(&vec![missing; 501]).await.error(), invalid());
    let unknown = format!("did=did:plc:ewvi7nxzyoun6zhxrhs64oiz&cids={}", cids[0]);
    let answer = server.query("com.atproto.sync.getBlocks", &unknown).await;
    assert_eq!(answer.error(), (400, "RepoNotFound".into()));
}

#[tokio::test]
async fn a_record_is_proven_to_be_there_and_an_absent_one_to_be_absent() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for n in 0..50 {
        put(&server, &alice, &format!("key{n:02}"), json!({"n": n}))
            .await
            .ok();
    }
    for (rkey, there) in [("key17", true), ("key17x", false), ("zzz", false)] {
        let query = format!("did={}&collection={NOTE}&rkey={rkey}", alice.did);
        let (roots, found) = blocks(&server.query("com.atproto.sync.getRecord", &query).await);
        let commit = Commit::decode(found[&roots[0]].clone()).unwrap();
        let key = format!("{NOTE}/{rkey}");
        let cid = Tree::open(commit.data()).get(&key, &found).unwrap();
        assert_eq!(cid.is_some(), there, "{rkey}");
        if let Some(cid) = cid {
            assert!(found.contains_key(&cid));
        }
        assert!(found.len() < 20, "a proof, not the repo");
    }
}

#[tokio::test]
async fn the_status_of_a_repo_has_a_rev_or_a_status() {
    const STATUS: &str = "com.atproto.sync.getRepoStatus";
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let query = format!("did={}", alice.did);
    let rev = server.repo(&alice.did).await.commit.rev().to_string();
    let active = server.query(STATUS, &query).await.ok();
    assert_eq!(active, json!({"did": alice.did, "active": true, "rev": rev}));
    server
        .sql("UPDATE actor SET deactivatedAt = 'x' WHERE did = ?1", &alice.did)
        .await;
    let answer = server.query(STATUS, &query).await.ok();
    assert_eq!(
        answer,
        json!({"did": alice.did, "active": false, "status": "deactivated"})
    );
    let answer = server.query(STATUS, "did=did:plc:ewvi7nxzyoun6zhxrhs64oiz").await;
    assert_eq!(answer.error(), (400, "RepoNotFound".into()));
}

#[tokio::test]
async fn all_repos_are_listed_in_order_of_creation_inactive_ones_too() {
    const LIST: &str = "com.atproto.sync.listRepos";
    let server = Server::start().await;
    assert_eq!(server.query(LIST, "").await.ok(), json!({"repos": []}));
    let mut users = Vec::new();
    for name in ["carol", "alice", "bobby"] {
        users.push(server.sign_up(name).await);
    }
    server
        .sql("UPDATE actor SET takedownRef = 'x' WHERE did = ?1", &users[1].did)
        .await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.query(LIST, &format!("limit=2&cursor={cursor}")).await.ok();
        let repos = page["repos"].as_array().unwrap().clone();
        if repos.is_empty() {
            assert!(page.get("cursor").is_none());
            break;
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
        let (millis, did) = cursor.split_once("::").unwrap();
        assert!(millis.parse::<u64>().is_ok() && repos.last().unwrap()["did"] == did);
        found.extend(repos);
    }
    let dids: Vec<_> = found.iter().map(|repo| repo["did"].as_str().unwrap()).collect();
    assert_eq!(
        dids,
        users.iter().map(|user| user.did.as_str()).collect::<Vec<_>>()
    );
    assert_eq!(
        (&found[1]["active"], &found[1]["status"]),
        (&json!(false), &json!("takendown"))
    );
    assert!(found[0].get("status").is_none());
    assert!(
        found
            .iter()
            .all(|repo| repo["head"].is_string() && repo["rev"].is_string())
    );
    for cursor in [
        "nope",
        "1::nope",
        "x::did:plc:abc",
        "99999999999999999999::did:plc:abc",
        "-1::did:plc:abc",
    ] {
        assert_eq!(
            server.query(LIST, &format!("cursor={cursor}")).await.error(),
            invalid(),
            "{cursor}"
        );
    }
    for limit in ["0", "1001", "ten"] {
        assert_eq!(
            server.query(LIST, &format!("limit={limit}")).await.error(),
            invalid()
        );
    }
}

#[tokio::test]
async fn a_blob_is_temporary_until_a_record_references_it() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let blob = server.upload(&alice, "application/octet-stream", PNG).await.ok()["blob"].clone();
    assert_eq!(
        (&blob["$type"], &blob["mimeType"]),
        (&json!("blob"), &json!("image/png"))
    );
    assert_eq!(blob["size"], PNG.len());
    let cid = blob["ref"]["$link"].as_str().unwrap().to_owned();
    assert_eq!(cid, Cid::for_raw(PNG).to_string());
    let get = format!("did={}&cid={cid}", alice.did);
    let list = format!("did={}", alice.did);
    assert_eq!(server.query(BLOB, &get).await.error(), invalid());
    assert_eq!(server.query(BLOBS, &list).await.ok(), json!({"cids": []}));
    // A reference must describe a temporary blob truly.
    for (field, value, name) in [
        ("mimeType", json!("image/jpeg"), "InvalidMimeType"),
        ("size", json!(1), "InvalidSize"),
        (
            "ref",
            json!({"$link": Cid::for_raw(b"other").to_string()}),
            "BlobNotFound",
        ),
    ] {
        let mut wrong = blob.clone();
        wrong[field] = value;
        let answer = put(&server, &alice, "pic", json!({"embed": {"image": wrong}})).await;
        assert_eq!(answer.error(), (400, name.to_owned()));
    }
    let first = put(&server, &alice, "pic", json!({"embed": {"image": blob}}))
        .await
        .ok();
    let answer = server.query(BLOB, &get).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, PNG));
    assert_eq!(answer.header("content-type"), Some("image/png"));
    assert_eq!(
        answer.header("content-length"),
        Some(PNG.len().to_string().as_str())
    );
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        answer.header("content-security-policy"),
        Some("default-src 'none'; sandbox")
    );
    assert_eq!(
        answer.header("content-disposition"),
        Some(format!("attachment; filename=\"{cid}\"").as_str())
    );
    let listed = server.query(BLOBS, &list).await.ok();
    assert_eq!(listed, json!({"cids": [cid], "cursor": cid}));
    assert_eq!(
        server.query(BLOBS, &format!("{list}&cursor={cid}")).await.ok(),
        json!({"cids": []})
    );
    let since = format!("{list}&since={}", first["commit"]["rev"].as_str().unwrap());
    assert_eq!(server.query(BLOBS, &since).await.ok(), json!({"cids": []}));
    for query in ["&cursor=nope", "&since=nope", "&limit=0"] {
        assert_eq!(
            server.query(BLOBS, &format!("{list}{query}")).await.error(),
            invalid()
        );
    }
    // Now it is permanent: another reference is taken whatever it says.
    let mut wrong = blob.clone();
    wrong["size"] = json!(1);
    put(&server, &alice, "other", json!({"image": wrong})).await.ok();
    put(&server, &alice, "other", json!({})).await.ok();
    assert_eq!(
        server.query(BLOB, &get).await.status,
        200,
        "one reference is left"
    );
    put(&server, &alice, "pic", json!({})).await.ok();
    assert_eq!(server.query(BLOB, &get).await.error(), invalid());
    let bob = server.sign_up("bob").await;
    let answer = put(&server, &bob, "pic", json!({"image": blob})).await;
    assert_eq!(
        answer.error(),
        (400, "BlobNotFound".into()),
        "a blob is its uploader's"
    );
}

#[tokio::test]
async fn refused_uploads_leave_no_bytes() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let large = vec![b'x'; 100_001];
    let answer = server.upload(&alice, "text/plain", large.clone()).await;
    assert_eq!(answer.error(), (413, "PayloadTooLarge".into()));
    let pieces = stream::iter(
        large
            .chunks(10_000)
            .map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c)))
            .collect::<Vec<_>>(),
    );
    let answer = server
        .upload(&alice, "text/plain", Body::from_stream(pieces))
        .await;
    assert_eq!(answer.error(), (413, "PayloadTooLarge".into()));
    let broken = stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(std::io::Error::other("gone")),
    ]);
    let answer = server
        .upload(&alice, "text/plain", Body::from_stream(broken))
        .await;
    assert_eq!(answer.error(), invalid());
    assert_eq!(server.upload(&alice, "text/plain", "").await.error(), invalid());
    let authorization = bearer(&alice.access);
    let path = "/xrpc/com.atproto.repo.uploadBlob";
    let answer = server
        .request(
            Method::POST,
            path,
            &[("authorization", &authorization)],
            "no type",
        )
        .await;
    assert_eq!(answer.error(), invalid());
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "text/plain"),
        ("content-encoding", "gzip"),
    ];
    let answer = server.request(Method::POST, path, &headers, "packed").await;
    assert_eq!(answer.error(), (415, "UnsupportedMediaType".into()));
    let headers = [("content-type", "text/plain")];
    let answer = server.request(Method::POST, path, &headers, "whose").await;
    assert_eq!(answer.error(), (401, "AuthMissing".into()));
    // Whoever goes away in the middle leaves nothing either.
    let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"half"))]);
    let stalled = futures_util::StreamExt::chain(begun, stream::pending());
    let upload = server.upload(&alice, "text/plain", Body::from_stream(stalled));
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(200), upload)
            .await
            .is_err()
    );
    assert_eq!(
        files(&server.dir.path().join("blobs")),
        Vec::<std::path::PathBuf>::new()
    );
    server
        .upload(&alice, "text/plain", vec![b'x'; 100_000])
        .await
        .ok();
    assert_eq!(files(&server.dir.path().join("blobs")).len(), 1);
}

#[tokio::test]
async fn the_same_bytes_are_one_blob_with_its_first_type() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let first = server
        .upload(&alice, "text/plain; charset=utf-8", "hello")
        .await
        .ok();
    assert_eq!(first["blob"]["mimeType"], "text/plain");
    let second = server.upload(&alice, "text/markdown", "hello").await.ok();
    assert_eq!(first, second);
}

#[tokio::test]
async fn a_blob_whose_bytes_are_lost_is_not_found() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    let blob = server.upload(&alice, "text/plain", "hello").await.ok()["blob"].clone();
    put(&server, &alice, "x", json!({"blob": blob})).await.ok();
    for file in files(&server.dir.path().join("blobs")) {
        std::fs::remove_file(file).unwrap();
    }
    let query = format!("did={}&cid={}", alice.did, blob["ref"]["$link"].as_str().unwrap());
    assert_eq!(server.query(BLOB, &query).await.error(), invalid());
    server.upload(&alice, "text/plain", "hello").await.ok();
    assert_eq!(
        server.query(BLOB, &query).await.status,
        200,
        "another upload heals it"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_under_writes_is_one_commits_state() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    for n in 0..40 {
        put(&server, &alice, &format!("k{n}"), json!({"n": n})).await.ok();
    }
    let writes = async {
        for n in 0..60 {
            put(
                &server,
                &alice,
                &format!("k{}", n % 40),
                json!({"n": n, "again": true}),
            )
            .await
            .ok();
        }
    };
    let exports = async {
        for _ in 0..10 {
            let answer = server
                .query("com.atproto.sync.getRepo", &format!("did={}", alice.did))
                .await;
            assert_eq!(ExportedRepo::read(&answer.body).records.len(), 40);
        }
    };
    futures_util::join!(writes, exports);
}
