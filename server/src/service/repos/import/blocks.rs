//! Where the blocks of a spool are, found by digest. Memory has a bound that does not grow with the number of blocks.
//!
//! Places are gathered, sorted and written to a file as *runs*; the runs are merged to one, of which every so many-th
//! digest is kept in memory. A look-up then reads one piece of a few kilobytes. What fits into one run never leaves memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use engine::repo::Cid;

/// Places in one run, 24 bytes each.
const RUN_PLACES: usize = 64 << 10;
/// Runs that are merged at once.
const FAN_IN: usize = 64;
/// What each of them is read by, and what their result is written by, in places.
const READ_PLACES: usize = 340;
const WRITE_BYTES: usize = 128 << 10;
/// Digests that are kept in memory, 16 bytes each.
const FENCES_MAX: u64 = 16 << 10;
/// Places that are read at once when one is looked up; among more, halves are left out first.
const LOOK_PLACES: u64 = 170;

/// Bytes of a place in a file.
pub(super) const PLACE_BYTES: u64 = 24;

/// The first half of a block's digest. Whoever gets a block compares it with the whole CID.
pub(super) type Half = [u8; 16];

/// The half of a CID's digest that blocks are found by.
pub(super) fn half(cid: &Cid) -> Half {
    let digest = cid.digest();
    std::array::from_fn(|at| digest[at])
}

/// Where one block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockAt {
    pub(super) digest: Half,
    /// Offset, 40 bits, and length, 24 bits.
    place: u64,
}

impl BlockAt {
    /// `None` where offset or length are beyond what a place can say.
    pub(super) fn new(digest: Half, offset: u64, len: usize) -> Option<BlockAt> {
        let len = u64::try_from(len).ok().filter(|len| *len < 1 << 24)?;
        (offset < 1 << 40).then_some(BlockAt {
            digest,
            place: offset << 24 | len,
        })
    }

    pub(super) fn offset(self) -> u64 {
        self.place >> 24
    }

    pub(super) fn len(self) -> usize {
        usize::try_from(self.place & 0x00ff_ffff).unwrap_or(usize::MAX)
    }

    fn write(self, out: &mut impl Write) -> std::io::Result<()> {
        out.write_all(&self.digest)?;
        out.write_all(&self.place.to_be_bytes())
    }

    fn read(bytes: &[u8]) -> Option<BlockAt> {
        let (digest, place) = bytes.split_first_chunk::<16>()?;
        Some(BlockAt {
            digest: *digest,
            place: u64::from_be_bytes(place.try_into().ok()?),
        })
    }
}

/// Sorted places in a file.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Of its first place, in bytes.
    from: u64,
    places: u64,
}

/// Takes places in any order.
pub(super) struct Gathering<'d> {
    dir: &'d Path,
    run_places: usize,
    gathered: Vec<BlockAt>,
    /// The file of the runs and where it ends, once there are any.
    file: Option<(BufWriter<File>, u64)>,
    runs: VecDeque<Run>,
}

impl<'d> Gathering<'d> {
    /// Runs go to a file without a name in `dir`.
    pub(super) fn new(dir: &'d Path) -> Gathering<'d> {
        Gathering::with_run(dir, RUN_PLACES)
    }

    fn with_run(dir: &'d Path, run_places: usize) -> Gathering<'d> {
        Gathering {
            dir,
            run_places,
            gathered: Vec::new(),
            file: None,
            runs: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, place: BlockAt) -> std::io::Result<()> {
        if self.gathered.len() >= self.run_places {
            self.spill()?;
        }
        self.gathered.push(place);
        Ok(())
    }

    fn spill(&mut self) -> std::io::Result<()> {
        self.gathered.sort_unstable();
        let (file, end) = match &mut self.file {
            Some(file) => file,
            none => none.insert((
                BufWriter::with_capacity(WRITE_BYTES, tempfile::tempfile_in(self.dir)?),
                0,
            )),
        };
        for place in &self.gathered {
            place.write(file)?;
        }
        let places = self.gathered.len() as u64;
        self.runs.push_back(Run { from: *end, places });
        *end += places * PLACE_BYTES;
        self.gathered.clear();
        Ok(())
    }

    /// All that was taken, sorted.
    pub(super) fn finish(mut self) -> std::io::Result<Blocks> {
        if self.file.is_none() {
            self.gathered.sort_unstable();
            return Ok(Blocks::Memory(self.gathered));
        }
        self.spill()?;
        self.gathered = Vec::new();
        let Some((mut out, mut end)) = self.file else {
            return Ok(Blocks::Memory(Vec::new()));
        };
        let mut fences = Vec::new();
        let mut stride = 1;
        while self.runs.len() > 1 {
            let merged: Vec<Run> = self.runs.drain(..self.runs.len().min(FAN_IN)).collect();
            let places = merged.iter().map(|run| run.places).sum();
            let is_last = self.runs.is_empty();
            stride = u64::div_ceil(places, FENCES_MAX).max(LOOK_PLACES);
            out.flush()?;
            let reading = out.get_ref().try_clone()?;
            let mut at = 0;
            merge(&reading, &merged, |place| {
                if is_last && at % stride == 0 {
                    fences.push(place.digest);
                }
                at += 1;
                place.write(&mut out)
            })?;
            self.runs.push_back(Run { from: end, places });
            end += places * PLACE_BYTES;
        }
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let run = self.runs.pop_front().unwrap_or(Run { from: 0, places: 0 });
        Ok(Blocks::Disk(Sorted {
            file,
            run,
            fences,
            stride,
        }))
    }
}

/// Gives the places of all `runs` in order.
fn merge(
    file: &File,
    runs: &[Run],
    mut each: impl FnMut(BlockAt) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut cursors: Vec<Cursor<'_>> = runs
        .iter()
        .map(|run| Cursor {
            file,
            left: *run,
            read: VecDeque::new(),
        })
        .collect();
    let mut next = BinaryHeap::new();
    for (at, cursor) in cursors.iter_mut().enumerate() {
        if let Some(place) = cursor.next()? {
            next.push(Reverse((place, at)));
        }
    }
    while let Some(Reverse((place, at))) = next.pop() {
        each(place)?;
        if let Some(cursor) = cursors.get_mut(at)
            && let Some(place) = cursor.next()?
        {
            next.push(Reverse((place, at)));
        }
    }
    Ok(())
}

/// Reads a run from its beginning on.
struct Cursor<'f> {
    file: &'f File,
    left: Run,
    read: VecDeque<BlockAt>,
}

impl Cursor<'_> {
    fn next(&mut self) -> std::io::Result<Option<BlockAt>> {
        if self.read.is_empty() && self.left.places > 0 {
            let places = self.left.places.min(READ_PLACES as u64);
            self.read = read_places(self.file, self.left.from, places)?.into();
            self.left.from += places * PLACE_BYTES;
            self.left.places -= places;
        }
        Ok(self.read.pop_front())
    }
}

fn read_places(file: &File, from: u64, places: u64) -> std::io::Result<Vec<BlockAt>> {
    let mut bytes = vec![0; usize::try_from(places * PLACE_BYTES).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, from)?;
    let width = usize::try_from(PLACE_BYTES).unwrap_or(usize::MAX);
    Ok(bytes.chunks_exact(width).filter_map(BlockAt::read).collect())
}

/// Where all blocks are.
pub(super) enum Blocks {
    /// They are few.
    Memory(Vec<BlockAt>),
    Disk(Sorted),
}

pub(super) struct Sorted {
    file: File,
    run: Run,
    /// Digest of every `stride`-th place.
    fences: Vec<Half>,
    stride: u64,
}

impl Blocks {
    /// Where the block with this digest is; any of them if there are several.
    pub(super) fn find(&self, digest: &Half) -> std::io::Result<Option<BlockAt>> {
        match self {
            Blocks::Memory(blocks) => Ok(blocks
                .binary_search_by(|block| block.digest.cmp(digest))
                .ok()
                .and_then(|at| blocks.get(at))
                .copied()),
            Blocks::Disk(sorted) => sorted.find(digest),
        }
    }
}

impl Sorted {
    fn find(&self, digest: &Half) -> std::io::Result<Option<BlockAt>> {
        let piece = self.fences.partition_point(|fence| fence <= digest) as u64;
        let Some(piece) = piece.checked_sub(1) else {
            return Ok(None);
        };
        let mut low = piece * self.stride;
        let mut high = (low + self.stride).min(self.run.places);
        let at = |place: u64| self.run.from + place * PLACE_BYTES;
        while high - low > LOOK_PLACES {
            let middle = low + (high - low) / 2;
            match read_places(&self.file, at(middle), 1)?.first() {
                Some(place) if place.digest <= *digest => low = middle,
                _ => high = middle,
            }
        }
        let places = read_places(&self.file, at(low), high - low)?;
        Ok(places.into_iter().find(|place| place.digest == *digest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u64) -> Half {
        half(&Cid::for_dag_cbor(&n.to_be_bytes()))
    }

    fn gather(run_places: usize, count: u64) -> Blocks {
        let dir = tempfile::tempdir().unwrap();
        let mut gathering = Gathering::with_run(dir.path(), run_places);
        for n in 0..count {
            gathering
                .add(BlockAt::new(digest(n), n * 7, usize::try_from(n % 1000).unwrap()).unwrap())
                .unwrap();
        }
        gathering.finish().unwrap()
    }

    #[test]
    fn places_say_what_they_were_told_or_nothing() {
        let place = BlockAt::new([7; 16], (1 << 40) - 1, (1 << 24) - 1).unwrap();
        assert_eq!((place.offset(), place.len()), ((1 << 40) - 1, (1 << 24) - 1));
        assert_eq!(BlockAt::new([7; 16], 1 << 40, 0), None);
        assert_eq!(BlockAt::new([7; 16], 0, 1 << 24), None);
    }

    #[test]
    fn many_runs_are_merged_in_turns_and_memory_keeps_few_digests() {
        // 400 runs: they are more than can be merged at once.
        let blocks = gather(50, 20_000);
        let Blocks::Disk(sorted) = &blocks else {
            panic!("it fits into no run")
        };
        assert_eq!(sorted.run.places, 20_000);
        assert!(sorted.fences.len() as u64 <= 20_000 / LOOK_PLACES + 1);
        for n in 0..20_000 {
            let found = blocks.find(&digest(n)).unwrap().unwrap();
            assert_eq!(found.offset(), n * 7);
        }
        for n in 20_000..21_000 {
            assert_eq!(blocks.find(&digest(n)).unwrap(), None);
        }
        assert_eq!(blocks.find(&[0; 16]).unwrap(), None);
        assert_eq!(blocks.find(&[255; 16]).unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn memory_and_disk_find_the_same(
            digests in proptest::collection::vec(0u8..40, 0..2000),
            run in 1usize..300,
        ) {
            // Few digests, so that most are there many times, over runs and pieces.
            let dir = tempfile::tempdir().unwrap();
            let mut on_disk = Gathering::with_run(dir.path(), run);
            let mut in_memory = Gathering::with_run(dir.path(), usize::MAX);
            for (n, digest) in (0..).zip(&digests) {
                let place = BlockAt::new([*digest; 16], n, 1).unwrap();
                on_disk.add(place).unwrap();
                in_memory.add(place).unwrap();
            }
            let (on_disk, in_memory) = (on_disk.finish().unwrap(), in_memory.finish().unwrap());
            for digest in 0..41 {
                let expected = digests.contains(&digest);
                for blocks in [&on_disk, &in_memory] {
                    let found = blocks.find(&[digest; 16]).unwrap();
                    prop_assert_eq!(found.is_some(), expected);
                    prop_assert!(found.is_none_or(|found| found.digest == [digest; 16]));
                }
            }
        }
    }
}
