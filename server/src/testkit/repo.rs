//! Repos as their exports show them.

use std::collections::{BTreeMap, HashMap};

use axum::body::Bytes;
use engine::repo::car::{CarLimits, CarSlice};
use engine::repo::commit::Commit;
use engine::repo::mst::{Tree, WalkItem};
use engine::repo::{Cid, Did};

use super::Server;

/// A repo out of a CAR.
pub struct ExportedRepo {
    pub commit: Commit,
    /// Path to CID.
    pub records: BTreeMap<String, Cid>,
    pub blocks: HashMap<Cid, Bytes>,
}

impl ExportedRepo {
    /// Reads a whole repo; every block must be there.
    pub fn read(car: &[u8]) -> ExportedRepo {
        let slice = CarSlice::new(car, CarLimits::default()).unwrap();
        let root = *slice.roots().first().unwrap();
        let mut blocks = HashMap::new();
        for block in slice {
            let block = block.unwrap();
            blocks.insert(block.cid, Bytes::copy_from_slice(block.bytes));
        }
        let commit = Commit::decode(blocks.get(&root).unwrap().clone()).unwrap();
        let mut records = BTreeMap::new();
        for item in Tree::open(commit.data()).walk(&blocks).unwrap() {
            if let WalkItem::Record { key, cid } = item.unwrap() {
                assert!(blocks.contains_key(&cid), "{key} is missing");
                records.insert(key.to_string(), cid);
            }
        }
        ExportedRepo {
            commit,
            records,
            blocks,
        }
    }
}

impl Server {
    /// The repo as its export shows it, checked: blocks against CIDs, tree against commit, commit against the key that
    /// the directory names.
    pub async fn repo(&self, did: &Did) -> ExportedRepo {
        let answer = self
            .query("com.atproto.sync.getRepo", &format!("did={did}"))
            .await;
        assert_eq!(answer.status, 200);
        let repo = ExportedRepo::read(&answer.body);
        let state = self.plc.truth(did).await;
        let key = state.verification_methods.get("atproto").unwrap();
        let key = engine::repo::PublicKey::from_did_key(key).unwrap();
        repo.commit.verify(&key).unwrap();
        assert_eq!(repo.commit.did(), did);
        repo
    }
}
