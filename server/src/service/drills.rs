//! What is known of restore drills and of the scrubbing of the replica: kept in a small file, so that a restart forgets neither.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The file in the data directory.
const FILE: &str = "drills.json";

/// Characters of a finding or an error that are kept.
const TEXT_MAX: usize = 2_000;

/// What is remembered. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Record {
    /// When a drill ended last, however.
    pub last_run: Option<u64>,
    /// When one found nothing wrong last.
    pub last_success: Option<u64>,
    /// Whether that one restored everything; else it sampled.
    pub whole: bool,
    /// How far it restored the log.
    pub restored_lsn: u64,
    /// What is wrong, if the last one did not succeed.
    pub failure: Option<String>,
    /// The object that was scrubbed last.
    pub scrubbed: String,
    /// When this round of scrubbing began.
    pub round_began: Option<u64>,
    /// Objects of this round so far.
    pub round_objects: u64,
    /// When a whole round ended last.
    pub round_ended: Option<u64>,
    /// Damage that was found in this round, and in the one before.
    pub damage: Option<String>,
    /// Damage that was found in the round before.
    pub damage_before: Option<String>,
}

/// The record, and where it is kept.
#[derive(Debug)]
pub struct Drills {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Drills {
    /// Reads the record of a data directory. One that cannot be read is begun anew.
    #[must_use]
    pub fn open(data_dir: &Path) -> Drills {
        let path = data_dir.join(FILE);
        let record = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "the record of restore drills cannot be read and begins anew");
                Record::default()
            }),
            Err(_) => Record::default(),
        };
        Drills {
            path,
            record: Mutex::new(record),
        }
    }

    /// What is remembered now.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Changes the record, and its file in one step. Blocks for a small write.
    pub fn note(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock();
        change(&mut record);
        let Record {
            failure,
            damage,
            damage_before,
            ..
        } = &mut *record;
        for text in [failure, damage, damage_before].into_iter().flatten() {
            if text.chars().count() > TEXT_MAX {
                *text = text.chars().take(TEXT_MAX).collect();
            }
        }
        let temporary = self.path.with_extension("tmp");
        let written = serde_json::to_vec(&*record)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            // It is known until the process ends.
            tracing::warn!(%error, "the record of restore drills cannot be written");
        }
    }

    /// What speaks against the replica.
    pub fn reasons(&self, reasons: &mut Vec<&'static str>) {
        let record = self.record.lock();
        if record.failure.is_some() {
            reasons.push("the last restore drill has failed");
        }
        if record.damage.is_some() || record.damage_before.is_some() {
            reasons.push("damage was found in the replica");
        }
    }

    /// What anybody may know.
    #[must_use]
    pub fn summary(&self, now: u64) -> Value {
        let record = self.record.lock();
        json!({
            "lastSuccess": record.last_success.map(time),
            "ageSeconds": record.last_success.map(|at| now.saturating_sub(at) / 1_000_000),
            "lastRun": record.last_run.map(time),
            "whole": record.last_success.map(|_| record.whole),
            "failed": record.failure.is_some(),
            "scrubbed": record.round_ended.map(time),
        })
    }

    /// What only the operator may know besides.
    #[must_use]
    pub fn details(&self) -> Value {
        let record = self.record.lock();
        json!({
            "restoredLsn": record.restored_lsn,
            "failure": record.failure,
            "scrubRound": { "began": record.round_began.map(time), "objects": record.round_objects },
            "damage": record.damage.as_ref().or(record.damage_before.as_ref()),
        })
    }

    /// Sets the gauges.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub fn observe_gauges(&self) {
        let record = self.record.lock();
        let failed = f64::from(u8::from(record.failure.is_some()));
        metrics::gauge!("pds_drill_failed").set(failed);
        let damaged = record.damage.is_some() || record.damage_before.is_some();
        metrics::gauge!("pds_scrub_damaged").set(f64::from(u8::from(damaged)));
        if let Some(at) = record.last_success {
            metrics::gauge!("pds_drill_last_success_timestamp_seconds").set(at as f64 / 1e6);
        }
        if let Some(at) = record.round_ended {
            metrics::gauge!("pds_scrub_last_round_timestamp_seconds").set(at as f64 / 1e6);
        }
    }
}

fn time(micros: u64) -> String {
    let text = engine::log::Lsn::saturating(micros).timestamp();
    text.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_survives_and_what_is_damaged_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let drills = Drills::open(dir.path());
        drills.note(|record| {
            record.last_success = Some(1_700_000_000_000_000);
            record.failure = Some("x".repeat(10_000));
        });
        let again = Drills::open(dir.path());
        assert_eq!(again.record(), drills.record());
        assert_eq!(again.record().failure.unwrap().len(), TEXT_MAX);
        let mut reasons = Vec::new();
        drills.reasons(&mut reasons);
        assert_eq!(reasons, ["the last restore drill has failed"]);
        assert_eq!(drills.summary(1_700_000_060_000_000)["ageSeconds"], 60);

        std::fs::write(dir.path().join(FILE), b"{\"lastRun\": ").unwrap();
        assert_eq!(Drills::open(dir.path()).record(), Record::default());
        // A field of a later version is no reason to forget the rest.
        std::fs::write(dir.path().join(FILE), b"{\"lastRun\": 5, \"later\": 1}").unwrap();
        assert_eq!(Drills::open(dir.path()).record().last_run, Some(5));
    }
}
