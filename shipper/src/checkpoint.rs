//! Shipping copies of the views.
//!
//! | crash after | the replica has | and |
//! |---|---|---|
//! | some files | objects that no manifest names | the sweep after the next start's first manifest deletes them |
//! | all files | the same | the same |
//! | the manifest | the checkpoint | the ones it displaced are swept likewise |

use std::io::Read;
use std::path::{Path, PathBuf};

use engine::log::Lsn;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::manifest::MAX_CHECKPOINT_FILES;
use crate::names::is_plain_file_name;
use crate::store::StoreError;

/// Why a checkpoint was not published.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is ahead of what is remotely durable; try again when the watermark has passed it.
    #[error("the checkpoint is at {lsn}, but the replica only at {remote}")]
    NotDurable {
        /// The checkpoint's.
        lsn: Lsn,
        /// The watermark.
        remote: Lsn,
    },
    /// It is not newer than the newest one in the replica.
    #[error("the replica has a checkpoint at {newest} already")]
    NotNewer {
        /// That one's LSN.
        newest: Lsn,
    },
    /// A local file cannot be read.
    #[error("reading {path}")]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The directory has something that a checkpoint cannot have.
    #[error("{path}: {what}")]
    Unsuitable {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The store failed, for longer than it is worth waiting.
    #[error("shipping {object}")]
    Store {
        /// The object.
        object: String,
        /// The store's error.
        #[source]
        source: StoreError,
    },
    /// Publishing the manifest failed.
    #[error("publishing the manifest: {0}")]
    Manifest(String),
    /// The shipper has stopped.
    #[error("the shipper has stopped")]
    Stopped,
}

pub(crate) struct CheckpointRequest {
    pub(crate) dir: PathBuf,
    pub(crate) lsn: Lsn,
    /// No older one stays.
    pub(crate) alone: bool,
    pub(crate) reply: oneshot::Sender<Result<(), CheckpointError>>,
}

/// A file and what it holds.
pub(crate) struct LocalFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) sha256: [u8; 32],
}

/// The files of a checkpoint's directory, by name. Blocks; reads every file.
pub(crate) fn read_dir(dir: &Path) -> Result<Vec<LocalFile>, CheckpointError> {
    let local = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Local { path, source }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(local(dir))? {
        let entry = entry.map_err(local(dir))?;
        let path = entry.path();
        let unsuitable = |what| CheckpointError::Unsuitable {
            path: path.clone(),
            what,
        };
        if !entry.file_type().map_err(local(&path))?.is_file() {
            return Err(unsuitable("a checkpoint has files only"));
        }
        let name = entry
            .file_name()
            .into_string()
            .ok()
            .filter(|name| is_plain_file_name(name));
        let name = name.ok_or_else(|| unsuitable("not a plain file name"))?;
        let (size, sha256) = digest_file(&path).map_err(local(&path))?;
        files.push(LocalFile {
            name,
            path,
            size,
            sha256,
        });
        if files.len() > MAX_CHECKPOINT_FILES {
            return Err(CheckpointError::Unsuitable {
                path: dir.to_owned(),
                what: "too many files",
            });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Size and sha-256 of a file. Blocks.
pub(crate) fn digest_file(path: &Path) -> std::io::Result<(u64, [u8; 32])> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0u64;
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, digest.finalize().into())),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        digest.update(buffer.get(..read).unwrap_or_default());
        size += read as u64;
    }
}
