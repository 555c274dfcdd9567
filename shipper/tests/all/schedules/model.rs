//! What must be true of the store and of what the processes say, kept in plain maps by the order of effects at the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engine::log::{Epoch, Frame, LogId, Lsn, frames_in};
use futures_util::FutureExt;
use shipper::chunk::{self, ChunkHeader, ChunkKind};
use shipper::fence::Claim;
use shipper::log_object::LogObject;
use shipper::manifest::Manifest;
use shipper::names::{Generation, Ordinal, WriterId};
use shipper::plan::ChainEnd;
use shipper::store::memory::MemoryStore;
use shipper::store::{Created, ObjectName, ReplicaStore};

use super::net::{Answer, Ask, Told};

/// A chunk as it was when its name was first used.
struct Chunk {
    header: ChunkHeader,
    /// Who sent it: the machine, and its process's how manieth life.
    who: (usize, u32),
    object: Bytes,
    /// Its place in the order of effects.
    effect: u64,
}

/// The chain as it ever was, and what was said of it.
#[derive(Default)]
pub struct Model {
    /// Everything that was ever created under a chunk's name, which the store forgets when it is deleted.
    chunks: BTreeMap<u64, Chunk>,
    effects: u64,
    end: Option<ChainEnd>,
    /// The ordinals in the chain, in order, each with the chain's last LSN behind it and the ordinal that follows.
    chain: Vec<(u64, u64, Lsn)>,
    /// Every frame in the chain.
    frames: BTreeMap<Lsn, Bytes>,
    /// Up to where each frame's acknowledgement was told to somebody, and by which reigns.
    told: BTreeMap<Lsn, Epoch>,
    claims: BTreeMap<u64, (Epoch, WriterId)>,
    epochs: BTreeSet<Epoch>,
    newest: u64,
    /// The turn in which a process published a manifest under a name of before, until it has published the newest.
    outdated: BTreeMap<(usize, u32), u64>,
    pub counts: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
}

impl Model {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The last LSN in the chain.
    pub fn last(&self) -> Lsn {
        self.end.map_or(Lsn::ZERO, |end| end.last_lsn)
    }

    /// The newest reign whose fence is in the chain.
    pub fn epoch(&self) -> Epoch {
        self.end.map_or(Epoch::ZERO, |end| end.epoch)
    }

    pub fn acknowledged(&self) -> usize {
        self.told.len()
    }

    /// What is about to be done at the store.
    pub fn before(&mut self, who: (usize, u32), ask: &Ask, sent: u64, store: &MemoryStore) {
        let Ask::Delete(name) = ask else { return };
        let is_housekeeping = ["wal/", "seg/", "ckpt/", "manifest/"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix));
        if is_housekeeping && self.outdated.get(&who).is_some_and(|turn| *turn < sent) {
            self.violation(format!(
                "{who:?} deletes {name} by a manifest that was not the newest when it was published"
            ));
        }
        if peek(store, name).is_none() {
            return;
        }
        self.count("deletes");
        let name = name.as_str();
        if let Some(ordinal) = Ordinal::from_object_name(name) {
            self.count("deletes of chunks");
            let in_chain = self.chain.iter().any(|(at, ..)| *at == ordinal.0);
            let is_mark = |chunk: &Chunk| chunk.header.kind != ChunkKind::Data;
            if in_chain && self.chunks.get(&ordinal.0).is_some_and(is_mark) {
                self.violation(format!("{who:?} deletes the mark {name}"));
            }
        } else if Generation::from_object_name(name).is_some_and(|generation| generation.0 >= self.newest) {
            self.violation(format!("{who:?} deletes the newest manifest"));
        } else if name.starts_with("ckpt/") {
            self.count("deletes of checkpoints");
        } else if name == "log.json" {
            self.violation(format!("{who:?} deletes {name}"));
        }
        if self.claims.values().any(|(epoch, _)| *epoch > Epoch(1)) {
            self.count("deletes after a change of reign");
        }
    }

    /// What was done.
    pub fn after(&mut self, who: (usize, u32), ask: &Ask, answer: &Answer, turn: u64, store: &MemoryStore) {
        self.effects += 1;
        match (ask, answer) {
            (Ask::Create(name, bytes), Ok(Told::Created(Created::Created))) => {
                self.created(who, name, bytes, turn, store);
            }
            (Ask::Delete(name), Ok(_)) if !name.as_str().starts_with("handover/") => {
                self.restorable(&format!("after {who:?} deleted {name}"), store);
            }
            _ => {}
        }
    }

    fn created(
        &mut self,
        who: (usize, u32),
        name: &ObjectName,
        bytes: &Bytes,
        turn: u64,
        store: &MemoryStore,
    ) {
        let text = name.as_str();
        if let Some(ordinal) = Ordinal::from_object_name(text) {
            self.created_chunk(who, ordinal, bytes);
        } else if let Some(generation) = Generation::from_object_name(text) {
            self.count("manifests");
            if generation.0 <= self.newest {
                self.count("manifests under a name of before");
                self.outdated.insert(who, turn);
            } else {
                self.outdated.remove(&who);
            }
            self.newest = self.newest.max(generation.0);
            self.restorable(&format!("after {who:?} published {name}"), store);
        } else if text == "log.json" {
            match LogObject::decode(bytes) {
                Ok(log) if self.end.is_none() => {
                    self.end = Some(ChainEnd::after(&Manifest::empty(log.log_id)));
                }
                _ => self.violation(format!("{who:?} creates a second log or a damaged one")),
            }
        }
    }

    fn created_chunk(&mut self, who: (usize, u32), ordinal: Ordinal, bytes: &Bytes) {
        let header = match ChunkHeader::decode(bytes) {
            Ok(header) => header,
            Err(error) => return self.violation(format!("{who:?} creates chunk {ordinal}: {error}")),
        };
        if self.chunks.contains_key(&ordinal.0) {
            // Its name is free again: the store forgets what it deletes. It must not come to count.
            return self.count(match header.kind {
                ChunkKind::Fence => "fences under a name of before",
                _ => "chunks under a name of before",
            });
        }
        let chunk = Chunk {
            header,
            who,
            object: bytes.clone(),
            effect: self.effects,
        };
        self.chunks.insert(ordinal.0, chunk);
        let before = self.chain.len();
        self.extend();
        if self.chain.len() == before {
            self.count("chunks behind a hole");
        }
    }

    /// Follows the chain as far as it goes.
    fn extend(&mut self) {
        let Some(mut end) = self.end else { return };
        while let Some(chunk) = self.chunks.get(&end.next.0) {
            let (header, effect) = (chunk.header, chunk.effect);
            if header.kind == ChunkKind::Fence {
                // Whoever was the writer before has all that counts in front of it.
                let mut late = self
                    .chain
                    .iter()
                    .filter(|(at, ..)| self.chunks.get(at).is_some_and(|c| c.effect > effect));
                if let Some((at, ..)) = late.next() {
                    let at = *at;
                    self.violation(format!(
                        "chunk {at} before the fence {} came after it",
                        header.ordinal
                    ));
                }
            }
            let raw = match self
                .chunks
                .get(&end.next.0)
                .map(|chunk| chunk::decode(&chunk.object))
            {
                Some(Ok((_, raw))) => raw,
                other => return self.violation(format!("chunk {}: {other:?}", end.next)),
            };
            match end.follow(&header) {
                Ok(next) => end = next,
                Err(error) => {
                    return self.violation(format!("chunk {} does not follow: {error}", end.next));
                }
            }
            self.end = Some(end);
            self.chain
                .push((header.ordinal.0, header.next_ordinal.0, header.last_lsn));
            match header.kind {
                ChunkKind::Data => self.count("chunks"),
                ChunkKind::Fence => self.count("fences"),
                ChunkKind::HandOver => self.count("hand-over marks"),
            }
            let raw = Bytes::from(raw);
            self.has_no_void_frames(&header, &raw);
            self.add_frames(&raw);
        }
    }

    /// What a reign before had not shipped when another machine began the next one is void, also if that one shipped nothing.
    fn has_no_void_frames(&mut self, header: &ChunkHeader, raw: &Bytes) {
        let frames = frames_in(raw).map_while(Result::ok);
        let Some(oldest) = frames.map(|(_, frame)| frame.header.epoch).min() else {
            return;
        };
        let Some(machine) = self.chunks.get(&header.ordinal.0).map(|chunk| chunk.who.0) else {
            return;
        };
        let mut last_lsn = Lsn::ZERO;
        for (at, _, last) in &self.chain {
            // Before the first frame in the replica nothing of anybody's counted.
            let counts = std::mem::replace(&mut last_lsn, *last) > Lsn::ZERO;
            let Some(fence) = self.chunks.get(at) else {
                continue;
            };
            let is_between = fence.header.kind == ChunkKind::Fence && fence.header.epoch > oldest;
            if counts && is_between && fence.who.0 != machine {
                let (by, reign) = (fence.who, fence.header.epoch);
                return self.violation(format!(
                    "chunk {} of machine {machine} has a frame of epoch {oldest}, and {by:?} began reign {reign} since",
                    header.ordinal
                ));
            }
        }
    }

    fn add_frames(&mut self, raw: &Bytes) {
        for (lsn, bytes) in split(raw) {
            let last = self.frames.keys().next_back().copied().unwrap_or(Lsn::ZERO);
            if lsn <= last {
                self.violation(format!("LSN {lsn} comes after {last} in the chain"));
            }
            self.frames.insert(lsn, bytes);
        }
    }

    /// Whether all that a restore would need at this moment is there, and tells of the whole chain.
    pub fn restorable(&mut self, when: &str, store: &MemoryStore) {
        let Some(end) = self.end else { return };
        let newest = store
            .names()
            .into_iter()
            .rfind(|name| Generation::from_object_name(name.as_str()).is_some());
        let manifest = match newest {
            None => Manifest::empty(end.log_id),
            Some(name) => match peek(store, &name).map(|bytes| Manifest::decode(&bytes)) {
                Some(Ok(manifest)) => manifest,
                other => return self.violation(format!("{when}: manifest {name}: {other:?}")),
            },
        };
        let missing = |object: &str| match ObjectName::new(object) {
            Ok(name) => peek(store, &name).is_none(),
            Err(_) => true,
        };
        if let Some(object) = manifest.objects().find(|object| missing(object)) {
            let (object, generation) = (object.to_owned(), manifest.generation);
            self.violation(format!(
                "{when}: generation {generation} names {object}, which is gone"
            ));
        }
        let next = manifest.next_ordinal();
        let covered = match next {
            Ordinal::FIRST => Some(Lsn::ZERO),
            _ => self
                .chain
                .iter()
                .find(|(_, after, _)| *after == next.0)
                .map(|(.., last)| *last),
        };
        if covered != Some(manifest.covered_lsn()) {
            let ends = manifest.covered_lsn();
            self.violation(format!(
                "{when}: the segments end at {ends}, the chain before {next} at {covered:?}"
            ));
        }
        let lost = self.chain.iter().find(|(at, ..)| {
            let name = ObjectName::new(Ordinal(*at).object_name());
            let there = name.ok().and_then(|name| peek(store, &name));
            *at >= next.0 && there.as_ref() != self.chunks.get(at).map(|chunk| &chunk.object)
        });
        if let Some((at, ..)) = lost {
            let at = *at;
            self.violation(format!(
                "{when}: chunk {at} of the chain behind {next} is gone or another"
            ));
        }
    }

    /// A process was told that it has the chain.
    pub fn claimed(&mut self, who: (usize, u32), claim: &Claim) {
        self.count("claims");
        let ours = self.chunks.get(&claim.ordinal.0).map(|chunk| chunk.header);
        let at = self.chain.iter().position(|(at, ..)| *at == claim.ordinal.0);
        let is_ours = ours.is_some_and(|fence| {
            (fence.kind, fence.epoch, fence.writer_id) == (ChunkKind::Fence, claim.epoch, claim.writer_id)
        });
        let Some(at) = at.filter(|_| is_ours) else {
            return self.violation(format!(
                "{who:?} was told that the fence {} is its: {ours:?}",
                claim.ordinal
            ));
        };
        let before = match at.checked_sub(1).and_then(|before| self.chain.get(before)) {
            Some((.., last)) => *last,
            None => Lsn::ZERO,
        };
        if claim.before.last_lsn != before {
            let said = claim.before.last_lsn;
            self.violation(format!(
                "{who:?} claims behind {said}, the chain before it ends at {before}"
            ));
        }
        if self
            .claims
            .insert(claim.ordinal.0, (claim.epoch, claim.writer_id))
            .is_some()
            || !self.epochs.insert(claim.epoch)
        {
            self.violation(format!(
                "two claims of {} or epoch {}",
                claim.ordinal, claim.epoch
            ));
        }
    }

    /// A start found that the chain went on behind its claim: that must have been a claim.
    pub fn overtaken(&mut self, who: (usize, u32)) {
        let mut in_chain = self.chain.iter().filter_map(|(at, ..)| self.chunks.get(at));
        if !in_chain.any(|chunk| chunk.who == who && chunk.header.kind == ChunkKind::Fence) {
            self.violation(format!(
                "{who:?} took a fence for its own that is not in the chain"
            ));
        }
    }

    /// A writer was told that its reign ended as it asked.
    pub fn handed_over(&mut self, who: (usize, u32), claim: &Claim, local: Lsn) {
        self.count("hand-overs");
        let is_its = |chunk: &Chunk| {
            let header = &chunk.header;
            (header.kind, header.writer_id, header.last_lsn) == (ChunkKind::HandOver, claim.writer_id, local)
        };
        let mut in_chain = self.chain.iter().filter_map(|(at, ..)| self.chunks.get(at));
        if !in_chain.any(is_its) {
            self.violation(format!(
                "{who:?} handed over at {local}, and the chain says nothing of it"
            ));
        }
    }

    /// A log was opened for a writer: it has what every reign before has acknowledged, and nothing else.
    pub fn opened(&mut self, who: (usize, u32), claim: &Claim, log: &[Frame]) {
        self.count("reigns");
        let end = claim.before.last_lsn;
        self.compare(
            &format!("the log of {who:?}, who claimed behind {end}"),
            log,
            end,
            end,
        );
        let early = self
            .told
            .iter()
            .rev()
            .find(|(lsn, by)| **lsn > end && **by < claim.epoch);
        if let Some((lsn, by)) = early.map(|(lsn, by)| (*lsn, *by)) {
            self.violation(format!(
                "{who:?} claimed behind {end}, but reign {by} acknowledged {lsn}"
            ));
        }
    }

    /// `log` must have exactly the chain's frames up to `end`; what it has behind that up to `limit` is no matter.
    pub fn compare(&mut self, what: &str, log: &[Frame], end: Lsn, limit: Lsn) {
        let mut wanted = self.frames.range(..=end);
        let mut said = None;
        for frame in log.iter().filter(|frame| frame.lsn() <= limit) {
            let there = wanted.next();
            if there != Some((&frame.lsn(), frame.bytes())) {
                let there = there.map(|(lsn, _)| *lsn);
                said = Some(format!("{what} has {}, the chain {there:?}", frame.lsn()));
                break;
            }
        }
        if let (None, Some((lsn, _))) = (&said, wanted.next()) {
            said = Some(format!("{what} lacks {lsn} of the chain"));
        }
        if let Some(said) = said {
            self.violation(said);
        }
    }

    /// A writer said that these frames of its log are safe.
    pub fn acknowledge(&mut self, who: (usize, u32), epoch: Epoch, frames: &[Frame]) {
        for frame in frames {
            let lsn = frame.lsn();
            if self.frames.get(&lsn) != Some(frame.bytes()) {
                let here = self.frames.contains_key(&lsn);
                self.violation(format!(
                    "{who:?} in reign {epoch} acknowledged {lsn}, which is not in the chain (another there: {here})"
                ));
            }
            self.told.entry(lsn).or_insert(epoch);
        }
        if epoch < self.epoch() && !frames.is_empty() {
            // Its chunks were there before the fence; the answers were on their way.
            self.count("acknowledged late, rightly");
        }
    }

    /// Everything that was told must be in the chain, which `restored` is.
    pub fn finish(&mut self, restored: &[Frame]) {
        let end = self.last();
        self.compare("what was restored", restored, end, Lsn::MAX);
        let lost = self
            .told
            .keys()
            .find(|lsn| !self.frames.contains_key(lsn))
            .copied();
        if let Some(lsn) = lost {
            self.violation(format!("{lsn} was acknowledged and is gone"));
        }
    }

    pub fn log_id(&self) -> Option<LogId> {
        self.end.map(|end| end.log_id)
    }
}

fn peek(store: &MemoryStore, name: &ObjectName) -> Option<Bytes> {
    store.get(name, u64::MAX).now_or_never().and_then(Result::ok)
}

/// The frames of a chunk.
fn split(raw: &Bytes) -> Vec<(Lsn, Bytes)> {
    let starts: Vec<(usize, Lsn)> = frames_in(raw)
        .map_while(Result::ok)
        .map(|(at, frame)| (at, frame.header.lsn))
        .collect();
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([raw.len()]);
    let ends: Vec<usize> = ends.collect();
    let parts = starts.iter().zip(ends);
    parts
        .map(|((at, lsn), end)| (*lsn, raw.slice(*at..end)))
        .collect()
}
