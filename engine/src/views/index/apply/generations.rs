//! Generations of a repo: rows that come without a commit, the flip that makes them the live ones, and the sweep of what
//! is not live any more.
//!
//! All rows of a repo lie under its number and generation. One generation is live; others are *staged*: they have a row
//! in `generations`, which counts what `heads` counts for the live one. A flip changes `heads` and `generations` and
//! nothing else, however big the repo, because the tree of a staged generation is built as its rows come.
//!
//! A generation that ends, or a repo that is removed, leaves all answers in the same transaction, and its prefix gets a
//! row in `dead`. [`sweep`](crate::views::index::sweep) then takes the rows away in bounded pieces. They are in no answer, so where a sweep stands
//! does not belong to what the log says (I4); a crash leaves it where its last durable piece was.

use std::collections::HashMap;

use redb::{ReadableTable, Table};

use super::records::Records;
use super::{ApplyError, Repo, Tables, contradiction};
use crate::entry::{Entry, RepoRow};
use crate::log::Lsn;
use crate::repo::commit::Commit;
use crate::repo::mst::{BuildError, BuiltNode, Spine};
use crate::repo::{Cid, Did, Tid};
use crate::views::index::rows::{
    CommitRow, Counts, NodeRow, PREFIX_BYTES, RecordRow, RepoKey, after_prefix, text_in_key,
};
use crate::views::index::{Bytes, IndexError};

/// Trees of staged generations that are built as their rows come. Beyond so many, a tree is built at its flip.
const BUILDS_MAX: usize = 64;

/// The trees of staged generations, as far as their rows have come. Lost at a restart: the flip builds them then.
#[derive(Debug, Default)]
pub(in crate::views::index) struct Builds(HashMap<RepoKey, Spine>);

impl Builds {
    /// What was built is of no use: the transaction it went into was given up.
    pub(in crate::views::index) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where rows of a generation go.
enum Place {
    Live,
    Staged(Counts),
}

impl Tables<'_> {
    pub(super) fn rows(
        &mut self,
        entry: &Entry,
        did: &Did,
        generation: u32,
        rows: &[RepoRow],
        builds: &mut Builds,
    ) -> Result<(), ApplyError> {
        let lsn = entry.lsn;
        let generation = small(lsn, generation)?;
        let mut repo = match self.take_known(did)? {
            Some(repo) => repo,
            // The one that a new repo's commits go to. It has no head that would vouch for rows, and could not be given up.
            None if generation == 0 => {
                let what = format!("rows of the live generation of {did}, which has no repo");
                return Err(contradiction(lsn, what));
            }
            None => self.take(did)?,
        };
        let key = repo.generation(generation);
        let mut place = self.place(lsn, &mut repo, generation, builds)?;
        let mut spine = builds.0.remove(&key);
        for row in rows {
            let location = entry
                .private_location(&row.block)
                .ok_or_else(|| contradiction(lsn, format!("{} lies outside of it", row.path)))?;
            if let Some(building) = &mut spine {
                match building.push(&row.path, row.cid, &mut |node| {
                    put_node(&mut self.nodes, key, 0, &node)
                }) {
                    Ok(()) => {}
                    Err(BuildError::Sink(error)) => return Err(error),
                    // Out of order: the flip builds the tree.
                    Err(BuildError::Order(_)) => spine = None,
                    Err(BuildError::InvalidKey(key)) => {
                        return Err(contradiction(lsn, format!("{key} is no key of a tree")));
                    }
                }
            }
            let counts = match &mut place {
                Place::Live => &mut repo.head.counts,
                Place::Staged(counts) => counts,
            };
            let record = RecordRow {
                cid: row.cid,
                rev: row.rev,
                location,
            };
            let mut records = Records::new(self, key, counts, lsn);
            records.put(&row.path, record, &row.block)?;
        }
        if let Some(spine) = spine {
            builds.0.insert(key, spine);
        }
        self.put_place(key, place)?;
        self.put_back(repo);
        Ok(())
    }

    pub(super) fn gone(
        &mut self,
        lsn: Lsn,
        did: &Did,
        generation: u32,
        paths: &[String],
        builds: &mut Builds,
    ) -> Result<(), ApplyError> {
        let generation = small(lsn, generation)?;
        let Some(mut repo) = self.take_known(did)? else {
            return Ok(());
        };
        let key = repo.generation(generation);
        let place = match self.staged_counts(key)? {
            _ if generation == repo.head.generation => Some(Place::Live),
            counts => counts.map(Place::Staged),
        };
        if let Some(mut place) = place {
            // What was removed may be in nodes that are built already.
            builds.0.remove(&key);
            let counts = match &mut place {
                Place::Live => &mut repo.head.counts,
                Place::Staged(counts) => counts,
            };
            let mut records = Records::new(self, key, counts, lsn);
            for path in paths {
                records.remove(path)?;
            }
            let orphans = records.finish();
            if matches!(place, Place::Live) {
                self.drop_orphans(&mut repo, orphans)?;
            }
            self.put_place(key, place)?;
        }
        self.put_back(repo);
        Ok(())
    }

    /// The flip.
    pub(super) fn head(
        &mut self,
        entry: &Entry,
        did: &Did,
        generation: u32,
        commit: &bytes::Bytes,
        builds: &mut Builds,
    ) -> Result<(), ApplyError> {
        let lsn = entry.lsn;
        let generation = small(lsn, generation)?;
        let location = entry
            .private_location(commit)
            .ok_or_else(|| contradiction(lsn, "its commit lies outside of it".to_owned()))?;
        let commit = Commit::decode(commit.clone())
            .map_err(|error| contradiction(lsn, format!("its commit: {error}")))?;
        if commit.did() != did {
            return Err(contradiction(
                lsn,
                "its signed commit is of another repo".to_owned(),
            ));
        }
        let mut repo = self.take(did)?;
        let key = repo.generation(generation);
        if generation == repo.head.generation {
            if repo.head.commit.is_none_or(|at| at.data != commit.data()) {
                let root = self.build(key, commit.rev())?;
                check_root(lsn, &commit, root)?;
                repo.head.base = commit.rev().to_u64();
            }
        } else {
            let place = self.place(lsn, &mut repo, generation, builds)?;
            let Place::Staged(counts) = place else {
                return Err(contradiction(
                    lsn,
                    "a staged generation is the live one".to_owned(),
                ));
            };
            let root = match builds.0.remove(&key) {
                Some(mut spine) => {
                    finish(spine.finish(&mut |node| put_node(&mut self.nodes, key, 0, &node)))?
                }
                None => self.build(key, commit.rev())?,
            };
            check_root(lsn, &commit, root)?;
            self.generations.remove(key.prefix().as_slice())?;
            self.dead.insert(repo.key().prefix().as_slice(), ())?;
            repo.head.generation = generation;
            repo.head.counts = counts;
            repo.head.base = commit.rev().to_u64();
        }
        if let Some(before) = &repo.head.commit {
            self.uses.commit_gone(before.location);
        }
        self.uses.commit_added(location);
        repo.head.commit = Some(CommitRow {
            rev: commit.rev(),
            commit: commit.cid(),
            data: commit.data(),
            location,
        });
        self.put_back(repo);
        Ok(())
    }

    pub(super) fn swept(
        &mut self,
        lsn: Lsn,
        did: &Did,
        generation: u32,
        builds: &mut Builds,
    ) -> Result<(), ApplyError> {
        let generation = small(lsn, generation)?;
        let Some(repo) = self.take_known(did)? else {
            return Ok(());
        };
        let key = repo.generation(generation);
        if generation == repo.head.generation {
            return Err(contradiction(lsn, format!("it sweeps what is live of {did}")));
        }
        builds.0.remove(&key);
        if self.generations.remove(key.prefix().as_slice())?.is_some() {
            self.dead.insert(key.prefix().as_slice(), ())?;
        }
        self.put_back(repo);
        Ok(())
    }

    /// The repo leaves all answers now, and its rows in pieces later.
    pub(super) fn remove_repo(&mut self, repo: &Repo, builds: &mut Builds) -> Result<(), ApplyError> {
        if let Some(commit) = &repo.head.commit {
            self.uses.commit_gone(commit.location);
        }
        builds.0.retain(|key, _| key.number != repo.number);
        let number = repo.key().number_key(&[]);
        let end = after_prefix(&number);
        self.generations
            .retain_in(number.as_slice()..end.as_slice(), |_, _| false)?;
        // The number stands for all its generations from here on: no prefix in `dead` begins with another.
        self.dead
            .retain_in(number.as_slice()..end.as_slice(), |_, ()| false)?;
        self.dead.insert(number.as_slice(), ())?;
        self.heads.remove(repo.number)?;
        self.repos.remove(repo.head.did.as_str())?;
        Ok(())
    }

    /// Where rows of `generation` go. Generations are used once: one that ended may still be being swept.
    fn place(
        &mut self,
        lsn: Lsn,
        repo: &mut Repo,
        generation: u16,
        builds: &mut Builds,
    ) -> Result<Place, ApplyError> {
        if generation == repo.head.generation {
            // Only what a compaction has written down: the numbers, then rows, then the head.
            if repo.head.commit.is_some() {
                let what = format!(
                    "rows of the live generation of {} come behind its head",
                    repo.head.did
                );
                return Err(contradiction(lsn, what));
            }
            return Ok(Place::Live);
        }
        let key = repo.generation(generation);
        if let Some(counts) = self.staged_counts(key)? {
            return Ok(Place::Staged(counts));
        }
        if generation <= repo.head.newest {
            let what = format!("generation {generation} of {} was there before", repo.head.did);
            return Err(contradiction(lsn, what));
        }
        repo.head.newest = generation;
        if builds.0.len() < BUILDS_MAX {
            builds.0.insert(key, Spine::default());
        }
        Ok(Place::Staged(Counts::default()))
    }

    fn staged_counts(&self, key: RepoKey) -> Result<Option<Counts>, ApplyError> {
        let row = self.generations.get(key.prefix().as_slice())?;
        Ok(row
            .map(|row| Counts::decode(row.value(), "generations"))
            .transpose()?)
    }

    fn put_place(&mut self, key: RepoKey, place: Place) -> Result<(), ApplyError> {
        if let Place::Staged(counts) = place {
            self.generations
                .insert(key.prefix().as_slice(), counts.encode().as_slice())?;
        }
        Ok(())
    }

    /// Builds a generation's tree from its records, in place of whatever nodes there are, and gives its root. Reads the
    /// records once; memory is that of one path and of the database's dirty pages. `rev` is since when the nodes are what they are,
    /// as far as is known.
    pub(super) fn build(&mut self, key: RepoKey, rev: Tid) -> Result<Cid, ApplyError> {
        let (from, to) = (key.prefix(), key.end());
        let Tables { records, nodes, .. } = self;
        nodes.retain_in(from.as_slice()..to.as_slice(), |_, _| false)?;
        let mut spine = Spine::default();
        let mut sink = |node| put_node(nodes, key, rev.to_u64(), &node);
        for row in records.range(from.as_slice()..to.as_slice())? {
            let (path, row) = row?;
            let path = text_in_key(path.value(), PREFIX_BYTES, "records")?;
            finish(spine.push(path, RecordRow::decode(row.value())?.cid, &mut sink))?;
        }
        finish(spine.finish(&mut sink))
    }
}

/// Stores a node, if it is one of those that are stored.
fn put_node(
    nodes: &mut Table<'_, Bytes, Bytes>,
    key: RepoKey,
    rev: u64,
    node: &BuiltNode,
) -> Result<(), ApplyError> {
    if let (1.., Some(first)) = (node.layer, &node.first_key) {
        let key = key.node_key(node.layer, first);
        let row = NodeRow {
            rev,
            block: &node.bytes,
        };
        nodes.insert(key.as_slice(), row.encode().as_slice())?;
    }
    Ok(())
}

/// The index's own rows give no tree: they are damaged.
fn finish<T>(built: Result<T, BuildError<ApplyError>>) -> Result<T, ApplyError> {
    built.map_err(|error| match error {
        BuildError::Sink(error) => error,
        BuildError::InvalidKey(_) | BuildError::Order(_) => IndexError::Row { table: "records" }.into(),
    })
}

fn check_root(lsn: Lsn, commit: &Commit, root: Cid) -> Result<(), ApplyError> {
    if root == commit.data() {
        return Ok(());
    }
    let what = format!(
        "the records of {} give the tree {root}, its commit says {}",
        commit.did(),
        commit.data()
    );
    Err(contradiction(lsn, what))
}

fn small(lsn: Lsn, generation: u32) -> Result<u16, ApplyError> {
    u16::try_from(generation).map_err(|_| contradiction(lsn, format!("there is no generation {generation}")))
}
