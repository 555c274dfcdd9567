use engine::clock::SeededEntropy;

use super::*;
use crate::store::memory::MemoryStore;

fn request(asker: WriterId) -> HandOverRequest {
    HandOverRequest {
        asker: asker.to_string(),
        url: "http://127.0.0.1:1".to_owned(),
        format: REPLICA_FORMAT,
        asked_at_micros: 7,
    }
}

#[tokio::test]
async fn a_reign_has_one_asker_and_asking_again_is_safe() {
    let store: Arc<dyn ReplicaStore> = Arc::new(MemoryStore::new());
    let limit = Duration::from_secs(5);
    let entropy = SeededEntropy::new(1);
    let (one, two) = (
        WriterId::random(&entropy).unwrap(),
        WriterId::random(&entropy).unwrap(),
    );
    let epoch = Epoch(3);
    assert_eq!(look(&store, limit, epoch).await.unwrap(), None);
    let ask = async |who: WriterId| ask(&store, limit, epoch, who, &request(who)).await.unwrap();
    assert_eq!(ask(one).await, Asked::Ours);
    assert_eq!(ask(two).await, Asked::Another);
    assert_eq!(ask(one).await, Asked::Ours);
    assert_eq!(look(&store, limit, epoch).await.unwrap(), Some(request(one)));
    assert_eq!(look(&store, limit, Epoch(4)).await.unwrap(), None);
    forget(&store, limit, epoch).await.unwrap();
    assert_eq!(ask(two).await, Asked::Ours);
}

#[tokio::test]
async fn what_is_no_request_counts_as_none() {
    let store: Arc<dyn ReplicaStore> = Arc::new(MemoryStore::new());
    let limit = Duration::from_secs(5);
    let name = super::name(Epoch(1)).unwrap();
    store
        .create(&name, bytes::Bytes::from_static(b"{\"asker\":3}"))
        .await
        .unwrap();
    assert_eq!(look(&store, limit, Epoch(1)).await.unwrap(), None);
    let big = super::name(Epoch(2)).unwrap();
    store.create(&big, vec![b' '; 10_000].into()).await.unwrap();
    assert!(look(&store, limit, Epoch(2)).await.is_err());
}
