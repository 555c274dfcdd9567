use std::path::PathBuf;
use std::time::Duration;

use engine::log::Lsn;
use tokio_util::sync::CancellationToken;

use super::Removals;
use crate::start::compaction::look;
use crate::testkit::{PATIENCE, Server, files};

const TEXT: &str = "a post of somebody who went away";
const BLOB: &str = "a picture of somebody who went away";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn traces(server: &Server, what: &str) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(what.len()).any(|window| window == what.as_bytes())
    };
    files(server.dir.path()).into_iter().filter(holds).collect()
}

fn pending(server: &Server) -> usize {
    server.app.engine.removals(10).unwrap().len()
}

async fn looks(server: &Server, removals: &mut Removals) {
    let never = CancellationToken::new();
    let looked = look(&server.app, removals, Duration::ZERO, &never);
    tokio::time::timeout(PATIENCE, looked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_deletion_in_a_store_that_needs_no_compaction_is_gone_after_its_time() {
    let server = Server::start().await;
    let (alice, bobby) = (server.sign_up("alice").await, server.sign_up("bobby").await);
    server.post(&alice, TEXT).await;
    server.post(&bobby, "stays").await;
    for user in [&alice, &bobby] {
        assert_eq!(server.upload(user, "image/png", BLOB).await.status, 200);
    }
    assert_eq!(traces(&server, BLOB).len(), 2);
    server.app.repos.remove(&alice.did, Vec::new()).await.unwrap();
    assert_eq!(server.upload(&alice, "image/png", BLOB).await.status, 400);
    assert!(!traces(&server, TEXT).is_empty());

    // Its blobs go at once, and those of others with the same bytes stay; its records do not go before their time.
    let mut removals = Removals::default();
    looks(&server, &mut removals).await;
    assert_eq!((traces(&server, BLOB).len(), pending(&server)), (1, 1));
    server.clock.advance(6 * DAY);
    looks(&server, &mut removals).await;
    assert_eq!(server.app.engine.compacted_through(), Lsn::ZERO);
    let segments = server.app.engine.segments();
    assert!(segments.iter().any(|segment| segment.sealed), "sealed in time");

    server.clock.advance(DAY);
    looks(&server, &mut removals).await;
    assert!(server.app.engine.compacted_through() > Lsn::ZERO);
    let deadline = std::time::Instant::now() + PATIENCE;
    while pending(&server) > 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            traces(&server, TEXT)
        );
        looks(&server, &mut removals).await;
    }
    assert_eq!(traces(&server, TEXT), Vec::<PathBuf>::new());
    assert_eq!(server.repo(&bobby.did).await.records.len(), 1);

    // The log remembers that it was told.
    let server = server.restart().await;
    assert_eq!(pending(&server), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_set_aside_counts_as_a_copy() {
    let server = Server::start().await;
    let alice = server.sign_up("alice").await;
    server.post(&alice, TEXT).await;
    server.app.repos.remove(&alice.did, Vec::new()).await.unwrap();
    let aside = server.app.config.data_dir.join("set-aside/1/log");
    std::fs::create_dir_all(&aside).unwrap();
    std::fs::write(aside.join("x.seg"), TEXT).unwrap();
    let mut removals = Removals::default();
    looks(&server, &mut removals).await;
    server.app.engine.log().seal_now().await.unwrap();
    server.clock.advance(8 * DAY);
    for _ in 0..4 {
        looks(&server, &mut removals).await;
    }
    let erased = server.app.engine.erased().unwrap();
    assert!(erased.through > Lsn::ZERO, "everything else is done");
    assert_eq!(pending(&server), 1);
    std::fs::remove_dir_all(server.app.config.data_dir.join("set-aside")).unwrap();
    looks(&server, &mut removals).await;
    assert_eq!(pending(&server), 0);
    assert_eq!(traces(&server, TEXT), Vec::<PathBuf>::new());
}
