//! The blocks of a CAR on disk, found by their CIDs: a file without a name, and a sorted index in memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use engine::repo::car::{CarLimits, CarReader};
use engine::repo::mst::{NodePlace, NodeSource, NodeSourceError};
use engine::repo::{Cid, Commit, Did};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::ImportError;

/// What the file is read by. In the usual order of an export the next blocks lie behind the one that is asked for.
const WINDOW_BYTES: usize = 64 << 10;
/// Bytes of a CAR per block, at least: bounds the index. A record or node with its CID takes more, save for a few.
const BLOCK_BYTES_MIN: u64 = 96;
/// Blocks that a CAR may have beyond that.
const BLOCKS_FREE: u64 = 4096;

/// Where a block is, in 24 bytes.
#[derive(Clone, Copy)]
struct BlockAt {
    /// The digest's first half. Whoever gets a block compares it with the whole CID.
    digest: [u8; 16],
    /// Offset, 40 bits, and length, 24 bits.
    place: u64,
}

impl BlockAt {
    fn new(cid: &Cid, offset: u64, len: usize) -> Option<BlockAt> {
        let len = u64::try_from(len).ok().filter(|len| *len < 1 << 24)?;
        (offset < 1 << 40).then_some(BlockAt {
            digest: half(cid),
            place: offset << 24 | len,
        })
    }
}

fn half(cid: &Cid) -> [u8; 16] {
    let digest = cid.digest();
    std::array::from_fn(|at| digest[at])
}

/// A CAR whose blocks match their CIDs.
pub(super) struct Spool {
    file: File,
    /// By digest.
    blocks: Vec<BlockAt>,
    root: Cid,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    from: u64,
    bytes: Vec<u8>,
}

impl Spool {
    /// Reads a CAR of at most `limit` bytes to its end.
    pub(super) fn read(
        body: mpsc::Receiver<Result<Bytes, String>>,
        dir: &Path,
        limit: u64,
    ) -> Result<Spool, ImportError> {
        let disk = |error: std::io::Error| ImportError::Internal(format!("the spool of an import: {error}"));
        let body = Body {
            body,
            chunk: Bytes::new(),
            left: limit,
        };
        let mut car = CarReader::new(BufReader::with_capacity(WINDOW_BYTES, body), CarLimits::default())?;
        let [root] = *car.roots() else {
            return Err(ImportError::Invalid("Expected one root in the CAR".to_owned()));
        };
        let mut file = BufWriter::with_capacity(4 * WINDOW_BYTES, tempfile::tempfile_in(dir).map_err(disk)?);
        let mut blocks = Vec::new();
        let mut end = 0;
        while let Some(block) = car.next_block()? {
            if blocks.len() as u64 > BLOCKS_FREE + car.position() / BLOCK_BYTES_MIN {
                return Err(ImportError::Invalid(
                    "The CAR has too many small blocks".to_owned(),
                ));
            }
            let at = BlockAt::new(&block.cid, end, block.bytes.len()).ok_or(ImportError::TooLarge)?;
            file.write_all(&block.bytes).map_err(disk)?;
            end += block.bytes.len() as u64;
            blocks.push(at);
        }
        let file = file.into_inner().map_err(|error| disk(error.into_error()))?;
        blocks.sort_unstable_by_key(|block| block.digest);
        Ok(Spool {
            file,
            blocks,
            root,
            window: Mutex::default(),
        })
    }

    /// The signed commit at the root, which must be of `did`. Its signature is another server's, and is not checked.
    pub(super) fn commit(&self, did: &Did) -> Result<Commit, ImportError> {
        let block = self.block(&self.root).map_err(io)?;
        let block =
            block.ok_or_else(|| ImportError::Invalid("The CAR's root is not among its blocks".to_owned()))?;
        let commit = Commit::decode(block)
            .map_err(|error| ImportError::Invalid(format!("The CAR's root is no commit: {error}")))?;
        if commit.did() != did {
            let what = format!("The repo in the CAR is of {}", commit.did());
            return Err(ImportError::Invalid(what));
        }
        Ok(commit)
    }

    /// A block, compared with its CID.
    pub(super) fn block(&self, cid: &Cid) -> std::io::Result<Option<Bytes>> {
        let digest = half(cid);
        let Ok(at) = self.blocks.binary_search_by_key(&digest, |block| block.digest) else {
            return Ok(None);
        };
        let Some(place) = self.blocks.get(at).map(|block| block.place) else {
            return Ok(None);
        };
        let len = usize::try_from(place & 0x00ff_ffff).unwrap_or(usize::MAX);
        let block = self.window.lock().read(&self.file, place >> 24, len)?;
        Ok(cid.matches(&block).then_some(block))
    }
}

pub(super) fn io(error: std::io::Error) -> ImportError {
    ImportError::Internal(format!("the spool of an import: {error}"))
}

impl Window {
    fn read(&mut self, file: &File, from: u64, len: usize) -> std::io::Result<Bytes> {
        let part = |window: &Window| {
            let at = usize::try_from(from.checked_sub(window.from)?).ok()?;
            window
                .bytes
                .get(at..at.checked_add(len)?)
                .map(Bytes::copy_from_slice)
        };
        if let Some(block) = part(self) {
            return Ok(block);
        }
        self.bytes.resize(len.max(WINDOW_BYTES), 0);
        self.from = from;
        let mut filled = 0;
        while let Some(rest) = self.bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, from + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.truncate(filled);
        part(self).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

impl NodeSource for Spool {
    fn node(&self, cid: &Cid, _: &NodePlace<'_>) -> Result<Bytes, NodeSourceError> {
        match self.block(cid) {
            Ok(Some(block)) => Ok(block),
            Ok(None) => Err(NodeSourceError::Missing),
            Err(error) => Err(NodeSourceError::Io(error.to_string())),
        }
    }
}

/// The request's body, as a thread that may block reads it.
struct Body {
    body: mpsc::Receiver<Result<Bytes, String>>,
    chunk: Bytes,
    left: u64,
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.chunk.is_empty() {
            match self.body.blocking_recv() {
                None => return Ok(0),
                Some(Err(broken)) => return Err(std::io::Error::other(broken)),
                Some(Ok(chunk)) => {
                    self.left = self
                        .left
                        .checked_sub(chunk.len() as u64)
                        .ok_or(std::io::ErrorKind::FileTooLarge)?;
                    self.chunk = chunk;
                }
            }
        }
        let taken = self.chunk.split_to(out.len().min(self.chunk.len()));
        if let Some(out) = out.get_mut(..taken.len()) {
            out.copy_from_slice(&taken);
        }
        Ok(taken.len())
    }
}
