//! A manifest: which sealed segments and checkpoints are live, and where the chain of chunks continues after them.
//!
//! ```text
//! little-endian
//!   0  [u8; 8]  magic "PDSMANIF"
//!   8  u16      format version, 1
//!  10  u16      zero
//!  12  u32      bytes of body
//!  16  body     wincode of `Manifest` (bincode-1 layout: u64 lengths, integers little-endian, fields in order)
//!   …  u32      crc32 of everything before
//! ```
//! Generation g + 1 is made from generation g by one writer and created if absent; the highest generation is the truth.
//! A manifest is published before anything that it no longer names is deleted.

use engine::log::{Epoch, LogId, Lsn};
use wincode::{SchemaRead, SchemaWrite};

use crate::names::{Generation, Ordinal, SEGMENT_PREFIX, WriterId, is_plain_file_name};
use crate::wire::{self, FieldReader, FieldWriter};

/// Most bytes of a manifest that a reader accepts.
pub const MAX_MANIFEST_BYTES: usize = 64 << 20;
/// Most files of one checkpoint.
pub const MAX_CHECKPOINT_FILES: usize = 64;

const MAGIC: [u8; 8] = *b"PDSMANIF";
const VERSION: u16 = 1;
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
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct FileEntry {
    /// Name in the checkpoint's directory.
    pub name: String,
    /// Name of the object.
    pub object: String,
    /// Bytes.
    pub size: u64,
    /// sha-256 of the file.
    pub sha256: [u8; 32],
}

/// Copies of the views at one LSN.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct CheckpointEntry {
    /// The LSN up to which the views were folded.
    pub lsn: u64,
    /// The files.
    pub files: Vec<FileEntry>,
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
    #[error("manifest format version {0} is not known to this program (it knows {VERSION}); use a newer one")]
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
        }
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
        if version != VERSION {
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
        let manifest: Manifest =
            wincode::deserialize_exact(body).map_err(|_| ManifestError::Body("not a manifest's fields"))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let rule = |ok: bool, name| {
            if ok {
                Ok(())
            } else {
                Err(ManifestError::Body(name))
            }
        };
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
            rule(wire::lsn(segment.last).is_some(), "segment's LSN out of range")?;
            rule(
                segment.base <= segment.last && segment.prev < segment.base,
                "segment's LSNs are out of order",
            )?;
            rule(
                prev.is_none_or(|prev| prev == segment.prev),
                "segments do not chain",
            )?;
            rule(
                segment.object.starts_with(SEGMENT_PREFIX),
                "segment's object name",
            )?;
            prev = Some(segment.last);
        }
        let mut newer = u64::MAX;
        for checkpoint in &self.checkpoints {
            rule(
                checkpoint.lsn < newer && wire::lsn(checkpoint.lsn).is_some(),
                "checkpoints are out of order",
            )?;
            rule(
                checkpoint.files.len() <= MAX_CHECKPOINT_FILES,
                "too many checkpoint files",
            )?;
            rule(
                checkpoint.files.iter().all(|f| is_plain_file_name(&f.name)),
                "checkpoint file's name",
            )?;
            newer = checkpoint.lsn;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::golden;
    use proptest::prelude::*;

    fn example() -> Manifest {
        Manifest {
            generation: 4,
            log_id: [0x11; 16],
            writer_id: [0x22; 16],
            epoch: 3,
            segments: vec![
                SegmentEntry {
                    base: 100,
                    last: 200,
                    prev: 0,
                    raw_bytes: 4_096,
                    sha256: [0x33; 32],
                    object: "seg/0000000000000064".into(),
                    stored_bytes: 1_000,
                },
                SegmentEntry {
                    base: 201,
                    last: 300,
                    prev: 200,
                    raw_bytes: 8_192,
                    sha256: [0x44; 32],
                    object: "seg/00000000000000c9".into(),
                    stored_bytes: 2_000,
                },
            ],
            covered_through: 17,
            next_ordinal: 18,
            covered_epoch: 3,
            checkpoints: vec![CheckpointEntry {
                lsn: 250,
                files: vec![FileEntry {
                    name: "index.redb".into(),
                    object: "ckpt/00000000000000fa/3-index.redb".into(),
                    size: 77,
                    sha256: [0x55; 32],
                }],
            }],
            lsn_floor: 320,
            created_at_micros: 1_700_000_000_000_000,
        }
    }

    #[test]
    fn a_manifest_has_the_bytes_of_the_golden_file_and_comes_back() {
        let bytes = example().encode().unwrap();
        golden("manifest.bin", &bytes);
        assert_eq!(Manifest::decode(&bytes).unwrap(), example());
        assert_eq!(example().covered_lsn().get(), 300);
    }

    #[test]
    fn manifests_that_break_a_rule_are_neither_written_nor_read() {
        type Breaker = (&'static str, fn(&mut Manifest));
        let breakers: Vec<Breaker> = vec![
            ("next ordinal", |m| m.next_ordinal = 17),
            ("gap between segments", |m| m.segments[1].prev = 199),
            ("backward segment", |m| m.segments[0].last = 50),
            ("LSN over 2^53", |m| m.segments[1].last = 1 << 53),
            ("path in a checkpoint", |m| {
                m.checkpoints[0].files[0].name = "../../etc/passwd".into();
            }),
            ("floor over 2^53", |m| m.lsn_floor = u64::MAX),
            ("covered epoch", |m| m.covered_epoch = 4),
        ];
        for (name, break_it) in breakers {
            let mut manifest = example();
            break_it(&mut manifest);
            assert!(matches!(manifest.encode(), Err(ManifestError::Body(_))), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_truncated_manifest_is_an_error(cut in any::<prop::sample::Index>()) {
            let bytes = example().encode().unwrap();
            prop_assert!(Manifest::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn a_flipped_bit_is_an_error(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = example().encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
