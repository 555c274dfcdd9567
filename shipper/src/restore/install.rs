//! What was fetched becomes a part of the log.

use std::io::{self, Write};
use std::path::Path;

use engine::log::{Lsn, SealedUpload, SegmentInstaller};

use super::RestoreError;
use super::place::local;
use crate::chunk;
use crate::fence::ReplicaError;
use crate::manifest::SegmentEntry;
use crate::plan::ChainEnd;
use crate::sealed;

struct UploadWriter(SealedUpload);

impl Write for UploadWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.write(piece)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn install_segment(
    mut installer: SegmentInstaller,
    segment: &SegmentEntry,
    path: &Path,
) -> Result<SegmentInstaller, RestoreError> {
    let object = || segment.object.clone();
    let install = |source| RestoreError::Install {
        object: object(),
        source,
    };
    let base = Lsn::saturating(segment.base);
    let mut stored = std::fs::File::open(path).map_err(local(path))?;
    let mut upload = UploadWriter(installer.sealed(base).map_err(install)?);
    let summary = sealed::decode(&mut stored, segment.stored_bytes, &mut upload).map_err(|source| {
        RestoreError::Segment {
            object: object(),
            source,
        }
    })?;
    let info = installer.install(upload.0).map_err(install)?;
    let as_named = summary.base == base
        && summary.sha256 == segment.sha256
        && summary.raw_bytes == segment.raw_bytes
        && (info.last.get(), info.prev.get()) == (segment.last, segment.prev);
    if !as_named {
        return Err(RestoreError::NotAsNamed { object: object() });
    }
    std::fs::remove_file(path).map_err(local(path))?;
    Ok(installer)
}

pub(super) fn install_chunk(
    mut installer: SegmentInstaller,
    end: ChainEnd,
    object: String,
    bytes: &[u8],
) -> Result<(SegmentInstaller, ChainEnd), RestoreError> {
    let (header, raw) = chunk::decode(bytes).map_err(|source| ReplicaError::Chunk {
        object: object.clone(),
        source,
    })?;
    let end = end.follow(&header).map_err(|source| ReplicaError::Chain {
        object: object.clone(),
        source,
    })?;
    if !raw.is_empty() {
        let last = installer
            .append_frames(&raw)
            .map_err(|source| RestoreError::Install {
                object: object.clone(),
                source,
            })?;
        if last != header.last_lsn {
            return Err(RestoreError::NotAsNamed { object });
        }
    }
    Ok((installer, end))
}
