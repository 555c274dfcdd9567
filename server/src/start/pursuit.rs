//! Following the writer's log, and becoming the writer: what a start beside a living writer and a standby have in common.
//!
//! Taking over: catch up → ask for the hand-over (one object in the replica, and a word to the writer) → follow until the
//! writer says that it is done, or the time is up → claim → feed the rest → promote. The claim is what makes it safe; all
//! before it only makes it smooth.
//!
//! A log that the writer has compacted in the replica is not promoted: it is taken from the replica anew first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use engine::Engine;
use engine::log::{Epoch, FeedError};
use shipper::fence::Claim;
use shipper::follow::{FollowError, Look, Tracker};
use shipper::handover::{self, Asked, HandOverRequest, REPLICA_FORMAT};
use shipper::lease::{self, Lease};
use shipper::names::{Generation, WriterId};
use shipper::standby;
use shipper::start::StartOptions;
use shipper::store::ReplicaStore;
use tokio::time::Instant;

use super::ServerError;
use super::compaction::with_causes;
use crate::client::ensure_tls_provider;
use crate::config::Config;
use crate::pages::peers::CODE_HEADER;
use crate::service::succession::{Announcement, Following, PeerKey};

/// The pause between two looks while a hand-over is under way.
const CLOSE_LOOK: Duration = Duration::from_millis(15);
/// So far behind the writer a follower is close enough to ask for the hand-over.
const CLOSE: Duration = Duration::from_secs(2);
/// A follower that comes no closer in this time asks all the same: only writes that wait let it catch up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);
/// The pause between two words to a writer that was asked.
const POKE_EVERY: Duration = Duration::from_millis(500);
/// Words to a writer at whose address nobody listened, after which it is taken for dead.
const DEAF_WORDS: u32 = 3;
/// How long catching up behind a claim may take: the rest of a window of uploads.
const LAST_ENTRIES: Duration = Duration::from_secs(120);
/// How long a word to another server may take.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// A log that follows the writer's.
pub(super) struct Pursuit {
    pub(super) config: Arc<Config>,
    pub(super) store: Arc<dyn ReplicaStore>,
    pub(super) options: StartOptions,
    pub(super) tracker: Tracker,
    pub(super) engine: Engine,
    pub(super) following: Following,
    words: Words,
    /// The manifest that the log was told of.
    told: Option<Generation>,
    /// The writer has compacted what is here, or what was left in the replica.
    outdated: bool,
    /// What comes next was compacted: nothing more can be followed.
    stuck: bool,
}

/// Small messages to other servers on the replica. Nothing depends on their arrival.
#[derive(Clone)]
struct Words {
    client: reqwest::Client,
    key: Arc<PeerKey>,
}

impl Words {
    /// False if nobody listens there.
    async fn say(&self, url: &str, path: &str, message: Vec<u8>) -> bool {
        if url.is_empty() {
            return true;
        }
        let said = self
            .client
            .post(format!("{}{path}", url.trim_end_matches('/')))
            .header(CODE_HEADER, self.key.code(&message))
            .body(message)
            .send()
            .await;
        match said {
            Ok(answer) => {
                tracing::debug!(url, path, status = %answer.status(), "a word to another server");
                true
            }
            Err(error) => {
                tracing::debug!(url, path, %error, "a word to another server");
                !error.is_connect()
            }
        }
    }
}

impl Pursuit {
    pub(super) fn new(
        config: Arc<Config>,
        store: Arc<dyn ReplicaStore>,
        options: StartOptions,
        tracker: Tracker,
        engine: Engine,
    ) -> Result<Pursuit, ServerError> {
        ensure_tls_provider();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(WORD_LIMIT)
            .build()
            .map_err(|error| ServerError::Other(error.to_string()))?;
        let key = Arc::new(PeerKey::new(&config.jwt_secret));
        Ok(Pursuit {
            config,
            store,
            options,
            tracker,
            engine,
            following: Following::default(),
            words: Words { client, key },
            told: None,
            outdated: false,
            stuck: false,
        })
    }

    /// Looks once and takes what is found. True if there may be more.
    pub(super) async fn step(&mut self) -> Result<bool, ServerError> {
        let looked = self.tracker.look().await;
        self.tell_of_manifest();
        match looked {
            Ok(Look::Frames(raw)) => {
                let have = self.engine.feed(raw).await.map_err(|error: FeedError| {
                    ServerError::Other(format!("what was followed cannot be taken: {error}"))
                })?;
                self.following.moved(have);
                Ok(true)
            }
            Ok(Look::Mark) => Ok(true),
            Ok(Look::Nothing) => {
                self.following.caught_up(self.engine.local().get());
                Ok(false)
            }
            Err(FollowError::Compacted { .. }) => {
                (self.outdated, self.stuck) = (true, true);
                Ok(false)
            }
            Err(error) if error.is_passing() => {
                let error = with_causes(&error);
                tracing::debug!(error, "a look at the replica failed");
                self.following.failed(error);
                Ok(false)
            }
            Err(error) => Err(ServerError::Other(format!(
                "the replica cannot be followed: {}",
                with_causes(&error)
            ))),
        }
    }

    fn tell_of_manifest(&mut self) {
        let manifest = self.tracker.manifest();
        if self.told != Some(manifest.generation()) {
            self.told = Some(manifest.generation());
            self.outdated = self.stuck || standby::follow_manifest(&self.engine.log_reader(), manifest);
        }
    }

    /// Whether the log should be taken from the replica anew, and that takes no longer than it must: there is a checkpoint.
    pub(super) fn should_begin_anew(&self) -> bool {
        self.stuck || (self.outdated && !self.tracker.manifest().checkpoints.is_empty())
    }

    /// Whether the log must be taken from the replica anew, by the newest manifest.
    async fn is_outdated(&mut self) -> bool {
        if !self.stuck {
            match self.tracker.refresh().await {
                Ok(()) => self.tell_of_manifest(),
                Err(FollowError::Compacted { .. }) => (self.outdated, self.stuck) = (true, true),
                // The claim reads it, too.
                Err(error) => tracing::debug!(%error, "the newest manifest cannot be read"),
            }
        }
        self.outdated
    }

    /// Takes what the replica has, until a writer that goes on writing is close: what is missing then comes while writes wait.
    async fn catch_up(&mut self) -> Result<(), ServerError> {
        let begun = Instant::now();
        while self.step().await? && !self.stuck {
            // An LSN is the time at which it was given.
            let behind = self
                .options
                .clock
                .now_micros()
                .saturating_sub(self.tracker.have().get());
            if Duration::from_micros(behind) < CLOSE || begun.elapsed() > CATCH_UP_LIMIT {
                break;
            }
        }
        Ok(())
    }

    /// Becomes the writer: see the top of this file. `None` if the log must be taken from the replica anew first.
    pub(super) async fn take_over(&mut self) -> Result<Option<Claim>, ServerError> {
        self.catch_up().await?;
        // Before anybody is asked: no write should wait for a restore.
        if self.is_outdated().await {
            return Ok(None);
        }
        let limit = self.config.succession.handover_timeout;
        let mut asked: Option<(Epoch, bool, Instant)> = None;
        let mut poke_at = Instant::now();
        let deaf = Arc::new(AtomicU32::new(0));
        // Whether the chain is known to its end: an earlier reign's hand-over on the way there says nothing.
        let mut at_end = false;
        let id = WriterId::random(&*self.options.entropy)
            .map_err(|error| ServerError::Other(error.to_string()))?;
        loop {
            let end = *self.tracker.end();
            let now = Instant::now();
            match asked {
                // Another reign has begun since: that writer has to be asked.
                Some((epoch, ours, until)) if epoch == end.epoch => {
                    if end.handed_over && at_end && ours {
                        break;
                    }
                    if now >= until {
                        tracing::warn!(
                            epoch = epoch.0,
                            "the writer did not hand over in time; taking over"
                        );
                        break;
                    }
                }
                _ if limit.is_zero() || (end.handed_over && at_end) => break,
                _ if end.handed_over => {}
                _ => {
                    let ours = self.ask(end.epoch, id).await?;
                    asked = Some((end.epoch, ours, now + limit));
                    poke_at = now;
                }
            }
            if asked.is_some() && now >= poke_at {
                poke_at = now + POKE_EVERY;
                if deaf.load(Ordering::Relaxed) >= DEAF_WORDS {
                    tracing::warn!(
                        epoch = end.epoch.0,
                        "nobody listens where the writer was; taking over"
                    );
                    break;
                }
                let (words, writer, deaf) = (self.words.clone(), self.following.writer(), deaf.clone());
                tokio::spawn(async move {
                    let heard = words.say(&writer, "/_peers/handover", Vec::new()).await;
                    deaf.fetch_add(u32::from(!heard), Ordering::Relaxed);
                });
            }
            at_end = !self.step().await?;
            if self.stuck {
                break;
            }
            if at_end {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
        }
        if self.is_outdated().await {
            return Ok(None);
        }
        self.claim().await
    }

    /// Puts our request where the writer looks. False if another server was first.
    async fn ask(&self, epoch: Epoch, id: WriterId) -> Result<bool, ServerError> {
        let request = HandOverRequest {
            asker: id.to_string(),
            url: self.config.peer_url(),
            format: REPLICA_FORMAT,
            asked_at_micros: self.options.clock.now_micros(),
        };
        let asked = handover::ask(&self.store, self.options.request_timeout, epoch, id, &request).await?;
        tracing::info!(epoch = epoch.0, ?asked, "asked the writer to hand over");
        Ok(asked == Asked::Ours)
    }

    async fn claim(&mut self) -> Result<Option<Claim>, ServerError> {
        let before = self.tracker.end().epoch;
        let claim = standby::claim(&self.store, &self.options, &self.tracker)
            .await
            .map_err(Box::new)?;
        // Published at the last moment. Our reign is an empty one then.
        if standby::follow_manifest(&self.engine.log_reader(), &claim.replica.manifest) {
            return Ok(None);
        }
        let target = claim.before.last_lsn;
        let until = Instant::now() + LAST_ENTRIES;
        while self.engine.local().get() < target {
            if Instant::now() >= until {
                return Err(ServerError::Other(format!(
                    "the entries up to {target} of the claimed chain were not found"
                )));
            }
            if !self.step().await? {
                tokio::time::sleep(CLOSE_LOOK).await;
            }
            if self.stuck {
                return Ok(None);
            }
        }
        let promoted = self.engine.promote(claim.epoch, claim.lsn_floor).await;
        promoted.map_err(|error| ServerError::Other(format!("taking over: {}", with_causes(&error))))?;
        standby::promoted(&self.config.data_dir).map_err(Box::new)?;
        let forgotten = handover::forget(&self.store, self.options.request_timeout, before).await;
        if let Err(error) = forgotten {
            tracing::debug!(%error, "the request for the hand-over is left in the replica");
        }
        tracing::info!(
            epoch = claim.epoch.0,
            lsn = target.get(),
            "took over from the writer before"
        );
        Ok(Some(claim))
    }

    /// Tells the writer that we are here, and how far.
    pub(super) async fn announce(&self, id: &str) {
        let said = Announcement {
            id: id.to_owned(),
            url: self.config.peer_url(),
            have: self.following.have().get(),
            lag_seconds: self.following.lag_seconds(),
            sent_at_micros: self.options.clock.now_micros(),
        };
        if let Ok(message) = serde_json::to_vec(&said) {
            // Whether it is heard changes nothing.
            let _heard = self.words.say(&self.following.writer(), "/_peers", message).await;
        }
    }
}

/// Whether the holder of the reign `epoch` can be asked: `None` if its lease says that it is gone.
///
/// # Errors
/// It writes a format that this program does not know.
pub(super) async fn writer_of(
    store: &Arc<dyn ReplicaStore>,
    options: &StartOptions,
    epoch: Epoch,
    instance: &str,
) -> Result<Option<Lease>, ServerError> {
    let lease = match lease::read(&**store, options.request_timeout).await {
        Ok(found) => found.and_then(|(lease, _)| lease),
        Err(error) => {
            tracing::warn!(%error, "the lease cannot be read; the writer is taken for alive");
            None
        }
    };
    // A lease of a reign before says nothing of this one.
    let Some(lease) = lease.filter(|lease| lease.epoch >= epoch.0) else {
        return Ok(Some(Lease {
            writer: String::new(),
            instance: String::new(),
            epoch: epoch.0,
            url: String::new(),
            format: REPLICA_FORMAT,
            seconds: 0,
            renewals: 0,
            renewed_at_micros: 0,
        }));
    };
    // Two processes cannot have one data directory: the one that kept this lease is gone.
    if lease.is_gone(options.clock.now_micros()) || lease.instance == instance {
        return Ok(None);
    }
    if lease.format > REPLICA_FORMAT {
        return Err(ServerError::Other(format!(
            "the writer of this replica writes format {}, and this program knows {REPLICA_FORMAT}; start a newer one",
            lease.format
        )));
    }
    Ok(Some(lease))
}
