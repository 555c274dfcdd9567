//! The file `away`: which segments may be missing, and what a start must know of each.
//!
//! ```text
//! little-endian
//!   0  [8]   magic "AzPdsAwy"
//!   8  u16   version, 1
//!  10  u16   zero
//!  12  u32   entries
//!  16  [16]  log id
//!  32  entries, by base: u64 base, u64 prev, u64 last LSN, u64 epoch, u64 frames, u64 bytes, u64 bytes of the object,
//!            [32] SHA-256 of the segment file, u32 compaction, u16 bytes of the object's name, the name
//!   …  u32   crc32 of everything before
//! ```

use std::io;
use std::path::Path;

use super::super::lsn::{Epoch, LogId, Lsn};
use super::super::segment::SegmentInfo;
use super::AwaySegment;
use crate::storage::{OpenMode, Storage};

/// The name of the list of away segments in the log's directory.
pub const AWAY_NAME: &str = "away";
const AWAY_TEMP_NAME: &str = "away.tmp";
const MAGIC: &[u8; 8] = b"AzPdsAwy";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
const ENTRY_BYTES: usize = 94;
const LIST_BYTES_MAX: u64 = 256 << 20;

fn encode<'a>(entries: impl Iterator<Item = &'a AwaySegment>) -> io::Result<Vec<u8>> {
    let too_long = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the list of away segments is too long",
        )
    };
    let mut raw = Vec::new();
    raw.extend_from_slice(MAGIC);
    raw.extend_from_slice(&VERSION.to_le_bytes());
    raw.extend_from_slice(&[0; 22]);
    let mut count = 0u32;
    for away in entries {
        let info = &away.info;
        if let Some(log_id) = raw.get_mut(16..HEAD_BYTES) {
            log_id.copy_from_slice(&away.log_id.0);
        }
        for number in [
            info.base.get(),
            info.prev.get(),
            info.last.get(),
            info.epoch.0,
            info.frames,
            info.bytes,
            away.object_bytes,
        ] {
            raw.extend_from_slice(&number.to_le_bytes());
        }
        raw.extend_from_slice(&away.file_sha256);
        raw.extend_from_slice(&info.compaction.to_le_bytes());
        let name = away.object.as_bytes();
        let len = u16::try_from(name.len()).map_err(|_| too_long())?;
        raw.extend_from_slice(&len.to_le_bytes());
        raw.extend_from_slice(name);
        count = count.checked_add(1).ok_or_else(too_long)?;
    }
    if let Some(field) = raw.get_mut(12..16) {
        field.copy_from_slice(&count.to_le_bytes());
    }
    let crc = crc32fast::hash(&raw);
    raw.extend_from_slice(&crc.to_le_bytes());
    if raw.len() as u64 > LIST_BYTES_MAX {
        return Err(too_long());
    }
    Ok(raw)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (value, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*value)
}

fn decode(raw: &[u8]) -> Result<Vec<AwaySegment>, &'static str> {
    let (checked, crc) = raw
        .split_last_chunk::<4>()
        .filter(|(checked, _)| checked.len() >= HEAD_BYTES)
        .ok_or("the list of away segments is too short")?;
    if !checked.starts_with(MAGIC) || crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
        return Err("the list of away segments is damaged");
    }
    let mut rest = checked.get(8..).unwrap_or_default();
    if take(&mut rest).map(u16::from_le_bytes) != Some(VERSION) {
        return Err("the list of away segments is of a newer program");
    }
    let contradiction = "the list of away segments contradicts itself";
    let _zero: [u8; 2] = take(&mut rest).ok_or(contradiction)?;
    let count = take(&mut rest).map(u32::from_le_bytes).ok_or(contradiction)?;
    let log_id = LogId(take(&mut rest).ok_or(contradiction)?);
    let mut entries: Vec<AwaySegment> = Vec::with_capacity((count as usize).min(raw.len() / ENTRY_BYTES));
    for _ in 0..count {
        let entry = entry(&mut rest, log_id).ok_or(contradiction)?;
        if entries
            .last()
            .is_some_and(|before| before.info.base >= entry.info.base)
        {
            return Err(contradiction);
        }
        entries.push(entry);
    }
    if rest.is_empty() {
        Ok(entries)
    } else {
        Err(contradiction)
    }
}

fn entry(rest: &mut &[u8], log_id: LogId) -> Option<AwaySegment> {
    let mut number = || take(rest).map(u64::from_le_bytes);
    let (base, prev, last) = (Lsn::new(number()?)?, Lsn::new(number()?)?, Lsn::new(number()?)?);
    let (epoch, frames, bytes, object_bytes) = (Epoch(number()?), number()?, number()?, number()?);
    let file_sha256 = take(rest)?;
    let compaction = take(rest).map(u32::from_le_bytes)?;
    let len = take(rest).map(u16::from_le_bytes)?;
    let (name, after) = rest.split_at_checked(usize::from(len))?;
    *rest = after;
    let info = SegmentInfo {
        base,
        first: base,
        last,
        prev,
        epoch,
        sealed: true,
        bytes,
        frames,
        sha256: None,
        compaction,
    };
    (prev < base && base <= last).then_some(AwaySegment {
        log_id,
        info,
        file_sha256,
        object: String::from_utf8(name.to_vec()).ok()?,
        object_bytes,
    })
}

/// What the list in `dir` says, if there is one, or what is wrong with it.
pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> io::Result<Result<Vec<AwaySegment>, &'static str>> {
    let path = dir.join(AWAY_NAME);
    if !storage.exists(&path)? {
        return Ok(Ok(Vec::new()));
    }
    let file = storage.open(&path, OpenMode::Read)?;
    let len = file.len()?.min(LIST_BYTES_MAX);
    let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_at(0, &mut raw)?;
    Ok(decode(&raw))
}

/// Puts a new list in the place of the old one, durably.
pub(crate) fn write<'a>(
    storage: &dyn Storage,
    dir: &Path,
    entries: impl Iterator<Item = &'a AwaySegment>,
) -> io::Result<()> {
    let temp = dir.join(AWAY_TEMP_NAME);
    if storage.exists(&temp)? {
        storage.remove(&temp)?;
    }
    let file = storage.open(&temp, OpenMode::CreateNew)?;
    file.write_at(0, &encode(entries)?)?;
    file.sync_data()?;
    storage.rename(&temp, &dir.join(AWAY_NAME))?;
    storage.sync_dir(dir)
}

/// The segments that the list in `dir` names, ascending: each may be missing there. For those who look at a directory without
/// its lock.
///
/// # Errors
/// The list is damaged or cannot be read.
pub fn away_segments(storage: &dyn Storage, dir: &Path) -> io::Result<Vec<AwaySegment>> {
    read(storage, dir)?.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn away(n: u64) -> AwaySegment {
        AwaySegment {
            log_id: LogId([7; 16]),
            info: SegmentInfo {
                base: Lsn::saturating(n * 100 + 1),
                first: Lsn::saturating(n * 100 + 1),
                last: Lsn::saturating(n * 100 + 100),
                prev: Lsn::saturating(n * 100),
                epoch: Epoch(n + 1),
                sealed: true,
                bytes: 1 << n,
                frames: n,
                sha256: None,
                compaction: 3,
            },
            file_sha256: [n as u8; 32],
            object: format!("seg/{n}"),
            object_bytes: n * 7,
        }
    }

    #[test]
    fn an_entry_has_the_bytes_that_the_format_says() {
        let raw = encode([away(1)].iter()).unwrap();
        assert_eq!(raw.len(), HEAD_BYTES + ENTRY_BYTES + 5 + 4);
        assert_eq!(raw[32..40], 101u64.to_le_bytes());
        assert_eq!(raw[32 + ENTRY_BYTES..][..5], *b"seg/1");
    }

    #[test]
    fn a_list_has_the_bytes_of_the_golden_file() {
        let entries = [away(1), away(2)];
        let raw = encode(entries.iter()).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/away-v1.bin");
        if std::env::var_os("PDS_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &raw).unwrap();
        }
        assert_eq!(raw, std::fs::read(&golden).unwrap(), "the format changed");
    }

    proptest! {
        #[test]
        fn a_list_comes_back_and_every_flipped_bit_is_noticed(count in 0u64..6, bit: usize) {
            let entries: Vec<_> = (0..count).map(away).collect();
            let mut raw = encode(entries.iter()).unwrap();
            prop_assert_eq!(decode(&raw), Ok(entries));
            let bit = bit % (raw.len() * 8);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&raw).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, begins_well: bool) {
            let _ = decode(&bytes);
            if begins_well {
                bytes.splice(0..0, *b"AzPdsAwy\x01\0\0\0\x02\0\0\0");
                bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
                let _ = decode(&bytes);
            }
        }
    }
}
