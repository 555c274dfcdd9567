//! Who writes, who follows, and who is about to: what requests and health are told of it.
//!
//! Servers on one replica talk to each other below `/_peers`, in small messages that carry a code made with the secret that
//! they share, `PDS_JWT_SECRET`. Nothing depends on these messages arriving: the replica decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::log::Lsn;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::auth::tokens::hmac;
use crate::secrets::Secret;

/// Standbys that are remembered.
const PEERS_MAX: usize = 64;
/// How long one is remembered without a word from it.
pub const PEER_TTL: Duration = Duration::from_secs(90);
/// How far the clocks of two servers may differ before a message counts as an old one.
const MESSAGE_AGE_MICROS: u64 = 120_000_000;
/// Longest text in a message.
const TEXT_MAX: usize = 512;

/// What a server that follows another knows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Following {
    inner: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// When everything that the replica had was here last.
    caught_up: Option<Instant>,
    begun: Instant,
    have: Lsn,
    writer: String,
    error: Option<String>,
}

impl Default for Following {
    fn default() -> Following {
        let state = State {
            caught_up: None,
            begun: Instant::now(),
            have: Lsn::ZERO,
            writer: String::new(),
            error: None,
        };
        Following {
            inner: Arc::new(Mutex::new(state)),
        }
    }
}

impl Following {
    /// Everything that the replica has is here, up to `have`.
    pub fn caught_up(&self, have: Lsn) {
        let mut state = self.inner.lock();
        (state.caught_up, state.have, state.error) = (Some(Instant::now()), have, None);
    }

    /// More was found, and is here up to `have`.
    pub fn moved(&self, have: Lsn) {
        self.inner.lock().have = have;
    }

    /// A look at the replica failed.
    pub fn failed(&self, error: String) {
        self.inner.lock().error = Some(error);
    }

    /// The writer answers at `url`; empty if that is not known.
    pub fn writer_at(&self, url: &str) {
        url.clone_into(&mut self.inner.lock().writer);
    }

    /// Where the writer answers; empty if that is not known.
    #[must_use]
    pub fn writer(&self) -> String {
        self.inner.lock().writer.clone()
    }

    /// The last LSN that is here.
    #[must_use]
    pub fn have(&self) -> Lsn {
        self.inner.lock().have
    }

    /// Why the last look failed, if it did.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.inner.lock().error.clone()
    }

    /// How long ago everything that the replica had was here.
    #[must_use]
    pub fn lag_seconds(&self) -> f64 {
        let state = self.inner.lock();
        state.caught_up.unwrap_or(state.begun).elapsed().as_secs_f64()
    }
}

/// What a standby says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// Its process, any short text.
    pub id: String,
    /// Where it answers; may be empty.
    pub url: String,
    /// The last LSN that it has.
    pub have: u64,
    /// Its lag in seconds.
    pub lag_seconds: f64,
    /// When it said so, microseconds since 1970.
    pub sent_at_micros: u64,
}

/// Makes and checks the code of a message.
pub struct PeerKey(Secret<[u8; 32]>);

impl PeerKey {
    /// The key that all servers with this secret have.
    #[must_use]
    pub fn new(jwt_secret: &Secret<String>) -> PeerKey {
        let secret = Sha256::digest(jwt_secret.expose().as_bytes()).into();
        PeerKey(Secret::new(hmac(&secret, b"azure-pds peers v1")))
    }

    /// The code of `message`, in hex.
    #[must_use]
    pub fn code(&self, message: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(&hmac(self.0.expose(), message))
    }

    /// Whether `code` is that of `message`.
    #[must_use]
    pub fn accepts(&self, message: &[u8], code: &str) -> bool {
        self.code(message).as_bytes().ct_eq(code.as_bytes()).into()
    }
}

/// What this server knows of others on its replica.
pub struct Peers {
    /// For messages between them.
    pub key: PeerKey,
    standbys: Mutex<BTreeMap<String, (Announcement, Instant)>>,
    /// Somebody says that there is a request for our reign.
    pub poked: Notify,
    /// What this server follows, while it does.
    pub following: Mutex<Option<Following>>,
    promotions: Mutex<Option<oneshot::Sender<()>>>,
}

/// Why an announcement was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Its time is too far from ours.
    Stale,
    /// A text in it is too long.
    Malformed,
    /// Too many others are known.
    Full,
}

impl Peers {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(jwt_secret: &Secret<String>) -> Peers {
        Peers {
            key: PeerKey::new(jwt_secret),
            standbys: Mutex::default(),
            poked: Notify::new(),
            following: Mutex::default(),
            promotions: Mutex::default(),
        }
    }

    /// Remembers a standby.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn announce(&self, said: Announcement, now_micros: u64) -> Result<(), NotTaken> {
        if said.sent_at_micros.abs_diff(now_micros) > MESSAGE_AGE_MICROS {
            return Err(NotTaken::Stale);
        }
        if said.id.is_empty() || said.id.len() > TEXT_MAX || said.url.len() > TEXT_MAX {
            return Err(NotTaken::Malformed);
        }
        let mut standbys = self.standbys.lock();
        standbys.retain(|_, (_, at)| at.elapsed() < PEER_TTL);
        if standbys.len() >= PEERS_MAX && !standbys.contains_key(&said.id) {
            return Err(NotTaken::Full);
        }
        standbys.insert(said.id.clone(), (said, Instant::now()));
        Ok(())
    }

    /// The standbys that were heard of lately, with the seconds since.
    #[must_use]
    pub fn standbys(&self) -> Vec<(Announcement, f64)> {
        let mut standbys = self.standbys.lock();
        standbys.retain(|_, (_, at)| at.elapsed() < PEER_TTL);
        let told = standbys
            .values()
            .map(|(said, at)| (said.clone(), at.elapsed().as_secs_f64()));
        told.collect()
    }

    /// The position of the standby that is farthest behind.
    #[must_use]
    pub fn oldest_position(&self) -> Option<Lsn> {
        let standbys = self.standbys();
        standbys.iter().map(|(said, _)| Lsn::saturating(said.have)).min()
    }

    /// What the next promotion by command resolves. One at a time.
    pub fn promotion(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        *self.promotions.lock() = Some(sender);
        receiver
    }

    /// Asks this server to become the writer; false if it does not follow.
    pub fn promote(&self) -> bool {
        let sender = self.promotions.lock().take();
        sender.is_some_and(|sender| sender.send(()).is_ok())
    }
}

#[cfg(test)]
mod tests;
