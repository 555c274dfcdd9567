//! Nodes that somebody made up.

use super::*;
use crate::repo::cbor::Writer;
use proptest::prelude::*;

fn entry(key: &str, right: Option<Cid>) -> EntryData {
    EntryData {
        key: key.into(),
        value: record(1),
        right,
    }
}

/// A node with these entries, whatever they are.
fn node(left: Option<Cid>, entries: &[EntryData]) -> Vec<u8> {
    wire::encode_node(
        left,
        entries
            .iter()
            .map(|entry| (&*entry.key, &entry.value, entry.right)),
    )
}

fn store(nodes: &[&[u8]]) -> (Cid, Store) {
    let root = Cid::for_dag_cbor(nodes[0]);
    (
        root,
        nodes
            .iter()
            .map(|bytes| (Cid::for_dag_cbor(bytes), Bytes::copy_from_slice(bytes)))
            .collect(),
    )
}

/// What a full walk says about a tree.
fn verdict(nodes: &[&[u8]]) -> Result<usize, TreeError> {
    let (root, store) = store(nodes);
    let mut count = 0;
    for item in Tree::open(root).walk(&store)? {
        item?;
        count += 1;
    }
    Ok(count)
}

fn key_of(layer: u8, nth: usize) -> &'static str {
    let mut keys: Vec<&String> = KEYS.iter().filter(|key| key_layer(key) == layer).collect();
    keys.sort();
    keys[nth]
}

fn reason(nodes: &[&[u8]]) -> NodeError {
    match verdict(nodes) {
        Err(TreeError::Corrupt { reason, .. }) => reason,
        other => panic!("expected a corrupt node, found {other:?}"),
    }
}

#[test]
fn nodes_that_are_sound_alone_but_not_in_their_place_are_refused() {
    let (low, high) = (key_of(0, 0), key_of(0, 3));
    let middle = key_of(1, 5);
    assert!(high < middle, "the chosen keys are in order");
    let leaf = node(None, &[entry(low, None), entry(high, None)]);
    let leaf_cid = Cid::for_dag_cbor(&leaf);
    let good = node(Some(leaf_cid), &[entry(middle, None)]);
    assert_eq!(verdict(&[&good, &leaf]), Ok(5));

    // The leaf's keys are before the parent's entry, but it hangs after it.
    assert_eq!(
        reason(&[&node(None, &[entry(middle, Some(leaf_cid))]), &leaf]),
        NodeError::Bounds
    );
    // A leaf two layers below.
    let upper = node(Some(leaf_cid), &[entry(key_of(2, 11), None)]);
    assert!(matches!(
        reason(&[&upper, &leaf]),
        NodeError::Layer { .. } | NodeError::Bounds
    ));
    // Nothing in a node below the root.
    let empty = node(None, &[]);
    let over_empty = node(Some(Cid::for_dag_cbor(&empty)), &[entry(middle, None)]);
    assert_eq!(reason(&[&over_empty, &empty]), NodeError::Hollow);
    // A root that only passes on.
    assert_eq!(reason(&[&node(Some(leaf_cid), &[]), &leaf]), NodeError::Hollow);
    // A node that only passes on, on the lowest layer.
    let passes = node(Some(leaf_cid), &[]);
    let over_passes = node(Some(Cid::for_dag_cbor(&passes)), &[entry(middle, None)]);
    assert_eq!(reason(&[&over_passes, &passes, &leaf]), NodeError::Child);
    // A leaf with a child.
    assert_eq!(
        reason(&[&node(Some(leaf_cid), &[entry(low, None)]), &leaf]),
        NodeError::Child
    );
    // A node that is not there.
    assert_eq!(verdict(&[&good]), Err(TreeError::Missing(leaf_cid)));
}

#[test]
fn entries_out_of_order_twice_or_of_two_layers_are_refused() {
    let (low, high) = (key_of(0, 0), key_of(0, 1));
    assert!(matches!(
        reason(&[&node(None, &[entry(high, None), entry(low, None)])]),
        NodeError::Order { entry: 1 }
    ));
    assert!(matches!(
        reason(&[&node(None, &[entry(low, None), entry(low, None)])]),
        NodeError::Order { entry: 1 }
    ));
    let other = key_of(1, 11);
    assert!(matches!(
        reason(&[&node(None, &[entry(low, None), entry(other, None)])]),
        NodeError::Layer { entry: 1 }
    ));
    assert!(matches!(
        reason(&[&node(None, &[entry("no slash", None)])]),
        NodeError::Key { entry: 0 }
    ));
}

#[test]
fn a_prefix_that_is_too_short_or_too_long_is_refused() {
    let raw = |prefix: u64, suffix: &str| {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer.map(2).text("e").array(2);
        writer
            .map(4)
            .text("k")
            .bytes(b"a/1")
            .text("p")
            .uint(0)
            .text("t")
            .null()
            .text("v")
            .link(&record(1));
        writer
            .map(4)
            .text("k")
            .bytes(suffix.as_bytes())
            .text("p")
            .uint(prefix);
        writer
            .text("t")
            .null()
            .text("v")
            .link(&record(1))
            .text("l")
            .null();
        out
    };
    for (prefix, suffix) in [(0, "a/11"), (2, "11"), (4, "x"), (u64::MAX >> 1, "x")] {
        assert!(
            matches!(
                NodeData::decode(&raw(prefix, suffix)),
                Err(NodeError::Prefix { entry: 1 })
            ),
            "{prefix}"
        );
    }
}

#[test]
fn bytes_under_another_address_are_refused_and_leave_the_tree_as_it_was() {
    let (mut tree, good) = inserted(KEYS.iter().map(String::as_str), record(1));
    let root = tree.root().unwrap();
    tree.trim();
    let mut bad = good.clone();
    for (cid, bytes) in &mut bad {
        if *cid != root {
            *bytes = Bytes::from_static(b"\xa2aeaalaf6");
        }
    }
    for key in KEYS.iter() {
        let _ = tree.remove(key, &bad).map(|_| tree = Tree::open(root));
        let _ = tree
            .insert(&format!("{key}x"), record(1), &bad)
            .map(|()| tree = Tree::open(root));
        assert_eq!(tree.root(), Some(root));
        assert_eq!(
            tree.flush(),
            Flushed {
                root,
                added: Vec::new(),
                dropped: Vec::new()
            }
        );
    }
    assert_eq!(
        tree.entries_from(None, &good)
            .unwrap()
            .filter(Result::is_ok)
            .count(),
        KEYS.len()
    );
}

#[test]
fn what_the_source_says_reaches_the_caller() {
    struct Failing(NodeSourceError);
    impl NodeSource for Failing {
        fn node(&self, _: &Cid, _: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
            Err(self.0.clone())
        }
    }
    let cid = record(1);
    let get = |error| Tree::open(cid).get("a/1", &Failing(error));
    assert_eq!(get(NodeSourceError::Missing), Err(TreeError::Missing(cid)));
    let message = "disk".to_owned();
    assert_eq!(
        get(NodeSourceError::Io(message.clone())),
        Err(TreeError::Io {
            cid,
            message: message.clone()
        })
    );
    assert_eq!(
        get(NodeSourceError::Corrupt(message.clone())),
        Err(TreeError::Damaged { cid, message })
    );
}

proptest! {
    #[test]
    fn bytes_that_decode_encode_to_themselves(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(data) = NodeData::decode(&bytes) {
            prop_assert_eq!(data.encode(), bytes);
        }
    }

    #[test]
    fn nodes_with_flipped_bytes_never_panic(
        chosen in prop::collection::btree_set(0..KEYS.len(), 1..60),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        victim in any::<prop::sample::Index>(),
    ) {
        let model: Model = chosen.iter().map(|at| (KEYS[*at].clone(), record(1))).collect();
        let (root, store) = built(&model);
        let cids: Vec<Cid> = store.keys().copied().collect();
        let mut bytes = store[&cids[victim.index(cids.len())]].to_vec();
        for (at, value) in &flips {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        if let Ok(data) = NodeData::decode(&bytes) {
            prop_assert_eq!(data.encode(), bytes.clone());
        }
        // As a root of its own, over the sound nodes.
        let forged = Cid::for_dag_cbor(&bytes);
        let mut store = store;
        store.insert(forged, bytes.into());
        for root in [root, forged] {
            let mut tree = Tree::open(root);
            for key in KEYS.iter().step_by(5) {
                let _ = tree.get(key, &store);
                let _ = tree.insert(key, record(2), &store);
                let _ = tree.remove(key, &store);
            }
            let _ = tree.flush();
            let _ = tree.covering_proof(KEYS.iter().step_by(7).map(String::as_str), &store);
            if let Ok(walk) = tree.walk(&store) {
                let _ = walk.count();
            }
        }
    }
}
