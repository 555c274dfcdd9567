//! Composition: from settings to a running server and back to a stopped one. Only here are tasks started.

use engine::log::Lsn;
use serde_json::{Value, json};
use shipper::ship::{ShipHandle, ShipState};
use std::sync::{Arc, OnceLock};

use crate::auth::admin::AdminAuth;
use crate::auth::tokens::SessionTokens;
use crate::config::{Config, Durability};
use crate::firehose::Firehose;
use crate::limits::RateLimits;
use crate::proxy::Proxy;
use crate::service::accounts::Accounts;
use crate::service::blobs::Blobs;
use crate::service::core::Core;
use crate::service::identity::Identities;
use crate::service::mail::Mailer;
use crate::service::moderation::Moderation;
use crate::service::names::Names;
use crate::service::replication::{Condition, LAG_MAX_SECONDS, Replication};
use crate::service::repos::Repos;
use crate::service::repos::export::Exports;
use crate::service::repos::import::Imports;
use crate::service::service_auth::ServiceAuth;
use crate::service::succession::Peers;
use crate::start::DiskUse;
use crate::xrpc::room::BodyRoom;

/// Everything a request may need.
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// The engine.
    pub engine: Core,
    /// Session tokens.
    pub tokens: Arc<SessionTokens>,
    /// The administrator's password.
    pub admin: AdminAuth,
    /// Accounts.
    pub accounts: Accounts,
    /// Their identities.
    pub identities: Identities,
    /// What moderators do.
    pub moderation: Moderation,
    /// Repos.
    pub repos: Repos,
    /// Media blobs.
    pub blobs: Blobs,
    /// Mail to account holders.
    pub mailer: Arc<Mailer>,
    /// Who may ask how often, if that is limited.
    pub limits: Option<Arc<RateLimits>>,
    /// Handles and DIDs.
    pub names: Names,
    /// Tokens with which services call each other in the name of accounts.
    pub service_auth: ServiceAuth,
    /// Requests for other services.
    pub proxy: Proxy,
    /// The event stream.
    pub firehose: Firehose,
    /// The bound of concurrent exports.
    pub exports: Exports,
    /// Imports of whole repos.
    pub imports: Imports,
    /// The memory for request bodies.
    pub bodies: BodyRoom,
    /// Replication, if there is a replica: of the writer. A standby gets it when it is promoted.
    pub shipper: OnceLock<ShipHandle>,
    /// How it is and what it costs.
    pub replication: OnceLock<Replication>,
    /// Other servers on the same replica.
    pub peers: Arc<Peers>,
    /// How full the disk is.
    pub disk: DiskUse,
}

/// What `/_health/ready` or `/_health/replication` answers.
pub struct Health {
    /// Whether the answer is 200.
    pub ready: bool,
    /// The details.
    pub json: Value,
}

impl App {
    /// Seconds since 1970.
    #[must_use]
    pub fn now_seconds(&self) -> u64 {
        self.engine.now_micros() / 1_000_000
    }

    /// The truth about replay, fencing and lag.
    #[must_use]
    pub fn health(&self) -> Health {
        let engine = self.engine.health();
        let mut ready = engine.failed.is_none() && engine.fenced.is_none();
        let mut replica = Value::Null;
        if let Some(shipper) = self.shipper.get() {
            let lag = shipper.lag();
            let state = shipper.state();
            ready &= matches!(state, ShipState::Shipping | ShipState::Retrying { .. });
            replica = json!({
                "state": state_word(&state),
                "lagSeconds": lag.seconds,
                "lagBytes": lag.bytes,
                "lagEntries": lag.entries,
            });
        }
        let following = self.peers.following.lock().clone();
        let standby = following.as_ref().map(|following| {
            json!({
                "writer": following.writer(),
                "lagSeconds": following.lag_seconds(),
                "lastError": following.error(),
            })
        });
        // A store that is away makes writes wait or fail, and reads go on: whoever takes us from the network for that takes the
        // reads away, too.
        let behind = following
            .as_ref()
            .is_some_and(|following| following.lag_seconds() > LAG_MAX_SECONDS);
        let degraded = behind
            || self.replication.get().is_some_and(|replication| {
                replication.condition(&replication.ship.lag()).0 == Condition::Degraded
            });
        let status = match (ready, degraded) {
            (false, _) => "not ready",
            (true, true) => "degraded",
            (true, false) => "ready",
        };
        let json = json!({
            "role": if following.is_some() { "standby" } else { "writer" },
            "following": standby,
            "status": status,
            "phase": "serving",
            "durability": self.durability_word(),
            "failure": engine.failed.as_deref(),
            "fencedBy": engine.fenced.map(|epoch| epoch.0),
            "epoch": engine.epoch.0,
            "backlogBytes": engine.backlog_bytes,
            "watermarks": {
                "appended": engine.appended.get(),
                "local": engine.local.get(),
                "remote": engine.remote.map(Lsn::get),
                "applied": engine.applied.get(),
                "visible": engine.visible.get(),
            },
            "replica": replica,
        });
        Health { ready, json }
    }

    /// How replication is; `details` are for the operator.
    #[must_use]
    pub fn replication_health(&self, details: bool) -> Health {
        let Some(replication) = self.replication.get() else {
            return Health {
                ready: true,
                json: json!({ "state": "none", "durability": self.durability_word() }),
            };
        };
        let (condition, mut fields) = replication.summary(&self.engine.health());
        fields.insert("durability".to_owned(), json!(self.durability_word()));
        if details {
            fields.extend(replication.details());
        }
        Health {
            ready: condition != Condition::Failed,
            json: Value::Object(fields),
        }
    }

    fn durability_word(&self) -> &'static str {
        match self.config.durability {
            Durability::Local => "local",
            Durability::Remote => "remote",
        }
    }

    /// Sets the gauges that are read off the state rather than counted.
    #[expect(
        clippy::cast_precision_loss,
        reason = "gauges are floating point; an LSN below 2^53 is exact"
    )]
    pub fn observe_gauges(&self) {
        let engine = self.engine.health();
        for (name, lsn) in [
            ("appended", Some(engine.appended)),
            ("local", Some(engine.local)),
            ("remote", engine.remote),
            ("applied", Some(engine.applied)),
            ("visible", Some(engine.visible)),
        ] {
            if let Some(lsn) = lsn {
                metrics::gauge!("pds_watermark_lsn", "stage" => name).set(lsn.get() as f64);
            }
        }
        metrics::gauge!("pds_log_backlog_bytes").set(engine.backlog_bytes as f64);
        self.repos.observe_gauges();
        metrics::gauge!("pds_firehose_subscribers").set(self.firehose.subscribers() as f64);
        metrics::gauge!("pds_firehose_lag_seconds_max").set(self.firehose.lag_seconds());
        if let Some(replication) = self.replication.get() {
            replication.observe_gauges();
        }
    }
}

/// The shipper's state in one word.
fn state_word(state: &ShipState) -> &'static str {
    match state {
        ShipState::Shipping => "shipping",
        ShipState::Retrying { .. } => "retrying",
        ShipState::Fenced { .. } => "fenced",
        ShipState::Failed { .. } => "failed",
        ShipState::Stopped => "stopped",
    }
}
