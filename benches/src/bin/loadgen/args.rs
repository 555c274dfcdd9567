//! What the command line says.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Longest label that a server takes in a handle.
const MAX_LABEL_CHARS: usize = 18;

/// Puts load on a running PDS and prints what it did with it as one line of JSON.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// The scenarios.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Create records, one a request, in a closed loop.
    CreateRecord(CreateRecord),
    /// Create records by applyWrites, many a request, in a closed loop.
    ApplyWrites(ApplyWrites),
    /// Create accounts, in a closed loop.
    CreateAccount(CreateAccount),
    /// Read random records, in a closed loop.
    GetRecord(GetRecord),
    /// Read pages of 100 records, in a closed loop.
    ListRecords(GetRecord),
    /// Read random records with their proofs, as CAR, in a closed loop.
    SyncGetRecord(GetRecord),
    /// Upload media, in a closed loop; nothing references it, so the server may drop it later.
    UploadBlob(Blobs),
    /// Download one piece of media again and again, in a closed loop.
    GetBlob(Blobs),
    /// What the HTTP stack alone can do here: a server of one handler that answers from memory, in a process of its own.
    Trivial(Trivial),
    /// The server of `trivial`.
    #[command(hide = true)]
    ServeTrivial,
    /// Download one large repo again and again.
    GetRepo(GetRepo),
    /// Import a repo as a CAR again and again.
    ImportRepo(ImportRepo),
    /// Bring repos up to a number of records, by applyWrites; what is there already stays.
    Fill(Fill),
    /// Read the firehose from a cursor to its newest event.
    FirehoseReplay(FirehoseReplay),
    /// Write while many live subscribers listen.
    FanOut(FanOut),
}

/// What every scenario needs to know.
#[derive(Debug, Args)]
pub struct Common {
    /// The server, such as http://localhost:2583.
    #[arg(long, env = "LOADGEN_URL", value_parser = parse_url)]
    pub url: String,
    /// File that keeps the sessions from run to run. It holds secrets and only its owner can read it.
    #[arg(long, default_value = "target/loadgen-sessions.json")]
    pub sessions: PathBuf,
    /// Domain of the accounts' handles, one that the server lists in `availableUserDomains`.
    #[arg(long, default_value = "test", value_parser = parse_domain)]
    pub handle_domain: String,
    /// Password of every account.
    #[arg(long, default_value = "load-generator", hide_default_value = true)]
    pub password: String,
    /// Invite code for new accounts, if the server wants one.
    #[arg(long)]
    pub invite_code: Option<String>,
    /// How many accounts are created or logged in at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub setup_connections: u32,
    /// Process id of the server on this machine: its CPU time and memory are reported too.
    #[arg(long)]
    pub server_pid: Option<u32>,
}

impl Common {
    /// The handle of the nth account that is shared by all scenarios.
    #[must_use]
    pub fn handle(&self, n: u32) -> String {
        format!("load-{n}.{}", self.handle_domain)
    }

    /// The handle of the account whose repo holds exactly so many records.
    #[must_use]
    pub fn repo_handle(&self, records: u64) -> String {
        format!("load-repo-{records}.{}", self.handle_domain)
    }
}

/// How long and how hard a closed loop runs.
#[derive(Clone, Copy, Debug, Args)]
pub struct Pace {
    /// Requests in flight, each on a connection of its own.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// How long the load runs before measuring starts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub warmup_seconds: u32,
}

impl Pace {
    /// How long the load runs before measuring starts.
    #[must_use]
    pub fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup_seconds.into())
    }

    /// How long to measure.
    #[must_use]
    pub fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// `create-record`.
#[derive(Debug, Args)]
pub struct CreateRecord {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
    /// Repos that take turns.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repos: u32,
    /// All connections write to the first repo.
    #[arg(long, conflicts_with = "repos")]
    pub one_repo: bool,
}

impl CreateRecord {
    /// How many repos take turns.
    #[must_use]
    pub fn repos(&self) -> u32 {
        if self.one_repo { 1 } else { self.repos }
    }
}

/// `apply-writes`.
#[derive(Debug, Args)]
pub struct ApplyWrites {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
    /// Repos that take turns.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repos: u32,
    /// Records that each request creates.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub batch: u32,
}

/// `create-account`.
#[derive(Debug, Args)]
pub struct CreateAccount {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
}

/// `get-record`.
#[derive(Debug, Args)]
pub struct GetRecord {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
    /// Repos to read from.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repos: u32,
    /// Records that each of them is filled with first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=9_999_999))]
    pub records: u64,
}

/// `upload-blob` and `get-blob`.
#[derive(Debug, Args)]
pub struct Blobs {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
    /// Size of each, in bytes.
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(16..=100_000_000))]
    pub bytes: u64,
}

/// `trivial`.
#[derive(Debug, Args)]
pub struct Trivial {
    /// How long and how hard.
    #[command(flatten)]
    pub pace: Pace,
}

/// `get-repo`.
#[derive(Debug, Args)]
pub struct GetRepo {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// Records in the repo; a repo of this size is filled once and found again by its handle.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=9_999_999))]
    pub records: u64,
    /// How often it is downloaded.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub downloads: u32,
    /// Downloads at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
}

/// `import-repo`.
#[derive(Debug, Args)]
pub struct ImportRepo {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// Records in the CAR; 50,000 make 16 MB, which the server must accept (`PDS_MAX_REPO_IMPORT_SIZE`).
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=9_999_999))]
    pub records: u64,
    /// How often a CAR is imported, each time with other records.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub imports: u32,
    /// Blocks in the order of their CIDs instead of the tree's.
    #[arg(long)]
    pub scattered: bool,
}

/// `fill`.
#[derive(Debug, Args)]
pub struct Fill {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// Repos to fill.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repos: u32,
    /// Records that each of them holds afterwards.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=9_999_999))]
    pub records: u64,
    /// Repos filled at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
}

/// `firehose-replay`.
#[derive(Debug, Args)]
pub struct FirehoseReplay {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// Where to start.
    #[arg(long, default_value_t = 0)]
    pub cursor: u64,
}

/// `fan-out`.
#[derive(Debug, Args)]
pub struct FanOut {
    /// Everywhere the same.
    #[command(flatten)]
    pub common: Common,
    /// Live subscribers; the server must allow one more (PDS_FIREHOSE_MAX_SUBSCRIBERS), which reads the markers.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub subscribers: u32,
    /// Connections that write.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub writers: u32,
    /// Records written per second by all writers together; as many as the server takes if unset.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// How long the writers write.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
}

/// An HTTP URL without the slash at its end.
fn parse_url(raw: &str) -> Result<String, String> {
    let url = raw.trim_end_matches('/');
    match url.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() => Ok(url.to_owned()),
        _ => Err("an http:// or https:// URL is needed".to_owned()),
    }
}

/// A handle domain without the dot that the server's description starts it with.
fn parse_domain(raw: &str) -> Result<String, String> {
    let domain = raw.trim_start_matches('.');
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if domain.is_empty() || !domain.chars().all(plain) {
        return Err("a domain such as \"test\" is needed".to_owned());
    }
    Ok(domain.to_ascii_lowercase())
}

// The longest labels that the ranges above allow.
const _: () =
    assert!("load-repo-9999999".len() <= MAX_LABEL_CHARS && "load-1000000".len() <= MAX_LABEL_CHARS);

#[cfg(test)]
mod tests {
    use super::*;

    const URL: [&str; 2] = ["--url", "http://localhost:2583/"];

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("loadgen").chain(words.iter().copied()).chain(URL))
    }

    #[test]
    fn the_commands_are_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn one_repo_means_the_first_and_excludes_a_number() {
        let Scenario::CreateRecord(args) = parse(&["create-record", "--one-repo"]).unwrap().scenario else {
            panic!("another scenario");
        };
        assert_eq!(args.repos(), 1);
        assert!(parse(&["create-record", "--one-repo", "--repos", "3"]).is_err());
        let Scenario::CreateRecord(args) = parse(&["create-record", "--repos", "3"]).unwrap().scenario else {
            panic!("another scenario");
        };
        assert_eq!(args.repos(), 3);
    }

    #[test]
    fn handles_carry_the_domain_whether_or_not_it_was_given_with_its_dot() {
        for given in ["pds.example.com", ".pds.example.com", "PDS.example.com"] {
            let parsed = parse(&["fill", "--handle-domain", given]).unwrap();
            let Scenario::Fill(args) = parsed.scenario else {
                panic!("another scenario");
            };
            assert_eq!(args.common.handle(7), "load-7.pds.example.com");
            assert_eq!(args.common.repo_handle(50_000), "load-repo-50000.pds.example.com");
            assert_eq!(args.common.url, "http://localhost:2583");
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        for words in [
            &["get-record", "--connections", "0"][..],
            &["get-record", "--seconds", "0"],
            &["get-repo", "--records", "10000000"],
            &["fill", "--handle-domain", "."],
            &["fan-out", "--subscribers", "0"],
            &["firehose-replay", "--cursor", "-1"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        let no_scheme = ["loadgen", "fill", "--url", "localhost:2583"];
        assert!(Arguments::try_parse_from(no_scheme).is_err());
    }
}
