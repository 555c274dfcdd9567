//! Fetching one file of a checkpoint: its pieces come in parallel, and are digested, unpacked and written beside that.

use std::io;
use std::path::Path;

use futures_util::TryStreamExt;
use tokio::sync::mpsc;

use super::object::{Digested, Stored, UnpackError, Unpacker};
use crate::manifest::FileEntry;
use crate::requests::Requests;
use crate::store::{ObjectName, StoreError, pieces};

/// Pieces that wait for being unpacked, beside those in flight.
const PIECES_WAITING: usize = 1;

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The store failed, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is there, and is another.
    #[error("{object} is not what the manifest says: {what}")]
    NotAsNamed { object: String, what: &'static str },
    /// The local disk failed.
    #[error("writing a file of a checkpoint")]
    Local(#[source] io::Error),
}

/// Fetches a file to `path`, replacing it, and syncs it; its bytes and digest. Memory: the pieces in flight and a few more.
/// After an error the file holds a part.
pub(crate) async fn fetch(requests: &Requests, entry: &FileEntry, path: &Path) -> Result<Stored, FetchError> {
    let name = ObjectName::new(entry.object.clone()).map_err(StoreError::from)?;
    let store = requests.store();
    let (waiting, mut arrived) = mpsc::channel(PIECES_WAITING);
    let fetching = requests.whole_file(async move {
        let policy = requests.policy();
        let mut pieces = std::pin::pin!(pieces(&**store, &name, entry.stored_bytes, policy));
        while let Some(piece) = pieces.try_next().await? {
            if waiting.send(piece).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    let unpacking = async move {
        let (path, owned) = (path.to_owned(), entry.clone());
        let mut unpacker = blocking(entry, move || {
            let file = std::fs::File::create(path)?;
            Ok(Unpacker::new(owned, Digested::new(file))?)
        })
        .await?;
        while let Some(piece) = arrived.recv().await {
            unpacker = blocking(entry, move || {
                unpacker.push(&piece)?;
                Ok(unpacker)
            })
            .await?;
        }
        blocking(entry, move || {
            let (file, raw) = unpacker.finish()?.finish();
            file.sync_all()?;
            Ok(raw)
        })
        .await
    };
    let (fetched, unpacked) = tokio::join!(fetching, unpacking);
    match fetched {
        // What was unpacked ends early for that.
        Err(StoreError::OutOfRange { .. }) => Err(not_as_named(entry, "the object is too short")),
        Err(error) => Err(error.into()),
        Ok(()) => unpacked,
    }
}

fn not_as_named(entry: &FileEntry, what: &'static str) -> FetchError {
    FetchError::NotAsNamed {
        object: entry.object.clone(),
        what,
    }
}

async fn blocking<T: Send + 'static>(
    entry: &FileEntry,
    work: impl FnOnce() -> Result<T, UnpackError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| match error {
            UnpackError::NotAsNamed(what) => not_as_named(entry, what),
            UnpackError::Io(error) => FetchError::Local(error),
        }),
        Err(error) => Err(FetchError::Local(io::Error::other(error))),
    }
}
