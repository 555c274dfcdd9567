//! The cache, under a clock that stands still until it is moved.

use super::*;
use crate::client::dns::NoDns;
use crate::client::http::FetchPolicy;
use crate::plc::op::{Operation, PlcState};
use engine::clock::ScriptedClock;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

const HOUR: u64 = 60 * 60 * 1_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Fails,
    NotFound,
}

/// A directory that counts how often it is asked, and puts the count into the document.
struct Counting {
    asked: AtomicUsize,
    mood: parking_lot::Mutex<Mood>,
}

#[async_trait]
impl crate::client::plc::PlcClient for Counting {
    async fn document(&self, did: &Did) -> Result<Value, PlcError> {
        let count = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::task::yield_now().await;
        let mood = *self.mood.lock();
        match mood {
            Mood::Answers => Ok(json!({"id": did, "count": count})),
            Mood::Fails => Err(PlcError::Unavailable("down".to_owned())),
            Mood::NotFound => Err(PlcError::NotFound(did.clone())),
        }
    }

    async fn submit(&self, did: &Did, _: &Operation) -> Result<(), PlcError> {
        Err(PlcError::NotFound(did.clone()))
    }

    async fn data(&self, did: &Did) -> Result<PlcState, PlcError> {
        Err(PlcError::NotFound(did.clone()))
    }

    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError> {
        Err(PlcError::NotFound(did.clone()))
    }

    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError> {
        Err(PlcError::NotFound(did.clone()))
    }
}

struct Scene {
    resolver: DidResolver,
    plc: Arc<Counting>,
    clock: Arc<ScriptedClock>,
    tasks: TaskTracker,
    did: Did,
}

impl Scene {
    fn new() -> Scene {
        let plc = Arc::new(Counting {
            asked: AtomicUsize::new(0),
            mood: parking_lot::Mutex::new(Mood::Answers),
        });
        let clock = Arc::new(ScriptedClock::at(1_700_000_000_000_000));
        let tasks = TaskTracker::new();
        let resolver = DidResolver::new(DidResolverParts {
            plc: plc.clone(),
            fetcher: Fetcher::new(FetchPolicy::public(Duration::from_secs(1)), Arc::new(NoDns)).unwrap(),
            allow_local: false,
            times: DidCacheTimes::default(),
            cached_documents: 16,
            clock: clock.clone(),
            tasks: tasks.clone(),
        });
        Scene {
            resolver,
            plc,
            clock,
            tasks,
            did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap(),
        }
    }

    async fn count(&self) -> Result<u64, DidError> {
        self.resolver
            .resolve(&self.did)
            .await
            .map(|document| document.json()["count"].as_u64().unwrap())
    }

    async fn background(&self) {
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(10), self.tasks.wait())
            .await
            .unwrap();
        self.tasks.reopen();
    }
}

#[tokio::test]
async fn a_document_is_fresh_for_an_hour_stale_for_a_day_and_then_fetched_while_the_caller_waits() {
    let scene = Scene::new();
    assert_eq!(scene.count().await, Ok(1));
    scene.clock.advance(HOUR - 1);
    assert_eq!(scene.count().await, Ok(1));
    scene.clock.advance(1);
    assert_eq!(scene.count().await, Ok(1), "stale, but served");
    scene.background().await;
    assert_eq!(scene.count().await, Ok(2), "refreshed behind the scenes");
    scene.clock.advance(24 * HOUR);
    assert_eq!(scene.count().await, Ok(3), "too old to serve");
    assert_eq!(scene.plc.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_failing_directory_is_covered_by_the_cache_until_the_day_is_over() {
    let scene = Scene::new();
    assert_eq!(scene.count().await, Ok(1));
    *scene.plc.mood.lock() = Mood::Fails;
    scene.clock.advance(23 * HOUR);
    assert_eq!(scene.count().await, Ok(1));
    scene.background().await;
    assert_eq!(scene.count().await, Ok(1));
    scene.background().await;
    scene.clock.advance(HOUR);
    assert!(matches!(scene.count().await, Err(DidError::Unavailable { .. })));
    *scene.plc.mood.lock() = Mood::Answers;
    assert!(scene.count().await.is_ok());
}

#[tokio::test]
async fn a_did_that_is_gone_leaves_the_cache() {
    let scene = Scene::new();
    assert_eq!(scene.count().await, Ok(1));
    *scene.plc.mood.lock() = Mood::NotFound;
    assert_eq!(
        scene.resolver.refresh(&scene.did).await,
        Err(DidError::NotFound(scene.did.clone()))
    );
    assert!(scene.count().await.is_err());
}

#[tokio::test]
async fn a_forced_refresh_goes_past_the_cache_and_renews_it() {
    let scene = Scene::new();
    assert_eq!(scene.count().await, Ok(1));
    scene.resolver.refresh(&scene.did).await.unwrap();
    assert_eq!(scene.count().await, Ok(2));
    scene.resolver.forget(&scene.did);
    assert_eq!(scene.count().await, Ok(3));
}

#[tokio::test]
async fn callers_for_one_did_share_one_fetch() {
    let scene = Scene::new();
    let counts = futures_util::future::join_all((0..20).map(|_| scene.count())).await;
    assert!(counts.iter().all(|count| *count == Ok(1)), "{counts:?}");
    assert_eq!(scene.plc.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let scene = Scene::new();
    for at in 0..100 {
        let did: Did = format!("did:plc:{at:0>24}").parse().unwrap();
        scene.resolver.resolve(&did).await.unwrap();
    }
    assert!(scene.resolver.0.cache.len() <= 16);
}

#[tokio::test]
async fn other_methods_are_not_resolved() {
    let scene = Scene::new();
    for did in [
        "did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N",
        "did:web:example.com:path",
        "did:web:localhost",
    ] {
        let did: Did = did.parse().unwrap();
        assert_eq!(
            scene.resolver.resolve(&did).await,
            Err(DidError::Unsupported(did))
        );
    }
}

#[test]
fn the_place_of_a_did_web_is_its_host_alone() {
    let url = |did: &str, local| web_url(&did.parse().unwrap(), local);
    assert_eq!(
        url("did:web:example.com", false).unwrap(),
        "https://example.com/.well-known/did.json"
    );
    assert_eq!(
        url("did:web:localhost%3A2583", true).unwrap(),
        "http://localhost:2583/.well-known/did.json"
    );
    for refused in [
        "did:web:localhost%3A2583",
        "did:web:example.com%3A22",
        "did:web:127.0.0.1",
        "did:web:a.com%2Fb",
    ] {
        assert_eq!(url(refused, false), None, "{refused}");
    }
}
