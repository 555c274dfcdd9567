//! The bytes of `checkpoint.bin`, which names what a checkpoint consists of.
//!
//! ```text
//! little-endian
//!  0  [8]  magic "PDSCKPT\n"
//!  8  u32  format version, 1          12  u32  length of the whole file, bytes
//! 16  u64  LSN                        24  u64  epoch of the writer that took it
//! 32  [16] log id
//! 48  u32  number of files, 1..=16    52  u32  zero
//! 56  for each file, names ascending:
//!       u16 length of the name, 1..=64; the name: a-z 0-9 . _ -, not beginning with a dot
//!       u64 size in bytes; [32] SHA-256 of the content
//! end u32  CRC-32 of everything before
//! ```

use crate::log::{Epoch, LogId, Lsn};

/// Largest `checkpoint.bin` that is read, bytes.
pub const MANIFEST_BYTES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"PDSCKPT\n";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 56;
const CRC_BYTES: usize = 4;
const FILES_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 64;
const _: () =
    assert!(FIXED_BYTES + FILES_MAX * (2 + NAME_BYTES_MAX + 8 + 32) + CRC_BYTES <= MANIFEST_BYTES_MAX);

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Its name inside the checkpoint's directory.
    pub name: String,
    /// Its size, bytes.
    pub size: u64,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
}

/// What `checkpoint.bin` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointManifest {
    /// The copies hold every entry up to this one, and none after it.
    pub lsn: Lsn,
    /// The reign in which it was taken.
    pub epoch: Epoch,
    /// The log it was folded from.
    pub log_id: LogId,
    /// The copies, names ascending.
    pub files: Vec<CheckpointFile>,
}

/// Why bytes are not a `checkpoint.bin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// They end early, or go on after the end.
    #[error("{found} bytes where {expected} are expected")]
    Length {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// They begin with something else.
    #[error("not a checkpoint manifest")]
    Magic,
    /// A newer program wrote them.
    #[error("unknown format version {version}")]
    Version {
        /// The version found.
        version: u32,
    },
    /// Some of them changed since they were written.
    #[error("checksum mismatch")]
    Checksum,
    /// The checksum holds but a field is out of its bounds.
    #[error("invalid {field}")]
    Field {
        /// Which one.
        field: &'static str,
    },
}

impl CheckpointManifest {
    /// The bytes of `checkpoint.bin`.
    ///
    /// # Errors
    /// A file name, or the number of files, is out of bounds, or the names do not ascend.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.length().to_le_bytes());
        bytes.extend_from_slice(&self.lsn.get().to_le_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.log_id.0);
        bytes.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for file in &self.files {
            bytes.extend_from_slice(&(file.name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(file.name.as_bytes());
            bytes.extend_from_slice(&file.size.to_le_bytes());
            bytes.extend_from_slice(&file.sha256);
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// Reads the bytes of a `checkpoint.bin`.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<CheckpointManifest, ManifestError> {
        let mut rest = Rest(bytes);
        let least = FIXED_BYTES + CRC_BYTES;
        if bytes.len() < least || bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Length {
                found: bytes.len(),
                expected: least,
            });
        }
        if rest.array::<8>()? != MAGIC {
            return Err(ManifestError::Magic);
        }
        let version = rest.u32()?;
        if version != VERSION {
            return Err(ManifestError::Version { version });
        }
        let expected = rest.u32()? as usize;
        if expected != bytes.len() {
            return Err(ManifestError::Length {
                found: bytes.len(),
                expected,
            });
        }
        let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(ManifestError::Checksum);
        }
        let lsn = Lsn::new(rest.u64()?).ok_or(ManifestError::Field { field: "LSN" })?;
        let epoch = Epoch(rest.u64()?);
        let log_id = LogId(rest.array()?);
        let count = rest.u32()? as usize;
        if rest.u32()? != 0 || count > FILES_MAX {
            return Err(ManifestError::Field {
                field: "number of files",
            });
        }
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(rest.array()?));
            let name = std::str::from_utf8(rest.take(length)?)
                .map_err(|_| ManifestError::Field { field: "file name" })?
                .to_owned();
            files.push(CheckpointFile {
                name,
                size: rest.u64()?,
                sha256: rest.array()?,
            });
        }
        if rest.0.len() != CRC_BYTES {
            return Err(ManifestError::Field {
                field: "number of files",
            });
        }
        let manifest = CheckpointManifest {
            lsn,
            epoch,
            log_id,
            files,
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn length(&self) -> u32 {
        let files: usize = self.files.iter().map(|file| 2 + file.name.len() + 8 + 32).sum();
        (FIXED_BYTES + files + CRC_BYTES) as u32
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return Err(ManifestError::Field {
                field: "number of files",
            });
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let sound = |name: &str| {
            (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
        };
        let ascending = self
            .files
            .iter()
            .zip(self.files.iter().skip(1))
            .all(|(before, after)| before.name < after.name);
        if self.files.iter().all(|file| sound(&file.name)) && ascending {
            Ok(())
        } else {
            Err(ManifestError::Field { field: "file name" })
        }
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ManifestError> {
        let short = ManifestError::Field {
            field: "length of a field",
        };
        let (taken, rest) = self.0.split_at_checked(count).ok_or(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, ManifestError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ManifestError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> CheckpointManifest {
        CheckpointManifest {
            lsn: Lsn::new(0x0006_47a5_1b2c_3d4e).unwrap(),
            epoch: Epoch(3),
            log_id: LogId([0xab; 16]),
            files: vec![
                CheckpointFile {
                    name: "account.sqlite".into(),
                    size: 4096,
                    sha256: [1; 32],
                },
                CheckpointFile {
                    name: "index.redb".into(),
                    size: 1 << 33,
                    sha256: [2; 32],
                },
            ],
        }
    }

    /// The bytes are on disks and in replicas: a change here is a new format version.
    #[test]
    fn the_bytes_are_those_of_the_format_document() {
        let expected = concat!(
            "504453434b50540a",
            "01000000",
            "a8000000",
            "4e3d2c1ba5470600",
            "0300000000000000",
            "abababababababababababababababab",
            "02000000",
            "00000000",
            "0e00",
            "6163636f756e742e73716c697465",
            "0010000000000000",
            "0101010101010101010101010101010101010101010101010101010101010101",
            "0a00",
            "696e6465782e72656462",
            "0000000002000000",
            "0202020202020202020202020202020202020202020202020202020202020202",
        );
        let bytes = sample().to_bytes().unwrap();
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        assert_eq!(data_encoding::HEXLOWER.encode(body), expected);
        assert_eq!(data_encoding::HEXLOWER.encode(crc), "c20081a6");
        assert_eq!(CheckpointManifest::from_bytes(&bytes).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = sample().to_bytes().unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(
                    CheckpointManifest::from_bytes(&flipped).is_err(),
                    "bit {bit} of byte {at}"
                );
            }
            assert!(
                CheckpointManifest::from_bytes(&bytes[..at]).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "A", "a\\b", ".hidden"] {
            let mut manifest = sample();
            manifest.files = vec![CheckpointFile {
                name: name.into(),
                size: 0,
                sha256: [0; 32],
            }];
            assert_eq!(
                manifest.to_bytes(),
                Err(ManifestError::Field { field: "file name" }),
                "{name:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            lsn in 0..(1_u64 << 53), epoch: u64, id: [u8; 16],
            files in proptest::collection::btree_map("[a-z0-9_-][a-z0-9._-]{0,63}", any::<(u64, [u8; 32])>(), 1..=16),
        ) {
            let manifest = CheckpointManifest {
                lsn: Lsn::new(lsn).unwrap(),
                epoch: Epoch(epoch),
                log_id: LogId(id),
                files: files
                    .into_iter()
                    .map(|(name, (size, sha256))| CheckpointFile { name, size, sha256 })
                    .collect(),
            };
            prop_assert_eq!(CheckpointManifest::from_bytes(&manifest.to_bytes().unwrap()), Ok(manifest));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = CheckpointManifest::from_bytes(&bytes);
        }
    }
}
