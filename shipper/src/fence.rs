//! Reading where a replica stands, and claiming its chain.
//!
//! [`survey`] only reads. [`claim`] makes us the writer: it creates a fence at the first missing ordinal. From then on the
//! writer before cannot acknowledge anything more, whatever it believes, because acknowledging needs the ordinal that
//! the fence took.
//!
//! | another process meanwhile | what claim sees | what it does |
//! |---|---|---|
//! | ships a chunk at our ordinal | `Exists`, not ours | walks on from there |
//! | claims at our ordinal | `Exists`, a fence | walks on behind it and fences that one |
//! | the same too late, or ships a chunk too late | `Exists`, and the newest manifest covers it: void | starts over |
//! | publishes a manifest and deletes the chunks that it covers | a gap that is no end | the newest manifest, read again *after* the fence, covers the fence's ordinal: the fence is void, starts over |
//! | nothing, but our answer was lost | `Exists`, ours | has claimed |
//!
//! A crash anywhere leaves at most a fence without a successor, which is a valid (empty) reign.

use std::sync::Arc;
use std::time::Duration;

use engine::clock::Clock;
use engine::log::{Epoch, LogId, Lsn};
use futures_util::{StreamExt, TryStreamExt};

use crate::chunk::{self, ChunkDraft, ChunkError, ChunkHeader, ChunkKind, HEADER_BYTES};
use crate::log_object::{LogObject, LogObjectError};
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestError};
use crate::names::{Generation, LOG_OBJECT, MANIFEST_PREFIX, Ordinal, WAL_PREFIX, WriterId};
use crate::plan::{self, ChainEnd, ChainError, ExistsVerdict, ReplicaFacts};
use crate::requests::Requests;
use crate::store::{Created, ObjectName, ReplicaStore, StoreError};

/// Most objects that a listing of the chain may have.
const MAX_LISTED: usize = 1_000_000;
/// Headers that are fetched at a time.
const HEADERS_AT_A_TIME: usize = 32;
/// How many objects are asked for by name behind the last one that a listing shows: more are those of a writer at work.
const MAX_PROBES: usize = 64;
/// How often a claim walks the chain before it gives up: only other claimants and writers cause another round.
const MAX_ROUNDS: u32 = 64;
/// How many chunks a claim follows a writer that goes on writing before it gives up.
const MAX_STEPS: u32 = 20_000;

/// A replica that cannot be read, with the object at fault.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The store failed.
    #[error("replica store")]
    Store(#[from] StoreError),
    /// `log.json` is damaged.
    #[error("{LOG_OBJECT} of the replica")]
    LogObject(#[source] LogObjectError),
    /// A manifest is damaged.
    #[error("manifest {object} of the replica is damaged")]
    Manifest {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// A manifest's content does not belong where it is.
    #[error("manifest {object} of the replica belongs to another log or generation")]
    ForeignManifest {
        /// The object.
        object: String,
    },
    /// A chunk is damaged.
    #[error("chunk {object} of the replica is damaged")]
    Chunk {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: ChunkError,
    },
    /// A chunk does not continue the chain.
    #[error("chunk {object} of the replica does not continue the chain")]
    Chain {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: ChainError,
    },
    /// There are objects but no `log.json`.
    #[error(
        "the replica has objects ({example}) but no {LOG_OBJECT}: it is not a replica, or it was damaged"
    )]
    NoLogObject {
        /// One of the objects.
        example: String,
    },
}

/// Where a replica stands.
#[derive(Clone, Debug)]
pub struct ReplicaState {
    /// The log that it holds.
    pub log_id: LogId,
    /// The newest manifest, or the empty one.
    pub manifest: Manifest,
    /// The chunks after those that the manifest covers.
    pub chain: Vec<ChunkHeader>,
    /// Where the chain ends.
    pub end: ChainEnd,
}

impl ReplicaState {
    /// The epoch above every one that is known.
    fn next_epoch(&self, above: Epoch) -> Epoch {
        Epoch(self.end.epoch.0.max(self.manifest.epoch).max(above.0)).next()
    }

    /// What [`plan::decide_start`] needs; `known_writers` are the identities that this data directory has used, `local_epoch` is
    /// that of its log's last frame.
    #[must_use]
    pub fn facts(&self, known_writers: &[WriterId], local_epoch: Epoch) -> ReplicaFacts {
        let mut since = self.fences().filter(|fence| fence.epoch > local_epoch);
        ReplicaFacts {
            log_id: self.log_id,
            last_lsn: self.end.last_lsn,
            epoch: self.end.epoch,
            nobody_since: self.is_held_by(known_writers)
                && since.all(|fence| known_writers.contains(&fence.writer_id)),
        }
    }

    /// Whether one of these began the last reign.
    pub(crate) fn is_held_by(&self, writers: &[WriterId]) -> bool {
        self.end.writer.is_some_and(|writer| writers.contains(&writer))
    }

    /// The reigns that began behind the chain's last frame, the last one first. No manifest covers these.
    pub(crate) fn fences(&self) -> impl Iterator<Item = &ChunkHeader> {
        let marks = self.chain.iter().rev();
        let marks = marks.take_while(|chunk| chunk.kind != ChunkKind::Data);
        marks.filter(|chunk| chunk.kind == ChunkKind::Fence)
    }

    /// The newest chunk with frames that no segment covers.
    #[must_use]
    pub fn last_data_chunk(&self) -> Option<&ChunkHeader> {
        self.chain
            .iter()
            .rev()
            .find(|chunk| chunk.kind == ChunkKind::Data)
    }
}

/// Reads the newest manifest and walks the chain. `None` if the replica is empty. Writes nothing.
///
/// # Errors
/// [`ReplicaError`]: see there.
pub async fn survey(
    store: &Arc<dyn ReplicaStore>,
    request_timeout: Duration,
) -> Result<Option<ReplicaState>, ReplicaError> {
    let requests = Requests::new(store.clone(), request_timeout);
    if let Some(log) = read_log_object(&requests).await? {
        return read_state(&requests, log.log_id).await.map(Some);
    }
    for prefix in [WAL_PREFIX, MANIFEST_PREFIX] {
        if let Some(object) = requests.list(prefix, None, 1).await?.into_iter().next() {
            // Unless somebody has begun the log since we looked for it.
            return match read_log_object(&requests).await? {
                Some(log) => read_state(&requests, log.log_id).await.map(Some),
                None => Err(ReplicaError::NoLogObject {
                    example: object.name.to_string(),
                }),
            };
        }
    }
    Ok(None)
}

pub(crate) async fn read_log_object(requests: &Requests) -> Result<Option<LogObject>, ReplicaError> {
    match requests
        .get(&ObjectName::new(LOG_OBJECT).map_err(StoreError::from)?, 4_096)
        .await
    {
        Ok(bytes) => LogObject::decode(&bytes)
            .map(Some)
            .map_err(ReplicaError::LogObject),
        // An absent container says so on the listing that follows.
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The newest generation after `known`, if there is one. One listing.
pub(crate) async fn newest_generation(
    requests: &Requests,
    known: Generation,
) -> Result<Option<Generation>, StoreError> {
    let after = (known > Generation::NONE).then(|| known.object_name());
    let listed = requests
        .list_all(MANIFEST_PREFIX, after.as_deref(), MAX_LISTED)
        .await?;
    Ok(listed
        .iter()
        .filter_map(|object| Generation::from_object_name(object.name.as_str()))
        .max())
}

/// Reads one manifest. `None` if it is gone, which happens to all but the newest.
pub(crate) async fn read_manifest(
    requests: &Requests,
    log_id: LogId,
    generation: Generation,
) -> Result<Option<Manifest>, ReplicaError> {
    let object = generation.object_name();
    let name = ObjectName::new(object.clone()).map_err(StoreError::from)?;
    let bytes = match requests.get(&name, MAX_MANIFEST_BYTES as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match Manifest::decode(&bytes) {
        Ok(manifest) if manifest.log_id() == log_id && manifest.generation() == generation => {
            Ok(Some(manifest))
        }
        Ok(_) => Err(ReplicaError::ForeignManifest { object }),
        Err(source) => Err(ReplicaError::Manifest { object, source }),
    }
}

/// The newest manifest, or the empty one if there is none. A listing that is behind does not hide one: the next generation is
/// asked for by its name.
pub(crate) async fn newest_manifest(requests: &Requests, log_id: LogId) -> Result<Manifest, ReplicaError> {
    let mut known = Generation::NONE;
    loop {
        match newest_generation(requests, known).await? {
            None => return Ok(Manifest::empty(log_id)),
            Some(generation) => {
                if let Some(mut manifest) = read_manifest(requests, log_id, generation).await? {
                    for _ in 0..MAX_PROBES {
                        let next = manifest.generation().next();
                        match read_manifest(requests, log_id, next).await? {
                            Some(next) => manifest = next,
                            None => break,
                        }
                    }
                    return Ok(manifest);
                }
                // Deleted since the listing, so there is a newer one.
                known = generation;
            }
        }
    }
}

async fn read_state(requests: &Requests, log_id: LogId) -> Result<ReplicaState, ReplicaError> {
    loop {
        let manifest = newest_manifest(requests, log_id).await?;
        let generation = manifest.generation();
        let walked = walk(requests, manifest).await;
        // Chunks may vanish under our feet when a newer manifest covers them: what looks like an error, or like the end
        // of the chain, is then neither.
        let newer = newest_generation(requests, generation).await?;
        if newer.is_none_or(|newer| newer <= generation) {
            return walked;
        }
    }
}

async fn walk(requests: &Requests, manifest: Manifest) -> Result<ReplicaState, ReplicaError> {
    let mut end = ChainEnd::after(&manifest);
    let log_id = end.log_id;
    let before = Ordinal(end.next.0.saturating_sub(1)).object_name();
    let listed = requests.list_all(WAL_PREFIX, Some(&before), MAX_LISTED).await?;
    let ordinals: Vec<Ordinal> = listed
        .iter()
        .filter_map(|object| Ordinal::from_object_name(object.name.as_str()))
        .collect();
    let mut headers = futures_util::stream::iter(ordinals)
        .map(|ordinal| async move {
            read_header(requests, ordinal)
                .await
                .map(|header| (ordinal, header))
        })
        .buffered(HEADERS_AT_A_TIME);
    let mut chain = Vec::new();
    while let Some((ordinal, header)) = headers.try_next().await? {
        if ordinal < end.next {
            continue; // A stray in the gap behind a fence: nobody's.
        }
        let Some(header) = header else { break };
        if ordinal > end.next {
            break; // The hole rule: what lies behind a missing ordinal was never acknowledged.
        }
        end = follow(end, header, &mut chain)?;
    }
    // What a listing that is behind does not show.
    for _ in 0..MAX_PROBES {
        let Some(header) = read_header(requests, end.next).await? else {
            break;
        };
        end = follow(end, header, &mut chain)?;
    }
    Ok(ReplicaState {
        log_id,
        manifest,
        chain,
        end,
    })
}

/// The end behind the chunk that was found at `end.next`, which joins the chain.
fn follow(
    end: ChainEnd,
    header: Result<ChunkHeader, ChunkError>,
    chain: &mut Vec<ChunkHeader>,
) -> Result<ChainEnd, ReplicaError> {
    let object = end.next.object_name();
    let header = header.map_err(|source| ReplicaError::Chunk {
        object: object.clone(),
        source,
    })?;
    let end = end
        .follow(&header)
        .map_err(|source| ReplicaError::Chain { object, source })?;
    chain.push(header);
    Ok(end)
}

/// `None` if there is no such object.
pub(crate) async fn read_header(
    requests: &Requests,
    ordinal: Ordinal,
) -> Result<Option<Result<ChunkHeader, ChunkError>>, StoreError> {
    let name = ObjectName::new(ordinal.object_name())?;
    match requests.get_range(&name, 0..HEADER_BYTES as u64).await {
        Ok(bytes) => Ok(Some(ChunkHeader::decode(&bytes))),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(StoreError::OutOfRange { .. }) => Ok(Some(Err(ChunkError::Truncated {
            need: HEADER_BYTES,
            have: 0,
        }))),
        Err(error) => Err(error),
    }
}

/// The headers from `first` on, at most `most`, up to the first that is missing.
async fn read_headers(
    requests: &Requests,
    first: Ordinal,
    most: usize,
) -> Result<Vec<Result<ChunkHeader, ChunkError>>, StoreError> {
    let ordinals = (first.0..).take(most).map(Ordinal);
    let headers: Vec<_> = futures_util::stream::iter(ordinals)
        .map(|ordinal| read_header(requests, ordinal))
        .buffered(HEADERS_AT_A_TIME)
        .try_collect()
        .await?;
    Ok(headers.into_iter().map_while(|header| header).collect())
}

/// Who claims.
#[derive(Clone)]
pub struct ClaimOptions {
    /// The log to create if the replica is empty; if it is not, the log that it must hold.
    pub log_id: LogId,
    /// Our identity: fresh for every process.
    pub writer_id: WriterId,
    /// The new reign's epoch is above this one, too: the local log's last.
    pub above_epoch: Epoch,
    /// An LSN that ours must exceed; the local log's last one, or zero.
    pub lsn_floor: Lsn,
    /// For the creation times.
    pub clock: Arc<dyn Clock>,
    /// The longest that one request may take.
    pub request_timeout: Duration,
}

/// The chain is ours from `next_ordinal` on, until somebody else claims.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The log.
    pub log_id: LogId,
    /// Our identity.
    pub writer_id: WriterId,
    /// Our reign.
    pub epoch: Epoch,
    /// Where our fence is.
    pub ordinal: Ordinal,
    /// Where our first chunk goes.
    pub next_ordinal: Ordinal,
    /// Our LSNs must exceed this: everything that an earlier writer can have shown to anybody is at or below it.
    pub lsn_floor: Lsn,
    /// Where the chain ended before our fence.
    pub before: ChainEnd,
    /// Where the replica stands, our fence included.
    pub replica: ReplicaState,
}

/// A claim that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The replica cannot be read.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The replica holds another log than the one asked for.
    #[error("the replica holds log {there}, not {wanted}")]
    ForeignLog {
        /// The log asked for.
        wanted: LogId,
        /// The log that is there.
        there: LogId,
    },
    /// The object at the chain's end cannot be read, so nobody can tell whose it is.
    #[error("chunk {object} of the replica cannot be read")]
    Unreadable {
        /// The object.
        object: String,
        /// What is wrong.
        #[source]
        source: ChunkError,
    },
    /// Others kept getting ahead of us.
    #[error(
        "other writers kept extending the chain; is another server starting over and over on this replica?"
    )]
    Contended,
    /// Our own chunk could not be built: a mistake in this program.
    #[error("building a fence")]
    Build(#[source] ChunkError),
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> ClaimError {
        ClaimError::Replica(ReplicaError::Store(error))
    }
}

/// Makes us the writer of the replica's log. Fences whoever was it before, so be sure that it is the right replica
/// ([`survey`], [`plan::decide_start`]) first. Requests that fail in passing are repeated for about a minute each.
///
/// # Errors
/// [`ClaimError`]. After a store's error our fence may exist; claiming again is always safe.
pub async fn claim(store: &Arc<dyn ReplicaStore>, options: &ClaimOptions) -> Result<Claim, ClaimError> {
    let requests = Requests::new(store.clone(), options.request_timeout);
    ensure_log_object(&requests, options).await?;
    let (mut rounds, mut known) = (0, None);
    // The newest manifest that we know, and how many chunks are asked for at a time: twice as many as there were.
    let (mut newest, mut ahead) = (Manifest::empty(options.log_id), 1);
    for _ in 0..MAX_STEPS {
        let mut state = match known.take() {
            Some(state) => state,
            None if rounds == MAX_ROUNDS => break,
            None => {
                rounds += 1;
                let state = read_state(&requests, options.log_id).await?;
                newest = state.manifest.clone();
                state
            }
        };
        let draft = ChunkDraft {
            log_id: options.log_id,
            writer_id: options.writer_id,
            epoch: state.next_epoch(options.above_epoch),
            ordinal: state.end.next,
            prev_lsn: state.end.last_lsn,
            lsn_floor: state.end.lsn_floor.max(options.lsn_floor),
            created_at_micros: options.clock.now_micros(),
        };
        let (fence, object) = chunk::encode_mark(ChunkKind::Fence, &draft).map_err(ClaimError::Build)?;
        let name = ObjectName::new(fence.ordinal.object_name()).map_err(StoreError::from)?;
        // Whether a writer at work was there first is asked at the same time: only a step as short as its own overtakes it.
        let (created, seen) = tokio::join!(
            requests.create(&name, object),
            read_headers(&requests, fence.ordinal, ahead)
        );
        if created? == Created::Exists {
            let mut seen = seen?;
            if seen.is_empty() {
                seen = read_headers(&requests, fence.ordinal, ahead).await?;
            }
            // What is there may be void: of a claimant or a writer that came too late under the name of a chunk that was covered
            // and deleted. Then a manifest that covers it is older than it is. Nobody may follow it: what stood behind it
            // might stand in the way of the chain, where nothing would lead past it.
            if newest_generation(&requests, newest.generation()).await?.is_some() {
                newest = newest_manifest(&requests, options.log_id).await?;
            }
            if newest.covered_through >= fence.ordinal.0 {
                continue;
            }
            ahead = seen.len().saturating_mul(2).clamp(1, HEADERS_AT_A_TIME);
            let mut seen = seen.into_iter();
            let Some(there) = seen.next() else {
                continue;
            };
            match plan::on_chunk_exists(&fence, there) {
                ExistsVerdict::Ours => {}
                ExistsVerdict::Fenced { .. } => {
                    // As far as it leads; what does not is looked at when it is the next one.
                    let followed = state.chain.len();
                    for there in std::iter::once(there).chain(seen) {
                        let Some((there, end)) = there
                            .ok()
                            .and_then(|there| state.end.follow(&there).ok().map(|end| (there, end)))
                        else {
                            break;
                        };
                        state.end = end;
                        state.chain.push(there);
                    }
                    if state.chain.len() > followed {
                        known = Some(state);
                    }
                    continue;
                }
                ExistsVerdict::Unreadable(source) => {
                    return Err(ClaimError::Unreadable {
                        object: name.to_string(),
                        source,
                    });
                }
            }
        }
        // The end that we saw may have been a chunk that was deleted because a newer manifest covers it.
        let newest = newest_manifest(&requests, options.log_id).await?;
        if newest.covered_through >= fence.ordinal.0 {
            continue;
        }
        let before = state.end;
        state.end = before.follow(&fence).map_err(|source| ReplicaError::Chain {
            object: name.to_string(),
            source,
        })?;
        state.chain.push(fence);
        if newest.generation() > state.manifest.generation() {
            // Published by the old writer while we claimed; it covers a part of the chain that we have walked.
            state.chain.retain(|chunk| chunk.ordinal >= newest.next_ordinal());
            state.manifest = newest;
        }
        tracing::info!(epoch = fence.epoch.0, ordinal = %fence.ordinal, "claimed the replica's chain");
        return Ok(Claim {
            log_id: options.log_id,
            writer_id: options.writer_id,
            epoch: fence.epoch,
            ordinal: fence.ordinal,
            next_ordinal: fence.next_ordinal,
            lsn_floor: fence.lsn_floor,
            before,
            replica: state,
        });
    }
    Err(ClaimError::Contended)
}

async fn ensure_log_object(requests: &Requests, options: &ClaimOptions) -> Result<(), ClaimError> {
    let name = ObjectName::new(LOG_OBJECT).map_err(StoreError::from)?;
    for _ in 0..MAX_ROUNDS {
        if let Some(there) = read_log_object(requests).await? {
            if there.log_id == options.log_id {
                return Ok(());
            }
            return Err(ClaimError::ForeignLog {
                wanted: options.log_id,
                there: there.log_id,
            });
        }
        let object = LogObject {
            log_id: options.log_id,
            created_at_micros: options.clock.now_micros(),
        };
        if requests.create(&name, object.encode().into()).await? == Created::Created {
            return Ok(());
        }
    }
    Err(ClaimError::Contended)
}
