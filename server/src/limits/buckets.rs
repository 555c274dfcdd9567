//! The buckets of the reference PDS: how many points, in which time, for whom.

use std::time::Duration;

/// So many points in so much time, counted for each key. The time begins with the first point.
#[derive(Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Unique; part of what is kept in Redis.
    pub name: &'static str,
    /// Points.
    pub points: u32,
    /// The time.
    pub window: Duration,
}

const fn bucket(name: &'static str, points: u32, seconds: u64) -> Bucket {
    Bucket {
        name,
        points,
        window: Duration::from_secs(seconds),
    }
}

const MINUTES_5: u64 = 5 * 60;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// What counts everything that an address asks for.
pub static GLOBAL: Bucket = bucket("global-ip", 3000, MINUTES_5);
/// Writes to a repo: see [`write_points`].
pub static WRITES: [Bucket; 2] = [
    bucket("repo-write-hour", 5000, HOUR),
    bucket("repo-write-day", 35_000, DAY),
];
/// Attempts to log in, by identifier and address.
pub static LOGIN: [Bucket; 2] = [
    bucket("com.atproto.server.createSession-0", 300, DAY),
    bucket("com.atproto.server.createSession-1", 30, MINUTES_5),
];

/// Points of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new record.
    Create,
    /// Another version of a record, or a record under a given key.
    Update,
    /// A record less.
    Delete,
}

/// Points of writes in one request.
#[must_use]
pub fn write_points(writes: impl IntoIterator<Item = Write>) -> u32 {
    let points = writes.into_iter().map(|write| match write {
        Write::Create => 3,
        Write::Update => 2,
        Write::Delete => 1,
    });
    points.fold(0, u32::saturating_add)
}

/// For whom a method's calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedBy {
    /// The client's address.
    Address,
    /// The account that calls.
    Account,
}

/// What bounds one method, besides the global bucket.
#[derive(Debug)]
pub struct MethodLimit {
    /// The method.
    pub nsid: &'static str,
    /// For whom.
    pub by: CountedBy,
    /// How much.
    pub buckets: &'static [Bucket],
}

macro_rules! methods {
    ($($nsid:literal $by:ident $($points:literal / $seconds:expr),+;)*) => {
        &[$(MethodLimit {
            nsid: $nsid,
            by: CountedBy::$by,
            buckets: methods!(@ $nsid $($points / $seconds),+),
        }),*]
    };
    (@ $nsid:literal $points:literal / $seconds:expr) => {
        &[bucket(concat!($nsid, "-0"), $points, $seconds)]
    };
    (@ $nsid:literal $points:literal / $seconds:expr, $more:literal / $longer:expr) => {
        &[bucket(concat!($nsid, "-0"), $points, $seconds), bucket(concat!($nsid, "-1"), $more, $longer)]
    };
}

/// Every method with buckets of its own that are counted by who calls.
pub static METHODS: &[MethodLimit] = methods! {
    "com.atproto.server.createAccount" Address 100 / MINUTES_5;
    "com.atproto.server.requestPasswordReset" Address 50 / DAY, 15 / HOUR;
    "com.atproto.server.resetPassword" Address 50 / MINUTES_5;
    "com.atproto.server.deleteAccount" Address 50 / MINUTES_5;
    "com.atproto.server.requestEmailConfirmation" Account 15 / DAY, 5 / HOUR;
    "com.atproto.server.requestEmailUpdate" Account 15 / DAY, 5 / HOUR;
    "com.atproto.server.requestAccountDelete" Account 15 / DAY, 5 / HOUR;
    "com.atproto.identity.updateHandle" Account 10 / MINUTES_5, 50 / DAY;
    "com.atproto.sync.getRepo" Address 6000 / MINUTES_5;
};

/// What bounds a method.
#[must_use]
pub fn of(nsid: &str) -> Option<&'static MethodLimit> {
    METHODS.iter().find(|method| method.nsid == nsid)
}

/// Whether requests to a path count for the global bucket.
#[must_use]
pub fn is_global(path: &str) -> bool {
    (path.starts_with("/xrpc/") || path.starts_with("/.well-known/"))
        && path != "/xrpc/com.atproto.sync.getRepo"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_buckets_have_one_name() {
        let all: Vec<&Bucket> = [&GLOBAL]
            .into_iter()
            .chain(&WRITES)
            .chain(&LOGIN)
            .chain(METHODS.iter().flat_map(|method| method.buckets))
            .collect();
        let names: BTreeSet<&str> = all.iter().map(|bucket| bucket.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.contains("com.atproto.server.requestPasswordReset-1"));
    }

    #[test]
    fn writes_have_the_references_points() {
        use Write::{Create, Delete, Update};
        assert_eq!(write_points([Create]), 3);
        assert_eq!(write_points([Update]), 2);
        assert_eq!(write_points([Delete]), 1);
        assert_eq!(write_points([Create, Update, Delete, Create]), 9);
    }

    #[test]
    fn an_export_and_health_are_not_global_and_proxied_methods_are() {
        for (path, counted) in [
            ("/xrpc/com.atproto.sync.getRepo", false),
            ("/xrpc/com.atproto.sync.getRecord", true),
            ("/xrpc/app.bsky.feed.getTimeline", true),
            ("/.well-known/atproto-did", true),
            ("/_health/live", false),
            ("/metrics", false),
            ("/", false),
        ] {
            assert_eq!(is_global(path), counted, "{path}");
        }
    }
}
