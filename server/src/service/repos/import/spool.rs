//! The blocks of a CAR on disk, found by their CIDs: a file without a name, and an index of it (see [`blocks`](super::blocks)).
//!
//! Each block stands behind a head of 20 bytes: half of its digest, its length. So when blocks are asked for in the order in
//! which they came, which is that of an export, the next one is known without a look into the index.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use engine::repo::car::{CarLimits, CarReader};
use engine::repo::mst::{NodePlace, NodeSource, NodeSourceError};
use engine::repo::{Cid, Commit, Did};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::ImportError;
use super::blocks::{BlockAt, Blocks, Gathering, Half, half};
use super::room::Share;

/// What the file is read by while the blocks come in order.
const WINDOW_BYTES: usize = 64 << 10;
/// The same while they do not.
const SCATTERED_BYTES: usize = 4 << 10;
/// Bytes of a CAR per block, at least: bounds the index on disk. A record or node with its CID takes more, save for a few.
const BLOCK_BYTES_MIN: u64 = 96;
/// Blocks that a CAR may have beyond that.
const BLOCKS_FREE: u64 = 4096;
/// Bytes in front of each block.
const HEAD_BYTES: usize = 20;
/// Bytes of a CAR between two looks at how much room the disk has; a CAR that did not say its length takes its room by so much.
const LOOK_EVERY: u64 = 16 << 20;

/// A CAR whose blocks match their CIDs.
pub(super) struct Spool {
    file: File,
    blocks: Blocks,
    root: Cid,
    window: Mutex<Window>,
    /// The room of its files.
    _share: Share,
}

/// A part of the file in memory.
#[derive(Default)]
struct Window {
    from: u64,
    bytes: Vec<u8>,
    /// Where the block behind the one that was read last begins, with its head.
    next: u64,
    /// The last one was the next of the one before.
    in_order: bool,
}

impl Spool {
    /// Reads a CAR of at most `limit` bytes to its end, into the room of `share`, which it keeps.
    pub(super) fn read(
        body: mpsc::Receiver<Result<Bytes, String>>,
        mut share: Share,
        limit: u64,
    ) -> Result<Spool, ImportError> {
        let dir = share.dir().to_owned();
        let body = Body {
            body,
            chunk: Bytes::new(),
            left: limit,
        };
        let mut car = CarReader::new(BufReader::with_capacity(WINDOW_BYTES, body), CarLimits::default())?;
        let [root] = *car.roots() else {
            return Err(ImportError::Invalid("Expected one root in the CAR".to_owned()));
        };
        let mut file = BufWriter::with_capacity(4 * WINDOW_BYTES, tempfile::tempfile_in(&dir).map_err(io)?);
        let mut gathering = Gathering::new(&dir);
        let (mut end, mut count, mut looked) = (0, 0, 0);
        share.take_for(LOOK_EVERY.min(limit))?;
        while let Some(block) = car.next_block()? {
            if count > BLOCKS_FREE + car.position() / BLOCK_BYTES_MIN {
                return Err(ImportError::Invalid(
                    "The CAR has too many small blocks".to_owned(),
                ));
            }
            if car.position() - looked >= LOOK_EVERY {
                looked = car.position();
                share.wrote(end);
                share.take_for((looked + LOOK_EVERY).min(limit))?;
            }
            let digest = half(&block.cid);
            let at = BlockAt::new(digest, end, block.bytes.len()).ok_or(ImportError::TooLarge)?;
            let len = u32::try_from(block.bytes.len()).map_err(|_| ImportError::TooLarge)?;
            file.write_all(&digest).map_err(io)?;
            file.write_all(&len.to_be_bytes()).map_err(io)?;
            file.write_all(&block.bytes).map_err(io)?;
            gathering.add(at).map_err(io)?;
            end += HEAD_BYTES as u64 + u64::from(len);
            count += 1;
        }
        let file = file.into_inner().map_err(|error| io(error.into_error()))?;
        Ok(Spool {
            file,
            blocks: gathering.finish().map_err(io)?,
            root,
            window: Mutex::default(),
            _share: share,
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
        let mut window = self.window.lock();
        let mut place = window.next_if(&self.file, &digest)?;
        window.in_order = place.is_some();
        if place.is_none() {
            place = self.blocks.find(&digest)?;
        }
        let Some(place) = place else {
            return Ok(None);
        };
        let block = window.read(&self.file, place.offset() + HEAD_BYTES as u64, place.len())?;
        window.next = place.offset() + (HEAD_BYTES + place.len()) as u64;
        Ok(cid.matches(&block).then_some(block))
    }
}

pub(super) fn io(error: std::io::Error) -> ImportError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return ImportError::NoRoom;
    }
    ImportError::Internal(format!("the spool of an import: {error}"))
}

impl Window {
    /// The block behind the last one, if it has this digest and to look costs nothing or was of use the last time.
    fn next_if(&mut self, file: &File, digest: &Half) -> std::io::Result<Option<BlockAt>> {
        if !self.in_order && self.part(self.next, HEAD_BYTES).is_none() {
            return Ok(None);
        }
        let head = match self.read(file, self.next, HEAD_BYTES) {
            Ok(head) => head,
            // The last block has none behind it.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = head.last_chunk().map_or(0, |len| u32::from_be_bytes(*len));
        let is_it = head.starts_with(digest);
        Ok(BlockAt::new(*digest, self.next, usize::try_from(len).unwrap_or(usize::MAX)).filter(|_| is_it))
    }

    fn part(&self, from: u64, len: usize) -> Option<&[u8]> {
        let at = usize::try_from(from.checked_sub(self.from)?).ok()?;
        self.bytes.get(at..at.checked_add(len)?)
    }

    fn read(&mut self, file: &File, from: u64, len: usize) -> std::io::Result<Bytes> {
        if self.part(from, len).is_none() {
            let ahead = if self.in_order {
                WINDOW_BYTES
            } else {
                SCATTERED_BYTES
            };
            self.bytes.resize(len.max(ahead), 0);
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
        }
        self.part(from, len)
            .map(Bytes::copy_from_slice)
            .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
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
