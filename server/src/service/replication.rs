//! How replication is, and what it costs: for `/_health/replication` and the metrics.

use std::sync::Arc;

use engine::clock::Clock;
use engine::engine::Health as EngineHealth;
use engine::log::Lsn;
use serde_json::{Map, Value, json};
use shipper::cost::{LEAST_MEASURED, Prices};
use shipper::ledger::Ledger;
use shipper::pace::{BudgetReport, RequestBudget};
use shipper::ship::{Lag, ShipHandle, ShipState};
use shipper::store::counted::{Class, Purpose};

use crate::service::drills::Drills;

/// Lag above which replication is called degraded.
pub const LAG_MAX_SECONDS: f64 = 30.0;

/// Replication in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Ok,
    /// It goes on, or will by itself, and somebody should look.
    Degraded,
    /// It has ended, and the server with it.
    Failed,
}

impl Condition {
    const ALL: [Condition; 3] = [Condition::Ok, Condition::Degraded, Condition::Failed];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Condition::Ok => "ok",
            Condition::Degraded => "degraded",
            Condition::Failed => "failed",
        }
    }
}

/// What is known of a replica.
pub struct Replication {
    /// The shipper.
    pub ship: ShipHandle,
    /// Where the replica is, without secrets.
    pub place: String,
    /// What the store was asked.
    pub ledger: Arc<Ledger>,
    /// What that costs.
    pub prices: Prices,
    /// How many requests a month may have.
    pub budget: Option<Arc<RequestBudget>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What restore drills have shown.
    pub drills: Drills,
}

impl Replication {
    /// The word for how it is, and what speaks against `ok`.
    #[must_use]
    pub fn condition(&self, lag: &Lag) -> (Condition, Vec<&'static str>) {
        let mut reasons = Vec::new();
        let ended = match self.ship.state() {
            ShipState::Shipping => false,
            ShipState::Retrying { .. } => {
                reasons.push("uploads fail and are tried again");
                false
            }
            ShipState::Fenced { .. } => {
                reasons.push("another server has taken over");
                true
            }
            ShipState::Failed { .. } => {
                reasons.push("shipping has failed");
                true
            }
            ShipState::Stopped => {
                reasons.push("shipping has stopped");
                true
            }
        };
        if lag.seconds > LAG_MAX_SECONDS {
            reasons.push("the replica is far behind");
        }
        if self.ship.trouble().is_some() {
            reasons.push("segments, checkpoints or deletions do not get on");
        }
        self.drills.reasons(&mut reasons);
        let condition = match (ended, reasons.is_empty()) {
            (true, _) => Condition::Failed,
            (false, false) => Condition::Degraded,
            (false, true) => Condition::Ok,
        };
        (condition, reasons)
    }

    /// What anybody may know.
    #[must_use]
    pub fn summary(&self, engine: &EngineHealth) -> (Condition, Map<String, Value>) {
        let lag = self.ship.lag();
        let (condition, reasons) = self.condition(&lag);
        let checkpoint = self.ship.named().checkpoint.map(|lsn| {
            json!({
                "lsn": lsn.get(),
                "time": String::from_utf8_lossy(&lsn.timestamp()),
                "ageSeconds": self.age_seconds(lsn),
            })
        });
        let summary = json!({
            "state": condition.word(),
            "reasons": reasons,
            "lag": { "seconds": lag.seconds, "bytes": lag.bytes, "entries": lag.entries },
            "oldestUnshippedLsn": lag.oldest_unshipped.map(Lsn::get),
            "watermarks": {
                "local": engine.local.get(),
                "remote": engine.remote.map(Lsn::get),
                "visible": engine.visible.get(),
            },
            "checkpoint": checkpoint,
            "drill": self.drills.summary(self.clock.now_micros()),
        });
        let fields = match summary {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        (condition, fields)
    }

    /// What only the operator may know besides.
    #[must_use]
    pub fn details(&self) -> Map<String, Value> {
        let day = self.ledger.last_day();
        let named = self.ship.named();
        let month = self.prices.project(&day, named.bytes, named.cooled).map(|month| {
            json!({
                "requests": month.requests,
                "stored": month.stored,
                "retrieved": month.retrieved,
                "transfer": month.transfer,
                "total": month.total(),
            })
        });
        let prices = &self.prices;
        let details = json!({
            "replica": self.place,
            "epoch": self.ship.epoch().0,
            "lastError": self.ship.last_error(),
            "trouble": self.ship.trouble(),
            "stored": {
                "bytes": named.bytes,
                "coolBytes": named.cooled.cool,
                "coldBytes": named.cooled.cold,
                "segments": named.segments,
            },
            "lastDay": {
                "measuredSeconds": day.measured.as_secs(),
                "requests": by_class(|class| day.requests(class)),
                "bytes": { "up": day.up, "down": day.down },
            },
            "sinceStart": {
                "write": by_purpose(|purpose| self.ledger.requests(Class::Write, purpose)),
                "list": by_purpose(|purpose| self.ledger.requests(Class::List, purpose)),
                "read": by_purpose(|purpose| self.ledger.requests(Class::Read, purpose)),
                "delete": by_purpose(|purpose| self.ledger.requests(Class::Delete, purpose)),
                "bytesUp": by_purpose(|purpose| self.ledger.up(purpose)),
                "bytesDown": by_purpose(|purpose| self.ledger.down(purpose)),
            },
            "cost": {
                "monthlyUsd": month,
                "measuredSecondsNeeded": LEAST_MEASURED.as_secs(),
                "pricesUsd": {
                    "millionWrites": prices.write,
                    "millionLists": prices.list,
                    "millionReads": prices.read,
                    "millionDeletes": prices.delete,
                    "gibStoredMonth": prices.stored,
                    "gibCoolStoredMonth": prices.cool_stored,
                    "gibColdStoredMonth": prices.cold_stored,
                    "gibCoolRetrieved": prices.cool_retrieved,
                    "gibColdRetrieved": prices.cold_retrieved,
                    "gibUp": prices.up,
                    "gibDown": prices.down,
                },
            },
            "drillDetails": self.drills.details(),
            "budget": self.budget.as_ref().map(|budget| budget_json(&budget.report())),
        });
        match details {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// Sets the gauges that are read off the state rather than counted.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub fn observe_gauges(&self) {
        let lag = self.ship.lag();
        let (now, _) = self.condition(&lag);
        for condition in Condition::ALL {
            let is = f64::from(u8::from(condition == now));
            metrics::gauge!("pds_replica_state", "state" => condition.word()).set(is);
        }
        let named = self.ship.named();
        metrics::gauge!("pds_replica_stored_bytes").set(named.bytes as f64);
        metrics::gauge!("pds_replica_cooled_bytes", "tier" => "cool").set(named.cooled.cool as f64);
        metrics::gauge!("pds_replica_cooled_bytes", "tier" => "cold").set(named.cooled.cold as f64);
        if let Some(lsn) = named.checkpoint {
            metrics::gauge!("pds_replica_checkpoint_lsn").set(lsn.get() as f64);
            metrics::gauge!("pds_replica_checkpoint_age_seconds").set(self.age_seconds(lsn));
        }
        let day = self.ledger.last_day();
        metrics::gauge!("pds_replica_measured_seconds").set(day.measured.as_secs_f64());
        if let Some(month) = self.prices.project(&day, named.bytes, named.cooled) {
            for (part, dollars) in [
                ("requests", month.requests),
                ("stored", month.stored),
                ("retrieved", month.retrieved),
                ("transfer", month.transfer),
            ] {
                metrics::gauge!("pds_replica_projected_monthly_usd", "part" => part).set(dollars);
            }
        }
        if let Some(budget) = &self.budget {
            budget.report();
        }
        self.drills.observe_gauges();
    }

    /// Seconds since the moment that an LSN names.
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    fn age_seconds(&self, lsn: Lsn) -> f64 {
        self.clock.now_micros().saturating_sub(lsn.get()) as f64 / 1e6
    }
}

fn budget_json(report: &BudgetReport) -> Value {
    json!({
        "state": report.state.word(),
        "monthlyRequests": report.monthly,
        "reserveRequests": report.reserve.round(),
        "intervalMs": u64::try_from(report.interval.as_millis()).unwrap_or(u64::MAX),
    })
}

fn by_class(count: impl Fn(Class) -> u64) -> Value {
    let counts = Class::ALL.map(|class| (class.word().to_owned(), json!(count(class))));
    Value::Object(counts.into_iter().collect())
}

/// What is not zero.
fn by_purpose(count: impl Fn(Purpose) -> u64) -> Value {
    let counts = Purpose::ALL.map(|purpose| (purpose, count(purpose)));
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    Value::Object(
        counts
            .map(|(purpose, count)| (purpose.word().to_owned(), json!(count)))
            .collect(),
    )
}
