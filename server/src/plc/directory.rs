//! A did:plc directory: the state behind [`http`](super::http). For development and tests; small, durable, and strict.
//!
//! Every accepted operation is one line of JSON in `operations.jsonl`, appended and synced before it is acknowledged or
//! seen. The file is the whole state: it is read at start, and what it says about history is worked out anew.
//!
//! | crash after  | the next start finds       | and                            |
//! |--------------|----------------------------|--------------------------------|
//! | part of line | a last line without an end | cuts it off; nobody saw it     |
//! | whole line   | the operation              | keeps it, acknowledged or not  |
//!
//! Damage anywhere else refuses to start. A write or sync that failed leaves the file in doubt: the directory answers
//! reads, and refuses operations until it is opened again.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::clock::Clock;
use engine::repo::{Cid, Did};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::chain::{self, Accepted, ChainError};
use super::op::{Operation, PlcState};

/// Most operations of one DID, nullified ones included.
pub const MAX_OPERATIONS_PER_DID: usize = 1000;
/// Most operations of one DID within an hour.
pub const MAX_OPERATIONS_PER_HOUR: usize = 100;
/// Most operations altogether; the whole state is kept in memory.
pub const MAX_OPERATIONS: usize = 1_000_000;
/// Most entries that one export gives.
pub const MAX_EXPORT: usize = 1000;

const FILE_NAME: &str = "operations.jsonl";
const HOUR_MILLIS: u64 = 60 * 60 * 1000;

/// One accepted operation.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Whose.
    pub did: Did,
    /// The operation.
    pub operation: Operation,
    /// Whether a stronger key took it back.
    pub nullified: bool,
    /// When it was accepted, milliseconds since 1970; strictly increasing over the whole directory.
    pub created_at: u64,
}

/// Why the directory did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory could not be read or made.
    #[error("the did:plc directory at {path} cannot be opened")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Damage that no crash explains.
    #[error("{path}, line {line}: {reason}; restore the file, or remove it to start with an empty directory")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why an operation was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It breaks a rule of the protocol.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The old form, which is read but no longer accepted.
    #[error("create operations are no longer accepted: submit a plc_operation")]
    Legacy,
    /// The DID has had too many operations.
    #[error("too many operations for this DID; try again later")]
    TooMany,
    /// The directory is full.
    #[error("this directory is full")]
    Full,
    /// It could not be made durable.
    #[error("the directory cannot store operations until it is restarted")]
    Storage(#[source] std::io::Error),
}

/// Where a DID stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Never registered.
    Unknown,
    /// Ended by a tombstone.
    Tombstoned,
    /// In use, with this state.
    Active(PlcState),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    did: Did,
    cid: String,
    created_at: u64,
    operation: serde_json::Value,
}

#[derive(Default)]
struct State {
    entries: Vec<LogEntry>,
    by_did: HashMap<Did, Vec<usize>>,
    file: Option<File>,
    poisoned: bool,
}

/// A did:plc directory. A cheap handle; clones share the state.
#[derive(Clone)]
pub struct PlcDirectory {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for PlcDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlcDirectory")
            .field("operations", &self.state.lock().entries.len())
            .finish_non_exhaustive()
    }
}

impl PlcDirectory {
    /// Opens the directory kept in `dir`, which is made if need be. Blocks for as long as its file takes to read.
    ///
    /// # Errors
    /// [`OpenError`] says which file, and for damage which line and what to do.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<PlcDirectory, OpenError> {
        let path = dir.join(FILE_NAME);
        let io = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let mut state = State::default();
        for (at, line) in bytes
            .get(..whole)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
            .enumerate()
        {
            state.replay(line).map_err(|reason| OpenError::Damaged {
                path: path.clone(),
                line: at + 1,
                reason,
            })?;
        }
        if whole < bytes.len() {
            tracing::warn!(path = %path.display(), cut_bytes = bytes.len() - whole, "cut an unfinished operation");
            file.set_len(whole as u64).map_err(io)?;
        }
        file.seek(SeekFrom::End(0)).map_err(io)?;
        file.sync_all().map_err(io)?;
        // So that a new file's name is as durable as what is in it.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        state.file = Some(file);
        Ok(PlcDirectory {
            state: Arc::new(Mutex::new(state)),
            clock,
        })
    }

    /// A directory that is gone with the process.
    #[must_use]
    pub fn in_memory(clock: Arc<dyn Clock>) -> PlcDirectory {
        PlcDirectory {
            state: Arc::default(),
            clock,
        }
    }

    /// Accepts `operation` for `did`, or says why not. Blocks on a disk sync.
    ///
    /// # Errors
    /// [`SubmitError`]; after anything but `Storage` nothing has changed.
    pub fn submit(&self, did: &Did, operation: Operation) -> Result<(), SubmitError> {
        let mut state = self.state.lock();
        if state.poisoned {
            return Err(SubmitError::Storage(std::io::Error::other(
                "an earlier write failed",
            )));
        }
        if operation.is_legacy() {
            return Err(SubmitError::Legacy);
        }
        // Times are strictly increasing, so that whoever exports page by page misses none that share a millisecond.
        let last = state.entries.last().map_or(0, |entry| entry.created_at);
        let now = (self.clock.now_micros() / 1000).max(last + 1);
        state.check_room(did, now)?;
        let nullified = chain::check_next(did, &state.history(did), &operation, now)?;
        let line = Line {
            did: did.clone(),
            cid: operation.cid().to_string(),
            created_at: now,
            operation: operation.to_json(),
        };
        state.write(&line).map_err(SubmitError::Storage)?;
        state.insert(
            LogEntry {
                did: did.clone(),
                operation,
                nullified: false,
                created_at: now,
            },
            &nullified,
        );
        Ok(())
    }

    /// Where `did` stands now.
    #[must_use]
    pub fn standing(&self, did: &Did) -> Standing {
        let state = self.state.lock();
        match state.history(did).last() {
            None => Standing::Unknown,
            Some(last) => last
                .operation
                .state()
                .map_or(Standing::Tombstoned, Standing::Active),
        }
    }

    /// All operations of `did`, oldest first, nullified ones included; empty for an unknown DID.
    #[must_use]
    pub fn audit_log(&self, did: &Did) -> Vec<LogEntry> {
        let state = self.state.lock();
        state
            .indices(did)
            .iter()
            .filter_map(|at| state.entries.get(*at).cloned())
            .collect()
    }

    /// Up to `count` operations of all DIDs that were accepted after `after` (milliseconds since 1970), oldest first.
    #[must_use]
    pub fn export(&self, after: Option<u64>, count: usize) -> Vec<LogEntry> {
        let state = self.state.lock();
        let from = after.map_or(0, |after| {
            state.entries.partition_point(|entry| entry.created_at <= after)
        });
        state
            .entries
            .iter()
            .skip(from)
            .take(count.min(MAX_EXPORT))
            .cloned()
            .collect()
    }
}

impl State {
    fn indices(&self, did: &Did) -> &[usize] {
        self.by_did.get(did).map_or(&[], Vec::as_slice)
    }

    fn entries_of(&self, did: &Did) -> impl DoubleEndedIterator<Item = &LogEntry> {
        self.indices(did).iter().filter_map(|at| self.entries.get(*at))
    }

    fn history(&self, did: &Did) -> Vec<Accepted<'_>> {
        self.entries_of(did)
            .filter(|entry| !entry.nullified)
            .map(|entry| Accepted {
                operation: &entry.operation,
                created_at: entry.created_at,
            })
            .collect()
    }

    fn check_room(&self, did: &Did, now: u64) -> Result<(), SubmitError> {
        if self.entries.len() >= MAX_OPERATIONS {
            return Err(SubmitError::Full);
        }
        let recent = self
            .entries_of(did)
            .rev()
            .take_while(|entry| entry.created_at + HOUR_MILLIS > now)
            .count();
        if recent >= MAX_OPERATIONS_PER_HOUR || self.indices(did).len() >= MAX_OPERATIONS_PER_DID {
            return Err(SubmitError::TooMany);
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        // Half a line may be there, or a whole one that the next start would find although it was refused.
        self.poisoned = written.is_err();
        written
    }

    fn insert(&mut self, entry: LogEntry, nullified: &[Cid]) {
        let at = self.entries.len();
        if !nullified.is_empty() {
            for index in self.by_did.get(&entry.did).into_iter().flatten() {
                if let Some(old) = self
                    .entries
                    .get_mut(*index)
                    .filter(|old| nullified.contains(&old.operation.cid()))
                {
                    old.nullified = true;
                }
            }
        }
        self.by_did.entry(entry.did.clone()).or_default().push(at);
        self.entries.push(entry);
    }

    /// Takes in a line that was accepted before: it is judged again, as of then.
    fn replay(&mut self, line: &[u8]) -> Result<(), String> {
        let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let operation = Operation::from_json(&line.operation).map_err(|error| error.to_string())?;
        if operation.cid().to_string() != line.cid {
            return Err("the operation does not match its CID".to_owned());
        }
        if self
            .entries
            .last()
            .is_some_and(|last| last.created_at >= line.created_at)
        {
            return Err("operations are out of order".to_owned());
        }
        let nullified = chain::check_next(&line.did, &self.history(&line.did), &operation, line.created_at)
            .map_err(|error| error.to_string())?;
        let entry = LogEntry {
            did: line.did,
            operation,
            nullified: false,
            created_at: line.created_at,
        };
        self.insert(entry, &nullified);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plc::op::PlcState;
    use engine::clock::{ScriptedClock, SeededEntropy};
    use engine::repo::keys::SigningKey;

    const NOW_MICROS: u64 = 1_700_000_000_000_000;

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&SeededEntropy::new(seed)).unwrap()
    }

    fn state(handle: &str) -> PlcState {
        let keys = [1, 2].map(|seed| key(seed).public_key());
        PlcState::account(
            &keys,
            &key(9).public_key(),
            &handle.parse().unwrap(),
            "https://pds.example",
        )
    }

    fn clock() -> Arc<ScriptedClock> {
        Arc::new(ScriptedClock::at(NOW_MICROS))
    }

    /// A DID with a genesis and one update, both by the weaker key.
    fn fill(directory: &PlcDirectory) -> (Did, Operation, Operation) {
        let genesis = Operation::genesis(state("a.test"), &key(2)).unwrap();
        let did = genesis.did().unwrap();
        directory.submit(&did, genesis.clone()).unwrap();
        let update = Operation::update(state("b.test"), genesis.cid(), &key(2)).unwrap();
        directory.submit(&did, update.clone()).unwrap();
        (did, genesis, update)
    }

    fn handle_of(directory: &PlcDirectory, did: &Did) -> String {
        match directory.standing(did) {
            Standing::Active(state) => state.also_known_as[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_restart_keeps_everything_and_a_torn_tail_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PlcDirectory::open(dir.path(), clock()).unwrap();
        let (did, genesis, update) = fill(&directory);
        let fork = Operation::update(state("c.test"), genesis.cid(), &key(1)).unwrap();
        directory.submit(&did, fork.clone()).unwrap();
        drop(directory);

        let path = dir.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        let mut torn = whole.clone();
        torn.extend_from_slice(br#"{"did":"did:plc:"#);
        std::fs::write(&path, torn).unwrap();
        let directory = PlcDirectory::open(dir.path(), clock()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let log: Vec<(Cid, bool)> = directory
            .audit_log(&did)
            .iter()
            .map(|entry| (entry.operation.cid(), entry.nullified))
            .collect();
        assert_eq!(
            log,
            [(genesis.cid(), false), (update.cid(), true), (fork.cid(), false)]
        );
        assert_eq!(handle_of(&directory, &did), "at://c.test");
        let next = Operation::update(state("d.test"), fork.cid(), &key(2)).unwrap();
        directory.submit(&did, next).unwrap();
        drop(directory);
        let again = PlcDirectory::open(dir.path(), clock()).unwrap();
        assert_eq!(handle_of(&again, &did), "at://d.test");
    }

    #[test]
    fn damage_inside_the_file_refuses_to_start_and_names_the_line() {
        let dir = tempfile::tempdir().unwrap();
        fill(&PlcDirectory::open(dir.path(), clock()).unwrap());
        let path = dir.path().join(FILE_NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [text.replacen("a.test", "x.test", 1), format!("garbage\n{text}")] {
            std::fs::write(&path, damaged).unwrap();
            let error = PlcDirectory::open(dir.path(), clock()).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { line: 1, .. }), "{error}");
        }
    }

    #[test]
    fn a_refused_operation_changes_nothing() {
        let directory = PlcDirectory::in_memory(clock());
        let (did, genesis, update) = fill(&directory);
        let forged = Operation::update(state("x.test"), update.cid(), &key(7)).unwrap();
        assert!(matches!(
            directory.submit(&did, forged),
            Err(SubmitError::Chain(_))
        ));
        assert!(matches!(
            directory.submit(&did, genesis),
            Err(SubmitError::Chain(ChainError::Misordered))
        ));
        assert_eq!(directory.audit_log(&did).len(), 2);
        assert_eq!(handle_of(&directory, &did), "at://b.test");
    }

    #[test]
    fn a_did_has_an_hourly_allowance() {
        let clock = clock();
        let directory = PlcDirectory::in_memory(clock.clone());
        let (did, _, mut tip) = fill(&directory);
        let mut submit = |directory: &PlcDirectory| {
            let next = Operation::update(state("x.test"), tip.cid(), &key(2)).unwrap();
            directory.submit(&did, next.clone()).map(|()| tip = next)
        };
        for _ in 2..MAX_OPERATIONS_PER_HOUR {
            submit(&directory).unwrap();
        }
        assert!(matches!(submit(&directory), Err(SubmitError::TooMany)));
        clock.advance(2 * HOUR_MILLIS * 1000);
        assert!(submit(&directory).is_ok());
    }

    #[test]
    fn after_a_failed_write_nothing_is_accepted_and_nothing_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let directory = PlcDirectory::open(dir.path(), clock()).unwrap();
        let (did, _, update) = fill(&directory);
        // A handle that cannot write stands for a disk that does not.
        let broken = File::open(dir.path().join(FILE_NAME)).unwrap();
        let good = directory.state.lock().file.replace(broken);
        let next = Operation::update(state("c.test"), update.cid(), &key(2)).unwrap();
        assert!(matches!(
            directory.submit(&did, next.clone()),
            Err(SubmitError::Storage(_))
        ));
        directory.state.lock().file = good;
        assert!(matches!(
            directory.submit(&did, next.clone()),
            Err(SubmitError::Storage(_))
        ));
        assert_eq!(handle_of(&directory, &did), "at://b.test");
        let reopened = PlcDirectory::open(dir.path(), clock()).unwrap();
        reopened.submit(&did, next).unwrap();
    }

    #[test]
    fn an_export_pages_over_operations_of_one_millisecond() {
        let directory = PlcDirectory::in_memory(clock());
        fill(&directory);
        let first = directory.export(None, 1);
        let rest = directory.export(Some(first[0].created_at), 10);
        assert_eq!((first.len(), rest.len()), (1, 1));
        assert!(directory.export(Some(rest[0].created_at), 10).is_empty());
    }
}
