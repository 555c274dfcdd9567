//! The log: what the newest manifest names, the chain behind it, the manifest, and then `log.json`.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use engine::clock::SystemClock;
use engine::log::{LogId, Lsn};
use shipper::chunk::HEADER_BYTES;
use shipper::fence::{ReplicaError, ReplicaState, survey};
use shipper::log_object::LogObject;
use shipper::manifest::{MAX_MANIFEST_BYTES, Manifest};
use shipper::names::{Generation, LOG_OBJECT, MANIFEST_PREFIX, Ordinal, WAL_PREFIX};
use shipper::readers::{Announce, Reading};
use shipper::store::{ObjectName, ReplicaStore, RetryPolicy, StoreError, list_all, retry};

use super::MAX_ROUNDS;
use super::transfer::{Content, Damaged, Object, Transfer};

/// The longest that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of `log.json`.
const MAX_LOG_OBJECT: u64 = 4_096;
/// Most objects of one kind that are listed.
const MAX_LISTED: usize = 1_000_000;

/// What the destination has now.
pub struct Copied {
    pub log_id: LogId,
    pub last_lsn: Lsn,
    /// The source has more by now.
    pub source_went_on: bool,
}

pub async fn copy(transfer: &Transfer) -> anyhow::Result<Copied> {
    let log_object = match get(&*transfer.from, LOG_OBJECT, MAX_LOG_OBJECT).await {
        Err(StoreError::NotFound { .. }) => {
            bail!("there is no log in the replica {}", transfer.from.describe())
        }
        got => got.context("reading log.json")?,
    };
    let announce = Announce::new(Arc::new(SystemClock));
    let reading = Reading::new(&transfer.from, Some(&announce), REQUEST_TIMEOUT);
    let copied = reading.during(rounds(transfer, &reading, log_object)).await;
    reading.end().await;
    copied
}

async fn rounds(transfer: &Transfer, reading: &Reading, log_object: Bytes) -> anyhow::Result<Copied> {
    for _ in 0..MAX_ROUNDS {
        let state = source(transfer).await?;
        reading.goes_by(state.manifest.generation());
        let kept = destination(transfer, &state).await?;
        let missing = transfer.bring_all(objects(&state)?, &kept).await?;
        let manifest = match missing.first() {
            None => manifest(transfer, &state).await?,
            Some(_) => None,
        };
        let now = source(transfer).await?;
        if let (Some(missing), true) = (missing.first(), is_same(&now, &state)) {
            let (object, what) = (missing.to_string(), "it is missing".to_owned());
            return Err(Damaged { object, what }.into());
        }
        let Some(manifest) = manifest else {
            continue;
        };
        if let Some((name, bytes)) = manifest {
            transfer.put(&name, bytes).await?;
        }
        transfer.put(&ObjectName::new(LOG_OBJECT)?, log_object).await?;
        return Ok(Copied {
            log_id: state.log_id,
            last_lsn: state.end.last_lsn,
            source_went_on: !is_same(&now, &state) || now.end.next != state.end.next,
        });
    }
    bail!("the source's server removes objects faster than they are copied: stop it, and run this again")
}

/// Whether both are after the same manifest.
fn is_same(one: &ReplicaState, other: &ReplicaState) -> bool {
    one.manifest.generation == other.manifest.generation
}

async fn get(store: &dyn ReplicaStore, name: &str, max_bytes: u64) -> Result<bytes::Bytes, StoreError> {
    let name = ObjectName::new(name)?;
    retry(&RetryPolicy::default(), || store.get(&name, max_bytes)).await
}

async fn source(transfer: &Transfer) -> anyhow::Result<ReplicaState> {
    let damaged = |object: String, what: &dyn Display| Damaged {
        object,
        what: what.to_string(),
    };
    match survey(&transfer.from, REQUEST_TIMEOUT).await {
        Ok(state) => state.context("the source is empty"),
        Err(ReplicaError::Manifest { object, source }) => Err(damaged(object, &source).into()),
        Err(ReplicaError::Chunk { object, source }) => Err(damaged(object, &source).into()),
        Err(ReplicaError::Chain { object, source }) => Err(damaged(object, &source).into()),
        Err(ReplicaError::LogObject(source)) => Err(damaged(LOG_OBJECT.to_owned(), &source).into()),
        Err(error) => Err(error).context("reading the source"),
    }
}

/// Everything with data.
fn objects(state: &ReplicaState) -> anyhow::Result<Vec<Object>> {
    let (manifest, log_id) = (&state.manifest, state.log_id);
    let displaced = &manifest.displaced;
    let segments = manifest.segments.iter();
    let segments = segments.chain(displaced.segments.iter().map(|displaced| &displaced.entry));
    let segments = segments.map(|entry| {
        let entry = Box::new(entry.clone());
        let (name, size) = (entry.object.clone(), entry.stored_bytes);
        (name, size, Content::Segment { entry, log_id })
    });
    let checkpoints = manifest.checkpoints.iter();
    let checkpoints = checkpoints.chain(displaced.checkpoints.iter().map(|displaced| &displaced.entry));
    let files = checkpoints.flat_map(|checkpoint| &checkpoint.files).map(|file| {
        (
            file.object.clone(),
            file.stored_bytes,
            Content::File(file.clone()),
        )
    });
    let chunks = state.chain.iter().map(|header| {
        let size = u64::from(header.body_len) + HEADER_BYTES as u64;
        let name = header.ordinal.object_name();
        (name, size, Content::Chunk(Box::new(*header)))
    });
    // Chunks first: a place with chunks and no `log.json` is refused by a server, which would begin a log on an empty one.
    let all = chunks.chain(segments).chain(files);
    all.map(|(name, size, content)| {
        Ok(Object {
            name: ObjectName::new(name)?,
            size,
            content,
        })
    })
    .collect()
}

/// The source's manifest object; `Some(None)` if none was ever written, `None` if it is gone.
async fn manifest(
    transfer: &Transfer,
    state: &ReplicaState,
) -> anyhow::Result<Option<Option<(ObjectName, bytes::Bytes)>>> {
    if state.manifest.generation() == Generation::NONE {
        return Ok(Some(None));
    }
    let name = ObjectName::new(state.manifest.generation().object_name())?;
    match get(&*transfer.from, name.as_str(), MAX_MANIFEST_BYTES as u64).await {
        Err(StoreError::NotFound { .. }) => Ok(None),
        got => {
            let bytes = got.with_context(|| format!("reading {name}"))?;
            let (object, what) = (name.to_string(), "it has changed meanwhile".to_owned());
            match Manifest::decode(&bytes) {
                Ok(manifest) if manifest == state.manifest => Ok(Some(Some((name, bytes)))),
                _ => Err(Damaged { object, what }.into()),
            }
        }
    }
}

/// Makes sure that the destination is empty, or an older state of the same log; gives the names that its replica consists of.
async fn destination(transfer: &Transfer, state: &ReplicaState) -> anyhow::Result<HashSet<String>> {
    let to = &transfer.to;
    let went_on = || {
        format!(
            "the destination {} is further than the source: a server has gone on with it",
            to.describe()
        )
    };
    let list = |prefix| list_all(&**to, prefix, MAX_LISTED);
    for object in list(MANIFEST_PREFIX).await.context("listing the destination")? {
        let generation = Generation::from_object_name(object.name.as_str());
        if generation.is_some_and(|theirs| theirs.0 > state.manifest.generation) {
            bail!(went_on());
        }
    }
    for object in list(WAL_PREFIX).await.context("listing the destination")? {
        let ordinal = Ordinal::from_object_name(object.name.as_str());
        if ordinal.is_some_and(|theirs| theirs >= state.end.next) {
            bail!(went_on());
        }
    }
    match get(&**to, LOG_OBJECT, MAX_LOG_OBJECT).await {
        // Nobody takes what is there for a replica.
        Err(StoreError::NotFound { .. }) => return Ok(HashSet::new()),
        got => {
            let bytes = got.context("reading log.json of the destination")?;
            let theirs = LogObject::decode(&bytes).context("log.json of the destination")?;
            if theirs.log_id != state.log_id {
                bail!(
                    "the destination {} holds another log ({}, not {})",
                    to.describe(),
                    theirs.log_id,
                    state.log_id
                );
            }
        }
    }
    let theirs = survey(to, REQUEST_TIMEOUT)
        .await
        .context("reading the destination")?;
    let Some(theirs) = theirs else {
        return Ok(HashSet::new());
    };
    let named = theirs.manifest.objects().map(str::to_owned);
    let chain = theirs.chain.iter().map(|chunk| chunk.ordinal.object_name());
    Ok(named.chain(chain).collect())
}
