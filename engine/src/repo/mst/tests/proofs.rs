//! Commits whose operations are undone from their own blocks alone.

use super::*;
use proptest::prelude::*;

/// Applies the batch, gives the changes that it amounts to, and checks the proof.
fn commit_and_invert(before: &Model, batch: &Model, removals: &[String]) {
    let (old_root, mut store) = built(before);
    let mut tree = Tree::open(old_root);
    let mut after = before.clone();
    for (key, value) in batch {
        if let Some(previous) = before.get(key) {
            assert_eq!(tree.update(key, *value, &store).unwrap(), *previous);
        } else {
            tree.insert(key, *value, &store).unwrap();
        }
        after.insert(key.clone(), *value);
    }
    for key in removals
        .iter()
        .filter(|key| before.contains_key(*key) && !batch.contains_key(*key))
    {
        tree.remove(key, &store).unwrap();
        after.remove(key);
    }
    let changes: Vec<Change<'_>> = before
        .keys()
        .chain(after.keys().filter(|key| !before.contains_key(*key)))
        .map(|key| Change {
            key,
            value: after.get(key).copied(),
            previous: before.get(key).copied(),
        })
        .filter(|change| change.value != change.previous)
        .collect();

    let flushed = tree.flush();
    apply(&mut store, &flushed);
    // From a tree that is as cold as can be, too.
    let keys = || changes.iter().map(|change| change.key);
    let proof = tree.covering_proof(keys(), &store).unwrap();
    let cold = Tree::open(flushed.root).covering_proof(keys(), &store).unwrap();
    assert_eq!(proof, cold);
    let proof: Store = proof.into_iter().collect();
    assert_eq!(proof.len(), cold.len(), "each node once");
    for (cid, _) in &flushed.added {
        assert!(proof.contains_key(cid), "a proof covers every new node");
    }
    assert_eq!(invert(&changes, flushed.root, &proof), Ok(old_root));

    // Operations that lie are found out.
    if let Some(first) = changes.first() {
        let mut lie = changes.clone();
        lie[0] = Change {
            previous: Some(record(255)),
            ..*first
        };
        assert_ne!(invert(&lie, flushed.root, &proof), Ok(old_root));
        assert_ne!(invert(&changes[1..], flushed.root, &proof), Ok(old_root));
        let twice: Vec<Change<'_>> = changes.iter().chain(changes.first()).copied().collect();
        assert!(matches!(
            invert(&twice, flushed.root, &proof),
            Err(InvertError::Duplicate(_))
        ));
    }
}

fn pick(indices: &std::collections::BTreeSet<usize>, value: u8) -> Model {
    indices
        .iter()
        .map(|at| (KEYS[*at].clone(), record(value)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_commits_can_be_undone_from_their_blocks(
        before in prop::collection::btree_set(0..KEYS.len(), 0..70),
        puts in prop::collection::btree_set(0..KEYS.len(), 0..8),
        removals in prop::collection::btree_set(0..KEYS.len(), 0..40),
    ) {
        let removals: Vec<String> = removals.iter().map(|at| KEYS[*at].clone()).collect();
        commit_and_invert(&pick(&before, 1), &pick(&puts, 2), &removals);
    }

    #[test]
    fn a_path_proof_tells_what_is_at_a_key(
        chosen in prop::collection::btree_set(0..KEYS.len(), 0..60), asked in 0..KEYS.len(),
    ) {
        let model = pick(&chosen, 1);
        let (root, store) = built(&model);
        let key = &KEYS[asked];
        let proof = Tree::open(root).path_blocks(key, &store).unwrap();
        prop_assert_eq!(proof.value, model.get(key).copied());
        let only: Store = proof.nodes.iter().cloned().collect();
        prop_assert_eq!(Tree::open(root).get(key, &only).unwrap(), proof.value);
        prop_assert_eq!(proof.nodes.first().map(|(cid, _)| *cid), Some(root));
    }
}

#[test]
fn every_single_create_and_delete_can_be_undone() {
    let all: Model = KEYS.iter().map(|key| (key.clone(), record(1))).collect();
    for key in KEYS.iter() {
        commit_and_invert(&all, &Model::new(), std::slice::from_ref(key));
        let mut without = all.clone();
        without.remove(key);
        commit_and_invert(&without, &Model::from([(key.clone(), record(2))]), &[]);
    }
}

#[test]
fn the_first_and_the_last_record_can_be_undone() {
    for key in KEYS.iter() {
        let one = Model::from([(key.clone(), record(1))]);
        commit_and_invert(&Model::new(), &one, &[]);
        commit_and_invert(&one, &Model::new(), std::slice::from_ref(key));
    }
}

#[test]
fn trees_lose_and_gain_their_top_layers() {
    let mut by_layer: Vec<&String> = KEYS.iter().collect();
    by_layer.sort_by_key(|key| key_layer(key));
    let highest = by_layer.split_off(by_layer.len() - 14);
    for key in highest {
        let low: Model = by_layer
            .iter()
            .step_by(3)
            .map(|key| ((*key).clone(), record(1)))
            .collect();
        let mut high = low.clone();
        high.insert(key.clone(), record(1));
        commit_and_invert(&high, &Model::new(), std::slice::from_ref(key));
        commit_and_invert(&low, &Model::from([(key.clone(), record(1))]), &[]);
        // A lone high key over one low key leaves a chain of nodes without entries.
        let pair = Model::from([(by_layer[0].clone(), record(1)), (key.clone(), record(1))]);
        commit_and_invert(&pair, &Model::new(), std::slice::from_ref(key));
        commit_and_invert(&pair, &Model::new(), std::slice::from_ref(by_layer[0]));
        commit_and_invert(&pair, &Model::new(), &[key.clone(), by_layer[0].clone()]);
    }
}

#[test]
fn a_proof_of_changes_that_are_not_flushed_is_refused() {
    let (mut tree, store) = inserted(["a/1"], record(1));
    tree.insert("a/2", record(1), &store).unwrap();
    assert_eq!(tree.covering_proof(["a/2"], &store), Err(TreeError::Unflushed));
    assert_eq!(tree.path_blocks("a/2", &store), Err(TreeError::Unflushed));
    assert!(matches!(tree.walk(&store), Err(TreeError::Unflushed)));
}
