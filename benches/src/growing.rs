//! Repositories of any size whose memory does not grow with them: they only grow, and what of the tree was applied to an
//! index can be forgotten and comes back from there.

use anyhow::Result;
use engine::entry::EntryDraft;
use engine::repo::cbor::Writer;
use engine::repo::event::{OpAction, RepoOp};
use engine::repo::mst::{NodeSource, Tree};
use engine::repo::{Cid, Did, RepoPath, SigningKey, Tid};
use engine::views::accounts::iso_time;

use crate::synthetic::{self, BEGINNING_MICROS, CommitParts, Head};

/// Microseconds between two records of one repository.
const RECORD_EVERY_MICROS: u64 = 1_000;
/// Words of posts.
const WORDS: [&str; 16] = [
    "the", "of", "river", "and", "quiet", "morning", "in", "light", "over", "old", "bridge", "a", "slowly",
    "walks", "home", "again",
];

/// A repository that grows by records whose content follows from its number, the seed and the record's number.
pub struct GrowingRepo {
    /// Whose it is.
    pub did: Did,
    key: SigningKey,
    seed: u64,
    tree: Tree,
    head: Option<Head>,
    records: u64,
}

impl GrowingRepo {
    /// A repository without a commit.
    ///
    /// # Errors
    /// See [`synthetic::did`].
    pub fn new(number: u64, seed: u64) -> Result<GrowingRepo> {
        Ok(GrowingRepo {
            did: synthetic::did(number)?,
            key: synthetic::key(number)?,
            seed: mixed(seed ^ mixed(number)),
            tree: Tree::empty(),
            head: None,
            records: 0,
        })
    }

    /// Goes on where a store stands: at `head`, with `records` records.
    pub fn stands_at(&mut self, head: Head, records: u64) {
        self.tree = Tree::open(head.data);
        self.head = Some(head);
        self.records = records;
    }

    /// The key that signs its commits.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// How many records it has.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Where it stands.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// What the tree takes in memory, bytes.
    #[must_use]
    pub fn tree_bytes(&self) -> usize {
        self.tree.memory_bytes()
    }

    /// Forgets what the index has. Only when every commit so far was applied.
    pub fn trim(&mut self) {
        self.tree.trim();
    }

    /// Forgets the whole tree but its root's CID, as a server does that has not heard of the repo for long.
    pub fn forget(&mut self) {
        if let Some(head) = self.head {
            self.tree = Tree::open(head.data);
        }
    }

    /// Adds the next `count` records (1 to 200) in one commit, and gives the entry for the log. `nodes` is where
    /// forgotten nodes come from.
    ///
    /// # Errors
    /// A node cannot be had, or the commit is beyond the protocol's limits.
    pub fn commit(&mut self, count: u64, nodes: &dyn NodeSource) -> Result<EntryDraft> {
        let records: Vec<(String, Vec<u8>, Cid)> = (self.records..self.records + count)
            .map(|at| {
                let record = self.record(at);
                let cid = Cid::for_dag_cbor(&record);
                (path(self.seed, at), record, cid)
            })
            .collect();
        let mut ops = Vec::with_capacity(records.len());
        for (path, _, cid) in &records {
            self.tree.insert(path, *cid, nodes)?;
            let action = OpAction::Create { cid: *cid };
            ops.push(RepoOp { path, action });
        }
        let blocks: Vec<(Cid, &[u8])> = records
            .iter()
            .map(|(_, record, cid)| (*cid, record.as_slice()))
            .collect();
        let parts = CommitParts {
            did: &self.did,
            key: &self.key,
            before: self.head,
            rev: Tid::next_after(self.head.map(|head| head.rev), BEGINNING_MICROS, 3),
            ops: &ops,
            records: &blocks,
            claimed: None,
        };
        let (draft, head) = parts.seal(&mut self.tree, nodes)?;
        self.head = Some(head);
        self.records += count;
        Ok(draft)
    }

    /// The path of record `at`.
    ///
    /// # Errors
    /// Never in practice: a path that is none.
    pub fn path(&self, at: u64) -> Result<RepoPath> {
        Ok(path(self.seed, at).parse()?)
    }

    fn record(&self, at: u64) -> Vec<u8> {
        let chance = mixed(self.seed.wrapping_add(at));
        let when = iso_time(BEGINNING_MICROS + at * RECORD_EVERY_MICROS);
        let mut out = Vec::with_capacity(400);
        let mut writer = Writer::new(&mut out);
        let kind = Kind::of(self.seed, at);
        // Every record is one of a kind: a repeated block would be stored once and make the figures too good.
        let subject = mixed(chance);
        match kind {
            Kind::Post => {
                let words = 4 + chance % 36;
                let mut text = String::with_capacity(320);
                for word in 0..words {
                    let at = mixed(chance ^ word) % WORDS.len() as u64;
                    text.push_str(WORDS.get(at as usize).copied().unwrap_or_default());
                    text.push(' ');
                }
                text.push_str(&at.to_string());
                writer
                    .map(4)
                    .text("text")
                    .text(&text)
                    .text("$type")
                    .text(kind.collection());
                writer.text("langs").array(1).text("en");
            }
            Kind::Like | Kind::Repost => {
                let block = Cid::for_dag_cbor(&subject.to_be_bytes()).to_string();
                let rkey = Tid::from_u64(subject >> 1);
                let uri = format!("at://did:plc:{}/app.bsky.feed.post/{rkey}", short_name(subject));
                writer.map(3).text("$type").text(kind.collection());
                writer
                    .text("subject")
                    .map(2)
                    .text("cid")
                    .text(&block)
                    .text("uri")
                    .text(&uri);
            }
            Kind::Follow => {
                let did = format!("did:plc:{}", short_name(subject));
                writer.map(3).text("$type").text(kind.collection());
                writer.text("subject").text(&did);
            }
        }
        writer.text("createdAt").text(&when);
        out
    }
}

/// What people write, by how often.
#[derive(Clone, Copy)]
enum Kind {
    Like,
    Post,
    Follow,
    Repost,
}

impl Kind {
    fn of(seed: u64, at: u64) -> Kind {
        match mixed(seed.wrapping_add(at)) >> 32 & 63 {
            0..=37 => Kind::Like,
            38..=51 => Kind::Post,
            52..=59 => Kind::Follow,
            _ => Kind::Repost,
        }
    }

    fn collection(self) -> &'static str {
        match self {
            Kind::Like => "app.bsky.feed.like",
            Kind::Post => "app.bsky.feed.post",
            Kind::Follow => "app.bsky.graph.follow",
            Kind::Repost => "app.bsky.feed.repost",
        }
    }
}

fn path(seed: u64, at: u64) -> String {
    let rkey = Tid::next_after(None, BEGINNING_MICROS + at * RECORD_EVERY_MICROS, 0);
    format!("{}/{rkey}", Kind::of(seed, at).collection())
}

/// 24 letters of did:plc's alphabet.
fn short_name(number: u64) -> String {
    let mut left = number;
    (0..24)
        .map(|_| {
            let digit = (left & 31) as u8;
            left = left.rotate_right(5).wrapping_mul(0x5851_f42d_4c95_7f2d);
            char::from(if digit < 26 {
                b'a' + digit
            } else {
                b'2' + digit - 26
            })
        })
        .collect()
}

/// A number that looks like chance and follows from `number` (the finaliser of SplitMix64).
#[must_use]
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use bytes::Bytes;
    use engine::repo::car::{CarLimits, CarSlice};
    use engine::repo::cbor::Value;
    use engine::repo::event::{Event, decode};
    use engine::repo::mst::build_from_sorted;

    use super::*;

    #[test]
    fn it_grows_the_same_tree_with_and_without_what_it_forgot() {
        let (mut kept, mut forgetful) = (GrowingRepo::new(3, 9).unwrap(), GrowingRepo::new(3, 9).unwrap());
        let mut blocks: HashMap<Cid, Bytes> = HashMap::new();
        let mut records = BTreeMap::new();
        for _ in 0..20 {
            let expected = kept
                .commit(50, &HashMap::<Cid, Bytes>::new())
                .unwrap()
                .into_draft()
                .unwrap();
            let draft = forgetful.commit(50, &blocks).unwrap().into_draft().unwrap();
            assert_eq!(draft.public, expected.public);
            let Ok(Event::Commit(event)) = decode(&draft.public) else {
                panic!("no commit")
            };
            for block in CarSlice::new(event.blocks, CarLimits::default()).unwrap() {
                let block = block.unwrap();
                blocks.insert(block.cid, Bytes::copy_from_slice(block.bytes));
            }
            for op in event.ops.clone() {
                records.insert(op.path.to_owned(), op.action.cid().unwrap());
                assert!(
                    Value::decode(&blocks[&op.action.cid().unwrap()]).is_ok(),
                    "canonical"
                );
            }
            forgetful.forget();
            assert!(forgetful.tree_bytes() < kept.tree_bytes());
        }
        assert_eq!(records.len(), 1000, "no two are alike");
        assert!(records.contains_key(&kept.path(17).unwrap().to_string()));
        let entries = records.iter().map(|(path, cid)| (path.as_str(), *cid));
        let root = build_from_sorted(entries, |_| Ok::<_, std::convert::Infallible>(())).unwrap();
        assert_eq!(Some(root), kept.head().map(|head| head.data));
    }
}
