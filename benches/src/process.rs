//! What a process has used, from /proc.

use anyhow::{Context, Result};

/// What this process has used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on processors, user and system, in steps of 10 ms.
    pub cpu_seconds: f64,
    /// Bytes that were sent to disks, as `/proc/self/io` counts them.
    pub written_bytes: u64,
    /// Resident memory now, mapped files included.
    pub rss_bytes: u64,
    /// The most resident memory there ever was.
    pub rss_peak_bytes: u64,
}

/// What this process has used so far.
///
/// # Errors
/// There is no /proc, or it is not as Linux has it.
pub fn usage() -> Result<Usage> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).with_context(|| name.to_owned());
    let number = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.with_context(|| format!("no {name} in /proc"))
    };
    let (stat, io, status) = (read("stat")?, read("io")?, read("status")?);
    // After the program's name, which may hold anything but ends with the last parenthesis.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Ok(Usage {
        cpu_seconds: ticks as f64 / 100.0,
        written_bytes: number(&io, "write_bytes:")?,
        rss_bytes: number(&status, "VmRSS:")? * 1024,
        rss_peak_bytes: number(&status, "VmHWM:")? * 1024,
    })
}
