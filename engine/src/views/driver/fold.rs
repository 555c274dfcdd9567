//! The views and their place in the log: batches, durable points, replay. No thread, and nobody who waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{DriverConfig, DriverError};
use crate::entry::Entry;
use crate::log::{Flags, Frame, Lsn, TailReader};
use crate::views::{View, ViewError};

/// How far a replay has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayProgress {
    /// The last entry applied.
    pub applied: Lsn,
    /// The last entry to apply.
    pub target: Lsn,
    /// Entries applied by this replay.
    pub entries: u64,
    /// Bytes of log that they take.
    pub bytes: u64,
}

/// The views and their place in the log.
pub struct Fold<'v> {
    views: Vec<Box<dyn View + 'v>>,
    tail: TailReader,
    /// The beginning of a group whose end may not be applied yet. Not more than one group, which the log bounds.
    held: Vec<Frame>,
    config: DriverConfig,
    unpersisted: u64,
    unpersisted_since: Option<Instant>,
    /// Whether a view has work that changes no answer.
    pub(super) untidy: bool,
}

impl std::fmt::Debug for Fold<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fold")
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

impl<'v> Fold<'v> {
    /// Puts `views` behind the reader that `tail` makes for their least applied LSN.
    pub fn new(
        views: Vec<Box<dyn View + 'v>>,
        tail: impl FnOnce(Lsn) -> TailReader,
        config: DriverConfig,
    ) -> Fold<'v> {
        let from = least_applied(&views);
        Fold {
            views,
            tail: tail(from),
            held: Vec::new(),
            config,
            unpersisted: 0,
            unpersisted_since: None,
            untidy: true,
        }
    }

    /// What every view has.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        least_applied(&self.views)
    }

    /// Applies everything up to `target` and makes it durable; tells `progress` after each batch.
    ///
    /// # Errors
    /// The views stand at a whole entry; see [`DriverError`].
    pub fn replay(
        &mut self,
        target: Lsn,
        progress: &mut dyn FnMut(ReplayProgress),
    ) -> Result<ReplayProgress, DriverError> {
        let mut so_far = ReplayProgress {
            applied: self.applied(),
            target,
            entries: 0,
            bytes: 0,
        };
        loop {
            let batch = self.step(target)?;
            if batch.entries == 0 {
                break;
            }
            so_far.applied = self.applied();
            so_far.entries += batch.entries;
            so_far.bytes += batch.bytes;
            progress(so_far);
            self.persist_if_due(Instant::now())?;
        }
        self.persist()?;
        Ok(so_far)
    }

    /// Applies one batch of what lies at or below `limit`. It ends with a whole group, even if that takes it beyond
    /// its bytes: nobody sees a part of one, and no durable point or checkpoint lies within (I3).
    pub(crate) fn step(&mut self, limit: Lsn) -> Result<Batch, DriverError> {
        let mut frames = std::mem::take(&mut self.held);
        frames.extend(self.tail.next_batch(limit, self.config.batch_bytes)?);
        while frames.last().is_some_and(goes_on) {
            let more = self.tail.next_batch(limit, 1)?;
            if more.is_empty() {
                let whole = frames
                    .iter()
                    .rposition(|frame| !goes_on(frame))
                    .map_or(0, |at| at + 1);
                self.held = frames.split_off(whole);
                break;
            }
            frames.extend(more);
        }
        let bytes = frames.iter().map(|frame| u64::from(frame.location().len)).sum();
        let entries = frames.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        if !entries.is_empty() {
            for view in &mut self.views {
                guarded(|| view.apply(&entries))?;
            }
            self.unpersisted += bytes;
            self.unpersisted_since.get_or_insert_with(Instant::now);
            self.untidy = true;
        }
        Ok(Batch {
            entries: entries.len() as u64,
            bytes,
        })
    }

    /// One bounded piece of each view's work that changes no answer.
    pub(crate) fn tidy(&mut self) -> Result<(), DriverError> {
        let mut more = false;
        for view in &mut self.views {
            guarded(|| {
                more |= view.tidy()?;
                Ok::<_, ViewError>(())
            })?;
        }
        if more {
            self.unpersisted_since.get_or_insert_with(Instant::now);
        }
        self.untidy = more;
        Ok(())
    }

    pub(super) fn persist_if_due(&mut self, now: Instant) -> Result<(), DriverError> {
        let due = self.persist_due().is_some_and(|due| due <= now);
        if due || self.unpersisted >= self.config.persist_bytes {
            self.persist()
        } else {
            Ok(())
        }
    }

    pub(super) fn persist_due(&self) -> Option<Instant> {
        self.unpersisted_since
            .map(|since| since + self.config.persist_after)
    }

    pub(crate) fn persist(&mut self) -> Result<(), DriverError> {
        if self.unpersisted_since.is_some() {
            for view in &mut self.views {
                guarded(|| view.persist())?;
            }
            self.unpersisted = 0;
            self.unpersisted_since = None;
        }
        Ok(())
    }
}

/// Whether the next frame is of the same group.
fn goes_on(frame: &Frame) -> bool {
    frame.flags().contains(Flags::MORE)
}

/// What one step applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

fn least_applied(views: &[Box<dyn View + '_>]) -> Lsn {
    views.iter().map(|view| view.applied()).min().unwrap_or(Lsn::ZERO)
}

fn decode(frame: &Frame) -> Result<Entry, ViewError> {
    Entry::decode(frame).map_err(|source| ViewError::Entry {
        lsn: frame.lsn(),
        source,
    })
}

/// Runs view code; a panic becomes an error, and the views are not used again.
fn guarded<E: Into<DriverError>>(work: impl FnOnce() -> Result<(), E>) -> Result<(), DriverError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Into::into),
        Err(panic) => Err(DriverError::Panicked {
            what: panic_text(panic.as_ref()),
        }),
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
