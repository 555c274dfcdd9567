//! Shipping copies of the views.
//!
//! | crash after | the replica has | and |
//! |---|---|---|
//! | some files | objects that no manifest names | the sweep after the next start's first manifest deletes them |
//! | all files | the same | the same |
//! | the manifest | the checkpoint | the ones it displaced are swept likewise |
//!
//! Large files are packed first, each into a temporary file, which a crash leaves to whoever empties the shipper's directory for those
//! at the next start.

pub(crate) mod fetch;
pub(crate) mod object;

use std::path::{Path, PathBuf};

use engine::log::Lsn;
use tokio::sync::oneshot;

use object::{PrepareError, Prepared};
pub use object::{UnpackError, Unpacker, check_object};

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

/// How much the thread that packs stands back behind those of commits, as a Unix niceness.
const NICENESS: i32 = 19;

/// A file of a checkpoint's directory.
pub(crate) struct LocalFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// The files of a checkpoint's directory, by name. Blocks.
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
        files.push(LocalFile { name, path });
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

/// Packs a file for shipping if that is worth it. What is large is packed by a thread that stands back behind commits; blocks for as
/// long.
pub(crate) fn prepare(path: &Path, temp_dir: &Path) -> Result<Prepared, CheckpointError> {
    let local = |path: &Path, source| CheckpointError::Local {
        path: path.to_owned(),
        source,
    };
    let prepared = match object::is_large(path).map_err(|error| local(path, error))? {
        false => object::plain(path),
        true => std::thread::scope(|scope| {
            let packing = std::thread::Builder::new().name("pack".to_owned());
            let packing = packing.spawn_scoped(scope, || {
                // Without it the work is done all the same.
                let _evenly = rustix::process::setpriority_process(None, NICENESS);
                object::prepare(path, temp_dir)
            });
            match packing.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(prepared)) => prepared,
                Ok(Err(_)) => Err(PrepareError::File(std::io::Error::other("packing panicked"))),
                Err(error) => Err(PrepareError::Temp(error)),
            }
        }),
    };
    prepared.map_err(|error| match error {
        PrepareError::File(error) => local(path, error),
        PrepareError::Temp(error) => local(temp_dir, error),
    })
}
