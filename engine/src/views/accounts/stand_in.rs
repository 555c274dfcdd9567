//! For the simulation: an account database without a schema and rows, which is its position in a small file. It is opened,
//! torn, lost, copied and brought to the log's end as the real one is, at a hundredth of the cost.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rusqlite::Connection;

use super::error::AccountsError;
use super::locks::Locks;
use super::readers::Readers;
use super::writer::Queue;
use super::{Accounts, AccountsOptions, AccountsSnapshot, AccountsView, FILE_NAME};
use crate::log::{LogId, Lsn};

thread_local! {
    /// The directory below which this thread's account databases are stand-ins, if there is one.
    static BELOW: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// From now on account databases below `dir`, opened on this thread, are stand-ins; until the guard is dropped.
pub(crate) fn put_below(dir: &Path) -> Below {
    BELOW.set(Some(dir.to_owned()));
    Below
}

/// See [`put_below`].
pub(crate) struct Below;

impl Drop for Below {
    fn drop(&mut self) {
        BELOW.set(None);
    }
}

/// Where a stand-in lies and whose it is.
#[derive(Debug)]
pub(super) struct StandIn {
    path: PathBuf,
    log_id: LogId,
}

impl StandIn {
    fn bytes(&self, applied: Lsn) -> Vec<u8> {
        [&self.log_id.0[..], &applied.get().to_be_bytes()].concat()
    }

    fn read(&self) -> Result<Lsn, AccountsError> {
        let bytes = match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.write(Lsn::ZERO)?;
                return Ok(Lsn::ZERO);
            }
            read => read?,
        };
        let applied = bytes
            .split_at_checked(self.log_id.0.len())
            .filter(|(owner, _)| **owner == self.log_id.0)
            .and_then(|(_, lsn)| Lsn::new(u64::from_be_bytes(lsn.try_into().ok()?)));
        applied.ok_or_else(|| AccountsError::Failed {
            applied: Lsn::ZERO,
            reason: "it is no stand-in of this log".to_owned(),
        })
    }

    /// Notes the position.
    pub(super) fn write(&self, applied: Lsn) -> Result<(), AccountsError> {
        Ok(std::fs::write(&self.path, self.bytes(applied))?)
    }

    pub(super) fn snapshot(&self, applied: Lsn) -> Result<AccountsSnapshot, AccountsError> {
        self.write(applied)?;
        Ok(AccountsSnapshot {
            conn: Connection::open_in_memory()?,
            lsn: applied,
            stand_in: Some(self.bytes(applied)),
        })
    }
}

/// A stand-in, if there is to be one in `dir`.
pub(super) fn open(
    dir: &Path,
    log_id: LogId,
    options: AccountsOptions,
) -> Result<Option<AccountsView>, AccountsError> {
    if !BELOW.with_borrow(|below| below.as_ref().is_some_and(|below| dir.starts_with(below))) {
        return Ok(None);
    }
    let path = dir.join(FILE_NAME);
    let stand_in = StandIn {
        path: path.clone(),
        log_id,
    };
    let applied = stand_in.read()?;
    let handle = Accounts {
        queue: Arc::new(Queue::new(options.transactions_max)),
        locks: Locks::new(options.transactions_max),
        readers: Readers::none(&path, options.wait),
        applied: Arc::new(AtomicU64::new(applied.get())),
        revision: Arc::default(),
        wait: options.wait,
        stand_in: Some(Arc::new(stand_in)),
    };
    Ok(Some(AccountsView {
        handle,
        stopped: Arc::default(),
        thread: None,
    }))
}
