//! Moving old segments to a cheaper tier of the store.
//!
//! | step | crash after it leaves | and the next start |
//! |---|---|---|
//! | move up to [`MOVES_AT_A_LOOK`] objects | objects in a tier that `tiers` does not know of | moves them there again |
//! | replace `tiers` | nothing to do | reads it once, and goes on |

use bytes::Bytes;
use tokio::time::Instant;

use super::Housekeeper;
use super::trouble::Trouble;
#[cfg(doc)]
use crate::ageing::MOVES_AT_A_LOOK;
use crate::ageing::{Placed, TIERS_OBJECT};
use crate::fence;
use crate::requests::Requests;
use crate::store::counted::Purpose;
use crate::store::{ObjectName, StoreError, Swap, Tag, TierSet, for_purpose};

/// Most bytes of `tiers` that are read.
const MAX_BYTES: u64 = 4_096;

/// What is known of the tiers.
#[derive(Default)]
pub(super) struct Tiers {
    /// What `tiers` said when it was read or written last, and the tag of that state.
    known: Option<(Placed, Option<Tag>)>,
    /// When to look again.
    from: Option<Instant>,
    /// Whether the store has no tiers.
    unsupported: bool,
}

impl Housekeeper {
    /// Moves what is due, a little at a time. Asks nothing while nothing is due, but once what was moved before. It is about money
    /// alone, so nothing that fails here is more than noted.
    pub(super) async fn age(&mut self) {
        let ageing = self.shared.config.ageing;
        let early = self.tiers.from.is_some_and(|from| Instant::now() < from);
        if !ageing.is_on() || self.tiers.unsupported || early || self.manifest.segments.is_empty() {
            return;
        }
        self.tiers.from = Some(Instant::now() + ageing.look_every);
        if let Err(trouble) = self.look_what_is_due().await {
            let text = self.shared.note_error(&trouble);
            tracing::warn!("old segments were not moved to a cheaper tier and are tried again later: {text}");
        }
    }

    async fn look_what_is_due(&mut self) -> Result<(), Trouble> {
        let store = for_purpose(self.shared.requests.store(), Purpose::Housekeeping);
        let requests = Requests::new(store, self.shared.config.request_timeout);
        // What fails below makes the next look read it again.
        let (was, tag) = match self.tiers.known.take() {
            Some(known) => known,
            None => read(&requests).await?,
        };
        let now = self.shared.clock.now_micros();
        let mut placed = was.of(&self.manifest, now);
        let moved = self.move_due(&requests, &mut placed, now).await;
        // What was done is noted, whatever came after.
        self.tiers.known = match placed == was {
            true => Some((was, tag)),
            false => write(&requests, &placed, tag)
                .await?
                .map(|tag| (placed, Some(tag))),
        };
        *self.shared.placed.lock() = placed;
        moved
    }

    async fn move_due(&mut self, requests: &Requests, placed: &mut Placed, now: u64) -> Result<(), Trouble> {
        let due = placed.due(&self.manifest, &self.shared.config.ageing, now);
        if due.is_empty() {
            return Ok(());
        }
        // Only the writer's manifest tells what is live.
        if fence::newest_generation(requests, self.manifest.generation())
            .await?
            .is_some()
        {
            return Ok(());
        }
        let (mut objects, mut bytes) = (0_u64, 0_u64);
        for step in due {
            if step.moves() {
                let name = ObjectName::new(step.segment.object.clone()).map_err(StoreError::from)?;
                match requests.set_tier(&name, step.tier).await? {
                    TierSet::Set => {}
                    TierSet::Unsupported => {
                        tracing::warn!(
                            "{} cannot move an object to another tier: old segments stay where they are (a bucket's \
                             own lifecycle rules can move what is below seg/)",
                            requests.store().describe()
                        );
                        self.tiers.unsupported = true;
                        return Ok(());
                    }
                }
                metrics::counter!("pds_replica_tier_moves_total", "tier" => step.tier.word()).increment(1);
                (objects, bytes) = (objects + 1, bytes + step.segment.stored_bytes);
            }
            placed.made(&step);
        }
        if objects > 0 {
            tracing::info!(
                objects,
                bytes,
                "old segments were moved to a cheaper tier of the replica's store"
            );
        }
        Ok(())
    }
}

/// What `tiers` says; what cannot be understood says nothing.
async fn read(requests: &Requests) -> Result<(Placed, Option<Tag>), StoreError> {
    let name = ObjectName::new(TIERS_OBJECT)?;
    Ok(match requests.read_tagged(&name, MAX_BYTES).await? {
        Some((bytes, tag)) => (serde_json::from_slice(&bytes).unwrap_or_default(), Some(tag)),
        None => (Placed::default(), None),
    })
}

/// Replaces what `tiers` said; no tag if somebody else has, and then it is read again.
async fn write(requests: &Requests, placed: &Placed, tag: Option<Tag>) -> Result<Option<Tag>, StoreError> {
    let name = ObjectName::new(TIERS_OBJECT)?;
    let bytes: Bytes = serde_json::to_vec(placed)
        .map_err(|error| StoreError::Invalid {
            detail: error.to_string(),
        })?
        .into();
    let swap = requests.store().swap(&name, bytes, tag.as_ref());
    Ok(match requests.once(swap).await? {
        Swap::Swapped(tag) => Some(tag),
        Swap::Conflict => None,
    })
}
