//! The tree walked along a `BTreeMap`, with the roots of two other algorithms.

use super::*;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::HashSet;

#[derive(Clone, Debug)]
enum Op {
    Insert(Index, u8),
    Update(Index, u8),
    Remove(Index),
    /// Takes out the key at this place among those that are there.
    RemovePresent(Index),
    /// Takes out the topmost key.
    RemoveHighest,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (any::<Index>(), any::<u8>()).prop_map(|(key, value)| Op::Insert(key, value)),
        2 => (any::<Index>(), any::<u8>()).prop_map(|(key, value)| Op::Update(key, value)),
        1 => any::<Index>().prop_map(Op::Remove),
        4 => any::<Index>().prop_map(Op::RemovePresent),
        1 => Just(Op::RemoveHighest),
    ];
    prop::collection::vec(op, 0..25)
}

fn highest(model: &Model) -> Option<String> {
    model.keys().max_by_key(|key| key_layer(key)).cloned()
}

/// Applies one operation to both, and checks that they answer alike.
fn step(op: &Op, tree: &mut Tree, model: &mut Model, store: &Store) {
    let key = |index: &Index| KEYS[index.index(KEYS.len())].clone();
    match op {
        Op::Insert(index, value) => {
            let key = key(index);
            let expected = if model.contains_key(&key) {
                Err(TreeError::Exists(key.clone()))
            } else {
                Ok(())
            };
            assert_eq!(tree.insert(&key, record(*value), store), expected);
            model.entry(key).or_insert(record(*value));
        }
        Op::Update(index, value) => {
            let key = key(index);
            let found = tree.update(&key, record(*value), store);
            match model.get_mut(&key) {
                Some(slot) => assert_eq!(found, Ok(std::mem::replace(slot, record(*value)))),
                None => assert_eq!(found, Err(TreeError::NotFound(key))),
            }
        }
        Op::Remove(index) => remove(key(index), tree, model, store),
        Op::RemovePresent(index) => {
            if !model.is_empty() {
                let key = model.keys().nth(index.index(model.len())).unwrap().clone();
                remove(key, tree, model, store);
            }
        }
        Op::RemoveHighest => {
            if let Some(key) = highest(model) {
                remove(key, tree, model, store);
            }
        }
    }
}

fn remove(key: String, tree: &mut Tree, model: &mut Model, store: &Store) {
    let found = tree.remove(&key, store);
    match model.remove(&key) {
        Some(previous) => assert_eq!(found, Ok(previous)),
        None => assert_eq!(found, Err(TreeError::NotFound(key))),
    }
}

fn weigh(tree: &Tree) -> usize {
    fn recount(node: &Node) -> usize {
        let mut copy = node.clone();
        for link in &copy.links {
            if let node::Link::Node(child) = link {
                assert_eq!(recount(child), child.weight, "a weight was not kept up to date");
            }
        }
        copy.reweigh();
        copy.weight
    }
    match &tree.root {
        Root::Stub(_) => 0,
        Root::Node(root) => recount(root),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn batches_give_the_root_of_the_key_set_and_keep_a_store_exact(
        batches in prop::collection::vec((ops(), any::<bool>()), 1..6),
    ) {
        let mut model = Model::new();
        let mut tree = Tree::empty();
        let mut store = Store::new();
        for (batch, trim) in &batches {
            let snapshot = tree.clone();
            let before = tree.root();
            for op in batch {
                step(op, &mut tree, &mut model, &store);
            }
            prop_assert_eq!(snapshot.root(), before, "a snapshot does not change");
            let flushed = tree.flush();
            apply(&mut store, &flushed);
            let (root, reachable) = built(&model);
            prop_assert_eq!(flushed.root, root);
            prop_assert_eq!(&store, &reachable);
            prop_assert_eq!(tree.flush(), Flushed { root, added: Vec::new(), dropped: Vec::new() });
            if let Root::Node(node) = &tree.root {
                prop_assert_eq!(weigh(&tree), node.weight);
            }
            if *trim {
                let loaded = tree.memory_bytes();
                tree.trim();
                prop_assert!(tree.memory_bytes() <= loaded);
                prop_assert_eq!(tree.root(), Some(root));
            }
        }
    }

    #[test]
    fn a_stored_tree_that_is_loaded_as_needed_ends_like_one_in_memory(
        setup in ops(), batch in ops(),
    ) {
        let mut model = Model::new();
        let mut whole = Tree::empty();
        let mut store = Store::new();
        for op in setup.iter().chain(&setup) {
            step(op, &mut whole, &mut model, &store);
        }
        apply(&mut store, &whole.flush());
        let mut lazy = Tree::open(whole.root().unwrap());
        let mut lazy_model = model.clone();
        for op in &batch {
            step(op, &mut whole, &mut model, &Store::new());
            step(op, &mut lazy, &mut lazy_model, &store);
        }
        let (whole, mut lazy) = (whole.flush(), lazy.flush());
        let mut dropped = whole.dropped.clone();
        dropped.sort();
        lazy.dropped.sort();
        prop_assert_eq!(&whole.added, &lazy.added);
        prop_assert_eq!(dropped, lazy.dropped);
        prop_assert_eq!(whole.root, lazy.root);
    }

    #[test]
    fn roots_agree_with_another_implementation(indices in prop::collection::vec((any::<Index>(), any::<u8>()), 0..60)) {
        use shrike::cbor::{Cid as Foreign, Codec as ForeignCodec};
        let model: Model =
            indices.iter().map(|(index, value)| (KEYS[index.index(KEYS.len())].clone(), record(*value))).collect();
        let mut foreign = shrike::mst::Tree::new(Box::new(shrike::mst::MemBlockStore::new()));
        let mut tree = Tree::empty();
        for (index, _) in &indices {
            let key = &KEYS[index.index(KEYS.len())];
            let value = model[key];
            foreign.insert(key.clone(), Foreign::from_bytes(&value.to_bytes()).unwrap()).unwrap();
            let _ = tree.insert(key, value, &Store::new());
        }
        let root = foreign.root_cid().unwrap();
        prop_assert!(matches!(root.codec(), ForeignCodec::Drisl));
        prop_assert_eq!(root.to_bytes(), tree.flush().root.to_bytes());
    }

    #[test]
    fn the_order_of_insertion_does_not_matter(order in Just((0..KEYS.len()).collect::<Vec<_>>()).prop_shuffle()) {
        let keys: Vec<&str> = order.iter().take(50).map(|at| KEYS[*at].as_str()).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        prop_assert_eq!(inserted(keys, record(1)).0.root(), inserted(sorted, record(1)).0.root());
    }

    #[test]
    fn entries_start_anywhere_and_the_walk_gives_every_block_once(
        chosen in prop::collection::btree_set(0..KEYS.len(), 0..60), start in any::<Index>(), off in any::<bool>(),
    ) {
        let model: Model = chosen.iter().map(|at| (KEYS[*at].clone(), record(*at as u8))).collect();
        let (root, store) = built(&model);
        let tree = Tree::open(root);
        let mut start = KEYS[start.index(KEYS.len())].clone();
        if off {
            start.push('~');
        }
        let found: Vec<(String, Cid)> = tree
            .entries_from(Some(&start), &store)
            .unwrap()
            .map(|entry| entry.map(|(key, cid)| (key.to_string(), cid)).unwrap())
            .collect();
        let expected: Vec<(String, Cid)> =
            model.range(start..).map(|(key, cid)| (key.clone(), *cid)).collect();
        prop_assert_eq!(found, expected);

        let mut announced: HashSet<Cid> = HashSet::from([root]);
        let mut nodes = Store::new();
        let mut records = Model::new();
        for item in tree.walk(&store).unwrap() {
            match item.unwrap() {
                WalkItem::Node { cid, bytes } => {
                    prop_assert!(announced.remove(&cid), "a node comes after its parent, once");
                    let data = NodeData::decode(&bytes).unwrap();
                    announced.extend(data.left);
                    announced.extend(data.entries.iter().filter_map(|entry| entry.right));
                    nodes.insert(cid, bytes);
                }
                WalkItem::Record { key, cid } => {
                    prop_assert!(records.last_key_value().is_none_or(|(last, _)| **last < *key));
                    records.insert(key.to_string(), cid);
                }
            }
        }
        prop_assert_eq!(nodes, store);
        prop_assert_eq!(records, model);
    }
}

#[test]
fn the_empty_tree_has_its_well_known_root() {
    let flushed = Tree::empty().flush();
    assert_eq!(
        flushed.root.to_string(),
        "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
    );
    assert_eq!(flushed.added.len(), 1);
    assert_eq!(built(&Model::new()).0, flushed.root);
}

#[test]
fn creating_and_deleting_in_one_batch_leaves_no_trace() {
    let (mut tree, store) = inserted(KEYS.iter().skip(1).map(String::as_str), record(1));
    let root = tree.root().unwrap();
    for key in &KEYS[..1] {
        tree.insert(key, record(2), &store).unwrap();
        tree.remove(key, &store).unwrap();
    }
    let key = &KEYS[5];
    tree.remove(key, &store).unwrap();
    tree.insert(key, record(1), &store).unwrap();
    assert_eq!(
        tree.flush(),
        Flushed {
            root,
            added: Vec::new(),
            dropped: Vec::new()
        }
    );
}

#[test]
fn deleting_everything_gives_the_empty_tree_and_drops_every_node() {
    let (mut tree, mut store) = inserted(KEYS.iter().map(String::as_str), record(1));
    tree.trim();
    for key in KEYS.iter().rev() {
        tree.remove(key, &store).unwrap();
        let flushed = tree.flush();
        apply(&mut store, &flushed);
        tree.trim();
    }
    assert_eq!(
        store.into_keys().collect::<Vec<_>>(),
        [Tree::empty().flush().root]
    );
}

#[test]
fn keys_that_are_no_paths_are_refused() {
    let long = format!("a/{}", "x".repeat(MAX_KEY_BYTES - 1));
    for key in ["", "a", "/a", "a/", "a/b/c", "a/é", "a/b c", long.as_str()] {
        let refused = Tree::empty().insert(key, record(1), &Store::new());
        assert_eq!(refused, Err(TreeError::InvalidKey(key.to_owned())));
    }
    assert!(is_valid_key(&long[..MAX_KEY_BYTES]));
}

#[test]
fn a_leaf_is_encoded_from_its_records_alone() {
    let model: Model = KEYS.iter().map(|key| (key.clone(), record(3))).collect();
    let mut leaves = 0;
    for bytes in built(&model).1.values() {
        let data = NodeData::decode(bytes).unwrap();
        assert_eq!(data.encode(), *bytes);
        if data.layer() == Some(0) {
            leaves += 1;
            let encoded = encode_leaf(
                data.entries
                    .iter()
                    .map(|entry| (&*entry.key, &entry.value))
                    .collect::<Vec<_>>(),
            );
            assert_eq!(encoded, *bytes);
        }
    }
    assert!(leaves > 5);
}

#[test]
fn a_small_change_to_a_large_tree_touches_few_nodes() {
    let model: Model = (0..20_000)
        .map(|number| (format!("com.example.record/{number:08}"), record(1)))
        .collect();
    let (root, mut store) = built(&model);
    let mut tree = Tree::open(root);
    let mut most = 0;
    for number in 0..200 {
        let key = format!("com.example.record/{:08}x", number * 97);
        let mut next = tree.clone();
        next.insert(&key, record(2), &store).unwrap();
        let flushed = next.flush();
        let proof = next.covering_proof([key.as_str()], &store).unwrap();
        most = most.max(flushed.added.len());
        assert!(proof.len() < 60, "{} nodes in a proof", proof.len());
        apply(&mut store, &flushed);
        tree = next;
    }
    assert!(most < 40, "{most} nodes changed by one record");
    let loaded = tree.memory_bytes();
    tree.trim();
    assert!(
        tree.memory_bytes() < loaded / 4,
        "trimming keeps little more than the root"
    );
}
