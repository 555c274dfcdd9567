//! Imports: records that are staged in pieces, between the steps of everything else, and become live with one entry; or
//! are given up, or left behind by a crash and given up by the next start.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Seen;
use super::world::{End, Life, NAMES, World};
use crate::entry::{Change, EntryDraft};
use crate::repo::car::write_header;
use crate::repo::event::encode_sync;
use crate::views::index::IndexReader;
use crate::views::testkit::TestRepo;

/// Records that one import brings, at most.
const RECORDS_MAX: u64 = 24;
/// Staged generations that are asked for at once; there are never so many.
const STAGED_MAX: usize = 1_000;

/// An import under way: what is still to be appended, and what the repo is afterwards.
pub(super) struct Import {
    generation: u32,
    pieces: VecDeque<EntryDraft>,
    flip: EntryDraft,
    repo: TestRepo,
}

impl World {
    /// Begins an import, or goes on with one: the next piece, or its end.
    pub(super) fn import(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let under_way: Vec<&'static str> = life.importing.keys().copied().collect();
        let name = match under_way.is_empty() || self.one_in(6) {
            true => *self.pick(&NAMES),
            false => *self.pick(&under_way),
        };
        let Some(mut import) = life.importing.remove(name) else {
            if let Some(import) = self.begin_import(name) {
                life.importing.insert(name, import);
            }
            return Ok(());
        };
        let did = format!("did:plc:{name}");
        let mut planned = self.plan();
        let staged = (did.clone(), import.generation);
        if planned.state.staged.contains(&staged) && self.one_in(5) {
            planned.state.staged.remove(&staged);
            planned
                .drafts
                .push(EntryDraft::private(vec![Change::GenerationSwept {
                    did: import.repo.did.clone(),
                    generation: import.generation,
                }]));
            self.say(|| format!("  {name} gives up generation {}", staged.1));
            self.append(life, planned, seen)?;
            seen.imports_given_up += 1;
            return Ok(());
        }
        if let Some(piece) = import.pieces.pop_front() {
            planned.drafts.push(piece);
            planned.state.staged.insert(staged);
            self.say(|| format!("  {name} imports a piece"));
            self.append(life, planned, seen)?;
            life.importing.insert(name, import);
            return Ok(());
        }
        // Uploads went on meanwhile; commits did not.
        if let Some(before) = planned.state.repos.get(&did) {
            import.repo.stored.clone_from(&before.stored);
        }
        let Some((commit, rev, _)) = import.repo.head else {
            panic!("an import without a commit");
        };
        let mut car = Vec::new();
        write_header(&mut car, &[commit]);
        let event = encode_sync(&import.repo.did, rev, &car).unwrap();
        planned.drafts.push(import.flip);
        planned.add(EntryDraft::sync(event, Vec::new()), &did);
        planned.state.staged.remove(&staged);
        planned.state.repos.insert(did, Arc::new(import.repo));
        self.say(|| format!("  {name} is imported"));
        self.append(life, planned, seen)?;
        seen.imports += 1;
        Ok(())
    }

    /// An import into a repo that there is, or into one that nobody has heard of.
    fn begin_import(&mut self, name: &'static str) -> Option<Import> {
        let state = self.model.now();
        let did = format!("did:plc:{name}");
        let mut repo = match state.repos.get(&did) {
            Some(repo) => TestRepo::clone(repo),
            None => TestRepo::new(name),
        };
        // Above all that this repo or one of the same name before it ever had, those included that a crash took back.
        self.generation += 1;
        let generation = self.generation;
        let records: BTreeMap<String, (Vec<u8>, BTreeSet<_>)> = (0..self.below(RECORDS_MAX))
            .map(|_| (self.path(), self.a_record()))
            .collect();
        let piece = 1 + usize::try_from(self.below(16)).unwrap();
        let in_order = !self.one_in(3);
        let (pieces, flip) = repo.import(generation, &records, piece, in_order);
        Some(Import {
            generation,
            pieces: pieces.into(),
            flip,
            repo,
        })
    }

    /// What a start does about imports that the last process did not end, if it gets so far.
    pub(super) fn give_up_staged(&mut self, life: &mut Life, seen: &mut Seen) -> Result<(), End> {
        let staged = life
            .index
            .reader()
            .unwrap()
            .staged_generations(STAGED_MAX)
            .unwrap();
        if staged.is_empty() || self.one_in(4) {
            return Ok(());
        }
        let mut planned = self.plan();
        let swept = staged.into_iter().map(|(did, generation)| {
            planned.state.staged.remove(&(did.to_string(), generation));
            Change::GenerationSwept { did, generation }
        });
        let swept = swept.collect();
        planned.drafts.push(EntryDraft::private(swept));
        self.append(life, planned, seen)?;
        seen.imports_abandoned += 1;
        Ok(())
    }
}

/// The staged generations are those of the model.
pub(super) fn check_staged(reader: &IndexReader, expected: &BTreeSet<(String, u32)>) {
    let staged = reader.staged_generations(STAGED_MAX).unwrap();
    let found: BTreeSet<(String, u32)> = staged
        .into_iter()
        .map(|(did, generation)| (did.to_string(), generation))
        .collect();
    assert_eq!(found, *expected, "staged generations");
}
