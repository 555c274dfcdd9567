//! The memory plan: one budget, divided over everything that may grow.
//!
//! Each part has a least size that works, a weight by which it shares in what is left, and a size beyond which more is of no
//! use. A setting that names a part takes it out of the division. What cannot fit is refused at start, because a server that
//! runs out of memory under load loses more than one that does not start.
//!
//! The plan counts what this process allocates, and the pages of log segments that are mapped for reading: they are the kernel's
//! cache, but show in the resident size. Beyond their part they are given back, which costs little.

use std::fmt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Budget where neither a setting nor a control group gives one: modest, as the machine may have other work.
const DEFAULT_BUDGET: u64 = 256 * MIB;
/// Least budget that a server can work with.
pub const MIN_BUDGET: u64 = 112 * MIB;
/// Share of the control group's limit that becomes the budget, in percent; the kernel's buffers and mapped files need the rest.
const CGROUP_PERCENT: u64 = 75;
/// Code, stacks, connections, and what an allocator keeps.
const PROCESS: u64 = 32 * MIB;
/// SQLite's page caches: one writer of 16 MiB, four readers of 4 MiB, each a bound that is rarely reached.
const ACCOUNTS: u64 = 16 * MIB;
/// Memory of one export while it runs.
pub const EXPORT_BYTES: u64 = MIB;
/// Memory of one password hash while it is computed, and for a moment after it.
pub const HASH_BYTES: u64 = 19 * MIB;
/// Memory of a restore drill: what is fetched, folded and compared, all a piece at a time.
pub const DRILL_BYTES: u64 = 32 * MIB;
/// Hashes at once are limited to this part of the budget, but to one at least.
const HASHING_PART: u64 = 6;

/// Where the budget comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetSource {
    /// `PDS_MEMORY_BUDGET`.
    Setting,
    /// Three quarters of the control group's limit.
    ControlGroup,
    /// Neither: the default.
    Default,
}

impl fmt::Display for BudgetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BudgetSource::Setting => "PDS_MEMORY_BUDGET",
            BudgetSource::ControlGroup => "three quarters of the container's limit",
            BudgetSource::Default => "the default",
        })
    }
}

/// The divided budget. All figures are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The whole.
    pub budget: u64,
    /// Where it comes from.
    pub source: BudgetSource,
    /// Pages of the index.
    pub index_cache: u64,
    /// Trees of recently written repos.
    pub trees: u64,
    /// Recent frames of the log, for shipper, views and firehose.
    pub log_ring: u64,
    /// Recent messages for live subscribers.
    pub firehose_ring: u64,
    /// Pages of mapped log segments.
    pub mapped_log: u64,
    /// Writes that wait for the log.
    pub log_queue: u64,
    /// Bodies of requests that are being read or handled.
    pub bodies: u64,
    /// Repo exports that run at once.
    pub exports: u64,
    /// Chunks on their way to the replica.
    pub replication: u64,
    /// A restore drill; zero if there is no room for one, or none is wanted.
    pub drills: u64,
    /// Password hashes that run at once.
    pub hashing: u64,
    /// Page caches of the account database.
    pub accounts: u64,
    /// Everything else.
    pub process: u64,
}

/// What is already decided when the budget is divided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed {
    /// `PDS_INDEX_CACHE_BYTES`.
    pub index_cache: Option<u64>,
    /// `PDS_REPO_CACHE_BYTES`.
    pub trees: Option<u64>,
    /// `PDS_LOG_RING_BYTES`.
    pub log_ring: Option<u64>,
    /// `PDS_FIREHOSE_MAX_LAG_BYTES`.
    pub firehose_ring: Option<u64>,
    /// `PDS_LOG_QUEUE_BYTES`.
    pub log_queue: Option<u64>,
    /// Processors: no more password hashes than that are computed at once.
    pub cores: u64,
    /// Uploads at a time; none without a replica.
    pub uploads: u64,
    /// Whether restore drills are wanted.
    pub drills: bool,
}

/// A part that shares in what is left.
struct Part {
    name: &'static str,
    decided: Option<u64>,
    least: u64,
    weight: u64,
    most: u64,
}

impl MemoryPlan {
    /// Divides `budget`.
    ///
    /// # Errors
    /// The least that the parts need is more than the budget; the text names the parts.
    pub fn divide(budget: u64, source: BudgetSource, fixed: &Fixed) -> Result<MemoryPlan, String> {
        let shared = |name, decided, least, weight, most| Part {
            name,
            decided,
            least: least * MIB,
            weight,
            most: most * MIB,
        };
        let replicated = fixed.uploads > 0;
        let parts = [
            shared("index cache", fixed.index_cache, 8, 30, 1 << 20),
            shared("trees", fixed.trees, 4, 14, 512),
            shared("log ring", fixed.log_ring, 2, 8, 64),
            shared("firehose ring", fixed.firehose_ring, 4, 16, 256),
            shared("mapped log", None, 1, 8, 1 << 10),
            shared("log queue", fixed.log_queue, 16, 6, 64),
            shared("request bodies", None, 8, 12, 256),
            shared("exports", None, 4, 4, 32),
            // Raw and compressed, for each upload.
            if replicated {
                shared("replication", None, fixed.uploads, 10, fixed.uploads * 16)
            } else {
                shared("replication", Some(0), 0, 0, 0)
            },
        ];
        let hashing = (budget / HASHING_PART / HASH_BYTES).min(fixed.cores).max(1) * HASH_BYTES;
        let process = PROCESS + ACCOUNTS + hashing;
        let least = |part: &Part| part.decided.unwrap_or(part.least);
        let needed = process + parts.iter().map(least).sum::<u64>();
        if needed > budget {
            let decided: Vec<String> = parts
                .iter()
                .map(|part| format!("{} {}", part.name, mib(least(part))))
                .collect();
            return Err(format!(
                "the memory plan does not fit: {} are needed (process and accounts {}, password hashing {}, {}), the budget is {} ({source})",
                mib(needed),
                mib(PROCESS + ACCOUNTS),
                mib(hashing),
                decided.join(", "),
                mib(budget),
            ));
        }
        let mut sizes = parts.each_ref().map(least);
        let mut left = budget - needed;
        // What serves requests comes first: a drill has at most a third of what is left.
        let drills = if fixed.drills && left >= 3 * DRILL_BYTES {
            DRILL_BYTES
        } else {
            0
        };
        left -= drills;
        // A part that is full leaves its share to the others; each round fills at least one or is the last.
        loop {
            let open = |size: u64, part: &Part| part.decided.is_none() && size < part.most;
            let weights: u64 = parts
                .iter()
                .zip(sizes)
                .filter(|(part, size)| open(*size, part))
                .map(|(part, _)| part.weight)
                .sum();
            if weights == 0 || left == 0 {
                break;
            }
            let round = left;
            for (part, size) in parts.iter().zip(&mut sizes) {
                if open(*size, part) {
                    let more = (round * part.weight / weights).min(part.most - *size);
                    *size += more;
                    left -= more;
                }
            }
            if left == round {
                break;
            }
        }
        let [
            index_cache,
            trees,
            log_ring,
            firehose_ring,
            mapped_log,
            log_queue,
            bodies,
            exports,
            replication,
        ] = sizes;
        Ok(MemoryPlan {
            budget,
            source,
            index_cache,
            trees,
            log_ring,
            firehose_ring,
            mapped_log,
            log_queue,
            bodies,
            exports,
            replication,
            drills,
            hashing,
            accounts: ACCOUNTS,
            process: PROCESS,
        })
    }

    /// Password hashes that may be computed at once.
    #[must_use]
    pub fn hashes_at_once(&self) -> usize {
        usize::try_from(self.hashing / HASH_BYTES)
            .unwrap_or(usize::MAX)
            .max(1)
    }

    /// Exports that may run at once.
    #[must_use]
    pub fn exports_at_once(&self) -> usize {
        usize::try_from(self.exports / EXPORT_BYTES)
            .unwrap_or(usize::MAX)
            .max(1)
    }

    /// Raw bytes at which a chunk for the replica is cut, with `uploads` at a time.
    #[must_use]
    pub fn chunk_bytes(&self, uploads: usize) -> usize {
        let each = self.replication / 2 / (uploads.max(1) as u64);
        usize::try_from(each)
            .unwrap_or(usize::MAX)
            .clamp(512 << 10, 8 << 20)
    }

    /// One line for the log and for `check-config`.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts = [
            ("index", self.index_cache),
            ("trees", self.trees),
            ("log ring", self.log_ring),
            ("firehose ring", self.firehose_ring),
            ("mapped log", self.mapped_log),
            ("log queue", self.log_queue),
            ("bodies", self.bodies),
            ("exports", self.exports),
            ("replication", self.replication),
            ("drills", self.drills),
            ("hashing", self.hashing),
            ("accounts", self.accounts),
            ("process", self.process),
        ];
        let parts: Vec<String> = parts
            .iter()
            .map(|(name, bytes)| format!("{name} {}", mib(*bytes)))
            .collect();
        format!("{} by {}: {}", mib(self.budget), self.source, parts.join(", "))
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}

/// The budget where no setting gives one: from the control group's limit, else the default.
#[must_use]
pub fn default_budget() -> (u64, BudgetSource) {
    let limit = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| cgroup_limit(Path::new(path)));
    from_limit(limit, physical_memory())
}

fn from_limit(limit: Option<u64>, physical: Option<u64>) -> (u64, BudgetSource) {
    // "No limit" is a number beyond any machine in the older interface.
    match limit.filter(|limit| physical.is_none_or(|physical| *limit < physical)) {
        Some(limit) => (limit / 100 * CGROUP_PERCENT, BudgetSource::ControlGroup),
        None => (DEFAULT_BUDGET, BudgetSource::Default),
    }
}

fn cgroup_limit(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(plan: &MemoryPlan) -> u64 {
        plan.index_cache
            + plan.trees
            + plan.log_ring
            + plan.firehose_ring
            + plan.mapped_log
            + plan.log_queue
            + plan.bodies
            + plan.exports
            + plan.replication
            + plan.drills
            + plan.hashing
            + plan.accounts
            + plan.process
    }

    #[test]
    fn the_least_budget_fits_with_four_uploads_and_one_hash() {
        let fixed = Fixed {
            cores: 8,
            uploads: 4,
            ..Fixed::default()
        };
        let needed = 48 + 19 + 8 + 4 + 2 + 4 + 1 + 16 + 8 + 4 + 4;
        assert!(MIN_BUDGET / MIB <= needed);
        let plan = MemoryPlan::divide(needed * MIB, BudgetSource::Setting, &fixed).unwrap();
        assert_eq!((plan.index_cache, plan.replication), (8 * MIB, 4 * MIB));
        assert_eq!(plan.hashes_at_once(), 1);
        let error = MemoryPlan::divide((needed - 1) * MIB, BudgetSource::Setting, &fixed).unwrap_err();
        assert!(
            error.contains("118 MiB are needed") && error.contains("the budget is 117 MiB"),
            "{error}"
        );
        let roomy = MemoryPlan::divide(1 << 30, BudgetSource::Setting, &fixed).unwrap();
        assert_eq!(roomy.hashes_at_once(), 8);
        let default = MemoryPlan::divide(DEFAULT_BUDGET, BudgetSource::Default, &fixed).unwrap();
        assert_eq!((default.hashes_at_once(), default.drills), (2, 0));
        // A drill has its part where there is room, and none where the least is just there.
        let fixed = Fixed {
            drills: true,
            ..fixed
        };
        let default = MemoryPlan::divide(DEFAULT_BUDGET, BudgetSource::Default, &fixed).unwrap();
        assert_eq!(default.drills, DRILL_BYTES);
        let small = MemoryPlan::divide(needed * MIB, BudgetSource::Setting, &fixed).unwrap();
        assert_eq!(small.drills, 0);
    }

    #[test]
    fn a_decided_part_is_kept_and_may_make_the_plan_impossible() {
        let fixed = Fixed {
            trees: Some(200 * MIB),
            cores: 2,
            ..Fixed::default()
        };
        let plan = MemoryPlan::divide(512 * MIB, BudgetSource::Setting, &fixed).unwrap();
        assert_eq!((plan.trees, plan.replication), (200 * MIB, 0));
        assert!(MemoryPlan::divide(256 * MIB, BudgetSource::Setting, &fixed).is_err());
    }

    #[test]
    fn a_limit_counts_only_where_it_is_one() {
        let gib = 1 << 30;
        assert_eq!(
            from_limit(Some(gib), Some(8 * gib)),
            (gib / 100 * 75, BudgetSource::ControlGroup)
        );
        for none in [None, Some(u64::MAX / 4096 * 4096), Some(8 * gib)] {
            assert_eq!(
                from_limit(none, Some(8 * gib)),
                (DEFAULT_BUDGET, BudgetSource::Default)
            );
        }
    }

    proptest! {
        #[test]
        fn parts_never_exceed_the_budget(
            budget in 0u64..(64 << 30),
            trees in proptest::option::of(0u64..(4 << 30)),
            queue in proptest::option::of(0u64..(4 << 30)),
            cores in 0u64..64,
            uploads in 0u64..=16,
            drills in proptest::bool::ANY,
        ) {
            let fixed = Fixed { trees, log_queue: queue, cores, uploads, drills, ..Fixed::default() };
            if let Ok(plan) = MemoryPlan::divide(budget, BudgetSource::Setting, &fixed) {
                prop_assert!(total(&plan) <= budget);
                // All but rounding is used, up to what is of use.
                prop_assert!(budget - total(&plan) < MIB || plan.index_cache >= 1 << 40);
                prop_assert!(plan.index_cache >= 8 * MIB && plan.firehose_ring >= 4 * MIB);
                prop_assert!(plan.chunk_bytes(4) >= 512 << 10 && plan.exports_at_once() >= 1);
            }
        }
    }
}
