//! Reading: a fixed number of read-only connections, each read on one snapshot of what is applied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::error::AccountsError;

/// A pool of read-only connections.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    returned: Condvar,
    /// One permit a connection, so that waiting reads do not occupy blocking threads.
    gate: Semaphore,
    /// One permit a read that waits or runs.
    waiting: Semaphore,
    wait: Duration,
}

impl Readers {
    /// Opens `connections` readers of the database at `path`, which exists.
    pub fn open(
        path: &Path,
        connections: usize,
        waiting_max: usize,
        wait: Duration,
    ) -> Result<Arc<Readers>, AccountsError> {
        let connections = connections.max(1);
        let mut idle = Vec::with_capacity(connections);
        for _ in 0..connections {
            idle.push(open_reader(path)?);
        }
        Ok(Arc::new(Readers {
            path: path.to_owned(),
            idle: Mutex::new(idle),
            returned: Condvar::new(),
            gate: Semaphore::new(connections),
            waiting: Semaphore::new(waiting_max),
            wait,
        }))
    }

    /// Of a database that nobody reads.
    #[cfg(test)]
    pub fn none(path: &Path, wait: Duration) -> Arc<Readers> {
        Arc::new(Readers {
            path: path.to_owned(),
            idle: Mutex::default(),
            returned: Condvar::new(),
            gate: Semaphore::new(0),
            waiting: Semaphore::new(0),
            wait,
        })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `read` on a blocking thread.
    pub async fn read<T, E, F>(self: &Arc<Readers>, read: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<AccountsError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let busy = || E::from(AccountsError::Busy { what: "readers" });
        let _waiting = self.waiting.try_acquire().map_err(|_| busy())?;
        let Ok(Ok(_permit)) = tokio::time::timeout(self.wait, self.gate.acquire()).await else {
            return Err(busy());
        };
        let readers = Arc::clone(self);
        match tokio::task::spawn_blocking(move || readers.read_blocking(read)).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => Err(AccountsError::Panicked.into()),
            Err(_) => Err(AccountsError::Closed.into()),
        }
    }

    /// Runs `read` on this thread.
    pub fn read_blocking<T, E, F>(&self, read: F) -> Result<T, E>
    where
        E: From<AccountsError>,
        F: FnOnce(&Connection) -> Result<T, E>,
    {
        let borrowed = Borrowed {
            readers: self,
            conn: Some(self.take()?),
        };
        let Some(conn) = borrowed.conn.as_ref() else {
            return Err(AccountsError::Closed.into());
        };
        // A deferred transaction pins its snapshot with its first statement and keeps it to the end.
        let tx = conn.unchecked_transaction().map_err(AccountsError::from)?;
        let value = read(&tx)?;
        tx.finish().map_err(AccountsError::from)?;
        Ok(value)
    }

    fn take(&self) -> Result<Connection, AccountsError> {
        let deadline = Instant::now() + self.wait;
        let mut idle = self.idle.lock();
        loop {
            if let Some(conn) = idle.pop() {
                return Ok(conn);
            }
            if self.returned.wait_until(&mut idle, deadline).timed_out() && idle.is_empty() {
                return Err(AccountsError::Busy { what: "readers" });
            }
        }
    }
}

/// A connection that goes back to its pool, whatever happens to the reader.
struct Borrowed<'a> {
    readers: &'a Readers,
    conn: Option<Connection>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.readers.idle.lock().push(conn);
            self.readers.returned.notify_one();
        }
    }
}

/// A connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, AccountsError> {
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    conn.busy_timeout(Duration::from_secs(5))?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.pragma_update(None, "query_only", true)?;
    conn.pragma_update(None, "cache_size", -4096)?;
    Ok(conn)
}
