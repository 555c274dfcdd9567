//! Query parameters and cursors.

use super::{Cases, Error, NOBODY, NOTHING, Refusal};

pub(super) fn all(cases: &mut Cases, did: &str) {
    for (what, target) in [
        ("no parameters", "com.atproto.repo.getRecord".to_owned()),
        (
            "one of three parameters",
            format!("com.atproto.repo.getRecord?repo={did}"),
        ),
        (
            "an empty parameter",
            "com.atproto.identity.resolveHandle?handle=".to_owned(),
        ),
        (
            "a handle that is none",
            "com.atproto.identity.resolveHandle?handle=not%20a%20handle".to_owned(),
        ),
        (
            "a limit of 0",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&limit=0"),
        ),
        (
            "a limit above the largest",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&limit=101"),
        ),
        (
            "a negative limit",
            "com.atproto.sync.listRepos?limit=-1".to_owned(),
        ),
        ("half a limit", "com.atproto.sync.listRepos?limit=1.5".to_owned()),
        (
            "a limit in words",
            "com.atproto.sync.listRepos?limit=many".to_owned(),
        ),
        (
            "a limit beyond numbers",
            "com.atproto.sync.listRepos?limit=99999999999999999999999".to_owned(),
        ),
        (
            "a cursor of nonsense",
            "com.atproto.sync.listRepos?cursor=nonsense".to_owned(),
        ),
        (
            "a cursor with a huge time",
            format!("com.atproto.sync.listRepos?cursor=99999999999999999999::{did}"),
        ),
        (
            "a cursor without a DID",
            "com.atproto.sync.listRepos?cursor=1700000000000::".to_owned(),
        ),
        (
            "a cursor that is no CID",
            format!("com.atproto.sync.listBlobs?did={did}&cursor=nonsense"),
        ),
        (
            "a since that is no TID",
            format!("com.atproto.sync.getRepo?did={did}&since=yesterday"),
        ),
        (
            "a since that is no TID",
            format!("com.atproto.sync.listBlobs?did={did}&since=0"),
        ),
        (
            "a cursor that is no record key",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&cursor=a%2Fb"),
        ),
        (
            "a flag that is none",
            format!("com.atproto.repo.listRecords?repo={did}&collection=app.bsky.feed.post&reverse=perhaps"),
        ),
        (
            "a repo that is none",
            "com.atproto.repo.listRecords?repo=!!&collection=app.bsky.feed.post".to_owned(),
        ),
        (
            "a repo of nobody",
            format!("com.atproto.repo.listRecords?repo={NOBODY}&collection=app.bsky.feed.post"),
        ),
        (
            "a collection that is none",
            format!("com.atproto.repo.listRecords?repo={did}&collection=posts"),
        ),
        (
            "a record key that is none",
            format!("com.atproto.sync.getRecord?did={did}&collection=app.bsky.feed.post&rkey=.."),
        ),
        (
            "a record key with a slash",
            format!("com.atproto.repo.getRecord?repo={did}&collection=app.bsky.feed.post&rkey=a%2Fb"),
        ),
        (
            "a CID that is none",
            format!("com.atproto.sync.getBlob?did={did}&cid=bafynonsense"),
        ),
        (
            "a CID of an old kind",
            format!("com.atproto.sync.getBlob?did={did}&cid=QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"),
        ),
        (
            "a blob that is not there",
            format!("com.atproto.sync.getBlob?did={did}&cid={NOTHING}"),
        ),
        ("no CIDs", format!("com.atproto.sync.getBlocks?did={did}")),
        (
            "a block that is not there",
            format!("com.atproto.sync.getBlocks?did={did}&cids={NOTHING}"),
        ),
        (
            "600 blocks",
            format!(
                "com.atproto.sync.getBlocks?did={did}{}",
                format!("&cids={NOTHING}").repeat(600)
            ),
        ),
        (
            "a parameter twice",
            format!("com.atproto.sync.getLatestCommit?did={did}&did={did}"),
        ),
        (
            "half a percent sign",
            "com.atproto.identity.resolveHandle?handle=%zz".to_owned(),
        ),
        (
            "bytes that are no UTF-8",
            "com.atproto.identity.resolveHandle?handle=%ff%fe".to_owned(),
        ),
        (
            "a zero byte",
            "com.atproto.identity.resolveHandle?handle=alice%00.test".to_owned(),
        ),
    ] {
        cases.get(what, &target, Error(400, "InvalidRequest"));
    }
    cases.get(
        "a record that is not there",
        &format!("com.atproto.repo.getRecord?repo={did}&collection=app.bsky.feed.post&rkey=none"),
        Error(400, "RecordNotFound"),
    );
    cases.get(
        "a handle that nobody has",
        "com.atproto.identity.resolveHandle?handle=nobody.test",
        Error(400, "HandleNotFound"),
    );
    for method in ["getRepo", "getLatestCommit", "getRepoStatus", "listBlobs"] {
        cases.get(
            "a repo that is not there",
            &format!("com.atproto.sync.{method}?did={NOBODY}"),
            Error(400, "RepoNotFound"),
        );
        cases.get(
            "a DID that is none",
            &format!("com.atproto.sync.{method}?did=did"),
            Error(400, "InvalidRequest"),
        );
    }
    cases.get(
        "a repo that is not there",
        &format!("com.atproto.repo.describeRepo?repo={NOBODY}"),
        Refusal,
    );
    let subscribe = "/xrpc/com.atproto.sync.subscribeRepos";
    cases.send(
        "a firehose without an upgrade",
        "GET",
        subscribe,
        &[],
        b"",
        Refusal,
    );
    cases.send(
        "a firehose cursor in words",
        "GET",
        &format!("{subscribe}?cursor=latest"),
        &[],
        b"",
        Refusal,
    );
    let upgrade = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    cases.send(
        "a firehose cursor beyond numbers",
        "GET",
        &format!("{subscribe}?cursor=99999999999999999999"),
        &upgrade,
        b"",
        Refusal,
    );
    cases.send(
        "an upgrade elsewhere",
        "GET",
        "/xrpc/com.example.unknown",
        &upgrade,
        b"",
        Refusal,
    );
}
