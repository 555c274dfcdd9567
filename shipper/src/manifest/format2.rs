//! Manifests of format 2, which earlier programs wrote: the files of checkpoints are objects as they are.

use wincode::SchemaRead;

use super::{
    CheckpointEntry, Displaced, DisplacedCheckpoint, DisplacedSegment, FileEntry, Manifest, SegmentEntry,
};

/// The version in the header.
pub(super) const VERSION: u16 = 2;

#[derive(SchemaRead)]
pub(super) struct File {
    name: String,
    object: String,
    size: u64,
    sha256: [u8; 32],
}

impl File {
    pub(super) fn into_entry(self) -> FileEntry {
        FileEntry {
            name: self.name,
            object: self.object,
            raw_bytes: self.size,
            stored_bytes: self.size,
            sha256: self.sha256,
            packed: false,
        }
    }
}

#[derive(SchemaRead)]
struct Checkpoint {
    lsn: u64,
    files: Vec<File>,
    verified_at_micros: u64,
}

impl Checkpoint {
    fn into_entry(self) -> CheckpointEntry {
        CheckpointEntry {
            lsn: self.lsn,
            files: self.files.into_iter().map(File::into_entry).collect(),
            verified_at_micros: self.verified_at_micros,
        }
    }
}

#[derive(SchemaRead)]
struct OldCheckpoint {
    entry: Checkpoint,
    at_micros: u64,
}

#[derive(SchemaRead)]
struct Body {
    generation: u64,
    log_id: [u8; 16],
    writer_id: [u8; 16],
    epoch: u64,
    segments: Vec<SegmentEntry>,
    covered_through: u64,
    next_ordinal: u64,
    covered_epoch: u64,
    checkpoints: Vec<Checkpoint>,
    lsn_floor: u64,
    created_at_micros: u64,
    displaced_segments: Vec<DisplacedSegment>,
    displaced_checkpoints: Vec<OldCheckpoint>,
}

/// Reads a body; `None` if it is none.
pub(super) fn decode(body: &[u8]) -> Option<Manifest> {
    let body: Body = wincode::deserialize_exact(body).ok()?;
    let checkpoints = body.checkpoints.into_iter().map(Checkpoint::into_entry);
    let displaced = body.displaced_checkpoints.into_iter();
    let displaced = displaced.map(|displaced| DisplacedCheckpoint {
        entry: displaced.entry.into_entry(),
        at_micros: displaced.at_micros,
    });
    Some(Manifest {
        generation: body.generation,
        log_id: body.log_id,
        writer_id: body.writer_id,
        epoch: body.epoch,
        segments: body.segments,
        covered_through: body.covered_through,
        next_ordinal: body.next_ordinal,
        covered_epoch: body.covered_epoch,
        checkpoints: checkpoints.collect(),
        lsn_floor: body.lsn_floor,
        created_at_micros: body.created_at_micros,
        displaced: Displaced {
            segments: body.displaced_segments,
            checkpoints: displaced.collect(),
        },
    })
}
