//! One object after another, a few at a time: checked, written once, read back.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use engine::log::LogId;
use engine::repo::{Cid, CidHasher};
use futures_util::{StreamExt, TryStreamExt};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use shipper::chunk::{self, ChunkHeader};
use shipper::manifest::{FileEntry, SegmentEntry};
use shipper::sealed::{self, SealedError};
use shipper::store::{ObjectName, ReplicaStore, RetryPolicy, StoreError, retry};
use tempfile::NamedTempFile;

/// Objects on their way at a time. Each passes through a file; a store's bound on what it has in memory for one (16 MiB) holds
/// for each.
const AT_A_TIME: usize = 4;

/// The time for one object, all tries together.
const OBJECT_TIME: Duration = Duration::from_secs(3_600);

/// What files are read in, in bytes.
const READ_BYTES: usize = 64 << 10;

/// An object of the source that is not what it must be. Copying it would spread the damage.
#[derive(Debug, thiserror::Error)]
#[error("{object} of the source: {what}")]
pub struct Damaged {
    pub object: String,
    pub what: String,
}

/// What an object must be, wherever it is.
#[derive(Clone, Debug)]
pub enum Content {
    Segment { entry: Box<SegmentEntry>, log_id: LogId },
    File(FileEntry),
    Chunk(Box<ChunkHeader>),
    Media(Cid),
}

/// An object to bring over.
#[derive(Clone, Debug)]
pub struct Object {
    pub name: ObjectName,
    /// Its bytes, for the bar.
    pub size: u64,
    pub content: Content,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It is there, and what it must be.
    There,
    /// The source does not have it.
    Missing,
}

/// How much was done.
#[derive(Debug, Default)]
pub struct Counts {
    copied: AtomicU64,
    copied_bytes: AtomicU64,
    there: AtomicU64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} objects copied ({} bytes), {} were there",
            of(&self.copied),
            of(&self.copied_bytes),
            of(&self.there)
        )
    }
}

/// Two stores, and the way between them.
pub struct Transfer {
    pub from: Arc<dyn ReplicaStore>,
    pub to: Arc<dyn ReplicaStore>,
    temp: PathBuf,
    bar: ProgressBar,
    counts: Counts,
}

impl Transfer {
    pub fn new(
        from: Arc<dyn ReplicaStore>,
        to: Arc<dyn ReplicaStore>,
        temp: &Path,
        bar: ProgressBar,
    ) -> Transfer {
        Transfer {
            from,
            to,
            temp: temp.to_owned(),
            bar,
            counts: Counts::default(),
        }
    }

    /// What was done since the last time.
    pub fn take_counts(&self) -> Counts {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed).into();
        Counts {
            copied: take(&self.counts.copied),
            copied_bytes: take(&self.counts.copied_bytes),
            there: take(&self.counts.there),
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Brings all of them over, in no order; gives the names of those that the source does not have. What is at the
    /// destination in the place of one, and is another, makes way unless its name is `kept`.
    pub async fn bring_all(
        &self,
        objects: Vec<Object>,
        kept: &HashSet<String>,
    ) -> anyhow::Result<Vec<ObjectName>> {
        self.bar
            .inc_length(objects.iter().map(|object| object.size).sum());
        let brought = futures_util::stream::iter(objects).map(|object| async move {
            let brought = self.bring(&object, kept).await?;
            self.bar.inc(object.size);
            Ok::<_, anyhow::Error>((brought, object.name))
        });
        brought
            .buffer_unordered(AT_A_TIME)
            .try_filter_map(
                |(brought, name)| async move { Ok((brought == Brought::Missing).then_some(name)) },
            )
            .try_collect()
            .await
    }

    async fn bring(&self, object: &Object, kept: &HashSet<String>) -> anyhow::Result<Brought> {
        let name = &object.name;
        let policy = RetryPolicy::within(OBJECT_TIME);
        let file = NamedTempFile::new_in(&self.temp).context("making a temporary file")?;
        let there = retry(&policy, || self.to.size(name)).await;
        if there
            .with_context(|| format!("looking for {name} at the destination"))?
            .is_some()
        {
            let read = self.to.get_to_file(name, file.path()).await;
            read.with_context(|| format!("reading {name} at the destination"))?;
            match check(&object.content, file.path()).await? {
                Ok(()) => {
                    self.counts.there.fetch_add(1, Ordering::Relaxed);
                    return Ok(Brought::There);
                }
                Err(what) if kept.contains(name.as_str()) => bail!(
                    "{name} is part of the replica at the destination and another than the source's ({what}); copy to \
                     another place"
                ),
                Err(_) => retry(&policy, || self.to.delete(name))
                    .await
                    .with_context(|| format!("removing a {name} that is none from the destination"))?,
            }
        }
        match self.from.get_to_file(name, file.path()).await {
            Err(StoreError::NotFound { .. }) => return Ok(Brought::Missing),
            got => got.with_context(|| format!("reading {name}"))?,
        };
        if let Err(what) = check(&object.content, file.path()).await? {
            let object = name.to_string();
            return Err(Damaged { object, what }.into());
        }
        // That it exists may be our own doing, by a try whose answer was lost: what is there is read.
        retry(&policy, || self.to.create_from_file(name, file.path()))
            .await
            .with_context(|| format!("writing {name}"))?;
        let digest = digest(file.path()).await?;
        let back = NamedTempFile::new_in(&self.temp).context("making a temporary file")?;
        let size = self.to.get_to_file(name, back.path()).await;
        let size = size.with_context(|| format!("reading {name} back"))?;
        if self::digest(back.path()).await? != digest {
            bail!("{name} is another at the destination than what was written there");
        }
        self.counts.copied.fetch_add(1, Ordering::Relaxed);
        self.counts.copied_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(Brought::There)
    }

    /// Creates a small object with these bytes; it may be there with the same ones.
    pub async fn put(&self, name: &ObjectName, bytes: bytes::Bytes) -> anyhow::Result<()> {
        let policy = RetryPolicy::within(OBJECT_TIME);
        retry(&policy, || self.to.create(name, bytes.clone()))
            .await
            .with_context(|| format!("writing {name}"))?;
        let back = retry(&policy, || self.to.get(name, bytes.len() as u64)).await;
        if back.with_context(|| format!("reading {name} back"))? != bytes {
            bail!("{name} is another at the destination than the source's");
        }
        Ok(())
    }
}

/// What is wrong with the object in the file at `path`, if anything.
async fn check(content: &Content, path: &Path) -> anyhow::Result<Result<(), String>> {
    let (content, path) = (content.clone(), path.to_owned());
    tokio::task::spawn_blocking(move || check_blocking(&content, &path)).await?
}

fn check_blocking(content: &Content, path: &Path) -> anyhow::Result<Result<(), String>> {
    let mut file = std::fs::File::open(path).context("opening a temporary file")?;
    let size = file.metadata().context("reading a temporary file")?.len();
    let sound = |sound: bool, what: &str| if sound { Ok(()) } else { Err(what.to_owned()) };
    Ok(match content {
        Content::Segment { entry, log_id } => match sealed::decode(&mut file, size, &mut std::io::sink()) {
            Ok(summary) => sound(
                summary.base.get() == entry.base
                    && summary.sha256 == entry.sha256
                    && summary.raw_bytes == entry.raw_bytes
                    && summary.log_id == *log_id
                    && size == entry.stored_bytes,
                "it is not what the manifest says",
            ),
            Err(SealedError::Io(error)) => return Err(error).context("unpacking a segment"),
            Err(error) => Err(error.to_string()),
        },
        Content::File(entry) => {
            let mut digest = Sha256::new();
            pass(&mut file, |bytes| digest.update(bytes))?;
            let same = <[u8; 32]>::from(digest.finalize()) == entry.sha256 && size == entry.stored_bytes;
            sound(same, "its digest is not what the manifest says")
        }
        Content::Chunk(header) => {
            // More bytes than it has are seen by their number; fewer by the chunk's own checks.
            let most = u64::from(header.body_len) + chunk::HEADER_BYTES as u64;
            let mut bytes = Vec::new();
            file.take(most + 1)
                .read_to_end(&mut bytes)
                .context("reading a temporary file")?;
            match chunk::decode(&bytes) {
                Ok((found, _)) => sound(
                    found == **header && bytes.len() as u64 == most,
                    "it is another chunk than the source's",
                ),
                Err(error) => Err(error.to_string()),
            }
        }
        Content::Media(cid) => {
            let mut hasher = CidHasher::new(cid.codec());
            pass(&mut file, |bytes| hasher.update(bytes))?;
            sound(hasher.finish() == *cid, "its bytes are not what its CID says")
        }
    })
}

async fn digest(path: &Path) -> anyhow::Result<[u8; 32]> {
    let path = path.to_owned();
    let read = move || {
        let mut file = std::fs::File::open(&path).context("opening a temporary file")?;
        let mut digest = Sha256::new();
        pass(&mut file, |bytes| digest.update(bytes))?;
        Ok(digest.finalize().into())
    };
    tokio::task::spawn_blocking(read).await?
}

/// Shows the file's bytes, piece by piece.
fn pass(file: &mut std::fs::File, mut see: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let mut piece = vec![0; READ_BYTES];
    loop {
        match file.read(&mut piece).context("reading a temporary file")? {
            0 => return Ok(()),
            read => see(piece.get(..read).unwrap_or_default()),
        }
    }
}
