//! One segment: how it ends, and what that means for it.

use std::io;

use super::super::frame::{Flags, FrameRef};
use super::super::lsn::Lsn;
use super::super::segment::{
    SEGMENT_HEADER_BYTES, SEGMENT_TRAILER_BYTES, SegmentFooter, SegmentHeader, SegmentHeaderError,
    SegmentInfo, Tally, find_frame, link_error,
};
use crate::storage::StorageFile;

/// What was found wrong with a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged at offset {offset}: {what}")]
pub struct Damage {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}

/// How a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Sealed,
    Open,
    Torn(Damage),
    Headless(Damage),
    Damaged(Damage),
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Keep,
    Seal,
    Cut(Damage),
    Remove(Damage),
    Refuse(Damage),
}

/// The table at the top of [this module](super).
pub(super) fn decide(end: End, newest: bool) -> Action {
    match (end, newest) {
        (End::Sealed, _) => Action::Keep,
        (End::Open, true) => Action::Seal,
        (End::Torn(damage), true) => Action::Cut(damage),
        (End::Headless(damage), true) => Action::Remove(damage),
        (End::Open, false) => Action::Refuse(Damage {
            offset: SEGMENT_HEADER_BYTES as u64,
            what: "it has no footer although a later segment exists".to_owned(),
        }),
        (End::Torn(damage) | End::Headless(damage), false) | (End::Damaged(damage), _) => {
            Action::Refuse(damage)
        }
    }
}

/// What a look at all of a segment's bytes found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) header: Option<SegmentHeader>,
    /// Counts the whole groups.
    pub(super) tally: Option<Tally>,
    pub(super) footer: Option<SegmentFooter>,
    pub(super) end: End,
}

/// Looks at every byte. The only error is a version that is not known.
pub(super) fn scan(bytes: &[u8], base: Lsn) -> Result<Scan, SegmentHeaderError> {
    let header = match SegmentHeader::parse(bytes) {
        Ok(header) => header,
        Err(error @ SegmentHeaderError::UnknownVersion { .. }) => return Err(error),
        Err(error) => {
            let damage = Damage {
                offset: 0,
                what: error.to_string(),
            };
            // The header is synced before the first frame is written.
            let written = SegmentFooter::of_file(bytes).is_some()
                || find_frame(bytes, SEGMENT_HEADER_BYTES, Lsn::ZERO, false).is_some();
            let end = if written {
                End::Damaged(damage)
            } else {
                End::Headless(damage)
            };
            return Ok(Scan {
                header: None,
                tally: None,
                footer: None,
                end,
            });
        }
    };
    let mut tally = Tally::start(&header);
    let footer = SegmentFooter::of_file(bytes);
    let limit = footer
        .as_ref()
        .map_or(bytes.len() as u64, |footer| footer.frames_end);
    let limit = usize::try_from(limit).unwrap_or(bytes.len());
    let end = if header.base == base {
        walk(bytes, limit, &header, footer.as_ref(), &mut tally)
    } else {
        End::Damaged(Damage {
            offset: 0,
            what: format!("its header says it is segment {}", header.base),
        })
    };
    Ok(Scan {
        header: Some(header),
        tally: Some(tally),
        footer,
        end,
    })
}

/// Walks the frames of `bytes[..limit]`, counting whole groups.
fn walk(
    bytes: &[u8],
    limit: usize,
    header: &SegmentHeader,
    footer: Option<&SegmentFooter>,
    tally: &mut Tally,
) -> End {
    let mut at = SEGMENT_HEADER_BYTES;
    let mut group: Vec<FrameRef<'_>> = Vec::new();
    let mut last = header.prev;
    let wrong = loop {
        if at >= limit {
            break None;
        }
        let rest = bytes.get(at..limit).unwrap_or_default();
        let frame = match FrameRef::parse(rest) {
            Ok(frame) => frame,
            // Written ahead. The frames before end with a whole group, and nothing of a later one was ever there.
            Err(_) if footer.is_none() && group.is_empty() && is_zero(rest) => break None,
            Err(error) => break Some(error.to_string()),
        };
        let first = tally.frames == 0 && group.is_empty();
        let mut broken = link_error(&frame.header, last, header.epoch, first);
        if first && frame.header.lsn != header.base {
            broken = Some(format!(
                "its first frame is {}, not its base LSN",
                frame.header.lsn
            ));
        }
        if !group.is_empty() && frame.header.flags.contains(Flags::AFTER_SYNC) {
            broken = Some(format!(
                "the group before frame {} is not whole",
                frame.header.lsn
            ));
        }
        if let Some(what) = broken {
            return End::Damaged(Damage {
                offset: at as u64,
                what,
            });
        }
        last = frame.header.lsn;
        at += frame.header.len();
        group.push(frame);
        if !frame.header.flags.contains(Flags::MORE) {
            for frame in group.drain(..) {
                tally.add(&frame.header, frame.bytes);
            }
        }
    };
    let damage = match wrong {
        None if group.is_empty() => {
            return match footer {
                None => End::Open,
                Some(footer) if *footer == tally.footer() => End::Sealed,
                Some(footer) => End::Damaged(Damage {
                    offset: footer.frames_end,
                    what: "the footer is not that of the frames before it".to_owned(),
                }),
            };
        }
        None => Damage {
            offset: tally.end,
            what: "the last group is not whole".to_owned(),
        },
        Some(what) => Damage {
            offset: at as u64,
            what,
        },
    };
    if footer.is_some() {
        return End::Damaged(damage);
    }
    match find_frame(bytes, at, last, true) {
        Some(later) => {
            let what = format!(
                "{}, and yet a frame at offset {later} proves it was durable",
                damage.what
            );
            End::Damaged(Damage { what, ..damage })
        }
        None => End::Torn(damage),
    }
}

/// Whether there is nothing but zeros.
fn is_zero(bytes: &[u8]) -> bool {
    // In pieces, because a loop that may end at every byte is not made into wide instructions.
    bytes
        .chunks(4_096)
        .all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Checks every byte of a sealed segment: header, frames, chain, footer, digest.
///
/// # Errors
/// [`Damage`], with the offset.
pub fn verify_segment(bytes: &[u8]) -> Result<(SegmentHeader, SegmentInfo), Damage> {
    let damage = |offset, what: &dyn ToString| Damage {
        offset,
        what: what.to_string(),
    };
    let header = SegmentHeader::parse(bytes).map_err(|error| damage(0, &error))?;
    let scan = scan(bytes, header.base).map_err(|error| damage(0, &error))?;
    match (scan.end, scan.footer) {
        (End::Sealed, Some(footer)) => {
            Ok((header, SegmentInfo::sealed(&header, &footer, bytes.len() as u64)))
        }
        (End::Torn(damage) | End::Headless(damage) | End::Damaged(damage), _) => Err(damage),
        (End::Open | End::Sealed, _) => Err(damage(bytes.len() as u64, &"it has no footer")),
    }
}

/// Header and footer of a sealed segment, reading nothing in between. `None` if either is not as it should be.
pub(super) fn ends_of_sealed(
    file: &dyn StorageFile,
) -> io::Result<Option<(SegmentHeader, SegmentFooter, u64)>> {
    let len = file.len()?;
    let Some(trailer_at) = len.checked_sub(SEGMENT_TRAILER_BYTES as u64) else {
        return Ok(None);
    };
    let mut head = vec![0; SEGMENT_HEADER_BYTES.min(usize::try_from(len).unwrap_or(0))];
    file.read_at(0, &mut head)?;
    let Ok(header) = SegmentHeader::parse(&head) else {
        return Ok(None);
    };
    let mut trailer = vec![0; SEGMENT_TRAILER_BYTES];
    file.read_at(trailer_at, &mut trailer)?;
    let Some(footer_len) = SegmentFooter::len_by_trailer(&trailer, len) else {
        return Ok(None);
    };
    let mut footer = vec![0; footer_len];
    file.read_at(len.saturating_sub(footer_len as u64), &mut footer)?;
    Ok(SegmentFooter::parse(&footer, len).map(|footer| (header, footer, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_decides_row_by_row() {
        let d = || Damage {
            offset: 70,
            what: "x".to_owned(),
        };
        for (end, newest, action) in [
            (End::Sealed, true, Action::Keep),
            (End::Sealed, false, Action::Keep),
            (End::Open, true, Action::Seal),
            (End::Torn(d()), true, Action::Cut(d())),
            (End::Torn(d()), false, Action::Refuse(d())),
            (End::Headless(d()), true, Action::Remove(d())),
            (End::Headless(d()), false, Action::Refuse(d())),
            (End::Damaged(d()), true, Action::Refuse(d())),
            (End::Damaged(d()), false, Action::Refuse(d())),
        ] {
            assert_eq!(decide(end.clone(), newest), action, "{end:?}, newest: {newest}");
        }
        assert!(matches!(decide(End::Open, false), Action::Refuse(_)));
    }
}
