//! A manifest: which sealed segments and checkpoints are live, which displaced ones are kept, and where the chain of chunks
//! continues after them.
//!
//! ```text
//! little-endian
//!   0  [u8; 8]  magic "PDSMANIF"
//!   8  u16      format version, 3 (1 and 2 are read)
//!  10  u16      zero
//!  12  u32      bytes of body
//!  16  body     wincode of `Manifest` (bincode-1 layout: u64 lengths, integers little-endian, fields in order)
//!   …  u32      crc32 of everything before
//! ```
//! Generation g + 1 is made from generation g by one writer and created if absent; the highest generation is the truth.
//! A manifest is published before anything that it no longer names is deleted.

mod format1;
mod format2;

use std::collections::HashSet;

use engine::log::{Epoch, LogId, Lsn};
use wincode::{SchemaRead, SchemaWrite};

use crate::names::{Generation, Ordinal, SEGMENT_PREFIX, WriterId, is_plain_file_name};
use crate::wire::{self, FieldReader, FieldWriter};

/// Most bytes of a manifest that a reader accepts.
pub const MAX_MANIFEST_BYTES: usize = 64 << 20;
/// Most files of one checkpoint.
pub const MAX_CHECKPOINT_FILES: usize = 64;

const MAGIC: [u8; 8] = *b"PDSMANIF";
const VERSION: u16 = 3;
const HEADER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;

/// A sealed segment that is in the replica.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct SegmentEntry {
    /// Base LSN, which is the first frame's.
    pub base: u64,
    /// LSN of the last frame.
    pub last: u64,
    /// The last LSN of the segment before.
    pub prev: u64,
    /// Bytes of the segment file.
    pub raw_bytes: u64,
    /// sha-256 of the segment file.
    pub sha256: [u8; 32],
    /// Name of the object.
    pub object: String,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// The reign that wrote it.
    pub epoch: u64,
    /// How many frames it has. Zero if that is not known, nor epoch and compaction: a manifest of format 1 named it, and no
    /// writer has it on its disk.
    pub frames: u64,
    /// The number of the compaction that made it; zero for what a writer appended.
    pub compaction: u32,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct FileEntry {
    /// Name in the checkpoint's directory.
    pub name: String,
    /// Name of the object.
    pub object: String,
    /// Bytes of the file.
    pub raw_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// sha-256 of the object.
    pub sha256: [u8; 32],
    /// Whether the object is one zstd frame, with a checksum, of the file. Else it is the file.
    pub packed: bool,
}

/// Copies of the views at one LSN.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct CheckpointEntry {
    /// The LSN up to which the views were folded.
    pub lsn: u64,
    /// The files.
    pub files: Vec<FileEntry>,
    /// When it was read back, opened and counted, in microseconds since 1970; zero if it was not.
    pub verified_at_micros: u64,
}

impl CheckpointEntry {
    /// Bytes of the files.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.raw_bytes))
    }

    /// Bytes of the objects.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.stored_bytes))
    }
}

/// A segment that the log does not need any more, kept for points in time.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct DisplacedSegment {
    /// The segment.
    pub entry: SegmentEntry,
    /// Up to this LSN others have taken its place: a state of before cannot be had without it, a later one can.
    pub through: u64,
    /// When the live list ceased to name it, in microseconds since 1970.
    pub at_micros: u64,
}

/// A checkpoint that gave way to a newer one, kept for points in time.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct DisplacedCheckpoint {
    /// The checkpoint.
    pub entry: CheckpointEntry,
    /// When the live list ceased to name it, in microseconds since 1970.
    pub at_micros: u64,
}

/// What is named no more by the lists of what is live, and is not deleted yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Displaced {
    /// Segments, in the order in which they were displaced; those of one compaction are ascending and chained.
    pub segments: Vec<DisplacedSegment>,
    /// Checkpoints, in the order in which they were displaced.
    pub checkpoints: Vec<DisplacedCheckpoint>,
}

/// What is live in a replica.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Manifest {
    /// This manifest's number, equal to the one in its name.
    pub generation: u64,
    /// The log.
    pub log_id: [u8; 16],
    /// The process that wrote it.
    pub writer_id: [u8; 16],
    /// That process's reign.
    pub epoch: u64,
    /// Sealed segments, ascending and chained.
    pub segments: Vec<SegmentEntry>,
    /// The last ordinal whose frames are in the segments; zero if there is none.
    pub covered_through: u64,
    /// The ordinal at which the chain continues.
    pub next_ordinal: u64,
    /// Epoch of the last covered chunk: the chain that continues must not be below it.
    pub covered_epoch: u64,
    /// Checkpoints, newest first.
    pub checkpoints: Vec<CheckpointEntry>,
    /// No later LSN may be at or below this.
    pub lsn_floor: u64,
    /// Microseconds since 1970.
    pub created_at_micros: u64,
    /// What is kept for points in time.
    pub displaced: Displaced,
}

/// A manifest that cannot be read. None of these goes away by trying again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Fewer or more bytes than announced.
    #[error("length: {have} bytes where {need} are announced")]
    Length {
        /// Bytes announced.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Not a manifest.
    #[error("not a manifest: the magic bytes are missing")]
    NotAManifest,
    /// A format that this program does not know.
    #[error(
        "manifest format version {0} is not known to this program (it knows 1 to {VERSION}); use a newer one"
    )]
    UnknownVersion(u16),
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// The body is not what a writer writes.
    #[error("the body is not valid: {0}")]
    Body(&'static str),
}

impl Manifest {
    /// What holds before the first manifest of `log_id` was written.
    #[must_use]
    pub fn empty(log_id: LogId) -> Manifest {
        Manifest {
            generation: Generation::NONE.0,
            log_id: log_id.0,
            writer_id: [0; 16],
            epoch: 0,
            segments: Vec::new(),
            covered_through: 0,
            next_ordinal: Ordinal::FIRST.0,
            covered_epoch: 0,
            checkpoints: Vec::new(),
            lsn_floor: 0,
            created_at_micros: 0,
            displaced: Displaced::default(),
        }
    }

    /// Every object with data that this manifest names: of live and of displaced segments and checkpoints.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        let displaced = &self.displaced;
        let segments = self.segments.iter();
        let segments = segments.chain(displaced.segments.iter().map(|displaced| &displaced.entry));
        let checkpoints = self.checkpoints.iter();
        let checkpoints = checkpoints.chain(displaced.checkpoints.iter().map(|displaced| &displaced.entry));
        let files = checkpoints.flat_map(|checkpoint| &checkpoint.files);
        segments
            .map(|segment| segment.object.as_str())
            .chain(files.map(|file| file.object.as_str()))
    }

    /// The log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        LogId(self.log_id)
    }

    /// This manifest's number.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// The writer.
    #[must_use]
    pub fn writer_id(&self) -> WriterId {
        WriterId(self.writer_id)
    }

    /// The writer's reign.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Where the chain continues after the covered chunks.
    #[must_use]
    pub fn next_ordinal(&self) -> Ordinal {
        Ordinal(self.next_ordinal)
    }

    /// The last LSN in the sealed segments; zero if there are none.
    #[must_use]
    pub fn covered_lsn(&self) -> Lsn {
        self.segments
            .last()
            .and_then(|s| wire::lsn(s.last))
            .unwrap_or(Lsn::ZERO)
    }

    /// No later LSN may be at or below this.
    #[must_use]
    pub fn lsn_floor(&self) -> Lsn {
        wire::lsn(self.lsn_floor)
            .unwrap_or(Lsn::ZERO)
            .max(self.covered_lsn())
    }

    /// The object's bytes.
    ///
    /// # Errors
    /// [`ManifestError::Body`] if it breaks a rule that readers check.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let body = wincode::serialize(self).map_err(|_| ManifestError::Body("not serializable"))?;
        let mut out = FieldWriter::with_capacity(HEADER_BYTES + body.len() + CRC_BYTES);
        out.bytes(&MAGIC);
        out.u16(VERSION);
        out.u16(0);
        out.u32(u32::try_from(body.len()).map_err(|_| ManifestError::Body("too long"))?);
        out.bytes(&body);
        out.crc_of_all();
        Ok(out.finish())
    }

    /// Reads and checks a whole object.
    ///
    /// # Errors
    /// [`ManifestError`]: see there.
    pub fn decode(object: &[u8]) -> Result<Manifest, ManifestError> {
        if object.len() < HEADER_BYTES + CRC_BYTES || object.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::Length {
                need: HEADER_BYTES + CRC_BYTES,
                have: object.len(),
            });
        }
        let mut fields = FieldReader::new(object);
        if fields.array::<8>() != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        let version = fields.u16();
        if ![format1::VERSION, format2::VERSION, VERSION].contains(&version) {
            return Err(ManifestError::UnknownVersion(version));
        }
        let zero = fields.u16();
        let body_len = fields.u32() as usize;
        let need = HEADER_BYTES + body_len + CRC_BYTES;
        if need != object.len() {
            return Err(ManifestError::Length {
                need,
                have: object.len(),
            });
        }
        if zero != 0 || !wire::crc_matches(object, HEADER_BYTES + body_len) {
            return Err(ManifestError::Checksum);
        }
        let body = object
            .get(HEADER_BYTES..HEADER_BYTES + body_len)
            .unwrap_or_default();
        let manifest = match version {
            format1::VERSION => format1::decode(body),
            format2::VERSION => format2::decode(body),
            _ => wincode::deserialize_exact(body).ok(),
        };
        let manifest = manifest.ok_or(ManifestError::Body("not a manifest's fields"))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        rule(
            self.next_ordinal > self.covered_through,
            "next ordinal is not after the covered ones",
        )?;
        rule(wire::lsn(self.lsn_floor).is_some(), "LSN floor out of range")?;
        rule(
            self.covered_epoch <= self.epoch,
            "covered epoch above the writer's",
        )?;
        let mut prev = None;
        for segment in &self.segments {
            check_segment(segment)?;
            rule(
                prev.is_none_or(|prev| prev == segment.prev),
                "segments do not chain",
            )?;
            prev = Some(segment.last);
        }
        let mut newer = u64::MAX;
        for checkpoint in &self.checkpoints {
            check_checkpoint(checkpoint)?;
            rule(checkpoint.lsn < newer, "checkpoints are out of order")?;
            newer = checkpoint.lsn;
        }
        for displaced in &self.displaced.segments {
            check_segment(&displaced.entry)?;
            rule(
                displaced.entry.last <= displaced.through && wire::lsn(displaced.through).is_some(),
                "displaced segment's place",
            )?;
        }
        for displaced in &self.displaced.checkpoints {
            check_checkpoint(&displaced.entry)?;
        }
        let mut seen = HashSet::new();
        rule(
            self.objects().all(|object| seen.insert(object)),
            "an object is named twice",
        )?;
        Ok(())
    }
}

fn rule(ok: bool, name: &'static str) -> Result<(), ManifestError> {
    if ok {
        Ok(())
    } else {
        Err(ManifestError::Body(name))
    }
}

fn check_segment(segment: &SegmentEntry) -> Result<(), ManifestError> {
    rule(wire::lsn(segment.last).is_some(), "segment's LSN out of range")?;
    rule(
        segment.base <= segment.last && segment.prev < segment.base,
        "segment's LSNs are out of order",
    )?;
    rule(
        segment.object.starts_with(SEGMENT_PREFIX),
        "segment's object name",
    )
}

fn check_checkpoint(checkpoint: &CheckpointEntry) -> Result<(), ManifestError> {
    rule(
        wire::lsn(checkpoint.lsn).is_some(),
        "checkpoint's LSN out of range",
    )?;
    rule(
        checkpoint.files.len() <= MAX_CHECKPOINT_FILES,
        "too many checkpoint files",
    )?;
    rule(
        checkpoint.files.iter().all(|f| is_plain_file_name(&f.name)),
        "checkpoint file's name",
    )?;
    let is_whole = |file: &FileEntry| file.packed || file.raw_bytes == file.stored_bytes;
    rule(checkpoint.files.iter().all(is_whole), "checkpoint file's bytes")
}

#[cfg(test)]
mod tests;
