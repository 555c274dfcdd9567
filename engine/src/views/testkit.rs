//! For tests: repos that commit as the real writer does, and a model of what the index should know.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::index::{IndexReader, ListOrder};
use crate::clock::SeededEntropy;
use crate::entry::{Change, Entry, EntryDraft, EntryKind, RepoRow};
use crate::log::{Draft, Epoch, Location, LogId, Lsn, Stamp};
use crate::repo::car::{write_block, write_header};
use crate::repo::cbor::Writer;
use crate::repo::event::{CommitEvent, OpAction, RepoOp, encode_commit};
use crate::repo::mst::{NodeSource, Tree};
use crate::repo::{Cid, Did, SigningKey, Subject, Tid, UnsignedCommit};

pub const LOG_ID: LogId = LogId(*b"a log for tests!");

pub fn lsn(n: u64) -> Lsn {
    Lsn::new(n).unwrap()
}

/// A source without nodes.
pub const NOTHING: BTreeMap<Cid, Bytes> = BTreeMap::new();

/// A record and the blobs in it; `None` deletes.
pub type Write = Option<(Vec<u8>, BTreeSet<Cid>)>;
/// What one commit does, by path.
pub type Writes = BTreeMap<String, Write>;

/// A record `{text, blobs: […], subject: {uri: text}}`.
pub fn record(text: &str, blobs: &[Cid]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out);
    writer
        .map(3)
        .text("text")
        .text(text)
        .text("blobs")
        .array(blobs.len());
    for cid in blobs {
        writer
            .map(4)
            .text("ref")
            .link(cid)
            .text("size")
            .uint(4)
            .text("$type")
            .text("blob");
        writer.text("mimeType").text("image/png");
    }
    writer.text("subject").map(1).text("uri").text(text);
    out
}

/// What a record says in the model: its CID, the rev that wrote it, the blobs it references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRecord {
    pub cid: Cid,
    pub bytes: Bytes,
    pub rev: Tid,
    pub blobs: BTreeSet<Cid>,
}

/// A repo as its writer knows it: a signing key, a tree in memory, and the model of its records.
#[derive(Clone)]
pub struct TestRepo {
    pub did: Did,
    key: SigningKey,
    pub tree: Tree,
    pub head: Option<(Cid, Tid, Cid)>,
    pub records: BTreeMap<String, ModelRecord>,
    pub stored: BTreeSet<Cid>,
}

impl TestRepo {
    pub fn new(name: &str) -> TestRepo {
        let seed = name.bytes().fold(7, |seed, byte| seed * 31 + u64::from(byte));
        TestRepo {
            did: format!("did:plc:{name}").parse().unwrap(),
            key: SigningKey::generate(&SeededEntropy::new(seed)).unwrap(),
            tree: Tree::empty(),
            head: None,
            records: BTreeMap::new(),
            stored: BTreeSet::new(),
        }
    }

    /// What its commits are verified with.
    pub fn public_key(&self) -> crate::repo::PublicKey {
        self.key.public_key()
    }

    /// An upload.
    pub fn store(&mut self, blob: &[u8]) -> Change {
        let cid = Cid::for_raw(blob);
        self.stored.insert(cid);
        Change::BlobStored {
            did: self.did.clone(),
            cid,
            mime: "image/png".to_owned(),
            size: blob.len() as u64,
            created_at_micros: 1,
        }
    }

    /// Commits `writes` (`None` deletes), with nodes that are not in memory from `source`.
    pub fn commit(&mut self, writes: &Writes, source: &dyn NodeSource) -> EntryDraft {
        let rev = Tid::next_after(self.head.map(|(_, rev, _)| rev), 1_700_000_000_000_000, 3);
        let mut ops = Vec::new();
        let mut lost = BTreeSet::new();
        for (path, write) in writes {
            let old = self.records.get(path).cloned();
            lost.extend(old.iter().flat_map(|old| old.blobs.iter().copied()));
            match (write, old) {
                (Some((bytes, blobs)), old) => {
                    let cid = Cid::for_dag_cbor(bytes);
                    let action = match &old {
                        Some(old) if old.cid == cid => continue,
                        Some(old) => {
                            self.tree.update(path, cid, source).unwrap();
                            OpAction::Update { cid, prev: old.cid }
                        }
                        None => {
                            self.tree.insert(path, cid, source).unwrap();
                            OpAction::Create { cid }
                        }
                    };
                    ops.push(RepoOp { path, action });
                    let model = ModelRecord {
                        cid,
                        bytes: bytes.clone().into(),
                        rev,
                        blobs: blobs.clone(),
                    };
                    self.records.insert(path.clone(), model);
                }
                (None, Some(old)) => {
                    self.tree.remove(path, source).unwrap();
                    ops.push(RepoOp {
                        path,
                        action: OpAction::Delete { prev: old.cid },
                    });
                    self.records.remove(path);
                }
                (None, None) => {}
            }
        }
        let flushed = self.tree.flush();
        let proof = self
            .tree
            .covering_proof(ops.iter().map(|op| op.path), source)
            .unwrap();
        let commit = UnsignedCommit {
            did: self.did.clone(),
            data: flushed.root,
            rev,
        }
        .sign_unverified(&self.key)
        .unwrap();

        let mut car = Vec::new();
        write_header(&mut car, &[commit.cid()]);
        write_block(&mut car, &commit.cid(), commit.bytes());
        let mut nodes: BTreeMap<Cid, Bytes> = proof.into_iter().collect();
        nodes.extend(flushed.added);
        for (cid, block) in &nodes {
            write_block(&mut car, cid, block);
        }
        let mut written = BTreeSet::new();
        for op in &ops {
            if let Some(cid) = op.action.cid().filter(|cid| written.insert(*cid)) {
                write_block(&mut car, &cid, &self.records[op.path].bytes);
            }
        }
        let event = encode_commit(&CommitEvent {
            repo: &self.did,
            commit: commit.cid(),
            rev,
            since: self.head.map(|(_, rev, _)| rev),
            prev_data: self.head.map(|(_, _, data)| data),
            ops: &ops,
            blocks: &car,
        })
        .unwrap();
        self.head = Some((commit.cid(), rev, flushed.root));
        let referenced = self.referenced();
        for blob in lost {
            if !referenced.contains_key(&blob) {
                self.stored.remove(&blob);
            }
        }
        EntryDraft::commit(event, Vec::new())
    }

    /// The entries of an import that replaces everything: rows in pieces of `piece`, and the flip. The model is the new
    /// repo at once.
    pub fn import(
        &mut self,
        generation: u32,
        records: &BTreeMap<String, (Vec<u8>, BTreeSet<Cid>)>,
        piece: usize,
        in_order: bool,
    ) -> (Vec<EntryDraft>, EntryDraft) {
        let rev = Tid::next_after(self.head.map(|(_, rev, _)| rev), 1_700_000_000_000_000, 3);
        let model = |(bytes, blobs): &(Vec<u8>, BTreeSet<Cid>)| ModelRecord {
            cid: Cid::for_dag_cbor(bytes),
            bytes: bytes.clone().into(),
            rev,
            blobs: blobs.clone(),
        };
        self.records = records
            .iter()
            .map(|(path, record)| (path.clone(), model(record)))
            .collect();
        self.tree = Tree::empty();
        for (path, record) in &self.records {
            self.tree.insert(path, record.cid, &NOTHING).unwrap();
        }
        let data = self.tree.flush().root;
        let commit = UnsignedCommit {
            did: self.did.clone(),
            data,
            rev,
        }
        .sign_unverified(&self.key)
        .unwrap();
        self.head = Some((commit.cid(), rev, data));
        let mut rows: Vec<RepoRow> = self
            .records
            .iter()
            .map(|(path, record)| RepoRow {
                path: path.clone(),
                rev,
                cid: record.cid,
                block: record.bytes.clone(),
            })
            .collect();
        if !in_order {
            rows.reverse();
        }
        let did = || self.did.clone();
        let pieces = rows.chunks(piece).map(|rows| {
            EntryDraft::private(vec![Change::RepoRows {
                did: did(),
                generation,
                rows: rows.to_vec(),
            }])
        });
        let flip = EntryDraft::private(vec![Change::RepoHead {
            did: did(),
            generation,
            commit: commit.bytes().clone(),
        }]);
        (pieces.collect(), flip)
    }

    /// Blobs that records reference, each with the paths that do.
    pub fn referenced(&self) -> BTreeMap<Cid, BTreeSet<String>> {
        let mut found: BTreeMap<Cid, BTreeSet<String>> = BTreeMap::new();
        for (path, record) in &self.records {
            for blob in &record.blobs {
                found.entry(*blob).or_default().insert(path.clone());
            }
        }
        found
    }

    /// Compares every answer about this repo with the model.
    pub fn check(&self, reader: &IndexReader) {
        let Some((commit, rev, data)) = self.head else {
            assert_eq!(reader.repo(&self.did).unwrap(), None);
            return;
        };
        let head = reader.repo(&self.did).unwrap().expect("the repo has a commit");
        assert_eq!((head.commit, head.rev, head.data), (commit, rev, data));
        let counts = (
            head.counts.records,
            head.counts.blobs_stored,
            head.counts.blobs_referenced,
        );
        let referenced = self.referenced();
        assert_eq!(
            counts,
            (
                self.records.len() as u64,
                self.stored.len() as u64,
                referenced.len() as u64
            ),
            "counts of {}",
            self.did
        );

        let listed: Vec<_> = reader
            .records_from(&self.did, None)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(listed.len(), self.records.len());
        for ((path, row), (model_path, model)) in listed.iter().zip(&self.records) {
            assert_eq!(path.to_string(), *model_path);
            assert_eq!((row.cid, row.rev), (model.cid, model.rev));
            assert_eq!(reader.record(&self.did, path).unwrap(), Some(*row));
        }

        let mut about: BTreeMap<Subject, Vec<String>> = BTreeMap::new();
        for (path, record) in &self.records {
            if let Some(subject) = Subject::of(path, &record.bytes) {
                let rkey = path.split_once('/').unwrap().1;
                about.entry(subject).or_default().push(rkey.to_owned());
            }
        }
        for (subject, rkeys) in &about {
            assert_eq!(reader.about(&self.did, subject, usize::MAX).unwrap(), *rkeys);
        }

        let mut collections: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in self.records.keys() {
            let (collection, rkey) = path.split_once('/').unwrap();
            collections
                .entry(collection.to_owned())
                .or_default()
                .push(rkey.to_owned());
        }
        let answered: BTreeMap<String, u64> = reader
            .collections(&self.did)
            .unwrap()
            .into_iter()
            .map(|(name, n)| (name.to_string(), n))
            .collect();
        let expected = collections
            .iter()
            .map(|(name, rkeys)| (name.clone(), rkeys.len() as u64))
            .collect();
        assert_eq!(answered, expected);
        for (name, rkeys) in &collections {
            let name = name.parse().unwrap();
            for order in [ListOrder::Ascending, ListOrder::Descending] {
                let mut expected = rkeys.clone();
                if order == ListOrder::Descending {
                    expected.reverse();
                }
                let mut answered = Vec::new();
                loop {
                    let cursor = answered.last().cloned().map(|rkey: String| rkey.parse().unwrap());
                    let page = reader
                        .list_records(&self.did, &name, cursor.as_ref(), order, 3)
                        .unwrap();
                    if page.is_empty() {
                        break;
                    }
                    answered.extend(page.into_iter().map(|item| item.rkey.to_string()));
                }
                assert_eq!(answered, expected, "{order:?}");
            }
        }

        let blobs = reader.list_blobs(&self.did, None, None, 10_000).unwrap();
        assert_eq!(
            blobs.iter().map(|blob| blob.cid).collect::<Vec<_>>(),
            referenced.keys().copied().collect::<Vec<_>>()
        );
        for (cid, paths) in &referenced {
            let answered = reader.blob_refs(&self.did, cid, 10_000).unwrap();
            assert_eq!(
                answered.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
                *paths
            );
            assert!(reader.is_referenced(&self.did, cid).unwrap());
        }
        let missing: BTreeSet<Cid> = reader
            .missing_blobs(&self.did, None, 10_000)
            .unwrap()
            .into_iter()
            .map(|blob| blob.cid)
            .collect();
        assert_eq!(
            missing,
            referenced
                .keys()
                .copied()
                .filter(|cid| !self.stored.contains(cid))
                .collect()
        );
        let stored: BTreeSet<Cid> = reader
            .stored_blobs(&self.did, None, 10_000)
            .unwrap()
            .into_iter()
            .map(|(cid, _)| cid)
            .collect();
        assert_eq!(stored, self.stored);

        // The whole tree from the index's nodes, each checked against its CID; then a tree built from the records.
        let nodes = reader.nodes(&self.did).unwrap().expect("the repo is known");
        let walked: Vec<_> = Tree::open(data)
            .entries_from(None, &nodes)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(walked.len(), self.records.len());
    }
}

/// Gives drafts a place as the log would, without a log.
pub struct Placer {
    last: u64,
    offset: u64,
}

impl Placer {
    pub fn new() -> Placer {
        Placer {
            last: 1_700_000_000_000_000,
            offset: 96,
        }
    }

    pub fn place(&mut self, draft: EntryDraft) -> Entry {
        self.last += 1;
        let lsn = lsn(self.last);
        let Draft {
            kind,
            mut public,
            stamps,
            private,
        } = draft.into_draft().unwrap();
        for stamp in stamps {
            match stamp {
                Stamp::Lsn { at } => public[at..at + 8].copy_from_slice(&lsn.get().to_be_bytes()),
                Stamp::Time { at } => public[at..at + 24].copy_from_slice(&lsn.timestamp()),
            }
        }
        let public_at = Location {
            // Three segments by turns.
            segment: self::lsn(1 + lsn.get() % 3),
            offset: self.offset + 48,
            len: public.len() as u32,
        };
        let private: Bytes = private.into();
        let private_at = Location {
            offset: public_at.offset + public.len() as u64,
            len: private.len() as u32,
            ..public_at
        };
        self.offset += 48 + public.len() as u64 + private.len() as u64;
        Entry {
            lsn,
            epoch: Epoch(1),
            kind: EntryKind::try_from(kind).unwrap(),
            public: public.into(),
            public_at,
            changes: crate::entry::decode_private(&private).unwrap(),
            private,
            private_at,
        }
    }
}
