//! What would break without these: a root that other implementations do not compute, a proof that a relay refuses, a
//! node store that drifts from the tree, or a peer's bytes that stop the server.

mod hostile;
mod interop;
mod model;
mod proofs;
mod stream;

use super::*;
use std::sync::LazyLock;

pub(super) type Store = HashMap<Cid, Bytes>;
pub(super) type Model = BTreeMap<String, Cid>;

/// Keys of layers 0 to 6 in about equal numbers, so that small trees already gain and lose layers, and some that are
/// prefixes of each other.
pub(super) static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    const PER_LAYER: usize = 12;
    let mut found = [0; 7];
    let mut keys: Vec<String> = [
        "a/1", "a/11", "a/111", "a/1111", "a/1.", "a/1.1", "a.b/1", "a.b/11",
    ]
    .map(str::to_owned)
    .to_vec();
    for number in 0..100_000 {
        let key = format!("com.example.record/{number}");
        if let Some(count) = found.get_mut(usize::from(key_layer(&key)))
            && *count < PER_LAYER
        {
            *count += 1;
            keys.push(key);
        }
    }
    assert!(
        found[5] == PER_LAYER && found[6] > 3,
        "the search found keys of the high layers"
    );
    keys
});

pub(super) fn record(number: u8) -> Cid {
    Cid::for_dag_cbor(&[0x18, number])
}

/// The root and all nodes, by the one algorithm that shares no code with editing.
pub(super) fn built(model: &Model) -> (Cid, Store) {
    let mut store = Store::new();
    let sink = |node: BuiltNode| {
        store.insert(node.cid, node.bytes.into());
        Ok::<(), std::convert::Infallible>(())
    };
    let root = build_from_sorted(model.iter().map(|(key, cid)| (key.as_str(), *cid)), sink).unwrap();
    (root, store)
}

pub(super) fn inserted<'k>(keys: impl IntoIterator<Item = &'k str>, value: Cid) -> (Tree, Store) {
    let mut tree = Tree::empty();
    let nothing = Store::new();
    for key in keys {
        tree.insert(key, value, &nothing).unwrap();
    }
    let store = tree.flush().added.into_iter().collect();
    (tree, store)
}

pub(super) fn apply(store: &mut Store, flushed: &Flushed) {
    for (cid, bytes) in &flushed.added {
        assert!(cid.matches(bytes), "a block under its own address");
        assert!(
            store.insert(*cid, bytes.clone()).is_none(),
            "{cid} was added before"
        );
    }
    for cid in &flushed.dropped {
        assert!(store.remove(cid).is_some(), "{cid} was dropped but never there");
    }
}
