//! A repository in memory that makes real entries: real keys, real trees, real proofs, made-up words.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use bytes::Bytes;
use engine::clock::SeededEntropy;
use engine::entry::{EntryDraft, RepoRow};
use engine::repo::car::{write_block, write_header};
use engine::repo::cbor::Writer;
use engine::repo::event::{CommitEvent, OpAction, RepoOp, encode_commit};
use engine::repo::mst::{NodeSource, Tree};
use engine::repo::{Cid, Did, SigningKey, Tid, UnsignedCommit};

/// Microseconds since 1970 at which synthetic repositories begin; every commit is a little later than the one before.
pub(crate) const BEGINNING_MICROS: u64 = 1_700_000_000_000_000;

/// One write of a commit.
#[derive(Clone, Debug)]
pub enum Write {
    /// Creates the record, or replaces it.
    Put {
        /// `collection/rkey`.
        path: String,
        /// DAG-CBOR.
        record: Vec<u8>,
    },
    /// Deletes the record, which must be there.
    Delete {
        /// `collection/rkey`.
        path: String,
    },
}

/// A repository whose tree is wholly in memory.
pub struct SyntheticRepo {
    /// Whose it is.
    pub did: Did,
    key: SigningKey,
    tree: Tree,
    head: Option<Head>,
    records: BTreeMap<String, Cid>,
    writes: u64,
}

/// Where a repository stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The commit's CID.
    pub commit: Cid,
    /// Its revision.
    pub rev: Tid,
    /// The tree's root.
    pub data: Cid,
}

impl SyntheticRepo {
    /// An empty repository; the same number gives the same DID and key.
    ///
    /// # Errors
    /// Never for any number in practice: a DID or key that is none.
    pub fn new(number: u64) -> Result<SyntheticRepo> {
        Ok(SyntheticRepo {
            did: did(number)?,
            key: key(number)?,
            tree: Tree::empty(),
            head: None,
            records: BTreeMap::new(),
            writes: 0,
        })
    }

    /// Where it stands; none before the first commit.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// The key that signs its commits.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Its records, by path.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<String, Cid> {
        &self.records
    }

    /// The path of the next post: record keys ascend as TIDs do.
    pub fn next_path(&mut self) -> String {
        self.writes += 1;
        let rkey = Tid::next_after(None, BEGINNING_MICROS + self.writes * 1_000, 0);
        format!("app.bsky.feed.post/{rkey}")
    }

    /// `count` new posts.
    pub fn posts(&mut self, count: usize) -> Vec<Write> {
        let mut writes = Vec::with_capacity(count);
        for _ in 0..count {
            let path = self.next_path();
            let record = post(&format!("synthetic words, number {}", self.writes));
            writes.push(Write::Put { path, record });
        }
        writes
    }

    /// Commits `writes` (at most 200, each of another path) and gives the entry for the log.
    ///
    /// # Errors
    /// A path is invalid or missing, or the commit is beyond the protocol's limits. The repository is of no more use.
    pub fn commit(&mut self, writes: &[Write]) -> Result<EntryDraft> {
        self.commit_claiming(writes, None)
    }

    /// As [`SyntheticRepo::commit`], but the signed commit names `claimed` as the tree's root if that is given: a
    /// forgery, for those who test whether it is found.
    ///
    /// # Errors
    /// As [`SyntheticRepo::commit`].
    pub fn commit_claiming(&mut self, writes: &[Write], claimed: Option<Cid>) -> Result<EntryDraft> {
        let nothing = HashMap::<Cid, Bytes>::new();
        let source: &dyn NodeSource = &nothing;
        let mut ops = Vec::with_capacity(writes.len());
        let mut blocks: Vec<(Cid, &[u8])> = Vec::with_capacity(writes.len());
        for write in writes {
            match write {
                Write::Put { path, record } => {
                    let cid = Cid::for_dag_cbor(record);
                    let action = match self.records.insert(path.clone(), cid) {
                        Some(prev) => {
                            self.tree.update(path, cid, source)?;
                            OpAction::Update { cid, prev }
                        }
                        None => {
                            self.tree.insert(path, cid, source)?;
                            OpAction::Create { cid }
                        }
                    };
                    ops.push(RepoOp { path, action });
                    if !blocks.iter().any(|(known, _)| *known == cid) {
                        blocks.push((cid, record));
                    }
                }
                Write::Delete { path } => {
                    let prev = self
                        .records
                        .remove(path)
                        .with_context(|| format!("{path} is not there"))?;
                    self.tree.remove(path, source)?;
                    ops.push(RepoOp {
                        path,
                        action: OpAction::Delete { prev },
                    });
                }
            }
        }
        let parts = CommitParts {
            did: &self.did,
            key: &self.key,
            before: self.head,
            rev: Tid::next_after(self.head.map(|head| head.rev), BEGINNING_MICROS, 3),
            ops: &ops,
            records: &blocks,
            claimed,
        };
        let (draft, head) = parts.seal(&mut self.tree, source)?;
        self.head = Some(head);
        Ok(draft)
    }
}

/// What replaces a repository: see [`SyntheticRepo::replace`].
pub struct Replacement {
    /// Its records, in path order.
    pub rows: Vec<RepoRow>,
    /// The signed commit over them.
    pub commit: Bytes,
}

impl SyntheticRepo {
    /// Begins anew with `count` other posts, as an import does: records and a commit, and no event.
    ///
    /// # Errors
    /// As [`SyntheticRepo::commit`].
    pub fn replace(&mut self, count: usize) -> Result<Replacement> {
        let nothing = HashMap::<Cid, Bytes>::new();
        let rev = Tid::next_after(self.head.map(|head| head.rev), BEGINNING_MICROS, 3);
        let (mut tree, mut records, mut rows) = (Tree::empty(), BTreeMap::new(), Vec::new());
        for write in self.posts(count) {
            if let Write::Put { path, record } = write {
                let cid = Cid::for_dag_cbor(&record);
                tree.insert(&path, cid, &nothing as &dyn NodeSource)?;
                records.insert(path.clone(), cid);
                rows.push(RepoRow {
                    path,
                    rev,
                    cid,
                    block: record.into(),
                });
            }
        }
        rows.sort_by(|a, b| a.path.cmp(&b.path));
        let unsigned = UnsignedCommit {
            did: self.did.clone(),
            data: tree.flush().root,
            rev,
        };
        let data = unsigned.data;
        let commit = unsigned.sign(&self.key)?;
        self.head = Some(Head {
            commit: commit.cid(),
            rev,
            data,
        });
        (self.tree, self.records) = (tree, records);
        Ok(Replacement {
            rows,
            commit: commit.bytes().clone(),
        })
    }
}

/// The DID of synthetic repository `number`: of did:plc's form, and registered nowhere.
///
/// # Errors
/// Never for any number in practice: a DID that is none.
pub fn did(number: u64) -> Result<Did> {
    // did:plc has 24 characters of base32, without 0, 1, 8, 9.
    let mut name = String::with_capacity(24);
    let mut left = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number);
    for at in 0..24u32 {
        let digit = (left.rotate_left(at * 5) ^ (number >> (at % 8))) & 31;
        name.push(char::from(if digit < 26 {
            b'a' + digit as u8
        } else {
            b'2' + (digit - 26) as u8
        }));
        left = left.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    }
    format!("did:plc:{name}").parse().context("a synthetic DID")
}

/// The key that signs the commits of synthetic repository `number`.
///
/// # Errors
/// Never for any number in practice: bytes that are no key.
pub fn key(number: u64) -> Result<SigningKey> {
    Ok(SigningKey::generate(&SeededEntropy::new(number.wrapping_add(1)))?)
}

/// A commit whose operations are in the tree already.
pub(crate) struct CommitParts<'a> {
    pub(crate) did: &'a Did,
    pub(crate) key: &'a SigningKey,
    /// The head that it continues; none for a repository's first.
    pub(crate) before: Option<Head>,
    pub(crate) rev: Tid,
    pub(crate) ops: &'a [RepoOp<'a>],
    /// Record blocks, each once.
    pub(crate) records: &'a [(Cid, &'a [u8])],
    /// What the commit is signed for in place of the tree's root: a forgery.
    pub(crate) claimed: Option<Cid>,
}

impl CommitParts<'_> {
    /// Flushes the tree, signs, proves, and gives the entry and the new head.
    pub(crate) fn seal(&self, tree: &mut Tree, source: &dyn NodeSource) -> Result<(EntryDraft, Head)> {
        let flushed = tree.flush();
        let proof = tree.covering_proof(self.ops.iter().map(|op| op.path), source)?;
        let data = self.claimed.unwrap_or(flushed.root);
        let commit = UnsignedCommit {
            did: self.did.clone(),
            data,
            rev: self.rev,
        }
        .sign(self.key)?;

        let mut nodes: BTreeMap<Cid, Bytes> = proof.into_iter().collect();
        nodes.extend(flushed.added);
        let mut car = Vec::with_capacity(4096);
        write_header(&mut car, &[commit.cid()]);
        write_block(&mut car, &commit.cid(), commit.bytes());
        for (cid, block) in &nodes {
            write_block(&mut car, cid, block);
        }
        for (cid, block) in self.records {
            write_block(&mut car, cid, block);
        }
        let event = encode_commit(&CommitEvent {
            repo: self.did,
            commit: commit.cid(),
            rev: self.rev,
            since: self.before.map(|head| head.rev),
            prev_data: self.before.map(|head| head.data),
            ops: self.ops,
            blocks: &car,
        })?;
        let head = Head {
            commit: commit.cid(),
            rev: self.rev,
            data,
        };
        Ok((EntryDraft::commit(event, Vec::new()), head))
    }
}

/// A post of the usual shape, some 100 bytes more than its text.
#[must_use]
pub fn post(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + text.len());
    let mut writer = Writer::new(&mut out);
    writer
        .map(4)
        .text("text")
        .text(text)
        .text("$type")
        .text("app.bsky.feed.post");
    writer.text("langs").array(1).text("en");
    writer.text("createdAt").text("2023-11-14T22:13:20.000Z");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::repo::cbor::Value;
    use engine::repo::event::{Event, decode};
    use engine::repo::mst::build_from_sorted;

    #[test]
    fn a_synthetic_repository_commits_what_a_consumer_accepts() {
        let mut repo = SyntheticRepo::new(7).unwrap();
        let writes = repo.posts(30);
        repo.commit(&writes).unwrap();
        let Write::Put { path, .. } = &writes[3] else {
            unreachable!()
        };
        let change = [
            Write::Delete { path: path.clone() },
            Write::Put {
                path: repo.next_path(),
                record: post("another"),
            },
        ];
        let draft = repo.commit(&change).unwrap().into_draft().unwrap();
        let Ok(Event::Commit(event)) = decode(&draft.public) else {
            panic!("no commit")
        };
        assert_eq!(event.ops.len(), 2);
        let entries = repo.records().iter().map(|(path, cid)| (path.as_str(), *cid));
        let root = build_from_sorted(entries, |_| Ok::<_, std::convert::Infallible>(())).unwrap();
        assert_eq!(Some(root), repo.head().map(|head| head.data));
    }

    #[test]
    fn a_post_is_canonical_and_dids_differ() {
        assert!(Value::decode(&post("words")).is_ok());
        let dids: std::collections::BTreeSet<_> = (0..1000)
            .map(|n| SyntheticRepo::new(n).unwrap().did.to_string())
            .collect();
        assert_eq!(dids.len(), 1000);
    }
}
