//! The stream from a store's records, along the walk over nodes.

use super::*;
use crate::repo::mst::{StreamError, StreamItem, StreamRecord, stream};
use proptest::prelude::*;

type Blocks = Vec<(Cid, Option<Bytes>)>;

fn records(model: &Model) -> Vec<StreamRecord<()>> {
    let record = |(key, value): (&String, &Cid)| StreamRecord {
        key: key.clone(),
        value: *value,
        place: (),
    };
    model.iter().map(record).collect()
}

fn streamed(
    root: &Cid,
    store: &Store,
    records: Vec<StreamRecord<()>>,
) -> Result<Blocks, StreamError<String>> {
    let mut blocks = Vec::new();
    stream(root, store, records.into_iter().map(Ok), |item| {
        blocks.push(match item {
            StreamItem::Node { cid, bytes } => (*cid, Some(Bytes::copy_from_slice(bytes))),
            StreamItem::Record(record) => (record.value, None),
        });
        Ok(())
    })?;
    Ok(blocks)
}

fn walked(root: &Cid, store: &Store) -> Blocks {
    let tree = Tree::open(*root);
    let items = tree.walk(store).unwrap();
    items
        .map(|item| match item.unwrap() {
            WalkItem::Node { cid, bytes } => (cid, Some(bytes)),
            WalkItem::Record { cid, .. } => (cid, None),
        })
        .collect()
}

/// What an index stores of a tree: no leaves, except the root that is one.
fn without_leaves(root: &Cid, store: &Store) -> Store {
    let inner = |(cid, bytes): (&Cid, &Bytes)| {
        let is_leaf = NodeData::decode(bytes).unwrap().layer() == Some(0);
        (!is_leaf || cid == root).then(|| (*cid, bytes.clone()))
    };
    store.iter().filter_map(inner).collect()
}

proptest! {
    #[test]
    fn the_stream_of_records_is_the_walk_over_nodes(
        keys in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..60)
    ) {
        let model: Model = keys
            .into_iter()
            .map(|(key, value)| (KEYS[key.index(KEYS.len())].clone(), record(value)))
            .collect();
        let (root, store) = built(&model);
        let stored = without_leaves(&root, &store);
        prop_assert_eq!(streamed(&root, &stored, records(&model)).unwrap(), walked(&root, &store));
    }

    #[test]
    fn records_that_are_not_the_tree_s_are_noticed(
        keys in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
        at in any::<prop::sample::Index>(),
        how in 0..4,
    ) {
        let model: Model = keys.into_iter().map(|key| (KEYS[key.index(KEYS.len())].clone(), record(1))).collect();
        let (root, store) = built(&model);
        let mut wrong = records(&model);
        let at = at.index(wrong.len());
        match how {
            0 => wrong.truncate(at),
            1 => { wrong.remove(at); }
            2 => wrong[at].value = record(2),
            _ => wrong.insert(at + 1, StreamRecord { key: format!("{}0", wrong[at].key), value: record(1), place: () }),
        }
        prop_assert!(streamed(&root, &store, wrong).is_err());
    }
}

#[test]
fn a_missing_or_wrong_node_and_the_takers_error_end_the_stream() {
    let model: Model = KEYS.iter().map(|key| (key.clone(), record(1))).collect();
    let (root, mut store) = built(&model);
    let stopped = stream(&root, &store, records(&model).into_iter().map(Ok), |_| {
        Err("enough")
    });
    assert!(matches!(stopped, Err(StreamError::Other("enough"))));
    let unreadable = std::iter::once(Err("disk"));
    let broken = stream::<(), _>(&root, &store, unreadable, |_| Ok(()));
    assert!(matches!(broken, Err(StreamError::Other("disk"))));
    let other = *store.keys().find(|cid| **cid != root).unwrap();
    let bytes = store[&other].clone();
    store.insert(root, bytes);
    assert!(matches!(
        streamed(&root, &store, records(&model)),
        Err(StreamError::Tree(TreeError::Corrupt { .. }))
    ));
    store.remove(&root);
    assert!(matches!(
        streamed(&root, &store, records(&model)),
        Err(StreamError::Tree(TreeError::Missing(_)))
    ));
}
