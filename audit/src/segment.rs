//! One segment file, read from beginning to end with the memory of one frame. Damage is told, and stepped over where
//! that is possible, so that one look finds all of it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::log::{
    FRAME_HEADER_BYTES, Flags, Frame, FrameError, FrameHeader, FrameRef, Lsn, SEGMENT_HEADER_BYTES,
    SEGMENT_TRAILER_BYTES, SegmentFooter, SegmentHeader, SegmentHeaderError,
};
use sha2::{Digest, Sha256};

const READ_BYTES: usize = 1 << 20;

/// Why a segment file cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The header is damaged, or of a newer program.
    #[error("segment {base}")]
    Header {
        /// By the file's name.
        base: Lsn,
        /// What is wrong.
        #[source]
        source: SegmentHeaderError,
    },
    /// The disk failed.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl SegmentError {
    /// Whether only a newer program can read the file.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        matches!(
            self,
            SegmentError::Header {
                source: SegmentHeaderError::UnknownVersion { .. },
                ..
            }
        )
    }
}

/// How a file ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Footer {
    /// It is not sealed.
    None,
    /// It is sealed, and the footer is whole.
    Whole(SegmentFooter),
    /// It ends as a sealed file does, but the footer before that end is damaged.
    Damaged,
}

/// What comes next in a segment.
#[derive(Debug)]
pub enum Step {
    /// A frame whose checksums hold.
    Frame(Frame),
    /// A frame with a sound header and a damaged part; the next one follows after it.
    Damaged {
        /// Its header.
        header: FrameHeader,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        bytes: Bytes,
        /// What is wrong with it.
        error: FrameError,
    },
    /// Bytes that are no frame. What follows, if anything does, is found by the footer's index.
    Broken {
        /// Where they begin.
        offset: u64,
        /// Where reading goes on; nowhere if `None`.
        resumes_at: Option<u64>,
        /// What is wrong there.
        what: String,
    },
}

/// A segment file behind a moving position.
pub struct SegmentReader {
    path: PathBuf,
    base: Lsn,
    file: BufReader<File>,
    /// Its header.
    pub header: SegmentHeader,
    /// Its end.
    pub footer: Footer,
    /// Length of the file when it was opened.
    pub file_len: u64,
    /// Where the frames end, or may end at most: behind those of an open segment can be zeros that were written ahead, which
    /// are known when reading gets there.
    pub frames_end: u64,
    at: u64,
}

impl SegmentReader {
    /// Opens the file whose name says `base`.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn open(path: &Path, base: Lsn) -> Result<SegmentReader, SegmentError> {
        let io = |source| SegmentError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let file_len = file.metadata().map_err(io)?.len();
        let mut head = vec![0; SEGMENT_HEADER_BYTES.min(usize::try_from(file_len).unwrap_or(usize::MAX))];
        file.read_exact(&mut head).map_err(io)?;
        let header = SegmentHeader::parse(&head).map_err(|source| SegmentError::Header { base, source })?;
        let (footer, frames_end) = read_footer(&mut file, file_len).map_err(io)?;
        file.seek(SeekFrom::Start(SEGMENT_HEADER_BYTES as u64))
            .map_err(io)?;
        let file = BufReader::with_capacity(READ_BYTES, file);
        let (path, at) = (path.to_owned(), SEGMENT_HEADER_BYTES as u64);
        Ok(SegmentReader {
            path,
            base,
            file,
            header,
            footer,
            file_len,
            frames_end,
            at,
        })
    }

    /// Where the next frame begins.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Bytes of the segment: of the file, but without what is written ahead, as far as it was read.
    #[must_use]
    pub fn segment_len(&self) -> u64 {
        match self.footer {
            Footer::None => self.frames_end,
            Footer::Whole(_) | Footer::Damaged => self.file_len,
        }
    }

    /// Goes to a frame's offset, such as one of the footer's index.
    ///
    /// # Errors
    /// The disk's.
    pub fn seek(&mut self, offset: u64) -> Result<(), SegmentError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| self.io(source))?;
        self.at = offset;
        Ok(())
    }

    /// The next frame, or what is there instead; `None` at the end of the frames.
    ///
    /// # Errors
    /// The disk's.
    pub fn step(&mut self) -> Result<Option<Step>, SegmentError> {
        let left = self.frames_end.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        if left < FRAME_HEADER_BYTES as u64 {
            if self.ends_in_zeros(self.at)? {
                return Ok(None);
            }
            return self.broken(format!("{left} bytes are no frame"));
        }
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        self.read(&mut frame)?;
        let header = match FrameHeader::parse(&frame) {
            Ok(header) => header,
            Err(_) if self.ends_in_zeros(self.at)? => return Ok(None),
            Err(error) => return self.broken(error.to_string()),
        };
        let len = u64::from(header.frame_len);
        if len > left {
            return self.broken(format!("frame {} reaches beyond the end", header.lsn));
        }
        frame.resize(header.len(), 0);
        self.read(frame.get_mut(FRAME_HEADER_BYTES..).unwrap_or_default())?;
        let (offset, bytes) = (self.at, Bytes::from(frame));
        self.at += len;
        Ok(Some(match Frame::parse(&bytes, self.base, offset) {
            Ok(frame) => Step::Frame(frame),
            Err(error) => Step::Damaged {
                header,
                offset,
                bytes,
                error,
            },
        }))
    }

    /// Whether an open segment holds nothing but zeros from this offset, where a frame would begin: its writer wrote ahead, and the
    /// frames end here. Says so in `frames_end` then.
    fn ends_in_zeros(&mut self, from: u64) -> Result<bool, SegmentError> {
        if self.footer != Footer::None {
            return Ok(false);
        }
        self.seek(from)?;
        let mut left = self.frames_end.saturating_sub(from);
        let mut piece = vec![0; READ_BYTES];
        while left > 0 {
            let len = left.min(READ_BYTES as u64);
            let piece = piece
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            self.read(piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                self.seek(from)?;
                return Ok(false);
            }
            left -= len;
        }
        self.seek(from)?;
        self.frames_end = from;
        Ok(true)
    }

    fn broken(&mut self, what: String) -> Result<Option<Step>, SegmentError> {
        let offset = self.at;
        let resumes_at = match &self.footer {
            Footer::Whole(footer) => footer.index.iter().map(|(_, at)| *at).find(|at| *at > offset),
            Footer::None | Footer::Damaged => None,
        };
        self.seek(resumes_at.unwrap_or(self.frames_end))?;
        Ok(Some(Step::Broken {
            offset,
            resumes_at,
            what,
        }))
    }

    /// Offset of a frame behind `from` which proves that what is before it was durable: damage at `from` is then no torn
    /// tail. Reads the rest of the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn synced_frame_after(&mut self, from: u64, last: Lsn) -> Result<Option<u64>, SegmentError> {
        let back = self.at;
        self.seek(from)?;
        let mut rest = vec![0; usize::try_from(self.frames_end.saturating_sub(from)).unwrap_or(0)];
        self.read(&mut rest)?;
        self.seek(back)?;
        for at in 1..rest.len() {
            let Some(bytes) = rest.get(at..) else { break };
            // Most offsets fail here, before any checksum is computed: reserved bytes and unused flags are zero.
            let plausible = matches!(bytes.get(33..36), Some([flags, 0, 0]) if *flags < 8);
            if plausible
                && let Ok(frame) = FrameRef::parse(bytes)
                && frame.header.lsn > last
                && frame.header.flags.contains(Flags::AFTER_SYNC)
            {
                return Ok(Some(from + at as u64));
            }
        }
        Ok(None)
    }

    /// SHA-256 of everything before the footer.
    ///
    /// # Errors
    /// The disk's.
    pub fn digest(&mut self) -> Result<[u8; 32], SegmentError> {
        let back = self.at;
        self.seek(0)?;
        let (mut sha256, mut left) = (Sha256::new(), self.frames_end);
        let mut piece = vec![0; READ_BYTES];
        while left > 0 {
            let len = left.min(READ_BYTES as u64);
            let piece = piece
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            self.read(piece)?;
            sha256.update(&*piece);
            left -= len;
        }
        self.seek(back)?;
        Ok(sha256.finalize().into())
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<(), SegmentError> {
        self.file.read_exact(buf).map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> SegmentError {
        SegmentError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// The footer, and where the frames end.
fn read_footer(file: &mut File, file_len: u64) -> io::Result<(Footer, u64)> {
    let Some(trailer_at) = file_len.checked_sub((SEGMENT_TRAILER_BYTES + SEGMENT_HEADER_BYTES) as u64) else {
        return Ok((Footer::None, file_len));
    };
    let mut trailer = [0; SEGMENT_TRAILER_BYTES];
    file.seek(SeekFrom::Start(trailer_at + SEGMENT_HEADER_BYTES as u64))?;
    file.read_exact(&mut trailer)?;
    let Some(len) = SegmentFooter::len_by_trailer(&trailer, file_len) else {
        return Ok((Footer::None, file_len));
    };
    let begins = file_len.saturating_sub(len as u64);
    file.seek(SeekFrom::Start(begins))?;
    let mut footer = vec![0; len];
    file.read_exact(&mut footer)?;
    let footer = SegmentFooter::parse(&footer, file_len).map_or(Footer::Damaged, Footer::Whole);
    Ok((footer, begins))
}
