//! What a scenario counted, what the server used meanwhile, and the line that tells both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::histogram::Histogram;

/// Clock ticks per second in `/proc/<pid>/stat`; the kernel's ABI has this value on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// What requests came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that succeeded.
    pub requests: u64,
    /// Requests that did not.
    pub errors: u64,
    /// Bytes of the bodies that came back.
    pub bytes: u64,
    /// How long the successful ones took.
    pub latency: Histogram,
    first_error: Option<(Instant, String)>,
}

impl Tally {
    /// Counts a success.
    pub fn success(&mut self, took: Duration, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
        self.latency.record(took);
    }

    /// Counts a failure; the first one's message is kept.
    pub fn failure(&mut self, message: impl std::fmt::Display) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some((Instant::now(), message.to_string()));
        }
    }

    /// Adds another tally; the earlier of the two first errors is kept.
    pub fn merge(&mut self, other: Tally) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.latency.merge(&other.latency);
        self.first_error = match (self.first_error.take(), other.first_error) {
            (Some(ours), Some(theirs)) => Some(if theirs.0 < ours.0 { theirs } else { ours }),
            (ours, theirs) => ours.or(theirs),
        };
    }

    /// The first failure's message.
    #[must_use]
    pub fn first_error(&self) -> Option<&str> {
        self.first_error.as_ref().map(|(_, message)| message.as_str())
    }
}

/// The server's process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// CPU time that it has used, user and system, in microseconds; the kernel counts hundredths of a second.
    pub cpu_micros: u64,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// The most there ever was of it.
    pub rss_peak_bytes: u64,
}

/// Looks at the server's process, if its id is known.
///
/// # Errors
/// There is no such process, or `/proc` does not look as expected.
pub fn sample(pid: Option<u32>) -> Result<Option<Sample>> {
    let Some(pid) = pid else { return Ok(None) };
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("{path}: is --server-pid right?"))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    let sample = parse_sample(&stat, &status).with_context(|| format!("/proc/{pid} is not understood"))?;
    Ok(Some(sample))
}

/// Resident memory of a process now: all of it, and the part that no file is behind. Bytes.
///
/// # Errors
/// As [`sample`].
pub fn resident(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("{path}: is --server-pid right?"))?;
    let both = kib(&status, "VmRSS:").zip(kib(&status, "RssAnon:"));
    let (all, anonymous) = both.with_context(|| format!("{path} is not understood"))?;
    Ok((all * 1024, anonymous * 1024))
}

/// A number of `/proc/<pid>/status`.
fn kib(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// Looks at the server's process after the load. One that has ended meanwhile has nothing to tell, and the errors that
/// were counted tell that it did.
#[must_use]
pub fn sample_after(pid: Option<u32>) -> Option<Sample> {
    sample(pid).ok().flatten()
}

fn parse_sample(stat: &str, status: &str) -> Option<Sample> {
    // The second field, the name, may hold blanks and parentheses; `state`, the third, follows its last parenthesis.
    let mut from_state = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = from_state.nth(11)?.parse().ok()?;
    let system: u64 = from_state.next()?.parse().ok()?;
    Some(Sample {
        cpu_micros: (user + system) * (1_000_000 / TICKS_PER_SECOND),
        rss_bytes: kib(status, "VmRSS:")? * 1024,
        rss_peak_bytes: kib(status, "VmHWM:")? * 1024,
    })
}

/// What the server used between two looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    before: Sample,
    after: Sample,
}

impl Usage {
    /// From the looks before and after, if there were any.
    #[must_use]
    pub fn between(before: Option<Sample>, after: Option<Sample>) -> Option<Usage> {
        Some(Usage {
            before: before?,
            after: after?,
        })
    }

    fn cpu_micros(&self) -> u64 {
        self.after.cpu_micros.saturating_sub(self.before.cpu_micros)
    }
}

/// The outcome of a scenario.
#[derive(Debug)]
pub struct Outcome {
    /// Its name on the command line.
    pub scenario: &'static str,
    /// What it was told.
    pub parameters: Value,
    /// How long was measured.
    pub elapsed: Duration,
    /// What was counted.
    pub tally: Tally,
    /// What the server used.
    pub usage: Option<Usage>,
    /// What only this scenario knows.
    pub extra: Map<String, Value>,
}

impl Outcome {
    /// The outcome as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let tally = &self.tally;
        let mut line = Map::new();
        line.insert("scenario".into(), self.scenario.into());
        line.insert("parameters".into(), self.parameters.clone());
        line.insert("seconds".into(), rounded(self.elapsed.as_secs_f64()));
        line.insert("requests".into(), tally.requests.into());
        line.insert("errors".into(), tally.errors.into());
        line.insert("first_error".into(), tally.first_error().into());
        line.insert("per_second".into(), per_second(tally.requests, self.elapsed));
        line.insert("p50_ms".into(), millis(tally.latency.quantile(0.5)));
        line.insert("p99_ms".into(), millis(tally.latency.quantile(0.99)));
        line.insert("max_ms".into(), millis(tally.latency.max()));
        line.insert("bytes_per_second".into(), per_second(tally.bytes, self.elapsed));
        line.extend(self.extra.clone());
        if let Some(usage) = &self.usage {
            let cpu = usage.cpu_micros();
            let answered = tally.requests + tally.errors;
            let per_request = if answered == 0 {
                Value::Null
            } else {
                rounded(cpu as f64 / answered as f64)
            };
            line.insert("server_cpu_us_per_request".into(), per_request);
            line.insert("server_cpu_ms".into(), (cpu / 1000).into());
            line.insert("server_rss_bytes".into(), usage.after.rss_bytes.into());
            line.insert("server_rss_peak_bytes".into(), usage.after.rss_peak_bytes.into());
        }
        Value::Object(line)
    }
}

/// Microseconds as milliseconds, or null.
#[must_use]
pub fn millis(micros: Option<u64>) -> Value {
    micros.map_or(Value::Null, |micros| rounded(micros as f64 / 1000.0))
}

/// A rate, or null if no time has passed.
#[must_use]
pub fn per_second(count: u64, elapsed: Duration) -> Value {
    if elapsed.is_zero() {
        return Value::Null;
    }
    rounded(count as f64 / elapsed.as_secs_f64())
}

/// To three decimals: more would claim a precision that is not there.
fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tpds\nVmPeak:\t  999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";

    #[test]
    fn a_process_is_understood_whatever_its_name_is() {
        let stat = "42 (a )b( c) S 1 42 42 0 -1 4194304 100 0 0 0 150 25 0 0 20 0 5 0 1000 0 0";
        let expected = Sample {
            cpu_micros: 1_750_000,
            rss_bytes: 1 << 20,
            rss_peak_bytes: 2 << 20,
        };
        assert_eq!(parse_sample(stat, STATUS), Some(expected));
        assert_eq!(parse_sample("42 (pds) S 1", STATUS), None);
        assert_eq!(
            parse_sample(stat, "Name:\tpds\n"),
            None,
            "a kernel thread has no memory"
        );
    }

    #[test]
    fn our_own_process_can_be_looked_at() {
        let own = sample(Some(std::process::id())).unwrap().unwrap();
        assert!(own.rss_bytes > 0 && own.rss_peak_bytes >= own.rss_bytes);
        assert!(sample(None).unwrap().is_none());
    }

    #[test]
    fn the_earliest_error_of_merged_tallies_is_told() {
        let (mut first, mut second) = (Tally::default(), Tally::default());
        first.failure("first");
        second.failure("second");
        second.failure("third");
        second.merge(first);
        assert_eq!((second.errors, second.first_error()), (3, Some("first")));
    }

    #[test]
    fn the_line_has_rates_and_leaves_out_what_nobody_measured() {
        let mut tally = Tally::default();
        tally.success(Duration::from_millis(3), 100);
        tally.success(Duration::from_millis(5), 300);
        let outcome = Outcome {
            scenario: "create-record",
            parameters: json!({ "repos": 2 }),
            elapsed: Duration::from_secs(2),
            tally,
            usage: None,
            extra: Map::new(),
        };
        let line = outcome.to_json();
        assert_eq!(line["per_second"], json!(1.0));
        assert_eq!(line["bytes_per_second"], json!(200.0));
        assert_eq!(line["max_ms"], json!(5.0));
        assert_eq!(line["first_error"], Value::Null);
        assert!(line.get("server_rss_bytes").is_none());
    }

    #[test]
    fn cpu_time_is_shared_by_all_requests() {
        let mut tally = Tally::default();
        (0..3).for_each(|_| tally.success(Duration::from_millis(1), 0));
        tally.failure("busy");
        let before = Sample {
            cpu_micros: 1_000_000,
            rss_bytes: 1,
            rss_peak_bytes: 2,
        };
        let after = Sample {
            cpu_micros: 1_010_000,
            rss_bytes: 5,
            rss_peak_bytes: 9,
        };
        let outcome = Outcome {
            scenario: "fill",
            parameters: Value::Null,
            elapsed: Duration::from_secs(1),
            tally,
            usage: Usage::between(Some(before), Some(after)),
            extra: Map::new(),
        };
        let line = outcome.to_json();
        assert_eq!(line["server_cpu_us_per_request"], json!(2500.0));
        assert_eq!(line["server_rss_bytes"], json!(5));
    }
}
