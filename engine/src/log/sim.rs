//! Crash simulation. One seed drives everything: sizes of groups, writes, syncs, rotations, what fails and when, what a
//! crash leaves of what was not synced, flipped bits there, and a clock that steps both ways. A plain list of frames
//! stands beside it, and after each restart the two are compared. Invariants I2 and I3.
//!
//! `PDS_SIM_SEEDS` sets how many seeds run (default 500), `PDS_SIM_SEED` replays one. A failure prints its seed.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use super::append::LogCore;
use super::*;
use crate::clock::{ScriptedClock, SeededEntropy};
use crate::storage::{Fault, FaultyStorage, MemoryStorage, OpenMode};

const NOW: u64 = 1_767_225_600_000_000;

/// Bytes that the log of the whole engine's simulation writes ahead, at most.
const SIM_AHEAD_BYTES: u64 = 8 << 10;

/// A frame as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    lsn: Lsn,
    prev: Lsn,
    epoch: Epoch,
    kind: u8,
    public: Vec<u8>,
    private: Vec<u8>,
    more: bool,
    location: Location,
}

impl Expected {
    fn of(frame: &Frame) -> Expected {
        Expected {
            lsn: frame.lsn(),
            prev: frame.prev(),
            epoch: frame.epoch(),
            kind: frame.kind(),
            public: frame.public().to_vec(),
            private: frame.private().to_vec(),
            more: frame.flags().contains(Flags::MORE),
            location: frame.location(),
        }
    }
}

/// What happened over a run, so that a test can tell that it tested something.
#[derive(Debug, Default)]
struct Seen {
    faults: BTreeSet<Fault>,
    cuts: u64,
    lost: u64,
    groups: u64,
    seals: u64,
    refused_flips: u64,
    restarts: u64,
    /// Steps of writing ahead.
    ahead: u64,
    /// Segments that a crash left with zeros behind their frames.
    zeros: u64,
}

struct World {
    chance: SeededEntropy,
    disk: MemoryStorage,
    clock: Arc<ScriptedClock>,
    /// Everything appended that is not known to be lost.
    model: Vec<Expected>,
    /// How many of those were reported durable.
    durable: usize,
    /// How many of them may have been synced without a report, because something after that failed.
    maybe_durable: usize,
    epoch: u64,
}

/// A log's writer without its thread, for the simulation of the whole engine.
pub(crate) struct SimLog {
    core: LogCore,
    pub(crate) reader: LogReader,
    _lock: Box<dyn crate::storage::StorageLock>,
}

impl SimLog {
    pub(crate) fn start(
        found: Recovered,
        clock: Arc<dyn Clock>,
        config: &LogConfig,
    ) -> Result<SimLog, OpenError> {
        // Little, because the disk is in memory.
        let config = LogConfig {
            ahead_bytes: config.ahead_bytes.min(SIM_AHEAD_BYTES),
            ..config.clone()
        };
        let (core, lock, reader) = found.into_core(clock, &config)?;
        Ok(SimLog {
            core,
            reader,
            _lock: lock,
        })
    }

    /// Gives a group its place.
    pub(crate) fn append(&mut self, group: Vec<Draft>) -> Result<GroupLsns, Failed> {
        let lsns = self.core.append(group);
        // Rotation may have written what was gathered.
        self.publish();
        lsns
    }

    /// Writes what is gathered.
    pub(crate) fn write(&mut self) -> Result<(), Failed> {
        let written = self.core.write();
        self.publish();
        written
    }

    /// Writes what is gathered and makes it durable, up to the LSN in the answer; then one step of writing ahead.
    pub(crate) fn sync(&mut self) -> Result<Lsn, Failed> {
        self.write()?;
        let durable = self.core.sync()?;
        self.core.write_ahead()?;
        Ok(durable)
    }

    /// Seals the open segment; everything is durable then.
    pub(crate) fn seal(&mut self) -> Result<Lsn, Failed> {
        let sealed = self.core.seal();
        self.publish();
        sealed.map(|_| self.core.last())
    }

    /// Bytes that the ring keeps.
    pub(crate) fn ring_bytes(&self) -> usize {
        self.reader.ring.bytes()
    }

    fn publish(&mut self) {
        let written = self.core.take_written();
        if let Some(last) = written.last().map(Frame::lsn) {
            self.reader.ring.push(written);
            self.reader.appended.advance(last);
        }
    }
}

fn dir() -> &'static Path {
    Path::new("/log")
}

impl World {
    fn new(seed: u64) -> World {
        World {
            chance: SeededEntropy::new(seed),
            disk: MemoryStorage::new(),
            clock: Arc::new(ScriptedClock::at(NOW)),
            model: Vec::new(),
            durable: 0,
            maybe_durable: 0,
            epoch: 0,
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.chance.next_u64() % limit
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn step_clock(&self) {
        let now = crate::clock::Clock::now_micros(self.clock.as_ref());
        match self.below(12) {
            0 => self.clock.set(now - self.below(3_600_000_000)),
            1 => self.clock.set(now + self.below(3_600_000_000)),
            _ => self.clock.set(now + self.below(3)),
        }
    }

    fn faults(&self, faulty: &FaultyStorage) {
        let kinds = [
            Fault::Stop,
            Fault::Stop,
            Fault::ShortWrite,
            Fault::NoSpace,
            Fault::SyncFails,
            Fault::DirSyncFails,
        ];
        let fault = kinds[usize::try_from(self.below(kinds.len() as u64)).unwrap()];
        let reach = if fault == Fault::DirSyncFails { 4 } else { 40 };
        faulty.inject(fault, self.below(reach));
    }

    fn config(&self) -> LogConfig {
        LogConfig {
            segment_bytes: 500 + self.below(6_000),
            ahead_bytes: self.below(4) * self.below(1_500),
            ring_bytes: usize::try_from(self.below(3_000)).unwrap(),
            epoch: Epoch(self.epoch),
            log_id: Some(LogId([5; 16])),
            ..LogConfig::default()
        }
    }

    /// One life of a process: start, work, die.
    fn live(&mut self, seen: &mut Seen) {
        let faulty = FaultyStorage::new(Arc::new(self.disk.clone()));
        if self.one_in(2) {
            self.faults(&faulty);
        }
        self.epoch += 1 + self.below(2);
        seen.restarts += 1;
        self.work(&faulty, seen);
        seen.faults.extend(faulty.struck());
    }

    fn work(&mut self, faulty: &FaultyStorage, seen: &mut Seen) {
        let found = match Log::recover(Arc::new(faulty.clone()), dir()) {
            Ok(found) => found,
            Err(OpenError::Io { .. }) if !faulty.struck().is_empty() => return,
            Err(error) => panic!("refused after a mere crash: {error}"),
        };
        seen.cuts += u64::from(found.cut().is_some());
        seen.zeros += u64::from(found.cut().is_none() && self.has_zeros(&found));
        if !self.compare(&found.reader(), found.last_lsn(), faulty, seen) {
            return;
        }
        // A start seals what it found, which syncs it.
        self.maybe_durable = self.model.len();
        let (mut core, _lock, reader) = match found.into_core(Arc::clone(&self.clock) as _, &self.config()) {
            Ok(started) => started,
            Err(OpenError::Io { .. }) if !faulty.struck().is_empty() => return,
            Err(error) => panic!("{error}"),
        };
        self.durable = self.model.len();
        let mut tail = reader.tail(self.model.last().map_or(Lsn::ZERO, |frame| frame.lsn));
        for _ in 0..self.below(40) {
            self.step_clock();
            if let Err(failed) = self.step(&mut core, &reader, &mut tail, faulty, seen) {
                assert!(!faulty.struck().is_empty(), "failed for no reason: {failed}");
                self.maybe_durable = self.model.len();
                core.append(vec![Draft::default()]).unwrap_err();
                core.write().unwrap_err();
                core.sync().unwrap_err();
                core.seal().unwrap_err();
                return;
            }
        }
    }

    fn step(
        &mut self,
        core: &mut LogCore,
        reader: &LogReader,
        tail: &mut TailReader,
        faulty: &FaultyStorage,
        seen: &mut Seen,
    ) -> Result<(), Failed> {
        match self.below(10) {
            0..5 => {
                let drafts: Vec<Draft> = (0..=self.below(3)).map(|_| self.draft()).collect();
                let before = core.last();
                let lsns = core.append(drafts.clone())?;
                assert!(lsns.first > before, "an LSN went back");
                seen.groups += 1;
                self.expect(drafts, &lsns, before);
            }
            5..7 => core.write()?,
            7..9 => {
                core.write()?;
                let durable = core.sync()?;
                self.durable = self.model.partition_point(|frame| frame.lsn <= durable);
                assert_eq!(
                    self.durable,
                    self.model.len(),
                    "all that was gathered is durable now"
                );
            }
            _ => {
                seen.seals += u64::from(core.seal()?.is_some());
                self.durable = self.model.len();
            }
        }
        let written = core.take_written();
        if let Some(last) = written.last().map(Frame::lsn) {
            reader.ring.push(written);
            reader.appended.advance(last);
        }
        if self.one_in(3) {
            let before = self.newest_len();
            core.write_ahead()?;
            seen.ahead += u64::from(self.newest_len() > before);
        }
        if self.one_in(3) {
            let from = self.model.partition_point(|frame| frame.lsn <= tail.position());
            match tail.next_batch(Lsn::MAX, 1 + usize::try_from(self.below(4_000)).unwrap()) {
                Ok(frames) => {
                    let got: Vec<Expected> = frames.iter().map(Expected::of).collect();
                    assert_eq!(
                        got,
                        self.model[from..from + got.len()],
                        "a reader saw something else"
                    );
                }
                Err(ReadError::Io { .. }) if !faulty.struck().is_empty() => {}
                Err(error) => panic!("{error}"),
            }
        }
        Ok(())
    }

    fn draft(&self) -> Draft {
        let size = if self.one_in(8) { 3_000 } else { 200 };
        let bytes = |len: u64| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            crate::clock::Entropy::fill(&self.chance, &mut bytes).unwrap();
            bytes
        };
        let mut public = bytes(self.below(size));
        let mut stamps = Vec::new();
        if self.one_in(2) {
            public.extend_from_slice(&[0; 32]);
            let at = usize::try_from(self.below(public.len() as u64 - 31)).unwrap();
            stamps = vec![Stamp::Lsn { at }, Stamp::Time { at: at + 8 }];
        }
        Draft {
            kind: u8::try_from(self.below(7)).unwrap(),
            public,
            stamps,
            private: bytes(self.below(size)),
        }
    }

    fn expect(&mut self, drafts: Vec<Draft>, lsns: &GroupLsns, before: Lsn) {
        let (mut prev, count) = (before, drafts.len());
        for (at, draft) in drafts.into_iter().enumerate() {
            let lsn = Lsn::new(lsns.first.get() + at as u64).unwrap();
            let mut public = draft.public;
            for stamp in draft.stamps {
                match stamp {
                    Stamp::Lsn { at } => public[at..at + 8].copy_from_slice(&lsn.get().to_be_bytes()),
                    Stamp::Time { at } => public[at..at + 24].copy_from_slice(&lsn.timestamp()),
                }
            }
            let (epoch, kind, private) = (Epoch(self.epoch), draft.kind, draft.private);
            let (more, location) = (at + 1 < count, lsns.locations[at]);
            self.model.push(Expected {
                lsn,
                prev,
                epoch,
                kind,
                public,
                private,
                more,
                location,
            });
            prev = lsn;
        }
        assert_eq!(prev, lsns.last);
    }

    /// After a restart: all that was durable is there; of the rest a prefix of whole groups; nothing else. `false` if
    /// an injected fault kept us from reading.
    fn compare(&mut self, log: &LogReader, last: Lsn, faulty: &FaultyStorage, seen: &mut Seen) -> bool {
        let mut tail = log.tail(Lsn::ZERO);
        let mut found = Vec::new();
        loop {
            match tail.next_batch(Lsn::MAX, 10_000) {
                Ok(frames) if frames.is_empty() => break,
                Ok(frames) => found.extend(frames.iter().map(Expected::of)),
                Err(ReadError::Io { .. }) if !faulty.struck().is_empty() => return false,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            found.len() >= self.durable,
            "lost {} durable frames",
            self.durable - found.len()
        );
        assert!(found.len() <= self.model.len(), "frames appeared from nowhere");
        assert_eq!(
            found,
            self.model[..found.len()],
            "frames are not what was written"
        );
        assert!(
            found.last().is_none_or(|frame| !frame.more),
            "half a group survived"
        );
        assert_eq!(last, found.last().map_or(Lsn::ZERO, |frame| frame.lsn));
        assert!(
            found.is_sorted_by(|a, b| a.lsn < b.lsn && a.lsn == b.prev),
            "order or chain is broken"
        );
        seen.lost += (self.model.len() - found.len()) as u64;
        self.model.truncate(found.len());
        self.maybe_durable = self.maybe_durable.min(found.len());
        true
    }

    /// Whether the newest segment is longer than its frames, although it has no footer.
    fn has_zeros(&self, found: &Recovered) -> bool {
        let open = found.segments().last().filter(|info| !info.sealed).cloned();
        open.is_some_and(|info| self.newest_len() > info.bytes)
    }

    fn newest_len(&self) -> u64 {
        let file = self
            .newest()
            .and_then(|path| self.disk.open(&path, OpenMode::Read).ok());
        file.map_or(0, |file| file.len().unwrap())
    }

    /// Where the frames of this segment end that are durable, as far as anybody knows. What follows there was never vouched for, even if its
    /// place was written ahead and synced.
    fn durable_end(&self, path: &Path, synced: u64) -> u64 {
        let durable = self.durable.max(self.maybe_durable);
        let last = self.model[..durable].last().map(|frame| frame.location);
        match last.filter(|at| dir().join(segment_file_name(at.segment)) == path) {
            Some(at) => at.offset + u64::from(at.len),
            None => synced.min(SEGMENT_HEADER_BYTES as u64),
        }
    }

    /// Power goes; bits of what was never synced may flip besides.
    fn crash(&self) {
        let newest = self.newest();
        let synced = newest.as_deref().and_then(|path| self.disk.synced_len(path));
        self.disk.crash(self.chance.next_u64());
        // The name of a later one that was removed may be back, and then this one was vouched for to its last byte.
        let still = newest.filter(|path| self.newest().as_ref() == Some(path));
        if let (Some(path), Some(synced)) = (still, synced)
            && self.one_in(3)
            && let Ok(file) = self.disk.open(&path, OpenMode::Read)
        {
            let len = file.len().unwrap();
            // A file whose header was never synced was never written to.
            let end = self.durable_end(&path, synced);
            if len > end {
                let byte = end + self.below(len - end);
                self.disk
                    .flip_bit(&path, byte, u8::try_from(self.below(8)).unwrap())
                    .unwrap();
            }
        }
    }

    fn newest(&self) -> Option<std::path::PathBuf> {
        let names = self.disk.list(dir()).ok()?;
        names
            .into_iter()
            .rfind(|name| name.ends_with(".seg"))
            .map(|name| dir().join(name))
    }

    /// In the end one bit flips in what was durable: it is named, or it cost nothing, or it looked like a torn tail and
    /// cost no more than the last batch. Never do other bytes come out.
    fn flip_durable(&mut self, seen: &mut Seen) {
        let names: Vec<String> = self.disk.list(dir()).unwrap_or_default();
        let segments: Vec<&String> = names.iter().filter(|name| name.ends_with(".seg")).collect();
        if segments.is_empty() {
            return;
        }
        let path = dir().join(segments[usize::try_from(self.below(segments.len() as u64)).unwrap()]);
        let len = self.disk.open(&path, OpenMode::Read).unwrap().len().unwrap();
        if len == 0 {
            return;
        }
        self.disk
            .flip_bit(&path, self.below(len), u8::try_from(self.below(8)).unwrap())
            .unwrap();
        let found = match Log::recover(Arc::new(self.disk.clone()), dir()) {
            Ok(found) => found,
            Err(OpenError::Damaged { .. }) => {
                seen.refused_flips += 1;
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut tail = found.reader().tail(Lsn::ZERO);
        let mut at = 0;
        let mut batch_start = 0;
        loop {
            match tail.next_batch(Lsn::MAX, 10_000) {
                Ok(frames) if frames.is_empty() => break,
                Ok(frames) => {
                    for frame in &frames {
                        assert_eq!(Expected::of(frame), self.model[at], "other bytes came out");
                        at += 1;
                        if frame.flags().contains(Flags::AFTER_SYNC) {
                            batch_start = at;
                        }
                    }
                }
                Err(ReadError::Corrupt { .. }) => {
                    seen.refused_flips += 1;
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
        if at < self.durable {
            let segment = found
                .cut()
                .expect("frames are missing and nothing was cut")
                .segment;
            assert_eq!(dir().join(segment_file_name(segment)), path);
            assert!(batch_start <= at);
        }
    }
}

fn run(seed: u64, seen: &mut Seen) {
    let mut world = World::new(seed);
    for _ in 0..2 + world.below(5) {
        world.live(seen);
        world.crash();
    }
    // A last life without faults: it must start, whatever came before.
    let clean = FaultyStorage::new(Arc::new(world.disk.clone()));
    world.epoch += 1;
    world.work(&clean, seen);
    world.crash();
    let found = Log::recover(Arc::new(world.disk.clone()), dir()).unwrap();
    assert!(world.compare(&found.reader(), found.last_lsn(), &clean, seen));
    drop(found);
    world.durable = world.model.len();
    world.flip_durable(seen);
}

#[test]
fn whatever_fails_and_wherever_it_crashes_the_log_keeps_what_it_promised() {
    let from_env = |name| {
        std::env::var(name)
            .ok()
            .map(|value| value.parse::<u64>().expect(name))
    };
    let seeds = match from_env("PDS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("PDS_SIM_SEEDS").unwrap_or(500),
    };
    let count = seeds.end - seeds.start;
    let mut seen = Seen::default();
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| run(seed, &mut seen))).is_err() {
            panic!("seed {seed} failed; replay it with PDS_SIM_SEED={seed}");
        }
    }
    println!("{count} seeds: {seen:?}");
    if count >= 500 {
        assert_eq!(
            seen.faults.len(),
            5,
            "every kind of fault has struck: {:?}",
            seen.faults
        );
        assert!(
            seen.cuts > 0
                && seen.lost > 0
                && seen.seals > 0
                && seen.refused_flips > 0
                && seen.ahead > 0
                && seen.zeros > 0,
            "{seen:?}"
        );
    }
}
