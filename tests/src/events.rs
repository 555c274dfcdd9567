//! A firehose consumer that keeps what it saw.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use engine::repo::cbor::{Map, Reader, Value};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::api::Written;

/// How long a consumer waits before it connects again.
const RECONNECT_AFTER: Duration = Duration::from_millis(40);

/// One event, as far as drills compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of all.
    pub seq: u64,
    /// `#commit`, `#sync`, `#identity`, `#account`.
    pub kind: String,
    /// Whom it is about.
    pub did: String,
    /// The commit, if it is one.
    pub commit: Option<String>,
    /// The whole message, byte for byte.
    pub bytes: Vec<u8>,
}

/// What one message said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Something happened.
    Event(Event),
    /// `#info`, by name.
    Info(String),
    /// An error, by name; the connection ends after it.
    Error(String),
}

/// Decodes one message.
///
/// # Errors
/// It is not shaped as the event stream specification says.
pub fn decode(bytes: &[u8]) -> Result<Said> {
    let mut reader = Reader::new(bytes);
    let head = map(Value::read(&mut reader)?)?;
    let body = map(Value::read(&mut reader)?)?;
    reader.end()?;
    if head.get("op") != Some(&Value::Int(1)) {
        return Ok(Said::Error(body.get_text("error").unwrap_or_default().to_owned()));
    }
    let kind = head.get_text("t").context("a message without a type")?;
    if kind == "#info" {
        return Ok(Said::Info(body.get_text("name").unwrap_or_default().to_owned()));
    }
    let Some(Value::Int(seq)) = body.get("seq") else {
        bail!("{kind} without seq")
    };
    let commit = match body.get("commit") {
        Some(Value::Link(cid)) => Some(cid.to_string()),
        _ => None,
    };
    let did = body
        .get_text("repo")
        .or_else(|| body.get_text("did"))
        .context("an event about nobody")?;
    Ok(Said::Event(Event {
        seq: u64::try_from(*seq).context("a negative seq")?,
        kind: kind.to_owned(),
        did: did.to_owned(),
        commit,
        bytes: bytes.to_vec(),
    }))
}

fn map(value: Value) -> Result<Map> {
    match value {
        Value::Map(map) => Ok(map),
        other => bail!("{other:?} where a map belongs"),
    }
}

/// Connects to a firehose and gives each message to `each` until that says stop or the connection ends.
///
/// # Errors
/// The connection is refused, or a message is malformed.
pub async fn read(url: &str, cursor: Option<&str>, mut each: impl FnMut(Said) -> bool) -> Result<()> {
    let query = cursor
        .map(|cursor| format!("?cursor={cursor}"))
        .unwrap_or_default();
    let url = format!(
        "{}/xrpc/com.atproto.sync.subscribeRepos{query}",
        url.replacen("http", "ws", 1)
    );
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
    while let Some(message) = socket.next().await {
        // A killed server ends the connection in any way it likes.
        let Ok(message) = message else { return Ok(()) };
        if let Message::Binary(bytes) = message
            && !each(decode(&bytes)?)
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Everything from a cursor up to and including the event of `commit`.
///
/// # Errors
/// It does not come within `limit`.
pub async fn replay(url: &str, cursor: u64, commit: &str, limit: Duration) -> Result<Vec<Event>> {
    let mut seen = Vec::new();
    let mut wrong = None;
    let from = cursor.to_string();
    let reading = read(url, Some(&from), |said| match said {
        Said::Event(event) => {
            let last = event.commit.as_deref() == Some(commit);
            seen.push(event);
            !last
        }
        Said::Info(_) => true,
        Said::Error(name) => {
            wrong = Some(name);
            false
        }
    });
    let finished = timeout(limit, reading).await;
    if let Some(name) = wrong {
        bail!("the firehose answered {name}");
    }
    finished.with_context(|| format!("commit {commit} did not come within {limit:?}"))??;
    if seen.last().and_then(|event| event.commit.as_deref()) != Some(commit) {
        bail!("the firehose ended before commit {commit}");
    }
    Ok(seen)
}

/// The commits that the events tell of.
///
/// # Errors
/// The events are not in their order, or one comes twice, or a commit is in two of them.
pub fn in_order(events: &[Event]) -> Result<HashSet<&str>> {
    for (earlier, later) in events.iter().zip(events.iter().skip(1)) {
        ensure!(
            earlier.seq < later.seq,
            "event {} came after {}",
            later.seq,
            earlier.seq
        );
    }
    let mut commits = HashSet::new();
    for commit in events.iter().filter_map(|event| event.commit.as_deref()) {
        ensure!(commits.insert(commit), "commit {commit} is in two events");
    }
    Ok(commits)
}

/// Compares what a consumer saw, up to the event of `last`, with a replay of everything.
///
/// # Errors
/// They differ, or the replay does not come within `limit`.
pub async fn as_replayed(seen: &[Event], url: &str, last: &str, limit: Duration) -> Result<()> {
    let all = replay(url, 0, last, limit).await?;
    if let Some((seen, there)) = seen.iter().zip(&all).find(|(seen, there)| seen != there) {
        bail!("the consumer saw {seen:?} where a replay has {there:?}");
    }
    ensure!(
        seen.len() == all.len(),
        "{} events seen, {} in a replay",
        seen.len(),
        all.len()
    );
    Ok(())
}

/// A consumer saw every event once and in order, those of a replay up to `last`; everything that was acknowledged is in one of them;
/// and the revisions of a repo only grow. Yields how many events there are.
///
/// # Errors
/// One of these is not so.
pub async fn gapless(
    seen: &[Event],
    url: &str,
    acknowledged: &[Written],
    last: &Written,
    limit: Duration,
) -> Result<usize> {
    let commits = in_order(seen)?;
    as_replayed(seen, url, &last.commit, limit).await?;
    let mut revs = HashMap::new();
    for written in acknowledged {
        ensure!(
            commits.contains(written.commit.as_str()),
            "{written:?} is in no event"
        );
        revs.insert(written.commit.as_str(), written.rev.as_str());
    }
    let mut newest = HashMap::new();
    for event in seen {
        if let Some(rev) = event.commit.as_deref().and_then(|commit| revs.get(commit)) {
            let before = newest.insert(&event.did, rev);
            ensure!(
                before.is_none_or(|before| before < rev),
                "a revision went back in {}",
                event.did
            );
        }
    }
    Ok(seen.len())
}

/// A consumer that follows a server over its deaths: it keeps its cursor and connects again, as a relay does.
#[derive(Debug)]
pub struct Follower {
    seen: Arc<Mutex<Vec<Event>>>,
    problems: Arc<Mutex<Vec<String>>>,
    url: watch::Sender<String>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts to follow from the beginning.
    #[must_use]
    pub fn start(url: &str) -> Follower {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let problems = Arc::new(Mutex::new(Vec::new()));
        let (sender, receiver) = watch::channel(url.to_owned());
        let task = tokio::spawn(follow(receiver, seen.clone(), problems.clone()));
        Follower {
            seen,
            problems,
            url: sender,
            task,
        }
    }

    /// Where the server is now.
    pub fn moved(&self, url: &str) {
        self.url.send_replace(url.to_owned());
    }

    /// Everything seen so far, in order of arrival.
    #[must_use]
    pub fn seen(&self) -> Vec<Event> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The highest `seq` seen so far; 0 before the first.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .map_or(0, |event| event.seq)
    }

    /// Waits for the event of `commit`.
    ///
    /// # Errors
    /// It does not come, or the server said something it should not have.
    pub async fn reached(&self, commit: &str, limit: Duration) -> Result<()> {
        let started = Instant::now();
        // The newest events are the last ones.
        while !self
            .seen()
            .iter()
            .rev()
            .take(1000)
            .any(|event| event.commit.as_deref() == Some(commit))
        {
            ensure!(
                started.elapsed() < limit,
                "the consumer did not see commit {commit}"
            );
            sleep(RECONNECT_AFTER).await;
        }
        let problems = self
            .problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ensure!(problems.is_empty(), "the consumer met {problems:?}");
        Ok(())
    }

    /// Waits for the event of `commit` and gives everything seen.
    ///
    /// # Errors
    /// It does not come, or the server said something it should not have.
    pub async fn finish(self, commit: &str, limit: Duration) -> Result<Vec<Event>> {
        let started = Instant::now();
        let result = loop {
            let seen = self.seen();
            if seen.iter().any(|event| event.commit.as_deref() == Some(commit)) {
                break Ok(seen);
            }
            if started.elapsed() > limit {
                break Err(anyhow::anyhow!(
                    "the consumer saw {} events, and not commit {commit}",
                    seen.len()
                ));
            }
            sleep(RECONNECT_AFTER).await;
        };
        self.task.abort();
        let problems = self
            .problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ensure!(problems.is_empty(), "the consumer met {problems:?}");
        result
    }
}

async fn follow(
    url: watch::Receiver<String>,
    seen: Arc<Mutex<Vec<Event>>>,
    problems: Arc<Mutex<Vec<String>>>,
) {
    let note = |list: &Mutex<Vec<String>>, text: String| {
        list.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    };
    loop {
        let now = url.borrow().clone();
        let cursor = seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .map_or(0, |event: &Event| event.seq);
        let ended = read(&now, Some(&cursor.to_string()), |said| {
            match said {
                Said::Event(event) => seen.lock().unwrap_or_else(PoisonError::into_inner).push(event),
                Said::Info(name) => note(&problems, format!("info {name}")),
                Said::Error(name) => note(&problems, format!("error {name}")),
            }
            true
        })
        .await;
        // A refused connection is a server that is not up yet; anything else is a finding.
        if let Err(error) = ended
            && error
                .downcast_ref::<tokio_tungstenite::tungstenite::Error>()
                .is_none()
        {
            note(&problems, format!("{error:#}"));
        }
        sleep(RECONNECT_AFTER).await;
    }
}
