//! Manifests of format 1, which earlier programs wrote: without reigns, frames and compactions of segments, without what
//! was displaced.

use wincode::SchemaRead;

use super::format2::File;
use super::{CheckpointEntry, Displaced, Manifest, SegmentEntry};

/// The version in the header.
pub(super) const VERSION: u16 = 1;

#[derive(SchemaRead)]
struct Segment {
    base: u64,
    last: u64,
    prev: u64,
    raw_bytes: u64,
    sha256: [u8; 32],
    object: String,
    stored_bytes: u64,
}

#[derive(SchemaRead)]
struct Checkpoint {
    lsn: u64,
    files: Vec<File>,
}

#[derive(SchemaRead)]
struct Body {
    generation: u64,
    log_id: [u8; 16],
    writer_id: [u8; 16],
    epoch: u64,
    segments: Vec<Segment>,
    covered_through: u64,
    next_ordinal: u64,
    covered_epoch: u64,
    checkpoints: Vec<Checkpoint>,
    lsn_floor: u64,
    created_at_micros: u64,
}

/// Reads a body; `None` if it is none.
pub(super) fn decode(body: &[u8]) -> Option<Manifest> {
    let body: Body = wincode::deserialize_exact(body).ok()?;
    let segments = body.segments.into_iter().map(|segment| SegmentEntry {
        base: segment.base,
        last: segment.last,
        prev: segment.prev,
        raw_bytes: segment.raw_bytes,
        sha256: segment.sha256,
        object: segment.object,
        stored_bytes: segment.stored_bytes,
        epoch: 0,
        frames: 0,
        compaction: 0,
    });
    let checkpoints = body.checkpoints.into_iter().map(|checkpoint| CheckpointEntry {
        lsn: checkpoint.lsn,
        files: checkpoint.files.into_iter().map(File::into_entry).collect(),
        verified_at_micros: 0,
    });
    Some(Manifest {
        generation: body.generation,
        log_id: body.log_id,
        writer_id: body.writer_id,
        epoch: body.epoch,
        segments: segments.collect(),
        covered_through: body.covered_through,
        next_ordinal: body.next_ordinal,
        covered_epoch: body.covered_epoch,
        checkpoints: checkpoints.collect(),
        lsn_floor: body.lsn_floor,
        created_at_micros: body.created_at_micros,
        displaced: Displaced::default(),
    })
}
