//! The way between the processes and their store: every request is a message whose fate the scheduler decides.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use shipper::store::memory::MemoryStore;
use shipper::store::{
    Created, ObjectMeta, ObjectName, ReplicaStore, RetryPolicy, StoreError, Swap, Tag, retry,
};
use tokio::sync::oneshot;

use super::model::Model;
use super::process::FOR_EVER;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Ask {
    Create(ObjectName, Bytes),
    Delete(ObjectName),
    Fetch(ObjectName, PathBuf),
    Get(ObjectName, u64),
    List(String, Option<String>, usize),
    Range(ObjectName, Range<u64>),
    Size(ObjectName),
    Swap(ObjectName, Bytes, Option<Tag>),
    Tagged(ObjectName, u64),
}

impl Ask {
    /// Whether it changes the store.
    pub fn changes(&self) -> bool {
        matches!(self, Ask::Create(..) | Ask::Delete(..) | Ask::Swap(..))
    }

    /// What it is, and of what: the same on every run of a seed.
    pub fn label(&self) -> String {
        match self {
            Ask::Create(name, _) => format!("create {name}"),
            Ask::Delete(name) => format!("delete {name}"),
            Ask::Fetch(name, _) => format!("fetch {name}"),
            Ask::Get(name, _) => format!("get {name}"),
            Ask::List(prefix, after, _) => format!("list {prefix} after {}", after.as_deref().unwrap_or("-")),
            Ask::Range(name, range) => format!("get {name} {}..{}", range.start, range.end),
            Ask::Size(name) => format!("size {name}"),
            Ask::Swap(name, _, _) => format!("swap {name}"),
            Ask::Tagged(name, _) => format!("read {name}"),
        }
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Told {
    Created(Created),
    Bytes(Bytes),
    Size(Option<u64>),
    List(Vec<ObjectMeta>),
    Tagged(Option<(Bytes, Tag)>),
    Swapped(Swap),
    Done,
    Written(u64),
}

impl Told {
    fn brief(&self) -> String {
        match self {
            Told::Created(created) => format!("{created:?}"),
            Told::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Told::Size(size) => format!("size {size:?}"),
            Told::List(list) => format!("{} names", list.len()),
            Told::Tagged(tagged) => format!("there: {}", tagged.is_some()),
            Told::Swapped(Swap::Swapped(_)) => "swapped".to_owned(),
            Told::Swapped(Swap::Conflict) => "conflict".to_owned(),
            Told::Done => "done".to_owned(),
            Told::Written(bytes) => format!("{bytes} bytes"),
        }
    }
}

pub type Answer = Result<Told, StoreError>;

pub fn brief(answer: &Answer) -> String {
    match answer {
        Ok(told) => told.brief(),
        Err(StoreError::NotFound { .. }) => "not found".to_owned(),
        Err(StoreError::Timeout { .. }) => "timeout".to_owned(),
        Err(StoreError::Throttled { .. }) => "throttled".to_owned(),
        Err(StoreError::Unavailable { sent, .. }) => format!("unavailable, sent {sent}"),
        Err(other) => format!("{other:?}"),
    }
}

/// A request on its way.
pub struct Message {
    /// The process, and its how manieth life.
    pub who: (usize, u32),
    pub ask: Ask,
    pub label: String,
    /// Tells two that are otherwise alike apart.
    seq: u64,
    /// The turn in which it was sent.
    pub sent: u64,
    reply: Option<oneshot::Sender<Answer>>,
    /// Carried out, and the answer has not arrived.
    pub answer: Option<Answer>,
    /// Before this turn nothing becomes of it.
    pub held_until: u64,
}

impl Message {
    /// Whether nobody waits for the answer: it was given up, or its process is gone.
    pub fn is_orphan(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub fn order(&self) -> ((usize, u32), &str, u64) {
        (self.who, &self.label, self.seq)
    }

    /// Hands the answer to whoever waits.
    pub fn arrive(&mut self, answer: Answer) {
        if let Some(reply) = self.reply.take() {
            // Who has given up is not told.
            let _ = reply.send(answer);
        }
    }
}

/// A promise of the store that it does not keep: what the simulation must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A name of a chunk that is taken is given once more, and what was there stays. As if a writer did not compare.
    TwoWinners,
    /// The same, and what was there is overwritten.
    Overwrites,
    /// A chunk that was said to be there is not.
    LosesChunks,
    /// A sealed segment that was said to be there is not.
    LosesSegments,
    /// Listings of manifests after a known one show none. As if nobody looked, before a deletion, whether he is the newest.
    HidesManifests,
}

/// The store, what is on its way to it, and what must be true of it.
pub struct Net {
    lie: Option<Lie>,
    pub store: Arc<MemoryStore>,
    pub pending: Mutex<Vec<Message>>,
    pub model: Mutex<Model>,
    turn: Mutex<(u64, u64)>,
}

impl Net {
    pub fn new(lie: Option<Lie>) -> Net {
        Net {
            lie,
            store: Arc::new(MemoryStore::new()),
            pending: Mutex::default(),
            model: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    pub fn begin_turn(&self, turn: u64) {
        self.turn.lock().0 = turn;
    }

    /// Does at the store what is asked, and looks whether it was right.
    pub fn carry_out(&self, message: &Message) -> Answer {
        let ask = &message.ask;
        let answer = self.do_it(message);
        match (self.lie, ask, &answer) {
            (Some(Lie::TwoWinners), Ask::Create(name, _), Ok(Told::Created(Created::Exists)))
                if is_chunk(name) =>
            {
                Ok(Told::Created(Created::Created))
            }
            (Some(Lie::Overwrites), Ask::Create(name, bytes), Ok(Told::Created(Created::Exists)))
                if is_chunk(name) =>
            {
                self.store.tamper(name, bytes.clone());
                Ok(Told::Created(Created::Created))
            }
            (Some(Lie::HidesManifests), Ask::List(prefix, Some(_), _), Ok(_)) if prefix == "manifest/" => {
                Ok(Told::List(Vec::new()))
            }
            _ => answer,
        }
    }

    fn do_it(&self, message: &Message) -> Answer {
        let (who, ask) = (message.who, &message.ask);
        let is_lost = |name: &ObjectName| match self.lie {
            Some(Lie::LosesChunks) => is_chunk(name) && name.as_str().ends_with('7'),
            Some(Lie::LosesSegments) => name.as_str().starts_with("seg/"),
            _ => false,
        };
        let store = &*self.store;
        // A store in memory never waits.
        let now = "a store in memory answers at once";
        self.model.lock().before(who, ask, message.sent, store);
        let answer = match ask {
            Ask::Create(name, _) if is_lost(name) => return Ok(Told::Created(Created::Created)),
            Ask::Create(name, bytes) => {
                let created = store.create(name, bytes.clone()).now_or_never().expect(now);
                created.map(Told::Created)
            }
            Ask::Delete(name) => store.delete(name).now_or_never().expect(now).map(|()| Told::Done),
            Ask::Fetch(name, path) => {
                let got = store.get(name, u64::MAX).now_or_never().expect(now);
                got.and_then(|bytes| match std::fs::write(path, &bytes) {
                    Ok(()) => Ok(Told::Written(bytes.len() as u64)),
                    // Where it was wanted is gone with its process.
                    Err(_) => Err(lost()),
                })
            }
            Ask::Get(name, max) => {
                let got = store.get(name, *max).now_or_never().expect(now);
                got.map(Told::Bytes)
            }
            Ask::List(prefix, after, limit) => {
                let listed = store.list(prefix, after.as_deref(), *limit);
                listed.now_or_never().expect(now).map(Told::List)
            }
            Ask::Range(name, range) => {
                let got = store.get_range(name, range.clone()).now_or_never().expect(now);
                got.map(Told::Bytes)
            }
            Ask::Size(name) => store.size(name).now_or_never().expect(now).map(Told::Size),
            Ask::Swap(name, bytes, expected) => {
                let swapped = store.swap(name, bytes.clone(), expected.as_ref());
                swapped.now_or_never().expect(now).map(Told::Swapped)
            }
            Ask::Tagged(name, max) => {
                let read = store.read_tagged(name, *max).now_or_never().expect(now);
                read.map(Told::Tagged)
            }
        };
        let turn = self.turn.lock().0;
        self.model.lock().after(who, ask, &answer, turn, store);
        answer
    }
}

fn is_chunk(name: &ObjectName) -> bool {
    name.as_str().starts_with("wal/")
}

/// The failure of a request that never left.
pub fn refused() -> StoreError {
    StoreError::Unavailable {
        detail: "the network is down".to_owned(),
        sent: false,
    }
}

/// The failure of one whose answer did not come.
pub fn lost() -> StoreError {
    StoreError::Timeout {
        after: Duration::from_secs(1),
    }
}

/// One process's way to the store.
pub struct Door {
    pub net: Arc<Net>,
    pub who: (usize, u32),
}

impl Door {
    async fn ask(&self, ask: Ask) -> Answer {
        let (reply, answer) = oneshot::channel();
        {
            let mut turn = self.net.turn.lock();
            turn.1 += 1;
            self.net.pending.lock().push(Message {
                who: self.who,
                label: ask.label(),
                ask,
                seq: turn.1,
                sent: turn.0,
                reply: Some(reply),
                answer: None,
                held_until: 0,
            });
        }
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

fn mixed_up<T>() -> Result<T, StoreError> {
    panic!("an answer to another question")
}

#[async_trait]
impl ReplicaStore for Door {
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        match self.ask(Ask::Create(name.clone(), bytes)).await? {
            Told::Created(created) => Ok(created),
            _ => mixed_up(),
        }
    }

    async fn create_from_file(&self, name: &ObjectName, path: &Path) -> Result<Created, StoreError> {
        let bytes = std::fs::read(path).map_err(|error| StoreError::Invalid {
            detail: error.to_string(),
        })?;
        self.create(name, bytes.into()).await
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Bytes, StoreError> {
        match self.ask(Ask::Get(name.clone(), max_bytes)).await? {
            Told::Bytes(bytes) => Ok(bytes),
            _ => mixed_up(),
        }
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        match self.ask(Ask::Range(name.clone(), range)).await? {
            Told::Bytes(bytes) => Ok(bytes),
            _ => mixed_up(),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        match self.ask(Ask::Size(name.clone())).await? {
            Told::Size(size) => Ok(size),
            _ => mixed_up(),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, StoreError> {
        let ask = Ask::List(prefix.to_owned(), after.map(str::to_owned), limit);
        match self.ask(ask).await? {
            Told::List(listed) => Ok(listed),
            _ => mixed_up(),
        }
    }

    async fn read_tagged(
        &self,
        name: &ObjectName,
        max_bytes: u64,
    ) -> Result<Option<(Bytes, Tag)>, StoreError> {
        match self.ask(Ask::Tagged(name.clone(), max_bytes)).await? {
            Told::Tagged(tagged) => Ok(tagged),
            _ => mixed_up(),
        }
    }

    async fn swap(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        expected: Option<&Tag>,
    ) -> Result<Swap, StoreError> {
        match self
            .ask(Ask::Swap(name.clone(), bytes, expected.cloned()))
            .await?
        {
            Told::Swapped(swap) => Ok(swap),
            _ => mixed_up(),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.ask(Ask::Delete(name.clone())).await? {
            Told::Done => Ok(()),
            _ => mixed_up(),
        }
    }

    fn describe(&self) -> String {
        "the simulated store".to_owned()
    }

    async fn get_to_file(&self, name: &ObjectName, path: &Path) -> Result<u64, StoreError> {
        // As the real one: a piece that fails is asked for again.
        let policy = RetryPolicy::within(FOR_EVER);
        let fetched = retry(&policy, || self.ask(Ask::Fetch(name.clone(), path.to_owned())));
        match fetched.await? {
            Told::Written(bytes) => Ok(bytes),
            _ => mixed_up(),
        }
    }
}
