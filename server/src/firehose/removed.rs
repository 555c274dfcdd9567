//! What a cursor does not bring back: events of repos that have been removed since. Of those only what came with the removal, or
//! after it, is told.

use std::collections::HashMap;

use engine::log::Lsn;
use engine::repo::Did;
use engine::repo::event::{self, Event as Decoded};

use super::ring::Event;
use crate::service::core::Core;

/// Removals that are looked for at most; beyond them events of the rest are told, whose removal follows.
const REMOVALS_MAX: usize = 10_000;
/// Removals that are read together.
const PAGE: usize = 500;

/// Repos that were removed, and by which entry.
#[derive(Debug, Default)]
pub(super) struct Removed(HashMap<Did, Lsn>);

impl Removed {
    /// Those that were removed after `position`.
    pub(super) async fn since(engine: &Core, position: Lsn) -> Removed {
        let reader = engine.reader();
        let found = tokio::task::spawn_blocking(move || {
            let reader = reader?;
            let (mut found, mut after) = (HashMap::new(), None);
            loop {
                let page = reader.removals(after.as_ref(), PAGE)?;
                let newer = page.iter().filter(|removal| removal.lsn > position);
                // In ascending order, so the last removal of a repo stays.
                found.extend(newer.map(|removal| (removal.did.clone(), removal.lsn)));
                if page.len() < PAGE || found.len() >= REMOVALS_MAX {
                    return Ok(Removed(found));
                }
                after = page.into_iter().next_back();
            }
        });
        let failed = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "a subscriber may get events of removed repos again");
            Removed::default()
        };
        match found.await {
            Ok(found) => found.unwrap_or_else(|error: engine::views::index::IndexError| failed(&error)),
            Err(error) => failed(&error),
        }
    }

    /// Of these events those that are still to be told.
    pub(super) fn without(&self, mut events: Vec<Event>) -> Vec<Event> {
        if !self.0.is_empty() {
            events.retain(|event| !self.hides(event));
        }
        events
    }

    fn hides(&self, event: &Event) -> bool {
        let did = match event::decode(&event.message) {
            Ok(Decoded::Commit(view)) => view.repo,
            Ok(Decoded::Sync(view)) => view.did,
            Ok(Decoded::Identity(view)) => view.did,
            Ok(Decoded::Account(view)) => view.did,
            _ => return false,
        };
        self.0.get(&did).is_some_and(|removal| *removal > event.lsn)
    }
}
