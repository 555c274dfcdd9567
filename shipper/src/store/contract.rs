//! What every [`ReplicaStore`] must do, as functions for the tests of any store; they panic where a store fails them.
//! Each works under a prefix of its own and leaves what it made, so all of them can share one fresh store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test support: a failing check is meant to stop"
)]

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;

use super::{
    Created, MAX_LIST, MAX_SWAP_BYTES, ObjectName, ReplicaStore, StoreError, Swap, Tag, Tier, TierSet,
    list_all,
};

/// Runs the whole contract on a fresh store.
pub async fn all(store: Arc<dyn ReplicaStore>) {
    create_has_one_winner(&store).await;
    an_object_never_changes(&*store).await;
    what_is_not_there_is_not_found(&*store).await;
    ranges_are_exact(&*store).await;
    reads_are_bounded(&*store).await;
    listings_are_ordered_and_paged(&*store).await;
    deletion_is_idempotent(&*store).await;
    large_objects_go_through_files(&*store).await;
    large_creations_have_one_winner(&store).await;
    odd_names_stay_apart(&*store).await;
    an_object_is_swapped_only_as_it_was_seen(&*store).await;
    swaps_are_bounded(&*store).await;
    a_swap_has_one_winner(&store).await;
    a_tier_changes_nothing_that_is_read(&*store).await;
    assert_eq!(store.prove().await, Ok(()));
    assert!(!store.describe().is_empty());
}

fn name(text: &str) -> ObjectName {
    text.parse().expect("a valid name")
}

/// However many create a name at once, one wins and the object holds the winner's bytes.
pub async fn create_has_one_winner(store: &Arc<dyn ReplicaStore>) {
    for round in 0..8 {
        let object = name(&format!("winner/{round:016x}"));
        let rivals = (0..8_u8).map(|rival| {
            let (store, object) = (store.clone(), object.clone());
            tokio::spawn(async move { (rival, store.create(&object, Bytes::from(vec![rival; 1000])).await) })
        });
        let mut winners = Vec::new();
        for rival in rivals.collect::<Vec<_>>() {
            let (rival, outcome) = rival.await.expect("no panic");
            if outcome.expect("created or exists") == Created::Created {
                winners.push(rival);
            }
        }
        assert_eq!(winners.len(), 1, "{object}: {winners:?}");
        assert_eq!(
            store.get(&object, 1000).await,
            Ok(Bytes::from(vec![winners[0]; 1000]))
        );
    }
}

/// A second creation, from memory or from a file, reports that the object exists, and leaves it.
pub async fn an_object_never_changes(store: &dyn ReplicaStore) {
    let (full, empty) = (name("fixed/full"), name("fixed/empty"));
    assert_eq!(
        store.create(&full, Bytes::from_static(b"first")).await,
        Ok(Created::Created)
    );
    assert_eq!(store.create(&empty, Bytes::new()).await, Ok(Created::Created));
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"third").expect("a file");
    for object in [&full, &empty] {
        assert_eq!(
            store.create(object, Bytes::from_static(b"second")).await,
            Ok(Created::Exists)
        );
        assert_eq!(
            store.create_from_file(object, file.path()).await,
            Ok(Created::Exists)
        );
    }
    assert_eq!(store.get(&full, 5).await, Ok(Bytes::from_static(b"first")));
    assert_eq!(store.get(&empty, 0).await, Ok(Bytes::new()));
    assert_eq!(store.size(&empty).await, Ok(Some(0)));
}

/// Reading what is not there says so, and nothing else.
pub async fn what_is_not_there_is_not_found(store: &dyn ReplicaStore) {
    let object = name("absent/x/y");
    assert!(matches!(
        store.get(&object, 10).await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(matches!(
        store.get_range(&object, 0..10).await,
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(store.size(&object).await, Ok(None));
    let directory = tempfile::tempdir().expect("a directory");
    let missing = store.get_to_file(&object, &directory.path().join("x")).await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })));
    assert_eq!(store.list("absent/", None, 10).await, Ok(vec![]));
    let no_file = store
        .create_from_file(&object, &directory.path().join("none"))
        .await;
    assert!(matches!(no_file, Err(StoreError::Invalid { .. })), "{no_file:?}");
    assert_eq!(store.size(&object).await, Ok(None));
}

/// A range gives exactly its bytes, or an error if the object ends before.
pub async fn ranges_are_exact(store: &dyn ReplicaStore) {
    let object = name("range/object");
    store
        .create(&object, Bytes::from_static(b"0123456789"))
        .await
        .expect("created");
    for (range, expected) in [
        (0..10, "0123456789"),
        (0..1, "0"),
        (9..10, "9"),
        (3..7, "3456"),
        (4..4, ""),
    ] {
        assert_eq!(store.get_range(&object, range).await, Ok(Bytes::from(expected)));
    }
    for range in [9..11, 10..11, 100..200] {
        let beyond = store.get_range(&object, range).await;
        assert!(matches!(beyond, Err(StoreError::OutOfRange { .. })), "{beyond:?}");
    }
}

/// A whole object comes only if it is within the caller's bound.
pub async fn reads_are_bounded(store: &dyn ReplicaStore) {
    let object = name("bounded/object");
    store
        .create(&object, Bytes::from(vec![7; 1000]))
        .await
        .expect("created");
    assert_eq!(store.get(&object, 1000).await.map(|bytes| bytes.len()), Ok(1000));
    let large = store.get(&object, 999).await;
    assert!(
        matches!(
            large,
            Err(StoreError::TooLarge {
                size: 1000,
                max: 999,
                ..
            })
        ),
        "{large:?}"
    );
}

/// Listings are in byte order of whole names, honour prefix, start and limit, and are short only at the end.
pub async fn listings_are_ordered_and_paged(store: &dyn ReplicaStore) {
    // In byte order: '-' and '.' come before '/', which comes before digits and letters.
    let names = [
        "list/a-z",
        "list/a.z",
        "list/a/0",
        "list/a/b/c",
        "list/a/c",
        "list/a0",
        "list/ab",
        "list/b",
        "lisu",
    ];
    for (index, text) in names.iter().enumerate().rev() {
        store
            .create(&name(text), Bytes::from(vec![0; index]))
            .await
            .expect("created");
    }
    let list = async |prefix: &str, after: Option<&str>, limit| {
        let listed = store.list(prefix, after, limit).await.expect("a listing");
        listed
            .into_iter()
            .map(|meta| meta.name.to_string())
            .collect::<Vec<_>>()
    };
    let within = &names[..8];
    assert_eq!(list("list/", None, MAX_LIST).await, within);
    assert_eq!(list("list/", None, 8).await, within);
    assert_eq!(list("list/a", None, 100).await, &names[..7]);
    assert_eq!(list("list/a/", None, 100).await, &names[2..5]);
    assert_eq!(list("list/a/b", None, 100).await, &names[3..4]);
    assert_eq!(list("list/", Some("list/a.z"), 2).await, &names[2..4]);
    assert_eq!(list("list/", Some("list/a/b"), 100).await, &names[3..8]);
    assert_eq!(list("list/", Some("list/a/b/c"), 2).await, &names[4..6]);
    assert_eq!(list("list/", Some("list/b"), 100).await, &names[8..8]);
    assert_eq!(list("list/", Some("aaa"), 1).await, &names[..1]);
    assert_eq!(list("list/", Some("zzz"), 1).await, &names[..0]);
    let sizes = store.list("list/", None, 100).await.expect("a listing");
    assert_eq!(
        sizes.iter().map(|meta| meta.size).collect::<Vec<_>>(),
        (0..8).collect::<Vec<_>>()
    );
    // One by one, as a pager does.
    let mut paged = Vec::new();
    while let Some(next) = list("list/", paged.last().map(String::as_str), 1).await.pop() {
        paged.push(next);
    }
    assert_eq!(paged, within);
    for limit in [0, MAX_LIST + 1] {
        assert!(matches!(
            store.list("list/", None, limit).await,
            Err(StoreError::Invalid { .. })
        ));
    }
    assert_eq!(list_all(store, "list/", 8).await.map(|all| all.len()), Ok(8));
    assert!(matches!(
        list_all(store, "list/", 7).await,
        Err(StoreError::TooLarge { .. })
    ));
}

/// Deleting succeeds whether or not the object is there, and frees the name.
pub async fn deletion_is_idempotent(store: &dyn ReplicaStore) {
    let object = name("gone/a/b");
    assert_eq!(store.delete(&object).await, Ok(()));
    store
        .create(&object, Bytes::from_static(b"1"))
        .await
        .expect("created");
    assert_eq!(store.delete(&object).await, Ok(()));
    assert_eq!(store.delete(&object).await, Ok(()));
    assert_eq!(store.size(&object).await, Ok(None));
    assert_eq!(store.list("gone/", None, 10).await, Ok(vec![]));
    assert_eq!(
        store.create(&object, Bytes::from_static(b"2")).await,
        Ok(Created::Created)
    );
    assert_eq!(store.get(&object, 10).await, Ok(Bytes::from_static(b"2")));
}

/// An object of several blocks and pieces goes from file to file unharmed; so does an empty one.
pub async fn large_objects_go_through_files(store: &dyn ReplicaStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    for (object, size) in [
        ("file/large", 19 * 1024 * 1024 + 17),
        ("file/empty", 0),
        ("file/small", 5),
    ] {
        let object = name(object);
        let content: Vec<u8> = (0..size)
            .map(|at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        std::fs::write(&source, &content).expect("a file");
        assert_eq!(
            store.create_from_file(&object, &source).await,
            Ok(Created::Created)
        );
        assert_eq!(
            store.create_from_file(&object, &source).await,
            Ok(Created::Exists)
        );
        assert_eq!(store.size(&object).await, Ok(Some(size)));
        assert_eq!(store.get_to_file(&object, &target).await, Ok(size));
        assert!(
            std::fs::read(&target).expect("a file") == content,
            "{object} changed on its way"
        );
        if size > 100 {
            let middle = store.get_range(&object, size - 100..size).await.expect("a range");
            assert_eq!(&middle[..], &content[content.len() - 100..]);
        }
    }
}

/// Of several that create a large object at once, from files, one wins, and the object holds the winner's bytes alone.
pub async fn large_creations_have_one_winner(store: &Arc<dyn ReplicaStore>) {
    const SIZE: usize = 17 * 1024 * 1024;
    let directory = tempfile::tempdir().expect("a directory");
    let object = name("rivals/large");
    let rivals = (0..3_u8).map(|rival| {
        let path = directory.path().join(rival.to_string());
        std::fs::write(&path, vec![rival; SIZE]).expect("a file");
        let (store, object) = (store.clone(), object.clone());
        tokio::spawn(async move {
            // A rival whose blocks were dropped by another's commit may find that out between the two.
            let create = async || store.create_from_file(&object, &path).await;
            let outcome = match create().await {
                Err(error) if error.is_retryable() => create().await,
                outcome => outcome,
            };
            (rival, outcome)
        })
    });
    let mut winners = Vec::new();
    for rival in rivals.collect::<Vec<_>>() {
        let (rival, outcome) = rival.await.expect("no panic");
        if outcome.expect("created or exists") == Created::Created {
            winners.push(rival);
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    let stored = store.get(&object, SIZE as u64).await.expect("the object");
    assert!(
        stored == vec![winners[0]; SIZE],
        "the winner's bytes are not what is stored"
    );
}

/// Every character that a name may hold survives the way there and back, and case counts.
pub async fn odd_names_stay_apart(store: &dyn ReplicaStore) {
    let names = [
        "odd/%41",
        "odd/%41%2F",
        "odd/.hidden",
        "odd/A",
        "odd/_",
        "odd/a",
        "odd/a..b",
        "odd/did:plc:abc/bafkrei-x_y",
        "odd/did:web:localhost%3A2583",
    ];
    for text in names {
        assert_eq!(
            store.create(&name(text), Bytes::from(text)).await,
            Ok(Created::Created),
            "{text}"
        );
    }
    let listed = store.list("odd/", None, 100).await.expect("a listing");
    assert_eq!(
        listed.iter().map(|meta| meta.name.as_str()).collect::<Vec<_>>(),
        names
    );
    for text in names {
        assert_eq!(store.get(&name(text), 100).await, Ok(Bytes::from(text)));
    }
    assert_eq!(store.delete(&name("odd/A")).await, Ok(()));
    assert_eq!(store.size(&name("odd/a")).await, Ok(Some(5)));
}

async fn swapped(store: &dyn ReplicaStore, object: &ObjectName, bytes: &str, expected: Option<&Tag>) -> Tag {
    let swap = store.swap(object, Bytes::from(bytes.to_owned()), expected).await;
    let Ok(Swap::Swapped(tag)) = swap else {
        panic!("{object}: {swap:?}")
    };
    let read = store.read_tagged(object, bytes.len() as u64).await;
    assert_eq!(read, Ok(Some((Bytes::from(bytes.to_owned()), tag.clone()))));
    tag
}

/// A swap replaces exactly the state it expects: not a later one, not an earlier one with the same bytes, not nothing.
pub async fn an_object_is_swapped_only_as_it_was_seen(store: &dyn ReplicaStore) {
    let object = name("swap/seen");
    let conflicts = async |expected: Option<&Tag>| {
        let swap = store.swap(&object, Bytes::from_static(b"late"), expected).await;
        assert_eq!(swap, Ok(Swap::Conflict), "{expected:?}");
    };
    assert_eq!(store.read_tagged(&object, 10).await, Ok(None));
    let first = swapped(store, &object, "a", None).await;
    conflicts(None).await;
    let second = swapped(store, &object, "b", Some(&first)).await;
    let third = swapped(store, &object, "a", Some(&second)).await;
    for past in [&first, &second] {
        conflicts(Some(past)).await;
    }
    assert!(first != second && first != third && second != third);
    assert_eq!(
        store.create(&object, Bytes::from_static(b"x")).await,
        Ok(Created::Exists)
    );
    // The same bytes again are a state of their own.
    let fourth = swapped(store, &object, "a", Some(&third)).await;
    conflicts(Some(&third)).await;
    assert_eq!(store.delete(&object).await, Ok(()));
    assert_eq!(store.read_tagged(&object, 10).await, Ok(None));
    conflicts(Some(&fourth)).await;
    let again = swapped(store, &object, "a", None).await;
    conflicts(Some(&fourth)).await;
    swapped(store, &object, "b", Some(&again)).await;
}

/// What is swapped has some bytes and not too many, and comes back only within the caller's bound.
pub async fn swaps_are_bounded(store: &dyn ReplicaStore) {
    let object = name("swap/bounded");
    for bytes in [Bytes::new(), Bytes::from(vec![0; MAX_SWAP_BYTES + 1])] {
        let swap = store.swap(&object, bytes, None).await;
        assert!(matches!(swap, Err(StoreError::Invalid { .. })), "{swap:?}");
    }
    assert_eq!(store.size(&object).await, Ok(None));
    swapped(store, &object, &"x".repeat(MAX_SWAP_BYTES), None).await;
    let large = store.read_tagged(&object, MAX_SWAP_BYTES as u64 - 1).await;
    assert!(matches!(large, Err(StoreError::TooLarge { .. })), "{large:?}");
}

/// However many swap the same state at once, at most one wins, and a counter that all add to loses nothing.
pub async fn a_swap_has_one_winner(store: &Arc<dyn ReplicaStore>) {
    const ADDERS: u64 = 4;
    const EACH: u64 = 5;
    let object = name("swap/counter");
    let adders = (0..ADDERS).map(|_| {
        let (store, object) = (store.clone(), object.clone());
        tokio::spawn(async move {
            let mut added = 0;
            while added < EACH {
                let read = store.read_tagged(&object, 100).await.expect("it can be read");
                let (sum, tag) = match read {
                    None => (0, None),
                    Some((bytes, tag)) => (
                        std::str::from_utf8(&bytes)
                            .expect("digits")
                            .parse::<u64>()
                            .expect("a number"),
                        Some(tag),
                    ),
                };
                let next = Bytes::from((sum + 1).to_string());
                match store.swap(&object, next, tag.as_ref()).await.expect("an outcome") {
                    Swap::Swapped(_) => added += 1,
                    Swap::Conflict => {}
                }
            }
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.expect("no panic");
    }
    let sum = store.read_tagged(&object, 100).await.expect("it can be read");
    let sum = sum.map(|(bytes, _)| bytes);
    assert_eq!(sum, Some(Bytes::from((ADDERS * EACH).to_string())));
}

/// Wherever an object is kept it is read the same way, and can be moved again, and deleted. A store without tiers says so.
pub async fn a_tier_changes_nothing_that_is_read(store: &dyn ReplicaStore) {
    let (object, absent) = (name("tier/object"), name("tier/absent"));
    let bytes = Bytes::from_static(b"0123456789");
    assert_eq!(store.create(&object, bytes.clone()).await, Ok(Created::Created));
    for tier in [Tier::Cool, Tier::Cold, Tier::Cold, Tier::Hot, Tier::Cold] {
        match store.set_tier(&object, tier).await {
            Ok(TierSet::Set) => {}
            Ok(TierSet::Unsupported) => return,
            Err(error) => panic!("{tier:?}: {error}"),
        }
        assert_eq!(store.get(&object, 10).await, Ok(bytes.clone()), "{tier:?}");
        assert_eq!(
            store.get_range(&object, 2..5).await,
            Ok(bytes.slice(2..5)),
            "{tier:?}"
        );
        assert_eq!(store.size(&object).await, Ok(Some(10)), "{tier:?}");
        assert_eq!(
            store.create(&object, Bytes::new()).await,
            Ok(Created::Exists),
            "{tier:?}"
        );
        let listed = store.list("tier/", None, 10).await.expect("a listing");
        assert_eq!(listed.len(), 1, "{tier:?}");
    }
    assert!(matches!(
        store.set_tier(&absent, Tier::Cool).await,
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(store.delete(&object).await, Ok(()));
    assert_eq!(store.size(&object).await, Ok(None));
}
