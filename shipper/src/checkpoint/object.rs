//! A checkpoint's file and its object: one zstd frame with a checksum where that is smaller, else the file as it is.

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::manifest::FileEntry;

/// A smaller file is not worth packing.
pub(crate) const LEAST_BYTES: u64 = 64 << 10;
/// What is added to the name of an object that is packed. A file that could not be packed at the first try, and is at the second, has
/// two names for its two contents.
pub(crate) const PACKED_SUFFIX: &str = ".zst";

/// Fast: an index shrinks to a quarter at 500 MB a second.
const LEVEL: i32 = 1;
/// What is read or unpacked at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// The window of a frame, as a power of two, beyond which it is not unpacked: a bound on memory. The level above has 19.
const WINDOW_LOG_MAX: u32 = 23;

/// An object's bytes and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) bytes: u64,
    pub(crate) sha256: [u8; 32],
}

/// What a file is shipped as.
pub(crate) struct Prepared {
    pub(crate) raw_bytes: u64,
    pub(crate) stored: Stored,
    /// The packed file, removed when this is dropped; without it the file itself is shipped.
    pub(crate) packed: Option<NamedTempFile>,
}

/// Why a file could not be prepared.
#[derive(Debug)]
pub(crate) enum PrepareError {
    /// The file cannot be read.
    File(io::Error),
    /// The temporary file cannot be written.
    Temp(io::Error),
}

/// Whether packing this file is worth a try.
pub(crate) fn is_large(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.len() >= LEAST_BYTES)
}

/// Digests a file that is shipped as it is. Blocks.
pub(crate) fn plain(path: &Path) -> Result<Prepared, PrepareError> {
    let stored = digest_file(path).map_err(PrepareError::File)?;
    Ok(Prepared {
        raw_bytes: stored.bytes,
        stored,
        packed: None,
    })
}

/// Packs a file into a temporary one below `temp_dir`, or, where that saves nothing or has no room, digests it as it is. Blocks.
pub(crate) fn prepare(path: &Path, temp_dir: &Path) -> Result<Prepared, PrepareError> {
    // A file system that does not tell may still have room.
    prepare_within(path, temp_dir, free_bytes(temp_dir).unwrap_or(u64::MAX))
}

fn prepare_within(path: &Path, temp_dir: &Path, free: u64) -> Result<Prepared, PrepareError> {
    let raw_bytes = std::fs::metadata(path).map_err(PrepareError::File)?.len();
    // At worst it takes as much again; mostly a quarter, and the rest is for the log, which goes on meanwhile.
    let packed = match free < raw_bytes {
        true => Err(PrepareError::Temp(io::ErrorKind::StorageFull.into())),
        false => pack(path, temp_dir),
    };
    match packed {
        Ok((file, raw_bytes, stored)) if stored.bytes < raw_bytes - raw_bytes / 16 => Ok(Prepared {
            raw_bytes,
            stored,
            packed: Some(file),
        }),
        Ok(_) => plain(path),
        Err(PrepareError::Temp(error)) if is_full(&error) => {
            tracing::warn!(
                file = %path.display(),
                raw_bytes,
                temp_dir = %temp_dir.display(),
                "no room to pack a checkpoint's file, which is shipped as it is: {error}"
            );
            plain(path)
        }
        Err(error) => Err(error),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn pack(path: &Path, temp_dir: &Path) -> Result<(NamedTempFile, u64, Stored), PrepareError> {
    let mut file = std::fs::File::open(path).map_err(PrepareError::File)?;
    let temp = NamedTempFile::new_in(temp_dir).map_err(PrepareError::Temp)?;
    let (raw_bytes, stored) = encode(&mut file, temp.as_file())?;
    Ok((temp, raw_bytes, stored))
}

/// Packs all of `raw` into `out`; how much it was, and what it has become.
fn encode(raw: &mut impl Read, out: impl Write) -> Result<(u64, Stored), PrepareError> {
    let out = Digested::new(io::BufWriter::with_capacity(PIECE_BYTES, out));
    let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(PrepareError::Temp)?;
    encoder.include_checksum(true).map_err(PrepareError::Temp)?;
    let mut raw_bytes = 0;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(raw, &mut piece).map_err(PrepareError::File)?;
        if read.is_empty() {
            break;
        }
        encoder.write_all(read).map_err(PrepareError::Temp)?;
        raw_bytes += read.len() as u64;
    }
    let mut out = encoder.finish().map_err(PrepareError::Temp)?;
    out.flush().map_err(PrepareError::Temp)?;
    Ok((raw_bytes, out.finish().1))
}

fn read_some<'a>(from: &mut impl Read, piece: &'a mut [u8]) -> io::Result<&'a [u8]> {
    loop {
        match from.read(piece) {
            Ok(read) => return Ok(piece.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes and digest of a file. Blocks.
pub(crate) fn digest_file(path: &Path) -> io::Result<Stored> {
    let mut file = std::fs::File::open(path)?;
    let mut digested = Digested::new(io::sink());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(&mut file, &mut piece)?;
        if read.is_empty() {
            return Ok(digested.finish().1);
        }
        digested.write_all(read)?;
    }
}

/// A writer that counts and digests what passes.
pub(crate) struct Digested<W> {
    out: W,
    bytes: u64,
    digest: Sha256,
}

impl<W> Digested<W> {
    pub(crate) fn new(out: W) -> Digested<W> {
        Digested {
            out,
            bytes: 0,
            digest: Sha256::new(),
        }
    }

    pub(crate) fn finish(self) -> (W, Stored) {
        let stored = Stored {
            bytes: self.bytes,
            sha256: self.digest.finalize().into(),
        };
        (self.out, stored)
    }
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An object that does not become its file.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is not what the manifest says.
    #[error("it is not what the manifest says: {0}")]
    NotAsNamed(&'static str),
    /// The file could not be written, or what unpacks not be set up.
    #[error("unpacking a file of a checkpoint")]
    Io(#[from] io::Error),
}

/// Turns an object, piece by piece, into its file, and compares both with what the manifest says. Never writes more than the file has.
pub struct Unpacker<W> {
    out: W,
    entry: FileEntry,
    stored: Digested<io::Sink>,
    raw_bytes: u64,
    frame: Option<Frame>,
}

struct Frame {
    decoder: Decoder<'static>,
    piece: Vec<u8>,
    ended: bool,
}

impl<W: Write> Unpacker<W> {
    /// One that writes the file `entry` to `out`.
    ///
    /// # Errors
    /// No memory for a decoder.
    pub fn new(entry: FileEntry, out: W) -> io::Result<Unpacker<W>> {
        let frame = match entry.packed {
            true => {
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Some(Frame {
                    decoder,
                    piece: vec![0; PIECE_BYTES],
                    ended: false,
                })
            }
            false => None,
        };
        Ok(Unpacker {
            out,
            entry,
            stored: Digested::new(io::sink()),
            raw_bytes: 0,
            frame,
        })
    }

    /// Takes the object's next bytes.
    ///
    /// # Errors
    /// [`UnpackError`]. Nothing more may be given then.
    pub fn push(&mut self, stored: &[u8]) -> Result<(), UnpackError> {
        self.stored.write_all(stored)?;
        if self.stored.bytes > self.entry.stored_bytes {
            return Err(UnpackError::NotAsNamed("the object is too long"));
        }
        let Some(frame) = &mut self.frame else {
            self.raw_bytes += stored.len() as u64;
            return Ok(self.out.write_all(stored)?);
        };
        let mut input = InBuffer::around(stored);
        loop {
            if frame.ended {
                return match input.pos() == stored.len() {
                    true => Ok(()),
                    false => Err(UnpackError::NotAsNamed("the object goes on behind its end")),
                };
            }
            let mut output = OutBuffer::around(frame.piece.as_mut_slice());
            let unpacked = frame.decoder.run(&mut input, &mut output);
            let written = output.pos();
            let left = unpacked.map_err(|_| UnpackError::NotAsNamed("the object does not unpack"))?;
            self.raw_bytes += written as u64;
            if self.raw_bytes > self.entry.raw_bytes {
                return Err(UnpackError::NotAsNamed("the file is too long"));
            }
            self.out
                .write_all(frame.piece.get(..written).unwrap_or_default())?;
            frame.ended = left == 0;
            // A full buffer may be followed by more of the same input.
            if !frame.ended && input.pos() == stored.len() && written < frame.piece.len() {
                return Ok(());
            }
        }
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`UnpackError`]: it ended early, or is another.
    pub fn finish(mut self) -> Result<W, UnpackError> {
        let (_, stored) = self.stored.finish();
        if stored.bytes != self.entry.stored_bytes || self.frame.is_some_and(|frame| !frame.ended) {
            return Err(UnpackError::NotAsNamed("the object is too short"));
        }
        if stored.sha256 != self.entry.sha256 {
            return Err(UnpackError::NotAsNamed("its SHA-256 is another"));
        }
        if self.raw_bytes != self.entry.raw_bytes {
            return Err(UnpackError::NotAsNamed("the file is too short"));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Checks an object that was fetched into a file, without keeping what it unpacks to. Blocks.
///
/// # Errors
/// [`UnpackError`].
pub fn check_object(entry: &FileEntry, stored: &mut impl Read) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker::new(entry.clone(), io::sink())?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(stored, &mut piece)?;
        if read.is_empty() {
            return unpacker.finish().map(|_| ());
        }
        unpacker.push(read)?;
    }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
