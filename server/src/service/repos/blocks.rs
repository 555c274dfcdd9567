//! How many blocks a repo has, told from its keys: which nodes its tree has follows from them alone.

use engine::repo::Did;
use engine::repo::mst::key_layer;
use engine::views::index::{IndexReader, RepoHead};

use super::{WriteError, internal};
use crate::service::core::Core;

/// Keys that are looked at; what a greater repo has beyond them is reckoned from these.
const LOOKED_AT: u64 = 100_000;
/// Layers that a key can be on.
const LAYERS: usize = 129;

/// A repo's head, with how many blocks an export of it would have: its commit, its tree's nodes and its records.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The head.
    pub head: RepoHead,
    /// The blocks; near enough for a repo of more than 100,000 records.
    pub blocks: u64,
}

/// The extent of a repo, if it is here. Reads many rows of the index: not for async threads.
///
/// # Errors
/// The index cannot be read.
pub fn extent(engine: &Core, did: &Did) -> Result<Option<Extent>, WriteError> {
    let reader = engine.reader().map_err(internal)?;
    let Some(head) = reader.repo(did).map_err(internal)? else {
        return Ok(None);
    };
    let nodes = nodes(&reader, &head, LOOKED_AT)?;
    let blocks = nodes.saturating_add(head.counts.records).saturating_add(1);
    Ok(Some(Extent { head, blocks }))
}

fn nodes(reader: &IndexReader, head: &RepoHead, most: u64) -> Result<u64, WriteError> {
    let mut nodes = Nodes::default();
    let mut seen = 0;
    for record in reader.records_from(&head.did, None).map_err(internal)? {
        let (path, _) = record.map_err(internal)?;
        nodes.add(key_layer(&path.to_string()));
        seen += 1;
        if seen == most {
            break;
        }
    }
    let total = nodes.total();
    if seen == 0 || seen >= head.counts.records {
        return Ok(total);
    }
    let all = u128::from(total) * u128::from(head.counts.records) / u128::from(seen);
    Ok(u64::try_from(all).unwrap_or(u64::MAX))
}

/// Counts the nodes of a tree whose keys come in order. On each layer up to the highest key's there is one node for every run of
/// keys of that layer or below that no higher key interrupts.
struct Nodes {
    /// Of each layer.
    count: [u64; LAYERS],
    /// Whether a run goes on.
    open: [bool; LAYERS],
    /// The highest key's layer, once there is one.
    top: Option<usize>,
}

impl Default for Nodes {
    fn default() -> Nodes {
        Nodes {
            count: [0; LAYERS],
            open: [false; LAYERS],
            top: None,
        }
    }
}

impl Nodes {
    fn add(&mut self, layer: u8) {
        let layer = usize::from(layer).min(LAYERS - 1);
        for (at, (open, count)) in self.open.iter_mut().zip(&mut self.count).enumerate() {
            if at < layer {
                *open = false;
            } else if !*open {
                *open = true;
                *count += 1;
            }
        }
        self.top = self.top.max(Some(layer));
    }

    /// A tree without keys is one node.
    fn total(&self) -> u64 {
        match self.top {
            None => 1,
            Some(top) => self.count.iter().take(top + 1).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::repo::Cid;
    use engine::repo::mst::build_from_sorted;

    #[test]
    fn the_nodes_of_a_tree_are_counted_from_its_keys() {
        for size in [0, 1, 2, 3, 7, 60, 1000, 5000] {
            let keys: Vec<String> = (0..size).map(|n| format!("com.example.note/{n:06}")).collect();
            let mut counted = Nodes::default();
            for key in &keys {
                counted.add(key_layer(key));
            }
            let mut built = 0;
            let record = Cid::for_dag_cbor(b"x");
            build_from_sorted(keys.iter().map(|key| (key.as_str(), record)), |_| {
                built += 1;
                Ok::<_, std::convert::Infallible>(())
            })
            .unwrap();
            assert_eq!(counted.total(), built, "{size} keys");
        }
    }
}
