//! Views: state folded from the log, disposable by contract (I4).
//!
//! A view is a pure function of the log's entries up to its applied LSN, which it stores in the same transaction as the
//! state itself. The [`driver`] is the only caller of [`View::apply`], live as at start, so a rebuilt view cannot differ
//! from one that was there all along. What a crash leaves is a view that is *behind* the log (replay catches up) or, if
//! the log lost its tail, *ahead* of it (thrown away and rebuilt).

pub mod accounts;
pub mod checkpoint;
pub mod driver;
pub mod index;
#[cfg(test)]
pub(crate) mod testkit;

use crate::entry::{Entry, EntryError};
use crate::log::Lsn;

/// State folded from the log.
pub trait View: Send {
    /// What logs and metrics call it.
    fn name(&self) -> &'static str;

    /// The LSN of the last entry that is in the state; [`Lsn::ZERO`] for an empty view.
    fn applied(&self) -> Lsn;

    /// Folds `entries`, which ascend, into the state: all of them or, on an error, none. One transaction, which also
    /// stores the new applied LSN. Entries at or below [`View::applied`] are skipped. An entry that does not concern the
    /// view still moves its applied LSN. The result need not survive a crash before [`View::persist`].
    ///
    /// # Errors
    /// The driver closes the log to writes on any error: an entry that one view cannot apply must not be acknowledged.
    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError>;

    /// Does a bounded piece of work that changes no answer, such as taking away rows of a repo that was removed, and
    /// answers whether there is more. Called when there is nothing to apply, and between batches.
    ///
    /// # Errors
    /// As [`View::apply`].
    fn tidy(&mut self) -> Result<bool, ViewError> {
        Ok(false)
    }

    /// Makes everything applied so far survive a crash.
    ///
    /// # Errors
    /// The state on disk is then unknown; the driver stops.
    fn persist(&mut self) -> Result<(), ViewError>;
}

/// Borrowed for a replay, owned by the driver afterwards.
impl<V: View + ?Sized> View for &mut V {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn applied(&self) -> Lsn {
        (**self).applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ViewError> {
        (**self).apply(entries)
    }

    fn tidy(&mut self) -> Result<bool, ViewError> {
        (**self).tidy()
    }

    fn persist(&mut self) -> Result<(), ViewError> {
        (**self).persist()
    }
}

/// Why a view cannot go on. The state before the failing call is intact in memory; a restart replays from the last
/// durable point, and if that fails in the same way the view's file can be deleted, or the log needs repair.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A frame of the log is not an entry.
    #[error("entry {} of the log does not decode", lsn.get())]
    Entry {
        /// The frame's LSN.
        lsn: Lsn,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// An entry decodes but contradicts itself or the entries before it.
    #[error("entry {} does not fit view {view}: {reason}", lsn.get())]
    Contradiction {
        /// The view's name.
        view: &'static str,
        /// The entry's LSN.
        lsn: Lsn,
        /// What does not fit.
        reason: String,
    },
    /// The view's own database failed.
    #[error("view {view} cannot use its database")]
    Store {
        /// The view's name.
        view: &'static str,
        /// What the database said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ViewError {
    /// A failure of a view's own database.
    pub fn store(
        view: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ViewError {
        ViewError::Store {
            view,
            source: source.into(),
        }
    }
}
