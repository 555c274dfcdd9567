//! A log that ends at a cut, under an identity of its own: frames are copied as they are, segments get new headers.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use engine::log::{Flags, LogId, Lsn, SegmentInstaller};
use engine::storage::OsStorage;
use shipper::restore::LOG_DIR;

use audit::data_dir::DataDir;
use audit::segment::{SegmentReader, Step};

/// Bytes of whole groups that are handed over at once, about.
const PIECE_BYTES: usize = 1 << 20;

/// Copies the whole groups of the log in `from` that end at or before `cut` into `to`; yields the last LSN, which is zero if there
/// are none.
///
/// # Errors
/// The log is damaged before the cut, or a disk failed.
pub fn transplant(from: &Path, to: &Path, cut: Lsn, log_id: LogId) -> anyhow::Result<Lsn> {
    let dir = DataDir::open(from)?;
    let mut installer = SegmentInstaller::begin(Arc::new(OsStorage), &to.join(LOG_DIR), log_id)?;
    'log: for base in &dir.segments {
        let mut reader = SegmentReader::open(&dir.segment_path(*base), *base)?;
        installer.frames_of_compaction(reader.header.compaction);
        let (mut groups, mut group) = (Vec::new(), Vec::new());
        while let Some(step) = reader.step()? {
            let frame = match step {
                Step::Frame(frame) => frame,
                Step::Damaged { offset, error, .. } => {
                    bail!("segment {base} is damaged at offset {offset}: {error}")
                }
                Step::Broken { offset, what, .. } => {
                    bail!("segment {base} is damaged at offset {offset}: {what}")
                }
            };
            if frame.lsn() > cut {
                installer.append_frames(&groups)?;
                break 'log;
            }
            group.extend_from_slice(frame.bytes());
            if !frame.flags().contains(Flags::MORE) {
                groups.append(&mut group);
            }
            if groups.len() >= PIECE_BYTES {
                installer.append_frames(&groups)?;
                groups.clear();
            }
        }
        installer.append_frames(&groups)?;
    }
    installer.finish().context("making the new log durable")
}
