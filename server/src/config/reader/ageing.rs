//! When old segments go to cheaper tiers, and whether that pays.

use std::time::Duration;

use shipper::ageing::{Ageing, LEAST_COLD, LEAST_COOL};
use shipper::cost::{MONTH, Prices};

use super::Reader;
use crate::config::{DrillSettings, Replica};

impl Reader {
    /// When old segments go to cheaper tiers. The log is compacted every `compacted` at the latest.
    pub(super) fn ageing(
        &mut self,
        replica: Option<&Replica>,
        prices: &Prices,
        compacted: Duration,
        drills: &DrillSettings,
    ) -> Ageing {
        const DAY: Duration = Duration::from_secs(86_400);
        let mut after = |name: &'static str, least: Duration| {
            let age = DAY * self.number::<u32>(name, 0, 0..=3_650);
            if !age.is_zero() && age < least {
                let least = least.as_secs() / DAY.as_secs();
                self.problems.push(format!(
                    "{name} must be 0 or at least {least}: so long the tier is paid for at least"
                ));
            }
            (!age.is_zero()).then_some(age)
        };
        let ageing = Ageing {
            cool_after: after("PDS_REPLICA_COOL_AFTER_DAYS", LEAST_COOL),
            cold_after: after("PDS_REPLICA_COLD_AFTER_DAYS", LEAST_COLD),
            ..Ageing::default()
        };
        if let (Some(cool), Some(cold)) = (ageing.cool_after, ageing.cold_after)
            && cold < cool.saturating_add(LEAST_COOL)
        {
            self.problems.push(format!(
                "PDS_REPLICA_COLD_AFTER_DAYS must be at least {} more than PDS_REPLICA_COOL_AFTER_DAYS: so long the cool tier is \
                 paid for at least",
                LEAST_COOL.as_secs() / DAY.as_secs()
            ));
        }
        if ageing.is_on() && !matches!(replica, Some(Replica::Azure(_))) {
            self.warnings.push(
                "old segments are to go to a cheaper tier, which only a replica in Azure has: nothing is moved".to_owned(),
            );
            return ageing;
        }
        let tiers = [
            (ageing.cool_after, prices.cool_stored, prices.cool_retrieved),
            (ageing.cold_after, prices.cold_stored, prices.cold_retrieved),
        ];
        let tiers = tiers
            .into_iter()
            .filter_map(|(after, stored, read)| Some((after?, stored, read)));
        let (mut too_young, mut too_often) = (false, false);
        for (after, stored, read) in tiers {
            too_young |= compacted < after.saturating_add(LEAST_COOL);
            let times = |every: Duration| match every.is_zero() {
                true => 0.0,
                false => MONTH.as_secs_f64() / every.as_secs_f64(),
            };
            // Each reads all of it.
            let reads = times(drills.interval) + times(drills.scrub_interval);
            too_often |= reads * read >= prices.stored - stored;
        }
        if too_young {
            self.warnings.push(
                "old segments are to go to a cheaper tier, and the log is compacted before that pays: see docs/cost.md and                  PDS_COMPACTION_FORCE_AFTER_DAYS"
                    .to_owned(),
            );
        }
        if too_often {
            self.warnings.push(
                "old segments are to go to a cheaper tier, and drills and scrubbing read them so often that it costs more than                  it saves: see docs/cost.md, PDS_DRILL_INTERVAL_HOURS and PDS_SCRUB_INTERVAL_HOURS"
                    .to_owned(),
            );
        }
        ageing
    }
}
