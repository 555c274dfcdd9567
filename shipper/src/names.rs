//! Names of the objects in a replica, and the small identities that appear in them.
//!
//! ```text
//! log.json                         which log this is
//! wal/<ordinal, 16 hex>            chunks of the live tail
//! seg/<base LSN, 16 hex>           sealed segments (with `-<epoch>` if an earlier reign left another object there)
//! ckpt/<LSN, 16 hex>/<epoch>-<file>    view copies (`c<compaction>-` before the file once the log was compacted)
//! manifest/<generation, 16 hex>    what is live
//! readers, tiers                   who reads, and what was moved to cheaper tiers; replaced, and of no truth
//! ```
//! Fixed-width hex makes the order of names the order of numbers, so a listing can start after any of them.

use std::fmt;

use engine::clock::Entropy;
use engine::log::{Epoch, Lsn};

/// The object that says which log the replica holds.
pub const LOG_OBJECT: &str = "log.json";
/// Prefix of all chunks.
pub const WAL_PREFIX: &str = "wal/";
/// Prefix of all sealed segments.
pub const SEGMENT_PREFIX: &str = "seg/";
/// Prefix of all checkpoint files.
pub const CHECKPOINT_PREFIX: &str = "ckpt/";
/// Prefix of all manifests.
pub const MANIFEST_PREFIX: &str = "manifest/";

/// A chunk's number in the chain that one writer at a time can extend. Never reused; a fence leaves a gap after itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ordinal(pub u64);

impl Ordinal {
    /// Where every log's chain begins.
    pub const FIRST: Ordinal = Ordinal(1);

    /// The ordinal `by` further on; saturates, which no real chain reaches.
    #[must_use]
    pub fn plus(self, by: u64) -> Ordinal {
        Ordinal(self.0.saturating_add(by))
    }

    /// The name of this chunk's object.
    #[must_use]
    pub fn object_name(self) -> String {
        format!("{WAL_PREFIX}{:016x}", self.0)
    }

    /// The ordinal in a chunk's name, or `None` if it is not a chunk's name.
    #[must_use]
    pub fn from_object_name(name: &str) -> Option<Ordinal> {
        parse_hex16(name.strip_prefix(WAL_PREFIX)?).map(Ordinal)
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A manifest's number: each one is derived from its predecessor and replaces it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// Before the first manifest.
    pub const NONE: Generation = Generation(0);

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }

    /// The name of this manifest's object.
    #[must_use]
    pub fn object_name(self) -> String {
        format!("{MANIFEST_PREFIX}{:016x}", self.0)
    }

    /// The generation in a manifest's name, or `None` if it is not a manifest's name.
    #[must_use]
    pub fn from_object_name(name: &str) -> Option<Generation> {
        parse_hex16(name.strip_prefix(MANIFEST_PREFIX)?).map(Generation)
    }
}

/// 16 random bytes that name one process's attempt to be the writer; a chunk carries them, so that a writer whose
/// answer got lost can tell its own object from somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterId(pub [u8; 16]);

impl WriterId {
    /// A fresh identity.
    ///
    /// # Errors
    /// The source of randomness is not available.
    pub fn random(entropy: &dyn Entropy) -> std::io::Result<WriterId> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        Ok(WriterId(bytes))
    }

    /// The identity written as 32 hex digits, or `None`.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<WriterId> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(WriterId)
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterId({self})")
    }
}

/// The usual name of a sealed segment's object.
#[must_use]
pub fn segment_object(base: Lsn) -> String {
    format!("{SEGMENT_PREFIX}{:016x}", base.get())
}

/// The name to use when an earlier reign left a different object under [`segment_object`], and for compacted segments.
#[must_use]
pub fn segment_object_of_epoch(base: Lsn, epoch: Epoch) -> String {
    format!("{SEGMENT_PREFIX}{:016x}-{:x}", base.get(), epoch.0)
}

/// The reign in the name of a segment's object, if there is one in it.
#[must_use]
pub fn segment_epoch(object: &str) -> Option<Epoch> {
    let epoch = object.strip_prefix(SEGMENT_PREFIX)?.split_once('-')?.1;
    u64::from_str_radix(epoch, 16).ok().map(Epoch)
}

/// The name of one file of a checkpoint. The epoch keeps two reigns that took a checkpoint at the same LSN apart, and the number
/// of the log's last compaction (zero: none) two that one reign took before and after it.
#[must_use]
pub fn checkpoint_object(lsn: Lsn, epoch: Epoch, compaction: u32, file: &str) -> String {
    let of = match compaction {
        0 => String::new(),
        number => format!("c{number:x}-"),
    };
    format!("{CHECKPOINT_PREFIX}{:016x}/{:x}-{of}{file}", lsn.get(), epoch.0)
}

/// The reign in the name of a checkpoint's file, or `None` if it is no such name.
#[must_use]
pub fn checkpoint_epoch(object: &str) -> Option<Epoch> {
    let file = object.strip_prefix(CHECKPOINT_PREFIX)?.split_once('/')?.1;
    u64::from_str_radix(file.split_once('-')?.0, 16).ok().map(Epoch)
}

/// True for a checkpoint file's name that is one plain path component: letters, digits, `.`, `-`, `_`, and not a
/// dot name. Names come back from the replica at a restore, so they must not be able to leave the directory.
#[must_use]
pub fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn parse_hex16(text: &str) -> Option<u64> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == 16 && text.bytes().all(lower_hex))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_like_their_numbers_and_come_back() {
        for (a, b) in [(0, 1), (9, 16), (255, 256), (1 << 40, u64::MAX)] {
            assert!(Ordinal(a).object_name() < Ordinal(b).object_name());
            assert_eq!(
                Ordinal::from_object_name(&Ordinal(b).object_name()),
                Some(Ordinal(b))
            );
            assert_eq!(
                Generation::from_object_name(&Generation(a).object_name()),
                Some(Generation(a))
            );
        }
    }

    #[test]
    fn names_of_other_things_are_not_numbers() {
        for name in [
            "wal/",
            "wal/1",
            "wal/000000000000000G",
            "wal/00000000000000AA",
            "wal/+000000000000001",
            "seg/0000000000000001",
        ] {
            assert_eq!(Ordinal::from_object_name(name), None, "{name}");
        }
    }

    #[test]
    fn file_names_that_could_leave_a_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "../a", ".hidden", "a\\b", "a\0b"] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
        assert!(is_plain_file_name("index.redb"));
    }
}
